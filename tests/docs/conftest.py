"""The pages as blocks of code, and a bundle of which one gate failed."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plantmodels.bundle.files import write_json
from plantmodels.bundle.layout import GATE_REPORT_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.report.gate_report import read_report
from plantmodels.report.gates import GATES, judge_gate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def code_blocks() -> Callable[[str, str], list[str]]:
    """`code_blocks("service.md", "python")`: the blocks of one language on a page, in order; "" for plain text."""

    def read(page: str, language: str) -> list[str]:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        return [content for name, content in blocks if name == language]

    return read


@pytest.fixture(scope="session")
def failing_bundle(tmp_path_factory: pytest.TempPathFactory, verified_bundle: Path) -> Path:
    """The verified tiny bundle with a report in which only `ood_recall` failed; read-only."""
    bundle = Path(shutil.copytree(verified_bundle, tmp_path_factory.mktemp("failing") / "models"))
    report = read_report(bundle)
    measured = {"parity": 0.001, "int8_accuracy": 0.0, "ood_precision": 0.995, "ood_recall": 0.94, "latency": 5.0}
    values = {gate.name: gate.measured for gate in report.gates} | measured
    gates = tuple(judge_gate(name, values[name], limit=report.policy.limit_of(name), samples=100) for name in GATES)
    write_json(bundle / GATE_REPORT_FILE, dataclasses.replace(report, gates=gates).to_dict())
    write_manifest(bundle)
    return bundle
