"""Checks that the fastest candidate that keeps the accuracy is taken, and that there always is one."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plantmodels.export import mixed_precision
from plantmodels.export.mixed_precision import LabelledImages, choose_int8
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


def make_leaves(model: onnx.ModelProto, tmp_path: Path) -> LabelledImages:
    """Draw images that the float model classifies correctly; the heads have two diseases."""
    rng = np.random.default_rng(5)
    pixels = rng.normal(size=(120, 3, SIDE, SIDE)).astype(np.float32)
    (logits, embedding), _ = mixed_precision._run_and_time(model, pixels)
    species = logits.argmax(axis=1)
    head = (rng.normal(size=(2, WIDTH)).astype(np.float32), np.zeros(2, np.float32))
    diseases = np.where(species == 3, -1, (embedding @ head[0].T).argmax(axis=1))
    return LabelledImages(pixels, species, diseases, {0: head, 1: head, 2: head})


def test_a_model_that_rounding_does_not_hurt_is_wholly_int8(tmp_path: Path) -> None:
    model = make_model(1.0)
    result = choose_int8(model, make_leaves(model, tmp_path), reduce_range=False)
    assert find_products(model) == ["product0", "product1", "product2", "product3"]
    assert result.kept_float == () and result.products == 4
    assert [trial.float_products for trial in result.trials] == [0] and result.trials[0].passed
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in result.model.graph.node) == 4
    assert len(result.describe()) == 2 and result.describe()[1].endswith("taken")


def test_the_product_that_loses_answers_stays_float(tmp_path: Path) -> None:
    model = make_model(1000.0)
    leaves = make_leaves(model, tmp_path)
    result = choose_int8(model, leaves, reduce_range=False)
    assert result.kept_float == ("product2",)
    first, last = result.trials
    assert not first.passed and max(first.species_drop, first.disease_drop) > mixed_precision.MAX_DROP
    assert last.passed and last.embedding_error < first.embedding_error / 10
    # by a count of its own
    (logits, embedding), _ = mixed_precision._run_and_time(result.model, leaves.pixels)
    wrong = np.mean(logits.argmax(axis=1) != leaves.species)
    assert last.species_drop == pytest.approx(wrong)
    named = [i for i in range(120) if leaves.diseases[i] >= 0]
    head = leaves.heads[0][0]
    missed = sum(int(np.argmax(head @ embedding[i])) != leaves.diseases[i] for i in named)
    assert last.disease_drop == pytest.approx(missed / len(named))


def test_a_slow_machine_takes_what_a_quick_one_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(1000.0)
    leaves = make_leaves(model, tmp_path)
    quick = choose_int8(model, leaves, reduce_range=False)
    clock = itertools.count(step=1e6)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(mixed_precision.time, name, lambda: float(next(clock)))
    slow = choose_int8(model, leaves, reduce_range=False)
    assert slow.model.SerializeToString() == quick.model.SerializeToString() and slow.trials == quick.trials
    assert slow.milliseconds[0] >= 1e9


def test_the_heads_have_a_say_in_which_products_are_int8(tmp_path: Path) -> None:
    """Another head can therefore change the species file; this is rare, and the metadata names what was tried."""
    model = make_model(1.0)
    leaves = make_leaves(model, tmp_path)
    (_, embedding), _ = mixed_precision._run_and_time(model, leaves.pixels)
    close = np.random.default_rng(7).normal(size=(500, WIDTH)).astype(np.float32), np.zeros(500, np.float32)
    diseases = np.where(leaves.species == 0, (embedding @ close[0].T).argmax(axis=1), leaves.diseases)
    swapped = dataclasses.replace(leaves, diseases=diseases, heads={**leaves.heads, 0: close})

    assert choose_int8(model, leaves, reduce_range=False).kept_float == ()
    assert choose_int8(model, swapped, reduce_range=False).kept_float != ()


def test_it_ends_with_a_model_when_nothing_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(1.0)
    monkeypatch.setattr(mixed_precision, "MAX_DROP", -1.0)
    result = choose_int8(model, make_leaves(model, tmp_path), reduce_range=False)
    assert [trial.passed for trial in result.trials] == [False] * len(result.trials)
    assert len(result.kept_float) == 4
    onnx.checker.check_model(result.model)
