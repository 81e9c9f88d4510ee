"""Checks distillation: the student's interface, resuming, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import CheckpointError, TrainingError
from plantmodels.export.network import load_network
from plantmodels.training import distill, students
from plantmodels.training.distill import DistillReport, distill_network
from plantmodels.training.recipe import EpochRecord, Recipe, Stage

RECIPE = Recipe((Stage(112, 1), Stage(224, 1)), batch_size=32)
STUDENT = "tiny"
SWIN = {"patch_size": 32, "embed_dim": 16, "depths": [1], "num_heads": [2], "drop_path_rate": 0.0}


@pytest.fixture(scope="module", autouse=True)
def tiny_student() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(students, "STUDENTS", {STUDENT: students.Student("swin_tiny_patch4_window7_224", SWIN, True)})
        yield


@pytest.fixture(scope="module")
def distilled(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DistillReport, Path]:
    out = tmp_path_factory.mktemp("distilled") / "student.ckpt"
    return distill_network(tiny_checkpoint, tiny_data, out, RECIPE, student=STUDENT), out


def test_the_student_has_the_teachers_interface(distilled: tuple[DistillReport, Path], tiny_checkpoint: Path):
    report, out = distilled
    student, teacher = read_checkpoint(out), read_checkpoint(tiny_checkpoint)
    assert student.spec.taxonomy == teacher.spec.taxonomy
    assert student.spec.preprocessing == teacher.spec.preprocessing
    assert student.spec.embedding_dim == teacher.spec.embedding_dim and student.projection is not None
    load_network(student)
    assert len(report.training.records) == 2 and report.int8_bytes > 0 and report.inherited > 0
    assert "INT8 species file" in report.describe()
    assert [path.name for path in out.parent.iterdir()] == ["student.ckpt"]


def test_a_stopped_distillation_resumes_without_running_the_teacher_again(
    distilled: tuple[DistillReport, Path],
    tiny_checkpoint: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def stop(_: EpochRecord) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "student.ckpt"
    with pytest.raises(KeyboardInterrupt):
        distill_network(tiny_checkpoint, tiny_data, out, RECIPE, student=STUDENT, observer=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.ckpt.state", "student.ckpt.teacher"]
    monkeypatch.setattr(distill, "log_step", lambda *_, **__: pytest.fail("the teacher was asked again"))
    distill_network(tiny_checkpoint, tiny_data, out, RECIPE, student=STUDENT)
    assert out.read_bytes() == distilled[1].read_bytes()


def test_a_student_over_the_limit_is_refused_before_any_work(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(distill, "read_training_set", lambda *_: pytest.fail("leaves were read"))
    with pytest.raises(TrainingError, match=r"takes .* bytes in INT8, the limit is 1,000"):
        distill_network(tiny_checkpoint, tiny_data, tmp_path / "x", RECIPE, student=STUDENT, max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_outputs_of_another_teacher_are_refused(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path):
    teacher_outputs = tmp_path / "x.teacher"
    torch.save({"fingerprint": "other"}, teacher_outputs)
    with pytest.raises(TrainingError, match=r"x\.teacher: belongs to another teacher or other leaves"):
        distill_network(tiny_checkpoint, tiny_data, tmp_path / "x", RECIPE, student=STUDENT)
    teacher_outputs.write_bytes(b"rubbish")
    with pytest.raises(TrainingError, match=r"x\.teacher: not the outputs of a teacher"):
        distill_network(tiny_checkpoint, tiny_data, tmp_path / "x", RECIPE, student=STUDENT)


def test_an_absent_teacher_is_named(tiny_data: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no\.ckpt"):
        distill_network(tmp_path / "no.ckpt", tiny_data, tmp_path / "x", RECIPE)
