"""Compares FP16 with PyTorch on real images: species logits, embeddings and every disease head.

Random tensors prove little, because trained attention logits reach values that noise never causes. So every image is a
validation leaf. The model runs in batches of 1, 2, 3 and 5, which finds a batch size that tracing has fixed.

>>> [len(rows) for rows in cut_into_batches(9)]
[1, 2, 3, 5]
>>> max_abs_diff(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
0.5
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from plantmodels.arrays import Embeddings, Inputs, Logits
from plantmodels.bundle.layout import DISEASE_OUTPUT, EMBEDDING, METADATA_FILE
from plantmodels.bundle.metadata import Metadata
from plantmodels.bundle.serialization import replace_non_finite
from plantmodels.checkpoint.reading import Checkpoint, read_checkpoint
from plantmodels.data.inputs import TRAINED_WEIGHTS
from plantmodels.data.progress import track
from plantmodels.errors import BundleError
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_heads import build_float_head
from plantmodels.report.samples import HeadSample, Parity, ParitySample, Scatter
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.cores import count_cores
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import RUN_ERRORS, open_session
from plantmodels.verify.opening import raise_if_out_of_memory

BATCH_SIZES: Final = (1, 2, 3, 5)
"""Sizes of the batches that are compared."""

MAX_IMAGES: Final = 64
"""Largest number of leaves that are compared; they are spread over all classes."""

MAX_POINTS: Final = 600
"""Logits of each kind that the report keeps for its plot."""


def read_matching_checkpoint(path: Path, metadata: Metadata, hyper_parameters: Path | None = None) -> Checkpoint:
    """Read the checkpoint that a bundle was made from, with the weights that its provenance names.

    Args:
        path: the checkpoint.
        metadata: the bundle's metadata.
        hyper_parameters: the file of hyper-parameters that it was exported with, if there was one.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        BundleError: a digest differs from the one in the bundle's provenance; the message names both.
    """
    _check_parameters(metadata, hyper_parameters)
    checkpoint = read_checkpoint(path, hyper_parameters, str(metadata.provenance.get("weights", TRAINED_WEIGHTS)))
    if checkpoint.parameters_sha256 != metadata.provenance.get("hyper_parameters_sha256"):
        raise BundleError(
            f"{hyper_parameters}: its SHA-256 is {checkpoint.parameters_sha256}, but {METADATA_FILE} says that the "
            f"bundle was made with {metadata.provenance.get('hyper_parameters_sha256')}: not the same hyper-parameters"
        )
    recorded = metadata.provenance.get("checkpoint_sha256")
    if checkpoint.sha256 != recorded:
        raise BundleError(
            f"{path}: its SHA-256 is {checkpoint.sha256}, but {METADATA_FILE} says that the bundle was made "
            f"from {recorded or 'a checkpoint whose digest was not recorded'}: not the same checkpoint"
        )
    return checkpoint


def _check_parameters(metadata: Metadata, hyper_parameters: Path | None) -> None:
    """Refuse a file of hyper-parameters where the export had none, and none where it had one."""
    recorded = metadata.provenance.get("hyper_parameters_sha256")
    if recorded is not None and hyper_parameters is None:
        raise BundleError(
            f"the bundle was exported with a file of hyper-parameters (SHA-256 {recorded}): give it by "
            "--hyper-parameters"
        )
    if recorded is None and hyper_parameters is not None:
        raise BundleError(
            f"{hyper_parameters}: the bundle was exported without a file of hyper-parameters: leave it out"
        )


def measure_parity(
    network: HierarchicalNetwork, fp16: SpeciesModel, int8: PlantClassifier, inputs: Inputs
) -> tuple[Parity, Embeddings]:
    """Run PyTorch, FP16 and INT8 on the same images and return the largest differences.

    Args:
        network: the checkpoint's network, in evaluation mode.
        fp16: the FP16 species model, opened with one thread and without a limit on the images in one run.
        int8: the bundle as it is served.
        inputs: (N, 3, P, P) float32, real images, normalized; N is at least 1.

    Returns:
        The parity, and PyTorch's embeddings (N, D).
    """
    samples: list[ParitySample] = []
    all_embeddings: list[Embeddings] = []
    logits: dict[str, list[Logits]] = {"pytorch": [], "fp16": [], "int8": []}
    batches = list(cut_into_batches(len(inputs)))
    with ThreadPoolExecutor(count_cores()) as pool:
        found = pool.map(lambda rows: _run_if_possible(fp16, inputs[rows]), batches)
        for rows in batches:
            expected = _run_network(network, inputs[rows])
            answers = {"fp16": next(found), "int8": int8.embed(inputs[rows])}
            samples += _compare_batch(rows, expected, answers["fp16"], answers["int8"])
            all_embeddings.append(expected[1])
            for name, answer in {"pytorch": expected, **answers}.items():
                logits[name].append(answer[0])
    embeddings = np.concatenate(all_embeddings)[: len(inputs)]
    points = pick_points(**{name: [row for part in parts for row in part] for name, parts in logits.items()})
    return Parity.summarize(samples, compare_heads(network, int8, embeddings), points), embeddings


_Answers = tuple[Logits, Embeddings]


def _compare_batch(rows: list[int], expected: _Answers, fp16: _Answers, int8: _Answers) -> Iterator[ParitySample]:
    columns = [
        _compare_rows(found, right) for answers in (fp16, int8) for found, right in zip(answers, expected, strict=True)
    ]
    spreads = [replace_non_finite(float(np.std(logits.astype(np.float64)))) for logits in expected[0]]
    for image, *values in zip(rows, *columns, spreads, strict=True):
        yield ParitySample(image, len(rows), *values)


def _compare_rows(found: NDArray[np.floating], expected: NDArray[np.floating]) -> list[float | None]:
    """Return the largest difference of each row; None where it is not finite or a shape differs."""
    if found.shape != expected.shape:
        return [None] * len(expected)
    return [replace_non_finite(max_abs_diff(*pair)) for pair in zip(found, expected, strict=True)]


def pick_points(pytorch: Sequence[Logits], fp16: Sequence[Logits], int8: Sequence[Logits]) -> Scatter | None:
    """Return at most `MAX_POINTS` evenly spaced logits of each; None if their numbers differ or one is not finite.

    Args:
        pytorch: (S,) logits of each image from PyTorch.
        fp16: (S,) logits of each image from FP16.
        int8: (S,) logits of each image from INT8.
    """
    flat = [np.concatenate([np.empty(0, np.float32), *rows]) for rows in (pytorch, fp16, int8)]
    total = len(flat[0])
    if any(len(values) != total or not np.isfinite(values).all() for values in flat):
        return None
    picks = np.arange(min(total, MAX_POINTS)) * total // max(1, min(total, MAX_POINTS))
    return Scatter(*(tuple(float(f"{value:.9g}") for value in values[picks]) for values in flat))


def cut_into_batches(images: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of 1, 2, 3, 5, 1, …, until every image and every size has occurred."""
    position = 0
    for number, size in enumerate(cycle(BATCH_SIZES)):
        if position >= images and number >= len(BATCH_SIZES):
            return
        yield [(position + i) % images for i in range(size)]
        position += size


def max_abs_diff(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest absolute difference, in float64: NaN if an array has a NaN, infinity if the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)), initial=0.0))


def _run_if_possible(model: SpeciesModel, inputs: Inputs) -> tuple[Logits, Embeddings]:
    """Return logits and embeddings; if the model refuses the batch size, empty ones, infinitely far from any answer."""
    try:
        return model.run(inputs)
    except RUN_ERRORS as error:
        raise_if_out_of_memory(error)
        return np.empty(0, np.float32), np.empty(0, np.float32)


def _run_network(network: HierarchicalNetwork, inputs: Inputs) -> tuple[Logits, Embeddings]:
    with torch.inference_mode():
        logits, embeddings = network(torch.from_numpy(inputs))
    return logits.numpy(), embeddings.numpy()


def _run_head(network: HierarchicalNetwork, slug: str, embeddings: Embeddings) -> Logits:
    with torch.inference_mode():
        logits = network.disease_heads.get_submodule(slug)(torch.from_numpy(embeddings))
    return np.asarray(logits.numpy(), np.float32)


def compare_heads(
    network: HierarchicalNetwork, classifier: PlantClassifier, embeddings: Embeddings
) -> dict[str, HeadSample]:
    """Return how far each disease head is from PyTorch's: the exporter's float head, and the packed INT8 head.

    Args:
        network: the checkpoint's network.
        classifier: the bundle as it is served.
        embeddings: (N, D) float32 embeddings of real images.
    """
    taxonomy = classifier.taxonomy
    packed = {
        taxonomy.slugs[index]: _compare_packed_head(network, classifier, index, embeddings)
        for index in track(
            _keep_with_head(taxonomy.species_with_head, network, taxonomy.slugs), "compare packed heads", unit="head"
        )
    }
    return {
        slug: HeadSample(
            replace_non_finite(compare_float_head(network, slug, embeddings)),
            replace_non_finite(packed.get(slug, 0.0)),
        )
        for slug in track(list(network.disease_heads), "compare heads with PyTorch", unit="head")
    }


def compare_float_head(network: HierarchicalNetwork, slug: str, embeddings: Embeddings) -> float:
    """Return the largest absolute difference between the exporter's float head and PyTorch's.

    Args:
        network: the checkpoint's network.
        slug: the head's species.
        embeddings: (N, D) float32 embeddings of real images.
    """
    head = network.disease_heads.get_submodule(slug)
    weight, bias = (head.get_parameter(name).detach().numpy() for name in ("weight", "bias"))
    content = build_float_head(weight, bias).SerializeToString()
    found = open_session(Path(f"{slug}.onnx"), content, threads=1).run([DISEASE_OUTPUT], {EMBEDDING: embeddings})[0]
    return max_abs_diff(found, _run_head(network, slug, embeddings))


def _compare_packed_head(
    network: HierarchicalNetwork, classifier: PlantClassifier, index: int, embeddings: Embeddings
) -> float:
    taxonomy = classifier.taxonomy
    expected = _run_head(network, taxonomy.slugs[index], embeddings)
    found = classifier.run_heads(embeddings, np.full(len(embeddings), index, np.int64))
    classes = min(expected.shape[1], len(taxonomy.diseases_of(index)))
    return max_abs_diff(found[:, :classes], expected[:, :classes])


def _keep_with_head(indices: Sequence[int], network: HierarchicalNetwork, slugs: Sequence[str]) -> list[int]:
    """Leave out species that the network has no head for: reporting them is the business of `heads_complete`."""
    return [index for index in indices if slugs[index] in network.disease_heads]
