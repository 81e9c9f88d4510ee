"""Image files decoded as a stream: memory does not grow with their number.

>>> preprocessing = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
>>> stream = ImageStream([image, Path("gone.jpg")] + [image] * 98, preprocessing)
>>> for positions, inputs in stream.batches(64):
...     print(positions[:3], inputs.shape)
[0, 2, 3] (64, 3, 32, 32)
[65, 66, 67] (35, 3, 32, 32)
>>> stream.unreadable
(UnreadableImage(path=PosixPath('gone.jpg'), reason='cannot be read (No such file or directory)'),)
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from plantmodels.arrays import Inputs
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.data.image_files import printable_name
from plantmodels.data.progress import log_step
from plantmodels.errors import DataError, ImageError
from plantmodels.serve.image_input import image_to_input

MAX_UNREADABLE: Final = 0.01
"""Largest share of a set that may be unreadable. Above it, something is wrong with the set itself."""

_DECODERS: Final = 2
"""Threads that decode: enough to keep one model busy."""

_MAX_AHEAD: Final = 16
"""Images decoded before the consumer asks for them; bounds the memory of a stream."""

_NAMED_IN_ERROR: Final = 3
"""Unreadable files that the error names."""


@dataclass(frozen=True)
class UnreadableImage:
    """A file that was skipped, and why."""

    path: Path
    reason: str


class ImageStream:
    """A stream of decoded images that skips unreadable files and remembers which.

    Iterating yields the position in `paths` and the image, (3, P, P) float32, in the order of `paths`. `batches`
    yields several at a time. Images are decoded a few ahead of the consumer. Every iteration reads the files again.

    Attributes:
        unreadable: the files skipped so far, in order; complete once the iteration has ended.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        preprocessing: Preprocessing,
        *,
        set_size: int | None = None,
        skipped_before: Sequence[UnreadableImage] = (),
        description: str = "",
    ) -> None:
        """Prepare a stream; nothing is read before it is iterated.

        Args:
            paths: image files.
            preprocessing: how pixels become the model's input.
            set_size: number of images that the 1 % limit (`MAX_UNREADABLE`) refers to, where `paths` are only a part
                of the set; defaults to `len(paths)`.
            skipped_before: files of the same set that earlier streams skipped; they count toward the limit.
            description: label of the progress bar and of the log line at the end; without it neither is shown.
        """
        self.unreadable: tuple[UnreadableImage, ...] = ()
        self._paths = paths
        self._preprocessing = preprocessing
        self._set_size = len(paths) if set_size is None else set_size
        self._skipped_before = tuple(skipped_before)
        self._description = description

    def __iter__(self) -> Iterator[tuple[int, Inputs]]:
        """Yield the position in `paths` and the image, (3, P, P) float32.

        Raises:
            DataError: too many files are unreadable; it names the first few.
        """
        self.unreadable = ()
        with ThreadPoolExecutor(_DECODERS) as pool, self._show_progress() as advance:
            try:
                for index, future in self._decode_ahead(pool):
                    try:
                        inputs = future.result()
                    except ImageError as error:
                        self._skip(self._paths[index], error)
                    else:
                        yield index, inputs
                    advance()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _show_progress(self) -> AbstractContextManager[Callable[[], object]]:
        if not self._description:
            return nullcontext(lambda: None)
        return log_step(self._description, total=len(self._paths), unit="image")

    def batches(self, size: int) -> Iterator[tuple[list[int], Inputs]]:
        """Yield positions in `paths` and their images, (n, 3, P, P) float32 with n at most `size`.

        Raises:
            DataError: too many files are unreadable; it names the first few.
        """
        images = iter(self)
        while batch := list(islice(images, size)):
            positions, inputs = zip(*batch, strict=True)
            yield list(positions), np.stack(inputs)

    def _decode_ahead(self, pool: ThreadPoolExecutor) -> Iterator[tuple[int, Future[Inputs]]]:
        pending: deque[tuple[int, Future[Inputs]]] = deque()
        for index, path in enumerate(self._paths):
            pending.append((index, pool.submit(_load, path, self._preprocessing)))
            if len(pending) > _MAX_AHEAD:
                yield pending.popleft()
        yield from pending

    def _skip(self, path: Path, error: ImageError) -> None:
        if path not in {image.path for image in self.unreadable}:  # a manifest may list a file twice
            self.unreadable += (UnreadableImage(path, str(error)),)
        skipped = list({image.path: image for image in self._skipped_before + self.unreadable}.values())
        if len(skipped) > MAX_UNREADABLE * self._set_size:
            named = "; ".join(
                f"{printable_name(str(image.path))}: {image.reason}" for image in skipped[:_NAMED_IN_ERROR]
            )
            raise DataError(
                f"over {MAX_UNREADABLE:.0%} of {self._set_size:,} images cannot be read "
                f"({len(skipped)} so far): {named}"
            ) from error


def _load(path: Path, preprocessing: Preprocessing) -> Inputs:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    return image_to_input(data, preprocessing)
