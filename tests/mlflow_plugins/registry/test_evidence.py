import os
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml

from mlflow_plugins import flavor
from mlflow_plugins.registry import evidence
from mlflow_plugins.registry.evidence import EvidenceError, has_flavor, read_evidence
from plantmodels.bundle.layout import GATE_REPORT_FILE, MANIFEST_FILE
from plantmodels.bundle.manifest import digest_file
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
    before = read_evidence(str(model)).model_sha256
    (model / "registered_model_meta").write_text("MLflow's own")
    (model / "code/__pycache__").mkdir()
    (model / "code/__pycache__/x.pyc").write_bytes(b"python's own")
    assert read_evidence(str(model)).model_sha256 == before
    (model / "code/more.py").write_text("")
    assert read_evidence(str(model)).model_sha256 != before


def test_a_file_is_read_again_when_only_its_time_of_change_differs(model: Path) -> None:
    read_evidence(str(model))
    path = model / "data/bundle" / GATE_REPORT_FILE
    stat = path.stat()
    text = path.read_text()
    path.write_text(text.replace("0.97", "0.99", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    with pytest.raises(EvidenceError, match=f"changed: {GATE_REPORT_FILE}"):
        read_evidence(str(model))


def test_a_second_reading_opens_no_file_of_the_bundle(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_evidence(str(model))
    monkeypatch.setattr(evidence, "digest_file", lambda path: pytest.fail(f"read again: {path}"))
    assert read_evidence(str(model)) == first


def test_the_cache_of_digests_is_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_MAX_CACHED_DIGESTS", 3)
    read_evidence(str(model))
    assert len(evidence._cached_digests) <= 3


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
    for read in (read_evidence, has_flavor):
        with pytest.raises(EvidenceError, match=message):
            read(str(model))


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
def test_artifacts_that_cannot_be_read_are_named(location: str) -> None:
    for read in (read_evidence, has_flavor):
        with pytest.raises(EvidenceError, match=f"the artifacts at {location} cannot be read"):
            read(location)


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        return model_input


def test_our_flavor_is_recognized(model: Path, tmp_path: Path) -> None:
    mlflow.pyfunc.save_model(tmp_path / "other", python_model=Echo(), pip_requirements=[])
    assert has_flavor(str(model))
    assert not has_flavor(str(tmp_path / "other"))
    with pytest.raises(EvidenceError, match="no such folder"):
        has_flavor(str(tmp_path / "nothing here"))
