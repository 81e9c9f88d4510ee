"""What is listed below a folder: suffixes, contents, hidden names, links, and what is left out."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data import listing
from plantmodels.data.digests import digest_images
from plantmodels.data.image_files import name_in_report, printable_name
from plantmodels.data.leaves import digest_leaves, read_leaves, split_by_name
from plantmodels.data.listing import LeftOut, list_images, log_left_out
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import DataError
from plantmodels.serve import preprocessing

NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder for images."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def add(root: Path, draw_image: Callable[..., Image.Image]) -> Callable[[str, str], Path]:
    """`add(name, kind)`: write one drawn image below `root`."""

    def write(name: str, kind: str = "JPEG") -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            draw_image(3, 1).save(file, kind)
        return path

    return write


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_images(root).paths]


@pytest.mark.parametrize("name", ["a.jfif", "a.JFIF", "a.jpe", "IMG_0001", "2026-05-01"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_files_without_a_common_suffix_are_taken_by_their_content(root: Path, add, name: str, kind: str) -> None:
    add(name, kind)
    (root / "README").write_text("no image")
    (root / "b.jfif").write_text("no image")

    assert names(root) == [name]
    assert list_images(root).left_out.kinds == {"without a suffix": 1, ".jfif": 1}


def test_other_suffixes_are_counted_and_named_with_their_share(root: Path, add) -> None:
    for name in ("a.jpg", "b.JPG", "c.jpg?w=300", "d.jpg?w=300", "e.gif"):
        add(f"source/{name}")

    left_out = list_images(root).left_out
    assert left_out.describe("non-plants") == (
        "non-plants: 3 of 5 files (60.0%) are not taken as images: "
        "2 .jpg?w=300 (source/c.jpg?w=300), 1 .gif (source/e.gif)"
    )
    assert LeftOut(taken=5).describe("train") == ""


def test_many_kinds_are_one_line(root: Path, add) -> None:
    add("a.jpg")
    for number in range(9):
        (root / f"x.{number}").touch()

    assert list_images(root).left_out.describe("val").endswith(", 1 .5 (x.5), 3 of 3 further kinds")


def test_heic_files_are_named_with_the_package_that_reads_them(root: Path, add, monkeypatch) -> None:
    add("a.jpg")
    (root / "b.HEIC").write_bytes(b"\0\0\0\x1cftypheic")
    monkeypatch.setattr(listing, "can_read_heic", lambda: False)

    assert names(root) == ["a.jpg"]
    assert "1 .heic (b.HEIC; to read them, install pillow-heif)" in list_images(root).left_out.describe("train")


def test_heic_files_are_read_with_pillow_heif(root: Path, draw_image, monkeypatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(draw_image(3, 1)).save(root / "a.heic")
    heif.from_pillow(draw_image(3, 1)).save(root / "b.heic")
    (root / "b.heic").rename(root / "b.jpg")  # iPhones' exports are often misnamed

    assert names(root) == ["a.heic", "b.jpg"]
    for path in list_images(root).paths:
        assert preprocessing.decode_image(path.read_bytes()).size == (64, 64)
    monkeypatch.setattr(preprocessing, "can_read_heic", lambda: False)
    with pytest.raises(preprocessing.ImageError, match="a HEIC image: to read it, install pillow-heif"):
        preprocessing.decode_image((root / "b.jpg").read_bytes())


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "source/.ipynb_checkpoints/a.jpg",
        "__MACOSX/source/a.jpg",
        "source/._a.jpg",
        "source/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
        ".git/a.jpg",
        "source/Thumbs.db",
        "source/.DS_Store",
        "desktop.ini",
    ],
)
def test_what_systems_put_into_folders_does_not_count_at_all(root: Path, add, name: str) -> None:
    add(name)
    add("source/leaf.jpg")

    found = read_non_plants(root)
    assert found.paths == (root / "source/leaf.jpg",) and found.left_out.count == 0


def test_linked_files_and_folders_count_like_plain_ones(root: Path, add, tmp_path: Path) -> None:
    add("real/1.jpg")
    shutil.copytree(root / "real", tmp_path / "elsewhere")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "real" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (root / "real" / "deeper").symlink_to(tmp_path / "elsewhere")

    assert names(root) == ["linked/1.jpg", "real/1.jpg", "real/2.jpg", "real/deeper/1.jpg"]
    found = read_non_plants(root)
    assert [found.source_of(path) for path in found.paths] == ["linked", "real", "real", "real"]


def test_loops_of_links_end(root: Path, add) -> None:
    add("a/1.jpg")
    add("b/2.jpg")
    for name, target in {
        "a/up": "..",
        "a/self": ".",
        "a/b": "../b",
        "b/a": "../a",
        "top": "..",
        "knot": "knot",
    }.items():
        (root / name).symlink_to(target)

    assert names(root) == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]
    assert "folder that is read already, through a link" in list_images(root).left_out.kinds


def test_a_broken_link_is_an_image_that_cannot_be_read(root: Path, add) -> None:
    add("a.jpg")
    (root / "b.jpg").symlink_to(root / "gone.jpg")
    (root / "gone").symlink_to(root / "gone too")

    assert names(root) == ["a.jpg", "b.jpg"]
    assert list_images(root).left_out.kinds == {"without a suffix": 1}


def test_a_pipe_and_a_folder_with_the_name_of_an_image_are_none(root: Path, add) -> None:
    add("a.jpg")
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "pipe")
    (root / "folder.jpg").mkdir()

    assert names(root) == ["a.jpg"]
    assert list_images(root).left_out.kinds == {"neither file nor folder": 2}
    assert digest_images(root, [root / "pipe.jpg"]) == digest_images(root, [root / "pipe.jpg"])


def test_a_folder_that_cannot_be_listed_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match=r"images/gone: cannot be listed \(No such file or directory\)"):
        list_images(root / "gone")


def test_names_that_are_not_utf8_have_digests_and_printable_names(root: Path, add) -> None:
    path = add(f"source/{NOT_UTF8}")

    found = read_non_plants(root)
    assert found.paths == (path,) and len(found.half("gate").paths + found.half("selection").paths) == 1
    assert digest_images(root, found.paths) != digest_images(root, [path.with_name("other.jpg")])
    assert name_in_report(root, path) == r"source/caf\xe9.jpg" == printable_name(f"source/{NOT_UTF8}")
    assert printable_name("Straße 猫.jpg") == "Straße 猫.jpg"


class TestLeaves:
    def test_names_that_are_not_utf8_are_read_split_and_digested(
        self, tiny_data: Path, tiny_taxonomy: Taxonomy, tmp_path: Path
    ) -> None:
        data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
        folder = data / "train" / "Mint___unlabelled"
        shutil.copy(min(folder.iterdir()), folder / NOT_UTF8)
        before = read_leaves(tiny_data, "train", tiny_taxonomy)
        leaves = read_leaves(data, "train", tiny_taxonomy)

        assert len(leaves.samples) == len(before.samples) + 1 and folder / NOT_UTF8 in leaves.paths
        assert digest_leaves(leaves) != digest_leaves(before)
        assert len(split_by_name(leaves, 0.5, 1000, 0)[1].samples) > 0

    def test_links_are_followed_as_among_non_plants(
        self, tiny_data: Path, tiny_taxonomy: Taxonomy, tmp_path: Path
    ) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "val").symlink_to(tiny_data / "val")
        (tmp_path / "data" / "train").mkdir()
        for folder in (tiny_data / "train").iterdir():
            (tmp_path / "data" / "train" / folder.name).symlink_to(folder)

        for split in ("train", "val"):
            linked, plain = (read_leaves(root, split, tiny_taxonomy) for root in (tmp_path / "data", tiny_data))
            assert digest_leaves(linked) == digest_leaves(plain)

    def test_what_is_left_out_is_counted_wherever_it_lies(
        self,
        tiny_data: Path,
        tiny_taxonomy: Taxonomy,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        train = Path(shutil.copytree(tiny_data / "train", tmp_path / "data" / "train"))
        leaf = min((train / "Mint___unlabelled").iterdir())
        shutil.copy(leaf, leaf.with_name("a.heix"))
        shutil.copy(leaf, train / "stray.jpg")
        (train / ".ipynb_checkpoints").mkdir()
        shutil.copytree(leaf.parent, leaf.parent / "more")
        leaves = read_leaves(tmp_path / "data", "train", tiny_taxonomy)

        assert len(leaves.samples) == 180
        assert leaves.left_out.kinds == {".heix": 1, "folder inside a class folder": 1, "outside of a class folder": 1}
        logger = logging.getLogger("plantmodels")
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logger, "handlers", [])  # a command line that ran before in this process leaves one
        with caplog.at_level(logging.WARNING):
            log_left_out({"train": leaves, "val": None})
        assert caplog.messages == [leaves.left_out.describe("train")]

    def test_an_empty_split_says_what_it_holds_instead(self, tiny_taxonomy: Taxonomy, tmp_path: Path) -> None:
        folder = tmp_path / "train" / "Mint___unlabelled"
        folder.mkdir(parents=True)
        (folder / "a.tif").touch()

        with pytest.raises(DataError, match=r"holds no images .*; train: 1 of 1 files \(100.0%\) is not .*: 1 .tif"):
            read_leaves(tmp_path, "train", tiny_taxonomy)
