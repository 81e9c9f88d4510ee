r"""Names as a reader or a database may take them: `Pröduction ` and `production` are one name.

>>> fold("Pröduction\n"), fold("ｐｌａｎｔ\u200b-disease")
('production', 'plant-disease')
"""

import unicodedata


def fold(name: str) -> str:
    """Return a name without case, accents, width, invisible characters and outer blanks.

    Two names that fold to the same text look alike to people, or are one row to a database whose collation ignores
    accents and case.
    """
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    kept = (character for character in decomposed if unicodedata.category(character)[0] not in "MC")
    return "".join(kept).strip()
