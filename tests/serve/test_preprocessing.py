"""The one preprocessing: equal to timm's evaluation transform, and every odd file refused or read as it looks."""

import base64
import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from plantmodels.bundle.metadata import Interpolation, Preprocessing
from plantmodels.errors import ImageError
from plantmodels.serve.preprocessing import decode_image, preprocess, resize_and_crop, to_rgb, upright_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOAT_ROUNDING = 1e-6


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def corners() -> Image.Image:
    """48×32 with a red top left, green top right, blue bottom left and white bottom right quarter."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24, 0] = pixels[:16, 24:, 1] = pixels[16:, :24, 2] = 255
    pixels[16:, 24:] = 255
    return Image.fromarray(pixels)


def look(image: Image.Image) -> tuple[tuple[int, int], list[str]]:
    """Size, and the colour names of the four corners, clockwise from the top left."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    width, height = image.size
    points = [(4, 4), (width - 5, 4), (width - 5, height - 5), (4, height - 5)]
    return image.size, [names.get(tuple(v > 127 for v in image.getpixel(p)), "?") for p in points]


UPRIGHT = ((48, 32), ["red", "green", "white", "blue"])


def check_against_timm(image: Image.Image, preprocessing: Preprocessing) -> None:
    timm = pytest.importorskip("timm.data", reason="an environment that only serves has no timm")
    transform = timm.create_transform(
        input_size=(3, preprocessing.image_size, preprocessing.image_size),
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
    )
    resized = transform.transforms[1](
        transform.transforms[0](image)
    )  # Resize, CenterCrop; then to tensor and normalize

    np.testing.assert_array_equal(np.asarray(resize_and_crop(image, preprocessing)), np.asarray(resized))
    expected = transform(image).numpy()
    pixels = preprocess(image, preprocessing)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels, expected, rtol=FLOAT_ROUNDING, atol=FLOAT_ROUNDING)


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875, 0.5])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (64, 64), (225, 223), (40, 500)])
def test_equals_timms_evaluation_transform(size, crop_pct: float, interpolation: Interpolation) -> None:
    check_against_timm(noise(*size), Preprocessing(224, MEAN, STD, interpolation, crop_pct))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(16, 400),
    height=st.integers(16, 400),
    image_size=st.integers(8, 256),
    crop_pct=st.floats(0.3, 1),
    interpolation=st.sampled_from(get_args(Interpolation)),
    channels=st.tuples(st.floats(-1, 1), st.floats(0.01, 2)),
)
def test_equals_timms_evaluation_transform_anywhere(
    width: int, height: int, image_size: int, crop_pct: float, interpolation: Interpolation, channels
) -> None:
    mean, std = channels
    config = Preprocessing(image_size, (mean, 0.5, 0.1), (std, 0.5, 1.0), interpolation, crop_pct, recipe=1)
    check_against_timm(noise(width, height), config)


def test_leaves_the_image_unchanged() -> None:
    image = noise(60, 50)
    before = image.tobytes()
    preprocess(image, Preprocessing(224, MEAN, STD))

    assert image.tobytes() == before


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_plain_files(corners: Image.Image, file_format: str) -> None:
    assert look(decode_image(encode(corners, file_format))) == UPRIGHT


def test_png_is_read_exactly() -> None:
    image = noise(40, 30)

    assert decode_image(encode(image, "PNG")).tobytes() == image.tobytes()


CONVERSIONS: dict[str, Callable[[Image.Image], bytes]] = {
    "CMYK JPEG": lambda image: encode(image.convert("CMYK"), "JPEG", quality=95),
    "palette PNG": lambda image: encode(image.quantize(8), "PNG"),
    "palette PNG with an alpha each": lambda i: encode(i.quantize(4), "PNG", transparency=bytes([0, 9, 255, 0])),
    "palette PNG with one clear colour": lambda i: encode(i.quantize(4), "PNG", transparency=0),
    "RGBA PNG, half clear": lambda image: encode(with_alpha(image, 128), "PNG"),
    "RGBA PNG, all clear": lambda image: encode(with_alpha(image, 0), "PNG"),
    "RGBA WebP": lambda image: encode(with_alpha(image, 255), "WEBP", lossless=True),
    "RGB PNG with a clear colour": lambda image: encode(image, "PNG", transparency=(255, 0, 0)),
    "progressive JPEG": lambda image: encode(image, "JPEG", progressive=True, quality=95),
    "16-bit RGB PNG": lambda image: png_rgb16(image),
    "MPO": lambda image: encode(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
}


def with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


def png_rgb16(image: Image.Image) -> bytes:
    """Pillow writes no 16-bit RGB, so chunk by chunk."""
    pixels = (np.asarray(image).astype(">u2") * 257).reshape(image.height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_every_mode_becomes_the_rgb_that_one_sees(corners: Image.Image, kind: str) -> None:
    image = decode_image(CONVERSIONS[kind](corners))

    assert image.mode == "RGB"
    assert look(image) == UPRIGHT


def test_grey_files_have_three_equal_channels() -> None:
    ramp = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for pixels, expected in ((ramp, ramp), (deep, (deep >> 8).astype(np.uint8)), (ramp > 99, (ramp > 99) * 255)):
        decoded = np.asarray(decode_image(encode(Image.fromarray(pixels), "PNG")))

        np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(("mode", "pixel_bytes"), [("I;16", 2), ("I;16B", 2), ("I", 4)])
def test_deep_grey_takes_no_wider_numbers_than_its_own(mode: str, pixel_bytes: int) -> None:
    image = Image.new(mode, (1000, 1000), 200 << 8)
    tracemalloc.start()
    try:
        assert to_rgb(image).getpixel((3, 3)) == (200, 200, 200)
        assert tracemalloc.get_traced_memory()[1] < (2 * pixel_bytes + 2) * 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "expected"), [(-1, 0), (255, 0), (256, 1), (65535, 255), (65536, 255), (2**31 - 1, 255)]
)
def test_grey_beyond_16_bits_is_clipped(value: int, expected: int) -> None:
    assert to_rgb(Image.new("I", (20, 20), value)).getpixel((3, 3)) == (expected,) * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "I;16B"])
def test_to_rgb_takes_every_mode_of_pillow(mode: str) -> None:
    grey = Image.new("L", (20, 20), 200)
    image = Image.new(mode, (20, 20), 200 << 8) if mode.startswith("I") else grey.convert(mode)

    assert to_rgb(image).getpixel((3, 3)) in {(200, 200, 200), (255, 255, 255)}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(corners: Image.Image, orientation: int, file_format: str) -> None:
    # What the camera stores, so that its orientation tag turns it upright: the inverse of each turn.
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = corners if orientation == 1 else corners.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"save_all": True, "append_images": [stored]} if file_format == "MPO" else {}
    data = encode(stored, file_format, exif=exif, **options)

    assert look(decode_image(data)) == UPRIGHT
    assert look(upright_rgb(Image.open(io.BytesIO(data)))) == UPRIGHT


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_unknown_orientation_is_ignored(corners: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    assert look(decode_image(encode(corners, "JPEG", exif=exif))) == UPRIGHT


def test_exif_that_cannot_be_written_again_does_not_lose_the_image(corners: Image.Image) -> None:
    # Orientation 6, and a GPS block whose latitude is text where Pillow would write numbers.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x8825, 4, 1, 38)
    gps = struct.pack(">HHHII", 1, 2, 5, 1, 0) + bytes(4)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4) + gps
    data = encode(corners.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)

    assert look(decode_image(data)) == UPRIGHT


def test_base64_text_is_read_as_its_image(corners: Image.Image) -> None:
    encoded = base64.b64encode(encode(corners, "PNG"))

    assert look(decode_image(encoded)) == look(decode_image(encoded.decode())) == UPRIGHT


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "zero bytes"),
        ("", "zero bytes"),
        (b"hello, leaf", "not an image of format JPEG, PNG, WEBP .11 bytes."),
        (b"\0" * 1000, "not an image of format"),
        (b"\x89PNG\r\n\x1a\n", "not an image|cannot be decoded"),
        (b"\xff\xd8\xff", "not an image|cannot be decoded"),
        (b"RIFF\0\0\0\0WEBP", "not an image|cannot be decoded"),
        (b"%PDF-1.7 a leaf", "not an image"),
        ("/etc/passwd", "not base64 of an image: '/etc/passwd' .file paths are not read."),
        ("leaf.jpg", "file paths are not read"),
        ("öäü", "not base64"),
        (base64.b64encode(b"no image at all").decode(), "not base64 of an image"),
        (b"\xff" + b"data:;base64," + base64.b64encode(b"\xff\xd8\xff"), "not an image"),
        (bytes(range(256)) * 10_000, "not an image of format JPEG, PNG, WEBP .2,560,000 bytes."),
    ],
)
def test_what_is_no_image_is_refused(data: bytes | str, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        decode_image(data)


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "TIFF", "PPM", "ICO", "AVIF"])
def test_other_formats_are_refused_whatever_the_file_is_called(corners: Image.Image, file_format: str) -> None:
    Image.init()
    if file_format not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {file_format}")
    with pytest.raises(ImageError, match="not an image of format JPEG, PNG, WEBP"):
        decode_image(encode(corners, file_format))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_off_anywhere_is_refused(file_format: str) -> None:
    data = encode(noise(64, 48), file_format)
    for length in (1, 2, 4, 12, 20, 30, 100, len(data) // 2, len(data) - 200, len(data) - 40):
        with pytest.raises(ImageError, match=r"not an image|cannot be decoded"):
            decode_image(data[:length])


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_animations_are_refused(corners: Image.Image, file_format: str) -> None:
    frames = [corners, corners.rotate(180), corners.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])

    with pytest.raises(ImageError, match="animated with 3 frames"):
        decode_image(data)


def test_an_animated_gif_is_refused(corners: Image.Image) -> None:
    data = encode(corners, "GIF", save_all=True, append_images=[corners.rotate(180)])

    with pytest.raises(ImageError, match="not an image of format"):
        decode_image(data)
    with pytest.raises(ImageError, match="animated with 2 frames"):
        upright_rgb(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("size", "match"),
    [
        ((1, 1), "1x1 pixels, each side must have at least 16"),
        ((15, 100), "15x100 pixels, each side must have at least 16"),
        ((16, 16 * 32 + 1), "16x513 pixels, one side is over 32 times the other"),
        ((100_000, 1), "100000x1 pixels, each side"),
        ((100_000, 20), "100000x20 pixels, one side is over 32 times"),
    ],
)
def test_sizes_outside_the_limits_are_refused(size: tuple[int, int], match: str) -> None:
    image = Image.new("L", size)

    with pytest.raises(ImageError, match=match):
        decode_image(encode(image, "PNG"))
    with pytest.raises(ImageError, match=match):
        upright_rgb(image)


def test_sizes_at_the_limits_are_taken() -> None:
    assert decode_image(encode(Image.new("L", (16, 16)), "PNG")).size == (16, 16)
    assert decode_image(encode(Image.new("L", (16, 16 * 32)), "PNG")).size == (16, 512)


def huge_png(side: int) -> bytes:
    """A whole and valid image: one bit a pixel, all black, compressed a thousandfold."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    rows = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "match"), [(20_000, "too many pixels"), (12_000, "12000x12000 pixels, at most")])
def test_a_decompression_bomb_is_refused_before_a_pixel_is_decoded(
    side: int, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = huge_png(side)
    assert len(data) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("was decoded"))

    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=match):
            decode_image(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_text_chunk_that_unpacks_to_gigabytes_is_refused() -> None:
    whole = encode(noise(20, 20), "PNG")
    header = (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 8, 2, 0, 0, 0))
    bomb = (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 9))
    data = png(header, bomb) + whole[33:]

    with pytest.raises(ImageError, match=r"cannot be decoded|not an image"):
        decode_image(data)


def jpeg_of(width: int, height: int, **options: object) -> bytes:
    """A small JPEG file whose header claims another size."""
    data = encode(noise(64, 48), "JPEG", **options)
    start = data.find(b"\xff\xc2" if "progressive" in options else b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def webp_of(kind: bytes, width: int, height: int) -> bytes:
    """A small WebP file whose header claims another size, at most 16,384 a side."""
    data = bytearray(encode(noise(64, 48), "WEBP", lossless=kind == b"VP8L"))
    start = data.find(kind)
    if kind == b"VP8L":
        struct.pack_into("<I", data, start + 9, (width - 1) | (height - 1) << 14)
    else:
        struct.pack_into("<HH", data, start + 14, width, height)
    return bytes(data)


def with_chunk(kind: bytes, data: bytes) -> bytes:
    return (
        png((b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0)), (kind, data)) + encode(noise(64, 48), "PNG")[33:]
    )


ZEROS = zlib.compress(bytes(2**27), 9)
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG of 60,000 pixels a side": (
        lambda: png((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")),
        "too many pixels, at most 120,000,000",
    ),
    "PNG of a header alone": (
        lambda: png((b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 6, 0, 0, 0)), (b"IDAT", zlib.compress(b"0"))),
        "cannot be decoded",
    ),
    "JPEG of 65,535 a side": (lambda: jpeg_of(65_535, 65_535), "too many pixels"),
    "JPEG without a height": (lambda: jpeg_of(64, 0), "not an image of format"),
    "lossless WebP of 16,383 a side": (lambda: webp_of(b"VP8L", 16_383, 16_383), "too many pixels"),
    "lossless WebP that is smaller than it says": (lambda: webp_of(b"VP8L", 4000, 4000), "cannot be decoded"),
    "WebP of 16,383 a side": (lambda: webp_of(b"VP8 ", 16_383, 16_383), "too many pixels"),
    "colour profile that unpacks to 128 MB": (lambda: with_chunk(b"iCCP", b"a\0\0" + ZEROS), "(?i)too large"),
    "EXIF text that unpacks to 128 MB": (
        lambda: with_chunk(b"zTXt", b"Raw profile type exif\0\0" + ZEROS),
        "(?i)decompressed data too large",
    ),
    "international text that unpacks to 128 MB": (lambda: with_chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS), "(?i)too large"),
    "animation of two thousand million frames": (
        lambda: with_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        r"animated with 214748364\d frames",
    ),
    "JPEG behind another format's magic": (lambda: b"GIF89a" + jpeg_of(64, 48), "not an image of format"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_files_that_claim_what_they_do_not_hold_are_refused(kind: str) -> None:
    make, match = BOMBS[kind]
    data = make()
    assert len(data) < 200_000
    with pytest.raises(ImageError, match=match):
        decode_image(data)


def test_a_jpeg_of_many_scans_is_refused_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jpeg_of(10_000, 10_000, progressive=True)
    last = whole.rfind(b"\xff\xda")
    data = whole[:last] + whole[last:-2] * 20_000 + whole[-2:]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match=r"20,0\d\d scans, at most 100 are decoded"):
        decode_image(data)


def test_scans_are_counted_in_the_image_alone() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.MakerNote] = b"\xff\xda\0\2" * 200
    data = encode(noise(64, 48), "JPEG", exif=exif, progressive=True)
    assert data.count(b"\xff\xda") > 200
    assert decode_image(data + b"\xff\xda\0\2" * 200).size == (64, 48)


def exif_of(*entries: tuple[int, int, int, int], count: int | None = None) -> bytes:
    block = struct.pack(">H", len(entries) if count is None else count) + b"".join(
        struct.pack(">HHII", *entry) for entry in entries
    )
    data = b"Exif\0\0MM\0*\0\0\0\x08" + block + bytes(4)
    whole = encode(noise(64, 48), "JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + whole[2:]


EXIF_BOMBS = {
    "an orientation of 4,294,967,295 values": lambda: exif_of((0x0112, 3, 2**32 - 1, 8)),
    "more entries than there are": lambda: exif_of(*[(0x0112, 3, 1, 0)] * 4000, count=65_535),
    "a directory that is its own": lambda: exif_of((0x8769, 4, 1, 8)),
    "3,000 entries over one another": lambda: exif_of(*[(key, 7, 60_000, 8) for key in range(3000)]),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read", "ignore:Tag data larger")
@pytest.mark.parametrize("kind", EXIF_BOMBS)
def test_exif_that_claims_what_it_does_not_hold_costs_no_image(kind: str) -> None:
    data = EXIF_BOMBS[kind]()
    tracemalloc.start()
    try:
        assert decode_image(data).size == (64, 48)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tail", [b"PK\x03\x04" + bytes(100), b"<script>alert(1)</script>", b"%PDF-1.7"])
def test_what_follows_an_image_is_not_read(tail: bytes) -> None:
    data = encode(noise(64, 48), "PNG")
    assert decode_image(data + tail).tobytes() == decode_image(data).tobytes()


def test_threads_leave_the_warning_filters_alone() -> None:
    data = encode(noise(200, 200), "JPEG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            list(pool.map(decode_image, [data] * 40))
            assert warnings.filters == before


FUZZED = {
    "JPEG": lambda: encode(noise(24, 24), "JPEG", exif=_exif()),
    "PNG": lambda: encode(noise(24, 24), "PNG", exif=_exif()),
    "WEBP": lambda: encode(noise(24, 24), "WEBP", exif=_exif()),
    "MPO": lambda: encode(noise(24, 24), "MPO", save_all=True, append_images=[noise(24, 24, 1)], exif=_exif()),
}


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "maker"
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=150, deadline=None)
@given(
    file_format=st.sampled_from(list(FUZZED)),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.integers(0, 3000),
)
def test_damaged_files_are_decoded_or_refused_and_nothing_else(file_format: str, edits, cut: int) -> None:
    data = bytearray(FUZZED[file_format]())
    for position, value in edits:
        data[position % len(data)] = value
    try:
        image = decode_image(bytes(data[:cut] if cut % 3 == 0 else data))
    except ImageError:
        return
    assert image.mode == "RGB"
