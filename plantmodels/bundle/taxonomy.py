"""Species in training order, their diseases in logit order, and the digest that pins both.

Order is never sorted, inferred or repaired: it is the order of the network's logits.

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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from plantmodels.errors import TaxonomyError

MAX_SLUG: Final = 200
"""File systems allow 255 bytes, the ending included."""

_ALIKE_SCRIPTS: Final = {"LATIN", "GREEK", "CYRILLIC"}
"""Scripts with letters that look the same."""


def slugify(name: str) -> str:
    """File-name form of a species: lower-case ASCII letters and digits joined by single hyphens.

    Raises:
        TaxonomyError: nothing of the name is left, or more than `MAX_SLUG` characters.
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
        if unicodedata.normalize("NFKC", name) != name or not name.isprintable():
            raise TaxonomyError(f"{what}: {name!r} is not plain text in Unicode form NFKC (a look-alike?)")
        for word in re.findall(r"[^\W\d_]+", name):
            scripts = sorted({unicodedata.name(letter, "").split(" ")[0] for letter in word} & _ALIKE_SCRIPTS)
            if len(scripts) > 1:
                raise TaxonomyError(f"{what}: {name!r} mixes {' and '.join(scripts)} letters in a word (a look-alike?)")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TaxonomyError(f"{what}: {repeated[0]!r} is named more than once")


@dataclass(frozen=True)
class Taxonomy:
    """The two levels of classes of one network.

    Attributes:
        species: names in the order of the species logits.
        diseases: species name to disease names in the order of that head's logits; a species without a
            head is absent.
    """

    species: tuple[str, ...]
    diseases: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Refuses what cannot name files and logits unambiguously.

        Raises:
            TaxonomyError: no species, empty, repeated or look-alike names, diseases of an unknown species,
                an empty disease list, or two species with one slug.
        """
        object.__setattr__(self, "species", tuple(self.species))
        object.__setattr__(self, "diseases", MappingProxyType({k: tuple(v) for k, v in self.diseases.items()}))
        if not self.species:
            raise TaxonomyError("species: at least one is needed, got none")
        _check_names("species", self.species)
        unknown = [name for name in self.diseases if name not in set(self.species)]
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
    def slugs(self) -> tuple[str, ...]:
        """File-name form of each species, in species order; all different."""
        return tuple(slugify(name) for name in self.species)

    @cached_property
    def species_with_head(self) -> tuple[int, ...]:
        """Indices of the species that have a disease head, ascending."""
        return tuple(i for i, name in enumerate(self.species) if name in self.diseases)

    @property
    def max_diseases(self) -> int:
        """Length of the longest disease list; 0 when no species has a head."""
        return max((len(names) for names in self.diseases.values()), default=0)

    def diseases_of(self, species_index: int) -> tuple[str, ...]:
        """Disease names of one species in logit order; empty when it has no head."""
        return self.diseases.get(self.species[species_index], ())

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"species": [...], "diseases": {species: [...]}}`, diseases in species order."""
        diseases = {name: list(self.diseases[name]) for name in self.species if name in self.diseases}
        return {"species": list(self.species), "diseases": diseases}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Taxonomy":
        """Reads the JSON form.

        Raises:
            TaxonomyError: the document has another shape, or the names are refused.
        """
        species, diseases = document.get("species"), document.get("diseases")
        if not isinstance(species, list) or not isinstance(diseases, dict):
            raise TaxonomyError('a taxonomy needs "species" (a list) and "diseases" (species to list of names)')
        if not all(isinstance(names, list) for names in diseases.values()):
            raise TaxonomyError('"diseases" must map each species to a list of names')
        return cls(tuple(species), {name: tuple(names) for name, names in diseases.items()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of names and order of all classes; equal exactly when the class order is equal."""
        pairs = [[name, list(self.diseases.get(name, ()))] for name in self.species]
        canonical = json.dumps(pairs, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
