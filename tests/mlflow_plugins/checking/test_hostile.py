"""Artifacts from other hands, through every door of a consumer: what each attack is refused for.

An attacker who can write the artifacts rewrites the manifest and the digest in MLmodel as well (`seal`); one who does
not is told apart by digests alone. The readers' own tests, in tests/bundle, know more attacks on each file.
"""

import copyreg
import hashlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from mlflow_plugins import flavor
from mlflow_plugins.checking.load_check import check_version
from mlflow_plugins.registry.evidence import EvidenceError, has_flavor, read_evidence
from plantmodels.bundle.layout import DETECTOR_FILE, HEADS_LIST_FILE, MANIFEST_FILE, METADATA_FILE, PACKED_HEADS_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.cli import main
from plantmodels.errors import PlantModelsError
from plantmodels.serve.classifier import PlantClassifier

DIM = 32
LARGE = 200 * 2**20

PARSED_ONLY = ("registry", "inspect")
"""These doors open no ONNX file."""

SERVING = ("classifier", "native", "pyfunc", "load-check")
WHOLE = ("classifier", "pyfunc", "registry", "inspect", "load-check")
"""The native loader reads those files alone that it needs."""

OF_THE_MODEL = ("native", "pyfunc", "registry", "load-check")
"""These see MLmodel, which records the manifest's digest."""

EVERY = (*SERVING, *PARSED_ONLY)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that an executed attack would have made."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def bundle_of(model: Path) -> Path:
    return model / flavor.BUNDLE_FOLDER


def inspect(bundle: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", "--bundle", str(bundle)])
    if result.exit_code:
        assert result.exit_code == 1, result.output
        raise PlantModelsError(result.output)


def refusals(model: Path, doors: tuple[str, ...]) -> dict[str, str]:
    """What each door says; a door that lets a model through says nothing."""
    bundle = bundle_of(model)
    calls: dict[str, Callable[[], object]] = {
        "classifier": lambda: PlantClassifier.load(bundle, threads=1),
        "native": lambda: flavor.load_model(str(model), threads=1),
        "pyfunc": lambda: mlflow.pyfunc.load_model(str(model), model_config={"threads": 1}),
        "registry": lambda: read_evidence(str(model)),
        "inspect": lambda: inspect(bundle),
        "load-check": lambda: list(check_version(str(model))),
    }
    said = {}
    for door in doors:
        try:
            calls[door]()
        except PlantModelsError as error:
            said[door] = str(error)
        else:
            said[door] = ""
    return said


def check_refused(model: Path, match: str, doors: tuple[str, ...] = EVERY) -> None:
    said = refusals(model, doors)
    assert {door: text for door, text in said.items() if not re.search(match, " ".join(text.split()))} == {}


def edit_description(model: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = yaml.safe_load((model / "MLmodel").read_text())
    edit(document)
    (model / "MLmodel").write_text(yaml.safe_dump(document))


def record(model: Path) -> None:
    """Writes the manifest's digest and the class order into MLmodel, as an attacker would."""
    content = (bundle_of(model) / MANIFEST_FILE).read_bytes()
    changes = {"manifest_sha256": hashlib.sha256(content).hexdigest()}
    try:
        metadata = json.loads((bundle_of(model) / METADATA_FILE).read_bytes())
        changes["class_order_digest"] = metadata["class_order_digest"]
    except (ValueError, KeyError, RecursionError, TypeError):
        pass
    edit_description(model, lambda d: d["flavors"]["plantmodels"].update(changes))


def seal(model: Path) -> None:
    write_manifest(bundle_of(model))
    record(model)


def test_the_model_itself_passes_every_door(model: Path) -> None:
    assert refusals(model, EVERY) == dict.fromkeys(EVERY, "")
    seal(model)
    assert refusals(model, ("native", "load-check")) == {"native": "", "load-check": ""}


# Content of files. Each is first put there alone, which the digests tell, and then sealed.


class Call:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def plain(**changes: object) -> bytes:
    document = {"mean": np.zeros(DIM), "inv_cov": np.eye(DIM), "threshold": 1.0}
    return pickle.dumps({**document, **changes}, protocol=4)


def proto(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


RATIO = {"method": "gaussian_ratio", "other_mean": np.zeros(DIM)}
ASYMMETRIC = np.eye(DIM) + np.eye(DIM, k=1)
DEFAULTS = b"}\x8c\x0c__defaults__N\x85s"

PICKLES: dict[str, tuple[bytes, str]] = {
    "a call": (plain(mean=Call(os.system, "touch executed")), "system, which plain arrays do not need: refused"),
    "a dotted name": (proto(b"\x8c\x05numpy\x8c\x11ndarray.__class__\x93"), r"names numpy.ndarray.__class__"),
    "the extension registry, warm": (proto(b"\x82\xf1\x8c\x0etouch executed\x85R"), "opcode EXT1 at byte 2 is refused"),
    "a function's defaults": (proto(b"cnumpy._core.numeric\n_frombuffer\n" + DEFAULTS + b"b"), "state of a function"),
    "an array of 8 GB": (proto(b"cnumpy\nndarray\nJ\x00\x00\x00\x40\x85\x85R"), "not callable"),
    "an array of objects": (plain(mean=np.array([None, 1], dtype=object)), "refused"),
    "deep nesting": (proto(b"}" + b"\x8c\x01a}" * 1500 + b"s" * 1500), "nested too deeply|not a pickle of plain"),
    "more opcodes than any detector has": (proto(b"N" * 6000), "more than 5,000 pickle opcodes"),
    "a huge integer": (plain(threshold=2**1500), "threshold must be a finite number"),
    "a huge integer by its length": (proto(b"\x8b\xff\xff\xff\x7f"), "not a complete pickle|opcode LONG4"),
    "cut off": (plain()[:-20], "not a complete pickle"),
    "two pickles": (plain() + plain(), "bytes follow the end of the pickle"),
    "no pickle": (b"\x00" * 100, "not a complete pickle"),
    "another shape": (plain(inv_cov=np.eye(DIM)[1:]), r"inv_cov \(D, D\), got \(1, 32\) and \(31, 32\)"),
    "a mean of another shape": (plain(mean=np.zeros((1, 1, DIM))), r"mean must be \(C, D\)"),
    "NaN in the mean": (plain(mean=np.full(DIM, np.nan)), "must be finite, got NaN or infinity"),
    "NaN in the matrix": (plain(inv_cov=np.full((DIM, DIM), np.nan)), "must be finite, got NaN or infinity"),
    "a negative definite matrix": (plain(inv_cov=-np.eye(DIM)), "inv_cov must be positive definite"),
    "a singular matrix": (plain(inv_cov=np.ones((DIM, DIM))), "inv_cov must be positive definite"),
    "an asymmetric matrix": (plain(inv_cov=ASYMMETRIC), "inv_cov must be symmetric"),
    "another length": (plain(mean=np.zeros(5), inv_cov=np.eye(5)), "scores 5 features, the models give 32"),
    "a threshold of NaN": (plain(threshold=float("nan")), "threshold must be a finite number, got nan"),
    "an infinite threshold": (plain(threshold=float("inf")), "threshold must be a finite number, got inf"),
    "others' negative matrix": (plain(**RATIO, other_inv_cov=-np.eye(DIM)), "other_inv_cov must be positive definite"),
    "others' singular matrix": (plain(**RATIO, other_inv_cov=np.ones((DIM, DIM))), "other_inv_cov must be positive"),
    "others' asymmetric matrix": (plain(**RATIO, other_inv_cov=ASYMMETRIC), "other_inv_cov must be symmetric"),
    "others' matrix of another length": (plain(**RATIO, other_inv_cov=np.eye(5)), r"got \(32,\) and \(5, 5\)"),
    "others' NaN": (plain(**RATIO, other_inv_cov=np.full((DIM, DIM), np.nan)), "other_inv_cov must be finite"),
}


@pytest.mark.parametrize("attack", PICKLES)
def test_a_hostile_detector(model: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, attack: str) -> None:
    content, match = PICKLES[attack]
    monkeypatch.chdir(canary.parent)
    copyreg.add_extension("os", "system", 241)
    copyreg._extension_cache[241] = os.system
    try:
        (bundle_of(model) / DETECTOR_FILE).write_bytes(content)
        check_refused(model, f"changed: {DETECTOR_FILE}")
        seal(model)
        check_refused(model, f"{DETECTOR_FILE}: .*({match})")
    finally:
        copyreg.remove_extension("os", "system", 241)
        copyreg._extension_cache.pop(241, None)


def repeat_a_key(text: str) -> str:
    return text.replace("{", '{"repeated": 1, "repeated": 2,', 1)


DOCUMENTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "a repeated key": (repeat_a_key, "key 'repeated' is repeated"),
    "deep nesting": (lambda text: '{"a":' * 100_000, "not valid JSON"),
    "an integer of 5,000 digits": (lambda text: text.replace("{", '{"a": ' + "9" * 5000 + ",", 1), "not valid JSON"),
    "NaN": (lambda text: text.replace("{", '{"a": NaN,', 1), "NaN is not a JSON number"),
    "NUL": (lambda text: text + "\0", "not valid JSON"),
    "no UTF-8": (lambda text: text.encode() + b"\xff", "not UTF-8 text"),
    "UTF-16": (lambda text: text.encode("utf-16"), "not UTF-8 text"),
    "a list": (lambda text: f"[{text}]", "expected a JSON object, got list"),
}


@pytest.mark.parametrize("name", [METADATA_FILE, HEADS_LIST_FILE])
@pytest.mark.parametrize("attack", DOCUMENTS)
def test_a_hostile_document(model: Path, attack: str, name: str) -> None:
    make, match = DOCUMENTS[attack]
    path = bundle_of(model) / name
    content = make(path.read_text())
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    seal(model)
    check_refused(model, f"{name}: .*{match}")


def test_a_document_of_200_mb_is_refused_before_it_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def read_small(path: Path) -> bytes:
        assert path.stat().st_size < LARGE, f"{path} was read"
        return read(path)

    path = bundle_of(model) / METADATA_FILE
    os.truncate(path, LARGE)
    write_manifest(bundle_of(model))
    digest = hashlib.sha256((bundle_of(model) / MANIFEST_FILE).read_bytes()).hexdigest()
    edit_description(model, lambda d: d["flavors"]["plantmodels"].update(manifest_sha256=digest))
    monkeypatch.setattr(Path, "read_bytes", read_small)
    check_refused(model, f"{METADATA_FILE}: 209,715,200 bytes, at most 33,554,432 are read")
    os.truncate(bundle_of(model) / MANIFEST_FILE, LARGE)
    check_refused(model, f"{MANIFEST_FILE}: 209,715,200 bytes, at most 33,554,432 are read")


SHA = "ab" * 32
MANIFESTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    **DOCUMENTS,
    "upward": (lambda text: add_file(text, "../outside"), "'../outside' is not a plain name inside the bundle"),
    "upward in the midst": (lambda text: add_file(text, "plots/../../outside"), "not a plain name inside the bundle"),
    "absolute": (lambda text: add_file(text, "/etc/passwd"), "'/etc/passwd' is not a plain name inside the bundle"),
    "backslashes": (lambda text: add_file(text, "..\\\\outside"), "not a plain name inside the bundle"),
    "NUL in a name": (lambda text: add_file(text, "a\\u0000b"), "not a plain name inside the bundle"),
    "case twins": (lambda text: add_file(text, DETECTOR_FILE.upper()), "differ in case only"),
    "a file twice": (lambda text: add_file(text, DETECTOR_FILE), f"key '{DETECTOR_FILE}' is repeated"),
    "digests in capitals": (
        lambda text: re.sub('"[0-9a-f]{64}"', lambda digest: digest[0].upper(), text),
        "needs a size and 64 lower-case hex digits",
    ),
    "a newer format": (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "this code reads 1 to"),
    "a size of 4,000 digits": (
        lambda text: re.sub('"size_bytes": [0-9]+', '"size_bytes": ' + "9" * 4000, text),
        "the files differ from manifest.json",
    ),
}


def add_file(text: str, name: str) -> str:
    return text.replace('"files": {', f'"files": {{"{name}": {{"size_bytes": 1, "sha256": "{SHA}"}},', 1)


@pytest.mark.parametrize("attack", MANIFESTS)
def test_a_hostile_manifest(model: Path, attack: str) -> None:
    make, match = MANIFESTS[attack]
    path = bundle_of(model) / MANIFEST_FILE
    content = make(path.read_text())
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    record(model)
    check_refused(model, match)


def test_a_manifest_that_mlmodel_does_not_record(model: Path) -> None:
    (bundle_of(model) / DETECTOR_FILE).write_bytes(plain())
    write_manifest(bundle_of(model))
    check_refused(model, "records a manifest of digest|is not the one that MLmodel was written for", OF_THE_MODEL)


def test_extra_missing_and_renamed_files(model: Path) -> None:
    extra = bundle_of(model) / "extra.txt"
    extra.write_text("")
    check_refused(model, r"not in the manifest: extra\.txt", WHOLE)
    extra.unlink()
    head = min((bundle_of(model) / "disease-heads").iterdir())
    head.rename(head.with_name(head.name.upper()))
    check_refused(model, rf"missing: disease-heads/{head.name}; not in the manifest: disease-heads/", WHOLE)
    (bundle_of(model) / DETECTOR_FILE).unlink()
    check_refused(model, rf"missing: .*{DETECTOR_FILE}")


@pytest.mark.parametrize("name", [DETECTOR_FILE, MANIFEST_FILE, METADATA_FILE, PACKED_HEADS_FILE])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_in_place_of_files(model: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = bundle_of(model) / name
    path.rename(tmp_path / "outside")
    if kind == "link":
        path.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(path)
    check_refused(
        model, f"{name}: (expected a regular file|a bundle holds plain files and folders only)|missing: {name}"
    )


@pytest.mark.parametrize("name", ["data", "data/bundle", "data/bundle/disease-heads"])
def test_links_in_place_of_folders(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).rename(tmp_path / "outside")
    (model / name).symlink_to(tmp_path / "outside")
    inside = name.endswith("heads")
    doors = WHOLE if inside else OF_THE_MODEL
    check_refused(model, f"{name}: (expected a folder, got a symbolic link|a bundle holds plain files)", doors)


# Taxonomy


def edit_taxonomy(model: Path, edit: Callable[[dict[str, Any]], object], *, heads: bool = True) -> None:
    """Changes the classes, with the digest and (`heads`) with the heads list, where the names can be classes at all."""
    path = bundle_of(model) / METADATA_FILE
    document = json.loads(path.read_text())
    edit(document["taxonomy"])
    try:
        taxonomy = Taxonomy.from_dict(document["taxonomy"])
    except PlantModelsError:
        path.write_text(json.dumps(document))
        return
    document["class_order_digest"] = taxonomy.digest
    path.write_text(json.dumps(document))
    if heads:
        entries = {
            str(i): {
                "file": f"disease-heads/{taxonomy.slugs[i]}-int8.onnx",
                "species": taxonomy.species[i],
                "slug": taxonomy.slugs[i],
                "diseases": list(taxonomy.diseases_of(i)),
            }
            for i in taxonomy.species_with_head
        }
        (bundle_of(model) / HEADS_LIST_FILE).write_text(json.dumps(entries))


def swap_species(taxonomy: dict[str, Any]) -> None:
    taxonomy["species"][:2] = reversed(taxonomy["species"][:2])


TAXONOMIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a Cyrillic letter": (lambda t: t["species"].append("Мint"), "'Мint' mixes CYRILLIC and LATIN letters"),
    "a Greek letter": (lambda t: t["diseases"]["Blueberry"].append("Rοt"), "'Rοt' mixes GREEK and LATIN letters"),
    "full-width": (lambda t: t["species"].append("Ｍint"), "look-alike"),
    "invisible": (lambda t: t["species"].append("Mi\u200bnt"), "look-alike"),
    "NUL": (lambda t: t["species"].append("Mint\0"), "look-alike"),
    "one slug": (lambda t: t["species"].append("Aloe (sp. 2)"), "have the same slug 'aloe-sp-2'"),
    "one name": (lambda t: t["species"].append("Mint"), "'Mint' is named more than once"),
}


@pytest.mark.parametrize("attack", TAXONOMIES)
def test_hostile_names(model: Path, attack: str) -> None:
    edit, match = TAXONOMIES[attack]
    edit_taxonomy(model, edit)
    seal(model)
    check_refused(model, f"{METADATA_FILE}: .*{match}")


def test_species_in_another_order_than_the_heads_list(model: Path) -> None:
    edit_taxonomy(model, swap_species, heads=False)
    check_refused(model, f"changed: {METADATA_FILE}")
    seal(model)
    check_refused(model, f"{HEADS_LIST_FILE}: species id 0 is")


LENGTHS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "one less": (lambda t: t["Pepper,_bell"].pop(), r"2 classes of species 'Pepper,_bell', onnx-metadata.json names 1"),
    "one more": (lambda t: t["Blueberry"].append("rot"), r"1 classes of species 'Blueberry', .* names 2"),
    "a head that is none": (lambda t: t.update(Mint=["rot"]), r"0 classes of species 'Mint', .* names 1"),
    "no head": (lambda t: t.pop("Blueberry"), r"1 classes of species 'Blueberry', .* names 0"),
    "more than any": (lambda t: t["Blueberry"].extend("abcd"), r"packed.onnx: inputs and outputs are"),
}


@pytest.mark.parametrize("attack", LENGTHS)
def test_a_disease_list_of_another_length_than_its_head(model: Path, attack: str) -> None:
    """Metadata and heads list agree, and only the ONNX file knows better; names would go to the wrong logits."""
    edit, match = LENGTHS[attack]
    edit_taxonomy(model, lambda taxonomy: edit(taxonomy["diseases"]))
    seal(model)
    check_refused(model, f"{PACKED_HEADS_FILE}: .*{match}|{match}", SERVING)


# MLmodel, read by all but MLflow's own pyfunc

READERS = ("native", "registry", "load-check")
BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
DESCRIPTIONS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "a call": (
        lambda text: text + "metadata: !!python/object/apply:os.system ['touch executed']\n",
        "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    "merge keys": (lambda text: BOMB + text, "the merge key << is refused"),
    "a billion laughs": (lambda text: LAUGHS + text, r"the alias \*a0 is refused"),
    "an alias of itself": (lambda text: text + "metadata: &a [*a]\n", r"the alias \*a is refused"),
    "brackets": (lambda text: text + "metadata: " + "[" * 100_000, "nested more than 50 deep"),
    "nested mappings": (lambda text: text + "metadata: " + "{a: " * 60, "nested more than 50 deep"),
    "a repeated key": (lambda text: text + "flavors: {}\n", "key 'flavors' is repeated"),
    "an integer of 5,000 digits": (lambda text: text + f"metadata: {'9' * 5000}\n", "not the YAML expected"),
    "NUL": (lambda text: text + "\0", "not the YAML expected"),
    "no UTF-8": (lambda text: text.encode() + b"\xff", "not the YAML expected"),
    "a time that is none": (lambda text: text + "metadata: !!timestamp noon\n", "not the YAML expected"),
    "a number of no characters": (lambda text: text + "metadata: !!float ''\n", "not the YAML expected"),
    "a key that cannot be one": (lambda text: text + "? {a: 1}\n: 2\n", "not the YAML expected"),
    "no flavors": (lambda text: text.replace("flavors:", "flavours:"), "names no flavors"),
    "a digest in capitals": (
        lambda text: re.sub("manifest_sha256: .*", lambda line: line[0][:17] + line[0][17:].upper(), text),
        "records a manifest of digest|is not the one that MLmodel|MLmodel: flavors.plantmodels.manifest_sha256",
    ),
}


@pytest.mark.parametrize("attack", DESCRIPTIONS)
def test_a_hostile_mlmodel(model: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, attack: str) -> None:
    make, match = DESCRIPTIONS[attack]
    monkeypatch.chdir(canary.parent)
    content = make((model / "MLmodel").read_text())
    (model / "MLmodel").write_bytes(content.encode() if isinstance(content, str) else content)
    check_refused(model, match, READERS)


def test_an_mlmodel_of_200_mb_a_link_and_a_pipe(model: Path, tmp_path: Path) -> None:
    path = model / "MLmodel"
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    check_refused(model, "MLmodel: (expected a regular file|a bundle holds plain files)", READERS)
    path.unlink()
    os.mkfifo(path)
    check_refused(model, "MLmodel: (expected a regular file|a bundle holds plain files)|MLmodel: missing", READERS)
    path.unlink()
    path.touch()
    os.truncate(path, LARGE)
    check_refused(model, "MLmodel: 209,715,200 bytes, at most 4,194,304 are read", READERS)


def test_the_registry_looks_for_our_flavor_without_a_bomb_going_off(model: Path) -> None:
    text = (model / "MLmodel").read_text()
    (model / "MLmodel").write_text("shared: &a [1]\nagain: *a\n" + text)  # as MLflow writes for other models
    assert has_flavor(str(model))
    (model / "MLmodel").write_text(BOMB + text)
    with pytest.raises(EvidenceError, match="the merge key << is refused"):
        has_flavor(str(model))


# Code of the version

LOADER = """
from pathlib import Path

Path({canary!r}).touch()


class Model:
    def predict(self, model_input, params=None):
        return None


def _load_pyfunc(path, model_config=None):
    return Model()
"""


def test_a_loader_module_of_the_version_runs_in_pyfunc_and_nowhere_else(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain `mlflow.pyfunc.load_model` trusts whoever can write the artifacts."""
    ran = tmp_path / "ran"
    (model / "code" / "hostile_loader.py").write_text(LOADER.format(canary=str(ran)))
    edit_description(model, lambda d: d["flavors"]["python_function"].update(loader_module="hostile_loader"))

    with pytest.raises(
        PlantModelsError, match=r"python_function.loader_module is 'hostile_loader', expected 'mlflow_pl"
    ):
        list(check_version(str(model)))
    assert flavor.load_model(str(model), threads=1).taxonomy.species[0] == "Pepper,_bell"
    read_evidence(str(model))
    assert not ran.exists()

    monkeypatch.setattr(sys, "path", list(sys.path))
    mlflow.pyfunc.load_model(str(model))
    sys.modules.pop("hostile_loader")
    assert ran.exists()


def test_the_gated_registry_registers_no_hostile_detector(model: Path, canary: Path, embedded_mlflow: str) -> None:
    with mlflow.start_run():
        info = flavor.log_model(bundle_of(model), name="m")
    stored = Path(mlflow.artifacts.download_artifacts(artifact_uri=info.artifact_path))
    (bundle_of(stored) / DETECTOR_FILE).write_bytes(plain(mean=Call(os.system, f"touch {canary}")))
    seal(stored)
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    with pytest.raises(
        MlflowException, match=r"refused to register a version: .*system, which plain arrays do not need"
    ):
        mlflow.register_model(info.model_uri, "plants")
