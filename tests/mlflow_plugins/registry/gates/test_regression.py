"""A version that is worse than the one in Production is refused at promotion, and may be waived."""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER, DESCRIPTION_FILE
from mlflow_plugins.registry.audit import read_clock
from mlflow_plugins.registry.commands.admin import delete_version
from mlflow_plugins.registry.commands.history import find_production, list_decisions
from plantmodels.bundle.files import write_json
from plantmodels.bundle.layout import GATE_REPORT_FILE, IMAGES_FILE, MANIFEST_FILE
from plantmodels.bundle.manifest import digest_file, write_manifest
from plantmodels.report.describe import describe_bundle
from plantmodels.report.gate_report import read_report
from plantmodels.report.gates import GATES
from plantmodels.report.per_image import ImageRow, write_image_rows
from tests.fixtures.registry import register_bundle, run_registry
from tests.fixtures.rows import agree, make_leaf_rows, make_other_rows, write_format_2, write_format_3

Build = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages

NAME = "plants"
WORSE = (
    r"no_regression measured 3\.\d\d points lost, limit ≤ 1 point, against version 1, which is in Production: "
    r"end to end \d\d\.\d\d %, before \d\d\.\d\d %"
)


@pytest.fixture
def client(embedded_mlflow: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    return MlflowClient()


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, good_bundle: Path) -> Build:
    """`build(wrong=0.08)`: a bundle whose report says that 8 % of 1,000 leaves are wrong; the same leaves each time."""

    def make(wrong: float = 0.05, others: int = 200, elsewhere: bool = False) -> Path:
        bundle = Path(shutil.copytree(good_bundle, tmp_path_factory.mktemp("built") / "models"))
        report = read_report(bundle)
        assert report.rejection is not None and report.taxonomy is not None
        threshold = report.rejection.threshold
        rows = [*make_leaf_rows(report.taxonomy, 1000, threshold=threshold, wrong=wrong)]
        rows += make_other_rows(report.taxonomy, others, threshold=threshold, recall=0.98)
        rows = [_take_elsewhere(row) for row in rows] if elsewhere else rows
        write_json(bundle / GATE_REPORT_FILE, agree(report, rows).to_dict())
        write_image_rows(bundle / IMAGES_FILE, rows)
        write_manifest(bundle)
        return bundle

    return make


def _take_elsewhere(row: ImageRow) -> ImageRow:
    return replace(row, sha256=hashlib.sha256(row.sha256.encode()).hexdigest())


def promote(client: MlflowClient, version: str) -> None:
    client.set_registered_model_alias(NAME, "production", version)


def refused(client: MlflowClient, version: str, match: str) -> None:
    with pytest.raises(MlflowException, match=match):
        promote(client, version)
    assert client.get_registered_model(NAME).aliases == {"production": 1}


def test_a_worse_version_is_refused_and_may_be_waived(client, build: Build) -> None:
    good, worse = register_bundle(build(), NAME), register_bundle(build(wrong=0.08), NAME)
    promote(client, good)
    refused(client, worse, WORSE)
    refused(client, worse, r"95 % interval of the loss \d\.\d\d to \d\.\d\d points, the same 1,000 images")
    refused(client, worse, f"plantmodels-registry waive {NAME} {worse} no_regression --reason")
    with pytest.raises(MlflowException, match="no_regression measured"):
        client.transition_model_version_stage(NAME, worse, "Production")

    client.set_model_version_tag(NAME, worse, "plantmodels.waive.no_regression", "it knows a new disease")
    promote(client, worse)
    assert client.get_registered_model(NAME).aliases == {"production": int(worse)}
    promote(client, good)  # better, so nothing has to be waived to roll back


def test_an_equal_version_is_allowed_and_staging_asks_nothing(client, build: Build) -> None:
    promote(client, register_bundle(build(), NAME))
    promote(client, register_bundle(build(), NAME))
    assert client.get_registered_model(NAME).aliases == {"production": 2}
    compared = find_production(NAME, read_clock()).gates[-1]
    assert (compared["gate"], compared["status"]) == ("no_regression", "passed")
    assert "0.00 points" in compared["measured"]
    promote(client, "2")  # again: it is not compared with itself
    assert find_production(NAME, read_clock()).gates[-1]["gate"] != "no_regression"
    client.transition_model_version_stage(NAME, register_bundle(build(wrong=0.08), NAME), "Staging")


def test_the_first_version_is_compared_with_nothing(client, build: Build) -> None:
    promote(client, register_bundle(build(wrong=0.08), NAME))
    with pytest.raises(MlflowException, match="no_regression is not a failed gate of this version"):
        client.set_model_version_tag(NAME, "1", "plantmodels.waive.no_regression", "for later")


def take_out_by_alias(client: MlflowClient) -> None:
    client.delete_registered_model_alias(NAME, "production")


def take_out_by_stage(client: MlflowClient) -> None:
    client.transition_model_version_stage(NAME, "1", "Archived")


@pytest.mark.parametrize("take_out", [take_out_by_alias, take_out_by_stage])
def test_a_version_that_was_taken_out_first_is_compared_with(
    client, build: Build, take_out: Callable[[MlflowClient], None]
) -> None:
    promote(client, register_bundle(build(), NAME))
    worse = register_bundle(build(wrong=0.08), NAME)
    take_out(client)
    with pytest.raises(
        MlflowException, match=r"no_regression measured .* against version 1, which was in Production l"
    ):
        promote(client, worse)
    assert "which was in Production last" in list_decisions(NAME)[-1].reason
    assert client.get_registered_model(NAME).aliases == {}

    client.set_model_version_tag(NAME, worse, "plantmodels.waive.no_regression", "version 1 leaks")
    promote(client, worse)
    take_out_by_alias(client)
    promote(client, worse)  # it was there last itself
    promote(client, register_bundle(build(wrong=0.08), NAME))


def test_a_deleted_version_that_was_in_production_last_is_not_measured_and_waivable(client, build: Build) -> None:
    promote(client, register_bundle(build(), NAME))
    new = register_bundle(build(), NAME)
    delete_version(NAME, "1", force=True)
    with pytest.raises(
        MlflowException,
        match=r"no_regression was not measured .*: version 1, which was in Production last, cannot be compared: ",
    ):
        promote(client, new)
    client.set_model_version_tag(NAME, new, "plantmodels.waive.no_regression", "version 1 was deleted")
    promote(client, new)
    assert client.get_registered_model(NAME).aliases == {"production": int(new)}


def test_a_new_model_of_a_deleted_one_s_name_is_compared_with_nothing(client, build: Build) -> None:
    promote(client, register_bundle(build(), NAME))
    take_out_by_alias(client)
    client.delete_registered_model(NAME)
    promote(client, register_bundle(build(wrong=0.08), NAME))


def test_a_version_measured_on_other_images_is_compared_unpaired(client, build: Build) -> None:
    promote(client, register_bundle(build(), NAME))
    refused(client, register_bundle(build(wrong=0.15, elsewhere=True), NAME), r"1,000 images, 1,000 others before")
    promote(client, register_bundle(build(wrong=0.06, elsewhere=True), NAME))


def test_a_version_measured_on_few_images_is_not_measured(client, build: Build) -> None:
    promote(client, register_bundle(build(), NAME))
    few = register_bundle(build(others=60), NAME)
    refused(client, few, r"no_regression was not measured .* the new version was measured on 60 images of the set")
    client.set_model_version_tag(NAME, few, "plantmodels.waive.no_regression", "no more non-plants")
    promote(client, few)


def test_a_report_of_production_that_cannot_be_read_is_not_measured_and_waivable(client, build: Build) -> None:
    old, new = register_bundle(build(), NAME), register_bundle(build(), NAME)
    promote(client, old)
    location = client.get_model_version_download_uri(NAME, old)
    (Path(mlflow.artifacts.download_artifacts(location)) / BUNDLE_FOLDER / IMAGES_FILE).write_text("damaged")
    refused(client, new, "no_regression was not measured .*: version 1, which is in Production, cannot be compared: ")
    client.set_model_version_tag(NAME, new, "plantmodels.waive.no_regression", "Production was damaged")
    promote(client, new)
    assert client.get_registered_model(NAME).aliases == {"production": int(new)}


def rewrite_stored(client: MlflowClient, version: str, rewrite: Callable[[Path], None]) -> None:
    """Change the bundle of a registered version where it is stored, with the digest in its MLmodel."""
    stored = Path(mlflow.artifacts.download_artifacts(client.get_model_version_download_uri(NAME, version)))
    before = digest_file(stored / BUNDLE_FOLDER / MANIFEST_FILE).sha256
    rewrite(stored / BUNDLE_FOLDER)
    after = digest_file(stored / BUNDLE_FOLDER / MANIFEST_FILE).sha256
    description = (stored / DESCRIPTION_FILE).read_text()
    (stored / DESCRIPTION_FILE).write_text(description.replace(before, after))


def test_a_report_of_production_of_format_2_is_not_measured(client, build: Build) -> None:
    """A version that was promoted before reports had rows of format 3."""
    promote(client, register_bundle(build(), NAME))
    new = register_bundle(build(), NAME)
    rewrite_stored(client, "1", write_format_2)
    refused(
        client,
        new,
        r"not measured .*: version 1, which is in Production, cannot be compared: its report is of format 2",
    )


def test_a_production_of_format_3_is_still_compared_by_its_rows(client, build: Build) -> None:
    promote(client, register_bundle(build(), NAME))
    worse, good = register_bundle(build(wrong=0.15), NAME), register_bundle(build(), NAME)
    rewrite_stored(client, "1", write_format_3)
    refused(client, worse, r"no_regression measured .* against version 1, which is in Production: end to end")
    promote(client, good)


def test_a_version_of_format_3_cannot_be_promoted(client, build: Build) -> None:
    bundle = build()
    write_format_3(bundle)
    version = register_bundle(bundle, NAME)
    with pytest.raises(MlflowException, match=r"were not measured: the report has format 3, .*; verify again"):
        promote(client, version)


def test_a_version_of_format_2_can_be_inspected_and_not_promoted(client, build: Build) -> None:
    bundle = build()
    write_format_2(bundle)
    shown = describe_bundle(bundle)
    assert (
        f"yes, 9 of {len(GATES)} gates passed" in shown
        and "not passed: false_alarms, accuracy, coverage, leakage" in shown
    )
    version = register_bundle(bundle, NAME)
    with pytest.raises(
        MlflowException,
        match="refused to set alias production: parity, int8_accuracy, .*, leakage were not measured: the report has "
        r"format 2, which lacks the evidence of its numbers; verify again$",
    ):
        promote(client, version)
    with pytest.raises(MlflowException, match="it can never be waived"):
        client.set_model_version_tag(NAME, version, "plantmodels.waive.loads", "it is old")


def test_doctor_names_a_version_in_production_that_lost_against_the_one_that_it_replaced(client, build: Build) -> None:
    promote(client, register_bundle(build(), NAME))
    worse = register_bundle(build(wrong=0.08), NAME)
    client.set_model_version_tag(NAME, worse, "plantmodels.waive.no_regression", "greenhouse only")
    promote(client, worse)
    promote(client, worse)  # it replaced version 1, however often it is promoted again
    assert run_registry("doctor").stdout == "plants: nothing is wrong\n"

    client.delete_model_version_tag(NAME, worse, "plantmodels.waive.no_regression")
    told = run_registry("doctor")
    assert told.exit_code == 1
    assert re.search(
        r"version 2 \(Production\): it would not be promoted today: no_regression measured 3\.\d\d points lost, "
        r"limit ≤ 1 point, against version 1, which it replaced: end to end \d\d\.\d\d %, before \d\d\.\d\d %"
        r".*, and no waiver holds",
        told.stdout,
    )
    assert "plantmodels-registry waive plants 2 no_regression --reason …" in told.stdout
    client.delete_model_version(NAME, "1")  # nobody can tell any more
    assert run_registry("doctor").exit_code == 0
