"""Loading a bundle: what is refused before a session opens, and one reading for classifiers of several precisions."""

import dataclasses
import itertools
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from plantmodels.bundle.detector import OODDetector, read_detector, write_detector
from plantmodels.bundle.layout import (
    DETECTOR_FILE,
    HEADS_LIST_FILE,
    METADATA_FILE,
    PACKED_HEADS_FILE,
    PRECISIONS,
    SPECIES_FILES,
)
from plantmodels.bundle.manifest import read_checked, read_manifest, write_manifest
from plantmodels.bundle.metadata import read_metadata, write_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError, DetectorError, ManifestMismatchError, PlantModelsError
from plantmodels.export.staging import staged_bundle
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.loading import LoadOptions, read_bundle


@pytest.fixture(scope="module")
def encoded(tiny_bundle) -> list[bytes]:
    """One val leaf of each of the nine drawn classes, then one non-plant."""
    folders = sorted((tiny_bundle.data / "val").iterdir())
    paths = [*(min(folder.iterdir()) for folder in folders), tiny_bundle.non_plants / "noise" / "3.png"]
    return [path.read_bytes() for path in paths]


def test_one_reading_serves_classifiers_of_both_precisions_that_share_the_heads(
    tiny_bundle, encoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def record(folder: Path, manifest, names, *, every_file: bool) -> dict[str, bytes]:
        read.extend(names)
        return read_checked(folder, manifest, names, every_file=every_file)

    monkeypatch.setattr("plantmodels.serve.loading.read_checked", record)
    files = [SPECIES_FILES["int8"], SPECIES_FILES["fp16"], PACKED_HEADS_FILE]
    contents = read_bundle(tiny_bundle.bundle, models=files)
    int8 = PlantClassifier.from_contents(contents, LoadOptions(threads=1))
    fp16 = PlantClassifier.from_contents(
        contents, LoadOptions(precision="fp16", threads=1), heads_session=int8.heads_session
    )

    assert read == [METADATA_FILE, HEADS_LIST_FILE, DETECTOR_FILE, *files]
    assert fp16.heads_session is int8.heads_session and fp16.detector is int8.detector
    for classifier in (int8, fp16):
        alone = PlantClassifier.load(tiny_bundle.bundle, precision=classifier.precision, threads=1)
        assert classifier.predict(encoded) == alone.predict(encoded)


def test_a_model_that_was_not_kept_is_read_and_compared_when_it_is_opened(bundle_copy: Path) -> None:
    contents = read_bundle(bundle_copy)
    assert not contents.model_bytes
    PlantClassifier.from_contents(contents, LoadOptions(threads=1))
    path = bundle_copy / PACKED_HEADS_FILE
    path.write_bytes(path.read_bytes() + b"more")

    with pytest.raises(ManifestMismatchError, match=f"changed: {PACKED_HEADS_FILE}"):
        contents.open_packed_heads(LoadOptions(threads=1))


def test_options_name_the_files_that_they_need() -> None:
    assert [LoadOptions(precision=precision).model_files for precision in PRECISIONS] == [
        (SPECIES_FILES["int8"], PACKED_HEADS_FILE),
        (SPECIES_FILES["fp16"], PACKED_HEADS_FILE),
    ]
    assert LoadOptions(public_key="key.pem").public_key == Path("key.pem")


def test_an_unknown_option_is_refused(tiny_bundle) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'thread'"):
        PlantClassifier.load(tiny_bundle.bundle, thread=1)


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

        monkeypatch.setattr("plantmodels.serve.loading.read_checked", check_then_lose)
        rows = PlantClassifier.load(bundle_copy, threads=1).predict(encoded)
        monkeypatch.undo()
        assert rows == PlantClassifier.load(tiny_bundle.bundle, threads=1).predict(encoded)

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
        with pytest.raises(BundleError, match="CoreMLExecutionProvider is not available"):
            PlantClassifier.load(tiny_bundle.bundle, providers=["CoreMLExecutionProvider"])

    def test_it_tells_which_providers_run_the_model(self, tiny_bundle) -> None:
        providers = ["AzureExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider"]
        loaded = PlantClassifier.load(tiny_bundle.bundle, threads=1, providers=providers)
        tells = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")  # since ONNX Runtime 1.24
        assert loaded.providers == (() if tells else ("AzureExecutionProvider",)) + ("CPUExecutionProvider",)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"workers": 0}, "workers must be an integer of at least 1, got 0"),
            ({"workers": "2"}, "workers must be an integer of at least 1, got '2'"),
            ({"allow_paths": "no"}, "allow_paths must be True or False, got 'no'"),
            ({"threads": -5}, "threads must be an integer of at least 1, or None, got -5"),
            ({"providers": "CPUExecutionProvider"}, "providers must be a list of names or .*, got 'CPUExecution"),
            ({"providers": ["TPU"]}, "providers: no build of ONNX Runtime .* has 'TPU'; expected one of A"),
            ({"public_key": 7}, "public_key must be the path of a file or None, got 7"),
        ],
    )
    def test_options_of_another_value_are_refused(self, tiny_bundle, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LoadOptions(**options)
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
    with pytest.raises(ValueError, match="public_key has nothing to check if the caller gives a manifest"):
        read_bundle(tiny_bundle.bundle, manifest=manifest, public_key=signing_keys.public)


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


def test_a_bundle_of_metadata_format_1_is_served_with_the_probability_of_the_answer(
    tiny_bundle, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(tiny_bundle.bundle, tmp_path / "old"))
    document = json.loads((old / METADATA_FILE).read_text(encoding="utf-8"))
    (old / METADATA_FILE).write_text(json.dumps(document | {"format_version": 1}), encoding="utf-8")
    write_manifest(old)
    image = min((tiny_bundle.data / "val").glob("*/*")).read_bytes()
    (answer,) = PlantClassifier.load(old, threads=1).predict([image])
    assert answer.disease_probability == answer.species_probability * answer.disease_given_species_probability
