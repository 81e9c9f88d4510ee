"""Entry point of the gated registry: `mlflow server --registry-store-uri plantmodels:sqlite:///mlflow.db`.

MLflow imports this module in every process that uses a registry, also where no gate is used. So it imports nothing
heavy: an error here would break all those processes.
"""

from typing import Any


def build_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """Return MLflow's registry store for an address, with the gate in front of it.

    Args:
        store_uri: `plantmodels:` followed by a database URI.
        tracking_uri: ignored; MLflow passes it, and the process's own tracking address is used.
    """
    from mlflow_plugins.registry.store import build_gated_store

    return build_gated_store(store_uri.removeprefix("plantmodels:"))
