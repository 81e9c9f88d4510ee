import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from plantmodels.cli import main
from plantmodels.report.gate_report import read_report


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_predict_prints_a_json_line_an_image(tiny_bundle) -> None:
    leaf = next(tiny_bundle.data.glob("val/*/*.jpg"))
    result = run("predict", leaf, "absent.jpg", "--bundle", tiny_bundle.bundle, "--top-k", 2)
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["path"] == str(leaf) and first["error"] is None and len(first["candidates"]) == 2
    assert second["error"] == "no such file: 'absent.jpg'" and second["species"] is None


def test_inspect_names_files_and_classes(tiny_bundle) -> None:
    result = run("inspect", "--bundle", tiny_bundle.bundle)
    assert result.exit_code == 0, result.output
    assert "5 species, 4 with a disease head" in result.stdout and "disease-heads-packed.onnx" in result.stdout


def test_a_signed_bundle_is_inspected_and_asked_by_its_key(
    bundle_copy: Path, tiny_bundle, signing_keys, tmp_path: Path
) -> None:
    leaf = next(tiny_bundle.data.glob("val/*/*.jpg"))
    assert "signature   none" in run("inspect", "--bundle", bundle_copy).stdout
    result = run("sign", "--bundle", bundle_copy, "--private-key", signing_keys.private)
    assert result.exit_code == 0 and result.stdout.startswith(f"wrote {bundle_copy / 'manifest.json.sig'}\n"), (
        result.output
    )
    assert f"mlflow_plugins.jobs register --bundle '{bundle_copy}'" in result.stdout
    assert "signature   not checked, no public key was given" in run("inspect", "--bundle", bundle_copy).stdout
    key = ("--public-key", signing_keys.public)
    assert f"signature   by the key of {signing_keys.public}" in run("inspect", "--bundle", bundle_copy, *key).stdout
    assert run("predict", leaf, "--bundle", bundle_copy, *key).exit_code == 0
    for command in (("inspect", "--bundle", bundle_copy), ("predict", leaf, "--bundle", bundle_copy)):
        result = run(*command, "--public-key", signing_keys.other_public)
        assert result.exit_code == 1 and "not a signature of manifest.json by" in result.output


@pytest.mark.parametrize("asked", [True, False])
def test_the_password_of_a_key_is_asked_for_or_in_the_environment(
    bundle_copy: Path, signing_keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    key = load_pem_private_key(signing_keys.private.read_bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "key.pem").write_bytes(encrypted)
    if not asked:
        monkeypatch.setenv("PLANTMODELS_KEY_PASSWORD", "secret")
    arguments = ["sign", "--bundle", str(bundle_copy), "--private-key", str(tmp_path / "key.pem")]
    result = CliRunner().invoke(main, arguments, input="secret\n" if asked else None)
    assert result.exit_code == 0, result.output
    assert ("Password of the key" in result.output) == asked and "secret" not in result.output


def test_known_error_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = run("inspect", "--bundle", tmp_path / "absent")
    assert result.exit_code == 1
    assert result.stderr.strip() == f"Error: {tmp_path / 'absent'}: no such bundle folder"


def test_wrong_usage_is_status_2() -> None:
    assert run("export").exit_code == 2


def test_verify_writes_the_report_and_its_status_is_the_verdict(bundle_copy: Path, tiny_bundle) -> None:
    result = run("verify", "--bundle", bundle_copy, "--data", tiny_bundle.data)
    report = read_report(bundle_copy)
    assert report.gate("parity").status == "not measured"
    assert result.exit_code == 1 and report.table() in result.stdout


def test_export_refuses_a_foreign_folder_before_the_work(tiny_bundle, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    result = run(
        "export", "--checkpoint", tiny_bundle.checkpoint, "--data", tiny_bundle.data, "--bundle", tmp_path / "mine"
    )
    assert result.exit_code == 1 and "not a bundle, so it is not replaced" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
