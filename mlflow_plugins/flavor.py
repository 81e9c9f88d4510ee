"""The MLflow flavor of a bundle: one model version that holds every file and loads anywhere.

What serving needs of this project's code travels with the version (`bundle`, `serve`, `errors` and this
file), so a consumer installs the pip requirements and nothing of ours.

>>> info = log_model(Path("public/models"), name="plant-disease")  # doctest: +SKIP
>>> mlflow.pyfunc.load_model(info.model_uri).predict(pd.DataFrame({"image": [jpeg]}))  # doctest: +SKIP
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

from plantmodels.bundle.layout import MANIFEST_FILE, PRECISIONS, Precision, serving_files
from plantmodels.bundle.manifest import check_files, digest_file, read_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.errors import BundleError
from plantmodels.serve.classifier import ImageLike, PlantClassifier, Prediction
from plantmodels.serve.session import CPU, Provider

if TYPE_CHECKING:
    import pyarrow as pa

FLAVOR_NAME: Final = "plantmodels"
BUNDLE_FOLDER: Final = "data/bundle"
"""Where the bundle lies inside a model's artifacts."""

IMAGE_COLUMN: Final = "image"

STRUCT_COLUMN: Final = "prediction"
"""The one column of an answer with as_struct=True, each value a dict of contract 4. For `mlflow.pyfunc.spark_udf`:
it casts each column of a primitive type as a whole, which fails for an integer that is None and turns a boolean that
is None into False; the fields of a struct it casts one by one, and leaves None alone. The signature describes answers
without it."""

_SERVING_LIBRARIES: Final = ("numpy", "onnxruntime", "pandas", "pillow")
_CODE: Final = ("plantmodels/__init__.py", "plantmodels/errors.py", "plantmodels/bundle", "plantmodels/serve")
_FLAVOR_CODE: Final = ("mlflow_plugins/__init__.py", "mlflow_plugins/flavor.py")

PREDICTION_COLUMNS: Final[Mapping[str, DataType]] = {
    "species": DataType.string,
    "species_index": DataType.long,
    "species_probability": DataType.double,
    "disease": DataType.string,
    "disease_probability": DataType.double,
    "ood_score": DataType.double,
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


_MODEL_CONFIG: Final[Mapping[str, Any]] = {
    "precision": "int8",
    "threads": None,
    "workers": 1,
    "providers": [CPU],
    "allow_paths": False,
}
"""What `mlflow.pyfunc.load_model(uri, model_config=…)` may set. MLflow drops keys that the version does not record."""

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


def get_default_pip_requirements() -> list[str]:
    """What a consumer needs to load and serve a version, pinned; nothing that only building needs."""
    return [f"mlflow=={version('mlflow')}", *(f"{name}=={version(name)}" for name in _SERVING_LIBRARIES)]


def save_model(
    bundle: Path, path: str | Path, *, mlflow_model: Model | None = None, input_example: bytes | None = None
) -> None:
    """Writes a bundle as an MLflow model folder.

    Args:
        bundle: a whole bundle; every digest is checked first.
        path: the model folder, which must not exist.
        mlflow_model: MLflow's model description to extend.
        input_example: one encoded photograph, which becomes the model's example input.

    Raises:
        BundleError: the bundle is incomplete or was changed.
        MlflowException: `path` exists.
    """
    check_files(bundle, read_manifest(bundle))
    metadata = read_metadata(bundle)
    model = mlflow_model or Model()
    model.add_flavor(
        FLAVOR_NAME,
        bundle=BUNDLE_FOLDER,
        manifest_sha256=digest_file(bundle / MANIFEST_FILE).sha256,
        class_order_digest=metadata.taxonomy.digest,
        plantmodels_version=metadata.versions.get("plantmodels"),
    )
    with _serving_code() as code, _named(bundle, Path(BUNDLE_FOLDER).name) as data:
        mlflow.pyfunc.save_model(
            path=str(path),
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(folder) for folder in sorted(code.iterdir())],
            mlflow_model=model,
            model_config=dict(_MODEL_CONFIG),
            signature=SIGNATURE,
            input_example=None if input_example is None else pd.DataFrame({IMAGE_COLUMN: [input_example]}),
            pip_requirements=get_default_pip_requirements(),
        )


def log_model(
    bundle: Path, *, name: str, input_example: bytes | None = None, tags: Mapping[str, str] | None = None
) -> ModelInfo:
    """Logs a bundle as a model of the active run; does not register it.

    Args:
        bundle: a whole bundle.
        name: the logged model's name.
        input_example: one encoded photograph.
        tags: go to the logged model.
    """
    info: ModelInfo = Model.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        bundle=bundle,
        input_example=input_example,
        tags=dict(tags or {}),
    )
    return info


@contextmanager
def _serving_code() -> Iterator[Path]:
    """A folder with this project's code that serving needs, and nothing else."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="plantmodels-code-") as temporary:
        for name in (*_CODE, *_FLAVOR_CODE):
            target = Path(temporary, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (root / name).is_dir():
                shutil.copytree(root / name, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(root / name, target)
        yield Path(temporary)


@contextmanager
def _named(bundle: Path, name: str) -> Iterator[Path]:
    """The bundle under the name that it has inside a model, whatever its folder is called."""
    with tempfile.TemporaryDirectory(prefix="plantmodels-bundle-") as temporary:
        link = Path(temporary, name)
        link.symlink_to(bundle.resolve(), target_is_directory=True)
        yield link


def load_model(
    model_uri: str,
    *,
    precision: Precision = "int8",
    threads: int | None = None,
    workers: int = 1,
    providers: Sequence[Provider] = (CPU,),
    allow_paths: bool = False,
) -> PlantClassifier:
    """Loads the native classifier of a version, and downloads only the files that a precision needs.

    An alias is resolved once, so that all files are of one version whatever is promoted meanwhile. Nothing of the
    version is executed: code that travels with it is not even downloaded.

    Args:
        model_uri: such as "models:/plant-disease@production".
        precision: which species model answers.
        threads: threads inside an operator; None takes all cores.
        workers: images embedded at the same time, for bulk work with threads=1.
        providers: ONNX Runtime's execution providers in order of preference, with their options where they have any.
        allow_paths: whether an image may be given as the path of a file.

    Raises:
        BundleError: digests or class order do not fit; no session was opened. Or no such provider.
        ValueError: an argument of another value.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    repository = get_artifact_repository(model_uri)
    with tempfile.TemporaryDirectory(prefix="plantmodels-load-") as temporary:
        folder = Path(temporary)
        for name in (MLMODEL_FILE_NAME, *(f"{BUNDLE_FOLDER}/{n}" for n in (MANIFEST_FILE, *serving_files(precision)))):
            repository.download_artifacts(name, dst_path=str(folder))
        _check_description(folder)
        return PlantClassifier.load(
            folder / BUNDLE_FOLDER,
            precision=precision,
            threads=threads,
            workers=workers,
            providers=providers,
            allow_paths=allow_paths,
            whole=False,
        )


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> "_PlantPyfunc":
    """MLflow's entry point: digests and class order are checked before any session opens."""
    config = {**_MODEL_CONFIG, **(model_config or {})}
    if unknown := sorted(set(config) - set(_MODEL_CONFIG)):
        raise ValueError(f"unknown model_config {', '.join(unknown)}: expected {', '.join(_MODEL_CONFIG)}")
    _check_description(Path(path).parents[1])
    return _PlantPyfunc(PlantClassifier.load(Path(path), **config))


def _check_description(folder: Path) -> None:
    """Compares the manifest's digest with the one that MLmodel recorded when the version was made."""
    recorded = Model.load(folder).flavors.get(FLAVOR_NAME, {}).get("manifest_sha256")
    found = digest_file(folder / BUNDLE_FOLDER / MANIFEST_FILE).sha256
    if recorded != found:
        raise BundleError(f"{folder}: MLmodel records a manifest of digest {recorded}, {MANIFEST_FILE} has {found}")


class _PlantPyfunc:
    """What `mlflow.pyfunc.load_model(...)` calls to predict."""

    def __init__(self, classifier: PlantClassifier) -> None:
        self.classifier = classifier

    def get_raw_model(self) -> PlantClassifier:
        """The classifier: what `PyFuncModel.get_raw_model()` gives."""
        return self.classifier

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row of contract 4 for each image of any form that `read_images` takes; see `STRUCT_COLUMN`.

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
