"""Folders of non-plants: which images are listed, and how they are halved."""

import shutil
from pathlib import Path

import pytest

from plantmodels.data.digests import digest_content
from plantmodels.data.non_plants import NonPlantSet, read_non_plants, refuse_seen
from plantmodels.errors import DataError


class TestNonPlants:
    def test_all_images_below_a_folder_with_their_source(self, tiny_non_plants: Path, tmp_path: Path) -> None:
        root = tmp_path / "non_plants"
        shutil.copytree(tiny_non_plants, root)
        shutil.copy(root / "bricks" / "0.png", root / "top.png")
        (root / "bricks" / "deeper").mkdir()
        shutil.copy(root / "bricks" / "0.png", root / "bricks" / "deeper" / "a.png")
        (root / "bricks" / "notes.txt").write_text("")
        found = read_non_plants(root)

        assert len(found.paths) == 50
        assert list(found.paths) == sorted(found.paths)
        assert found.source_of(root / "top.png") == "."
        assert found.source_of(root / "bricks" / "deeper" / "a.png") == "bricks"
        assert {found.source_of(path) for path in found.paths} == {".", "bricks", "noise"}

    def test_absent_and_empty_folders_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such folder of non-plants"):
            read_non_plants(tmp_path / "none")
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(DataError, match="holds no images of type"):
            read_non_plants(tmp_path)

    def test_halves_are_disjoint_complete_and_even(self, tmp_path: Path) -> None:
        images = write_numbers(tmp_path, range(600))
        selection, gate = images.half("selection"), images.half("gate")

        assert sorted(selection.paths + gate.paths) == sorted(images.paths)
        assert not set(selection.paths) & set(gate.paths)
        assert 240 < len(gate.paths) < 360

    def test_halves_stay_when_images_are_added_renamed_or_moved(self, tmp_path: Path) -> None:
        few, many = write_numbers(tmp_path / "few", range(50)), write_numbers(tmp_path / "a" / "many", range(90))
        renamed = tuple(path.rename(path.with_stem(f"leaf {path.stem}")) for path in many.paths)
        gate = {path.read_text() for path in NonPlantSet(tmp_path, renamed).half("gate").paths}

        assert {path.read_text() for path in few.half("gate").paths} == gate & set(map(str, range(50)))

    def test_the_gates_half_may_not_hold_what_the_network_has_learned(self, tiny_non_plants: Path) -> None:
        gate = read_non_plants(tiny_non_plants).half("gate")
        refuse_seen(gate, ())
        refuse_seen(gate, {"0" * 64})
        learned = gate.paths[0]
        message = f"trained on 1 of the {len(gate.paths)} non-plants that the gates measure: .*{learned.name}"
        with pytest.raises(DataError, match=message):
            refuse_seen(gate, {digest_content(learned)})


def write_numbers(folder: Path, numbers: range) -> NonPlantSet:
    """A set of files whose contents are numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{number}.jpg" for number in numbers)
    for path, number in zip(paths, numbers, strict=True):
        path.write_text(str(number))
    return NonPlantSet(folder, paths)
