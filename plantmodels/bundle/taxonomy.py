"""The taxonomy: species and their diseases in the order of the network's logits, and a digest of that order.

The order is never sorted, inferred or repaired.

>>> taxonomy = Taxonomy(("Pepper, bell", "Rose"), {"Pepper, bell": ("healthy", "Bacterial spot")})
>>> taxonomy.slugs
('pepper-bell', 'rose')
>>> taxonomy.diseases_of(1)
()
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from plantmodels.errors import TaxonomyError

MAX_SLUG: Final = 200
"""Characters. File systems allow 255 bytes, including the file's ending."""

_ALIKE_SCRIPTS: Final = {"LATIN", "GREEK", "CYRILLIC"}
"""Scripts that share letters of the same look."""


def slugify(name: str) -> str:
    """Return a species' name as part of a file name: lower-case ASCII letters and digits joined by single hyphens.

    Raises:
        TaxonomyError: the result is empty or has more than `MAX_SLUG` characters.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")
    if not 0 < len(slug) <= MAX_SLUG:
        what = "has no ASCII letter or digit" if not slug else f"is too long (over {MAX_SLUG} characters)"
        raise TaxonomyError(f"species {name!r:.300} {what} to make a file name of")
    return slug


def _check_names(what: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise TaxonomyError(f"{what}: a name must be a non-empty string, got {name!r}")
        if name.isascii() and name.isprintable():
            continue  # no other name looks alike
        if unicodedata.normalize("NFKC", name) != name or not name.isprintable():
            raise TaxonomyError(f"{what}: {name!r} is not plain text in Unicode form NFKC (a look-alike?)")
        for word in re.findall(r"[^\W\d_]+", name):
            scripts = sorted({unicodedata.name(letter, "").split(" ")[0] for letter in word} & _ALIKE_SCRIPTS)
            if len(scripts) > 1:
                raise TaxonomyError(f"{what}: {name!r} mixes {' and '.join(scripts)} letters in a word (a look-alike?)")
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise TaxonomyError(f"{what}: {repeated[0]!r} is named more than once")


@dataclass(frozen=True)
class Taxonomy:
    """The species and diseases that a network tells apart.

    Attributes:
        species: names in the order of the species logits.
        diseases: each species' disease names in the order of its head's logits. A species without a head has no entry.
    """

    species: tuple[str, ...]
    diseases: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Refuse names that cannot name files and logits unambiguously.

        Raises:
            TaxonomyError: there are no species; a name is empty, repeated or easily confused with another one; diseases
                belong to an unknown species; a list of diseases is empty; or two species have the same slug.
        """
        object.__setattr__(self, "species", tuple(self.species))
        object.__setattr__(self, "diseases", MappingProxyType({k: tuple(v) for k, v in self.diseases.items()}))
        if not self.species:
            raise TaxonomyError("species: at least one is needed, got none")
        _check_names("species", self.species)
        unknown = [name for name in self.diseases if name not in self.places]
        if unknown:
            raise TaxonomyError(f"diseases are given for {unknown[0]!r}, which is not among the species")
        for name, diseases in self.diseases.items():
            if not diseases:
                raise TaxonomyError(f"diseases of {name!r}: the list is empty; leave the species out instead")
            _check_names(f"diseases of {name!r}", diseases)
        self._check_slugs()

    def _check_slugs(self) -> None:
        seen: dict[str, str] = {}
        for name, slug in zip(self.species, self.slugs, strict=True):
            if slug in seen:
                raise TaxonomyError(f"species {seen[slug]!r} and {name!r} have the same slug {slug!r}; rename one")
            seen[slug] = name

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The index of each species' logit by its name."""
        return MappingProxyType({name: index for index, name in enumerate(self.species)})

    @cached_property
    def slugs(self) -> tuple[str, ...]:
        """The file-name form of each species, in species order; all are different."""
        return tuple(slugify(name) for name in self.species)

    @cached_property
    def species_with_head(self) -> tuple[int, ...]:
        """The ascending indices of the species that have a disease head."""
        return tuple(i for i, name in enumerate(self.species) if name in self.diseases)

    @cached_property
    def max_diseases(self) -> int:
        """The length of the longest list of diseases; 0 if no species has a head."""
        return max((len(names) for names in self.diseases.values()), default=0)

    @cached_property
    def classes(self) -> int:
        """The number of classes: every disease of every species, and each species without a head."""
        return sum(max(1, len(self.diseases_of(index))) for index in range(len(self.species)))

    def diseases_of(self, species_index: int) -> tuple[str, ...]:
        """Return the disease names of a species in logit order; empty if it has no head."""
        return self.diseases.get(self.species[species_index], ())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, `{"species": [...], "diseases": {species: [...]}}`, with diseases in species order."""
        diseases = {name: list(self.diseases[name]) for name in self.species if name in self.diseases}
        return {"species": list(self.species), "diseases": diseases}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Taxonomy":
        """Return the taxonomy of a JSON form.

        Raises:
            TaxonomyError: the document has another shape, or names are refused.
        """
        species, diseases = document.get("species"), document.get("diseases")
        if not isinstance(species, list) or not isinstance(diseases, dict):
            raise TaxonomyError('a taxonomy needs "species" (a list) and "diseases" (species to list of names)')
        if not all(isinstance(names, list) for names in diseases.values()):
            raise TaxonomyError('"diseases" must map each species to a list of names')
        return cls(tuple(species), {name: tuple(names) for name, names in diseases.items()})

    @cached_property
    def digest(self) -> str:
        """The SHA-256 (hex) of all names in order; equal if and only if the class order is equal."""
        pairs = [[name, list(self.diseases.get(name, ()))] for name in self.species]
        canonical = json.dumps(pairs, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
