"""The only package that imports MLflow: the flavor of a bundle, the gated registry, and the jobs of `MLproject`.

The names below are the public API. Each is imported when it is first used, so `import mlflow_plugins` loads nothing
but the standard library; `load_model` and `ModelHandle` import MLflow only for an address that MLflow must resolve.

| name | what it does |
|---|---|
| `save_model`, `log_model` | write a bundle as an MLflow model; log it in the active run |
| `load_model` | load a model version as a `plantmodels.PlantClassifier` |
| `ModelHandle` | keep a service on the version that an alias names, with hot reload |
| `arrow_schema` | the Arrow types of the answer's columns |

Every other module is internal and may change in any version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import plantmodels  # noqa: F401 - pins the package: a version's own code must not be mixed with the installed one

if TYPE_CHECKING:
    from mlflow_plugins.flavor import load_model, log_model, save_model
    from mlflow_plugins.loading.handle import ModelHandle
    from mlflow_plugins.loading.pyfunc import arrow_schema

__all__ = ["ModelHandle", "arrow_schema", "load_model", "log_model", "save_model"]

_MODULES = {
    "ModelHandle": "loading.handle",
    "arrow_schema": "loading.pyfunc",
    "load_model": "flavor",
    "log_model": "flavor",
    "save_model": "flavor",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, whether they were used already or not."""
    return sorted(__all__)
