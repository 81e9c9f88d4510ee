"""Reference answers: written, read back, compared, and refused where they are damaged."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plantmodels.bundle.layout import REFERENCE_ANSWERS_FILE, REFERENCE_IMAGES_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.errors import BundleError, ManifestMismatchError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.loading import BundleContents, read_bundle
from plantmodels.serve.preprocessing import decode_image, resize_and_crop
from plantmodels.serve.reference import (
    MAX_IMAGES,
    Difference,
    Reference,
    ReferenceImage,
    answer_images,
    count_images,
    read_reference,
    write_reference,
)

COUNT = 11
"""Not a multiple of the images beside each other in the file."""


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Any) -> PlantClassifier:
    return PlantClassifier.load(tiny_bundle.bundle, threads=1)


@pytest.fixture(scope="module")
def paths(tiny_bundle: Any) -> list[Path]:
    """A leaf of each of the nine classes, and two non-plants."""
    leaves = [min(folder.iterdir()) for folder in sorted((tiny_bundle.data / "val").iterdir())]
    return [*leaves, *sorted(tiny_bundle.non_plants.rglob("*.png"))[: COUNT - len(leaves)]]


@pytest.fixture(scope="module")
def pixels(classifier: PlantClassifier, paths: list[Path]) -> np.ndarray:
    preprocessing = classifier.metadata.preprocessing
    images = (resize_and_crop(decode_image(path.read_bytes(), preprocessing), preprocessing) for path in paths)
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def reference(classifier: PlantClassifier, pixels: np.ndarray, tiny_bundle: Any) -> Reference:
    fp16 = PlantClassifier.load(tiny_bundle.bundle, threads=1, precision="fp16")
    answers = zip(answer_images(classifier, pixels), answer_images(fp16, pixels), strict=True)
    return Reference("1.23.2", "a processor", tuple(ReferenceImage("val", "ab", *pair) for pair in answers))


@pytest.fixture
def kept(bundle_copy: Path, reference: Reference, pixels: np.ndarray) -> Path:
    """A bundle with reference answers."""
    write_reference(bundle_copy, reference, pixels)
    write_manifest(bundle_copy)
    return bundle_copy


def read(bundle: Path) -> tuple[Reference, np.ndarray]:
    return read_reference(read_bundle(bundle))


def test_what_is_written_is_read_back_to_the_last_pixel_and_bit(
    kept: Path, reference: Reference, pixels: np.ndarray
) -> None:
    found, images = read(kept)

    assert found == reference
    np.testing.assert_array_equal(images, pixels)
    with Image.open(kept / REFERENCE_IMAGES_FILE) as image:
        assert image.size == (8 * 224, 2 * 224)


def test_answers_are_those_that_the_classifier_serves(
    classifier: PlantClassifier, reference: Reference, paths: list[Path]
) -> None:
    served = classifier.predict([path.read_bytes() for path in paths])

    assert {answer.rejected for answer in served} == {False, True} and None in {answer.disease for answer in served}
    for image, row in zip(reference.images, served, strict=True):
        answer, names = image.int8, classifier.taxonomy.diseases_of(image.int8.species_index)
        assert answer.species_index == row.species_index and answer.species_probability == row.species_probability
        assert (names[answer.disease_index] if names else None) == row.disease
        assert answer.disease_probability == row.disease_probability
        assert (answer.ood_score, answer.rejected) == (row.ood_score, row.rejected)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_same_machine_gives_the_same_answers(kept: Path, precision: Any) -> None:
    found, images = read(kept)
    calls: list[None] = []
    again = PlantClassifier.load(kept, threads=1, precision=precision)

    assert found.compare(again, images, lambda: calls.append(None)) == Difference(0, 0, 0.0, 0.0)
    assert len(calls) == COUNT


def change(reference: Reference, **changes: Any) -> Reference:
    """Return the reference with another INT8 answer to its first image."""
    first, *others = reference.images
    first = dataclasses.replace(first, int8=dataclasses.replace(first.int8, **changes))
    return dataclasses.replace(reference, images=(first, *others))


def test_every_kind_of_difference_is_counted(
    classifier: PlantClassifier, reference: Reference, pixels: np.ndarray
) -> None:
    now = reference.images[0].int8

    def compare(**changes: Any) -> Difference:
        return change(reference, **changes).compare(classifier, pixels)

    assert now.species_probability is not None and now.disease_probability is not None and now.ood_score is not None
    assert compare(rejected=not now.rejected) == Difference(0, 1, 0.0, 0.0)
    assert compare(ood_score=now.ood_score + 2.5) == Difference(0, 0, 0.0, pytest.approx(2.5))
    assert compare(species_probability=now.species_probability - 0.25) == Difference(0, 0, pytest.approx(0.25), 0.0)
    assert compare(disease_probability=now.disease_probability - 0.125) == Difference(0, 0, pytest.approx(0.125), 0.0)
    assert compare(ood_score=None) == Difference(0, 0, 0.0, math.inf)


def test_probabilities_of_another_label_are_those_of_the_class_that_was_named(
    classifier: PlantClassifier, reference: Reference, pixels: np.ndarray
) -> None:
    """An image was called the second species with probability 1; now that species has almost none."""
    other = (reference.images[0].int8.species_index + 1) % len(classifier.taxonomy.species)
    outputs = classifier.predict(pixels[:1], top_k=len(classifier.taxonomy.species))[0]
    assert outputs.candidates is not None
    chance = next(c.probability for c in outputs.candidates if c.species == classifier.taxonomy.species[other])
    index = 0 if classifier.taxonomy.diseases_of(other) else -1
    found = change(reference, species_index=other, species_probability=1.0, disease_index=index).compare(
        classifier, pixels
    )

    assert found.labels == 1 and found.probability >= 1 - chance > 0.5


def test_fewer_images_are_kept_for_networks_of_large_images() -> None:
    assert [count_images(side) for side in (32, 512, 513, 2048)] == [MAX_IMAGES, MAX_IMAGES, 63, 4]


def test_a_bundle_without_answers_must_be_verified_again(tiny_bundle: Any) -> None:
    with pytest.raises(BundleError, match=r"has no reference-answers\.json; verify the bundle again"):
        read(tiny_bundle.bundle)


@pytest.mark.parametrize("name", [REFERENCE_ANSWERS_FILE, REFERENCE_IMAGES_FILE])
def test_a_file_that_is_changed_or_missing_differs_from_the_manifest(kept: Path, name: str) -> None:
    content = (kept / name).read_bytes()
    contents = read_bundle(kept)
    (kept / name).write_bytes(content[:-1] + b" ")
    with pytest.raises(ManifestMismatchError, match=f"changed.*{name}"):
        read_reference(contents)
    (kept / name).unlink()
    with pytest.raises(ManifestMismatchError, match=f"missing.*{name}"):
        read_reference(contents)


def damage(bundle: Path, edit: Any) -> BundleContents:
    """Edit the JSON document of the answers, and return the bundle with a manifest that fits."""
    document = json.loads((bundle / REFERENCE_ANSWERS_FILE).read_text(encoding="utf-8"))
    edit(document)
    (bundle / REFERENCE_ANSWERS_FILE).write_text(json.dumps(document), encoding="utf-8")
    write_manifest(bundle)
    return read_bundle(bundle)


def set_first(**values: Any) -> Any:
    return lambda document: document["images"][0]["int8"].update(values)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda d: d.update(format_version=2), r"reference-answers\.json: format_version 2, this code reads 1"),
        (lambda d: d.pop("format_version"), r"format_version None, this code reads 1"),
        (lambda d: d.pop("cpu"), r"'cpu' is missing; expected onnxruntime, cpu, images"),
        (lambda d: d.update(images=[]), r"expected 1 to 64 images, got 0"),
        (lambda d: d.update(images=d["images"] * 6), r"expected 1 to 64 images, got 66"),
        (lambda d: d.update(images=d["images"][:8]), r"1792 x 448 pixels, expected 1792 x 224"),
        (set_first(species_index=5), r"images\[0\]\.int8\.species_index must be 0 to 4, got 5"),
        (set_first(species_index=-1), r"images\[0\]\.int8\.species_index must be 0 to 4, got -1"),
        (set_first(disease_index=9), r"images\[0\]\.int8\.disease_index must be 0 to \d, got 9"),
        (set_first(disease_index=-1), r"images\[0\]\.int8\.disease_index must be 0 to \d, got -1"),
        (set_first(rejected="no"), r"images\[0\]\.int8\.rejected: expected .*, got 'no'"),
        (set_first(score=1), r"images\[0\]\.int8: 'score' is unknown"),
    ],
)
def test_answers_that_do_not_fit_are_refused(kept: Path, edit: Any, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        read_reference(damage(kept, edit))


def test_images_that_do_not_fit_are_refused_before_they_are_decoded(kept: Path) -> None:
    path = kept / REFERENCE_IMAGES_FILE
    for content, match in (
        (b"text", r"reference-images\.webp: cannot be decoded"),
        (path.read_bytes()[:-2000], r"reference-images\.webp: cannot be decoded"),
    ):
        path.write_bytes(content)
        write_manifest(kept)
        with pytest.raises(BundleError, match=match):
            read(kept)
    Image.new("RGB", (2000, 2000)).save(path, "WEBP", lossless=True)
    write_manifest(kept)
    with pytest.raises(BundleError, match=r"2000 x 2000 pixels, expected 1792 x 448"):
        read(kept)
