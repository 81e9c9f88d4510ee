"""Checkpoint and leaves to a bundle (contract 3), written whole or not at all.

>>> summary = export_bundle(checkpoint, data, out, non_plants=None)  # doctest: +SKIP
>>> summary.sizes["swin-species-int8.onnx"]  # doctest: +SKIP
31475453
"""

import importlib.metadata
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from plantmodels import __version__
from plantmodels.bundle.detector import write_detector
from plantmodels.bundle.layout import (
    DETECTOR_FILE,
    HEADS_FOLDER,
    PACKED_HEADS_FILE,
    SPECIES_FILES,
    describe_sizes,
    head_file,
)
from plantmodels.bundle.manifest import write_manifest
from plantmodels.bundle.metadata import Metadata, write_metadata
from plantmodels.data.digests import digest_images, digest_leaves
from plantmodels.data.image_files import name_in_report
from plantmodels.data.leaves import LeafSample, LeafSet, class_of, read_leaves, split_by_name
from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.data.progress import log_step
from plantmodels.data.sampling import DEFAULT_SEED, pick_each_class, thin_out
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.errors import DataError
from plantmodels.export.calibrate import fit_temperatures
from plantmodels.export.checkpoint import Checkpoint, read_checkpoint
from plantmodels.export.cpu import describe_cpu
from plantmodels.export.lock import lock_bundle
from plantmodels.export.mixed_precision import MAX_DROP, Choice, LabelledImages, choose_int8
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.export.onnx_heads import Int8Head, int8_head_model, packed_heads_model, quantize_head
from plantmodels.export.onnx_species import export_species
from plantmodels.export.quantize import store_weights_fp16
from plantmodels.export.staging import staged_bundle
from plantmodels.ood.embeddings import Embedder, LeafEmbeddings, NonPlantEmbeddings
from plantmodels.ood.moments import RunningMoments
from plantmodels.ood.select import check_image_count, select_detector
from plantmodels.serve.models import SpeciesModel, run_packed_heads
from plantmodels.serve.session import SESSION_OPTIONS, count_cores, open_session

MAX_KEPT_LEAVES: Final = 20_000
MAX_NON_PLANTS: Final = 10_000
"""Bound the embeddings that are held in memory, 3 KB each; the moments of any more leaves are streamed."""

SEARCH_IMAGES: Final = 128
"""Training leaves on which INT8 candidates are judged; the first few also hold the graph to PyTorch."""

_COMPARED_IMAGES: Final = 4
_LIBRARIES: Final = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "scipy", "pillow")


@dataclass(frozen=True)
class ExportSummary:
    """What an export made.

    Attributes:
        bundle: the folder.
        metadata: as written.
        sizes: file name to bytes, for every ONNX file.
        seconds: step to wall-clock time.
        choice: which products are INT8, and what was tried.
        unreadable: training and non-plant images that were skipped.
    """

    bundle: Path
    metadata: Metadata
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]
    choice: Choice
    unreadable: tuple[UnreadableImage, ...]

    def describe(self) -> str:
        """Return the folder, file sizes, INT8 candidates and skipped images as text for a terminal."""
        lines = describe_sizes(self.sizes)
        lines += self.choice.describe()
        lines += [f"skipped {image.path}: {image.reason}" for image in self.unreadable]
        return "\n".join([f"wrote {self.bundle}", *lines])


@dataclass(frozen=True)
class _Inputs:
    """Everything an export reads, listed and checked before the long work starts."""

    checkpoint: Checkpoint
    network: HierarchicalNetwork
    leaves: LeafSet
    rest: LeafSet
    kept: LeafSet
    non_plants: NonPlantSet | None


def export_bundle(
    checkpoint: Path, data: Path, out: Path, *, non_plants: Path | None = None, seed: int = DEFAULT_SEED
) -> ExportSummary:
    """Exports a checkpoint to a bundle, fitting the detector on the training leaves.

    Args:
        checkpoint: file of contract 1.
        data: leaf folders or manifest of contract 2; only the split "train" is read.
        out: the bundle's folder; an older bundle there is replaced when the new one is complete.
        non_plants: folder of images of no plant; its selection half chooses the detector and its threshold.
        seed: of the folds in which detectors are fitted and judged.

    Raises:
        CheckpointError, DataError, DetectorError: nothing was written.
        ExportError: the same; among others, another process is writing there, which is found at once.
    """
    clock = _Clock()
    with lock_bundle(out), staged_bundle(out) as folder:
        with clock.step("read"):
            inputs = _read_inputs(checkpoint, data, non_plants, seed)
        labelled, unreadable = _read_labelled(inputs)
        models, choice = _write_models(folder, inputs, labelled, clock)
        with clock.step("digest data"):
            metadata = _describe(inputs, models, seed)
        with clock.measure("embed"):
            embedded = _embed(folder, inputs, metadata)
        unreadable = tuple(dict.fromkeys([*unreadable, *embedded.unreadable]))  # a leaf may be read twice
        with clock.measure("select detector"):
            selection = select_detector(embedded.plants, embedded.others, further_moments=embedded.rest, seed=seed)
        write_detector(folder / DETECTOR_FILE, selection.detector)
        heads = open_session(folder / PACKED_HEADS_FILE, options=metadata.session_options, threads=1)
        temperatures = fit_temperatures(embedded.plants.outputs, embedded.samples, partial(run_packed_heads, heads))
        found = {
            "unreadable_images": _describe_unreadable(inputs, unreadable),
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
    return ExportSummary(out, metadata, dict(sorted(sizes.items())), clock.seconds, choice, unreadable)


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure a step that shows its progress itself."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step and show its progress."""
        with self.measure(name), log_step(name):
            yield


def _read_inputs(checkpoint_path: Path, data: Path, non_plants: Path | None, seed: int) -> _Inputs:
    checkpoint = read_checkpoint(checkpoint_path)
    leaves = read_leaves(data, "train", checkpoint.spec.taxonomy)
    rest, kept = split_by_name(leaves, 1.0, MAX_KEPT_LEAVES, seed)
    check_image_count(len(kept.samples))
    others = None if non_plants is None else read_non_plants(non_plants)
    return _Inputs(checkpoint, load_network(checkpoint), leaves, rest, kept, others)


def _write_models(
    folder: Path, inputs: _Inputs, leaves: LabelledImages, clock: _Clock
) -> tuple[dict[str, dict[str, Any]], Choice]:
    """Writes every ONNX file and returns what the metadata says of each."""
    reduce_range = not describe_cpu().has_int8_dot_product
    with clock.step("export species"):
        graph = export_species(inputs.network, leaves.pixels[:_COMPARED_IMAGES])
    with clock.step("store FP16"):
        onnx.save(store_weights_fp16(graph.model), folder / SPECIES_FILES["fp16"])
    with clock.step("quantize INT8"):
        choice = choose_int8(graph.model, leaves, reduce_range=reduce_range)
        onnx.save(choice.model, folder / SPECIES_FILES["int8"])
    stored = {"method": "weights stored in float16, computed in float32", "graph": graph.form}
    recipe = {
        "method": "dynamic",
        "graph": graph.form,
        "per_channel": True,
        "weights": "int8",
        "activations": "uint8",
        "reduce_range": reduce_range,
        "products": choice.products,
        "kept_float": list(choice.kept_float),
        "tried": [asdict(trial) for trial in choice.trials],
        "tried_on": {"images": len(leaves.pixels), "max_drop": MAX_DROP},
    }
    models: dict[str, dict[str, Any]] = {
        SPECIES_FILES["fp16"]: {"precision": "fp16", "rows_per_run": None, "recipe": stored},
        SPECIES_FILES["int8"]: {"precision": "int8", "rows_per_run": 1, "recipe": recipe},
    }
    with clock.step("disease heads"):
        models |= write_heads(folder, inputs.checkpoint)
    return {name: {**_describe_interface(folder / name), **entry} for name, entry in models.items()}, choice


def _read_labelled(inputs: _Inputs) -> tuple[LabelledImages, tuple[UnreadableImage, ...]]:
    """Decodes a few training leaves of every class; returns them, and the files that were skipped."""
    samples = pick_each_class(inputs.kept.samples, SEARCH_IMAGES, key=class_of)
    stream = ImageStream(
        [sample.path for sample in samples],
        inputs.checkpoint.spec.preprocessing,
        set_size=len(inputs.leaves.samples),
    )
    read = list(stream.batches(SEARCH_IMAGES))
    if not read:
        raise DataError(f"{inputs.leaves.root}: none of {len(samples)} training leaves can be read")
    ((positions, pixels),) = read
    species, diseases = np.array([class_of(samples[i]) for i in positions], np.int64).T
    heads = {i: (weight.numpy(), bias.numpy()) for i, (weight, bias) in inputs.checkpoint.disease_heads.items()}
    return LabelledImages(pixels, species, diseases, heads), stream.unreadable


def write_heads(folder: Path, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Quantizes and writes every disease head, single and packed.

    Args:
        folder: of the bundle; must not hold heads yet.
        checkpoint: whose heads.

    Returns:
        File name to what the metadata says of it, interface excepted.
    """
    taxonomy = checkpoint.spec.taxonomy
    heads: dict[int, Int8Head] = {
        i: quantize_head(weight.numpy(), bias.numpy()) for i, (weight, bias) in checkpoint.disease_heads.items()
    }
    (folder / HEADS_FOLDER).mkdir()
    for index, head in heads.items():
        onnx.save(int8_head_model(head), folder / head_file(taxonomy.slugs[index]))
    packed = packed_heads_model(heads, species=len(taxonomy.species), dim=checkpoint.spec.embedding_dim)
    onnx.save(packed, folder / PACKED_HEADS_FILE)
    recipe = {"method": "weight only", "weights": "int8", "per_channel": True}
    names = [PACKED_HEADS_FILE, *(head_file(taxonomy.slugs[index]) for index in heads)]
    return {name: {"precision": "int8", "rows_per_run": None, "recipe": recipe} for name in names}


def _describe_interface(path: Path) -> dict[str, Any]:
    model = onnx.load(path)

    def describe(values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]

    opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return {"inputs": describe(model.graph.input), "outputs": describe(model.graph.output), "opset": opset}


def _describe(inputs: _Inputs, models: Mapping[str, Mapping[str, Any]], seed: int) -> Metadata:
    spec, leaves, non_plants = inputs.checkpoint.spec, inputs.leaves, inputs.non_plants
    provenance: dict[str, Any] = {
        "checkpoint_sha256": inputs.checkpoint.sha256,
        "backbone": spec.backbone,
        "backbone_kwargs": dict(spec.backbone_kwargs),
        "git_commit": read_git_commit(),
        "data_sha256": digest_leaves(leaves),
        "non_plants_sha256": None if non_plants is None else digest_images(non_plants.root, non_plants.paths),
        "seed": seed,
    }
    cpu = describe_cpu()
    return Metadata(
        taxonomy=spec.taxonomy,
        preprocessing=spec.preprocessing,
        embedding_dim=spec.embedding_dim,
        session_options=SESSION_OPTIONS,
        models=models,
        provenance=provenance,
        versions={
            "plantmodels": __version__,
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        cpu={"architecture": cpu.architecture, "model": cpu.model, "features": list(cpu.features)},
    )


def _describe_unreadable(inputs: _Inputs, unreadable: Iterable[UnreadableImage]) -> list[dict[str, str]]:
    """Skipped training leaves and non-plants by their names, for the metadata and, through it, the gate report."""
    entries = []
    for image in unreadable:
        source, root = "train", inputs.leaves.root
        if inputs.non_plants is not None and image.path in inputs.non_plants.paths:
            source, root = "non-plants", inputs.non_plants.root
        entries.append({"source": source, "name": name_in_report(root, image.path), "reason": image.reason})
    return entries


def read_git_commit() -> str | None:
    """Commit of this code, with "-dirty" when tracked files differ; None outside a checkout of it."""
    package = Path(__file__).parent
    commands = (
        ["ls-files", "--error-unmatch", __file__],
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "-uno"],
    )
    answers = []
    for command in commands:
        try:
            run = subprocess.run(["git", *command], cwd=package, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        answers.append(run.stdout.strip())
    return answers[1] + ("-dirty" if answers[2] else "")


@dataclass(frozen=True)
class _Embedded:
    """What the INT8 model, which is what is served, says of the images that detector and temperatures rest on.

    `samples` are the leaves of `plants`; `rest` are moments of further leaves, by the same classes; `unreadable` are
    the leaves and non-plants that were skipped.
    """

    plants: LeafEmbeddings
    samples: Sequence[LeafSample]
    rest: RunningMoments | None
    others: NonPlantEmbeddings | None
    unreadable: tuple[UnreadableImage, ...]


def _embed(folder: Path, inputs: _Inputs, metadata: Metadata) -> _Embedded:
    name, options, rows_per_run = SPECIES_FILES["int8"], metadata.session_options, metadata.rows_per_run("int8")
    session = open_session(folder / name, options=options, threads=1, rows_per_run=rows_per_run)
    model = SpeciesModel(session, rows_per_run=rows_per_run, workers=count_cores())
    embedder = Embedder(model, metadata.preprocessing, set_size=len(inputs.leaves.samples))
    number = {label: i for i, label in enumerate(sorted({class_of(sample) for sample in inputs.leaves.samples}))}

    def classes_of(samples: Sequence[LeafSample]) -> NDArray[np.int64]:
        return np.array([number[class_of(sample)] for sample in samples], np.int64)

    rest = None
    if inputs.rest.samples:
        rest = RunningMoments(len(number), metadata.embedding_dim)
        with threadpool_limits(1):  # several BLAS threads make other bits
            for rows, part in embedder.stream(inputs.rest.paths, "embed further leaves"):
                rest.update(classes_of([inputs.rest.samples[row] for row in rows]), part.features)
    positions, embedded = embedder.collect(inputs.kept.paths, "embed leaves")
    samples = [inputs.kept.samples[position] for position in positions]
    species = np.array([sample.species_index for sample in samples], np.int64)
    plants = LeafEmbeddings(embedded, classes_of(samples), species)
    non_plants, skipped = _embed_non_plants(inputs, model, metadata)
    return _Embedded(plants, samples, rest, non_plants, (*embedder.unreadable, *skipped))


def _embed_non_plants(
    inputs: _Inputs, model: SpeciesModel, metadata: Metadata
) -> tuple[NonPlantEmbeddings | None, tuple[UnreadableImage, ...]]:
    if inputs.non_plants is None:
        return None, ()
    half = inputs.non_plants.half("selection")
    paths = thin_out(half.paths, MAX_NON_PLANTS, key=half.source_of)
    if not paths:
        return None, ()
    embedder = Embedder(model, metadata.preprocessing, set_size=len(inputs.non_plants.paths))
    positions, embedded = embedder.collect(paths, "embed non-plants")
    sources = np.array([half.source_of(path) for path in paths])[positions]
    return NonPlantEmbeddings(embedded, sources), embedder.unreadable
