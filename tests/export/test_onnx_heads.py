"""Checks INT8 heads against a rigorous bound on their error, and the packed graph against the single heads."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plantmodels.export.onnx_heads import Int8Head, build_float_head, build_int8_head, build_packed_heads, quantize_head

FLOAT_ATOL = 1e-4
"""Rounding of float32 sums of a few hundred products of order one."""


def run(model: onnx.ModelProto, embedding: np.ndarray, species_index: np.ndarray | None = None) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {"embedding": embedding}
    if species_index is not None:
        inputs["species_index"] = species_index
    return session.run(["disease_logits"], inputs)[0]


def random_layer(classes: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(classes, dim)).astype(np.float32) * rng.uniform(0.01, 2, (classes, 1)).astype(np.float32)
    return weight, rng.normal(size=classes).astype(np.float32)


@pytest.mark.parametrize(("classes", "dim"), [(1, 32), (2, 768), (10, 768), (40, 64), (3, 1)])
def test_int8_is_within_its_rigorous_bound_of_float(classes: int, dim: int) -> None:
    weight, bias = random_layer(classes, dim)
    head = quantize_head(weight, bias)
    embedding = np.random.default_rng(1).normal(size=(20, dim)).astype(np.float32)
    exact = embedding.astype(np.float64) @ weight.T.astype(np.float64) + bias
    # each weight is off by at most half a step, so a logit by at most that times the sum of |embedding|
    bound = np.abs(embedding).sum(axis=1, keepdims=True) * (head.scale / 2) + FLOAT_ATOL

    assert (np.abs(run(build_int8_head(head), embedding) - exact) <= bound).all()
    np.testing.assert_allclose(run(build_float_head(weight, bias), embedding), exact, atol=FLOAT_ATOL)


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize(("classes", "dim"), [(2, 768), (5, 32)])
def test_int8_computes_in_float_whatever_onnx_runtime_fuses(classes: int, dim: int, batch: int) -> None:
    head = quantize_head(*random_layer(classes, dim))
    embedding = np.random.default_rng(2).normal(size=(batch, dim)).astype(np.float32)
    expected = embedding.astype(np.float64) @ (head.weight.astype(np.float64) * head.scale) + head.bias

    np.testing.assert_allclose(run(build_int8_head(head), embedding), expected, atol=FLOAT_ATOL)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rounding_is_to_the_nearest_of_255_steps(data: st.DataObject) -> None:
    values = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1e-38, -1e-38])
    rows = data.draw(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=4))
    weight = np.array(rows, np.float32)
    head = quantize_head(weight, np.zeros(len(weight), np.float32))

    assert head.weight.dtype == np.int8
    assert head.weight.shape == weight.T.shape
    assert np.abs(head.weight.astype(int)).max() <= 127
    assert np.isfinite(head.scale).all()
    assert (head.scale > 0).all()
    restored = head.weight.T.astype(np.float64) * head.scale[:, None]
    assert (np.abs(restored - weight) <= head.scale[:, None].astype(np.float64) * 0.5001).all()


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-44, 1e-39, 1e-30])
def test_vanishing_weights_are_quantized_without_a_division_by_zero(size: float) -> None:
    weight = np.full((2, 3), size, np.float32)
    weight[1] = [1, -1, 0.5]
    head = quantize_head(weight, np.ones(2, np.float32))

    assert (head.scale > 0).all()
    assert head.weight[:, 1].tolist() == [127, -127, 64]
    np.testing.assert_allclose(run(build_int8_head(head), np.ones((1, 3), np.float32)), [[1, 1.5]], atol=1e-2)


HEADS = {0: 2, 1: 3, 3: 1, 4: 7}
"""Index of each species with a head, and its number of classes; species 2 and 5 have no head."""


@pytest.fixture(scope="module")
def heads() -> dict[int, Int8Head]:
    return {index: quantize_head(*random_layer(classes, 64, index)) for index, classes in HEADS.items()}


def test_packed_equals_the_single_head_of_every_species(heads: dict[int, Int8Head]) -> None:
    species_index = np.array([4, 0, 1, 3, 1, 4, 0, 3], np.int64)
    embedding = np.random.default_rng(3).normal(size=(8, 64)).astype(np.float32)
    packed = run(build_packed_heads(heads, species=6, dim=64), embedding, species_index)

    assert packed.shape == (8, 7)
    for row, index in enumerate(species_index):
        single = run(build_int8_head(heads[index]), embedding[row : row + 1])[0]
        np.testing.assert_allclose(packed[row, : len(single)], single, rtol=1e-5, atol=1e-5)
        assert (packed[row, len(single) :] == -np.inf).all()


def test_a_species_without_a_head_has_no_class(heads: dict[int, Int8Head]) -> None:
    embedding = np.random.default_rng(4).normal(size=(3, 64)).astype(np.float32)
    packed = run(build_packed_heads(heads, species=6, dim=64), embedding, np.array([2, 5, 0], np.int64))

    assert (packed[:2] == -np.inf).all()
    assert np.isfinite(packed[2, :2]).all()


def test_without_heads_the_only_class_is_minus_infinity() -> None:
    model = build_packed_heads({}, species=2, dim=8)
    onnx.checker.check_model(model, full_check=True)

    assert run(model, np.ones((2, 8), np.float32), np.array([0, 1], np.int64)).tolist() == [[-np.inf], [-np.inf]]


def test_the_largest_embeddings_do_not_reach_the_padding(heads: dict[int, Int8Head]) -> None:
    embedding = np.full((2, 64), 1e30, np.float32)
    packed = run(build_packed_heads(heads, species=6, dim=64), embedding, np.array([0, 3], np.int64))

    assert (packed[0, 2:] == -np.inf).all()
    assert (packed[1, 1:] == -np.inf).all()


def test_an_index_outside_the_species_is_an_error(heads: dict[int, Int8Head]) -> None:
    model = build_packed_heads(heads, species=6, dim=64)

    with pytest.raises(Exception, match="indices element out of data bounds"):
        run(model, np.zeros((1, 64), np.float32), np.array([6], np.int64))


def test_interfaces_follow_contract_3(heads: dict[int, Int8Head]) -> None:
    models = {
        "float": (build_float_head(*random_layer(3, 64)), ["embedding"], 3),
        "int8": (build_int8_head(heads[4]), ["embedding"], 7),
        "packed": (build_packed_heads(heads, species=6, dim=64), ["embedding", "species_index"], 7),
    }
    for model, inputs, classes in models.values():
        onnx.checker.check_model(model, full_check=True)
        shapes = [
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        ]
        assert [value.name for value in model.graph.input] == inputs
        assert [value.name for value in model.graph.output] == ["disease_logits"]
        assert (shapes[0], shapes[-1]) == (["batch", 64], ["batch", classes])
        assert model.opset_import[0].version >= 18


def test_an_int8_head_stores_its_weights_in_a_byte_each(heads: dict[int, Int8Head]) -> None:
    weight, bias = random_layer(40, 768)
    size_bytes = build_int8_head(quantize_head(weight, bias)).ByteSize()

    assert weight.size < size_bytes < weight.size + 2000
    assert size_bytes < 200_000  # the gate `head_size`
    assert build_float_head(weight, bias).ByteSize() > 4 * weight.size


def test_the_same_heads_give_the_same_bytes(heads: dict[int, Int8Head], tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        onnx.save(build_packed_heads(heads, species=6, dim=64), tmp_path / name)

    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
