"""Measures the part `scale`: two bundles with added species, and a folder of many files."""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.building import MANY_SPECIES
from benchmarks.driver import Patience, run_child
from benchmarks.many_species import write_checkpoint
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.leaves import read_leaves

_STEPS: Final = "benchmarks.scale.steps"
_DISEASES: Final = 4


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        species: number of species of the large bundle.
        few_species: number of species of the bundle that is also registered as MLflow does it.
        files: number of files that are listed.
        leaves: about how many training leaves, and as many of val, take part.
    """

    species: int = 10_000
    few_species: int = MANY_SPECIES
    files: int = 100_000
    leaves: int = 100


def measure_scale(checkpoint: Path, data: Path, plan: Plan, patience: Patience) -> dict[str, Any]:
    """Register, load and verify bundles of many species, and list a folder that has a URI.

    Args:
        checkpoint: a checkpoint, to which species are added.
        data: leaf folders of the checkpoint's own species.
        plan: how much is measured.
        patience: how long to wait for a quiet machine.
    """
    result: dict[str, Any] = {"plan": asdict(plan)}
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        folder = Path(temporary)
        few = _write_few_leaves(data, folder / "few.csv", checkpoint, plan.leaves)
        for species in (plan.few_species, plan.species):
            large = folder / f"{species}.ckpt"
            write_checkpoint(checkpoint, large, species, _DISEASES)
            run_child("benchmarks.building", ["export", str(large), str(few), str(folder / str(species))])
            click.echo(f"  exported {species} species", err=True)
        small, large_bundle = str(folder / str(plan.few_species)), str(folder / str(plan.species))
        steps: dict[str, Sequence[str]] = {
            "register_few": ["register", small],
            "register_few_as_mlflow": ["register", small, "--as-mlflow"],
            "register": ["register", large_bundle],
            "listing": ["listing", "--files", str(plan.files)],
            "load": ["load", large_bundle],
            "verify": ["verify", large_bundle, str(few), str(folder / f"{plan.species}.ckpt")],
        }
        for name, arguments in steps.items():
            patience.wait()
            result[name] = run_child(_STEPS, arguments)
            click.echo(f"  {name}: {result[name]['wall_s']:.1f} s", err=True)
    return result


def _write_few_leaves(data: Path, manifest: Path, checkpoint: Path, leaves: int) -> Path:
    """Write a manifest (contract 2) of evenly spaced leaves of train and of val."""
    taxonomy = read_checkpoint(checkpoint).spec.taxonomy
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "species", "disease", "split"])
        for split in ("train", "val"):
            samples = read_leaves(data, split, taxonomy).samples
            for sample in samples[:: max(1, len(samples) // leaves)]:
                names = taxonomy.diseases_of(sample.species_index)
                disease = "" if sample.disease_index is None else names[sample.disease_index]
                table.writerow([sample.path.resolve(), taxonomy.species[sample.species_index], disease, split])
    return manifest
