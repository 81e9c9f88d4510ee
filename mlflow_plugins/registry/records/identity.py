"""Which registered model a row of the registry's tables is about, whatever the model is called today.

MLflow gives models no identity that survives a new name. So the registry writes one into a tag of the model: the tag
moves with the model when it is renamed, and is gone when the model is deleted. A new model of the same name gets
another one.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.exceptions import MlflowException

from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.tags import ID_TAG


def make_id(workspace: str, name: str, creation_time: int | None) -> str:
    """Return the identity of a model by its first known name; servers that make it at once make the same one."""
    return hashlib.sha256(f"{workspace}\n{name}\n{creation_time}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def set_model_tag(store: Any, name: str, key: str, value: str) -> None:
    """Set a tag of a registered model whose value is the same whoever sets it.

    MLflow looks whether there is such a tag and inserts it if not. If two requests do so at once, the database refuses
    one of them, which then finds the tag.

    Args:
        store: MLflow's own store, without the gate.
        name: the model.
        key: name of the tag.
        value: its value.

    Raises:
        MlflowException: the tag cannot be set a second time either.
    """
    try:
        store.set_registered_model_tag(name, RegisteredModelTag(key, value))
    except MlflowException:
        store.set_registered_model_tag(name, RegisteredModelTag(key, value))


class Identities:
    """Knows the identities of one registry's models."""

    def __init__(self, store: Any, rows: Rows) -> None:
        """Take MLflow's own store, without the gate, and its rows."""
        self._store = store
        self._rows = rows
        self._thread = threading.local()

    def get_workspace(self) -> str:
        """Return the workspace of the present request."""
        return self._rows.get_workspace()

    @contextmanager
    def remember(self) -> Iterator[None]:
        """Look up each name only once during the block. The caller holds the models' locks, so identities stay."""
        self._thread.remembered = {}
        try:
            yield
        finally:
            self._thread.remembered = None

    def find(self, name: str) -> str:
        """Return the identity of the model that has a name now; "" if there is none.

        A model that has no identity gets one.
        """
        remembered: dict[tuple[str, str], str] | None = getattr(self._thread, "remembered", None)
        if remembered is None:
            return self._find(name)
        key = (self.get_workspace(), name)
        if not remembered.get(key):
            remembered[key] = self._find(name)
        return remembered[key]

    def _find(self, name: str) -> str:
        found = self._rows.find_identity(name)
        if found is None:
            return ""
        if found.identity is not None:
            return found.identity
        identity = make_id(self.get_workspace(), found.name, found.creation_time)
        set_model_tag(self._store, found.name, ID_TAG, identity)
        return identity
