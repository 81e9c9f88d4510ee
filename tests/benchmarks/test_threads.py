"""One thread and all cores are compared, and the table says what the rule loses."""

import subprocess

import pytest
from click.testing import CliRunner

from benchmarks import threads
from benchmarks.threads import main, render_rates


def test_every_case_has_a_row(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count_cores", lambda: 2)
    monkeypatch.setattr(threads, "_PAUSE_S", 0)
    folders = [str(path) for path in (tiny_bundle.data / "val", tiny_bundle.bundle)]
    done = CliRunner().invoke(main, [*folders, "--rounds", "1", "--seconds", "0.05", "--patience", "0"])

    assert done.exit_code == 0, done.output
    rows = [line.split(" | ") for line in done.output.splitlines() if line.startswith(f"| {tiny_bundle.bundle}")]
    assert [(row[1], row[2]) for row in rows] == [("idle", "1"), ("idle", "2"), ("busy", "1"), ("busy", "2")]
    assert all(float(cell.partition(" ")[0]) > 0 for row in rows for cell in row[3:5])


def test_one_core_is_measured_once(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count_cores", lambda: 1)
    monkeypatch.setattr(threads, "_PAUSE_S", 0)
    image = next((tiny_bundle.data / "val").rglob("*.png")).read_bytes()
    rates = threads.measure_rates([tiny_bundle.bundle], [image], 1, 0.01, threads.Patience(0))
    assert [(case[1:], len(found)) for case, found in rates.items()] == [((False, 1, 1), 1), ((True, 1, 1), 1)]


def test_the_table_says_what_the_rule_loses() -> None:
    rates = {
        ("small", False, 1, 1): [100.0, 110.0, 120.0],
        ("small", False, 1, 2): [60.0, 55.0, 200.0],
        ("small", True, 2, 1): [80.0],
        ("small", True, 2, 2): [160.0],
    }
    table = render_rates(rates, {"small": 2_000_000})
    assert "| small, 2.0 MB | idle | 1 | 110.0 (100.0–120.0) | 60.0 (55.0–200.0) | 1 | yes |" in table
    assert "| small, 2.0 MB | busy | 2 | 80.0 (80.0–80.0) | 160.0 (160.0–160.0) | 1 | 0.50× |" in table


def test_a_busy_program_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    monkeypatch.setattr(threads.subprocess, "Popen", lambda *args: started.append(start(*args)) or started[-1])
    with threads.keep_core_busy(False):
        assert started == []
    with pytest.raises(KeyError), threads.keep_core_busy(True):
        assert started[0].poll() is None
        raise KeyError
    assert started[0].poll() is not None
