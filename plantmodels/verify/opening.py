"""Opens every ONNX file of a bundle, for all gates together.

A single disease head is opened to see whether it opens, and again when its session is asked for: 10,000 open sessions
take gigabytes. The same holds for the one files, which are as large as the whole bundle and are asked for once.

A file that does not open raises no exception here: the gate `loads` reports it, and gates that need it are not
measured.

>>> from plantmodels.serve.loading import read_bundle
>>> contents = read_bundle(bundle, models=["swin-species-int8.onnx", "disease-heads-packed.onnx"])
>>> models = open_models(contents.model_bytes, contents.metadata)
>>> sorted(models.sessions), models.errors
(['disease-heads-packed.onnx', 'swin-species-int8.onnx'], {})
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from plantmodels.bundle.files import read_bytes
from plantmodels.bundle.layout import (
    ONE_FILES,
    PACKED_HEADS_FILE,
    PRECISIONS,
    SPECIES_FILES,
    Precision,
    is_single_head,
)
from plantmodels.bundle.manifest import MAX_ONNX_BYTES
from plantmodels.bundle.metadata import Metadata
from plantmodels.data.progress import track
from plantmodels.errors import BundleError, is_out_of_memory
from plantmodels.foreign_text import quote_error
from plantmodels.report.evidence.judge import list_head_files
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.cores import count_cores
from plantmodels.serve.loading import BundleContents
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import open_session


class _Sessions(Mapping[str, ort.InferenceSession]):
    """Sessions by file name. A session that is not kept is opened anew each time that it is asked for."""

    def __init__(
        self, kept: Mapping[str, ort.InferenceSession], others: Mapping[str, Callable[[], ort.InferenceSession]]
    ) -> None:
        self._kept, self._others = kept, others

    def __getitem__(self, name: str) -> ort.InferenceSession:
        if name in self._kept:
            return self._kept[name]
        try:
            return self._others[name]()
        except BundleError as error:
            raise_if_out_of_memory(error)
            raise

    def __contains__(self, name: object) -> bool:
        return name in self._kept or name in self._others

    def __iter__(self) -> Iterator[str]:
        return iter((*self._kept, *self._others))

    def __len__(self) -> int:
        return len(self._kept) + len(self._others)

    def select(self, names: set[str]) -> "_Sessions":
        """Return those with one of these names; opens nothing."""
        kept = {name: session for name, session in self._kept.items() if name in names}
        return _Sessions(kept, {name: open_ for name, open_ in self._others.items() if name in names})


@dataclass(frozen=True)
class OpenedModels:
    """The sessions of ONNX files, each with one thread.

    Attributes:
        sessions: file name to session, for the files that open.
        errors: file name to reason, for the files that do not open.
    """

    sessions: _Sessions
    errors: Mapping[str, str]

    def get_session(self, name: str) -> ort.InferenceSession:
        """Return the session of a file.

        Raises:
            BundleError: the file is missing or does not open.
            MemoryError: memory ran out, which says nothing about the file.
        """
        if name not in self.sessions:
            raise BundleError(self.errors.get(name, f"{name}: missing"))
        return self.sessions[name]

    def select(self, names: Iterable[str]) -> "OpenedModels":
        """Return those of the models that have one of these names."""
        chosen = set(names)
        sessions = self.sessions.select(chosen)
        return OpenedModels(sessions, {name: reason for name, reason in self.errors.items() if name in chosen})


def open_models(contents: Mapping[str, bytes], metadata: Metadata) -> OpenedModels:
    """Open a session of every ONNX file, as bulk work needs it: with one thread.

    Args:
        contents: file name to content. What is opened anew is asked for again.
        metadata: the bundle's metadata; it says how many rows a run of a species model may hold.

    Raises:
        MemoryError: memory ran out, which says nothing about the files.
    """
    rows_per_run = {SPECIES_FILES[precision]: metadata.rows_per_run(precision) for precision in PRECISIONS}
    kept: dict[str, ort.InferenceSession] = {}
    others: dict[str, Callable[[], ort.InferenceSession]] = {}
    errors: dict[str, str] = {}

    def open_(name: str) -> ort.InferenceSession:
        return open_session(
            Path(name),
            contents[name],
            options=metadata.session_options,
            threads=1,
            rows_per_run=rows_per_run.get(name),
        )

    for name in track(tuple(contents), "open models", unit="file"):
        try:
            session = open_(name)
        except (BundleError, RuntimeError, ValueError) as error:
            raise_if_out_of_memory(error)
            errors[name] = quote_error(error)
            continue
        if is_single_head(name) or name in ONE_FILES.values():
            others[name] = partial(open_, name)
        else:
            kept[name] = session
    return OpenedModels(_Sessions(kept, others), errors)


def open_heads(bundle: Path, metadata: Metadata) -> OpenedModels:
    """Open the packed heads and every single head of a bundle folder whose digests were checked before.

    Raises:
        MemoryError: memory ran out, which says nothing about the files.
    """
    names = (PACKED_HEADS_FILE, *list_head_files(metadata.taxonomy))
    present = [name for name in names if (bundle / name).is_file()]
    return open_models({name: read_bytes(bundle / name, MAX_ONNX_BYTES) for name in present}, metadata)


def open_classifiers(contents: BundleContents, models: OpenedModels) -> tuple[dict[Precision, PlantClassifier], str]:
    """Return a classifier of each precision for bulk work, after trying it on batches of one and two images.

    The classifiers share the packed heads and the detector. They always have at least two workers and so run image by
    image, which gives the same bits on every machine.

    Args:
        contents: the bundle.
        models: its opened ONNX files.

    Returns:
        The classifiers, and ""; or no classifier, and the reason.

    Raises:
        MemoryError: memory ran out, which says nothing about the bundle.
    """
    metadata, side = contents.metadata, contents.metadata.preprocessing.image_size
    classifiers: dict[Precision, PlantClassifier] = {}
    for precision in PRECISIONS:
        try:
            species_model = SpeciesModel(
                models.get_session(SPECIES_FILES[precision]),
                rows_per_run=metadata.rows_per_run(precision),
                workers=max(2, count_cores()),
            )
            heads = models.get_session(PACKED_HEADS_FILE)
            classifier = PlantClassifier(metadata, contents.detector, species_model, heads, precision=precision)
            for batch in (1, 2):
                classifier.run(np.zeros((batch, 3, side, side), np.float32))
        except BundleError as error:
            raise_if_out_of_memory(error)
            return {}, f"the {precision.upper()} model cannot be run ({quote_error(error)})"
        classifiers[precision] = classifier
    return classifiers, ""


def raise_if_out_of_memory(error: Exception) -> None:
    """Raise `MemoryError` if an error only says that memory ran out, which no gate may be blamed for."""
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error
