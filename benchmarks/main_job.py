"""Measure the main job as a user runs it, and where each second goes: on the clock, and of the processors.

A job that keeps both of two cores busy uses twice as much processor time as time on the clock.

python -m benchmarks.main_job measure --checkpoint last.ckpt --data leaves --non-plants non_plants
"""

import contextlib
import json
import logging
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.bars import Bar
from benchmarks.driver import PATH, QUIET, Patience, run_quietly
from benchmarks.markdown import render_table

MODULE: Final = "benchmarks.main_job"

BAR_S: Final = 120
"""Seconds that the main job may take for a Swin-Tiny with 3,394 training leaves, on two quiet cores."""

_STEP: Final = re.compile(r"(?P<name>[^:]+): (?:[\d,]+ [a-z]+, )?[\d,.]+ s")
"""A line that `plantmodels.data.progress.log_step` logs."""

_REST: Final = "the rest"


@dataclass(frozen=True)
class Step:
    """One step of a job, from the end of the step before it to its own end.

    Attributes:
        name: what the job calls it.
        clock_s: seconds on the clock.
        processor_s: seconds of processor time, of all threads and ended child processes.
    """

    name: str
    clock_s: float
    processor_s: float


class StepRecorder(logging.Handler):
    """Records when the steps of a job end, by what they log.

    The first step counts the processor time of this process from its start.
    """

    def __init__(self) -> None:
        """Start the first step."""
        super().__init__()
        self.steps: list[Step] = []
        self._before = time.perf_counter(), 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """End a step if the record says so."""
        if found := _STEP.fullmatch(record.getMessage()):
            self.end_step(found["name"])

    def end_step(self, name: str) -> None:
        """End the current step, and start the next."""
        now = _read_clocks()
        clock_s, processor_s = (after - before for after, before in zip(now, self._before, strict=True))
        self.steps.append(Step(name, clock_s, processor_s))
        self._before = now


def _read_clocks() -> tuple[float, float]:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


@click.group()
def main() -> None:
    """Measure the main job."""


@main.command()
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--data", type=PATH, required=True)
@click.option("--non-plants", type=PATH)
def once(checkpoint: Path, data: Path, non_plants: Path | None) -> None:
    """Run the main job in this process, into a new store, and print its steps as JSON."""
    recorder = StepRecorder()
    logger = logging.getLogger("plantmodels")
    logger.addHandler(recorder)
    logger.setLevel(logging.INFO)
    checkpoint, data = checkpoint.resolve(), data.resolve()
    non_plants = None if non_plants is None else non_plants.resolve()
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as folder, contextlib.chdir(folder):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        from mlflow_plugins.jobs.main import run_main_job
        from mlflow_plugins.jobs.requests import JobRequest

        recorder.end_step("start")
        run_main_job(JobRequest(checkpoint, data, non_plants, bundle=Path("bundle")))
        recorder.end_step(_REST)
    click.echo(json.dumps({"steps": [asdict(step) for step in recorder.steps]}))


@main.command()
@click.option("--checkpoint", type=PATH, required=True, help="The checkpoint to export.")
@click.option("--data", type=PATH, required=True, help="Leaf folders with the splits train and val.")
@click.option("--non-plants", type=PATH, help="Folder of images that show no plant.")
@click.option("--patience", default=900.0, show_default=True, help="Seconds, in total, to wait for a quiet machine.")
@click.option("--out", type=PATH, help="Write the steps into this JSON file, too.")
def measure(checkpoint: Path, data: Path, non_plants: Path | None, patience: float, out: Path | None) -> None:
    """Run the main job in a process of its own, and print a table of its steps."""
    arguments = ["once", "--checkpoint", str(checkpoint), "--data", str(data)]
    arguments += [] if non_plants is None else ["--non-plants", str(non_plants)]
    measured = run_quietly(Patience(patience), MODULE, arguments)
    if out is not None:
        out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    click.echo(describe(measured))


def describe(measured: Mapping[str, Any]) -> str:
    """Return the table of the steps, and whether the bar is met.

    Args:
        measured: `steps` as `once` prints them; `process_s`, from the start of the process to its end; and `foreign`,
            the share of the processors that other programs used.
    """
    steps = [Step(**step) for step in measured["steps"]]
    used = sum(step.processor_s for step in steps)
    rows = [[step.name, f"{step.clock_s:.1f}", f"{step.processor_s:.1f}", _divide(step)] for step in merge_steps(steps)]
    total = Step("all", measured["process_s"], used)
    rows.append([total.name, f"{total.clock_s:.1f}", f"{total.processor_s:.1f}", _divide(total)])
    bar = Bar("main job", total.clock_s, BAR_S, None, unit=" s", disturbed=measured["foreign"] > QUIET)
    disturbed = f"; other programs used {measured['foreign']:.0%} of the processors" * bar.disturbed
    table = render_table(["step", "on the clock, s", "of the processors, s", "cores busy"], rows)
    return f"{table}\n\nmain job: {total.clock_s:.0f} s, bar {BAR_S} s: {bar.verdict}{disturbed}"


def merge_steps(steps: Sequence[Step]) -> list[Step]:
    """Return the steps with those of one name as one, in the order of their first ends."""
    merged: dict[str, Step] = {}
    for step in steps:
        before = merged.get(step.name, Step(step.name, 0.0, 0.0))
        merged[step.name] = Step(step.name, before.clock_s + step.clock_s, before.processor_s + step.processor_s)
    return list(merged.values())


def _divide(step: Step) -> str:
    return f"{step.processor_s / step.clock_s:.1f}" if step.clock_s > 0 else "–"


if __name__ == "__main__":
    sys.exit(main())
