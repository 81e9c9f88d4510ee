import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.bundle.metadata import read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import BundleError
from plantmodels.export.network import load_network
from plantmodels.report.samples import Parity
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import open_session
from plantmodels.verify.parity import (
    BATCH_SIZES,
    MAX_POINTS,
    compare_float_head,
    cut_into_batches,
    max_abs_diff,
    measure_parity,
    pick_points,
    read_matching_checkpoint,
)


@given(st.integers(1, 200))
def test_every_image_and_every_batch_size_occurs(images: int) -> None:
    batches = list(cut_into_batches(images))
    assert {len(batch) for batch in batches} == set(BATCH_SIZES)
    rows = [row for batch in batches for row in batch]
    assert rows[:images] == list(range(images))
    assert len(rows) < images + sum(BATCH_SIZES)


def test_the_largest_difference_is_found_in_float64() -> None:
    expected = np.array([[1.0, -2.0], [3.0, 1e4]], np.float32)
    found = expected.copy()
    found[1, 0] -= np.float32(0.25)
    assert max_abs_diff(found, expected) == 0.25
    assert max_abs_diff(np.float16([1e-3]), np.float32([0])) == float(np.float16(1e-3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_difference_that_is_not_finite_is_never_small(value: float) -> None:
    ones = np.ones((2, 2), np.float32)
    broken = np.where(np.eye(2) > 0, value, 1).astype(np.float32)
    for pair in ((ones, broken), (broken, ones), (broken, broken)):
        assert not math.isfinite(max_abs_diff(*pair))


def test_two_shapes_are_infinitely_far_apart() -> None:
    assert max_abs_diff(np.ones((2, 3)), np.ones((2, 1))) == math.inf


class LinearNetwork(nn.Module):
    """Two species, three features, one head: small enough to compute by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.disease_heads = nn.ModuleDict({"apple": nn.Linear(3, 2)})

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = images.mean(dim=(2, 3))
        return embedding[:, :2] * 2, embedding


class ShiftedModel:
    """The same in numpy, shifted by a little; once only in batches of `only_size`."""

    taxonomy = SimpleNamespace(species_with_head=(0,), slugs=("apple",), diseases_of=lambda _: ("a", "b"))

    def __init__(self, logits: float, embedding: float, only_size: int | None = None) -> None:
        self.shifts, self.only_size = (logits, embedding), only_size

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embedding = pixels.mean(axis=(2, 3))
        active = self.only_size in (None, len(pixels))
        logits_shift, embedding_shift = self.shifts if active else (0, 0)
        return embedding[:, :2] * 2 + logits_shift, embedding + embedding_shift

    embed = run

    def run_heads(self, embedding: np.ndarray, species_index: np.ndarray) -> np.ndarray:
        return np.zeros((len(embedding), 2), np.float32)


def measure(fp16: ShiftedModel, images: int = 12) -> Parity:
    pixels = np.random.default_rng(2).random((images, 3, 4, 4), dtype=np.float32)
    network, int8 = LinearNetwork().eval(), ShiftedModel(0.5, 0.25)
    parity, embeddings = measure_parity(network, fp16, int8, pixels)  # type: ignore[arg-type]
    np.testing.assert_allclose(embeddings, pixels.mean(axis=(2, 3)), rtol=1e-6)
    return parity


def test_logits_and_embeddings_are_compared_separately() -> None:
    parity = measure(ShiftedModel(0.001, 0.003))
    assert parity.logits == pytest.approx(0.001, rel=1e-3)
    assert parity.embedding == pytest.approx(0.003, rel=1e-3)
    assert parity.worst == parity.embedding
    assert (parity.int8_logits, parity.int8_embedding) == (
        pytest.approx(0.5, rel=1e-3),
        pytest.approx(0.25, rel=1e-3),
    )
    assert parity.int8_head_logits is not None
    assert parity.int8_head_logits > 0.01, "zeros are not the head's answers"


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_a_difference_in_one_batch_size_is_found(size: int) -> None:
    parity = measure(ShiftedModel(0.1, 0, only_size=size), images=3)
    assert parity.worst == pytest.approx(0.1, rel=1e-3)
    wrong = {name for name, value in parity.by_batch_size.items() if value is not None and value > 1e-5}
    assert wrong == {str(size)}


def test_a_model_that_answers_nan_has_no_parity() -> None:
    parity = measure(ShiftedModel(math.nan, 0))
    assert (parity.logits, parity.worst) == (None, None)


def test_some_logits_are_kept_for_the_plot() -> None:
    scatter = measure(ShiftedModel(0.25, 0)).scatter
    assert scatter is not None
    assert len(scatter.pytorch) == 2 * sum(len(rows) for rows in cut_into_batches(12))
    np.testing.assert_allclose(np.subtract(scatter.fp16, scatter.pytorch), 0.25, atol=1e-6)
    np.testing.assert_allclose(np.subtract(scatter.int8, scatter.pytorch), 0.5, atol=1e-6)


def test_points_are_evenly_spaced_and_few() -> None:
    rows = np.arange(14 * 200, dtype=np.float32).reshape(200, 14)
    scatter = pick_points(rows, rows + 1, rows + 2)
    assert scatter is not None
    assert len(scatter.pytorch) == MAX_POINTS
    assert set(np.diff(scatter.pytorch)) == {4.0, 5.0}
    np.testing.assert_array_equal(np.subtract(scatter.fp16, scatter.pytorch), 1)
    np.testing.assert_array_equal(np.subtract(scatter.int8, scatter.pytorch), 2)


def test_logits_that_are_missing_or_not_finite_have_no_plot() -> None:
    rows = np.ones((3, 2), np.float32)
    assert pick_points(rows, rows[:2], rows) is None
    assert pick_points(rows, rows, rows * np.inf) is None
    assert measure(ShiftedModel(math.nan, 0)).scatter is None


def test_float_heads_equal_pytorchs_and_a_broken_builder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    network = LinearNetwork()
    embedding = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    assert compare_float_head(network, "apple", embedding) < 1e-6  # type: ignore[arg-type]
    from plantmodels.verify import parity

    build = parity.build_float_head
    monkeypatch.setattr(parity, "build_float_head", lambda weight, bias: build(weight[::-1].copy(), bias))
    assert compare_float_head(network, "apple", embedding) > 0.01  # type: ignore[arg-type]


def load_pixels(tiny_bundle, count: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    from plantmodels.serve.preprocessing import decode_image, preprocess

    paths = sorted((tiny_bundle.data / "val").rglob("leaf*"))[:: 45 // count][:count]
    preprocessing = read_metadata(tiny_bundle.bundle).preprocessing
    return np.stack([preprocess(decode_image(path.read_bytes()), preprocessing) for path in paths])


def test_a_real_export_is_close_and_other_weights_are_not(tiny_bundle, tiny_checkpoint_factory) -> None:  # type: ignore[no-untyped-def]
    pixels = load_pixels(tiny_bundle, 5)
    session = open_session(tiny_bundle.bundle / SPECIES_FILES["fp16"], threads=1)
    fp16, int8 = SpeciesModel(session, rows_per_run=None), PlantClassifier.load(tiny_bundle.bundle, threads=1)
    network = load_network(read_checkpoint(tiny_bundle.checkpoint))
    parity, _ = measure_parity(network, fp16, int8, pixels)
    assert parity.worst is not None
    assert parity.worst < 0.1, "its weights are large: rounding them to FP16 moves logits by 0.03"
    assert (parity.images, parity.heads) == (5, 4)
    assert parity.int8_embedding is not None
    assert parity.int8_embedding > parity.embedding

    def nudge(document: dict) -> None:  # type: ignore[type-arg]
        document["state_dict"]["species_head.bias"][2] += 0.5

    other = load_network(read_checkpoint(tiny_checkpoint_factory(nudge)))
    moved, _ = measure_parity(other, fp16, int8, pixels)
    assert moved.logits == pytest.approx(0.5, abs=0.05)
    assert moved.embedding == parity.embedding


def test_only_the_bundles_own_checkpoint_is_accepted(tiny_bundle, tiny_checkpoint_factory, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    metadata = read_metadata(tiny_bundle.bundle)
    recorded = metadata.provenance["checkpoint_sha256"]
    assert read_matching_checkpoint(tiny_bundle.checkpoint, metadata).sha256 == recorded
    other = tiny_checkpoint_factory(lambda document: document.update(epoch=4))
    sha256 = read_checkpoint(other).sha256
    message = f"{re.escape(str(other))}: its SHA-256 is {sha256}, but .* made from {recorded}: not the same"
    with pytest.raises(BundleError, match=message):
        read_matching_checkpoint(other, metadata)
    unrecorded = replace(metadata, provenance={})
    with pytest.raises(BundleError, match="whose digest was not recorded"):
        read_matching_checkpoint(tiny_bundle.checkpoint, unrecorded)


def test_only_the_hyper_parameters_of_the_export_are_accepted(tiny_bundle, tiny_document, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    metadata, parameters = read_metadata(tiny_bundle.bundle), tmp_path / "parameters.json"
    parameters.write_text(json.dumps(tiny_document["hyper_parameters"]))
    with pytest.raises(
        BundleError, match=r"parameters\.json: the bundle was exported without a file of hyper-parameters"
    ):
        read_matching_checkpoint(tiny_bundle.checkpoint, metadata, parameters)

    sha256 = read_checkpoint(tiny_bundle.checkpoint, parameters).parameters_sha256
    recorded = replace(metadata, provenance=metadata.provenance | {"hyper_parameters_sha256": sha256})
    assert read_matching_checkpoint(tiny_bundle.checkpoint, recorded, parameters).parameters_sha256 == sha256
    with pytest.raises(
        BundleError, match=rf"with a file of hyper-parameters \(SHA-256 {sha256}\): give it by --hyper-"
    ):
        read_matching_checkpoint(tiny_bundle.checkpoint, recorded)
    parameters.write_text(json.dumps(tiny_document["hyper_parameters"], indent=1))
    match = rf"parameters\.json: its SHA-256 is .*, but .* was made with {sha256}: not the same hyper-parameters"
    with pytest.raises(BundleError, match=match):
        read_matching_checkpoint(tiny_bundle.checkpoint, recorded, parameters)


def test_the_weights_of_the_export_are_read_again(tiny_bundle, tiny_checkpoint_factory) -> None:  # type: ignore[no-untyped-def]
    def add_copy(document: dict) -> None:  # type: ignore[type-arg]
        document["state_dict"] |= {f"ema_model.{n}": t.clone() for n, t in document["state_dict"].items()}
        document["state_dict"]["ema_model.species_head.bias"] += 1

    path = tiny_checkpoint_factory(add_copy)
    provenance = {"checkpoint_sha256": read_checkpoint(path).sha256, "weights": "ema"}
    metadata = replace(read_metadata(tiny_bundle.bundle), provenance=provenance)
    averaged = read_matching_checkpoint(path, metadata).species_head[1]
    np.testing.assert_allclose(averaged, read_checkpoint(path).species_head[1] + 1, rtol=1e-6)
