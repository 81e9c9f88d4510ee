"""Measures a registered version again on given images, and compares the result with the report that it carries.

A report proves that its numbers follow from its rows, and not that the rows are true. Who doubts them measures again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isclose
from pathlib import Path
from typing import Final

from mlflow_plugins.checking.load_check import check_bundle, check_stamps, copy_version
from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER
from plantmodels.bundle.layout import GATE_REPORT_FILE, IMAGES_FILE
from plantmodels.errors import BundleError
from plantmodels.foreign_text import name_some
from plantmodels.report.formatting import align_columns
from plantmodels.report.gate_report import GateReport, read_report
from plantmodels.report.per_image import ImageRow, read_image_rows
from plantmodels.verify.run import verify_bundle

TOLERANCE: Final = 1e-3
"""Relative difference of two scores or probabilities that count as equal: other processors round differently."""

_OF_CHECKPOINT: Final = "pytorch_ood_score"
"""Column that is filled only if a checkpoint is given, and then for some images."""

_NAMED: Final = 5
"""Images that a line names."""

_OF_IMAGES: Final = ("int8_accuracy", "ood_precision", "ood_recall", "accuracy")
"""Gates whose values follow from the images alone. Latency is the machine's, and sizes cannot differ."""


@dataclass(frozen=True)
class Remeasurement:
    """A report and what was measured again.

    Attributes:
        source: URI of the version.
        carried: the report that the version carries.
        measured: the report of the new measurement.
        answers: one line for each image whose row differs.
        absent: names of images of the carried report that were not measured now.
        added: names of images that the carried report does not know.
    """

    source: str
    carried: GateReport
    measured: GateReport
    answers: tuple[str, ...]
    absent: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether the same images got the same answers."""
        return not (self.answers or self.absent or self.added)

    def describe(self) -> str:
        """Return a table of the gates that images decide, and what differs, as text for a terminal."""
        rows = [
            (name, self.carried.gate(name).measured_text, self.measured.gate(name).measured_text) for name in _OF_IMAGES
        ]
        lines = [f"{self.source} was measured again", "", *align_columns(("gate", "report", "measured"), rows), ""]
        lines += _describe_images("images have other answers", self.answers)
        lines += _describe_images("images of the report were not measured now", self.absent)
        lines += _describe_images("images are not in the report", self.added)
        if self.is_same:
            lines.append("same: every image is in the report, with these answers")
        elif self.carried.machine != self.measured.machine:
            lines.append(f"the report was made on {_machine(self.carried)}, this machine has {_machine(self.measured)}")
        return "\n".join(lines)


def _describe_images(what: str, images: Sequence[str]) -> list[str]:
    if not images:
        return []
    return [f"differs: {len(images):,} {what}: {name_some(images, _NAMED, '; ')}"]


def _machine(report: GateReport) -> str:
    return report.machine.cpu or report.machine.architecture


def remeasure_version(
    uri: str,
    data: Path,
    *,
    non_plants: Path | None,
    unseen_plants: Path | None = None,
    field: Path | None = None,
    checkpoint: Path | None = None,
) -> Remeasurement:
    """Measure a version's own files, copied from the registry, and compare with the report among them.

    Nothing in the registry is changed.

    Args:
        uri: `models:/name/version` or `models:/name@alias`.
        data: leaf folders or manifest of contract 2; the split "val" is measured.
        non_plants: folder of images that show no plant; None if the report was made without.
        unseen_plants: folder of plants of unknown species; None if the report was made without.
        field: labelled leaves from another place; None if the report was made without.
        checkpoint: the checkpoint of the version; only parity needs it.

    Raises:
        PlantModelsError: the files are not those that were registered, hold no report, or cannot be measured.
    """
    with copy_version(uri) as copied:
        bundle = copied.folder / BUNDLE_FOLDER
        check_stamps(check_bundle(copied.folder)[0], copied.tags)
        if not (bundle / GATE_REPORT_FILE).is_file():
            raise BundleError(f"{copied.source}: holds no {GATE_REPORT_FILE}, so there is nothing to compare with")
        carried, before = read_report(bundle), read_image_rows(bundle / IMAGES_FILE)
        measured = verify_bundle(
            bundle,
            data,
            checkpoint=checkpoint,
            non_plants=non_plants,
            unseen_plants=unseen_plants,
            field=field,
            policy=carried.policy,
        )
        now = read_image_rows(bundle / IMAGES_FILE)
    return Remeasurement(copied.source, carried, measured, *compare_rows(before, now))


def compare_rows(
    before: Iterable[ImageRow], now: Iterable[ImageRow]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return one line for each row that differs, the names that only `before` has, and those that only `now` has."""
    first, second = _by_name(before), _by_name(now)
    answers = tuple(
        f"{name}: {difference}"
        for name in first
        if name in second
        if (difference := _differ(first[name], second[name]))
    )
    return answers, tuple(name for name in first if name not in second), tuple(n for n in second if n not in first)


def _by_name(rows: Iterable[ImageRow]) -> Mapping[str, ImageRow]:
    return {f"{row.set} {row.name}": row for row in rows}


def _differ(before: ImageRow, now: ImageRow) -> str:
    """Return the first field that differs, with both values; "" if none does."""
    for field in fields(ImageRow):
        if field.name == _OF_CHECKPOINT:
            continue
        old, new = getattr(before, field.name), getattr(now, field.name)
        numbers = isinstance(old, float) and isinstance(new, float)
        same = isclose(old, new, rel_tol=TOLERANCE) if numbers else old == new
        if not same:
            return f"{field.name} is {new!r:.80}, the report says {old!r:.80}"
    return ""
