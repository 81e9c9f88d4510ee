import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from examples.drawn_leaves import prepare
from examples.drawn_leaves.__main__ import main
from examples.drawn_leaves.draw import TAXONOMY
from examples.drawn_leaves.prepare import DemoPaths, DemoRecipe, prepare_demo
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import DataError
from plantmodels.export.network import load_network

TINY = DemoRecipe(
    4, 1, 6, coarse_epochs=1, fine_epochs=1, batch_size=16, embed_dim=16, depths=(1, 1, 1), num_heads=(1, 1, 2)
)
TRAINING = {
    "train_seconds": 1.0,
    "dtype": "float32",
    "species_accuracy": 0.9,
    "disease_accuracy": 0.8,
    "end_to_end_accuracy": 0.7,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces drawing and training by stubs; returns the list of what they did."""
    calls: list[str] = []

    def draw(folder: Path, **_: Any) -> None:
        calls.append("draw")
        for name in ("data/train/a", "non_plants/b"):
            (folder / name).mkdir(parents=True)
            (folder / name / "0001.jpg").write_bytes(b"image")

    def train(data: Path, checkpoint: Path, *_: Any) -> dict[str, Any]:
        calls.append("train")
        checkpoint.write_bytes(b"weights")
        return TRAINING

    monkeypatch.setattr(prepare, "draw_dataset", draw)
    monkeypatch.setattr(prepare, "_train_checkpoint", train)
    return calls


def test_draws_and_trains_a_checkpoint_of_contract_1(tmp_path: Path):
    paths = prepare_demo(tmp_path / "demo", recipe=TINY)
    assert paths.made
    assert len(list(paths.data.glob("train/*/*.jpg"))) == 100
    assert len(list(paths.non_plants.glob("*/*.jpg"))) == 6
    checkpoint = read_checkpoint(paths.checkpoint)
    assert checkpoint.spec.taxonomy.species == tuple(TAXONOMY)
    assert dict(checkpoint.spec.taxonomy.diseases) == TAXONOMY
    species_logits, embedding = load_network(checkpoint)(torch.zeros(1, 3, 224, 224))
    assert species_logits.shape == (1, len(TAXONOMY))
    assert embedding.shape == (1, 768)
    assert f"{len(TAXONOMY)} species, 25 classes, 125 leaves and 6 non-plants drawn" in paths.summary


def test_a_complete_demo_is_left_alone(tmp_path: Path, quick: list[str]):
    first = prepare_demo(tmp_path)
    second = prepare_demo(tmp_path)
    assert (first.made, second.made) == (True, False)
    assert quick == ["draw", "train"]
    assert second.summary == first.summary


def _interrupt(folder: Path) -> None:
    record = json.loads((folder / "demo.json").read_text())
    (folder / "demo.json").write_text(json.dumps({"state": "started", "recipe": record["recipe"]}))


@pytest.mark.parametrize(
    "damage",
    [
        _interrupt,
        lambda folder: (folder / "demo.ckpt").unlink(),
        lambda folder: (folder / "demo.ckpt").write_bytes(b"weightz"),
        lambda folder: (folder / "data/train/a/0001.jpg").unlink(),
        lambda folder: (folder / "data/train/a/0001.jpg").write_bytes(b""),
        lambda folder: (folder / "non_plants/b/0001.jpg").unlink(),
    ],
    ids=["interrupted", "no checkpoint", "other checkpoint", "leaf gone", "leaf empty", "non-plant gone"],
)
def test_an_incomplete_demo_is_made_again(tmp_path: Path, quick: list[str], damage: Any):
    prepare_demo(tmp_path)
    damage(tmp_path)
    assert prepare_demo(tmp_path).made
    assert quick == ["draw", "train"] * 2


def test_training_that_fails_is_not_taken_for_complete(
    tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_train_checkpoint", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_demo(tmp_path)
    (tmp_path / ".drawing-old").mkdir()
    assert prepare_demo(tmp_path).made
    assert quick == ["draw", "draw", "train"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "demo.ckpt", "demo.json", "non_plants"]


def test_another_seed_or_recipe_or_code_makes_it_again(
    tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
):
    prepare_demo(tmp_path)
    assert prepare_demo(tmp_path, seed=1).made
    assert prepare_demo(tmp_path, seed=1, recipe=TINY).made
    assert not prepare_demo(tmp_path, seed=1, recipe=TINY).made
    monkeypatch.setattr(prepare, "_SOURCES", prepare._SOURCES[:1])
    assert prepare_demo(tmp_path, seed=1, recipe=TINY).made
    assert quick.count("train") == 4


@pytest.mark.parametrize("name", ["data", "non_plants", "demo.ckpt"])
def test_what_no_demo_made_is_not_touched(tmp_path: Path, quick: list[str], name: str):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"{name}: exists, but demo\.json"):
        prepare_demo(tmp_path)
    assert quick == []
    assert (tmp_path / name).is_dir()


def test_unwritable_folder_is_named(tmp_path: Path, quick: list[str]):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: the demo cannot be written there"):
        prepare_demo(tmp_path / "file")
    assert quick == []


def test_the_command_prints_what_it_did(tmp_path: Path, quick: list[str]):
    first, second = (CliRunner().invoke(main, [str(tmp_path)]) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert "demo made: 10 species, 25 classes" in first.output
    assert "demo already complete" in second.output
    assert str(tmp_path / "demo.ckpt") in second.output


def test_the_command_reports_known_errors_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(folder: Path, seed: int) -> DemoPaths:
        raise DataError("no room")

    monkeypatch.setattr("examples.drawn_leaves.__main__.prepare_demo", refuse)
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == "Error: no room\n"
