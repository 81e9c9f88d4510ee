"""Networks that `export` would refuse, exported with its checks off: which gate fails, and what the registry says.

Of two exchanged names among many, most answers stay right. The limits of the whole data then still hold, and the
limits of the worst species and class, which are optional, do not.
"""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from plantmodels.checkpoint import spec
from plantmodels.export.bundle import export_bundle
from plantmodels.export.checks import answers, network
from plantmodels.report.gate_report import GateReport, read_report
from plantmodels.report.policy import read_policy
from plantmodels.verify.run import verify_bundle
from tests.fixtures.bundles import TinyBundle
from tests.fixtures.checkpoints import CheckpointFactory
from tests.fixtures.registry import register_bundle
from tests.fixtures.wrong_networks import Edit, exchange_diseases, exchange_species, reverse_species, scale_to_255

pytestmark = pytest.mark.slow

Build = Callable[[Edit | None], Path]

FEW_IMAGES = (
    "parity.max_abs_diff = 0.05\nint8_accuracy.min_images = 45\nint8_accuracy.max_drop = 0.2\n"
    "false_alarms.min_images = 45\naccuracy.min_images = 45\n"
    "leakage = {min_images = 45, max = 0.05}\n"
    "ood_precision = {min_images = 20, min = 0.9}\nood_recall = {min_images = 20, min = 0.9}\n"
)
"""Limits that the tiny network with its right names meets on the 45 leaves and 26 non-plants of the tiny data."""

WORST = "accuracy.min_worst_species = 0.5\naccuracy.min_worst_class = 0.5\n"


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`limits(text)`: writes these limits into the server's `gates.toml`."""

    def write(text: str) -> Path:
        path = tmp_path / "gates.toml"
        path.write_text(text)
        monkeypatch.setenv("PLANTMODELS_POLICY", str(path))
        return path

    return write


@pytest.fixture
def build(
    tiny_bundle: TinyBundle,
    tiny_checkpoint_factory: CheckpointFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: Callable[[str], Path],
) -> Build:
    """`build(edit)`: a verified bundle of an edited checkpoint, exported without the checks that refuse it."""
    for module, name in ((answers, "find_other_order"), (answers, "find_guessing"), (network, "refuse_leaf_like")):
        monkeypatch.setattr(module, name, lambda *_, **__: ())
    monkeypatch.setattr(spec, "check_scale", lambda _: None)

    def make(edit: Edit | None) -> Path:
        checkpoint, bundle = tiny_checkpoint_factory(edit), tmp_path / "models"
        export_bundle(checkpoint, tiny_bundle.data, bundle, non_plants=tiny_bundle.non_plants)
        policy = read_policy(limits(FEW_IMAGES))
        verify_bundle(bundle, tiny_bundle.data, checkpoint=checkpoint, non_plants=tiny_bundle.non_plants, policy=policy)
        return bundle

    return make


def try_to_promote(bundle: Path, server: str) -> str:
    """Register a bundle, ask for Production, and return why the registry refuses; "" if it does not."""
    mlflow.set_registry_uri(f"plantmodels:{server}")
    version, client = register_bundle(bundle, "plants"), MlflowClient()
    try:
        client.set_registered_model_alias("plants", "production", version)
    except MlflowException as error:
        assert client.get_registered_model("plants").aliases == {}
        return str(error)
    return ""


def explain(report: GateReport) -> dict[str, str]:
    return {gate.name: f"{gate.measured_text}; {gate.detail}" for gate in report.gates if not gate.passed}


def test_reversed_species_fail_accuracy_alone(build: Build, embedded_mlflow: str) -> None:
    bundle = build(reverse_species)
    assert explain(read_report(bundle)) == {
        "accuracy": "species 11.11 %, end to end 11.11 %, species above the commonest −40.07 %, end to end above the "
        "commonest −14.93 %; the commonest species, Cherry (including sour), is 33.33 % of images; the commonest "
        "class, Aloe sp. 2 · healthy, is 11.11 % of images"
    }
    assert "refused to set alias production: accuracy measured species 11.11 %, end to end 11.11 %" in try_to_promote(
        bundle, embedded_mlflow
    )


def test_the_scale_of_255_fails_accuracy_and_rejection(build: Build, embedded_mlflow: str) -> None:
    bundle = build(scale_to_255)
    failed = explain(read_report(bundle))
    assert {"ood_recall", "accuracy"} <= set(failed)
    assert failed["accuracy"].startswith("species 33.33 %, end to end 11.11 %, species above the commonest −")
    assert "accuracy measured species 33.33 %, end to end 11.11 %" in try_to_promote(bundle, embedded_mlflow)


@pytest.mark.parametrize(
    ("edit", "measured", "detail"),
    [
        (
            exchange_species,
            "species 77.78 %, end to end 77.78 %, worst species 0.00 %, worst class 0.00 %",
            "the worst species, Blueberry, has 0 of 5 right; the worst class, Blueberry · healthy, has 0 of 5 right",
        ),
        (
            exchange_diseases,
            "species 100.00 %, end to end 77.78 %, worst class 0.00 %",
            "the worst class, Cherry (including sour) · healthy, has 0 of 5 right",
        ),
    ],
    ids=["two species", "two diseases"],
)
def test_two_exchanged_names_fail_the_limits_of_the_worst(
    build: Build, embedded_mlflow: str, limits: Callable[[str], Path], edit: Edit, measured: str, detail: str
) -> None:
    bundle = build(edit)
    report = read_report(bundle)
    assert explain(report) == {}, "35 of 45 right is above both limits of the whole data"

    path = limits(FEW_IMAGES + WORST)
    (gate,) = (gate for gate in report.judge_by(read_policy(path)) if not gate.passed)
    assert (gate.name, gate.measured_text) == ("accuracy", measured)
    assert detail in gate.detail
    assert f"refused to set alias production: accuracy measured {measured}" in try_to_promote(bundle, embedded_mlflow)


def test_the_right_names_meet_all_these_limits(
    build: Build, embedded_mlflow: str, limits: Callable[[str], Path]
) -> None:
    bundle = build(None)
    limits(FEW_IMAGES + WORST)
    assert try_to_promote(bundle, embedded_mlflow) == ""
