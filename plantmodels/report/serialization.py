"""Frozen dataclasses to plain JSON values and back, strictly: no missing, surplus or mistyped value passes.

>>> decode(Proportion, encode(Proportion(3, 4)), "share") == Proportion(3, 4)  # doctest: +SKIP
True
"""

import dataclasses
import math
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def encode(value: object) -> Any:
    """JSON form of numbers, text, None, mappings, sequences and dataclasses of these.

    Raises:
        ValueError: NaN or infinity, which JSON cannot hold.
        TypeError: any other type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a JSON number; use None for what could not be measured")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form here")


def replace_non_finite(value: float) -> float | None:
    """The value, or None for NaN and infinity: what a report can hold."""
    return float(value) if math.isfinite(value) else None


def decode(kind: type[_T], document: object, where: str) -> _T:
    """Builds a dataclass, or any type that its fields may have, from its JSON form.

    Args:
        kind: a frozen dataclass; or bool, int, float, str, a Literal, a union, `tuple[X, ...]`,
            `Mapping[str, X]`.
        document: the JSON value.
        where: what to call it in an error.

    Raises:
        ValueError: naming the place, what was expected and what came.
    """
    decode_one = _decode_record if dataclasses.is_dataclass(kind) else _decode_value
    result: _T = decode_one(kind, document, where)
    return result


def _decode_record(kind: Any, document: object, where: str) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(document, dict):
        raise ValueError(f"{where}: expected an object with {', '.join(names)}, got {document!r:.80}")
    missing, surplus = set(names) - set(document), set(document) - set(names)
    if missing or surplus:
        what = f"{min(missing)!r} is missing" if missing else f"{min(surplus)!r} is unknown"
        raise ValueError(f"{where}: {what}; expected {', '.join(names)}")
    values = {name: decode(hints[name], document[name], f"{where}.{name}") for name in names}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _decode_value(kind: Any, document: object, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal and document in arguments and isinstance(document, str):
        return document
    if origin in (Union, types.UnionType):
        return _decode_optional(arguments, document, where)
    if origin is tuple and isinstance(document, list):
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(document))
    if origin is Mapping and isinstance(document, dict):
        return {key: decode(arguments[1], item, f"{where}[{key!r}]") for key, item in document.items()}
    if kind is float and isinstance(document, int | float) and _is_finite_number(document):
        return float(document)
    if kind in (bool, int, str) and type(document) is kind:
        return document
    raise ValueError(f"{where}: expected {_describe(kind)}, got {document!r:.80}")


def _is_finite_number(value: int | float) -> bool:
    return not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _decode_optional(kinds: tuple[Any, ...], document: object, where: str) -> Any:
    if document is None and types.NoneType in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not types.NoneType)
    return decode(kind, document, where)


def _describe(kind: Any) -> str:
    names = {float: "a finite number", int: "an integer", str: "text", bool: "true or false"}
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if origin is tuple:
        return "a list"
    return names.get(kind, "an object")
