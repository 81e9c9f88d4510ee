"""Examines guarded models: what is wrong with the versions that are served, and how to mend it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_plugins._mlflow_compat import STAGE_PRODUCTION, STAGE_STAGING, parse_models_uri
from mlflow_plugins.registry.audit import AuditLog, DecisionQuery
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.evidence import Evidence, EvidenceError, describe_gate, read_evidence
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.records.stamps import Stamps
from mlflow_plugins.registry.regression import compare_with_replaced
from mlflow_plugins.registry.tags import ALIAS
from mlflow_plugins.registry.waivers import Waivers
from plantmodels.report.gates import GateResult

_REGISTER_AGAIN: Final = "promote an older version, or register the bundle again and promote that"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a registered model.

    Attributes:
        problem: what is wrong, with the version.
        advice: what mends it.
    """

    problem: str
    advice: str


class Doctor:
    """Examines the guarded models of one registry. It changes nothing."""

    def __init__(
        self, store: Any, rows: Rows, config: RegistryConfig, audit: AuditLog, waivers: Waivers, stamps: Stamps
    ) -> None:
        """Take MLflow's own store without the gate, its rows, and the registry's parts that are asked."""
        self._store = store
        self._rows = rows
        self._config = config
        self._audit = audit
        self._waivers = waivers
        self._stamps = stamps

    def examine(self, name: str) -> list[Finding]:
        """Return what is wrong with a model: its stage and alias, and the versions that are served.

        Raises:
            MlflowException: there is no such model.
        """
        self._store.get_registered_model(name)
        alias = self._rows.find_aliased(name, ALIAS)
        staged = self._rows.list_in_stage(name, STAGE_PRODUCTION, STAGE_STAGING)
        in_production = sorted(number for number, stage in staged.items() if stage == STAGE_PRODUCTION)
        findings = list(self._compare(name, None if alias is None else int(alias), in_production))
        for number in sorted({*staged, *([] if alias is None else [int(alias)])}):
            findings += self._examine_version(self._store.get_model_version(name, str(number)))
        return findings

    def _compare(self, name: str, alias: int | None, in_stage: list[int]) -> Iterator[Finding]:
        """Yield how alias, stage and audit contradict each other."""
        reconcile = f"run plantmodels-registry reconcile {name}"
        if in_stage != ([] if alias is None else [alias]):
            stage = f"version {', '.join(map(str, in_stage))}" if in_stage else "no version"
            held = f"version {alias}" if alias is not None else "no version"
            yield Finding(f"stage Production holds {stage}, and alias {ALIAS} names {held}", reconcile)
            return
        last = self._audit.find(DecisionQuery(name, about_production=True, newest_first=True, limit=50))
        done = next((decision for decision in last if decision.carried_out_at is not None), None)
        recorded = 0 if done is None else done.production
        if recorded != (alias or 0):
            yield Finding(
                f"version {alias or 'none'} is in Production, and by the audit it is version {recorded or 'none'}: "
                "somebody changed it past the gate, or a server stopped before it had written the end of the change",
                f"promote the version that should be there once more: plantmodels-registry reconcile {name}",
            )

    def _examine_version(self, version: ModelVersion) -> Iterator[Finding]:
        subject = f"version {version.version} ({version.current_stage})"
        try:
            evidence = read_evidence(self._store.get_model_version_download_uri(version.name, version.version))
            yield from self._examine_files(version, subject, evidence)
        except EvidenceError as error:
            yield Finding(f"{subject}: {error}", _REGISTER_AGAIN)
        yield from _examine_origin(version, subject)

    def _examine_files(self, version: ModelVersion, subject: str, evidence: Evidence) -> Iterator[Finding]:
        stamp = self._stamps.find(version.name, version.version)
        if stamp is None:
            yield Finding(f"{subject}: it was never stamped, so its files may be others", "promote it once more")
        elif stamp.model_sha256 != evidence.digest_model():
            yield Finding(f"{subject}: its files are not those that were registered", _REGISTER_AGAIN)
        for gate in self._find_failures(version, evidence):
            if self._waivers.find(version.name, version.version, gate, evidence.manifest_sha256) is None:
                waive = f"plantmodels-registry waive {version.name} {version.version} {gate.name} --reason …"
                yield Finding(
                    f"{subject}: it would not be promoted today: {describe_gate(gate)}, and no waiver holds",
                    f"promote another version, or {waive}",
                )

    def _find_failures(self, version: ModelVersion, evidence: Evidence) -> Iterator[GateResult]:
        """Yield the gates that fail today. A version in Production must not be worse than the one that it replaced."""
        policy = self._config.policy
        yield from evidence.find_failures(policy)
        if version.current_stage == STAGE_PRODUCTION or ALIAS in version.aliases:
            lost = compare_with_replaced(self._store, self._audit, version, evidence, policy)
            if lost is not None and lost.status == "failed":
                yield lost


def _examine_origin(version: ModelVersion, subject: str) -> Iterator[Finding]:
    """Yield whether the run or the logged model was deleted, whose files `mlflow gc` then removes."""
    client = MlflowClient()
    if version.run_id:
        try:
            stage = client.get_run(version.run_id).info.lifecycle_stage
        except MlflowException as error:
            yield Finding(f"{subject}: its run cannot be read: {error.message}", _REGISTER_AGAIN)
        else:
            if stage == LifecycleStage.DELETED:
                yield Finding(
                    f"{subject}: its run {version.run_id} was deleted, so `mlflow gc` will remove its files",
                    f"mlflow runs restore --run-id {version.run_id}",
                )
    source = str(version.source)
    model_id = parse_models_uri(source)[0] if source.startswith("models:/") else None
    if model_id is not None:
        try:
            client.get_logged_model(model_id)
        except MlflowException as error:
            yield Finding(
                f"{subject}: its logged model {model_id} was deleted, so `mlflow gc` will remove its files "
                f"({error.message})",
                _REGISTER_AGAIN,
            )
