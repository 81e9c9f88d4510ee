"""Benchmarks of the gate report.

python -m benchmarks.reports read --images 10000
python -m benchmarks.reports page page.html --species 330 --images 40
"""

import json
import statistics
import time
from pathlib import Path
from typing import Final

import click

from benchmarks.reports.made_up import Size, make_report, make_rows, make_taxonomy
from plantmodels.bundle.manifest import Manifest
from plantmodels.report.gate_report import parse_report
from plantmodels.report.per_image import format_image_rows
from plantmodels.report.render.page import render_report
from plantmodels.report.render.plots import draw_plots

READ_BAR_S: Final = 0.2
"""Longest time that reading a report of 10,000 images may take: the registry reads it at each promotion."""


@click.group()
def main() -> None:
    """Measure how long a gate report takes to read and to draw, with made-up answers."""


@main.command()
@click.option("--species", default=14, show_default=True, help="Number of species.")
@click.option("--images", default=10_000, show_default=True, help="Number of image rows, non-plants included.")
@click.option("--rounds", default=15, show_default=True, help="Times that the report is read.")
def read(species: int, images: int, rounds: int) -> None:
    """Read a report, which counts all its numbers again; print seconds of the clock and of the processor."""
    taxonomy = make_taxonomy(species)
    size = Size(species, images=-(-images // species))
    rows = make_rows(taxonomy, size)
    rows = (*rows[: images - size.non_plants], *rows[-size.non_plants :])
    report = make_report(taxonomy, rows)
    document, content = json.dumps(report.to_dict()).encode(), format_image_rows(rows)
    clock, processor = [], []
    for _ in range(rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        parse_report(document, content, Manifest(report.files))
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_cpu)
    click.echo(f"{len(rows):,} rows of {species} species: {len(document):,} bytes of report, {len(content):,} of rows")
    for name, seconds in (("clock", clock), ("processor", processor)):
        click.echo(
            f"{name:9} median {statistics.median(seconds):.3f} s, best {min(seconds):.3f} s (bar {READ_BAR_S} s)"
        )


@main.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--species", default=330, show_default=True, help="Number of species.")
@click.option("--images", default=40, show_default=True, help="Validation images of each species.")
@click.option("--unmeasured", default=0, show_default=True, help="Number of species without a validation image.")
def page(target: Path, species: int, images: int, unmeasured: int) -> None:
    """Write the page of a report with many species; print how long it took and how large it is."""
    taxonomy, size = make_taxonomy(species), Size(species, images, unmeasured)
    report = make_report(taxonomy, make_rows(taxonomy, size))
    start = time.perf_counter()
    plots = draw_plots(report)
    drawn = time.perf_counter()
    target.write_text(render_report(report, plots))
    done = time.perf_counter()
    click.echo(report.table())
    click.echo(
        f"{target}: {target.stat().st_size:,} bytes, of which plots {sum(map(len, plots.values())):,}; "
        f"plots {drawn - start:.2f} s, page {done - drawn:.2f} s"
    )


if __name__ == "__main__":
    main()
