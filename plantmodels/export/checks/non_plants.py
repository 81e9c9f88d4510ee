"""Finds leaves among the non-plants: a detector that learns to reject leaves is of no use.

Two things show them: the same file as a training or validation leaf, and an embedding as close to a training leaf as
training leaves are to each other.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import binom

from plantmodels.arrays import Embeddings, Mask
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import UNREADABLE, digest_content
from plantmodels.data.image_files import name_in_report
from plantmodels.data.non_plants import NonPlantSet
from plantmodels.errors import DataError
from plantmodels.foreign_text import name_some
from plantmodels.ood.embeddings import ModelOutputs

_LIMIT: Final = 0.1
"""Share of the non-plants, or of one source of them, that may look like known plants. Of real ones 2 % do."""

_FALSE_ALARM: Final = 0.01
"""Largest probability with which non-plants at the limit are refused, for all sources together."""

_NAMED: Final = 5
"""Files that an error names."""


def refuse_known_files(non_plants: NonPlantSet, leaves: Sequence[Path], data: Path) -> None:
    """Refuse non-plants that are the same files as leaves, byte for byte.

    Only files of equal size are read.

    Args:
        non_plants: the images that are said to show no plant.
        leaves: training and validation leaves.
        data: folder of the leaves.

    Raises:
        DataError: names the files.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in leaves:
        by_size[_size_of(path)].append(path)
    candidates = [path for path in non_plants.paths if _size_of(path) in by_size]
    sizes = {_size_of(path) for path in candidates} - {-1}
    known = {digest_content(path): path for size in sizes for path in by_size[size]}
    known.pop(UNREADABLE, None)
    same = [(path, known[digest]) for path in candidates if (digest := digest_content(path)) in known]
    if same:
        named = [f"{name_in_report(non_plants.root, path)} is {name_in_report(data, leaf)}" for path, leaf in same]
        raise DataError(
            f"{non_plants.root}: {len(same):,} of {len(non_plants.paths):,} non-plants are leaves of {data}, byte for "
            f"byte: {name_some(named, _NAMED)}. Give a folder of images without plants"
        )


def _size_of(path: Path) -> int:
    """Return the size of a file in bytes; −1 if it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def refuse_leaf_like(
    non_plants: NonPlantSet, paths: Sequence[Path], outputs: ModelOutputs, leaves: ModelOutputs, taxonomy: Taxonomy
) -> None:
    """Refuse non-plants of which more than a tenth, beyond chance, look like known plants to the network.

    An image looks like a known plant if its embedding is at most as far from the nearest training leaf as half of the
    training leaves are from their nearest one. Of other images of the same plants, about half do.

    Args:
        non_plants: the images that are said to show no plant.
        paths: N of them.
        outputs: the network's outputs for these.
        leaves: the network's outputs for M training leaves.
        taxonomy: all classes in logit order.

    Raises:
        DataError: names the source, if it is one source alone, and files with the species that they are taken for.
    """
    likeness = find_leaf_like(outputs.features, leaves.features)
    sources = [non_plants.source_of(path) for path in paths]
    groups = {"": np.ones(len(paths), bool)}
    groups |= {f" of {name!r}": np.array([source == name for source in sources]) for name in sorted(set(sources))}
    for name, group in groups.items():
        found = np.flatnonzero(likeness & group)
        if is_beyond_limit(len(found), int(group.sum()), len(groups)):
            answers = outputs.logits.argmax(axis=1)
            named = [
                f"{name_in_report(non_plants.root, paths[i])} looks like {taxonomy.species[answers[i]]!r}"
                for i in found.tolist()
            ]
            raise DataError(
                f"{non_plants.root}: {len(found):,} of {group.sum():,} non-plants{name} look like known plants to the "
                f"network, at most {_LIMIT:.0%} may: {name_some(named, _NAMED)}. Give a folder of "
                "images without plants"
            )


def find_leaf_like(features: Embeddings, leaves: Embeddings) -> Mask:
    """Return which images are as close to a training leaf as half of the training leaves are to each other.

    Args:
        features: (N, D) embeddings.
        leaves: (M, D) embeddings of training leaves.
    """
    between = cdist(leaves, leaves)
    np.fill_diagonal(between, np.inf)
    mask: Mask = cdist(features, leaves).min(axis=1) <= np.median(between.min(axis=1))
    return mask


def is_beyond_limit(count: int, images: int, groups: int) -> bool:
    """Return whether so many of the images are more than a tenth, beyond chance, when so many groups are looked at."""
    return bool(count and binom.sf(count - 1, images, _LIMIT) < _FALSE_ALARM / groups)
