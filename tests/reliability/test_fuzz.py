"""A bounded number of fuzz cases, the same each time, and proof that the harness finds what it looks for."""

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from reliability.fuzz import fuzz, main, render_table
from reliability.fuzz_targets import TARGETS

CASES = {
    "pickle": 3000,
    "manifest": 3000,
    "metadata": 2000,
    "image": 800,
    "onnx": 800,
    "checkpoint": 500,
    "mlmodel": 1000,
}


@pytest.mark.parametrize(("name", "cases"), CASES.items())
def test_damaged_files_are_read_or_refused_and_nothing_else(name: str, cases: int) -> None:
    result = fuzz(name, seed=1, seconds=1500, cases=cases, hang_after_s=30)

    assert (result.cases, result.crashes, result.hangs, result.side_effects) == (cases, [], [], [])
    assert min(result.accepted, result.refused) > 0
    assert result.accepted + result.refused == cases


def test_every_reader_is_tried() -> None:
    assert set(CASES) == set(TARGETS)


def test_the_harness_finds_an_error_a_signal_a_hang_and_a_side_effect(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    arguments = ["--target", "planted", "--cases", "12", "--minutes", "5", "--hang-after", "0.5", "--out", str(path)]
    run = CliRunner().invoke(main, arguments)
    (found,) = json.loads(path.read_text(encoding="utf-8"))["targets"].values()

    assert run.exit_code == 1
    assert [crash["case"] for crash in found["crashes"]] == [3, 5]
    assert "KeyError: 'planted'" in found["crashes"][0]["error"]
    assert "exit status -11" in found["crashes"][1]["error"]
    assert found["hangs"] == [7]
    assert [effect["case"] for effect in found["side_effects"]] == [9]
    assert (found["cases"], found["accepted"], found["refused"]) == (12, 6, 3)
    assert "| planted | 12 | 6 | 3 | 2 | 1 | 1 |" in run.output


@pytest.mark.parametrize("name", TARGETS)
def test_a_case_is_known_by_its_number(name: str) -> None:
    first, second = (TARGETS[name]().invent(Random(f"{name}/0/7"), 7) for _ in range(2))

    assert first == second


def test_one_case_is_shown_again() -> None:
    run = CliRunner().invoke(main, ["--target", "manifest", "--case", "1"])

    assert run.exit_code == 0
    assert "refused" in run.output or "accepted" in run.output


def test_the_table_has_a_line_a_reader() -> None:
    results = {"pickle": fuzz("pickle", seed=2, seconds=60, cases=3, hang_after_s=30)}

    assert render_table(results).splitlines()[2].startswith("| pickle | 3 |")
