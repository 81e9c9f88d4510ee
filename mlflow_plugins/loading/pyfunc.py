"""A model version as MLflow's pyfunc: takes images in every form of contract 4, and returns a DataFrame.

This is not part of `flavor`, because pandas and MLflow's types take a second to import and the native loader needs
neither.

>>> from mlflow_plugins import save_model
>>> save_model(bundle, tmp / "model")
>>> load_pyfunc(tmp / "model/data/bundle").predict([image.read_bytes()])["error"].tolist()
[None]
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

from mlflow_plugins.loading.mlmodel import find_prediction_contract, read_description
from mlflow_plugins.loading.native import load_recorded_bundle
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.image_input import ImageLike
from plantmodels.serve.loading import LoadOptions
from plantmodels.serve.prediction import PREDICTION_CONTRACT, Prediction

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMN: Final = "image"

STRUCT_COLUMN: Final = "prediction"
"""The only column of an answer with as_struct=True; each value is a dict of contract 4.

`mlflow.pyfunc.spark_udf` needs it. It casts a column of a primitive type as a whole, which fails for an integer column
with None and turns None into False in a boolean column. The fields of a struct are cast one by one, and None stays
None. The signature describes answers without as_struct."""

PREDICTION_COLUMNS: Final[Mapping[str, DataType]] = {
    "species": DataType.string,
    "species_index": DataType.long,
    "species_probability": DataType.double,
    "disease": DataType.string,
    "disease_probability": DataType.double,
    "disease_given_species_probability": DataType.double,
    "ood_score": DataType.double,
    "ood_p_value": DataType.double,
    "rejected": DataType.boolean,
    "error": DataType.string,
}
"""The columns of contract 4, version 2.

They have dtype object and hold Python values or None, so that JSON gets null, not NaN."""

_NEW_COLUMNS: Final[Mapping[str, int]] = {"disease_given_species_probability": 2}
"""Columns that version 1 of contract 4 did not have, to the version that added them."""

_CANDIDATES: Final = Array(Object([Property("species", DataType.string), Property("probability", DataType.double)]))

SIGNATURE: Final = ModelSignature(
    outputs=Schema(
        [
            *(ColSpec(kind, name, required=False) for name, kind in PREDICTION_COLUMNS.items()),
            ColSpec(_CANDIDATES, "candidates", required=False),
            ColSpec(Array(DataType.float), "embedding", required=False),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("top_k", DataType.long, 0),
            ParamSpec("return_embedding", DataType.boolean, False),
            ParamSpec("on_error", DataType.string, "row"),
            ParamSpec("routing", DataType.string, "hard"),
            ParamSpec("as_struct", DataType.boolean, False),
        ]
    ),
)
"""The outputs and params of the model. It has no input schema: with one, MLflow would turn every list and array into a
DataFrame and refuse arrays of images. `read_images` checks the input instead."""

MODEL_CONFIG: Final[Mapping[str, Any]] = {
    **{name: value for name, value in asdict(LoadOptions()).items() if name != "public_key"},
    "providers": list(LoadOptions().providers),  # MLmodel holds plain lists
    "column": None,
}
"""What `mlflow.pyfunc.load_model(uri, model_config=…)` may set. MLflow drops keys that the version does not record.

`column` names one of the columns of an answer. The model then returns only this column, which `mlflow.models.evaluate`
needs, because it compares a model's whole answer with the labels."""

_PARAMS: Final[Mapping[str, ParamSpec]] = {spec.name: spec for spec in SIGNATURE.params.params}


def list_columns(contract: int) -> tuple[str, ...]:
    """Return the columns of an answer by a version of contract 4.

    >>> set(PREDICTION_COLUMNS) - set(list_columns(1))
    {'disease_given_species_probability'}
    """
    return tuple(name for name in PREDICTION_COLUMNS if _NEW_COLUMNS.get(name, 1) <= contract)


def arrow_schema(columns: Iterable[str] = tuple(PREDICTION_COLUMNS)) -> "pa.Schema":
    """Return the Arrow types of an answer's columns.

    Without a schema, pyarrow guesses types from the rows, and finds none for a column that is all null. Use it as
    `pa.Table.from_pandas(frame, schema=arrow_schema(frame.columns))`.

    Args:
        columns: names of columns of the answer, in order.

    >>> arrow_schema(["species", "rejected"]).types
    [DataType(string), DataType(bool)]
    """
    import pyarrow as pa

    plain = {"string": pa.string(), "long": pa.int64(), "double": pa.float64(), "boolean": pa.bool_()}
    kinds = {name: plain[kind.name] for name, kind in PREDICTION_COLUMNS.items()}
    kinds["candidates"] = pa.list_(pa.struct({"species": pa.string(), "probability": pa.float64()}))
    kinds["embedding"] = pa.list_(pa.float32())
    return pa.schema([(name, kinds[name]) for name in columns])


def load_pyfunc(bundle: Path, model_config: Mapping[str, Any] | None = None) -> "PlantPyfunc":
    """Load the bundle of a model folder. Digests and class order are checked before a session opens.

    The answers follow the version of contract 4 that MLmodel records, so that a registered version means the same
    whether its own code answers or, in a process that has a newer plantmodels installed, the installed one.

    Args:
        bundle: the bundle inside the model folder.
        model_config: keys of `MODEL_CONFIG` that differ from their defaults.

    Raises:
        BundleError: the manifest is not the one that MLmodel records, or as `PlantClassifier.load`.
        ValueError: `model_config` has an unknown key, an unknown column or a value that `LoadOptions` refuses.
    """
    config = {**MODEL_CONFIG, **(model_config or {})}
    if unknown := sorted(set(config) - set(MODEL_CONFIG)):
        raise ValueError(f"unknown model_config {', '.join(unknown)}: expected {', '.join(MODEL_CONFIG)}")
    contract = find_prediction_contract(read_description(bundle.parents[1])["flavors"])
    column, columns = config.pop("column"), list_columns(contract)
    if column is not None and column not in columns:
        raise ValueError(f"column must be one of {', '.join(columns)}, got {column!r}")
    classifier = load_recorded_bundle(bundle.parents[1], LoadOptions(**config), every_file=True)
    return PlantPyfunc(classifier, column, contract)


class PlantPyfunc:
    """The model behind `mlflow.pyfunc.load_model(...).predict`."""

    def __init__(
        self, classifier: PlantClassifier, column: str | None = None, contract: int = PREDICTION_CONTRACT
    ) -> None:
        """Wrap a classifier.

        Args:
            classifier: the classifier.
            column: the only column that `predict` returns; None returns all.
            contract: the version of contract 4 to answer by.
        """
        self.classifier = classifier
        self.column = column
        self.contract = contract

    def get_raw_model(self) -> PlantClassifier:
        """Return the classifier, for `PyFuncModel.get_raw_model()`."""
        return self.classifier

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame | pd.Series:
        """Return one row of contract 4 per image.

        If the model was loaded with a `column`, return a Series of this column, as text, numbers or booleans.

        Args:
            model_input: images in any form that `read_images` accepts.
            params: the params of `SIGNATURE` that differ from their defaults; see also `STRUCT_COLUMN`.

        Raises:
            ImageError: an image is bad and the param `on_error` is "raise".
            ValueError: the input has an unknown form, or a param is unknown or has a wrong value.
        """
        options = {name: spec.default for name, spec in _PARAMS.items()} | dict(params or {})
        if unknown := sorted(set(options) - set(_PARAMS)):
            raise ValueError(f"unknown params {', '.join(unknown)}: expected {', '.join(_PARAMS)}")
        as_struct = options.pop("as_struct")
        predictions = self.classifier.predict(read_images(model_input), **options)
        if self.contract == 1 and options["routing"] == "hard":
            predictions = [replace(p, disease_probability=p.disease_given_species_probability) for p in predictions]
        added = [name for name in ("candidates", "embedding") if _is_requested(name, options)]
        frame = _build_frame(predictions, list_columns(self.contract), added)
        if self.column is not None:
            return frame[self.column].infer_objects()
        if not as_struct:
            return frame
        return pd.DataFrame({STRUCT_COLUMN: pd.Series(frame.to_dict("records"), dtype=object)})


def read_images(model_input: Any) -> Iterable[ImageLike]:
    """Return the images in an input of any form of contract 4.

    Args:
        model_input: one of these forms:
            a DataFrame with the column `image`, or a dict of lists with only this key (a single column may also be
            called 0 or "0", as `spark_udf` does);
            a Series, list or one-dimensional array of encoded bytes, base64 text, Pillow images or dicts with only the
            key `image`;
            an (N, H, W, 3) uint8 array;
            a normalized (N, 3, P, P) float32 array.

    Raises:
        ValueError: the input has another form.
    """
    if isinstance(model_input, pd.DataFrame) and model_input.shape == (0, 0):
        return []  # what MLflow makes of `dataframe_records` without a record
    if isinstance(model_input, pd.DataFrame | Mapping):
        names = [IMAGE_COLUMN, *([0, "0"] if len(model_input.keys()) == 1 else [])]
        for name in names:
            if name in model_input.keys():  # noqa: SIM118 - a DataFrame's `in` is about columns, a dict's about keys
                return _read_column(model_input, name)
        columns = ", ".join(map(str, model_input.keys()))
        raise ValueError(f"expected the column {IMAGE_COLUMN!r}, got {columns or 'no columns'}")
    if isinstance(model_input, np.ndarray):
        if model_input.ndim == 1:
            return map(_unwrap_row, model_input)
        if model_input.ndim == 4:
            return cast("Iterable[ImageLike]", model_input)
        raise ValueError(
            f"an array must be (N,) of encoded images, (N, H, W, 3) uint8 or (N, 3, P, P) float32, "
            f"got {model_input.shape} {model_input.dtype}"
        )
    if isinstance(model_input, pd.Series | list | tuple):
        return map(_unwrap_row, model_input)
    raise ValueError(
        f"expected a DataFrame with the column {IMAGE_COLUMN!r}, a list of images or an array, "
        f"got {type(model_input).__name__}"
    )


def _read_column(model_input: Any, name: object) -> Iterable[ImageLike]:
    if isinstance(model_input, Mapping) and len(model_input) > 1:  # MLflow's server sends it for rows of unlike keys
        raise ValueError(f"a dict of lists must have only the key {name!r}, got {', '.join(map(str, model_input))}")
    column = model_input[name]
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"expected one column {name!r}, got several")
    return read_images(column)


def _unwrap_row(image: Any) -> Any:
    """Return the image of a row `{"image": …}`, or the image itself."""
    image = _unwrap_value(image)
    return _unwrap_value(image[IMAGE_COLUMN]) if isinstance(image, Mapping) and set(image) == {IMAGE_COLUMN} else image


def _unwrap_value(value: Any) -> Any:
    """Return what MLflow's server wraps in a 0-dimensional array: values beside a null, and the values of a row."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _is_requested(column: str, options: Mapping[str, Any]) -> bool:
    return bool(options.get({"candidates": "top_k", "embedding": "return_embedding"}[column]))


def _build_frame(predictions: list[Prediction], columns: tuple[str, ...], optional_columns: list[str]) -> pd.DataFrame:
    rows = []
    for prediction in predictions:
        row: dict[str, Any] = {name: getattr(prediction, name) for name in columns}
        if "candidates" in optional_columns:
            row["candidates"] = None if prediction.candidates is None else [asdict(c) for c in prediction.candidates]
        if "embedding" in optional_columns:
            row["embedding"] = None if prediction.embedding is None else prediction.embedding.tolist()
        rows.append(row)
    return pd.DataFrame(rows, columns=[*columns, *optional_columns], dtype=object)
