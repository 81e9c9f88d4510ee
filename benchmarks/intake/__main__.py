"""What many images cost: scoring them on one machine, and reading a data set of many small files.

python -m benchmarks.intake score public/models leaves --rounds 3 --spark
python -m benchmarks.intake files --count 50000

`score` runs the native loop, `plantmodels predict --output` and the Spark job in turn, each in a process of its own,
over the same images. Times are those of whole processes, start included. `files` makes small images and times the steps
of an export that read all files; with `--code FOLDER`, another copy of this project does the same work.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.driver import PATH
from benchmarks.intake.images import copy_images, draw_data_set
from benchmarks.machine import describe_machine

_ROOT: Final = Path(__file__).resolve().parents[2]


@click.group()
def main() -> None:
    """Measure scoring of many images, and reading of many files."""


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--count", default=4000, show_default=True, help="Number of images; those of the folder, repeated.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--spark", is_flag=True, help="Measure the Spark job as well; the bundle must be verified.")
def score(bundle: Path, images: Path, count: int, rounds: int, spark: bool) -> None:
    """Print images a second of the native loop, of predict and of the Spark job, as JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_images(images, folder / "images", count)
        contestants = build_contestants(bundle.resolve(), folder, spark=spark)
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(rounds):
            for name in sorted(contestants, reverse=bool(turn % 2)):
                seconds[name].append(time_process(contestants[name](turn), folder))
    result: dict[str, Any] = {"machine": describe_machine(), "load": os.getloadavg(), "images": count}
    result["images_per_second"] = {
        name: {"median": round(count / statistics.median(times), 1), "rounds": [round(count / s, 1) for s in times]}
        for name, times in seconds.items()
    }
    result["predict_to_native"] = [
        round(native / predict, 3) for native, predict in zip(seconds["native"], seconds["predict"], strict=True)
    ]
    click.echo(json.dumps(result, indent=1))


def build_contestants(bundle: Path, folder: Path, *, spark: bool) -> dict[str, Callable[[int], list[str]]]:
    """Return for each contestant the command of a round; each round writes an output of its own."""
    python, images = sys.executable, str(folder / "images")
    contestants: dict[str, Callable[[int], list[str]]] = {
        "native": lambda _: [python, "-m", "benchmarks.intake.native_loop", str(bundle), images],
        "predict": lambda turn: [
            *(python, "-m", "plantmodels", "predict", images, "--bundle", str(bundle)),
            *("--output", str(folder / f"predict-{turn}.parquet")),
        ],
    }
    if spark:
        register(bundle, folder)
        contestants["spark"] = lambda turn: [
            *(python, "-m", "mlflow_plugins.jobs", "score", "--model", "models:/plants/1", "--images", images),
            *("--output", str(folder / f"spark-{turn}")),
        ]
    return contestants


def register(bundle: Path, folder: Path) -> None:
    """Register a verified bundle as plants, version 1, in a database in the folder."""
    command = [sys.executable, "-m", "mlflow_plugins.jobs", "register", "--bundle", str(bundle), "--name", "plants"]
    time_process(command, folder)


def time_process(command: list[str], folder: Path) -> float:
    """Return the seconds that a command takes.

    Raises:
        click.ClickException: the command fails; the message has the end of its output.
    """
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)} failed\n{(done.stdout + done.stderr)[-2000:]}")
    return seconds


@main.command()
@click.option("--count", default=50_000, show_default=True, help="Number of leaves; a tenth as many non-plants.")
@click.option("--code", type=PATH, multiple=True, help="Another copy of this project, such as a git worktree.")
def files(count: int, code: tuple[Path, ...]) -> None:
    """Print seconds and added memory of the steps of an export that read all files, as JSON."""
    result: dict[str, Any] = {"machine": describe_machine(), "load": os.getloadavg(), "leaves": count}
    script = Path(__file__).with_name("read_files.py")
    with tempfile.TemporaryDirectory() as temporary:
        draw_data_set(Path(temporary), count)
        for root in (*code, _ROOT):
            environment = os.environ | {"PYTHONPATH": str(root.resolve())}
            done = subprocess.run(
                [sys.executable, str(script), temporary], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise click.ClickException(f"{root}: {done.stderr[-2000:]}")
            result[str(root.name)] = json.loads(done.stdout)
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
