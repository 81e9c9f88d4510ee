"""A bundle folder is replaced whole or stays as it was."""

import errno
import os
from pathlib import Path

import pytest

from plantmodels.bundle.layout import GATE_REPORT_FILE, HTML_REPORT_FILE, MANIFEST_FILE, PLOTS_FOLDER, SIGNATURE_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.errors import BundleError, ExportError
from plantmodels.export import staging
from plantmodels.export.staging import check_replaceable, staged_bundle


def write_bundle(folder: Path, content: str) -> None:
    (folder / "heads").mkdir(parents=True, exist_ok=True)
    (folder / "heads" / "a.onnx").write_text(content)
    (folder / "model.onnx").write_text(content)
    write_manifest(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An older bundle in a folder of its own."""
    out = tmp_path / "public" / "models"
    write_bundle(out, "old")
    return out


def test_a_new_bundle_appears_with_its_parents(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "models"
    with staged_bundle(out) as folder:
        write_bundle(folder, "new")
        assert not out.exists()

    assert (out / "model.onnx").read_text() == "new"
    assert names(out.parent) == ["models"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_a_relative_name_and_an_empty_folder_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    with staged_bundle(Path("models")) as folder:
        write_bundle(folder, "new")

    assert names(tmp_path) == ["models"]
    assert (tmp_path / "models" / "model.onnx").read_text() == "new"


def test_the_current_folder_itself_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    with staged_bundle(Path()) as folder:
        write_bundle(folder, "new")

    assert (tmp_path / "models" / "model.onnx").read_text() == "new"
    assert names(tmp_path) == ["models"]


@pytest.mark.parametrize("exchange", [True, False], ids=["atomic", "two renames"])
def test_an_old_bundle_is_replaced_whole(out: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    (out / "left over.txt").write_text("old")
    with staged_bundle(out) as folder:
        write_bundle(folder, "new")
        assert (out / "model.onnx").read_text() == "old"

    assert {name: content for name, content in snapshot(out).items() if name != MANIFEST_FILE} == {
        "heads/a.onnx": b"new",
        "model.onnx": b"new",
    }
    assert names(out.parent) == ["models"]


def test_the_exchange_is_one_system_call_here(out: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    if not staging._exchange(tmp_path / "other", out):
        pytest.skip("this kernel or file system has no renameat2 exchange")
    assert (tmp_path / "other" / "model.onnx").read_text() == "old"
    assert names(out) == []


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_any_error_leaves_the_old_bundle_and_no_temporary_folder(out: Path, error: BaseException) -> None:
    before = snapshot(out)
    with pytest.raises(type(error)), staged_bundle(out) as folder:
        write_bundle(folder, "new")
        raise error

    assert snapshot(out) == before
    assert names(out.parent) == ["models"]


def test_a_full_disk_is_an_error_of_ours(out: Path) -> None:
    before = snapshot(out)
    with pytest.raises(ExportError, match="the disk is full; nothing was changed"), staged_bundle(out):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert snapshot(out) == before


@pytest.mark.parametrize("failing", [1, 2], ids=["first rename", "second rename"])
def test_a_swap_that_fails_puts_the_old_bundle_back(out: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    before, calls, rename = snapshot(out), [], os.rename

    def fail_once(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == failing:
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(*paths)

    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    monkeypatch.setattr(staging.os, "rename", fail_once)
    match = r"models: cannot be replaced \(Device or resource busy\); nothing was changed"
    with pytest.raises(ExportError, match=match), staged_bundle(out) as folder:
        write_bundle(folder, "new")

    assert snapshot(out) == before
    assert names(out.parent) == ["models"]


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "holiday photos"
    out.mkdir()
    (out / "beach.jpg").write_bytes(b"dear")

    with pytest.raises(ExportError, match=r"contains files but no manifest.json"), staged_bundle(out):
        pytest.fail("was entered")
    assert names(out) == ["beach.jpg"]
    assert names(tmp_path) == ["holiday photos"]


def test_a_file_and_a_link_are_not_replaced(tmp_path: Path, out: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")

    for name in ("file", "link", "dangling"):
        with pytest.raises(ExportError, match=f"{name}: exists and is not a folder"):
            check_replaceable(tmp_path / name)


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_below_a_file_nothing_can_be_written(tmp_path: Path, mode: int) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(mode)

    for out in (tmp_path / "file" / "models", tmp_path / "file" / "a" / "models"):
        with pytest.raises(ExportError, match=f"{out}: "), staged_bundle(out):
            pytest.fail("was entered")
    assert (tmp_path / "file").read_text() == ""


def test_a_folder_without_write_permission_is_refused_first(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write everywhere, so the answer of the system is simulated
    monkeypatch.setattr(staging.os, "access", lambda path, mode: Path(path) != tmp_path)

    check_replaceable(out)
    with pytest.raises(ExportError, match=f"new/models: {tmp_path} is not writable"):
        check_replaceable(tmp_path / "new" / "models")
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_may_not_be_moved_is_refused_first(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging.os, "access", lambda path, mode: Path(path) != out)

    with pytest.raises(ExportError, match=f"{out}: is not writable, so it cannot be replaced"):
        check_replaceable(out)


def test_a_parent_that_takes_no_folder_is_an_error_of_ours(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise OSError(errno.EMLINK, "Too many links", str(out.parent))

    monkeypatch.setattr(staging.tempfile, "mkdtemp", refuse)
    match = f"models: cannot be written .Too many links: {out.parent}"
    with pytest.raises(ExportError, match=match), staged_bundle(out):
        pytest.fail("was entered")


def test_a_name_too_long_is_an_error_of_ours(tmp_path: Path) -> None:
    for name, reason in (("x" * 300, "cannot be inspected"), ("x" * 250, "cannot be written")):
        with (
            pytest.raises(ExportError, match=f"xxx: {reason} .File name too long"),
            staged_bundle(tmp_path / name),
        ):
            pytest.fail("was entered")
    assert names(tmp_path) == []


def test_a_disk_made_read_only_meanwhile_is_an_error_of_ours(small_disk) -> None:
    disk = small_disk(1024)
    write_bundle(disk.folder / "models", "old")
    before = snapshot(disk.folder)
    with (
        pytest.raises(ExportError, match=r"models: the disk is read-only .*heads.; nothing was changed"),
        staged_bundle(disk.folder / "models") as folder,
    ):
        disk.remount("ro")
        write_bundle(folder, "new")
    disk.remount("rw")
    assert {name: content for name, content in snapshot(disk.folder).items() if "staging" not in name} == before


def test_start_from_brings_everything_but_the_report(out: Path) -> None:
    (out / PLOTS_FOLDER).mkdir()
    for name in (GATE_REPORT_FILE, HTML_REPORT_FILE, f"{PLOTS_FOLDER}/a.png"):
        (out / name).write_text("report")
    write_manifest(out)
    (out / SIGNATURE_FILE).write_text("of the manifest that this replaces")
    before = snapshot(out)

    with staged_bundle(out, start_from=out) as folder:
        assert sorted(snapshot(folder)) == ["heads/a.onnx", MANIFEST_FILE, "model.onnx"]
        assert (folder / "model.onnx").samefile(out / "model.onnx")
        (folder / GATE_REPORT_FILE).write_text("new report")
        write_manifest(folder)
        assert snapshot(out) == before

    assert (out / GATE_REPORT_FILE).read_text() == "new report"
    assert not (out / PLOTS_FOLDER).exists() and not (out / SIGNATURE_FILE).exists()


def test_start_from_copies_where_there_are_no_hard_links(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(staging.os, "link", refuse)
    with staged_bundle(out, start_from=out) as folder:
        assert snapshot(folder) == snapshot(out)
        assert not (folder / "model.onnx").samefile(out / "model.onnx")


def test_start_from_nothing_is_refused(out: Path, tmp_path: Path) -> None:
    before = snapshot(out)
    with (
        pytest.raises(BundleError, match="no such bundle folder"),
        staged_bundle(out, start_from=tmp_path / "none"),
    ):
        pytest.fail("was entered")
    assert snapshot(out) == before


def test_a_web_app_with_its_own_manifest_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "manifest.json").write_text('{"name": "my web app"}')
    with pytest.raises(ExportError, match="not a bundle, so it is not replaced"):
        check_replaceable(tmp_path / "public")
