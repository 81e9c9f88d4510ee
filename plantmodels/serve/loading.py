"""Loading a bundle: the load options, and the one reading of its files from which classifiers are opened.

`PlantClassifier.load(folder, **options)` is what users call. It does three steps, which other code may call itself:

1. `LoadOptions(...)` checks the options.
2. `read_bundle(folder, ...)` reads manifest, metadata and detector once, checks every digest, and returns
   `BundleContents`.
3. `PlantClassifier.from_contents(contents, options)` opens the sessions. One `BundleContents` serves any number of
   classifiers; they share its metadata and detector and, where the caller passes `heads_session`, the packed heads.

>>> contents = read_bundle(bundle)
>>> contents.metadata.taxonomy.species[:2], contents.detector.threshold > 0
(('Pepper,_bell', 'Cherry_(including_sour)'), True)
>>> fp16 = contents.open_species_model(LoadOptions(precision="fp16", threads=1))
>>> [output.name for output in fp16.session.get_outputs()]
['species_logits', 'embedding']
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort

from plantmodels.bundle.detector import OODDetector, parse_detector
from plantmodels.bundle.layout import (
    DEFAULT_PRECISION,
    DETECTOR_FILE,
    HEADS_LIST_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    PACKED_HEADS_FILE,
    PRECISIONS,
    SPECIES_FILES,
    Precision,
)
from plantmodels.bundle.manifest import Manifest, parse_manifest, read_checked, read_manifest_bytes
from plantmodels.bundle.metadata import Metadata, read_metadata
from plantmodels.bundle.signature import check_manifest_signature
from plantmodels.errors import BundleError
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import CPU, Provider, check_providers, check_threads, open_session


@dataclass(frozen=True)
class LoadOptions:
    """How a bundle is loaded: the one place of these options and their defaults.

    Attributes:
        precision: the species model that answers, "int8" or "fp16". The detector's threshold is calibrated on "int8".
        threads: number of threads inside an operator; None uses OMP_NUM_THREADS if it is set, else one for a
            species model of up to 10 MB and all cores for a larger one.
        workers: number of images of one call that are decoded and computed at the same time; for bulk work, together
            with threads=1.
        providers: ONNX Runtime's execution providers in order of preference, each a name or a pair of a name and its
            options (see `open_session`).
        allow_paths: whether an image may be given as the path of a file. Never allow it in a service: whoever sends
            requests could then read any file that the process can read.
        public_key: file of the public key that must have signed the manifest; None accepts any bundle.
    """

    precision: Precision = DEFAULT_PRECISION
    threads: int | None = None
    workers: int = 1
    providers: Sequence[Provider] = (CPU,)
    allow_paths: bool = False
    public_key: Path | None = None

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            ValueError: names the option, what it must be and what came.
        """
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise ValueError(f"workers must be an integer of at least 1, got {self.workers!r}")
        if not isinstance(self.allow_paths, bool):
            raise ValueError(f"allow_paths must be True or False, got {self.allow_paths!r}")
        if self.public_key is not None:
            if not isinstance(self.public_key, str | os.PathLike):
                raise ValueError(f"public_key must be the path of a file or None, got {self.public_key!r}")
            object.__setattr__(self, "public_key", Path(self.public_key))
        check_threads(self.threads)
        check_providers(self.providers)

    @property
    def model_files(self) -> tuple[str, str]:
        """The ONNX files that answer: the species model of this precision and the packed heads."""
        return SPECIES_FILES[self.precision], PACKED_HEADS_FILE


@dataclass(frozen=True)
class BundleContents:
    """What was read from a bundle, once, after every digest was compared with the manifest.

    Attributes:
        folder: the bundle.
        manifest: its manifest.
        metadata: its metadata, which agrees with `disease-heads-list.json`.
        detector: its out-of-distribution detector.
        model_bytes: the checked content of the ONNX files that `read_bundle` was asked to keep, by name.
    """

    folder: Path
    manifest: Manifest
    metadata: Metadata
    detector: OODDetector
    model_bytes: Mapping[str, bytes] = field(repr=False)

    def read_model(self, name: str) -> bytes:
        """Return the checked content of one ONNX file; a file that was not kept is read and compared again.

        Raises:
            BundleError: the file is missing or differs from the manifest.
        """
        if name in self.model_bytes:
            return self.model_bytes[name]
        return read_checked(self.folder, self.manifest, [name], every_file=False)[name]

    def open_species_model(self, options: LoadOptions) -> SpeciesModel:
        """Open the species model of a precision.

        Raises:
            BundleError: the model does not open.
        """
        rows_per_run = self.metadata.rows_per_run(options.precision)
        session = self._open_session(SPECIES_FILES[options.precision], options, rows_per_run)
        return SpeciesModel(session, rows_per_run=rows_per_run, workers=options.workers)

    def open_packed_heads(self, options: LoadOptions) -> ort.InferenceSession:
        """Open the packed disease heads, which classifiers of every precision can share.

        Raises:
            BundleError: the model does not open.
        """
        return self._open_session(PACKED_HEADS_FILE, options, None)

    def _open_session(self, name: str, options: LoadOptions, rows_per_run: int | None) -> ort.InferenceSession:
        return open_session(
            self.folder / name,
            self.read_model(name),
            options=self.metadata.session_options,
            threads=options.threads,
            providers=options.providers,
            rows_per_run=rows_per_run,
        )


def read_bundle(
    folder: Path,
    *,
    models: Sequence[str] = (),
    every_file: bool = True,
    manifest: Manifest | None = None,
    public_key: Path | None = None,
) -> BundleContents:
    """Read a bundle once, after comparing its files with the manifest; opens no session.

    The bytes that were checked are the bytes that are used. If the bundle is replaced while it is read, reading
    starts again: the result is the old bundle or the new one, never a mixture.

    Args:
        folder: the bundle.
        models: names of ONNX files whose content is kept in memory, to open sessions from (`LoadOptions.model_files`).
        every_file: whether every file of the manifest must be there and is checked; False for a folder that holds
            only the files that serving needs (`serving_files`).
        manifest: the bundle's manifest, if the caller has already read and checked it.
        public_key: file of the public key that must have signed the manifest; None accepts any bundle. Not together
            with `manifest`, whose signature is the caller's business.

    Raises:
        SignatureError: the manifest is not signed by that key.
        BundleError: files differ from the manifest, or the metadata and the list of heads disagree.
        DetectorError: the detector's file is unsafe or malformed.
        ValueError: both a manifest and a public key are given.
    """
    if manifest is not None and public_key is not None:
        raise ValueError("public_key has nothing to check if the caller gives a manifest")
    names = (METADATA_FILE, HEADS_LIST_FILE, DETECTOR_FILE, *models)
    if manifest is None:
        manifest, contents = _read_whole_bundle(folder, names, every_file=every_file, public_key=public_key)
    else:
        contents = read_checked(folder, manifest, names, every_file=every_file)
    return BundleContents(
        folder=folder,
        manifest=manifest,
        metadata=read_metadata(folder, contents),
        detector=parse_detector(folder / DETECTOR_FILE, contents[DETECTOR_FILE]),
        model_bytes={name: contents[name] for name in models},
    )


def _read_whole_bundle(
    folder: Path, names: Sequence[str], *, every_file: bool, public_key: Path | None
) -> tuple[Manifest, dict[str, bytes]]:
    """Read the manifest and the named files; start again if the manifest was replaced meanwhile."""
    while True:
        identity = _identify_file(folder / MANIFEST_FILE)
        try:
            content = read_manifest_bytes(folder)
            if public_key is not None:
                check_manifest_signature(folder, content, public_key)
            manifest = parse_manifest(folder, content)
            return manifest, read_checked(folder, manifest, names, every_file=every_file)
        except (BundleError, OSError):
            if _identify_file(folder / MANIFEST_FILE) == identity:
                raise


def _identify_file(path: Path) -> tuple[int, int, int] | None:
    """Return what distinguishes a file from its replacement with the same name and content; None if it is missing."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns
