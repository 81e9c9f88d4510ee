"""Chooses which matrix products of a species model become INT8: as many as possible without losing accuracy.

A product is faster in INT8 than in float, so candidates are tried from the fastest to the slowest. The first has all
products in INT8. The next keep one sixteenth, one eighth, one quarter and half of the products in float, namely those
whose rounding moves the embedding most. The last keeps all in float. The first candidate that holds the limit on
training leaves is taken. The choice depends on the outputs only and never on time, so a busy machine writes the same
file.
"""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort

from plantmodels.arrays import Embeddings, Inputs, Labels, Logits, Mask, Weights
from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.data.progress import track
from plantmodels.errors import ExportError
from plantmodels.export.quantize import find_products, quantize_int8
from plantmodels.serve.cores import count_cores
from plantmodels.serve.session import open_session

MAX_DROP: Final = 0.01
"""Accuracy of species and of diseases that INT8 may lose, as a share; the default limit of the gate `int8_accuracy`."""

FLOAT_SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the products that stay float in the candidates between the first (none) and the last (all)."""

_RANKING_IMAGES: Final = 4
"""Enough to rank the products; every product takes one more quantization and one run of the model."""

_TIMED_RUNS: Final = 9


@dataclass(frozen=True)
class LabelledImages:
    """Leaves on which candidates are compared with the float model.

    Attributes:
        pixels: (N, 3, P, P) input of the species model.
        species: (N,) index of the true species.
        diseases: (N,) index of the true disease among those of the species, −1 without a disease.
        heads: index of each species with a head, and its float weights (C, D) and bias (C,).
    """

    pixels: Inputs
    species: Labels
    diseases: Labels
    heads: Mapping[int, tuple[Weights, Weights]]


@dataclass(frozen=True)
class QuantizationTrial:
    """What was measured on one candidate.

    Attributes:
        float_products: number of products that it keeps in float.
        species_drop: species accuracy of the float model minus the candidate's; negative if the candidate is better.
        disease_drop: the same difference in disease accuracy, given the true species.
        changed: share of the images whose predicted species or disease differs from the float model's.
        embedding_error: root mean square error of the embedding, divided by the root mean square of the embedding.
        passed: whether both drops are at most `MAX_DROP` and the error is finite.
    """

    float_products: int
    species_drop: float
    disease_drop: float
    changed: float
    embedding_error: float
    passed: bool


@dataclass(frozen=True)
class QuantizationResult:
    """The INT8 model that was chosen.

    Attributes:
        model: the INT8 model.
        kept_float: names of the products that stay float.
        products: number of all products.
        trials: the candidates in the order in which they were tried; the last one was taken.
        milliseconds: median time of one image on all cores, of the float model and then of each candidate.
    """

    model: onnx.ModelProto
    kept_float: tuple[str, ...]
    products: int
    trials: tuple[QuantizationTrial, ...]
    milliseconds: tuple[float, ...]

    def describe(self) -> list[str]:
        """Return a line for the float model and one for each trial, for terminals."""
        lines = [f"{self.milliseconds[0]:>9.1f} ms  float32, one image on all cores"]
        for trial, elapsed_ms in zip(self.trials, self.milliseconds[1:], strict=True):
            lines.append(
                f"{elapsed_ms:>9.1f} ms  INT8 with {trial.float_products} of {self.products} products in float: "
                f"accuracy of species {_to_points(-trial.species_drop)} and of diseases "
                f"{_to_points(-trial.disease_drop)} points, {100 * trial.changed:.2f} % of answers changed: "
                + ("taken" if trial is self.trials[-1] else "loses too much accuracy")
            )
        return lines


def _to_points(change: float) -> str:
    """Return a change of accuracy in percentage points, without a sign if it rounds to zero."""
    text = f"{100 * change:+.2f}"
    return text[1:] if float(text) == 0 else text


def choose_int8(model: onnx.ModelProto, leaves: LabelledImages, *, reduce_range: bool) -> QuantizationResult:
    """Try candidates until one holds `MAX_DROP`, and return it.

    Args:
        model: species model in float32.
        leaves: labelled training leaves.
        reduce_range: whether weights have 7 bits (see `quantize_int8`).

    Raises:
        ExportError: the float model itself gives NaN or infinity.
    """
    products = find_products(model)
    reference, float_ms = _run_and_time(model, leaves.pixels)
    if not np.isfinite(reference[1]).all():
        raise ExportError("an embedding holds NaN or infinity on training leaves: the network is broken")
    candidates = [0, *(math.ceil(share * len(products)) for share in FLOAT_SHARES), len(products)]
    ranked: list[str] = []
    trials: list[QuantizationTrial] = []
    milliseconds = [float_ms]
    for count in sorted(set(candidates)):
        if 0 < count < len(products):
            ranked = ranked or _rank_by_loss(model, products, leaves.pixels[:_RANKING_IMAGES], reduce_range)
        kept = tuple(ranked[:count]) if count < len(products) else tuple(products)
        quantized = quantize_int8(model, reduce_range=reduce_range, keep_float=kept)
        outputs, elapsed_ms = _run_and_time(quantized, leaves.pixels)
        trials.append(_measure_trial(outputs, reference, leaves, len(kept)))
        milliseconds.append(elapsed_ms)
        if trials[-1].passed:
            break
    return QuantizationResult(quantized, kept, len(products), tuple(trials), tuple(milliseconds))


_Outputs = tuple[Logits, Embeddings]
_OUTPUTS: Final = [SPECIES_OUTPUT, EMBEDDING]


def _run_and_time(model: onnx.ModelProto, pixels: Inputs) -> tuple[_Outputs, float]:
    """Return species logits and embedding, and the median time of one image on all cores in milliseconds."""
    session = _open_session(model)
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        session.run(_OUTPUTS, {IMAGE_INPUT: pixels[:1]})
        times.append(1000 * (time.perf_counter() - start))
    return _run_single_images(model, pixels), median(times)


def _run_single_images(model: onnx.ModelProto, pixels: Inputs) -> _Outputs:
    """Return species logits and embedding, computed image by image: as INT8 is served, on any number of cores."""
    session = _open_session(model, threads=1)
    with ThreadPoolExecutor(count_cores()) as pool:
        rows = list(pool.map(lambda i: session.run(_OUTPUTS, {IMAGE_INPUT: pixels[i : i + 1]}), range(len(pixels))))
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


def _open_session(model: onnx.ModelProto, threads: int | None = None) -> ort.InferenceSession:
    return open_session(Path("candidate.onnx"), model.SerializeToString(), threads=threads, rows_per_run=1)


def _measure_trial(
    outputs: _Outputs, reference: _Outputs, leaves: LabelledImages, float_products: int
) -> QuantizationTrial:
    species, expected = outputs[0].argmax(axis=1), reference[0].argmax(axis=1)
    with np.errstate(invalid="ignore"):  # a candidate may overflow; its error is then not finite
        diseases, expected_diseases = (_predict_diseases(embedding, leaves) for embedding in (outputs[1], reference[1]))
    diseased = leaves.diseases >= 0
    drops = (
        _measure_drop(expected == leaves.species, species == leaves.species),
        _measure_drop((expected_diseases == leaves.diseases)[diseased], (diseases == leaves.diseases)[diseased]),
    )
    changed = (species != expected) | (diseases != expected_diseases)
    size = float(np.sqrt(np.mean(reference[1].astype(np.float64) ** 2)))
    error = float(np.sqrt(np.mean((outputs[1].astype(np.float64) - reference[1]) ** 2)))
    passed = max(drops) <= MAX_DROP and math.isfinite(error)
    return QuantizationTrial(
        float_products, drops[0], drops[1], float(changed.mean()), error / max(size, 1e-12), passed
    )


def _measure_drop(right_before: Mask, right_after: Mask) -> float:
    """Return by how much the share of right predictions falls."""
    return float(right_before.mean() - right_after.mean()) if len(right_before) else 0.0


def _predict_diseases(embedding: Embeddings, leaves: LabelledImages) -> Labels:
    """Return the disease that the true species' head predicts, −1 for leaves without a disease."""
    diseases = np.full(len(embedding), -1, np.int64)
    for i, (row, species, disease) in enumerate(zip(embedding, leaves.species, leaves.diseases, strict=True)):
        if disease >= 0:
            weight, bias = leaves.heads[int(species)]
            diseases[i] = int(np.argmax(weight @ row + bias))
    return diseases


def _rank_by_loss(model: onnx.ModelProto, products: Sequence[str], pixels: Inputs, reduce_range: bool) -> list[str]:
    """Return the products, sorted by how far the embedding moves when only this product is INT8, farthest first."""
    _, reference = _run_single_images(model, pixels)
    losses: dict[str, float] = {}
    for name in track(products, "rank products", unit="product"):
        alone = quantize_int8(model, reduce_range=reduce_range, keep_float=set(products) - {name})
        _, embedding = _run_single_images(alone, pixels)
        losses[name] = float(np.nan_to_num(np.mean((embedding - reference) ** 2), nan=np.inf))
    return sorted(products, key=lambda name: -losses[name])
