"""Finds out which version a `models:/` address means now, with every MLflow from 2.17 on.

A consumer may have an older MLflow than the registry, and mlflow-skinny in place of MLflow. So this module imports no
name that only servers or new releases have.
"""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import get_model_name_and_version


def resolve_models_uri(uri: str) -> tuple[str, str]:
    """Return the registered name and version that a `models:/` URI means now.

    Args:
        uri: `models:/name@alias`, `models:/name/stage` or `models:/name/version`.

    Raises:
        MlflowException: there is no such version, or the URI does not name a registered model.
    """
    found = get_model_name_and_version(MlflowClient(), uri)
    if len(found) != 2:
        raise MlflowException.invalid_parameter_value(f"{uri} does not name a version of a registered model")
    version = MlflowClient().get_model_version(*found)  # a version that the URI names was not looked up so far
    return str(version.name), str(version.version)
