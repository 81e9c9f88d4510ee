"""The species model as ONNX, held against PyTorch before anyone sees it.

Swin has a form of its own (`swin`), which a CPU runs twice as fast; whatever it does not know, and any other timm
backbone, is traced by PyTorch's exporter.

>>> graph = export_species(network, images)  # doctest: +SKIP
>>> graph.form, graph.difference             # doctest: +SKIP
('swin', 2.3e-06)
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.errors import ExportError
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_swin import build_swin, is_supported
from plantmodels.serve.session import open_session

OPSET: Final = 20
"""Of traced graphs: the first with a Gelu operator, below it every GELU is five operators."""

Form = Literal["swin", "traced"]

TOLERANCE: Final[dict[Form, float]] = {"swin": 1e-5, "traced": 1e-3}
"""Largest difference from PyTorch, of outputs no larger than one; of larger ones, relative to the largest. A traced
graph is PyTorch's own, so that only a broken one is beyond its bound."""

_TRACE_BATCH: Final = 2
"""A batch of one would be taken for a constant."""

_NOISE_IMAGES: Final = 3

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpeciesGraph:
    """A float32 species model.

    Attributes:
        model: `input` (batch, 3, S, S) → `species_logits` (batch, species), `embedding` (batch, D).
        form: "swin" or "traced".
        difference: largest absolute difference of any output from PyTorch's, relative to the largest output where
            that is above one.
    """

    model: onnx.ModelProto
    form: Form
    difference: float


def export_species(network: HierarchicalNetwork, images: NDArray[np.float32]) -> SpeciesGraph:
    """Exports backbone, projection and species head in float32, and compares the answers with PyTorch's.

    A Swin whose own form does not give PyTorch's answers is traced instead, with a warning.

    Args:
        network: in evaluation mode.
        images: (N, 3, S, S) real ones, normalised: random images alone can hide what trained weights show.

    Raises:
        ExportError: PyTorch cannot export this backbone, or the graph does not give its answers.
    """
    side = network.spec.preprocessing.image_size
    noise = np.random.default_rng(0).standard_normal((_NOISE_IMAGES, 3, side, side)).astype(np.float32)
    forms: tuple[Form, ...] = ("swin", "traced") if is_supported(network) else ("traced",)
    for form in forms:
        model = build_swin(network) if form == "swin" else _trace(network)
        difference = max(_measure_difference(model, network, batch) for batch in (images, noise))
        if difference <= TOLERANCE[form]:
            return SpeciesGraph(model, form, difference)
        _LOGGER.warning("the %s graph differs from PyTorch by %.2g, at most %.0e", form, difference, TOLERANCE[form])
    raise ExportError(
        f"the ONNX graph of {network.spec.backbone!r} differs from PyTorch by {difference:.2g} of its largest output, "
        f"at most {TOLERANCE[form]:.0e} is accepted"
    )


def _measure_difference(model: onnx.ModelProto, network: HierarchicalNetwork, images: NDArray[np.float32]) -> float:
    session = open_session(Path("species.onnx"), model.SerializeToString())
    outputs = session.run([SPECIES_OUTPUT, EMBEDDING], {IMAGE_INPUT: images})
    with torch.inference_mode():
        expected = [output.numpy() for output in network(torch.from_numpy(images))]
    differences = [
        np.abs(output - reference).max() / max(1.0, np.abs(reference).max())
        for output, reference in zip(outputs, expected, strict=True)
    ]
    return float(np.nan_to_num(max(differences), nan=np.inf))


def _trace(network: HierarchicalNetwork) -> onnx.ModelProto:
    side = network.spec.preprocessing.image_size
    example = torch.zeros(_TRACE_BATCH, 3, side, side)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[IMAGE_INPUT],
                output_names=[SPECIES_OUTPUT, EMBEDDING],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"PyTorch {torch.__version__} cannot export backbone {network.spec.backbone!r} "
            f"({type(error).__name__}: {reason[0] if reason else ''})"
        ) from error
    if program is None:
        raise ExportError(f"PyTorch {torch.__version__} gave no ONNX program for {network.spec.backbone!r}")
    return _without_traces(program.model_proto)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops source positions and stack traces: they hold paths of this machine and change the bytes."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's chatter (deprecations inside PyTorch, progress lines) off the terminal."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
