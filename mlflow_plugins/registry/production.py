"""What is in Production: the alias `production` and the stage Production, which move together."""

from collections.abc import Iterator
from typing import Any, Final

from mlflow.entities.model_registry import ModelVersion

from mlflow_plugins._mlflow_compat import STAGE_ARCHIVED, STAGE_PRODUCTION
from mlflow_plugins.registry.audit import AuditLog
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.guard.names import fold
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.tags import ALIAS

_IN_PRODUCTION: Final = "is in Production"


class Production:
    """Moves versions of one store into Production and out of it. Callers hold the model's lock."""

    def __init__(self, store: Any, rows: Rows, config: RegistryConfig, audit: AuditLog) -> None:
        """Take MLflow's own store, without the gate, its rows, and the registry's configuration and audit."""
        self._store = store
        self._rows = rows
        self._config = config
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
        """Refuse an action while a version of the model is in Production, by alias or by stage, or is protected.

        Raises:
            MlflowException: PERMISSION_DENIED, naming the version.
        """
        aliased = {alias: self._rows.find_aliased(name, alias) for alias in self._config.aliases}
        held = {int(number): f"has the alias {alias}" for alias, number in aliased.items() if number is not None}
        if (number := aliased[ALIAS]) is not None:
            held[int(number)] = _IN_PRODUCTION
        held |= dict.fromkeys(self._rows.list_in_stage(name, STAGE_PRODUCTION), _IN_PRODUCTION)
        if held:
            reason = ", ".join(f"version {number} {why}" for number, why in sorted(held.items()))
            raise self._audit.refuse(name, None, action, f"{reason}; take it out first")

    def refuse_deletion(self, version: ModelVersion) -> None:
        """Refuse to delete a version that is in Production, by alias or by stage, or has a protected alias.

        Raises:
            MlflowException: PERMISSION_DENIED, with what to do first.
        """
        held = [alias for alias in self._config.aliases if alias in map(fold, version.aliases)]
        if ALIAS in held or version.current_stage == STAGE_PRODUCTION:
            reason = f"it {_IN_PRODUCTION}"
        elif held:
            reason = f"it has the alias {held[0]}"
        else:
            return
        name, number = version.name, version.version
        advice = f"; take it out first, or use `plantmodels-registry delete {name} {number} --force`"
        raise self._audit.refuse(name, number, "delete the version", reason, advice=advice)

    def list_versions(self, name: str) -> Iterator[ModelVersion]:
        """Yield every version of a model, one number after the other.

        MLflow's search is not used: it leaves out versions with a client's prompt tag, and names with a quote.
        """
        latest = self._store.get_registered_model(name).latest_versions or []
        for number in range(1, max((int(version.version) for version in latest), default=0) + 1):
            found = self._rows.read_version(name, str(number))
            if found is not None:
                yield found

    def read_version(self, name: str, version: str) -> ModelVersion:
        """Return what MLflow's `get_model_version` does, or raise its error."""
        found = self._rows.read_version(name, version)
        return self._store.get_model_version(name, version) if found is None else found
