"""One writer at a time; what dead ones left is removed, and what living ones have never is."""

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plantmodels.bundle.manifest import write_manifest
from plantmodels.errors import ExportError
from plantmodels.export import staging
from plantmodels.export.lock import lock_bundle
from plantmodels.export.staging import staged_bundle

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import os, signal, sys
from pathlib import Path
from plantmodels.export import staging
from plantmodels.export.lock import lock_bundle
from plantmodels.bundle.manifest import write_manifest
from plantmodels.export.staging import staged_bundle

out, die = Path(sys.argv[1]), sys.argv[2]
if die == "between two renames":
    rename = os.rename
    staging._exchange = lambda *_: False
    staging.os.rename = lambda *paths: (rename(*paths), os.kill(os.getpid(), signal.SIGKILL))
with lock_bundle(out), staged_bundle(out) as folder:
    print("holding", flush=True)
    if die != "between two renames":
        with lock_bundle(folder), staged_bundle(folder) as inner:
            (inner / "half written").write_text("x")
            print("holding inside", flush=True)
            if die == "at once":
                os.kill(os.getpid(), signal.SIGKILL)
            sys.stdin.read()
            write_manifest(inner)
"""


def start_writer(out: Path, die: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out), die],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline() == "holding\n"
    process.stdout.readline()
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An older bundle in a folder of its own."""
    out = tmp_path / "public" / "models"
    out.mkdir(parents=True)
    (out / "model.onnx").write_text("old")
    write_manifest(out)
    return out


def test_nothing_is_left_beside_the_bundle(out: Path) -> None:
    with lock_bundle(out):
        assert names(out.parent) == [".models.lock", "models"]
        assert re.match(rf"process {os.getpid()} on .", (out.parent / ".models.lock").read_text())
    assert names(out.parent) == ["models"]
    with pytest.raises(ValueError, match="bug"), lock_bundle(out):
        raise ValueError("bug")
    assert names(out.parent) == ["models"]


def test_a_second_process_is_told_at_once_who_the_first_is(out: Path) -> None:
    with start_writer(out, "when told") as writer:
        for _ in range(2):
            match = rf"models: process {writer.pid} on .* is writing it; nothing was changed"
            with pytest.raises(ExportError, match=match), lock_bundle(out):
                pytest.fail("was entered")
        writer.communicate("")
    with lock_bundle(out):
        assert names(out.parent) == [".models.lock", "models"]


def test_a_second_thread_is_kept_out_as_well_and_another_bundle_is_not(out: Path) -> None:
    refused: list[str] = []

    def hold() -> None:
        try:
            with lock_bundle(out):
                pass
        except ExportError as error:
            refused.append(str(error))

    with lock_bundle(out), lock_bundle(out.parent / "models.staging-of-mine"), lock_bundle(out.parent / "model"):
        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]


def test_of_many_that_come_and_go_only_one_is_in_at_a_time(out: Path) -> None:
    inside, entered, worst = threading.Lock(), [0], []

    def come_and_go() -> None:
        for _ in range(100):
            try:
                with lock_bundle(out):
                    worst.append(inside.acquire(blocking=False))
                    entered[0] += 1
                    inside.release()
            except ExportError:
                pass

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered[0] > 0 and all(worst)
    assert names(out.parent) == ["models"]


def test_what_a_killed_writer_left_goes_with_the_next_and_its_lock_holds_nobody_up(out: Path) -> None:
    with start_writer(out, "at once") as writer:
        writer.wait()
    left = names(out.parent)
    assert left[0] == ".models.lock" and re.fullmatch(r"\.models\.staging-\w{8}", left[1]) and left[2:] == ["models"]

    with lock_bundle(out):
        assert names(out.parent) == [".models.lock", "models"]
    assert names(out.parent) == ["models"]
    assert (out / "model.onnx").read_text() == "old"


def test_what_a_living_writer_of_another_bundle_has_is_never_removed(out: Path) -> None:
    # its staging folder is called .models.staging-mine.staging-xxxxxxxx
    with start_writer(out.parent / "models.staging-mine", "when told") as writer:
        (out.parent / ".models.staging-notes").mkdir()
        before = names(out.parent)
        with lock_bundle(out):
            assert names(out.parent) == sorted([*before, ".models.lock"])
        writer.communicate("")
    assert "models.staging-mine" in names(out.parent)


def test_an_old_bundle_cut_off_half_way_out_of_its_place_is_put_back(out: Path) -> None:
    with start_writer(out, "between two renames") as writer:
        writer.wait()
    assert not out.exists()

    with lock_bundle(out):
        assert (out / "model.onnx").read_text() == "old"
    assert names(out.parent) == ["models"]


def test_an_old_bundle_that_cannot_be_put_back_is_kept_and_named(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def fail_after_the_first(*paths: Path) -> None:
        if out.exists():
            rename(*paths)
        else:
            raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    monkeypatch.setattr(staging.os, "rename", fail_after_the_first)
    with pytest.raises(ExportError, match=r"cannot be put back .*busy.; it is .*old bundle"), staged_bundle(out):
        pass
    monkeypatch.undo()
    with lock_bundle(out):
        assert (out / "model.onnx").read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_nobody_is_kept_out_and_nothing_is_removed(
    out: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    left = out.parent / ".models.staging-abcdefgh"
    left.mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_bundle(out), lock_bundle(out):
        assert names(out.parent) == [left.name, "models"]
    assert names(out.parent) == [left.name, "models"]


def test_a_lock_file_that_is_a_link_is_not_followed(out: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    (out.parent / ".models.lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(ExportError, match=r"cannot be written .*models\.lock"), lock_bundle(out):
        pytest.fail("was entered")
    assert (tmp_path / "thesis.txt").read_text() == "do not touch"


def test_a_read_only_disk_is_refused_first(small_disk) -> None:
    disk = small_disk(1024)
    (disk.folder / "models").mkdir()
    write_manifest(disk.folder / "models")
    disk.remount("ro")
    for out in (disk.folder / "models", disk.folder / "new" / "models"):
        with pytest.raises(ExportError, match=f"{disk.folder} is not writable"), lock_bundle(out):
            pytest.fail("was entered")


def test_a_disk_too_full_for_a_lock_is_refused_first(small_disk) -> None:
    disk = small_disk(64)
    disk.leave(0)
    with (
        pytest.raises(ExportError, match="models: the disk is full; nothing was changed"),
        lock_bundle(disk.folder / "models"),
    ):
        pytest.fail("was entered")
    assert names(disk.folder) == ["filler"]


def test_the_lock_is_of_one_inode_even_when_its_file_is_replaced(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    path, flock = out.parent / ".models.lock", fcntl.flock
    replaced: list[int] = []

    def lose_the_first(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if not replaced:
            path.unlink()  # as its last holder does, just then
            replaced.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", lose_the_first)
    with lock_bundle(out):
        assert replaced and str(os.getpid()) in path.read_text()
        with pytest.raises(ExportError, match="is writing it"), lock_bundle(out):
            pytest.fail("was entered")
