"""`report.html`: the gate report for people, one file that needs neither scripts nor the network.

The templates hold the words and the layout; this module and its neighbours prepare what the report does not hold ready.

>>> from plantmodels.report.gate_report import read_report
>>> page = render_report(read_report(bundle), {})
>>> "<h2>Out-of-distribution rejection</h2>" in page
True
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from plantmodels.report.calibration.scores import DRAWS
from plantmodels.report.evidence.coverage import find_gaps
from plantmodels.report.evidence.worst import find_worst
from plantmodels.report.gate_report import GateReport
from plantmodels.report.gates import GATES, GateResult, Status
from plantmodels.report.policy import LIMITS
from plantmodels.report.render.accuracy import prepare_accuracy
from plantmodels.report.render.environment import DIGEST_DIGITS, make_environment
from plantmodels.report.render.field import prepare_field
from plantmodels.report.render.gallery import Gallery
from plantmodels.report.render.rejection import prepare_rejection
from plantmodels.report.summary import UNCERTAIN_MEANS

_MARKS: Final[dict[Status, str]] = {
    "passed": "✓",
    "passed, uncertain": "≈",
    "uncertain": "≈",
    "failed": "✕",
    "not measured": "–",
}


@dataclass(frozen=True)
class GateRow:
    """A row of the gate table.

    Attributes:
        gate: the verdict.
        meaning: one line that explains the gate.
        mark: a sign for the verdict.
        interval: 95 % interval of the measured value in words; "" when there is none.
        is_loosened: whether the limit lets more bundles pass than the default does.
    """

    gate: GateResult
    meaning: str
    mark: str
    interval: str
    is_loosened: bool


def render_report(
    report: GateReport,
    plots: Mapping[str, bytes],
    recipe: Mapping[str, Any] = MappingProxyType({}),
    detector: Mapping[str, Any] = MappingProxyType({}),
    galleries: Mapping[str, Gallery] = MappingProxyType({}),
    warnings: Sequence[str] = (),
) -> str:
    """Return the whole page as an HTML document.

    Args:
        report: the report to show.
        plots: file name to PNG, from `draw_plots`; each becomes part of the page.
        recipe: how the INT8 species model was made, from the bundle's metadata.
        detector: how the detector was chosen, from the bundle's metadata.
        galleries: thumbnails by name: "flipped" for images where FP16 and INT8 differ, "let through" for accepted
            non-plants, "rejected" for rejected plants, "misjudged" for accepted field leaves with a wrong species, and
            "leaks" for pairs of a validation image and the image that shows the same.
        warnings: what the export found odd, from the bundle's metadata.
    """
    template = make_environment().get_template("report.html.j2")
    return template.render(
        report=report,
        verdict=_spell_verdict(report),
        uncertain_means=UNCERTAIN_MEANS,
        facts=_list_facts(report),
        gates=_list_gates(report),
        accuracy_view=None if report.accuracy is None else prepare_accuracy(report.accuracy),
        field_view=prepare_field(report),
        rejection_view=None if report.rejection is None else prepare_rejection(report.rejection, detector),
        worst=find_worst(report.accuracy, report.rejection).rows,
        **_prepare_coverage(report),
        plots=plots,
        calibration_draws=DRAWS,
        recipe=recipe,
        galleries=galleries,
        warnings=warnings,
    )


def _prepare_coverage(report: GateReport) -> dict[str, Any]:
    """Return the classes with too few validation images, in words as well; nothing if the models could not be run."""
    policy = report.policy
    least = {"species": policy.coverage_images_per_species, "classes": policy.coverage_images_per_class}
    gaps = (
        None
        if report.accuracy is None or report.taxonomy is None
        else find_gaps(report.taxonomy, report.accuracy, **least)
    )
    return {"gaps": gaps, "gaps_text": "" if gaps is None else gaps.describe(**least), "policy": policy}


def _spell_verdict(report: GateReport) -> str:
    passed = len(report.gates) - len(report.failed)
    verdict = f"All {passed} gates passed" if report.passed else f"{passed} of {len(report.gates)} gates passed"
    return f"{verdict}, {len(report.uncertain)} uncertain" if report.uncertain else verdict


def _list_facts(report: GateReport) -> list[str]:
    inputs = report.inputs
    facts = [f"{inputs.val.measured:,} validation leaves"]
    if inputs.non_plants is not None:
        facts.append(f"{inputs.non_plants.measured:,} non-plants")
    if inputs.field is not None:
        facts.append(f"{inputs.field.measured:,} field leaves")
    if inputs.checkpoint_sha256 is not None:
        facts.append(f"checkpoint {inputs.checkpoint_sha256[:DIGEST_DIGITS]}")
    return [*facts, report.machine.cpu or report.machine.architecture]


def _list_gates(report: GateReport) -> list[GateRow]:
    loosened = {LIMITS[name].gate for name in report.policy.loosened}
    intervals = report.intervals
    return [
        GateRow(
            gate,
            GATES[gate.name].meaning,
            _MARKS[gate.status],
            gate.interval_text(*intervals[gate.name]) if gate.name in intervals and gate.measured is not None else "",
            gate.name in loosened,
        )
        for gate in report.gates
    ]
