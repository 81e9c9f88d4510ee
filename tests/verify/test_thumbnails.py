import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from plantmodels.data.leaves import LeafSample
from plantmodels.report.leakage import Leak, Leakage, Twin
from plantmodels.report.per_image import ImageRow
from plantmodels.report.render.gallery import CaptionLine
from plantmodels.verify.leakage import LeakageRun
from plantmodels.verify.thumbnails import (
    MAX_PAIRS,
    MAX_THUMBNAILS,
    make_gallery,
    make_pair,
    make_thumbnail,
    show_flipped,
    show_leaks,
)


def make_row(name: str, fp16: tuple[str, str], int8: tuple[str, str]) -> ImageRow:
    """A leaf of Apple with scab."""
    return ImageRow("val", "Apple___scab", name, "Apple", "scab", *fp16, *int8, "", "", 0.5, 1.0, False)


RIGHT = ("Apple", "scab")


def test_a_thumbnail_is_the_middle_as_a_small_square(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 128, 0), (100, 0, 200, 100))
    image.save(tmp_path / "wide.png")
    jpeg = make_thumbnail(tmp_path / "wide.png")
    assert jpeg is not None and jpeg.startswith(b"\xff\xd8") and len(jpeg) < 8_000
    shown = Image.open(io.BytesIO(jpeg))
    assert shown.size == (160, 160)
    assert all(abs(a - b) < 12 for a, b in zip(shown.getpixel((80, 80)), (0, 128, 0), strict=True))  # type: ignore[arg-type]
    assert make_thumbnail(tmp_path / "wide.png") == jpeg


def test_images_that_can_no_longer_be_read_are_left_out(
    tmp_path: Path, numbered_images: Callable[..., list[Path]]
) -> None:
    paths = numbered_images(2)
    paths[0].write_bytes(b"no image")
    assert make_thumbnail(paths[0]) is None
    assert make_thumbnail(tmp_path / "gone.png") is None
    shown = make_gallery([(path, path.name, ()) for path in (*paths, tmp_path / "gone.png")])
    assert ([thumbnail.title for thumbnail in shown.thumbnails], shown.total) == (["001.png"], 3)


def test_a_gallery_shows_a_limited_number_of_images(numbered_images: Callable[..., list[Path]]) -> None:
    shown = make_gallery([(path, path.name, ()) for path in numbered_images(MAX_THUMBNAILS + 3)])
    assert (len(shown.thumbnails), shown.total) == (MAX_THUMBNAILS, MAX_THUMBNAILS + 3)


@pytest.mark.parametrize(
    ("fp16", "int8", "lines"),
    [
        (RIGHT, ("Mint", "scab"), [CaptionLine("FP16: Apple", True), CaptionLine("INT8: Mint", False)]),
        (("Apple", "black_rot"), RIGHT, [CaptionLine("FP16: black rot", False), CaptionLine("INT8: scab", True)]),
        (("Rose", "rust"), RIGHT, [CaptionLine("FP16: Rose, rust", False), CaptionLine("INT8: Apple, scab", True)]),
    ],
)
def test_captions_name_the_part_that_differs(
    numbered_images: Callable[..., list[Path]], fp16: tuple[str, str], int8: tuple[str, str], lines: list[CaptionLine]
) -> None:
    (path,) = numbered_images(1)
    shown = show_flipped([LeafSample(path, 0, 1)], [make_row("a", fp16, int8)])
    assert [(thumbnail.title, list(thumbnail.lines)) for thumbnail in shown.thumbnails] == [("Apple · scab", lines)]


def test_what_int8_alone_gets_wrong_comes_first(numbered_images: Callable[..., list[Path]]) -> None:
    wrong, other = ("Mint", "scab"), ("Rose", "scab")
    answers = [(wrong, RIGHT), (RIGHT, RIGHT), (wrong, other), (RIGHT, other), (RIGHT, wrong)]
    rows = [make_row(f"{i}", *pair) for i, pair in enumerate(answers)]
    shown = show_flipped([LeafSample(path, 0, 1) for path in numbered_images(5)], rows)
    assert [[line.text for line in thumbnail.lines] for thumbnail in shown.thumbnails] == [
        ["FP16: Apple", "INT8: Rose"],
        ["FP16: Apple", "INT8: Mint"],
        ["FP16: Mint", "INT8: Rose"],
        ["FP16: Mint", "INT8: Apple"],
    ]


def test_a_pair_is_two_thumbnails_side_by_side(tmp_path: Path) -> None:
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 128, 0))):
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{name}.png")
    jpeg = make_pair(tmp_path / "red.png", tmp_path / "green.png")
    assert jpeg is not None
    shown = Image.open(io.BytesIO(jpeg))
    assert shown.size == (160 + 8 + 160, 160)
    for place, colour in ((80, (255, 0, 0)), (164, (255, 255, 255)), (248, (0, 128, 0))):
        assert all(abs(a - b) < 16 for a, b in zip(shown.getpixel((place, 80)), colour, strict=True))  # type: ignore[arg-type]
    assert make_pair(tmp_path / "gone.png", tmp_path / "red.png") is None
    assert make_pair(tmp_path / "red.png", tmp_path / "gone.png") is None


def make_run(paths: list[Path], twins: list[Twin]) -> LeakageRun:
    """Each path is a leaf of Apple with scab that occurs again as the twin of its place, in the same file."""
    leaks = tuple(Leak(path.name, "Apple___scab", "a" * 64, twin) for path, twin in zip(paths, twins, strict=True))
    compared = {"train": 100, "val": 100, "non-plants": 10}
    return LeakageRun(Leakage(compared, leaks), tuple((path, path) for path in paths), ())  # type: ignore[arg-type]


def test_leaks_are_shown_with_both_places_and_identical_images_come_first(
    numbered_images: Callable[..., list[Path]],
) -> None:
    twins = [
        Twin("train", "1.jpg", "Apple___scab", "b" * 64, 3),
        Twin("non-plants", "2.jpg", "rocks", "c" * 64, 12),
        Twin("val", "3.jpg", "Rose___spot", "a" * 64, 0),
    ]
    shown = show_leaks(make_run(numbered_images(3), twins))
    assert [thumbnail.title for thumbnail in shown.thumbnails] == ["Apple · scab"] * 3
    assert [[line.text for line in thumbnail.lines] for thumbnail in shown.thumbnails] == [
        ["another class: Rose · spot", "identical"],
        ["train: Apple · scab", "visually the same"],
        ["non-plants: rocks", "visually the same"],
    ]
    assert (shown.total, shown.left_out) == (3, 0)


def test_a_limited_number_of_pairs_is_shown_and_unreadable_ones_are_left_out(
    numbered_images: Callable[..., list[Path]],
) -> None:
    paths = numbered_images(MAX_PAIRS + 3)
    paths[0].write_bytes(b"no image")
    shown = show_leaks(make_run(paths, [Twin("train", "1.jpg", "Apple___scab", "b" * 64, 3)] * len(paths)))
    assert (len(shown.thumbnails), shown.total, shown.left_out) == (MAX_PAIRS, MAX_PAIRS + 3, 3)
    first = Image.open(io.BytesIO(shown.thumbnails[0].jpeg)).getpixel((80, 80))
    assert max(first) < 8, "image 1, because image 0 cannot be read"  # type: ignore[arg-type, type-var]
