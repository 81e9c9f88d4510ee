"""Chooses the images that `report.html` shows, and makes their thumbnails.

>>> gallery = make_gallery([(image, "Apple", [])])
>>> gallery.thumbnails[0].title, gallery.total
('Apple', 1)
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from plantmodels.data.leaves import LeafSample
from plantmodels.errors import ImageError
from plantmodels.report.formatting import spell_class
from plantmodels.report.leakage import TwinSet
from plantmodels.report.per_image import ImageRow
from plantmodels.report.render.gallery import CaptionLine, Gallery, Thumbnail
from plantmodels.serve.preprocessing import decode_image
from plantmodels.verify.leakage import LeakageRun

MAX_THUMBNAILS: Final = 24
"""Thumbnails in one gallery: each adds a few kilobytes to the report."""

MAX_PAIRS: Final = 24
"""Pairs of leaking images in the report."""

_SET_NAMES: Final[dict[TwinSet, str]] = {"train": "train", "val": "another class", "non-plants": "non-plants"}

_SIDE_PIXELS: Final = 160
"""Width and height of a thumbnail. The report shows it at 112, so it stays sharp on screens of higher resolution."""

_GAP_PIXELS: Final = 8
"""White pixels between the thumbnails of a pair."""

_JPEG_QUALITY: Final = 80


def make_thumbnail(path: Path) -> bytes | None:
    """Return the middle of an image as a square JPEG; None if the file can no longer be read."""
    try:
        square = ImageOps.fit(decode_image(path.read_bytes()), (_SIDE_PIXELS, _SIDE_PIXELS))
    except (ImageError, OSError):
        return None
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def make_pair(first: Path, second: Path) -> bytes | None:
    """Return two thumbnails side by side as one JPEG; None if one of the files can no longer be read."""
    thumbnails = [make_thumbnail(path) for path in (first, second)]
    pair = Image.new("RGB", (2 * _SIDE_PIXELS + _GAP_PIXELS, _SIDE_PIXELS), "white")
    for place, jpeg in enumerate(thumbnails):
        if jpeg is None:
            return None
        pair.paste(Image.open(io.BytesIO(jpeg)), (place * (_SIDE_PIXELS + _GAP_PIXELS), 0))
    buffer = io.BytesIO()
    pair.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def make_gallery(items: Sequence[tuple[Path, str, Iterable[CaptionLine]]]) -> Gallery:
    """Return thumbnails of the first `MAX_THUMBNAILS` images that can be read.

    Args:
        items: image file, title and caption of each image, the most instructive first.
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
    """Return the leaves for which FP16 and INT8 give different answers.

    Leaves that only INT8 gets wrong come first, then those that both get wrong, then those that only FP16 gets wrong.

    Args:
        samples: N leaves.
        rows: N rows, the answers for each leaf.
    """
    flipped = [(sample.path, row) for sample, row in zip(samples, rows, strict=True) if row.flipped]
    flipped.sort(key=lambda pair: (_is_right(pair[1])[1], not _is_right(pair[1])[0], pair[1].source, pair[1].name))
    return make_gallery([(path, spell_class(row.source), _caption_answers(row)) for path, row in flipped])


def show_let_through(paths: Sequence[Path], rows: Sequence[ImageRow]) -> Gallery:
    """Return the non-plants that are not rejected, the lowest OOD score first.

    Args:
        paths: N image files.
        rows: N rows, the answers for each image.
    """
    found = sorted(
        ((row, path) for path, row in zip(paths, rows, strict=True) if not row.rejected),
        key=lambda pair: (pair[0].ood_score, pair[0].name),
    )
    return make_gallery(
        [(path, row.source, [CaptionLine(f"{row.ood_score:.4g}: {row.int8_species}")]) for row, path in found]
    )


def show_rejected(samples: Sequence[LeafSample], rows: Sequence[ImageRow]) -> Gallery:
    """Return the leaves that are rejected, the highest OOD score first.

    Args:
        samples: N leaves.
        rows: N rows, the answers for each leaf.
    """
    found = sorted(
        ((row, sample.path) for sample, row in zip(samples, rows, strict=True) if row.rejected),
        key=lambda pair: (-pair[0].ood_score, pair[0].name),
    )
    return make_gallery([(path, spell_class(row.source), [CaptionLine(f"{row.ood_score:.4g}")]) for row, path in found])


def show_misjudged(samples: Sequence[LeafSample], rows: Sequence[ImageRow]) -> Gallery:
    """Return the leaves that are accepted with a wrong species, the most probable answer first.

    Args:
        samples: N leaves.
        rows: N rows, the answers for each leaf.
    """
    found = sorted(
        (
            (row, sample.path)
            for sample, row in zip(samples, rows, strict=True)
            if not row.rejected and row.int8_species != row.species
        ),
        key=lambda pair: (-pair[0].species_probability, pair[0].name),
    )
    return make_gallery([(path, spell_class(row.source), [_caption_wrong(row)]) for row, path in found])


def _caption_wrong(row: ImageRow) -> CaptionLine:
    return CaptionLine(f"{spell_class(row.int8_species)}, {row.species_probability:.0%} sure", right=False)


def show_leaks(run: LeakageRun) -> Gallery:
    """Return validation images beside the images that show the same; identical files come first.

    Args:
        run: the result of the search for leaks.
    """
    found = sorted(zip(run.leakage.leaks, run.pairs, strict=True), key=lambda pair: pair[0].kind)
    thumbnails: list[Thumbnail] = []
    for leak, paths in found:
        if len(thumbnails) == MAX_PAIRS:
            break
        jpeg = make_pair(*paths)
        if jpeg is not None:
            place = _SET_NAMES[leak.twin.set]
            lines = (CaptionLine(f"{place}: {spell_class(leak.twin.source)}"), CaptionLine(leak.kind))
            thumbnails.append(Thumbnail(jpeg, spell_class(leak.source), lines))
    return Gallery(tuple(thumbnails), len(found))


def _is_right(row: ImageRow) -> tuple[bool, bool]:
    """Return whether FP16 and INT8 are right about both species and disease."""
    truth = (row.species, row.disease)
    return (row.fp16_species, row.fp16_disease) == truth, (row.int8_species, row.int8_disease) == truth


def _caption_answers(row: ImageRow) -> list[CaptionLine]:
    """Return one line for each precision: the part of its answer that differs from the other precision's."""
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
