"""What the pickle reader reads, and what it refuses: attacks by every way that a pickle has."""

import collections
import copyreg
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.plain_pickle import load_plain_pickle
from plantmodels.errors import DetectorError


def rename_core(data: bytes, core: str) -> bytes:
    """The same pickle as another numpy would write it; names are length-prefixed from protocol 4 on."""
    if data[1] < 4:
        return data.replace(b"cnumpy._core.", b"c" + core.encode() + b".")
    assert data[2:3] == b"\x95"
    data = data[:2] + data[11:]  # without its one frame, whose length would be another
    for module in ("multiarray", "numeric"):
        old, new = (f"{name}.{module}".encode() for name in ("numpy._core", core))
        data = data.replace(b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new)
    return data


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4"])
def test_any_protocol_numpy_name_and_byte_order(protocol: int, core: str, dtype: str) -> None:
    mean = np.arange(4, dtype=dtype)
    inv_cov = np.asfortranarray(np.diag([1, 2, 3, 4.0]).astype(dtype))
    document = {"mean": mean, "inv_cov": inv_cov, "threshold": np.float64(3.5), "normalize": np.bool_(True)}
    document |= {"fit": {"images": np.int64(-70), "share": np.float32(0.5), "no": None}}
    plain = load_plain_pickle(rename_core(pickle.dumps(document, protocol), core))

    np.testing.assert_array_equal(plain["mean"], mean)
    np.testing.assert_array_equal(plain["inv_cov"], inv_cov)
    assert plain["threshold"] == 3.5
    assert plain["normalize"] is True
    assert plain["fit"] == {"images": -70, "share": 0.5, "no": None}


def test_large_arrays_that_pickle_writes_outside_its_frames() -> None:
    array = np.random.default_rng(0).normal(size=(300, 300))
    plain = load_plain_pickle(pickle.dumps({"a": array, "b": array, "c": array.T}, 5))

    np.testing.assert_array_equal(plain["a"], array)
    np.testing.assert_array_equal(plain["b"], array)
    np.testing.assert_array_equal(plain["c"], array.T)


# Pickles by hand. A frame is optional, so that the attacks below are bare opcodes.


def proto(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


F8 = name("numpy", "dtype") + text("f8") + b"\x85R"
RECONSTRUCT = name("numpy._core.multiarray", "_reconstruct")
FROM_BUFFER = name("numpy._core.numeric", "_frombuffer")
RAW = b"C\x08" + bytes(8)


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Subclass(np.ndarray):
    pass


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that an executed attack would have made."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "match"),
    [
        (os.system, "names (posix|nt).system"),
        (eval, "names (builtins|__builtin__).eval"),
        (open, "names (_?io|__builtin__).open"),
        (getattr, "names (builtins|__builtin__).getattr"),
        (np.frombuffer, "names numpy"),
        (np.load, "names numpy"),
        (np.fromfile, "names numpy"),
    ],
)
def test_a_call_is_refused_by_name(canary: Path, protocol: int, function, match: str) -> None:
    attack = pickle.dumps({"mean": Reduced(function, f"touch {canary}")}, protocol)

    with pytest.raises(DetectorError, match=rf"{match}.*refused"):
        load_plain_pickle(attack)


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("numpy", "ndarray.__class__"),
        ("numpy", "dtype.__base__.__subclasses__"),
        ("numpy._core", "multiarray._reconstruct"),
        ("numpy._core.multiarray", "_reconstruct.__globals__"),
        ("numpy._core.numeric", "_frombuffer.__globals__"),
        ("numpy.core", "os"),
        ("numpy.core.multiarray", "_reconstruct "),
        ("numpy._core.multiarray.", "scalar"),
        ("Numpy", "dtype"),
        ("os", "system"),
        ("_codecs", "decode"),
        ("copyreg", "_reconstructor"),
    ],
)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL"])
def test_only_the_exact_names_are_answered(module: str, attribute: str, opcode: str) -> None:
    named = name(module, attribute) if opcode == "GLOBAL" else text(module) + text(attribute) + b"\x93"

    with pytest.raises(DetectorError, match="which plain arrays do not need: refused"):
        load_plain_pickle(proto(named))


def test_the_extension_registry_is_refused_with_a_warm_cache(canary: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    copyreg._extension_cache[240] = os.system  # as after any earlier, honest, use
    try:
        attack = proto(b"\x82\xf0" + text(f"touch {canary}") + b"\x85R", protocol=2)
        assert pickle.loads(proto(b"\x82\xf0", protocol=2)) is os.system  # the hole is there
        with pytest.raises(DetectorError, match="opcode EXT1 at byte 2 is refused"):
            load_plain_pickle(attack)
    finally:
        copyreg.remove_extension("os", "system", 240)
        copyreg._extension_cache.pop(240, None)


STATEFUL = [FROM_BUFFER, RECONSTRUCT, name("numpy", "dtype"), name("numpy", "ndarray"), name("_codecs", "encode")]


@pytest.mark.parametrize("target", STATEFUL, ids=lambda target: target.decode().split("\n")[1])
@pytest.mark.parametrize("slots", [False, True])
def test_the_state_of_a_function_cannot_be_set(target: bytes, slots: bool) -> None:
    defaults = b"}" + text("__defaults__") + b"N\x85s"
    state = b"N" + defaults + b"\x86" if slots else defaults

    with pytest.raises(DetectorError, match="sets the state of a function is refused"):
        load_plain_pickle(proto(target + state + b"b"))


def test_a_direct_array_of_8_gb_is_not_reserved() -> None:
    attack = proto(name("numpy", "ndarray") + b"J" + (2**30).to_bytes(4, "little") + b"\x85\x85R")
    assert len(attack) < 40

    tracemalloc.start()
    try:
        with pytest.raises(DetectorError, match="not callable"):
            load_plain_pickle(attack)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 1], dtype=object),
        np.array(["a"]),
        np.array([b"a"]),
        np.array([1j]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.zeros(1, dtype=[("a", "f8")]),
        np.zeros(1, dtype="V8"),
        np.array([Reduced(os.system, "true")], dtype=object),
        np.zeros(1, dtype=np.longdouble),
        np.zeros(1, dtype=np.uint64),
    ],
    ids=lambda array: str(array.dtype),
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_anything_but_plain_numbers_are_refused(array: np.ndarray, protocol: int) -> None:
    with pytest.raises(DetectorError, match="refused"):
        load_plain_pickle(pickle.dumps({"mean": array}, protocol))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2).view(Subclass),
        np.ma.masked_array([1.0]),
        np.rec.array([(1.0,)], dtype=[("a", "f8")]),
        [1],
        {1},
        frozenset({1}),
        (1, 2),
        b"raw",
        bytearray(b"raw"),
        1j,
        collections.OrderedDict(a=1),
        np.dtype("f8"),
        np.ndarray,
        {"deeper": {"too deep": {"far too deep": 1}}},
        {1: "a key that is no text"},
        {("a",): 1},
        {None: 1},
        range(3),
        Path("/etc/passwd"),
        ...,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_beyond_plain_ones_are_refused(value: object) -> None:
    with pytest.raises(DetectorError, match=r"refused|nested too deeply|keys must be text"):
        load_plain_pickle(pickle.dumps({"fit": value}))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"Pa\n", "opcode PERSID"),
        (text("id") + b"Q", "opcode BINPERSID"),
        (b"(ios\nsystem\n", "opcode INST"),
        (b"(" + name("os", "system") + b"o", "opcode OBJ"),
        (name("numpy", "ndarray") + b")\x81", "opcode NEWOBJ"),
        (name("numpy", "ndarray") + b")}\x92", "opcode NEWOBJ_EX"),
        (b"\x83\x01\x00", "opcode EXT2"),
        (b"\x84\x01\x00\x00\x00", "opcode EXT4"),
        (b"\x8b\x04\x00\x00\x00" + bytes(4), "opcode LONG4"),
        (b"I1\n", "opcode INT"),
        (b"F1.5\n", "opcode FLOAT"),
        (b"L1L\n", "opcode LONG"),
        (b"S'a'\n", "opcode STRING"),
        (b"Va\n", "opcode UNICODE"),
        (b"N2", "opcode DUP"),
        (b"NN0", "opcode POP"),
        (b"(1", "opcode POP_MARK"),
        (b"]", "opcode EMPTY_LIST"),
        (b"\x8f", "opcode EMPTY_SET"),
        (b"\x97", "opcode NEXT_BUFFER"),
        (b"N\x98", "opcode READONLY_BUFFER"),
        (b"", "not a pickle of plain arrays"),
        (b"N", "expected a pickled dict, got NoneType"),
        (b"K\x01", "expected a pickled dict, got int"),
        (b"}N", "expected a pickled dict, got NoneType"),
        (b"}Ns", "not a pickle of plain arrays"),
        (b"(u", "not a pickle of plain arrays"),
        (b"NNR", "not a pickle of plain arrays"),
        (b"})R", "not a pickle of plain arrays"),
        (b"NNb", "expected a pickled dict, got NoneType"),
        (b"}}b", "not a pickle of plain arrays|expected"),
        (text("a") + text("b") + b"\x93", "names a.b"),
        (b"NN\x93", "not a pickle of plain arrays"),
        (b"}K\x01Ns", "keys must be text"),
        (b"}q\x00" + text("self") + b"h\x00s", "used twice"),
        (b"h\x07", "unset"),
        (b"j\xff\xff\xff\xff", "unset"),
        (b"g9\n", "unset"),
        (b"}r\xff\xff\xff\x7f", "memo index 2,147,483,647 is refused"),
        (b"}p999999\n", "memo index 999,999 is refused"),
        (b"}p-1\n", "not a pickle of plain arrays"),
        (b"\x95" + b"\xff" * 7 + b"\x7f}", "not a (whole )?pickle"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f}", "not a complete pickle"),
        (b"B\xff\xff\xff\x7f}", "not a complete pickle"),
        (b"\x80\xff}", "not a pickle of plain arrays"),
        (F8, "expected a pickled dict|refused"),
        (name("numpy", "dtype") + text("O8") + b"\x85R", "dtype 'O8' is refused"),
        (name("numpy", "dtype") + b"K\x08\x85R", "dtype 8 is refused"),
        (name("numpy", "dtype") + b")R", "not a pickle of plain arrays"),
        (F8 + b"K\x03" + text("x") + b"\x86b", "dtype state is refused"),
        (F8 + b"Nb", "dtype state is refused"),
        (RECONSTRUCT + b"NNN\x87R", "arrays of a subclass are refused"),
        (RECONSTRUCT + name("numpy", "ndarray") + b"NN\x87RNb", "array state is refused"),
        (RECONSTRUCT + name("numpy", "ndarray") + b"NN\x87R", "is refused"),
        (FROM_BUFFER + b"(NNNNtR", "array content is refused"),
        (FROM_BUFFER + b"(" + RAW + F8 + b"K\x02\x85" + text("C") + b"tR", "not a pickle of plain arrays"),
        (FROM_BUFFER + b"(" + RAW + F8 + b"J\xff\xff\xff\xff\x85" + text("C") + b"tR", "array shape"),
        (FROM_BUFFER + b"(" + RAW + F8 + b"K\x01" + text("C") + b"tR", "array shape 1 is refused"),
        (FROM_BUFFER + b"(" + RAW + F8 + b"K\x01\x85" + text("K") + b"tR", "array content is refused"),
        (FROM_BUFFER + b"(" + RAW + F8 + b"(" + b"K\x01" * 70 + b"t" + text("C") + b"tR", "not a pickle of plain"),
        (name("_codecs", "encode") + b"\x8c\x03\xe2\x82\xac" + text("latin1") + b"\x86R", "not a pickle of"),
        (name("_codecs", "encode") + text("a") + text("idna") + b"\x86R", "latin1 text only"),
        (name("_codecs", "encode") + b"K\x01\x85R", "latin1 text only"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_opcodes_and_values_out_of_place_are_refused(body: bytes, match: str) -> None:
    with pytest.raises(DetectorError, match=match):
        load_plain_pickle(proto(body))


def nested_tuples(depth: int) -> bytes:
    """Each tuple holds the one before twice: `2 ** depth` leaves in five bytes a level."""
    return b"N\x94" + b"".join(b"h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"\x86\x94" for i in range(depth))


def nested_dicts() -> bytes:
    keys = [text(f"k{i}") for i in range(800)]
    levels = [b"N", b"h\x00", b"h\x01"]
    return b"".join(b"}\x94(" + b"".join(key + value for key in keys) + b"u" for value in levels)


def many_copies(function: bytes, rest: bytes) -> bytes:
    """One raw text or buffer of 4 MiB, handed to `function` 600 times."""
    raw = (b"B" if function == FROM_BUFFER else b"X") + (2**22).to_bytes(4, "little") + b"a" * 2**22 + b"\x94"
    return function + b"\x94" + raw + F8 + b"\x94" + b"".join(b"h\x00(h\x01" + rest + b"tR" for _ in range(600))


BOMBS = {
    "hashing a tuple": b"}" + nested_tuples(60) + b"Ns",
    "printing a dtype": name("numpy", "dtype") + nested_tuples(60) + b"\x85R",
    "printing a shape": FROM_BUFFER + b"(" + RAW + F8 + nested_tuples(60) + text("C") + b"tR",
    "dicts of dicts of dicts": nested_dicts(),
    "comparing deep tuples": b"}()" + b"\x85" * 1800 + b"N)" + b"\x85" * 1800 + b"Nu",
    "copies of an array": many_copies(FROM_BUFFER, b"h\x02J" + (2**19).to_bytes(4, "little") + b"\x85" + text("C")),
    "copies of a text": many_copies(name("_codecs", "encode"), text("latin1")),
    "many opcodes": b"N" * 6000,
    "deep dicts": b"}" + (text("a") + b"}") * 1500 + b"s" * 1500,
    "long integers": b"}" + text("a") + b"\x8a\xff" + b"\x7f" * 255 + b"s",
}


@pytest.mark.timeout(60, method="thread")
@pytest.mark.parametrize("attack", BOMBS)
def test_a_small_file_can_take_neither_time_nor_memory(attack: str) -> None:
    data = proto(BOMBS[attack])
    tracemalloc.start()
    try:
        if attack == "long integers":  # up to 255 bytes: harmless, a number like any other
            assert load_plain_pickle(data)["a"] > 2**2000
        else:
            with pytest.raises(DetectorError):
                load_plain_pickle(data)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(data) + 2**22
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def small_pickle() -> bytes:
    return pickle.dumps(
        {
            "mean": np.array([1.5, -2.0]),
            "inv_cov": np.array([[2.0, 0.5], [0.5, 1.0]]),
            "threshold": 3.0,
            "normalize": False,
            "method": "mahalanobis",
            "fit": {"fit_images": 70, "shrinkage": np.float64(0.1)},
        },
        protocol=4,
    )


def test_a_pickle_cut_off_anywhere_is_refused(small_pickle: bytes) -> None:
    load_plain_pickle(small_pickle)
    for length in range(len(small_pickle)):
        with pytest.raises(DetectorError, match="not a complete pickle"):
            load_plain_pickle(small_pickle[:length])


@pytest.mark.parametrize("extra", [b".", b"\n", b"second"])
def test_bytes_after_the_end_are_refused(small_pickle: bytes, extra: bytes) -> None:
    data = small_pickle + (small_pickle if extra == b"second" else extra)

    with pytest.raises(DetectorError, match="bytes follow the end of the pickle"):
        load_plain_pickle(data)


@settings(max_examples=400, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, for absurd numbers: not the reader's business
def test_changed_bytes_load_or_are_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, small_pickle: bytes, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(small_pickle)
    for position, value in edits:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.pkl"
    path.write_bytes(data)
    try:
        detector = read_detector(path)
    except DetectorError:
        return
    assert detector.embedding_dim in (1, 2)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60).map(lambda body: proto(body)))
def test_random_bytes_load_or_are_refused_and_nothing_else(data: bytes) -> None:
    try:
        load_plain_pickle(data)
    except DetectorError:
        return


STRUCTURE = [b"N", b"}", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"u", b"s", b"d", b"R", b"b", b"\x93", b"\x88"]
MEMO = [b"\x94", b"h\x00", b"h\x01", b"q\x05"]
CONTENT = [b"K\x01", text("a"), text("f8"), text("C"), RAW, F8, FROM_BUFFER, RECONSTRUCT, name("numpy", "ndarray")]
NAMED = [name("numpy._core.multiarray", "scalar"), name("_codecs", "encode")]
OPCODES = st.sampled_from([*STRUCTURE, *MEMO, *CONTENT, *NAMED])


@settings(max_examples=500, deadline=None)
@given(st.lists(OPCODES, max_size=25).map(lambda parts: proto(b"".join(parts))))
def test_random_opcodes_load_or_are_refused_and_nothing_else(data: bytes) -> None:
    try:
        load_plain_pickle(data)
    except DetectorError:
        return
