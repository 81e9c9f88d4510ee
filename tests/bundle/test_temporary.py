import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from plantmodels.bundle import temporary as scratch
from plantmodels.bundle.temporary import redirect_temporary_files, temporary_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_ends_with_its_block(temporary: Path) -> None:
    with pytest.raises(KeyError), temporary_folder("load") as folder:
        (folder / "file").touch()
        assert folder.parent == temporary and folder.name.startswith("plantmodels-scratch-load-")
        raise KeyError
    assert list(temporary.iterdir()) == []


def test_a_killed_process_leaves_its_folder_to_the_next_one_and_a_living_one_keeps_it(temporary: Path) -> None:
    script = (
        "from plantmodels.bundle.temporary import temporary_folder\n"
        "with temporary_folder('load') as folder: (folder / 'file').touch(); print(folder, flush=True); input()"
    )
    environment = {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        left = Path(child.stdout.readline().strip())
        with temporary_folder("load"):
            assert (left / "file").exists()
        child.kill()
    assert (left / "file").exists()
    with temporary_folder("load") as folder:
        assert list(temporary.iterdir()) == [folder]


def test_what_another_program_named_alike_stays(temporary: Path) -> None:
    (temporary / "plantmodels-load-old").mkdir()
    (temporary / "plantmodels-scratch-link").symlink_to(temporary / "plantmodels-load-old")
    (temporary / "plantmodels-scratch-file").touch()
    with temporary_folder("load"):
        assert len(list(temporary.iterdir())) == 4


@pytest.mark.parametrize("taken", [BlockingIOError, FileNotFoundError])
def test_a_folder_taken_for_abandoned_is_made_anew(monkeypatch: pytest.MonkeyPatch, taken: type[OSError]) -> None:
    lock, errors = scratch._lock, [taken()]
    monkeypatch.setattr(scratch, "_remove_abandoned", lambda: None)

    def neighbour(folder: Path) -> int:
        if errors:
            raise errors.pop()
        return lock(folder)

    monkeypatch.setattr(scratch, "_lock", neighbour)
    with temporary_folder("load") as folder:
        assert folder.is_dir() and errors == []


def test_without_locks_nothing_is_abandoned(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> int:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(scratch, "_lock", refuse)
    with temporary_folder("load") as first, temporary_folder("load") as second:
        assert first.is_dir() and second.is_dir()
    assert list(temporary.iterdir()) == []


def test_other_libraries_files_lie_in_it(temporary: Path) -> None:
    with redirect_temporary_files("upload"):
        assert Path(tempfile.mkdtemp()).parent.parent == temporary
    assert list(temporary.iterdir()) == [] and tempfile.tempdir == str(temporary)
