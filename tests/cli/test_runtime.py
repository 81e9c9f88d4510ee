"""`inspect --runtime`: this machine's answers beside those that the bundle keeps."""

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner, Result

from plantmodels.bundle.layout import REFERENCE_ANSWERS_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.cli import main


def inspect(bundle: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", "--bundle", str(bundle), "--runtime", *map(str, arguments)])


def test_the_machine_that_verified_gives_the_same_answers(verified_bundle: Path) -> None:
    result = inspect(verified_bundle)

    assert result.exit_code == 0, result.output
    now = f"ONNX Runtime {onnxruntime.__version__}, "
    shown = result.stdout.partition("\nruntime     ")[2].splitlines()
    assert shown[0] == "the answers to 64 images, now and when the bundle was verified"
    assert shown[1].startswith(f"  then      {now}") and shown[2].startswith(f"  now       {now}")
    assert [line.split() for line in shown[5:7]] == [
        ["INT8", "0", "of", "64", "0", "of", "64", "0", "0"],
        ["FP16", "0", "of", "64", "0", "of", "64", "0", "0"],
    ]
    assert "register" in result.stdout, "what to do next still comes last"


@pytest.fixture
def moved_bundle(verified_bundle: Path, tmp_path: Path) -> Path:
    """A bundle verified elsewhere: another label and another rejection by INT8, other probabilities by FP16."""
    bundle = Path(shutil.copytree(verified_bundle, tmp_path / "models"))
    document = json.loads((bundle / REFERENCE_ANSWERS_FILE).read_text(encoding="utf-8"))
    document |= {"onnxruntime": "1.23.2", "cpu": ""}
    headed = next(image["int8"] for image in document["images"] if image["int8"]["disease_index"] == 1)
    headed["disease_index"] = 0
    document["images"][3]["int8"]["rejected"] ^= True
    document["images"][5]["fp16"]["species_probability"] -= 0.0625
    document["images"][6]["fp16"]["ood_score"] += 7.0
    (bundle / REFERENCE_ANSWERS_FILE).write_text(json.dumps(document), encoding="utf-8")
    write_manifest(bundle)
    return bundle


def test_differences_are_shown(moved_bundle: Path) -> None:
    result = inspect(moved_bundle)

    assert result.exit_code == 0, result.output
    then, _, _, _, int8, fp16 = result.stdout.partition("\nruntime     ")[2].splitlines()[1:7]
    assert then == "  then      ONNX Runtime 1.23.2, unknown processor"
    assert int8.split()[:7] == ["INT8", "1", "of", "64", "1", "of", "64"]
    assert fp16.split() == ["FP16", "0", "of", "64", "0", "of", "64", "0.062", "7"]


def test_a_bundle_that_keeps_no_answers_must_be_verified_again(tiny_bundle) -> None:
    result = inspect(tiny_bundle.bundle)

    assert result.exit_code == 1
    assert result.stderr.strip().endswith(
        f"Error: {tiny_bundle.bundle}: has no reference-answers.json; verify the bundle again to get it"
    )


def test_damaged_answers_are_named(moved_bundle: Path) -> None:
    (moved_bundle / REFERENCE_ANSWERS_FILE).write_text("{}", encoding="utf-8")
    result = inspect(moved_bundle)

    assert result.exit_code == 1 and "changed: reference-answers.json" in result.stderr
    write_manifest(moved_bundle)
    result = inspect(moved_bundle)
    assert result.exit_code == 1 and "reference-answers.json: format_version None, this code reads 1" in result.stderr


def test_the_signature_is_checked_too(moved_bundle: Path, signing_keys) -> None:
    result = inspect(moved_bundle, "--public-key", signing_keys.public)

    assert result.exit_code == 1 and "no manifest.json.sig" in result.stderr
