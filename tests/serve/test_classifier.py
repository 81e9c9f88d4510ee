"""PlantClassifier: what it answers, against the sessions by hand; that a bad image or file harms nothing else."""

import base64
import copy
import dataclasses
import io
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax as scipy_softmax

from plantmodels.bundle.layout import DETECTOR_FILE, HEADS_LIST_FILE, METADATA_FILE, SPECIES_FILES
from plantmodels.errors import ImageError
from plantmodels.serve.classifier import CHUNK, PlantClassifier
from plantmodels.serve.prediction import Outputs, Prediction
from plantmodels.serve.preprocessing import decode_image, preprocess
from plantmodels.serve.routing import Routing, softmax

PLAIN = (
    *("species", "species_index", "species_probability", "disease", "disease_probability"),
    *("disease_given_species_probability", "rejected", "error"),
)


@pytest.fixture(scope="module")
def classifier(tiny_bundle) -> PlantClassifier:
    return PlantClassifier.load(tiny_bundle.bundle, threads=1)


@pytest.fixture(scope="module")
def leaves(tiny_bundle) -> list[Path]:
    """One val leaf of each of the nine drawn classes, then one non-plant."""
    folders = sorted((tiny_bundle.data / "val").iterdir())
    return [*(min(folder.iterdir()) for folder in folders), tiny_bundle.non_plants / "noise" / "3.png"]


@pytest.fixture(scope="module")
def encoded(leaves: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in leaves]


@pytest.fixture(scope="module")
def outputs(classifier: PlantClassifier, encoded: list[bytes]) -> Outputs:
    preprocessing = classifier.metadata.preprocessing
    return classifier.run(np.stack([preprocess(decode_image(data), preprocessing) for data in encoded]))


SCORE_RTOL = 1e-12
"""A float64 product of matrices sums in another order for another number of rows."""


def values(rows: list[Prediction]) -> list[tuple]:
    """Everything of each row but the score, which `check_equal` compares."""
    return [tuple(getattr(row, name) for name in PLAIN) for row in rows]


def check_equal(rows: list[Prediction], expected: list[Prediction]) -> None:
    assert values(rows) == values(expected)
    scores = [[np.nan if row.ood_score is None else row.ood_score for row in part] for part in (rows, expected)]
    np.testing.assert_allclose(*scores, rtol=SCORE_RTOL)


class TestAnswers:
    @pytest.mark.parametrize("precision", ["int8", "fp16"])
    def test_equal_the_sessions_by_hand(self, tiny_bundle, encoded: list[bytes], precision) -> None:
        bundle = tiny_bundle.bundle
        rows = PlantClassifier.load(bundle, precision=precision, threads=1).predict(encoded)
        species_session = ort.InferenceSession(bundle / SPECIES_FILES[precision])
        heads = json.loads((bundle / HEADS_LIST_FILE).read_text())
        document = pickle.loads((bundle / DETECTOR_FILE).read_bytes())
        metadata = json.loads((bundle / METADATA_FILE).read_text())
        species = metadata["taxonomy"]["species"]
        temperatures = metadata["species_temperature"], metadata["disease_temperature"]
        preprocessing = PlantClassifier.load(bundle, threads=1).metadata.preprocessing

        for row, data in zip(rows, encoded, strict=True):
            pixels = preprocess(decode_image(data), preprocessing)[None]
            logits, embedding = species_session.run(["species_logits", "embedding"], {"input": pixels})
            best = int(logits[0].argmax())
            assert (row.species, row.species_index, row.error) == (species[best], best, None)
            np.testing.assert_allclose(
                row.species_probability, scipy_softmax(logits[0] / temperatures[0])[best], rtol=1e-5
            )
            deltas = np.atleast_2d(document["mean"]) - embedding[0].astype(np.float64)
            other = document["other_mean"] - embedding[0].astype(np.float64)
            score = min(delta @ document["inv_cov"] @ delta for delta in deltas)
            score -= other @ document["other_inv_cov"] @ other
            np.testing.assert_allclose(row.ood_score, score, rtol=1e-4, atol=1e-2)
            assert document["method"] == "gaussian_ratio"
            assert row.rejected == (score > document["threshold"])
            center, scale, named = (document[n] for n in ("species_center", "species_scale", "plant_species"))
            plants = (document["plant_scores"] - center[named]) / scale[named]
            as_high = sum(plants >= (row.ood_score - center[best]) / scale[best])
            assert row.ood_p_value == (1 + as_high) / (1 + len(plants)), "fewer than 500 leaves count alike"
            if str(best) not in heads:
                assert (row.disease, row.disease_probability, row.disease_given_species_probability) == (None,) * 3
                continue
            head = heads[str(best)]
            answer = ort.InferenceSession(bundle / head["file"]).run(None, {"embedding": embedding})[0][0]
            assert row.disease == head["diseases"][answer.argmax()]
            given = scipy_softmax(answer / temperatures[1]).max()
            np.testing.assert_allclose(row.disease_given_species_probability, given, rtol=1e-5)
            both = scipy_softmax(logits[0] / temperatures[0])[best] * given
            np.testing.assert_allclose(row.disease_probability, both, rtol=1e-5)
            assert row.disease_probability == row.species_probability * row.disease_given_species_probability

    def test_the_drawn_leaves_are_recognized(self, classifier: PlantClassifier, leaves, encoded) -> None:
        rows = classifier.predict(encoded)
        found = [f"{row.species}___{row.disease or 'unlabelled'}" for row in rows[:-1]]

        assert found == [path.parent.name for path in leaves[:-1]]
        assert {row.species for row in rows} >= set(classifier.taxonomy.species)
        assert rows[-1].rejected

    def test_a_species_without_a_head_has_no_disease(self, classifier: PlantClassifier, encoded) -> None:
        mint = [row for row in classifier.predict(encoded) if row.species == "Mint"]

        assert mint
        assert all((row.disease, row.disease_probability, row.error) == (None, None, None) for row in mint)
        assert all(row.species_probability > 0.3 for row in mint)

    def test_a_species_of_one_class_is_certain_of_it(self, classifier: PlantClassifier, encoded) -> None:
        row = next(row for row in classifier.predict(encoded) if row.species == "Blueberry")

        assert (row.disease, row.disease_given_species_probability) == ("healthy", 1.0)
        assert row.disease_probability == row.species_probability

    def test_a_mixed_batch_equals_single_images(self, classifier: PlantClassifier, encoded) -> None:
        together = classifier.predict(encoded)
        alone = [classifier.predict([data])[0] for data in encoded]
        backwards = classifier.predict(encoded[::-1])[::-1]

        check_equal(together, alone)
        check_equal(together, backwards)

    def test_a_mixed_batch_equals_single_images_in_fp16(self, tiny_bundle, encoded) -> None:
        classifier = PlantClassifier.load(tiny_bundle.bundle, precision="fp16", threads=1)
        for row, data in zip(classifier.predict(encoded), encoded, strict=True):
            alone = classifier.predict([data])[0]
            assert (row.species, row.disease, row.rejected) == (alone.species, alone.disease, alone.rejected)
            np.testing.assert_allclose(row.ood_score, alone.ood_score, rtol=1e-4, atol=1e-2)

    def test_every_kind_of_input_gives_the_same_answer(self, classifier: PlantClassifier, draw_image) -> None:
        image = draw_image(1, 77, (80, 60))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
        pixels = preprocess(image, classifier.metadata.preprocessing)
        kinds = [data, bytearray(data), memoryview(data), base64.b64encode(data).decode(), base64.b64encode(data)]
        kinds += [image, Image.open(io.BytesIO(data)), image.convert("RGBA"), np.asarray(image), pixels]
        rows = classifier.predict(kinds)

        assert rows[0].error is None
        check_equal(rows, [rows[0]] * len(kinds))

    @pytest.mark.parametrize("precision", ["int8", "fp16"])
    def test_workers_give_the_same_bits(self, tiny_bundle, encoded: list[bytes], precision) -> None:
        alone, together = (
            PlantClassifier.load(tiny_bundle.bundle, precision=precision, threads=1, workers=workers)
            for workers in (1, 3)
        )
        embeddings = [
            [classifier.predict([data], return_embedding=True)[0].embedding for data in encoded]
            for classifier in (alone, together)
        ]
        rows = together.predict(encoded, return_embedding=True)

        np.testing.assert_array_equal(*embeddings)
        np.testing.assert_array_equal([row.embedding for row in rows], embeddings[0])

    def test_two_threads_do_not_disturb_each_other(self, classifier: PlantClassifier, encoded) -> None:
        expected = classifier.predict(encoded)
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(lambda _: classifier.predict(encoded), range(4)))

        for rows in runs:
            check_equal(rows, expected)

    def test_no_images_give_no_rows(self, classifier: PlantClassifier) -> None:
        assert classifier.predict([]) == []
        assert classifier.predict(iter(())) == []

    def test_an_iterator_is_read_in_chunks(self, classifier: PlantClassifier, encoded) -> None:
        taken: list[int] = []
        run, sizes = classifier.run, []

        def images() -> Iterator[bytes]:
            for i in range(2 * CHUNK + 5):
                taken.append(i)
                yield encoded[i % 3]

        def record(inputs):
            sizes.append((len(inputs), len(taken)))
            return run(inputs)

        classifier.run = record  # type: ignore[method-assign]
        try:
            rows = classifier.predict(images())
        finally:
            del classifier.run
        assert sizes == [(CHUNK, CHUNK), (CHUNK, 2 * CHUNK), (5, 2 * CHUNK + 5)]
        check_equal(rows[:9], rows[:3] * 3)


class TestOptions:
    def test_top_k_adds_the_most_probable_species(self, classifier: PlantClassifier, encoded) -> None:
        for row in classifier.predict(encoded, top_k=3):
            names = [candidate.species for candidate in row.candidates]
            chances = [candidate.probability for candidate in row.candidates]
            assert len(set(names)) == 3
            assert (names[0], chances[0]) == (row.species, row.species_probability)
            assert chances == sorted(chances, reverse=True)
        whole = classifier.predict(encoded[:1], top_k=99)[0].candidates
        assert len(whole) == 5
        np.testing.assert_allclose(sum(candidate.probability for candidate in whole), 1)

    def test_nothing_is_added_unasked(self, classifier: PlantClassifier, encoded) -> None:
        row = classifier.predict(encoded[:1])[0]

        assert (row.candidates, row.embedding) == (None, None)

    def test_the_embedding_is_that_of_the_score(self, classifier: PlantClassifier, encoded) -> None:
        rows = classifier.predict(encoded, return_embedding=True)
        embedding = np.stack([row.embedding for row in rows])

        assert embedding.dtype == np.float32
        np.testing.assert_array_equal(classifier.detector.score(embedding), [row.ood_score for row in rows])

    def test_on_error_raise_names_the_image(self, classifier: PlantClassifier, encoded) -> None:
        images = [encoded[0]] * (CHUNK + 2) + [b"bad"]

        with pytest.raises(ImageError, match=rf"image {CHUNK + 2}: not an image"):
            classifier.predict(images, on_error="raise")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"on_error": "ignore"}, "on_error must be one of row, raise, got 'ignore'"),
            ({"top_k": -1}, "top_k must be an integer of at least 0, got -1"),
            ({"top_k": 1.5}, "top_k must be an integer"),
            ({"top_k": True}, "top_k must be an integer"),
        ],
    )
    def test_other_options_are_refused(self, classifier: PlantClassifier, options, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            classifier.predict([], **options)

    def test_an_unknown_option_is_refused_by_its_name(self, classifier: PlantClassifier) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'topk'"):
            classifier.predict([], topk=3)


def truncated_image() -> Image.Image:
    """A Pillow image whose file breaks off: it opens, and fails when its pixels are wanted."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return Image.open(io.BytesIO(buffer.getvalue()[:800]))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "zero bytes": (lambda: b"", "zero bytes"),
    "no image": (lambda: b"no image", "not an image"),
    "a path as text": (lambda: "/etc/passwd", "file paths are not read"),
    "a path": (lambda: Path("/etc/passwd"), "file paths are not read"),
    "nothing": (lambda: None, r"the image is missing \(null\)"),
    "a number": (lambda: 3, "got int"),
    "NaN input": (lambda: np.full((3, 224, 224), np.nan, np.float32), "holds NaN or infinity"),
    "infinite input": (lambda: np.full((3, 224, 224), np.inf, np.float32), "holds NaN or infinity"),
    "another size": (lambda: np.zeros((3, 223, 224), np.float32), r"got \(3, 223, 224\) float32"),
    "another dtype": (lambda: np.zeros((3, 224, 224)), "got .* float64"),
    "another byte order": (lambda: np.zeros((3, 224, 224), ">f4"), "got .* >f4"),
    "a batch": (lambda: np.zeros((1, 3, 224, 224), np.float32), r"got \(1, 3, 224, 224\)"),
    "grey array": (lambda: np.zeros((50, 50), np.uint8), "an array must be"),
    "RGBA array": (lambda: np.zeros((50, 50, 4), np.uint8), "an array must be"),
    "empty array": (lambda: np.zeros((0, 50, 3), np.uint8), "an array must be"),
    "1×1 array": (lambda: np.zeros((1, 1, 3), np.uint8), "1x1 pixels"),
    "ribbon array": (lambda: np.zeros((16, 100_000, 3), np.uint8), "one side is over 32 times"),
    "truncated Pillow image": (truncated_image, "cannot be decoded .image file is truncated"),
    "empty Pillow image": (lambda: Image.new("RGB", (0, 0)), "0x0 pixels"),
    "1×1 Pillow image": (lambda: Image.new("RGB", (1, 1)), "1x1 pixels"),
    "ribbon Pillow image": (lambda: Image.new("L", (100_000, 20)), "one side is over 32 times"),
    "premultiplied Pillow image": (lambda: Image.new("La", (50, 50)), "cannot be decoded"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_gives_an_error_row_and_leaves_its_neighbours_alone(
    classifier: PlantClassifier, encoded: list[bytes], kind: str
) -> None:
    make, match = BAD[kind]
    rows = classifier.predict([encoded[0], make(), encoded[4]])

    with pytest.raises(ImageError, match=match):
        raise ImageError(rows[1].error)
    assert dataclasses.replace(rows[1], error=None) == Prediction()
    check_equal([rows[0], rows[2]], classifier.predict([encoded[0], encoded[4]]))


def test_bad_images_keep_their_places_over_several_chunks(classifier: PlantClassifier, encoded) -> None:
    bad = {0, 5, CHUNK - 1, CHUNK, 2 * CHUNK + 3}
    rows = classifier.predict(b"bad" if i in bad else encoded[i % 9] for i in range(2 * CHUNK + 4))
    good = classifier.predict(encoded[:9])

    assert {i for i, row in enumerate(rows) if row.error} == bad
    check_equal([row for row in rows if not row.error], [good[i % 9] for i in range(len(rows)) if i not in bad])


def test_nothing_but_bad_images(classifier: PlantClassifier) -> None:
    assert [row.species for row in classifier.predict([b"bad", None])] == [None, None]


@pytest.mark.parametrize(
    "shape", [(1, 3, 223, 224), (0, 3, 224, 224), (3, 224, 224), (1, 224, 224, 3), (1, 1, 224, 224)]
)
def test_run_refuses_other_shapes(classifier: PlantClassifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs must be \(N ≥ 1, 3, 224, 224\) float32"):
        classifier.run(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="float64"):
        classifier.run(np.zeros((1, 3, 224, 224)))


def test_run_masks_the_classes_that_a_species_lacks(classifier: PlantClassifier, encoded, outputs: Outputs) -> None:
    assert outputs.disease_logits.shape == (len(encoded), 3)
    for logits, index in zip(outputs.disease_logits, outputs.species_index, strict=True):
        count = len(classifier.taxonomy.diseases_of(index))
        assert np.isfinite(logits[:count]).all()
        assert (logits[count:] == -np.inf).all()


@pytest.mark.parametrize("temperature", [1.0, 0.3, 20.0])
@pytest.mark.parametrize("logits", [[1.0, 2, 3], [1e4, -1e4, 0], [0.0], [-3e38, 3e38], [2, -np.inf]])
def test_softmax_is_scipys(logits: list[float], temperature: float) -> None:
    found = softmax(np.array(logits, np.float32), temperature)
    np.testing.assert_allclose(found, scipy_softmax(np.array(logits) / temperature), rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(species_temperature=st.floats(1e-3, 1e3), disease_temperature=st.floats(1e-3, 1e3))
@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_temperatures_change_probabilities_and_nothing_else(
    classifier: PlantClassifier,
    outputs: Outputs,
    routing: Routing,
    species_temperature: float,
    disease_temperature: float,
) -> None:
    def answer(*temperatures: float) -> list[Prediction]:
        other = copy.copy(classifier)
        species, disease = temperatures
        other.metadata = dataclasses.replace(
            classifier.metadata, species_temperature=species, disease_temperature=disease
        )
        return list(other._build_predictions(outputs, 5, routing, False))

    plain, tempered = answer(1.0, 1.0), answer(species_temperature, disease_temperature)
    chances = scipy_softmax(outputs.species_logits.astype(float) / species_temperature, axis=1)
    for row, (before, after) in enumerate(zip(plain, tempered, strict=True)):
        assert without_probabilities(before) == without_probabilities(after)
        assert after.species_probability == pytest.approx(chances[row, after.species_index], rel=1e-6)
        assert [c.probability for c in after.candidates] == pytest.approx(sorted(chances[row], reverse=True), rel=1e-6)


def without_probabilities(row: Prediction) -> tuple[object, ...]:
    names = [candidate.species for candidate in row.candidates or ()]
    return row.species, row.species_index, row.disease, row.ood_score, row.rejected, row.error, names
