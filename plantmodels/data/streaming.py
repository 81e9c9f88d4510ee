"""Images decoded as streams: memory does not grow with their number."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.errors import DataError, ImageError
from plantmodels.serve.preprocessing import decode_image, preprocess

MAX_UNREADABLE: Final = 0.01
"""Share of unreadable images above which a folder is an error."""


_DECODERS: Final = 2


_AHEAD: Final = 16


@dataclass(frozen=True)
class UnreadableImage:
    """A file that was skipped, and why."""

    path: Path
    reason: str


def stream_images(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    unreadable: list[UnreadableImage],
    out_of: int | None = None,
    description: str = "",
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Decodes images a few ahead of the consumer, with a progress bar; holds no more than those in memory.

    Args:
        paths: image files.
        preprocessing: how pixels become input.
        unreadable: files that are skipped are appended here; at most 1 % (`MAX_UNREADABLE`) may come together.
        out_of: size of the set that the list and this 1 % are about; None for that of `paths`.
        description: label of the progress bar; none is shown without one.

    Yields:
        Position in `paths`, and (3, S, S) float32.

    Raises:
        DataError: more unreadable images than allowed, naming the first few.
    """
    total = len(paths) if out_of is None else out_of
    progress = tqdm(total=len(paths), desc=description, unit="image", disable=not description)
    with ThreadPoolExecutor(_DECODERS) as pool, progress:
        pending: deque[tuple[int, Future[NDArray[np.float32]]]] = deque()
        queue = iter(enumerate(paths))
        while True:
            for index, path in queue:
                pending.append((index, pool.submit(_load, path, preprocessing)))
                if len(pending) > _AHEAD:
                    break
            if not pending:
                return
            index, future = pending.popleft()
            try:
                yield index, future.result()
            except ImageError as error:
                unreadable.append(UnreadableImage(paths[index], str(error)))
                if len(unreadable) > MAX_UNREADABLE * total:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise _too_many(unreadable, total) from error
            progress.update()


def stream_batches(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    size: int,
    unreadable: list[UnreadableImage],
    out_of: int | None = None,
    description: str = "",
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """`stream_images` in batches: yields positions in `paths`, and (n, 3, S, S) float32 with n at most `size`.

    Raises:
        DataError: more unreadable images than allowed, naming the first few.
    """
    images = stream_images(paths, preprocessing, unreadable=unreadable, out_of=out_of, description=description)
    while batch := list(islice(images, size)):
        positions, pixels = zip(*batch, strict=True)
        yield list(positions), np.stack(pixels)


def _load(path: Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    return preprocess(decode_image(data), preprocessing)


def _too_many(unreadable: Sequence[UnreadableImage], total: int) -> DataError:
    shown = "; ".join(f"{image.path}: {image.reason}" for image in unreadable[:3])
    return DataError(
        f"over {MAX_UNREADABLE:.0%} of {total:,} images cannot be read ({len(unreadable)} so far): {shown}"
    )
