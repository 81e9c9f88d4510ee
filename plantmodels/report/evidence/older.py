"""Reads reports of older formats, so that `inspect` and `compare` can show them. They cannot be promoted.

Format 3 knows no uncertain verdicts, and the calibration of other numbers than the served ones, which is left out.
A report of format 2 has nine gates, and neither fewest images nor samples nor the taxonomy.
"""

from collections.abc import Mapping
from typing import Any, Final

from plantmodels.bundle.serialization import encode
from plantmodels.report.calibration.results import TrueClass
from plantmodels.report.gates import COMPARE, GATES, GateResult, not_measured
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Baseline
from plantmodels.report.statistics import PairedCounts

OLDEST_FORMAT: Final = 2
"""Version of the oldest report that can be shown."""

_LACKS: Final = {2: "which lacks the evidence of its numbers", 3: "which knows no uncertain verdicts"}
"""Why nothing may rest on a report of an older format."""


def explain_format(version: int) -> str:
    """Return why nothing may rest on a report of an older format."""
    return f"the report has format {version}, {_LACKS[version]}; verify again"


def refuse_gates(policy: GatePolicy, version: int) -> tuple[GateResult, ...]:
    """Return every gate as not measured, because the report has an older format."""
    return tuple(not_measured(name, policy.limits_of(name), reason=explain_format(version)) for name in GATES)


_NO_BASELINE: Final = encode(Baseline("", PairedCounts(0, 0, 0, 0)))

_ADDED_LATER: Final[dict[str, dict[str, Any]]] = {"leakage": {"crossing": None}}
"""What was added to the sections of format 4 after its first reports, with the value that stands for "not known"."""

_ADDED: Final[dict[int, dict[str, dict[str, Any]]]] = {
    3: {
        "": {"taxonomy": None, "leakage": None, "not_run": ""},
        "accuracy": {"by_class": {}, "species_baseline": _NO_BASELINE, "class_baseline": _NO_BASELINE},
        "parity": {"samples": [], "head_samples": {}},
        "latency": {"runs_ms": [], "encoded_runs_ms": []},
    },
    4: {
        "": {"field": None},
        "rejection": {"rounds": []},
        "inputs": {"field": None, "calibration": None, "left_out": 0},
        "accuracy": {"losses_by_species": {}},
        "parity": {"relative_logits": None, "relative_int8_logits": None},
        "latency": {"reference_runs_ms": [], "reference_median_ms": None, "relative": None},
        **_ADDED_LATER,
    },
}
"""Format to what it added to each section of the report, with the value that stands for "not known". The section "" is
the report itself. Limits have their defaults instead."""


def fill_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report of the current format in which what its first reports lack is left open."""
    lacking = {name: values for name, values in _ADDED_LATER.items() if isinstance(document.get(name), dict)}
    return {**document, **{name: values | document[name] for name, values in lacking.items()}}


def upgrade_document(document: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return a report of an older format in the shape of the current one, with everything that it lacks left open.

    Anything that is not as the older format says stays as it is, so that reading names it.

    Args:
        document: the JSON document of the report.
        version: its format, older than the current one.
    """
    upgraded = dict(document)
    for added in (sections for since, sections in _ADDED.items() if since > version):
        for name, values in added.items():
            if not name:
                upgraded = values | upgraded
            elif isinstance(upgraded.get(name), dict):
                upgraded[name] = values | upgraded[name]
    upgraded["accuracy"] = _upgrade_accuracy(upgraded.get("accuracy"))
    if isinstance(upgraded.get("policy"), dict):
        upgraded["policy"] = encode(GatePolicy()) | upgraded["policy"]
    if isinstance(document.get("gates"), list):
        gates = [*map(_upgrade_gate, document["gates"]), *_list_new_gates(document["gates"], version)]
        upgraded["gates"] = sorted(gates, key=_find_place)
    return upgraded


def _upgrade_accuracy(accuracy: Any) -> Any:
    """Return the section with what is known of its probabilities, the temperatures."""
    if not isinstance(accuracy, dict):
        return accuracy
    rest = dict(accuracy)
    unknown = encode(TrueClass(None, None, None, None, None))
    probabilities = {"served": {}, "true_species": unknown, "true_both": unknown}
    for what in ("species", "disease"):
        calibration = rest.pop(f"{what}_calibration", None)
        if isinstance(calibration, dict):
            probabilities[f"{what}_temperature"] = calibration.get("temperature")
    return {"probabilities": probabilities} | rest


def _upgrade_gate(gate: Any) -> Any:
    """Return a gate with its limit and value in a list, as since format 3, and with today's name of its verdict."""
    if not isinstance(gate, dict):
        return gate
    if {"limit", "measured"} <= set(gate):
        rest = {name: value for name, value in gate.items() if name not in ("limit", "measured")}
        value = {"name": "", "limit": gate["limit"], "measured": gate["measured"], "bound": None}
        return {**rest, "values": [value], "min_images": 0, "confidence": None}
    return {**gate, "status": "uncertain"} if _is_uncertain(gate) else gate


def _is_uncertain(gate: Mapping[str, Any]) -> bool:
    """Return whether a gate of format 3 failed by its bounds alone, which is called uncertain today."""
    if gate.get("status") != "failed" or gate.get("confidence") is None or not isinstance(gate.get("values"), list):
        return False
    compare = next((holds for sign, holds in COMPARE.items() if sign == gate.get("comparison")), None)
    return compare is not None and all(
        isinstance(value, dict)
        and all(isinstance(value.get(key), int | float) for key in ("measured", "limit"))
        and compare(value["measured"], value["limit"])
        for value in gate["values"]
    )


def _list_new_gates(gates: list[Any], version: int) -> list[dict[str, Any]]:
    known = {gate.get("name") for gate in gates if isinstance(gate, dict)}
    new = (gate for gate in refuse_gates(GatePolicy(), version) if gate.name not in known)
    return [encode(gate) | {"passed": False} for gate in new]


def _find_place(gate: Any) -> int:
    """Return a gate's place in contract 5; unknown ones stand last, where reading names them."""
    names = list(GATES)
    name = gate.get("name") if isinstance(gate, dict) else None
    return names.index(name) if name in names else len(names)
