"""Checks an export on a full disk, without TMPDIR, with a clock that runs backwards, and beside another writer."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plantmodels.bundle.manifest import check_files, list_files, read_manifest
from plantmodels.errors import ExportError
from plantmodels.export import bundle as export_module
from plantmodels.export import staging
from plantmodels.export.bundle import export_bundle
from plantmodels.export.lock import lock_bundle

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = (
    "swin-species.onnx",
    "swin-species-int8.onnx",
    "disease-heads/aloe-sp-2-int8.onnx",
    "disease-heads-packed.onnx",
    "ood-detector.pkl",
    "plant-classifier-int8.onnx",
    "onnx-metadata.json",
    "disease-heads-list.json",
    "manifest.json",
)
"""Files of an export in the order in which they are written; only the first of the heads."""

COMPUTED = ("export_species", "choose_int8", "embed_images", "select_detector", "fit_temperatures")
PAGE = 4096


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Made:
    """A bundle, and the results that were computed for it."""

    bundle: Path
    results: dict[str, Any]


@pytest.fixture(scope="module")
def made(tiny_bundle, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An export without patches and without a TMPDIR."""
    folder, results = tmp_path_factory.mktemp("made"), {}
    with pytest.MonkeyPatch.context() as patch:
        for name in COMPUTED:
            keep(patch, name, results)
        patch.setattr(tempfile, "tempdir", str(folder / "no such folder"))
        export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, folder / "models")
    return Made(folder / "models", results)


def keep(patch: pytest.MonkeyPatch, name: str, results: dict[str, Any]) -> None:
    function = getattr(export_module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        results[name] = function(*arguments, **options)
        return results[name]

    patch.setattr(export_module, name, call)


@pytest.fixture
def computed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse the computed results, so that an export only writes."""
    for name in COMPUTED:
        monkeypatch.setattr(export_module, name, lambda *_, _result=made.results[name], **__: _result)


def pages_before(bundle: Path, name: str) -> int:
    """Return the number of pages of the lock and of the files that are written before this one."""
    order = [*WRITTEN[:2], *sorted(n for n in list_files(bundle) if n.startswith("disease-heads/")), *WRITTEN[3:]]
    first = order.index(name)
    return 1 + sum(-(-(bundle / n).stat().st_size // PAGE) for n in order[:first])


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_disk_that_is_full_at_a_file_leaves_the_old_bundle_and_nothing_else(
    tiny_bundle, made: Made, small_disk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disk = small_disk(4096)
    shutil.copytree(tiny_bundle.bundle, disk.folder / "models")
    before, reached = snapshot(disk.folder / "models"), []
    discard = staging.discard_staging

    def look_and_discard(folder: Path, out: Path) -> None:
        reached.extend(path.relative_to(folder / "models").as_posix() for path in folder.rglob("*"))
        discard(folder, out)

    monkeypatch.setattr(staging, "discard_staging", look_and_discard)
    disk.leave(pages_before(made.bundle, name) * PAGE // 1024)
    with pytest.raises(ExportError, match=r"models: the disk is full.*; nothing was changed"):
        export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, disk.folder / "models")
    after = WRITTEN[WRITTEN.index(name) + 1 :]
    assert [path for path in WRITTEN[: WRITTEN.index(name)] if path not in reached] == []
    assert [path for path in after if path in reached] == []
    assert snapshot(disk.folder / "models") == before
    assert sorted(path.name for path in disk.folder.iterdir()) == ["filler", "models"]


def test_nothing_is_written_but_the_bundle(made: Made) -> None:
    assert [path.name for path in made.bundle.parent.iterdir()] == ["models"]
    check_files(made.bundle, read_manifest(made.bundle))


@pytest.mark.usefixtures("computed")
def test_a_clock_that_runs_backwards_changes_nothing(tiny_bundle, made: Made, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(made.bundle, tmp_path / "models")
    first, now = snapshot(made.bundle), [2e9]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    for path in (tmp_path / "models").rglob("*"):
        os.utime(path, (3e9, 3e9))  # written in the future, as seen from a clock that was set back since
    monkeypatch.setattr(time, "time", earlier)
    summary = export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, tmp_path / "models")
    assert snapshot(tmp_path / "models") == first
    assert all(seconds >= 0 for seconds in summary.seconds.values())


def test_another_writer_is_told_before_anything_is_read(tiny_bundle, tmp_path: Path) -> None:
    with lock_bundle(tmp_path / "models"), pytest.raises(ExportError, match=rf"process {os.getpid()} on .* is writing"):
        export_bundle(tmp_path / "not read yet.ckpt", tiny_bundle.data, tmp_path / "models")


@pytest.mark.slow
def test_of_two_exports_at_once_one_wins_and_the_other_says_so(tiny_bundle, tmp_path: Path) -> None:
    inputs = ["--checkpoint", tiny_bundle.checkpoint, "--data", tiny_bundle.data, "--bundle", tmp_path / "models"]
    command = [sys.executable, "-m", "plantmodels", "export", *map(str, inputs)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as winner:
        assert winner.stderr is not None and winner.stderr.readline().startswith("search for copies: ")
        winner.send_signal(signal.SIGSTOP)  # however slow the other one is to start
        loser = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        winner.send_signal(signal.SIGCONT)
        winner.communicate(timeout=1200)
    assert (winner.returncode, loser.returncode) == (0, 1)
    assert f"models: process {winner.pid} on " in loser.stderr and "is writing it; nothing was changed" in loser.stderr
    assert len(loser.stderr.splitlines()) == 1
    check_files(tmp_path / "models", read_manifest(tmp_path / "models"))
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
