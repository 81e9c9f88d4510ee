"""What the registry writes into descriptions and the first tag, and that a person's text is never lost."""

import logging
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from mlflow_plugins import flavor
from mlflow_plugins.jobs.records import version_tags
from mlflow_plugins.registry.description import describe_version, escape_markdown, renew_part
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.tags import GLANCE_TAG, WAIVE_TAG
from plantmodels.bundle.metadata import read_metadata
from plantmodels.report.gate_report import read_report
from plantmodels.report.gates import GATES
from plantmodels.report.policy import GatePolicy
from plantmodels.report.summary import summarize_field
from tests.fixtures.reports import TAXONOMY, make_report
from tests.fixtures.rows import agree, make_leaf_rows, make_other_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages

NAME = "plant-disease"


@pytest.fixture
def client(embedded_mlflow: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    return MlflowClient()


def register(bundle: Path, *, report_in_run: bool = False) -> str:
    with mlflow.start_run():
        if report_in_run:
            mlflow.log_artifact(str(bundle / "report.html"))
        uri = flavor.log_model(bundle, name="m").model_uri
    return str(mlflow.register_model(uri, NAME).version)


def description(client: MlflowClient, version: str) -> str:
    return client.get_model_version(NAME, version).description


def test_registration_writes_gates_accuracy_sizes_and_the_report_page(client, bad_bundle):
    version = register(bad_bundle, report_in_run=True)
    text = description(client, version)
    assert text.startswith("Gates failed: `ood_recall`\n")
    assert "| `ood_recall`&ensp; | &#8805; 95 %&ensp; | 50.00 %&ensp; | **failed** |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(GATES) + 1
    assert "The INT8 model names the right species for" in text
    assert "Sizes: species, INT8 " in text
    run_id = client.get_model_version(NAME, version).run_id
    assert f"[Gate report](#/experiments/0/runs/{run_id}/artifacts/report.html)" in text
    assert client.get_model_version(NAME, version).tags[GLANCE_TAG] == "failed: ood_recall"


def test_field_leaves_stand_beside_the_accuracy():
    leaves = (*make_leaf_rows(TAXONOMY, 40), *make_leaf_rows(TAXONOMY, 50, wrong=0.4, alarms=0.5, name="field"))
    report = agree(make_report(), (*leaves, *make_other_rows(TAXONOMY, 40)))
    evidence = SimpleNamespace(report=report, find_uncertain=lambda policy: (), judge_gates=lambda policy: ())
    text = describe_version(evidence, GatePolicy(), {}, None)
    line = next(line for line in text.splitlines() if line.startswith("The INT8 model names"))
    assert line.endswith(f" {summarize_field(report.field)}") and "Of 50 field leaves" in line


def test_without_the_page_in_the_run_there_is_no_link(client, good_bundle):
    version = register(good_bundle)
    text = description(client, version)
    assert "Gate report" not in text
    assert "| `ood_recall`&ensp; | &#8805; 95 %&ensp; | 97.00 % (bound " in text and "| passed, uncertain |" in text
    assert (
        client.get_model_version(NAME, version).tags[GLANCE_TAG]
        == "passed, uncertain: ood_precision, ood_recall, false_alarms"
    )


def test_the_tag_sorts_before_all_others(client, good_bundle):
    tags = client.get_model_version(NAME, register(good_bundle)).tags
    assert min(tags) == GLANCE_TAG


def test_a_version_never_verified_says_so(client, tiny_bundle):
    version = register(tiny_bundle.bundle)
    assert "Gates never verified" in description(client, version)
    assert client.get_model_version(NAME, version).tags[GLANCE_TAG] == "never verified"


def test_a_waiver_appears_and_goes_and_its_reason_is_not_markdown(client, bad_bundle):
    version = register(bad_bundle)
    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "see [x](http://a.b) | <b>now</b>")
    text = description(client, version)
    assert "| failed, waived by " in text
    assert "see \\[x\\]\\(http&#58;//a.b\\) \\| &lt;b&gt;now&lt;/b&gt; |" in text
    assert (
        client.get_model_version(NAME, version).tags[GLANCE_TAG]
        == "passed, uncertain: ood_precision; waived: ood_recall"
    )
    client.delete_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall")
    assert "waived" not in description(client, version)
    assert client.get_model_version(NAME, version).tags[GLANCE_TAG] == "failed: ood_recall"


def test_a_persons_text_stays_and_the_table_is_renewed_below_it(client, bad_bundle):
    version = register(bad_bundle)
    client.update_model_version(NAME, version, f"Leaves of 2026.\n\n{description(client, version)}\n\nAsk Ada.")
    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "greenhouse only")
    client.transition_model_version_stage(NAME, version, "Production")
    text = description(client, version)
    assert text.startswith("Leaves of 2026.\n\nGates passed, uncertain: `ood_precision`; waived: `ood_recall`\n")
    assert text.endswith("-->\n\nAsk Ada.")
    assert "waived by" in text and text.count("| gate |") == 1


def test_a_description_given_at_registration_stays(client, good_bundle):
    client.create_registered_model(NAME)
    with mlflow.start_run():
        uri = flavor.log_model(good_bundle, name="m").model_uri
    version = client.create_model_version(NAME, uri, description="Leaves of 2026.")
    assert version.description.startswith("Leaves of 2026.\n\nGates passed, uncertain: `ood_precision`, ")
    assert "| gate |" in version.description


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("| **failed** |", "| fine, says Ada |"),
        lambda text: text.replace("\n| gate |", "\nBe careful.\n| gate |"),
        lambda text: text.replace(" lines above", " lines"),
        lambda text: f"{text}\n{text}",
    ],
)
def test_what_a_person_wrote_into_the_table_is_not_overwritten(client, bad_bundle, edit):
    version = register(bad_bundle)
    edited = edit(description(client, version))
    client.update_model_version(NAME, version, edited)
    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "greenhouse only")
    assert description(client, version) == edited


def test_the_registrys_part_fits_every_character_set():
    assert renew_part("Blätter", "limit ≥ 95 %, says Zoë").splitlines()[:3] == [
        "Blätter",
        "",
        "limit &#8805; 95 %, says Zo&#235;",
    ]


def test_a_description_is_never_cut():
    longest = "x" * 4999
    assert renew_part(longest, "Gates: passed") is None


def test_the_model_says_what_is_in_production_since_when(client, good_bundle):
    first, second = register(good_bundle), register(good_bundle)
    client.update_registered_model(NAME, "Our leaves.")

    def text() -> str:
        return client.get_registered_model(NAME).description

    client.set_registered_model_alias(NAME, "production", first)
    assert text().startswith("Our leaves.\n\nIn Production: ")
    assert f"In Production: [version 1](#/models/{NAME}/versions/1) since 20" in text()
    before = text()
    client.transition_model_version_stage(NAME, first, "Production")
    assert text() == before
    client.transition_model_version_stage(NAME, second, "Production")
    assert "In Production: [version 2]" in text() and "version 1" not in text()
    client.transition_model_version_stage(NAME, second, "Archived")
    assert "In Production: nothing since 20" in text()
    client.set_registered_model_alias(NAME, "production", first)
    client.delete_registered_model_alias(NAME, "production")
    assert "In Production: nothing since 20" in text()
    assert text().startswith("Our leaves.\n\nIn Production: ")


def test_a_copy_has_a_description_of_its_own(client, good_bundle):
    register(good_bundle)
    copied = client.copy_model_version(f"models:/{NAME}/1", "other")
    assert client.get_model_version("other", copied.version).description.count("| gate |") == 1


def test_a_description_that_cannot_be_written_stops_no_promotion(client, good_bundle, monkeypatch, caplog):
    version = register(good_bundle)

    def refuse(*arguments: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the disk is full"))

    monkeypatch.setattr(Rows, "write_description", refuse)
    with caplog.at_level(logging.WARNING, "mlflow.plantmodels.description"):
        monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
        client.set_registered_model_alias(NAME, "production", version)
    assert client.get_model_version(NAME, version).current_stage == "Production"
    assert "plant-disease: its description was not renewed: (builtins.Exception) the disk is full" in caplog.text


def test_the_first_tag_says_passed_and_digests_come_last(client, bad_bundle):
    metadata, report = read_metadata(bad_bundle), read_report(bad_bundle)
    with mlflow.start_run():
        uri = flavor.log_model(bad_bundle, name="m").model_uri
    version = mlflow.register_model(uri, NAME, tags=version_tags(metadata, report)).version
    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "a demo")
    shown = sorted(client.get_model_version(NAME, version).tags)  # as MLflow's UI does
    assert shown[0] == GLANCE_TAG
    assert ["sha256" in name for name in shown] == [False] * (len(shown) - 4) + [True] * 4


def test_the_first_tag_is_the_registrys_own(client, good_bundle):
    version = register(good_bundle)
    for call in (
        lambda: client.set_model_version_tag(NAME, version, GLANCE_TAG, "passed"),
        lambda: client.set_model_version_tag(NAME, version, ".Gates", "passed"),
        lambda: client.delete_model_version_tag(NAME, version, GLANCE_TAG),
    ):
        with pytest.raises(
            MlflowException, match=r"'\.gates' and names that start with 'plantmodels\.' are reserved for the registry"
        ):
            call()


def test_escaped_text_is_one_line():
    assert escape_markdown("a\n| b\t`c`") == "a \\| b \\`c\\`"
