"""Which leaves calibrate a bundle: each source, each fallback, and what stays for the gates."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data import groups
from plantmodels.data.leaves import LeafSample, LeafSet, class_of, digest_each, leave_out, read_leaves
from plantmodels.errors import DataError
from plantmodels.export.calibration import leaves as module
from plantmodels.export.calibration.leaves import CalibrationChoice, choose_calibration, pick_part


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few leaves suffice: there are 180 training leaves and 45 validation leaves, whose drawings are much alike."""
    monkeypatch.setattr(groups, "MAX_DISTANCE", 12)
    for name, value in (("MIN_CALIBRATION_LEAVES", 9), ("MIN_VAL_LEAVES", 36), ("MIN_CLASS_LEAVES", 4)):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A private copy of the leaves, to change."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def choose(data: Path, taxonomy: Taxonomy, held_out: frozenset[str] = frozenset()) -> CalibrationChoice:
    train = read_leaves(data, "train", taxonomy)
    return choose_calibration(data, taxonomy, train, digest_each(train), held_out)


def name_held_out(data: Path, taxonomy: Taxonomy, step: int) -> frozenset[str]:
    """Return the digests of every leaf of the split train at this distance."""
    return frozenset(list(digest_each(read_leaves(data, "train", taxonomy)).values())[::step])


def test_a_split_calibration_comes_first(data: Path, tiny_taxonomy: Taxonomy, low_limits: None) -> None:
    (data / "val").rename(data / "Calib")
    shutil.copytree(data / "Calib", data / "val")
    chosen = choose(data, tiny_taxonomy, name_held_out(data, tiny_taxonomy, 4))

    assert chosen.record.source == "calibration"
    assert (len(chosen.leaves.samples), len(chosen.fit.samples)) == (45, 180)
    assert chosen.record.describe() == "calibrated on 45 leaves of the split calibration"
    assert chosen.record.sha256 == tuple(sorted(digest_each(chosen.leaves).values()))
    assert chosen.record.by_species["Mint"] == 5


def test_a_manifest_may_have_a_split_calibration(tmp_path: Path, low_limits: None) -> None:
    rows = [f"{split} {i}.jpg,Mint,,{split}" for split in ("train", "Calibration") for i in range(12)]
    (tmp_path / "leaves.csv").write_text("\n".join(["path,species,disease,split", *rows]) + "\n")
    for row in rows:
        (tmp_path / row.partition(",")[0]).write_text(row)
    chosen = choose(tmp_path / "leaves.csv", Taxonomy(("Mint", "Rose"), {}))

    assert (chosen.record.source, chosen.record.images) == ("calibration", 12)
    assert chosen.record.species_without == ("Rose",)


def test_leaves_that_training_held_out_are_found_by_content(
    data: Path, tiny_taxonomy: Taxonomy, low_limits: None
) -> None:
    held_out = name_held_out(data, tiny_taxonomy, 4)
    for path in sorted((data / "train").rglob("leaf*")):
        path.rename(path.with_name(f"renamed {path.name}"))
    chosen = choose(data, tiny_taxonomy, held_out)

    assert chosen.record.source == "held-out"
    assert chosen.record.sha256 == tuple(sorted(held_out))
    assert (len(chosen.leaves.samples), len(chosen.fit.samples)) == (45, 135)
    assert not set(chosen.leaves.samples) & set(chosen.fit.samples)


def test_a_third_of_val_comes_next_and_stays_the_same_under_other_names(
    data: Path, tiny_taxonomy: Taxonomy, low_limits: None
) -> None:
    chosen = choose(data, tiny_taxonomy)
    val = read_leaves(data, "val", tiny_taxonomy)
    measured = leave_out(val, chosen.record.sha256)

    assert chosen.record.source == "val"
    assert chosen.record.describe() == (
        "calibrated on 9 leaves of the split val, which no gate measures: the checkpoint names no leaves that training "
        "held out"
    )
    assert set(Counter(map(class_of, chosen.leaves.samples)).values()) == {1}, "one of each class may be taken"
    assert {*chosen.leaves.samples, *measured.samples} == set(val.samples)
    assert len(measured.samples) == 36
    for path in sorted((data / "val").rglob("leaf*")):
        path.rename(path.with_name(f"a {path.name}"))
    assert choose(data, tiny_taxonomy).record == chosen.record


def test_a_leaf_that_is_also_a_training_leaf_does_not_calibrate(
    data: Path, tiny_taxonomy: Taxonomy, low_limits: None
) -> None:
    shutil.copytree(data / "val", data / "calibration")
    twin = next((data / "train").rglob("leaf 3*"))
    shutil.copy(twin, data / "calibration" / twin.parent.name / "leaf 900.jpg")
    chosen = choose(data, tiny_taxonomy)

    assert (chosen.record.source, chosen.record.images) == ("calibration", 44)


def test_a_leaf_of_the_group_of_a_training_leaf_does_not_calibrate(
    data: Path, tiny_taxonomy: Taxonomy, low_limits: None
) -> None:
    shutil.copytree(data / "val", data / "calibration")
    twin = next((data / "train").rglob("leaf 3*"))
    with Image.open(twin) as image:
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(
            data / "calibration" / twin.parent.name / "leaf 900.png"
        )
    for split in ("train", "calibration"):
        place = data / split / "Mint___unlabelled"
        (place / "group=plant 1").mkdir()
        first = min(path for path in place.iterdir() if path.is_file())
        first.rename(place / "group=plant 1" / first.name)
    chosen = choose(data, tiny_taxonomy)

    assert (chosen.record.source, chosen.record.images) == ("calibration", 44)
    assert chosen.record.by_species["Mint"] == 4
    assert set(chosen.groups) == set(chosen.fit.paths)
    assert data / "calibration" / twin.parent.name / "leaf 900.png" not in chosen.leaves.paths


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: shutil.rmtree(data / "val"), "; the data have no split val"),
        (lambda data: (data / "val" / "Fig___rot").mkdir(), "; the split val cannot be read"),
        (
            lambda data: [p.unlink() for p in (data / "val").rglob("leaf 900*")],
            "; a part of the split val would leave 36 of its leaves to the gates, fewer than 37",
        ),
        (lambda data: None, "; a third of the split val is too small (8 leaves, at least 9 are needed)"),
    ],
)
def test_without_fresh_leaves_training_leaves_calibrate_and_it_says_so(
    data: Path, tiny_taxonomy: Taxonomy, low_limits: None, monkeypatch: pytest.MonkeyPatch, change, match: str
) -> None:
    change(data)
    if "37" in match:
        monkeypatch.setattr(module, "MIN_VAL_LEAVES", 37)
    if "8 leaves" in match:
        val = sorted((data / "val").rglob("leaf*"))
        digests = set(choose(data, tiny_taxonomy).record.sha256)
        twin = next(path for path in val if digest_each(read_leaves(data, "val", tiny_taxonomy))[path] in digests)
        shutil.copy(twin, data / "train" / twin.parent.name / f"twin{twin.suffix}")
    chosen = choose(data, tiny_taxonomy)

    assert chosen.record.is_optimistic
    assert chosen.leaves == chosen.fit
    assert chosen.record.sha256 == ()
    assert chosen.record.describe().startswith("OPTIMISTIC: calibrated on 18")
    assert "which the network has learned: the checkpoint names no leaves that training held out" in (
        chosen.record.describe()
    )
    assert match in chosen.record.reason


def test_too_few_leaves_of_a_better_source_are_said(data: Path, tiny_taxonomy: Taxonomy, low_limits: None) -> None:
    place = data / "calibration" / "Mint___unlabelled"
    shutil.copytree(data / "val" / "Mint___unlabelled", place)
    reason = choose(data, tiny_taxonomy, name_held_out(data, tiny_taxonomy, 60)).record.reason

    assert reason == (
        "the split calibration has too few leaves that are not in train (5 leaves, at least 9 are needed); "
        "of 3 leaves that training held out, too few are in the split train (3 leaves, at least 9 are needed)"
    )


@pytest.mark.parametrize(
    ("name", "match"),
    [("Mint___unlabelled", "split 'calibration' holds no images"), ("Fig___rot", "class 'Fig___rot' is not in the")],
)
def test_a_split_calibration_that_cannot_be_right_is_an_error(
    data: Path, tiny_taxonomy: Taxonomy, name: str, match: str
) -> None:
    (data / "calibration" / name).mkdir(parents=True)

    with pytest.raises(DataError, match=match):
        choose(data, tiny_taxonomy)


def test_at_most_so_many_leaves_calibrate(
    data: Path, tiny_taxonomy: Taxonomy, low_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CALIBRATION_LEAVES", 20)
    held_out = name_held_out(data, tiny_taxonomy, 4)
    chosen = choose(data, tiny_taxonomy, held_out)

    assert chosen.record.sha256 == tuple(sorted(held_out)[:20])
    assert len(chosen.fit.samples) == 135, "the others are held out from the detector, too"


def test_groups_are_taken_whole_and_small_classes_keep_their_leaves() -> None:
    samples = [LeafSample(Path(f"{i}.jpg"), int(i >= 30), 0) for i in range(37)]
    keys = [f"group {i // 4:02}" for i in range(30)] + [f"single {i}" for i in range(7)]
    taken = pick_part(samples, keys)
    counts = Counter(keys[int(sample.path.stem)] for sample in taken)

    assert all(count == keys.count(group) for group, count in counts.items())
    assert Counter(sample.species_index for sample in taken) == {0: 10, 1: 2}
    assert pick_part(samples[30:35], keys[30:35]) == (), "five leaves of a class stay"


def test_leaving_nothing_out_reads_nothing() -> None:
    leaves = LeafSet(Path("/"), "val", (LeafSample(Path("/absent.jpg"), 0, 0),))

    assert leave_out(leaves, ()) is leaves


@pytest.mark.parametrize("searched", [20_000, 200])
def test_each_image_is_read_once_however_many_sources_are_too_small(
    data: Path, tiny_taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch, searched: int
) -> None:
    """Of more images than are searched for copies, the digests alone are read, and training leaves once as well."""
    (data / "calibration").mkdir()
    shutil.move(sorted((data / "val").iterdir())[0], data / "calibration")
    reads: Counter[Path] = Counter()
    for name in ("take_fingerprints", "digest_content"):
        monkeypatch.setattr(groups, name, _record(getattr(groups, name), reads))
    monkeypatch.setattr(groups, "MAX_SEARCHED", searched)
    monkeypatch.setattr(module, "MIN_CALIBRATION_LEAVES", 1)
    monkeypatch.setattr(module, "_describe_lack", lambda leaves, lack: "too few")
    train, contents = read_leaves(data, "train", tiny_taxonomy), groups.Contents()
    digests = digest_each(train, contents)
    chosen = choose_calibration(data, tiny_taxonomy, train, digests, frozenset(list(digests.values())[::4]), contents)

    assert chosen.record.source == "train" and digests == digest_each(train)
    assert len(reads) >= 180 + 40 and set(reads.values()) == {1}


def _record(read: Callable[..., Any], reads: Counter[Path]) -> Callable[..., Any]:
    """Return a function that reads files, or one file, and counts them."""

    def wrapped(paths: Any, **options: Any) -> Any:
        reads.update([paths] if isinstance(paths, Path) else paths)
        return read(paths, **options)

    return wrapped
