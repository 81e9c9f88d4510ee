"""Smaller species models: weights stored in FP16, and dynamic INT8.

FP16 here means weights STORED in float16 and computed in float32: computing in float16 throughout moves a
trained Swin-Tiny by more than the parity gate allows (0.0127), storing does not, and the file is as small.

>>> model = store_weights_fp16(onnx.load("model.onnx"))  # doctest: +SKIP
"""

import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from plantmodels.errors import ExportError

MIN_FP16_ELEMENTS: Final = 16
"""Smaller constants (epsilons, scales) stay float32: nothing is gained."""

INT8_OPERATORS: Final = ("MatMul", "Gemm")
"""Everything else stays float: LayerNorm, Softmax and GELU lose accuracy, and the patch convolution alone
flipped three times as many answers when it was quantized."""

CPU_FEATURES: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)


_X86: Final = ("x86_64", "amd64", "x86", "i386", "i686")


def store_weights_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy whose float32 weights are stored in float16 and cast back in the graph.

    ONNX Runtime folds the casts once, when a session opens.

    Raises:
        ExportError: a weight beyond float16's range, named.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    casts = []
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < MIN_FP16_ELEMENTS:
            continue
        name, largest = tensor.name, float(np.abs(values).max())
        if largest > float(np.finfo(np.float16).max):
            raise ExportError(f"weight {name!r} holds {largest:.4g}, beyond float16's 65504: FP16 cannot store it")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(result.graph.node)
    del result.graph.node[:]
    result.graph.node.extend(casts + nodes)
    return result


def quantize_int8(source: Path, target: Path, *, reduce_range: bool) -> dict[str, Any]:
    """Writes the dynamic INT8 form of a float model: per-channel signed weights, activations at run time.

    Args:
        source: float32 ONNX file.
        target: where the INT8 file goes.
        reduce_range: 7-bit weights, for CPUs without VNNI, whose INT8 products saturate.

    Returns:
        The recipe, for the metadata.
    """
    recipe = {
        "method": "dynamic",
        "operators": list(INT8_OPERATORS),
        "per_channel": True,
        "weights": "int8",
        "activations": "uint8",
        "reduce_range": reduce_range,
    }
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a pre-processing that changes nothing on these graphs
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(INT8_OPERATORS),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)
    return recipe


@dataclass(frozen=True)
class CPU:
    """The exporting machine's processor.

    Attributes:
        architecture: such as "x86_64".
        model: the name it gives itself, "" where unknown.
        features: those of `CPU_FEATURES` that it has.
    """

    architecture: str
    model: str
    features: tuple[str, ...]

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether INT8 products accumulate without saturation (VNNI on x86; every ARM does)."""
        return self.architecture.lower() not in _X86 or any("vnni" in name for name in self.features)


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> CPU:
    """Reads what Linux says of the processor; without that file the features are empty."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    flags = (values.get("flags") or values.get("Features") or "").split()
    return CPU(
        platform.machine(),
        values.get("model name", ""),
        tuple(name for name in CPU_FEATURES if name in flags),
    )
