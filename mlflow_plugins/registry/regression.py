"""Compares a version with the one that it replaces in Production, by the rows that both reports rest on."""

from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mlflow_plugins._mlflow_compat import STAGE_PRODUCTION
from mlflow_plugins.registry.audit import AuditLog
from mlflow_plugins.registry.evidence import Evidence, EvidenceError, read_evidence
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.tags import ALIAS
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.regression import judge_regression, regression_not_measured
from plantmodels.report.gates import GateResult
from plantmodels.report.policy import GatePolicy


def compare_with_production(
    store: Any, rows: Rows, audit: AuditLog, version: ModelVersion, evidence: Evidence, policy: GatePolicy
) -> GateResult | None:
    """Return the gate `no_regression` of a version; None if there is no other version to compare it with.

    The version is compared with the one in Production. If nothing is there, it is compared with the one that was there
    last: taking a version out first makes no worse version pass. The gate is not measured if the other report cannot be
    read.

    Args:
        store: MLflow's own store, without the gate.
        rows: its rows.
        audit: the registry's audit.
        version: the version that is to be promoted.
        evidence: what its files prove; they hold a report.
        policy: the server's limits.

    Raises:
        EvidenceError: the rows of the version itself cannot be read.
    """
    number, place = _find_production(rows, version.name), "which is in Production"
    if number is None:
        number, place = audit.find_last_production(version.name), "which was in Production last"
    if number is None or number == str(version.version):
        return None
    now, words = evidence.read_rows(), f"version {number}, {place}"
    try:
        before = _read_rows(store, version.name, number)
    except (EvidenceError, MlflowException) as error:  # MLflow's: the version was deleted
        return regression_not_measured(f"{words}, cannot be compared: {error}", policy)
    return judge_regression(before, now, policy, words)


def compare_with_replaced(
    store: Any, audit: AuditLog, version: ModelVersion, evidence: Evidence, policy: GatePolicy
) -> GateResult | None:
    """Return the gate `no_regression` of a version in Production, against the version that was there before it.

    None if there was none, or if its report cannot be read any more: then nobody can tell.

    Raises:
        EvidenceError: the rows of the version itself cannot be read.
    """
    number = audit.find_last_production(version.name, other_than=str(version.version))
    if number is None:
        return None
    now = evidence.read_rows()
    try:
        before = _read_rows(store, version.name, number)
    except (EvidenceError, MlflowException):
        return None
    return judge_regression(before, now, policy, f"version {number}, which it replaced")


def _read_rows(store: Any, name: str, number: str) -> ImageTable:
    return read_evidence(store.get_model_version_download_uri(name, number)).read_rows()


def _find_production(rows: Rows, name: str) -> str | None:
    """Return the version with the alias `production`, or else the latest one in stage Production."""
    return rows.find_aliased(name, ALIAS) or rows.find_latest_in_stage(name, STAGE_PRODUCTION)
