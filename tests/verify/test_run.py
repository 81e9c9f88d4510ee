import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from plantmodels.bundle.files import read_json, write_json
from plantmodels.bundle.layout import (
    DETECTOR_FILE,
    GATE_REPORT_FILE,
    HEADS_FOLDER,
    HTML_REPORT_FILE,
    IMAGES_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    ONE_FILES,
    PACKED_HEADS_FILE,
    REFERENCE_ANSWERS_FILE,
    REFERENCE_IMAGES_FILE,
    SPECIES_FILES,
    head_file,
    is_report,
)
from plantmodels.bundle.manifest import check_files, list_files, read_manifest, write_manifest
from plantmodels.bundle.metadata import Preprocessing, read_metadata
from plantmodels.data.leaves import LeafSet
from plantmodels.errors import (
    BundleError,
    DataError,
    DetectorError,
    ExportError,
    ManifestMismatchError,
    PlantModelsError,
)
from plantmodels.export.lock import lock_bundle
from plantmodels.report.gate_report import GateReport, read_report
from plantmodels.report.gates import GATES
from plantmodels.report.per_image import ImageRow, read_image_rows
from plantmodels.report.policy import GatePolicy
from plantmodels.serve import loading
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.loading import read_bundle
from plantmodels.serve.reference import read_reference
from plantmodels.verify import opening, parity, reading
from plantmodels.verify import run as run_module
from plantmodels.verify.run import choose_images, read_pixels, verify_bundle
from tests.fixtures.reports import ANY_NUMBER

MODEL_GATES = {"parity", "int8_accuracy", "ood_precision", "ood_recall", "latency"}
ROW = ImageRow(
    *("val", "Apple", "a.jpg", "Apple", "", "Apple", "", "Apple", "", "", ""),
    species_probability=0.5,
    ood_score=1.0,
    rejected=False,
)
FEW = GatePolicy(**ANY_NUMBER)
LENIENT = replace(FEW, parity_max_abs_diff=1, int8_accuracy_max_drop=1, ood_precision_min=0, ood_recall_min=0)


_READS: list[tuple[Path, Counter[str]]] = []


def _note_read(event: str, arguments: tuple[Any, ...]) -> None:
    """Count the opening of a file; does nothing while no test counts, because an audit hook cannot be removed."""
    if event != "open" or not _READS or not isinstance(arguments[0], str):
        return
    folder, reads = _READS[0]
    path = Path(arguments[0])
    if path.is_relative_to(folder):
        reads[path.relative_to(folder).as_posix()] += 1


sys.addaudithook(_note_read)


@contextmanager
def count_reads(folder: Path) -> Iterator[Counter[str]]:
    """Count how often each file below a folder is opened in the block."""
    _READS.append((folder, Counter()))
    try:
        yield _READS[0][1]
    finally:
        _READS.clear()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def verified(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, GateReport]]:
    """Return the tiny bundle, verified with a checkpoint and non-plants, and its report; read-only."""
    bundle = Path(shutil.copytree(tiny_bundle.bundle, tmp_path_factory.mktemp("verified") / "models"))
    report = verify_bundle(
        bundle,
        tiny_bundle.data,
        checkpoint=tiny_bundle.checkpoint,
        non_plants=tiny_bundle.non_plants,
        policy=FEW,
        threads=1,
    )
    yield bundle, report


def verify(tiny_bundle: Any, bundle: Path, **changes: Any) -> GateReport:
    arguments: dict[str, Any] = {"checkpoint": None, "non_plants": None, "policy": LENIENT, "threads": 1}
    data = changes.pop("data", tiny_bundle.data)
    return verify_bundle(bundle, data, **{**arguments, **changes})


def test_every_gate_is_measured_and_the_report_is_in_the_bundle(verified: tuple[Path, GateReport]) -> None:
    bundle, report = verified
    assert [gate.status == "not measured" for gate in report.gates] == [False] * len(GATES)
    check_files(bundle, read_manifest(bundle))
    assert read_report(bundle) == report
    assert report.accuracy is not None and not report.accuracy.confusions
    plots = (
        "worst-classes",
        "calibration",
        "ood-scores",
        "ood-roc",
        "ood-precision",
        "parity",
        "file-sizes",
        "latency",
    )
    written = {GATE_REPORT_FILE, HTML_REPORT_FILE, IMAGES_FILE, REFERENCE_IMAGES_FILE, REFERENCE_ANSWERS_FILE}
    assert written | {f"plots/{name}.png" for name in plots} == {name for name in list_files(bundle) if is_report(name)}
    assert (bundle / HTML_REPORT_FILE).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_report_counts_every_image_of_the_data(verified: tuple[Path, GateReport], tiny_bundle: Any) -> None:
    _, report = verified
    assert report.accuracy is not None
    assert (report.accuracy.fp16.species.images, report.accuracy.fp16.disease.images) == (45, 40)
    assert report.parity is not None
    assert (report.parity.images, report.parity.heads) == (45, 4)
    assert report.rejection is not None
    assert report.rejection.held_out
    assert report.rejection.non_plants.images < 48
    assert (report.inputs.val.images, report.inputs.val.measured) == (45, 45)
    assert report.inputs.non_plants is not None
    assert report.inputs.non_plants.images == 48
    assert report.inputs.checkpoint_sha256 == read_metadata(tiny_bundle.bundle).provenance["checkpoint_sha256"]
    for name in ("loads", "heads_complete", "species_size", "head_size"):
        assert report.gate(name).passed
    assert report.gate("loads").samples == 8


def test_the_bundle_keeps_answers_of_measured_images_of_every_kind(verified: tuple[Path, GateReport]) -> None:
    bundle, _ = verified
    reference, pixels = read_reference(read_bundle(bundle))
    rows = {row.sha256: row for row in read_image_rows(bundle / IMAGES_FILE)}
    kept = [rows[image.sha256] for image in reference.images]
    species = read_metadata(bundle).taxonomy.species

    assert len(kept) == len(pixels) == len({row.sha256 for row in kept}) == 64
    assert reference.onnxruntime == onnxruntime.__version__
    assert Counter(row.set for row in kept) == {"val": 45, "non-plants": 19}  # 48 leaves were wanted, and 45 are there
    assert {row.source for row in kept} == {row.source for row in rows.values()}
    for image, row in zip(reference.images, kept, strict=True):
        assert image.set == row.set
        assert (species[image.int8.species_index], species[image.fp16.species_index]) == (
            row.int8_species,
            row.fp16_species,
        )
        assert (image.int8.species_probability, image.int8.ood_score, image.int8.rejected) == (
            row.species_probability,
            row.ood_score,
            row.rejected,
        )


def test_kept_images_are_chosen_by_their_contents_alone() -> None:
    images = [(Path(f"{n}.jpg"), replace(ROW, sha256=f"{n:02}", source="ab"[n % 2])) for n in range(10)]
    chosen = choose_images(images, 4)

    assert [row.sha256 for _, row in chosen] == ["00", "01", "02", "03"]
    assert choose_images([*images[::-1], *images], 4) == chosen


def test_an_image_that_changes_while_it_is_measured_is_refused(tmp_path: Path) -> None:
    row, preprocessing = replace(ROW, sha256="00"), Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(DataError, match=r"leaf\.jpg: cannot be read any more \(No such file"):
        read_pixels(tmp_path / "leaf.jpg", row, preprocessing)
    (tmp_path / "leaf.jpg").write_bytes(b"another image")
    with pytest.raises(DataError, match=r"leaf\.jpg: changed while being verified"):
        read_pixels(tmp_path / "leaf.jpg", row, preprocessing)


def test_image_rows_add_up_to_the_reported_counts(verified: tuple[Path, GateReport], tiny_bundle: Any) -> None:
    bundle, report = verified
    everything = read_image_rows(bundle / IMAGES_FILE)
    rows = [row for row in everything if row.set == "val"]
    others = [row for row in everything if row.set == "non-plants"]
    accuracy = report.accuracy
    assert accuracy is not None and report.rejection is not None
    leaves = [path.relative_to(tiny_bundle.data).as_posix() for path in (tiny_bundle.data / "val").rglob("leaf *")]
    assert sorted(row.name for row in rows) == sorted(leaves)
    assert sum(row.rejected for row in rows) == report.rejection.plants.count
    assert len(others) == report.rejection.non_plants.images
    assert sum(row.rejected for row in others) == report.rejection.non_plants.count
    assert sum(row.flipped for row in rows) >= max(accuracy.species_flips, accuracy.disease_flips)
    assert sum(row.fp16_species != row.int8_species for row in rows) == accuracy.species_flips
    headed = [row for row in rows if row.disease]
    for paired, pairs in {
        accuracy.species: [(row.fp16_species == row.species, row.int8_species == row.species) for row in rows],
        accuracy.disease: [(row.fp16_disease == row.disease, row.int8_disease == row.disease) for row in headed],
    }.items():
        assert paired.only_first == pairs.count((True, False))
        assert paired.both == pairs.count((True, True))
    served = PlantClassifier.load(bundle, threads=1)
    for row in rows[:4]:
        for routing, disease in (("hard", row.int8_routed_disease), ("soft", row.int8_soft_disease)):
            (answer,) = served.predict([(tiny_bundle.data / row.name).read_bytes()], routing=routing)  # type: ignore[arg-type]
            assert (answer.species, answer.disease or "") == (row.int8_species, disease)
            assert answer.species_probability == row.species_probability
            given = row.disease_given_species_probability, row.soft_disease_given_species_probability
            assert answer.disease_given_species_probability == given[routing == "soft"]
            both = None if given[0] is None else row.species_probability * given[0]
            assert answer.disease_probability == (row.soft_disease_probability if routing == "soft" else both)
            assert answer.rejected == row.rejected


def test_calibration_is_measured_at_the_bundles_temperatures(verified: tuple[Path, GateReport]) -> None:
    bundle, report = verified
    metadata = read_metadata(bundle)
    assert report.accuracy is not None
    probabilities = report.accuracy.probabilities
    assert probabilities.species_temperature == metadata.species_temperature
    assert probabilities.disease_temperature == metadata.disease_temperature
    assert probabilities.served["species"].after.images == report.accuracy.species.images
    images = probabilities.served["disease_given_species"].after.images
    assert images == report.accuracy.disease.images - 5, "Blueberry has one disease, and every species is right"


def test_models_and_their_digests_are_left_as_they_are(verified: tuple[Path, GateReport], tiny_bundle: Any) -> None:
    bundle, report = verified
    before, after = snapshot(tiny_bundle.bundle), snapshot(bundle)
    models = {name for name in before if name != "manifest.json"}
    assert {name: after[name] for name in models} == {name: before[name] for name in models}
    assert dict(report.files) == dict(read_manifest(tiny_bundle.bundle).files)


def without_times(report: GateReport) -> dict[str, Any]:
    document = report.to_dict()
    del document["latency"]
    (latency,) = (gate for gate in document["gates"] if gate["name"] == "latency")
    latency["values"] = latency["detail"] = None
    return document


def test_verifying_twice_gives_the_same_report_but_for_latency(
    verified: tuple[Path, GateReport], tiny_bundle: Any, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(verified[0], tmp_path / "elsewhere"))
    again = verify(
        tiny_bundle,
        bundle,
        checkpoint=tiny_bundle.checkpoint,
        non_plants=tiny_bundle.non_plants,
        policy=FEW,
    )
    assert without_times(again) == without_times(verified[1])
    text = (bundle / GATE_REPORT_FILE).read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert str(tiny_bundle.data) not in text


def test_without_checkpoint_and_non_plants_four_gates_are_not_measured(tiny_bundle: Any, bundle_copy: Path) -> None:
    report = verify(tiny_bundle, bundle_copy)
    assert {gate.name for gate in report.gates if gate.status == "not measured"} == {
        "parity",
        "heads_complete",
        "ood_precision",
        "ood_recall",
    }
    assert not report.passed
    assert report.rejection is not None
    assert report.rejection.plants.images == 45, "false alarms are counted all the same"


def test_a_val_split_without_some_species_and_non_plants_of_one_source(
    tiny_bundle: Any, bundle_copy: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_bundle.data, tmp_path / "data"))
    for folder in ("Mint___unlabelled", "Aloe sp. 2___rot", "Aloe sp. 2___healthy"):
        shutil.rmtree(data / "val" / folder)
    others = Path(shutil.copytree(tiny_bundle.non_plants / "noise", tmp_path / "others" / "noise")).parent
    report = verify_bundle(bundle_copy, data, checkpoint=None, non_plants=others, policy=FEW)
    gate = report.gate("coverage")
    assert (gate.status, gate.measured) == ("failed", 4)
    assert gate.detail == (
        "2 of 5 species have fewer than 5 validation images: Mint (0), Aloe sp. 2 (0); 2 of 8 disease classes have no "
        "validation image: Aloe sp. 2 · rot, Aloe sp. 2 · healthy"
    )
    assert (
        "Mint" in (bundle_copy / HTML_REPORT_FILE).read_text().partition("<h2>Coverage</h2>")[2].partition("</tr>")[0]
    )
    assert report.rejection is not None and set(report.rejection.by_source) == {"noise"}
    assert report.gate("ood_recall").samples == report.rejection.by_source["noise"].images > 0
    assert read_report(bundle_copy) == report


def test_no_more_images_are_measured_than_the_policy_allows(tiny_bundle: Any, bundle_copy: Path) -> None:
    report = verify(tiny_bundle, bundle_copy, policy=GatePolicy(int8_accuracy_max_images=9))
    assert (report.inputs.val.images, report.inputs.val.measured) == (45, 9)
    assert report.accuracy is not None
    assert {row.images for row in report.accuracy.by_species.values()} == {1, 2, 3}


def test_each_precision_runs_once_per_image(
    tiny_bundle: Any, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides 45 leaves and half of the non-plants, each model is tried on three inputs of zeros.

    The answers to 64 images are kept for other machines, and the one file is compared with the INT8 parts on 24 leaves
    and 8 non-plants more.
    """
    seen: list[str] = []
    embed = PlantClassifier.embed

    def count(self: Any, inputs: Any) -> Any:
        seen.extend([self.precision] * len(inputs))  # safe in several threads
        return embed(self, inputs)

    monkeypatch.setattr(PlantClassifier, "embed", count)
    monkeypatch.setattr(run_module, "measure_latency", lambda *args, **kwargs: None)
    report = verify(tiny_bundle, bundle_copy, non_plants=tiny_bundle.non_plants)
    assert report.rejection is not None
    images = 45 + report.rejection.non_plants.images
    assert Counter(seen) == {"int8": images + 3 + 64 + 24 + 8, "fp16": images + 3 + 64}


def test_a_run_keeps_no_large_file_in_memory_and_no_head_open(
    tiny_bundle: Any, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head is opened to see that it opens, and again to compare it, because thousands that stay open fill the memory.

    The one file is opened twice for the same reason. Latency is measured as the bundle is served: with sessions of INT8
    and packed heads of their own.

    Heads are read once. Larger ONNX files are read to compare their digests, to open them and to check their graphs,
    and once more to open them again. The manifest is read three times, because the lock and the staging folder also
    check that the folder they may replace is a bundle.
    """
    opened: Counter[tuple[str, int]] = Counter()
    open_session = opening.open_session

    def count_session(path: Path, content: bytes, **options: Any) -> Any:
        opened[
            path.relative_to(bundle_copy).as_posix() if path.is_absolute() else path.as_posix(), options["threads"]
        ] += 1
        return open_session(path, content, **options)

    for module in (opening, loading):
        monkeypatch.setattr(module, "open_session", count_session)
    with count_reads(bundle_copy) as reads:
        verify(
            tiny_bundle,
            bundle_copy,
            checkpoint=tiny_bundle.checkpoint,
            non_plants=tiny_bundle.non_plants,
            threads=3,
        )
    names = list_files(tiny_bundle.bundle)
    models = [name for name in names if name.endswith(".onnx")]
    again = (SPECIES_FILES["int8"], PACKED_HEADS_FILE, ONE_FILES["int8"])
    large = {SPECIES_FILES["fp16"]: 3, **dict.fromkeys(again, 4)}
    assert reads == Counter({MANIFEST_FILE: 3, **dict.fromkeys(names, 1), **large})
    heads = [name for name in models if name.startswith(f"{HEADS_FOLDER}/")]
    served = [(SPECIES_FILES["int8"], 3), (PACKED_HEADS_FILE, 3)]
    assert opened == Counter([*((name, 1) for name in (*models, *heads, ONE_FILES["int8"])), *served])


def test_unseen_plants_are_reported_and_not_gated(tiny_bundle: Any, bundle_copy: Path) -> None:
    report = verify(tiny_bundle, bundle_copy, unseen_plants=tiny_bundle.non_plants)
    assert report.rejection is not None
    assert report.inputs.unseen_plants is not None
    unseen = report.rejection.unseen_plants
    assert report.inputs.unseen_plants.images == unseen.images == sum(report.rejection.histogram.unseen_plants)
    assert report.gate("ood_recall").status == "not measured"
    rows = [row for row in read_image_rows(bundle_copy / IMAGES_FILE) if row.set == "unseen-plants"]
    assert len(rows) == unseen.images > 0
    assert sum(row.rejected for row in rows) == unseen.count
    assert report.metrics()["ood.unseen_plants_rejected"] == unseen.value


@pytest.mark.slow
def test_field_leaves_are_shown_beside_val_and_not_gated(tiny_bundle: Any, bundle_copy: Path, tmp_path: Path) -> None:
    """The field is a part of val here, so that its numbers are known."""
    names = sorted(path.name for path in (tiny_bundle.data / "val").iterdir())[:2]
    for name in names:
        shutil.copytree(tiny_bundle.data / "val" / name, tmp_path / "field" / name)
    plain = verify(tiny_bundle, bundle_copy, non_plants=tiny_bundle.non_plants)
    report = verify(tiny_bundle, bundle_copy, non_plants=tiny_bundle.non_plants, field=tmp_path / "field")

    assert report.field is not None and report.inputs.field is not None
    assert plain.field is None and report.accuracy == plain.accuracy and report.rejection == plain.rejection
    assert [gate.status for gate in report.gates if gate.name != "latency"] == [
        gate.status for gate in plain.gates if gate.name != "latency"
    ]
    rows = [row for row in read_image_rows(bundle_copy / IMAGES_FILE) if row.set == "field"]
    assert len(rows) == report.inputs.field.images == report.field.accuracy.int8.species.images > 0
    answers = {row.sha256: row for row in read_image_rows(bundle_copy / IMAGES_FILE) if row.set == "val"}
    for row in rows:
        twin = answers[row.sha256]
        assert replace(row, set="val", name=twin.name) == replace(twin, pytorch_ood_score=None)
    assert read_report(bundle_copy) == report
    page = (bundle_copy / HTML_REPORT_FILE).read_text()
    assert "<h2>Field leaves</h2>" in page and "That says nothing about whether the answer is right" in page
    assert (bundle_copy / "plots" / "field.png").is_file()


def test_unknown_field_classes_are_refused_and_the_bundle_stays(
    tiny_bundle: Any, bundle_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "field" / "Fig___rot").mkdir(parents=True)
    before = snapshot(bundle_copy)
    with pytest.raises(DataError, match="field: none of its folders is a class of the checkpoint: Fig___rot"):
        verify(tiny_bundle, bundle_copy, field=tmp_path / "field")
    assert snapshot(bundle_copy) == before


def edit_initializers(path: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, values).astype(values.dtype), tensor.name))
    onnx.save(model, path)


def ruin_int8(bundle: Path) -> None:
    def zero(name: str, values: np.ndarray) -> np.ndarray:
        return values * 0 if values.dtype == np.int8 else values

    edit_initializers(bundle / SPECIES_FILES["int8"], zero)


def shift_fp16(bundle: Path) -> None:
    def shift(name: str, values: np.ndarray) -> np.ndarray:
        return values + 1.5 if name.startswith("species_head.bias") else values

    edit_initializers(bundle / SPECIES_FILES["fp16"], shift)


def swap_heads(bundle: Path) -> None:
    first, second = (bundle / head_file(slug) for slug in ("pepper-bell", "aloe-sp-2"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def turn_classes(bundle: Path) -> None:
    document = read_json(bundle / METADATA_FILE)
    names = document["taxonomy"]["diseases"]["Pepper,_bell"]
    names.reverse()
    from plantmodels.bundle.taxonomy import Taxonomy

    document["class_order_digest"] = Taxonomy.from_dict(document["taxonomy"]).digest
    write_json(bundle / METADATA_FILE, document)
    heads = read_json(bundle / "disease-heads-list.json")
    heads["0"]["diseases"] = names
    write_json(bundle / "disease-heads-list.json", heads)


@pytest.mark.parametrize(
    ("damage", "gate"),
    [
        (ruin_int8, "int8_accuracy"),
        (shift_fp16, "parity"),
        (swap_heads, "heads_complete"),
        (turn_classes, "heads_complete"),
    ],
)
def test_a_doctored_bundle_with_a_matching_manifest_fails_its_gate(
    tiny_bundle: Any,
    bundle_copy: Path,
    damage: Callable[[Path], None],
    gate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parity, "MAX_IMAGES", 11)
    damage(bundle_copy)
    write_manifest(bundle_copy)
    strict = replace(FEW, parity_max_abs_diff=0.2)
    report = verify(tiny_bundle, bundle_copy, checkpoint=tiny_bundle.checkpoint, policy=strict)
    assert report.gate(gate).status == "failed"
    assert read_report(bundle_copy).gate(gate).status == "failed"


@pytest.mark.parametrize("name", [SPECIES_FILES["int8"], SPECIES_FILES["fp16"], PACKED_HEADS_FILE])
def test_a_truncated_model_fails_loads_and_leaves_the_rest_unmeasured(
    tiny_bundle: Any, bundle_copy: Path, name: str
) -> None:
    path = bundle_copy / name
    path.write_bytes(path.read_bytes()[:1000])
    write_manifest(bundle_copy)
    report = verify(tiny_bundle, bundle_copy, checkpoint=tiny_bundle.checkpoint, non_plants=tiny_bundle.non_plants)
    assert (report.gate("loads").status, report.gate("loads").measured) == ("failed", 1)
    for gate in MODEL_GATES:
        assert report.gate(gate).status == "not measured"
        assert "model cannot be run" in report.gate(gate).detail
    assert report.problems["loads"][0].startswith(f"{name}: ")


def test_a_model_with_a_batch_size_baked_in_is_found(tiny_bundle: Any, bundle_copy: Path) -> None:
    path = bundle_copy / SPECIES_FILES["fp16"]
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["first_image" if name == "input" else name for name in node.input]
    first = onnx.helper.make_node("Compress", ["input", "first"], ["first_image"], axis=0)
    model.graph.node.insert(0, first)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([True]), "first"))
    onnx.save(model, path)
    write_manifest(bundle_copy)
    report = verify(tiny_bundle, bundle_copy, checkpoint=tiny_bundle.checkpoint)
    assert report.gate("loads").passed
    assert report.gate("parity").status == "failed"
    assert report.gate("parity").detail.startswith("logits missing or not finite")
    assert report.parity is not None
    answered = {size for size, value in report.parity.by_batch_size.items() if value is not None}
    assert answered == {"1"}


def test_a_model_that_does_not_fit_the_taxonomy_is_not_run(tiny_bundle: Any, bundle_copy: Path) -> None:
    shutil.copyfile(bundle_copy / head_file("pepper-bell"), bundle_copy / SPECIES_FILES["int8"])
    write_manifest(bundle_copy)
    report = verify(tiny_bundle, bundle_copy)
    assert report.gate("int8_accuracy").status == "not measured"
    assert "inputs and outputs are" in report.gate("int8_accuracy").detail


def test_files_that_differ_from_the_manifest_are_refused(tiny_bundle: Any, bundle_copy: Path) -> None:
    ruin_int8(bundle_copy)
    before = snapshot(bundle_copy)
    with pytest.raises(ManifestMismatchError, match=r"changed: swin-species-int8\.onnx"):
        verify(tiny_bundle, bundle_copy)
    assert snapshot(bundle_copy) == before


def test_bad_input_is_refused_before_anything_is_measured(
    tiny_bundle: Any,
    bundle_copy: Path,
    tmp_path: Path,
    tiny_checkpoint_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measuring has begun")

    monkeypatch.setattr(run_module, "_measure", never)
    before = snapshot(bundle_copy)
    (tmp_path / "train only" / "train").mkdir(parents=True)
    (tmp_path / "nothing").mkdir()
    unknown = tmp_path / "unknown" / "val" / "Tulip___virus"
    unknown.mkdir(parents=True)
    (unknown / "1.png").write_bytes(b"x")
    other = tiny_checkpoint_factory(lambda document: document.update(epoch=9))
    cases: list[tuple[dict[str, Any], type[PlantModelsError], str]] = [
        ({"data": tmp_path / "absent"}, DataError, "absent: no such data folder"),
        ({"data": tmp_path / "train only"}, DataError, "val: no such folder"),
        ({"data": tmp_path / "unknown"}, DataError, "'Tulip___virus' is not in the checkpoint"),
        ({"non_plants": tmp_path / "absent"}, DataError, "absent: no such folder of non-plants"),
        ({"non_plants": tmp_path / "nothing"}, DataError, "nothing: holds no images"),
        ({"checkpoint": tmp_path / "absent.ckpt"}, PlantModelsError, "no such checkpoint file"),
        ({"checkpoint": other}, BundleError, "not the same checkpoint"),
    ]
    for changes, error, message in cases:
        with pytest.raises(error, match=message):
            verify(tiny_bundle, bundle_copy, **changes)
    (bundle_copy / DETECTOR_FILE).write_bytes(b"cos\nsystem\n.")
    write_manifest(bundle_copy)
    with pytest.raises(DetectorError, match=r"ood-detector\.pkl"):
        verify(tiny_bundle, bundle_copy)
    for name, content in before.items():
        (bundle_copy / name).write_bytes(content)
    with pytest.raises(BundleError, match="no such bundle folder"):
        verify(tiny_bundle, tmp_path / "no bundle")
    assert snapshot(bundle_copy) == before


def test_an_error_while_measuring_leaves_the_bundle_as_it_was(
    tiny_bundle: Any, bundle_copy: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_bundle.data / "val", tmp_path / "data" / "val")).parent
    for path in sorted(data.rglob("leaf*"))[:3]:
        path.write_bytes(b"torn")
    before, around = snapshot(bundle_copy), set(bundle_copy.parent.iterdir())
    with pytest.raises(DataError, match=r"over 1% of 45 images cannot be read"):
        verify(tiny_bundle, bundle_copy, data=data)
    assert snapshot(bundle_copy) == before
    assert set(bundle_copy.parent.iterdir()) == around


def test_a_file_that_changes_meanwhile_is_noticed(
    tiny_bundle: Any, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = run_module._measure

    def measure_and_meddle(*arguments: Any, **options: Any) -> Any:
        measured = measure(*arguments, **options)
        swap_heads(bundle_copy)
        return measured

    monkeypatch.setattr(run_module, "_measure", measure_and_meddle)
    with pytest.raises(BundleError, match=r"aloe-sp-2-int8\.onnx, .* changed while being verified"):
        verify(tiny_bundle, bundle_copy)
    assert not (bundle_copy / GATE_REPORT_FILE).exists()


def test_a_few_unreadable_leaves_are_named_below_their_folder(
    tiny_bundle: Any, bundle_copy: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_bundle.data / "val", tmp_path / "data" / "val")).parent
    folder = data / "val" / "Mint___unlabelled"
    source = next(iter(folder.glob("*.png")))
    for number in range(70):
        shutil.copyfile(source, folder / f"copy {number}.png")
    (folder / "torn.png").write_bytes(source.read_bytes()[:60])
    report = verify(tiny_bundle, bundle_copy, data=data)
    assert [(image.source, image.name) for image in report.unreadable] == [("val", "val/Mint___unlabelled/torn.png")]
    assert (report.inputs.val.images, report.inputs.val.measured) == (116, 115)
    assert "torn.png" in (bundle_copy / HTML_REPORT_FILE).read_text(encoding="utf-8")


def test_an_older_report_is_replaced(verified: tuple[Path, GateReport], tiny_bundle: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(verified[0], tmp_path / "models"))
    (bundle / "plots" / "old.png").write_bytes(b"old")
    write_manifest(bundle)
    report = verify(tiny_bundle, bundle)
    assert not (bundle / "plots" / "old.png").exists()
    assert read_report(bundle) == report != verified[1]


def test_leaves_of_a_split_are_the_only_ones_read(
    tiny_bundle: Any, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    read = reading.read_leaves

    def note(data: Path, split: Any, taxonomy: Any) -> LeafSet:
        splits.append(split)
        return read(data, split, taxonomy)

    monkeypatch.setattr(reading, "read_leaves", note)
    verify(tiny_bundle, bundle_copy, policy=GatePolicy(int8_accuracy_max_images=2))
    assert splits == ["val"]


def test_a_full_disk_leaves_the_bundle_without_a_report(tiny_bundle: Any, small_disk) -> None:
    disk = small_disk(4096)
    bundle = Path(shutil.copytree(tiny_bundle.bundle, disk.folder / "models"))
    before = snapshot(bundle)
    disk.leave(80)  # for the links and the first files of the report
    with pytest.raises(ExportError, match=r"models: the disk is full.*; nothing was changed"):
        verify(tiny_bundle, bundle)
    assert snapshot(bundle) == before
    assert sorted(path.name for path in disk.folder.iterdir()) == ["filler", "models"]


def test_a_bundle_that_is_being_written_is_not_verified(tiny_bundle: Any, bundle_copy: Path) -> None:
    with lock_bundle(bundle_copy), pytest.raises(ExportError, match=r"bundle copy: process \d+ on .* is writing it"):
        verify_bundle(bundle_copy, Path("not read yet"), checkpoint=None, non_plants=None)


def test_an_absent_bundle_is_refused_and_no_folder_is_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        verify_bundle(tmp_path / "a" / "models", tmp_path, checkpoint=None, non_plants=None)
    assert list(tmp_path.iterdir()) == []
