"""Checks training: it learns, resumes, writes contract 1, and its augmentation follows the seed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.data.leaves import digest_each, read_leaves, split_by_name
from plantmodels.errors import CheckpointError, DataError, TrainingError
from plantmodels.export.network import load_network
from plantmodels.serve.preprocessing import decode_image, preprocess
from plantmodels.training import loop
from plantmodels.training.augment import augment
from plantmodels.training.recipe import EpochRecord, Recipe, Stage
from plantmodels.training.train import TrainReport, read_training_set, state_path, train_network

SIDE = 56
DISEASES = {"Pepper, bell": ("spot", "healthy"), "Cherry (sour)": ("healthy",)}
SPEC = NetworkSpec(
    backbone="swin_tiny_patch4_window7_224",
    backbone_kwargs={"img_size": SIDE, "patch_size": 8, "embed_dim": 16, "depths": [1], "num_heads": [2]},
    embedding_dim=24,
    preprocessing=Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    taxonomy=Taxonomy(("Pepper, bell", "Mint", "Cherry (sour)"), DISEASES),
)
RESNET = replace(SPEC, backbone="test_resnet", backbone_kwargs={})
CLASSES = ("Pepper, bell___spot", "Pepper, bell___healthy", "Mint___whatever", "Cherry (sour)___healthy")
QUICK = Recipe((Stage(28, 1), Stage(56, 1)), batch_size=20, scale_patches=True)


def toy(kind: int, seed: int) -> Image.Image:
    """Noise over one of three plain colors; on the first there is a dark spot."""
    rng = np.random.default_rng((kind, seed))
    pixels = rng.normal(0, 20, (64, 64, 3)) + [(190, 80, 80), (190, 80, 80), (80, 190, 80), (80, 80, 190)][kind]
    if kind == 0:
        x, y = rng.integers(0, 34, 2)
        pixels[y : y + 30, x : x + 30] -= 120
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leaf folders with the split "train" only: training reads no other."""
    root = tmp_path_factory.mktemp("toy")
    for kind, name in enumerate(CLASSES):
        (root / "train" / name).mkdir(parents=True)
        for number in range(16):
            toy(kind, number).save(root / "train" / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainReport, Path]:
    out = tmp_path_factory.mktemp("trained") / "toy.ckpt"
    recipe = Recipe(
        (Stage(28, 14), Stage(56, 2)), batch_size=12, learning_rate=8e-3, scale_patches=True, held_out=0.2, average=0.9
    )
    return train_network(data, out, SPEC, recipe), out


def test_learns_above_chance(trained: tuple[TrainReport, Path]):
    report, _ = trained
    assert report.best.species_accuracy >= 0.8
    assert report.best.disease_accuracy is not None and report.best.disease_accuracy > 0.6
    assert report.best.end_to_end_accuracy <= report.best.species_accuracy
    losses = [record.loss for record in report.records]
    assert len(losses) == 16 and losses[-1] < 0.7 * losses[0]
    assert report.train_images + report.held_out_images == 64 and report.unreadable == ()
    assert report.dtype in ("float32", "bfloat16") and report.train_seconds > 0


def test_the_best_epoch_of_the_last_stage_is_kept(trained: tuple[TrainReport, Path]):
    report, _ = trained
    last = [record for record in report.records if record.image_size == SIDE]
    assert [record.epoch for record in last] == [15, 16]
    assert report.best.end_to_end_accuracy == max(record.end_to_end_accuracy for record in last)


def test_writes_contract_1_and_leaves_nothing_else(trained: tuple[TrainReport, Path]):
    _, out = trained
    document = torch.load(out, weights_only=True)
    assert set(document) == {"state_dict", "hyper_parameters"}
    assert document["hyper_parameters"]["species"] == ["Pepper, bell", "Mint", "Cherry (sour)"]
    assert document["hyper_parameters"]["image_size"] == SIDE
    heads = {name for name in document["state_dict"] if name.startswith("disease_heads.")}
    assert {name.split(".")[1] for name in heads} == {"pepper-bell", "cherry-sour"}
    assert all(t.dtype == torch.float32 for t in document["state_dict"].values() if t.is_floating_point())
    assert read_checkpoint(out).spec == SPEC
    assert [path.name for path in out.parent.iterdir()] == ["toy.ckpt"]


def test_the_checkpoint_names_the_leaves_held_out(trained: tuple[TrainReport, Path], data: Path):
    report, out = trained
    leaves = read_leaves(data, "train", SPEC.taxonomy)
    _, held_out = split_by_name(leaves, 0.2, len(leaves.samples), 0)

    assert read_checkpoint(out).held_out == frozenset(digest_each(held_out).values())
    assert len(read_checkpoint(out).held_out) == report.held_out_images


def test_a_leaf_that_is_also_trained_on_is_not_named_as_held_out(data: Path, tmp_path: Path):
    leaves = read_leaves(data, "train", SPEC.taxonomy)
    rest, held_out = split_by_name(leaves, 0.2, len(leaves.samples), 0)
    copied = Path(shutil.copytree(data, tmp_path / "data"))
    twin = held_out.paths[0].relative_to(data)
    shutil.copy(copied / rest.paths[0].relative_to(data), copied / twin)
    found = read_training_set(copied, tmp_path / "toy.ckpt", SPEC, Recipe((Stage(SIDE, 1),), held_out=0.2))

    assert len(found.held_out_sha256) == len(held_out.samples) - 1
    assert digest_each(rest)[rest.paths[0]] not in found.held_out_sha256


def test_the_checkpoint_knows_the_training_leaves(trained: tuple[TrainReport, Path], data: Path):
    _, out = trained
    network = load_network(read_checkpoint(out))
    right = []
    for path in sorted(data.glob("train/*/*.png")):
        pixels = preprocess(decode_image(path.read_bytes()), SPEC.preprocessing)
        with torch.inference_mode():
            best = int(network(torch.from_numpy(pixels)[None])[0].argmax())
        right.append(SPEC.taxonomy.species[best] == path.parent.name.split("___")[0])
    assert np.mean(right) >= 0.9


def test_same_seed_same_bytes_and_no_trace_in_the_global_generator(data: Path, tmp_path: Path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_network(data, tmp_path / name, SPEC, replace(QUICK, seed=seed))
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a", "b", "c"))
    assert a == b
    assert a != c


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_killed_training_resumes_and_ends_with_the_same_bytes(data: Path, tmp_path: Path, stop_after: int):
    recipe = replace(QUICK, stages=(Stage(28, 2), Stage(56, 2)))
    train_network(data, tmp_path / "whole", SPEC, recipe)

    def stop(record: EpochRecord) -> None:
        if record.epoch == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network(data, tmp_path / "stopped", SPEC, recipe, observer=stop)
    assert not (tmp_path / "stopped").exists() and state_path(tmp_path / "stopped").is_file()
    seen: list[int] = []
    report = train_network(data, tmp_path / "stopped", SPEC, recipe, observer=lambda record: seen.append(record.epoch))
    assert seen == [1, 2, 3, 4] and len(report.records) == 4
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


def test_a_state_of_another_training_is_refused(data: Path, tmp_path: Path):
    def stop(_: EpochRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network(data, tmp_path / "x", SPEC, QUICK, observer=stop)
    with pytest.raises(TrainingError, match=r"x\.state: belongs to a training with another recipe"):
        train_network(data, tmp_path / "x", SPEC, replace(QUICK, batch_size=21))
    state_path(tmp_path / "x").write_bytes(b"rubbish")
    with pytest.raises(TrainingError, match=r"x\.state: not the state of a training"):
        train_network(data, tmp_path / "x", SPEC, QUICK)


def test_a_stage_without_progress_ends_early(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flat = {"species_accuracy": 0.5, "disease_accuracy": None, "end_to_end_accuracy": 0.5}
    monkeypatch.setattr(loop, "measure_accuracies", lambda *_: flat)
    recipe = replace(QUICK, stages=(Stage(28, 9), Stage(56, 9)), patience=2)
    report = train_network(data, tmp_path / "x", SPEC, recipe)
    assert [record.image_size for record in report.records] == [28] * 3 + [56] * 3
    assert report.best.epoch == 4


def test_a_loss_that_is_not_finite_is_an_error(data: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="the loss is nan; a learning rate below"):
        train_network(data, tmp_path / "x", SPEC, replace(QUICK, learning_rate=1e30))


def test_without_projection_the_features_are_the_embedding(data: Path, tmp_path: Path):
    train_network(data, tmp_path / "x.ckpt", replace(SPEC, embedding_dim=16), QUICK, projection=False)
    assert read_checkpoint(tmp_path / "x.ckpt").projection is None


def test_convolutional_backbones_train_on_growing_images_too(data: Path, tmp_path: Path):
    train_network(data, tmp_path / "x.ckpt", RESNET, replace(QUICK, scale_patches=False))
    load_network(read_checkpoint(tmp_path / "x.ckpt"))


def test_no_step_has_a_single_image_which_batch_norm_would_refuse(data: Path, tmp_path: Path):
    report = train_network(data, tmp_path / "x.ckpt", RESNET, replace(QUICK, scale_patches=False))
    batch_size = next(size for size in range(5, 64) if report.train_images % size == 1)
    stages = (Stage(28, 1), Stage(56, 1))
    train_network(data, tmp_path / "x", RESNET, Recipe(stages, batch_size=batch_size))


def test_only_split_train_is_read_and_its_absence_is_named(data: Path, tmp_path: Path):
    (tmp_path / "val").symlink_to(data / "train")
    with pytest.raises(DataError, match="train: no such folder"):
        train_network(tmp_path, tmp_path / "x.ckpt", SPEC, QUICK)
    (tmp_path / "train" / CLASSES[0]).mkdir(parents=True)
    toy(0, 0).save(tmp_path / "train" / CLASSES[0] / "0.png")
    with pytest.raises(DataError, match="1 training leaves cannot be divided"):
        train_network(tmp_path, tmp_path / "x.ckpt", SPEC, QUICK)
    assert not (tmp_path / "x.ckpt").exists()


def test_an_unwritable_target_is_found_before_training(data: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"x\.ckpt: .*absent is not a folder that can be written to"):
        train_network(data, tmp_path / "absent" / "x.ckpt", SPEC, QUICK)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((Stage(28, 1),), "the last stage must have the network's image size 56, got 28"),
        ((Stage(40, 1), Stage(56, 1)), "image_size 56 / 40 must be a whole number that divides .*8"),
    ],
)
def test_stages_that_do_not_fit_the_network_are_refused(
    data: Path, tmp_path: Path, stages: tuple[Stage, ...], message: str
):
    with pytest.raises(TrainingError, match=message):
        train_network(data, tmp_path / "x", SPEC, replace(QUICK, stages=stages))


def test_augmentation_varies_images_and_follows_its_generator():
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    first, again = (augment(images, torch.Generator().manual_seed(1)) for _ in range(2))
    other = augment(images, torch.Generator().manual_seed(2))
    assert first.shape == images.shape and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(images, kept)
    assert not torch.allclose(first, images, atol=0.05)


def test_augmentation_turns_every_way():
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, :16] = 1
    views = augment(image.expand(64, -1, -1, -1), torch.Generator().manual_seed(0))[:, 0]
    brighter = torch.stack([views[:, :16].mean((1, 2)), views[:, 16:].mean((1, 2))])
    vertical = (brighter[0] - brighter[1]).abs() > 0.4
    assert 16 < int(vertical.sum()) < 48


def test_augmentation_keeps_a_plain_image_plain():
    generator = torch.Generator().manual_seed(3)
    views = augment(torch.full((8, 3, 16, 16), 0.4), generator)
    np.testing.assert_allclose(views.std(dim=(2, 3)), 0, atol=1e-5)
    assert len({round(float(value), 4) for value in views[:, 0, 0, 0]}) == 8
