"""Hot reload for services: `ModelHandle` always serves the version that an alias names.

Use it as `with ModelHandle("models:/plant-disease@production") as handle: handle.predict([jpeg])`.
"""

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy as np

from mlflow_plugins.loading.native import load_with_contract
from plantmodels.errors import BundleError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.image_input import ImageLike
from plantmodels.serve.loading import LoadOptions
from plantmodels.serve.prediction import Prediction

_LOGGER: Final = logging.getLogger(__name__)

_LONGEST_PAUSE_S: Final = 600.0
_CLOSING_S: Final = 5.0
_GREY_IMAGE: Final = np.full((64, 64, 3), 128, dtype=np.uint8)


def _resolve_models_uri(uri: str) -> tuple[str, str]:
    from mlflow_plugins.loading.addresses import resolve_models_uri  # MLflow takes a second to import

    return resolve_models_uri(uri)


@dataclass(frozen=True)
class LoadedVersion:
    """A registered model's version and its classifier.

    Attributes:
        name: the registered model's name.
        version: the version's number, as text.
        classifier: the loaded classifier.
        contract: the version of contract 4 that its MLmodel records; `classifier` itself answers by the newest.
    """

    name: str
    version: str
    classifier: PlantClassifier
    contract: int


def ask_about_grey_image(classifier: PlantClassifier, name: str) -> Prediction:
    """Return a classifier's answer to a grey image, which every version must give before it serves.

    Args:
        classifier: the loaded classifier.
        name: what the error calls it.

    Raises:
        BundleError: a number of the answer is missing or not finite.
    """
    (answer,) = classifier.predict([_GREY_IMAGE], on_error="raise")
    numbers = {"species_probability": answer.species_probability, "ood_score": answer.ood_score}
    for field, value in numbers.items():
        if value is None or not np.isfinite(value):
            raise BundleError(f"{name}: answers a grey image with {field} {value}; expected a finite number")
    return answer


class ModelHandle:
    """A classifier that follows an alias: when the alias moves, the new version takes over without a pause.

    A thread asks the registry at regular intervals. When the alias names another version, this version is loaded beside
    the current one, its digests are checked, and it must answer a grey image. Only then does it take over. A request
    ends on the version with which it began. For the time of the change, both versions are in memory.

    If the new version fails or the registry does not answer, the current version stays, `failure` holds the error, and
    the pause before the next attempt doubles each time, up to ten minutes.

    Attributes:
        model_uri: the address that is followed.
        failure: the error of the last look at the registry; None if it succeeded.
    """

    def __init__(self, model_uri: str, *, interval_s: float = 30.0, **options: Any) -> None:
        """Load the version that the address names now, and start to follow it.

        Args:
            model_uri: an address such as "models:/plant-disease@production" or "models:/plant-disease/Production".
            interval_s: seconds between two looks at the registry; 0 starts no thread, and only `refresh` looks.
            options: the fields of `LoadOptions`: precision, threads, workers, providers, allow_paths, public_key.

        Raises:
            PlantModelsError: the version does not load.
            MlflowException: the address names no version, or the registry does not answer.
            ValueError: the interval is negative, or `LoadOptions` refuses an option.
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
        """The version that answers now. A request that predicts more than once should keep it until its end."""
        return self._current

    def predict(self, images: Iterable[ImageLike], **options: Any) -> list[Prediction]:
        """Classify images with the current version, as `PlantClassifier.predict` does."""
        return self._current.classifier.predict(images, **options)

    def refresh(self) -> bool:
        """Look at the registry now, and return whether another version took over.

        After any error, the current version stays.

        Raises:
            PlantModelsError: the version that the address names does not load.
            MlflowException: the address names no version, or the registry does not answer.
        """
        with self._refreshing:
            name, version = _resolve_models_uri(self.model_uri)
            if (name, version) == (self._current.name, self._current.version):
                return False
            before, self._current = self._current.version, self._load(name, version)
        _LOGGER.info("%s: version %s has replaced version %s", self.model_uri, version, before)
        return True

    def close(self) -> None:
        """Stop following the alias; the current version goes on answering."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def __enter__(self) -> "ModelHandle":
        """Return the handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the handle."""
        self.close()

    def _load(self, name: str, version: str) -> LoadedVersion:
        classifier, contract = load_with_contract(f"models:/{name}/{version}", self._options)
        ask_about_grey_image(classifier, f"models:/{name}/{version}")
        return LoadedVersion(name, version, classifier, contract)

    def _watch(self) -> None:
        pause_s = self._interval_s
        while not self._closed.wait(pause_s):
            try:
                self.refresh()
            except Exception as error:  # no error may end the service
                pause_s = min(2 * pause_s, max(_LONGEST_PAUSE_S, self._interval_s))
                if str(error) != str(self.failure):
                    _LOGGER.error("%s: version %s stays: %s", self.model_uri, self._current.version, error)
                self.failure = error
            else:
                pause_s, self.failure = self._interval_s, None
