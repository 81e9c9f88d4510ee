"""Runs the served INT8 model over every image that fits, chooses or calibrates the detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from plantmodels.arrays import Embeddings, Labels, Logits
from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.bundle.metadata import Metadata
from plantmodels.data.leaves import LeafSample, class_of
from plantmodels.data.sampling import thin_out
from plantmodels.data.streaming import UnreadableImage
from plantmodels.export.inputs import ExportInputs
from plantmodels.ood.embeddings import Embedder, LeafEmbeddings, NonPlantEmbeddings, number_groups
from plantmodels.ood.moments import RunningMoments
from plantmodels.serve.cores import count_cores
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import open_session

MAX_NON_PLANTS: Final = 10_000
"""Bounds the embeddings held in memory, 3 KB each."""


@dataclass(frozen=True)
class EmbeddedLeaves:
    """Outputs of the INT8 model for leaves that could be read.

    Attributes:
        embeddings: the outputs, with classes and species as numbers.
        samples: the same leaves with their labels.
    """

    embeddings: LeafEmbeddings
    samples: Sequence[LeafSample]


@dataclass(frozen=True)
class EmbeddedImages:
    """Outputs of the INT8 model, which is the one that is served.

    Attributes:
        fit: the kept training leaves, which the detector is fitted on.
        further_moments: moments of the further training leaves, or None.
        calibration: the leaves that calibrate; those of `fit` if no others do.
        non_plants: outputs for the selection half of the non-plants, or None.
        unreadable: leaves and non-plants that were skipped.
    """

    fit: EmbeddedLeaves
    further_moments: RunningMoments | None
    calibration: EmbeddedLeaves
    non_plants: NonPlantEmbeddings | None
    unreadable: tuple[UnreadableImage, ...]


def embed_images(
    folder: Path,
    inputs: ExportInputs,
    metadata: Metadata,
    known: Mapping[Path, tuple[Logits, Embeddings]] | None = None,
) -> EmbeddedImages:
    """Run the INT8 species model of a bundle over training leaves, calibration leaves and non-plants.

    Args:
        folder: the bundle, with its species model.
        inputs: the images.
        metadata: the bundle's preprocessing and session options.
        known: path of training leaves to species logits and embedding, where this model has answered already.

    Raises:
        DataError: too many files are unreadable.
    """
    name, options, rows_per_run = SPECIES_FILES["int8"], metadata.session_options, metadata.rows_per_run("int8")
    session = open_session(folder / name, options=options, threads=1, rows_per_run=rows_per_run)
    model = SpeciesModel(session, rows_per_run=rows_per_run, workers=count_cores())
    embedder = Embedder(model, metadata.preprocessing, set_size=len(inputs.leaves.samples), known=known)
    numbers = {label: i for i, label in enumerate(sorted({class_of(s) for s in inputs.calibration.fit.samples}))}
    further = _embed_further(embedder, inputs, numbers, metadata.embedding_dim)
    fit = _embed_leaves(embedder, inputs.kept_leaves.samples, numbers, "embed leaves", inputs.calibration.groups)
    calibration, skipped = fit, embedder.unreadable
    if inputs.calibration.record.source != "train":
        chosen = inputs.calibration.leaves.samples
        others = Embedder(model, metadata.preprocessing, set_size=len(chosen))
        calibration = _embed_leaves(others, chosen, numbers, "embed calibration leaves")
        skipped += others.unreadable
    non_plants, more_skipped = _embed_non_plants(inputs, model, metadata)
    return EmbeddedImages(fit, further, calibration, non_plants, (*skipped, *more_skipped))


def _number_classes(samples: Sequence[LeafSample], numbers: dict[tuple[int, int], int]) -> Labels:
    """Return the number of each leaf's class; −1 for a class that the detector is not fitted on."""
    return np.array([numbers.get(class_of(sample), -1) for sample in samples], np.int64)


def _embed_leaves(
    embedder: Embedder,
    samples: Sequence[LeafSample],
    numbers: dict[tuple[int, int], int],
    description: str,
    key_of: Mapping[Path, str] | None = None,
) -> EmbeddedLeaves:
    """Return the outputs for leaves that can be read; `key_of` is the path of each leaf to the key of its group."""
    positions, outputs = embedder.collect([sample.path for sample in samples], description)
    read = [samples[position] for position in positions]
    species = np.array([sample.species_index for sample in read], np.int64)
    groups = None if key_of is None else number_groups([key_of[sample.path] for sample in read])
    return EmbeddedLeaves(LeafEmbeddings(outputs, _number_classes(read, numbers), species, groups), read)


def _embed_further(
    embedder: Embedder, inputs: ExportInputs, numbers: dict[tuple[int, int], int], dim: int
) -> RunningMoments | None:
    leaves = inputs.further_leaves
    if not leaves.samples:
        return None
    moments = RunningMoments(len(numbers), dim)
    with threadpool_limits(1):  # with several BLAS threads the last bits differ
        for rows, outputs in embedder.stream(leaves.paths, "embed further leaves"):
            moments.update(_number_classes([leaves.samples[row] for row in rows], numbers), outputs.features)
    return moments


def _embed_non_plants(
    inputs: ExportInputs, model: SpeciesModel, metadata: Metadata
) -> tuple[NonPlantEmbeddings | None, tuple[UnreadableImage, ...]]:
    half = inputs.selection
    if inputs.non_plants is None or half is None:
        return None, ()
    paths = thin_out(half.paths, MAX_NON_PLANTS, key=half.source_of)
    if not paths:
        return None, ()
    embedder = Embedder(model, metadata.preprocessing, set_size=len(inputs.non_plants.paths))
    positions, outputs = embedder.collect(paths, "embed non-plants")
    read = [paths[position] for position in positions]
    key_of = dict(zip(inputs.non_plants.paths, inputs.non_plants.groups.keys, strict=True))
    groups = number_groups([key_of[path] for path in read])
    return NonPlantEmbeddings(outputs, np.array([half.source_of(path) for path in read]), groups), embedder.unreadable
