"""Exports a checkpoint to a bundle (contract 3), which is written completely or not at all."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from plantmodels.arrays import Weights
from plantmodels.bundle.detector import write_detector
from plantmodels.bundle.files import StrPath, as_path
from plantmodels.bundle.layout import DETECTOR_FILE, PACKED_HEADS_FILE, PRECISIONS, SPECIES_FILES, describe_sizes
from plantmodels.bundle.manifest import write_manifest
from plantmodels.bundle.metadata import Metadata, write_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.image_files import printable_name
from plantmodels.data.inputs import TRAINED_WEIGHTS
from plantmodels.data.leaves import class_of, digest_leaves
from plantmodels.data.progress import log_step
from plantmodels.data.sampling import DEFAULT_SEED, pick_each_class
from plantmodels.data.streaming import UnreadableImage
from plantmodels.export.calibration.embedding import EmbeddedImages, embed_images
from plantmodels.export.calibration.temperatures import fit_temperatures
from plantmodels.export.checks.answers import AnswerCounts, count_answers, refuse_wrong_answers
from plantmodels.export.checks.network import (
    LabelledImages,
    check_network,
    check_non_plants,
    list_compared,
    read_labelled_images,
)
from plantmodels.export.checks.preprocessing import describe_odd_pixels
from plantmodels.export.inputs import ExportInputs, read_inputs
from plantmodels.export.lock import lock_bundle
from plantmodels.export.mixed_precision import MAX_CHANGED, QuantizationResult, choose_int8
from plantmodels.export.one_file.build import write_one_files
from plantmodels.export.onnx_builder import read_interface
from plantmodels.export.onnx_heads import write_heads
from plantmodels.export.onnx_species import export_species
from plantmodels.export.provenance import describe_cpu, read_git_commit, read_versions
from plantmodels.export.quantize import store_weights_fp16
from plantmodels.export.staging import staged_bundle
from plantmodels.ood.select import select_detector
from plantmodels.serve.models import run_packed_heads
from plantmodels.serve.session import SESSION_OPTIONS, open_session

CHECKED_IMAGES: Final = 128
"""Training leaves that the network is asked about before the long work."""

_COMPARED_IMAGES: Final = 4
"""Training leaves on which the float graph is compared with PyTorch."""


@dataclass(frozen=True)
class ExportSummary:
    """The result of an export.

    Attributes:
        bundle: folder of the bundle.
        metadata: metadata as written.
        answers: how often INT8 is right on training leaves.
        sizes: name of each ONNX file to its size in bytes.
        seconds: name of each step to its wall-clock time in seconds.
        quantization: which products are INT8, and what was tried.
        unreadable: training leaves and non-plants that were skipped, each once.
        warnings: what looks odd and is no error: files that are not taken as images, for example.
    """

    bundle: Path
    metadata: Metadata
    answers: AnswerCounts
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]
    quantization: QuantizationResult
    unreadable: tuple[UnreadableImage, ...]
    warnings: tuple[str, ...]

    def describe(self) -> str:
        """Return folder, accuracy, file sizes, INT8 candidates and files that were not used as text for a terminal."""
        calibration = self.metadata.calibration
        lines = [self.answers.describe(), *(() if calibration is None else [calibration.describe()])]
        lines += describe_sizes(self.sizes)
        lines += self.quantization.describe()
        lines += [f"skipped {printable_name(str(image.path))}: {image.reason}" for image in self.unreadable]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([f"wrote {self.bundle}", *lines])


def export_bundle(
    checkpoint: StrPath,
    data: StrPath,
    out: StrPath,
    *,
    non_plants: StrPath | None = None,
    seed: int = DEFAULT_SEED,
    hyper_parameters: StrPath | None = None,
    weights: str = TRAINED_WEIGHTS,
    one_file_fp16: bool = False,
) -> ExportSummary:
    """Export a checkpoint to a bundle, fit its detector on training leaves, and calibrate it on other leaves.

    Args:
        checkpoint: checkpoint file, or folder of weights (contract 1).
        data: leaf folders or a manifest (contract 2). The detector is fitted on the split "train";
            `choose_calibration` says which leaves give its threshold, its p-values and the temperatures.
        out: folder of the bundle. A bundle that is already there is replaced once the new one is complete.
        non_plants: folder of images that show no plant. Their selection half chooses the detector and its threshold.
        seed: seed of the folds of the cross-validation.
        hyper_parameters: JSON or YAML file whose entries replace the checkpoint's hyper-parameters.
        weights: "model", "ema" for the averaged copy, or the prefix of one of several networks in the checkpoint.
        one_file_fp16: whether to write the one file in FP16 too; the INT8 one is always written.

    Raises:
        CheckpointError, DataError, DetectorError: an input is invalid; nothing was written.
        ExportError: the network cannot be exported, or another process is writing this bundle; nothing was written.
    """
    checkpoint, data, out = Path(checkpoint), Path(data), Path(out)
    non_plants, hyper_parameters = as_path(non_plants), as_path(hyper_parameters)
    timer = _StepTimer()
    with lock_bundle(out), staged_bundle(out) as folder:
        with timer.log_step("read"):
            inputs = read_inputs(read_checkpoint(checkpoint, hyper_parameters, weights), data, non_plants, seed)
        with timer.log_step("check network"):
            labelled, unreadable, warnings = _check_inputs(inputs)
        models, quantization = _write_models(folder, inputs, labelled, timer)
        with timer.log_step("digest data"):
            metadata = _build_metadata(inputs, models, seed)
        with timer.measure("embed"):
            embedded = embed_images(folder, inputs, metadata, quantization.outputs)
        answers = _check_all_answers(inputs, embedded, labelled.heads)
        skipped = {image.path: image for image in (*unreadable, *embedded.unreadable)}  # a leaf may be read twice
        unreadable = tuple(skipped.values())
        with timer.measure("select detector"):
            selection = select_detector(
                embedded.fit.embeddings,
                embedded.non_plants,
                calibration=None if inputs.calibration.record.is_optimistic else embedded.calibration.embeddings,
                further_moments=embedded.further_moments,
                seed=seed,
                learned=bool(inputs.checkpoint.seen_non_plants),
            )
        write_detector(folder / DETECTOR_FILE, selection.detector)
        heads = open_session(folder / PACKED_HEADS_FILE, options=metadata.session_options, threads=1)
        leaves = embedded.calibration
        temperatures = fit_temperatures(leaves.embeddings.outputs, leaves.samples, partial(run_packed_heads, heads))
        found: dict[str, Any] = {
            "warnings": warnings,
            "unreadable_images": inputs.list_unreadable(unreadable),
            "detector": {"reason": selection.reason, "trials": [asdict(trial) for trial in selection.trials]},
        }
        metadata = replace(
            metadata,
            provenance={**metadata.provenance, **found},
            species_temperature=temperatures.species,
            disease_temperature=temperatures.disease,
            calibration=inputs.calibration.record,
        )
        with timer.log_step("one file"):
            metadata = write_one_files(folder, metadata, PRECISIONS if one_file_fp16 else ("int8",))
        write_metadata(folder, metadata)
        write_manifest(folder)
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.onnx")}
    return ExportSummary(
        out,
        metadata,
        answers,
        dict(sorted(sizes.items())),
        timer.seconds,
        quantization,
        unreadable,
        (*inputs.left_out, *warnings),
    )


@dataclass
class _StepTimer:
    """Measures the wall-clock time of each step in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure a step that shows its progress itself."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    @contextmanager
    def log_step(self, name: str) -> Iterator[None]:
        """Measure a step and show its progress."""
        with self.measure(name), log_step(name):
            yield


def _check_inputs(inputs: ExportInputs) -> tuple[LabelledImages, tuple[UnreadableImage, ...], list[str]]:
    """Refuse a network or non-plants that cannot be right, before the long work.

    Returns:
        Labelled training leaves of every class, the files that were skipped, and warnings.
    """
    checkpoint, leaves, network = inputs.checkpoint, inputs.kept_leaves, inputs.network
    first = pick_each_class(leaves.samples, CHECKED_IMAGES, key=class_of)
    images, unreadable = read_labelled_images(first, checkpoint, inputs.leaves)
    taken = set(first)
    unread = [sample for sample in leaves.samples if sample not in taken]
    outputs = check_network(network, checkpoint, inputs.leaves, images, unread)
    if inputs.non_plants is not None and inputs.selection is not None:
        check_non_plants(network, checkpoint, inputs.selection, len(inputs.non_plants.paths), outputs)
    return images, unreadable, [warning for warning in (describe_odd_pixels(images.pixels),) if warning]


def _write_models(
    folder: Path, inputs: ExportInputs, leaves: LabelledImages, timer: _StepTimer
) -> tuple[dict[str, dict[str, Any]], QuantizationResult]:
    """Write every ONNX file; return the metadata of each by its name, and how the INT8 products were chosen."""
    reduce_range = not describe_cpu().has_int8_dot_product
    with timer.log_step("export species"):
        graph = export_species(inputs.network, leaves.pixels[:_COMPARED_IMAGES])
    with timer.log_step("store FP16"):
        onnx.save(store_weights_fp16(graph.model), folder / SPECIES_FILES["fp16"])
    with timer.log_step("quantize INT8"):
        compared = list_compared(inputs.kept_leaves, inputs.checkpoint, inputs.leaves, leaves)
        quantization = choose_int8(graph.model, compared, reduce_range=reduce_range)
        onnx.save(quantization.model, folder / SPECIES_FILES["int8"])
    fp16_recipe = {"method": "weights stored in float16, computed in float32", "graph": graph.kind}
    int8_recipe = {
        "method": "dynamic",
        "graph": graph.kind,
        "per_channel": True,
        "weights": "int8",
        "activations": "uint8",
        "reduce_range": reduce_range,
        "products": quantization.products,
        "kept_float": list(quantization.kept_float),
        "tried": [asdict(trial) for trial in quantization.trials],
        "max_changed": MAX_CHANGED,
        "compared_first": "the float model's least certain answers",
    }
    models: dict[str, dict[str, Any]] = {
        SPECIES_FILES["fp16"]: {"precision": "fp16", "rows_per_run": None, "recipe": fp16_recipe},
        SPECIES_FILES["int8"]: {"precision": "int8", "rows_per_run": 1, "recipe": int8_recipe},
    }
    with timer.log_step("disease heads"):
        models |= write_heads(folder, inputs.checkpoint)
    return {name: {**read_interface(folder / name), **entry} for name, entry in models.items()}, quantization


def _build_metadata(inputs: ExportInputs, models: Mapping[str, Mapping[str, Any]], seed: int) -> Metadata:
    """Return the metadata that is known before any image is embedded."""
    spec, leaves, non_plants, cpu = inputs.checkpoint.spec, inputs.leaves, inputs.non_plants, describe_cpu()
    provenance: dict[str, Any] = {
        "checkpoint_sha256": inputs.checkpoint.sha256,
        "seen_non_plants_sha256": sorted(inputs.checkpoint.seen_non_plants),
        "hyper_parameters_sha256": inputs.checkpoint.parameters_sha256,
        "weights": inputs.checkpoint.weights,
        "backbone": spec.backbone,
        "backbone_kwargs": dict(spec.backbone_kwargs),
        "git_commit": read_git_commit(),
        "data_sha256": digest_leaves(leaves, inputs.digests),
        "non_plants_sha256": None if non_plants is None else non_plants.digest(),
        "seed": seed,
    }
    return Metadata(
        taxonomy=spec.taxonomy,
        preprocessing=spec.preprocessing,
        embedding_dim=spec.embedding_dim,
        session_options=SESSION_OPTIONS,
        models=models,
        provenance=provenance,
        versions=read_versions(),
        cpu={"architecture": cpu.architecture, "model": cpu.model, "features": list(cpu.features)},
    )


def _check_all_answers(
    inputs: ExportInputs, embedded: EmbeddedImages, heads: Mapping[int, tuple[Weights, Weights]]
) -> AnswerCounts:
    """Refuse names in another order once more, now that every training leaf was read; the first look reads a few."""
    taxonomy = inputs.checkpoint.spec.taxonomy
    species, diseases = np.array([class_of(sample) for sample in embedded.fit.samples], np.int64).T
    counts = count_answers(embedded.fit.embeddings.outputs, species, diseases, heads, taxonomy)
    refuse_wrong_answers(counts, taxonomy, inputs.checkpoint.path, inputs.leaves.root)
    return counts
