"""What many images cost: scoring them on one machine, and reading a data set of many small files.

python -m benchmarks.intake score public/models leaves --rounds 3 --spark
python -m benchmarks.intake files --count 50000

`score` is also the part `scoring` of `python -m benchmarks` (`scoring.py`). `files` makes small images and times the
steps of an export that read all files; with `--code FOLDER`, another copy of this project does the same work.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.driver import PATH, Patience
from benchmarks.intake.images import draw_data_set
from benchmarks.intake.scoring import ROOT, measure_scoring
from benchmarks.machine import describe_machine


@click.group()
def main() -> None:
    """Measure scoring of many images, and reading of many files."""


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--count", default=12000, show_default=True, help="Number of images; those of the folder, repeated.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--spark", is_flag=True, help="Measure the Spark job as well; the bundle must be verified.")
def score(bundle: Path, images: Path, count: int, rounds: int, spark: bool) -> None:
    """Print images a second of the native loop, of predict and of the Spark job, as JSON."""
    result = {"machine": describe_machine(), "load": os.getloadavg()}
    click.echo(json.dumps(result | measure_scoring(bundle, images, count, rounds, Patience(0), spark=spark), indent=1))


@main.command()
@click.option("--count", default=50_000, show_default=True, help="Number of leaves; a tenth as many non-plants.")
@click.option("--code", type=PATH, multiple=True, help="Another copy of this project, such as a git worktree.")
def files(count: int, code: tuple[Path, ...]) -> None:
    """Print seconds and added memory of the steps of an export that read all files, as JSON."""
    result: dict[str, Any] = {"machine": describe_machine(), "load": os.getloadavg(), "leaves": count}
    script = Path(__file__).with_name("read_files.py")
    with tempfile.TemporaryDirectory() as temporary:
        draw_data_set(Path(temporary), count)
        for root in (*code, ROOT):
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
