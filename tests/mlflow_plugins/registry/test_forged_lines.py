"""Foreign text cannot forge a line of the audit or of the log, or steer the terminal that shows them."""

import logging

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_plugins.registry.audit import Decision, permission_denied
from mlflow_plugins.registry.commands.history import list_decisions
from mlflow_plugins.registry.tags import WAIVE_TAG
from mlflow_plugins.registry.waivers import Waiver
from tests.fixtures.registry import register_bundle

NAME = "plant-disease"
FORGED = "2026-11-24T10:00:00Z  allowed: ada asked to set alias production"
ATTACKS = [
    f"fine\n{FORGED}",
    "fine\r\x1b[2K",
    "fine\x1b]0;title\x07",
    "fine\u2028new",
    "fine\u202eenif",
    "fi\u200bne",
    "a\x9b2J",
]


@pytest.fixture
def client(embedded_mlflow: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    return MlflowClient()


@pytest.mark.parametrize("reason", ATTACKS)
def test_a_reason_with_control_characters_is_refused(client, bad_bundle, reason):
    version = register_bundle(bad_bundle, NAME)
    with pytest.raises(MlflowException, match=r"the reason must be one line of plain text, got the character \\"):
        client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", reason)
    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", "nur Gewächshausbilder: 50 % genügen\n")
    assert [decision.reason for decision in list_decisions(NAME) if decision.allowed][1:] == [
        "nur Gewächshausbilder: 50 % genügen"
    ]


@pytest.mark.parametrize("text", ATTACKS)
def test_foreign_text_is_escaped_where_it_is_printed(text):
    decision = Decision("2026-11-24T10:00:00Z", text, text, text, True, text, None)
    waiver = Waiver(0.5, "0" * 64, text, text, "2026-11-24T10:00:00Z")
    for printed in (decision.to_sentence(), waiver.to_sentence(text), permission_denied(text).message):
        assert printed.isprintable(), printed


def test_a_new_name_cannot_forge_a_line(client, good_bundle, caplog):
    register_bundle(good_bundle, NAME)
    new_name = f"other\n{FORGED.replace(':', '')}"  # MLflow's names hold no colon
    logging.getLogger("mlflow").propagate = True
    with caplog.at_level(logging.INFO):
        client.rename_registered_model(NAME, new_name)
    sentences = [decision.to_sentence() for decision in list_decisions(new_name)]
    assert sentences
    assert all(sentence.isprintable() for sentence in sentences)
    decided = [record.getMessage() for record in caplog.records if record.name.endswith("audit")]
    assert decided
    assert not any("\n" in line for line in decided)
