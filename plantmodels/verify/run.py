"""`verify_bundle`: measures every gate on a bundle and writes the report into it, as one step.

>>> report = verify_bundle(bundle, data, checkpoint=None, non_plants=None, policy=GatePolicy())  # doctest: +SKIP
>>> print(report.table())  # doctest: +SKIP
"""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from plantmodels import __version__
from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.files import write_bytes, write_json
from plantmodels.bundle.layout import (
    DETECTOR_FILE,
    GATE_REPORT_FILE,
    HTML_REPORT_FILE,
    IMAGES_FILE,
    METADATA_FILE,
    PLOTS_FOLDER,
    PRECISIONS,
    SPECIES_FILES,
    Precision,
    head_file,
    is_report,
)
from plantmodels.bundle.manifest import Manifest, check_files, read_manifest, write_manifest
from plantmodels.bundle.metadata import Metadata, read_metadata
from plantmodels.data.digests import digest_images, digest_leaves
from plantmodels.data.image_files import name_in_report
from plantmodels.data.leaves import LeafSet, class_of, read_leaves
from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.data.sampling import pick_each_class, thin_out
from plantmodels.data.streaming import ImageStream
from plantmodels.errors import BundleError
from plantmodels.export.cpu import describe_cpu
from plantmodels.export.lock import lock_bundle
from plantmodels.export.staging import staged_bundle
from plantmodels.report.gate_report import GateReport, ImageSet, Inputs, Machine, UnreadableFile
from plantmodels.report.per_image import ImageRow, ImageSetName, write_image_rows
from plantmodels.report.policy import GatePolicy
from plantmodels.report.render.gallery import Gallery
from plantmodels.report.render.page import render_report
from plantmodels.report.render.plots import draw_plots
from plantmodels.report.results import Parity, Rejection
from plantmodels.report.serialization import decode
from plantmodels.report.statistics import Proportion
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import count_cores, open_session
from plantmodels.verify.accuracy import BATCH, AccuracyRun, measure_accuracy
from plantmodels.verify.integrity import (
    describe_error,
    find_head_problems,
    find_load_failures,
    raise_without_memory,
)
from plantmodels.verify.judge import Measured, judge_all
from plantmodels.verify.latency import measure_latency
from plantmodels.verify.rejection import RejectionRun, Scored, count_flips, measure_rejection
from plantmodels.verify.thumbnails import show_flipped, show_let_through, show_rejected

if TYPE_CHECKING:
    from plantmodels.export.checkpoint import Checkpoint

_LIBRARIES: Final = ("numpy", "onnx", "onnxruntime", "pillow", "torch", "timm")


@dataclass(frozen=True)
class _Task:
    """Everything that is read and checked before anything is measured."""

    bundle: Path
    manifest: Manifest
    metadata: Metadata
    leaves: LeafSet
    non_plants: NonPlantSet | None
    unseen_plants: NonPlantSet | None
    data_digests: Mapping[ImageSetName, str]
    checkpoint: "Checkpoint | None"
    policy: GatePolicy
    threads: int | None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that are measured."""
        return tuple(name for name in self.manifest.files if not is_report(name))


def verify_bundle(
    bundle: Path,
    data: Path,
    *,
    checkpoint: Path | None,
    non_plants: Path | None,
    policy: GatePolicy,
    unseen_plants: Path | None = None,
    threads: int | None = None,
) -> GateReport:
    """Measures every gate and writes report, plots and a new manifest into the bundle.

    A gate that fails is a value in the report, not an error. The model files are left as they are; on any
    error the whole bundle is.

    Args:
        bundle: an exported bundle; an older report in it is replaced.
        data: leaf folders or manifest of contract 2; only the split "val" is read.
        checkpoint: what the bundle was made from; without it `parity` is not measured.
        non_plants: folder of images of no plant; without it the two rejection gates are not measured.
        policy: the limits.
        unseen_plants: folder of plants of no known species, for information.
        threads: threads inside an operator while latency is measured; None takes all cores. All else is bulk
            work, an image to a core.

    Raises:
        BundleError: files that are not those of the manifest, or a checkpoint that is not the bundle's.
        DetectorError: the bundle's detector file is not one.
        CheckpointError: not a readable checkpoint.
        DataError: absent or empty images, unknown classes, or too many unreadable images.
        ExportError: the bundle's folder cannot be written, or another process is writing it.
    """
    read_manifest(bundle)
    with lock_bundle(bundle):
        task = _prepare(bundle, data, checkpoint, non_plants, unseen_plants, policy, threads)
        measured, runs = _measure(task)
        report = _compose(task, measured, runs)
        _write(task, report, runs)
    return report


def _prepare(
    bundle: Path,
    data: Path,
    checkpoint: Path | None,
    non_plants: Path | None,
    unseen_plants: Path | None,
    policy: GatePolicy,
    threads: int | None,
) -> _Task:
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    metadata = read_metadata(bundle)
    read_detector(bundle / DETECTOR_FILE)
    leaves = read_leaves(data, "val", metadata.taxonomy)
    others = None if non_plants is None else read_non_plants(non_plants)
    unseen = None if unseen_plants is None else read_non_plants(unseen_plants, "unseen plants")
    matching = None if checkpoint is None else _read_checkpoint(checkpoint, metadata)
    digests: dict[ImageSetName, str] = {"val": digest_leaves(leaves)}
    if others is not None:
        digests["non-plants"] = digest_images(others.root, others.paths)
    if unseen is not None:
        digests["unseen-plants"] = digest_images(unseen.root, unseen.paths)
    return _Task(bundle, manifest, metadata, leaves, others, unseen, digests, matching, policy, threads)


def _read_checkpoint(path: Path, metadata: Metadata) -> "Checkpoint":
    from plantmodels.verify.parity import read_matching_checkpoint  # torch takes seconds to import

    return read_matching_checkpoint(path, metadata)


@dataclass(frozen=True)
class _Runs:
    """The passes over leaves and over all other images."""

    accuracy: AccuracyRun
    rejection: RejectionRun


def _measure(task: _Task) -> tuple[Measured, _Runs | None]:
    onnx_files = tuple(name for name in task.files if name.endswith(".onnx"))
    load_failures = find_load_failures(task.bundle, onnx_files, task.metadata.session_options)
    classifiers, not_run = _load_classifiers(task)
    runs = latency = parity = fp32 = None
    if not not_run:
        fp16, int8 = classifiers["fp16"], classifiers["int8"]
        leaves = _thin_out_leaves(task.leaves, task.policy.int8_accuracy_max_images)
        accuracy = measure_accuracy(fp16, int8, leaves)
        rejection = measure_rejection(fp16, int8, accuracy, task.non_plants, task.unseen_plants)
        runs = _Runs(accuracy, rejection)
        parity, fp32 = _compare_with_pytorch(task, int8, runs)
        encoded = accuracy.samples[0].path.read_bytes()
        served = PlantClassifier.load(task.bundle, threads=task.threads)
        latency = measure_latency(served, encoded, threads=task.threads)
    taxonomy = task.metadata.taxonomy
    measured = Measured(
        files={name: task.manifest.files[name] for name in task.files},
        onnx_files=onnx_files,
        head_files=tuple(head_file(taxonomy.slugs[i]) for i in taxonomy.species_with_head),
        load_failures=load_failures,
        head_problems=find_head_problems(task.bundle, task.metadata, task.checkpoint),
        heads_compared=task.checkpoint is not None,
        accuracy=None if runs is None else runs.accuracy.accuracy,
        rejection=None if runs is None else _add_flips(runs.rejection.rejection, fp32),
        latency=latency,
        parity=parity,
        non_plants_given=task.non_plants is not None,
        not_run=not_run,
    )
    return measured, runs


def _add_flips(rejection: Rejection, fp32: Proportion | None) -> Rejection:
    return rejection if fp32 is None else replace(rejection, flips={**rejection.flips, "fp32": fp32})


def _thin_out_leaves(leaves: LeafSet, at_most: int) -> LeafSet:
    return replace(leaves, samples=tuple(thin_out(leaves.samples, at_most, key=class_of)))


def _load_classifiers(task: _Task) -> tuple[dict[Precision, PlantClassifier], str]:
    """Loads both precisions for bulk work and tries them; or says why that cannot be done.

    Two workers or more run image by image: the same bits on every machine.
    """
    side = task.metadata.preprocessing.image_size
    classifiers: dict[Precision, PlantClassifier] = {}
    for precision in PRECISIONS:
        try:
            classifiers[precision] = PlantClassifier.load(
                task.bundle, precision=precision, threads=1, workers=max(2, count_cores())
            )
            for batch in (1, 2):
                classifiers[precision].run(np.zeros((batch, 3, side, side), np.float32))
        except BundleError as error:
            raise_without_memory(error)
            return {}, f"the {precision.upper()} model cannot be run ({describe_error(error, task.bundle)})"
    return classifiers, ""


def _compare_with_pytorch(
    task: _Task, int8: PlantClassifier, runs: _Runs
) -> tuple[Parity, Proportion] | tuple[None, None]:
    """Parity on leaves, and how often the decisions to reject differ, on these and as many non-plants."""
    if task.checkpoint is None:
        return None, None
    from plantmodels.export.network import load_network
    from plantmodels.verify.parity import MAX_IMAGES, measure_parity

    leaves = [sample.path for sample in pick_each_class(runs.accuracy.samples, MAX_IMAGES, key=class_of)]
    others = runs.rejection.non_plants
    picked = pick_each_class(list(zip(others.sources, others.paths, strict=True)), MAX_IMAGES, key=lambda pair: pair[0])
    pixels, other_pixels = (_read_pixels(task.metadata, paths) for paths in (leaves, [path for _, path in picked]))
    network = load_network(task.checkpoint)
    session = open_session(
        task.bundle / SPECIES_FILES["fp16"], options=task.metadata.session_options, threads=task.threads
    )
    parity = measure_parity(network, SpeciesModel(session, rows_per_run=None), int8, pixels)
    return parity, count_flips(network, int8, np.concatenate([pixels, other_pixels]))


def _read_pixels(metadata: Metadata, paths: Sequence[Path]) -> NDArray[np.float32]:
    side = metadata.preprocessing.image_size
    stream = ImageStream(paths, metadata.preprocessing, description="measure parity" if paths else "")
    return np.concatenate([np.empty((0, 3, side, side), np.float32), *(pixels for _, pixels in stream.batches(BATCH))])


def _compose(task: _Task, measured: Measured, runs: _Runs | None) -> GateReport:
    cpu = describe_cpu()
    return GateReport(
        gates=judge_all(measured, task.policy),
        policy=task.policy,
        accuracy=measured.accuracy,
        parity=measured.parity,
        rejection=measured.rejection,
        latency=measured.latency,
        problems={
            "loads": tuple(f"{name}: {reason}" for name, reason in measured.load_failures.items()),
            "heads_complete": measured.head_problems,
        },
        unreadable=(*_read_skipped_in_export(task.metadata), *_name_unreadable(task, runs)),
        inputs=_describe_inputs(task, measured),
        files=measured.files,
        versions={"plantmodels": __version__, "python": platform.python_version(), **_read_versions()},
        machine=Machine(cpu.architecture, cpu.model, cpu.features),
    )


def _read_skipped_in_export(metadata: Metadata) -> tuple[UnreadableFile, ...]:
    entries = metadata.provenance.get("unreadable_images", ())
    try:
        return tuple(decode(UnreadableFile, entry, "unreadable_images") for entry in entries)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{METADATA_FILE}: {error}") from error


def _name_unreadable(task: _Task, runs: _Runs | None) -> tuple[UnreadableFile, ...]:
    if runs is None:
        return ()
    sets: tuple[tuple[ImageSetName, LeafSet | NonPlantSet | None, AccuracyRun | Scored], ...] = (
        ("val", task.leaves, runs.accuracy),
        ("non-plants", task.non_plants, runs.rejection.non_plants),
        ("unseen-plants", task.unseen_plants, runs.rejection.unseen_plants),
    )
    return tuple(
        UnreadableFile(name, name_in_report(images.root, image.path), image.reason)
        for name, images, run in sets
        if images is not None
        for image in run.unreadable
    )


def _describe_inputs(task: _Task, measured: Measured) -> Inputs:
    def describe(given: NonPlantSet | None, which: ImageSetName, measured: Proportion | None) -> ImageSet | None:
        if given is None:
            return None
        return ImageSet(len(given.paths), 0 if measured is None else measured.images, task.data_digests[which])

    rejection = measured.rejection
    images = 0 if measured.accuracy is None else measured.accuracy.fp16.species.images
    return Inputs(
        checkpoint_sha256=None if task.checkpoint is None else task.checkpoint.sha256,
        class_order_digest=task.metadata.taxonomy.digest,
        val=ImageSet(len(task.leaves.samples), images, task.data_digests["val"]),
        non_plants=describe(task.non_plants, "non-plants", None if rejection is None else rejection.non_plants),
        unseen_plants=describe(
            task.unseen_plants, "unseen-plants", None if rejection is None else rejection.unseen_plants
        ),
    )


def _read_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _write(task: _Task, report: GateReport, runs: _Runs | None) -> None:
    plots = draw_plots(report)
    metadata = task.metadata
    recipe = metadata.models[SPECIES_FILES["int8"]].get("recipe", {})
    page = render_report(report, plots, recipe, metadata.provenance.get("detector", {}), _show_images(runs))
    with staged_bundle(task.bundle, start_from=task.bundle) as folder:
        write_json(folder / GATE_REPORT_FILE, report.to_dict())
        write_bytes(folder / HTML_REPORT_FILE, page.encode())
        write_image_rows(folder / IMAGES_FILE, _list_rows(runs))
        (folder / PLOTS_FOLDER).mkdir()
        for name, content in plots.items():
            write_bytes(folder / PLOTS_FOLDER / name, content)
        changed = report.stale_files(write_manifest(folder))
        if changed:
            raise BundleError(f"{task.bundle}: {', '.join(changed[:5])} changed while being verified")


def _list_rows(runs: _Runs | None) -> tuple[ImageRow, ...]:
    if runs is None:
        return ()
    return (*runs.accuracy.rows, *runs.rejection.non_plants.rows, *runs.rejection.unseen_plants.rows)


def _show_images(runs: _Runs | None) -> dict[str, Gallery]:
    if runs is None:
        return {}
    leaves, others = runs.accuracy, runs.rejection.non_plants
    return {
        "flipped": show_flipped(leaves.samples, leaves.rows),
        "let through": show_let_through(others.paths, others.rows),
        "rejected": show_rejected(leaves.samples, leaves.rows),
    }
