"""What a person asks of the gated registry, by the plain MLflow client: waive, audit, reconcile.

>>> list_decisions("plant-disease")[-1].describe()  # doctest: +SKIP
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_plugins._mlflow_compat import STAGE_ARCHIVED, STAGE_PRODUCTION
from mlflow_plugins.registry.audit import ALIAS, GUARDED_TAG, WAIVE_TAG, Decision, Waiver, read_decisions
from plantmodels.errors import GovernanceError


@contextmanager
def _registry_errors() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise GovernanceError(f"{mlflow.get_registry_uri()}: {error.message}") from error


def waive_gate(name: str, version: str, gate: str, reason: str) -> str:
    """Asks the registry to waive a gate, and reads back that it wrote the waiver.

    Raises:
        GovernanceError: refused, or the registry is not a gated one (the tag is taken away again).
    """
    client, key = MlflowClient(), f"{WAIVE_TAG}{gate}"
    with _registry_errors():
        client.set_model_version_tag(name, version, key, reason)
        waiver = Waiver.from_json(client.get_model_version(name, version).tags[key])
        if waiver is None:
            client.delete_model_version_tag(name, version, key)
            raise GovernanceError(
                f"{mlflow.get_registry_uri()} is not a gated registry: nothing was waived; "
                "ask its server, or plantmodels:<database>"
            )
    return f"{name} version {version}: {gate} waived by {waiver.user or 'unknown user'}: {waiver.reason}"


def list_decisions(name: str) -> list[Decision]:
    """All decisions about a registered model, those about deleted versions included, oldest first.

    Raises:
        GovernanceError: no such model, or the registry cannot be reached.
    """
    with _registry_errors():
        model = MlflowClient().get_registered_model(name)
        return read_decisions([model.tags, *(version.tags for version in _list_versions(name))])


def reconcile_model(name: str) -> str:
    """Completes a promotion that stopped half-way, undoes such an archiving; changes nothing that agrees.

    The alias is written first on promotion and taken away last, so it tells what was meant; where there is none
    (versions promoted before the registry was gated), the version that `models:/NAME/Production` gives does.

    Raises:
        GovernanceError: the version that should be served is refused now; or no such model.
    """
    with _registry_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are what is repaired here
        client = MlflowClient()
        model = client.get_registered_model(name)
        if GUARDED_TAG not in model.tags:
            raise GovernanceError(f"{name} was never registered through a gated registry: nothing to reconcile")
        alias = model.aliases.get(ALIAS)
        stage = sorted(int(v.version) for v in _list_versions(name) if v.current_stage == STAGE_PRODUCTION)
        if alias is None and not stage:
            return f"{name}: nothing is in Production"
        wanted = int(alias) if alias is not None else stage[-1]
        if stage == [wanted] and alias is not None:
            return f"{name}: version {wanted} is in Production by stage and by alias"
        client.set_registered_model_alias(name, ALIAS, str(wanted))
        for other in stage:
            if other != wanted and client.get_model_version(name, str(other)).current_stage == STAGE_PRODUCTION:
                client.transition_model_version_stage(name, str(other), STAGE_ARCHIVED)
    return f"{name}: version {wanted} is in Production now by stage and by alias (stage was {stage}, alias {alias})"


def _list_versions(name: str) -> list[ModelVersion]:
    client, token = MlflowClient(), None
    found: list[ModelVersion] = []
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
