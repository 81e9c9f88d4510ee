"""Hot reload for services: always the version that an alias names, never a request without a model.

>>> with ModelHandle("models:/plant-disease@production") as handle:  # doctest: +SKIP
...     handle.predict([jpeg])[0].species
'Tomato'
"""

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy as np

from mlflow_plugins.loading.native import load_version
from plantmodels.errors import BundleError
from plantmodels.serve.classifier import PlantClassifier, Prediction
from plantmodels.serve.image_input import ImageLike
from plantmodels.serve.loading import LoadOptions

_LOGGER: Final = logging.getLogger(__name__)

_LONGEST_PAUSE_S: Final = 600.0
_CLOSING_S: Final = 5.0
PROBE: Final = np.full((64, 64, 3), 128, dtype=np.uint8)
"""A grey image, which every version that is to serve must answer."""


def _resolve_models_uri(uri: str) -> tuple[str, str]:
    from mlflow_plugins._mlflow_compat import resolve_models_uri  # MLflow takes a second to import

    return resolve_models_uri(uri)


@dataclass(frozen=True)
class LoadedVersion:
    """A registered model's version and its classifier."""

    name: str
    version: str
    classifier: PlantClassifier


class ModelHandle:
    """Serves what a URI names now, and follows it.

    A thread asks the registry again and again. A version that the alias was moved to is loaded beside the old one,
    has its digests checked, answers a grey image, and only then takes over: a request that has begun ends on the
    version that it began with. A version that fails, or a registry that does not answer, changes nothing: the old
    one goes on, `failure` says why, and the pause before the next try doubles each time up to ten minutes. Both
    versions are in memory at the same time for as long as the swap takes.
    """

    def __init__(self, model_uri: str, *, interval_s: float = 30.0, **options: Any) -> None:
        """Loads the version that the URI names now.

        Args:
            model_uri: such as "models:/plant-disease@production" or "models:/plant-disease/Production".
            interval_s: seconds between two looks at the registry; 0 for none, then only `refresh` looks.
            options: the fields of `LoadOptions`: precision, threads, workers, providers, allow_paths, public_key.

        Raises:
            PlantModelsError: the version does not load.
            MlflowException: there is none.
            ValueError: a negative interval, or an option that `LoadOptions` refuses.
        """
        if interval_s < 0:
            raise ValueError(f"interval_s must be at least 0, got {interval_s!r}")
        self.model_uri = model_uri
        self.failure: Exception | None = None
        self._options = LoadOptions(**options)
        self._interval_s = interval_s
        self._refreshing = threading.Lock()
        self._closed = threading.Event()
        self._current = self._load(*_resolve_models_uri(model_uri))
        self._thread: threading.Thread | None = None
        if interval_s:
            self._thread = threading.Thread(target=self._watch, name=f"watch {model_uri}", daemon=True)
            self._thread.start()

    @property
    def current(self) -> LoadedVersion:
        """The version that answers now; keep it for the length of a request that asks more than once."""
        return self._current

    def predict(self, images: Iterable[ImageLike], **options: Any) -> list[Prediction]:
        """`PlantClassifier.predict` of the version that answers when the request begins."""
        return self._current.classifier.predict(images, **options)

    def refresh(self) -> bool:
        """Looks at the registry now; whether another version took over.

        Raises:
            PlantModelsError: the version that the URI names now does not load; the old one goes on.
            MlflowException: the registry does not answer, or names none; likewise.
        """
        with self._refreshing:
            name, version = _resolve_models_uri(self.model_uri)
            if (name, version) == (self._current.name, self._current.version):
                return False
            before, self._current = self._current.version, self._load(name, version)
        _LOGGER.info("%s: version %s answers now, not %s any more", self.model_uri, version, before)
        return True

    def close(self) -> None:
        """Ends the watching; the version that answers stays."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def __enter__(self) -> "ModelHandle":
        """The handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def _load(self, name: str, version: str) -> LoadedVersion:
        classifier = load_version(f"models:/{name}/{version}", self._options)
        (row,) = classifier.predict([PROBE], on_error="raise")
        if not np.isfinite(np.array([row.ood_score, row.species_probability], dtype=np.float64)).all():
            raise BundleError(f"models:/{name}/{version}: answers a grey image with {row}")
        return LoadedVersion(name, version, classifier)

    def _watch(self) -> None:
        pause_s = self._interval_s
        while not self._closed.wait(pause_s):
            try:
                self.refresh()
            except Exception as error:  # whatever it is, the service goes on
                pause_s = min(2 * pause_s, max(_LONGEST_PAUSE_S, self._interval_s))
                if str(error) != str(self.failure):
                    _LOGGER.error("%s: version %s goes on: %s", self.model_uri, self._current.version, error)
                self.failure = error
            else:
                pause_s, self.failure = self._interval_s, None
