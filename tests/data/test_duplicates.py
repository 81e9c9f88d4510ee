import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.fft import dctn

from examples.drawn_leaves.draw import TAXONOMY, draw_image
from plantmodels.bundle.calibration import MAX_DISTANCE
from plantmodels.data import duplicates
from plantmodels.data.duplicates import (
    HASH_BITS,
    DuplicateIndex,
    Fingerprint,
    Match,
    take_fingerprint,
    take_fingerprints,
)
from plantmodels.serve.preprocessing import decode_image
from tests.fixtures.checkpoints import RealPaths

LEAVES = 10


@cache
def draw_leaf(number: int) -> Image.Image:
    """Draw one leaf of each of ten species."""
    species = list(TAXONOMY)[number]
    content = draw_image(f"data/val/{species}___{TAXONOMY[species][0]}/0001.jpg", seed=0)
    return Image.open(io.BytesIO(content)).convert("RGB")


def encode(image: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cut(image: Image.Image, part: float) -> Image.Image:
    x, y = round(image.width * part), round(image.height * part)
    return image.crop((x, y, image.width - x, image.height - y))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DuplicateIndex:
    folder = tmp_path_factory.mktemp("leaves")
    paths = [folder / f"{number}.png" for number in range(LEAVES)]
    for number, path in enumerate(paths):
        path.write_bytes(encode(draw_leaf(number), "PNG"))
    return make_index(list(take_fingerprints(paths, all_views=True)))


def make_index(fingerprints: Sequence[Fingerprint]) -> DuplicateIndex:
    return DuplicateIndex(fingerprints, max_distance=MAX_DISTANCE)


def fingerprint_of(folder: Path, content: bytes) -> Fingerprint:
    (folder / "again.jpg").write_bytes(content)
    return take_fingerprint(folder / "again.jpg", all_views=True)


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG of quality 50": lambda image: encode(image, quality=50),
    "JPEG of quality 95": lambda image: encode(image, quality=95),
    "WebP of quality 60": lambda image: encode(image, "WEBP", quality=60),
    "half the size": lambda image: encode(image.resize((128, 128)), quality=90),
    "twice the size": lambda image: encode(image.resize((512, 512)), quality=90),
    "another shape": lambda image: encode(image.resize((300, 200)), quality=90),
    "1 % cut off": lambda image: encode(cut(image, 0.01), quality=90),
    "3 % cut off": lambda image: encode(cut(image, 0.03), quality=90),
    "5 % cut off": lambda image: encode(cut(image, 0.05), quality=90),
    "5 % brighter": lambda image: encode(image.point(lambda value: min(255, int(value * 1.05))), quality=90),
    "mirrored": lambda image: encode(ImageOps.mirror(image), quality=90),
    "turned": lambda image: encode(image.rotate(270), quality=90),
    "mirrored and turned": lambda image: encode(ImageOps.mirror(image).rotate(90), quality=90),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_an_image_is_found_and_no_other_image_is(
    index: DuplicateIndex, tmp_path: Path, change: str
) -> None:
    for number in range(LEAVES):
        found = index.find(fingerprint_of(tmp_path, CHANGES[change](draw_leaf(number))))
        assert [match.position for match in found] == [number], number
        assert 0 <= found[0].distance <= MAX_DISTANCE


def test_an_image_is_found_whichever_of_the_two_is_cropped(tmp_path: Path) -> None:
    whole = fingerprint_of(tmp_path, encode(draw_leaf(0), "PNG"))
    cropped = fingerprint_of(tmp_path, encode(cut(draw_leaf(0), 0.03), "PNG"))
    assert [match.position for match in make_index([whole]).find(cropped)] == [0]
    assert [match.position for match in make_index([cropped]).find(whole)] == [0]


TURNS: Sequence[Callable[[np.ndarray], np.ndarray]] = (
    *(lambda grid: grid, np.fliplr, np.flipud, np.rot90, lambda grid: np.rot90(grid, 2)),
    *(lambda grid: np.rot90(grid, 3), np.transpose, lambda grid: np.rot90(grid.T, 2)),
)
"""The first eight views."""


def reduce(image: Image.Image) -> Image.Image:
    return image.resize((64, 64), Image.Resampling.LANCZOS).convert("L")


def hash_elsewhere(grey: Image.Image) -> np.ndarray:
    """Return the bits (256,) that the package imagehash gives a grey thumbnail."""
    return np.ravel(imagehash.phash(grey, hash_size=16, highfreq_factor=4).hash)


def unpack(hashes: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8), axis=-1)


def pad_and_cut(grey: Image.Image, margin: float) -> Image.Image:
    """Change the margin of a grey image of 64 pixels a side by `np.pad`."""
    border = {0.02: 0, 0.04: 0, -0.02: 2, -0.04: 3}[margin]
    padded = Image.fromarray(np.pad(np.asarray(grey), border, mode="edge"))
    low, high = border + 64 * margin, border + 64 * (1 - margin)
    return padded.resize((64, 64), Image.Resampling.BICUBIC, box=(low, low, high, high))


def test_every_view_has_the_hash_of_another_implementation(tmp_path: Path) -> None:
    """One cosine transform gives the hashes of all turns; imagehash computes one for each view."""
    (tmp_path / "leaf.png").write_bytes(encode(draw_leaf(3), "PNG"))
    grey = reduce(draw_leaf(3))
    views = [Image.fromarray(np.ascontiguousarray(turn(np.asarray(grey)))) for turn in TURNS]
    views += [pad_and_cut(grey, margin) for margin in duplicates._MARGINS]

    found = take_fingerprint(tmp_path / "leaf.png", all_views=True).hashes
    assert len(found) == len(views) == 12
    np.testing.assert_array_equal(unpack(found), [hash_elsewhere(view) for view in views])
    np.testing.assert_array_equal(take_fingerprint(tmp_path / "leaf.png").hashes, found[:1])


@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.integers(1, 256),
    side=st.sampled_from([1, 2, 4, 16, 64]),
    base=st.integers(0, 255),
)
def test_hashes_equal_those_of_imagehash_to_the_last_bit(seed: int, levels: int, side: int, base: int) -> None:
    """Of images with few levels or large blocks, many frequencies are equal or zero but for rounding."""
    blocks = np.random.default_rng(seed).integers(0, levels, (side, side))
    pixels = np.kron((blocks + base) % 256, np.ones((64 // side, 64 // side))).astype(np.uint8)
    grey = Image.fromarray(pixels)
    views = [grey, *(pad_and_cut(grey, margin) for margin in duplicates._MARGINS)]
    whole = dctn(np.stack([np.asarray(view) for view in views]).astype(np.float64), axes=(1, 2))[:, :16, :16]

    found = unpack(duplicates._hash_views(grey))
    np.testing.assert_array_equal(found[[0, 8, 9, 10, 11]], [hash_elsewhere(view) for view in views])
    np.testing.assert_array_equal(duplicates._transform(np.stack([np.asarray(view) for view in views])), whole)
    grids = _turn_frequencies(whole[0])
    np.testing.assert_array_equal(found[:8], [np.ravel(grid > np.median(grid)) for grid in grids])


def _turn_frequencies(grid: np.ndarray) -> list[np.ndarray]:
    """Return the frequencies of the eight turns of an image, by those of the image."""
    columns = np.where(np.arange(16) % 2, -1.0, 1.0)
    rows, turned = columns[:, None], grid.T
    return [
        *(grid, grid * columns, grid * rows, turned * rows, grid * rows * columns),
        *(turned * columns, turned, turned * rows * columns),
    ]


def test_another_leaf_of_the_same_class_is_another_image(index: DuplicateIndex, tmp_path: Path) -> None:
    for species in TAXONOMY:
        content = draw_image(f"data/val/{species}___{TAXONOMY[species][0]}/0002.jpg", seed=0)
        assert index.find(fingerprint_of(tmp_path, content)) == []


def test_identical_bytes_match_even_where_they_are_no_image(tmp_path: Path) -> None:
    for name, content in (("a.jpg", b"no image"), ("b.jpg", b"other"), ("c.jpg", b"no image")):
        (tmp_path / name).write_bytes(content)
    index = make_index(list(take_fingerprints(sorted(tmp_path.iterdir()))))
    assert index.find(take_fingerprint(tmp_path / "a.jpg")) == [Match(0, 0), Match(2, 0)]


def test_files_that_cannot_be_read_are_like_no_other_file(tmp_path: Path) -> None:
    gone = take_fingerprint(tmp_path / "gone.jpg")
    assert (gone.sha256, len(gone.hashes)) == ("", 0)
    assert make_index([gone, gone]).find(gone) == []
    assert make_index([]).find(gone) == []


def test_an_index_needs_every_view_of_its_images(tmp_path: Path) -> None:
    (tmp_path / "leaf.png").write_bytes(encode(draw_leaf(0), "PNG"))
    with pytest.raises(ValueError, match="fingerprint 1 has 1 of 12 views"):
        make_index([take_fingerprint(tmp_path / "leaf.png", all_views=views) for views in (True, False)])


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaf.png").write_bytes(encode(draw_leaf(0), "PNG"))
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    fingerprint = take_fingerprint(tmp_path / "leaf.png")
    assert (fingerprint.hashes.shape, len(fingerprint.sha256)) == ((1, 4), 64)
    assert reads == [tmp_path / "leaf.png"]


def test_an_identical_file_is_not_compared_by_its_thumbnail(
    index: DuplicateIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("the digests are equal")

    monkeypatch.setattr(duplicates, "_compare", refuse)
    assert index.find(fingerprint_of(tmp_path, encode(draw_leaf(3), "PNG"))) == [Match(3, 0)]


@pytest.mark.parametrize(("first", "second", "same"), [(255, 255, True), (255, 0, False), (128, 131, False)])
def test_blank_images_are_compared_by_their_colour(tmp_path: Path, first: int, second: int, same: bool) -> None:
    images = [Image.new("RGB", (90 + place, 80), (level,) * 3) for place, level in enumerate((first, second))]
    one, other = (fingerprint_of(tmp_path, encode(image, "PNG")) for image in images)
    assert [match.position for match in make_index([one]).find(other)] == ([0] if same else [])


def test_one_outline_in_two_colours_is_two_images(tmp_path: Path) -> None:
    grey = np.asarray(draw_leaf(0).convert("L"), np.float64)
    tinted = [Image.fromarray((grey[..., None] * weights).astype(np.uint8)) for weights in ((1, 0.3, 1), (0.3, 1, 0.3))]
    one, other = (fingerprint_of(tmp_path, encode(image, "PNG")) for image in tinted)
    assert make_index([one]).find(other) == []


def test_many_fingerprints_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(150)]
    for number, path in enumerate(paths):
        path.write_bytes(os.fsencode(str(number)))
    taken = list(take_fingerprints(paths))
    assert [fingerprint.sha256 for fingerprint in taken] == [take_fingerprint(path).sha256 for path in paths]


def test_the_largest_distance_lies_below_what_unrelated_images_have(index: DuplicateIndex) -> None:
    """Unrelated hashes differ in half of their bits, give or take 8."""
    assert HASH_BITS / 2 - 10 * np.sqrt(HASH_BITS) / 2 > MAX_DISTANCE


def test_no_near_hash_is_missed() -> None:
    """Half of the bits are compared first; by a count of all bits, no candidate is lost."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (300, 12, 4), np.int64).view(np.uint64)
    query = hashes[7, 0].copy()
    for image in range(100):  # of these, 0 to 99 bits are turned, evenly over the words
        hashes[image, 3] = query
        for bit in rng.permutation(HASH_BITS)[:image].tolist():
            hashes[image, 3, bit // 64] ^= np.uint64(1 << (bit % 64))
    index = make_index([Fingerprint(str(i), each, np.zeros((32, 32, 3), np.uint8)) for i, each in enumerate(hashes)])
    bits = np.unpackbits((hashes.reshape(-1, 4) ^ query).view(np.uint8), axis=1).sum(axis=1)
    expected = [(place, int(bits[place])) for place in np.flatnonzero(bits <= MAX_DISTANCE)]
    assert list(index._list_near(query)) == expected and len(expected) == 1 + MAX_DISTANCE + 1


@pytest.mark.real
def test_no_two_real_leaves_are_taken_for_one_image(real_paths: RealPaths) -> None:
    """Leaves of one class on one background are the hardest to tell apart: six million pairs in the measurement."""
    data = real_paths.leaves
    folders = sorted(path.name for path in (data / "val").iterdir() if path.name.startswith(("Cherry", "Raspberry")))
    paths = [path for folder in folders for split in ("train", "val") for path in (data / split / folder).iterdir()]
    assert len(paths) > 200
    fingerprints = list(take_fingerprints(paths, all_views=True))
    index = make_index(fingerprints)
    assert [[match.position for match in index.find(each)] for each in fingerprints] == [[i] for i in range(len(paths))]


@pytest.mark.real
@pytest.mark.slow
def test_real_images_have_the_hashes_of_imagehash(real_paths: RealPaths) -> None:
    """Every bit of the hash and of the four margins, of every shared leaf and non-plant."""
    paths = sorted(path for root in (real_paths.leaves, real_paths.non_plants) for path in root.rglob("*.jpg"))
    assert len(paths) == 5_533
    for path, fingerprint in zip(paths, take_fingerprints(paths, all_views=True), strict=True):
        grey = reduce(decode_image(path.read_bytes()))
        views = [grey, *(pad_and_cut(grey, margin) for margin in duplicates._MARGINS)]
        expected = [hash_elsewhere(view) for view in views]
        np.testing.assert_array_equal(unpack(fingerprint.hashes[[0, 8, 9, 10, 11]]), expected, str(path))
