"""The law of calibration on simulated leaves, and the same table on a real bundle.

python -m benchmarks.calibration simulate --runs 1000
python -m benchmarks.calibration measure BUNDLE --data LEAVES --non-plants FOLDER --embeddings CACHE.npz
python -m benchmarks.calibration measure … --seeds 20
"""

from pathlib import Path

import click
import numpy as np

from benchmarks.calibration.measure import read_embeddings, tabulate, tabulate_seeds
from benchmarks.calibration.simulate import run_once


@click.group(help=__doc__)
def main() -> None:
    """Group the two commands."""


@main.command()
@click.option("--runs", default=1000, show_default=True, help="Simulated bundles of each kind.")
@click.option("--leaves", default=400, show_default=True, help="Fresh leaves that calibrate.")
def simulate(runs: int, leaves: int) -> None:
    """Rejected share and p-values on fresh leaves, by what calibrated."""
    click.echo("| calibrated on | aimed at | rejected | p <= 0.05 | p <= 0.01 |\n|---|---|---|---|---|")
    for name, count, number in (("fresh leaves", leaves, runs), ("training leaves", None, max(1, runs // 10))):
        found = [run_once(seed, calibrate_on=count) for seed in range(number)]
        columns = [[o.aimed for o in found], [o.rejected for o in found]]
        columns += [[float((o.p_values <= level).mean()) for o in found] for level in (0.05, 0.01)]
        cells = (f"{np.mean(c):.3%} ± {1.96 * np.std(c) / number**0.5:.3%}" for c in columns)
        click.echo(f"| {name} | {' | '.join(cells)} |")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Leaf folders with train and val.")
@click.option("--non-plants", type=click.Path(path_type=Path), required=True, help="Images without plants.")
@click.option("--embeddings", type=click.Path(path_type=Path), required=True, help="Cache; made if it is missing.")
@click.option("--held-out", type=float, default=0.1, show_default=True, help="Share that training held out, by name.")
@click.option("--seeds", type=click.IntRange(1), help="Only measure how far the threshold depends on the seed.")
def measure(bundle: Path, data: Path, non_plants: Path, embeddings: Path, held_out: float, seeds: int | None) -> None:
    """Calibrate the bundle's network in three ways, and try each on validation leaves that did not calibrate."""
    embedded = read_embeddings(bundle, data, non_plants, embeddings)
    for line in [tabulate(embedded, held_out)] if seeds is None else tabulate_seeds(embedded, held_out, seeds):
        click.echo(line)


if __name__ == "__main__":
    main()
