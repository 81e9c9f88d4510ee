"""What people ask of the gated registry through the plain MLflow client: waive, audit, delete, reconcile."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_plugins._mlflow_compat import STAGE_ARCHIVED, STAGE_PRODUCTION
from mlflow_plugins.registry.audit import Decision, read_decisions
from mlflow_plugins.registry.tags import ALIAS, GUARDED_TAG, WAIVE_TAG
from mlflow_plugins.registry.waivers import Waiver
from plantmodels.errors import RegistryError


@contextmanager
def _registry_errors() -> Iterator[None]:
    """Turn an error of MLflow's client into a `RegistryError` that names the registry."""
    try:
        yield
    except MlflowException as error:
        raise RegistryError(f"{mlflow.get_registry_uri()}: {error.message}") from error


def waive_gate(name: str, version: str, gate: str, reason: str) -> str:
    """Waive a gate of one version, and return a line that says what the registry wrote.

    Args:
        name: registered model.
        version: version number.
        gate: name of the failed gate.
        reason: why this version may be used although the gate failed.

    Raises:
        RegistryError: the registry refused, or it is not a gated one. Then no waiver is left.
    """
    client, key = MlflowClient(), f"{WAIVE_TAG}{gate}"
    with _registry_errors():
        client.set_model_version_tag(name, version, key, reason)
        waiver = Waiver.from_json(client.get_model_version(name, version).tags[key])
        if waiver is None:
            client.delete_model_version_tag(name, version, key)
            raise RegistryError(
                f"{mlflow.get_registry_uri()} is not a gated registry, so nothing was waived; use the address of a "
                "gated server, or plantmodels:DATABASE"
            )
    return f"{name} version {version}: {waiver.to_sentence(gate)}"


def delete_version(name: str, version: str, *, force: bool) -> str:
    """Delete a version, and return a line that says what was done.

    Args:
        name: registered model.
        version: version number.
        force: whether a version that is in Production is taken out of it first.

    Raises:
        RegistryError: the version is in Production and `force` is false, or it does not exist.
    """
    taken_out = ""
    with _registry_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MLflow deprecates stages
        client = MlflowClient()
        if force:
            found = client.get_model_version(name, version)
            if found.current_stage == STAGE_PRODUCTION:
                client.transition_model_version_stage(name, version, STAGE_ARCHIVED)
                taken_out = " It was taken out of Production first."
            for alias in client.get_model_version(name, version).aliases:
                client.delete_registered_model_alias(name, alias)
        client.delete_model_version(name, version)
    return f"{name} version {version} was deleted.{taken_out}"


def list_decisions(name: str) -> list[Decision]:
    """Return every decision about a registered model and its versions, deleted ones included, oldest first.

    Raises:
        RegistryError: the model does not exist, or the registry cannot be reached.
    """
    with _registry_errors():
        model = MlflowClient().get_registered_model(name)
        return read_decisions([model.tags, *(version.tags for version in _list_versions(name))])


def reconcile_model(name: str) -> str:
    """Make alias and stage of a model agree after a server died between the two, and return what was done.

    A promotion writes the alias first, and a demotion deletes it last. So the alias tells what was meant: an
    interrupted promotion is completed, an interrupted demotion is undone. If there is no alias, as for versions that
    were promoted before the registry was gated, the version that `models:/NAME/Production` means gets it. If both
    agree, nothing is changed.

    Raises:
        RegistryError: the gates now refuse the version that should be in Production, or the model does not exist or
            was never registered through a gated registry.
    """
    with _registry_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MLflow deprecates stages, and they are what is repaired here
        client = MlflowClient()
        model = client.get_registered_model(name)
        if GUARDED_TAG not in model.tags:
            raise RegistryError(f"{name} was never registered through a gated registry, so nothing can be reconciled")
        alias = model.aliases.get(ALIAS)
        in_stage = sorted(int(v.version) for v in _list_versions(name) if v.current_stage == STAGE_PRODUCTION)
        if alias is None and not in_stage:
            return f"{name}: no version is in Production"
        wanted = int(alias) if alias is not None else in_stage[-1]
        if in_stage == [wanted] and alias is not None:
            return f"{name}: version {wanted} is in Production by stage and by alias; nothing was changed"
        client.set_registered_model_alias(name, ALIAS, str(wanted))
        for other in in_stage:
            if other != wanted and client.get_model_version(name, str(other)).current_stage == STAGE_PRODUCTION:
                client.transition_model_version_stage(name, str(other), STAGE_ARCHIVED)
    stages = f"version {', '.join(map(str, in_stage))}" if in_stage else "no version"
    before = "no alias was set" if alias is None else f"the alias was on version {alias}"
    return (
        f"{name}: version {wanted} is in Production now by stage and by alias "
        f"(before, {stages} was in the stage and {before})"
    )


def _list_versions(name: str) -> list[ModelVersion]:
    client, token = MlflowClient(), None
    found: list[ModelVersion] = []
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
