"""The MLflow run that a job works in: `with job_run("export"): ...`."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import mlflow
import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException

from mlflow_plugins.environment import changed_environment
from mlflow_plugins.flavor import describe_refused_upload
from mlflow_plugins.jobs.processes import Process
from mlflow_plugins.servers import check_registry_server, check_tracking_server
from plantmodels.data.image_files import printable_name
from plantmodels.errors import PlantModelsError, RegistrationError
from plantmodels.foreign_text import fit_encoding, quote_error, shorten

PREFIX: Final = "plantmodels."
"""Prefix of this project's run params and tags; `mlflow run` logs its own parameters under their plain names."""

_READING_JOBS: Final = ("score",)
"""Jobs that need a registered version, so that a database that does not exist is a mistake."""

FAILURE_TAG: Final = f"{PREFIX}failure"
PROCESS_TAG: Final = f"{PREFIX}process"
_MAX_TAG: Final = 5000
_SHORT_TIMEOUTS: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SERVER_ERRORS: Final = (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)

_LOGGER: Final = logging.getLogger(__name__)


def hide_bars_in_files() -> None:
    """Turn MLflow's own progress bars off unless standard error is a terminal."""
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def job_run(kind: str) -> Iterator[mlflow.ActiveRun]:
    """Work in the run that `mlflow run` started, or else in a new one, and mark it FAILED on any error.

    If a run is active in this process, the new one is its child.

    Runs of this experiment whose process was killed are ended first (`end_abandoned_runs`).

    Args:
        kind: name of the job, which becomes a tag.

    Raises:
        RegistrationError: the tracking server or the registry cannot be reached; said within ten seconds.
    """
    hide_bars_in_files()
    check_tracking_server(creates=kind not in _READING_JOBS)
    process = Process.current()
    tags = {f"{PREFIX}job": kind} | ({} if process is None else {PROCESS_TAG: process.to_json()})
    with short_timeouts(), registration_errors(f"the tracking server {mlflow.get_tracking_uri()} cannot be used"):
        run = mlflow.start_run(tags=tags, nested=mlflow.active_run() is not None)
    try:
        if process is not None:
            with short_timeouts(), contextlib.suppress(*SERVER_ERRORS):
                end_abandoned_runs(run.info.experiment_id, process)
        check_registry_server(creates=kind not in _READING_JOBS)
        with registration_errors("the job was cut short"):
            yield run
    except BaseException as error:
        with short_timeouts():
            with contextlib.suppress(*SERVER_ERRORS):
                if isinstance(error, PlantModelsError):
                    set_tags({FAILURE_TAG: shorten(printable_name(" ".join(str(error).split())), _MAX_TAG)})
            with contextlib.suppress(*SERVER_ERRORS):
                mlflow.end_run("FAILED")
        raise
    try:
        mlflow.end_run()
    except SERVER_ERRORS as error:  # what the job was for is done
        _LOGGER.warning("the job is done, but its run %s could not be ended: %s", run.info.run_id, error)


def log_params(params: Mapping[str, Any]) -> None:
    """Log params of the active run; see `write_texts`."""
    write_texts(mlflow.log_params, params)


def set_tags(tags: Mapping[str, Any]) -> None:
    """Set tags of the active run; see `write_texts`."""
    write_texts(mlflow.set_tags, tags)


def write_texts(write: Callable[[dict[str, str]], object], texts: Mapping[str, Any]) -> None:
    """Write texts; if the server refuses them, write them in ASCII.

    A path may have characters that the server's database cannot hold: tables of MySQL and MariaDB may be in latin1. A
    client does not know that before it is refused.

    Raises:
        MlflowException: the server refuses them in ASCII too.
    """
    given = {name: str(value) for name, value in texts.items()}
    try:
        write(given)
    except MlflowException:
        plain = {name: fit_encoding(value, "ascii") for name, value in given.items()}
        if plain == given:
            raise
        write(plain)


def end_abandoned_runs(experiment_id: str, here: Process) -> None:
    """Mark the runs whose process is certainly dead as KILLED, and their unfinished models as FAILED.

    A run that this user may not change stays as it is.

    Args:
        experiment_id: the experiment whose runs are looked at.
        here: this process.

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
    """End one run; the status comes last, so that an interrupted call can be repeated."""
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
def registration_errors(what: str) -> Iterator[None]:
    """Turn an error of a server or a disk into a `RegistrationError` of one line that starts with `what`."""
    try:
        yield
    except SERVER_ERRORS as error:
        reason = describe_refused_upload(error) or f"{type(error).__name__}: {quote_error(error)}"
        raise RegistrationError(f"{what}: {reason}") from error


def short_timeouts() -> AbstractContextManager[None]:
    """Let MLflow wait for a server that does not answer for seconds instead of minutes."""
    return changed_environment(_SHORT_TIMEOUTS)
