"""What is in Production: the alias `production` and the stage Production, which move together."""

from collections.abc import Iterator
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_plugins._mlflow_compat import STAGE_ARCHIVED, STAGE_PRODUCTION
from mlflow_plugins.registry.admission import is_not_found
from mlflow_plugins.registry.audit import AuditLog
from mlflow_plugins.registry.guard.names import fold
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.tags import ALIAS


def is_spelling_of_alias(alias: str) -> bool:
    """Return whether a reader or a database might take a name for the alias `production`."""
    return fold(alias) == ALIAS


class Production:
    """Moves versions of one store into Production and out of it. Callers hold the model's lock."""

    def __init__(self, store: Any, rows: Rows, audit: AuditLog) -> None:
        """Take MLflow's own store, without the gate, its rows and the registry's audit."""
        self._store = store
        self._rows = rows
        self._audit = audit

    def move_in(self, version: ModelVersion) -> None:
        """Put an admitted version into Production, and archive the one before.

        Both steps can be repeated. If the server dies between them, the alias is already right.
        """
        name, number = version.name, version.version
        self._store.set_registered_model_alias(name, ALIAS, number)
        self._store.transition_model_version_stage(name, number, STAGE_PRODUCTION, True)

    def archive(self, name: str) -> None:
        """Move every version of a model that is in stage Production to stage Archived."""
        for number in self._rows.list_in_stage(name, STAGE_PRODUCTION):
            self._store.transition_model_version_stage(name, str(number), STAGE_ARCHIVED, False)

    def refuse_if_occupied(self, name: str, action: str) -> None:
        """Refuse an action while a version of the model is in Production, by alias or by stage.

        Raises:
            MlflowException: PERMISSION_DENIED, naming the version.
        """
        aliased = self._rows.find_aliased(name, ALIAS)
        held = set(self._rows.list_in_stage(name, STAGE_PRODUCTION)) | (set() if aliased is None else {int(aliased)})
        if held:
            reason = f"version {', '.join(map(str, sorted(held)))} is in Production; take it out first"
            raise self._audit.refuse(name, None, action, reason)

    def refuse_deletion(self, version: ModelVersion) -> None:
        """Refuse to delete a version that is in Production, by alias or by stage.

        Raises:
            MlflowException: PERMISSION_DENIED, with what to do first.
        """
        if version.current_stage != STAGE_PRODUCTION and not any(map(is_spelling_of_alias, version.aliases)):
            return
        name, number = version.name, version.version
        advice = f"; take it out first, or use `plantmodels-registry delete {name} {number} --force`"
        raise self._audit.refuse(name, number, "delete the version", "it is in Production", advice=advice)

    def list_versions(self, name: str) -> Iterator[ModelVersion]:
        """Yield every version of a model, one number after the other.

        MLflow's search is not used: it leaves out versions with a client's prompt tag, and names with a quote.
        """
        latest = self._store.get_registered_model(name).latest_versions or []
        for number in range(1, max((int(version.version) for version in latest), default=0) + 1):
            try:
                yield self._store.get_model_version(name, str(number))
            except MlflowException as error:
                if not is_not_found(error):
                    raise
