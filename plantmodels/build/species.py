"""The species model as ONNX: PyTorch's exporter, traced once, for any timm backbone.

>>> model = export_species(network)  # doctest: +SKIP
"""

import contextlib
import io
import logging
import warnings
from typing import Final

import onnx
import torch

from plantmodels.build.network import HierarchicalNetwork
from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.errors import ExportError

OPSET: Final = 20
"""The first with a Gelu operator: below it every GELU is five operators."""

_TRACE_BATCH: Final = 2
"""A batch of one would be taken for a constant."""


def export_species(network: HierarchicalNetwork) -> onnx.ModelProto:
    """Exports backbone, projection and species head in float32.

    Args:
        network: in evaluation mode.

    Returns:
        `input` (batch, 3, S, S) → `species_logits` (batch, species), `embedding` (batch, D); opset 20.

    Raises:
        ExportError: PyTorch cannot export this backbone.
    """
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
def _quiet():  # type: ignore[no-untyped-def]
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
