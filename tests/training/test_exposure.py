"""Checks training with non-plants: only their selection half is used, and the network learns to tell it from leaves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.data.digests import digest_content
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import DataError, TrainingError
from plantmodels.export.network import load_network
from plantmodels.ood.metrics import auroc
from plantmodels.serve.preprocessing import decode_image, preprocess
from plantmodels.training.dataset import NonPlantImages
from plantmodels.training.losses import ExposedNetwork, exposure_loss
from plantmodels.training.recipe import EpochRecord, Recipe, Stage
from plantmodels.training.train import train_network

SIDE = 32
SPEC = NetworkSpec(
    backbone="swin_tiny_patch4_window7_224",
    backbone_kwargs={"img_size": SIDE, "patch_size": 8, "embed_dim": 16, "depths": [1], "num_heads": [2]},
    embedding_dim=12,
    preprocessing=Preprocessing(SIDE, (0.5,) * 3, (0.25,) * 3),
    taxonomy=Taxonomy(("Mint", "Sage"), {}),
)
RECIPE = Recipe((Stage(16, 1), Stage(SIDE, 1)), batch_size=16, scale_patches=True)
COLORS = {"Mint": (80, 190, 80), "Sage": (150, 120, 60)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain noisy images of two species."""
    root, rng = tmp_path_factory.mktemp("leaves"), np.random.default_rng(0)
    for species, color in COLORS.items():
        folder = root / "train" / f"{species}___any"
        folder.mkdir(parents=True)
        for number in range(24):
            save(folder / f"{number}.png", rng.normal(0, 20, (SIDE, SIDE, 3)) + color)
    return root


@pytest.fixture(scope="module")
def non_plants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose red and green are those of the leaves, and whose blue is not."""
    root, rng = tmp_path_factory.mktemp("others"), np.random.default_rng(1)
    for number in range(60):
        red, green, _ = COLORS["Mint" if number % 2 else "Sage"]
        save(root / f"{number}.png", np.array([red, green, 200]) + rng.normal(0, 20, (SIDE, SIDE, 3)))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(data: Path, non_plants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exposed") / "x.ckpt"
    report = train_network(data, out, SPEC, RECIPE, non_plants=non_plants)
    assert f"told apart from {report.non_plants} non-plants of the selection half" in report.describe()
    return out


def test_the_gates_half_changes_nothing(data: Path, non_plants: Path, trained: Path, tmp_path: Path):
    selection = tmp_path / "selection"
    selection.mkdir()
    for path in read_non_plants(non_plants).half("selection").paths:
        (selection / path.name).write_bytes(path.read_bytes())
    train_network(data, tmp_path / "x.ckpt", SPEC, RECIPE, non_plants=selection)
    assert (tmp_path / "x.ckpt").read_bytes() == trained.read_bytes()


def test_the_checkpoint_names_the_non_plants_and_keeps_contract_1(non_plants: Path, trained: Path):
    document = torch.load(trained, weights_only=True)
    halves, seen = read_non_plants(non_plants), read_checkpoint(trained).seen_non_plants
    assert seen == set(map(digest_content, halves.half("selection").paths))
    assert not seen & set(map(digest_content, halves.half("gate").paths))
    roots = {name.split(".")[0] for name in document["state_dict"]}
    assert roots == {"backbone", "projection", "species_head"}
    assert read_checkpoint(trained).spec == SPEC and read_checkpoint(trained).ignored == ""


def test_embeddings_of_non_plants_lie_apart(data: Path, non_plants: Path, tmp_path: Path):
    recipe = replace(RECIPE, stages=(Stage(16, 9), Stage(SIDE, 1)), learning_rate=8e-3, average=0.9)
    train_network(data, tmp_path / "x.ckpt", SPEC, recipe, non_plants=non_plants)
    network = load_network(read_checkpoint(tmp_path / "x.ckpt"))

    def embed(paths: list[Path]) -> np.ndarray:
        pixels = np.stack([preprocess(decode_image(path.read_bytes()), SPEC.preprocessing) for path in paths])
        with torch.inference_mode():
            return network(torch.from_numpy(pixels))[1].numpy()

    halves = read_non_plants(non_plants)
    leaves = embed(sorted(data.glob("train/*/*.png")))
    seen, unseen = embed(list(halves.half("selection").paths)), embed(list(halves.half("gate").paths))
    direction = seen.mean(axis=0) - leaves.mean(axis=0)
    assert auroc(leaves @ direction, unseen @ direction) > 0.98


def test_a_stopped_training_resumes_with_the_same_bytes(data: Path, non_plants: Path, trained: Path, tmp_path: Path):
    def stop(_: EpochRecord) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "x.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train_network(data, out, SPEC, RECIPE, non_plants=non_plants, observer=stop)
    with pytest.raises(TrainingError, match=r"x\.ckpt\.state: belongs to a training with another recipe, other data"):
        train_network(data, out, SPEC, RECIPE)
    train_network(data, out, SPEC, RECIPE, non_plants=non_plants)
    assert out.read_bytes() == trained.read_bytes()


def test_too_few_non_plants_are_refused(data: Path, non_plants: Path, tmp_path: Path):
    few = tmp_path / "few"
    few.mkdir()
    for number in range(20):
        (few / f"{number}.png").write_bytes((non_plants / f"{number}.png").read_bytes())
    count = len(read_non_plants(few).half("selection").paths)
    message = rf"few: training needs at least 20 non-plants in the selection half, got {count}; the gates need"
    with pytest.raises(DataError, match=message):
        train_network(data, tmp_path / "x.ckpt", SPEC, RECIPE, non_plants=few)
    assert not (tmp_path / "x.ckpt").exists()


def test_leaves_among_the_non_plants_are_refused(data: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"non-plants are leaves of .*, byte for byte: train/Mint___any/"):
        train_network(data, tmp_path / "x.ckpt", SPEC, RECIPE, non_plants=data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no images"):
        train_network(data, tmp_path / "x.ckpt", SPEC, RECIPE, non_plants=tmp_path / "empty")


def test_the_loss_equals_a_slow_loop():
    torch.manual_seed(0)
    network = ExposedNetwork(SPEC, projection=True)
    plants, others = torch.randn(5, 12), torch.randn(3, 12)
    weight, bias = network.non_plant_head.weight.detach().numpy()[0], float(network.non_plant_head.bias.detach())
    wrong = [-np.log(1 - expit(row @ weight + bias)) for row in plants.numpy()]
    missed = [-np.log(expit(row @ weight + bias)) for row in others.numpy()]
    found = float(exposure_loss(network, plants, others).detach())
    assert found == pytest.approx((np.mean(wrong) + np.mean(missed)) / 2, rel=1e-5)


def test_crops_are_squares_of_the_image_and_never_enlarged():
    columns = np.broadcast_to(np.arange(40, dtype=np.uint8), (8, 3, 40, 40))
    images = NonPlantImages(columns, Preprocessing(40, (0,) * 3, (1,) * 3), (), ())
    generator, rows, cpu = torch.Generator().manual_seed(0), torch.arange(8), torch.device("cpu")
    whole = images.load_crops(rows, 40, cpu, generator)
    torch.testing.assert_close(whole, images.load_batch(rows, 40, cpu))
    small = images.load_crops(rows, 10, cpu, generator)[:, 0] * 255
    sides = (small[:, 0, -1] - small[:, 0, 0]) * 10 / 9
    assert small.shape == (8, 10, 10) and 19 <= float(sides.min()) < float(sides.max()) <= 41
    assert len(set(small[:, 0, 0].tolist())) > 4
