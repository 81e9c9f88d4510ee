"""The numbers of a report by dotted names, as MLflow keeps them.

>>> from plantmodels.report.gate_report import read_report
>>> collect_metrics(read_report(bundle))["gate.loads"]
0.0
"""

import re
from typing import TYPE_CHECKING, Final

from plantmodels.report.calibration.results import Probabilities
from plantmodels.report.evidence.field import Field
from plantmodels.report.gates import GateResult
from plantmodels.report.leakage import Crossing
from plantmodels.report.results import Accuracy

if TYPE_CHECKING:
    from plantmodels.report.gate_report import GateReport


def collect_metrics(report: "GateReport") -> dict[str, float]:
    """Return every number worth plotting over versions by a dotted name. What was not measured is absent."""
    values: dict[str, float | None] = {f"gate.{gate.name}": gate.measured for gate in report.gates}
    for gate in report.gates:
        values |= {_name_metric(gate, value.name): value.measured for value in gate.values[1:]}
    for gate in report.gates:
        values |= {f"{_name_metric(gate, value.name)}.bound": value.bound for value in gate.values}
    values["gates_passed"] = sum(gate.passed for gate in report.gates)
    values["gates_uncertain"] = len(report.uncertain)
    if report.accuracy is not None:
        for precision, counts in (("fp16", report.accuracy.fp16), ("int8", report.accuracy.int8)):
            values[f"accuracy.{precision}.species"] = counts.species.value
            values[f"accuracy.{precision}.disease"] = counts.disease.value
            values[f"accuracy.{precision}.end_to_end"] = counts.end_to_end.value
        values |= _paired_metrics(report.accuracy)
        values |= _calibration_metrics(report.accuracy.probabilities)
    if report.parity is not None:
        values |= {
            f"parity.{name}": getattr(report.parity, name)
            for name in (
                "logits",
                "embedding",
                "head_logits",
                "int8_logits",
                "int8_embedding",
                "int8_head_logits",
                "relative_logits",
                "relative_int8_logits",
            )
        }
    if report.rejection is not None:
        values["ood.false_alarm_rate"] = report.rejection.false_alarm_rate
        share = report.policy.ood_precision_non_plant_share
        values["ood.precision_at_non_plant_share"] = report.rejection.precision_of(report.rejection.non_plants, share)
        values["ood.threshold"] = report.rejection.threshold
        values["ood.unseen_plants_rejected"] = report.rejection.unseen_plants.value
        if report.rejection.separation is not None:
            values["ood.auroc"] = report.rejection.separation.auroc.value
            values["ood.fpr_at_95_recall"] = report.rejection.separation.fpr_at_95_recall.value
    if report.leakage is not None and report.leakage.crossing is not None:
        values |= _crossing_metrics(report.leakage.crossing)
    if report.latency is not None:
        values |= {f"latency.{name}": getattr(report.latency, name) for name in _LATENCIES}
    if report.field is not None:
        values |= _field_metrics(report.field)
    return {name: float(value) for name, value in values.items() if value is not None}


def _paired_metrics(accuracy: Accuracy) -> dict[str, float | None]:
    drops = {"species": accuracy.species, "disease": accuracy.disease, "end_to_end": accuracy.end_to_end}
    values: dict[str, float | None] = {
        "accuracy.species_flips": accuracy.species_flips,
        "accuracy.disease_flips": accuracy.disease_flips,
        "accuracy.soft_minus_hard": None if accuracy.routing.difference is None else -accuracy.routing.difference,
    }
    for name, paired in drops.items():
        low, high = paired.interval or (None, None)
        values |= {f"accuracy.drop.{name}.low": low, f"accuracy.drop.{name}": paired.difference}
        values |= {f"accuracy.drop.{name}.high": high, f"accuracy.drop.{name}.p": paired.p_value}
    return values


def _crossing_metrics(crossing: Crossing) -> dict[str, float | None]:
    right = crossing.without
    return {
        "crossing.groups": crossing.groups,
        "crossing.share": crossing.leaves.value,
        "crossing.without.species": right.species.value,
        "crossing.without.disease": right.disease.value,
        "crossing.without.end_to_end": right.end_to_end.value,
    }


def _field_metrics(field: Field) -> dict[str, float | None]:
    right, accepted = field.accuracy.int8, field.decided.accepted
    return {
        "field.accuracy.species": right.species.value,
        "field.accuracy.disease": right.disease.value,
        "field.accuracy.end_to_end": right.end_to_end.value,
        "field.rejected": field.decided.rejected_share.value,
        "field.ood_precision": field.rejection.precision,
        "field.accepted.species": accepted.species.value,
        "field.accepted.end_to_end": accepted.end_to_end.value,
        "field.accepted.probability": accepted.confidence,
        **{f"field.accuracy.ece.{name}": one.after.ece for name, one in field.accuracy.probabilities.served.items()},
        **{f"field.p_value_at_most_{least}": low.value for least, low in field.decided.low_p_values.items()},
    }


def _calibration_metrics(probabilities: Probabilities) -> dict[str, float | None]:
    values: dict[str, float | None] = {
        "accuracy.nll.species": probabilities.true_species.after,
        "accuracy.nll.both": probabilities.true_both.after,
    }
    for name, calibration in probabilities.served.items():
        served, noise = calibration.after, calibration.noise
        values |= {
            f"accuracy.ece.{name}": served.ece,
            f"accuracy.ece_by_chance.{name}": None if noise is None else noise.ece,
            f"accuracy.brier.{name}": served.brier,
            f"accuracy.log_loss.{name}": served.log_loss,
            f"accuracy.mean_probability.{name}": served.mean_probability,
        }
    return values


def _name_metric(gate: GateResult, value: str) -> str:
    """Return the name of a value of a gate; MLflow allows letters, digits, blanks and some signs in names."""
    return f"gate.{gate.name}" + (f".{re.sub(r'[^A-Za-z0-9_. /-]', '_', value)}" if value else "")


_LATENCIES: Final = ("median_ms", "p95_ms", "encoded_median_ms", "encoded_p95_ms", "reference_median_ms", "relative")
