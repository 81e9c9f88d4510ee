"""Measure the export step by step, the verification, and how both grow with the number of species.

Each export and each verification runs in its own process, as it does for users.
"""

import csv
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.contestants import OURS_INT8, Setup
from benchmarks.driver import (
    PATH,
    QUIET,
    Patience,
    Turn,
    Workers,
    alternate,
    ask_quietly,
    describe_turns,
    run_child,
    run_quietly,
    summarize,
)
from benchmarks.many_species import write_checkpoint
from benchmarks.processes import read_memory
from benchmarks.speed import worker_command
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.leaves import read_leaves
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.cores import count_cores

MODULE: Final = "benchmarks.building"
MANY_SPECIES: Final = 330
SPECIES_COUNTS: Final = (14, 100, MANY_SPECIES, 1000)
FEW_LEAVES: Final = 120
"""Number of training leaves for exports whose time is not measured; the detector is then fitted in seconds."""


@click.group()
def main() -> None:
    """Run one export or verification and print its figures as JSON."""


@main.command()
@click.argument("checkpoint", type=PATH)
@click.argument("data", type=PATH)
@click.argument("out", type=PATH)
def export(checkpoint: Path, data: Path, out: Path) -> None:
    """Export a bundle; seconds by step."""
    from plantmodels.export.bundle import export_bundle

    logging.disable(logging.WARNING)
    start = time.perf_counter()
    summary = export_bundle(checkpoint, data, out)
    total = time.perf_counter() - start
    click.echo(json.dumps({"steps": dict(summary.seconds), "total_s": total, **read_memory()}))


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("data", type=PATH)
@click.option("--images", default=256, show_default=True, help="Number of evenly spaced validation leaves.")
def verify(bundle: Path, data: Path, images: int) -> None:
    """Run the accuracy pass of a verification: both precisions answer every image."""
    from plantmodels.verify.accuracy import measure_accuracy

    options = {"threads": 1, "workers": max(2, count_cores())}
    fp16 = PlantClassifier.load(bundle, precision="fp16", **options)
    int8 = PlantClassifier.load(bundle, precision="int8", **options)
    leaves = read_leaves(data, "val", int8.taxonomy)
    few = replace(leaves, samples=leaves.samples[:: max(1, len(leaves.samples) // images)][:images])
    measure_accuracy(fp16, int8, replace(few, samples=few.samples[:8]))
    before, start = read_memory(), time.perf_counter()
    run = measure_accuracy(fp16, int8, few)
    seconds = time.perf_counter() - start
    click.echo(
        json.dumps(
            {
                "images": len(run.samples),
                "pass_s": seconds,
                "resident_mb_before": before["resident_mb"],
                "resident_mb_after": read_memory()["resident_mb"],
            }
        )
    )


def measure_export(checkpoint: Path, data: Path, species: int = MANY_SPECIES) -> dict[str, Any]:
    """Export a checkpoint with added heads, fit the detector on all training leaves, and skip the evaluation."""
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        many = Path(temporary) / "many.ckpt"
        write_checkpoint(checkpoint, many, species)
        measured: dict[str, Any] = run_child(MODULE, ["export", str(many), str(data), f"{temporary}/bundle"])
    return {"species": species, "disturbed": measured["foreign"] > QUIET, **measured}


def measure_verification(bundle: Path, data: Path, *, images: int, rounds: int, patience: Patience) -> dict[str, Any]:
    """Measure the accuracy pass several times."""
    arguments = ["verify", str(bundle), str(data), "--images", str(images)]
    runs = [run_quietly(patience, MODULE, arguments) for _ in range(rounds)]
    described = describe_turns([Turn(run["pass_s"], run["foreign"]) for run in runs])
    return {**runs[-1], **described, "images_per_s": runs[-1]["images"] / described["median_s"]}


def measure_growth(
    checkpoint: Path,
    data: Path,
    encoded: Sequence[Path],
    *,
    counts: Sequence[int],
    rounds: int,
    threads: int,
    patience: Patience,
) -> list[dict[str, Any]]:
    """Compare bundles with more and more species.

    Args:
        checkpoint: checkpoint with the real species, to which heads are added.
        data: leaf folders; a few training leaves fit the detectors.
        encoded: paths of images; only the first is used.
        counts: numbers of species, each at least the checkpoint's own number.
        rounds: number of rounds of each timing.
        threads: number of threads of the classifiers.
        patience: how long to wait for a quiet machine.

    Returns:
        An entry for each count: `heads`, `export`, `load`, `tensor` (one image to its row), `steps`, `resident_mb`.
    """
    taxonomy = read_checkpoint(checkpoint).spec.taxonomy
    counts = sorted({max(count, len(taxonomy.species)) for count in counts})
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        folder = Path(temporary)
        few = _write_few_leaves(data, folder / "few.csv", checkpoint)
        setups = {count: Setup(folder / f"bundle-{count}", folder, folder / f"{count}.ckpt") for count in counts}
        entries: dict[int, dict[str, Any]] = {count: {"species": count} for count in counts}
        for count, setup in setups.items():
            write_checkpoint(checkpoint, setup.checkpoint, count)
            entries[count]["export"] = run_child(MODULE, ["export", str(setup.checkpoint), str(few), str(setup.bundle)])
            click.echo(f"  exported {count} species: {entries[count]['export']['total_s']:.1f} s", err=True)
        _measure_heads_(entries, setups, rounds, patience)
        _measure_answers_(entries, setups, encoded, rounds, threads, patience)
    return list(entries.values())


def _write_few_leaves(data: Path, manifest: Path, checkpoint: Path) -> Path:
    """Write a manifest (contract 2) of evenly spaced training leaves."""
    taxonomy = read_checkpoint(checkpoint).spec.taxonomy
    samples = read_leaves(data, "train", taxonomy).samples
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "species", "disease", "split"])
        for sample in samples[:: max(1, len(samples) // FEW_LEAVES)]:
            names = taxonomy.diseases_of(sample.species_index)
            disease = "" if sample.disease_index is None else names[sample.disease_index]
            table.writerow([sample.path.resolve(), taxonomy.species[sample.species_index], disease, "train"])
    return manifest


def _measure_heads_(
    entries: Mapping[int, dict[str, Any]], setups: Mapping[int, Setup], rounds: int, patience: Patience
) -> None:
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in entries}
    for _ in range(rounds):
        for count, setup in setups.items():
            runs[count].append(
                run_quietly(patience, "benchmarks.many_species", ["heads", str(setup.checkpoint), "--as-json"])
            )
    for count, measured in runs.items():
        steps = [key for key in measured[0] if key.endswith("_s") and key != "process_s"]
        entries[count]["heads"] = measured[0] | {
            step: statistics.median(run[step] for run in measured) for step in steps
        }
        export_s = [run["quantize_and_write_s"] + run["check_s"] for run in measured]
        entries[count]["heads"]["exported_and_checked"] = summarize(export_s)


def _measure_answers_(
    entries: Mapping[int, dict[str, Any]],
    setups: Mapping[int, Setup],
    encoded: Sequence[Path],
    rounds: int,
    threads: int,
    patience: Patience,
) -> None:
    """Measure loading in fresh processes, then single images in turn."""
    commands = {str(count): worker_command(OURS_INT8, setup, encoded[:1], threads) for count, setup in setups.items()}
    loads: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds - 1):
        with Workers(commands) as workers:
            for name, worker in workers.items():
                loads[name].append(worker.ask(do="open")["open_s"])
    with Workers(commands) as workers:
        for name, worker in workers.items():
            opened = worker.ask(do="open")
            loads[name].append(opened["open_s"])
            entries[int(name)] |= {"load": summarize(loads[name]), "resident_mb": opened["resident_mb"]}
        case = {"source": "tensor", "batch": 1, "mode": "whole"}
        for (name, _), turns in alternate(workers, [(name, case, 10) for name in workers], rounds, patience).items():
            entries[int(name)]["tensor"] = describe_turns(turns)
        for name, worker in workers.items():
            steps, _ = ask_quietly(worker, patience, do="steps", repeats=50)
            entries[int(name)]["steps"] = {step: summarize(seconds) for step, seconds in steps.items()}


if __name__ == "__main__":
    main()
