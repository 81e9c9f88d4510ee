"""Reference answers: what a bundle answered to a few images when it was verified, and how far it is from that now.

The images lie in the bundle as the network reads them: resized, cropped and without loss. So whoever has the bundle can
measure another release of ONNX Runtime, or another processor, without the data set.

>>> from plantmodels.serve.loading import read_bundle
>>> reference, pixels = read_reference(read_bundle(bundle))
>>> reference.compare(PlantClassifier.load(bundle, threads=1), pixels)
Difference(labels=0, rejections=0, probability=0.0, ood_score=0.0)
"""

import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from plantmodels.arrays import Pixels
from plantmodels.bundle.files import parse_json, write_bytes, write_json
from plantmodels.bundle.layout import REFERENCE_ANSWERS_FILE, REFERENCE_IMAGES_FILE
from plantmodels.bundle.manifest import read_checked
from plantmodels.bundle.serialization import decode, encode, replace_non_finite
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.cores import count_cores
from plantmodels.serve.loading import BundleContents
from plantmodels.serve.prediction import Outputs
from plantmodels.serve.preprocessing import PILLOW_ERRORS, normalize
from plantmodels.serve.routing import softmax
from plantmodels.serve.session import count_threads

FORMAT_VERSION: Final = 1
"""Version of both files, which `reference-answers.json` records. Reading refuses any other."""

MAX_IMAGES: Final = 64
"""Enough to see a release that changes one label in fifty, and small: 3.8 MB for images of 224 pixels."""

_MAX_PIXELS: Final = MAX_IMAGES * 512**2
"""Pixels of all images together. Networks that read larger images than 512 x 512 get fewer of them."""

_COLUMNS: Final = 8
"""Images beside each other in the file of images."""


@dataclass(frozen=True)
class Answer:
    """The answer of one precision to one image, under the names of the one file's outputs.

    Numbers that are not finite are None. If the species has no head, `disease_index` is −1 and `disease_probability` is
    None.
    """

    species_index: int
    species_probability: float | None
    disease_index: int
    disease_probability: float | None
    ood_score: float | None
    rejected: bool


@dataclass(frozen=True)
class ReferenceImage:
    """One image and its answers.

    Attributes:
        set: set of the image, as in `gate-images.csv`.
        sha256: digest of the file that it was made from, as in `gate-images.csv`.
        int8: the answer of the INT8 model.
        fp16: the answer of the FP16 model.
    """

    set: Literal["val", "non-plants"]
    sha256: str
    int8: Answer
    fp16: Answer


@dataclass(frozen=True)
class Difference:
    """How far the answers of one precision are from the reference answers.

    Attributes:
        labels: number of images with another species or disease.
        rejections: number of images whose rejection changed.
        probability: largest difference of a probability, of species or of species and disease. Both probabilities are
            those of the classes that the reference answer names.
        ood_score: largest difference of an out-of-distribution score.
    """

    labels: int
    rejections: int
    probability: float
    ood_score: float


@dataclass(frozen=True)
class Reference:
    """The reference answers of a bundle.

    Attributes:
        onnxruntime: version of ONNX Runtime that gave them.
        cpu: name of the processor that gave them; "" if the system does not name it.
        images: the N images in the order of their pixels.
    """

    onnxruntime: str
    cpu: str
    images: tuple[ReferenceImage, ...]

    def compare(
        self, classifier: PlantClassifier, pixels: Pixels, advance: Callable[[], object] = lambda: None
    ) -> Difference:
        """Run a classifier over the images, and return how far it is from the reference answers of its precision.

        Args:
            classifier: the bundle, opened in the way that is to be measured.
            pixels: (N, P, P, 3) uint8, the images of `read_reference`.
            advance: called after each image.

        Raises:
            BundleError: a model fails.
        """
        labels = rejections = 0
        probability = ood_score = 0.0
        for image, outputs in zip(self.images, _run_each(classifier, pixels, advance), strict=True):
            old = image.int8 if classifier.precision == "int8" else image.fp16
            new = _read_answer(classifier, outputs)
            labels += (old.species_index, old.disease_index) != (new.species_index, new.disease_index)
            rejections += old.rejected != new.rejected
            species, disease = _compute_probabilities(classifier, outputs, old.species_index, old.disease_index)
            probability = max(
                probability,
                _measure_difference(old.species_probability, species),
                _measure_difference(old.disease_probability, disease),
            )
            ood_score = max(ood_score, _measure_difference(old.ood_score, new.ood_score))
        return Difference(labels, rejections, probability, ood_score)


def count_images(side: int) -> int:
    """Return how many images a bundle keeps, by the side of the network's input in pixels.

    >>> count_images(224), count_images(1024)
    (64, 16)
    """
    return min(MAX_IMAGES, max(1, _MAX_PIXELS // side**2))


def answer_images(
    classifier: PlantClassifier, pixels: Pixels, advance: Callable[[], object] = lambda: None
) -> list[Answer]:
    """Return the answers to N images, each computed on its own, so that they do not depend on batches.

    Args:
        classifier: the bundle.
        pixels: (N, P, P, 3) uint8, resized and cropped.
        advance: called after each image.

    Raises:
        BundleError: a model fails.
    """
    return [_read_answer(classifier, outputs) for outputs in _run_each(classifier, pixels, advance)]


def _run_each(classifier: PlantClassifier, pixels: Pixels, advance: Callable[[], object]) -> Iterator[Outputs]:
    """Yield the outputs for each image, computed on its own; if the model has one thread, each core takes an image."""

    def run(image: Pixels) -> Outputs:
        return classifier.run(normalize(image, classifier.metadata.preprocessing)[None])

    at_once = count_cores() if count_threads(classifier.species_model.session) == 1 else 1
    with ThreadPoolExecutor(at_once) as pool:
        for outputs in pool.map(run, pixels):
            yield outputs
            advance()


def _read_answer(classifier: PlantClassifier, outputs: Outputs) -> Answer:
    """Return the answer in the outputs for one image."""
    species = int(outputs.species_index[0])
    diseases = len(classifier.taxonomy.diseases_of(species))
    disease = int(outputs.disease_logits[0, :diseases].argmax()) if diseases else -1
    chance, joint = _compute_probabilities(classifier, outputs, species, disease)
    (rejected,) = classifier.detector.rejects(outputs.ood_scores).tolist()
    score = replace_non_finite(outputs.ood_scores[0])
    return Answer(species, chance, disease, joint, score, rejected)


def _compute_probabilities(
    classifier: PlantClassifier, outputs: Outputs, species: int, disease: int
) -> tuple[float | None, float | None]:
    """Return P(species) and P(species and disease) of one image; None where there is no disease or no finite number."""
    metadata = classifier.metadata
    chance = float(softmax(outputs.species_logits[0], metadata.species_temperature)[species])
    if disease < 0:
        return replace_non_finite(chance), None
    logits = classifier.run_heads(outputs.embedding, np.array([species], np.int64))[0]
    own = logits[: len(classifier.taxonomy.diseases_of(species))]
    given = float(softmax(own, metadata.disease_temperature)[disease])
    return replace_non_finite(chance), replace_non_finite(chance * given)


def _measure_difference(old: float | None, new: float | None) -> float:
    """Return how far two numbers are apart; infinity if only one of them is None."""
    if old is None or new is None:
        return 0.0 if old is new else math.inf
    return abs(old - new)


def write_reference(folder: Path, reference: Reference, pixels: Pixels) -> None:
    """Write both files into a bundle's folder.

    Args:
        folder: the bundle, whose manifest is written afterwards.
        reference: the answers to N images.
        pixels: (N, P, P, 3) uint8, the images.
    """
    buffer = io.BytesIO()
    Image.fromarray(_arrange(pixels)).save(buffer, "WEBP", lossless=True)
    write_bytes(folder / REFERENCE_IMAGES_FILE, buffer.getvalue())
    write_json(folder / REFERENCE_ANSWERS_FILE, {"format_version": FORMAT_VERSION, **encode(reference)})


def _arrange(pixels: Pixels) -> Pixels:
    """Return N images as one, `_COLUMNS` beside each other. Places that are left over are black."""
    count, side = pixels.shape[:2]
    columns, rows = _count_places(count)
    grid = np.zeros((rows * columns, side, side, 3), np.uint8)
    grid[:count] = pixels
    return grid.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)


def _count_places(images: int) -> tuple[int, int]:
    """Return how many images lie beside each other, and below each other."""
    return min(images, _COLUMNS), -(-images // _COLUMNS)


def read_reference(bundle: BundleContents) -> tuple[Reference, Pixels]:
    """Return the reference answers of a bundle and the N images, (N, P, P, 3) uint8.

    Raises:
        BundleError: the bundle has no reference answers; a file differs from the manifest, has another format, or does
            not fit the bundle's metadata.
    """
    folder, names = bundle.folder, (REFERENCE_ANSWERS_FILE, REFERENCE_IMAGES_FILE)
    if not any(name in bundle.manifest.files for name in names):
        raise BundleError(f"{folder}: has no {REFERENCE_ANSWERS_FILE}; verify the bundle again to get it")
    contents = read_checked(folder, bundle.manifest, names, every_file=False)
    path = folder / REFERENCE_ANSWERS_FILE
    document = parse_json(path, contents[REFERENCE_ANSWERS_FILE])
    version = document.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: format_version {version!r}, this code reads {FORMAT_VERSION}")
    try:
        reference = decode(Reference, document, REFERENCE_ANSWERS_FILE)
        _check_answers(reference, bundle.metadata.taxonomy)
    except ValueError as error:
        raise BundleError(f"{folder}: {error}") from error
    side, count = bundle.metadata.preprocessing.image_size, len(reference.images)
    return reference, _read_images(folder / REFERENCE_IMAGES_FILE, contents[REFERENCE_IMAGES_FILE], side, count)


def _check_answers(reference: Reference, taxonomy: Taxonomy) -> None:
    """Refuse answers that no classifier of the bundle can give.

    Raises:
        ValueError: names the image and the value.
    """
    if not 1 <= len(reference.images) <= MAX_IMAGES:
        raise ValueError(f"{REFERENCE_ANSWERS_FILE}: expected 1 to {MAX_IMAGES} images, got {len(reference.images)}")
    for place, image in enumerate(reference.images):
        for precision, answer in (("int8", image.int8), ("fp16", image.fp16)):
            where = f"{REFERENCE_ANSWERS_FILE}: images[{place}].{precision}"
            if not 0 <= answer.species_index < len(taxonomy.species):
                raise ValueError(
                    f"{where}.species_index must be 0 to {len(taxonomy.species) - 1}, got {answer.species_index}"
                )
            diseases = len(taxonomy.diseases_of(answer.species_index))
            if answer.disease_index not in (range(diseases) if diseases else (-1,)):
                expected = f"0 to {diseases - 1}" if diseases else "-1"
                raise ValueError(f"{where}.disease_index must be {expected}, got {answer.disease_index}")


def _read_images(path: Path, content: bytes, side: int, count: int) -> Pixels:
    """Return the N images in the file. Its width and height are checked before any pixel is decoded."""
    columns, rows = _count_places(count)
    expected = columns * side, rows * side
    try:
        image = Image.open(io.BytesIO(content), formats=("WEBP",))
        if image.size != expected:
            raise BundleError(f"{path}: {image.width} x {image.height} pixels, expected {expected[0]} x {expected[1]}")
        pixels = np.asarray(image.convert("RGB"))
    except PILLOW_ERRORS as error:
        raise BundleError(f"{path}: cannot be decoded ({quote_error(error)})") from error
    return pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[:count]
