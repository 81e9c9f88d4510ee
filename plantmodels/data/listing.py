"""Lists the image files of a folder, by one rule for names, hidden folders and links.

- Names that begin with a dot, and what systems add (`__MACOSX`, `Thumbs.db`), are hidden. They do not count at all.
- In a class folder, only folders `group=NAME` are entered: their images are a group (`plantmodels.data.groups`).
- Links to files and folders are followed. A folder is entered once below its source, so loops end.
- Suffixes of `IMAGE_SUFFIXES` are taken. Files of `CONTENT_SUFFIXES` are taken if their first bytes are an image's.
- Every other file is counted in `LeftOut`, which the commands print.

>>> listing = list_images(non_plants)
>>> len(listing.paths), listing.left_out.count
(48, 0)
"""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from plantmodels.data.image_files import IMAGE_SUFFIXES, printable_name
from plantmodels.errors import DataError
from plantmodels.serve.preprocessing import HEIC_SUFFIXES, can_read_heic, has_image_magic

CONTENT_SUFFIXES: Final = ("", ".jfif", ".jfi", ".jif", ".jpe")
"""Files without a suffix, and rarer suffixes of JPEG: they are taken only if they begin as an image does."""

GROUP_PREFIX: Final = "group="
"""How the name of a folder begins whose images belong together. Other folders make no group: people also spread a large
class over folders."""

_HIDDEN_FOLDERS: Final = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information")
_HIDDEN_FILES: Final = ("thumbs.db", "ehthumbs.db", "desktop.ini")
"""What macOS, Windows and storage servers put into folders, in lower case. Some hold small copies of the images."""

_LOGGER: Final = logging.getLogger(__name__)

_MAGIC_BYTES: Final = 16
_NAMED_KINDS: Final = 6
"""Kinds of files that one line names; the remaining ones are counted together."""


@dataclass(frozen=True)
class LeftOut:
    """The files of a set that are not taken as images.

    Attributes:
        kinds: kind of file, such as ".heic", to the number of such files.
        examples: kind of file to the name of the first such file.
        taken: number of files of the set that are taken as images.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    taken: int = 0

    @property
    def count(self) -> int:
        """Number of files that are left out."""
        return sum(self.kinds.values())

    def describe(self, name: str) -> str:
        """Return one line that says how many files are left out, their share and their kinds; "" for none.

        >>> print(LeftOut({".gif": 2, ".txt": 1}, {".gif": "a.gif", ".txt": "notes.txt"}, 57).describe("train"))
        train: 3 of 60 files (5.0%) are not taken as images: 2 .gif (a.gif), 1 .txt (notes.txt)
        """
        if not self.count:
            return ""
        share = self.count / (self.count + self.taken)
        kinds = sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{number:,} {kind} ({self._explain(kind)})" for kind, number in kinds[:_NAMED_KINDS]]
        if further := sum(number for _, number in kinds[_NAMED_KINDS:]):
            parts.append(f"{further:,} of {len(kinds) - _NAMED_KINDS} further kinds")
        verb = "is not taken as an image" if self.count == 1 else "are not taken as images"
        return f"{name}: {self.count:,} of {self.count + self.taken:,} files ({share:.1%}) {verb}: {', '.join(parts)}"

    def _explain(self, kind: str) -> str:
        advice = "; to read them, install pillow-heif" if kind in HEIC_SUFFIXES and not can_read_heic() else ""
        return self.examples[kind] + advice


@dataclass(frozen=True)
class Listing:
    """The image files of a folder, sorted by path, and what was left out."""

    paths: tuple[Path, ...]
    left_out: LeftOut


class _HasLeftOut(Protocol):
    @property
    def left_out(self) -> LeftOut: ...


def log_left_out(sets: Mapping[str, _HasLeftOut | None]) -> None:
    """Log one line for each set of images that has files which are not taken as images.

    Args:
        sets: name of each set to its leaves or non-plants; None for a set that is not used.
    """
    for name, images in sets.items():
        if images is not None and (line := images.left_out.describe(name)):
            _LOGGER.warning("%s", line)


def list_images(folder: Path) -> Listing:
    """Return all images below a folder, at any depth; each folder directly below it is a source.

    Raises:
        DataError: a folder cannot be listed.
    """
    walk = _Walk(folder)
    try:
        outside = {_identify(path) for path in (folder.resolve(), *folder.resolve().parents)}
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    paths = list(walk.images(folder, outside, depth=0))
    return Listing(tuple(paths), walk.left_out(len(paths)))


def list_class_images(folder: Path, classes: list[Path]) -> Listing:
    """Return the images that lie directly in class folders, or in a folder `group=NAME` directly below one.

    All other files of the split are counted as left out.

    Args:
        folder: the folder of the split.
        classes: its class folders, from `list_folders`.

    Raises:
        DataError: a folder cannot be listed.
    """
    walk = _Walk(folder)
    paths = [path for place in classes for path in walk.images(place, None)]
    for entry in walk.entries(folder):
        if not _is_folder(entry):
            walk.leave_out("outside of a class folder", entry.path)
    return Listing(tuple(paths), walk.left_out(len(paths)))


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly below a folder, sorted by name, without hidden ones. Links to folders count.

    Raises:
        DataError: the folder cannot be listed.
    """
    return [Path(entry.path) for entry in _Walk(folder).entries(folder) if _is_folder(entry)]


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is taken as an image: by its suffix, or for some suffixes by its content."""
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES or (suffix in HEIC_SUFFIXES and can_read_heic()):
        return True
    return suffix in CONTENT_SUFFIXES and has_image_magic(read_start(path))


def read_start(path: str | os.PathLike[str]) -> bytes:
    """Return the first bytes of a regular file; none if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MAGIC_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


class _Walk:
    """Lists the files below one root, and counts those that are left out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._kinds: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def left_out(self, taken: int) -> LeftOut:
        return LeftOut(dict(self._kinds), self._examples, taken)

    def leave_out(self, kind: str, path: str) -> None:
        self._kinds[kind] += 1
        self._examples.setdefault(kind, printable_name(os.path.relpath(path, self._root)))

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                return sorted((entry for entry in found if not _is_hidden(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error

    def images(self, folder: Path, entered: set[tuple[int, int]] | None, depth: int = 1) -> Iterator[Path]:
        """Yield images in the order of their paths.

        Args:
            folder: where to search.
            entered: folders that are not entered (again); None enters folders of groups alone.
            depth: 0 at the root, where each folder is a source with folders of its own.
        """
        for entry in self.entries(folder):
            if _is_folder(entry):
                if entered is None and depth == 1 and entry.name.startswith(GROUP_PREFIX):
                    yield from self.images(Path(entry.path), None, depth + 1)
                    continue
                if entered is None:
                    self.leave_out("folder inside a class folder", entry.path)
                    continue
                below = entered if depth else set(entered)
                place = _identify(Path(entry.path))
                if place in below:
                    self.leave_out("folder that is read already, through a link", entry.path)
                else:
                    below.add(place)
                    yield from self.images(Path(entry.path), below, depth + 1)
            elif self._is_image(entry):
                yield Path(entry.path)

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a file is an image. A broken link with an image's name is one, which cannot be read."""
        if not (entry.is_symlink() or entry.is_file()):
            self.leave_out("neither file nor folder", entry.path)
            return False
        if is_image_file(entry.path):
            return True
        self.leave_out(_name_kind(Path(entry.name).suffix.lower()), entry.path)
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in (*_HIDDEN_FOLDERS, *_HIDDEN_FILES)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identify(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _name_kind(suffix: str) -> str:
    return printable_name(suffix) if suffix else "without a suffix"
