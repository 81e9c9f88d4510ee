"""Groups go whole to one side of every split, and nothing else moves with them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data import groups as groups_module
from plantmodels.data.digests import digest_content, hash_to_fraction
from plantmodels.data.groups import Groups, find_groups, name_group
from plantmodels.data.leaves import LeafSample, LeafSet, group_leaves, read_leaves, split_by_name
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import DataError

NAMES = st.lists(st.sampled_from(["", "", "a", "b", "c", "d"]), max_size=40)


@given(NAMES, st.data())
def test_a_group_has_one_place_and_what_is_added_elsewhere_moves_nothing(names: list[str], data: st.DataObject) -> None:
    digests = [f"image {number}" for number in range(len(names))]
    pairs = st.tuples(*[st.integers(0, max(0, len(names) - 1))] * 2)
    alike = data.draw(st.lists(pairs, max_size=5)) if names else []
    found = Groups.of(names, digests, alike)

    places = found.places()
    assert len({*zip(found.keys, places, strict=True)}) == len(set(found.keys))
    for one, other in alike:
        assert places[one] == places[other]
    for name in {*names} - {""}:
        assert len({place for place, mine in zip(places, names, strict=True) if mine == name}) == 1
    more = Groups.of([*names, "new", "new", ""], [*digests, "x", "y", "z"], alike)
    assert more.places()[: len(names)] == places
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    where = {place: rank for rank, place in enumerate(order)}
    shuffled = Groups.of(
        [names[i] for i in order], [digests[i] for i in order], [(where[a], where[b]) for a, b in alike]
    )
    assert [shuffled.places()[where[i]] for i in range(len(names))] == places


def test_images_alone_have_the_place_of_their_content() -> None:
    assert Groups.of(["", ""], ["ab", "cd"]).places() == [hash_to_fraction("ab"), hash_to_fraction("cd")]
    assert Groups.of(["", ""], ["unreadable"] * 2).sizes == {"unreadable": 2}  # nothing says that they are the same
    assert Groups.of([], []).largest == ("", 0)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Rose___spot/1.jpg", ""),
        ("Rose___spot/group=plant 12/1.jpg", "plant 12"),
        ("films/group=7/frames/group=b/1.jpg", "7/b"),
        ("films/groups/1.jpg", ""),
        ("group=7.jpg", ""),
    ],
)
def test_only_folders_that_say_so_are_groups(path: str, name: str) -> None:
    root = Path("/a/group=above/data")
    assert name_group(root, root / path) == name
    assert name_group(root, Path("/elsewhere/group=x/1.jpg")) == ""


@pytest.fixture
def others(non_plants: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(non_plants, tmp_path / "others"))


@pytest.fixture
def non_plants(tiny_non_plants: Path) -> Path:
    return tiny_non_plants


def half_of(folder: Path) -> dict[str, str]:
    images = read_non_plants(folder)
    sides = {which: images.half(which).paths for which in ("selection", "gate")}
    return {path.relative_to(folder).as_posix(): which for which, paths in sides.items() for path in paths}


def test_without_groups_the_halves_are_those_of_the_content(non_plants: Path) -> None:
    images = read_non_plants(non_plants)
    for which in ("selection", "gate"):
        assert images.half(which) == images.half(which, whole_groups=False)


def test_copies_and_named_groups_go_whole_into_a_half_and_the_others_stay(others: Path) -> None:
    before = half_of(others)
    first = min(before)
    image = Image.open(others / first).convert("RGB")
    width, height = image.size
    (others / "copies").mkdir()
    image.resize((width // 2, height // 2)).save(others / "copies" / "small.jpg", quality=60)
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(others / "copies" / "mirrored.png")
    film = others / "films" / "group=7"
    film.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(film / f"{number}.png")
    after = half_of(others)

    assert len({after[name] for name in after if name.startswith("films/")}) == 1
    assert len({after[name] for name in (first, "copies/small.jpg", "copies/mirrored.png")}) == 1
    assert {name: half for name, half in after.items() if name in before and name != first} == {
        name: half for name, half in before.items() if name != first
    }
    renamed = others / "films" / "group=7" / "renamed.png"
    (film / "3.png").rename(renamed)
    assert half_of(others)["films/group=7/renamed.png"] == after["films/group=7/3.png"]


def test_a_group_that_leaves_a_half_empty_is_refused_by_name(others: Path, tmp_path: Path) -> None:
    film = tmp_path / "film" / "group=street"
    film.parent.mkdir()
    shutil.copytree(others, film)
    images = read_non_plants(tmp_path / "film")
    full = images.half("gate" if hash_to_fraction("street") >= 0.5 else "selection")

    assert len(full.paths) == len(images.paths)
    with pytest.raises(
        DataError,
        match=r"film: the half of the non-plants that (chooses the detector|measures the gates) is empty.* "
        r"the largest group, 'street', holds \d+ of \d+ images; give images of more groups",
    ):
        images.half("selection" if hash_to_fraction("street") >= 0.5 else "gate")


def test_many_images_are_compared_by_their_bytes_alone(
    others: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(groups_module, "MAX_SEARCHED", 3)
    images = read_non_plants(others)
    groups = find_groups(others, images.paths)
    assert groups.keys == tuple(digest_content(path) for path in images.paths)
    assert f"of {len(images.paths)} images, copies are found by their bytes alone; name groups" in caplog.text


class TestLeaves:
    def test_folders_of_groups_are_read_and_named_by_their_species(self, tmp_path: Path, tiny_data: Path) -> None:
        source = next(path for path in (tiny_data / "val").rglob("*") if path.is_file())
        for place in ("Rose___spot/group=7/a", "Rose___healthy/group=7/b", "Mint___x/group=7/c", "Mint___x/d"):
            path = tmp_path / "data" / "train" / f"{place}{source.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
        ignored = tmp_path / "data" / "train" / "Mint___x"
        for place in ("shard 1", "group=7/group=8"):
            (ignored / place).mkdir()
            shutil.copy(source, ignored / place / source.name)
        taxonomy = Taxonomy(("Mint", "Rose"), {"Rose": ("spot", "healthy")})
        leaves = read_leaves(tmp_path / "data", "train", taxonomy)

        assert [(sample.path.stem, sample.group) for sample in leaves.samples] == [
            ("d", ""),
            ("c", "Mint/7"),
            ("b", "Rose/7"),
            ("a", "Rose/7"),
        ]
        assert leaves.left_out.kinds == {"folder inside a class folder": 2}

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_column_group_names_groups_across_species(self, tmp_path: Path, kind: str) -> None:
        manifest = tmp_path / f"leaves.{kind}"
        rows = [("a.jpg", "Mint", "", "train", "p1"), ("b.jpg", "Rose", "spot", "train", "p1")]
        rows.append(("c.jpg", "Rose", "spot", "train", None))  # type: ignore[arg-type]
        table = pd.DataFrame(rows, columns=["path", "species", "disease", "split", "group"])
        _ = table.to_csv(manifest, index=False) if kind == "csv" else table.to_parquet(manifest, index=False)
        leaves = read_leaves(manifest, "train", Taxonomy(("Mint", "Rose"), {"Rose": ("spot", "healthy")}))

        assert [sample.group for sample in leaves.samples] == ["p1", "p1", ""]

    def test_a_group_is_held_out_whole_and_other_leaves_stay(self) -> None:
        root = Path("/leaves")
        names = [f"group {number // 5}" if number < 50 else "" for number in range(200)]
        samples = tuple(LeafSample(root / f"{i:03d}.jpg", 0, None, name) for i, name in enumerate(names))
        leaves = LeafSet(root, "train", samples)
        groups = Groups.of(names, [f"content {number}" for number in range(200)], [(150, 151)])
        rest, picked = split_by_name(leaves, 0.3, 200, 0, groups)
        plain = split_by_name(leaves, 0.3, 200, 0)[1]

        assert 30 < len(picked.samples) < 90
        for part in (rest, picked):
            sizes = pd.Series([sample.group for sample in part.samples if sample.group]).value_counts()
            assert set(sizes) <= {5}
        together = {samples[150] in picked.samples, samples[151] in picked.samples}
        assert len(together) == 1
        alone = [sample for i, sample in enumerate(samples) if i >= 50 and i not in (150, 151)]
        assert [sample in picked.samples for sample in alone] == [sample in plain.samples for sample in alone]

    def test_leaves_are_grouped_by_name_and_by_what_they_show(self, tmp_path: Path, tiny_data: Path) -> None:
        files = sorted(path for path in (tiny_data / "val").rglob("*.jpg"))[:3]
        image = Image.open(files[0]).convert("RGB")
        copy = tmp_path / "copy.png"
        image.rotate(90, expand=True).save(copy)
        paths = [*files, copy]
        samples = tuple(LeafSample(path, 0, None, group) for path, group in zip(paths, ("", "p", "p", ""), strict=True))
        keys = group_leaves(LeafSet(tmp_path, "train", samples)).keys

        assert keys[1] == keys[2] == "p"
        assert keys[0] == keys[3] == min(digest_content(files[0]), digest_content(copy))


def measure_trust(name: Callable[[int, int], str], draws: int = 400, originals: int = 60, copies: int = 8) -> float:
    """Return how much of a change in the true recall the gate half shows, in simulated sets of copied non-plants.

    It is the slope of the recall that the gate half measures on the true one: 1 if the gate half is an independent
    draw, 0 if it repeats what the selection half said. The threshold rejects 95 % of the selection half. The truth is
    the share that it rejects of all images that there could be, whose scores are normal. Copies score almost as their
    original does.

    Args:
        name: text that decides the half, of the numbers of an original and of its copy.
        draws: number of simulated sets.
        originals: number of different images in a set.
        copies: number of copies of each.
    """
    rng, pairs = np.random.default_rng(5), []
    numbers = np.repeat(np.arange(originals), copies)
    for draw in range(draws):
        scores = rng.normal(size=originals)[numbers] + 0.01 * rng.normal(size=len(numbers))
        names = [f"{draw} {name(number, place % copies)}" for place, number in enumerate(numbers.tolist())]
        selection = np.array(Groups.of([""] * len(names), names).places()) < 0.5
        threshold = float(np.quantile(scores[selection], 0.05))
        pairs.append((1 - NormalDist().cdf(threshold), float((scores[~selection] > threshold).mean())))
    truth, measured = np.array(pairs).T
    return float(np.polyfit(truth, measured, 1)[0])


def test_halves_are_independent_by_group_and_not_by_content() -> None:
    """With copies, halves by content measure what chose the threshold: a recall that is too low stays unseen.

    Over twelve seeds the slope was 0.21 by content and 0.97 by group, with standard deviations of 0.04 and 0.08. So
    the bounds are more than four of them away.
    """
    assert measure_trust(lambda number, copy: f"{number}/{copy}") < 0.4
    assert measure_trust(lambda number, _: f"{number}") == pytest.approx(1, abs=0.4)
