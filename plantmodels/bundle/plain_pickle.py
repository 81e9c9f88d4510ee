"""Reads a pickle of plain dicts, numbers, text and numeric arrays without running anything that it names.

First, every opcode is compared with a list. Then the few NumPy names that plain arrays need are replaced by inert
stand-ins.

>>> import pickle
>>> load_plain_pickle(pickle.dumps({"threshold": 2.5}))
{'threshold': 2.5}
"""

import io
import pickle
import pickletools
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from plantmodels.errors import DetectorError

MAX_PICKLE_OPCODES: Final = 5_000

_ALLOWED_OPCODES: Final = frozenset(
    "PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET "
    "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS "
    "GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
"""The opcodes in pickles of plain dicts and arrays, of protocols 2 to 4 (and 5 in band). No extension registry, no
persistent ids and no instances (INST, OBJ, NEWOBJ)."""

_SHAREABLE: Final = frozenset(
    "GLOBAL STACK_GLOBAL REDUCE SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
"""Opcodes whose result may be used again through the memo. A dict or tuple that is used twice is refused: sixty nested
tuples, each used twice, take forever to hash, and nested dicts take any amount of memory."""

_PICKLE_ERRORS: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def load_plain_pickle(data: bytes) -> dict[str, Any]:
    """Return the dict in a pickle: numbers, text, numeric NumPy arrays, dicts of these, and nothing else.

    Raises:
        DetectorError: names the opcode, global or value that is refused.
    """
    _scan_opcodes(data)
    try:
        document = _PlainUnpickler(data).load()
        plain = _unwrap(document)
    except DetectorError:
        raise
    except _PICKLE_ERRORS as error:
        raise DetectorError(f"not a pickle of plain arrays ({type(error).__name__}: {error})") from error
    if not isinstance(plain, dict):
        raise DetectorError(f"expected a pickled dict, got {type(plain).__name__}")
    return plain


def _scan_opcodes(data: bytes) -> None:
    position, previous = -1, ""
    memo: dict[int, bool] = {}
    try:
        for count, (opcode, argument, start) in enumerate(pickletools.genops(data)):
            if opcode.name not in _ALLOWED_OPCODES:
                raise DetectorError(f"pickle opcode {opcode.name} at byte {start} is refused")
            if count >= MAX_PICKLE_OPCODES:
                raise DetectorError(f"more than {MAX_PICKLE_OPCODES:,} pickle opcodes")
            _check_memo(opcode.name, argument, previous, memo)
            previous = previous if opcode.name == "FRAME" else opcode.name
            position = start or 0
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise DetectorError(f"not a complete pickle ({error})") from error
    if position != len(data) - 1:
        raise DetectorError(f"{len(data) - 1 - position:,} bytes follow the end of the pickle")


def _check_memo(opcode: str, argument: Any, previous: str, memo: dict[int, bool]) -> None:
    """Record in `memo` which of its entries may be used again, and refuse the use of any other entry."""
    if opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        index = len(memo) if opcode == "MEMOIZE" else argument
        if index > MAX_PICKLE_OPCODES:
            raise DetectorError(f"pickle memo index {index:,} is refused")
        memo[index] = previous in _SHAREABLE
    if opcode in ("GET", "BINGET", "LONG_BINGET") and not memo.get(argument):
        raise DetectorError(f"pickle memo index {argument:,} is refused: it is unset, or a dict or tuple used twice")


class _Inert:
    """Base class of the stand-ins. A pickle can neither set their state nor give them attributes."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise DetectorError("a pickle that sets the state of a function is refused")


class _NdarrayToken(_Inert):
    """Stands for the class `numpy.ndarray`, which `_reconstruct` takes; it cannot be called."""

    __slots__ = ()


class _Dtype:
    """A numeric dtype, given by its name. The state that NumPy adds may only set the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, name: object) -> None:
        if not isinstance(name, str) or name not in {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"}:
            raise DetectorError(f"dtype {name!r:.40} is refused: numeric arrays only")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise DetectorError("dtype state is refused")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array under construction; only `_unwrap` makes it a `numpy.ndarray`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise DetectorError("array state is refused")
        _, shape, dtype, fortran, raw = state
        self.value = _make_array(raw, dtype, shape, "F" if fortran else "C")


def _make_array(raw: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise DetectorError("array content is refused: expected bytes of a numeric dtype")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n <= len(raw) for n in shape):
        raise DetectorError(f"array shape {shape!r:.60} is refused")
    return np.frombuffer(raw, dtype=dtype.dtype).reshape(shape, order=order)


class _Reconstruct(_Inert):
    __slots__ = ()

    def __call__(self, array_type: object, shape: object, typecode: object) -> _Array:
        if not isinstance(array_type, _NdarrayToken):
            raise DetectorError("arrays of a subclass are refused")
        return _Array()


class _FromBuffer(_Inert):
    __slots__ = ()

    def __call__(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.value = _make_array(raw, dtype, shape, order)
        return array


class _Scalar(_Inert):
    __slots__ = ()

    def __call__(self, dtype: object, raw: object) -> float | int | bool:
        number: float | int | bool = _make_array(raw, dtype, (1,), "C").item()
        return number


class _MakeDtype(_Inert):
    __slots__ = ()

    def __call__(self, name: object, align: object = False, copy: object = True) -> _Dtype:
        return _Dtype(name)


class _Encode(_Inert):
    """Turns text into bytes, as protocol 2 stores them; never more in total than the file's size."""

    __slots__ = ("_left",)

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise DetectorError("_codecs.encode is accepted for latin1 text only")
        self._left -= len(text)
        if self._left < 0:
            raise DetectorError("the same text is encoded again and again: refused")
        return text.encode("latin1")


_STAND_INS: Final[dict[tuple[str, str], _Inert]] = {
    ("numpy", "ndarray"): _NdarrayToken(),
    ("numpy", "dtype"): _MakeDtype(),
    **{
        (f"{core}.{module}", name): stand_in
        for core in ("numpy.core", "numpy._core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Reconstruct()),
            ("multiarray", "scalar", _Scalar()),
            ("numeric", "_frombuffer", _FromBuffer()),
        )
    },
}


class _PlainUnpickler(pickle.Unpickler):
    """Resolves only the names in `_STAND_INS`, and never to the real callables."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._stand_ins = {**_STAND_INS, ("_codecs", "encode"): _Encode(len(data))}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._stand_ins[module, name]
        except KeyError:
            raise DetectorError(f"pickle names {module}.{name}, which plain arrays do not need: refused") from None


def _unwrap(value: object, depth: int = 0) -> Any:
    if isinstance(value, dict):
        if depth > 2:
            raise DetectorError("dicts are nested too deeply")
        if not all(isinstance(key, str) for key in value):
            raise DetectorError("keys must be text")
        return {key: _unwrap(item, depth + 1) for key, item in value.items()}
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DetectorError(f"a value of type {type(value).__name__.lstrip('_')} is refused: arrays, numbers and text only")
