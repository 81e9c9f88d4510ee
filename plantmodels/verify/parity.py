"""FP16 against PyTorch on real images: species logits, embedding, and every disease head.

One random tensor proves little: trained attention logits reach values that noise never causes. Every image is
a validation leaf, and the model is run in batches of 1, 2, 3 and 5, so that a batch size baked in by tracing
is found.

>>> parity = measure_parity(load_network(checkpoint), fp16_model, int8_classifier, pixels)  # doctest: +SKIP
>>> parity.worst  # doctest: +SKIP
0.00081
"""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from plantmodels.bundle.layout import DISEASE_OUTPUT, EMBEDDING, METADATA_FILE
from plantmodels.bundle.metadata import Metadata
from plantmodels.bundle.serialization import replace_non_finite
from plantmodels.errors import BundleError
from plantmodels.export.checkpoint import Checkpoint, read_checkpoint
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_heads import build_float_head
from plantmodels.report.results import Parity, Scatter
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import RUN_ERRORS, open_session
from plantmodels.verify.opening import raise_if_out_of_memory

BATCH_SIZES: Final = (1, 2, 3, 5)
MAX_IMAGES: Final = 64
MAX_POINTS: Final = 600
"""Logits of each kind that the report keeps for its picture."""


def read_matching_checkpoint(path: Path, metadata: Metadata) -> Checkpoint:
    """Reads the checkpoint that a bundle was made from, and no other.

    Raises:
        CheckpointError: not a readable checkpoint.
        BundleError: its digest is not the one in the bundle's provenance; both are named.
    """
    checkpoint = read_checkpoint(path)
    recorded = metadata.provenance.get("checkpoint_sha256")
    if checkpoint.sha256 != recorded:
        raise BundleError(
            f"{path}: its SHA-256 is {checkpoint.sha256}, but {METADATA_FILE} says that the bundle was made "
            f"from {recorded or 'a checkpoint whose digest was not recorded'}: not the same checkpoint"
        )
    return checkpoint


def measure_parity(
    network: HierarchicalNetwork, fp16: SpeciesModel, int8: PlantClassifier, pixels: NDArray[np.float32]
) -> Parity:
    """Runs PyTorch, FP16 and INT8 on the same images.

    Args:
        network: the checkpoint's network, in evaluation mode.
        fp16: the FP16 species model, free to run batches whole.
        int8: the bundle as it is served.
        pixels: (N, 3, S, S) float32, preprocessed real images, N at least 1.
    """
    worst = {size: [0.0, 0.0] for size in BATCH_SIZES}
    worst_int8 = [0.0, 0.0]
    embeddings: list[NDArray[np.float32]] = []
    logits: dict[str, list[NDArray[np.float32]]] = {"pytorch": [], "fp16": [], "int8": []}
    for rows in cut_into_batches(len(pixels)):
        expected = _run_network(network, pixels[rows])
        embeddings.append(expected[1])
        answers = {"fp16": _run_if_possible(fp16, pixels[rows]), "int8": int8.embed(pixels[rows])}
        for name, found in {"pytorch": expected, **answers}.items():
            logits[name].append(found[0])
        for so_far, found in ((worst[len(rows)], answers["fp16"]), (worst_int8, answers["int8"])):
            so_far[:] = [_larger(w, max_abs_diff(f, e)) for w, f, e in zip(so_far, found, expected, strict=True)]
    embedding = np.concatenate(embeddings)[: len(pixels)]
    logits_worst, embedding_worst = (_larger(*column) for column in zip(*worst.values(), strict=True))
    return Parity(
        images=len(pixels),
        heads=len(network.disease_heads),
        logits=replace_non_finite(logits_worst),
        embedding=replace_non_finite(embedding_worst),
        head_logits=replace_non_finite(compare_float_heads(network, embedding)),
        by_batch_size={str(size): replace_non_finite(_larger(*pair)) for size, pair in worst.items()},
        int8_logits=replace_non_finite(worst_int8[0]),
        int8_embedding=replace_non_finite(worst_int8[1]),
        int8_head_logits=replace_non_finite(_compare_packed_heads(network, int8, embedding)),
        scatter=pick_points(**{name: [row for part in parts for row in part] for name, parts in logits.items()}),
    )


def pick_points(
    pytorch: Sequence[NDArray[np.float32]], fp16: Sequence[NDArray[np.float32]], int8: Sequence[NDArray[np.float32]]
) -> Scatter | None:
    """At most `MAX_POINTS` logits of each, evenly spaced; None when there are not as many of each or one is not finite.

    Args:
        pytorch: (S,) logits of each image.
        fp16: the same images.
        int8: the same images.
    """
    flat = [np.concatenate([np.empty(0, np.float32), *rows]) for rows in (pytorch, fp16, int8)]
    total = len(flat[0])
    if any(len(values) != total or not np.isfinite(values).all() for values in flat):
        return None
    picks = np.arange(min(total, MAX_POINTS)) * total // max(1, min(total, MAX_POINTS))
    return Scatter(*(tuple(float(f"{value:.9g}") for value in values[picks]) for values in flat))


def cut_into_batches(images: int) -> Iterator[list[int]]:
    """Row numbers in batches of 1, 2, 3, 5, 1, …: every image and every size occurs, images again if need be."""
    position = 0
    for number, size in enumerate(cycle(BATCH_SIZES)):
        if position >= images and number >= len(BATCH_SIZES):
            return
        yield [(position + i) % images for i in range(size)]
        position += size


def max_abs_diff(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Largest absolute difference, in float64: NaN when either holds NaN, infinity when the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)), initial=0.0))


def _larger(*values: float) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


def _run_if_possible(
    model: SpeciesModel, pixels: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A model that refuses this batch size answers with nothing, which is infinitely far from every answer."""
    try:
        return model.run(pixels)
    except RUN_ERRORS as error:
        raise_if_out_of_memory(error)
        return np.empty(0, np.float32), np.empty(0, np.float32)


def _run_network(
    network: HierarchicalNetwork, pixels: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        logits, embedding = network(torch.from_numpy(pixels))
    return logits.numpy(), embedding.numpy()


def _run_head(network: HierarchicalNetwork, slug: str, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits = network.disease_heads.get_submodule(slug)(torch.from_numpy(embedding))
    return np.asarray(logits.numpy(), np.float32)


def compare_float_heads(network: HierarchicalNetwork, embedding: NDArray[np.float32]) -> float:
    """Largest absolute difference of any float head, as the exporter builds it, from PyTorch's.

    Args:
        network: with its disease heads.
        embedding: (N, D) float32 of real images.
    """
    worst = 0.0
    for slug, head in network.disease_heads.items():
        weight, bias = (head.get_parameter(name).detach().numpy() for name in ("weight", "bias"))
        content = build_float_head(weight, bias).SerializeToString()
        found = open_session(Path(f"{slug}.onnx"), content, threads=1).run([DISEASE_OUTPUT], {EMBEDDING: embedding})[0]
        worst = _larger(worst, max_abs_diff(found, _run_head(network, slug, embedding)))
    return worst


def _compare_packed_heads(
    network: HierarchicalNetwork, classifier: PlantClassifier, embedding: NDArray[np.float32]
) -> float:
    taxonomy, worst = classifier.taxonomy, 0.0
    for index in _with_head(taxonomy.species_with_head, network, taxonomy.slugs):
        expected = _run_head(network, taxonomy.slugs[index], embedding)
        found = classifier.disease_logits(embedding, np.full(len(embedding), index, np.int64))
        classes = min(expected.shape[1], len(taxonomy.diseases_of(index)))
        worst = _larger(worst, max_abs_diff(found[:, :classes], expected[:, :classes]))
    return worst


def _with_head(indices: Sequence[int], network: HierarchicalNetwork, slugs: Sequence[str]) -> list[int]:
    """A doctored taxonomy is for the gate `heads_complete` to report; here it must only not crash."""
    return [index for index in indices if slugs[index] in network.disease_heads]
