"""The recipe for Triton on the page of runtimes names outputs that the one file has, with their types and shapes."""

import re
from pathlib import Path

import onnx

from plantmodels.bundle.layout import ONE_FILES
from plantmodels.bundle.metadata import read_metadata

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "runtimes.md").read_text(encoding="utf-8")
TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}


def test_the_recipe_for_triton_fits_the_file(tiny_bundle) -> None:
    graph = onnx.load(tiny_bundle.bundle / ONE_FILES["int8"]).graph
    side = read_metadata(tiny_bundle.bundle).preprocessing.image_size
    described = {
        value.name: (
            TYPES[value.type.tensor_type.elem_type],
            [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }
    recipe = re.search(r"```protobuf\n(.*?)```", PAGE, re.DOTALL)
    assert recipe is not None and side == 224
    rows = re.findall(r'name: "(\w+)", data_type: (\w+), dims: \[ ([-\d, ]+) \]', recipe[1])
    assert [name for name, _, _ in rows][:2] == ["input", "species_index"] and len(rows) == 7
    for name, kind, sizes in rows:
        assert (kind, [int(size) for size in sizes.split(",")]) == described[name], name
