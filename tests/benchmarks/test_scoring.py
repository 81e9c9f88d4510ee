"""The part `scoring`: rates without the time that starting takes, and their bars."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.bars import judge_bars
from benchmarks.driver import Patience
from benchmarks.intake import scoring
from benchmarks.intake.scoring import measure_scoring, render_scoring


def test_a_rate_does_not_count_what_it_takes_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates = {"native_loop": 200.0, "predict": 180.0, "score": 100.0}
    starts = {"native_loop": 0.5, "predict": 1.0, "score": 8.0}

    def pretend(command: list[str], folder: Path) -> float:
        assert folder.is_dir()
        name = next((name for name in rates if any(part.endswith(name) for part in command)), None)
        if name is None:
            assert "register" in command
            return 0.0
        images = next(Path(part) for part in command if part.startswith(str(folder)) and Path(part).is_dir())
        return starts[name] + len(list(images.iterdir())) / rates[name]

    monkeypatch.setattr(scoring, "_time_process", pretend)
    (tmp_path / "leaves").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "leaves" / "leaf.png")

    part = measure_scoring(tmp_path / "bundle", tmp_path / "leaves", 40, 2, Patience(0), spark=True)

    assert [part["rates"][name] for name in ("native", "predict", "spark")] == [
        pytest.approx([rate] * 2) for rate in rates.values()
    ]
    assert part["start_s"]["spark"] == pytest.approx([8.0] * 2)
    shown = render_scoring(part)
    assert "| Spark job `score` | 100 (100–100) | 8.0 |" in shown
    bars = {bar.what: bar.verdict for bar in judge_bars({"scoring": part}) if bar.measured is not None}
    assert bars == {
        "images a second of `predict --output` against a native loop": "met",
        "images a second of the Spark job against a native loop": "**missed**",
    }
