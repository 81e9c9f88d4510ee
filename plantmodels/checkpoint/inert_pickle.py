"""Reads a pickle as data: whatever it names is never imported and never called.

Plain values and tensors come out as they are. Every other object becomes a `Foreign` that only knows its name, so that
a checkpoint may hold any object beside its weights.

>>> import pickle
>>> read_inert(pickle.dumps({"lr": 0.1, "loss": print}))
{'lr': 0.1, 'loss': Foreign('builtins.print')}
"""

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

_MAX_INTEGER_BYTES: Final = 4096
"""Longest integer: hashing a longer one again and again would take minutes."""

_HELPERS: Final = (
    "copyreg._reconstructor",
    "copyreg.__newobj__",
    "builtins.getattr",
    "torch._tensor._rebuild_from_type_v2",
)
"""Functions whose first argument says more about the object than their own name does."""


_RENAMED: Final = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}
"""Modules that pickles of protocols 0 to 2 call by their names in Python 2."""


class PickleError(ValueError):
    """The bytes are not a complete pickle, or use an opcode that no checkpoint needs."""


class Foreign:
    """Stands for any object that is not plain data; all that is known of it is what the pickle called it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        """Keep the name of the global that would have made the object."""
        self.name = name

    def __repr__(self) -> str:
        """Return the name."""
        return f"Foreign({self.name!r})"


class Global(Foreign):
    """A class or function that a pickle names."""

    __slots__ = ()


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Where the numbers of a tensor lie, as the pickle claims it; nothing is checked here.

    Attributes:
        storage: the persistent id: ("storage", type, key, location, number of elements).
        offset: index of the first element.
        size: the shape.
        stride: distance of neighbours along each dimension, in elements.
        dtype: name of the dtype, where the storage has none.
    """

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: str = ""


@dataclass(frozen=True, eq=False)
class _PersistentId:
    value: object


def read_inert(content: bytes) -> Any:
    """Return the object in a pickle: plain values, dicts, lists, tuples, `StoredTensor` and `Foreign`.

    Memory and time grow no faster than the pickle: nothing is copied that the pickle names more than once.

    Raises:
        PickleError: names the opcode or the place that is wrong.
    """
    machine = _Machine(len(content))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escape sequences in damaged text
            return _run(machine, content)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise PickleError(f"not a complete pickle ({type(error).__name__}: {error})") from error


def _run(machine: "_Machine", content: bytes) -> Any:
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name == "STOP":
            return machine.pop()
        step = _STEPS.get(opcode.name)
        if step is None:
            raise PickleError(f"pickle opcode {opcode.name} at byte {position} is refused")
        step(machine, argument)
    raise PickleError("not a complete pickle (it does not end)")


@dataclass
class _Machine:
    """The stack and the memo of a pickle that is being read."""

    budget: int
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Return everything that was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def spend(self, elements: int) -> None:
        """Count elements that are copied; more than the pickle has bytes would be a bomb."""
        self.budget -= elements
        if self.budget < 0:
            raise PickleError("the same list is copied again and again: refused")


def _push(machine: _Machine, value: Any) -> None:
    if type(value) is int and value.bit_length() > 8 * _MAX_INTEGER_BYTES:
        raise PickleError("an integer of more than 4,096 bytes is refused")
    machine.stack.append(value)


def _push_new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _collect(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        items = machine.pop_mark()
        machine.stack.append(make(items))

    return step


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        items = [machine.pop() for _ in range(count)][::-1]
        machine.stack.append(tuple(items))

    return step


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _extend(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Foreign):
        raise PickleError(f"items are appended to a {type(target).__name__}")


def _update(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Foreign):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise PickleError(f"items are set in a {type(target).__name__}")
    target.update(_make_pairs(zip(items[::2], items[1::2], strict=True)))


def _make_pairs(pairs: Any) -> dict[Any, Any]:
    return {_make_key(key): value for key, value in pairs}


def _make_key(key: Any) -> Any:
    """Return a key that can be hashed quickly: sixty nested tuples, each used twice, would take forever."""
    if isinstance(key, tuple) and any(isinstance(item, tuple) for item in key):
        return Foreign("builtins.tuple")
    return key


def _name_global(machine: _Machine, argument: Any) -> None:
    module, _, name = str(argument).partition(" ")
    machine.stack.append(Global(f"{_RENAMED.get(module, module)}.{name}"))


def _name_stacked_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleError("a global whose name is not text is refused")
    machine.stack.append(Global(f"{module}.{name}"))


def _make_instance(machine: _Machine, function: Any, arguments: Any) -> None:
    if not isinstance(function, Foreign) or not isinstance(arguments, tuple):
        raise PickleError(f"a {type(function).__name__} is called")
    name = function.name
    known = _KNOWN.get(name) if isinstance(function, Global) else None
    machine.stack.append(_name_result(name, arguments) if known is None else known(machine, name, arguments))


def _name_result(name: str, arguments: tuple[Any, ...]) -> Any:
    if arguments and isinstance(arguments[0], Foreign) and arguments[0].name != name:
        return Foreign(arguments[0].name if name in _HELPERS else f"{arguments[0].name}, by {name}")
    return Foreign(name)


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    _make_instance(machine, function, arguments)


def _new_object_with_keywords(machine: _Machine, _: Any) -> None:
    machine.pop()
    _reduce(machine, None)


def _make_old_instance(machine: _Machine, argument: Any) -> None:
    machine.pop_mark()
    _name_global(machine, argument)
    _make_instance(machine, machine.pop(), ())


def _make_old_object(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    _make_instance(machine, items[0], ())


def _ignore_state(machine: _Machine, _: Any) -> None:
    """Drop the state of an object: what is not plain data has none here, and an OrderedDict's is only its metadata."""
    machine.pop()
    if not machine.stack:
        raise PickleError("the state of nothing is set")


def _drop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.pop()
    else:
        machine.pop_mark()


def _drop_to_mark(machine: _Machine, _: Any) -> None:
    machine.pop_mark()


def _remember(machine: _Machine, index: Any) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _recall(machine: _Machine, index: Any) -> None:
    machine.stack.append(machine.memo[index])


def _make_dict(machine: _Machine, name: str, arguments: tuple[Any, ...]) -> Any:
    pairs = arguments[0] if arguments else ()
    if isinstance(pairs, Foreign) or pairs is None:  # the factory of a defaultdict
        return {}
    if isinstance(pairs, dict):
        return pairs
    machine.spend(len(pairs))
    return _make_pairs(pairs)


def _make_tensor(machine: _Machine, name: str, arguments: tuple[Any, ...]) -> Any:
    storage = arguments[0]
    if not isinstance(storage, _PersistentId):
        return Foreign(name)
    dtype = arguments[6].name if name.endswith("_v3") and isinstance(arguments[6], Global) else ""
    offset, size, stride = arguments[1:4]
    return StoredTensor(storage.value, offset, size, stride, dtype)


def _unwrap_tensor(machine: _Machine, name: str, arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if isinstance(arguments[0], StoredTensor) else _name_result(name, arguments)


def _make_typed_tensor(machine: _Machine, name: str, arguments: tuple[Any, ...]) -> Any:
    """Return a tensor that has attributes; of a subclass, whose numbers may mean something else, only the name."""
    function, kind, inner = arguments[:3]
    if isinstance(kind, Global) and kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        _make_instance(machine, function, inner)
        return machine.pop()
    return Foreign(kind.name if isinstance(kind, Foreign) else name)


_KNOWN: Final[dict[str, Callable[[_Machine, str, tuple[Any, ...]], Any]]] = {
    "collections.OrderedDict": _make_dict,
    "collections.defaultdict": _make_dict,
    "torch.Size": lambda _, name, arguments: arguments[0],
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor_v3": _make_tensor,
    "torch._utils._rebuild_parameter": _unwrap_tensor,
    "torch._utils._rebuild_parameter_with_state": _unwrap_tensor,
    "torch._tensor._rebuild_from_type_v2": _make_typed_tensor,
}
"""The globals that plain data and tensors need. Each is replaced by a function of this module."""

_STEPS: Final[dict[str, Callable[[_Machine, Any], None]]] = {
    **dict.fromkeys(
        "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split(),
        _push,
    ),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "NONE": _push_new(lambda: None),
    "NEWTRUE": _push_new(lambda: True),
    "NEWFALSE": _push_new(lambda: False),
    "EMPTY_LIST": _push_new(list),
    "EMPTY_DICT": _push_new(dict),
    "EMPTY_TUPLE": _push_new(tuple),
    "EMPTY_SET": _push_new(lambda: Foreign("builtins.set")),
    "MARK": _mark,
    "LIST": _collect(list),
    "TUPLE": _collect(tuple),
    "FROZENSET": _collect(lambda items: Foreign("builtins.frozenset")),
    "DICT": _collect(lambda items: _make_pairs(zip(items[::2], items[1::2], strict=True))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": lambda machine, _: _extend(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _extend(machine, machine.pop_mark()),
    "ADDITEMS": lambda machine, _: _extend(machine, machine.pop_mark()),
    "SETITEM": lambda machine, _: _update(machine, [machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: _update(machine, machine.pop_mark()),
    "GLOBAL": _name_global,
    "STACK_GLOBAL": _name_stacked_global,
    "INST": _make_old_instance,
    "OBJ": _make_old_object,
    "NEWOBJ_EX": _new_object_with_keywords,
    "BUILD": _ignore_state,
    "BINPERSID": lambda machine, _: machine.stack.append(_PersistentId(machine.pop())),
    "PERSID": lambda machine, argument: machine.stack.append(_PersistentId(argument)),
    "POP": _drop,
    "POP_MARK": _drop_to_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
}
"""Every opcode but those of the extension registry and of buffers outside the pickle."""
