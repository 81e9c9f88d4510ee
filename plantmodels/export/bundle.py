"""Exports a checkpoint to a bundle (contract 3), which is written completely or not at all."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from plantmodels.arrays import Labels, Weights
from plantmodels.bundle.detector import write_detector
from plantmodels.bundle.layout import DETECTOR_FILE, PACKED_HEADS_FILE, SPECIES_FILES, describe_sizes
from plantmodels.bundle.manifest import write_manifest
from plantmodels.bundle.metadata import Metadata, write_metadata
from plantmodels.checkpoint.reading import Checkpoint, read_checkpoint
from plantmodels.data.digests import digest_images
from plantmodels.data.image_files import name_in_report, printable_name
from plantmodels.data.inputs import TRAINED_WEIGHTS
from plantmodels.data.leaves import LeafSample, LeafSet, class_of, digest_leaves, read_leaves, split_by_name
from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.data.progress import log_step
from plantmodels.data.sampling import DEFAULT_SEED, pick_each_class, thin_out
from plantmodels.data.streaming import UnreadableImage
from plantmodels.errors import DataError
from plantmodels.export.calibrate import fit_temperatures
from plantmodels.export.checks.answers import AnswerCounts, count_answers, refuse_wrong_answers
from plantmodels.export.checks.network import check_network, check_non_plants, read_labelled_images
from plantmodels.export.checks.non_plants import refuse_known_files
from plantmodels.export.checks.preprocessing import describe_odd_pixels
from plantmodels.export.lock import lock_bundle
from plantmodels.export.mixed_precision import MAX_DROP, LabelledImages, QuantizationResult, choose_int8
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.export.onnx_builder import read_interface
from plantmodels.export.onnx_heads import write_heads
from plantmodels.export.onnx_species import export_species
from plantmodels.export.provenance import describe_cpu, read_git_commit, read_versions
from plantmodels.export.quantize import store_weights_fp16
from plantmodels.export.staging import staged_bundle
from plantmodels.ood.embeddings import Embedder, LeafEmbeddings, NonPlantEmbeddings
from plantmodels.ood.moments import RunningMoments
from plantmodels.ood.select import check_image_count, select_detector
from plantmodels.serve.cores import count_cores
from plantmodels.serve.models import SpeciesModel, run_packed_heads
from plantmodels.serve.session import SESSION_OPTIONS, open_session

MAX_KEPT_LEAVES: Final = 20_000
MAX_NON_PLANTS: Final = 10_000
"""These limits bound the embeddings held in memory, 3 KB each. Of further leaves only the moments are kept."""

QUANTIZATION_IMAGES: Final = 128
"""Training leaves on which INT8 candidates are compared with the float model."""

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
        lines = [self.answers.describe(), *describe_sizes(self.sizes)]
        lines += self.quantization.describe()
        lines += [f"skipped {printable_name(str(image.path))}: {image.reason}" for image in self.unreadable]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([f"wrote {self.bundle}", *lines])


def export_bundle(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    non_plants: Path | None = None,
    seed: int = DEFAULT_SEED,
    hyper_parameters: Path | None = None,
    weights: str = TRAINED_WEIGHTS,
) -> ExportSummary:
    """Export a checkpoint to a bundle, and fit its detector and its temperatures on the training leaves.

    Args:
        checkpoint: checkpoint file, or folder of weights (contract 1).
        data: leaf folders or a manifest (contract 2); only the split "train" is read.
        out: folder of the bundle. A bundle that is already there is replaced once the new one is complete.
        non_plants: folder of images that show no plant. Their selection half chooses the detector and its threshold.
        seed: seed of the folds of the cross-validation.
        hyper_parameters: JSON or YAML file whose entries replace the checkpoint's hyper-parameters.
        weights: "model", "ema" for the averaged copy, or the prefix of one of several networks in the checkpoint.

    Raises:
        CheckpointError, DataError, DetectorError: an input is invalid; nothing was written.
        ExportError: the network cannot be exported, or another process is writing this bundle; nothing was written.
    """
    timer = _StepTimer()
    with lock_bundle(out), staged_bundle(out) as folder:
        with timer.log_step("read"):
            inputs = _read_inputs(read_checkpoint(checkpoint, hyper_parameters, weights), data, non_plants, seed)
        with timer.log_step("check network"):
            labelled, unreadable, warnings = _check_inputs(inputs)
        models, quantization = _write_models(folder, inputs, labelled, timer)
        with timer.log_step("digest data"):
            metadata = _build_metadata(inputs, models, seed)
        with timer.measure("embed"):
            embedded = _embed_images(folder, inputs, metadata)
        answers = _check_all_answers(inputs, embedded, labelled.heads)
        skipped = {image.path: image for image in (*unreadable, *embedded.unreadable)}  # a leaf may be read twice
        unreadable = tuple(skipped.values())
        with timer.measure("select detector"):
            selection = select_detector(
                embedded.plants, embedded.non_plants, further_moments=embedded.further_moments, seed=seed
            )
        write_detector(folder / DETECTOR_FILE, selection.detector)
        heads = open_session(folder / PACKED_HEADS_FILE, options=metadata.session_options, threads=1)
        temperatures = fit_temperatures(embedded.plants.outputs, embedded.samples, partial(run_packed_heads, heads))
        found: dict[str, Any] = {
            "warnings": warnings,
            "unreadable_images": _list_unreadable(inputs, unreadable),
            "detector": {"reason": selection.reason, "trials": [asdict(trial) for trial in selection.trials]},
        }
        metadata = replace(
            metadata,
            provenance={**metadata.provenance, **found},
            species_temperature=temperatures.species,
            disease_temperature=temperatures.disease,
        )
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


@dataclass(frozen=True)
class _ExportInputs:
    """Everything that an export reads, listed and checked before the long work starts.

    Attributes:
        checkpoint: the checkpoint.
        network: its network, with its weights.
        leaves: all training leaves; `kept_leaves` and `further_leaves` are its two parts.
        kept_leaves: at most `MAX_KEPT_LEAVES` leaves, whose embeddings are held in memory.
        further_leaves: leaves of which only the moments are kept.
        non_plants: images that show no plant, or None.
        selection: the half of them that chooses the detector, or None.
    """

    checkpoint: Checkpoint
    network: HierarchicalNetwork
    leaves: LeafSet
    kept_leaves: LeafSet
    further_leaves: LeafSet
    non_plants: NonPlantSet | None
    selection: NonPlantSet | None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Lines about the files of the leaves and of the non-plants that are not taken as images."""
        others = "" if self.non_plants is None else self.non_plants.left_out.describe("non-plants")
        return tuple(filter(None, (self.leaves.left_out.describe("train"), others)))


def _read_inputs(checkpoint: Checkpoint, data: Path, non_plants: Path | None, seed: int) -> _ExportInputs:
    checkpoint.log_ignored()
    leaves = read_leaves(data, "train", checkpoint.spec.taxonomy)
    further, kept = split_by_name(leaves, 1.0, MAX_KEPT_LEAVES, seed)
    check_image_count(len(kept.samples))
    others = None if non_plants is None else read_non_plants(non_plants)
    if others is not None:
        refuse_known_files(others, [*leaves.paths, *_list_val_images(data, checkpoint)], leaves.root)
    return _ExportInputs(
        checkpoint=checkpoint,
        leaves=leaves,
        kept_leaves=kept,
        further_leaves=further,
        non_plants=others,
        selection=None if others is None else others.half("selection"),
        network=load_network(checkpoint),
    )


def _list_val_images(data: Path, checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the validation leaves; none if there are none, or if they are not as they should be: `verify` says so."""
    try:
        return read_leaves(data, "val", checkpoint.spec.taxonomy).paths
    except DataError:
        return ()


def _check_inputs(inputs: _ExportInputs) -> tuple[LabelledImages, tuple[UnreadableImage, ...], list[str]]:
    """Refuse a network or non-plants that cannot be right, before the long work.

    Returns:
        Labelled training leaves of every class, the files that were skipped, and warnings.
    """
    checkpoint, leaves, network = inputs.checkpoint, inputs.kept_leaves, inputs.network
    first = pick_each_class(leaves.samples, QUANTIZATION_IMAGES, key=class_of)
    images, unreadable = read_labelled_images(first, checkpoint, inputs.leaves)
    taken = set(first)
    unread = [sample for sample in leaves.samples if sample not in taken]
    outputs = check_network(network, checkpoint, inputs.leaves, images, unread)
    if inputs.non_plants is not None and inputs.selection is not None:
        check_non_plants(network, checkpoint, inputs.selection, len(inputs.non_plants.paths), outputs)
    return images, unreadable, [warning for warning in (describe_odd_pixels(images.pixels),) if warning]


def _write_models(
    folder: Path, inputs: _ExportInputs, leaves: LabelledImages, timer: _StepTimer
) -> tuple[dict[str, dict[str, Any]], QuantizationResult]:
    """Write every ONNX file; return the metadata of each by its name, and how the INT8 products were chosen."""
    reduce_range = not describe_cpu().has_int8_dot_product
    with timer.log_step("export species"):
        graph = export_species(inputs.network, leaves.pixels[:_COMPARED_IMAGES])
    with timer.log_step("store FP16"):
        onnx.save(store_weights_fp16(graph.model), folder / SPECIES_FILES["fp16"])
    with timer.log_step("quantize INT8"):
        quantization = choose_int8(graph.model, leaves, reduce_range=reduce_range)
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
        "tried_on": {"images": len(leaves.pixels), "max_drop": MAX_DROP},
    }
    models: dict[str, dict[str, Any]] = {
        SPECIES_FILES["fp16"]: {"precision": "fp16", "rows_per_run": None, "recipe": fp16_recipe},
        SPECIES_FILES["int8"]: {"precision": "int8", "rows_per_run": 1, "recipe": int8_recipe},
    }
    with timer.log_step("disease heads"):
        models |= write_heads(folder, inputs.checkpoint)
    return {name: {**read_interface(folder / name), **entry} for name, entry in models.items()}, quantization


def _build_metadata(inputs: _ExportInputs, models: Mapping[str, Mapping[str, Any]], seed: int) -> Metadata:
    """Return the metadata that is known before any image is embedded."""
    spec, leaves, non_plants, cpu = inputs.checkpoint.spec, inputs.leaves, inputs.non_plants, describe_cpu()
    provenance: dict[str, Any] = {
        "checkpoint_sha256": inputs.checkpoint.sha256,
        "hyper_parameters_sha256": inputs.checkpoint.parameters_sha256,
        "weights": inputs.checkpoint.weights,
        "backbone": spec.backbone,
        "backbone_kwargs": dict(spec.backbone_kwargs),
        "git_commit": read_git_commit(),
        "data_sha256": digest_leaves(leaves),
        "non_plants_sha256": None if non_plants is None else digest_images(non_plants.root, non_plants.paths),
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


def _list_unreadable(inputs: _ExportInputs, unreadable: Iterable[UnreadableImage]) -> list[dict[str, str]]:
    """Return the skipped leaves and non-plants as the metadata and the gate report name them."""
    entries = []
    for image in unreadable:
        source, root = "train", inputs.leaves.root
        if inputs.non_plants is not None and image.path in inputs.non_plants.paths:
            source, root = "non-plants", inputs.non_plants.root
        entries.append({"source": source, "name": name_in_report(root, image.path), "reason": image.reason})
    return entries


@dataclass(frozen=True)
class _EmbeddedImages:
    """Outputs of the INT8 model, which is the one that is served, for the images that the detector is fitted on.

    Attributes:
        plants: outputs for the kept leaves that could be read.
        samples: the same leaves with their labels.
        further_moments: moments of the further leaves, or None.
        non_plants: outputs for the selection half of the non-plants, or None.
        unreadable: leaves and non-plants that were skipped.
    """

    plants: LeafEmbeddings
    samples: Sequence[LeafSample]
    further_moments: RunningMoments | None
    non_plants: NonPlantEmbeddings | None
    unreadable: tuple[UnreadableImage, ...]


def _embed_images(folder: Path, inputs: _ExportInputs, metadata: Metadata) -> _EmbeddedImages:
    name, options, rows_per_run = SPECIES_FILES["int8"], metadata.session_options, metadata.rows_per_run("int8")
    session = open_session(folder / name, options=options, threads=1, rows_per_run=rows_per_run)
    model = SpeciesModel(session, rows_per_run=rows_per_run, workers=count_cores())
    embedder = Embedder(model, metadata.preprocessing, set_size=len(inputs.leaves.samples))
    numbers = {label: i for i, label in enumerate(sorted({class_of(sample) for sample in inputs.leaves.samples}))}

    def number_classes(samples: Sequence[LeafSample]) -> Labels:
        return np.array([numbers[class_of(sample)] for sample in samples], np.int64)

    further = None
    if inputs.further_leaves.samples:
        further = RunningMoments(len(numbers), metadata.embedding_dim)
        with threadpool_limits(1):  # with several BLAS threads the last bits differ
            for rows, outputs in embedder.stream(inputs.further_leaves.paths, "embed further leaves"):
                further.update(number_classes([inputs.further_leaves.samples[row] for row in rows]), outputs.features)
    positions, outputs = embedder.collect(inputs.kept_leaves.paths, "embed leaves")
    samples = [inputs.kept_leaves.samples[position] for position in positions]
    species = np.array([sample.species_index for sample in samples], np.int64)
    plants = LeafEmbeddings(outputs, number_classes(samples), species)
    non_plants, skipped = _embed_non_plants(inputs, model, metadata)
    return _EmbeddedImages(plants, samples, further, non_plants, (*embedder.unreadable, *skipped))


def _check_all_answers(
    inputs: _ExportInputs, embedded: _EmbeddedImages, heads: Mapping[int, tuple[Weights, Weights]]
) -> AnswerCounts:
    """Refuse names in another order once more, now that every training leaf was read; the first look reads a few."""
    taxonomy = inputs.checkpoint.spec.taxonomy
    species, diseases = np.array([class_of(sample) for sample in embedded.samples], np.int64).T
    counts = count_answers(embedded.plants.outputs, species, diseases, heads, taxonomy)
    refuse_wrong_answers(counts, taxonomy, inputs.checkpoint.path, inputs.leaves.root)
    return counts


def _embed_non_plants(
    inputs: _ExportInputs, model: SpeciesModel, metadata: Metadata
) -> tuple[NonPlantEmbeddings | None, tuple[UnreadableImage, ...]]:
    half = inputs.selection
    if inputs.non_plants is None or half is None:
        return None, ()
    paths = thin_out(half.paths, MAX_NON_PLANTS, key=half.source_of)
    if not paths:
        return None, ()
    embedder = Embedder(model, metadata.preprocessing, set_size=len(inputs.non_plants.paths))
    positions, outputs = embedder.collect(paths, "embed non-plants")
    sources = np.array([half.source_of(path) for path in paths])[positions]
    return NonPlantEmbeddings(outputs, sources), embedder.unreadable
