"""MLflow's JSON forms, as `mlflow models serve` takes them under `/invocations`, without MLflow and pandas.

>>> read_invocation(b'{"instances": ["aGVsbG8=", null]}').images
['aGVsbG8=', None]
>>> read_invocation(b'{"dataframe_split": {"columns": ["image"], "data": [["aGVsbG8="]]}}').images
['aGVsbG8=']
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from plantmodels.bundle.serialization import parse_json_text
from plantmodels.foreign_text import quote_error
from plantmodels.serve.routing import ROUTINGS

IMAGE: Final = "image"
"""Name of the column of images. If there is only one column, it may also be called 0 or "0"."""

_DEFAULTS: Final[Mapping[str, Any]] = {
    "top_k": 0,
    "return_embedding": False,
    "on_error": "row",
    "routing": "hard",
    "as_struct": False,
}
"""The params of a model version's signature with their defaults. Other params are ignored, as by MLflow."""


@dataclass(frozen=True)
class Invocation:
    """What a request asks.

    Attributes:
        images: the images, mostly base64 text; None is a missing one.
        options: what `PlantClassifier.predict` takes beside the images.
        as_struct: whether each row is wrapped as `{"prediction": row}`.
    """

    images: list[Any]
    options: dict[str, Any]
    as_struct: bool


def read_invocation(body: bytes) -> Invocation:
    """Return what a body in one of MLflow's JSON forms asks.

    Raises:
        ValueError: says what is wrong with the body.
    """
    try:
        document = parse_json_text(body.decode())
    except ValueError as error:
        raise ValueError(f"the body is not JSON ({quote_error(error)})") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {_name_type(document)}")
    options = _read_params(document.pop("params", None))
    if len(document) != 1 or (form := next(iter(document))) not in _FORMS:
        found = ", ".join(map(repr, document)) or "none"
        raise ValueError(f"expected exactly one of {', '.join(_FORMS)}, got {found:.200}")
    as_struct = options.pop("as_struct")
    return Invocation(_FORMS[form](document[form]), options, as_struct)


def _read_params(params: Any) -> dict[str, Any]:
    if params is not None and not isinstance(params, dict):
        raise ValueError(f"params must be an object, got {_name_type(params)}")
    found = {name: (params or {}).get(name, default) for name, default in _DEFAULTS.items()}
    for name, default in _DEFAULTS.items():
        if type(found[name]) is not type(default):
            raise ValueError(f"{name} must be {_name_type(default)}, got {found[name]!r:.60}")
    if found["top_k"] < 0:
        raise ValueError(f"top_k must be an integer of at least 0, got {found['top_k']}")
    if found["routing"] not in ROUTINGS:
        raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, got {found['routing']!r:.60}")
    if found["on_error"] not in ("row", "raise"):
        raise ValueError(f"on_error must be one of row, raise, got {found['on_error']!r:.60}")
    return found


def _read_split(table: Any) -> list[Any]:
    if not isinstance(table, dict) or "data" not in table or set(table) - {"columns", "data", "index"}:
        raise ValueError("dataframe_split must be an object of columns, data and, if needed, index")
    rows = table["data"]
    if not isinstance(rows, list):
        raise ValueError(f"the data of dataframe_split must be a list of rows, got {_name_type(rows)}")
    rows = [row if isinstance(row, list) else [row] for row in rows]
    columns = table.get("columns")
    if columns is None:
        columns = list(range(max(map(len, rows), default=0)))
    if not isinstance(columns, list):
        raise ValueError(f"the columns of dataframe_split must be a list, got {_name_type(columns)}")
    if not columns and not rows:
        return []
    place = columns.index(_find_column(columns))
    if wrong := [len(row) for row in rows if len(row) != len(columns)]:
        raise ValueError(f"dataframe_split has {len(columns)} columns, and a row of {wrong[0]}")
    return [_unwrap(row[place]) for row in rows]


def _read_records(rows: Any) -> list[Any]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("dataframe_records must be a list of objects")
    if not rows:
        return []
    name = _find_column(list(dict.fromkeys(key for row in rows for key in row)))
    return [_unwrap(row.get(name)) for row in rows]


def _read_instances(rows: Any) -> list[Any]:
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return _read_inputs(rows)
    keys = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    if keys not in ([IMAGE], ["0"]):
        raise ValueError(f"a row must be an object with only the key {IMAGE!r}, got {', '.join(keys) or 'none':.200}")
    if not all(isinstance(row, dict) and row for row in rows):
        raise ValueError(f"each row must be an object with the key {keys[0]!r}, as the first is")
    return [row[keys[0]] for row in rows]


def _read_inputs(values: Any) -> list[Any]:
    if isinstance(values, dict):
        name = _find_column(list(values))
        if len(values) > 1:
            raise ValueError(f"an object of lists must have only the key {name!r}, got {', '.join(values):.200}")
        values = values[name]
    if not isinstance(values, list):
        raise ValueError(f"expected a list of images, got {_name_type(values)}")
    if values and isinstance(values[0], list):
        return _read_array(values)
    return list(map(_unwrap, values))


def _read_array(values: list[Any]) -> list[Any]:
    """Return the rows of nested lists. JSON's numbers become int64 or float64, which an image may not be.

    So `PlantClassifier.predict` gives an error for each row.
    """
    try:
        array = np.array(values)
    except ValueError as error:
        raise ValueError(f"nested lists must form an array ({quote_error(error)})") from error
    if array.ndim != 4:
        raise ValueError(f"an array of images has four dimensions, got {array.ndim}; send base64 text instead")
    return list(array)


def _find_column(names: list[Any]) -> Any:
    if len(names) == 1 and names[0] in (0, "0"):
        return names[0]
    if names.count(IMAGE) == 1:
        return IMAGE
    if IMAGE in names:
        raise ValueError(f"expected one column {IMAGE!r}, got several")
    raise ValueError(f"expected the column {IMAGE!r}, got {', '.join(map(str, names)) or 'no columns':.200}")


def _unwrap(image: Any) -> Any:
    return image[IMAGE] if isinstance(image, dict) and set(image) == {IMAGE} else image


_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
}


def _name_type(value: Any) -> str:
    return "null" if value is None else _KINDS[type(value)]


_FORMS: Final[Mapping[str, Callable[[Any], list[Any]]]] = {
    "dataframe_split": _read_split,
    "dataframe_records": _read_records,
    "instances": _read_instances,
    "inputs": _read_inputs,
}
