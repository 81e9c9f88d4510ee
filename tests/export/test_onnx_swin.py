"""Checks that the graph built for Swin equals timm for all windows, and that it stores little."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.export.onnx_swin import build_swin, is_supported
from plantmodels.serve.session import open_session

V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
SMALL = {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4)}
RTOL = 1e-4
"""Share of the largest output, against PyTorch in float64; a wrong neighbor or mask is off by 1,000 times this."""


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "windows that fit": (V1, 224, {}),
    "padded windows": (V1, 160, {"img_size": 160}),
    "odd grids, padded merging": (V1, 100, {"img_size": 100, "window_size": 5}),
    "an image that patches do not fill": (V1, 90, {"img_size": 90, "window_size": 4}),
    "windows larger than the grid": (V1, 64, {"img_size": 64, "window_size": 16}),
    "a window of its own for each stage": (V1, 128, {"img_size": 128, "window_size": (8, 4, 4, 2)}),
    "oblong windows": (V1, 96, {"img_size": 96, "window_size": (4, 6)}),
    "windows whatever the grid": (V1, 64, {"img_size": 64, "window_size": 4, "always_partition": True}),
    "an even window": (V1, 64, {"img_size": 64, "window_size": 4}),
    "wide heads": (V1, 64, {"img_size": 64, "window_size": 4, "head_dim": 12}),
    "no bias of query, key and value": (V1, 64, {"img_size": 64, "window_size": 4, "qkv_bias": False}),
    "any image size": (V1, 64, {"img_size": 64, "window_size": 4, "dynamic_img_size": True}),
    "another patch": (V1, 64, {"img_size": 64, "patch_size": 2, "window_size": 8}),
    "three stages": (V1, 64, {"img_size": 64, "depths": (2, 3, 2), "num_heads": (1, 2, 4), "window_size": 4}),
    "v2": (V2, 128, {"img_size": 128, "window_size": 4}),
    "v2, padded windows": (V2, 100, {"img_size": 100, "window_size": 7}),
    "v2, no bias of query, key and value": (V2, 64, {"img_size": 64, "window_size": 4, "qkv_bias": False}),
}


def make_network(backbone: str, size: int, kwargs: dict[str, Any]) -> HierarchicalNetwork:
    """Build a small network in which every parameter matters: large positions, and norms that are not the identity."""
    arguments = {**SMALL, **kwargs}
    preprocessing = Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    taxonomy = Taxonomy(("Oak", "Elm"), {"Oak": ("rust", "healthy")})
    spec = NetworkSpec(backbone, arguments, 16, preprocessing, taxonomy)
    torch.manual_seed(7)
    network = HierarchicalNetwork(spec, projection=True).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "cpb_mlp" not in name:
                parameter.normal_(0, 1 / parameter[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif "logit_scale" not in name:
                parameter.normal_(0, 0.5)
            if "relative_position_bias_table" in name:
                parameter.normal_(0, 2)
    return network


def check_equal(network: HierarchicalNetwork, folder: Path) -> None:
    onnx.save(build_swin(network), folder / "swin.onnx")
    session = open_session(folder / "swin.onnx")
    side = network.spec.preprocessing.image_size
    for batch in (1, 3):
        images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))
        outputs = session.run(["species_logits", "embedding"], {"input": images.numpy()})
        network.double()
        with torch.inference_mode():
            truths = [output.numpy() for output in network(images.double())]
        network.float()
        for output, truth in zip(outputs, truths, strict=True):
            np.testing.assert_allclose(output, truth, rtol=0, atol=RTOL * np.abs(truth).max())


@pytest.mark.parametrize("case", CASES)
def test_equals_timm(case: str, tmp_path: Path) -> None:
    network = make_network(*CASES[case])
    assert is_supported(network)
    check_equal(network, tmp_path)


def test_the_mask_stays_soft(tmp_path: Path) -> None:
    """Some positions outweigh the −100 across a border; a harder mask would change the outputs."""
    network = make_network(V1, 64, {"img_size": 64, "window_size": 4})
    with torch.no_grad():
        network.backbone.layers[0].blocks[1].attn.relative_position_bias_table[[0, -1]] += 130  # opposite corners
    seen = []
    block = network.backbone.layers[0].blocks[1]
    block.attn.softmax.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 64))
    masked = block.attn_mask[:, None].expand(-1, seen[0].shape[1], -1, -1) < 0
    assert (seen[0].softmax(-1)[masked] > 1e-3).any(), "the test's weights would not tell a hard mask from a soft one"
    check_equal(network, tmp_path)


def test_an_independent_runtime_agrees() -> None:
    """The graph is plain ONNX: the reference evaluator of ONNX, in numpy, gives the same outputs."""
    network = make_network(V1, 64, {"img_size": 64, "window_size": 4})
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(images)[1].numpy()
    outputs = ReferenceEvaluator(build_swin(network)).run(["embedding"], {"input": images.numpy()})
    np.testing.assert_allclose(outputs[0], expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_windows_cost_no_moves_beyond_two_gathers_of_shifted_blocks(tiny_checkpoint: Path) -> None:
    network = make_network(V1, 224, {})
    model = build_swin(network)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    float_gathers = [n for n in model.graph.node if n.op_type == "Gather" and n.attribute[0].i == 1]
    assert len(float_gathers) == 1 + 3 + 2 * 3, "patches, mergings, and two for each of three shifted blocks"
    assert (kinds.count("Attention"), kinds.count("Softmax"), kinds.count("Split")) == (7, 0, 0)
    assert kinds.count("Transpose") == 1 + 7, "patches to tokens, and a table of positions a block"


def test_masks_and_positions_are_stored_small() -> None:
    model = build_swin(make_network(V1, 224, {}))
    others = sum(len(t.raw_data) for t in model.graph.initializer if t.data_type != onnx.TensorProto.FLOAT)
    assert others < 60_000, "the masks of 64 windows alone are 600 kB in float32"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda n: setattr(n.backbone.norm, "elementwise_affine", False), id="norm"),
        pytest.param(lambda n: setattr(n.backbone.layers[0].blocks[0].mlp, "act", torch.nn.ReLU()), id="act"),
        pytest.param(lambda n: setattr(n.backbone.head.global_pool, "pool_type", "max"), id="pooling"),
        pytest.param(lambda n: setattr(n, "backbone", torch.nn.Identity()), id="another backbone"),
        pytest.param(lambda n: setattr(n.backbone.patch_embed, "img_size", (32, 32)), id="another size"),
    ],
)
def test_an_unsupported_swin_is_recognized(change) -> None:
    network = make_network(V1, 64, {"img_size": 64, "window_size": 4})
    change(network)
    assert not is_supported(network)


@pytest.mark.real
@pytest.mark.slow
def test_trained_weights_on_real_leaves(real_paths, tmp_path: Path) -> None:
    from plantmodels.serve.preprocessing import decode_image, preprocess

    network = load_network(read_checkpoint(real_paths.checkpoint))
    onnx.save(build_swin(network), tmp_path / "swin.onnx")
    paths = sorted(real_paths.leaves.glob("val/*/*"))[::100]
    images = np.stack([preprocess(decode_image(path.read_bytes()), network.spec.preprocessing) for path in paths])
    with torch.inference_mode():
        expected = [output.numpy() for output in network(torch.from_numpy(images))]
    outputs = open_session(tmp_path / "swin.onnx").run(["species_logits", "embedding"], {"input": images})
    for output, reference in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, reference, rtol=0, atol=1e-5)
