"""What a comparison of two verified bundles says, as values: measures with verdicts, and what else differs.

>>> measure = Measure("species, INT8", "share", 0.8, 0.9, "better")
>>> section = Section("Accuracy", "The same 100 images.", False, (measure,))
>>> Comparison("before", "after", (), (section,), (), ()).summary[:40]
'Better in B: species, INT8. Worse in B: '
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from plantmodels.bundle.layout import FORMAT_VERSION
from plantmodels.report.gates import GateResult
from plantmodels.report.results import SMALL_CLASS
from plantmodels.report.serialization import encode

Verdict = Literal["better", "worse", "no difference beyond noise", "not comparable"]
Unit = Literal["share", "bytes", "ms", "max abs diff", "score"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

_NAMED: Final = 6
"""Measures that the summary names of each verdict."""


@dataclass(frozen=True)
class Measure:
    """One number of both.

    Attributes:
        name: what it is.
        unit: of `a`, `b`, `low` and `high`.
        a: None where it was not measured.
        b: likewise.
        verdict: on B, seen from A.
        why: what changed, or why there is no verdict; "" where the numbers say it.
        a_images: images that `a` rests on; None where it is no share of images.
        b_images: likewise.
        low: of the 95 % interval of `b - a`; None where there is none.
        high: of the same.
        p_value: how often chance alone makes such a difference, corrected for their number in a section of classes.
    """

    name: str
    unit: Unit
    a: float | None
    b: float | None
    verdict: Verdict
    why: str = ""
    a_images: int | None = None
    b_images: int | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def small(self) -> bool:
        """Whether it rests on fewer than `SMALL_CLASS` images, of which hardly any difference can be told."""
        return min(SMALL_CLASS if n is None else n for n in (self.a_images, self.b_images)) < SMALL_CLASS


@dataclass(frozen=True)
class Section:
    """Measures of one kind.

    Attributes:
        title: heading.
        note: on which images, by which test.
        of_each: whether it is one measure for each of many classes, of which those that differ are worth a line.
        measures: in the order in which they are shown.
    """

    title: str
    note: str
    of_each: bool
    measures: tuple[Measure, ...]

    def named(self, verdict: Verdict) -> tuple[str, ...]:
        """Names of the measures with a verdict."""
        return tuple(measure.name for measure in self.measures if measure.verdict == verdict)


@dataclass(frozen=True)
class GatePair:
    """One gate's two verdicts."""

    a: GateResult
    b: GateResult

    @property
    def change(self) -> Literal["", "passes now", "does not pass any more"]:
        """How the verdict changed from A to B."""
        if self.a.passed == self.b.passed:
            return ""
        return "passes now" if self.b.passed else "does not pass any more"


@dataclass(frozen=True)
class Difference:
    """A setting, an input or a version that is another; None where one side lacks it."""

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between two verified bundles.

    Attributes:
        a: what A is called.
        b: what B is called.
        gates: the nine of contract 5, in its order.
        sections: measures with verdicts.
        classes: one line for species or diseases that were added, removed or put into another order.
        differences: preprocessing, graph, recipe, inputs, limits, provenance, versions and machine where they differ.
    """

    a: str
    b: str
    gates: tuple[GatePair, ...]
    sections: tuple[Section, ...]
    classes: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def summary(self) -> str:
        """What is better, what worse, what cannot be told apart, and whether a gate changed its verdict."""
        measures = sum(len(section.measures) for section in self.sections)
        same = sum(len(section.named("no difference beyond noise")) for section in self.sections)
        changed = [f"{pair.a.name} {pair.change}" for pair in self.gates if pair.change]
        return (
            f"Better in B: {self._name('better')}. Worse in B: {self._name('worse')}. "
            f"No difference beyond noise: {same:,} of {measures:,} measures. "
            f"Not comparable: {self._name('not comparable')}. "
            f"Gates: {', '.join(changed) or 'none changed its verdict'}."
        )

    def _name(self, verdict: Verdict) -> str:
        """Names of measures; a section's title where none of its measures can be compared."""
        names: list[str] = []
        for section in self.sections:
            found = section.named(verdict)
            title = section.title[:1].lower() + section.title[1:]
            if verdict == "not comparable" and len(found) == len(section.measures):
                names.append(title)
            else:
                names += [f"{name} ({title})" if section.of_each or title == "files" else name for name in found]
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        return ", ".join(names[:_NAMED]) + more or "nothing"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the changes of the gates and the summary spelled out."""
        document: dict[str, Any] = {"format_version": FORMAT_VERSION} | encode(self)
        for pair, entry in zip(self.gates, document["gates"], strict=True):
            entry["change"] = pair.change
        return document | {"summary": self.summary}
