"""Compare the measurements with the requirements on speed and cost (the bars).

[bar.met for bar in judge_bars(result)]        # True, False, None, …
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from benchmarks.building import MANY_SPECIES
from benchmarks.contestants import CONTESTANTS, LITERAL, OURS_INT8
from benchmarks.driver import QUIET
from benchmarks.scale.measure import Plan
from benchmarks.speed import BULK, best_entry

OPENVINO: Final = tuple(name for name in CONTESTANTS if name.startswith("OpenVINO"))


@dataclass(frozen=True)
class Bar:
    """One requirement.

    Attributes:
        what: description for people.
        measured: the measured value, or None if it was not measured.
        bar: the limit.
        moonshot: a much harder limit; None if there is none.
        sense: whether the measured value must be at most or at least the limit.
        unit: unit of the values.
        detail: how the value was computed.
        disturbed: whether other programs ran during the measurement.
        rounds: the value of each round that counts; empty if there is one measurement only.
    """

    what: str
    measured: float | None
    bar: float
    moonshot: float | None
    sense: Literal["≤", "≥"] = "≤"
    unit: str = ""
    detail: str = ""
    disturbed: bool = False
    rounds: tuple[float, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether every round meets the bar; None if it was not measured or if the rounds disagree."""
        return self._reach(self.bar)

    @property
    def verdict(self) -> str:
        """The cell of the table."""
        if self.measured is None:
            return "not measured"
        if self.met is None:
            return "undecided"
        if self.moonshot is not None and self._reach(self.moonshot):
            return "moonshot"
        return "met" if self.met else "**missed**"

    def _reach(self, limit: float) -> bool | None:
        """Return whether all rounds reach a limit; None if only some do, or without a measurement."""
        if self.measured is None:
            return None
        values = (self.measured, *self.rounds)
        reached = [value <= limit if self.sense == "≤" else value >= limit for value in values]
        return reached[0] if len(set(reached)) == 1 else None


def judge_bars(result: Mapping[str, Any]) -> list[Bar]:
    """Return every bar with its measured value in `result`; a part that did not run leaves its bars without one."""
    return [
        *_judge_speed(result.get("speed") or {}),
        *_judge_one_file(result.get("one-file")),
        *_judge_costs(result),
        *_judge_service(result.get("service")),
        *_judge_scoring(result.get("scoring")),
        *_judge_scale(result.get("scale")),
    ]


def compare_rounds(above: Mapping[str, Any], below: Mapping[str, Any]) -> tuple[Sequence[float], bool]:
    """Return the ratio of the times of two contestants in each round that was quiet for both.

    If fewer than half of the rounds were quiet for both, all rounds count.

    Args:
        above: entry of the contestant whose time is divided.
        below: entry of the contestant by whose time it is divided.

    Returns:
        The ratios, and whether other programs disturbed them.
    """
    rounds = zip(above["rounds_s"], below["rounds_s"], above["foreign"], below["foreign"], strict=True)
    ratios = [(a / b, max(busy) <= QUIET) for a, b, *busy in rounds]
    quiet = [ratio for ratio, is_quiet in ratios if is_quiet]
    disturbed = 2 * len(quiet) < len(ratios)
    return [ratio for ratio, _ in ratios] if disturbed else quiet, disturbed


def _judge_speed(part: Mapping[str, Any]) -> list[Bar]:
    speed, steps = part.get("speed", []), part.get("steps")
    threads = max((entry["threads"] for entry in speed), default=2)

    def best(names: tuple[str, ...], batch: int) -> Mapping[str, Any] | None:
        found = [best_entry(speed, name, threads=threads, source="tensor", batch=batch) for name in names]
        return min((e for e in found if e), key=lambda entry: float(entry["median_s"]), default=None)

    def compare(what: str, peers: tuple[str, ...], batch: int, bar: float, moonshot: float) -> Bar:
        """Return a bar on a ratio of times (one image) or rates (a batch): the median of the rounds' ratios."""
        ours, peer = best((OURS_INT8,), batch), best(peers, batch)
        sense: Literal["≤", "≥"] = "≤" if batch == 1 else "≥"
        if ours is None or peer is None:
            return Bar(what, None, bar, moonshot, sense, "×")
        ratios, disturbed = compare_rounds(*((ours, peer) if batch == 1 else (peer, ours)))
        detail = f"{peer['contestant']}; {min(ratios):.3g} to {max(ratios):.3g} in {len(ratios)} rounds"
        return Bar(what, statistics.median(ratios), bar, moonshot, sense, "×", detail, disturbed, tuple(ratios))

    after = None if steps is None else 1000 * (steps["ood"]["median_s"] + steps["disease"]["median_s"])
    one = f"one image, tensor to final row, {threads} threads"
    return [
        compare(f"INT8 against the literal recipe's INT8, {one}", (LITERAL,), 1, 1 / 3, 1 / 4),
        compare(f"INT8 against OpenVINO's best, {one}", OPENVINO, 1, 1.0, 0.8),
        compare(f"INT8, images a second at batch {BULK} against OpenVINO's best", OPENVINO, BULK, 1.0, 1.2),
        Bar(
            "OOD score and routed disease on top of the species model",
            after,
            0.3,
            0.1,
            unit=" ms",
            disturbed=bool(part.get("steps_disturbed")),
        ),
    ]


def _judge_one_file(part: Mapping[str, Any] | None) -> list[Bar]:
    """Return the bars on the INT8 one file, in processor time: other programs disturb it less than the clock."""
    part = None if part is None else part["int8"]

    def median(case: str, way: str, key: str = "processor_s") -> float | None:
        return None if part is None else statistics.median(times[key] for times in part[case][way])

    disturbed = part is not None and part["foreign"] > QUIET
    steps, one = median("image", "three steps"), median("image", "one file")
    tail, cold = median("tail", "one file"), median("cold", "three steps", "clock_s")
    return [
        Bar(
            "one image through the one file against three steps, processor time",
            None if steps is None or one is None else one / steps,
            1.0,
            0.95,
            unit="×",
            disturbed=disturbed,
        ),
        Bar(
            "disease, probabilities and OOD in the one file, processor time",
            None if tail is None else 1000 * tail,
            0.15,
            0.1,
            unit=" ms",
            disturbed=disturbed,
        ),
        Bar("new process to the first answer of a folder", cold, 0.4, 0.3, unit=" s", disturbed=disturbed),
    ]


def _judge_service(part: Mapping[str, Any] | None) -> list[Bar]:
    def compare(what: str, clients: int, key: str, of: Callable[[float, float], float], **limits: Any) -> Bar:
        """Return a bar on the service and the classifier without HTTP: the median of the rounds' comparisons.

        `limits` are fields of `Bar`.
        """
        if part is None:
            return Bar(what, None, **limits)
        service, native = (
            next(row for row in part["steady"] if (row["name"], row["clients"]) == (name, clients))
            for name in ("service", "native")
        )
        rounds = tuple(map(of, service[key], native[key]))
        disturbed = max(service["foreign"], native["foreign"]) > QUIET
        return Bar(what, statistics.median(rounds), **limits, disturbed=disturbed, rounds=rounds)

    crowd = {} if part is None else part["crowd"]
    crowded, slowest = crowd.get("foreign", 0) > QUIET, crowd.get("refused_max_s")
    first, second = crowd.get("halves_mb", (None, None))
    return [
        compare(
            "service, one client: p50 above that of the classifier without HTTP",
            1,
            "rounds_p50_s",
            lambda ours, native: 1000 * (ours - native),
            bar=2.0,
            moonshot=1.0,
            unit=" ms",
        ),
        compare(
            "service, 16 clients: answers a second against the classifier without HTTP",
            16,
            "rounds_per_second",
            lambda ours, native: ours / native,
            bar=0.9,
            moonshot=None,
            sense="≥",
            unit="×",
        ),
        Bar("crowd: wrong answers", crowd.get("wrong"), 0, None, disturbed=crowded),
        Bar("crowd: peak memory", crowd.get("peak_mb"), 400, None, unit=" MB", disturbed=crowded),
        Bar(
            "crowd: peak memory of the second half against the first",
            None if first is None else second / first,
            1.05,
            None,
            unit="×",
            disturbed=crowded,
        ),
        Bar(
            "crowd: slowest refusal",
            None if slowest is None else 1000 * slowest,
            100,
            None,
            unit=" ms",
            detail="" if slowest is None else f"99 % within {1000 * crowd['refused_p99_s']:.3g} ms",
            disturbed=crowded,
        ),
    ]


def _judge_costs(result: Mapping[str, Any]) -> list[Bar]:
    cold, export = result.get("cold"), result.get("export")
    native = None if cold is None else cold["cold_start"]["native"]
    heads = next((e["heads"] for e in result.get("species") or () if e["species"] == MANY_SPECIES), None)
    return [
        Bar(
            "cold process to first prediction, native loader, local store",
            None if native is None else native["median_s"],
            1.5,
            0.8,
            unit=" s",
            disturbed=native is not None and native["disturbed"],
            rounds=() if native is None else (native["min_s"], native["max_s"]),
        ),
        Bar(
            "resident memory of a serving process, INT8, native loader",
            None if cold is None else cold["memory"]["native"]["resident_mb"],
            250,
            180,
            unit=" MB",
        ),
        Bar(
            f"export of everything without evaluation, {MANY_SPECIES} species",
            None if export is None else export["total_s"],
            60,
            25,
            unit=" s",
            disturbed=export is not None and export["disturbed"],
        ),
        Bar(
            f"{MANY_SPECIES} heads exported, quantized, checked",
            None if heads is None else heads["exported_and_checked"]["median_s"],
            5,
            1,
            unit=" s",
        ),
        Bar("INT8 accuracy below FP16, all validation leaves", result.get("int8_accuracy_drop"), 0.01, 0.002),
    ]


def _judge_scoring(part: Mapping[str, Any] | None) -> list[Bar]:
    rates = {} if part is None else part["rates"]

    def compare(what: str, name: str) -> Bar:
        pairs = zip(rates.get(name, ()), rates.get("native", ()), strict=False)
        ratios = tuple(rate / native for rate, native in pairs)
        return Bar(what, statistics.median(ratios) if ratios else None, 0.85, None, "≥", "×", rounds=ratios)

    return [
        compare("images a second of `predict --output` against a native loop", "predict"),
        compare("images a second of the Spark job against a native loop", "spark"),
    ]


def _judge_scale(part: Mapping[str, Any] | None) -> list[Bar]:
    """Return the bars on the whole plan; a smaller one, of `--quick`, measures none of them."""
    plan = asdict(Plan())
    species, files = f"{plan['species']:,} species", f"{plan['files']:,} files"
    whole = part is not None and part["plan"] == plan

    def bar(what: str, step: str, key: str, limit: float, unit: str = " s") -> Bar:
        found = part[step] if part is not None and whole else None
        disturbed = found is not None and found["foreign"] > QUIET
        return Bar(what, None if found is None else found[key], limit, None, unit=unit, disturbed=disturbed)

    return [
        bar(f"{species} registered on a server of this machine", "register", "wall_s", 30),
        bar(f"{files} listed by URI", "listing", "wall_s", 5),
        bar(f"bundle of {species} loaded", "load", "wall_s", 1),
        bar(f"memory that a bundle of {species} adds", "load", "added_mb", 150, " MB"),
        bar(f"{species} verified: longest time without a bar that moves", "verify", "silent_s", 5),
        bar(f"{species} verified: peak memory", "verify", "peak_mb", 1100, " MB"),
    ]
