"""Damaged and invented files for `reliability.fuzz`: bytes, pickles, JSON documents and images.

A `random.Random` is the only source of randomness, so a seed identifies a case.
"""

import base64
import io
import json
import pickle
import pickletools
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import numpy as np
from PIL import Image

_NUMBERS: Final = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1)


def damage(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return `data` after one to eight changes: other bits, bytes or numbers; slices removed, doubled or inserted."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4, 8))):
        place = random.randrange(len(content) + 1)
        length = min(random.choice((1, 2, 4, 16, 200)), len(content) - place)
        kind = random.randrange(8)
        if kind == 0 and length:
            content[place] ^= 1 << random.randrange(8)
        elif kind == 1 and length:
            content[place] = random.randrange(256)
        elif kind == 2:
            size = random.choice((1, 2, 4, 8))
            number = random.choice(_NUMBERS) & (256**size - 1)
            content[place : place + size] = number.to_bytes(size, random.choice(("little", "big")))
        elif kind == 3:
            del content[place : place + length]
        elif kind == 4:
            content[place:place] = content[place : place + length] * random.choice((1, 1, 3, 50))
        elif kind == 5:
            content[place:place] = random.randbytes(length)
        elif kind == 6:
            del content[place:]
        else:
            other = random.choice(others)
            start = random.randrange(len(other) + 1)
            content[place : place + length] = other[start : start + random.choice((4, 64, 1000))]
    return bytes(content)


def _as_text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _as_global(module: str, name: str) -> bytes:
    return _as_text(module) + _as_text(name) + b"\x93"


_PICKLE_PARTS: Final = (
    *(bytes([code]) for code in b"N}]()tdsueaRb0128.Q\x81\x85\x86\x87\x88\x89\x8f\x90\x93\x94\x97\x98"),
    *(
        b"h\x00",
        b"h\x01",
        b"h\x05",
        b"q\x00",
        b"q\x05",
        b"j\xff\xff\xff\x7f",
        b"r\xff\xff\xff\x7f",
        b"\x82\x01",
        b"P0\n",
    ),
    *(b"K\x01", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\x7f" * 9, b"G\x7f\xf8" + bytes(6), b"I9\n", b"L9L\n"),
    *(_as_text(name) for name in ("a", "f8", "O", "C", "F", "<", "latin1", "rot13", "mean", "threshold", "method")),
    *(b"B\x08\x00\x00\x00" + bytes(8), b"C\x08" + bytes(8), b"\x96" + struct.pack("<Q", 8) + bytes(8)),
    *(_as_global("numpy", name) for name in ("ndarray", "dtype", "matrix", "load", "ndarray.__class__")),
    *(_as_global("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar", "fromfile")),
    *(
        _as_global("numpy.core.numeric", "_frombuffer"),
        _as_global("_codecs", "encode"),
        _as_global("_codecs", "open"),
    ),
    *(
        _as_global("os", "system"),
        _as_global("builtins", "eval"),
        _as_global("builtins", "exec"),
        b"cos\nsystem\n",
    ),
)


def damage_pickle(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return a pickle with opcodes removed, doubled, moved or inserted, damaged bytes, or only random opcodes."""
    kind = random.randrange(4)
    if kind == 0:
        return damage(data, others, random)
    if kind == 1:
        parts = random.choices(_PICKLE_PARTS, k=random.randrange(1, 40))
        return b"\x80" + bytes([random.choice((2, 3, 4, 4, 4, 5))]) + b"".join(parts) + b"."
    starts = [start or 0 for _, _, start in pickletools.genops(data)]
    parts = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        place = random.randrange(len(parts))
        change = random.randrange(5)
        if change == 0:
            parts[place] = b""
        elif change == 1:
            parts.insert(place, random.choice(parts))
        elif change == 2:
            other = random.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif change == 3:
            parts.insert(place, random.choice(_PICKLE_PARTS))
        elif parts[place]:
            parts[place] = damage(parts[place], others, random)
    return b"".join(parts)


def make_detector_pickles(document: dict[str, Any]) -> list[bytes]:
    """Return the pickle of a detector by every protocol that a bundle may have."""
    return [pickle.dumps(document, protocol=protocol) for protocol in (2, 3, 4, 5)]


_ODD_VALUES: Final[tuple[Callable[[], Any], ...]] = (
    *(lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 10**400, lambda: 1e308, lambda: -0.0, lambda: ""),
    *(lambda: "../x", lambda: "/etc/passwd", lambda: "a\0b", lambda: "A" * 64, lambda: "f" * 64, lambda: "ａ"),
    *(lambda: "C:\\x", lambda: "\ud800", lambda: "x" * 5000, list, dict, lambda: [[[[1]]]]),
    *(lambda: {"": {"": {}}}, lambda: 2**63, lambda: 1.5, lambda: "Tomato", lambda: ["healthy", "healthy"]),
)


def damage_json(document: Any, others: Sequence[bytes], random: Random) -> bytes:
    """Return JSON with values and keys replaced, moved, doubled or removed, or with damaged bytes."""
    document = json.loads(json.dumps(document))
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        _change_value(document, random)
    text = json.dumps(document, ensure_ascii=random.random() < 0.5, indent=random.choice((None, 1)))
    kind = random.randrange(8)
    if kind == 0:
        text = text.replace("{", '{"format_version": 1, ', random.randrange(1, 4))
    elif kind == 1:
        text = text.replace("1", random.choice(("NaN", "-Infinity", "1e999", "9" * 5000, "1" * 300)), 1)
    elif kind == 2:
        text = "[" * random.choice((10, 2000, 200_000)) + text
    data = text.encode("utf-8", "surrogatepass")
    return damage(data, others, random) if kind > 5 else data


def _change_value(document: Any, random: Random) -> None:
    """Follow random keys downwards and change the value there."""
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return
        key = random.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and random.random() < 0.8:
            place = place[key]
            continue
        change = random.randrange(4)
        if change == 0:
            del place[key]
        elif change == 1 and isinstance(place, dict):
            value = place.pop(key)
            place[random.choice((key.upper(), f"{key} ", "../" + key, "", "ﬁ", key + "\u200b"))] = value
        elif change == 2:
            place[key] = place[random.choice(keys)]
        else:
            place[key] = random.choice(_ODD_VALUES)()
        return


def make_images() -> list[bytes]:
    """Return small images in the formats that telephones, editors and scanners write, and in some unusual ones."""
    random = np.random.default_rng(8)
    colours = Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8)).resize((48, 64))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8298] = 6, "leaf", "nobody"
    deep = Image.fromarray(random.integers(0, 65536, (32, 32), dtype=np.uint16))
    frames = [colours.rotate(90 * i) for i in range(3)]
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colours, "JPEG", {"quality": 90, "exif": exif}),
        (colours, "JPEG", {"progressive": True, "icc_profile": bytes(range(200))}),
        (colours.convert("L"), "JPEG", {}),
        (colours.convert("CMYK"), "JPEG", {"subsampling": 2}),
        (colours, "MPO", {"save_all": True, "append_images": frames[1:]}),
        (colours, "PNG", {"exif": exif, "optimize": True}),
        (colours.convert("RGBA"), "PNG", {"dpi": (72, 72)}),
        (colours.quantize(16), "PNG", {"transparency": 3}),
        (colours.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (colours, "PNG", {"save_all": True, "append_images": frames[1:]}),
        (colours, "WEBP", {"quality": 80, "exif": exif}),
        (colours.convert("RGBA"), "WEBP", {"lossless": True, "icc_profile": bytes(range(100))}),
        (colours, "WEBP", {"save_all": True, "append_images": frames[1:]}),
        (colours, "GIF", {}),
        (colours, "TIFF", {}),
    ]
    written = []
    for image, form, options in forms:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        written.append(buffer.getvalue())
    return written


def damage_image(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return an image with damaged bytes, or with parts of its format changed and valid checksums.

    One in ten images has another size in its header.
    """
    kind = random.randrange(10)
    change = _claim_size if kind == 0 else _shuffle
    if kind < 6 and data.startswith(b"\x89PNG"):
        data = data[:8] + b"".join(_png_chunk(*part) for part in change(_png_parts(data), others, random))
    elif kind < 6 and data.startswith(b"\xff\xd8"):
        segments = change(_jpeg_parts(data), others, random)
        data = b"\xff\xd8" + b"".join(b"\xff" + mark + body for mark, body in segments)
    elif kind < 6 and data.startswith(b"RIFF"):
        body = b"".join(_riff_chunk(*part) for part in change(_riff_parts(data), others, random))
        data = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    else:
        data = damage(data, others, random)
    return base64.b64encode(data) if kind == 9 else data


_Parts = list[tuple[bytes, bytes]]


def _shuffle(parts: _Parts, others: Sequence[bytes], random: Random) -> _Parts:
    """Return the named parts of a file with some of them damaged, doubled, removed or moved."""
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(parts)) if parts else 0
        change = random.randrange(6)
        if not parts:
            return parts
        name, body = parts[place]
        if change < 3:
            parts[place] = name, damage(body, others, random)
        elif change == 3:
            parts.insert(random.randrange(len(parts)), (name, body * random.choice((1, 20))))
        elif change == 4:
            del parts[place]
        else:
            other = random.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
    return parts


_SIZE_FIELDS: Final = {
    b"IHDR": (0, ">II"),  # PNG
    b"\xc0": (3, ">HH"),  # JPEG, baseline
    b"\xc2": (3, ">HH"),  # JPEG, progressive
    b"VP8 ": (6, "<HH"),  # WebP
    b"VP8X": (4, "<IH"),  # extended WebP: two fields of three bytes; this is all of the first and a byte of the second
}
"""Offset and struct format of the image size in the parts of each format that state it."""


def _claim_size(parts: _Parts, others: Sequence[bytes], random: Random) -> _Parts:
    claimed = []
    for name, body in parts:
        if name in _SIZE_FIELDS:
            start, form = _SIZE_FIELDS[name]
            size = struct.pack(form, *(int(2 ** random.uniform(0, 16)) - 1 for _ in range(2)))
            body = body[:start] + size + body[start + len(size) :]
        claimed.append((name, body))
    return claimed


def _png_parts(data: bytes) -> _Parts:
    parts, place = [], 8
    while place + 8 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        parts.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += length + 12
    return parts


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _jpeg_parts(data: bytes) -> _Parts:
    """Return the segments with their markers; each body begins with its length, and the last one holds the pixels."""
    parts, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        parts.append((data[place + 1 : place + 2], data[place + 2 : place + 2 + length]))
        place += 2 + length
    parts.append((data[place + 1 : place + 2], data[place + 2 :]))
    return parts


def _riff_parts(data: bytes) -> _Parts:
    parts, place = [], 12
    while place + 8 <= len(data):
        (length,) = struct.unpack("<I", data[place + 4 : place + 8])
        parts.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return parts


def _riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
