import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from plantmodels.bundle import temporary as module
from plantmodels.bundle.file_lock import hold_file_lock
from plantmodels.bundle.temporary import redirect_temporary_files, temporary_folder

PREFIX = "plantmodels-temporary-"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def lock_file_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def test_a_folder_ends_with_its_block(temporary: Path) -> None:
    with pytest.raises(KeyError), temporary_folder("load") as folder:
        (folder / "file").touch()
        assert folder.parent == temporary and folder.name.startswith(f"{PREFIX}load-")
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
        assert sorted(temporary.iterdir()) == sorted([folder, lock_file_of(folder)])
    assert list(temporary.iterdir()) == []


def test_what_another_program_named_alike_stays(temporary: Path) -> None:
    (temporary / "plantmodels-load-old").mkdir()
    (temporary / f"{PREFIX}without-a-lock-file").mkdir()
    (temporary / f"{PREFIX}link").symlink_to(temporary / "plantmodels-load-old")
    (temporary / f".{PREFIX}link.lock").touch()
    (temporary / f"{PREFIX}file").touch()
    with temporary_folder("load") as folder:
        assert folder.is_dir()
    assert {path.name for path in temporary.iterdir()} == {
        "plantmodels-load-old",
        f"{PREFIX}without-a-lock-file",
        f"{PREFIX}link",
        f"{PREFIX}file",
    }


def test_a_neighbour_that_looks_for_abandoned_folders_is_waited_for(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lock our lock file before we do."""
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "0")
    monkeypatch.setattr(module, "_remove_abandoned", lambda: None)
    lock_file = temporary / f".{PREFIX}load-0.lock"
    neighbour = hold_file_lock(lock_file)
    neighbour.__enter__()
    timer = threading.Timer(0.2, neighbour.__exit__, (None, None, None))
    timer.start()
    with temporary_folder("load") as folder:
        timer.join()
        assert folder.is_dir() and lock_file.exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_nothing_is_abandoned(temporary: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folder("load") as first, temporary_folder("load") as second:
        assert first.is_dir() and second.is_dir()
    assert list(temporary.iterdir()) == []


def test_without_filelock_nothing_is_abandoned(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service has the serving libraries alone; a process that has filelock leaves its folders alone."""
    with monkeypatch.context() as without_filelock:
        without_filelock.setattr(module.importlib.util, "find_spec", lambda _: None)
        service = temporary_folder("load")
        first = service.__enter__()
        assert list(temporary.iterdir()) == [first]
    with temporary_folder("load") as second:
        assert sorted(temporary.iterdir()) == sorted([first, second, lock_file_of(second)])
    service.__exit__(None, None, None)
    assert list(temporary.iterdir()) == []


def test_temporary_files_of_libraries_are_redirected(temporary: Path) -> None:
    with redirect_temporary_files("upload"):
        assert Path(tempfile.mkdtemp()).parent.parent == temporary
    assert list(temporary.iterdir()) == [] and tempfile.tempdir == str(temporary)
