"""The manifest: names, digests, and every way in which a folder can differ from it."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.bundle.layout import MANIFEST_FILE, SIGNATURE_FILE
from plantmodels.bundle.manifest import (
    FileDigest,
    Manifest,
    build_manifest,
    check_files,
    digest_file,
    list_files,
    read_checked,
    read_manifest,
    write_manifest,
)
from plantmodels.errors import BundleError, ManifestMismatchError

SHA = "ab" * 32
NAMES = st.lists(
    st.text("abz-_.0é ", min_size=1, max_size=6).filter(lambda n: n.strip(".")), min_size=1, max_size=3
).map("/".join)
ENTRIES = st.builds(FileDigest, st.integers(0, 2**60), st.binary(min_size=32, max_size=32).map(bytes.hex))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "heads").mkdir(parents=True)
    (folder / "a.onnx").write_bytes(b"aaaa")
    (folder / "heads" / "b.onnx").write_bytes(b"bb")
    write_manifest(folder)
    return folder


@given(st.dictionaries(NAMES, ENTRIES, max_size=5).filter(lambda d: len({n.casefold() for n in d}) == len(d)))
def test_json_round_trip(files: dict[str, FileDigest]) -> None:
    manifest = Manifest(files)

    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert list(manifest.files) == sorted(files)


def test_digests_are_those_of_hashlib(folder: Path) -> None:
    assert read_manifest(folder) == build_manifest(folder)
    assert dict(read_manifest(folder).files) == {
        "a.onnx": FileDigest(4, hashlib.sha256(b"aaaa").hexdigest()),
        "heads/b.onnx": FileDigest(2, hashlib.sha256(b"bb").hexdigest()),
    }
    check_files(folder, read_manifest(folder))


@pytest.mark.parametrize(
    "name",
    [
        "../a",
        "a/../../b",
        "a/..",
        "/etc/passwd",
        "//a",
        "./a",
        "a//b",
        "a/",
        "a/./b",
        "",
        ".",
        "..",
        "a\\b",
        "C:a",
        "a\nb",
        "a\0b",
        "a\u202eb",
        MANIFEST_FILE,
        SIGNATURE_FILE,
    ],
)
def test_names_that_are_not_plain_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match="not a plain name inside the bundle"):
        Manifest({name: FileDigest(1, SHA)})


@pytest.mark.parametrize(("first", "second"), [("a.onnx", "A.onnx"), ("heads/ß.onnx", "heads/SS.onnx")])
def test_case_twins_are_refused(first: str, second: str) -> None:
    with pytest.raises(BundleError, match="differ in case only"):
        Manifest({first: FileDigest(1, SHA), second: FileDigest(1, SHA)})


@pytest.mark.parametrize("sha256", [SHA.upper(), SHA[:-1], SHA + "a", SHA + "\n", "g" * 64, ""])
def test_digests_of_another_form_are_refused(sha256: str) -> None:
    with pytest.raises(BundleError, match="64 lower-case hex digits"):
        Manifest({"a": FileDigest(1, sha256)})


def test_negative_size_is_refused() -> None:
    with pytest.raises(BundleError, match="needs a size"):
        Manifest({"a": FileDigest(-1, SHA)})


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"files": {}}, "format_version None"),
        ({"format_version": 2, "files": {}}, "format_version 2, this code reads 1 to 1"),
        ({"format_version": 0, "files": {}}, "format_version 0"),
        ({"format_version": "1", "files": {}}, "format_version '1'"),
        ({"format_version": True, "files": {}}, "format_version True"),
        ({"format_version": 1}, '"files" must map names'),
        ({"format_version": 1, "files": []}, '"files" must map names'),
        ({"format_version": 1, "files": {"a": SHA}}, "'a': expected an object with size_bytes, sha256, got"),
        (
            {"format_version": 1, "files": {"a": {"sha256": SHA}}},
            "'a': 'size_bytes' is missing; expected size_bytes, sha256",
        ),
        (
            {"format_version": 1, "files": {"a": {"size_bytes": 1, "sha256": SHA, "x": 1}}},
            "'a': 'x' is unknown; expected size_bytes, sha256",
        ),
        (
            {"format_version": 1, "files": {"a": {"size_bytes": 1.0, "sha256": SHA}}},
            "'a'.size_bytes: expected an integer, got 1.0",
        ),
        (
            {"format_version": 1, "files": {"a": {"size_bytes": True, "sha256": SHA}}},
            "'a'.size_bytes: expected an integer, got True",
        ),
        (
            {"format_version": 1, "files": {"a": {"size_bytes": 1, "sha256": None}}},
            "'a'.sha256: expected text, got",
        ),
    ],
)
def test_documents_of_another_shape_are_refused(document, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        Manifest.from_dict(document)


def test_a_repeated_name_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST_FILE).read_text()
    entry = f'"a.onnx": {{"size_bytes": 1, "sha256": "{SHA}"}},'
    (folder / MANIFEST_FILE).write_text(text.replace('"files": {', '"files": {' + entry))

    with pytest.raises(BundleError, match=r"key 'a.onnx' is repeated"):
        read_manifest(folder)


def test_absent_manifest_and_folder_are_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        read_manifest(folder / "none")
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match=r"manifest.json: cannot be read"):
        read_manifest(folder)


def test_every_difference_is_named(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "a.onnx").write_bytes(b"aaab")
    (folder / "heads" / "b.onnx").unlink()
    (folder / "heads" / ".hidden").write_bytes(b"")
    (folder / "new folder").mkdir()

    with pytest.raises(ManifestMismatchError, match=r"missing: heads/b.onnx; changed: a.onnx; not in") as caught:
        check_files(folder, manifest)
    assert caught.value.missing == ("heads/b.onnx",)
    assert caught.value.changed == ("a.onnx",)
    assert caught.value.unexpected == ("heads/.hidden",)


@pytest.mark.parametrize("content", [b"aaaaa", b"", b"AAAA"])
def test_one_changed_file_is_noticed(folder: Path, content: bytes) -> None:
    (folder / "a.onnx").write_bytes(content)

    with pytest.raises(ManifestMismatchError, match=r"changed: a.onnx"):
        check_files(folder, read_manifest(folder))


def test_a_folder_in_place_of_a_file_is_missing(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "a.onnx").unlink()
    (folder / "a.onnx").mkdir()

    with pytest.raises(ManifestMismatchError, match=r"missing: a.onnx"):
        check_files(folder, manifest)


def test_links_are_refused_even_to_equal_content(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    outside = tmp_path / "outside"
    (folder / "a.onnx").rename(outside)
    (folder / "a.onnx").symlink_to(outside)

    for check in (
        lambda: check_files(folder, manifest),
        lambda: build_manifest(folder),
        lambda: list_files(folder),
    ):
        with pytest.raises(BundleError, match="plain files and folders only"):
            check()
    with pytest.raises(BundleError, match="expected a regular file"):
        check_files(folder, manifest, names=["a.onnx"])


def test_a_linked_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "heads").rename(tmp_path / "outside")
    (folder / "heads").symlink_to(tmp_path / "outside")

    with pytest.raises(BundleError, match="plain files and folders only"):
        check_files(folder, manifest)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")

    with pytest.raises(BundleError, match="plain files and folders only"):
        build_manifest(folder)
    with pytest.raises(BundleError, match="expected a regular file"):
        digest_file(folder / "pipe")


def test_a_subset_check_looks_at_its_names_only(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "a.onnx").write_bytes(b"changed")
    (folder / "unexpected").write_bytes(b"")

    check_files(folder, manifest, names=["heads/b.onnx"])
    check_files(folder, manifest, names=iter(["heads/b.onnx"]))
    check_files(folder, manifest, names=[])
    with pytest.raises(ManifestMismatchError, match=r"changed: a.onnx"):
        check_files(folder, manifest, names=["heads/b.onnx", "a.onnx"])


@pytest.mark.parametrize("every_file", [True, False])
def test_checked_bytes_are_those_of_the_files(folder: Path, every_file: bool) -> None:
    manifest = write_manifest(folder)
    first, *others = manifest.files
    assert read_checked(folder, manifest, [first], every_file=every_file) == {first: (folder / first).read_bytes()}
    (folder / others[0]).write_bytes(b"changed")
    if every_file:
        with pytest.raises(ManifestMismatchError, match="changed"):
            read_checked(folder, manifest, [first], every_file=True)
    else:
        assert list(read_checked(folder, manifest, [first], every_file=False)) == [first]
    (folder / first).write_bytes(b"changed")
    with pytest.raises(ManifestMismatchError, match=f"changed: {first}"):
        read_checked(folder, manifest, [first], every_file=every_file)


def test_a_subset_check_refuses_names_that_the_manifest_lacks(folder: Path) -> None:
    (folder / "unlisted").write_bytes(b"")

    with pytest.raises(ManifestMismatchError, match="not in the manifest: unlisted") as caught:
        check_files(folder, read_manifest(folder), names=["a.onnx", "unlisted"])
    assert caught.value.unexpected == ("unlisted",)
    assert not caught.value.missing


def test_long_lists_are_cut_in_the_message_and_whole_in_the_error(folder: Path) -> None:
    for i in range(20):
        (folder / f"extra{i:02}").write_bytes(b"")

    with pytest.raises(ManifestMismatchError, match="extra04 …") as caught:
        check_files(folder, read_manifest(folder))
    assert len(caught.value.unexpected) == 20


def test_writing_again_replaces_and_does_not_list_itself(folder: Path) -> None:
    (folder / "c.txt").write_bytes(b"c")
    manifest = write_manifest(folder)

    assert set(manifest.files) == {"a.onnx", "c.txt", "heads/b.onnx"}
    check_files(folder, read_manifest(folder))
