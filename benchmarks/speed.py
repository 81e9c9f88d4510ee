"""Measure all contestants in turns: their speed, how often they agree, and how they grow with the batch size.

They answer one image and 32, on one thread and on two, from a ready tensor and from an encoded image; then the other
batch sizes in fewer rounds, on the largest number of threads. Each answer to a validation leaf is compared with that of
`REFERENCE`, and so is the leaf's embedding.
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.contestants import OURS_INT8, REFERENCE, Setup, modes_of
from benchmarks.driver import QUIET, Patience, Turn, Worker, Workers, alternate, ask_quietly, describe_turns, summarize
from plantmodels.arrays import Embeddings

SOURCES: Final = ("tensor", "image")
BULK: Final = 32


@dataclass(frozen=True)
class Plan:
    """The amounts of one measurement.

    Attributes:
        threads: numbers of threads; all contestants run with each of them.
        rounds: number of rounds of one image and of 32.
        batches: batch sizes for the growth, on the largest number of threads.
        growth_rounds: number of rounds for the growth.
        images: number of images for timing; larger batches repeat them.
        agreement: number of images for agreement; None takes all.
        repeats: number of repeats of a single image in one turn; larger batches have fewer.
    """

    threads: tuple[int, ...] = (1, 2)
    rounds: int = 7
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    growth_rounds: int = 3
    images: int = 64
    agreement: int | None = None
    repeats: int = 10

    def repeats_of(self, batch: int) -> int:
        """Return the repeats in one turn, such that a turn has about as many images as one of single images."""
        return max(1, self.repeats // batch)


QUICK: Final = Plan(threads=(2,), rounds=2, batches=(1, 8, 32), growth_rounds=1, images=32, agreement=64, repeats=3)


def plan_of(*, quick: bool, rounds: int | None) -> Plan:
    """Return the plan of a run; `rounds` replaces its rounds and limits those of the growth."""
    plan = QUICK if quick else Plan()
    return plan if rounds is None else replace(plan, rounds=rounds, growth_rounds=min(rounds, plan.growth_rounds))


def measure_speed(
    setup: Setup, encoded: Sequence[Path], plan: Plan, names: Sequence[str], patience: Patience
) -> dict[str, Any]:
    """Run the plan.

    Args:
        setup: paths of bundle, peers and checkpoint.
        encoded: paths of images: the first `plan.images` for timing, the first `plan.agreement` for agreement.
        plan: the amounts.
        names: contestants; the reference must be among them.
        patience: how long to wait for a quiet machine.

    Returns:
        `speed` (an entry for each contestant, number of threads and case), `opened`, `agreement`, and `steps` (the
        species model and the later steps of our classifier on one image).
    """
    used = encoded[: plan.images]
    result: dict[str, Any] = {"speed": [], "opened": [], "images": len(used)}
    for threads in plan.threads:
        click.echo(f"{len(names)} contestants on {threads} thread(s)", err=True)
        with Workers({name: worker_command(name, setup, used, threads) for name in names}) as workers:
            for name, worker in workers.items():
                result["opened"].append({"contestant": name, "threads": threads, **worker.ask(do="open")})
            measured = alternate(workers, _main_turns(names, threads, plan), plan.rounds, patience)
            result["speed"] += _entries(measured, threads)
            if threads == max(plan.threads):
                growth = alternate(workers, _growth_turns(names, threads, plan), plan.growth_rounds, patience)
                result["speed"] += _entries(growth, threads)
                result["agreement"] = _compare(workers, encoded[: plan.agreement])
                if OURS_INT8 in workers:
                    steps, foreign = ask_quietly(workers[OURS_INT8], patience, do="steps", repeats=20 * plan.repeats)
                    result["steps_disturbed"] = foreign > QUIET
                    result["steps"] = {step: summarize(seconds) for step, seconds in steps.items()}
    return result


def worker_command(name: str, setup: Setup, encoded: Iterable[Path], threads: int) -> list[str]:
    """Return the command line of a contestant's process."""
    spec = {
        "name": name,
        "threads": threads,
        "bundle": str(setup.bundle),
        "peers": str(setup.peers),
        "checkpoint": str(setup.checkpoint),
        "images": [str(path) for path in encoded],
    }
    return [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", json.dumps(spec)]


def _main_turns(names: Sequence[str], threads: int, plan: Plan) -> list[tuple[str, dict[str, Any], int]]:
    return [
        (name, {"source": source, "batch": batch, "mode": mode}, plan.repeats_of(batch))
        for batch in (1, BULK)
        for source in SOURCES
        for name in names
        for mode in (modes_of(name, threads) if batch > 1 else ("whole",))
    ]


def _growth_turns(names: Sequence[str], threads: int, plan: Plan) -> list[tuple[str, dict[str, Any], int]]:
    return [
        (name, {"source": "tensor", "batch": batch, "mode": mode}, plan.repeats_of(batch))
        for batch in plan.batches
        if batch not in (1, BULK)
        for name in names
        for mode in modes_of(name, threads)
    ]


def _entries(measured: Mapping[tuple[str, str], list[Turn]], threads: int) -> list[dict[str, Any]]:
    return [
        {"contestant": name, "threads": threads, **json.loads(case), **describe_turns(turns)}
        for (name, case), turns in measured.items()
    ]


def _compare(workers: Mapping[str, Worker], images: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Count the answers that are equal to the reference's, and measure how far the embeddings are from its own."""
    paths = [str(path) for path in images]
    answers, embeddings = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, worker in workers.items():
            file = f"{folder}/{len(answers)}.npy"
            answers[name] = worker.ask(do="rows", images=paths, embeddings=file)["rows"]
            embeddings[name] = np.load(file)
    return {
        name: count_agreement(rows, answers[REFERENCE])
        | {"embedding_rms": measure_distance(embeddings[name], embeddings[REFERENCE])}
        for name, rows in answers.items()
    }


def measure_distance(embeddings: Embeddings, reference: Embeddings) -> float:
    """Return the root mean square of all differences of two arrays of embeddings."""
    return float(np.sqrt(np.mean(np.square(embeddings.astype(np.float64) - reference))))


def count_agreement(rows: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Count rows with the reference's species, and rows with its species and disease."""
    pairs = list(zip(rows, reference, strict=True))
    species = [a["species_index"] == b["species_index"] for a, b in pairs]
    disease = [same and a["disease"] == b["disease"] for same, (a, b) in zip(species, pairs, strict=True)]
    return {"images": len(pairs), "species": sum(species), "species_and_disease": sum(disease)}


def best_entry(
    speed: Iterable[Mapping[str, Any]], contestant: str, *, threads: int, source: str, batch: int
) -> Mapping[str, Any] | None:
    """Return the entry of a contestant's better mode, or None if it was not measured."""
    wanted = {"contestant": contestant, "threads": threads, "source": source, "batch": batch}
    found = [entry for entry in speed if wanted.items() <= entry.items()]
    return min(found, key=lambda entry: float(entry["median_s"]), default=None)
