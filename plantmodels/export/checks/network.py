"""Runs a checkpoint's network over some training leaves and non-plants, and refuses what cannot be right.

This takes seconds and comes before everything that takes minutes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from plantmodels.arrays import Inputs, Labels, Weights
from plantmodels.checkpoint.reading import Checkpoint
from plantmodels.data.leaves import LeafSample, LeafSet, class_of
from plantmodels.data.non_plants import NonPlantSet
from plantmodels.data.sampling import pick_each_class
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.errors import DataError
from plantmodels.export.checks.answers import AnswerCounts, count_answers, refuse_wrong_answers
from plantmodels.export.checks.non_plants import refuse_leaf_like
from plantmodels.export.mixed_precision import AGREEMENT_IMAGES, ComparedImages
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.ood.embeddings import ModelOutputs

FURTHER_LEAVES: Final = 256
"""Leaves that are read to find out whether names that look exchanged are."""

CHECKED_NON_PLANTS: Final = 64
"""Non-plants that the network is asked about, evenly of each source."""

_BATCH: Final = 8
"""Images in one run of PyTorch, which takes a sixth longer for each of 16 images of a Swin-Tiny."""

_COMPARED_BATCH: Final = 32
"""Leaves between two looks at whether a candidate changes too many answers."""


@dataclass(frozen=True)
class LabelledImages:
    """Decoded training leaves with their labels.

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


def read_labelled_images(
    samples: Sequence[LeafSample], checkpoint: Checkpoint, leaves: LeafSet
) -> tuple[LabelledImages, tuple[UnreadableImage, ...]]:
    """Decode training leaves; return them with their labels, and the files that were skipped.

    Args:
        samples: the leaves to decode.
        checkpoint: its preprocessing is applied.
        leaves: all training leaves, of which 1 % may be unreadable.

    Raises:
        DataError: none of the leaves can be read, or too many cannot.
    """
    paths = [sample.path for sample in samples]
    stream = ImageStream(paths, checkpoint.spec.preprocessing, set_size=len(leaves.samples))
    read = list(stream.batches(len(samples)))
    if not read:
        raise DataError(f"{leaves.root}: none of {len(samples)} training leaves can be read")
    ((positions, pixels),) = read
    species, diseases = np.array([class_of(samples[i]) for i in positions], np.int64).T
    heads = {i: (weight.numpy(), bias.numpy()) for i, (weight, bias) in checkpoint.disease_heads.items()}
    return LabelledImages(pixels, species, diseases, heads), stream.unreadable


def list_compared(kept: LeafSet, checkpoint: Checkpoint, leaves: LeafSet, labelled: LabelledImages) -> ComparedImages:
    """Return leaves on which INT8 candidates are compared with the float model; they are decoded each time.

    Args:
        kept: the leaves to choose from.
        checkpoint: its preprocessing is applied.
        leaves: all training leaves, of which 1 % may be unreadable.
        labelled: some leaves that are decoded already.
    """
    paths = [sample.path for sample in pick_each_class(kept.samples, AGREEMENT_IMAGES, key=class_of)]

    def decode(places: Sequence[int]) -> Iterator[tuple[list[int], Inputs]]:
        chosen = [paths[place] for place in places]
        stream = ImageStream(chosen, checkpoint.spec.preprocessing, set_size=len(leaves.samples))
        return (([places[i] for i in rows], pixels) for rows, pixels in stream.batches(_COMPARED_BATCH))

    return ComparedImages(labelled.pixels, paths, decode, labelled.heads)


def check_network(
    network: HierarchicalNetwork,
    checkpoint: Checkpoint,
    leaves: LeafSet,
    first: LabelledImages,
    unread: Sequence[LeafSample],
) -> ModelOutputs:
    """Refuse a network that does not know its training leaves, or whose names are in another order.

    If names look exchanged, and the first leaves are too few to be sure, further leaves of these species are read.

    Args:
        network: the network of the checkpoint.
        checkpoint: the checkpoint.
        leaves: all training leaves.
        first: some of them, of every class.
        unread: leaves that are not among `first`.

    Returns:
        The outputs for the first leaves.

    Raises:
        CheckpointError: the network guesses, or its answers fit its names in another order.
        DataError: too many leaves cannot be read.
    """
    outputs = run_network(network, first.pixels)
    counts = _count(outputs, first, checkpoint)
    taxonomy = checkpoint.spec.taxonomy
    refuse_wrong_answers(counts, taxonomy, checkpoint.path, leaves.root)
    if suspects := counts.find_suspects():
        of_suspects = [sample for sample in unread if sample.species_index in suspects]
        if further := pick_each_class(of_suspects, FURTHER_LEAVES, key=class_of):
            images, _ = read_labelled_images(further, checkpoint, leaves)
            counts += _count(run_network(network, images.pixels), images, checkpoint)
            refuse_wrong_answers(counts, taxonomy, checkpoint.path, leaves.root)
    return outputs


def _count(outputs: ModelOutputs, images: LabelledImages, checkpoint: Checkpoint) -> AnswerCounts:
    return count_answers(outputs, images.species, images.diseases, images.heads, checkpoint.spec.taxonomy)


def run_network(network: HierarchicalNetwork, pixels: Inputs) -> ModelOutputs:
    """Return PyTorch's outputs for images, (N, 3, P, P), a few at a time."""
    logits, features = [], []
    for start in range(0, len(pixels), _BATCH):
        with torch.inference_mode():
            outputs = network(torch.from_numpy(pixels[start : start + _BATCH]))
        logits.append(outputs[0].numpy())
        features.append(outputs[1].numpy())
    return ModelOutputs(np.concatenate(features), np.concatenate(logits))


def check_non_plants(
    network: HierarchicalNetwork, checkpoint: Checkpoint, non_plants: NonPlantSet, set_size: int, leaves: ModelOutputs
) -> None:
    """Refuse non-plants that look like known plants to the network.

    Args:
        network: the network of the checkpoint.
        checkpoint: the checkpoint.
        non_plants: the half that chooses the detector.
        set_size: number of all non-plants, of which 1 % may be unreadable.
        leaves: the network's outputs for training leaves of every class.

    Raises:
        DataError: too many look like known plants, or cannot be read.
    """
    paths = pick_each_class(non_plants.paths, CHECKED_NON_PLANTS, key=non_plants.source_of)
    stream = ImageStream(paths, checkpoint.spec.preprocessing, set_size=set_size)
    for positions, pixels in stream.batches(CHECKED_NON_PLANTS):
        outputs = run_network(network, pixels)
        refuse_leaf_like(non_plants, [paths[i] for i in positions], outputs, leaves, checkpoint.spec.taxonomy)
