"""Composes the gate report from what was measured, and writes it into the bundle with page, plots and image rows."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from plantmodels import __version__
from plantmodels.arrays import Pixels
from plantmodels.bundle.files import write_bytes, write_json
from plantmodels.bundle.layout import (
    GATE_REPORT_FILE,
    HTML_REPORT_FILE,
    IMAGES_FILE,
    METADATA_FILE,
    PLOTS_FOLDER,
    SPECIES_FILES,
)
from plantmodels.bundle.manifest import write_manifest
from plantmodels.bundle.metadata import Metadata
from plantmodels.bundle.serialization import decode
from plantmodels.data.image_files import name_in_report
from plantmodels.data.leaves import LeafSet
from plantmodels.data.non_plants import NonPlantSet
from plantmodels.errors import BundleError
from plantmodels.export.provenance import describe_cpu
from plantmodels.export.staging import staged_bundle
from plantmodels.extras import read_version
from plantmodels.report.evidence.accuracy import Temperatures
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.field import Field, count_field
from plantmodels.report.evidence.judge import Measured
from plantmodels.report.evidence.rejection import count_rejection
from plantmodels.report.gate_report import GateReport
from plantmodels.report.inputs import ImageSet, Machine, ReportInputs, UnreadableFile
from plantmodels.report.per_image import ImageRow, ImageSetName, write_image_rows
from plantmodels.report.policy import GatePolicy
from plantmodels.report.render.gallery import Gallery
from plantmodels.report.render.page import render_report
from plantmodels.report.render.plots import draw_plots
from plantmodels.serve.reference import Reference, write_reference
from plantmodels.verify.accuracy import AccuracyRun
from plantmodels.verify.leakage import LeakageRun
from plantmodels.verify.reading import VerificationInputs
from plantmodels.verify.rejection import RejectionRun, ScoredImages
from plantmodels.verify.thumbnails import show_flipped, show_leaks, show_let_through, show_misjudged, show_rejected

_LIBRARIES: Final = ("numpy", "onnx", "onnxruntime", "pillow", "torch", "timm")
"""Libraries whose versions a report records: those that a measured value can depend on."""

_NAMED_IN_ERROR: Final = 5
"""Changed files that the error names."""


@dataclass(frozen=True)
class Passes:
    """The passes over images.

    Attributes:
        accuracy: over the leaves.
        rejection: over all other images.
        leakage: the search for validation images that occur again; None without training images.
        field: over the field leaves; None without any.
    """

    accuracy: AccuracyRun
    rejection: RejectionRun
    leakage: LeakageRun | None
    field: AccuracyRun | None = None

    @property
    def rows(self) -> tuple[ImageRow, ...]:
        """The answers to every image."""
        field = () if self.field is None else self.field.rows
        return (*self.accuracy.rows, *self.rejection.non_plants.rows, *self.rejection.unseen_plants.rows, *field)

    def count_field(self, metadata: Metadata) -> Field | None:
        """Return what was measured on field leaves; None without any.

        Args:
            metadata: the bundle's metadata.
        """
        temperatures = Temperatures(metadata.species_temperature, metadata.disease_temperature)
        rejection = self.rejection.rejection
        return count_field(
            ImageTable.from_rows(self.rows if self.field else ()),
            metadata.taxonomy,
            temperatures,
            threshold=rejection.threshold,
            held_out=rejection.held_out,
        )

    def with_pytorch_scores(self, leaves: Mapping[int, float], non_plants: Mapping[int, float]) -> "Passes":
        """Return the passes with PyTorch's OOD scores of some images, and how often they change the decision.

        Args:
            leaves: place of a leaf to its score.
            non_plants: place of a non-plant to its score.
        """
        others = self.rejection.non_plants
        changed = Passes(
            replace(self.accuracy, rows=_set_pytorch_scores(self.accuracy.rows, leaves)),
            replace(self.rejection, non_plants=replace(others, rows=_set_pytorch_scores(others.rows, non_plants))),
            self.leakage,
            self.field,
        )
        rejection = self.rejection.rejection
        recounted = count_rejection(
            ImageTable.from_rows(changed.rows),
            threshold=rejection.threshold,
            held_out=rejection.held_out,
            round_thresholds=[each.threshold for each in rejection.rounds],
        )
        return replace(changed, rejection=replace(changed.rejection, rejection=recounted))


def _set_pytorch_scores(rows: Sequence[ImageRow], scores: Mapping[int, float]) -> tuple[ImageRow, ...]:
    return tuple(
        replace(row, pytorch_ood_score=scores[place]) if place in scores else row for place, row in enumerate(rows)
    )


def compose_report(
    metadata: Metadata, inputs: VerificationInputs, measured: Measured, passes: Passes | None, policy: GatePolicy
) -> GateReport:
    """Return the report: every gate judged, and all that its values rest on.

    Args:
        metadata: the bundle's metadata.
        inputs: the images.
        measured: what was measured.
        passes: the passes over images; None if the models could not be run.
        policy: the limits.

    Raises:
        BundleError: the metadata's list of images that the export skipped is malformed.
    """
    cpu = describe_cpu()
    libraries = {name: read_version(name) for name in _LIBRARIES}
    return GateReport.from_measured(
        measured,
        policy,
        unreadable=(*_read_skipped_in_export(metadata), *_list_unreadable(inputs, passes)),
        inputs=_record_inputs(metadata, inputs, passes, heads_compared=measured.heads_compared),
        versions={"plantmodels": __version__, "python": platform.python_version(), **libraries},
        machine=Machine(cpu.architecture, cpu.model, cpu.features),
    )


def _read_skipped_in_export(metadata: Metadata) -> tuple[UnreadableFile, ...]:
    entries = metadata.provenance.get("unreadable_images", ())
    try:
        return tuple(decode(UnreadableFile, entry, "unreadable_images") for entry in entries)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{METADATA_FILE}: {error}") from error


def _list_unreadable(inputs: VerificationInputs, passes: Passes | None) -> tuple[UnreadableFile, ...]:
    if passes is None:
        return ()
    sets: tuple[tuple[ImageSetName, LeafSet | NonPlantSet | None, AccuracyRun | ScoredImages | None], ...] = (
        ("val", inputs.leaves, passes.accuracy),
        ("non-plants", inputs.non_plants, passes.rejection.non_plants),
        ("unseen-plants", inputs.unseen_plants, passes.rejection.unseen_plants),
        ("field", inputs.field, passes.field),
    )
    return tuple(
        UnreadableFile(name, name_in_report(images.root, image.path), image.reason)
        for name, images, run in sets
        if images is not None and run is not None
        for image in run.unreadable
    )


def _record_inputs(
    metadata: Metadata, inputs: VerificationInputs, passes: Passes | None, *, heads_compared: bool
) -> ReportInputs:
    table = ImageTable.from_rows(() if passes is None else passes.rows)

    def record(images: NonPlantSet | None, name: ImageSetName) -> ImageSet | None:
        return None if images is None else _record_set(table, name, len(images.paths))

    return ReportInputs(
        checkpoint_sha256=str(metadata.provenance["checkpoint_sha256"]) if heads_compared else None,
        class_order_digest=metadata.taxonomy.digest,
        val=_record_set(table, "val", len(inputs.leaves.samples)),
        non_plants=record(inputs.non_plants, "non-plants"),
        unseen_plants=record(inputs.unseen_plants, "unseen-plants"),
        field=None if inputs.field is None else _record_set(table, "field", len(inputs.field.samples)),
        calibration=metadata.calibration,
        left_out=inputs.left_out,
    )


def _record_set(table: ImageTable, name: ImageSetName, images: int) -> ImageSet:
    rows = table.of_set(name)
    return ImageSet(images, len(rows), rows.digest())


def write_report(
    bundle: Path,
    metadata: Metadata,
    report: GateReport,
    passes: Passes | None,
    reference: tuple[Reference, Pixels] | None,
) -> None:
    """Write report, page, plots, image rows, reference answers and a new manifest into the bundle, in one step.

    Args:
        bundle: the verified bundle, whose folder is locked.
        metadata: its metadata.
        report: the composed report.
        passes: the passes over images; None if the models could not be run.
        reference: the reference answers and their images; None if the models could not be run.

    Raises:
        BundleError: a measured file changed meanwhile; nothing is written.
        ExportError: the folder cannot be written; nothing is changed.
    """
    plots = draw_plots(report)
    recipe = metadata.models[SPECIES_FILES["int8"]].get("recipe", {})
    provenance = metadata.provenance
    page = render_report(
        report,
        plots,
        recipe,
        provenance.get("detector", {}),
        _make_galleries(passes),
        tuple(map(str, provenance.get("warnings", ()))),
    )
    with staged_bundle(bundle, start_from=bundle) as folder:
        write_json(folder / GATE_REPORT_FILE, report.to_dict())
        write_bytes(folder / HTML_REPORT_FILE, page.encode())
        write_image_rows(folder / IMAGES_FILE, () if passes is None else passes.rows)
        (folder / PLOTS_FOLDER).mkdir()
        for name, content in plots.items():
            write_bytes(folder / PLOTS_FOLDER / name, content)
        if reference is not None:
            write_reference(folder, *reference)
        changed = report.stale_files(write_manifest(folder))
        if changed:
            raise BundleError(f"{bundle}: {', '.join(changed[:_NAMED_IN_ERROR])} changed while being verified")


def _make_galleries(passes: Passes | None) -> dict[str, Gallery]:
    if passes is None:
        return {}
    leaves, non_plants = passes.accuracy, passes.rejection.non_plants
    return {
        "flipped": show_flipped(leaves.samples, leaves.rows),
        "let through": show_let_through(non_plants.paths, non_plants.rows),
        "rejected": show_rejected(leaves.samples, leaves.rows),
        "misjudged": Gallery((), 0)
        if passes.field is None
        else show_misjudged(passes.field.samples, passes.field.rows),
        "leaks": Gallery((), 0) if passes.leakage is None else show_leaks(passes.leakage),
    }
