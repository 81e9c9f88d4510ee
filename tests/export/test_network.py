"""Checks that the PyTorch network equals timm's, with exactly the weights of the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import CheckpointError
from plantmodels.export.network import load_network

SMALL = {"resnet10t": {}, "mobilenetv3_small_050": {}}


def plain_backbone(document: dict[str, Any], name: str, *, size: int = 64, projection: bool = False) -> int:
    """Replace the backbone by a timm model with random weights; returns the number of its features."""
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0).eval()
    features = backbone(torch.zeros(1, 3, size, size)).shape[1]
    heads = {n: t for n, t in document["state_dict"].items() if "head" in n}
    document["state_dict"] = {f"backbone.{n}": t for n, t in backbone.state_dict().items()}
    for head, tensor in heads.items():
        is_bias = tensor.ndim == 1
        columns = 32 if projection else features
        document["state_dict"][head] = tensor if is_bias else torch.randn(len(tensor), columns) / columns**0.5
    if projection:
        document["state_dict"]["projection.weight"] = torch.randn(32, features) / features**0.5
        document["state_dict"]["projection.bias"] = torch.zeros(32)
    document["hyper_parameters"].update(
        backbone=name, backbone_kwargs={}, image_size=size, embedding_dim=32 if projection else features
    )
    return features


def test_forward_runs_backbone_projection_and_heads(tiny_checkpoint: Path, tiny_document) -> None:
    parameters, state = tiny_document["hyper_parameters"], tiny_document["state_dict"]
    backbone = timm.create_model(parameters["backbone"], num_classes=0, **parameters["backbone_kwargs"]).eval()
    backbone.load_state_dict({n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")})
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    network = load_network(read_checkpoint(tiny_checkpoint))
    with torch.inference_mode():
        logits, embedding = network(images)
        features = backbone(images)
    expected = features.numpy() @ state["projection.weight"].numpy().T + state["projection.bias"].numpy()

    assert not network.training
    np.testing.assert_allclose(embedding.numpy(), expected, rtol=1e-4, atol=1e-5)
    species = expected @ state["species_head.weight"].numpy().T + state["species_head.bias"].numpy()
    np.testing.assert_allclose(logits.numpy(), species, rtol=1e-4, atol=1e-4)


def test_disease_heads_are_keyed_by_slug(tiny_checkpoint: Path, tiny_document) -> None:
    network = load_network(read_checkpoint(tiny_checkpoint))

    assert list(network.disease_heads) == ["pepper-bell", "cherry-including-sour", "blueberry", "aloe-sp-2"]
    head = network.disease_heads["aloe-sp-2"].weight
    torch.testing.assert_close(
        head.data, tiny_document["state_dict"]["disease_heads.Aloe sp_ 2.weight"], rtol=0, atol=0
    )


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("projection", [False, True])
def test_other_timm_backbones(tiny_checkpoint_factory, name: str, projection: bool) -> None:
    features = []
    path = tiny_checkpoint_factory(lambda d: features.append(plain_backbone(d, name, projection=projection)))
    network = load_network(read_checkpoint(path))
    with torch.inference_mode():
        logits, embedding = network(torch.zeros(2, 3, 64, 64))

    assert embedding.shape == (2, 32 if projection else features[0])
    assert logits.shape == (2, 5)


def test_a_file_of_pretrained_weights_is_neither_loaded_nor_read(
    tiny_checkpoint_factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(document: dict[str, Any]) -> None:
        asked = {"pretrained": True, "num_classes": 14, "checkpoint_path": "/nonexistent/weights.pth"}
        document["hyper_parameters"]["backbone_kwargs"] = {**document["hyper_parameters"]["backbone_kwargs"], **asked}

    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("would download"))
    network = load_network(read_checkpoint(tiny_checkpoint_factory(edit)))
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 224, 224))[0].shape == (1, 5)


def tensor(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        change(document["state_dict"])

    return edit


def kwargs(**changes: object) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        values = document["hyper_parameters"]
        values["backbone_kwargs"] = {**values["backbone_kwargs"], **changes}

    return edit


def parameters(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["hyper_parameters"].update(changes)


def without_projection(document: dict[str, Any]) -> None:
    del document["state_dict"]["projection.weight"], document["state_dict"]["projection.bias"]


REFUSED = {
    "a missing backbone tensor": (
        lambda d: d["state_dict"].pop("backbone.norm.weight"),
        r"1 backbone tensor.s. do not fit timm's 'swin_tiny_patch4_window7_224': missing: norm.weight",
    ),
    "an unknown backbone tensor": (
        lambda d: d["state_dict"].update({"backbone.extra": torch.ones(1)}),
        "unknown: extra",
    ),
    "a backbone tensor of another shape": (
        lambda d: d["state_dict"].update({"backbone.norm.weight": torch.ones(64)}),
        r"norm.weight: \(64,\), timm has \(128,\)",
    ),
    "a backbone tensor of integers": (
        lambda d: d["state_dict"].update({"backbone.norm.weight": torch.ones(128, dtype=torch.int32)}),
        "norm.weight: torch.int32, timm has torch.float32",
    ),
    "other depths": (kwargs(depths=(1, 1, 2, 1)), r"\d\d backbone tensor.s. do not fit .*missing: layers.2.blocks.1"),
    "a classifier in the backbone": (
        lambda d: d["state_dict"].update({"backbone.head.fc.weight": torch.ones(14, 128)}),
        "unknown: head.fc.weight",
    ),
    "an unknown name": (parameters(backbone="swin_teeny"), r"timm 1\..* does not know backbone 'swin_teeny'"),
    "no name": (parameters(backbone=""), "does not know backbone ''"),
    "a name on the hub": (parameters(backbone="hf-hub:timm/resnet10t.c3_in1k"), "does not know backbone 'hf-hub:timm"),
    "a local folder": (parameters(backbone="local-dir:/tmp"), "does not know backbone 'local-dir:/tmp'"),
    "an unknown tag": (parameters(backbone="resnet10t.nosuchtag"), "cannot build backbone 'resnet10t.nosuchtag'"),
    "an image size that it refuses": (parameters(image_size=200), "cannot build backbone .* for 200x200 images"),
    "an unknown argument": (kwargs(leaves=3), "cannot build backbone .*unexpected keyword argument 'leaves'"),
    "a zero argument": (kwargs(num_heads=(0, 1, 1, 1)), "cannot build backbone .* for 224x224 images"),
    "no depths": (kwargs(depths=()), "cannot build backbone"),
    "text for a number": (kwargs(embed_dim="many"), "cannot build backbone"),
    "one channel": (kwargs(in_chans=1), "cannot build backbone"),
    "features that are no vector": (kwargs(global_pool=""), r"gives \(1, 7, 7, 128\), expected \(1, features\)"),
    "a list of features": (kwargs(features_only=True), "gives list, expected"),
    "an embedding size without a projection": (
        without_projection,
        "gives 128 features, embedding_dim is 32, and there is no projection",
    ),
    "a projection of another width": (
        lambda d: d["state_dict"].update({"projection.weight": torch.ones(32, 100)}),
        r"projection.weight is \(32, 100\), expected \(32, 128\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_checkpoint_that_does_not_fit_timm_is_refused(tiny_checkpoint_factory, case: str) -> None:
    edit, match = REFUSED[case]

    with pytest.raises(CheckpointError, match=match):
        load_network(read_checkpoint(tiny_checkpoint_factory(edit)))


@pytest.mark.real
def test_the_real_swin_tiny_is_loaded(real_paths) -> None:
    checkpoint = read_checkpoint(real_paths.checkpoint)
    network = load_network(checkpoint)

    assert (len(checkpoint.spec.taxonomy.species), checkpoint.spec.taxonomy.max_diseases) == (14, 10)
    assert sum(parameter.numel() for parameter in network.backbone.parameters()) > 27_000_000
    with torch.inference_mode():
        logits, embedding = network(torch.zeros(1, 3, 224, 224))
    assert (logits.shape, embedding.shape) == ((1, 14), (1, 768))


def test_the_network_uses_the_tensors_of_the_checkpoint(tiny_checkpoint: Path) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    network = load_network(checkpoint)
    index, (weight, bias) = next(iter(checkpoint.disease_heads.items()))
    head = network.disease_heads[checkpoint.spec.taxonomy.slugs[index]]
    assert (head.weight.data_ptr(), head.bias.data_ptr()) == (weight.data_ptr(), bias.data_ptr())
    assert network.species_head.weight.data_ptr() == checkpoint.species_head[0].data_ptr()
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
