"""Embeddings and detector scores of image files, as streams.

>>> embedder = Embedder(model, preprocessing, out_of=len(paths))  # doctest: +SKIP
>>> for positions, features in embedder.stream(paths, "fit"): ...  # doctest: +SKIP
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.build.data import UnreadableImage, stream_batches
from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.serve.classifier import SpeciesModel

_BATCH: Final = 32

Watch = Callable[[list[int], NDArray[np.float32], NDArray[np.float32]], None]
"""Positions (n,), species logits (n, S) and embedding (n, D) of a batch."""


class Embedder:
    """Runs a species model over image files, a batch at a time.

    Attributes:
        unreadable: files that were skipped in all streams so far.
    """

    def __init__(self, model: SpeciesModel, preprocessing: Preprocessing, *, out_of: int) -> None:
        """Takes a model.

        Args:
            model: the species model whose embedding is wanted.
            preprocessing: what it was trained with.
            out_of: size of the whole set that all streams are parts of; 1 % of it may be unreadable.
        """
        self.unreadable: list[UnreadableImage] = []
        self._model = model
        self._preprocessing = preprocessing
        self._out_of = out_of

    def stream(
        self, paths: Sequence[Path], description: str, *, watch: Watch | None = None
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yields positions in `paths` and their embeddings (n, D), n at most 32; unreadable files are skipped.

        Args:
            paths: image files.
            description: label of the progress bar.
            watch: is given each batch's species logits too.

        Raises:
            DataError: too many unreadable files.
        """
        for positions, pixels in stream_batches(
            paths,
            self._preprocessing,
            size=_BATCH,
            unreadable=self.unreadable,
            out_of=self._out_of,
            description=description,
        ):
            logits, embedding = self._model.run(pixels)
            if watch is not None:
                watch(positions, logits, embedding)
            yield positions, embedding

    def score(
        self, detectors: Sequence[OODDetector], paths: Sequence[Path], description: str, *, watch: Watch | None = None
    ) -> NDArray[np.float64]:
        """Scores (n, detectors) of the readable images; 8 bytes an image and detector are all that is kept."""
        scores = [
            np.stack([detector.score(features) for detector in detectors], axis=1)
            for _, features in self.stream(paths, description, watch=watch)
        ]
        return np.concatenate([np.empty((0, len(detectors))), *scores])
