"""What the browser decodes is what Pillow decodes: the resized square of encoded images, pixel by pixel."""

import base64
import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.errors import ImageError
from plantmodels.serve.preprocessing import decode_image, resize_and_crop
from tests.fixtures.checkpoints import RealPaths
from tests.page.conftest import Site
from tests.page.test_preprocessing import MEAN, STD

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.slow

PREPROCESSING = Preprocessing(64, MEAN, STD, "bicubic", 0.9, recipe=1)
REDUCING = replace(PREPROCESSING, recipe=2)

DECODE = """
const [base, encoded, preprocessing, done] = arguments;
(async () => {
  const { decodeImage } = await import(`${base}page/src/image/decode.mjs`);
  const { resizeAndCrop } = await import(`${base}page/src/image/resize.mjs`);
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const image = await decodeImage(new Blob([bytes]));
  return { size: [image.width, image.height], square: Array.from(resizeAndCrop(image, preprocessing)) };
})().then(done, (error) => done({ error: `${error.name}: ${error.message}` }));
"""


def draw_leaf(width: int = 301, height: int = 203) -> Image.Image:
    """A smooth scene with edges and colours, and no two sides alike."""
    rng = np.random.default_rng(7)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((250, 20, 30), (0, 0, width // 5, height // 3))
    return image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(draw_leaf(), "PNG", exif=exif)


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged: whoever converts the colours shows another image."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


CASES = {
    "png": encode(draw_leaf(), "PNG"),
    "png, grey": encode(draw_leaf().convert("L"), "PNG"),
    "png, palette": encode(draw_leaf().quantize(40), "PNG"),
    "png, colour profile": encode(draw_leaf(), "PNG", icc_profile=swapped_profile()),
    "jpeg, colour profile": encode(draw_leaf(), "JPEG", quality=95, icc_profile=swapped_profile()),
    "webp, lossless": encode(draw_leaf(), "WEBP", lossless=True),
    "jpeg 4:4:4": encode(draw_leaf(), "JPEG", quality=92, subsampling=0),
    "jpeg 4:2:2": encode(draw_leaf(), "JPEG", quality=85, subsampling=1),
    "jpeg 4:2:0": encode(draw_leaf(), "JPEG", quality=75, subsampling=2),
    "jpeg, progressive": encode(draw_leaf(), "JPEG", quality=75, progressive=True),
    "jpeg, grey": encode(draw_leaf().convert("L"), "JPEG", quality=90),
    "jpeg, large": encode(draw_leaf(3000, 2001), "JPEG", quality=85),
    "webp": encode(draw_leaf(), "WEBP", quality=80),
    "png, 16 bit grey": encode(
        Image.fromarray((np.arange(60_000).reshape(200, 300) % 65_536).astype(np.uint16)), "PNG"
    ),
    "jpeg, cmyk": encode(draw_leaf().convert("CMYK"), "JPEG", quality=95),
} | {f"turned {orientation}": turned(orientation) for orientation in range(1, 9)}


def decode_in_browser(
    browser: "Chrome", address: str, data: bytes, preprocessing: Preprocessing = PREPROCESSING
) -> dict[str, Any]:
    return browser.execute_async_script(DECODE, address, base64.b64encode(data).decode(), asdict(preprocessing))


def measure_difference(browser: "Chrome", address: str, data: bytes) -> np.ndarray:
    """How far the page's square by recipe 2 is from Python's, in levels of 0 to 255."""
    expected = np.asarray(resize_and_crop(decode_image(data, REDUCING), REDUCING)).astype(int)
    found = decode_in_browser(browser, address, data, REDUCING)["square"]
    return np.abs(np.array(found).reshape(expected.shape) - expected)


@pytest.fixture(scope="module")
def address(browser: "Chrome", built_page: Path) -> Iterator[str]:
    site = Site(built_page)
    browser.get(site.address)
    yield site.address
    site.stop()


@pytest.mark.parametrize("name", CASES)
def test_the_browser_decodes_as_pillow_does(name: str, browser: "Chrome", address: str) -> None:
    image = decode_image(CASES[name])

    found = decode_in_browser(browser, address, CASES[name])

    assert found["size"] == list(image.size)
    expected = np.asarray(resize_and_crop(image, PREPROCESSING))
    assert np.array_equal(np.array(found["square"], np.uint8).reshape(expected.shape), expected)


def test_large_images_other_than_jpegs_are_reduced_as_pillow_reduces_them(browser: "Chrome", address: str) -> None:
    for kind in ("PNG", "WEBP"):
        data = encode(draw_leaf(1001, 777), kind)
        assert measure_difference(browser, address, data).max() == 0


@pytest.mark.parametrize("size", [(400, 301), (1001, 777), (3000, 2001)])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_large_jpeg_is_nearly_what_the_decoder_of_python_reduces(
    size: tuple[int, int], turn: int, browser: "Chrome", address: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(draw_leaf(*size), "JPEG", quality=90, exif=exif)

    difference = measure_difference(browser, address, data)

    assert difference.mean() < 0.5
    assert difference.max() <= 12


def test_a_browser_that_converts_colours_would_be_noticed(browser: "Chrome", address: str) -> None:
    convert = """
    const [encoded, done] = arguments;
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    createImageBitmap(new Blob([bytes])).then((bitmap) => {
      const context = new OffscreenCanvas(1, 1).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      done(Array.from(context.getImageData(0, 0, 1, 1).data));
    });
    """
    pixel = decode_image(CASES["png, colour profile"]).getpixel((0, 0))

    found = browser.execute_async_script(convert, base64.b64encode(CASES["png, colour profile"]).decode())

    assert isinstance(pixel, tuple)
    assert pixel[0] > 200 > 100 > pixel[1]
    assert found[1] > 200 > 100 > found[0]


def animated(kind: str) -> bytes:
    return encode(draw_leaf(), kind, save_all=True, append_images=[draw_leaf().rotate(90)])


def many_scans() -> bytes:
    """A JPEG whose last scan is repeated."""
    data = encode(draw_leaf(), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 101 + data[-2:]


def claimed_size(side: int) -> bytes:
    """A PNG of which only the header says that it is large."""
    data = bytearray(encode(draw_leaf(), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


REFUSED = {
    "empty": b"",
    "text": b"# plantmodels\n\nA text file.\n",
    "gif": encode(draw_leaf(), "GIF"),
    "animated webp": animated("WEBP"),
    "animated png": animated("PNG"),
    "too small": encode(draw_leaf(300, 15), "PNG"),
    "too narrow": encode(draw_leaf(16, 16 * 33), "PNG"),
    "too large": claimed_size(11_000),
    "many scans": many_scans(),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_python_refuses_is_refused_in_the_same_words(name: str, browser: "Chrome", address: str) -> None:
    with pytest.raises(ImageError) as refused:
        decode_image(REFUSED[name])

    assert decode_in_browser(browser, address, REFUSED[name]) == {"error": f"ImageError: {refused.value}"}


@pytest.mark.parametrize(
    ("kind", "keep", "message"),
    [
        ("JPEG", 0.5, "this browser cannot decode it"),
        ("PNG", 0.5, "this browser cannot decode it"),
        ("WEBP", 0.5, "this browser cannot decode it"),
        ("JPEG", 0.01, "the file ends within its header|without a size"),
        ("PNG", 0.0001, "the file ends within its header"),
    ],
)
def test_a_truncated_file_is_refused(kind: str, keep: float, message: str, browser: "Chrome", address: str) -> None:
    data = encode(draw_leaf(), kind)
    data = data[: max(20, int(keep * len(data)))]
    with pytest.raises(ImageError, match=r"cannot be decoded|truncated|not an image"):
        decode_image(data)

    found = decode_in_browser(browser, address, data)

    assert re.search(message, found.get("error", "no error")), found


@pytest.mark.real
def test_real_leaves_are_read_as_python_reads_them(browser: "Chrome", address: str, real_paths: RealPaths) -> None:
    leaves = sorted((real_paths.leaves / "val").glob("*/*"))[::30]
    assert len(leaves) > 50
    for leaf in leaves:
        data = leaf.read_bytes()

        found = decode_in_browser(browser, address, data)

        expected = np.asarray(resize_and_crop(decode_image(data), PREPROCESSING))
        assert np.array_equal(np.array(found["square"], np.uint8).reshape(expected.shape), expected), leaf
