"""Chooses which matrix products of a species model become INT8: as many as possible without losing accuracy.

A product is faster in INT8 than in float, so candidates are tried from the fastest to the slowest. The first has all
products in INT8. The next keep one sixteenth, one eighth, one quarter and half of the products in float, namely those
whose rounding moves the embedding most. The last keeps all in float. The first candidate that answers as the float
model does is taken: of 1,000 training leaves, at most 1 % may get another species or disease. A changed answer loses at
most one right one, so no labels are needed.

The float model answers first, and its least certain answers are compared first: if a candidate changes too many, the
first hundred leaves show it. A candidate is taken only after all leaves. Its outputs are kept, because the embedding of
these leaves follows from them. The work is bounded by the number of leaves, and the choice depends on the outputs only
and never on time: a busy machine writes the same file.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from plantmodels.arrays import Embeddings, Inputs, Labels, Logits, Weights
from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.data.progress import log_step
from plantmodels.errors import ExportError
from plantmodels.export.quantize import SWITCHES, add_switches, find_products, quantize_int8
from plantmodels.serve.cores import count_cores
from plantmodels.serve.denormals import denormals_as_zero
from plantmodels.serve.session import CPU, SESSION_OPTIONS, open_session

MAX_CHANGED: Final = 0.01
"""Share of answers that INT8 may change: as much as the gate `int8_accuracy` allows to be lost."""

AGREEMENT_IMAGES: Final = 1000
"""Most leaves that a candidate is compared on. If 2 % of all answers change, it is taken in 1 of 100 cases."""

FLOAT_SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the products that stay float in the candidates between the first (none) and the last (all)."""

_RANKING_IMAGES: Final = 4
"""Enough to rank the products; every product takes one more run of the model on each."""

_TIMED_RUNS: Final = 9


@dataclass(frozen=True)
class ComparedImages:
    """Leaves on which candidates are compared with the float model. Their labels are not needed.

    Attributes:
        first: (N, 3, P, P) a few of them, for the ranking of the products and for times.
        paths: all of them.
        decode: function that decodes those at some places in `paths`, in this order; yields places and pixels, a batch
            at a time, without those that cannot be read.
        heads: index of each species with a head, and its float weights (C, D) and bias (C,).
    """

    first: Inputs
    paths: Sequence[Path]
    decode: Callable[[Sequence[int]], Iterator[tuple[list[int], Inputs]]]
    heads: Mapping[int, tuple[Weights, Weights]]


@dataclass(frozen=True)
class QuantizationTrial:
    """What was measured on one candidate.

    Attributes:
        float_products: number of products that it keeps in float.
        images: number of leaves after which the decision was clear; the float model's least certain ones come first.
        changed: share of all leaves whose predicted species or disease is known to differ from the float model's. Of a
            candidate that was refused, more may change.
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
        outputs: path of each compared leaf to its species logits (S,) and embedding (D,) of the INT8 model.
    """

    model: onnx.ModelProto
    kept_float: tuple[str, ...]
    products: int
    trials: tuple[QuantizationTrial, ...]
    milliseconds: tuple[float, ...]
    outputs: Mapping[Path, tuple[Logits, Embeddings]]

    def describe(self) -> list[str]:
        """Return a line for the float model and one for each trial, for terminals."""
        lines = [f"{self.milliseconds[0]:>9.1f} ms  float32, one image on all cores"]
        for trial, elapsed_ms in zip(self.trials, self.milliseconds[1:], strict=True):
            lines.append(
                f"{elapsed_ms:>9.1f} ms  INT8 with {trial.float_products} of {self.products} products in float: "
                + (
                    f"{100 * trial.changed:.2f} % of answers changed on {trial.images:,} leaves: taken"
                    if trial is self.trials[-1]
                    else f"at least {100 * trial.changed:.2f} % of answers changed: too many"
                )
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
    reference = _answer_in_float(model, leaves)
    candidates = [0, *(math.ceil(share * len(products)) for share in FLOAT_SHARES), len(products)]
    ranked: list[str] = []
    trials: list[QuantizationTrial] = []
    milliseconds = [_time_one(model, leaves.first)]
    for count in sorted(set(candidates)):
        if 0 < count < len(products):
            ranked = ranked or _rank_by_loss(model, products, leaves.first[:_RANKING_IMAGES], reduce_range)
        kept = tuple(ranked[:count]) if count < len(products) else tuple(products)
        quantized = quantize_int8(model, reduce_range=reduce_range, keep_float=kept)
        trial, outputs = _compare(quantized, reference, leaves, len(kept))
        trials.append(trial)
        milliseconds.append(_time_one(quantized, leaves.first))
        if trial.passed:
            break
    known = {leaves.paths[place]: found for place, found in outputs.items()}
    return QuantizationResult(quantized, kept, len(products), tuple(trials), tuple(milliseconds), known)


_Outputs = tuple[Logits, Embeddings]
_OUTPUTS: Final = [SPECIES_OUTPUT, EMBEDDING]


@dataclass(frozen=True)
class _Reference:
    """The float model's answers, the least certain one first.

    Attributes:
        places: (N,) places of the leaves that can be read.
        species: (N,) predicted species.
        diseases: (N,) predicted diseases of these species; −1 for a species without a head.
        embedding: (N, D) embeddings.
    """

    places: Labels
    species: Labels
    diseases: Labels
    embedding: Embeddings


def _answer_in_float(model: onnx.ModelProto, leaves: ComparedImages) -> _Reference:
    """Run the float model over all leaves.

    Raises:
        ExportError: an embedding holds NaN or infinity.
    """
    places: list[int] = []
    parts: list[_Outputs] = []
    for rows, outputs in _run_over(model, leaves, range(len(leaves.paths)), "answer in float"):
        places += rows
        parts.append(outputs)
    logits, embedding = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not np.isfinite(embedding).all():
        raise ExportError("an embedding holds NaN or infinity on training leaves: the network is broken")
    species = logits.argmax(axis=1)
    diseases, certainty = _predict_diseases(embedding, species, leaves.heads)
    order = np.argsort(np.minimum(certainty, _measure_lead(logits)), kind="stable")
    return _Reference(np.array(places)[order], species[order], diseases[order], embedding[order])


def _compare(
    candidate: onnx.ModelProto, reference: _Reference, leaves: ComparedImages, float_products: int
) -> tuple[QuantizationTrial, dict[int, _Outputs]]:
    """Compare a candidate with the float model until too many answers have changed.

    Returns:
        What was measured, and the outputs for the leaves by their places.
    """
    outputs: dict[int, _Outputs] = {}
    changed = seen = 0
    error = size = 0.0
    passed, allowed = True, _count_allowed(len(reference.places))
    for places, (logits, found) in _run_over(candidate, leaves, reference.places.tolist(), "compare INT8"):
        rows = slice(seen, seen + len(places))
        species, embedding = reference.species[rows], reference.embedding[rows]
        with np.errstate(invalid="ignore"):  # a candidate may overflow; its error is then not finite
            other, _ = _predict_diseases(found, species, leaves.heads)
            error += float(np.sum((found.astype(np.float64) - embedding) ** 2))
        size += float(np.sum(embedding.astype(np.float64) ** 2))
        changed += int(np.sum((logits.argmax(axis=1) != species) | (other != reference.diseases[rows])))
        seen += len(places)
        outputs |= dict(zip(places, zip(logits, found, strict=True), strict=True))
        passed = changed <= allowed and math.isfinite(error)
        if not passed:
            break
    share, relative = changed / len(reference.places), math.sqrt(error / max(size, 1e-24))
    return QuantizationTrial(float_products, seen, share, relative, passed), outputs


def _run_over(
    model: onnx.ModelProto, leaves: ComparedImages, places: Sequence[int], description: str
) -> Iterator[tuple[list[int], _Outputs]]:
    """Yield the places of leaves and a model's outputs for them, a batch at a time, and show the progress."""
    session = _open_session(model, threads=1)
    with log_step(description, total=len(places), unit="image") as advance:
        for read, pixels in leaves.decode(places):
            yield read, _run_single_images(session, pixels, advance)


def _count_allowed(images: int) -> int:
    """Return how many answers may change; one always may, because one says nothing."""
    return max(1, math.floor(MAX_CHANGED * images))


def _time_one(model: onnx.ModelProto, pixels: Inputs) -> float:
    """Return the median time of one image on all cores in milliseconds."""
    session = _open_session(model)
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        _run(session, _OUTPUTS, {IMAGE_INPUT: pixels[:1]})
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def _run_single_images(
    session: ort.InferenceSession, pixels: Inputs, advance: Callable[[], object] = lambda: None
) -> _Outputs:
    """Return species logits and embedding, computed image by image: as INT8 is served, on any number of cores.

    Args:
        session: a model opened with one thread.
        pixels: (N, 3, P, P) normalized images.
        advance: is called after each image.
    """
    logits, embeddings = [], []
    with ThreadPoolExecutor(count_cores()) as pool:
        for row in pool.map(lambda i: _run(session, _OUTPUTS, {IMAGE_INPUT: pixels[i : i + 1]}), range(len(pixels))):
            logits.append(row[0])
            embeddings.append(row[1])
            advance()
    return np.concatenate(logits), np.concatenate(embeddings)


def _run(session: ort.InferenceSession, outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
    """Run a model in the floating-point mode in which it is served, whichever thread asks."""
    with denormals_as_zero():
        return list(session.run(outputs, inputs))


def _open_session(model: onnx.ModelProto, threads: int | None = None) -> ort.InferenceSession:
    return open_session(Path("candidate.onnx"), model.SerializeToString(), threads=threads, rows_per_run=1)


def _open_switched(model: onnx.ModelProto) -> ort.InferenceSession:
    """Open a graph that was made here and has branches, which `open_session` refuses in a graph from elsewhere."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    for name, value in SESSION_OPTIONS.items():
        settings.add_session_config_entry(name, value)
    return ort.InferenceSession(model.SerializeToString(), settings, providers=[CPU])


def _predict_diseases(
    embedding: Embeddings, species: Labels, heads: Mapping[int, tuple[Weights, Weights]]
) -> tuple[Labels, Logits]:
    """Return the disease that the head of each given species predicts, and how far it leads.

    For a species without a head, the disease is −1 and the lead infinite.
    """
    diseases, leads = np.full(len(embedding), -1, np.int64), np.full(len(embedding), np.inf, np.float32)
    for i, (row, index) in enumerate(zip(embedding, species.tolist(), strict=True)):
        if index in heads:
            weight, bias = heads[index]
            logits = weight @ row + bias
            diseases[i], leads[i] = int(np.argmax(logits)), _measure_lead(logits[None])[0]
    return diseases, leads


def _measure_lead(logits: Logits) -> Logits:
    """Return how far the largest logit of each row lies above the second largest; infinity if there is only one."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, np.float32)
    highest = np.sort(logits, axis=1)[:, -2:]
    return np.asarray(highest[:, 1] - highest[:, 0])


def _rank_by_loss(model: onnx.ModelProto, products: Sequence[str], pixels: Inputs, reduce_range: bool) -> list[str]:
    """Return the products, sorted by how far the embedding moves when only this product is INT8, farthest first."""
    session = _open_switched(add_switches(model, reduce_range=reduce_range))

    def embed(only: int | None) -> Embeddings:
        chosen: dict[str, Any] = {SWITCHES: np.arange(len(products)) == (-1 if only is None else only)}
        with ThreadPoolExecutor(count_cores()) as pool:
            images = (chosen | {IMAGE_INPUT: pixels[i : i + 1]} for i in range(len(pixels)))
            return np.concatenate(list(pool.map(lambda image: _run(session, [EMBEDDING], image)[0], images)))

    reference = embed(None)
    losses: dict[str, float] = {}
    with log_step("rank products", total=len(products), unit="product") as advance:
        for number, name in enumerate(products):
            losses[name] = float(np.nan_to_num(np.mean((embed(number) - reference) ** 2), nan=np.inf))
            advance()
    return sorted(products, key=lambda name: -losses[name])
