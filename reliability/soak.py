"""Run a serving process for long: threads ask one handle while its version changes and one version is broken.

python -m reliability.soak public/models leaves/val --minutes 60
"""

import dataclasses
import json
import os
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Final

import click
import numpy as np

from benchmarks.driver import PATH, find_images, run_child
from benchmarks.processes import read_memory
from benchmarks.serving import MODULE, make_store_environment
from mlflow_plugins.loading.handle import ModelHandle
from mlflow_plugins.loading.native import open_artifacts
from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.serve.prediction import Prediction

IMAGES: Final = 64
MARKS: Final = 20
"""Number of times at which counts and memory are printed."""

ALIAS_MOVES: Final = 24
"""The alias moves once less than this number of times."""

CUT_OFF_EVERY: Final = 50
"""One request in this many has an image that was cut off."""

VERSIONS: Final = ("1", "2", "3")
BROKEN: Final = "3"
"""The number of the version with one wrong byte in its species model; it must never answer."""


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(min=0.01))
@click.option("--threads", default=8, show_default=True, help="Number of threads that ask at the same time.")
@click.option("--out", type=PATH, help="Write the result to this JSON file.")
def main(bundle: Path, images: Path, minutes: float, threads: int, out: Path | None) -> None:
    """Ask one ModelHandle from many threads while the alias moves; every third move leads to a broken version."""
    encoded = [path.read_bytes() for path in find_images(images)[:IMAGES]]
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        environment = make_store_environment(temporary)
        for _ in VERSIONS:
            run_child(MODULE, ["register", str(bundle), temporary], environment)
        os.environ.update(environment)
        result = _soak(encoded, minutes * 60, threads)
    text = json.dumps(result, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


@dataclasses.dataclass
class _Questions:
    """Threads ask these images until the deadline; every answer is compared with the first one and counted."""

    encoded: list[bytes]
    expected: list[Prediction]
    deadline: float
    count: Counter[str] = dataclasses.field(default_factory=Counter)
    errors: list[str] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def ask(self, handle: ModelHandle, worker: int) -> None:
        """Ask one image after the other; each worker begins with another one."""
        position = worker * 31
        while time.monotonic() < self.deadline:
            position += 1
            is_cut_off = position % CUT_OFF_EVERY == 0
            image = self.encoded[position % len(self.encoded)]
            try:
                version = handle.current.version
                row = handle.predict([image[: len(image) // 3] if is_cut_off else image])[0]
            except Exception as error:  # every error is counted
                with self.lock:
                    self.count["raised"] += 1
                    self.errors.append(repr(error)[:200])
                continue
            if is_cut_off:
                right = row.error is not None and row.species is None
            else:
                right = _is_same(row, self.expected[position % len(self.encoded)])
            with self.lock:
                self.count["predictions"] += 1
                self.count["cut-off images"] += is_cut_off
                self.count["wrong"] += not right
                self.count[f"version {version}"] += 1


def _soak(encoded: list[bytes], seconds: float, threads: int) -> dict[str, object]:
    _move_alias(VERSIONS[0])
    _break(BROKEN)
    refusals: set[str] = set()
    with ModelHandle("models:/bench@production", interval_s=0.5, threads=1) as handle:
        expected = handle.predict(encoded)
        marks = [{"minutes": 0.0, **read_memory()}]
        start = time.monotonic()
        questions = _Questions(encoded, expected, start + seconds)
        count = questions.count
        with ThreadPoolExecutor(threads) as pool:
            asking = [pool.submit(questions.ask, handle, worker) for worker in range(threads)]
            aliases = cycle([*VERSIONS[1:], VERSIONS[0]])
            for i in range(1, MARKS * ALIAS_MOVES + 1):
                time.sleep(max(0.0, start + seconds * i / (MARKS * ALIAS_MOVES) - time.monotonic()))
                if i % MARKS == 0 and i < MARKS * ALIAS_MOVES:
                    _move_alias(next(aliases))
                    count["alias moves"] += 1
                if handle.failure is not None:
                    refusals.add(str(handle.failure).rsplit("/", 1)[-1][:200])
                if i % ALIAS_MOVES == 0:
                    with questions.lock:
                        marks.append({"minutes": (time.monotonic() - start) / 60, **count, **read_memory()})
                    click.echo(json.dumps(marks[-1]), err=True)
            for done in asking:
                done.result()
    return {
        "seconds": time.monotonic() - start,
        "threads": threads,
        **count,
        "raised": count["raised"],
        "errors": questions.errors[:10],
        "refused reloads": sorted(refusals),
        "marks": marks,
    }


def _move_alias(version: str) -> None:
    """Move the alias in a process of its own, as a service does not move it itself."""
    run_child(MODULE, ["move", version], os.environ)


def _break(version: str) -> None:
    with open_artifacts(f"models:/bench/{version}", ()) as folder:  # the store's own folder, on this machine
        path = next(folder.rglob(SPECIES_FILES["int8"]))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _is_same(row: Prediction, wanted: Prediction) -> bool:
    """Return whether two rows are equal; the last bits of the scores may differ, as rounding depends on the threads."""
    return (
        dataclasses.replace(row, ood_score=None) == dataclasses.replace(wanted, ood_score=None)
        and row.ood_score is not None
        and wanted.ood_score is not None
        and bool(np.isclose(row.ood_score, wanted.ood_score, rtol=1e-9, atol=0))
    )


if __name__ == "__main__":
    main()
