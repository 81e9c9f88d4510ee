"""Checks patch sizes, recipes and measured accuracies against slow loops."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.dataset import NO_DISEASE, LeafImages
from plantmodels.training.loop import measure_accuracies
from plantmodels.training.patch_sizes import resize_patches, resize_spec
from plantmodels.training.recipe import EpochRecord, Recipe, Stage, describe_epoch

SAME_FUNCTION = 1e-5
SPEC = NetworkSpec(
    backbone="swin_tiny_patch4_window7_224",
    backbone_kwargs={"img_size": 56, "patch_size": 8, "embed_dim": 16, "depths": [1], "num_heads": [2]},
    embedding_dim=24,
    preprocessing=Preprocessing(56, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    taxonomy=Taxonomy(("a", "b"), {"a": ("x", "y")}),
)


def test_growing_patches_keep_the_function_of_averaged_images():
    torch.manual_seed(0)
    coarse, fine = (HierarchicalNetwork(resize_spec(SPEC, side, True), projection=True).eval() for side in (28, 56))
    fine.load_state_dict(resize_patches(coarse.state_dict(), fine.state_dict()))
    images = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        expected, found = coarse(functional.avg_pool2d(images, 2)), fine(images)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=SAME_FUNCTION)


def test_shrinking_patches_undoes_growing():
    small = {"k": torch.randn(4, 3, 2, 2), "m": torch.randn(3, 5)}
    large = resize_patches(small, {"k": torch.empty(4, 3, 6, 6), "m": small["m"]})
    assert large["k"].shape == (4, 3, 6, 6)
    again = resize_patches(large, small)
    torch.testing.assert_close(again["k"], small["k"])
    assert torch.equal(again["m"], small["m"])


def test_without_scaled_patches_there_are_fewer_of_them():
    spec = resize_spec(SPEC, 28, False)
    assert spec.backbone_kwargs["patch_size"] == 8 and spec.backbone_kwargs["img_size"] == 28
    assert spec.preprocessing.image_size == 28
    assert resize_spec(SPEC, 56, True) is SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ()}, "at least one stage is needed"),
        ({"stages": (Stage(56, 1), Stage(28, 1))}, r"images must grow from stage to stage, got sizes \[56, 28\]"),
        ({"stages": (Stage(56, 1), Stage(56, 1))}, "images must grow from stage to stage"),
        ({"stages": (Stage(56, 0),)}, "epochs must be at least 1, got 0"),
        ({"stages": (Stage(0, 1),)}, "image_size must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"patience": -1}, "patience at least 0"),
        ({"held_out": 0.0}, "held_out must be a share, got 0"),
        ({"average": 1.0}, "average must be a share, got 1"),
        ({"smoothing": -0.1}, "smoothing must be a share"),
        ({"balance": 1.1}, "balance must be a share"),
        ({"exposure": 0.0}, "exposure must be above 0, got 0"),
        ({"non_plants_per_leaf": -1.0}, "non_plants_per_leaf must be above 0, got -1"),
    ],
)
def test_an_invalid_recipe_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"stages": (Stage(56, 1),), **change})


def test_accuracies_equal_a_slow_loop():
    torch.manual_seed(1)
    network = HierarchicalNetwork(SPEC, projection=True).eval()
    labels = list(itertools.islice(itertools.cycle([(0, 0), (0, 1), (1, NO_DISEASE)]), 70))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 56, 56), dtype=np.uint8)
    species, disease = torch.tensor(labels).T
    images = LeafImages(pixels, SPEC.preprocessing, species, disease)
    rows, cpu = torch.arange(1, 70), torch.device("cpu")
    found = measure_accuracies(network, images, rows, cpu)
    counts = {"species": [], "disease": [], "both": []}
    with torch.inference_mode():
        for row in rows.tolist():
            logits, embedding = network((torch.from_numpy(pixels[row : row + 1]).float() / 255 - 0.5) / 0.25)
            right = logits.argmax().item() == labels[row][0]
            counts["species"].append(right)
            if labels[row][0] == 0:
                answer = network.disease_heads["a"](embedding).argmax().item() == labels[row][1]
                counts["disease"].append(answer)
                right = right and answer
            counts["both"].append(right)
    assert list(found.values()) == pytest.approx([np.mean(values) for values in counts.values()])


def test_an_epoch_is_one_line():
    record = EpochRecord(3, 112, 0.5, 1e-3, 0.75, None, 0.75, 12.3)
    assert describe_epoch(record) == "epoch 3 (112 pixels, 12 s): loss 0.500; held out: species 0.750, both 0.7500"
