"""Species and disease names: what is refused, and that order is kept and pinned by the digest."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.bundle.taxonomy import Taxonomy, slugify
from plantmodels.errors import TaxonomyError

NAMES = (
    st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=20)
    .map(lambda text: unicodedata.normalize("NFKC", f"a{text}").strip())
    .filter(lambda text: text.isprintable() and text == unicodedata.normalize("NFKC", text))
    .filter(lambda text: not any(unicodedata.name(c, "").startswith(("GREEK", "CYRILLIC")) for c in text))
)


@st.composite
def taxonomies(draw: st.DrawFn) -> Taxonomy:
    species = draw(st.lists(NAMES, min_size=1, max_size=6, unique_by=slugify))
    heads = draw(st.sets(st.sampled_from(species)))
    diseases = {name: tuple(draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))) for name in heads}
    return Taxonomy(tuple(species), diseases)


@given(taxonomies())
def test_json_round_trip_keeps_everything(taxonomy: Taxonomy) -> None:
    again = Taxonomy.from_dict(json.loads(json.dumps(taxonomy.to_dict())))

    assert again == taxonomy
    assert again.digest == taxonomy.digest
    assert list(again.species) == list(taxonomy.species)


@given(taxonomies(), st.randoms())
def test_digest_is_equal_exactly_when_the_order_is(taxonomy: Taxonomy, random) -> None:
    species = list(taxonomy.species)
    random.shuffle(species)
    shuffled = Taxonomy(tuple(species), taxonomy.diseases)

    assert (shuffled.digest == taxonomy.digest) == (shuffled.species == taxonomy.species)


def test_digest_ignores_the_order_of_the_disease_mapping_and_sees_that_of_a_list() -> None:
    species = ("Apple", "Grape")
    first = Taxonomy(species, {"Apple": ("scab", "healthy"), "Grape": ("rot",)})
    second = Taxonomy(species, {"Grape": ("rot",), "Apple": ("scab", "healthy")})
    swapped = Taxonomy(species, {"Apple": ("healthy", "scab"), "Grape": ("rot",)})

    assert first.digest == second.digest != swapped.digest


def test_digest_of_one_taxonomy_is_pinned() -> None:
    taxonomy = Taxonomy(("Pepper,_bell", "Mint"), {"Pepper,_bell": ("Bacterial_spot", "healthy")})

    # sha256 of [["Pepper,_bell",["Bacterial_spot","healthy"]],["Mint",[]]], by sha256sum
    assert taxonomy.digest == "e74747757ea8e810f11e1591ddd5a082485ba2381c9befa545d656c99e0d54ed"


def test_order_is_that_of_training_and_never_sorted() -> None:
    taxonomy = Taxonomy(("Tomato", "Apple", "Mint"), {"Apple": ("z", "a"), "Tomato": ("healthy",)})

    assert taxonomy.species == ("Tomato", "Apple", "Mint")
    assert taxonomy.slugs == ("tomato", "apple", "mint")
    assert [taxonomy.diseases_of(i) for i in range(3)] == [("healthy",), ("z", "a"), ()]
    assert taxonomy.species_with_head == (0, 1)
    assert taxonomy.max_diseases == 2
    assert list(taxonomy.to_dict()["diseases"]) == ["Tomato", "Apple"]


def test_no_heads_at_all_is_a_taxonomy() -> None:
    taxonomy = Taxonomy(("Mint",), {})

    assert taxonomy.max_diseases == 0
    assert taxonomy.species_with_head == ()


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Pepper,_bell", "pepper-bell"),
        ("Cherry_(including_sour)", "cherry-including-sour"),
        ("  Aloe sp. 2 ", "aloe-sp-2"),
        ("Café au lait", "cafe-au-lait"),
        ("../../etc/passwd", "etc-passwd"),
    ],
)
def test_slug_is_a_plain_file_name(name: str, slug: str) -> None:
    assert slugify(name) == slug


@pytest.mark.parametrize(
    ("species", "diseases", "match"),
    [
        ((), {}, "at least one is needed"),
        (("Apple", ""), {}, "non-empty string, got ''"),
        (("Apple", "  "), {}, "non-empty string"),
        (("Apple", 3), {}, "non-empty string, got 3"),
        (("Apple", "Apple"), {}, "'Apple' is named more than once"),
        (("Pepper, bell", "Pepper_(bell)"), {}, "'Pepper, bell' and 'Pepper_\\(bell\\)' have the same slug"),
        (("apple", "Apple"), {}, "same slug 'apple'"),
        (("Cafe", "Café"), {}, "same slug 'cafe'"),
        (("苹果",), {}, "no ASCII letter or digit"),
        (("Ａpple",), {}, "look-alike"),
        (("Cafe\u0301",), {}, "look-alike"),
        (("App\u200ble",), {}, "look-alike"),
        (("Apple\n",), {}, "look-alike"),
        (("\u0410pple",), {}, "mixes CYRILLIC and LATIN letters in a word"),
        (("Apple",), {"Apple": ("r\u03bft",)}, "diseases of 'Apple': .* mixes GREEK and LATIN letters"),
        (("Apple\ud800",), {}, "look-alike"),
        (("Apple",), {"Grape": ("rot",)}, "given for 'Grape', which is not among the species"),
        (("Apple",), {"Apple": ()}, "the list is empty"),
        (("Apple",), {"Apple": ("rot", "rot")}, "diseases of 'Apple': 'rot' is named more than once"),
        (("Apple",), {"Apple": ("rot\u202e",)}, "diseases of 'Apple'.*look-alike"),
        (("Apple",), {"Apple": ("rot", None)}, "diseases of 'Apple'.*got None"),
    ],
)
def test_ambiguous_names_are_refused(species, diseases, match: str) -> None:
    with pytest.raises(TaxonomyError, match=match):
        Taxonomy(species, diseases)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({}, 'needs "species"'),
        ({"species": "Apple", "diseases": {}}, 'needs "species"'),
        ({"species": ["Apple"], "diseases": []}, 'needs "species"'),
        ({"species": ["Apple"], "diseases": {"Apple": "rot"}}, "must map each species to a list"),
        ({"species": [["Apple"]], "diseases": {}}, "non-empty string"),
        ({"species": ["Apple"], "diseases": {"Apple": [1]}}, "non-empty string"),
    ],
)
def test_documents_of_another_shape_are_refused(document, match: str) -> None:
    with pytest.raises(TaxonomyError, match=match):
        Taxonomy.from_dict(document)


def test_a_taxonomy_cannot_be_changed_through_what_it_was_made_of() -> None:
    species, diseases = ["Apple"], {"Apple": ["rot"]}
    taxonomy = Taxonomy(species, diseases)
    digest = taxonomy.digest
    species.append("Grape")
    diseases["Apple"].append("scab")

    assert taxonomy.species == ("Apple",)
    assert taxonomy.diseases_of(0) == ("rot",)
    assert Taxonomy(taxonomy.species, taxonomy.diseases).digest == digest
    with pytest.raises(TypeError):
        taxonomy.diseases["Apple"] = ("scab",)


def test_a_species_whose_file_name_would_be_too_long_is_refused() -> None:
    with pytest.raises(TaxonomyError, match=r"too long \(over 200 characters\) to make a file name of"):
        slugify("a" * 201)


def test_ten_thousand_species_are_read() -> None:
    species = tuple(f"Plant {number}" for number in range(10_000))  # four seconds where every name is sought in a list
    taxonomy = Taxonomy(species, dict.fromkeys(species, ("healthy", "leaf rust")))
    assert (taxonomy.classes, taxonomy.places["Plant 9999"], taxonomy.slugs[-1]) == (20_000, 9_999, "plant-9999")
