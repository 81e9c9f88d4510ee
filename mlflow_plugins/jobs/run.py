"""The MLflow run that a job works in.

>>> with job("export"):  # doctest: +SKIP
...     mlflow.log_metric("seconds.export", 3.5)
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import mlflow
import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException

from mlflow_plugins.jobs.processes import Process
from plantmodels.errors import PlantModelsError, RegistrationError

PREFIX: Final = "plantmodels."
"""Of this project's run params and tags: `mlflow run` logs its own parameters under their plain names."""

FAILURE_TAG: Final = f"{PREFIX}failure"
PROCESS_TAG: Final = f"{PREFIX}process"
_MAX_TAG: Final = 5000
_PREFLIGHT: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SERVER_ERRORS: Final = (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)

_LOGGER: Final = logging.getLogger(__name__)


@contextmanager
def job(kind: str) -> Iterator[mlflow.ActiveRun]:
    """An MLflow run: that of `mlflow run` when there is one, else a new one; FAILED on any error.

    Runs of this experiment whose process was killed are ended first (`end_abandoned_runs`).

    Raises:
        RegistrationError: the tracking server cannot be reached.
    """
    process = Process.current()
    tags = {f"{PREFIX}job": kind} | ({} if process is None else {PROCESS_TAG: process.to_json()})
    with preflight(), to_one_line("the tracking server"):
        run = mlflow.start_run(tags=tags)
    try:
        if process is not None:
            with preflight(), contextlib.suppress(*SERVER_ERRORS):
                end_abandoned_runs(run.info.experiment_id, process)
        with to_one_line("the job was cut short"):
            yield run
    except BaseException as error:
        with preflight():
            with contextlib.suppress(*SERVER_ERRORS):
                if isinstance(error, PlantModelsError):
                    mlflow.set_tag(FAILURE_TAG, " ".join(str(error).split())[:_MAX_TAG])
            with contextlib.suppress(*SERVER_ERRORS):
                mlflow.end_run("FAILED")
        raise
    try:
        mlflow.end_run()
    except SERVER_ERRORS as error:  # what the job was for is done
        _LOGGER.warning("the run %s is done and could not be ended: %s", run.info.run_id, error)


def end_abandoned_runs(experiment_id: str, here: Process) -> None:
    """Ends runs of an experiment whose process is certainly dead as KILLED, and their unfinished models as FAILED.

    A run that this user may not change stays as it is.

    Args:
        experiment_id: where to look.
        here: the process that asks.

    Raises:
        MlflowException: runs cannot be listed.
    """
    client = MlflowClient()
    for run in _list_running(client, experiment_id):
        process = Process.from_json(run.data.tags[PROCESS_TAG])
        if process is not None and process.is_dead(here):
            with contextlib.suppress(*SERVER_ERRORS):
                _end_abandoned(client, run, process)


def _end_abandoned(client: MlflowClient, run: Run, process: Process) -> None:
    """Each step can be repeated; the status, by which such runs are found, comes last."""
    run_id = run.info.run_id
    for model in _list_models(client, run):
        if model.status == LoggedModelStatus.PENDING:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
    client.set_tag(run_id, FAILURE_TAG, f"process {process.pid} was killed, or its machine stopped")
    client.set_terminated(run_id, "KILLED")


def _list_running(client: MlflowClient, experiment_id: str) -> Iterator[Run]:
    token, wanted = None, f"attributes.status = 'RUNNING' AND tags.`{PROCESS_TAG}` LIKE '%'"
    while True:
        page = client.search_runs([experiment_id], wanted, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _list_models(client: MlflowClient, run: Run) -> Iterator[LoggedModel]:
    token, wanted = None, f"source_run_id = '{run.info.run_id}'"
    while True:
        page = client.search_logged_models([run.info.experiment_id], wanted, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def to_one_line(what: str) -> Iterator[None]:
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
