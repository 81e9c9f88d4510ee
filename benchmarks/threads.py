"""Measure whether one thread or all cores give more answers a second, for models of several sizes.

`choose_threads` says by the size of a model's file how many threads it gets. Here one caller, and as many callers as
there are cores, ask a classifier with one thread and one with all cores: on an idle machine, and beside another program
that keeps one core busy.

python -m benchmarks.threads leaves/val public/models student/models --rounds 5
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.driver import PATH, Patience, find_images
from benchmarks.markdown import render_table
from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.cores import choose_threads, count_cores

IMAGES: Final = 64
"""Different images that the callers ask about."""

_PAUSE_S: Final = 0.2
"""Seconds before a turn: threads of the turn before it spin on for a while."""

_BUSY_PROGRAM: Final = "while True: pass"

Rates = dict[tuple[str, bool, int, int], list[float]]
"""Answers a second of each round, by bundle, whether the machine was busy, callers and threads."""


@click.command()
@click.argument("images", type=PATH)
@click.argument("bundles", type=PATH, nargs=-1, required=True)
@click.option("--rounds", default=5, show_default=True, help="Number of turns of each case.")
@click.option("--seconds", default=2.0, show_default=True, help="Length of a turn.")
@click.option("--patience", default=300.0, show_default=True, help="Seconds, in total, to wait for an idle machine.")
def main(images: Path, bundles: Sequence[Path], rounds: int, seconds: float, patience: float) -> None:
    """Print a table of answers a second, and the rates of each round as JSON.

    IMAGES is a folder of images, and each of BUNDLES a bundle to measure.
    """
    measured = measure_threads(bundles, find_images(images), rounds, seconds, Patience(patience))
    click.echo(render_threads(measured))
    click.echo(json.dumps(measured))


def measure_threads(
    bundles: Sequence[Path], images: Sequence[Path], rounds: int, seconds: float, patience: Patience
) -> dict[str, Any]:
    """Return the sizes of the models in bytes, and the answers a second of every case, as JSON can hold them.

    Args:
        bundles: the bundles to measure.
        images: image files; the first `IMAGES` are asked about.
        rounds: number of rounds.
        seconds: length of a turn.
        patience: how long to wait for an idle machine before each idle turn.
    """
    encoded = [path.read_bytes() for path in images[:IMAGES]]
    rates = measure_rates(bundles, encoded, rounds, seconds, patience)
    sizes = {str(bundle): (bundle / SPECIES_FILES["int8"]).stat().st_size for bundle in bundles}
    return {"sizes": sizes, "rates": [[*case, found] for case, found in rates.items()]}


def render_threads(measured: Mapping[str, Any]) -> str:
    """Return a table of what `measure_threads` returned."""
    return render_rates({(*case,): found for *case, found in measured["rates"]}, measured["sizes"])


def measure_rates(
    bundles: Iterable[Path], encoded: Sequence[bytes], rounds: int, seconds: float, patience: Patience
) -> Rates:
    """Return the answers a second of every case; the cases have a turn in each round.

    Args:
        bundles: the bundles to measure.
        encoded: contents of image files.
        rounds: number of rounds.
        seconds: length of a turn.
        patience: how long to wait for an idle machine before each idle turn.
    """
    numbers, rates = sorted({1, count_cores()}), Rates()
    for bundle in bundles:
        opened = {threads: PlantClassifier.load(bundle, threads=threads) for threads in numbers}
        for classifier in opened.values():
            classifier.predict(encoded[:1])
        for busy in (False, True):
            for turn in range(rounds):
                if not busy:
                    patience.wait()
                with keep_core_busy(busy):
                    for callers in numbers:
                        for threads in sorted(opened, reverse=bool(turn % 2)):
                            time.sleep(_PAUSE_S)
                            rate = count_answers(opened[threads], encoded, callers, seconds)
                            rates.setdefault((str(bundle), busy, callers, threads), []).append(rate)
    return rates


def count_answers(classifier: PlantClassifier, encoded: Sequence[bytes], callers: int, seconds: float) -> float:
    """Return the answers a second that so many callers get together, each for one image at a time."""
    start = time.perf_counter()

    def ask(caller: int) -> int:
        images = cycle(encoded[caller:] + encoded[:caller])
        answers = 0
        while time.perf_counter() - start < seconds:
            classifier.predict([next(images)])
            answers += 1
        return answers

    with ThreadPoolExecutor(callers) as pool:
        answers = sum(pool.map(ask, range(callers)))
    return answers / (time.perf_counter() - start)


@contextmanager
def keep_core_busy(busy: bool) -> Iterator[None]:
    """Run another program that uses one core while the block runs; do nothing if `busy` is false."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", _BUSY_PROGRAM])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def render_rates(rates: Rates, sizes: Mapping[str, int]) -> str:
    """Return a table of medians, which says for each case whether the number of threads by the rule is the better one.

    Args:
        rates: answers a second.
        sizes: size of the INT8 species model of each bundle in bytes.
    """
    cases = dict.fromkeys((bundle, busy, callers) for bundle, busy, callers, _ in rates)
    rows = []
    for bundle, busy, callers in cases:
        found = {threads: _spread(rates[bundle, busy, callers, threads]) for threads in _list_threads(rates)}
        ruled = choose_threads(sizes[bundle])
        best = max(found, key=lambda threads: found[threads][1])
        rows.append(
            [
                f"{bundle}, {sizes[bundle] / 1e6:.1f} MB",
                "busy" if busy else "idle",
                str(callers),
                *(f"{median:.1f} ({low:.1f}–{high:.1f})" for low, median, high in found.values()),
                str(ruled),
                "yes" if ruled == best else f"{found[ruled][1] / found[best][1]:.2f}×",
            ]
        )
    heads = [f"{threads} thread{'s' * (threads > 1)}, answers/s" for threads in _list_threads(rates)]
    return render_table(["model", "machine", "callers", *heads, "threads by the rule", "the better one?"], rows)


def _list_threads(rates: Rates) -> list[int]:
    return sorted({threads for *_, threads in rates})


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


if __name__ == "__main__":
    main()
