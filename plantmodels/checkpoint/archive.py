"""Reads the zip archive that `torch.save` writes: its pickle as data, and each tensor when it is asked for.

>>> with TorchArchive(checkpoint) as archive:
...     document = archive.read_document()
...     archive.read_tensor(document["state_dict"]["species_head.bias"]).shape
torch.Size([5])
"""

import math
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch

from plantmodels.checkpoint.inert_pickle import Global, PickleError, StoredTensor, read_inert
from plantmodels.errors import CheckpointError
from plantmodels.foreign_text import quote_error

_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
)
"""Errors that `zipfile` raises for damaged archives."""

_STORAGES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_DTYPES: Final = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

_MAX_DIMENSIONS: Final = 64


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is read when it is asked for.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        read: returns the tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def size_bytes(self) -> int:
        """The bytes that the tensor takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TorchArchive:
    """An open archive whose members were checked: nothing in it takes more memory than the file has bytes.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Open and check an archive.

        Raises:
            CheckpointError: the file is not an archive of `torch.save`, or its members are compressed, doubled, or
                claim more bytes than the file has.
        """
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise CheckpointError(
                f"{path}: not a checkpoint: expected the zip archive that torch.save writes ({quote_error(error)}). "
                "A file from before PyTorch 1.6 must be loaded and saved again"
            ) from error
        try:
            members = self._zip.infolist()
            self._check_members(members)
            self._root = self._find_root(members)
        except CheckpointError:
            self._zip.close()
            raise
        self._sizes = {member.filename: member.file_size for member in members}
        self._storages: dict[str, torch.Tensor] = {}

    def __enter__(self) -> Self:
        """Return the archive."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file, and forget the storages that were read."""
        self._zip.close()
        self._storages.clear()

    def read_document(self) -> Any:
        """Return what was saved: plain values, `StoredTensor` and `Foreign`. Nothing that the pickle names is run.

        Raises:
            CheckpointError: the pickle is damaged, or the numbers have another byte order than this machine.
        """
        order = self._root + "byteorder"
        if order in self._sizes and self._read(order).decode("ascii", "replace") != sys.byteorder:
            raise CheckpointError(f"{self.path}: its numbers are not {sys.byteorder}-endian, as this machine's are")
        try:
            return read_inert(self._read(self._root + "data.pkl"))
        except PickleError as error:
            raise CheckpointError(f"{self.path}: not a checkpoint that can be read: {error}") from error

    def describe_tensor(self, name: str, stored: StoredTensor) -> TensorSource:
        """Return a tensor's shape and dtype, and how to read it.

        Raises:
            CheckpointError: the pickle claims a shape, dtype or storage that no tensor has.
        """
        shape = read_shape(stored)
        if shape is None:
            raise CheckpointError(f"{self.path}: {name} has the shape {stored.size!r:.60}")
        return TensorSource(shape, self._read_storage_type(stored)[0], partial(self.read_tensor, stored))

    def read_tensor(self, stored: StoredTensor) -> torch.Tensor:
        """Return a tensor; those that share a storage share its memory.

        Raises:
            CheckpointError: the tensor lies outside its storage, or the storage is not in the archive.
        """
        dtype, key, elements = self._read_storage_type(stored)
        size, stride, offset = read_shape(stored), stored.stride, stored.offset
        numbers = (*stride, offset) if isinstance(stride, tuple) else ()
        if size is None or len(numbers) != len(size) + 1 or not all(_is_count(number) for number in numbers):
            raise CheckpointError(
                f"{self.path}: a tensor of shape {stored.size!r:.60}, strides {stride!r:.60} and offset {offset!r:.20} "
                "is refused"
            )
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= elements and 0 not in size:
            raise CheckpointError(
                f"{self.path}: a tensor of shape {size} and strides {stride!r:.60} ends at element {last:,} of a "
                f"storage of {elements:,}"
            )
        storage = self._load_storage(key, elements * dtype.itemsize).view(dtype)
        return storage.as_strided(size, stride, offset)

    def _read_storage_type(self, stored: StoredTensor) -> tuple[torch.dtype, str, int]:
        """Return the dtype, the key and the number of elements of a tensor's storage."""
        match stored.storage:
            case ("storage", Global() as kind, str() as key, str(), int() as count) if count >= 0:
                storage_type = _STORAGES.get(kind.name.rpartition(".")[2])
                dtype = _DTYPES.get(stored.dtype) if stored.dtype else storage_type
                if dtype is not None and storage_type is not None:
                    return dtype, key, count // dtype.itemsize if stored.dtype else count
        raise CheckpointError(f"{self.path}: a tensor's storage {stored.storage!r:.120} is refused")

    def _load_storage(self, key: str, size_bytes: int) -> torch.Tensor:
        name = f"{self._root}data/{key}"
        if self._sizes.get(name) != size_bytes:
            raise CheckpointError(
                f"{self.path}: a tensor needs {size_bytes:,} bytes of {name!r:.100}, which has "
                f"{self._sizes.get(name, 0):,}"
            )
        if name not in self._storages:
            self._storages[name] = torch.frombuffer(bytearray(self._read(name)) or bytearray(1), dtype=torch.uint8)
        return self._storages[name][:size_bytes]

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except _ZIP_ERRORS as error:
            raise CheckpointError(f"{self.path}: {name!r:.100} cannot be read ({quote_error(error)})") from error

    def _check_members(self, members: list[zipfile.ZipInfo]) -> None:
        path = self.path
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"{path}: {member.filename!r:.100} is compressed, {member.compress_size:,} bytes become "
                    f"{member.file_size:,}: refused, torch.save stores members as they are"
                )
        counts = Counter(member.filename for member in members)
        name, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if count > 1:
            raise CheckpointError(f"{path}: {name!r:.100} is in the archive {count} times")
        claimed, size = sum(member.file_size for member in members), path.stat().st_size
        if claimed > size:
            raise CheckpointError(f"{path}: its members claim {claimed:,} bytes, the file has {size:,}")

    def _find_root(self, members: list[zipfile.ZipInfo]) -> str:
        """Return the folder inside the archive that holds data.pkl, with its slash."""
        roots = [
            member.filename.removesuffix("data.pkl")
            for member in members
            if member.filename.endswith("/data.pkl") and member.filename.count("/") == 1
        ]
        if len(roots) != 1:
            found = ", ".join(repr(member.filename) for member in members[:3]) or "nothing"
            raise CheckpointError(
                f"{self.path}: not a checkpoint that torch wrote: expected one folder with data.pkl in the archive, "
                f"found {found:.200}"
            )
        return roots[0]


def read_shape(stored: StoredTensor) -> tuple[int, ...] | None:
    """Return the shape that a pickle claims for a tensor, or None if it is not one."""
    size: Any = stored.size
    if not isinstance(size, tuple) or len(size) > _MAX_DIMENSIONS or not all(_is_count(number) for number in size):
        return None
    return size


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63
