"""Checks the students' inherited weights, their projection, and the size of their INT8 file."""

import numpy as np
import onnx
import pytest
import torch

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.errors import TrainingError
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_species import export_species
from plantmodels.export.quantize import quantize_int8
from plantmodels.training.dataset import LeafImages
from plantmodels.training.students import (
    STUDENTS,
    Student,
    check_size,
    find_student,
    fit_projection_,
    inherit_weights_,
    make_student_spec,
    measure_int8_bytes,
)

SIDE = 112
TEACHER = NetworkSpec(
    backbone="swin_tiny_patch4_window7_224",
    backbone_kwargs={"img_size": SIDE, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4]},
    embedding_dim=64,
    preprocessing=Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    taxonomy=Taxonomy(("a", "b"), {"a": ("x", "y")}),
)


def narrow(width: int, depths: list[int], mlp_ratio: float = 4.0) -> Student:
    heads = [2, 4][: len(depths)]
    kwargs = {"patch_size": 8, "embed_dim": width, "depths": depths, "num_heads": heads, "mlp_ratio": mlp_ratio}
    return Student("swin_tiny_patch4_window7_224", kwargs, scale_patches=True)


def build(spec: NetworkSpec, seed: int) -> HierarchicalNetwork:
    torch.manual_seed(seed)
    return HierarchicalNetwork(spec, projection=spec is not TEACHER).eval()


@pytest.fixture(scope="module")
def teacher() -> HierarchicalNetwork:
    return build(TEACHER, 0)


def test_a_truncated_student_inherits_blocks_and_heads_unchanged(teacher: HierarchicalNetwork):
    network = build(make_student_spec(narrow(32, [2, 1]), TEACHER), 1)
    assert inherit_weights_(network, teacher) > 20
    mine, theirs = network.state_dict(), teacher.state_dict()
    kept = [name for name in mine if "layers" in name or name.startswith(("species_head", "disease_heads"))]
    assert kept and all(torch.equal(mine[name], theirs[name]) for name in kept)
    kernel = theirs["backbone.patch_embed.proj.weight"]
    assert torch.equal(mine["backbone.patch_embed.proj.weight"][:, :, ::2, ::2], kernel / 4)
    assert torch.equal(mine["backbone.norm.weight"], torch.ones(64))


def test_a_narrower_student_takes_the_same_channels_everywhere(teacher: HierarchicalNetwork):
    network = build(make_student_spec(narrow(16, [1]), TEACHER), 1)
    inherit_weights_(network, teacher)
    mine, theirs = network.backbone.state_dict(), teacher.backbone.state_dict()
    channels = list(range(0, 32, 2))
    block = "layers.0.blocks.0."
    assert torch.equal(mine["patch_embed.norm.weight"], theirs["patch_embed.norm.weight"][channels])
    assert torch.equal(mine[f"{block}attn.proj.weight"], theirs[f"{block}attn.proj.weight"][channels][:, channels])
    rows = [part * 32 + channel for part in range(3) for channel in channels]
    assert torch.equal(mine[f"{block}attn.qkv.weight"], theirs[f"{block}attn.qkv.weight"][rows][:, channels])


def test_the_largest_hidden_units_of_an_mlp_are_kept(teacher: HierarchicalNetwork):
    network = build(make_student_spec(narrow(32, [2, 1], mlp_ratio=2.0), TEACHER), 1)
    inherit_weights_(network, teacher)
    name = "layers.1.blocks.0.mlp."
    first, second = (teacher.backbone.state_dict()[f"{name}fc{i}.weight"] for i in (1, 2))
    importance = [float(first[unit].norm() * second[:, unit].norm()) for unit in range(len(first))]
    units = sorted(sorted(range(len(first)), key=lambda unit: -importance[unit])[: len(first) // 2])
    mine = network.backbone.state_dict()
    assert torch.equal(mine[f"{name}fc1.weight"], first[units])
    assert torch.equal(mine[f"{name}fc2.weight"], second[:, units])


def test_position_tables_of_other_windows_are_not_inherited(teacher: HierarchicalNetwork):
    student = narrow(32, [2, 1])
    network = build(
        make_student_spec(Student(student.backbone, {**student.backbone_kwargs, "window_size": 4}), TEACHER), 1
    )
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    before = network.backbone.state_dict()[name].clone()
    inherit_weights_(network, teacher)
    assert torch.equal(network.backbone.state_dict()[name], before)


def test_another_family_inherits_the_heads_alone(teacher: HierarchicalNetwork):
    network = build(make_student_spec(find_student("test_resnet"), TEACHER), 1)
    assert inherit_weights_(network, teacher) == 0
    assert torch.equal(network.species_head.weight, teacher.species_head.weight)


def test_the_projection_equals_the_ridge_regression():
    network = build(make_student_spec(narrow(16, [1]), TEACHER), 1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 3, SIDE, SIDE), dtype=np.uint8)
    zeros = torch.zeros(40, dtype=torch.int64)
    images = LeafImages(pixels, TEACHER.preprocessing, zeros, zeros)
    rows, cpu = torch.arange(5, 40), torch.device("cpu")
    target = torch.from_numpy(rng.standard_normal((40, 64))).float()
    fit_projection_(network, images, rows, target, cpu)
    with torch.inference_mode():
        features = network.backbone(images.load_batch(rows, SIDE, cpu)).double().numpy()
    padded = np.hstack([features, np.ones((35, 1))])
    penalty = np.sqrt(1e-3 * (padded**2).sum(axis=0).mean()) * np.eye(17)
    stacked = np.vstack([padded, penalty]), np.vstack([target[rows].double().numpy(), np.zeros((17, 64))])
    expected, *_ = np.linalg.lstsq(*stacked, rcond=None)
    np.testing.assert_allclose(network.projection.weight.detach(), expected[:-1].T, atol=1e-4)
    np.testing.assert_allclose(network.projection.bias.detach(), expected[-1], atol=1e-4)


def test_the_size_equals_a_trained_networks_file(tmp_path):
    spec = make_student_spec(narrow(16, [1]), TEACHER)
    network = build(spec, 2)
    for parameter in network.parameters():
        parameter.requires_grad_(False).normal_(0, 0.1)
    noise = np.zeros((1, 3, SIDE, SIDE), np.float32)
    onnx.save(quantize_int8(export_species(network, noise).model, reduce_range=False), tmp_path / "x.onnx")
    assert measure_int8_bytes(spec) == (tmp_path / "x.onnx").stat().st_size


def test_a_student_over_the_limit_is_refused():
    spec = make_student_spec(narrow(16, [1]), TEACHER)
    size = check_size(spec, 10**6)
    with pytest.raises(TrainingError, match=rf"takes {size:,} bytes in INT8, the limit is {size:,}"):
        check_size(spec, size)


def test_an_unknown_student_is_refused():
    with pytest.raises(TrainingError, match="no student 'elm': expected swin, swin-64, or the name of a timm backbone"):
        find_student("elm")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("swin", 5_000_000), ("swin-64", 2_000_000)])
def test_named_students_are_below_their_limits(name: str, limit: int):
    preprocessing = Preprocessing(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    teacher = NetworkSpec("swin_tiny_patch4_window7_224", {}, 768, preprocessing, TEACHER.taxonomy)
    assert measure_int8_bytes(make_student_spec(STUDENTS[name], teacher)) < limit
