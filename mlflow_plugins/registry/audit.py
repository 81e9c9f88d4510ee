"""The registry's audit: every decision is written into a table before it is carried out, and can be read back.

>>> Decision("2026-11-24T10:00:00Z", "ada", "3", "set alias production", True, "all gates passed", None).to_sentence()
'2026-11-24T10:00:00Z  allowed: ada asked to set alias production (version 3): all gates passed'
"""

import getpass
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from sqlalchemy import bindparam, select

from mlflow_plugins._mlflow_compat import is_serving, read_authenticated_user
from mlflow_plugins.registry.evidence import Evidence
from mlflow_plugins.registry.records.identity import Identities
from mlflow_plugins.registry.records.tables import DECISIONS, OUTCOMES, Records
from plantmodels.foreign_text import escape_controls
from plantmodels.report.gates import GateResult

_LOGGER: Final = logging.getLogger("mlflow.plantmodels.audit")
"""A child of MLflow's logger, so that the server's log shows every decision."""

NO_GATE_APPLIES: Final = "no gate applies to this"
"""Reason of a decision that needs no check, such as taking a version out of Production."""

_UNKNOWN_USER: Final = "an unknown user"


def permission_denied(message: str) -> MlflowException:
    """Return the error that refuses a request; control characters in foreign text are escaped.

    Its code is PERMISSION_DENIED, the only one with which the message reaches the UI and every client unchanged.
    """
    return MlflowException(escape_controls(message), error_code=PERMISSION_DENIED)


def read_user() -> str | None:
    """Return who makes the request: the server's authenticated user, or this machine's user where no server runs."""
    return read_authenticated_user() or (None if is_serving() else getpass.getuser())


def name_user(user: str | None) -> str:
    """Return a user's name for people; a server without authentication does not know its users."""
    return user or _UNKNOWN_USER


def read_clock() -> str:
    """Return the time in UTC, to the microsecond, as ISO 8601 text of fixed length that sorts by time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Decision:
    """One entry of the audit.

    Attributes:
        at: time in UTC, ISO 8601 with microseconds.
        user: who asked; None if the server does not know its users.
        version: version number; None if the decision concerns the whole registered model.
        action: what was asked, such as "promote to stage Production".
        allowed: whether the registry allowed it.
        reason: why it was allowed or refused.
        manifest_sha256: digest of the version's manifest; None if its files were not read.
        number: position among all decisions, so that their order survives a clock that is set back.
        name: what the registered model was called.
        production: the version that the decision puts into Production: 0 if none is there afterwards, None if the
            decision changes nothing there.
        carried_out_at: when Production had been changed; None if it was not, because the server died in between.
        gates: what each gate measured; None if the gates were not asked.
    """

    at: str
    user: str | None
    version: str | None
    action: str
    allowed: bool
    reason: str
    manifest_sha256: str | None
    number: int = 0
    name: str = ""
    production: int | None = None
    carried_out_at: str | None = None
    gates: tuple[Mapping[str, str], ...] | None = None

    def to_sentence(self) -> str:
        """Return one line for people: when, whether it was allowed, who asked for what, and why.

        Control characters are escaped: a reason cannot add a line that looks like a decision.
        """
        verdict = "allowed" if self.allowed else "REFUSED"
        details = [] if self.version is None else [f"version {self.version}"]
        if self.manifest_sha256 is not None:
            details.append(f"manifest {self.manifest_sha256[:12]}")
        where = f" ({', '.join(details)})" if details else ""
        return escape_controls(
            f"{self.at}  {verdict}: {name_user(self.user)} asked to {self.action}{where}: {self.reason}"
        )


@dataclass(frozen=True)
class DecisionQuery:
    """Which decisions to read.

    Attributes:
        name: registered model. Decisions about it under former names are included, and so are those about deleted
            models of this name.
        version: only decisions about this version.
        since: only decisions at this time in UTC, ISO 8601, or later.
        until: only decisions at this time or earlier.
        about_production: only decisions that changed what is in Production, or were meant to.
        newest_first: the order; otherwise the oldest comes first.
        beyond: number of the decision that the last page ended with; None for the first page.
        limit: decisions of one page.
    """

    name: str
    version: str | None = None
    since: str | None = None
    until: str | None = None
    about_production: bool = False
    newest_first: bool = False
    beyond: int | None = None
    limit: int = 1000


class AuditLog:
    """Writes decisions into the registry's tables and into the server's log, and reads them back."""

    def __init__(self, records: Records, identities: Identities) -> None:
        """Take the registry's tables and the identities of its models."""
        self._records = records
        self._identities = identities

    def record(
        self,
        name: str,
        version: str | None,
        action: str,
        *,
        allowed: bool,
        reason: str,
        evidence: Evidence | None = None,
        production: int | None = None,
        gates: Iterable[GateResult] | None = None,
    ) -> int:
        """Write one decision down and return its number.

        Args:
            name: registered model.
            version: version number; None for a decision about the whole model.
            action: what was asked, as it continues "asked to …".
            allowed: the decision.
            reason: why.
            evidence: what was read from the version's files, if anything was.
            production: the version that will be in Production; 0 for none, None if that does not change. Call
                `confirm` when it is there.
            gates: the gates as they were judged, if they were.

        Raises:
            MlflowException: TEMPORARILY_UNAVAILABLE; it cannot be written, so it must not be carried out.
        """
        digest = None if evidence is None else evidence.manifest_sha256
        number = None if version is None else str(version)
        decision = Decision(read_clock(), read_user(), number, action, allowed, reason, digest)
        _LOGGER.info("%s: %s", escape_controls(name), decision.to_sentence())
        row = {
            "workspace": self._identities.get_workspace(),
            "model_id": self._identities.find(name),
            "name": name,
            "version": None if version is None else int(version),
            "at": decision.at,
            "user": decision.user,
            "action": action,
            "allowed": allowed,
            "reason": reason,
            "manifest_sha256": digest,
            "gates": None if gates is None else json.dumps(_record_gates(gates), ensure_ascii=False),
            "production": production,
        }
        with self._records.begin() as connection:
            made: Any = connection.execute(_INSERT, row).inserted_primary_key
        return int(made[0])

    def confirm(self, number: int) -> None:
        """Write down that a decision about Production was carried out."""
        with self._records.begin() as connection:
            connection.execute(_CONFIRM, {"decision_id": number, "at": read_clock()})

    def refuse(
        self,
        name: str,
        version: str | None,
        action: str,
        reason: str,
        evidence: Evidence | None = None,
        advice: str = "",
    ) -> MlflowException:
        """Write a refusal down and return the error to raise.

        Args:
            name: registered model.
            version: version number; None for a request about the whole model.
            action: what was asked.
            reason: why it is refused.
            evidence: what was read from the version's files, if anything was.
            advice: what the user can do about it; part of the error, not of the audit.
        """
        self.record(name, version, action, allowed=False, reason=reason, evidence=evidence)
        subject = name if version is None else f"{name} version {version}"
        return permission_denied(f"{subject}: refused to {action}: {reason}{advice}")

    def find(self, query: DecisionQuery) -> list[Decision]:
        """Return one page of decisions."""
        row, conditions = DECISIONS.c, [DECISIONS.c.workspace == self._identities.get_workspace()]
        identity = self._identities.find(query.name)
        by_name = row.name == query.name
        conditions.append(sqlalchemy.or_(by_name, row.model_id == identity) if identity else by_name)
        if query.version is not None:
            conditions.append(row.version == int(query.version))
        if query.since is not None:
            conditions.append(row.at >= query.since)
        if query.until is not None:
            conditions.append(row.at <= query.until)
        if query.about_production:
            conditions.append(row.production.is_not(None))
        if query.beyond is not None:
            conditions.append(row.id < query.beyond if query.newest_first else row.id > query.beyond)
        joined = DECISIONS.outerjoin(OUTCOMES, OUTCOMES.c.decision_id == row.id)
        order = row.id.desc() if query.newest_first else row.id
        asked = sqlalchemy.select(DECISIONS, OUTCOMES.c.at.label("carried_out_at")).select_from(joined)
        with self._records.begin() as connection:
            rows = connection.execute(asked.where(*conditions).order_by(order).limit(query.limit)).all()
        return [_read_row(row) for row in rows]

    def find_last_production(self, name: str, other_than: str | None = None) -> str | None:
        """Return the version of a model that came into Production last; None if there never was one.

        A deleted model of the same name does not count.

        Args:
            name: registered model.
            other_than: a version that does not count; None counts all.
        """
        asked = {"model_id": self._identities.find(name), "excluded": int(other_than or 0)}
        with self._records.begin() as connection:
            found = connection.execute(_LAST_PRODUCTION, asked).scalar()
        return None if found is None else str(found)


def _select_last_production() -> Any:
    row = DECISIONS.c
    joined = DECISIONS.join(OUTCOMES, OUTCOMES.c.decision_id == row.id)
    was_promoted = row.production > 0, row.production != bindparam("excluded"), row.model_id == bindparam("model_id")
    return select(row.production).select_from(joined).where(*was_promoted).order_by(row.id.desc()).limit(1)


_INSERT: Final = DECISIONS.insert()
_CONFIRM: Final = OUTCOMES.insert()
_LAST_PRODUCTION: Final = _select_last_production()
"""Statements of every promotion, built once: that takes longer than asking the database."""


def _record_gates(gates: Iterable[GateResult]) -> list[dict[str, str]]:
    """Return gates as the audit keeps them: the texts that people see."""
    return [
        {"gate": gate.name, "status": gate.status, "measured": gate.measured_text, "limit": gate.limit_text}
        for gate in gates
    ]


def _read_row(row: Any) -> Decision:
    return Decision(
        at=row.at,
        user=row.user,
        version=None if row.version is None else str(row.version),
        action=row.action,
        allowed=bool(row.allowed),
        reason=row.reason,
        manifest_sha256=row.manifest_sha256,
        number=row.id,
        name=row.name,
        production=row.production,
        carried_out_at=row.carried_out_at,
        gates=None if row.gates is None else tuple(json.loads(row.gates)),
    )
