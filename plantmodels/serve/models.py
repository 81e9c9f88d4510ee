"""The two ONNX models that answer for a bundle: the species model and the packed disease heads.

`check_models` makes sure that both fit the bundle's metadata. A session of a wrong file would otherwise give names to
the wrong logits.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from plantmodels.arrays import Embeddings, Inputs, Labels, Logits
from plantmodels.bundle.layout import (
    DISEASE_OUTPUT,
    EMBEDDING,
    IMAGE_INPUT,
    METADATA_FILE,
    PACKED_HEADS_FILE,
    SPECIES_FILES,
    SPECIES_INDEX_INPUT,
    SPECIES_OUTPUT,
    Precision,
)
from plantmodels.bundle.metadata import Metadata
from plantmodels.errors import BundleError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.cores import count_cores
from plantmodels.serve.denormals import denormals_as_zero
from plantmodels.serve.lanes import Lanes
from plantmodels.serve.session import RUN_ERRORS, release_free_memory

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_SPECIES_AT_ONCE = 32
"""Heads that `check_models` runs at once; bounds memory for a taxonomy of any size."""


class SpeciesModel:
    """The species ONNX model: computes species logits and embeddings of images."""

    def __init__(self, session: ort.InferenceSession, *, rows_per_run: int | None, workers: int = 1) -> None:
        """Wrap a session.

        Args:
            session: an open session of a species file.
            rows_per_run: the largest number of images in one run, from the metadata; None for any number. A model
                that quantizes activations over the whole batch (INT8) runs one image at a time. Its answers then
                never depend on the other images of a batch, and on a CPU it is also faster.
            workers: number of runs at the same time. For bulk work, use a session of one thread and one worker per
                core: this answers a fifth more images per second than one image on all cores, suffers less from
                other programs, and gives the same bits.
        """
        self.session = session
        self._rows_per_run = rows_per_run or (1 if workers > 1 else None)
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None
        self._lanes = Lanes(max(workers, count_cores()), release_free_memory)

    def run(self, inputs: Inputs) -> tuple[Logits, Embeddings]:
        """Return species logits (N, S) and embeddings (N, D), both float32.

        Args:
            inputs: (N, 3, P, P) float32, normalized; N is at least 1.
        """
        step = self._rows_per_run or len(inputs)
        parts = [inputs[i : i + step] for i in range(0, len(inputs), step)]
        runs = self.map(self._run_part, parts)
        return np.concatenate([run[0] for run in runs]), np.concatenate([run[1] for run in runs])

    def map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Return the result for each item, by the workers, and with no more at once over all callers than cores.

        Args:
            function: decodes an image, or does other work of one core; it must not call `map` or `run`.
            items: what it is called with.
        """

        def work(item: _Item) -> _Result:
            with self._lanes:
                return function(item)

        return list((self._pool.map if self._pool and len(items) > 1 else map)(work, items))

    def _run_part(self, inputs: Inputs) -> list[Logits]:
        with denormals_as_zero():
            outputs: list[Logits] = self.session.run([SPECIES_OUTPUT, EMBEDDING], {IMAGE_INPUT: inputs})
        return outputs


def run_packed_heads(session: ort.InferenceSession, embedding: Embeddings, species_index: Labels) -> Logits:
    """Return the disease logits of images of any species, from one run.

    Args:
        session: an open session of the packed heads.
        embedding: (N, D) float32, one row per image.
        species_index: (N,) int64, the species whose head answers for each row.

    Returns:
        (N, max diseases) float32, −inf at classes that a species lacks.
    """
    logits: Logits = session.run([DISEASE_OUTPUT], {EMBEDDING: embedding, SPECIES_INDEX_INPUT: species_index})[0]
    return logits


def check_models(
    metadata: Metadata, precision: Precision, species: ort.InferenceSession, heads: ort.InferenceSession
) -> None:
    """Refuse models that do not fit the metadata.

    Args:
        metadata: the bundle's metadata.
        precision: the precision of the species model.
        species: the species model's session.
        heads: the packed heads' session.

    Raises:
        BundleError: a model has other inputs or outputs than the metadata says, or a head has another number of
            classes than the taxonomy names.
    """
    size, dim = metadata.preprocessing.image_size, metadata.embedding_dim
    diseases = max(1, metadata.taxonomy.max_diseases)
    _check_interface(
        SPECIES_FILES[precision],
        species,
        {IMAGE_INPUT: f"float (batch, 3, {size}, {size})"},
        {SPECIES_OUTPUT: f"float (batch, {len(metadata.taxonomy.species)})", EMBEDDING: f"float (batch, {dim})"},
        one_row=metadata.rows_per_run(precision) == 1,
    )
    _check_interface(
        PACKED_HEADS_FILE,
        heads,
        {EMBEDDING: f"float (batch, {dim})", SPECIES_INDEX_INPUT: "int64 (batch)"},
        {DISEASE_OUTPUT: f"float (batch, {diseases})"},
    )
    _check_head_sizes(metadata, heads)


def _check_interface(
    file: str,
    session: ort.InferenceSession,
    inputs: dict[str, str],
    outputs: dict[str, str],
    *,
    one_row: bool = False,
) -> None:
    found = [
        {value.name: _describe_value(value, one_row) for value in values}
        for values in (session.get_inputs(), session.get_outputs())
    ]
    if found != [inputs, outputs]:
        raise BundleError(f"{file}: inputs and outputs are {found}, not {[inputs, outputs]}")


def _describe_value(value: ort.NodeArg, one_row: bool) -> str:
    """Return a model input's or output's element type and shape, such as "float (batch, 32)".

    A session that was opened for one row per run declares 1 in place of "batch".
    """
    sizes = [str(size) for size in value.shape]
    if sizes and (not isinstance(value.shape[0], int) or (one_row and value.shape[0] == 1)):
        sizes[0] = "batch"
    return f"{value.type.removeprefix('tensor(').removesuffix(')')} ({', '.join(sizes)})"


def _check_head_sizes(metadata: Metadata, heads: ort.InferenceSession) -> None:
    """Compare the number of finite logits of each species with the number of its diseases."""
    taxonomy = metadata.taxonomy
    for start in range(0, len(taxonomy.species), _SPECIES_AT_ONCE):
        indices = np.arange(start, min(start + _SPECIES_AT_ONCE, len(taxonomy.species)), dtype=np.int64)
        with name_failing_model(PACKED_HEADS_FILE):
            logits = run_packed_heads(heads, np.zeros((len(indices), metadata.embedding_dim), np.float32), indices)
        check_output_shape(PACKED_HEADS_FILE, DISEASE_OUTPUT, logits, len(indices), max(1, taxonomy.max_diseases))
        for index, row in zip(indices.tolist(), np.isfinite(logits), strict=True):
            names = taxonomy.diseases_of(index)
            if not np.array_equal(row, np.arange(len(row)) < len(names)):
                raise BundleError(
                    f"{PACKED_HEADS_FILE}: {int(row.sum())} classes of species {taxonomy.species[index]!r}, "
                    f"{METADATA_FILE} names {len(names)}"
                )


@contextmanager
def name_failing_model(file: str) -> Iterator[None]:
    """Turn an error that ONNX Runtime raises while a model runs into a `BundleError` that names the model's file."""
    try:
        yield
    except RUN_ERRORS as error:
        raise BundleError(f"{file}: does not run ({quote_error(error)})") from error


def check_output_shape(file: str, output: str, values: Logits, *shape: int) -> None:
    """Refuse an output whose shape is not the declared one: ONNX Runtime trusts a shape that it cannot infer.

    Raises:
        BundleError: the shape differs.
    """
    if values.shape != shape:
        raise BundleError(f"{file}: {output} has shape {values.shape}, not {shape} as it declares")
