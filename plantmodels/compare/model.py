"""The comparison of two verified bundles as values: measures with verdicts, and what else differs.

>>> measure = MeasurePair("species, INT8", "share", 0.8, 0.9, "better")
>>> section = Section("Accuracy", "The same 100 images.", False, (measure,))
>>> Comparison("before", "after", (), (section,), (), ()).summary[:40]
'Better in B: species, INT8. Worse in B: '
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from plantmodels.bundle.layout import FORMAT_VERSION
from plantmodels.bundle.serialization import encode
from plantmodels.foreign_text import name_some
from plantmodels.report.gates import GateResult
from plantmodels.report.results import SMALL_CLASS

Verdict = Literal["better", "worse", "no difference beyond noise", "not comparable"]
Unit = Literal["share", "bytes", "ms", "max abs diff", "score", "ratio"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

_MOST_NAMES: Final = 6
"""Number of measures that the summary names for each verdict; more would be skipped by the reader."""


@dataclass(frozen=True)
class MeasurePair:
    """One measure of both bundles.

    Attributes:
        name: what was measured.
        unit: unit of `a`, `b`, `low` and `high`.
        a: value of A; None when it was not measured.
        b: value of B; None when it was not measured.
        verdict: the verdict on B, seen from A.
        why: what changed, or why there is no verdict; "" when the numbers say it.
        a_images: number of images that `a` rests on; None when it is not a proportion of images.
        b_images: number of images that `b` rests on; None when it is not a proportion of images.
        low: lower end of the 95 % interval of `b - a`; None when there is no interval.
        high: upper end of the 95 % interval of `b - a`; None when there is no interval.
        p_value: how often chance alone makes such a difference. In a section of classes it is corrected for their
            number.
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
    def fewest_images(self) -> int | None:
        """The smaller number of images of the two; None when the measure does not rest on images."""
        return min((n for n in (self.a_images, self.b_images) if n is not None), default=None)

    @property
    def is_small(self) -> bool:
        """Whether the measure rests on fewer than `SMALL_CLASS` images, too few to show most differences."""
        return self.fewest_images is not None and self.fewest_images < SMALL_CLASS


@dataclass(frozen=True)
class Section:
    """Measures of one kind.

    Attributes:
        title: heading.
        note: which images were compared, and by which test.
        of_each: whether there is one measure for each of many classes, so that only those that differ deserve a line.
        measures: the measures in the order in which they are shown.
    """

    title: str
    note: str
    of_each: bool
    measures: tuple[MeasurePair, ...]

    def names_with(self, verdict: Verdict) -> tuple[str, ...]:
        """Return the names of the measures with a verdict."""
        return tuple(measure.name for measure in self.measures if measure.verdict == verdict)


@dataclass(frozen=True)
class GatePair:
    """The verdicts of one gate on both bundles."""

    a: GateResult
    b: GateResult

    @property
    def change(self) -> Literal["", "passes now", "no longer passes"]:
        """How the verdict changed from A to B; "" when it did not."""
        if self.a.passed == self.b.passed:
            return ""
        return "passes now" if self.b.passed else "no longer passes"


@dataclass(frozen=True)
class Difference:
    """A setting, an input or a version that differs.

    Attributes:
        name: where the setting stands, such as "provenance: git_commit".
        a: its value in A; None when A lacks it.
        b: its value in B; None when B lacks it.
    """

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between two verified bundles.

    Attributes:
        a: name of A.
        b: name of B.
        gates: the gates of contract 5, in its order.
        sections: measures with verdicts.
        classes: one line for species or diseases that were added, removed or reordered.
        differences: settings, inputs, limits, provenance, versions and machine where they differ.
    """

    a: str
    b: str
    gates: tuple[GatePair, ...]
    sections: tuple[Section, ...]
    classes: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def summary(self) -> str:
        """What is better, what is worse, what cannot be told apart, and which gates changed their verdict."""
        measures = sum(len(section.measures) for section in self.sections)
        same = sum(len(section.names_with("no difference beyond noise")) for section in self.sections)
        changed = [f"{pair.a.name} {pair.change}" for pair in self.gates if pair.change]
        return (
            f"Better in B: {self._list_names('better')}. Worse in B: {self._list_names('worse')}. "
            f"No difference beyond noise: {same:,} of {measures:,} measures. "
            f"Not comparable: {self._list_names('not comparable')}. "
            f"Gates: {'; '.join(changed) or 'no verdict changed'}."
        )

    def _list_names(self, verdict: Verdict) -> str:
        """Return the names of the measures with a verdict; a section's title where nothing in it can be compared."""
        names: list[str] = []
        for section in self.sections:
            found = section.names_with(verdict)
            title = section.title[:1].lower() + section.title[1:]
            if verdict == "not comparable" and len(found) == len(section.measures):
                names.append(title)
            else:
                names += [f"{name} ({title})" if section.of_each or title == "files" else name for name in found]
        return name_some(names, _MOST_NAMES, "; ") or "nothing"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the changes of the gates and the summary spelled out."""
        document: dict[str, Any] = {"format_version": FORMAT_VERSION} | encode(self)
        for pair, entry in zip(self.gates, document["gates"], strict=True):
            entry["change"] = pair.change
        return document | {"summary": self.summary}
