"""docs/contracts.md and docs/gates.md name what the code reads and writes, and nothing else."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path

from plantmodels.bundle import layout
from plantmodels.bundle.metadata import INTERPOLATIONS, read_metadata
from plantmodels.checkpoint.spec import HELD_OUT, SEEN_NON_PLANTS
from plantmodels.report.gates import GATES, PROMOTION_GATES
from plantmodels.report.policy import GatePolicy, read_policy
from plantmodels.serve.prediction import Prediction
from plantmodels.serve.routing import ROUTINGS

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")


def section(number: int) -> str:
    return re.split(r"^## Contract \d: .*$", CONTRACTS, flags=re.MULTILINE)[number]


def first_cells(text: str) -> list[str]:
    """Code spans of the first cell of every table row."""
    return [name for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in re.findall("`([^`]+)`", row)]


def test_every_hyper_parameter_is_named(tiny_document: dict) -> None:
    named = first_cells(section(1).partition("**`hyper_parameters`**")[2])

    optional = {"interpolation", "crop_pct", HELD_OUT, SEEN_NON_PLANTS}
    assert set(tiny_document["hyper_parameters"]) | optional == set(named)
    assert all(f"`{name}`" in section(1) for name in INTERPOLATIONS)


def test_every_file_of_a_bundle_is_named() -> None:
    names = first_cells(section(3).partition("**Interfaces**")[0])
    files = {value for name, value in vars(layout).items() if name.endswith("_FILE")}
    expected = files | {
        *layout.SPECIES_FILES.values(),
        *layout.ONE_FILES.values(),
        layout.head_file("<slug>"),
        f"{layout.PLOTS_FOLDER}/",
    }

    assert set(names) == expected


def test_every_key_of_the_metadata_is_named(tiny_bundle) -> None:
    table = section(3).partition("**The metadata**")[2].partition("**The manifest**")[0]
    written = json.loads((tiny_bundle.bundle / layout.METADATA_FILE).read_text(encoding="utf-8"))

    assert set(first_cells(table)) == set(written)
    assert set(dataclasses.asdict(read_metadata(tiny_bundle.bundle).preprocessing)) <= set(
        re.findall(r"`(\w+)`", table)
    )


def test_every_column_of_a_prediction_is_named() -> None:
    table = section(4).partition("**Out.**")[2].partition("**Params**")[0]
    asked_for = {"candidates", "embedding"}

    assert set(first_cells(table)) == {field.name for field in dataclasses.fields(Prediction)} - asked_for
    assert all(f"`{name}`" in section(4) for name in (*ROUTINGS, *asked_for))


def test_every_gate_is_named_in_its_order_with_its_limit() -> None:
    assert first_cells(section(5))[: len(GATES) + 1] == [*GATES, *PROMOTION_GATES]
    limits = dict(re.findall(r"^\| `(\w+)` .*\| ([^|]+) \|$", section(5), re.MULTILINE))
    shown = {name: [float(number) for number in re.findall(r"[\d.]+", text)] for name, text in limits.items()}
    units = {"species_size": 1e6, "head_size": 1e3}
    policy = GatePolicy()

    for name in (*GATES, *PROMOTION_GATES):
        expected = list(policy.limits_of(name).values())[: len(shown[name])]
        assert [number * units.get(name, 1) for number in shown[name]] == expected, name


def test_the_limits_in_the_repository_are_the_defaults() -> None:
    assert dataclasses.replace(read_policy(ROOT / "gates.toml"), sha256=None) == GatePolicy()
    assert set(tomllib.loads((ROOT / "gates.toml").read_text(encoding="utf-8"))) < {*GATES, *PROMOTION_GATES}
