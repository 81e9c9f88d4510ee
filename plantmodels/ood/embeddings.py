"""Runs the species model over image files: embeddings and logits as streams, or all at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Embeddings, Labels, Logits, Mask
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.errors import DataError
from plantmodels.serve.models import SpeciesModel

_BATCH: Final = 32


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of the species model for N images.

    Attributes:
        features: (N, D) embeddings.
        logits: (N, S) logits of the species.
    """

    features: Embeddings
    logits: Logits

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.features)

    @property
    def predicted(self) -> Labels:
        """(N,) index of the most probable species of each image."""
        return np.asarray(self.logits.argmax(axis=1), np.int64)

    def __getitem__(self, rows: Mask | Labels) -> "ModelOutputs":
        """Return some rows, selected by a mask or by indices."""
        return ModelOutputs(self.features[rows], self.logits[rows])


@dataclass(frozen=True)
class LeafEmbeddings:
    """N leaves.

    Attributes:
        outputs: outputs of the species model, one row per leaf.
        classes: (N,) pair of species and disease, as one number.
        species: (N,) index of the true species.
        groups: (N,) number of the group of each leaf, which no fold may cut; None if each leaf is a group of its own.
    """

    outputs: ModelOutputs
    classes: Labels
    species: Labels
    groups: Labels | None = None

    def __getitem__(self, rows: Mask) -> "LeafEmbeddings":
        """Return some rows, selected by a mask."""
        groups = None if self.groups is None else self.groups[rows]
        return LeafEmbeddings(self.outputs[rows], self.classes[rows], self.species[rows], groups)


@dataclass(frozen=True)
class NonPlantEmbeddings:
    """M non-plants of the selection half.

    Attributes:
        outputs: outputs of the species model, one row per non-plant.
        sources: (M,) name of the folder that each one comes from.
        groups: (M,) number of the group of each one, which no fold may cut; None if each is a group of its own.
    """

    outputs: ModelOutputs
    sources: NDArray[np.str_]
    groups: Labels | None = None


def number_groups(keys: Sequence[str]) -> Labels:
    """Return a number (N,) for each of N keys, the same for equal ones, in the order of their first places."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


class Embedder:
    """Runs a species model over image files, in batches.

    Attributes:
        unreadable: files that were skipped by the streams that have ended.
    """

    def __init__(
        self,
        model: SpeciesModel,
        preprocessing: Preprocessing,
        *,
        set_size: int,
        known: Mapping[Path, tuple[Logits, Embeddings]] | None = None,
    ) -> None:
        """Prepare the runs; nothing is read before a stream is iterated.

        Args:
            model: the species model.
            preprocessing: how pixels become the model's input.
            set_size: number of images in the set that all streams are parts of; 1 % of them may be unreadable.
            known: species logits (S,) and embedding (D,) of images that the same model has answered already; `collect`
                does not read these images again.
        """
        self.unreadable: tuple[UnreadableImage, ...] = ()
        self._model = model
        self._preprocessing = preprocessing
        self._set_size = set_size
        self._known = known or {}

    def stream(self, paths: Sequence[Path], description: str) -> Iterator[tuple[list[int], ModelOutputs]]:
        """Yield positions in `paths` and the outputs for these images, at most 32 at a time.

        Args:
            paths: image files; unreadable ones are skipped.
            description: label of the progress bar.

        Raises:
            DataError: too many files are unreadable.
        """
        stream = ImageStream(
            paths,
            self._preprocessing,
            set_size=self._set_size,
            skipped_before=self.unreadable,
            description=description,
        )
        for positions, pixels in stream.batches(_BATCH):
            logits, features = self._model.run(pixels)
            yield positions, ModelOutputs(features, logits)
        self.unreadable += stream.unreadable

    def collect(self, paths: Sequence[Path], description: str) -> tuple[Labels, ModelOutputs]:
        """Return the whole stream at once: positions (N,) of the readable images and the outputs for them.

        Args:
            paths: image files; unreadable ones are skipped.
            description: label of the progress bar.

        Raises:
            DataError: no image can be read, or too many cannot.
        """
        found = {place: self._known[path] for place, path in enumerate(paths) if path in self._known}
        places = [place for place in range(len(paths)) if place not in found]
        for rows, outputs in self.stream([paths[place] for place in places], description):
            answers = zip(outputs.logits, outputs.features, strict=True)
            found |= {places[row]: answer for row, answer in zip(rows, answers, strict=True)}
        if not found:
            raise DataError(f"{description}: none of {len(paths):,} images can be read")
        positions = sorted(found)
        logits, features = (np.stack(rows) for rows in zip(*(found[place] for place in positions), strict=True))
        return np.array(positions, np.int64), ModelOutputs(features, logits)
