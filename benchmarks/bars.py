"""The bars of issue 5 beside what was measured.

>>> [bar.met for bar in judge_bars(result)]  # doctest: +SKIP
[True, False, None, ...]
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
        what: for people.
        measured: None where it was not measured.
        bar: the limit.
        moonshot: what would be splendid.
        sense: whether measured must be at most or at least the limit.
        unit: follows the numbers.
        detail: where the number comes from.
    """

    what: str
    measured: float | None
    bar: float
    moonshot: float
    sense: Literal["≤", "≥"] = "≤"
    unit: str = ""
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where it was not measured."""
        return self._reaches(self.bar)

    @property
    def verdict(self) -> str:
        """For a table."""
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
    """Every bar, with what a result says of it; a part that was not run leaves its bars without a measurement."""
    return [*_judge_speed(result.get("speed") or {}), *_judge_costs(result)]


def _judge_speed(part: Mapping[str, Any]) -> list[Bar]:
    speed, steps = part.get("speed", []), part.get("steps")
    threads = max((entry["threads"] for entry in speed), default=2)

    def best(names: tuple[str, ...], batch: int) -> tuple[str, float | None]:
        found = [
            (float(entry["median_s"]), name)
            for name in names
            if (entry := best_entry(speed, name, threads=threads, source="tensor", batch=batch))
        ]
        return (min(found)[1], min(found)[0]) if found else ("", None)

    def ratio(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a / b

    ours, bulk = best((OURS_INT8,), 1)[1], best((OURS_INT8,), BULK)[1]
    peer, peer_one = best(OPENVINO, 1)
    peer_bulk, peer_many = best(OPENVINO, BULK)
    after = None if steps is None else 1000 * (steps["ood"]["median_s"] + steps["disease"]["median_s"])
    one = f"one image, tensor to final row, {threads} threads"
    return [
        Bar(
            f"INT8 against the literal recipe's INT8, {one}",
            ratio(ours, best((LITERAL,), 1)[1]),
            1 / 3,
            1 / 4,
            unit="×",
        ),
        Bar(f"INT8 against OpenVINO's best, {one}", ratio(ours, peer_one), 1.0, 0.8, unit="×", detail=peer),
        Bar(
            f"INT8, images a second at batch {BULK} against OpenVINO's best",
            ratio(peer_many, bulk),
            1.0,
            1.2,
            sense="≥",
            unit="×",
            detail=peer_bulk,
        ),
        Bar("OOD score and routed disease on top of the species model", after, 0.3, 0.1, unit=" ms"),
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
