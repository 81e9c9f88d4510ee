"""Measure speed, cold start, HTTP, export and growth of our bundles and of their peers; write tables, plots and JSON.

python -m benchmarks --checkpoint last.ckpt --data leaves --bundle public/models --out public/bench

`--quick` is a smoke test of a few minutes; `--part` runs only some of the parts.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import building, one_file, serving, speed
from benchmarks.contestants import CONTESTANTS, REFERENCE, Setup
from benchmarks.driver import PATH, Patience, find_images, run_child
from benchmarks.intake.scoring import measure_scoring
from benchmarks.machine import describe_machine
from benchmarks.plots import write_plots
from benchmarks.report import render
from benchmarks.scale import measure as scale
from benchmarks.service.measure import Plan, measure_service
from benchmarks.threads import measure_threads
from plantmodels.bundle.files import read_json
from plantmodels.bundle.layout import GATE_REPORT_FILE, MANIFEST_FILE
from plantmodels.bundle.manifest import digest_file

PARTS: Final = ("speed", "cold", "service", "one-file", "threads", "scoring", "species", "export", "verify", "scale")


@click.command()
@click.option("--checkpoint", type=PATH, required=True, help="The checkpoint that the bundle was exported from.")
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="Leaf folders: the split train is for calibration and export, val for the requests.",
)
@click.option("--bundle", type=PATH, required=True, help="Our exported bundle.")
@click.option(
    "--out",
    type=PATH,
    default=Path("public/bench"),
    show_default=True,
    help="Folder of the results and of the peers' files.",
)
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="Run only this part; repeat the option for more than one.",
)
@click.option(
    "--contestant",
    "names",
    type=click.Choice(CONTESTANTS),
    multiple=True,
    help="Measure only this contestant in the part speed; repeat the option for more than one.",
)
@click.option(
    "--rounds", type=int, help="Number of rounds of one image, of 32 images and of cold starts.  [default: 7]"
)
@click.option(
    "--patience", default=900.0, show_default=True, help="Seconds, in total, to wait while other programs run."
)
@click.option(
    "--crowd-seconds",
    type=click.FloatRange(min=1),
    default=Plan.crowd_seconds,
    show_default=True,
    help="Seconds for which 64 clients ask in the part service.",
)
@click.option("--quick", is_flag=True, help="Few rounds, only two threads, and no export of 330 species on all leaves.")
def main(
    checkpoint: Path,
    data: Path,
    bundle: Path,
    out: Path,
    parts: Sequence[str],
    names: Sequence[str],
    rounds: int | None,
    patience: float,
    crowd_seconds: float,
    quick: bool,
) -> None:
    """Measure our bundle and its peers; write bench.json, bench.md and three plots into the folder of `--out`."""
    plan = speed.plan_of(quick=quick, rounds=rounds)
    chosen = parts or [part for part in PARTS if not (quick and part == "export")]
    out.mkdir(parents=True, exist_ok=True)
    encoded, waiting = find_images(data / "val"), Patience(patience)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "bundle_manifest_sha256": digest_file(bundle / MANIFEST_FILE).sha256,
    }
    result |= {"quick": quick, "rounds": plan.rounds, "int8_accuracy_drop": read_accuracy_drop(bundle)}
    for part in chosen:
        click.echo(part, err=True)
        if part == "speed":
            peers = out / "peers"
            result["peers"] = run_child("benchmarks.peers", [str(checkpoint), str(data), str(peers)])
            setup = Setup(bundle, peers, checkpoint)
            who = [name for name in CONTESTANTS if not names or name in {*names, REFERENCE}]
            result[part] = speed.measure_speed(setup, encoded, plan, who, waiting)
        elif part == "cold":
            result[part] = serving.measure_cold_starts(bundle, encoded[0], plan.rounds, waiting)
        elif part == "one-file":
            result[part] = one_file.measure_one_file(bundle, encoded[0], plan.rounds, waiting)
        elif part == "threads":
            result[part] = measure_threads([bundle], encoded, plan.growth_rounds, 0.5 if quick else 2, waiting)
        elif part == "scoring":
            count, spark = (400, False) if quick else (4000, shutil.which("java") is not None)
            result[part] = measure_scoring(bundle, data / "val", count, plan.growth_rounds, waiting, spark=spark)
        elif part == "service":
            result[part] = measure_service(bundle, encoded, _plan_service(rounds, crowd_seconds, quick=quick), waiting)
        elif part == "species":
            result[part] = building.measure_growth(
                checkpoint,
                data,
                encoded,
                counts=building.SPECIES_COUNTS[:: 2 if quick else 1],
                rounds=plan.growth_rounds,
                threads=max(plan.threads),
                patience=waiting,
            )
        elif part == "export":
            waiting.wait()
            result[part] = building.measure_export(checkpoint, data)
        elif part == "scale":
            sizes = scale.Plan(species=1000, files=5000) if quick else scale.Plan()
            result[part] = scale.measure_scale(checkpoint, data, sizes, waiting)
        else:
            result[part] = building.measure_verification(
                bundle, data, images=64 if quick else 256, rounds=plan.growth_rounds, patience=waiting
            )
        _write_results(result, out)  # a later part that fails does not lose these results
    result["waited_s"] = waiting.budget_s - waiting.left_s
    _write_results(result, out)
    click.echo((out / "bench.md").read_text(encoding="utf-8"))


def _plan_service(rounds: int | None, crowd_seconds: float, *, quick: bool) -> Plan:
    if quick:
        return Plan(rounds=1, seconds=2, crowd_seconds=min(5, crowd_seconds))
    return Plan(rounds=rounds or Plan.rounds, crowd_seconds=crowd_seconds)


def _write_results(result: dict[str, Any], out: Path) -> None:
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "bench.md").write_text(render(result), encoding="utf-8")
    write_plots(result, out)


def read_accuracy_drop(bundle: Path) -> float | None:
    """Return the loss of accuracy of INT8 against FP16 in the bundle's gate report, or None if it has no report."""
    path = bundle / GATE_REPORT_FILE
    if not path.is_file():
        return None
    gates = read_json(path).get("gates", [])
    measured = next((gate.get("measured") for gate in gates if gate.get("name") == "int8_accuracy"), None)
    return None if measured is None else float(measured)


if __name__ == "__main__":
    main()
