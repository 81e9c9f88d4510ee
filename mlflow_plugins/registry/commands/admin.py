"""Changes that people make in the gated registry through MLflow's plain client: waive, delete, reconcile."""

import warnings

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from mlflow_plugins._mlflow_compat import STAGE_ARCHIVED, STAGE_PRODUCTION
from mlflow_plugins.names import filter_by_name
from mlflow_plugins.registry.audit import read_clock
from mlflow_plugins.registry.commands.history import find_production
from mlflow_plugins.registry.commands.questions import ask_about, registry_errors
from mlflow_plugins.registry.people.waiver_request import WaiverRequest, parse_end
from mlflow_plugins.registry.tags import ALIAS, GUARDED_TAG, WAIVE_TAG
from plantmodels.errors import RegistryError


def waive_gate(name: str, version: str, gate: str, reason: str, until: str | None = None) -> str:
    """Waive a gate of one version, and return a line that says what the registry wrote.

    Args:
        name: registered model.
        version: version number.
        gate: name of the failed gate.
        reason: why this version may be used although the gate failed.
        until: time in UTC, ISO 8601, after which the waiver does not hold any more; None for no end.

    Raises:
        RegistryError: the registry refused, or it is not a gated one. Then no waiver is left.
    """
    ask_about("audit", name, limit=1)  # a registry without the gate would take the waiver for any other tag
    client, key = MlflowClient(), f"{WAIVE_TAG}{gate}"
    with registry_errors():
        client.set_model_version_tag(name, version, key, WaiverRequest(reason, until and parse_end(until)).to_text())
        return f"{name} version {version}: {gate} was {client.get_model_version(name, version).tags[key]}"


def check_version(name: str, version: str) -> str | None:
    """Ask the registry whether it would promote a version now, and return why not; None if it would.

    Nothing is changed, and nothing is written into the audit. Who asks, and how many, does not count.

    Raises:
        RegistryError: there is no such version, or the registry is not a gated one.
    """
    answer = ask_about("check", name, version=version)
    return None if answer is None else str(answer)


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
    with registry_errors(), warnings.catch_warnings():
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
    with registry_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MLflow deprecates stages, and they are what is repaired here
        client = MlflowClient()
        model = client.get_registered_model(name)
        if GUARDED_TAG not in model.tags:
            raise RegistryError(f"{name} was never registered through a gated registry, so nothing can be reconciled")
        alias = model.aliases.get(ALIAS)
        in_stage = sorted(int(v.version) for v in _list_versions(name) if v.current_stage == STAGE_PRODUCTION)
        recorded = find_production(name, read_clock()).version
        if alias is None and not in_stage:
            if recorded is not None:  # the server died before it had written the end of the change
                client.delete_registered_model_alias(name, ALIAS)
            return f"{name}: no version is in Production"
        wanted = int(alias) if alias is not None else in_stage[-1]
        agree = in_stage == [wanted] and alias is not None
        if agree and recorded == str(wanted):
            return f"{name}: version {wanted} is in Production by stage and by alias; nothing was changed"
        client.set_registered_model_alias(name, ALIAS, str(wanted))
        for other in in_stage:
            if other != wanted and client.get_model_version(name, str(other)).current_stage == STAGE_PRODUCTION:
                client.transition_model_version_stage(name, str(other), STAGE_ARCHIVED)
    if agree:
        return f"{name}: version {wanted} is in Production by stage and by alias, and by the audit from now on"
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
        page = client.search_model_versions(filter_by_name(name), max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
