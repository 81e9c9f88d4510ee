"""Checks trainings and distillations from the options of the command line."""

import io
from pathlib import Path

import pytest
from PIL import Image

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import TrainingError
from plantmodels.training import distill
from plantmodels.training.curves import curves_path, draw_curves
from plantmodels.training.distill import run_distill
from plantmodels.training.losses import DistillWeights
from plantmodels.training.recipe import EpochRecord, Stage
from plantmodels.training.requests import DistillRequest, TrainRequest, parse_stages
from plantmodels.training.train import run_train


def record(epoch: int, side: int, disease: float | None = 0.5) -> EpochRecord:
    return EpochRecord(epoch, side, 1 / epoch, 1e-3, 0.6, disease, 0.4, 1.0)


def test_trains_on_the_folders_classes_in_alphabetical_order(tiny_data: Path, tmp_path: Path):
    request = TrainRequest(tiny_data, tmp_path / "x.ckpt", backbone="test_resnet", embedding_dim=16, stages="32:1,64:1")
    report = run_train(request)
    assert [entry.image_size for entry in report.records] == [32, 64]
    taxonomy = read_checkpoint(request.out).spec.taxonomy
    assert list(taxonomy.species) == sorted({path.name.split("___")[0] for path in (tiny_data / "train").iterdir()})
    assert curves_path(request.out).read_bytes() == draw_curves(report.records, report.best)


@pytest.mark.slow
def test_distills_by_request(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path):
    request = DistillRequest(tiny_checkpoint, tiny_data, tmp_path / "x.ckpt", student="test_resnet", stages="224:1")
    assert run_distill(request).training.best.image_size == 224
    assert curves_path(request.out).is_file()


@pytest.mark.parametrize("labels_only", [False, True])
def test_a_rival_of_the_student_learns_from_the_labels_alone(
    tiny_data: Path, tmp_path: Path, labels_only: bool, monkeypatch: pytest.MonkeyPatch
):
    seen: list[DistillWeights | None] = []

    def remember(*_: object, weights: DistillWeights | None, **__: object) -> None:
        seen.append(weights)
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "distill_network", remember)
    with pytest.raises(KeyboardInterrupt):
        run_distill(DistillRequest(tmp_path, tiny_data, tmp_path / "x", labels_only=labels_only))
    assert seen == [DistillWeights(embedding=0, logits=0, labels=1) if labels_only else None]


def test_stages_are_read():
    assert parse_stages("112:15, 224:5") == (Stage(112, 15), Stage(224, 5))


@pytest.mark.parametrize("text", ["", "112", "112:x", "112:1:2", "112:1;224:1"])
def test_text_that_cannot_be_parsed_as_stages_is_refused(text: str):
    with pytest.raises(TrainingError, match="stages must be SIDE:EPOCHS"):
        parse_stages(text)


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_backbone_arguments_must_be_an_object(tiny_data: Path, tmp_path: Path, text: str):
    with pytest.raises(TrainingError, match="backbone_kwargs must be a JSON object"):
        run_train(TrainRequest(tiny_data, tmp_path / "x", backbone_kwargs=text))


def test_an_invalid_recipe_names_the_checkpoint(tiny_data: Path, tmp_path: Path):
    with pytest.raises(
        TrainingError, match=r"x\.ckpt: at least one stage is needed, and images must grow from stage to stage"
    ):
        run_train(TrainRequest(tiny_data, tmp_path / "x.ckpt", stages="224:1,112:1"))


@pytest.mark.parametrize("disease", [0.5, None])
def test_curves_are_an_image_and_always_the_same(disease: float | None):
    records = [record(1, 112, disease), record(2, 112, disease), record(3, 224, disease)]
    first, second = (draw_curves(records, records[-1]) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first)).size == (1520, 580)
