"""Kill an export or the main job, with all its processes, at many moments, and check what each kill leaves behind.

python -m reliability.kills export --checkpoint .demo/demo.ckpt --data .demo/data --non-plants .demo/non_plants
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import mlflow
import numpy as np
from mlflow import MlflowClient

from benchmarks.driver import PATH
from benchmarks.serving import make_store_environment
from plantmodels.bundle.layout import DETECTOR_FILE, GATE_REPORT_FILE, MANIFEST_FILE, METADATA_FILE
from plantmodels.bundle.manifest import Manifest, build_manifest, check_files, read_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.errors import PlantModelsError
from plantmodels.serve.classifier import PlantClassifier

ROOT: Final = Path(__file__).resolve().parents[1]
JOBS: Final[Mapping[str, tuple[str, ...]]] = {
    "export": ("-m", "plantmodels", "export"),
    "main": ("-m", "mlflow_plugins.jobs", "run"),
}
OLD_SEED, NEW_SEED = 1, 0
NAME: Final = "plant-disease"
POLL_S: Final = 0.0003  # between two looks at the files of a running job
LIMIT_S: Final = 900  # a job that runs longer is killed
ATTEMPTS: Final = 3
"""Number of tries if the job ends before the chosen moment."""

_START: Final = "start"

_FINISHED_STEP: Final = re.compile(r"(?P<step>[^:]+): .*\d\.\d s$")
"""The line that `plantmodels.data.progress` logs when a step ends."""


@dataclass(frozen=True)
class Moment:
    """A job is killed `delay_s` seconds after an event, which is a line that it prints or a file that it makes."""

    after: str
    delay_s: float


@dataclass
class Event:
    """Something that a running job did, and when it did so, in seconds since its start."""

    name: str
    at_s: float


@dataclass(frozen=True)
class Series:
    """The job that one series kills and its inputs; everything that it writes is below `folder`."""

    job: str
    folder: Path
    checkpoint: Path
    data: Path
    non_plants: Path | None

    @property
    def bundle(self) -> Path:
        """The bundle that the job replaces."""
        return self.folder / "public" / "models"

    @property
    def temporary(self) -> Path:
        """The folder of temporary files of the jobs (TMPDIR)."""
        return self.folder / "tmp"

    @property
    def store(self) -> Path:
        """The working folder of the jobs, where their local artifacts are."""
        return self.folder / "store"

    def start(self, seed: int) -> subprocess.Popen[str]:
        """Start the job as the leader of a process group."""
        arguments = ["--checkpoint", self.checkpoint, "--data", self.data, "--bundle", self.bundle, "--seed", str(seed)]
        if self.non_plants is not None:
            arguments += ["--non-plants", self.non_plants]
        paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        return subprocess.Popen(
            [sys.executable, *JOBS[self.job], *map(str, arguments)],
            env=make_store_environment(str(self.store)) | {"TMPDIR": str(self.temporary), "PYTHONPATH": paths},
            cwd=self.store,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@dataclass
class _Watched:
    """A running job and the events seen so far."""

    series: Series
    process: subprocess.Popen[str]
    before: int | None
    models: frozenset[Path]
    started: float
    events: list[Event] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def note_event(self, name: str) -> None:
        if all(event.name != name for event in self.events):
            self.events.append(Event(name, time.monotonic() - self.started))

    def note_steps(self) -> None:
        """Note each step that the job reports as finished."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if finished := _FINISHED_STEP.match(line):
                self.note_event(f"{finished['step']} finished")

    def note_files(self) -> None:
        """Note what the job did to files."""
        out = self.series.bundle
        for folder in out.parent.glob(".*.staging-*"):
            self.note_event("staging folder made")
            bundle = folder / out.name
            for name in (DETECTOR_FILE, METADATA_FILE, MANIFEST_FILE, GATE_REPORT_FILE):
                if (bundle / name).exists():
                    self.note_event(f"{name} written")
        if _inode(out) != self.before:
            self.note_event("swapped")
        for model in self.series.store.glob("mlruns/*/models/m-*"):
            if model not in self.models:
                self.note_event("model logged")
                if (model / "artifacts" / "MLmodel").exists():
                    self.note_event("model uploaded")
        if any(self.series.temporary.glob("plantmodels-*read-back*")):
            self.note_event("reading back")
        elif any(event.name == "reading back" for event in self.events):
            self.note_event("registration")


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _watch(series: Series, seed: int, moment: Moment | None) -> tuple[_Watched, float]:
    """Run the job to its end or kill it at the moment; return what was seen and the seconds that it ran."""
    models = frozenset(series.store.glob("mlruns/*/models/m-*"))
    watched = _Watched(series, series.start(seed), _inode(series.bundle), models, time.monotonic())
    reader = threading.Thread(target=watched.note_steps)
    reader.start()
    watched.note_event(_START)
    try:
        while watched.process.poll() is None and time.monotonic() < watched.started + LIMIT_S:
            watched.note_files()
            known = {event.name: event.at_s for event in watched.events}
            if moment is not None and moment.after in known:
                due = watched.started + known[moment.after] + moment.delay_s
                if time.monotonic() >= due - 2 * POLL_S:
                    time.sleep(max(0.0, due - time.monotonic()))
                    break
            time.sleep(POLL_S)
    finally:
        elapsed = time.monotonic() - watched.started
        if watched.process.poll() is None:
            os.killpg(watched.process.pid, signal.SIGKILL)
        watched.process.wait()
        reader.join()
        assert watched.process.stderr is not None
        watched.process.stderr.close()
    return watched, elapsed


def draw_moments(events: Sequence[Event], total_s: float, count: int, rng: random.Random) -> list[Moment]:
    """Choose moments: one third after events, from the last step backwards, and two thirds spread evenly over the time.

    Args:
        events: events of an undisturbed run, in order.
        total_s: length of that run in seconds.
        count: number of moments.
        rng: source of randomness.
    """
    by_step = -(-count // 3)
    by_time = count - by_step
    spread = [Moment(_START, total_s * (i + rng.random()) / by_time) for i in range(by_time)]
    ends = [*(event.at_s for event in events[1:]), total_s]
    steps = list(zip(events, ends, strict=True))[::-1]
    chosen = [steps[i % len(steps)] for i in range(by_step)]
    return [Moment(event.name, rng.random() * (end - event.at_s)) for event, end in chosen] + spread


def run_series(series: Series, moments: int, seed: int) -> dict[str, Any]:
    """Run the job once undisturbed, which makes the older bundle, then kill a job that replaces it at each moment.

    Returns:
        `seconds` and `events` of the undisturbed run, an entry for each moment, and the sums of losses and leftovers.
    """
    for folder in (series.bundle.parent, series.temporary, series.store):
        folder.mkdir(parents=True)
    timed, total_s = _run_to_end(series, OLD_SEED)
    old = series.folder / "old"
    shutil.copytree(series.bundle, old)
    entries: list[dict[str, Any]] = []
    latest_s = total_s
    for moment in draw_moments(timed.events, total_s, moments, random.Random(seed)):
        entries.append(_kill_once(series, moment, latest_s / total_s, old))
        latest_s = entries[-1]["second_s"] or latest_s
        click.echo(json.dumps(entries[-1]), err=True)
    return {
        "job": series.job,
        "seed": seed,
        "seconds": total_s,
        "events": [asdict(event) for event in timed.events],
        "moments": entries,
        "killed": sum(entry["killed"] for entry in entries),
        "steps": dict(Counter(entry["step"] for entry in entries)),
        "bundles": dict(Counter(entry["bundle"] for entry in entries)),
        "losses": sum(len(entry["losses"]) for entry in entries),
        "left by kills": _sum_counts(entry["left"] for entry in entries),
        "left after the next run": _sum_counts(entry["left_after"] for entry in entries),
    }


def _sum_counts(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter[str]()))


def _run_to_end(series: Series, seed: int) -> tuple[_Watched, float]:
    """Run the job to its end.

    Raises:
        click.ClickException: if the job failed.
    """
    watched, elapsed = _watch(series, seed, None)
    if watched.process.returncode:
        raise click.ClickException(f"{series.job} ended with {watched.process.returncode}: {watched.lines[-1:]}")
    return watched, elapsed


def _kill_once(series: Series, moment: Moment, slowness: float, old: Path) -> dict[str, Any]:
    """Kill the job once while it replaces the older bundle, check what is left, and run the job again.

    Args:
        series: the job and its inputs.
        moment: when to kill it.
        slowness: duration of the latest run relative to the undisturbed one; the delay is scaled by it.
        old: a copy of the older bundle.
    """
    for attempt in range(ATTEMPTS):
        moment = Moment(moment.after, moment.delay_s * (slowness if attempt == 0 else 0.7))
        shutil.rmtree(series.bundle, ignore_errors=True)
        shutil.copytree(old, series.bundle)
        registered = find_versions(series)
        watched, at_s = _watch(series, NEW_SEED, moment)
        killed = watched.process.returncode == -signal.SIGKILL
        if killed:
            break
    losses, which = check_bundle(series.bundle, read_manifest(old))
    after_kill = find_versions(series)
    losses += check_versions(series, after_kill - registered)
    left = count_leftovers(series)
    step = watched.events[-1].name
    try:
        _, second_s = _run_to_end(series, NEW_SEED)
    except click.ClickException as error:
        losses.append(f"the second run failed: {error.message}")
        second_s = 0.0
    problems, now = check_bundle(series.bundle, read_manifest(old))
    losses += problems + ([] if now == "new" else [f"the second run left the {now} bundle"])
    again = find_versions(series) - after_kill
    losses += check_versions(series, again)
    if series.job == "main" and len(again) != 1:
        losses.append(f"the second run registered {len(again)} versions")
    return {
        "after": moment.after,
        "delay_s": round(moment.delay_s, 4),
        "killed": killed,
        "at_s": round(at_s, 3),
        "step": step,
        "bundle": which,
        "registered": len(after_kill - registered),
        "left": left,
        "second_s": round(second_s, 1),
        "left_after": count_leftovers(series),
        "losses": losses,
    }


def check_bundle(out: Path, old: Manifest) -> tuple[list[str], str]:
    """Return the problems of a bundle and which one it is: "old" (byte for byte), "new", "other" or "broken"."""
    try:
        manifest = read_manifest(out)
        check_files(out, manifest)
        which = "old" if build_manifest(out) == old else "new"
        wanted = OLD_SEED if which == "old" else NEW_SEED
        if read_metadata(out).provenance["seed"] != wanted:
            return [f"the bundle has seed {read_metadata(out).provenance['seed']}"], "other"
        return _check_answer(PlantClassifier.load(out, threads=1)), which
    except (PlantModelsError, OSError) as error:
        return [f"the bundle is broken: {error}"], "broken"


def _check_answer(classifier: PlantClassifier) -> list[str]:
    """Return the problems of the classifier's answer to a grey image."""
    (row,) = classifier.predict(np.full((1, 64, 64, 3), 128, np.uint8))
    return [] if row.error is None and row.species is not None else [f"it does not answer: {row.error}"]


def find_versions(series: Series) -> set[str]:
    """Return the numbers of all registered versions; a series of exports has none."""
    if series.job != "main" or not (series.store / "mlflow.db").exists():
        return set()
    return {version.version for version in _client(series).search_model_versions(f"name = '{NAME}'")}


def _client(series: Series) -> MlflowClient:
    uri = make_store_environment(str(series.store))["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def check_versions(series: Series, numbers: set[str]) -> list[str]:
    """Return the problems of registered versions: missing or changed files, or a model that does not load."""
    problems = []
    for number in sorted(numbers):
        version = _client(series).get_model_version(NAME, number)
        model = _client(series).get_logged_model(str(version.source).removeprefix("models:/"))
        bundle = Path(model.artifact_location.removeprefix("file://")) / "data" / "bundle"
        try:
            check_files(bundle, read_manifest(bundle))
            if version.status != "READY" or str(model.status) != "READY":
                problems.append(f"version {number} is {version.status}, its model {model.status}")
            problems += _check_answer(mlflow.pyfunc.load_model(f"models:/{NAME}/{number}").get_raw_model())
        except (PlantModelsError, mlflow.MlflowException, OSError) as error:
            problems.append(f"version {number} is broken: {error}")
    return problems


def count_leftovers(series: Series) -> dict[str, int]:
    """Count everything that should not exist while no job runs."""
    beside = [path for path in series.bundle.parent.iterdir() if path != series.bundle]
    names = [path.name for path in series.temporary.iterdir()]
    left = {
        "staging folders": sum(path.is_dir() for path in beside),
        "lock files": sum(path.is_file() for path in beside),
        "our temporary folders": sum(name.startswith("plantmodels-") for name in names),
        "other temporary files": sum(not name.startswith("plantmodels-") for name in names),
    }
    if series.job == "main" and (series.store / "mlflow.db").exists():
        client = _client(series)
        left["runs that are RUNNING"] = len(client.search_runs(["0"], "attributes.status = 'RUNNING'"))
        models = client.search_logged_models(["0"])
        left["logged models that are PENDING"] = sum(str(model.status) == "PENDING" for model in models)
    return {what: count for what, count in left.items() if count}


@click.command()
@click.argument("job", type=click.Choice(list(JOBS)))
@click.option("--moments", default=25, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, help="Seed of the moments.")
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--data", type=PATH, required=True)
@click.option("--non-plants", type=PATH)
@click.option("--out", type=PATH, help="Write the result to this JSON file.")
def main(
    job: str, moments: int, seed: int, checkpoint: Path, data: Path, non_plants: Path | None, out: Path | None
) -> None:
    """Kill JOB at random moments.

    A kill must lose no bundle and no version, and the next run must leave nothing behind.
    """
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        others = None if non_plants is None else non_plants.resolve()
        result = run_series(Series(job, Path(temporary), checkpoint.resolve(), data.resolve(), others), moments, seed)
    text = json.dumps(result, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    sys.exit(bool(result["losses"]))


if __name__ == "__main__":
    main()
