"""Progress of long work: a terminal gets one bar at a time, a log file gets one line for each finished step.

A bar is drawn only where standard error is a terminal, and it disappears when its step ends.

>>> with log_step("embed leaves", total=2, unit="image") as advance:
...     for _ in range(2):
...         advance()
>>> list(track("abc", "count letters"))
['a', 'b', 'c']
"""

import io
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

_LOGGER: Final = logging.getLogger(__name__)

_Item = TypeVar("_Item")


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, count: int = 1, /) -> object:
        """Say that so many more items are done."""


def log_to_terminal() -> None:
    """Write what this project's packages log to standard error, one line for each message.

    Standard output then takes any text: a file name that is not UTF-8 ends no command.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for package in ("plantmodels", "mlflow_plugins", "examples"):
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False  # ONNX Runtime's quantizer gives the root logger a handler too


class _StandardError(logging.Handler):
    """Writes each log record as one line to standard error, above the bar if one is shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = self.format(record)
            if bars := sys.modules.get("tqdm"):
                bars.tqdm.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextmanager
def show_bar(description: str, *, total: int | None = None, unit: str | None = None) -> Iterator[Advance]:
    """Show a progress bar on a terminal while the block runs; write nothing into a file. Without tqdm there is no bar.

    Args:
        description: text in front of the bar.
        total: number of items; None when it is not known beforehand.
        unit: singular noun for one item, by default "step". A bar without a total counts items only if it has a unit.

    Yields:
        A function to call after each item, or with a number after several.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # the environment of a registered version has only what answers images
        yield lambda count=1, /: None
        return
    if total is not None:
        layout = None  # tqdm's own
    elif unit is None:
        layout = "{desc} ..."
    else:
        layout = "{desc}: {n_fmt} {unit}s"
    with tqdm(total=total, desc=description, unit=unit or "step", leave=False, disable=None, bar_format=layout) as bar:
        yield bar.update


@contextmanager
def log_step(description: str, *, total: int | None = None, unit: str | None = None) -> Iterator[Advance]:
    """Show a bar while the block runs, then log one line with the number of items and the seconds it took.

    A block that is left by an exception logs nothing. The arguments and the yielded function are those of `show_bar`.
    """
    start = time.perf_counter()
    with show_bar(description, total=total, unit=unit) as advance:
        yield advance
    items = "" if total is None else f"{total:,} {unit or 'step'}{'s' * (total != 1)}, "
    _LOGGER.info("%s: %s%.1f s", description, items, time.perf_counter() - start)


def track(items: Sequence[_Item], description: str, *, unit: str | None = None) -> Iterator[_Item]:
    """Yield the items one by one and show a bar on a terminal meanwhile."""
    with show_bar(description, total=len(items), unit=unit) as advance:
        for item in items:
            yield item
            advance()
