"""The MLflow run that a job works in.

>>> with job("export"):  # doctest: +SKIP
...     mlflow.log_metric("seconds.export", 3.5)
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import mlflow
import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException

from plantmodels.errors import PlantModelsError, RegistrationError

PREFIX: Final = "plantmodels."
"""Of this project's run params and tags: `mlflow run` logs its own parameters under their plain names."""

FAILURE_TAG: Final = f"{PREFIX}failure"
_MAX_TAG: Final = 5000
_PREFLIGHT: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SERVER_ERRORS: Final = (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)


@contextmanager
def job(kind: str) -> Iterator[mlflow.ActiveRun]:
    """An MLflow run: that of `mlflow run` when there is one, else a new one; FAILED on any error.

    Raises:
        RegistrationError: the tracking server cannot be reached.
    """
    with preflight(), one_line("the tracking server"):
        run = mlflow.start_run()
    with run:
        try:
            mlflow.set_tag(f"{PREFIX}job", kind)
            with one_line("the job was cut short"):
                yield run
        except PlantModelsError as error:
            with contextlib.suppress(*SERVER_ERRORS):
                mlflow.set_tag(FAILURE_TAG, " ".join(str(error).split())[:_MAX_TAG])
            raise


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns what a server or a disk does wrong into a `RegistrationError` of one line that starts with `what`."""
    try:
        yield
    except SERVER_ERRORS as error:
        reason = " ".join(str(error).split())[:500]
        raise RegistrationError(f"{what}: {type(error).__name__}: {reason}") from error


@contextmanager
def preflight() -> Iterator[None]:
    """Within it a server that does not answer is given up after seconds, not after MLflow's minutes."""
    before = {name: os.environ.get(name) for name in _PREFLIGHT}
    os.environ.update(_PREFLIGHT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
