"""Compare the measurements with the requirements on speed and cost (the bars).

[bar.met for bar in judge_bars(result)]        # True, False, None, …
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from benchmarks.building import MANY_SPECIES
from benchmarks.contestants import CONTESTANTS, LITERAL, OURS_INT8
from benchmarks.speed import BULK, best_entry

OPENVINO: Final = tuple(name for name in CONTESTANTS if name.startswith("OpenVINO"))


@dataclass(frozen=True)
class Bar:
    """One requirement.

    Attributes:
        what: description for people.
        measured: the measured value, or None if it was not measured.
        bar: the limit.
        moonshot: a much harder limit.
        sense: whether the measured value must be at most or at least the limit.
        unit: unit of the values.
        detail: how the value was computed.
        disturbed: whether other programs ran during the measurement.
    """

    what: str
    measured: float | None
    bar: float
    moonshot: float
    sense: Literal["≤", "≥"] = "≤"
    unit: str = ""
    detail: str = ""
    disturbed: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None if it was not measured."""
        return self._reaches(self.bar)

    @property
    def verdict(self) -> str:
        """The cell of the table."""
        if self.measured is None:
            return "not measured"
        if self._reaches(self.moonshot):
            return "moonshot"
        return "met" if self.met else "**missed**"

    def _reaches(self, limit: float) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= limit if self.sense == "≤" else self.measured >= limit


def judge_bars(result: Mapping[str, Any]) -> list[Bar]:
    """Return every bar with its measured value in `result`; a part that did not run leaves its bars without one."""
    return [*_judge_speed(result.get("speed") or {}), *_judge_costs(result)]


def _judge_speed(part: Mapping[str, Any]) -> list[Bar]:
    speed, steps = part.get("speed", []), part.get("steps")
    threads = max((entry["threads"] for entry in speed), default=2)

    def best(names: tuple[str, ...], batch: int) -> Mapping[str, Any] | None:
        found = [best_entry(speed, name, threads=threads, source="tensor", batch=batch) for name in names]
        return min((e for e in found if e), key=lambda entry: float(entry["median_s"]), default=None)

    def compare(what: str, peers: tuple[str, ...], batch: int, bar: float, moonshot: float) -> Bar:
        """Return a bar on a ratio of times (one image) or rates (a batch); its detail has the ratio of each round."""
        ours, peer = best((OURS_INT8,), batch), best(peers, batch)
        sense: Literal["≤", "≥"] = "≤" if batch == 1 else "≥"
        if ours is None or peer is None:
            return Bar(what, None, bar, moonshot, sense, "×")
        above, below = (ours, peer) if batch == 1 else (peer, ours)
        rounds = [a / b for a, b in zip(above["rounds_s"], below["rounds_s"], strict=True)]
        detail = f"{peer['contestant']}; {min(rounds):.3g} to {max(rounds):.3g} in the single rounds"
        disturbed = ours["disturbed"] or peer["disturbed"]
        return Bar(what, above["median_s"] / below["median_s"], bar, moonshot, sense, "×", detail, disturbed)

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


def _judge_costs(result: Mapping[str, Any]) -> list[Bar]:
    cold, export = result.get("cold"), result.get("export")
    heads = next((e["heads"] for e in result.get("species") or () if e["species"] == MANY_SPECIES), None)
    return [
        Bar(
            "cold process to first prediction, native loader, local store",
            None if cold is None else cold["cold_start"]["native"]["median_s"],
            1.5,
            0.8,
            unit=" s",
            disturbed=cold is not None and cold["cold_start"]["native"]["disturbed"],
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
