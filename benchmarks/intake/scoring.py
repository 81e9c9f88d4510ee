"""Measures how many images a second are scored in bulk: by a native loop, by `predict --output` and by the Spark job.

Each runs in a process of its own, in turn, on all of the images and on a quarter of them. The rate is that of the other
three quarters, so that it does not count what it takes to start: Spark alone starts for longer than the student takes
for a thousand images.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.driver import Patience
from benchmarks.intake.images import copy_images
from benchmarks.markdown import render_table

TITLES: Final = {
    "native": "native loop, one thread and a worker for each core",
    "predict": "`plantmodels predict --output`",
    "spark": "Spark job `score`",
}

ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder of this project."""

_START_SHARE: Final = 4
"""A round also runs on the number of images divided by this, to know what starting takes."""

_Commands = Mapping[str, Callable[[str, str], list[str]]]
"""Of each contestant, the command that scores the images of a folder, given its path, into a new output of a name."""


def measure_scoring(
    bundle: Path, images: Path, count: int, rounds: int, patience: Patience, *, spark: bool
) -> dict[str, Any]:
    """Return the images a second of each contestant in each round, and the seconds that starting takes.

    Args:
        bundle: the bundle; for `spark` it must be verified.
        images: a folder of images, at any depth.
        count: number of images to score; those of the folder, as often as needed.
        rounds: number of rounds; in each, every contestant has a turn.
        patience: how long to wait for a quiet machine.
        spark: whether the Spark job takes part.
    """
    few = count // _START_SHARE
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in (few, count):
            copy_images(images, folder / str(number), number)
        commands = _list_commands(bundle.resolve(), folder, spark=spark)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(rounds):
            for name in sorted(commands, reverse=bool(turn % 2)):
                patience.wait()
                both = [
                    _time_process(commands[name](str(folder / str(number)), f"{name}-{turn}-{number}"), folder)
                    for number in (few, count)
                ]
                seconds[name].append((both[0], both[1]))
    return {
        "images": count,
        "rates": {name: [(count - few) / (many - some) for some, many in times] for name, times in seconds.items()},
        "start_s": {
            name: [some - few * (many - some) / (count - few) for some, many in times]
            for name, times in seconds.items()
        },
    }


def _list_commands(bundle: Path, folder: Path, *, spark: bool) -> _Commands:
    python = sys.executable
    commands: dict[str, Callable[[str, str], list[str]]] = {
        "native": lambda images, _: [python, "-m", "benchmarks.intake.native_loop", str(bundle), images],
        "predict": lambda images, output: [
            *(python, "-m", "plantmodels", "predict", images, "--bundle", str(bundle)),
            *("--output", str(folder / f"{output}.parquet")),
        ],
    }
    if spark:
        jobs = [python, "-m", "mlflow_plugins.jobs"]
        _time_process([*jobs, "register", "--bundle", str(bundle), "--name", "plants"], folder)
        commands["spark"] = lambda images, output: [
            *(*jobs, "score", "--model", "models:/plants/1", "--images", images),
            *("--output", str(folder / output)),
        ]
    return commands


def _time_process(command: Sequence[str], folder: Path) -> float:
    """Return the seconds that a command takes.

    Raises:
        click.ClickException: the command fails; the message has the end of its output.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)} failed\n{(done.stdout + done.stderr)[-2000:]}")
    return seconds


def render_scoring(part: Mapping[str, Any]) -> str:
    """Return the part `scoring` as Markdown."""
    rows = []
    for name, rates in part["rates"].items():
        range_of = f"{min(rates):,.0f}–{max(rates):,.0f}"
        start = statistics.median(part["start_s"][name])
        rows.append([TITLES[name], f"{statistics.median(rates):,.0f} ({range_of})", f"{start:.1f}"])
    head = [f"{part['images']:,} images, all cores", "images a second (slowest–quickest)", "start, s"]
    return render_table(head, rows)
