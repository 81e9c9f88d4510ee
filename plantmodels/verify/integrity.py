"""Checks that every ONNX file of a bundle loads, and that every disease head is there and is the right one.

A head's weights are read back by running it on the unit vectors. So two exchanged heads of the same shape, or
classes in another order, are found even if the answers are alike.

>>> from plantmodels.bundle.metadata import read_metadata
>>> from plantmodels.verify.opening import open_heads
>>> metadata = read_metadata(bundle)
>>> find_head_problems(open_heads(bundle, metadata), metadata, checkpoint=None)
()
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from plantmodels.bundle.layout import (
    DISEASE_OUTPUT,
    EMBEDDING,
    METADATA_FILE,
    PACKED_HEADS_FILE,
    SPECIES_INDEX_INPUT,
    head_file,
)
from plantmodels.bundle.metadata import Metadata
from plantmodels.data.progress import track
from plantmodels.foreign_text import quote_error
from plantmodels.serve.session import RUN_ERRORS
from plantmodels.verify.opening import OpenedModels, raise_if_out_of_memory

if TYPE_CHECKING:
    from plantmodels.checkpoint.reading import Checkpoint

INT8_ROUNDING: Final = 0.01
"""Largest change of a weight by rounding, relative to the largest weight of its class: half a step is 1/254 with eight
bits and 1/126 with seven."""

_FLOAT_RTOL: Final = 1e-5
"""Tolerance for float32 sums in another order, relative to the largest value."""

_PROBES: Final = 8
"""Random embeddings of zeros and ones on which single and packed heads are compared. Only such embeddings stay exact
where ONNX Runtime fuses an INT8 head into an operator that quantizes activations too (DequantizeLinear and Gemm into
MatMulNBits, off by 0.02)."""

_SEED: Final = 20_240


def find_load_failures(contents: Mapping[str, bytes], models: OpenedModels) -> dict[str, str]:
    """Return the ONNX files that onnx's checker refuses or that do not open in ONNX Runtime, each with the reason.

    Args:
        contents: file name to content.
        models: what `open_models` made of them.

    Raises:
        MemoryError: memory ran out, which says nothing about the files.
    """
    import onnx  # the check of a version, which needs the heads alone, does without it

    failures = {}
    for name in track(tuple(contents), "check models", unit="file"):
        try:
            onnx.checker.check_model(contents[name])
        except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
            raise_if_out_of_memory(error)
            failures[name] = quote_error(error)
        else:
            if name in models.errors:
                failures[name] = models.errors[name]
    return failures


def find_head_problems(models: OpenedModels, metadata: Metadata, checkpoint: "Checkpoint | None") -> tuple[str, ...]:
    """Compare the disease heads, single and packed, with the taxonomy and with the checkpoint's weights.

    Args:
        models: the opened ONNX files of the bundle.
        metadata: its metadata, which was compared with the list of heads when it was read.
        checkpoint: the checkpoint that the bundle was made from. Without it, the single heads are only compared with
            the packed heads.

    Returns:
        One line for each problem; none if every species with diseases has its own head, in the right order.

    Raises:
        MemoryError: memory ran out, which says nothing about the heads.
    """
    problems = list(_find_order_problems(metadata, checkpoint))
    if PACKED_HEADS_FILE not in models.sessions:
        problems.append(models.errors.get(PACKED_HEADS_FILE, f"{PACKED_HEADS_FILE}: missing"))
    for index in track(metadata.taxonomy.species_with_head, "compare heads", unit="head"):
        name = head_file(metadata.taxonomy.slugs[index])
        if name not in models.sessions:
            problems.append(models.errors.get(name, f"{name}: missing"))
            continue
        try:
            problems += _find_problems_of_head(name, models, metadata, checkpoint, index)
        except RUN_ERRORS as error:
            raise_if_out_of_memory(error)
            problems.append(f"{name}: does not run ({quote_error(error)})")
    return tuple(problems)


def _find_problems_of_head(
    name: str, models: OpenedModels, metadata: Metadata, checkpoint: "Checkpoint | None", species_index: int
) -> Iterator[str]:
    session = models.sessions[name]
    shape_problem = _find_shape_problem(session, metadata, species_index)
    if shape_problem:
        yield f"{name}: {shape_problem}"
        return
    if checkpoint is not None:
        yield from _compare_with_checkpoint(name, session, metadata, checkpoint, species_index)
    if PACKED_HEADS_FILE in models.sessions:
        packed = models.sessions[PACKED_HEADS_FILE]
        yield from _compare_with_packed(name, session, packed, metadata, species_index)


def _find_order_problems(metadata: Metadata, checkpoint: "Checkpoint | None") -> Iterator[str]:
    if checkpoint is None or checkpoint.spec.taxonomy.digest == metadata.taxonomy.digest:
        return
    yield (
        f"{METADATA_FILE}: class-order digest {metadata.taxonomy.digest} is not the checkpoint's "
        f"{checkpoint.spec.taxonomy.digest}: names or order differ"
    )


def _find_shape_problem(session: ort.InferenceSession, metadata: Metadata, species_index: int) -> str:
    expected = (
        [(EMBEDDING, metadata.embedding_dim)],
        [(DISEASE_OUTPUT, len(metadata.taxonomy.diseases_of(species_index)))],
    )
    found = tuple(
        [(value.name, value.shape[-1] if value.shape else None) for value in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    if found == expected:
        return ""
    return (
        f"maps {found[0]} to {found[1]}, but species {metadata.taxonomy.species[species_index]!r} needs "
        f"{expected[0]} to {expected[1]}"
    )


def _compare_with_checkpoint(
    name: str, session: ort.InferenceSession, metadata: Metadata, checkpoint: "Checkpoint", species_index: int
) -> Iterator[str]:
    """Yield a problem if the weights of a head differ from the checkpoint's head for the same species name."""
    species = metadata.taxonomy.species[species_index]
    index = checkpoint.spec.taxonomy.places.get(species, -1)
    if index not in checkpoint.disease_heads:
        yield f"{name}: the checkpoint has no head for species {species!r}"
        return
    weight, bias = (tensor.numpy() for tensor in checkpoint.disease_heads[index])
    found_weight, found_bias = _read_back(session, metadata.embedding_dim)
    if found_weight.shape != weight.shape:
        yield f"{name}: its weights are {found_weight.shape}, the checkpoint's of {species!r} {weight.shape}"
        return
    largest = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.abs(bias)[:, None])
    step = INT8_ROUNDING * np.abs(weight).max(axis=1, keepdims=True)
    off = ~(np.abs(found_weight - weight) <= step + _FLOAT_RTOL * largest)
    bias_off = ~(np.abs(found_bias - bias) <= _FLOAT_RTOL * largest[:, 0])
    if off.any() or bias_off.any():
        yield (
            f"{name}: not the checkpoint's head of {species!r}: {int(off.sum()):,} of {off.size:,} weights "
            f"and {int(bias_off.sum())} of {len(bias)} biases differ by more than INT8 rounding"
        )


def _read_back(session: ort.InferenceSession, dim: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight (C, D) and bias (C,) of a linear graph, from its answers to the unit vectors and to zero."""
    probes = np.concatenate([np.zeros((1, dim), np.float32), np.eye(dim, dtype=np.float32)])
    logits = session.run([DISEASE_OUTPUT], {EMBEDDING: probes})[0].astype(np.float64)
    return (logits[1:] - logits[0]).T, logits[0]


def _compare_with_packed(
    name: str,
    session: ort.InferenceSession,
    packed: ort.InferenceSession,
    metadata: Metadata,
    species_index: int,
) -> Iterator[str]:
    """Yield a problem if the packed heads answer for a species otherwise than its single head does."""
    classes = len(metadata.taxonomy.diseases_of(species_index))
    probes = np.random.default_rng(_SEED).integers(0, 2, (_PROBES, metadata.embedding_dim)).astype(np.float32)
    index = np.full(_PROBES, species_index, np.int64)
    single = session.run([DISEASE_OUTPUT], {EMBEDDING: probes})[0]
    try:
        together = packed.run([DISEASE_OUTPUT], {EMBEDDING: probes, SPECIES_INDEX_INPUT: index})[0]
    except RUN_ERRORS as error:
        raise_if_out_of_memory(error)
        yield f"{PACKED_HEADS_FILE}: does not run for species {species_index} ({quote_error(error)})"
        return
    tolerance = 10 * _FLOAT_RTOL * max(1.0, float(np.abs(single).max()))
    same = together[:, :classes].shape == single.shape == (_PROBES, classes)
    same = same and np.allclose(together[:, :classes], single, rtol=0, atol=tolerance)
    if not same or not np.isneginf(together[:, classes:]).all():
        species = metadata.taxonomy.species[species_index]
        yield f"{PACKED_HEADS_FILE}: its row of {species!r} is not the head in {name}"
