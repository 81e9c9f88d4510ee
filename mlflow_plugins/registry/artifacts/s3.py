"""The files of a model in a bucket: one list request for all, parallel downloads, and no download of what is known.

A digest is remembered under the object's key, size, ETag and time of change. An ETag alone would not do: it is often an
MD5, of which somebody can prepare two files with the same value. The time is set by the server; an object that is
younger than two seconds is not remembered, because it could change again within the same second.
"""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Final

from mlflow_plugins._mlflow_compat import S3Folder
from mlflow_plugins.registry.artifacts.local import NO_FOLDER
from mlflow_plugins.registry.artifacts.other import MAX_FILES, check_child
from plantmodels.bundle.manifest import FileDigest
from plantmodels.errors import BundleError

_WORKERS: Final = 10
"""Downloads at a time; boto3's client keeps so many connections."""

_BLOCK_BYTES: Final = 2**20
_SETTLED: Final = timedelta(seconds=2)
"""Age from which on an object's time of change, which has whole seconds, tells two states apart."""

_MAX_KNOWN: Final = 100_000
"""Entries, about 40 MB; then the memory starts anew."""


@dataclass(frozen=True)
class _Object:
    """One state of one object."""

    endpoint: str
    bucket: str
    key: str
    size_bytes: int
    etag: str
    changed_at: datetime


_known: dict[_Object, FileDigest] = {}
_known_lock = threading.Lock()


class S3Files:
    """The files of a model below a prefix of a bucket."""

    def __init__(self, folder: S3Folder) -> None:
        """Take the folder in the bucket."""
        self._folder = folder

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of every file by its name; see `ModelFiles`."""
        return {name: entry.size_bytes for name, entry in self._objects.items()}

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file; see `ModelFiles`."""
        answer = self._get(name)
        content: bytes = answer["Body"].read(max_bytes + 1)
        if len(content) > max_bytes:
            raise BundleError(f"{name}: {answer['ContentLength']:,} bytes, at most {max_bytes:,} are read")
        return content

    def digest(self, names: Iterable[str]) -> dict[str, FileDigest]:
        """Return size and SHA-256 of files; those whose objects have not changed are not downloaded again."""
        wanted = set(names)
        known = {name: digest for name in wanted if (digest := _known.get(self._objects[name])) is not None}
        new = sorted(wanted - set(known))
        with ThreadPoolExecutor(_WORKERS) as workers:
            return known | dict(zip(new, workers.map(self._digest_one, new), strict=True))

    @cached_property
    def _objects(self) -> dict[str, _Object]:
        folder, found = self._folder, dict[str, _Object]()
        pages = folder.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=folder.bucket, Prefix=folder.prefix, **folder.arguments):
            for entry in page.get("Contents", ()):
                key, size = entry["Key"], entry["Size"]
                if key.endswith("/") and size == 0:  # a console marks a folder in this way
                    continue
                name = key.removeprefix(folder.prefix)
                _check_name(name)
                found[name] = self._describe(key, size, entry["ETag"], entry["LastModified"])
            if len(found) > MAX_FILES:
                raise BundleError(f"more than {MAX_FILES:,} files")
        if not found:
            raise BundleError(NO_FOLDER)
        return found

    def _describe(self, key: str, size: int, etag: str, changed_at: datetime) -> _Object:
        endpoint = self._folder.client.meta.endpoint_url
        return _Object(
            endpoint, self._folder.bucket, key, size, etag, changed_at.astimezone(UTC).replace(microsecond=0)
        )

    def _get(self, name: str) -> Any:
        folder = self._folder
        try:
            return folder.client.get_object(Bucket=folder.bucket, Key=folder.prefix + name, **folder.arguments)
        except folder.client.exceptions.NoSuchKey as error:
            raise FileNotFoundError(name) from error

    def _digest_one(self, name: str) -> FileDigest:
        answer = self._get(name)
        sha256, size = hashlib.sha256(), 0
        for block in answer["Body"].iter_chunks(_BLOCK_BYTES):
            sha256.update(block)
            size += len(block)
        digest = FileDigest(size, sha256.hexdigest())
        self._remember(name, answer, digest)
        return digest

    def _remember(self, name: str, answer: Any, digest: FileDigest) -> None:
        """Remember a digest unless its object may change again without a visible difference."""
        changed_at = answer["LastModified"]
        answered_at = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        if answered_at - changed_at < _SETTLED:
            return
        entry = self._describe(self._folder.prefix + name, digest.size_bytes, answer["ETag"], changed_at)
        with _known_lock:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[entry] = digest


def _check_name(name: str) -> None:
    folder = ""
    for part in name.split("/"):
        folder = check_child(folder, f"{folder}/{part}")
