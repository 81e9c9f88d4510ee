"""Embeddings and logits of image files, as streams.

>>> embedder = Embedder(model, preprocessing, out_of=len(paths))  # doctest: +SKIP
>>> for positions, embedded in embedder.stream(paths, "fit"): ...  # doctest: +SKIP
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.errors import DataError
from plantmodels.serve.models import SpeciesModel

_BATCH: Final = 32


@dataclass(frozen=True)
class Embedded:
    """What a species model says of N images.

    Attributes:
        features: (N, D) float32, the embeddings.
        logits: (N, S) float32, of the species.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        """N."""
        return len(self.features)

    def __getitem__(self, rows: NDArray[Any]) -> "Embedded":
        """Those rows, by a mask or by indices."""
        return Embedded(self.features[rows], self.logits[rows])


class Embedder:
    """Runs a species model over image files, a batch at a time.

    Attributes:
        unreadable: files that were skipped in the streams that have ended.
    """

    def __init__(self, model: SpeciesModel, preprocessing: Preprocessing, *, out_of: int) -> None:
        """Takes a model.

        Args:
            model: the species model whose embedding is wanted.
            preprocessing: what it was trained with.
            out_of: size of the whole set that all streams are parts of; 1 % of it may be unreadable.
        """
        self.unreadable: tuple[UnreadableImage, ...] = ()
        self._model = model
        self._preprocessing = preprocessing
        self._out_of = out_of

    def stream(self, paths: Sequence[Path], description: str) -> Iterator[tuple[list[int], Embedded]]:
        """Yields positions in `paths` and what the model says of them, at most 32; unreadable files are skipped.

        Raises:
            DataError: too many unreadable files.
        """
        stream = ImageStream(
            paths,
            self._preprocessing,
            set_size=self._out_of,
            skipped_before=self.unreadable,
            description=description,
        )
        for positions, pixels in stream.batches(_BATCH):
            logits, features = self._model.run(pixels)
            yield positions, Embedded(features, logits)
        self.unreadable += stream.unreadable

    def collect(self, paths: Sequence[Path], description: str) -> tuple[NDArray[np.int64], Embedded]:
        """All of a stream at once: positions (N,) of the readable images, and what the model says of them.

        Raises:
            DataError: no image, none that can be read, or too many that cannot.
        """
        parts = list(self.stream(paths, description))
        if not parts:
            raise DataError(f"{description}: none of {len(paths):,} images can be read")
        positions = np.concatenate([np.array(rows, np.int64) for rows, _ in parts])
        features, logits = (
            np.concatenate([getattr(embedded, name) for _, embedded in parts]) for name in ("features", "logits")
        )
        return positions, Embedded(features, logits)
