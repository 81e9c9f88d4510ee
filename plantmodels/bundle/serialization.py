"""Strict JSON: the one parser of text, and frozen dataclasses to JSON values and back.

Nothing is guessed: a repeated key, NaN, and a missing, surplus or mistyped value are errors.

>>> from plantmodels.bundle.manifest import FileDigest
>>> encode(FileDigest(3, "ab"))
{'size_bytes': 3, 'sha256': 'ab'}
>>> decode_text(FileDigest, '{"size_bytes": "3", "sha256": "ab"}', "a.onnx")
Traceback (most recent call last):
    ...
ValueError: a.onnx.size_bytes: expected an integer, got '3'
"""

import dataclasses
import json
import math
import sys
import types
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def parse_json_text(text: str) -> Any:
    """Return the value of JSON text.

    Raises:
        ValueError: the text is not JSON, repeats a key, holds NaN or infinity, or is nested too deeply.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_refuse_repeated_keys,
            parse_constant=_refuse_constant,
            parse_float=_parse_finite_float,
        )
    except RecursionError as error:
        raise ValueError(f"nested too deeply ({error})") from error


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        repeated = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"key {repeated!r} is repeated")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parse_finite_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


_PLAIN = frozenset({types.NoneType, bool, int, str})
"""Types whose values are JSON as they are."""


def encode(value: object) -> Any:
    """Return the JSON form of a number, text, None, a mapping, a sequence or a dataclass of these.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON has no form for.
        TypeError: the value has another type.
    """
    if type(value) in _PLAIN or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a JSON number; use None for what could not be measured")
        return value
    kind: Any = type(value)
    if (names := _list_fields(kind)) is not None:
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form here")


def replace_non_finite(value: float) -> float | None:
    """Return the value, or None for NaN and infinity, which a report cannot hold."""
    return float(value) if math.isfinite(value) else None


def decode_text(kind: type[_T], text: str, where: str) -> _T:
    """Return a dataclass from JSON text, as `parse_json_text` and `decode` read it.

    Raises:
        ValueError: names the place, what was expected and what came.
    """
    return decode(kind, parse_json_text(text), where)


def decode(kind: type[_T], document: object, where: str) -> _T:
    """Return a dataclass, or a value of any type that its fields may have, from its JSON form.

    Args:
        kind: a frozen dataclass; or bool, int, float, str, a Literal, a union, `tuple[X, ...]` or `Mapping[str, X]`.
        document: the JSON value.
        where: the value's name in error messages.

    Raises:
        ValueError: names the place, what was expected and what came.
    """
    wanted: Any = kind
    decode_one = _decode_value if _list_fields(wanted) is None else _decode_record
    result: _T = decode_one(wanted, document, where)
    return result


def _decode_record(kind: Any, document: object, where: str) -> Any:
    hints, names = _find_types(kind), _list_fields(kind) or ()
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


@cache
def _list_fields(kind: Any) -> tuple[str, ...] | None:
    """Return the names of a dataclass's fields; None for any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


@cache
def _take_apart(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return origin and arguments of a generic type."""
    return get_origin(kind), get_args(kind)


@cache
def _find_types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a dataclass; looking it up takes longer than decoding the fields."""
    return get_type_hints(kind)


def _decode_value(kind: Any, document: object, where: str) -> Any:
    origin, arguments = _take_apart(kind)
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
    raise ValueError(f"{where}: expected {_name_type(kind)}, got {document!r:.80}")


def _is_finite_number(value: int | float) -> bool:
    return not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _decode_optional(kinds: tuple[Any, ...], document: object, where: str) -> Any:
    if document is None and types.NoneType in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not types.NoneType)
    return decode(kind, document, where)


def _name_type(kind: Any) -> str:
    names = {float: "a finite number", int: "an integer", str: "text", bool: "true or false"}
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if origin is tuple:
        return "a list"
    return names.get(kind, "an object")
