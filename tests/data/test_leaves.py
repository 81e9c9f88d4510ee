"""Leaf folders and manifests: what is listed, refused and split."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.leaves import LeafSample, LeafSet, list_classes, read_field_leaves, read_leaves, split_by_name
from plantmodels.errors import DataError

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
    def test_a_malformed_manifest_is_refused(
        self, tmp_path: Path, tiny_taxonomy: Taxonomy, name: str, content: bytes, match: str
    ) -> None:
        (tmp_path / name).write_bytes(content)

        with pytest.raises(DataError, match=match):
            read_leaves(tmp_path / name, "train", tiny_taxonomy)


class TestReadFieldLeaves:
    """Leaves from another place, for `verify --field`."""

    def test_class_folders_without_split_give_labelled_samples(self, tiny_data: Path, tiny_taxonomy: Taxonomy) -> None:
        field, val = read_field_leaves(tiny_data / "val", tiny_taxonomy), read_leaves(tiny_data, "val", tiny_taxonomy)

        assert (field.root, field.split, field.samples) == (tiny_data / "val", None, val.samples)

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_manifest_needs_no_split(self, tiny_taxonomy: Taxonomy, tmp_path: Path, kind: str) -> None:
        manifest = tmp_path / f"field.{kind}"
        table = pd.DataFrame([("b.jpg", "Blueberry", "healthy"), ("a.jpg", "Mint", "")])
        table.columns = ["path", "species", "disease"]
        _ = table.to_csv(manifest, index=False) if kind == "csv" else table.to_parquet(manifest, index=False)

        found = read_field_leaves(manifest, tiny_taxonomy)

        names = [(sample.path.name, tiny_taxonomy.species[sample.species_index]) for sample in found.samples]
        assert names == [("a.jpg", "Mint"), ("b.jpg", "Blueberry")]

    @pytest.mark.parametrize(
        ("folders", "match"),
        [
            (
                ["Fig___rot", "Mint___x"],
                "class 'Fig___rot' is not in the checkpoint; .*; rename a folder that means a kno",
            ),
            (
                ["Fig___rot", "Kiwi___rot", "Mint___x"],
                "class 'Fig___rot' is not in the .*; unknown folders are Fig___rot, Kiwi___rot; rename a folder",
            ),
            (
                ["Fig___rot", "Kiwi___rot"],
                "field: none of its folders is a class of the checkpoint: Fig___rot, Kiwi___rot; its species are P"
                ".*; measure plants of other species with --unseen-plants",
            ),
            (
                ["Training", "val"],
                "field: field leaves have no split, but it holds Training and val; give .*, such as .*/field/Training",
            ),
            (["Mint___x"], "field: holds no field leaves of type .jpg.*; expected .*field/<Species>___<Disease>/"),
            ([], "field: holds no field leaves of type .jpg"),
        ],
    )
    def test_wrong_folders_are_refused(
        self, tiny_taxonomy: Taxonomy, tmp_path: Path, folders: list[str], match: str
    ) -> None:
        (tmp_path / "field").mkdir()
        for name in folders:
            (tmp_path / "field" / name).mkdir()

        with pytest.raises(DataError, match=match):
            read_field_leaves(tmp_path / "field", tiny_taxonomy)

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (
                "path,species,disease,split\na.jpg,Mint,,val\n",
                "field.csv: field leaves have no split, but the table has",
            ),
            ("path,species\na.jpg,Mint\n", "column disease missing; a manifest has path, species, disease$"),
            ("path,species,disease\na.jpg,Fig,rot\n", "class 'Fig___rot' is not in the checkpoint"),
            ("path,species,disease\n", "field.csv: holds no field leaves"),
        ],
    )
    def test_a_wrong_manifest_is_refused(
        self, tiny_taxonomy: Taxonomy, tmp_path: Path, content: str, match: str
    ) -> None:
        (tmp_path / "field.csv").write_text(content)

        with pytest.raises(DataError, match=match):
            read_field_leaves(tmp_path / "field.csv", tiny_taxonomy)

    def test_an_absent_folder_is_refused(self, tiny_taxonomy: Taxonomy, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="field: no such folder or manifest of field leaves"):
            read_field_leaves(tmp_path / "field", tiny_taxonomy)


def leaf_set(names: set[str]) -> LeafSet:
    root = Path("/leaves")
    paths = sorted(root / name for name in names)
    return LeafSet(root, "train", tuple(LeafSample(path, i % 3, None) for i, path in enumerate(paths)))


class TestSplitByName:
    @given(names=NAMES, more=NAMES, fraction=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 3))
    def test_parts_are_disjoint_complete_and_stable(self, names, more, fraction: float, seed: int) -> None:
        left_over, picked = split_by_name(leaf_set(names), fraction, 1000, seed)
        more_left_over, more_picked = split_by_name(leaf_set(names | more), fraction, 1000, seed)

        assert sorted(left_over.paths + picked.paths) == sorted(leaf_set(names).paths)
        assert not set(left_over.paths) & set(picked.paths)
        assert set(left_over.paths) <= set(more_left_over.paths)
        assert set(picked.paths) <= set(more_picked.paths)
        assert list(left_over.paths) == sorted(left_over.paths)
        assert fraction < 1 or not left_over.paths

    def test_about_the_fraction_asked_for_is_picked_and_the_seed_decides_which(self) -> None:
        leaves = leaf_set({f"{i}.jpg" for i in range(5000)})
        picked = [split_by_name(leaves, 0.2, 5000, seed)[1].paths for seed in (0, 0, 1)]

        assert picked[0] == picked[1] != picked[2]
        assert all(900 < len(paths) < 1100 for paths in picked)

    @pytest.mark.parametrize("fraction", [0.2, 1.0])
    @pytest.mark.parametrize("at_most", [0, 1, 7, 100, 199, 1000])
    def test_no_more_than_at_most_are_picked(self, at_most: int, fraction: float) -> None:
        leaves = leaf_set({f"{i}.jpg" for i in range(1000)})
        whole = set(split_by_name(leaves, fraction, 10_000, 0)[1].paths)
        left_over, picked = split_by_name(leaves, fraction, at_most, 0)

        assert len(picked.samples) == min(at_most, len(whole))
        assert set(picked.paths) <= whole
        assert len(left_over.samples) + len(picked.samples) == 1000

    def test_labels_stay_with_their_images(self) -> None:
        leaves = leaf_set({f"{i}.jpg" for i in range(50)})
        left_over, picked = split_by_name(leaves, 0.4, 50, 0)

        assert set(left_over.samples) | set(picked.samples) == set(leaves.samples)


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
