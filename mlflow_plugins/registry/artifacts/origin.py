"""Where the files of a logged model and of a run lie.

Where the tracking store is a database, one row is asked for. MLflow's client reads tags, params and metrics as well,
which takes longer than the registration of a version.
"""

from functools import lru_cache
from typing import Any, Final

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModelStatus
from sqlalchemy import bindparam, select

from mlflow_plugins._mlflow_compat import find_tracking_engine, get_tracking_tables
from mlflow_plugins.registry.guard.lookup import Lookup

_READY: Final = LoggedModelStatus.READY.to_int()


def find_logged_model(model_id: str) -> tuple[str, bool]:
    """Return the location of a logged model's files, and whether its upload was finished.

    Raises:
        MlflowException: there is no such model.
    """
    found = _find_row("logged_models", model_id)
    if found is not None and found.lifecycle_stage == LifecycleStage.ACTIVE:
        return found.artifact_location, found.status == _READY
    model = MlflowClient().get_logged_model(model_id)
    return model.artifact_location, model.status == LoggedModelStatus.READY


def find_run(run_id: str) -> tuple[str, str]:
    """Return the experiment of a run, and the location of its artifacts.

    Raises:
        MlflowException: there is no such run.
    """
    found = _find_row("runs", run_id)
    if found is not None:
        return str(found.experiment_id), found.artifact_uri
    run = MlflowClient().get_run(run_id).info
    return run.experiment_id, run.artifact_uri


def _find_row(table: str, identity: str) -> Any:
    """Return a row of the tracking database; None if there is none, or no plain database."""
    engine = find_tracking_engine()
    return None if engine is None else _make_lookup(engine, table).find({"identity": identity})


@lru_cache(8)
def _make_lookup(engine: sqlalchemy.Engine, table: str) -> Lookup:
    row = get_tracking_tables()[table].c
    if table == "runs":
        query = select(row.experiment_id, row.artifact_uri).where(row.run_uuid == bindparam("identity"))
    else:
        columns = row.artifact_location, row.status, row.lifecycle_stage
        query = select(*columns).where(row.model_id == bindparam("identity"))
    return Lookup(engine, query)
