"""The two recipes of preprocessing: equal for an image that is not large, close to each other for one that is."""

import io
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from plantmodels.bundle.metadata import Interpolation, Preprocessing
from plantmodels.errors import ImageError
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.preprocessing import decode_image, preprocess

SIDE = 32
NEW = Preprocessing(SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OLD = replace(NEW, recipe=1)


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image whose smallest details have an eighth of its height, as in a large image of a leaf."""
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def prepare(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    return preprocess(decode_image(data, preprocessing), preprocessing)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(16, 4 * SIDE - 1),
    height=st.integers(16, 4 * SIDE - 1),
    crop_pct=st.floats(0.5, 1),
    interpolation=st.sampled_from(get_args(Interpolation)),
    file_format=st.sampled_from(["JPEG", "PNG"]),
)
def test_an_image_less_than_four_times_as_large_keeps_every_bit(width, height, crop_pct, interpolation, file_format):
    data = encode(draw(width, height), file_format)
    old, new = (replace(p, crop_pct=crop_pct, interpolation=interpolation) for p in (OLD, NEW))
    np.testing.assert_array_equal(prepare(data, new), prepare(data, old))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(4 * SIDE, 4 * SIDE), (650, 480), (480, 651), (2000, 300)])
def test_a_large_image_is_close_to_timms_transform(size: tuple[int, int], file_format: str) -> None:
    data = encode(draw(*size), file_format, quality=95)
    timm = pytest.importorskip("timm.data", reason="an environment that only serves has no timm")
    transform = timm.create_transform(
        (3, SIDE, SIDE), interpolation="bicubic", mean=NEW.mean, std=NEW.std, crop_pct=1.0
    )
    expected = transform(decode_image(data)).numpy()
    np.testing.assert_allclose(prepare(data, OLD), expected, atol=1e-6)
    difference = np.abs(prepare(data, NEW) - expected) * 255
    assert difference.mean() < 1.5
    assert difference.max() < 12


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((127, 500), (127, 500)),
        ((128, 500), (64, 250)),
        ((255, 255), (128, 128)),
        ((257, 400), (65, 100)),
        ((1000, 513), (125, 65)),
    ],
)
def test_a_jpeg_is_decoded_at_twice_the_side_or_more(size: tuple[int, int], decoded: tuple[int, int]) -> None:
    data = encode(draw(*size), "JPEG")
    assert decode_image(data, NEW).size == decoded
    assert decode_image(data, OLD).size == decode_image(data).size == size


def test_a_large_jpeg_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = draw(600, 400)
    upright = encode(image.transpose(Image.Transpose.ROTATE_270), "JPEG", quality=95)
    turned = encode(image, "JPEG", quality=95, exif=exif)
    assert decode_image(turned, NEW).size == (100, 150)
    assert np.abs(prepare(turned, NEW) - prepare(upright, NEW)).mean() * 255 < 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_is_reduced(mode: str, options: dict[str, object]) -> None:
    data = encode(draw(600, 400).convert(mode), "JPEG", quality=95, **options)
    assert decode_image(data, NEW).size == (150, 100)
    assert np.abs(prepare(data, NEW) - prepare(data, OLD)).mean() * 255 < 1


def test_the_limits_are_those_of_the_whole_image() -> None:
    with pytest.raises(ImageError, match="one side is over 32 times the other"):
        decode_image(encode(draw(6_600, 200), "JPEG"), NEW)
    with pytest.raises(ImageError, match=r"exceeds limit of|at most 120,000,000 are decoded"):
        decode_image(claim_size(encode(draw(600, 400), "JPEG"), 20_000, 20_000), NEW)


@pytest.mark.parametrize("size", [(600, 800), (1200, 400), (5000, 4000), (150, 100)])
def test_a_jpeg_that_lies_about_its_size_is_read_in_the_size_that_it_claims_or_refused(size: tuple[int, int]) -> None:
    data = claim_size(encode(draw(600, 400), "JPEG"), *size)
    for preprocessing in (OLD, NEW):
        try:
            image = decode_image(data, preprocessing)
        except ImageError as error:
            assert "cannot be decoded" in str(error)
        else:
            scale = round(size[0] / image.width)
            assert image.size == (math.ceil(size[0] / scale), math.ceil(size[1] / scale))
            assert preprocess(image, preprocessing).shape == (3, SIDE, SIDE)


def claim_size(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header says another size."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.95])
def test_a_large_jpeg_that_is_cut_off_is_refused(cut: float) -> None:
    data = encode(draw(600, 400), "JPEG", quality=95)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data[: int(cut * len(data))], NEW)


def test_a_callers_image_keeps_its_size() -> None:
    image = Image.open(io.BytesIO(encode(draw(600, 400), "JPEG")))
    image_to_input(image, NEW)
    assert image.size == (600, 400)
