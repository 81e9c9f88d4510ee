"""Sends MLflow's webhooks where the registry moves an alias that nobody asked MLflow to move.

MLflow sends `model_version_alias.created` and `.deleted` when a client sets or deletes an alias. A change of stage
moves the alias `production` as well, and without this file nobody would hear of it.
"""

from typing import Any

from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.webhooks.types import ModelVersionAliasCreatedPayload, ModelVersionAliasDeletedPayload

from mlflow_plugins._mlflow_compat import is_serving


class AliasEvents:
    """Tells the receivers of a server's webhooks that an alias was moved. Without a server there are none to tell."""

    def __init__(self, store: Any) -> None:
        """Take the registry store, which knows the webhooks."""
        self._store = store

    def tell_created(self, name: str, alias: str, version: str) -> None:
        """Say that an alias names a version from now on. If a receiver does not answer, MLflow logs it."""
        payload = ModelVersionAliasCreatedPayload(name=name, alias=alias, version=str(version))
        self._send(WebhookAction.CREATED, payload)

    def tell_deleted(self, name: str, alias: str) -> None:
        """Say that an alias was deleted."""
        self._send(WebhookAction.DELETED, ModelVersionAliasDeletedPayload(name=name, alias=alias))

    def _send(self, action: WebhookAction, payload: Any) -> None:
        if not is_serving():
            return
        from mlflow.webhooks.delivery import deliver_webhook  # starts a pool of threads

        event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, action)
        deliver_webhook(event=event, payload=payload, store=self._store)
