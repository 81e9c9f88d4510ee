"""The manifest: size and SHA-256 of every file, by which a changed or incomplete bundle is noticed.

>>> check_files(bundle, read_manifest(bundle))
>>> (bundle / "ood-detector.pkl").unlink()
>>> try:
...     check_files(bundle, read_manifest(bundle))
... except ManifestMismatchError as error:
...     error.missing
('ood-detector.pkl',)
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from plantmodels.bundle.detector import MAX_PICKLE_BYTES
from plantmodels.bundle.files import MAX_JSON_BYTES, parse_json, read_bytes, write_json
from plantmodels.bundle.layout import FORMAT_VERSION, MANIFEST_FILE, SIGNATURE_FILE
from plantmodels.bundle.serialization import decode
from plantmodels.errors import BundleError, ManifestMismatchError

_SHA256 = re.compile(r"[0-9a-f]{64}")

MAX_ONNX_BYTES: Final = 2**31
"""The largest size of a protobuf message, which every ONNX file is."""

_MAX_IMAGES_BYTES: Final = 64 * 2**20
"""Above the reference images, whose 64 x 512 x 512 pixels take 48 MB without compression."""

_MAX_BYTES: Final = {
    ".json": MAX_JSON_BYTES,
    ".pkl": MAX_PICKLE_BYTES,
    ".onnx": MAX_ONNX_BYTES,
    ".webp": _MAX_IMAGES_BYTES,
}
"""The largest file that is read into memory, by the end of its name."""


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and SHA-256 (lower-case hex) of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Every file of a bundle except the manifest and its signature, by POSIX name relative to the bundle."""

    files: Mapping[str, FileDigest]

    def __post_init__(self) -> None:
        """Refuse names that could leave the folder or stand for two files.

        Raises:
            BundleError: a name is absolute, points upwards, is not normalized or differs from another one in case
                only; or a digest is malformed.
        """
        object.__setattr__(self, "files", MappingProxyType(dict(sorted(self.files.items()))))
        folded: dict[str, str] = {}
        for name, entry in self.files.items():
            _check_name(name)
            twin = folded.setdefault(name.casefold(), name)
            if twin != name:
                raise BundleError(f"{MANIFEST_FILE}: {twin!r} and {name!r} differ in case only")
            if not _SHA256.fullmatch(entry.sha256) or entry.size_bytes < 0:
                raise BundleError(f"{MANIFEST_FILE}: {name!r} needs a size and 64 lower-case hex digits, got {entry}")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with sorted names."""
        files = {name: {"size_bytes": e.size_bytes, "sha256": e.sha256} for name, e in self.files.items()}
        return {"format_version": FORMAT_VERSION, "files": files}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Manifest":
        """Return the manifest of a JSON form.

        Raises:
            BundleError: the format version is unknown, or an entry is malformed.
        """
        version = document.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise BundleError(f"{MANIFEST_FILE}: format_version {version!r}, this code reads 1 to {FORMAT_VERSION}")
        files = document.get("files")
        if not isinstance(files, dict):
            raise BundleError(f'{MANIFEST_FILE}: "files" must map names to size_bytes and sha256')
        try:
            return cls({name: decode(FileDigest, entry, f"{MANIFEST_FILE}: {name!r}") for name, entry in files.items()})
        except ValueError as error:
            raise BundleError(str(error)) from error


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable()
    if unsafe or str(path) != name or name in ("", ".", MANIFEST_FILE, SIGNATURE_FILE):
        raise BundleError(f"{MANIFEST_FILE}: {name!r} is not a plain name inside the bundle")


def digest_file(path: Path) -> FileDigest:
    """Return size and SHA-256 of a regular file, which is read in blocks.

    Raises:
        BundleError: the path is a symbolic link or not a regular file, or the file cannot be read.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path}: expected a regular file")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return FileDigest(file.tell(), sha256)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error


def list_files(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of all files in a bundle, except the manifest and its signature.

    Raises:
        BundleError: the folder does not exist, or holds a symbolic link or a special file.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle folder")
    return tuple(sorted(set(_walk(str(folder), "")) - {MANIFEST_FILE, SIGNATURE_FILE}))


def _walk(folder: str, prefix: str) -> Iterator[str]:
    """Yield the name of every file below a folder, without a system call for each of 10,000 heads."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield f"{prefix}{entry.name}"
            else:
                raise BundleError(f"{entry.path}: a bundle holds plain files and folders only")


def build_manifest(folder: Path) -> Manifest:
    """Return the digests of every file that lies in a bundle's folder now."""
    return Manifest({name: digest_file(folder / name) for name in list_files(folder)})


def write_manifest(folder: Path) -> Manifest:
    """Digest every file and write `manifest.json`. An older manifest is replaced, and its signature removed."""
    manifest = build_manifest(folder)
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    write_json(folder / MANIFEST_FILE, manifest.to_dict())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`; looks at no other file.

    Raises:
        BundleError: the manifest is missing or malformed.
    """
    return parse_manifest(folder, read_manifest_bytes(folder))


def read_manifest_bytes(folder: Path) -> bytes:
    """Return the content of `manifest.json`.

    Raises:
        BundleError: the manifest is missing or too large.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle folder")
    return read_bytes(folder / MANIFEST_FILE, MAX_JSON_BYTES)


def parse_manifest(folder: Path, content: bytes) -> Manifest:
    """Return the manifest with a given content; the folder is used only in errors.

    Raises:
        BundleError: the content is malformed.
    """
    return Manifest.from_dict(parse_json(folder / MANIFEST_FILE, content))


def check_files(
    folder: Path,
    manifest: Manifest,
    names: Iterable[str] | None = None,
    *,
    digest: Callable[[Path], FileDigest] = digest_file,
) -> None:
    """Raise unless files have the size and SHA-256 that the manifest lists.

    Args:
        folder: the bundle.
        manifest: the manifest to compare with.
        names: the files to check, which the manifest must list; None checks all files and that there are no others.
        digest: reads one file; the caller may pass a function that keeps what it read.

    Raises:
        ManifestMismatchError: names the files that are missing, changed or unexpected.
    """
    if names is None:
        wanted, present = tuple(manifest.files), set(list_files(folder))
        unexpected = present - set(manifest.files)
    else:
        wanted = tuple(names)
        present = {name for name in wanted if (folder / name).is_file()}
        unexpected = set(wanted) - set(manifest.files)
    missing, changed = [], []
    for name in wanted:
        if name not in present:
            missing.append(name)
        elif name in manifest.files and digest(folder / name) != manifest.files[name]:
            changed.append(name)
    if missing or changed or unexpected:
        raise _build_mismatch_error(folder, tuple(missing), tuple(changed), tuple(sorted(unexpected)))


def check_digests(
    folder: Path, manifest: Manifest, digests: Mapping[str, FileDigest], names: Iterable[str] | None = None
) -> None:
    """Raise unless digests that the caller has computed are those that the manifest lists.

    Args:
        folder: the bundle, used only in errors.
        manifest: the manifest to compare with.
        digests: size and SHA-256 of files by name.
        names: the files to compare; None compares all files, and checks that there are no others.

    Raises:
        ManifestMismatchError: names the files that are missing, changed or unexpected.
    """
    wanted = tuple(manifest.files) if names is None else tuple(names)
    missing = tuple(name for name in wanted if name not in digests or name not in manifest.files)
    changed = tuple(name for name in wanted if name not in missing and digests[name] != manifest.files[name])
    unexpected = tuple(sorted(set(digests) - set(manifest.files))) if names is None else ()
    if missing or changed or unexpected:
        raise _build_mismatch_error(folder, missing, changed, unexpected)


def read_checked(folder: Path, manifest: Manifest, names: Iterable[str], *, every_file: bool) -> dict[str, bytes]:
    """Read files once, and return the very bytes that were compared with the manifest.

    What is written into the folder afterwards does not reach the caller, so that no private copy is needed.

    Args:
        folder: the bundle.
        manifest: the manifest to compare with.
        names: the files to return, which the manifest must list.
        every_file: whether to check all other files of the manifest too, and that there are no others.

    Raises:
        ManifestMismatchError: names the files that are missing, changed or unexpected.
        BundleError: a file is not a regular file, or too large for its kind.
    """
    wanted = {folder / name: name for name in names}
    contents: dict[str, bytes] = {}

    def digest(path: Path) -> FileDigest:
        if path not in wanted:
            return digest_file(path)
        content = contents[wanted[path]] = read_bytes(path, _MAX_BYTES[path.suffix])
        return FileDigest(len(content), hashlib.sha256(content).hexdigest())

    check_files(folder, manifest, None if every_file else wanted.values(), digest=digest)
    return contents


def _build_mismatch_error(
    folder: Path, missing: tuple[str, ...], changed: tuple[str, ...], unexpected: tuple[str, ...]
) -> ManifestMismatchError:
    groups = {"missing": missing, "changed": changed, "not in the manifest": unexpected}
    parts = [f"{what}: {', '.join(names[:5])}{' …' * (len(names) > 5)}" for what, names in groups.items() if names]
    message = f"{folder}: the files differ from {MANIFEST_FILE} ({'; '.join(parts)})"
    return ManifestMismatchError(message, missing=missing, changed=changed, unexpected=unexpected)
