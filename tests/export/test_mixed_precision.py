"""Checks that the fastest candidate that answers as the float model does is taken, and that there always is one."""

import dataclasses
import functools
import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plantmodels.arrays import Embeddings, Logits
from plantmodels.errors import ExportError
from plantmodels.export import mixed_precision
from plantmodels.export.mixed_precision import ComparedImages, choose_int8
from plantmodels.export.quantize import find_products

SIDE, TOKENS, WIDTH, SPECIES = 8, 16, 12, 4


def make_model(outlier: float) -> onnx.ModelProto:
    """Build a model with four products; before the third, one channel is `outlier` times as large as the others."""
    rng = np.random.default_rng(3)
    spread, gather = np.ones(WIDTH, np.float32), np.ones((WIDTH, 1), np.float32)
    spread[0], gather[0] = outlier, 1 / outlier
    mix = [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32) for _ in range(4)]
    mix[2] = gather * mix[2]
    constants = {
        "shape": np.array([-1, TOKENS, WIDTH], np.int64),
        "spread": spread,
        "axis": np.array([1], np.int64),
        "head": rng.normal(size=(SPECIES, WIDTH)).astype(np.float32),
        **{f"mix{i}": weight for i, weight in enumerate(mix)},
    }
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "mix0"], ["a"], "product0"),
        helper.make_node("MatMul", ["a", "mix1"], ["b"], "product1"),
        helper.make_node("Mul", ["b", "spread"], ["wide"]),
        helper.make_node("MatMul", ["wide", "mix2"], ["c"], "product2"),
        helper.make_node("MatMul", ["c", "mix3"], ["d"], "product3"),
        helper.make_node("ReduceMean", ["d", "axis"], ["embedding"], keepdims=0),
        helper.make_node("Gemm", ["embedding", "head"], ["species_logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("species_logits", TensorProto.FLOAT, ["batch", SPECIES]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_leaves(model: onnx.ModelProto, images: int = 120) -> ComparedImages:
    """Draw images; the heads of all species but the last have two diseases."""
    rng = np.random.default_rng(5)
    pixels = rng.normal(size=(images, 3, SIDE, SIDE)).astype(np.float32)
    head = (rng.normal(size=(2, WIDTH)).astype(np.float32), np.zeros(2, np.float32))
    return ComparedImages(
        pixels[:8], lambda: iter(np.split(pixels, range(50, images, 50))), images, {0: head, 1: head, 2: head}
    )


def run(model: onnx.ModelProto, leaves: ComparedImages) -> tuple[Logits, Embeddings]:
    session = mixed_precision._open_session(model, threads=1)
    return mixed_precision._run_single_images(session, np.concatenate([*leaves.batches()]))


def test_a_model_that_rounding_does_not_hurt_is_wholly_int8() -> None:
    model = make_model(1.0)
    result = choose_int8(model, make_leaves(model), reduce_range=False)
    assert find_products(model) == ["product0", "product1", "product2", "product3"]
    assert result.kept_float == () and result.products == 4
    assert [trial.float_products for trial in result.trials] == [0] and result.trials[0].passed
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in result.model.graph.node) == 4
    assert len(result.describe()) == 2 and result.describe()[1].endswith("taken")


def test_the_product_that_changes_answers_stays_float() -> None:
    model = make_model(1000.0)
    leaves = make_leaves(model)
    result = choose_int8(model, leaves, reduce_range=False)
    assert result.kept_float == ("product2",)
    first, last = result.trials
    assert not first.passed and first.changed > mixed_precision.MAX_CHANGED
    assert first.images == 50, "too many changes after the first batch"
    assert last.passed and last.embedding_error < first.embedding_error / 10
    # by a count of its own
    (expected, right), (logits, embedding) = run(model, leaves), run(result.model, leaves)
    species = expected.argmax(axis=1)
    head = leaves.heads[0][0]
    changed = [
        logits[i].argmax() != species[i]
        or (species[i] != 3 and (head @ embedding[i]).argmax() != (head @ right[i]).argmax())
        for i in range(120)
    ]
    assert (last.images, last.changed) == (120, pytest.approx(np.mean(changed)))


def test_a_slow_machine_takes_what_a_quick_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(1000.0)
    leaves = make_leaves(model)
    quick = choose_int8(model, leaves, reduce_range=False)
    clock = itertools.count(step=1e6)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(mixed_precision.time, name, lambda: float(next(clock)))
    slow = choose_int8(model, leaves, reduce_range=False)
    assert slow.model.SerializeToString() == quick.model.SerializeToString() and slow.trials == quick.trials
    assert slow.milliseconds[0] >= 1e9


def test_the_heads_have_a_say_in_which_products_are_int8() -> None:
    """Another head can therefore change the species file; this is rare, and the metadata names what was tried."""
    model = make_model(1.0)
    leaves = make_leaves(model)
    close = np.random.default_rng(7).normal(size=(500, WIDTH)).astype(np.float32), np.zeros(500, np.float32)
    swapped = dataclasses.replace(leaves, heads={**leaves.heads, 0: close})

    assert choose_int8(model, leaves, reduce_range=False).kept_float == ()
    assert choose_int8(model, swapped, reduce_range=False).kept_float != ()


def test_agreement_is_clear_after_381_leaves_without_a_change() -> None:
    decide = mixed_precision._decide
    assert (decide(0, 380, 1000), decide(0, 381, 1000), decide(0, 400, 1000)) == (None, True, True)
    assert (decide(10, 500, 1000), decide(11, 500, 1000)) == (None, False)
    assert (decide(1, 20, 45), decide(2, 20, 45)) == (None, False), "of few leaves, one changed answer says nothing"


@pytest.mark.parametrize(("share", "least", "most"), [(0.005, 0.95, 1.0), (0.02, 0.0, 0.02)])
def test_a_candidate_that_changes_two_points_is_refused(share: float, least: float, most: float) -> None:
    """By 128 labelled leaves, a loss of two points was taken in a third of cases."""
    decide, rng = functools.cache(mixed_precision._decide), np.random.default_rng(0)

    def takes() -> bool:
        changed = 0
        for seen in (128, 256, 384, 512, 640, 768, 896, 1000):
            changed += int(rng.binomial(seen - (seen - 1) // 128 * 128, share))
            decision = decide(changed, seen, 1000)
            if decision is not None:
                return decision
        return changed <= mixed_precision._count_allowed(1000)

    assert least <= np.mean([takes() for _ in range(1000)]) <= most


def test_a_broken_network_is_refused() -> None:
    model = make_model(np.inf)
    with pytest.raises(ExportError, match="an embedding holds NaN or infinity on training leaves"):
        choose_int8(model, make_leaves(model), reduce_range=False)


def test_it_ends_with_a_model_when_nothing_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(1.0)
    monkeypatch.setattr(mixed_precision, "_count_allowed", lambda images: -1)
    result = choose_int8(model, make_leaves(model), reduce_range=False)
    assert [trial.passed for trial in result.trials] == [False] * len(result.trials)
    assert len(result.kept_float) == 4
    onnx.checker.check_model(result.model)
