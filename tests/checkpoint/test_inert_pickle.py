"""Checks that a pickle is read as data: nothing that it names is imported or called, whatever its opcodes are."""

import argparse
import collections
import enum
import functools
import os
import pathlib
import pickle
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.checkpoint.inert_pickle import Foreign, PickleError, read_inert
from reliability.mutations import damage_pickle


class Colour(enum.Enum):
    GREEN = 1


class WithState:
    def __setstate__(self, state: object) -> None:
        pytest.fail("its state was set")


class Attributes(dict):
    """As Lightning's AttributeDict: a dict with a name of its own."""


def plain_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=20)
    keys = st.text() | st.integers() | st.tuples(st.text(), st.integers())
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner), max_leaves=20
    )


@given(value=plain_values(), protocol=st.integers(0, 5))
def test_plain_values_are_read_as_they_are(value: object, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    if protocol > 2 or (b"_codecs" not in content and b"bytes" not in content):  # older protocols call for bytes
        assert read_inert(content) == value


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Path("data"), "pathlib.PosixPath"),
        (argparse.Namespace(a=1), "argparse.Namespace"),
        (functools.partial(print, 1), "builtins.print, by functools.partial"),
        (np.float64(3), "numpy.dtype, by numpy._core.multiarray.scalar"),
        (Colour.GREEN, f"{__name__}.Colour"),
        (Attributes(a=[1]), f"{__name__}.Attributes"),
        (collections.Counter("aab"), "collections.Counter"),
        (collections.deque([1]), "collections.deque"),
        ({1, 2}, "builtins.set"),
        (3 + 4j, "builtins.complex"),
        (slice(3), "builtins.slice"),
        (print, "builtins.print"),
        (ValueError("x"), "builtins.ValueError"),
        (WithState(), f"{__name__}.WithState"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_other_object_is_only_named(value: object, name: str, protocol: int) -> None:
    found = read_inert(pickle.dumps({"lr": 0.1, "it": value, "after": [1, 2]}, protocol))

    assert found["lr"] == 0.1 and found["after"] == [1, 2]
    assert isinstance(found["it"], Foreign) and found["it"].name == name


def test_an_array_is_named_by_its_class() -> None:
    found = read_inert(pickle.dumps({"mean": np.zeros(3)}, 2))

    assert found["mean"].name.startswith("numpy.ndarray")


def test_ordered_dicts_are_dicts() -> None:
    ordered = collections.OrderedDict(a=1, b=collections.OrderedDict())
    ordered.note = "state"  # as a state_dict has _metadata

    assert read_inert(pickle.dumps(ordered, 2)) == {"a": 1, "b": {}}
    assert read_inert(pickle.dumps(collections.defaultdict(list, a=[1]))) == {"a": [1]}


SYSTEM = b"cposix\nsystem\n"
COMMAND = b"X\x0e\x00\x00\x00touch executed"

HOSTILE = {
    "REDUCE of os.system": b"\x80\x02" + SYSTEM + COMMAND + b"\x85R.",
    "INST of os.system": b"\x80\x02(" + COMMAND + b"iposix\nsystem\n.",
    "OBJ of os.system": b"\x80\x02(" + SYSTEM + COMMAND + b"o.",
    "NEWOBJ of a class": b"\x80\x02csubprocess\nPopen\n" + COMMAND + b"\x85\x81.",
    "NEWOBJ_EX of a class": b"\x80\x04csubprocess\nPopen\n" + COMMAND + b"\x85}\x92.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + COMMAND + b"\x85R.",
    "a module that is not there": b"\x80\x02cno_such_module_at_all\nf\n)R.",
    "a module that runs when it is imported": b"\x80\x02cthis\ns\n.",
    "an attribute of an attribute": b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93)R.",
    "eval in a state": b"\x80\x02c__main__\nX\n)\x81}X\x01\x00\x00\x00acbuiltins\neval\n" + COMMAND + b"\x85Rsb.",
    "a persistent id in a persistent id": b"\x80\x02" + SYSTEM + COMMAND + b"\x85RQQ.",
    "a persistent id of text": b"Pposix.system\n.",
    "the result of a call is called": b"\x80\x02" + SYSTEM + COMMAND + b"\x85R)R.",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_is_run_or_imported(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("os.system was called"))
    before = set(sys.modules)
    found = read_inert(HOSTILE[case])

    assert isinstance(found, Foreign) or type(found).__name__ == "_PersistentId"
    assert list(tmp_path.iterdir()) == [] and set(sys.modules) == before


REFUSED = {
    "an extension code": (b"\x80\x02\x82\x01.", "opcode EXT1 at byte 2 is refused"),
    "an extension code of two bytes": (b"\x80\x02\x83\x01\x00.", "opcode EXT2"),
    "an extension code of four bytes": (b"\x80\x02\x84\x01\x00\x00\x00.", "opcode EXT4"),
    "a buffer outside": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    "a call of a number": (b"\x80\x02K\x01)R.", "a int is called"),
    "arguments that are no tuple": (b"\x80\x02cbuiltins\nlist\n]R.", "a Foreign is called|is called"),
    "items of a tuple": (b"\x80\x02)K\x01a.", "items are appended to a tuple"),
    "entries of a list": (b"\x80\x02]K\x01K\x02s.", "items are set in a list"),
    "a list as a key": (b"\x80\x02}]K\x02s.", "not a complete pickle .TypeError"),
    "a global without a name": (b"\x80\x04K\x01K\x02\x93.", "whose name is not text"),
    "a memo that is not set": (b"\x80\x02h\x05.", "not a complete pickle .KeyError"),
    "an empty stack": (b"\x80\x02.", "not a complete pickle"),
    "a mark that is not there": (b"\x80\x02l.", "not a complete pickle"),
    "no end": (b"\x80\x02K\x01", "not a complete pickle"),
    "nothing": (b"", "not a complete pickle"),
    "a string longer than the file": (b"\x80\x02X\xff\xff\xff\x7fa.", "not a complete pickle"),
    "bytes of 4 EB": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.", "not a complete pickle"),
    "an integer of 100 kB": (b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x01" * 100_000 + b".", "4,096 bytes"),
    "a list that is copied again and again": (
        b"\x80\x02ccollections\nOrderedDict\nq\x00]("
        + b"NN\x86" * 5000
        + b"eq\x01"
        + b"0h\x00h\x01\x85R" * 5000
        + b".",
        "copied again and again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_checkpoint_needs_is_refused(case: str) -> None:
    content, match = REFUSED[case]

    with pytest.raises(PickleError, match=match):
        read_inert(content)


def test_a_memo_index_of_four_billion_takes_no_memory() -> None:
    assert read_inert(b"\x80\x02K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 7


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"q\x01}h\x01K\x01s.",  # sixty tuples, each twice, as a key
        b"\x80\x02](" + b"K\x01" * 200_000 + b"e.",
        b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    ],
    ids=["nested keys", "a long list", "nested marks", "nested lists"],
)
def test_time_grows_with_the_size_only(content: bytes) -> None:
    start = time.process_time()
    read_inert(content)
    assert time.process_time() - start < 20


def test_damaged_pickles_are_refused_by_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from random import Random

    documents = [
        {"a": Path("x"), "b": [1, {"c": (2, 3)}]},
        collections.OrderedDict(a=np.zeros(3)),
        Attributes(a=Colour.GREEN),
    ]
    files = [pickle.dumps(document, protocol) for document in documents for protocol in (2, 4)]
    for case in range(1500):
        random = Random(f"inert/{case}")
        try:
            read_inert(damage_pickle(random.choice(files), files, random))
        except PickleError:
            continue


def test_pathlib_s_own_names_differ_by_version_only() -> None:
    assert read_inert(pickle.dumps(pathlib.PurePosixPath("a/b"))).name.startswith("pathlib")
