"""The gated registry: MLflow's own store, which refuses to promote what the gates refuse.

`mlflow server --registry-store-uri plantmodels:sqlite:///mlflow.db` finds `build_store` by its entry point. Its
module imports nothing heavy: a plugin that cannot be imported must not take a client of another server down.
"""

from typing import Any


def build_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """The gated form of MLflow's store for the address behind `plantmodels:`.

    Args:
        store_uri: `plantmodels:` and a database URI, or the address of a REST server.
        tracking_uri: what MLflow passes; the process's own tracking address is used.
    """
    from mlflow_plugins.registry.store import build_gated_store

    return build_gated_store(store_uri.removeprefix("plantmodels:"))
