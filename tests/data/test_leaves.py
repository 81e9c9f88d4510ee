"""Leaf folders, manifests and non-plants: what is listed, refused, split, digested and streamed."""

import itertools
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data import streaming
from plantmodels.data.digests import digest_images, digest_leaves
from plantmodels.data.leaves import LeafSample, LeafSet, list_classes, read_leaves, split_by_name
from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.data.streaming import UnreadableImage, stream_images
from plantmodels.errors import DataError
from plantmodels.serve.preprocessing import decode_image, preprocess

PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = st.sets(st.text("abcdef/ _-é", min_size=1, max_size=8).filter(lambda n: n.strip(" /") == n), max_size=60)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A private copy of the train leaves, to damage."""
    shutil.copytree(tiny_data / "train", tmp_path / "data" / "train")
    return tmp_path / "data"


class TestReadLeaves:
    def test_folders_give_labelled_samples_sorted_by_path(self, tiny_data: Path, tiny_taxonomy: Taxonomy) -> None:
        leaves = read_leaves(tiny_data, "train", tiny_taxonomy)

        assert (leaves.root, leaves.split) == (tiny_data, "train")
        assert list(leaves.paths) == sorted(p for p in (tiny_data / "train").rglob("*") if p.is_file())
        assert {path.suffix for path in leaves.paths} == {".jpg", ".png", ".webp", ".JPG", ".jpeg"}
        for sample in leaves.samples:
            species, disease = sample.path.parent.name.split("___")
            assert tiny_taxonomy.species[sample.species_index] == species
            if species == "Mint":
                assert sample.disease_index is None
            else:
                assert tiny_taxonomy.diseases_of(sample.species_index)[sample.disease_index] == disease
        assert len(read_leaves(tiny_data, "val", tiny_taxonomy).samples) == 45

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_manifest_gives_the_samples_of_the_folders(
        self, tiny_data: Path, tiny_taxonomy: Taxonomy, tmp_path: Path, kind: str, split
    ) -> None:
        root = tmp_path / "data"
        shutil.copytree(tiny_data, root)
        paths = [path for path in root.rglob("*") if path.is_file()]
        rows = [(p.relative_to(root).as_posix(), *p.parent.name.split("___"), p.parent.parent.name) for p in paths]
        table = pd.DataFrame(rows, columns=["path", "species", "disease", "split"]).sample(frac=1, random_state=0)
        table.loc[table["species"] == "Mint", "disease"] = None
        manifest = root / f"leaves.{kind}"
        _ = table.to_csv(manifest, index=False) if kind == "csv" else table.to_parquet(manifest, index=False)

        assert read_leaves(manifest, split, tiny_taxonomy) == read_leaves(root, split, tiny_taxonomy)

    @pytest.mark.parametrize("disease", ["None", "NA", "null", "nan", "N/A", "1.0"])
    def test_a_disease_may_be_called_none(self, tmp_path: Path, disease: str) -> None:
        taxonomy = Taxonomy(("Apple",), {"Apple": ("rot", disease)})
        manifest = tmp_path / "leaves.csv"
        manifest.write_text(f"path,species,disease,split,extra\na.jpg,Apple,{disease},train,7\n")

        assert read_leaves(manifest, "train", taxonomy).samples == (LeafSample(tmp_path / "a.jpg", 0, 1),)

    def test_names_with_commas_are_quoted_in_a_manifest(self, tmp_path: Path) -> None:
        manifest = tmp_path / "leaves.csv"
        manifest.write_text('path,species,disease,split\n"a,b.jpg","Pepper,_bell","spot, black",val\n')
        taxonomy = Taxonomy(("Pepper,_bell",), {"Pepper,_bell": ("spot, black",)})

        assert read_leaves(manifest, "val", taxonomy).paths == (tmp_path / "a,b.jpg",)

    def test_other_files_and_hidden_ones_are_ignored(self, data: Path, tiny_taxonomy: Taxonomy) -> None:
        before = read_leaves(data, "train", tiny_taxonomy)
        folder = data / "train" / "Mint___unlabelled"
        for name in ("notes.txt", ".hidden.jpg", "leaf.gif", "Thumbs.db", "leaf"):
            (folder / name).write_bytes(b"")
        (data / "train" / "readme.jpg").write_bytes(b"")
        (data / "train" / ".cache").mkdir()
        (data / "train" / ".cache" / "a.jpg").write_bytes(b"")

        assert read_leaves(data, "train", tiny_taxonomy) == before

    @pytest.mark.parametrize(
        ("folder", "match"),
        [
            ("Fig___rot", "class 'Fig___rot' is not in the checkpoint; its species are Pepper,_bell, Cherry_"),
            (
                "Blueberry___rot",
                "class 'Blueberry___rot' is not in the checkpoint; its diseases of 'Blueberry' are healthy",
            ),
            ("blueberry___healthy", "class 'blueberry___healthy' is not"),
            ("Blueberry__healthy", "class 'Blueberry__healthy___' is not"),
            ("Blueberry", "class 'Blueberry___' is not in the checkpoint"),
        ],
    )
    def test_an_unknown_class_is_refused(self, data: Path, tiny_taxonomy: Taxonomy, folder: str, match: str) -> None:
        (data / "train" / folder).mkdir()  # empty: a misspelt class must not pass unseen

        with pytest.raises(DataError, match=match) as caught:
            read_leaves(data, "train", tiny_taxonomy)
        assert str(data / "train" / folder) in str(caught.value)

    def test_an_unknown_class_of_a_manifest_is_refused(self, tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
        (tmp_path / "leaves.csv").write_text("path,species,disease,split\na.jpg,Fig,rot,train\n")

        with pytest.raises(DataError, match="class 'Fig___rot' is not in the checkpoint"):
            read_leaves(tmp_path / "leaves.csv", "train", tiny_taxonomy)

    def test_absent_and_empty_splits_are_refused(self, data: Path, tiny_taxonomy: Taxonomy, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data/val: no such folder; expected .*/\{train,val\}/<Species>___"):
            read_leaves(data, "val", tiny_taxonomy)
        (data / "val" / "Mint___unlabelled").mkdir(parents=True)
        with pytest.raises(DataError, match=r"split 'val' holds no images of type .jpg, .jpeg, .png, .webp"):
            read_leaves(data, "val", tiny_taxonomy)
        with pytest.raises(DataError, match="none: no such data folder or manifest"):
            read_leaves(tmp_path / "none", "train", tiny_taxonomy)

    def test_an_absent_split_of_a_manifest_is_refused(self, tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
        (tmp_path / "leaves.csv").write_text("path,species,disease,split\na.jpg,Mint,,train\n")

        with pytest.raises(DataError, match="split 'val' holds no images"):
            read_leaves(tmp_path / "leaves.csv", "val", tiny_taxonomy)

    @pytest.mark.parametrize(
        ("name", "content", "match"),
        [
            ("a.csv", b"path,species,split\na,b,train\n", "column disease missing; a manifest has path, species"),
            ("a.csv", b"", "neither a folder nor a CSV or Parquet manifest"),
            ("a.csv", b"\xff\xd8\xff\xe0\x00\x10JFIF", "neither a folder nor a CSV"),
            ("a.csv", b'path,species\n"a', "neither a folder nor a CSV"),
            ("a.parquet", b"path,species\n", "neither a folder nor a CSV"),
            ("a.parquet", b"", "neither a folder nor a CSV"),
        ],
    )
    def test_what_is_no_manifest_is_refused(
        self, tmp_path: Path, tiny_taxonomy: Taxonomy, name: str, content: bytes, match: str
    ) -> None:
        (tmp_path / name).write_bytes(content)

        with pytest.raises(DataError, match=match):
            read_leaves(tmp_path / name, "train", tiny_taxonomy)


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


def write_numbers(folder: Path, numbers: range) -> NonPlantSet:
    """A set of files whose contents are numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{number}.jpg" for number in numbers)
    for path, number in zip(paths, numbers, strict=True):
        path.write_text(str(number))
    return NonPlantSet(folder, paths)


def leaf_set(names: set[str]) -> LeafSet:
    root = Path("/leaves")
    paths = sorted(root / name for name in names)
    return LeafSet(root, "train", tuple(LeafSample(path, i % 3, None) for i, path in enumerate(paths)))


class TestSplitByName:
    @given(names=NAMES, more=NAMES, share=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 3))
    def test_parts_are_disjoint_complete_and_stable(self, names, more, share: float, seed: int) -> None:
        rest, picked = split_by_name(leaf_set(names), share, 1000, seed)
        more_rest, more_picked = split_by_name(leaf_set(names | more), share, 1000, seed)

        assert sorted(rest.paths + picked.paths) == sorted(leaf_set(names).paths)
        assert not set(rest.paths) & set(picked.paths)
        assert set(rest.paths) <= set(more_rest.paths)
        assert set(picked.paths) <= set(more_picked.paths)
        assert list(rest.paths) == sorted(rest.paths)
        assert share < 1 or not rest.paths

    def test_the_share_is_about_what_was_asked_for_and_the_seed_chooses(self) -> None:
        leaves = leaf_set({f"{i}.jpg" for i in range(5000)})
        picked = [split_by_name(leaves, 0.2, 5000, seed)[1].paths for seed in (0, 0, 1)]

        assert picked[0] == picked[1] != picked[2]
        assert all(900 < len(paths) < 1100 for paths in picked)

    @pytest.mark.parametrize("share", [0.2, 1.0])
    @pytest.mark.parametrize("at_most", [0, 1, 7, 100, 199, 1000])
    def test_no_more_than_at_most_are_picked(self, at_most: int, share: float) -> None:
        leaves = leaf_set({f"{i}.jpg" for i in range(1000)})
        whole = set(split_by_name(leaves, share, 10_000, 0)[1].paths)
        rest, picked = split_by_name(leaves, share, at_most, 0)

        assert len(picked.samples) == min(at_most, len(whole))
        assert set(picked.paths) <= whole
        assert len(rest.samples) + len(picked.samples) == 1000

    def test_labels_stay_with_their_images(self) -> None:
        leaves = leaf_set({f"{i}.jpg" for i in range(50)})
        rest, picked = split_by_name(leaves, 0.4, 50, 0)

        assert set(rest.samples) | set(picked.samples) == set(leaves.samples)


class TestDigest:
    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Path]:
        (tmp_path / "set" / "deep").mkdir(parents=True)
        paths = [tmp_path / "set" / name for name in ("a.jpg", "b.jpg", "deep/c.jpg")]
        for path in paths:
            path.write_bytes(path.name.encode())
        return paths

    def test_order_and_place_do_not_matter(self, files: list[Path], tmp_path: Path) -> None:
        root = tmp_path / "set"
        digests = {digest_images(root, order) for order in itertools.permutations(files)}
        shutil.copytree(root, tmp_path / "moved")
        moved = [tmp_path / "moved" / path.relative_to(root) for path in files]

        assert digests == {digest_images(tmp_path / "moved", moved)}

    def test_content_name_and_number_matter(self, files: list[Path], tmp_path: Path) -> None:
        root = tmp_path / "set"
        digests = [digest_images(root, files), digest_images(root, files[:2])]
        files[0].write_bytes(b"b.jpg")
        digests.append(digest_images(root, files))
        files[1].write_bytes(b"a.jpg")  # two files with their contents exchanged
        digests.append(digest_images(root, files))
        files[2].rename(root / "deep" / "d.jpg")
        digests.append(digest_images(root, [*files[:2], root / "deep" / "d.jpg"]))

        assert len(set(digests)) == 5

    def test_an_unreadable_file_is_no_error_here(self, files: list[Path], tmp_path: Path) -> None:
        root = tmp_path / "set"
        before = digest_images(root, files)
        files[1].unlink()
        absent = digest_images(root, files)
        files[1].mkdir()

        assert before != absent == digest_images(root, files)

    def test_a_changed_label_changes_the_digest_of_leaves(self, tiny_data: Path, tiny_taxonomy: Taxonomy) -> None:
        leaves = read_leaves(tiny_data, "val", tiny_taxonomy)
        first = replace(leaves.samples[0], species_index=leaves.samples[0].species_index + 1)

        assert digest_leaves(leaves) == digest_leaves(replace(leaves, samples=leaves.samples[::-1]))
        assert digest_leaves(leaves) != digest_leaves(replace(leaves, samples=(first, *leaves.samples[1:])))

    def test_a_linked_image_counts_as_its_content(self, files: list[Path], tmp_path: Path) -> None:
        root = tmp_path / "set"
        before = digest_images(root, files)
        files[0].rename(tmp_path / "elsewhere.jpg")
        files[0].symlink_to(tmp_path / "elsewhere.jpg")

        assert digest_images(root, files) == before


@pytest.fixture(scope="module")
def paths(tiny_data: Path) -> list[Path]:
    """All 180 train leaves."""
    return sorted(path for path in (tiny_data / "train").rglob("*") if path.is_file())


class TestStream:
    def test_order_and_pixels_are_kept(self, paths: list[Path]) -> None:
        unreadable: list[UnreadableImage] = []
        streamed = list(stream_images(paths[:40], PREPROCESSING, unreadable=unreadable))

        assert [index for index, _ in streamed] == list(range(40))
        assert unreadable == []
        for index in (0, 7, 39):
            expected = preprocess(decode_image(paths[index].read_bytes()), PREPROCESSING)
            np.testing.assert_array_equal(streamed[index][1], expected)

    def test_unreadable_files_are_skipped_counted_and_named(self, paths: list[Path], tmp_path: Path) -> None:
        (tmp_path / "text.jpg").write_text("no image")
        mixed = [*paths[:120], tmp_path / "text.jpg", *paths[120:], tmp_path / "none.jpg", *paths[:20]]
        unreadable: list[UnreadableImage] = []
        indices = [i for i, _ in stream_images(mixed, PREPROCESSING, unreadable=unreadable)]

        assert indices == [i for i in range(len(mixed)) if i not in (120, 181)]
        assert [image.path for image in unreadable] == [tmp_path / "text.jpg", tmp_path / "none.jpg"]
        assert "not an image of format" in unreadable[0].reason
        assert "cannot be read (No such file or directory)" in unreadable[1].reason

    @pytest.mark.parametrize(
        ("bad", "total", "refused"), [(1, 100, False), (2, 100, True), (1, 99, True), (2, 200, False)]
    )
    def test_over_one_percent_is_an_error(
        self, paths: list[Path], tmp_path: Path, bad: int, total: int, refused: bool
    ) -> None:
        for i in range(bad):
            (tmp_path / f"bad{i}.jpg").write_bytes(b"")
        mixed = [tmp_path / f"bad{i}.jpg" for i in range(bad)] + [paths[i % 9] for i in range(total - bad)]
        stream = stream_images(mixed, PREPROCESSING, unreadable=[])
        if not refused:
            assert len(list(stream)) == total - bad
            return
        match = rf"over 1% of {total} images cannot be read \({bad} so far\): .*bad0.jpg: zero bytes"
        with pytest.raises(DataError, match=match):
            list(stream)

    def test_one_percent_is_of_the_whole_set_when_it_comes_in_parts(self, paths: list[Path], tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"")
        part = [tmp_path / "bad.jpg", *paths[:10]]
        unreadable: list[UnreadableImage] = []

        assert len(list(stream_images(part, PREPROCESSING, unreadable=unreadable, out_of=100))) == 10
        with pytest.raises(DataError, match=r"over 1% of 100 images cannot be read \(2 so far\)"):
            list(stream_images(part, PREPROCESSING, unreadable=unreadable, out_of=100))

    def test_only_a_few_are_decoded_ahead_of_the_consumer(self, paths: list[Path], monkeypatch) -> None:
        lock, begun = threading.Lock(), [0]
        load = streaming._load

        def count(*arguments):
            with lock:
                begun[0] += 1
            return load(*arguments)

        monkeypatch.setattr(streaming, "_load", count)
        stream = stream_images(paths * 20, PREPROCESSING, unreadable=[])
        for taken, _ in enumerate(itertools.islice(stream, 60), start=1):
            assert begun[0] <= taken + 20
        stream.close()
        assert begun[0] <= 80

    def test_nothing_is_decoded_before_it_is_asked_for(self, monkeypatch) -> None:
        monkeypatch.setattr(streaming, "_load", lambda *_: pytest.fail("was decoded"))
        stream = stream_images([Path("a.jpg")], PREPROCESSING, unreadable=[])

        assert isinstance(stream, Iterator)

    def test_no_paths_give_nothing(self) -> None:
        assert list(stream_images([], PREPROCESSING, unreadable=[])) == []

    def test_a_bug_in_decoding_is_not_taken_for_a_bad_image(self, paths: list[Path], monkeypatch) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError("bug")

        monkeypatch.setattr(streaming, "preprocess", fail)
        with pytest.raises(ZeroDivisionError, match="bug"):
            list(stream_images(paths, PREPROCESSING, unreadable=[]))

    def test_progress_is_shown_with_a_description_only(self, paths: list[Path], capsys) -> None:
        list(stream_images(paths[:3], PREPROCESSING, unreadable=[]))
        assert capsys.readouterr().err == ""
        list(stream_images(paths[:3], PREPROCESSING, unreadable=[], description="score leaves"))
        assert "score leaves: 100%" in capsys.readouterr().err


class TestListClasses:
    def test_folders_and_manifest_give_the_same_classes(self, tiny_data: Path, tmp_path: Path) -> None:
        taxonomy = list_classes(tiny_data)
        folders = sorted(path.name.split("___") for path in (tiny_data / "train").iterdir())
        assert list(taxonomy.species) == sorted({species for species, _ in folders})
        assert {(s, d) for s in taxonomy.species for d in taxonomy.diseases[s]} == {(s, d) for s, d in folders}
        rows = [{"path": "x.jpg", "species": s, "disease": d, "split": "train"} for s, d in reversed(folders)]
        pd.DataFrame(rows).to_csv(tmp_path / "leaves.csv", index=False)
        assert list_classes(tmp_path / "leaves.csv") == taxonomy

    def test_nothing_to_list_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="absent: no such data folder or manifest"):
            list_classes(tmp_path / "absent")
        (tmp_path / "train" / "Apple").mkdir(parents=True)
        with pytest.raises(DataError, match="split 'train' holds no images in folders <Species>___<Disease>"):
            list_classes(tmp_path)
