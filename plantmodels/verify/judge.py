"""Judges the nine gates of contract 5 from what was measured and the limits of the policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.bundle.manifest import FileDigest
from plantmodels.report.gates import GateResult, judge_gate, not_measured
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Accuracy, Latency, Parity, Rejection

_SHOWN: Final = 3
"""Problems that a gate's one line of detail names; the report lists all of them."""


@dataclass(frozen=True)
class Measured:
    """Everything that was measured.

    Attributes:
        files: name of each measured file to its size and digest.
        onnx_files: names of the ONNX files among them.
        head_files: names of the single heads that the taxonomy needs.
        load_failures: ONNX file to the reason why it does not load.
        head_problems: one line for each problem with a disease head.
        heads_compared: whether a checkpoint was given to compare heads and class order with.
        accuracy: the accuracy; None if the models could not be run.
        rejection: the rejection; None if the models could not be run.
        latency: the latency; None if the models could not be run.
        parity: the parity; None without a checkpoint, or if the models could not be run.
        non_plants_given: whether a folder of non-plants was given.
        not_run: why the models could not be run; "" if they could.
    """

    files: Mapping[str, FileDigest]
    onnx_files: tuple[str, ...]
    head_files: tuple[str, ...]
    load_failures: Mapping[str, str]
    head_problems: tuple[str, ...]
    heads_compared: bool
    accuracy: Accuracy | None
    rejection: Rejection | None
    latency: Latency | None
    parity: Parity | None
    non_plants_given: bool
    not_run: str


def judge_gates(measured: Measured, policy: GatePolicy) -> tuple[GateResult, ...]:
    """Return the result of every gate, in the order of contract 5.

    Args:
        measured: what was measured.
        policy: the limits.
    """
    return (
        _judge_parity(measured, policy),
        _judge_int8_accuracy(measured, policy),
        *_judge_rejection(measured, policy),
        _judge_loads(measured),
        _judge_heads(measured),
        *_judge_sizes(measured, policy),
        _judge_latency(measured, policy),
    )


def _judge_parity(measured: Measured, policy: GatePolicy) -> GateResult:
    limit, parity = policy.limit_of("parity"), measured.parity
    if parity is None:
        reason = measured.not_run or "no checkpoint was given to compare with"
        return not_measured("parity", limit=limit, reason=reason)
    parts = {"logits": parity.logits, "embedding": parity.embedding, "heads": parity.head_logits}
    detail = ", ".join(f"{name} {'missing or not finite' if v is None else f'{v:.2g}'}" for name, v in parts.items())
    return judge_gate("parity", parity.worst, limit=limit, samples=parity.images, detail=detail)


def _judge_int8_accuracy(measured: Measured, policy: GatePolicy) -> GateResult:
    limit, accuracy = policy.limit_of("int8_accuracy"), measured.accuracy
    if accuracy is None:
        return not_measured("int8_accuracy", limit=limit, reason=measured.not_run)
    drops = {"species": accuracy.species.difference, "disease": accuracy.disease.difference}
    written = ", ".join(f"{name} {drop:+.4f}" for name, drop in drops.items() if drop is not None)
    images = accuracy.species.images
    detail = f"FP16 minus INT8: {written}"
    return judge_gate("int8_accuracy", accuracy.worst_drop, limit=limit, samples=images, detail=detail)


def _judge_rejection(measured: Measured, policy: GatePolicy) -> tuple[GateResult, GateResult]:
    names, rejection = ("ood_precision", "ood_recall"), measured.rejection
    if rejection is None or rejection.recall is None:
        reason = measured.not_run or (
            "the half of the non-plants that gates may measure is empty"
            if measured.non_plants_given
            else "no non-plants were given"
        )
        results = [not_measured(name, limit=policy.limit_of(name), reason=reason) for name in names]
        return results[0], results[1]
    plants, others = rejection.plants, rejection.non_plants
    held_out = "held-out non-plants" if rejection.held_out else "non-plants"
    recalled = f"{others.count:,} of {others.images:,} {held_out} rejected"
    alarms = f"{plants.count:,} of {plants.images:,} plants rejected"
    defined = "" if rejection.precision is not None else "; nothing is rejected, so precision is not defined"
    precision = judge_gate(
        names[0],
        rejection.precision,
        limit=policy.limit_of(names[0]),
        samples=plants.images + others.images,
        detail=f"{alarms}, {recalled}{defined}",
    )
    limit = policy.limit_of(names[1])
    return precision, judge_gate(names[1], rejection.recall, limit=limit, samples=others.images, detail=recalled)


def _judge_loads(measured: Measured) -> GateResult:
    failures = tuple(f"{name}: {reason}" for name, reason in measured.load_failures.items())
    samples = len(measured.onnx_files)
    return judge_gate("loads", float(len(failures)), limit=0.0, samples=samples, detail=_list_some(failures))


def _judge_heads(measured: Measured) -> GateResult:
    problems = measured.head_problems
    detail = _list_some(problems)
    if not measured.heads_compared and not problems:
        reason = "no checkpoint was given: class order and weights cannot be compared with it"
        return not_measured("heads_complete", limit=0.0, reason=reason)
    samples = len(measured.head_files)
    return judge_gate("heads_complete", float(len(problems)), limit=0.0, samples=samples, detail=detail)


def _list_some(problems: tuple[str, ...]) -> str:
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def _judge_sizes(measured: Measured, policy: GatePolicy) -> tuple[GateResult, GateResult]:
    species = measured.files.get(SPECIES_FILES["int8"])
    sizes = {name: measured.files[name].size_bytes for name in measured.head_files if name in measured.files}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    return (
        judge_gate(
            "species_size",
            None if species is None else float(species.size_bytes),
            limit=policy.limit_of("species_size"),
            samples=0 if species is None else 1,
            detail=SPECIES_FILES["int8"] + (" is missing" if species is None else ""),
        ),
        judge_gate(
            "head_size",
            float(sizes.get(largest, 0)),
            limit=policy.limit_of("head_size"),
            samples=len(sizes),
            detail=largest or "no species has a head",
        ),
    )


def _judge_latency(measured: Measured, policy: GatePolicy) -> GateResult:
    limit, latency = policy.limit_of("latency"), measured.latency
    if latency is None:
        return not_measured("latency", limit=limit, reason=measured.not_run)
    load = "" if latency.load is None else f", load average {latency.load:.1f} before"
    detail = f"95th percentile {latency.p95_ms:.1f} ms, {latency.threads} threads, {latency.cpu or 'CPU'}{load}"
    return judge_gate("latency", latency.median_ms, limit=limit, samples=latency.runs, detail=detail)
