"""Which products of a species model become INT8: all that can, without losing answers.

Each product in INT8 is faster than in float, so candidates are tried from the fastest on: all products, then with
those whose rounding moves the embedding most kept in float, one in sixteen at first. The first that holds the limit
on training leaves is taken, and everything in float if nothing else holds. What is taken follows from the answers
alone, never from how long anything took: a busy machine makes the same file.

>>> choice = choose_int8(model, leaves, reduce_range=False)  # doctest: +SKIP
>>> [trial.passed for trial in choice.trials]                # doctest: +SKIP
[True]
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
from numpy.typing import NDArray

from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.data.progress import track
from plantmodels.errors import ExportError
from plantmodels.export.quantize import find_products, quantize_int8
from plantmodels.serve.session import count_cores, open_session

MAX_DROP: Final = 0.01
"""Share of right answers, of species and of diseases, that INT8 may lose; the gate `int8_accuracy`'s default."""

FLOAT_SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the products, how many stay float in one candidate after another; then all."""

_RANKING_IMAGES: Final = 4
_TIMED_RUNS: Final = 9


@dataclass(frozen=True)
class LabelledImages:
    """Leaves that candidates are judged on.

    Attributes:
        pixels: (N, 3, S, S) float32, normalised.
        species: (N,) true species.
        diseases: (N,) true disease among that species' own, −1 where it has none.
        heads: species to its float disease head, (classes, D) and (classes,).
    """

    pixels: NDArray[np.float32]
    species: NDArray[np.int64]
    diseases: NDArray[np.int64]
    heads: Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class Trial:
    """A candidate and what was measured of it.

    Attributes:
        float_products: products that it keeps in float, of all that INT8 could take.
        species_drop: share of right species that it loses against float; below 0, gains.
        disease_drop: the same of diseases given the true species.
        changed: share of images whose species or disease is another than float's, right or wrong.
        embedding_error: root mean square difference of the embedding, relative to the embedding's own.
        passed: whether both drops are at most `MAX_DROP`.
    """

    float_products: int
    species_drop: float
    disease_drop: float
    changed: float
    embedding_error: float
    passed: bool


@dataclass(frozen=True)
class Choice:
    """The candidate that was taken.

    Attributes:
        model: the INT8 form.
        kept_float: names of the products that stay float.
        products: how many there are in all.
        trials: what was tried, in order; the last was taken.
        milliseconds: one image through the float model and through each trial, on all cores; medians.
    """

    model: onnx.ModelProto
    kept_float: tuple[str, ...]
    products: int
    trials: tuple[Trial, ...]
    milliseconds: tuple[float, ...]

    def describe(self) -> list[str]:
        """Return a line for the float model and one for each trial, for terminals."""
        lines = [f"{self.milliseconds[0]:>9.1f} ms  float32, one image on all cores"]
        for trial, elapsed_ms in zip(self.trials, self.milliseconds[1:], strict=True):
            lines.append(
                f"{elapsed_ms:>9.1f} ms  INT8, {trial.float_products} of {self.products} products in float: species "
                f"{_to_points(-trial.species_drop)}, diseases {_to_points(-trial.disease_drop)} points of accuracy, "
                f"{trial.changed:.2%} of the answers changed, "
                + ("taken" if trial is self.trials[-1] else "too many lost")
            )
        return lines


def _to_points(change: float) -> str:
    """Return a change of accuracy in percentage points, without a sign if it rounds to zero."""
    text = f"{100 * change:+.2f}"
    return text[1:] if float(text) == 0 else text


def choose_int8(model: onnx.ModelProto, leaves: LabelledImages, *, reduce_range: bool) -> Choice:
    """Tries candidates until one holds `MAX_DROP`.

    Args:
        model: float32.
        leaves: labelled training leaves.
        reduce_range: see `quantize_int8`.

    Raises:
        ExportError: the float model itself gives NaN or infinity.
    """
    products = find_products(model)
    reference, float_ms = _run(model, leaves.pixels)
    if not np.isfinite(reference[1]).all():
        raise ExportError("an embedding holds NaN or infinity on training leaves: the network is broken")
    candidates = [0, *(math.ceil(share * len(products)) for share in FLOAT_SHARES), len(products)]
    ranked: list[str] = []
    trials: list[Trial] = []
    milliseconds = [float_ms]
    for count in sorted(set(candidates)):
        if 0 < count < len(products):
            ranked = ranked or _rank_by_loss(model, products, leaves.pixels[:_RANKING_IMAGES], reduce_range)
        kept = tuple(ranked[:count]) if count < len(products) else tuple(products)
        quantized = quantize_int8(model, reduce_range=reduce_range, keep_float=kept)
        outputs, elapsed_ms = _run(quantized, leaves.pixels)
        trials.append(_judge(outputs, reference, leaves, len(kept)))
        milliseconds.append(elapsed_ms)
        if trials[-1].passed:
            break
    return Choice(quantized, kept, len(products), tuple(trials), tuple(milliseconds))


_Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
_OUTPUTS: Final = [SPECIES_OUTPUT, EMBEDDING]


def _run(model: onnx.ModelProto, pixels: NDArray[np.float32]) -> tuple[_Outputs, float]:
    """Species logits and embedding, and milliseconds of one image on all cores."""
    session = _open(model)
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        session.run(_OUTPUTS, {IMAGE_INPUT: pixels[:1]})
        times.append(1000 * (time.perf_counter() - start))
    return _answer(model, pixels), median(times)


def _answer(model: onnx.ModelProto, pixels: NDArray[np.float32]) -> _Outputs:
    """Species logits and embedding, image by image as INT8 is served, and the same bits on any number of cores."""
    session = _open(model, threads=1)
    with ThreadPoolExecutor(count_cores()) as pool:
        rows = list(pool.map(lambda i: session.run(_OUTPUTS, {IMAGE_INPUT: pixels[i : i + 1]}), range(len(pixels))))
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


def _open(model: onnx.ModelProto, threads: int | None = None) -> ort.InferenceSession:
    return open_session(Path("candidate.onnx"), model.SerializeToString(), threads=threads, rows_per_run=1)


def _judge(outputs: _Outputs, reference: _Outputs, leaves: LabelledImages, float_products: int) -> Trial:
    species, expected = outputs[0].argmax(axis=1), reference[0].argmax(axis=1)
    with np.errstate(invalid="ignore"):  # a candidate may overflow; its error is then not finite
        diseases, expected_diseases = (_answer_diseases(embedding, leaves) for embedding in (outputs[1], reference[1]))
    named = leaves.diseases >= 0
    drops = (
        _drop(expected == leaves.species, species == leaves.species),
        _drop((expected_diseases == leaves.diseases)[named], (diseases == leaves.diseases)[named]),
    )
    changed = (species != expected) | (diseases != expected_diseases)
    size = float(np.sqrt(np.mean(reference[1].astype(np.float64) ** 2)))
    error = float(np.sqrt(np.mean((outputs[1].astype(np.float64) - reference[1]) ** 2)))
    passed = max(drops) <= MAX_DROP and math.isfinite(error)
    return Trial(float_products, drops[0], drops[1], float(changed.mean()), error / max(size, 1e-12), passed)


def _drop(right_before: NDArray[np.bool_], right_after: NDArray[np.bool_]) -> float:
    """Share of right answers lost."""
    return float(right_before.mean() - right_after.mean()) if len(right_before) else 0.0


def _answer_diseases(embedding: NDArray[np.float32], leaves: LabelledImages) -> NDArray[np.int64]:
    """The disease that the true species' head names, −1 where there is none."""
    answers = np.full(len(embedding), -1, np.int64)
    for i, (row, species, disease) in enumerate(zip(embedding, leaves.species, leaves.diseases, strict=True)):
        if disease >= 0:
            weight, bias = leaves.heads[int(species)]
            answers[i] = int(np.argmax(weight @ row + bias))
    return answers


def _rank_by_loss(
    model: onnx.ModelProto, products: Sequence[str], pixels: NDArray[np.float32], reduce_range: bool
) -> list[str]:
    """Products by how far the embedding moves when each alone is INT8, most first."""
    _, reference = _answer(model, pixels)
    losses: dict[str, float] = {}
    for name in track(products, "rank products", unit="product"):
        alone = quantize_int8(model, reduce_range=reduce_range, keep_float=set(products) - {name})
        _, embedding = _answer(alone, pixels)
        losses[name] = float(np.nan_to_num(np.mean((embedding - reference) ** 2), nan=np.inf))
    return sorted(products, key=lambda name: -losses[name])
