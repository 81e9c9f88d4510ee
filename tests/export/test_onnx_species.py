"""Checks that the exported species model equals PyTorch at every batch size, for Swin and other timm backbones."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import ExportError
from plantmodels.export import onnx_species
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.export.onnx_species import TOLERANCE, export_species

ATOL = 1e-4
"""Float32 rounds differently in other kernels; the values are of order one to ten."""


REAL = np.random.default_rng(1).standard_normal((2, 3, 224, 224)).astype(np.float32)
"""Stands for real images."""


def check_parity(model: onnx.ModelProto, network: HierarchicalNetwork) -> None:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    side = network.spec.preprocessing.image_size
    for batch in (1, 2, 3, 5):
        images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = [output.numpy() for output in network(images)]
        outputs = session.run(["species_logits", "embedding"], {"input": images.numpy()})
        for output, reference in zip(outputs, expected, strict=True):
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, reference, atol=ATOL)


@pytest.fixture(scope="module")
def network(tiny_checkpoint: Path) -> HierarchicalNetwork:
    return load_network(read_checkpoint(tiny_checkpoint))


@pytest.fixture(scope="module")
def model(network: HierarchicalNetwork) -> onnx.ModelProto:
    return export_species(network, REAL).model


def test_a_swin_equals_pytorch(model: onnx.ModelProto, network: HierarchicalNetwork) -> None:
    check_parity(model, network)


def test_the_interface_follows_contract_3(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    values = (*model.graph.input, *model.graph.output)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }

    assert shapes == {"input": ["batch", 3, 224, 224], "species_logits": ["batch", 5], "embedding": ["batch", 32]}
    assert {value.type.tensor_type.elem_type for value in values} == {onnx.TensorProto.FLOAT}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]


def test_norms_and_gelus_stay_single_operators(model: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in model.graph.node]

    assert "LayerNormalization" in kinds
    assert "Gelu" in kinds
    assert "Erf" not in kinds


def test_nothing_of_this_machine_is_in_the_file(model: onnx.ModelProto) -> None:
    data = model.SerializeToString()

    for trace in (
        b"/work/",
        b"site-packages",
        b".venv",
        b"/home",
        b"/root",
        b"plantmodels.",
        b".py",
        b"stack_trace",
    ):
        assert trace not in data


def plain_backbone(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        torch.manual_seed(0)
        backbone = timm.create_model(name, num_classes=0).eval()
        features = backbone(torch.zeros(1, 3, 64, 64)).shape[1]
        heads = {n: t for n, t in document["state_dict"].items() if "head" in n}
        document["state_dict"] = {f"backbone.{n}": t for n, t in backbone.state_dict().items()}
        for head, tensor in heads.items():
            document["state_dict"][head] = tensor if tensor.ndim == 1 else torch.randn(len(tensor), features) / 9
        parameters = {"backbone": name, "backbone_kwargs": {}, "image_size": 64, "embedding_dim": features}
        document["hyper_parameters"].update(parameters)

    return edit


def test_a_convolutional_backbone_equals_pytorch(tiny_checkpoint_factory) -> None:
    network = load_network(read_checkpoint(tiny_checkpoint_factory(plain_backbone("resnet10t"))))
    graph = export_species(network, REAL[:, :, :64, :64])
    model = graph.model
    assert graph.kind == "traced" and graph.difference < 1e-5
    onnx.checker.check_model(model, full_check=True)

    check_parity(model, network)


class Undecided(torch.nn.Module):
    """A module that cannot be exported: the number of its steps depends on the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images.mean(dim=(2, 3))
        while features.sum() > 3:
            features = features / 2
        return features.repeat(1, 43)[:, :128]


def test_a_backbone_that_cannot_be_exported_is_an_error_of_one_line(tiny_checkpoint: Path) -> None:
    broken = load_network(read_checkpoint(tiny_checkpoint))
    broken.backbone = Undecided()

    with pytest.raises(ExportError, match=r"PyTorch 2\..* cannot export backbone 'swin_tiny") as caught:
        export_species(broken, REAL)
    assert "\n" not in str(caught.value)


def test_an_operator_that_cannot_be_translated_is_named_without_torch_s_help(
    network: HierarchicalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are those of PyTorch 2.12 for maxvit, whose export takes more than a minute to fail."""
    reason = (
        "Cannot view a tensor with shape torch.Size([16*s77, 64, 2, 32]) as a tensor with shape (16*s77, 8, 8, 64)!"
    )
    details = f"{reason}\n\nWhile executing %view_37 : call_function[target=torch.ops.aten.view.default](args = (x,))"

    def fail(*_: object, **__: object) -> None:
        try:
            raise ValueError(
                f"{details}\nOriginal traceback:\nFile timm/models/maxxvit.py\nUse tlparse to see full graph."
            )
        except ValueError as error:
            raise torch.onnx.OnnxExporterError(
                f"Failed to decompose. \x1b[96mThis is step 2/3\x1b[0m\nNext steps:\n- Create an issue\n{error}"
            ) from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(onnx_species, "is_supported", lambda _: False)
    with pytest.raises(ExportError) as caught:
        export_species(network, REAL)
    assert str(caught.value).endswith(f"to ONNX: operator aten.view.default: {reason}")
    assert "\n" not in str(caught.value) and "issue" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_exporting_leaves_warnings_and_logging_alone(network: HierarchicalNetwork, monkeypatch, capsys) -> None:
    filters, level = list(warnings.filters), logging.getLogger("torch.onnx").level

    def fail(*_: object, **__: object) -> None:
        print("chatter")
        warnings.warn("deprecated", stacklevel=1)
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(onnx_species, "is_supported", lambda _: False)
    with pytest.raises(ExportError, match=r"to ONNX: RuntimeError: first line second line$"):
        export_species(network, REAL)
    assert warnings.filters == filters
    assert logging.getLogger("torch.onnx").level == level
    assert capsys.readouterr().out == ""


def test_a_swin_is_not_traced(network: HierarchicalNetwork, monkeypatch) -> None:
    monkeypatch.setattr(onnx_species, "_trace", lambda _: pytest.fail("traced"))
    graph = export_species(network, REAL)

    assert graph.kind == "swin" and 0 < graph.difference <= TOLERANCE["swin"] == 1e-5


@pytest.fixture
def wrong(tiny_checkpoint: Path) -> onnx.ModelProto:
    """The graph of a network with a different bias."""
    other = load_network(read_checkpoint(tiny_checkpoint))
    with torch.no_grad():
        other.species_head.bias += 0.5
    return onnx_species.build_swin(other)


@pytest.mark.slow
def test_a_graph_with_different_outputs_is_traced_instead(
    network: HierarchicalNetwork, wrong: onnx.ModelProto, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(onnx_species, "build_swin", lambda _: wrong)
    graph = export_species(network, REAL)

    assert graph.kind == "traced"
    assert "the swin graph differs from PyTorch by 0." in caplog.text
    check_parity(graph.model, network)


def test_real_images_are_compared_as_well(network: HierarchicalNetwork, monkeypatch) -> None:
    seen = []
    measure = onnx_species._measure_difference
    monkeypatch.setattr(onnx_species, "_measure_difference", lambda *a: seen.append(a[2]) or measure(*a))
    export_species(network, REAL)

    assert any(images is REAL for images in seen) and len(seen) == 2


def test_different_outputs_from_pytorchs_are_an_error(
    network: HierarchicalNetwork, wrong: onnx.ModelProto, monkeypatch
) -> None:
    monkeypatch.setattr(onnx_species, "build_swin", lambda _: wrong)
    monkeypatch.setattr(onnx_species, "_trace", lambda _: wrong)

    with pytest.raises(ExportError, match=r"'swin_tiny.*differs from PyTorch by 0\..*at most 1e-03 is accepted"):
        export_species(network, REAL)
