"""`PlantClassifier`: species, out-of-distribution score and routed disease of photographs.

>>> classifier = PlantClassifier.load(Path("public/models"))  # doctest: +SKIP
>>> classifier.predict([Path("leaf.jpg").read_bytes()])[0].species  # doctest: +SKIP
'Tomato'
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from plantmodels.bundle.detector import OODDetector, parse_detector
from plantmodels.bundle.layout import (
    DETECTOR_FILE,
    DISEASE_OUTPUT,
    EMBEDDING,
    IMAGE_INPUT,
    MANIFEST_FILE,
    METADATA_FILE,
    PACKED_HEADS_FILE,
    PRECISIONS,
    SPECIES_FILES,
    SPECIES_INDEX_INPUT,
    SPECIES_OUTPUT,
    Precision,
    serving_files,
)
from plantmodels.bundle.manifest import Manifest, parse_manifest, read_checked, read_manifest_bytes
from plantmodels.bundle.metadata import Metadata, read_metadata
from plantmodels.bundle.signature import check_signature
from plantmodels.errors import BundleError, ImageError
from plantmodels.serve.preprocessing import decode_image, preprocess, read_file, upright_rgb
from plantmodels.serve.routing import ROUTINGS, DiseaseMixture, Routing, softmax
from plantmodels.serve.session import CPU, RUN_ERRORS, Provider, answering_providers, open_session, release_free_memory

CHUNK: Final = 32
"""Images held as input at once; bounds memory whatever the number of images."""

ImageLike = (
    bytes | bytearray | memoryview | str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | NDArray[np.float32]
)

_MAX_PATH: Final = 4096
"""Longer text is no path, so no file is looked for."""

OnError = Literal["row", "raise"]
ON_ERROR: Final[tuple[OnError, ...]] = get_args(OnError)


@dataclass(frozen=True)
class Candidate:
    """One of the most probable species."""

    species: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """One row of contract 4; a bad image has `error` set and everything else None.

    `ood_p_value` is the share of known plants that look as little like a plant, `OODDetector.p_values`; None for a
    detector of format 1, which holds none to compare with.

    `candidates` (the `top_k` most probable species, best first) and `embedding` ((D,) float32) are None unless
    asked for.
    """

    species: str | None = None
    species_index: int | None = None
    species_probability: float | None = None
    disease: str | None = None
    disease_probability: float | None = None
    ood_score: float | None = None
    ood_p_value: float | None = None
    rejected: bool | None = None
    error: str | None = None
    candidates: tuple[Candidate, ...] | None = None
    embedding: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Outputs:
    """What the sessions compute for N images.

    Attributes:
        species_logits: (N, S) float32.
        embedding: (N, D) float32.
        species_index: (N,) int64, the species with the highest logit.
        disease_logits: (N, max diseases) float32 of that species' head, −inf at classes that it lacks.
        ood_scores: (N,) float64.
    """

    species_logits: NDArray[np.float32]
    embedding: NDArray[np.float32]
    species_index: NDArray[np.int64]
    disease_logits: NDArray[np.float32]
    ood_scores: NDArray[np.float64]


class SpeciesModel:
    """The species ONNX model: images to species logits and embedding."""

    def __init__(self, session: ort.InferenceSession, *, rows_per_run: int | None, workers: int = 1) -> None:
        """Wraps a session.

        Args:
            session: of a species file.
            rows_per_run: images that one run may hold, from the metadata; None for any number. A model that
                quantizes activations over the whole batch (INT8) is run image by image: an answer then never
                depends on the other images of a batch, and on a CPU it is also faster.
            workers: runs at the same time. For bulk work, as many as there are cores on a session of one thread
                answer a fifth more images a second than all cores on one image, and suffer less from other
                programs; the answers are the same bits.
        """
        self.session = session
        self._rows_per_run = rows_per_run or (1 if workers > 1 else None)
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None

    def run(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Computes species logits (N, species) and embedding (N, D), float32.

        Args:
            inputs: (N, 3, S, S) float32, normalised; N at least 1.
        """
        step = self._rows_per_run or len(inputs)
        parts = [inputs[i : i + step] for i in range(0, len(inputs), step)]
        runs = list((self._pool.map if self._pool else map)(self._run_part, parts))
        return np.concatenate([run[0] for run in runs]), np.concatenate([run[1] for run in runs])

    def _run_part(self, inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self.session.run([SPECIES_OUTPUT, EMBEDDING], {IMAGE_INPUT: inputs})
        return outputs


def run_packed_heads(
    session: ort.InferenceSession, embedding: NDArray[np.float32], species_index: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Runs the packed heads once for rows of any species.

    Args:
        session: of the packed heads' file.
        embedding: (N, D) float32.
        species_index: (N,) int64, whose head answers for each row.

    Returns:
        (N, max diseases) float32, −inf at classes that a species lacks.
    """
    logits: NDArray[np.float32] = session.run(
        [DISEASE_OUTPUT], {EMBEDDING: embedding, SPECIES_INDEX_INPUT: species_index}
    )[0]
    return logits


def _read_files(
    folder: Path, manifest: Manifest | None, names: Sequence[str], *, whole: bool, public_key: Path | None
) -> dict[str, bytes]:
    """The bytes of files that are those of the manifest; begins again where that was replaced meanwhile."""
    if manifest is not None:
        return read_checked(folder, manifest, names, whole=whole)
    while True:
        identity = _identify(folder / MANIFEST_FILE)
        try:
            content = read_manifest_bytes(folder)
            if public_key is not None:
                check_signature(folder, content, public_key)
            return read_checked(folder, parse_manifest(folder, content), names, whole=whole)
        except (BundleError, OSError):
            if _identify(folder / MANIFEST_FILE) == identity:
                raise


def _identify(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from one of the same name and content that took its place; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


class PlantClassifier:
    """A loaded bundle. Sessions are safe to call from several threads."""

    def __init__(
        self,
        metadata: Metadata,
        detector: OODDetector,
        species_model: SpeciesModel,
        heads_session: ort.InferenceSession,
        *,
        precision: Precision,
        allow_paths: bool = False,
    ) -> None:
        """Takes loaded parts; `load` is the way to get them from a bundle.

        Raises:
            BundleError: parts whose names or shapes do not fit each other.
            DetectorError: a detector of embeddings of another length.
        """
        self.metadata = metadata
        self.taxonomy = metadata.taxonomy
        self.detector = detector
        self.precision = precision
        self.allow_paths = allow_paths
        self._species_model = species_model
        self._heads_session = heads_session
        self._mixture = DiseaseMixture(metadata.taxonomy)
        self._check_parts()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        precision: Precision = "int8",
        threads: int | None = None,
        workers: int = 1,
        providers: Sequence[Provider] = (CPU,),
        allow_paths: bool = False,
        whole: bool = True,
        manifest: Manifest | None = None,
        public_key: Path | None = None,
    ) -> "PlantClassifier":
        """Loads a bundle after checking every digest and the class order; only then a session opens.

        Each file is read once, and the bytes that were checked are those that are used. A bundle that is replaced
        meanwhile is read again: it is the old one that loads or the new one.

        Args:
            folder: the bundle.
            precision: which species model answers. The detector's threshold is calibrated on "int8".
            threads: threads inside an operator; None takes all cores (see `open_session`).
            workers: images embedded at the same time (see `SpeciesModel`); for bulk work, with threads=1.
            providers: execution providers in order of preference (see `open_session`).
            allow_paths: whether an image may be given as the path of a file. Whoever may ask can then learn what any
                file that this process may read shows; not for a service.
            whole: whether every file of the manifest must be there; False for a folder that holds those that this
                precision needs (`serving_files`).
            manifest: the bundle's, where the caller has read and checked it; a public key has then nothing to check.
            public_key: file of the key whose signature the manifest must bear (see `check_signature`); None for any.

        Raises:
            SignatureError: the bundle is not signed by that key.
            BundleError: files that differ from the manifest, documents that disagree, or a session that
                does not open.
            DetectorError: an unsafe or malformed detector pickle.
            ValueError: an argument of another value.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be an integer of at least 1, got {workers!r}")
        if not isinstance(allow_paths, bool):
            raise ValueError(f"allow_paths must be True or False, got {allow_paths!r}")
        if manifest is not None and public_key is not None:
            raise ValueError("public_key has nothing to check where the caller gives a manifest")
        contents = _read_files(folder, manifest, serving_files(precision), whole=whole, public_key=public_key)
        metadata = read_metadata(folder, contents)
        detector = parse_detector(folder / DETECTOR_FILE, contents.pop(DETECTOR_FILE))
        rows_per_run = metadata.rows_per_run(precision)
        sessions = [
            open_session(
                folder / name,
                contents.pop(name),
                options=metadata.session_options,
                threads=threads,
                providers=providers,
                rows_per_run=rows,
            )
            for name, rows in ((SPECIES_FILES[precision], rows_per_run), (PACKED_HEADS_FILE, None))
        ]
        release_free_memory()
        species_model = SpeciesModel(sessions[0], rows_per_run=rows_per_run, workers=workers)
        return cls(metadata, detector, species_model, sessions[1], precision=precision, allow_paths=allow_paths)

    def _check_parts(self) -> None:
        side, dim = self.metadata.preprocessing.image_size, self.metadata.embedding_dim
        species, diseases = len(self.taxonomy.species), max(1, self.taxonomy.max_diseases)
        expected = {
            SPECIES_FILES[self.precision]: (
                self._species_model.session,
                self.metadata.rows_per_run(self.precision) == 1,
                {IMAGE_INPUT: f"float (batch, 3, {side}, {side})"},
                {SPECIES_OUTPUT: f"float (batch, {species})", EMBEDDING: f"float (batch, {dim})"},
            ),
            PACKED_HEADS_FILE: (
                self._heads_session,
                False,
                {EMBEDDING: f"float (batch, {dim})", SPECIES_INDEX_INPUT: "int64 (batch)"},
                {DISEASE_OUTPUT: f"float (batch, {diseases})"},
            ),
        }
        for name, (session, one_row, inputs, outputs) in expected.items():
            found = [
                {value.name: _describe_value(value, one_row) for value in values}
                for values in (session.get_inputs(), session.get_outputs())
            ]
            if found != [inputs, outputs]:
                raise BundleError(f"{name}: inputs and outputs are {found}, not {[inputs, outputs]}")
        self.detector.check_length(dim)
        self._check_heads()

    def _check_heads(self) -> None:
        """Asks the packed heads how many classes each species has: finite logits, the rest of the row being −inf.

        A disease list of another length would give names to the wrong logits.
        """
        for start in range(0, len(self.taxonomy.species), CHUNK):
            indices = np.arange(start, min(start + CHUNK, len(self.taxonomy.species)), dtype=np.int64)
            embedding = np.zeros((len(indices), self.metadata.embedding_dim), np.float32)
            finite = np.isfinite(self.disease_logits(embedding, indices))
            for index, row in zip(indices.tolist(), finite, strict=True):
                names = self.taxonomy.diseases_of(index)
                if not np.array_equal(row, np.arange(len(row)) < len(names)):
                    raise BundleError(
                        f"{PACKED_HEADS_FILE}: {int(row.sum())} classes of species {self.taxonomy.species[index]!r}, "
                        f"{METADATA_FILE} names {len(names)}"
                    )

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that run the species model, in order of preference (`answering_providers`)."""
        return answering_providers(self._species_model.session)

    def embed(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Runs the species model alone: `SpeciesModel.run`.

        Raises:
            BundleError: the model fails, or answers in another shape than it declares.
        """
        file = SPECIES_FILES[self.precision]
        with _naming(file):
            logits, embedding = self._species_model.run(inputs)
        _check_shape(file, SPECIES_OUTPUT, logits, len(inputs), len(self.taxonomy.species))
        _check_shape(file, EMBEDDING, embedding, len(inputs), self.metadata.embedding_dim)
        return logits, embedding

    def disease_logits(self, embedding: NDArray[np.float32], species_index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Runs the packed heads: `run_packed_heads`.

        Raises:
            BundleError: the model fails, or answers in another shape than it declares.
        """
        with _naming(PACKED_HEADS_FILE):
            logits = run_packed_heads(self._heads_session, embedding, species_index)
        _check_shape(PACKED_HEADS_FILE, DISEASE_OUTPUT, logits, len(embedding), max(1, self.taxonomy.max_diseases))
        return logits

    def run(self, inputs: NDArray[np.float32]) -> Outputs:
        """Computes everything for normalised inputs, hard routing: the head of the top species answers.

        Args:
            inputs: (N, 3, S, S) float32, normalised; N at least 1.

        Raises:
            BundleError: a model that fails, or answers in another shape than it declares.
            ValueError: another shape or dtype.
        """
        side = self.metadata.preprocessing.image_size
        if inputs.dtype != np.float32 or inputs.shape[1:] != (3, side, side) or not len(inputs):
            raise ValueError(f"inputs must be (N ≥ 1, 3, {side}, {side}) float32, got {inputs.shape} {inputs.dtype}")
        species_logits, embedding = self.embed(inputs)
        species_index = species_logits.argmax(axis=1).astype(np.int64)
        disease_logits = self.disease_logits(embedding, species_index)
        return Outputs(species_logits, embedding, species_index, disease_logits, self.detector.score(embedding))

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        top_k: int = 0,
        routing: Routing = "hard",
        return_embedding: bool = False,
        on_error: OnError = "row",
    ) -> list[Prediction]:
        """Classifies images; a bad one never fails its neighbours unless that is asked for.

        Args:
            images: encoded bytes or their base64 text, Pillow images, (H, W, 3) uint8 or normalised
                (3, S, S) float32 arrays, and paths where they are allowed, in any mix. Read in chunks: an iterator
                of any length needs bounded memory. A Pillow image that was not read yet stays decoded afterwards.
            top_k: how many of the most probable species to add as candidates; 0 for none.
            routing: "hard": the head of the top species names the disease; "soft": the disease of the highest
                probability over all species (`DiseaseMixture`), whichever species it belongs to.
            return_embedding: whether to add the embedding.
            on_error: "row" gives a bad image a row with `error`, "raise" raises at the first.

        Returns:
            One prediction an image, in order.

        Raises:
            BundleError: a model that fails, or answers in another shape than it declares.
            ImageError: a bad image, with on_error="raise".
            ValueError: an option of another value.
        """
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if routing not in ROUTINGS:
            raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, got {routing!r}")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
            raise ValueError(f"top_k must be an integer of at least 0, got {top_k!r}")
        rows: list[Prediction] = []
        iterator = iter(images)
        while chunk := list(islice(iterator, CHUNK)):
            rows.extend(self._predict_chunk(chunk, len(rows), top_k, routing, return_embedding, on_error))
        return rows

    def _predict_chunk(
        self,
        images: Sequence[ImageLike],
        offset: int,
        top_k: int,
        routing: Routing,
        return_embedding: bool,
        on_error: OnError,
    ) -> Iterator[Prediction]:
        pixels: list[NDArray[np.float32]] = []
        errors: dict[int, str] = {}
        for position, image in enumerate(images):
            try:
                pixels.append(self._to_input(image))
            except ImageError as error:
                if on_error == "raise":
                    raise ImageError(f"image {offset + position}: {error}") from error
                errors[position] = str(error)
        outputs = self.run(np.stack(pixels)) if pixels else None
        predictions = iter(() if outputs is None else self._describe(outputs, top_k, routing, return_embedding))
        for position in range(len(images)):
            yield Prediction(error=errors[position]) if position in errors else next(predictions)

    def _to_input(self, image: ImageLike) -> NDArray[np.float32]:
        preprocessing = self.metadata.preprocessing
        if isinstance(image, os.PathLike) and not self.allow_paths:
            raise ImageError(f"file paths are not read: {os.fspath(image)[:200]!r}")
        if isinstance(image, os.PathLike) or (self.allow_paths and isinstance(image, str) and _names_file(image)):
            image = read_file(image)
        if isinstance(image, bytes | bytearray | memoryview | str):
            return preprocess(decode_image(image if isinstance(image, str) else bytes(image)), preprocessing)
        if isinstance(image, Image.Image):
            return preprocess(upright_rgb(image), preprocessing)
        if not isinstance(image, np.ndarray):
            raise ImageError(
                f"expected encoded bytes, base64 text, a Pillow image or an array, got {type(image).__name__}"
            )
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return preprocess(upright_rgb(Image.fromarray(image)), preprocessing)
        side = preprocessing.image_size
        if image.dtype != np.float32 or image.shape != (3, side, side):
            raise ImageError(
                f"an array must be (H, W, 3) uint8 or (3, {side}, {side}) float32, got {image.shape} {image.dtype}"
            )
        if not np.isfinite(image).all():
            raise ImageError("the float32 input holds NaN or infinity")
        return image.astype(np.float32, copy=False)

    def _describe(self, outputs: Outputs, top_k: int, routing: Routing, return_embedding: bool) -> Iterator[Prediction]:
        species_probability = softmax(outputs.species_logits, self.metadata.species_temperature)
        rejected = self.detector.rejects(outputs.ood_scores)
        p_values = self.detector.p_values(outputs.ood_scores)
        diseases = self._route(outputs, routing)
        for row, index in enumerate(outputs.species_index.tolist()):
            disease, disease_probability = diseases[row]
            yield Prediction(
                species=self.taxonomy.species[index],
                species_index=index,
                species_probability=float(species_probability[row, index]),
                disease=disease,
                disease_probability=disease_probability,
                ood_score=float(outputs.ood_scores[row]),
                ood_p_value=None if p_values is None else float(p_values[row]),
                rejected=bool(rejected[row]),
                candidates=self._candidates(outputs.species_logits[row], species_probability[row], top_k)
                if top_k
                else None,
                embedding=outputs.embedding[row] if return_embedding else None,
            )

    def route_soft(
        self, species_logits: NDArray[np.float32], embedding: NDArray[np.float32]
    ) -> list[tuple[str | None, float | None]]:
        """Soft routing: the disease of each image and its probability; None where no head can answer."""
        return self._mixture.answer(
            species_logits,
            embedding,
            self.disease_logits,
            species_temperature=self.metadata.species_temperature,
            disease_temperature=self.metadata.disease_temperature,
        )

    def _route(self, outputs: Outputs, routing: Routing) -> list[tuple[str | None, float | None]]:
        """The disease of each image and its probability; None where no head can answer."""
        if routing == "soft":
            return self.route_soft(outputs.species_logits, outputs.embedding)
        found: list[tuple[str | None, float | None]] = []
        for index, logits in zip(outputs.species_index.tolist(), outputs.disease_logits, strict=True):
            names = self.taxonomy.diseases_of(index)
            probabilities = softmax(logits[: len(names)], self.metadata.disease_temperature) if names else None
            found.append(
                (None, None)
                if probabilities is None
                else (names[int(logits[: len(names)].argmax())], float(probabilities.max()))
            )
        return found

    def _candidates(
        self, logits: NDArray[np.float32], probabilities: NDArray[np.float64], top_k: int
    ) -> tuple[Candidate, ...]:
        best = np.argsort(-logits, kind="stable")[:top_k]
        return tuple(Candidate(self.taxonomy.species[i], float(probabilities[i])) for i in best)


def _names_file(text: str) -> bool:
    try:
        return len(text) <= _MAX_PATH and Path(text).is_file()
    except (OSError, ValueError):  # too long a name, a null character
        return False


def _describe_value(value: ort.NodeArg, one_row: bool) -> str:
    """Element type and shape of a model's input or output, as "float (batch, 32)"; one row is a batch too."""
    sizes = [str(size) for size in value.shape]
    if sizes and (not isinstance(value.shape[0], int) or (one_row and value.shape[0] == 1)):
        sizes[0] = "batch"
    return f"{value.type.removeprefix('tensor(').removesuffix(')')} ({', '.join(sizes)})"


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Makes what ONNX Runtime raises while a model runs an error of ours that names its file."""
    try:
        yield
    except RUN_ERRORS as error:
        raise BundleError(f"{file}: does not run ({' '.join(str(error).split())[:300]})") from error


def _check_shape(file: str, output: str, values: NDArray[np.float32], *shape: int) -> None:
    """ONNX Runtime takes on trust a declared shape that it cannot infer."""
    if values.shape != shape:
        raise BundleError(f"{file}: {output} has shape {values.shape}, not {shape} as it declares")
