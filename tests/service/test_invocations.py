"""MLflow's JSON forms: what is read from them, what is refused, and the answers of `mlflow models serve`."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plantmodels.service.invocations import read_invocation
from tests.service.conftest import Running

JSON = {"Content-Type": "application/json"}

FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "split": lambda images: {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}},
    "split, no columns": lambda images: {"dataframe_split": {"data": [[image] for image in images]}},
    "split, more columns": lambda images: {
        "dataframe_split": {"index": [7] * len(images), "columns": ["a", "image"], "data": [[1, i] for i in images]}
    },
    "records": lambda images: {"dataframe_records": [{"image": image} for image in images]},
    "records, more columns": lambda images: {"dataframe_records": [{"image": image, "a": 1} for image in images]},
    "instances": lambda images: {"instances": images},
    "instances, rows": lambda images: {"instances": [{"image": image} for image in images]},
    "instances, column": lambda images: {"instances": {"image": images}},
    "inputs": lambda images: {"inputs": images},
    "inputs, column": lambda images: {"inputs": {"image": images}},
    "inputs, rows": lambda images: {"inputs": [{"image": image} for image in images]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_its_images(form: str) -> None:
    for images in (["aGVsbG8=", None, "bad!"], ["aGVsbG8="]):
        assert read_invocation(json.dumps(FORMS[form](images)).encode()).images == images
    assert read_invocation(b'{"dataframe_records": []}').images == []
    assert read_invocation(b'{"dataframe_split": {"columns": [], "data": []}}').images == []


def test_params_are_read_and_unknown_ones_ignored_as_mlflow_does() -> None:
    body = b'{"instances": [], "params": {"top_k": 2, "routing": "soft", "as_struct": true, "colour": 1}}'
    asked = read_invocation(body)
    assert asked.as_struct
    assert asked.options == {"top_k": 2, "return_embedding": False, "on_error": "row", "routing": "soft"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", r"the body is not JSON"),
        ("\xff", r"the body is not JSON"),
        ('{"a": NaN}', r"the body is not JSON \(NaN is not a JSON number\)"),
        ('{"inputs": [], "inputs": []}', r"key 'inputs' is repeated"),
        ("[" * 100_000, r"the body is not JSON"),
        ([], "expected a JSON object, got a list"),
        ({}, "expected exactly one of dataframe_split, dataframe_records, instances, inputs, got none"),
        ({"images": []}, "expected exactly one of .*, got 'images'"),
        ({"inputs": [], "instances": []}, "expected exactly one of .*, got 'inputs', 'instances'"),
        ({"inputs": [], "params": 1}, "params must be an object, got an integer"),
        ({"inputs": [], "params": {"top_k": "many"}}, "top_k must be an integer, got 'many'"),
        ({"inputs": [], "params": {"top_k": -1}}, "top_k must be an integer of at least 0, got -1"),
        ({"inputs": [], "params": {"routing": "firm"}}, "routing must be one of hard, soft, got 'firm'"),
        ({"inputs": [], "params": {"on_error": "stop"}}, "on_error must be one of row, raise, got 'stop'"),
        ({"inputs": [], "params": {"as_struct": None}}, "as_struct must be true or false, got None"),
        ({"inputs": "text"}, "expected a list of images, got text"),
        ({"inputs": None}, "expected a list of images, got null"),
        ({"inputs": {"picture": ["x"]}}, "expected the column 'image', got picture"),
        ({"inputs": {"image": [], "a": []}}, "an object of lists must have only the key 'image', got image, a"),
        ({"inputs": [[1, 2], [3]]}, "nested lists must form an array"),
        ({"inputs": [[1, 2], [3, 4]]}, "an array of images has four dimensions, got 2; send base64 text instead"),
        (
            {"instances": [{"image": ""}, {"img": ""}]},
            "a row must be an object with only the key 'image', got image, img",
        ),
        ({"instances": [{"image": ""}, "x"]}, "each row must be an object with the key 'image', as the first is"),
        ({"dataframe_split": []}, "dataframe_split must be an object of columns, data and, if needed, index"),
        ({"dataframe_split": {"data": 1}}, "the data of dataframe_split must be a list of rows, got an integer"),
        (
            {"dataframe_split": {"data": [], "columns": 1}},
            "the columns of dataframe_split must be a list, got an integer",
        ),
        ({"dataframe_split": {"data": [["x"]], "columns": ["a"]}}, "expected the column 'image', got a"),
        ({"dataframe_split": {"data": [["x"]], "columns": []}}, "expected the column 'image', got no columns"),
        ({"dataframe_split": {"data": [["x", 1]], "columns": ["image"]}}, "has 1 columns, and a row of 2"),
        ({"dataframe_split": {"data": [["x"], []], "columns": ["image"]}}, "has 1 columns, and a row of 0"),
        ({"dataframe_split": {"data": [["x"], []]}}, "has 1 columns, and a row of 0"),
        (
            {"dataframe_split": {"data": [["x", 1]], "columns": ["image"] * 2}},
            "expected one column 'image', got several",
        ),
        ({"dataframe_records": [1]}, "dataframe_records must be a list of objects"),
        ({"dataframe_records": [{"a": 1}]}, "expected the column 'image', got a"),
    ],
)
def test_a_malformed_body_is_refused(document: Any, message: str) -> None:
    body = document.encode("latin1") if isinstance(document, str) else json.dumps(document).encode()
    with pytest.raises(ValueError, match=message):
        read_invocation(body)


def test_a_refusal_is_one_line(service: Running, leaves: list[bytes]) -> None:
    text = base64.b64encode(leaves[0]).decode()
    for document, status, message in (
        ({"inputs": "text"}, 400, "expected a list of images, got text"),
        ({"inputs": ["bad!"], "params": {"on_error": "raise"}}, 400, "image 0: text that is not base64"),
        ({"inputs": [text] * 65}, 413, "the body has 65 images; at most 64 are answered"),
    ):
        answer = service.ask("/invocations", json.dumps(document).encode(), JSON)
        assert answer.status == status and message in answer.error
    for kind in ("text/csv", "application/json; charset=latin1"):
        answer = service.ask("/invocations", b"{}", {"Content-Type": kind})
        assert answer.status == 415 and "expected application/json in UTF-8" in answer.error
    assert service.ask("/invocations", b"{}", {}).status == 415


def test_an_array_of_numbers_is_no_image(service: Running) -> None:
    answer = service.ask("/invocations", json.dumps({"inputs": [[[[0, 0, 0]]]]}).encode(), JSON)
    (row,) = answer.document["predictions"]
    assert row["species"] is None and "an array must be (H, W, 3) uint8" in row["error"]


KEYS = st.sampled_from(["image", "0", "data", "columns", "index"]) | st.text(max_size=2)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda values: st.lists(values, max_size=3) | st.dictionaries(KEYS, values, max_size=3), max_leaves=12
)
TABLES = st.fixed_dictionaries(
    {"data": st.lists(st.lists(VALUES, max_size=2) | VALUES, max_size=3)},
    optional={"columns": st.lists(st.sampled_from(["image", "a", 0]) | VALUES, max_size=2), "index": VALUES},
)


@settings(max_examples=300)
@given(
    form=st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs"]),
    value=TABLES | VALUES,
    params=st.none() | st.dictionaries(st.sampled_from(["top_k", "routing", "on_error"]) | KEYS, VALUES, max_size=2),
)
def test_any_json_is_read_or_refused(form: str, value: object, params: object) -> None:
    body = json.dumps({form: value} | ({} if params is None else {"params": params})).encode()
    try:
        assert isinstance(read_invocation(body).images, list)
    except ValueError as error:
        assert str(error)
