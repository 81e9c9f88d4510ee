import logging
import mmap
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from mlflow_plugins import flavor
from mlflow_plugins.registry import evidence
from mlflow_plugins.registry.artifacts.local import LocalFiles
from mlflow_plugins.registry.evidence import EvidenceError, has_flavor, read_evidence
from plantmodels.bundle.layout import MANIFEST_FILE, METADATA_FILE, SPECIES_FILES
from plantmodels.bundle.manifest import digest_file
from plantmodels.errors import BundleError
from plantmodels.report.policy import GatePolicy


@pytest.fixture
def model(good_bundle: Path, tmp_path: Path) -> Path:
    """A saved model of our flavor that may be changed."""
    flavor.save_model(good_bundle, tmp_path / "model")
    return tmp_path / "model"


def edit(model: Path, **changes: object) -> None:
    """Changes our flavor's entry in MLmodel."""
    document = yaml.safe_load((model / "MLmodel").read_text())
    document["flavors"]["plantmodels"].update(changes)
    (model / "MLmodel").write_text(yaml.safe_dump(document))


def test_the_evidence_of_a_complete_model(model: Path) -> None:
    found = read_evidence(str(model))
    assert found.manifest_sha256 == digest_file(model / "data/bundle" / MANIFEST_FILE).sha256
    assert found.find_failures(GatePolicy()) == ()
    assert [gate.name for gate in found.find_failures(GatePolicy(ood_recall_min=0.98))] == ["ood_recall"]


def test_the_digest_is_of_every_file_and_its_name(model: Path) -> None:
    before = read_evidence(str(model)).digest_model()
    (model / "registered_model_meta").write_text("MLflow's own")
    (model / "code/__pycache__").mkdir()
    (model / "code/__pycache__/x.pyc").write_bytes(b"python's own")
    assert read_evidence(str(model)).digest_model() == before
    (model / "code/more.py").write_text("")
    assert read_evidence(str(model)).digest_model() != before


def test_a_write_through_a_memory_map_is_noticed(model: Path) -> None:
    """It changes neither size, inode nor times of the file, by which a digest could be remembered."""
    path = model / "data/bundle" / SPECIES_FILES["int8"]
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[-1] ^= 1
        before = path.stat()  # the first write has set the times
        with pytest.raises(EvidenceError, match=f"changed: {SPECIES_FILES['int8']}"):
            read_evidence(str(model)).digest_model()
        view[-1] ^= 1
        after = path.stat()
        assert (before.st_mtime_ns, before.st_ctime_ns, before.st_ino) == (
            after.st_mtime_ns,
            after.st_ctime_ns,
            after.st_ino,
        )
        read_evidence(str(model)).digest_model()


def test_a_report_is_judged_once_for_each_manifest(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[object] = []
    genuine = evidence._judge_contents

    def count(*arguments: Any) -> object:
        judged.append(arguments)
        return genuine(*arguments)

    monkeypatch.setattr(evidence, "_judge_contents", count)
    monkeypatch.setattr(evidence, "_remembered", {})
    with ThreadPoolExecutor(8) as threads:  # all of them ask before the first has the answer
        first, *others = threads.map(read_evidence, [str(model)] * 8)
    assert all(other.report is first.report for other in others)
    assert len(judged) == 1
    assert read_evidence(str(model)).judge_gates(GatePolicy()) is first.judge_gates(GatePolicy())
    assert read_evidence(str(model)).judge_gates(GatePolicy(ood_recall_min=0.98)) != first.judge_gates(GatePolicy())
    path = model / "data/bundle" / METADATA_FILE
    path.write_bytes(path.read_bytes() + b" ")  # what was judged before vouches for no other content
    with pytest.raises(EvidenceError, match=r"changed: onnx-metadata\.json"):
        read_evidence(str(model))


def test_the_bytes_that_are_digested_are_the_bytes_that_are_parsed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is opened once, so another content put there meanwhile is judged by neither check."""
    opened: list[str] = []
    genuine = LocalFiles._open

    def count(self: LocalFiles, name: str) -> object:
        opened.append(name)
        return genuine(self, name)

    monkeypatch.setattr(LocalFiles, "_open", count)
    read_evidence(str(model)).digest_model()
    assert len(opened) == len(set(opened)) == sum(path.is_file() for path in model.rglob("*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundle": "elsewhere"}, "does not describe a plantmodels bundle in data/bundle"),
        ({"manifest_sha256": "0" * 64}, "manifest.json is not the one that MLmodel was written for"),
        ({"class_order_digest": "0" * 64}, "the class order is not the one that MLmodel was written for"),
    ],
)
def test_an_mlmodel_of_another_bundle_is_refused(model: Path, changes: dict[str, str], message: str) -> None:
    edit(model, **changes)
    with pytest.raises(EvidenceError, match=message):
        read_evidence(str(model))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the YAML expected"),
        ("- 1", "expected a YAML object, got list"),
        ("flavors: 3", "names no flavors"),
        ("#" * (4 * 2**20 + 1), "4,194,305 bytes, at most 4,194,304 are read"),
    ],
)
def test_an_invalid_mlmodel_is_refused(model: Path, text: str, message: str) -> None:
    (model / "MLmodel").write_text(text)
    with pytest.raises(EvidenceError, match=message):
        read_evidence(str(model))


def test_links_are_refused(model: Path, tmp_path: Path) -> None:
    path = model / "data/bundle/report.html"
    shutil.move(path, tmp_path / "elsewhere.html")
    path.symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(EvidenceError, match=r"report\.html"):
        read_evidence(str(model))


def test_gates_of_a_bundle_that_was_never_verified_are_unknown(tiny_bundle, tmp_path: Path) -> None:
    flavor.save_model(tiny_bundle.bundle, tmp_path / "model")
    with pytest.raises(EvidenceError, match="it was never verified"):
        read_evidence(str(tmp_path / "model")).find_failures(GatePolicy())


@pytest.mark.parametrize("location", ["mlflow-artifacts:/1/models/m-1", "s3://bucket/m", "nothing://here"])
def test_artifacts_that_cannot_be_read_are_an_error(location: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("mlflow").propagate = True
    for read in (read_evidence, has_flavor):
        with pytest.raises(EvidenceError, match=r"its files cannot be read \(\w+; the server's log says more\)"):
            read(location)
        assert f"{location} cannot be read" in caplog.text


def test_refusals_hold_no_path_of_the_server(model: Path, tmp_path: Path) -> None:
    (model / "data/bundle" / SPECIES_FILES["int8"]).write_bytes(b"")
    (model / "data/more").symlink_to(tmp_path)
    for folder in (model, tmp_path / "nothing here", tmp_path):
        with pytest.raises(EvidenceError) as error:
            read_evidence(str(folder))
        assert str(tmp_path) not in str(error.value)


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        return model_input


def test_our_flavor_is_recognized(model: Path, tmp_path: Path) -> None:
    mlflow.pyfunc.save_model(tmp_path / "other", python_model=Echo(), pip_requirements=[])
    assert has_flavor(str(model))
    assert not has_flavor(str(tmp_path / "other"))
    with pytest.raises(EvidenceError, match="MLmodel: no such file"):
        has_flavor(str(tmp_path / "nothing here"))


@pytest.mark.parametrize(
    "content",
    [
        b"flavors: {plantmodels: {}}",
        b'flavors: {"\\x70lantmodels": {}}',
        b'flavors:\n  ? "plant\\\n    models"\n  : {}',
        "flavors: {plantmodels: {}}".encode("utf-16"),
    ],
)
def test_no_spelling_of_yaml_hides_our_flavor(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "MLmodel").write_bytes(content)
    assert has_flavor(str(tmp_path))


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "MLmodel").write_bytes(b"flavors: {}")
    status = (tmp_path / "MLmodel").stat()
    smaller = os.stat_result((*status[:6], 3, *status[7:]))
    monkeypatch.setattr(os, "fstat", lambda descriptor: smaller)

    assert LocalFiles(tmp_path).read("MLmodel", 11) == b"flavors: {}"
    with pytest.raises(BundleError, match="MLmodel: 3 bytes, at most 10 are read"):
        LocalFiles(tmp_path).read("MLmodel", 10)
