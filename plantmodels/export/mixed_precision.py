"""Chooses which matrix products of a species model become INT8: as many as possible without losing accuracy.

A product is faster in INT8 than in float, so candidates are tried from the fastest to the slowest. The first has all
products in INT8. The next keep one sixteenth, one eighth, one quarter and half of the products in float, namely those
whose rounding moves the embedding most. The last keeps all in float. The first candidate that answers as the float
model does is taken: of up to 1,000 training leaves, at most 1 % may get another species or disease. A changed answer
loses at most one right one, so no labels are needed.

A candidate is refused as soon as too many answers have changed, and taken as soon as Wilson's interval of the changed
share lies below the limit, which takes 381 leaves without a change. So the work is bounded by the number of leaves. The
choice depends on the outputs only and never on time: a busy machine writes the same file.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from scipy.stats import binomtest

from plantmodels.arrays import Embeddings, Inputs, Labels, Logits, Weights
from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.data.progress import track
from plantmodels.errors import ExportError
from plantmodels.export.quantize import find_products, quantize_int8
from plantmodels.serve.cores import count_cores
from plantmodels.serve.session import open_session

MAX_CHANGED: Final = 0.01
"""Share of answers that INT8 may change: as much as the gate `int8_accuracy` allows to be lost."""

AGREEMENT_IMAGES: Final = 1000
"""Most leaves that a candidate is compared on. If 2 % of all answers change, it is taken in 1 of 100 cases."""

FLOAT_SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the products that stay float in the candidates between the first (none) and the last (all)."""

_RANKING_IMAGES: Final = 4
"""Enough to rank the products; every product takes one more quantization and one run of the model."""

_TIMED_RUNS: Final = 9


@dataclass(frozen=True)
class ComparedImages:
    """Leaves on which candidates are compared with the float model. Their labels are not needed.

    Attributes:
        first: (N, 3, P, P) a few of them, for the ranking of the products and for times.
        batches: function that decodes all of them, a batch at a time, always in the same order.
        count: number of all of them.
        heads: index of each species with a head, and its float weights (C, D) and bias (C,).
    """

    first: Inputs
    batches: Callable[[], Iterator[Inputs]]
    count: int
    heads: Mapping[int, tuple[Weights, Weights]]


@dataclass(frozen=True)
class QuantizationTrial:
    """What was measured on one candidate.

    Attributes:
        float_products: number of products that it keeps in float.
        images: number of leaves after which the decision was clear.
        changed: share of these leaves whose predicted species or disease differs from the float model's.
        embedding_error: root mean square error of the embedding, divided by the root mean square of the embedding.
        passed: whether few enough answers changed and the error is finite.
    """

    float_products: int
    images: int
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
                f"{100 * trial.changed:.2f} % of answers changed on {trial.images:,} leaves: "
                + ("taken" if trial is self.trials[-1] else "changes too many")
            )
        return lines


def choose_int8(model: onnx.ModelProto, leaves: ComparedImages, *, reduce_range: bool) -> QuantizationResult:
    """Try candidates until one answers as the float model does, and return it.

    Args:
        model: species model in float32.
        leaves: training leaves.
        reduce_range: whether weights have 7 bits (see `quantize_int8`).

    Raises:
        ExportError: the float model itself gives NaN or infinity.
    """
    products = find_products(model)
    reference = _Reference(_open_session(model, threads=1), leaves.heads)
    candidates = [0, *(math.ceil(share * len(products)) for share in FLOAT_SHARES), len(products)]
    ranked: list[str] = []
    trials: list[QuantizationTrial] = []
    milliseconds = [_time_one(model, leaves.first)]
    for count in sorted(set(candidates)):
        if 0 < count < len(products):
            ranked = ranked or _rank_by_loss(model, products, leaves.first[:_RANKING_IMAGES], reduce_range)
        kept = tuple(ranked[:count]) if count < len(products) else tuple(products)
        quantized = quantize_int8(model, reduce_range=reduce_range, keep_float=kept)
        trials.append(_compare(quantized, reference, leaves, len(kept)))
        milliseconds.append(_time_one(quantized, leaves.first))
        if trials[-1].passed:
            break
    return QuantizationResult(quantized, kept, len(products), tuple(trials), tuple(milliseconds))


_Outputs = tuple[Logits, Embeddings]
_OUTPUTS: Final = [SPECIES_OUTPUT, EMBEDDING]


@dataclass
class _Reference:
    """The float model's answers, computed once for each batch and as far as they are asked for.

    Attributes:
        session: the float model.
        heads: the float heads.
        known: species, diseases and embedding of each batch so far.
    """

    session: ort.InferenceSession
    heads: Mapping[int, tuple[Weights, Weights]]
    known: list[tuple[Labels, Labels, Embeddings]] = field(default_factory=list)

    def answer(self, number: int, pixels: Inputs) -> tuple[Labels, Labels, Embeddings]:
        """Return the answers to a batch; the batches come in order."""
        if number == len(self.known):
            logits, embedding = _run_single_images(self.session, pixels)
            if not np.isfinite(embedding).all():
                raise ExportError("an embedding holds NaN or infinity on training leaves: the network is broken")
            species = logits.argmax(axis=1)
            self.known.append((species, _predict_diseases(embedding, species, self.heads), embedding))
        return self.known[number]


def _compare(
    candidate: onnx.ModelProto, reference: _Reference, leaves: ComparedImages, float_products: int
) -> QuantizationTrial:
    """Compare a candidate with the float model, batch by batch, until the decision is clear."""
    session = _open_session(candidate, threads=1)
    changed = seen = 0
    error = size = 0.0
    passed: bool | None = None
    for number, pixels in enumerate(leaves.batches()):
        species, diseases, embedding = reference.answer(number, pixels)
        logits, found = _run_single_images(session, pixels)
        with np.errstate(invalid="ignore"):  # a candidate may overflow; its error is then not finite
            other = _predict_diseases(found, species, leaves.heads)
            error += float(np.sum((found.astype(np.float64) - embedding) ** 2))
        size += float(np.sum(embedding.astype(np.float64) ** 2))
        changed += int(np.sum((logits.argmax(axis=1) != species) | (other != diseases)))
        seen += len(pixels)
        passed = _decide(changed, seen, leaves.count) if math.isfinite(error) else False
        if passed is not None:
            break
    if passed is None:
        passed = changed <= _count_allowed(leaves.count)
    share, relative = changed / max(seen, 1), math.sqrt(error / max(size, 1e-24))
    return QuantizationTrial(float_products, seen, share, relative, passed)


def _count_allowed(images: int) -> int:
    """Return how many answers may change; one always may, because one says nothing."""
    return max(1, math.floor(MAX_CHANGED * images))


def _decide(changed: int, seen: int, images: int) -> bool | None:
    """Return whether a candidate is taken; None if further leaves must tell."""
    if changed > _count_allowed(images):
        return False
    return True if binomtest(changed, seen).proportion_ci(method="wilson").high <= MAX_CHANGED else None


def _time_one(model: onnx.ModelProto, pixels: Inputs) -> float:
    """Return the median time of one image on all cores in milliseconds."""
    session = _open_session(model)
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        session.run(_OUTPUTS, {IMAGE_INPUT: pixels[:1]})
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def _run_single_images(session: ort.InferenceSession, pixels: Inputs) -> _Outputs:
    """Return species logits and embedding, computed image by image: as INT8 is served, on any number of cores.

    Args:
        session: a model opened with one thread.
        pixels: (N, 3, P, P) normalized images.
    """
    with ThreadPoolExecutor(count_cores()) as pool:
        rows = list(pool.map(lambda i: session.run(_OUTPUTS, {IMAGE_INPUT: pixels[i : i + 1]}), range(len(pixels))))
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


def _open_session(model: onnx.ModelProto, threads: int | None = None) -> ort.InferenceSession:
    return open_session(Path("candidate.onnx"), model.SerializeToString(), threads=threads, rows_per_run=1)


def _predict_diseases(embedding: Embeddings, species: Labels, heads: Mapping[int, tuple[Weights, Weights]]) -> Labels:
    """Return the disease that the head of each given species predicts, −1 for a species without a head."""
    diseases = np.full(len(embedding), -1, np.int64)
    for i, (row, index) in enumerate(zip(embedding, species.tolist(), strict=True)):
        if index in heads:
            weight, bias = heads[index]
            diseases[i] = int(np.argmax(weight @ row + bias))
    return diseases


def _rank_by_loss(model: onnx.ModelProto, products: Sequence[str], pixels: Inputs, reduce_range: bool) -> list[str]:
    """Return the products, sorted by how far the embedding moves when only this product is INT8, farthest first."""
    _, reference = _run_single_images(_open_session(model, threads=1), pixels)
    losses: dict[str, float] = {}
    for name in track(products, "rank products", unit="product"):
        alone = quantize_int8(model, reduce_range=reduce_range, keep_float=set(products) - {name})
        _, embedding = _run_single_images(_open_session(alone, threads=1), pixels)
        losses[name] = float(np.nan_to_num(np.mean((embedding - reference) ** 2), nan=np.inf))
    return sorted(products, key=lambda name: -losses[name])
