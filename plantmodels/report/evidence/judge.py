"""Judges the gates of contract 5 from what was measured and the limits of the policy.

`verify` makes the report's verdicts with it, reading a report makes them again, and the gated registry makes them a
third time by its own policy.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from plantmodels.bundle.layout import SPECIES_FILES, head_file
from plantmodels.bundle.manifest import FileDigest
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.foreign_text import name_some
from plantmodels.report.evidence.coverage import find_gaps, tell_images, tell_leaves, tell_times_as_many
from plantmodels.report.evidence.field import Field
from plantmodels.report.evidence.worst import find_worst_loss
from plantmodels.report.formatting import format_percent, spell_class
from plantmodels.report.gates import GateResult, GateValue, judge_gate, not_measured
from plantmodels.report.leakage import Leakage
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Accuracy, Baseline, ClassRow, Rejection
from plantmodels.report.samples import Latency, Parity
from plantmodels.report.statistics import CONFIDENCE, Interval, Proportion

_SHOWN: Final = 3
"""Problems that a gate's one line of detail names; the report lists all of them."""


@dataclass(frozen=True)
class Measured:
    """Everything that the gates are judged by.

    Attributes:
        taxonomy: the bundle's species and diseases.
        files: name of each measured file to its size and digest.
        problems: name of a gate to the problems that it counts, for `loads` and `heads_complete`.
        heads_compared: whether a checkpoint was given to compare heads and class order with.
        accuracy: the accuracy; None if the models could not be run.
        rejection: the rejection; None if the models could not be run.
        leakage: validation images that occur again; None without training images, or if the models could not be run.
        latency: the latency; None if the models could not be run.
        parity: the parity; None without a checkpoint, or if the models could not be run.
        field: what was measured on field leaves; None without any, or if the models could not be run.
        non_plants_given: whether a folder of non-plants was given.
        not_run: why the models could not be run; "" if they could.
    """

    taxonomy: Taxonomy
    files: Mapping[str, FileDigest]
    problems: Mapping[str, tuple[str, ...]]
    heads_compared: bool
    accuracy: Accuracy | None
    rejection: Rejection | None
    leakage: Leakage | None
    latency: Latency | None
    parity: Parity | None
    field: Field | None
    non_plants_given: bool
    not_run: str


def list_head_files(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return the names of the single heads that a taxonomy needs."""
    return tuple(head_file(taxonomy.slugs[index]) for index in taxonomy.species_with_head)


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
        _judge_false_alarms(measured, policy),
        _judge_loads(measured, policy),
        _judge_heads(measured, policy),
        *_judge_sizes(measured, policy),
        _judge_latency(measured, policy),
        _judge_accuracy(measured, policy),
        _judge_coverage(measured, policy),
        _judge_leakage(measured, policy),
    )


def _judge(
    name: str,
    policy: GatePolicy,
    values: Mapping[str, tuple[float | None, float | None]],
    samples: int,
    detail: str,
    needed: Callable[[float, float], str] | None = None,
) -> GateResult:
    """Judge values by the policy's limits.

    Args:
        name: the gate.
        policy: the limits.
        values: name of each value to the measured value and to its bound, of the policy's confidence or else of 95 %.
        samples: number of samples.
        detail: one line of explanation.
        needed: function of limit and confidence that says how many images would make an uncertain gate certain.
    """
    confidence = policy.confidence_of(name)
    found = [
        GateValue(value, limit, measured, bound)
        for value, limit in policy.limits_of(name).items()
        for measured, bound in [values[value]]
    ]
    least = policy.min_images_of(name)
    gate = judge_gate(name, found, samples=samples, min_images=least, confidence=confidence, detail=detail)
    if needed is None or not gate.is_uncertain:
        return gate
    return replace(gate, detail="; ".join(filter(None, (gate.detail, needed(gate.limit, confidence or CONFIDENCE)))))


def _not_measured(name: str, policy: GatePolicy, reason: str) -> GateResult:
    return not_measured(
        name,
        policy.limits_of(name),
        reason=reason,
        min_images=policy.min_images_of(name),
        confidence=policy.confidence_of(name),
    )


def _single(measured: float | None, bound: float | None = None) -> dict[str, tuple[float | None, float | None]]:
    return {"": (measured, bound)}


def _end(interval: Interval | None, side: int) -> float | None:
    return None if interval is None else interval[side]


def _judge_parity(measured: Measured, policy: GatePolicy) -> GateResult:
    parity = measured.parity
    if parity is None:
        return _not_measured("parity", policy, measured.not_run or "no checkpoint was given to compare with")
    parts = {"logits": parity.logits, "embedding": parity.embedding, "heads": parity.head_logits}
    detail = ", ".join(f"{name} {'missing or not finite' if v is None else f'{v:.2g}'}" for name, v in parts.items())
    if parity.relative_logits is not None:
        detail += f"; {parity.relative_logits:.2g} of the spread of an image's logits"
    return _judge("parity", policy, _single(parity.worst), parity.images, detail)


def _judge_int8_accuracy(measured: Measured, policy: GatePolicy) -> GateResult:
    name, accuracy = "int8_accuracy", measured.accuracy
    if accuracy is None:
        return _not_measured(name, policy, measured.not_run)
    drops = {part: paired.difference or 0.0 for part, paired in accuracy.int8_losses.items()}
    written = ", ".join(f"{part} {drop:+.4f}" for part, drop in drops.items())
    bound = accuracy.worst_drop_at(policy.confidence_of(name) or CONFIDENCE)
    worst = find_worst_loss(accuracy.losses_by_species)
    values = _single(accuracy.worst_drop, bound) | {"worst species": (None if worst is None else worst.share, None)}
    return _judge(
        name, policy, values, accuracy.species.images, f"FP16 minus INT8: {written}", partial(tell_leaves, accuracy)
    )


def _judge_rejection(measured: Measured, policy: GatePolicy) -> tuple[GateResult, GateResult]:
    names, rejection = ("ood_precision", "ood_recall"), measured.rejection
    if rejection is None or rejection.recall is None:
        reason = measured.not_run or (
            "the half of the non-plants that gates may measure is empty"
            if measured.non_plants_given
            else "no non-plants were given"
        )
        return _not_measured(names[0], policy, reason), _not_measured(names[1], policy, reason)
    plants, others = rejection.plants, rejection.non_plants
    held_out = "held-out non-plants" if rejection.held_out else "non-plants"
    recalled = f"{others.count:,} of {others.images:,} {held_out} rejected"
    alarms = f"{plants.count:,} of {plants.images:,} plants rejected"
    defined = "" if rejection.precision is not None else "; nothing is rejected, so precision is not defined"
    confidences = [policy.confidence_of(name) or CONFIDENCE for name in names]
    precision = _single(rejection.precision, _end(rejection.precision_interval_at(confidences[0]), 0))
    recall = _single(rejection.recall, _end(others.interval_at(confidences[1]), 0))
    sources = [_rate(each, confidences[1]) for each in rejection.by_source.values()]
    recall |= {"worst source": _find_worst(dict(enumerate(sources)))}
    return (
        _judge(
            names[0],
            policy,
            precision,
            others.images,
            f"{alarms}, {recalled}{defined}",
            partial(tell_times_as_many, rejection),
        ),
        _judge(names[1], policy, recall, others.images, recalled, partial(tell_images, others, "non-plants")),
    )


def _judge_false_alarms(measured: Measured, policy: GatePolicy) -> GateResult:
    name, rejection = "false_alarms", measured.rejection
    if rejection is None:
        return _not_measured(name, policy, measured.not_run)
    plants = rejection.plants
    bound = _end(plants.interval_at(policy.confidence_of(name) or CONFIDENCE), 1)
    detail = f"{plants.count:,} of {plants.images:,} plants rejected"
    told = partial(tell_images, plants, "leaves")
    confidence = policy.confidence_of(name) or CONFIDENCE
    species = [
        (each.value or 0.0, _end(each.interval_at(confidence), 1) or 0.0) for each in rejection.by_species.values()
    ]
    worst = [max(column, default=None) for column in zip(*species, strict=True)] or [None, None]
    values = _single(plants.value, bound) | {"worst species": (worst[0], worst[1])}
    return _judge(name, policy, values, plants.images, detail, told)


def _judge_loads(measured: Measured, policy: GatePolicy) -> GateResult:
    failures = measured.problems.get("loads", ())
    samples = sum(name.endswith(".onnx") for name in measured.files)
    return _judge("loads", policy, _single(float(len(failures))), samples, name_some(failures, _SHOWN, "; "))


def _judge_heads(measured: Measured, policy: GatePolicy) -> GateResult:
    name, problems = "heads_complete", measured.problems.get("heads_complete", ())
    if not measured.heads_compared and not problems:
        reason = "no checkpoint was given: class order and weights cannot be compared with it"
        return _not_measured(name, policy, reason)
    return _judge(
        name,
        policy,
        _single(float(len(problems))),
        len(list_head_files(measured.taxonomy)),
        name_some(problems, _SHOWN, "; "),
    )


def _judge_sizes(measured: Measured, policy: GatePolicy) -> tuple[GateResult, GateResult]:
    file = SPECIES_FILES["int8"]
    species = measured.files.get(file)
    size = None if species is None else float(species.size_bytes)
    sizes = {
        name: measured.files[name].size_bytes for name in list_head_files(measured.taxonomy) if name in measured.files
    }
    largest = max(sizes, key=lambda name: sizes[name], default="")
    return (
        _judge("species_size", policy, _single(size), int(species is not None), file + " is missing" * (size is None)),
        _judge(
            "head_size",
            policy,
            _single(float(sizes.get(largest, 0))),
            len(sizes),
            largest or "no species has a head",
        ),
    )


def _judge_latency(measured: Measured, policy: GatePolicy) -> GateResult:
    latency = measured.latency
    if latency is None:
        return _not_measured("latency", policy, measured.not_run)
    load = "" if latency.load is None else f", load average {latency.load:.1f} before"
    if latency.relative is not None and latency.reference_median_ms is not None:
        load += f", {latency.relative:.2f} times a reference that took {latency.reference_median_ms:.1f} ms"
    detail = f"95th percentile {latency.p95_ms:.1f} ms, {latency.threads} threads, {latency.cpu or 'CPU'}{load}"
    return _judge("latency", policy, _single(latency.median_ms), latency.runs, detail)


def _judge_accuracy(measured: Measured, policy: GatePolicy) -> GateResult:
    name, accuracy, taxonomy = "accuracy", measured.accuracy, measured.taxonomy
    if accuracy is None:
        return _not_measured(name, policy, measured.not_run)
    confidence = policy.confidence_of(name) or CONFIDENCE
    species, classes = (_rate_classes(rows, confidence) for rows in (accuracy.by_species, accuracy.by_class))
    values = {
        "species": _rate(accuracy.int8.species, confidence),
        "end to end": _rate(accuracy.int8.end_to_end, confidence),
        "worst species": _find_worst(species),
        "worst class": _find_worst(classes),
        "species above the commonest": _gain(accuracy.species_baseline, len(taxonomy.species), confidence),
        "end to end above the commonest": _gain(accuracy.class_baseline, taxonomy.classes, confidence),
        **_rate_field(measured.field, policy.accuracy_min_field_images, confidence),
        **{f"species {each}": species.get(each, (None, None)) for each in policy.accuracy_species},
    }
    asks_field = any(value.startswith("field ") for value in policy.limits_of(name))
    few = _describe_few(measured.field, policy.accuracy_min_field_images) if asks_field else ""
    detail = "; ".join(filter(None, (few, *_describe_worst(accuracy, policy), *_describe_baselines(accuracy))))
    return _judge(name, policy, values, accuracy.species.images, detail)


_Rate = tuple[float | None, float | None]
"""A proportion, and the lower end of its interval."""


def _rate(right: Proportion, confidence: float) -> _Rate:
    return right.value, _end(right.interval_at(confidence), 0)


def _rate_field(field: Field | None, min_images: int, confidence: float) -> dict[str, _Rate]:
    """Return the rates of field leaves that a policy may limit; none is measured on fewer leaves than it asks for."""
    names = ("species", "end to end", "accepted", "accepted and right")
    if field is None or field.accuracy.species.images < min_images:
        return {f"field {name}": (None, None) for name in names}
    right, rejected = field.accuracy.int8, field.decided.rejected_share
    accepted = Proportion(rejected.images - rejected.count, rejected.images)
    shares = (right.species, right.end_to_end, accepted, field.decided.accepted.species)
    return {f"field {name}": _rate(share, confidence) for name, share in zip(names, shares, strict=True)}


def _describe_few(field: Field | None, min_images: int) -> str:
    images = 0 if field is None else field.accuracy.species.images
    return "" if images >= min_images else f"needs at least {min_images:,} field leaves (--field), got {images:,}"


def _rate_classes(rows: Mapping[str, ClassRow], confidence: float) -> dict[str, _Rate]:
    return {name: _rate(Proportion(row.int8, row.images), confidence) for name, row in rows.items()}


def _find_worst(rates: Mapping[Any, _Rate]) -> _Rate:
    """Return the lowest rate and the lowest bound, which can belong to two classes."""
    columns = ([value for value in column if value is not None] for column in zip(*rates.values(), strict=True))
    worst = [min(column, default=None) for column in columns]
    return (worst[0], worst[1]) if worst else (None, None)


def _gain(baseline: Baseline, classes: int, confidence: float) -> _Rate:
    """Return by how much INT8 is better than always answering the commonest class, beyond noise.

    The value is the lower end of the 95 % interval, and the bound is that of the policy's confidence if it is higher.
    Of a single class, every answer is right, so both are 0.
    """
    if classes == 1:
        return 0.0, 0.0
    return baseline.gain_at(CONFIDENCE), baseline.gain_at(max(CONFIDENCE, confidence))


def _describe_worst(accuracy: Accuracy, policy: GatePolicy) -> Iterator[str]:
    """Yield the worst species, and the worst class, where the policy has a limit that it may miss."""
    parts = {
        "species": (accuracy.by_species, policy.accuracy_min_worst_species),
        "class": (accuracy.by_class, policy.accuracy_min_worst_class),
    }
    for what, (rows, limit) in parts.items():
        shown = {name: row for name, row in rows.items() if row.images}
        if limit is not None and shown:
            name, row = min(shown.items(), key=lambda item: (item[1].int8 / item[1].images, -item[1].images))
            if policy.accuracy_confidence is not None or row.int8 < limit * row.images:
                yield f"the worst {what}, {spell_class(name)}, has {row.int8:,} of {row.images:,} right"


def _describe_baselines(accuracy: Accuracy) -> Iterator[str]:
    parts = {"species": accuracy.species_baseline, "class": accuracy.class_baseline}
    for what, baseline in parts.items():
        share = format_percent(baseline.counts.first.value)
        yield f"the commonest {what}, {spell_class(baseline.name)}, is {share} of images"


def _judge_coverage(measured: Measured, policy: GatePolicy) -> GateResult:
    name, accuracy = "coverage", measured.accuracy
    if accuracy is None:
        return _not_measured(name, policy, measured.not_run)
    least = {"species": policy.coverage_images_per_species, "classes": policy.coverage_images_per_class}
    gaps = find_gaps(measured.taxonomy, accuracy, **least)
    return _judge(name, policy, _single(float(gaps.total)), accuracy.species.images, gaps.describe(**least))


def _judge_leakage(measured: Measured, policy: GatePolicy) -> GateResult:
    name, leakage = "leakage", measured.leakage
    if leakage is None:
        return _not_measured(name, policy, measured.not_run or "the data hold no split train to compare with")
    leaking = leakage.leaking
    bound = _end(leaking.interval_at(policy.confidence_of(name) or CONFIDENCE), 1)
    told = partial(tell_images, leaking, "leaves")
    return _judge(name, policy, _single(leaking.value, bound), leaking.images, leakage.describe(), told)
