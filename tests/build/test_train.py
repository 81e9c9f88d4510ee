from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from plantmodels.build import train
from plantmodels.build.augment import augment
from plantmodels.build.checkpoint import NetworkSpec, read_checkpoint
from plantmodels.build.network import HierarchicalNetwork, load_network
from plantmodels.build.train import TrainReport, train_network
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import CheckpointError, DataError
from plantmodels.serve.images import decode_image, preprocess

SIDE = 56
DISEASES = {"Pepper, bell": ("spot", "healthy"), "Cherry (sour)": ("healthy",)}
SPEC = NetworkSpec(
    backbone="swin_tiny_patch4_window7_224",
    backbone_kwargs={"img_size": SIDE, "patch_size": 8, "embed_dim": 16, "depths": [1], "num_heads": [2]},
    embedding_dim=24,
    preprocessing=Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    taxonomy=Taxonomy(("Pepper, bell", "Mint", "Cherry (sour)"), DISEASES),
)
CLASSES = ("Pepper, bell___spot", "Pepper, bell___healthy", "Mint___whatever", "Cherry (sour)___healthy")
SAME_FUNCTION = 1e-5


def toy(kind: int, seed: int) -> Image.Image:
    """Noise over one of four plain colours; on the first there is a dark spot."""
    rng = np.random.default_rng((kind, seed))
    pixels = rng.normal(0, 20, (64, 64, 3)) + [(190, 80, 80), (190, 80, 80), (80, 190, 80), (80, 80, 190)][kind]
    if kind == 0:
        x, y = rng.integers(0, 34, 2)
        pixels[y : y + 30, x : x + 30] -= 120
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for split, count in (("train", 12), ("val", 5)):
        for kind, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                toy(kind, number + 100 * (split == "val")).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainReport, Path]:
    out = tmp_path_factory.mktemp("trained") / "toy.ckpt"
    return train_network(data, out, SPEC, epochs=12, batch_size=12, seed=0, coarsening=2), out


def test_learns_above_chance(trained: tuple[TrainReport, Path]):
    report, _ = trained
    assert report.species_accuracy >= 0.8
    assert report.disease_accuracy is not None and report.disease_accuracy > 0.7
    assert report.end_to_end_accuracy <= report.species_accuracy
    assert len(report.epoch_losses) == 12 and report.epoch_losses[-1] < 0.7 * report.epoch_losses[0]
    assert (report.train_images, report.val_images, report.unreadable) == (48, 20, ())
    assert report.dtype in ("float32", "bfloat16") and report.train_seconds > 0


def test_writes_contract_1(trained: tuple[TrainReport, Path]):
    _, out = trained
    document = torch.load(out, weights_only=True)
    assert set(document) == {"state_dict", "hyper_parameters"}
    assert document["hyper_parameters"]["species"] == ["Pepper, bell", "Mint", "Cherry (sour)"]
    assert document["hyper_parameters"]["image_size"] == SIDE
    heads = {name for name in document["state_dict"] if name.startswith("disease_heads.")}
    assert {name.split(".")[1] for name in heads} == {"pepper-bell", "cherry-sour"}
    assert all(t.dtype == torch.float32 for t in document["state_dict"].values() if t.is_floating_point())
    assert read_checkpoint(out).spec == SPEC


def test_the_report_agrees_with_the_checkpoint(trained: tuple[TrainReport, Path], data: Path):
    report, out = trained
    network = load_network(read_checkpoint(out))
    right = []
    for path in sorted(data.glob("val/*/*.png")):
        pixels = preprocess(decode_image(path.read_bytes()), SPEC.preprocessing)
        with torch.inference_mode():
            best = int(network(torch.from_numpy(pixels)[None])[0].argmax())
        right.append(SPEC.taxonomy.species[best] == path.parent.name.split("___")[0])
    assert np.mean(right) == pytest.approx(report.species_accuracy)


def test_same_seed_same_bytes_and_no_trace_in_the_global_generator(data: Path, tmp_path: Path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_network(data, tmp_path / name, SPEC, epochs=1, batch_size=20, seed=seed)
        torch.manual_seed(5)
    train_network(data, tmp_path / "a2", SPEC, epochs=1, batch_size=20, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c, a2 = ((tmp_path / name).read_bytes() for name in ("a", "b", "c", "a2"))
    assert a == b == a2
    assert a != c


def test_spreading_the_patches_keeps_the_function():
    torch.manual_seed(0)
    coarse = HierarchicalNetwork(train._coarse_spec(SPEC, 2), projection=True).eval()
    fine = train._refined(coarse, SPEC, 2, projection=True)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected, found = coarse(functional.avg_pool2d(images, 2)), fine(images)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=SAME_FUNCTION)


def test_without_projection_the_features_are_the_embedding(data: Path, tmp_path: Path):
    spec = replace(SPEC, embedding_dim=16)
    train_network(data, tmp_path / "x.ckpt", spec, epochs=1, batch_size=24, seed=0, projection=False)
    assert read_checkpoint(tmp_path / "x.ckpt").projection is None


def test_convolutional_backbones_train_too(data: Path, tmp_path: Path):
    spec = replace(SPEC, backbone="test_resnet", backbone_kwargs={})
    train_network(data, tmp_path / "x.ckpt", spec, epochs=1, batch_size=24, seed=0)
    load_network(read_checkpoint(tmp_path / "x.ckpt"))


def test_an_empty_or_absent_split_is_named(data: Path, tmp_path: Path):
    (tmp_path / "train").symlink_to(data / "train")
    with pytest.raises(DataError, match="val: no such folder"):
        train_network(tmp_path, tmp_path / "x.ckpt", SPEC, epochs=1, batch_size=8, seed=0)
    (tmp_path / "val" / CLASSES[0]).mkdir(parents=True)
    with pytest.raises(DataError, match="split 'val' holds no images"):
        train_network(tmp_path, tmp_path / "x.ckpt", SPEC, epochs=1, batch_size=8, seed=0)
    assert not (tmp_path / "x.ckpt").exists()


def test_an_unwritable_target_is_found_before_training(data: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"x\.ckpt: .*absent is not a folder that can be written to"):
        train_network(data, tmp_path / "absent" / "x.ckpt", SPEC, epochs=1, batch_size=8, seed=0)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "coarsening"])
def test_numbers_below_one_are_refused(data: Path, tmp_path: Path, name: str):
    numbers = {"epochs": 1, "batch_size": 1, "coarsening": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        train_network(data, tmp_path / "x.ckpt", SPEC, seed=0, **numbers)


@pytest.mark.parametrize("coarsening", [3, 16])
def test_coarsening_must_divide_patch_and_picture(data: Path, tmp_path: Path, coarsening: int):
    with pytest.raises(ValueError, match=rf"image_size 56 and backbone_kwargs.*8, got {coarsening}"):
        train_network(data, tmp_path / "x", SPEC, epochs=1, batch_size=8, seed=0, coarsening=coarsening)


def test_augmentation_varies_pictures_and_follows_its_generator():
    pictures = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = pictures.clone()
    first, again = (augment(pictures, torch.Generator().manual_seed(1)) for _ in range(2))
    other = augment(pictures, torch.Generator().manual_seed(2))
    assert first.shape == pictures.shape and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(pictures, kept)
    assert not torch.allclose(first, pictures, atol=0.05)


def test_augmentation_keeps_a_plain_picture_plain():
    generator = torch.Generator().manual_seed(3)
    views = augment(torch.full((8, 3, 16, 16), 0.4), generator)
    np.testing.assert_allclose(views.std(dim=(2, 3)), 0, atol=1e-5)
    assert len({round(float(value), 4) for value in views[:, 0, 0, 0]}) == 8
