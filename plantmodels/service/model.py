"""The model that a service serves: opened in a thread, tried again until it opens, and followed from then on.

This package opens a folder itself. An address such as `models:/plant-disease@production` is opened by the installed
package that has an entry point for its scheme, so this package needs no MLflow.

>>> with ServedModel(bundle_opener(str(bundle), threads=1), retry_s=1) as served:
...     served.wait(60).classifier.taxonomy.species[0]
'Pepper,_bell'
"""

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from plantmodels.bundle.layout import MANIFEST_FILE
from plantmodels.bundle.manifest import digest_file
from plantmodels.errors import ServiceError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.prediction import PREDICTION_CONTRACT

_LOGGER: Final = logging.getLogger(__name__)

ENTRY_POINTS: Final = "plantmodels.handles"
"""The group of entry points. The name of each is the scheme of an address. Its value is a callable
`open(address, *, interval_s, **load_options) -> Handle`."""

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")

_LONGEST_PAUSE_S: Final = 60.0
"""Longest pause between two attempts to open the model."""


class Version(Protocol):
    """One version of a model, ready to answer."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def version(self) -> str:
        """The version's number, or a digest."""

    @property
    def contract(self) -> int:
        """The version of contract 4 by which the version answers."""

    @property
    def classifier(self) -> PlantClassifier:
        """The loaded classifier."""


class Handle(Protocol):
    """Follows an address: `current` changes when the address means another version."""

    failure: Exception | None

    @property
    def current(self) -> Version:
        """The version that answers now."""

    def close(self) -> None:
        """Stop following."""


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle in a folder as a `Version`: its version is the beginning of its manifest's digest."""

    name: str
    version: str
    classifier: PlantClassifier
    contract: int = PREDICTION_CONTRACT


class BundleHandle:
    """A `Handle` of a bundle's folder, which is read once."""

    failure: Exception | None = None

    def __init__(self, folder: Path, **options: Any) -> None:
        """Load the bundle.

        Raises:
            PlantModelsError: the bundle does not load.
        """
        version = digest_file(folder / MANIFEST_FILE).sha256[:12]
        self.current = LoadedBundle(str(folder), version, PlantClassifier.load(folder, **options))

    def close(self) -> None:
        """Do nothing: a folder is not followed."""


def bundle_opener(folder: str, **options: Any) -> Callable[[], Handle]:
    """Return what opens the bundle of a folder."""
    return partial(BundleHandle, Path(folder), **options)


def find_opener(model: str, *, interval_s: float, **options: Any) -> Callable[[], Handle]:
    """Return what opens a model.

    Args:
        model: folder of a bundle, or an address with a scheme.
        interval_s: seconds between two looks at where an address points.
        options: the fields of `LoadOptions`.

    Raises:
        ServiceError: the folder does not exist, or no installed package opens addresses of this scheme.
    """
    if Path(model).is_dir():
        return bundle_opener(model, **options)
    if not (scheme := _SCHEME.match(model)):
        raise ServiceError(f"{model}: no such folder; expected a bundle or an address such as models:/NAME@ALIAS")
    found = list(entry_points(group=ENTRY_POINTS, name=scheme[1]))
    if not found:
        known = sorted(entry_points(group=ENTRY_POINTS).names)
        raise ServiceError(
            f"{model}: nothing that is installed opens addresses that begin with {scheme[0]!r} "
            f"(known: {', '.join(known) or 'none'})"
        )
    return partial(found[0].load(), model, interval_s=interval_s, **options)


class ServedModel:
    """Opens a handle in a thread of its own, and tries again, at growing intervals, until it opens."""

    def __init__(self, open_handle: Callable[[], Handle], *, retry_s: float) -> None:
        """Remember what opens the model. Nothing is opened before `start`.

        Args:
            open_handle: opens the model, or raises.
            retry_s: seconds before the second attempt.
        """
        self._open = open_handle
        self._retry_s = retry_s
        self._handle: Handle | None = None
        self._failure: Exception | None = None
        self._opened = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._open_again_and_again, name="open the model", daemon=True)

    @property
    def current(self) -> Version | None:
        """The version that answers now; None until one was opened."""
        return None if self._handle is None else self._handle.current

    @property
    def failure(self) -> Exception | None:
        """Why no version could be opened yet, or why the latest look for another version failed."""
        return self._failure if self._handle is None else self._handle.failure

    def start(self) -> None:
        """Begin to open the model."""
        self._thread.start()

    def wait(self, timeout_s: float) -> Version:
        """Return the first version that was opened.

        Raises:
            TimeoutError: none was opened in this time.
        """
        self._opened.wait(timeout_s)
        if (version := self.current) is None:
            raise TimeoutError(f"no version was opened in {timeout_s} s: {self.failure}")
        return version

    def close(self) -> None:
        """Stop opening and following; the current version goes on answering."""
        self._closed.set()
        if self._handle is not None:
            self._handle.close()

    def __enter__(self) -> "ServedModel":
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _open_again_and_again(self) -> None:
        pause_s = self._retry_s
        while not self._closed.is_set():
            try:
                handle = self._open()
            except Exception as error:  # no error may end the service
                if str(error) != str(self._failure):
                    _LOGGER.error("no version to serve yet: %s", quote_error(error))
                self._failure = error
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._handle = handle
                self._opened.set()
                _LOGGER.info("%s version %s answers", handle.current.name, handle.current.version)
                if self._closed.is_set():
                    handle.close()
                return
