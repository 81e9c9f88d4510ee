"""Says which extra of this project installs a library that is missing.

>>> describe_missing(ModuleNotFoundError("No module named 'torch'", name="torch"))
"torch is not installed; the extra build brings it: pip install 'plantmodels[build]'"
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

RUNTIMES: Final = (
    "onnxruntime",
    *(f"onnxruntime-{kind}" for kind in ("gpu", "openvino", "directml", "migraphx", "rocm")),
)
"""The packages that bring the module onnxruntime. They overwrite each other's files, so the user installs one."""

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": ("cpu",),
    "pyarrow": ("parquet", "build", "registry"),
    "pillow_heif": ("heic",),
    **dict.fromkeys(("filelock", "pandas"), ("build", "registry")),
    **dict.fromkeys(("jinja2", "matplotlib", "onnx", "onnxscript", "safetensors", "scipy"), ("build",)),
    **dict.fromkeys(("sklearn", "threadpoolctl", "timm", "torch", "torchvision"), ("build",)),
    **dict.fromkeys(("anyio", "flask", "mlflow", "requests", "sqlalchemy"), ("registry",)),
    **dict.fromkeys(("httptools", "prometheus_client", "python_multipart", "starlette", "uvicorn"), ("service",)),
    **dict.fromkeys(("flask_wtf", "psycopg2", "pymysql"), ("server",)),
    **dict.fromkeys(("model_signing", "OpenSSL"), ("signing",)),
    **dict.fromkeys(("py4j", "pyspark"), ("spark",)),
}
"""The extras that install each module. All other modules belong to the base or to Python."""


def describe_missing(error: ImportError, preferred: str = "") -> str | None:
    """Return a line that says which extra installs a missing module; None if no extra does.

    Args:
        error: what the import raised.
        preferred: the extra to name if several install the module.
    """
    extras = EXTRAS.get((error.name or "").partition(".")[0])
    if extras is None or not isinstance(error, ModuleNotFoundError):
        return None
    extra = preferred if preferred in extras else extras[0]
    line = f"{error.name} is not installed; the extra {extra} brings it: pip install 'plantmodels[{extra}]'"
    return f"{line}, or install the ONNX Runtime of your hardware, such as onnxruntime-gpu" if extra == "cpu" else line


def read_version(package: str) -> str:
    """Return the version of an installed package; for onnxruntime, the version of whichever build is installed.

    Raises:
        PackageNotFoundError: the package is not installed.

    >>> read_version("numpy") == np.__version__
    True
    """
    for name in RUNTIMES if package == "onnxruntime" else (package,):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError(package)
