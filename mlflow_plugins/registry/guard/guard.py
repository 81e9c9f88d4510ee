"""Which registered models and versions the gates apply to.

Guarded are the names that the server's configuration lists, models under which the registry has seen our flavor, and
versions whose MLmodel can be read and names our flavor. Names that the configuration exempts are never guarded. All
else is left to MLflow's own store, exactly as it came.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from mlflow_plugins._mlflow_compat import PROMPT_SOURCES, PROMPT_TAG
from mlflow_plugins.registry.audit import permission_denied
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.evidence import EvidenceError, has_flavor
from mlflow_plugins.registry.guard.names import fold
from mlflow_plugins.registry.guard.rows import Rows, StoredModel, StoredVersion
from mlflow_plugins.registry.records.identity import set_model_tag
from mlflow_plugins.registry.tags import GLANCE_TAG, GUARDED_TAG, RESERVED

_REMEMBERED_NAMES: Final = 10_000
"""Names whose place in the configuration is remembered; it depends on nothing but the name."""


def is_prompt_tag(tag: Any) -> bool:
    """Return whether a tag makes a model a prompt, in any spelling that a database might take for it."""
    key = getattr(tag, "key", None)
    return isinstance(key, str) and fold(key) == PROMPT_TAG


class Guard:
    """Tells guarded models and versions from those of others."""

    def __init__(self, store: Any, config: RegistryConfig, rows: Rows) -> None:
        """Take MLflow's own store, without the gate, the registry's configuration and its rows."""
        self._store = store
        self._config = config
        self._rows = rows
        self.lists = lru_cache(_REMEMBERED_NAMES)(self._lists)

    def _lists(self, name: object) -> bool:
        """Return whether the configuration lists a name, in this spelling or in one that the database takes for it."""
        if not isinstance(name, str) or self._config.exempts(name) or not self._config.guarded:
            return False
        return self._config.guards(name) or self._rows.takes_for_name(name, self._config.guarded)

    def exempts(self, name: object) -> bool:
        """Return whether the configuration exempts a name."""
        return isinstance(name, str) and self._config.exempts(name)

    def find_guarded(self, name: object) -> StoredModel | None:
        """Return the registered model that a request means, if it exists and is guarded."""
        found = self._rows.find_model(name)
        return found if found is not None and self._is_guarded(found) else None

    def find_guarded_version(self, name: object, version: object) -> StoredVersion | None:
        """Return the version that a request means, if it exists and its model is guarded."""
        found = self._rows.find_version(name, version)
        return found if found is not None and self._is_guarded(found) else None

    def find_judged_version(self, name: object, version: object) -> StoredVersion | None:
        """Return the version that a request means, if it exists and the gates apply to it.

        The gates apply if the model is guarded, if the version's MLmodel can be read and names our flavor, or if its
        client called it ours when it could not be read. In the last two cases the model is guarded from now on.
        """
        found = self._rows.find_version(name, version)
        if found is None or self._is_guarded(found):
            return found
        if self.exempts(found.name):
            return None
        if not found.is_unread and not self.ask_flavor(found.source, found.location)[0]:
            return None
        self.mark(found.name)  # it was registered before the registry was gated, or could not be read
        return found

    def list_guarded(self) -> list[str]:
        """Return the names of all registered models that are guarded."""
        return [model.name for model in self._rows.list_models() if self._is_guarded(model)]

    def is_guarded(self, name: object) -> bool:
        """Return whether a name is guarded, whether or not there is such a model."""
        return self.find_guarded(name) is not None or self.lists(name)

    def _is_guarded(self, found: StoredModel | StoredVersion) -> bool:
        return not self.exempts(found.name) and (found.is_marked or self.lists(found.name))

    def ask_flavor(self, source: str | None, location: str | None) -> tuple[bool, str | None]:
        """Return whether the files of a version are of our flavor, and why they cannot be read, if so."""
        if source in PROMPT_SOURCES or not location:
            return False, None
        try:
            return has_flavor(location), None
        except EvidenceError as error:
            return False, str(error)

    def mark(self, name: str) -> None:
        """Guard a model from now on."""
        set_model_tag(self._store, name, GUARDED_TAG, "true")

    def find_protected_alias(self, alias: object) -> str | None:
        """Return the protected alias that a reader or the database takes an alias for; None for all others."""
        if not isinstance(alias, str):
            return None
        aliases = self._config.aliases
        look_alike = next((known for known in aliases if fold(known) == fold(alias)), None)
        if look_alike is not None:
            return look_alike
        return next((known for known in aliases if self._rows.takes_for_alias(alias, known)), None)

    def refuse_reserved_tags(self, tags: Iterable[Any]) -> None:
        """Refuse tags that only the registry may write; see `refuse_reserved_tag`."""
        for tag in tags:
            self.refuse_reserved_tag(getattr(tag, "key", None))

    def refuse_reserved_tag(self, key: object) -> None:
        """Refuse a tag that only the registry may write.

        Raises:
            MlflowException: PERMISSION_DENIED, naming the tag.
        """
        if not isinstance(key, str):
            return
        is_glance = fold(key) == GLANCE_TAG or self._rows.takes_for_tag(key, GLANCE_TAG)
        if is_glance or fold(key).startswith(RESERVED) or self._rows.takes_for_tag(key, f"{RESERVED}*"):
            raise permission_denied(
                f"tag {key!a}: {GLANCE_TAG!r} and names that start with {RESERVED!r} are reserved for the registry"
            )
