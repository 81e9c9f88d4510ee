"""Labels of images: the class names of folders and manifests, matched with the classes of a checkpoint.

>>> classes = Classes(Taxonomy(("Café", "Rose"), {"Rose": ("rust", "healthy")}))
>>> classes.find("here", unicodedata.normalize("NFD", "Café"), "any"), classes.find("here", "Rose", "healthy")
((0, None), (1, 1))
"""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.image_files import printable_name
from plantmodels.data.inputs import Split, name_split
from plantmodels.errors import DataError
from plantmodels.foreign_text import quote_error

CLASS_SEPARATOR: Final = "___"
"""Between species and disease in the name of a folder, as in PlantVillage."""

MANIFEST_COLUMNS: Final = ("path", "species", "disease", "split")

GROUP_COLUMN: Final = "group"
"""Optional column of a manifest: images with the same text in it belong together."""

_SIMILAR: Final = 0.7
"""A known class whose name agrees with an unknown one to this degree is shown beside it (`difflib`)."""

_NAMED_CHARACTERS: Final = 3


@dataclass(frozen=True)
class LabelledImage:
    """A row of a manifest.

    Attributes:
        path: the image file.
        species: name of its species.
        disease: name of its disease; "" for none.
        group: name of the group that it belongs to; "" for none.
    """

    path: Path
    species: str
    disease: str
    group: str = ""


class Classes:
    """The classes of a taxonomy, found by their names in Unicode form NFC: macOS writes é as two characters."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Index the classes."""
        self._taxonomy = taxonomy
        self._species = taxonomy.places
        self._diseases = {
            (name, disease): k
            for i, name in enumerate(taxonomy.species)
            for k, disease in enumerate(taxonomy.diseases_of(i))
        }

    def find(self, place: object, species: str, disease: str) -> tuple[int, int | None]:
        """Return the indices of species and disease; None for the disease of a species without a head.

        Args:
            place: the folder or file with this label, for the error.
            species: name of the species.
            disease: name of the disease; any name will do if the species has no head.

        Raises:
            DataError: the checkpoint does not know the class.
        """
        name, ill = to_nfc(species), to_nfc(disease)
        if name in self._species and name not in self._taxonomy.diseases:
            return self._species[name], None
        if (name, ill) in self._diseases:
            return self._species[name], self._diseases[name, ill]
        raise self._unknown(place, name, ill)

    def _unknown(self, place: object, species: str, disease: str) -> DataError:
        if species in self._taxonomy.diseases:
            known = self._taxonomy.diseases[species]
            listed = f"its diseases of {species!r} are {', '.join(known)}{show_difference(disease, known)}"
        else:
            known = self._taxonomy.species
            listed = f"its species are {', '.join(known)}{show_difference(species, known)}"
        name = printable_name(species + CLASS_SEPARATOR + disease)
        return DataError(f"{place}: class '{name}' is not in the checkpoint; {listed}")


def to_nfc(name: str) -> str:
    """Return a name with composed characters (Unicode form NFC)."""
    return unicodedata.normalize("NFC", name)


def show_difference(name: str, known: Iterable[str]) -> str:
    """Return the most similar known name, and the characters that differ if they cannot be told apart by eye.

    Returns:
        Text to append to a message; "" if no known name is similar.

    >>> show_difference("Ros\N{CYRILLIC SMALL LETTER IE}", ["Rose"])
    "; similar is 'Rose': 'е' (U+0435 CYRILLIC SMALL LETTER IE) stands for 'e' (U+0065 LATIN SMALL LETTER E)"
    """
    similar = difflib.get_close_matches(name, known, 1, _SIMILAR)
    if not similar:
        folded = {_fold(other): other for other in known}
        similar = [folded[_fold(name)]] if _fold(name) in folded else []
    if not similar:
        return ""
    found = f"; similar is {similar[0]!r}"
    if (name + similar[0]).isascii():
        return found
    steps = difflib.SequenceMatcher(None, name, similar[0], autojunk=False).get_opcodes()
    parts = [
        f"{_spell(name[a:b])} stands for {_spell(similar[0][c:d])}" for step, a, b, c, d in steps if step != "equal"
    ]
    return f"{found}: {', '.join(parts[:_NAMED_CHARACTERS])}"


def _fold(name: str) -> str:
    """Return the letters and digits of a name in lower case and without accents."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(character for character in plain if character.isalnum())


def _spell(characters: str) -> str:
    """Return characters with their code points."""
    if not characters:
        return "nothing"
    return " ".join(f"{c!r} (U+{ord(c):04X} {unicodedata.name(c, 'without a name')})" for c in characters)


def read_manifest_rows(path: Path, split: Split | None) -> Iterator[LabelledImage]:
    """Yield each row of a CSV or Parquet manifest that belongs to a split.

    Args:
        path: the manifest.
        split: the split that is wanted; None for field leaves, whose manifest has no column split.

    Raises:
        DataError: the file cannot be read, lacks a column, or has a value in the column split that names no split; or
            it has a column split although none is wanted.
    """
    table = _read_table(path)
    columns = [name for name in MANIFEST_COLUMNS if split is not None or name != "split"]
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} missing; a manifest has {', '.join(columns)}")
    if split is None:
        refuse_split(path, table.columns)
    import pandas as pd

    meant = [True] * len(table) if split is None else pick_split(path, table["split"], split)
    has_groups = GROUP_COLUMN in table.columns
    for row in table.loc[meant, columns + [GROUP_COLUMN] * has_groups].itertuples(index=False):
        disease, group = ("" if pd.isna(text) else str(text) for text in (row.disease, row.group if has_groups else ""))
        yield LabelledImage(path.parent / str(row.path), str(row.species), disease, group)


def refuse_split(path: Path, columns: Iterable[object]) -> None:
    """Refuse a column split in a table of field leaves: nobody knows whether rows of train are meant.

    Raises:
        DataError: there is such a column.
    """
    if "split" in columns:
        raise DataError(
            f"{path}: field leaves have no split, but the table has a column split; keep the rows that are to be "
            "measured, and remove the column"
        )


def pick_split(path: Path, values: Any, split: Split) -> list[bool]:
    """Return which rows of a manifest belong to a split.

    Args:
        path: the manifest, for the error.
        values: the column split.
        split: the split that is wanted.

    Raises:
        DataError: a value names no split; the error lists all values.
    """
    counts = Counter("" if value is None or value != value else str(value) for value in values)  # NaN is not itself
    meant = {value: name_split(value) for value in counts}
    if unknown := [value for value, name in meant.items() if name is None]:
        found = ", ".join(f"{value!r} ({number:,})" for value, number in sorted(counts.items()))
        raise DataError(
            f"{path}: the column split holds {unknown[0]!r}, which names no split; expected train, val or calibration, "
            f"or a name that means them (training, validation, valid, dev, calib), or test, which is not read; found "
            f"{found}"
        )
    return [meant.get("" if value is None or value != value else str(value)) == split for value in values]


def _read_table(path: Path) -> Any:
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        # no na_filter: to pandas a disease called "None" is a missing value
        table = pd.read_csv(path, dtype=object, na_filter=False, encoding_errors="surrogateescape")
        for name in table.columns:
            str(name).encode()  # values may name files that are not UTF-8, but the names of columns are text
        return table
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: neither a folder nor a CSV or Parquet manifest ({quote_error(error)})") from error
