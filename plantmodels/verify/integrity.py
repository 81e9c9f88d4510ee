"""Whether a bundle is whole: every ONNX file loads, and every head is the right head.

A head's weights are read back by asking it for the unit vectors, so two heads of one shape that changed
places, or classes in another order, are found however alike their answers are.

>>> find_load_failures(bundle, names, metadata.session_options)  # doctest: +SKIP
{}
>>> find_head_problems(bundle, metadata, checkpoint)  # doctest: +SKIP
()
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
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
from plantmodels.errors import BundleError, is_out_of_memory
from plantmodels.serve.session import RUN_ERRORS, open_session

if TYPE_CHECKING:
    from plantmodels.export.checkpoint import Checkpoint

INT8_ROUNDING: Final = 0.01
"""What rounding may move a weight by, as a share of its class's largest: half a step is 1/254 in eight bits and
1/126 in seven."""

_FLOAT_RTOL: Final = 1e-5
"""Of the largest value: float32 sums in another order."""

_PROBES: Final = 8
"""Random embeddings of zeros and ones: the only ones that stay exact where ONNX Runtime fuses an INT8 head to
an operator that quantizes activations too (DequantizeLinear and Gemm to MatMulNBits, off by 0.02)."""

_SEED: Final = 20_240


def find_load_failures(bundle: Path, names: Iterable[str], options: Mapping[str, str]) -> dict[str, str]:
    """Checks ONNX files with onnx's checker and opens each in ONNX Runtime.

    Args:
        bundle: the folder.
        names: the files.
        options: session configuration entries, from the metadata.

    Returns:
        Name to reason, of the files that fail.

    Raises:
        MemoryError: it ran out, so that nothing is known.
    """
    import onnx  # a consumer, who asks for heads alone, has none

    failures = {}
    for name in names:
        try:
            onnx.checker.check_model(str(bundle / name))
            open_session(bundle / name, options=options, threads=1)
        except (onnx.checker.ValidationError, BundleError, RuntimeError, ValueError) as error:
            raise_without_memory(error)
            failures[name] = describe_error(error, bundle)
    return failures


def raise_without_memory(error: Exception) -> None:
    """Raises an error that says nothing of the bundle, as memory ran out."""
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error


def describe_error(error: Exception, bundle: Path) -> str:
    """One line without the bundle's own path, which is another on every machine."""
    text = " ".join(str(error).replace(f"{bundle}{os.sep}", "").split())
    return text[:300] or type(error).__name__


def find_head_problems(bundle: Path, metadata: Metadata, checkpoint: "Checkpoint | None") -> tuple[str, ...]:
    """Compares heads, single and packed, with the taxonomy and with the checkpoint's weights.

    Args:
        bundle: the folder.
        metadata: its metadata; reading it has already held the heads list against the taxonomy.
        checkpoint: what the bundle was made from. Without it the single heads are held against the packed
            ones only.

    Returns:
        One line a problem; none when every species with diseases has its own head, in the right order.
    """
    problems = list(_find_order_problems(metadata, checkpoint))
    packed = _open(bundle, PACKED_HEADS_FILE, metadata, problems)
    for index in metadata.taxonomy.species_with_head:
        name = head_file(metadata.taxonomy.slugs[index])
        session = _open(bundle, name, metadata, problems)
        if session is None:
            continue
        shape_problem = _find_shape_problem(session, metadata, index)
        if shape_problem:
            problems.append(f"{name}: {shape_problem}")
            continue
        try:
            if checkpoint is not None:
                problems += _compare_with_checkpoint(name, session, metadata, checkpoint, index)
            if packed is not None:
                problems += _compare_with_packed(name, session, packed, metadata, index)
        except RUN_ERRORS as error:
            problems.append(f"{name}: does not run ({' '.join(str(error).split())[:300]})")
    return tuple(problems)


def _find_order_problems(metadata: Metadata, checkpoint: "Checkpoint | None") -> Iterator[str]:
    if checkpoint is None or checkpoint.spec.taxonomy.digest == metadata.taxonomy.digest:
        return
    yield (
        f"{METADATA_FILE}: class-order digest {metadata.taxonomy.digest} is not the checkpoint's "
        f"{checkpoint.spec.taxonomy.digest}: names or order differ"
    )


def _open(bundle: Path, name: str, metadata: Metadata, problems: list[str]) -> ort.InferenceSession | None:
    if not (bundle / name).is_file():
        problems.append(f"{name}: missing")
        return None
    try:
        return open_session(bundle / name, options=metadata.session_options, threads=1)
    except BundleError as error:
        raise_without_memory(error)
        problems.append(describe_error(error, bundle))
        return None


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
    """Yields what is wrong with the weights of one head, which the checkpoint knows by its species' name."""
    species = metadata.taxonomy.species[species_index]
    taxonomy = checkpoint.spec.taxonomy
    index = taxonomy.species.index(species) if species in taxonomy.species else -1
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
    """Weight (N, D) and bias (N,) of a linear graph: its answers to the unit vectors and to zero."""
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
    """Yields a problem when the packed graph's row of a species answers otherwise than its own file."""
    classes = len(metadata.taxonomy.diseases_of(species_index))
    probes = np.random.default_rng(_SEED).integers(0, 2, (_PROBES, metadata.embedding_dim)).astype(np.float32)
    index = np.full(_PROBES, species_index, np.int64)
    single = session.run([DISEASE_OUTPUT], {EMBEDDING: probes})[0]
    try:
        together = packed.run([DISEASE_OUTPUT], {EMBEDDING: probes, SPECIES_INDEX_INPUT: index})[0]
    except RUN_ERRORS as error:
        raise_without_memory(error)
        reason = " ".join(str(error).split())[:300]
        yield f"{PACKED_HEADS_FILE}: does not run for species {species_index} ({reason})"
        return
    tolerance = 10 * _FLOAT_RTOL * max(1.0, float(np.abs(single).max()))
    same = together[:, :classes].shape == single.shape == (_PROBES, classes)
    same = same and np.allclose(together[:, :classes], single, rtol=0, atol=tolerance)
    if not same or not np.isneginf(together[:, classes:]).all():
        species = metadata.taxonomy.species[species_index]
        yield f"{PACKED_HEADS_FILE}: its row of {species!r} is not the head in {name}"
