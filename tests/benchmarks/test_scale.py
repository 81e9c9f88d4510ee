"""The benchmark of many species and files: a tiny run, its bars and its table."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.bars import Bar, judge_bars
from benchmarks.scale.measure import Plan
from benchmarks.scale.steps import main
from benchmarks.scale.tables import render_scale


def part() -> dict[str, Any]:
    def step(wall_s: float, **more: float) -> dict[str, float]:
        return {"wall_s": wall_s, "cpu_s": wall_s / 2, "server_cpu_s": 20.0, "foreign": 0.01, **more}

    return {
        "plan": vars(Plan()),
        "register_few_as_mlflow": step(9),
        "register_few": step(3),
        "register": step(29.5),
        "listing": step(4, silent_s=0.3),
        "load": step(1.2, added_mb=140.0, loading_mb=210.0),
        "verify": step(40, silent_s=6.0, peak_mb=900.0),
    }


def judge(measured: dict[str, Any] | None) -> list[Bar]:
    return judge_bars({"scale": measured})[-6:]


def test_the_bars_are_judged_by_what_was_measured() -> None:
    assert [(bar.what, bar.measured, bar.bar, bar.verdict) for bar in judge(part())] == [
        ("10,000 species registered on a server of this machine", 29.5, 30, "met"),
        ("100,000 files listed by URI", 4, 5, "met"),
        ("bundle of 10,000 species loaded", 1.2, 1, "**missed**"),
        ("memory that a bundle of 10,000 species adds", 140.0, 150, "met"),
        ("10,000 species verified: longest time without a bar that moves", 6.0, 5, "**missed**"),
        ("10,000 species verified: peak memory", 900.0, 1100, "met"),
    ]
    assert {bar.verdict for bar in judge(None)} == {"not measured"}


def test_a_smaller_plan_is_not_judged() -> None:
    measured = {**part(), "plan": vars(Plan(species=1000, files=5000))}
    assert {bar.verdict for bar in judge(measured)} == {"not measured"}


def test_other_programs_disturb_a_bar() -> None:
    measured = part()
    measured["listing"]["foreign"] = 0.5
    assert [bar.disturbed for bar in judge(measured)] == [False, True, False, False, False, False]


def test_the_table_has_a_row_for_each_step() -> None:
    text = render_scale(part())
    assert "| register 330 species, files sent and read as MLflow does it | 9.00 | 4.50 | 20.00 |  |  |  |" in text
    assert "| load 10,000 species | 1.20 | 0.60 |  |  | 140 | 210 |" in text
    assert "| verify 10,000 species with a few leaves | 40.00 | 20.00 |  | 6.00 |  | 900 |" in text
    assert "| list 100,000 files by URI | 4.00 | 2.00 |  | 0.30 |  |  |" in text


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_loading_and_verifying_are_timed(tiny_bundle, bundle_copy: Path) -> None:
    loaded = run("load", tiny_bundle.bundle)
    assert loaded["wall_s"] > 0 and loaded["loading_mb"] >= loaded["added_mb"]
    verified = run("verify", bundle_copy, tiny_bundle.data, tiny_bundle.checkpoint)
    assert 0 < verified["silent_s"] < verified["wall_s"] and verified["peak_mb"] > 50


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_registering_and_listing_are_timed(verified_bundle: Path) -> None:
    for way in ((), ("--as-mlflow",)):
        registered = run("register", verified_bundle, *way)
        assert registered["files"] > 10 and registered["server_cpu_s"] > 0
    listed = run("listing", "--files", 300)
    assert 0 < listed["silent_s"] <= listed["wall_s"] + 0.1
