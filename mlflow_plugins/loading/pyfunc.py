"""A version as MLflow's pyfunc: every form of input of contract 4 in, a DataFrame of its rows out.

Apart from `flavor`, because pandas and MLflow's types take a second to import, which the native loader does without.

>>> load_pyfunc(Path("model/data/bundle")).predict([jpeg]).loc[0, "species"]  # doctest: +SKIP
'Tomato'
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

from mlflow_plugins.loading.native import load_recorded_bundle
from plantmodels.serve.classifier import PlantClassifier, Prediction
from plantmodels.serve.image_input import ImageLike
from plantmodels.serve.loading import LoadOptions

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMN: Final = "image"

STRUCT_COLUMN: Final = "prediction"
"""The one column of an answer with as_struct=True, each value a dict of contract 4. For `mlflow.pyfunc.spark_udf`:
it casts each column of a primitive type as a whole, which fails for an integer that is None and turns a boolean that
is None into False; the fields of a struct it casts one by one, and leaves None alone. The signature describes answers
without it."""

PREDICTION_COLUMNS: Final[Mapping[str, DataType]] = {
    "species": DataType.string,
    "species_index": DataType.long,
    "species_probability": DataType.double,
    "disease": DataType.string,
    "disease_probability": DataType.double,
    "ood_score": DataType.double,
    "ood_p_value": DataType.double,
    "rejected": DataType.boolean,
    "error": DataType.string,
}
"""Contract 4. Values are Python ones or None in columns of dtype object, so that JSON gets null and no NaN."""

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
"""What comes out. There is no input schema: MLflow would make a DataFrame of every list and array before the model
sees it, and refuse arrays of images; what goes in is checked here instead, image by image."""


_DEFAULTS: Final = LoadOptions()
MODEL_CONFIG: Final[Mapping[str, Any]] = {
    "precision": _DEFAULTS.precision,
    "threads": _DEFAULTS.threads,
    "workers": _DEFAULTS.workers,
    "providers": list(_DEFAULTS.providers),
    "allow_paths": _DEFAULTS.allow_paths,
    "column": None,
}
"""What `mlflow.pyfunc.load_model(uri, model_config=…)` may set. MLflow drops keys that the version does not record.

`column` names one of `PREDICTION_COLUMNS`, which the model then answers with alone: `mlflow.models.evaluate` takes
the whole answer of a model for its labels."""

_PARAMS: Final[Mapping[str, ParamSpec]] = {spec.name: spec for spec in SIGNATURE.params.params}


def arrow_schema(columns: Iterable[str] = tuple(PREDICTION_COLUMNS)) -> "pa.Schema":
    """The Arrow types of an answer's columns, which pyarrow otherwise guesses from the rows: an all-null one has none.

    >>> pa.Table.from_pandas(frame, schema=arrow_schema(frame.columns))  # doctest: +SKIP

    Args:
        columns: names of the signature's outputs.
    """
    import pyarrow as pa

    plain = {"string": pa.string(), "long": pa.int64(), "double": pa.float64(), "boolean": pa.bool_()}
    kinds = {name: plain[kind.name] for name, kind in PREDICTION_COLUMNS.items()}
    kinds["candidates"] = pa.list_(pa.struct({"species": pa.string(), "probability": pa.float64()}))
    kinds["embedding"] = pa.list_(pa.float32())
    return pa.schema([(name, kinds[name]) for name in columns])


def load_pyfunc(bundle: Path, model_config: Mapping[str, Any] | None = None) -> "PlantPyfunc":
    """Loads a bundle inside a model folder; digests and class order are checked before any session opens.

    Raises:
        BundleError: as `PlantClassifier.load`, or the manifest is not that which MLmodel recorded.
        ValueError: an unknown key of `model_config`, no such column, or a value that the classifier refuses.
    """
    config = {**MODEL_CONFIG, **(model_config or {})}
    if unknown := sorted(set(config) - set(MODEL_CONFIG)):
        raise ValueError(f"unknown model_config {', '.join(unknown)}: expected {', '.join(MODEL_CONFIG)}")
    column = config.pop("column")
    if column is not None and column not in PREDICTION_COLUMNS:
        raise ValueError(f"column must be one of {', '.join(PREDICTION_COLUMNS)}, got {column!r}")
    classifier = load_recorded_bundle(bundle.parents[1], LoadOptions(**config), every_file=True)
    return PlantPyfunc(classifier, column)


class PlantPyfunc:
    """What `mlflow.pyfunc.load_model(...)` calls to predict."""

    def __init__(self, classifier: PlantClassifier, column: str | None = None) -> None:
        """Wraps a loaded classifier that answers with all columns, or with one."""
        self.classifier = classifier
        self.column = column

    def get_raw_model(self) -> PlantClassifier:
        """The classifier: what `PyFuncModel.get_raw_model()` gives."""
        return self.classifier

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame | pd.Series:
        """One row of contract 4 for each image of any form that `read_images` takes; see `STRUCT_COLUMN`.

        A Series of one value an image where the model was loaded with a `column`, as text, numbers or booleans.

        Raises:
            ImageError: a bad image, with on_error="raise".
            ValueError: an input of no known form, an unknown param, or a param of another value.
        """
        options = {name: spec.default for name, spec in _PARAMS.items()} | dict(params or {})
        if unknown := sorted(set(options) - set(_PARAMS)):
            raise ValueError(f"unknown params {', '.join(unknown)}: expected {', '.join(_PARAMS)}")
        as_struct = options.pop("as_struct")
        predictions = self.classifier.predict(read_images(model_input), **options)
        frame = _to_frame(predictions, [c for c in ("candidates", "embedding") if _asks_for(c, options)])
        if self.column is not None:
            return frame[self.column].infer_objects()
        if not as_struct:
            return frame
        return pd.DataFrame({STRUCT_COLUMN: pd.Series(frame.to_dict("records"), dtype=object)})


def read_images(model_input: Any) -> Iterable[ImageLike]:
    """The images in an input of any form of contract 4.

    Args:
        model_input: a DataFrame with the column `image`, or a dict of lists with this key alone (a single column may
            have the name 0 or "0", as `spark_udf` calls it); a Series, list or one-dimensional array of encoded
            bytes, base64 text or Pillow images, or of dicts with the key `image` alone; a (N, H, W, 3) uint8 array;
            a normalised (N, 3, S, S) float32 array.

    Raises:
        ValueError: another form.
    """
    if isinstance(model_input, pd.DataFrame) and model_input.shape == (0, 0):
        return []  # `dataframe_records` of no record
    if isinstance(model_input, pd.DataFrame | Mapping):
        names = [IMAGE_COLUMN, *([0, "0"] if len(model_input.keys()) == 1 else [])]
        for name in names:
            if name in model_input.keys():  # noqa: SIM118 - a DataFrame's `in` is about columns, a dict's about keys
                return _read_column(model_input, name)
        columns = ", ".join(map(str, model_input.keys()))
        raise ValueError(f"no column {IMAGE_COLUMN!r}: the columns are {columns or 'none at all'}")
    if isinstance(model_input, np.ndarray):
        if model_input.ndim == 1:
            return map(_unwrap, model_input)
        if model_input.ndim == 4:
            return cast("Iterable[ImageLike]", model_input)
        raise ValueError(
            f"an array must be (N,) of encoded images, (N, H, W, 3) uint8 or (N, 3, S, S) float32, "
            f"got {model_input.shape} {model_input.dtype}"
        )
    if isinstance(model_input, pd.Series | list | tuple):
        return map(_unwrap, model_input)
    raise ValueError(
        f"expected a DataFrame with the column {IMAGE_COLUMN!r}, a list of images or an array, "
        f"got {type(model_input).__name__}"
    )


def _read_column(model_input: Any, name: object) -> Iterable[ImageLike]:
    if isinstance(model_input, Mapping) and len(model_input) > 1:  # of rows with unlike keys, MLflow's server makes one
        raise ValueError(f"a dict of lists has the key {name!r} alone, got {', '.join(map(str, model_input))}")
    column = model_input[name]
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"several columns {name!r}: expected one")
    return read_images(column)


def _unwrap(image: Any) -> Any:
    """The image of a row `{"image": …}`; MLflow's server puts what lies beside a null into arrays of no dimension."""
    if isinstance(image, np.ndarray) and image.ndim == 0:
        image = image.item()
    return image[IMAGE_COLUMN] if isinstance(image, Mapping) and set(image) == {IMAGE_COLUMN} else image


def _asks_for(column: str, options: Mapping[str, Any]) -> bool:
    return bool(options.get({"candidates": "top_k", "embedding": "return_embedding"}[column]))


def _to_frame(predictions: list[Prediction], further: list[str]) -> pd.DataFrame:
    rows = []
    for prediction in predictions:
        row: dict[str, Any] = {name: getattr(prediction, name) for name in PREDICTION_COLUMNS}
        if "candidates" in further:
            row["candidates"] = None if prediction.candidates is None else [asdict(c) for c in prediction.candidates]
        if "embedding" in further:
            row["embedding"] = None if prediction.embedding is None else prediction.embedding.tolist()
        rows.append(row)
    return pd.DataFrame(rows, columns=[*PREDICTION_COLUMNS, *further], dtype=object)
