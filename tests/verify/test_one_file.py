"""A one file that does not answer as the bundle's parts do is found, whatever is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from plantmodels.bundle.layout import ONE_FILES, PACKED_HEADS_FILE, PRECISIONS, SPECIES_FILES
from plantmodels.bundle.manifest import write_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.export.one_file.build import write_one_files
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.loading import read_bundle
from plantmodels.verify.one_file import find_one_file_problems
from plantmodels.verify.opening import open_classifiers, open_models
from plantmodels.verify.run import verify_bundle

INT8 = ONE_FILES["int8"]
Damage = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def images(tiny_bundle) -> np.ndarray:
    preprocessing = read_metadata(tiny_bundle.bundle).preprocessing
    leaves = [min(folder.iterdir()) for folder in sorted((tiny_bundle.data / "val").iterdir())]
    paths = [*leaves, *sorted(tiny_bundle.non_plants.rglob("*.png"))[::16]]
    return np.stack([image_to_input(path.read_bytes(), preprocessing) for path in paths])


def find_problems(bundle: Path, images: np.ndarray, model: onnx.ModelProto | None = None) -> dict[str, str]:
    """Compare the one files of a bundle; `model` takes the place of the INT8 one."""
    metadata = read_metadata(bundle)
    names = [
        name for name in (*SPECIES_FILES.values(), PACKED_HEADS_FILE, *ONE_FILES.values()) if (bundle / name).exists()
    ]
    contents = read_bundle(bundle, models=names, every_file=False)
    changed = {} if model is None else {INT8: model.SerializeToString()}
    models = open_models({**contents.model_bytes, **changed}, metadata)
    classifiers, reason = open_classifiers(contents, models)
    assert not reason
    return find_one_file_problems(models, classifiers, images)


def test_a_right_file_of_each_precision_has_no_problem(tiny_bundle, images: np.ndarray, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.bundle, tmp_path / "models"))
    write_one_files(bundle, read_metadata(bundle), PRECISIONS)
    write_manifest(bundle)

    assert find_problems(bundle, images) == {}


def get_property(model: onnx.ModelProto, name: str) -> onnx.StringStringEntryProto:
    return next(entry for entry in model.metadata_props if entry.key == name)


def swap_names(model: onnx.ModelProto) -> None:
    entry = get_property(model, "species")
    first, second, *others = json.loads(entry.value)
    entry.value = json.dumps([second, first, *others])


def change_constant(model: onnx.ModelProto, match: Callable[[np.ndarray], bool], change: Callable[[Any], Any]) -> None:
    for tensor in model.graph.node[0].attribute[0].g.initializer:
        values = numpy_helper.to_array(tensor)
        if match(values):
            tensor.CopyFrom(numpy_helper.from_array(change(values), tensor.name))
            return
    raise AssertionError("no such constant")


def drop_output(model: onnx.ModelProto) -> None:
    node = model.graph.node[0]
    assert node.output[-1] == model.graph.output[-1].name == "rejected"
    del node.output[-1], model.graph.output[-1], node.attribute[0].g.output[-1]


DAMAGES: dict[str, tuple[Damage, str]] = {
    "two names exchanged": (swap_names, "its property 'species' is .*Cherry.*, expected .*Pepper"),
    "no property": (lambda model: model.metadata_props.remove(get_property(model, "threshold")), "'threshold' is None"),
    "another threshold in the graph": (
        lambda model: change_constant(
            model,
            lambda v: v.size == 1 and v.item() == json.loads(get_property(model, "threshold").value),
            lambda v: v * -100,
        ),
        "rejected is not what the bundle's parts answer: .* images differ",
    ),
    "another mean": (
        lambda model: change_constant(model, lambda v: v.dtype == np.float64 and v.shape == (32,), lambda v: v + 1),
        "ood_score is not what the bundle's parts answer: a difference of",
    ),
    "another head": (
        lambda model: change_constant(model, lambda v: v.dtype == np.int8 and v.ndim == 3, lambda v: v[::-1].copy()),
        "disease_logits is not what the bundle's parts answer",
    ),
    "an output less": (drop_output, "its outputs are .*, expected .*rejected"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_wrong_is_named(tiny_bundle, images: np.ndarray, case: str) -> None:
    damage, match = DAMAGES[case]
    model = onnx.load(tiny_bundle.bundle / INT8)
    damage(model)
    problems = find_problems(tiny_bundle.bundle, images, model)

    assert list(problems) == [INT8]
    with pytest.raises(ValueError, match=match):
        raise ValueError(problems[INT8])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.unlink(), "missing, though the metadata describe it"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "not an ONNX file|Error parsing|Unable to parse"),
        (lambda path: path.write_text("<html>not found</html>"), "ir_version"),
    ],
    ids=["missing", "cut off", "text"],
)
def test_the_gate_loads_fails(tiny_bundle, bundle_copy: Path, damage: Callable[[Path], None], match: str) -> None:
    damage(bundle_copy / INT8)
    write_manifest(bundle_copy)
    report = verify_bundle(bundle_copy, tiny_bundle.data, checkpoint=None, non_plants=None)

    assert report.gate("loads").status == "failed"
    with pytest.raises(ValueError, match=f"{INT8}: .*({match})"):
        raise ValueError(report.gate("loads").detail)
