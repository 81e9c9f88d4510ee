"""A wrong path is an error before torch is imported, which takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import importlib, json, sys
main = importlib.import_module(sys.argv[1]).main
for arguments in json.loads(sys.argv[2]):
    try:
        main(arguments, standalone_mode=False)
        print("no error")
    except Exception as error:
        print(f"{'torch' in sys.modules} {type(error).__name__} {error}")
"""


def run_all(module: str, commands: list[list[str]], **environment: str) -> list[str]:
    """What each command raises, one after the other in one fresh process, and whether torch is loaded then."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, module, json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.fixture
def inputs(tiny_bundle, tmp_path: Path) -> dict[str, str]:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("do not touch")
    return {
        "--checkpoint": str(tiny_bundle.checkpoint),
        "--teacher": str(tiny_bundle.checkpoint),
        "--data": str(tiny_bundle.data),
        "--non-plants": str(tiny_bundle.non_plants),
        "--unseen-plants": str(tiny_bundle.non_plants),
        "--field": str(tiny_bundle.data / "val"),
        "--bundle": str(tiny_bundle.bundle),
        "--policy": str(ROOT / "gates.toml"),
        "--out": str(tmp_path / "x.ckpt"),
        "foreign": str(foreign),
        "absent": str(tmp_path / "absent" / "file"),
    }


MISSING = {
    "--checkpoint": ": no such checkpoint file",
    "--teacher": ": no such checkpoint file",
    "--data": ": no such data folder or manifest",
    "--non-plants": ": no such folder of non-plants",
    "--unseen-plants": ": no such folder of unseen plants",
    "--field": ": no such folder or manifest of field leaves",
    "--policy": ": cannot be read (No such file or directory)",
    "--out": " is not a folder that can be written to",
}


def break_each(command: str, given: list[str], inputs: dict[str, str], **others: str) -> list[tuple[list[str], str]]:
    """The command with each of the given options missing in turn, and what the error must say."""
    cases = []
    for wrong in given:
        values = {option: inputs["absent"] if option == wrong else inputs[option] for option in given}
        arguments = [word for option, value in (values | others).items() for word in (option, value)]
        cases.append(([command, *arguments], MISSING[wrong]))
    return cases


def check(module: str, cases: list[tuple[list[str], str]], inputs: dict[str, str], **environment: str) -> None:
    lines = run_all(module, [arguments for arguments, _ in cases], **environment)
    assert len(lines) == len(cases)
    for line, (arguments, message) in zip(lines, cases, strict=True):
        assert line.startswith("False ClickException "), (arguments, line)
        assert message in line and (inputs["absent"] in line or inputs["foreign"] in line), (arguments, line)


def test_the_programs_for_people(inputs: dict[str, str]) -> None:
    absent, bundle = inputs["absent"], inputs["--bundle"]
    export = ["--checkpoint", "--data", "--non-plants"]
    cases = [
        *break_each("export", export, inputs, **{"--bundle": inputs["foreign"] + "/new"}),
        *break_each("verify", [*export, "--unseen-plants", "--field", "--policy"], inputs, **{"--bundle": bundle}),
        *break_each("train", ["--data", "--out", "--non-plants"], inputs),
        *break_each("distill", ["--teacher", "--data", "--out", "--non-plants"], inputs),
        (["export", *_words(inputs, export), "--bundle", inputs["foreign"]], "not a bundle, so it is not replaced"),
        (["verify", "--data", inputs["--data"], "--bundle", absent], "no such bundle folder"),
        (["inspect", "--bundle", absent], "no such bundle folder"),
        (["inspect", "--bundle", bundle, "--public-key", absent], "cannot be read"),
        (["predict", "leaf.jpg", "--bundle", absent], "no such bundle folder"),
        (["predict", "leaf.jpg", "--bundle", bundle, "--public-key", absent], "cannot be read"),
        (["sign", "--bundle", bundle, "--private-key", absent], "cannot be read"),
        (["compare", absent, bundle], "no such bundle folder"),
    ]
    check("plantmodels.cli", cases, inputs)


@pytest.mark.slow
def test_the_jobs(inputs: dict[str, str], embedded_mlflow: str) -> None:
    absent, bundle = inputs["absent"], inputs["--bundle"]
    export = ["--checkpoint", "--data", "--non-plants"]
    cases = [
        *break_each("run", [*export, "--unseen-plants", "--field", "--policy"], inputs, **{"--bundle": bundle}),
        *break_each("export", export, inputs, **{"--bundle": bundle}),
        *break_each("verify", [*export, "--unseen-plants", "--field", "--policy"], inputs, **{"--bundle": bundle}),
        *break_each("train", ["--data", "--out", "--non-plants"], inputs),
        *break_each("distill", ["--teacher", "--data", "--out", "--non-plants"], inputs),
        *break_each("show", ["--data", "--non-plants"], inputs),
        (["run", *_words(inputs, export), "--bundle", inputs["foreign"]], "not a bundle, so it is not replaced"),
        (["verify", *_words(inputs, export), "--bundle", absent], "no such bundle folder"),
        (["register", "--bundle", absent], "no such bundle folder"),
        (["register", "--bundle", bundle, "--example", absent], "no such image"),
        (
            ["score", "--model", "models:/a/1", "--images", absent, "--output", f"{absent}.parquet"],
            "no such folder or table",
        ),
    ]
    check("mlflow_plugins.jobs.__main__", cases, inputs, MLFLOW_TRACKING_URI=embedded_mlflow)


def _words(inputs: dict[str, str], options: list[str]) -> list[str]:
    return [word for option in options for word in (option, inputs[option])]
