"""PlantClassifier: what it answers, against the sessions by hand; that a bad image or file harms nothing else."""

import base64
import copy
import dataclasses
import io
import itertools
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax as scipy_softmax

from plantmodels.bundle.detector import OODDetector, read_detector, write_detector
from plantmodels.bundle.layout import DETECTOR_FILE, HEADS_LIST_FILE, METADATA_FILE, PACKED_HEADS_FILE, SPECIES_FILES
from plantmodels.bundle.manifest import read_checked, read_manifest, write_manifest
from plantmodels.bundle.metadata import read_metadata, write_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError, DetectorError, ImageError, ManifestMismatchError, PlantModelsError
from plantmodels.export.staging import staged_bundle
from plantmodels.serve.classifier import CHUNK, Outputs, PlantClassifier, Prediction
from plantmodels.serve.preprocessing import decode_image, preprocess
from plantmodels.serve.routing import Routing, softmax

PLAIN = ("species", "species_index", "species_probability", "disease", "disease_probability", "rejected", "error")


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
            as_high = sum(plant >= row.ood_score for plant in document["plant_scores"])
            assert row.ood_p_value == (1 + as_high) / (1 + len(document["plant_scores"]))
            if str(best) not in heads:
                assert (row.disease, row.disease_probability) == (None, None)
                continue
            head = heads[str(best)]
            answer = ort.InferenceSession(bundle / head["file"]).run(None, {"embedding": embedding})[0][0]
            assert row.disease == head["diseases"][answer.argmax()]
            np.testing.assert_allclose(
                row.disease_probability, scipy_softmax(answer / temperatures[1]).max(), rtol=1e-5
            )

    def test_the_drawn_leaves_are_recognised(self, classifier: PlantClassifier, leaves, encoded) -> None:
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

        assert (row.disease, row.disease_probability) == ("healthy", 1.0)

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


def truncated_picture() -> Image.Image:
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
    "nothing": (lambda: None, "got NoneType"),
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
    "truncated Pillow image": (truncated_picture, "cannot be decoded .image file is truncated"),
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
        return list(other._describe(outputs, 5, routing, False))

    plain, tempered = answer(1.0, 1.0), answer(species_temperature, disease_temperature)
    chances = scipy_softmax(outputs.species_logits.astype(float) / species_temperature, axis=1)
    for row, (before, after) in enumerate(zip(plain, tempered, strict=True)):
        assert without_probabilities(before) == without_probabilities(after)
        assert after.species_probability == pytest.approx(chances[row, after.species_index], rel=1e-6)
        assert [c.probability for c in after.candidates] == pytest.approx(sorted(chances[row], reverse=True), rel=1e-6)


def without_probabilities(row: Prediction) -> tuple[object, ...]:
    names = [candidate.species for candidate in row.candidates or ()]
    return row.species, row.species_index, row.disease, row.ood_score, row.rejected, row.error, names


class TestLoading:
    @pytest.fixture
    def opened(self, tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the files whose bytes sessions were opened on."""
        names: list[str] = []
        known = {path.read_bytes(): path.name for path in tiny_bundle.bundle.glob("*.onnx")}
        session_class = ort.InferenceSession

        def record(content, *arguments, **options):
            names.append(known.get(content, "another"))
            return session_class(content, *arguments, **options)

        monkeypatch.setattr(ort, "InferenceSession", record)
        return names

    def check_refused(self, folder: Path, opened: list[str], error: type[PlantModelsError], match: str) -> None:
        with pytest.raises(error, match=match):
            PlantClassifier.load(folder, threads=1)
        assert opened == []

    def test_opens_the_one_species_model_and_the_packed_heads(self, tiny_bundle, opened: list[str]) -> None:
        PlantClassifier.load(tiny_bundle.bundle, threads=1)
        assert opened == [SPECIES_FILES["int8"], PACKED_HEADS_FILE]
        opened.clear()
        PlantClassifier.load(tiny_bundle.bundle, precision="fp16", threads=1)
        assert opened == [SPECIES_FILES["fp16"], PACKED_HEADS_FILE]

    def test_every_changed_file_is_refused_before_a_session_opens(self, bundle_copy: Path, opened) -> None:
        for name in read_manifest(bundle_copy).files:
            path = bundle_copy / name
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            self.check_refused(bundle_copy, opened, ManifestMismatchError, f"changed: {name}")
            path.unlink()
            self.check_refused(bundle_copy, opened, ManifestMismatchError, f"missing: {name}")
            path.write_bytes(whole)
        PlantClassifier.load(bundle_copy, threads=1)

    def test_what_was_checked_is_what_is_used(self, tiny_bundle, bundle_copy: Path, encoded, monkeypatch) -> None:
        def check_then_lose(folder: Path, *arguments, **options) -> dict[str, bytes]:
            contents = read_checked(folder, *arguments, **options)
            for name in contents:
                (folder / name).write_bytes(b"written after the check")
            return contents

        monkeypatch.setattr("plantmodels.serve.classifier.read_checked", check_then_lose)
        rows = PlantClassifier.load(bundle_copy, threads=1).predict(encoded)
        monkeypatch.undo()
        check_equal(rows, PlantClassifier.load(tiny_bundle.bundle, threads=1).predict(encoded))

    def test_an_extra_file_is_refused(self, bundle_copy: Path, opened) -> None:
        (bundle_copy / "disease-heads" / "fig-int8.onnx").write_bytes(b"")
        self.check_refused(bundle_copy, opened, ManifestMismatchError, "not in the manifest: disease-heads/fig")

    def test_no_bundle_is_refused(self, tmp_path: Path, opened) -> None:
        self.check_refused(tmp_path / "none", opened, BundleError, "no such bundle folder")
        self.check_refused(tmp_path, opened, BundleError, "manifest.json: cannot be read")

    def test_a_swapped_heads_list_is_refused(self, bundle_copy: Path, opened) -> None:
        path = bundle_copy / HEADS_LIST_FILE
        heads = json.loads(path.read_text())
        heads["0"], heads["1"] = heads["1"], heads["0"]
        path.write_text(json.dumps(heads))
        write_manifest(bundle_copy)
        self.check_refused(bundle_copy, opened, BundleError, "disease-heads-list.json: species id 0 is")

    def test_a_swapped_class_order_is_refused(self, bundle_copy: Path, opened) -> None:
        path = bundle_copy / METADATA_FILE
        document = json.loads(path.read_text())
        document["taxonomy"]["species"].reverse()
        path.write_text(json.dumps(document))
        write_manifest(bundle_copy)
        self.check_refused(bundle_copy, opened, BundleError, "class_order_digest .* the class order was changed")

    def test_a_detector_that_would_run_code_is_refused(self, bundle_copy: Path, tmp_path: Path, opened) -> None:
        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'executed'}",)

        (bundle_copy / DETECTOR_FILE).write_bytes(pickle.dumps({"mean": Attack()}))
        write_manifest(bundle_copy)
        self.check_refused(bundle_copy, opened, DetectorError, "system, which plain arrays do not need: refused")
        assert not (tmp_path / "executed").exists()

    def test_another_precision_is_refused(self, tiny_bundle, opened) -> None:
        with pytest.raises(ValueError, match="precision must be one of int8, fp16, got 'fp32'"):
            PlantClassifier.load(tiny_bundle.bundle, precision="fp32")
        assert opened == []

    def test_an_absent_provider_is_refused(self, tiny_bundle) -> None:
        with pytest.raises(BundleError, match="MagicProvider is not available"):
            PlantClassifier.load(tiny_bundle.bundle, providers=["MagicProvider"])

    def test_it_tells_which_providers_run_the_model(self, tiny_bundle) -> None:
        providers = ["AzureExecutionProvider", "MagicProvider", "CPUExecutionProvider"]
        loaded = PlantClassifier.load(tiny_bundle.bundle, threads=1, providers=providers)
        assert loaded.providers == ("CPUExecutionProvider",)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"workers": 0}, "workers must be an integer of at least 1, got 0"),
            ({"workers": "2"}, "workers must be an integer of at least 1, got '2'"),
            ({"allow_paths": "no"}, "allow_paths must be True or False, got 'no'"),
            ({"threads": -5}, "threads must be an integer of at least 1, or None, got -5"),
            ({"providers": "CPUExecutionProvider"}, "providers must be a list of names or .*, got 'CPUExecution"),
        ],
    )
    def test_options_of_another_value_are_refused(self, tiny_bundle, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PlantClassifier.load(tiny_bundle.bundle, **options)

    @pytest.mark.parametrize("name", [SPECIES_FILES["int8"], PACKED_HEADS_FILE])
    def test_a_file_that_is_no_model_is_refused(self, bundle_copy: Path, name: str) -> None:
        (bundle_copy / name).write_bytes(b"no model")
        write_manifest(bundle_copy)
        with pytest.raises(BundleError, match=f"{name}: not an ONNX file"):
            PlantClassifier.load(bundle_copy, threads=1)

    def test_another_input_name_is_refused(self, bundle_copy: Path) -> None:
        path = bundle_copy / SPECIES_FILES["int8"]
        model = onnx.load(path)
        model.graph.input[0].name = "pixels"
        for node in model.graph.node:
            node.input[:] = ["pixels" if name == "input" else name for name in node.input]
        onnx.save(model, path)
        write_manifest(bundle_copy)

        with pytest.raises(BundleError, match=r"swin-species-int8.onnx: inputs and outputs are .*'pixels'.* not"):
            PlantClassifier.load(bundle_copy, threads=1)

    def test_models_in_each_others_place_are_refused(self, bundle_copy: Path) -> None:
        (bundle_copy / PACKED_HEADS_FILE).write_bytes((bundle_copy / SPECIES_FILES["fp16"]).read_bytes())
        write_manifest(bundle_copy)

        with pytest.raises(BundleError, match=r"disease-heads-packed.onnx: inputs and outputs are"):
            PlantClassifier.load(bundle_copy, threads=1)

    def test_a_consistent_taxonomy_of_another_length_is_refused(self, bundle_copy: Path) -> None:
        document = json.loads((bundle_copy / METADATA_FILE).read_text())
        document["taxonomy"]["species"].append("Fig")
        document["class_order_digest"] = Taxonomy.from_dict(document["taxonomy"]).digest
        (bundle_copy / METADATA_FILE).write_text(json.dumps(document))
        write_manifest(bundle_copy)

        with pytest.raises(
            BundleError, match=r"swin-species-int8.onnx: .*not .*'species_logits': 'float \(batch, 6\)'"
        ):
            PlantClassifier.load(bundle_copy, threads=1)

    def test_a_detector_of_another_length_is_refused(self, bundle_copy: Path) -> None:
        write_detector(bundle_copy / DETECTOR_FILE, OODDetector("mahalanobis", np.zeros((1, 5)), np.eye(5), 1.0))
        write_manifest(bundle_copy)

        with pytest.raises(DetectorError, match=r"ood-detector.pkl: scores 5 features, the models give 32"):
            PlantClassifier.load(bundle_copy, threads=1)

    def test_the_bundle_may_be_moved_and_is_not_written(self, bundle_copy: Path, encoded) -> None:
        before = {path: path.stat().st_mtime_ns for path in bundle_copy.rglob("*")}
        rows = PlantClassifier.load(bundle_copy, threads=1).predict(encoded)

        assert {path: path.stat().st_mtime_ns for path in bundle_copy.rglob("*")} == before
        assert read_detector(bundle_copy / DETECTOR_FILE).threshold < max(row.ood_score for row in rows)


def test_a_key_beside_a_manifest_of_the_callers_is_refused(tiny_bundle, signing_keys) -> None:
    manifest = read_manifest(tiny_bundle.bundle)
    with pytest.raises(ValueError, match="public_key has nothing to check where the caller gives a manifest"):
        PlantClassifier.load(tiny_bundle.bundle, manifest=manifest, public_key=signing_keys.public)


def test_a_bundle_replaced_while_it_is_read_is_the_old_or_the_new(bundle_copy: Path) -> None:
    metadata = read_metadata(bundle_copy)
    for seed in (1, 2):
        copy = Path(shutil.copytree(bundle_copy, bundle_copy.parent / f"of seed {seed}"))
        write_metadata(copy, dataclasses.replace(metadata, provenance={**metadata.provenance, "seed": seed}))
        write_manifest(copy)
    done = threading.Event()

    def replace_again_and_again() -> None:
        for seed in itertools.cycle((1, 2)):
            if done.is_set():
                return
            with staged_bundle(bundle_copy) as folder:
                shutil.copytree(bundle_copy.parent / f"of seed {seed}", folder, dirs_exist_ok=True)

    thread = threading.Thread(target=replace_again_and_again)
    thread.start()
    try:
        seeds = {PlantClassifier.load(bundle_copy, threads=1).metadata.provenance["seed"] for _ in range(20)}
    finally:
        done.set()
        thread.join()
    assert seeds <= {0, 1, 2}
