"""`verify_bundle`: measures every gate of a bundle and writes the report into it, in one step.

>>> report = verify_bundle(bundle, data, checkpoint=checkpoint, non_plants=non_plants)
>>> report.gate("loads").status, report.gate("heads_complete").status
('passed', 'passed')
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from plantmodels.arrays import Inputs, Pixels
from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.files import StrPath, as_path
from plantmodels.bundle.layout import MANIFEST_FILE, ONE_FILES, Precision, is_report
from plantmodels.bundle.metadata import Metadata, Preprocessing
from plantmodels.data.image_files import printable_name
from plantmodels.data.leaves import class_of
from plantmodels.data.progress import log_step
from plantmodels.data.sampling import pick_each_class, thin_out
from plantmodels.data.streaming import ImageStream
from plantmodels.errors import BundleError, DataError
from plantmodels.export.lock import lock_bundle
from plantmodels.export.provenance import describe_cpu
from plantmodels.extras import read_version
from plantmodels.report.evidence.coverage import find_unreachable
from plantmodels.report.evidence.judge import Measured
from plantmodels.report.gate_report import GateReport
from plantmodels.report.per_image import ImageRow
from plantmodels.report.policy import GatePolicy
from plantmodels.report.samples import Latency, Parity
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.loading import BundleContents, LoadOptions
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.preprocessing import decode_image, resize_and_crop
from plantmodels.serve.reference import Reference, ReferenceImage, answer_images, count_images
from plantmodels.serve.session import release_free_memory
from plantmodels.verify.accuracy import BATCH, measure_accuracy
from plantmodels.verify.compose import Passes, compose_report, write_report
from plantmodels.verify.integrity import find_head_problems, find_load_failures
from plantmodels.verify.latency import measure_latency
from plantmodels.verify.leakage import measure_leakage
from plantmodels.verify.one_file import find_one_file_problems
from plantmodels.verify.opening import OpenedModels, open_classifiers, open_models
from plantmodels.verify.reading import OnnxFiles, VerificationInputs, read_contents, read_inputs
from plantmodels.verify.rejection import choose_gate_images, measure_rejection, score_in_pytorch

if TYPE_CHECKING:
    from plantmodels.checkpoint.reading import Checkpoint

_LOGGER: Final = logging.getLogger(__name__)

_BUILT_IN_LIMITS: Final = GatePolicy()

_ONE_FILE_LEAVES: Final = 24
_ONE_FILE_NON_PLANTS: Final = 8
"""Images on which the one file is compared with the parts of the bundle: a wrong file is wrong on any of them."""


def verify_bundle(
    bundle: StrPath,
    data: StrPath,
    *,
    checkpoint: StrPath | None,
    non_plants: StrPath | None,
    policy: GatePolicy = _BUILT_IN_LIMITS,
    unseen_plants: StrPath | None = None,
    field: StrPath | None = None,
    threads: int | None = None,
    hyper_parameters: StrPath | None = None,
) -> GateReport:
    """Measure every gate, and write report, plots and a new manifest into the bundle.

    A failed gate is a value in the report, not an error. The model files are never changed. On any error the whole
    bundle stays as it was.

    Args:
        bundle: an exported bundle; an older report in it is replaced.
        data: leaf folders or manifest of contract 2; the split "train" is searched for validation images.
        checkpoint: the checkpoint that the bundle was made from; without it, the gates `parity` and `heads_complete`
            are not measured.
        non_plants: folder of images that show no plant; without it, the two rejection gates are not measured.
        policy: the limits of the gates; by default the built-in ones.
        unseen_plants: folder of plants of unknown species, measured for information only.
        field: labelled leaves from another place than `data`, without split. They are gated only by the policy's
            keys `min_field_…` of `[accuracy]`, which are not set by default.
        threads: number of threads inside an operator while latency is measured; None uses those that serving
            uses by default. Everything else runs one image per core.
        hyper_parameters: the file of hyper-parameters that the bundle was exported with, if there was one.

    Raises:
        BundleError: files differ from the manifest, or the bundle was made from another checkpoint.
        DetectorError: the detector's file is unsafe or malformed.
        CheckpointError: the checkpoint cannot be read.
        DataError: images are missing, a class is unknown, or too many images are unreadable.
        ExportError: the bundle's folder cannot be written, or another process is writing it.
    """
    bundle = Path(bundle)
    _check_present(bundle)
    with lock_bundle(bundle):
        with log_step("check files"):
            contents = read_contents(bundle)
            metadata = contents.metadata
            inputs = read_inputs(
                metadata,
                Path(data),
                non_plants=as_path(non_plants),
                unseen_plants=as_path(unseen_plants),
                field=as_path(field),
            )
            weights = _read_checkpoint(as_path(checkpoint), metadata, as_path(hyper_parameters))
        _warn_of_unreachable(inputs, contents.detector, policy)
        with log_step("open models"):
            opened = _open_bundle(contents, weights)
        passes = None if opened.not_run else _measure_images(opened, inputs, policy)
        parity = None
        if weights is not None and passes is not None:
            with log_step("measure parity"):
                parity, passes = _compare_with_pytorch(opened, weights, passes)
        del weights  # those of 10,000 heads take 200 MB
        release_free_memory()
        measured = _measure(opened, inputs, passes, parity, threads, heads_compared=checkpoint is not None)
        reference = None if passes is None else _answer_reference_images(opened, passes)
        with log_step("write report"):
            report = compose_report(metadata, inputs, measured, passes, policy)
            write_report(bundle, metadata, report, passes, reference)
    return report


def _warn_of_unreachable(inputs: VerificationInputs, detector: OODDetector, policy: GatePolicy) -> None:
    """Say before the long work which gates so few images cannot make certain."""
    leaves = min(len(inputs.leaves.samples), policy.int8_accuracy_max_images)
    others = None if inputs.non_plants is None else len(choose_gate_images(inputs.non_plants, detector.fit)[0].paths)
    for line in find_unreachable(policy, leaves=leaves, non_plants=others):
        _LOGGER.warning("%s", line)


def _read_checkpoint(path: Path | None, metadata: Metadata, hyper_parameters: Path | None) -> "Checkpoint | None":
    if path is None:
        return None
    from plantmodels.verify.parity import read_matching_checkpoint  # imports torch, which takes seconds

    return read_matching_checkpoint(path, metadata, hyper_parameters)


def _check_present(bundle: Path) -> None:
    """Refuse a folder without a bundle before a lock creates anything beside it."""
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: no such bundle folder")
    if not (bundle / MANIFEST_FILE).is_file():
        raise BundleError(f"{bundle / MANIFEST_FILE}: no such file, so the folder is not a bundle")


@dataclass(frozen=True)
class _OpenedBundle:
    """What opening the files of a bundle showed.

    Attributes:
        contents: the bundle, as `read_contents` returned it.
        load_failures: ONNX file to the reason why it does not load.
        head_problems: one line for each problem with a disease head.
        one_files: the one files, each of which is opened when its session is asked for.
        classifiers: a classifier of each precision for bulk work; empty if they cannot be run.
        not_run: why the classifiers cannot be run; "" if they can.
    """

    contents: BundleContents
    load_failures: Mapping[str, str]
    head_problems: tuple[str, ...]
    one_files: OpenedModels
    classifiers: Mapping[Precision, PlantClassifier]
    not_run: str


def _open_bundle(contents: BundleContents, checkpoint: "Checkpoint | None") -> _OpenedBundle:
    files = OnnxFiles(contents)
    models = open_models(files, contents.metadata)
    load_failures = find_load_failures(files, models)
    release_free_memory()
    classifiers, not_run = open_classifiers(contents, models)
    return _OpenedBundle(
        contents,
        load_failures,
        find_head_problems(models, contents.metadata, checkpoint),
        models.select(ONE_FILES.values()),
        classifiers,
        not_run,
    )


def _measure(
    bundle: _OpenedBundle,
    inputs: VerificationInputs,
    passes: Passes | None,
    parity: Parity | None,
    threads: int | None,
    *,
    heads_compared: bool,
) -> Measured:
    """Compare the one files, measure the latency, and return everything that the gates judge."""
    manifest, taxonomy = bundle.contents.manifest, bundle.contents.metadata.taxonomy
    latency = None
    load_failures = dict(bundle.load_failures)
    if passes is not None:
        with log_step("compare one file"):
            load_failures |= _compare_one_files(bundle, passes)
        with log_step("measure latency"):
            latency = _measure_latency(bundle.contents, passes, threads)
    files = {name: digest for name, digest in manifest.files.items() if not is_report(name)}
    return Measured(
        taxonomy=taxonomy,
        files=files,
        problems={
            "loads": tuple(f"{name}: {reason}" for name, reason in load_failures.items()),
            "heads_complete": bundle.head_problems,
        },
        heads_compared=heads_compared,
        accuracy=None if passes is None else passes.accuracy.accuracy,
        rejection=None if passes is None else passes.rejection.rejection,
        leakage=None if passes is None or passes.leakage is None else passes.leakage.leakage,
        latency=latency,
        parity=parity,
        field=None if passes is None else passes.count_field(bundle.contents.metadata),
        non_plants_given=inputs.non_plants is not None,
        not_run=bundle.not_run,
    )


def _measure_images(bundle: _OpenedBundle, inputs: VerificationInputs, policy: GatePolicy) -> Passes:
    fp16, int8 = bundle.classifiers["fp16"], bundle.classifiers["int8"]
    samples = thin_out(inputs.leaves.samples, policy.int8_accuracy_max_images, key=class_of)
    accuracy = measure_accuracy(fp16, int8, replace(inputs.leaves, samples=tuple(samples)))
    field = None
    if inputs.field is not None:
        samples = thin_out(inputs.field.samples, policy.int8_accuracy_max_images, key=class_of)
        field = measure_accuracy(fp16, int8, replace(inputs.field, samples=tuple(samples)), "field")
    rejection = measure_rejection(fp16, int8, accuracy, inputs.non_plants, inputs.unseen_plants)
    leakage = None
    if inputs.training is not None:
        leakage = measure_leakage(accuracy.samples, accuracy.rows, inputs.training, inputs.non_plants, int8.taxonomy)
        accuracy = replace(accuracy, rows=leakage.rows)
    return Passes(accuracy, rejection, leakage, field)


def _compare_one_files(bundle: _OpenedBundle, passes: Passes) -> dict[str, str]:
    """Return the one files that do not answer as the bundle's parts do on a few images, each with the reason."""
    samples, others = passes.accuracy.samples, passes.rejection.non_plants.paths
    leaves = pick_each_class(samples, _ONE_FILE_LEAVES, key=class_of)
    paths = [*(sample.path for sample in leaves), *thin_out(others, _ONE_FILE_NON_PLANTS, key=lambda path: path.parent)]
    images = _decode_images(bundle.contents.metadata, paths)
    return find_one_file_problems(bundle.one_files, bundle.classifiers, images)


def _answer_reference_images(bundle: _OpenedBundle, passes: Passes) -> tuple[Reference, Pixels]:
    """Return the reference answers, of INT8 and FP16, and their images (N, P, P, 3).

    Three of four are leaves, as equally many of every class as possible, and the others are non-plants, of every
    source. Which images these are follows from their contents alone.
    """
    preprocessing, others = bundle.contents.metadata.preprocessing, passes.rejection.non_plants
    count = count_images(preprocessing.image_size)
    leaves = list(zip((sample.path for sample in passes.accuracy.samples), passes.accuracy.rows, strict=True))
    non_plants = list(zip(others.paths, others.rows, strict=True))
    chosen = choose_images(leaves, count - min(count // 4, len(non_plants)))
    chosen += choose_images(non_plants, count - len(chosen))
    pixels = np.stack([read_pixels(path, row, preprocessing) for path, row in chosen])
    with log_step("keep reference answers", total=2 * len(chosen), unit="image") as advance:
        int8, fp16 = (answer_images(bundle.classifiers[precision], pixels, advance) for precision in ("int8", "fp16"))
    rows = (row for _, row in chosen)
    images = tuple(
        ReferenceImage("val" if row.set == "val" else "non-plants", row.sha256, *answers)
        for row, *answers in zip(rows, int8, fp16, strict=True)
    )
    return Reference(read_version("onnxruntime"), describe_cpu().model, images), pixels


def choose_images(images: Sequence[tuple[Path, ImageRow]], at_most: int) -> list[tuple[Path, ImageRow]]:
    """Return different images of as many classes as possible, in an order that their contents give."""
    different = {row.sha256: (path, row) for path, row in images}
    return pick_each_class(
        [different[digest] for digest in sorted(different)], at_most, key=lambda pair: pair[1].source
    )


def read_pixels(path: Path, row: ImageRow, preprocessing: Preprocessing) -> Pixels:
    """Return an image as the network reads it, (P, P, 3).

    Raises:
        DataError: the file is not the one that was measured.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable_name(str(path))}: cannot be read any more ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != row.sha256:
        raise DataError(f"{printable_name(str(path))}: changed while being verified")
    return np.asarray(resize_and_crop(decode_image(content, preprocessing), preprocessing))


def _measure_latency(contents: BundleContents, passes: Passes, threads: int | None) -> Latency:
    """Time the bundle as it is served: its own sessions with the threads asked for, not those of bulk work."""
    served = PlantClassifier.from_contents(contents, LoadOptions(threads=threads))
    return measure_latency(served, passes.accuracy.samples[0].path.read_bytes())


def _compare_with_pytorch(bundle: _OpenedBundle, checkpoint: "Checkpoint", passes: Passes) -> tuple[Parity, Passes]:
    """Return the parity on leaves, and the passes with PyTorch's OOD scores of these and of as many non-plants."""
    from plantmodels.export.network import load_network  # imports torch, which takes seconds
    from plantmodels.verify.parity import MAX_IMAGES, measure_parity

    metadata, int8 = bundle.contents.metadata, bundle.classifiers["int8"]
    samples, others = passes.accuracy.samples, passes.rejection.non_plants
    leaves = pick_each_class(range(len(samples)), MAX_IMAGES, key=lambda place: class_of(samples[place]))
    picked = pick_each_class(range(len(others.rows)), MAX_IMAGES, key=lambda place: others.rows[place].source)
    leaf_inputs = _decode_images(metadata, [samples[place].path for place in leaves])
    other_inputs = _decode_images(metadata, [others.paths[place] for place in picked])
    network = load_network(checkpoint)
    fp16 = SpeciesModel(bundle.classifiers["fp16"].species_model.session, rows_per_run=None)
    parity, embeddings = measure_parity(network, fp16, int8, leaf_inputs)
    scores = int8.detector.score(embeddings), score_in_pytorch(network, int8, other_inputs)
    leaf_scores, other_scores = (
        dict(zip(places, found.tolist(), strict=True)) for places, found in zip((leaves, picked), scores, strict=True)
    )
    return parity, passes.with_pytorch_scores(leaf_scores, other_scores)


def _decode_images(metadata: Metadata, paths: Sequence[Path]) -> Inputs:
    side = metadata.preprocessing.image_size
    stream = ImageStream(paths, metadata.preprocessing)
    return np.concatenate([np.empty((0, 3, side, side), np.float32), *(inputs for _, inputs in stream.batches(BATCH))])
