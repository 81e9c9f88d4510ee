"""Entry point of the gated registry: `mlflow server --registry-store-uri plantmodels:sqlite:///mlflow.db`.

MLflow imports this module in every process that uses a registry, also where no gate is used. So it imports nothing
heavy: an error here would break all those processes.
"""

import os
import sys
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from mlflow_plugins.required import check_mlflow
from plantmodels.errors import PlantModelsError

_stores: Final = WeakValueDictionary[object, Any]()
"""The stores in use, by address, folder, class and settings.

MLflow has a cache of its own. But forty requests that come to a new server at once all find it empty, and would build
forty stores with as many pools of connections.
"""


def build_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """Return MLflow's registry store for an address, with the gate in front of it.

    Args:
        store_uri: `plantmodels:` followed by a database URI.
        tracking_uri: ignored; MLflow passes it, and the process's own tracking address is used.

    Raises:
        PlantModelsError: MLflow is too old, or the address or the configuration cannot be used.
        SystemExit: the same, where `mlflow server` starts: its user shall see one line and no traceback.
    """
    try:
        check_mlflow()
        from mlflow_plugins._mlflow_compat import get_store_class
        from mlflow_plugins.registry.store import build_gated_store

        settings = frozenset(item for item in os.environ.items() if item[0].startswith("PLANTMODELS_"))
        key = store_uri, Path.cwd(), get_store_class(), settings
        store = _stores.get(key)
        if store is None:
            store = _stores[key] = build_gated_store(store_uri.removeprefix("plantmodels:"))
        return store
    except PlantModelsError as error:
        if not _starts_server(sys.argv):
            raise
        raise SystemExit(f"Error: {error}") from error


def _starts_server(arguments: list[str]) -> bool:
    """Return whether this is the command `mlflow server`, or `python -m mlflow server`."""
    program = Path(arguments[0] if arguments else "")
    return "server" in arguments[1:] and "mlflow" in (program.stem, program.parent.name)
