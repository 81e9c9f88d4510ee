"""Strict JSON: what is refused on reading, and that writing replaces a file whole or not at all."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.bundle import files as documents
from plantmodels.bundle.files import read_json, write_bytes, write_json
from plantmodels.errors import BundleError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('abc{}"\\é', max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(document=st.dictionaries(st.text('abcö\n"', max_size=4), VALUES, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, document) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, document)

    assert read_json(path) == document
    assert list(read_json(path)) == list(document)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"a": 1, "a": 1}', "key 'a' is repeated"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' is repeated"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is not a JSON number"),
        (b'{"a": [-1e999]}', "-1e999 is not a JSON number"),
        (b"[1]", "expected a JSON object, got list"),
        (b"1", "expected a JSON object, got int"),
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_not_one_strict_object_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)

    with pytest.raises(BundleError, match=match) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(documents.MAX_JSON_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda *_, **__: pytest.fail("was read"))

    with pytest.raises(BundleError, match="33,554,433 bytes, at most 33,554,432 are read"):
        read_json(path)


def test_absent_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        read_json(tmp_path / "none.json")
    with pytest.raises(BundleError, match="expected a regular file"):
        read_json(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_written_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": value})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(documents.os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_writing_makes_a_new_file_so_that_hard_links_keep_theirs(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_bytes(first, b"old")
    os.link(first, second)
    write_bytes(first, b"new")

    assert (first.read_bytes(), second.read_bytes()) == (b"new", b"old")
    assert first.stat().st_mode & 0o777 == 0o644
