"""Class names and split names as people write them."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.inputs import find_split
from plantmodels.data.labels import Classes, show_difference
from plantmodels.data.leaves import list_classes, read_leaves
from plantmodels.errors import DataError

CAFE = Taxonomy(("Café", "Rose"), {"Café": ("fleur brûlée", "healthy")})


def to_nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


class TestClassNames:
    def test_names_of_macos_match(self, tmp_path: Path, draw_image) -> None:
        for disease in CAFE.diseases["Café"]:
            folder = tmp_path / "train" / to_nfd(f"Café___{disease}")
            folder.mkdir(parents=True)
            draw_image(1, 1).save(folder / "a.jpg")
        (tmp_path / "leaves.csv").write_text(to_nfd("path,species,disease,split\na.jpg,Café,fleur brûlée,train\n"))

        samples = read_leaves(tmp_path, "train", CAFE).samples
        assert [(sample.species_index, sample.disease_index) for sample in samples] == [(0, 0), (0, 1)]
        assert read_leaves(tmp_path / "leaves.csv", "train", CAFE).samples[0].disease_index == 0
        assert list_classes(tmp_path).species == ("Café",)

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("Cafe", r"similar is 'Café': 'e' \(U\+0065 .*SMALL LETTER E\) stands for 'é' \(U\+00E9 .*WITH ACUTE\)"),
            ("Rosе", r"similar is 'Rose': 'е' \(U\+0435 CYRILLIC SMALL LETTER IE\) stands for 'e' \(U\+0065"),
            ("Rose\u200b", r"'\\u200b' \(U\+200B ZERO WIDTH SPACE\) stands for nothing"),
            ("Rose\u00a0", r"'\\xa0' \(U\+00A0 NO-BREAK SPACE\) stands for nothing"),
            ("rose", r"its species are Café, Rose; similar is 'Rose'$"),
            ("Rose ", r"class 'Rose ___x' is not in the checkpoint; .*; similar is 'Rose'$"),
            ("Fig", r"its species are Café, Rose$"),
            ("Ros\udce9", r"class 'Ros\\xe9___x' is not in the checkpoint"),
        ],
    )
    def test_a_real_difference_can_be_seen(self, name: str, match: str) -> None:
        with pytest.raises(DataError, match=match):
            Classes(CAFE).find("here", name, "x")

    def test_a_difference_between_diseases_can_be_seen(self) -> None:
        with pytest.raises(DataError, match=r"its diseases of 'Café' are .*; similar is 'fleur brûlée': 'u' \(U\+0075"):
            Classes(CAFE).find("here", "Café", "fleur brulée")

    def test_only_a_few_characters_are_spelt(self) -> None:
        assert show_difference("Éééééééé", ["Eeeeeeee"]).count("stands for") <= 3


class TestSplitNames:
    @pytest.mark.parametrize("train", ["train", "training", "TRAIN", " Train"])
    @pytest.mark.parametrize("val", ["val", "validation", "Valid", "dev", "VAL"])
    def test_a_plain_name_of_a_manifest_is_mapped(self, tmp_path: Path, tiny_taxonomy, train: str, val: str) -> None:
        (tmp_path / "leaves.csv").write_text(
            f"path,species,disease,split\na.jpg,Mint,,{train}\nb.jpg,Mint,,{val}\nc.jpg,Mint,,test\n"
        )

        for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
            assert read_leaves(tmp_path / "leaves.csv", split, tiny_taxonomy).paths == (tmp_path / name,)

    @pytest.mark.parametrize("value", ["fold 3", "", "0", "holdout", "eval"])
    def test_any_other_name_is_an_error_that_lists_all(self, tmp_path: Path, tiny_taxonomy, value: str) -> None:
        (tmp_path / "leaves.csv").write_text(
            f"path,species,disease,split\na.jpg,Mint,,train\nb.jpg,Mint,,train\nc.jpg,Mint,,{value}\n"
        )

        with pytest.raises(DataError, match=rf"column split holds '{value}', which names no split; .*'train' \(2\)"):
            read_leaves(tmp_path / "leaves.csv", "train", tiny_taxonomy)

    def test_folders_are_found_by_the_same_names(self, tiny_data: Path, tiny_taxonomy, tmp_path: Path) -> None:
        shutil.copytree(tiny_data / "val", tmp_path / "Validation")
        assert len(read_leaves(tmp_path, "val", tiny_taxonomy).samples) == 45
        (tmp_path / "dev").mkdir()
        with pytest.raises(DataError, match="Validation and dev both mean 'val'; rename one of them"):
            find_split(tmp_path, "val")
        (tmp_path / "val").mkdir()
        assert find_split(tmp_path, "val") == tmp_path / "val"

    def test_a_manifest_may_name_files_that_are_not_utf8(self, tmp_path: Path, tiny_taxonomy) -> None:
        (tmp_path / "leaves.csv").write_bytes(b"path,species,disease,split\ncaf\xe9.jpg,Mint,,train\n")

        (path,) = read_leaves(tmp_path / "leaves.csv", "train", tiny_taxonomy).paths
        assert bytes(path).endswith(b"/caf\xe9.jpg")
