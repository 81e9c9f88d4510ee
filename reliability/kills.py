"""Kills an export or the main job, with all its processes, at many moments, and looks at what is left each time.

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

from benchmarks.serving import PATH, own_store
from plantmodels.bundle.layout import DETECTOR_FILE, GATE_REPORT_FILE, MANIFEST_FILE, METADATA_FILE
from plantmodels.bundle.manifest import Manifest, build_manifest, check_files, read_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.errors import PlantModelsError
from plantmodels.serve.classifier import PlantClassifier

ROOT: Final = Path(__file__).resolve().parents[1]
JOBS: Final[Mapping[str, tuple[str, ...]]] = {
    "export": ("-c", "from plantmodels.cli import main; main()", "export"),
    "main": ("-m", "mlflow_plugins.cli", "run"),
}
OLD_SEED, NEW_SEED = 1, 0
NAME: Final = "plant-disease"
POLL_S: Final = 0.0003
LIMIT_S: Final = 900
ATTEMPTS: Final = 3
"""Of a moment that the job was quicker than."""

_START: Final = "start"

_FINISHED_STEP: Final = re.compile(r"(?P<step>[^:]+): .*\d\.\d s$")
"""The line that `plantmodels.data.progress` logs when a step ends."""


@dataclass(frozen=True)
class Moment:
    """When a job is killed: so many seconds after an event, which a line that it prints is, or a file that it makes."""

    after: str
    delay_s: float


@dataclass
class Event:
    """Something that a running job did, and when, in seconds since its start."""

    name: str
    at_s: float


@dataclass(frozen=True)
class Series:
    """Everything that one series of kills is about; all it writes lies in `folder`."""

    job: str
    folder: Path
    checkpoint: Path
    data: Path
    non_plants: Path | None

    @property
    def out(self) -> Path:
        """Of the bundle that is replaced."""
        return self.folder / "public" / "models"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the jobs."""
        return self.folder / "tmp"

    @property
    def store(self) -> Path:
        """Where a job runs, so that local artifacts lie there."""
        return self.folder / "store"

    def start(self, seed: int) -> subprocess.Popen[str]:
        """Starts the job as the leader of a process group."""
        arguments = ["--checkpoint", self.checkpoint, "--data", self.data, "--out", self.out, "--seed", str(seed)]
        if self.non_plants is not None:
            arguments += ["--non-plants", self.non_plants]
        paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        return subprocess.Popen(
            [sys.executable, *JOBS[self.job], *map(str, arguments)],
            env=own_store(str(self.store)) | {"TMPDIR": str(self.temporary), "PYTHONPATH": paths},
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

    def see(self, name: str) -> None:
        if all(event.name != name for event in self.events):
            self.events.append(Event(name, time.monotonic() - self.started))

    def read(self) -> None:
        """Note each step that the job reports as finished."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if finished := _FINISHED_STEP.match(line):
                self.see(f"{finished['step']} finished")

    def look(self) -> None:
        """Notes what the job did to files."""
        out = self.series.out
        for folder in out.parent.glob(".*.staging-*"):
            self.see("staging folder made")
            bundle = folder / out.name
            for name in (DETECTOR_FILE, METADATA_FILE, MANIFEST_FILE, GATE_REPORT_FILE):
                if (bundle / name).exists():
                    self.see(f"{name} written")
        if _inode(out) != self.before:
            self.see("swapped")
        for model in self.series.store.glob("mlruns/*/models/m-*"):
            if model not in self.models:
                self.see("model logged")
                if (model / "artifacts" / "MLmodel").exists():
                    self.see("model uploaded")
        seen = {event.name for event in self.events}
        read_back = any(self.series.temporary.glob("plantmodels-*read-back*"))
        if read_back:
            self.see("reading back")
        elif "reading back" in seen:
            self.see("registration")


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _watch(series: Series, seed: int, moment: Moment | None) -> tuple[_Watched, float]:
    """Runs the job, to its end or to the moment at which it is killed; and how long that was."""
    models = frozenset(series.store.glob("mlruns/*/models/m-*"))
    watched = _Watched(series, series.start(seed), _inode(series.out), models, time.monotonic())
    reader = threading.Thread(target=watched.read)
    reader.start()
    watched.see(_START)
    try:
        while watched.process.poll() is None and time.monotonic() < watched.started + LIMIT_S:
            watched.look()
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
    """A third by what the job does, from its last steps backwards, then two thirds spread over the whole run by time.

    Args:
        events: of an undisturbed run, in order.
        total_s: its length.
        count: how many moments.
        rng: draws them.
    """
    by_step = -(-count // 3)
    by_time = count - by_step
    spread = [Moment(_START, total_s * (i + rng.random()) / by_time) for i in range(by_time)]
    ends = [*(event.at_s for event in events[1:]), total_s]
    steps = list(zip(events, ends, strict=True))[::-1]
    chosen = [steps[i % len(steps)] for i in range(by_step)]
    return [Moment(event.name, rng.random() * (end - event.at_s)) for event, end in chosen] + spread


def run_series(series: Series, moments: int, seed: int) -> dict[str, Any]:
    """Makes an older bundle, which times the job, and kills the job over it at each moment.

    Returns:
        `seconds` and `events` of the undisturbed run, one entry a moment, and the sums of losses and left-overs.
    """
    for folder in (series.out.parent, series.temporary, series.store):
        folder.mkdir(parents=True)
    timed, total_s = _finish(series, OLD_SEED)
    old = series.folder / "old"
    shutil.copytree(series.out, old)
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
        "left by kills": _add(entry["left"] for entry in entries),
        "left after the next run": _add(entry["left_after"] for entry in entries),
    }


def _add(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _finish(series: Series, seed: int) -> tuple[_Watched, float]:
    """Runs the job to its end.

    Raises:
        click.ClickException: it failed.
    """
    watched, elapsed = _watch(series, seed, None)
    if watched.process.returncode:
        raise click.ClickException(f"{series.job} ended with {watched.process.returncode}: {watched.lines[-1:]}")
    return watched, elapsed


def _kill_once(series: Series, moment: Moment, slowness: float, old: Path) -> dict[str, Any]:
    """One kill over the older bundle, what it left, and what a second run makes of that.

    Args:
        series: of the job.
        moment: as drawn.
        slowness: of the machine now, which others use as well; 1 when the moment was drawn.
        old: a copy of the older bundle.
    """
    for attempt in range(ATTEMPTS):
        moment = Moment(moment.after, moment.delay_s * (slowness if attempt == 0 else 0.7))
        shutil.rmtree(series.out, ignore_errors=True)
        shutil.copytree(old, series.out)
        registered = find_versions(series)
        watched, at_s = _watch(series, NEW_SEED, moment)
        killed = watched.process.returncode == -signal.SIGKILL
        if killed:
            break
    losses, which = look_at_bundle(series.out, read_manifest(old))
    after_kill = find_versions(series)
    losses += look_at_versions(series, after_kill - registered)
    left = count_left(series)
    step = watched.events[-1].name
    try:
        _, second_s = _finish(series, NEW_SEED)
    except click.ClickException as error:
        losses.append(f"the second run failed: {error.message}")
        second_s = 0.0
    problems, now = look_at_bundle(series.out, read_manifest(old))
    losses += problems + ([] if now == "new" else [f"the second run left the {now} bundle"])
    again = find_versions(series) - after_kill
    losses += look_at_versions(series, again)
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
        "left_after": count_left(series),
        "losses": losses,
    }


def look_at_bundle(out: Path, old: Manifest) -> tuple[list[str], str]:
    """What is wrong with a bundle, and whether it is the older one, byte for byte, or a new one."""
    try:
        manifest = read_manifest(out)
        check_files(out, manifest)
        which = "old" if build_manifest(out) == old else "new"
        wanted = OLD_SEED if which == "old" else NEW_SEED
        if read_metadata(out).provenance["seed"] != wanted:
            return [f"the bundle is of seed {read_metadata(out).provenance['seed']}"], "other"
        return _ask(PlantClassifier.load(out, threads=1)), which
    except (PlantModelsError, OSError) as error:
        return [f"the bundle is broken: {error}"], "broken"


def _ask(classifier: PlantClassifier) -> list[str]:
    """What is wrong with its answer to a grey picture."""
    (row,) = classifier.predict(np.full((1, 64, 64, 3), 128, np.uint8))
    return [] if row.error is None and row.species is not None else [f"it does not answer: {row.error}"]


def find_versions(series: Series) -> set[str]:
    """Numbers of all registered versions; none of an export's series."""
    if series.job != "main" or not (series.store / "mlflow.db").exists():
        return set()
    return {version.version for version in _client(series).search_model_versions(f"name = '{NAME}'")}


def _client(series: Series) -> MlflowClient:
    uri = own_store(str(series.store))["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def look_at_versions(series: Series, numbers: set[str]) -> list[str]:
    """What is wrong with registered versions: a file that is not there or another, or a model that does not load."""
    problems = []
    for number in sorted(numbers):
        version = _client(series).get_model_version(NAME, number)
        model = _client(series).get_logged_model(str(version.source).removeprefix("models:/"))
        bundle = Path(model.artifact_location.removeprefix("file://")) / "data" / "bundle"
        try:
            check_files(bundle, read_manifest(bundle))
            if version.status != "READY" or str(model.status) != "READY":
                problems.append(f"version {number} is {version.status}, its model {model.status}")
            problems += _ask(mlflow.pyfunc.load_model(f"models:/{NAME}/{number}").get_raw_model())
        except (PlantModelsError, mlflow.MlflowException, OSError) as error:
            problems.append(f"version {number} is broken: {error}")
    return problems


def count_left(series: Series) -> dict[str, int]:
    """What lies where nothing should once no job runs."""
    beside = [path for path in series.out.parent.iterdir() if path != series.out]
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
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--checkpoint", type=PATH, required=True)
@click.option("--data", type=PATH, required=True)
@click.option("--non-plants", type=PATH)
@click.option("--out", type=PATH, help="JSON file of the result.")
def main(
    job: str, moments: int, seed: int, checkpoint: Path, data: Path, non_plants: Path | None, out: Path | None
) -> None:
    """Kill JOB at random moments: no bundle and no version may be lost, and the next run leaves nothing behind."""
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
