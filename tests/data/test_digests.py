"""Digests of image sets: what changes them, and what does not."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import digest_images
from plantmodels.data.leaves import digest_leaves, read_leaves


class TestDigest:
    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Path]:
        (tmp_path / "set" / "deep").mkdir(parents=True)
        paths = [tmp_path / "set" / name for name in ("a.jpg", "b.jpg", "deep/c.jpg")]
        for path in paths:
            path.write_bytes(path.name.encode())
        return paths

    def test_order_and_location_do_not_change_the_digest(self, files: list[Path], tmp_path: Path) -> None:
        root = tmp_path / "set"
        digests = {digest_images(root, order) for order in itertools.permutations(files)}
        shutil.copytree(root, tmp_path / "moved")
        moved = [tmp_path / "moved" / path.relative_to(root) for path in files]

        assert digests == {digest_images(tmp_path / "moved", moved)}

    def test_contents_names_and_count_change_the_digest(self, files: list[Path], tmp_path: Path) -> None:
        root = tmp_path / "set"
        digests = [digest_images(root, files), digest_images(root, files[:2])]
        files[0].write_bytes(b"b.jpg")
        digests.append(digest_images(root, files))
        files[1].write_bytes(b"a.jpg")  # two files with their contents exchanged
        digests.append(digest_images(root, files))
        files[2].rename(root / "deep" / "d.jpg")
        digests.append(digest_images(root, [*files[:2], root / "deep" / "d.jpg"]))

        assert len(set(digests)) == 5

    def test_an_unreadable_file_is_digested_by_its_name_alone(self, files: list[Path], tmp_path: Path) -> None:
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
