import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from plantmodels.data.leaves import LeafSample
from plantmodels.report.per_image import ImageRow
from plantmodels.report.render.gallery import CaptionLine
from plantmodels.verify.thumbnails import MAX_THUMBNAILS, make_gallery, make_thumbnail, show_flipped


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
