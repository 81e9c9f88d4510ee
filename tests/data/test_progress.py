import io
import logging
import re
import sys

import pytest
from tqdm import tqdm

from plantmodels.data.progress import log_step, log_to_terminal, show_bar, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_steps() -> None:
    with log_step("embed leaves", total=3, unit="image") as advance:
        for _ in range(3):
            advance()
    with log_step("draw plots"):
        pass
    assert list(track(["a", "b"], "rank products")) == ["a", "b"]


def test_a_file_gets_one_line_a_step(capsys: pytest.CaptureFixture[str], progress_lines: list[str]) -> None:
    run_steps()
    assert capsys.readouterr().err == ""
    first, second = progress_lines
    assert re.fullmatch(r"embed leaves: 3 images, \d+\.\d s", first)
    assert re.fullmatch(r"draw plots: \d+\.\d s", second)


def test_a_terminal_gets_bars_that_disappear(monkeypatch: pytest.MonkeyPatch, progress_lines: list[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)  # here and not in a fixture: pytest replaces it in between
    run_steps()
    text = terminal.getvalue()
    assert "embed leaves:   0%" in text and "draw plots ..." in text and "rank products" in text
    assert "\n" not in text and text.endswith("\r")
    assert len(progress_lines) == 2


def test_a_step_that_fails_logs_nothing(progress_lines: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), log_step("embed leaves"):
        raise ZeroDivisionError
    assert progress_lines == []


def test_messages_are_plain_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in ("plantmodels", "mlflow_plugins", "examples")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        log_to_terminal()
        with log_step("store FP16"):
            pass
        logging.getLogger("mlflow_plugins.registry").info("%s versions", 3)
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("store FP16: ") and second == "3 versions"
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def test_a_bar_without_a_total_counts_what_has_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with show_bar("list images", unit="file") as advance:
        advance(40)
        tqdm._instances.pop().refresh()
    assert "list images: 0 files" in terminal.getvalue() and "list images: 40 files" in terminal.getvalue()


def test_without_tqdm_there_is_no_bar(monkeypatch: pytest.MonkeyPatch, progress_lines: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with show_bar("list", unit="file") as advance:
        advance(5)
    run_steps()
    assert len(progress_lines) == 2
