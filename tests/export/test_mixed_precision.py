"""Checks that the fastest candidate that answers as the float model does is taken, and that there always is one."""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binom

from plantmodels.arrays import Embeddings, Inputs, Logits
from plantmodels.errors import ExportError
from plantmodels.export import mixed_precision
from plantmodels.export.mixed_precision import ComparedImages, choose_int8
from plantmodels.export.quantize import SWITCHES, _Quantizer, add_switches, find_products

SIDE, TOKENS, WIDTH, SPECIES = 8, 16, 12, 4
BATCH, UNREADABLE = 10, 7
"""Images of one batch, and the place of the leaf that cannot be read."""


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

    def decode(places: Sequence[int]) -> Iterator[tuple[list[int], Inputs]]:
        readable = [place for place in places if place != UNREADABLE]
        parts = (readable[start : start + BATCH] for start in range(0, len(readable), BATCH))
        return ((part, pixels[part]) for part in parts)

    paths = [Path(f"{number}.jpg") for number in range(images)]
    return ComparedImages(pixels[:8], paths, decode, {0: head, 1: head, 2: head})


def run(model: onnx.ModelProto, leaves: ComparedImages) -> tuple[Logits, Embeddings]:
    session = mixed_precision._open_session(model, threads=1)
    parts = leaves.decode(range(len(leaves.paths)))
    return mixed_precision._run_single_images(session, np.concatenate([pixels for _, pixels in parts]))


def test_a_model_that_rounding_does_not_hurt_is_wholly_int8() -> None:
    model = make_model(1.0)
    result = choose_int8(model, make_leaves(model), reduce_range=False)
    assert find_products(model) == ["product0", "product1", "product2", "product3"]
    assert result.kept_float == () and result.products == 4
    assert [trial.float_products for trial in result.trials] == [0] and result.trials[0].passed
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in result.model.graph.node) == 4
    assert len(result.describe()) == 2 and result.describe()[1].endswith("changed on 119 leaves: taken")


def test_the_product_that_changes_answers_stays_float() -> None:
    model = make_model(1000.0)
    leaves = make_leaves(model)
    result = choose_int8(model, leaves, reduce_range=False)
    assert result.kept_float == ("product2",)
    first, last = result.trials
    assert not first.passed and first.changed > mixed_precision.MAX_CHANGED
    assert first.images == BATCH, "the least certain answers come first, and of these too many change"
    assert "at least" in result.describe()[1] and result.describe()[1].endswith("changed: too many")
    assert last.passed and last.embedding_error < first.embedding_error / 10
    # by a count of its own
    (expected, right), (logits, embedding) = run(model, leaves), run(result.model, leaves)
    species = expected.argmax(axis=1)
    head = leaves.heads[0][0]
    changed = [
        logits[i].argmax() != species[i]
        or (species[i] != 3 and (head @ embedding[i]).argmax() != (head @ right[i]).argmax())
        for i in range(119)
    ]
    assert (last.images, last.changed) == (119, pytest.approx(np.mean(changed)))


def test_the_outputs_of_the_taken_model_are_kept_to_the_last_bit() -> None:
    model = make_model(1000.0)
    leaves = make_leaves(model)
    result = choose_int8(model, leaves, reduce_range=False)
    logits, embedding = run(result.model, leaves)
    readable = [path for place, path in enumerate(leaves.paths) if place != UNREADABLE]
    assert set(result.outputs) == set(readable)
    for path, *expected in zip(readable, logits, embedding, strict=True):
        for found, right in zip(result.outputs[path], expected, strict=True):
            np.testing.assert_array_equal(found, right)


def test_a_switch_does_what_quantization_of_its_product_does() -> None:
    """One session with a switch for each product stands for a quantized model for each product."""
    model = make_model(30.0)
    pixels = make_leaves(model).first[:4]
    products = find_products(model)

    def embed(each: onnx.ModelProto) -> Embeddings:
        return mixed_precision._run_single_images(mixed_precision._open_session(each, threads=1), pixels)[1]

    switched = mixed_precision._open_switched(add_switches(model, reduce_range=False))
    for name in products:
        alone = onnx.ModelProto()
        alone.CopyFrom(model)
        _Quantizer(alone.graph, {name}, 8).run()
        alone.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        chosen = np.array([each == name for each in products])
        found = [switched.run(["embedding"], {"input": image[None], SWITCHES: chosen})[0] for image in pixels]
        expected = embed(alone)
        assert np.abs(expected - embed(model)).max() > 1e-3
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_product_whose_rounding_moves_the_embedding_most_is_first() -> None:
    model = make_model(1000.0)
    ranked = mixed_precision._rank_by_loss(model, find_products(model), make_leaves(model).first[:4], False)
    assert ranked[0] == "product2" and sorted(ranked) == find_products(model)


def test_answers_are_sorted_by_how_far_they_lead() -> None:
    model = make_model(1.0)
    leaves = make_leaves(model)
    reference = mixed_precision._answer_in_float(model, leaves)
    logits, embedding = run(model, leaves)
    rows = [place - (place > UNREADABLE) for place in reference.places.tolist()]
    highest = np.sort(logits, axis=1)[:, ::-1]
    leads = highest[:, 0] - highest[:, 1]
    for row, species in enumerate(logits.argmax(axis=1).tolist()):
        if species in leaves.heads:
            first, second = leaves.heads[species][0] @ embedding[row]
            leads[row] = min(leads[row], abs(first - second))
    assert leads[rows].tolist() == sorted(leads.tolist())
    np.testing.assert_array_equal(reference.species, logits.argmax(axis=1)[rows])


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


@pytest.mark.parametrize(("images", "allowed"), [(1000, 10), (999, 9), (100, 1), (45, 1)])
def test_one_leaf_in_a_hundred_may_get_another_answer(images: int, allowed: int) -> None:
    """Of fewer than a hundred leaves, one changed answer says nothing."""
    assert mixed_precision._count_allowed(images) == allowed


@pytest.mark.parametrize(("share", "least", "most"), [(0.005, 0.95, 1.0), (0.02, 0.0, 0.02)])
def test_a_candidate_that_changes_two_points_is_refused(share: float, least: float, most: float) -> None:
    """By 128 labelled leaves, a loss of two points was taken in a third of cases."""
    allowed = mixed_precision._count_allowed(mixed_precision.AGREEMENT_IMAGES)
    assert least <= binom.cdf(allowed, mixed_precision.AGREEMENT_IMAGES, share) <= most


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


def test_every_run_is_in_the_mode_of_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    here, runs = threading.local(), list[bool]()

    @contextmanager
    def enter() -> Iterator[None]:
        here.inside = True
        yield
        here.inside = False

    class Session:
        def __init__(self, session: ort.InferenceSession) -> None:
            self._session = session

        def run(self, *given: Any) -> list[Any]:
            runs.append(getattr(here, "inside", False))
            return list(self._session.run(*given))

    def watch(open_: Callable[..., ort.InferenceSession]) -> Callable[..., Session]:
        return lambda *given, **options: Session(open_(*given, **options))

    monkeypatch.setattr(mixed_precision, "denormals_as_zero", enter)
    for name in ("_open_session", "_open_switched"):
        monkeypatch.setattr(mixed_precision, name, watch(getattr(mixed_precision, name)))
    model = make_model(1000.0)
    assert len(choose_int8(model, make_leaves(model), reduce_range=False).trials) == 2
    assert len(runs) > 240 and all(runs)
