import dataclasses
import json

import pytest

from mlflow_plugins.registry.waivers import Waiver
from plantmodels.report.gates import GateValue, judge_gate

WAIVER = Waiver(0.5, "ab" * 32, "greenhouse only", "ada", "2026-11-24T10:00:00.000001Z")
FAILED = judge_gate("ood_recall", [GateValue("", 0.95, 0.5)], samples=9)


def test_a_waiver_covers_one_value_of_one_manifest() -> None:
    assert Waiver.from_json(json.dumps(dataclasses.asdict(WAIVER))) == WAIVER
    assert Waiver.from_row(WAIVER.to_row()) == WAIVER
    assert WAIVER.to_tag() == "waived by ada on 2026-11-24: greenhouse only"
    assert WAIVER.covers(FAILED, "ab" * 32)
    assert not WAIVER.covers(FAILED, "cd" * 32)
    assert not WAIVER.covers(dataclasses.replace(FAILED, values=(GateValue("", 0.95, 0.4),)), "ab" * 32)


@pytest.mark.parametrize("text", ["", "fine", "[]", "3", "null", "{}", json.dumps({"reason": "x"})])
def test_tags_that_the_registry_did_not_write_are_not_waivers(text: str) -> None:
    assert Waiver.from_json(text) is None
