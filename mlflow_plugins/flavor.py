"""The MLflow flavor of a bundle: one model version that holds every file and loads anywhere.

The part of this project's code that serving needs travels with the version (`list_serving_code`). A consumer therefore
installs the pip requirements, but not this package. Importing this module imports neither MLflow nor pandas: both take
longer than everything else that the native loader does.

>>> from mlflow_plugins import load_model, save_model
>>> save_model(bundle, tmp / "model")
>>> load_model(str(tmp / "model"), threads=1).predict([image.read_bytes()])[0].error is None
True
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER, CONTRACT_KEY, FLAVOR_NAME
from mlflow_plugins.loading.native import load_model
from plantmodels.bundle.files import StrPath
from plantmodels.bundle.layout import MANIFEST_FILE
from plantmodels.bundle.manifest import check_files, digest_file, read_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import RegistrationError
from plantmodels.extras import read_version
from plantmodels.serve.prediction import PREDICTION_CONTRACT

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo

    from mlflow_plugins.loading.pyfunc import PlantPyfunc

__all__ = ["BUNDLE_FOLDER", "FLAVOR_NAME", "get_default_pip_requirements", "load_model", "log_model", "save_model"]

_SERVING_LIBRARIES: Final = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
_CODE: Final = (
    "plantmodels/__init__.py",
    "plantmodels/arrays.py",
    "plantmodels/errors.py",
    "plantmodels/extras.py",
    "plantmodels/foreign_text.py",
    "plantmodels/plain_yaml.py",
    "plantmodels/bundle",
    "plantmodels/serve",
)
_FLAVOR_CODE: Final = tuple(
    f"mlflow_plugins/{name}.py"
    for name in (
        "__init__",
        "flavor",
        "loading/__init__",
        "loading/mlmodel",
        "loading/native",
        "loading/pyfunc",
    )
)


def get_default_pip_requirements() -> list[str]:
    """Return the pinned requirements for loading and serving a version, without what only exporting needs.

    Whichever build of ONNX Runtime is installed here, the CPU's is named: the gates were measured on the CPU.
    """
    return [f"{name}=={read_version(name).partition('.post')[0]}" for name in _SERVING_LIBRARIES]


def save_model(
    bundle: StrPath, path: StrPath, *, mlflow_model: "Model | None" = None, input_example: bytes | None = None
) -> None:
    """Write a bundle as an MLflow model folder.

    Args:
        bundle: the bundle; every digest is checked first.
        path: the model folder, which must not exist.
        mlflow_model: MLflow's description of the model, to extend; None makes a new one.
        input_example: one encoded image, which becomes the model's example input.

    Raises:
        BundleError: files are missing or differ from the manifest.
        MlflowException: `path` exists.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model

    from mlflow_plugins.loading.pyfunc import IMAGE_COLUMN, MODEL_CONFIG, SIGNATURE

    bundle = Path(bundle)
    check_files(bundle, read_manifest(bundle))
    metadata = read_metadata(bundle)
    model = mlflow_model or Model()
    model.add_flavor(
        FLAVOR_NAME,
        bundle=BUNDLE_FOLDER,
        manifest_sha256=digest_file(bundle / MANIFEST_FILE).sha256,
        class_order_digest=metadata.taxonomy.digest,
        plantmodels_version=metadata.versions.get("plantmodels"),
        **{CONTRACT_KEY: PREDICTION_CONTRACT},
    )
    with _copy_serving_code() as code, _link_bundle(bundle, Path(BUNDLE_FOLDER).name) as data:
        mlflow.pyfunc.save_model(
            path=os.fspath(path),
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(folder) for folder in sorted(code.iterdir())],
            mlflow_model=model,
            model_config=dict(MODEL_CONFIG),
            signature=SIGNATURE,
            input_example=None if input_example is None else pd.DataFrame({IMAGE_COLUMN: [input_example]}),
            pip_requirements=get_default_pip_requirements(),
        )


def log_model(
    bundle: StrPath, *, name: str, input_example: bytes | None = None, tags: Mapping[str, str] | None = None
) -> "ModelInfo":
    """Log a bundle as a model of the active run, without registering it.

    Args:
        bundle: the bundle; every digest is checked first.
        name: the logged model's name.
        input_example: one encoded image, which becomes the model's example input.
        tags: tags of the logged model.

    Raises:
        BundleError: files are missing or differ from the manifest.
        RegistrationError: the server, or a proxy in front of it, refused a file as too large.
    """
    from mlflow.models import Model

    read_manifest(Path(bundle))  # before MLflow makes a logged model: a wrong path leaves none behind
    try:
        info: ModelInfo = Model.log(
            artifact_path=None,
            name=name,
            flavor=sys.modules[__name__],
            bundle=bundle,
            input_example=input_example,
            tags=dict(tags or {}),
        )
    except OSError as error:  # requests' errors are such ones
        refused = describe_refused_upload(error)
        if refused is None:
            raise
        raise RegistrationError(f"the bundle could not be uploaded: {refused}") from error
    return info


def describe_refused_upload(error: BaseException) -> str | None:
    """Return a line about a file that was refused as too large; None for every other error."""
    answer = getattr(error, "response", None)
    if getattr(answer, "status_code", None) != 413:
        return None
    request = getattr(answer, "request", None)
    name = unquote(urlsplit(str(getattr(request, "url", ""))).path).rpartition("/")[2] or "a file"
    length = getattr(request, "headers", {}).get("Content-Length", "")
    size = f" of {int(length) / 1e6:,.1f} MB" if length.isdecimal() else ""
    return (
        f"{name}{size} was refused as too large (HTTP 413) by the server or a proxy in front of it; "
        "in nginx, raise client_max_body_size"
    )


def list_serving_code() -> dict[str, Path]:
    """Return the files of this project that travel with a version, by their names in its folder `code`."""
    root = Path(__file__).resolve().parents[1]
    files = [path for name in (*_CODE, *_FLAVOR_CODE) for path in (root / name, *(root / name).rglob("*"))]
    return {
        path.relative_to(root).as_posix(): path
        for path in files
        if path.is_file() and "__pycache__" not in path.relative_to(root).parts
    }


@contextmanager
def _copy_serving_code() -> Iterator[Path]:
    """Yield a temporary folder with the files of `list_serving_code`."""
    with temporary_folder("code") as temporary:
        for name, path in list_serving_code().items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        yield temporary


@contextmanager
def _link_bundle(bundle: Path, name: str) -> Iterator[Path]:
    """Yield a link to the bundle whose name is the one that the bundle has inside a model folder."""
    with temporary_folder("bundle") as temporary:
        link = temporary / name
        link.symlink_to(bundle.resolve(), target_is_directory=True)
        yield link


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> "PlantPyfunc":
    """Load a model for `mlflow.pyfunc.load_model`, which finds this function by its name."""
    from mlflow_plugins.loading.pyfunc import load_pyfunc

    return load_pyfunc(Path(path), model_config)
