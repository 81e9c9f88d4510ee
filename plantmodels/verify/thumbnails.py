"""Small pictures of the images that a report speaks of, for `report.html` alone.

>>> gallery = show_flipped(run.samples, run.rows)  # doctest: +SKIP
>>> len(gallery.thumbnails), gallery.total  # doctest: +SKIP
(17, 17)
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from PIL import ImageOps

from plantmodels.data.leaves import LeafSample
from plantmodels.errors import ImageError
from plantmodels.report.formatting import spell_class
from plantmodels.report.per_image import ImageRow
from plantmodels.report.render.gallery import CaptionLine, Gallery, Thumbnail
from plantmodels.serve.preprocessing import decode_image

MAX_THUMBNAILS: Final = 24
_SIDE: Final = 160
"""Pixels; shown at 112, which is sharp on finer screens too."""

_QUALITY: Final = 80


def make_thumbnail(path: Path) -> bytes | None:
    """A square JPEG of the middle of an image file; None when it can no longer be read."""
    try:
        square = ImageOps.fit(decode_image(path.read_bytes()), (_SIDE, _SIDE))
    except (ImageError, OSError):
        return None
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def make_gallery(items: Sequence[tuple[Path, str, Iterable[CaptionLine]]]) -> Gallery:
    """Thumbnails of the first `MAX_THUMBNAILS` that can be read.

    Args:
        items: image file, title, and lines below it; the most telling first.
    """
    thumbnails: list[Thumbnail] = []
    for path, title, lines in items:
        if len(thumbnails) == MAX_THUMBNAILS:
            break
        jpeg = make_thumbnail(path)
        if jpeg is not None:
            thumbnails.append(Thumbnail(jpeg, title, tuple(lines)))
    return Gallery(tuple(thumbnails), len(items))


def show_flipped(samples: Sequence[LeafSample], rows: Sequence[ImageRow]) -> Gallery:
    """The leaves that FP16 and INT8 answer otherwise: first those that INT8 alone gets wrong, then FP16 alone.

    Args:
        samples: where the images lie.
        rows: the answers to them, in the same order.
    """
    flipped = [(sample.path, row) for sample, row in zip(samples, rows, strict=True) if row.flipped]
    flipped.sort(key=lambda pair: (_is_right(pair[1])[1], not _is_right(pair[1])[0], pair[1].source, pair[1].name))
    return make_gallery([(path, spell_class(row.source), _compare(row)) for path, row in flipped])


def show_let_through(paths: Sequence[Path], rows: Sequence[ImageRow]) -> Gallery:
    """The non-plants that are not rejected, those least like non-plants first.

    Args:
        paths: the images.
        rows: the answers to them, in the same order.
    """
    found = sorted(
        ((row, path) for path, row in zip(paths, rows, strict=True) if not row.rejected),
        key=lambda pair: (pair[0].ood_score, pair[0].name),
    )
    return make_gallery(
        [(path, row.source, [CaptionLine(f"{row.ood_score:.4g}: {row.int8_species}")]) for row, path in found]
    )


def show_rejected(samples: Sequence[LeafSample], rows: Sequence[ImageRow]) -> Gallery:
    """The leaves that are rejected, those least like plants first.

    Args:
        samples: where the images lie.
        rows: the answers to them, in the same order.
    """
    found = sorted(
        ((row, sample.path) for sample, row in zip(samples, rows, strict=True) if row.rejected),
        key=lambda pair: (-pair[0].ood_score, pair[0].name),
    )
    return make_gallery([(path, spell_class(row.source), [CaptionLine(f"{row.ood_score:.4g}")]) for row, path in found])


def _is_right(row: ImageRow) -> tuple[bool, bool]:
    """Whether FP16 and INT8 are right on species and disease."""
    truth = (row.species, row.disease)
    return (row.fp16_species, row.fp16_disease) == truth, (row.int8_species, row.int8_disease) == truth


def _compare(row: ImageRow) -> list[CaptionLine]:
    """A line a precision: what of its answer differs from the other's."""
    answers = {
        "FP16": (row.fp16_species, row.fp16_disease, row.species, row.disease),
        "INT8": (row.int8_species, row.int8_disease, row.species, row.disease),
    }
    species, disease = row.fp16_species != row.int8_species, row.fp16_disease != row.int8_disease
    lines = []
    for name, (*answer, true_species, true_disease) in answers.items():
        parts = list(zip(answer, (true_species, true_disease), (species, disease), strict=True))
        text = ", ".join(spell_class(part) or "–" for part, _, differs in parts if differs)
        lines.append(CaptionLine(f"{name}: {text}", all(part == truth for part, truth, differs in parts if differs)))
    return lines
