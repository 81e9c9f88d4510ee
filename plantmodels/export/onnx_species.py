"""Exports the species model to ONNX, and compares its outputs with PyTorch's.

For Swin backbones the graph is built directly (`onnx_swin`), because a CPU runs it twice as fast. All other backbones
are traced by PyTorch's exporter.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import torch

from plantmodels.arrays import Inputs
from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.errors import ExportError
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_swin import build_swin, is_supported
from plantmodels.foreign_text import quote_error
from plantmodels.serve.session import open_session

OPSET: Final = 20
"""Opset of traced graphs: the first with a Gelu operator; before, each GELU becomes five operators."""

GraphKind = Literal["swin", "traced"]
"""How a graph was made."""

TOLERANCE: Final[dict[GraphKind, float]] = {"swin": 1e-5, "traced": 1e-3}
"""Largest difference from PyTorch, relative to the largest output if that is above 1. A traced graph comes from
PyTorch's own exporter; its limit only catches broken graphs."""

_TRACE_BATCH: Final = 2
"""The exporter would take a batch of one for a constant."""

_NOISE_IMAGES: Final = 3

_OPERATOR: Final = re.compile(r"(?:target=torch\.ops\.|OpOverload\(op=')([\w.]+)")
_HELP: Final = re.compile(r"\n\s*\n|\n(?=While executing|Original traceback|Next steps)")
_MAX_CAUSES: Final = 8
"""Causes of an exporter's error that are looked at; the last one is the reason."""

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedSpecies:
    """A species model in float32.

    Attributes:
        model: `input` (batch, 3, P, P) → `species_logits` (batch, S), `embedding` (batch, D).
        kind: how the graph was made.
        difference: largest difference of any output from PyTorch's, relative to the largest output if that is above 1.
    """

    model: onnx.ModelProto
    kind: GraphKind
    difference: float


def export_species(network: HierarchicalNetwork, images: Inputs) -> ExportedSpecies:
    """Export backbone, projection and species head in float32, and compare the outputs with PyTorch's.

    If the directly built graph of a Swin gives other outputs than PyTorch, the network is traced, with a warning.

    Args:
        network: network in evaluation mode.
        images: (N, 3, P, P) real images. With trained weights, some errors do not show on random images.

    Raises:
        ExportError: PyTorch cannot export this backbone, or the graph gives other outputs.
    """
    side = network.spec.preprocessing.image_size
    noise = np.random.default_rng(0).standard_normal((_NOISE_IMAGES, 3, side, side)).astype(np.float32)
    kinds: tuple[GraphKind, ...] = ("swin", "traced") if is_supported(network) else ("traced",)
    for kind in kinds:
        model = build_swin(network) if kind == "swin" else _trace(network)
        difference = max(_measure_difference(model, network, batch) for batch in (images, noise))
        if difference <= TOLERANCE[kind]:
            return ExportedSpecies(model, kind, difference)
        _LOGGER.warning(
            "the %s graph differs from PyTorch by %.2g, at most %.0e is accepted", kind, difference, TOLERANCE[kind]
        )
    raise ExportError(
        f"the ONNX graph of {network.spec.backbone!r} differs from PyTorch by {difference:.2g} of its largest output, "
        f"at most {TOLERANCE[kind]:.0e} is accepted"
    )


def _measure_difference(model: onnx.ModelProto, network: HierarchicalNetwork, images: Inputs) -> float:
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
        with _silence_exporter():
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
        raise ExportError(
            f"PyTorch {torch.__version__} cannot export backbone {network.spec.backbone!r} to ONNX: "
            f"{_describe_failure(error)}"
        ) from error
    if program is None:
        raise ExportError(f"PyTorch {torch.__version__} gave no ONNX program for {network.spec.backbone!r}")
    return _strip_traces(program.model_proto)


def _describe_failure(error: BaseException) -> str:
    """Return the operator that the exporter cannot translate and its reason, without the help for PyTorch's authors."""
    messages = [str(error)]
    while (cause := error.__cause__ or error.__context__) is not None and len(messages) < _MAX_CAUSES:
        error = cause
        messages.append(str(error))
    operator = next((found[1] for text in messages if (found := _OPERATOR.search(text))), "")
    reasons = [_HELP.split(text, maxsplit=1)[0].strip() for text in reversed(messages)]
    reason = quote_error(next(filter(None, reasons), type(error).__name__))
    return f"operator {operator}: {reason}" if operator else f"{type(error).__name__}: {reason}"


def _strip_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove source positions and stack traces: they contain paths of this machine, and change the bytes."""
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
def _silence_exporter() -> Iterator[None]:
    """Keep the exporter's deprecation warnings and progress lines off the terminal."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
