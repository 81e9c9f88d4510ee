"""Reads reports of older formats, so that `inspect` and `compare` can show them. They cannot be promoted.

A report of format 2 has nine gates, and neither fewest images nor samples nor the taxonomy.
"""

from collections.abc import Mapping
from typing import Any, Final

from plantmodels.bundle.serialization import encode
from plantmodels.report.gates import GATES, GateResult, not_measured
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Baseline
from plantmodels.report.statistics import PairedCounts

OLDEST_FORMAT: Final = 2
"""Version of the oldest report that can be shown."""


def explain_format(version: int) -> str:
    """Return why nothing may rest on a report of an older format."""
    return f"the report has format {version}, which lacks the evidence of its numbers; verify again"


def refuse_gates(policy: GatePolicy, version: int) -> tuple[GateResult, ...]:
    """Return every gate as not measured, because the report has an older format."""
    return tuple(not_measured(name, policy.limits_of(name), reason=explain_format(version)) for name in GATES)


def upgrade_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report of format 2 in the shape of the current format, with everything that it lacks left open.

    Anything that is not as format 2 says stays as it is, so that reading names it.

    Args:
        document: the JSON document of the report.
    """
    upgraded = {**document, "taxonomy": None, "leakage": None, "not_run": ""}
    if isinstance(document.get("gates"), list):
        upgraded["gates"] = [*map(_upgrade_gate, document["gates"]), *_list_new_gates(document["gates"])]
    additions: dict[str, dict[str, Any]] = {
        "policy": encode(GatePolicy()),
        "accuracy": {"by_class": {}, "species_baseline": _NO_BASELINE, "class_baseline": _NO_BASELINE},
        "parity": {"samples": [], "head_samples": {}},
        "latency": {"runs_ms": [], "encoded_runs_ms": []},
    }
    for name, added in additions.items():
        if isinstance(document.get(name), dict):
            upgraded[name] = added | document[name]
    return upgraded


_NO_BASELINE: Final = encode(Baseline("", PairedCounts(0, 0, 0, 0)))


def _upgrade_gate(gate: Any) -> Any:
    if not isinstance(gate, dict) or not {"limit", "measured"} <= set(gate):
        return gate
    rest = {name: value for name, value in gate.items() if name not in ("limit", "measured")}
    value = {"name": "", "limit": gate["limit"], "measured": gate["measured"], "bound": None}
    return {**rest, "values": [value], "min_images": 0, "confidence": None}


def _list_new_gates(gates: list[Any]) -> list[dict[str, Any]]:
    known = {gate.get("name") for gate in gates if isinstance(gate, dict)}
    new = (gate for gate in refuse_gates(GatePolicy(), OLDEST_FORMAT) if gate.name not in known)
    return [encode(gate) | {"passed": False} for gate in new]
