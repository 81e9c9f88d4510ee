"""Waivers: a person takes responsibility for one failed gate of one version.

A waiver names the measured value and the manifest that it was given for. If either changes, or when its end has come,
it no longer applies.

>>> Waiver.from_json("not written by the registry") is None
True
"""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy
from mlflow.entities.model_registry import ModelVersionTag

from mlflow_plugins.registry.audit import NO_GATE_APPLIES, AuditLog, name_user, read_clock, read_user
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.evidence import Evidence, EvidenceError, read_evidence
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.people.waiver_request import WaiverRequest, parse_request
from mlflow_plugins.registry.records.identity import Identities
from mlflow_plugins.registry.records.tables import WAIVERS, Records
from mlflow_plugins.registry.regression import compare_with_production
from mlflow_plugins.registry.tags import WAIVE_TAG
from plantmodels.bundle.serialization import decode, parse_json_text
from plantmodels.foreign_text import escape_controls, find_control
from plantmodels.report.gates import PROMOTION_GATES, GateResult

INTEGRITY_GATES: Final = frozenset({"loads", "heads_complete"})
"""Gates that check whether the files are complete and the classes in order. They can never be waived."""

_MAX_REASON: Final = 1000
"""Characters of the reason that a person gives."""


@dataclass(frozen=True)
class Waiver:
    """A person's reason for using a version although one gate failed.

    Attributes:
        measured: the gate's value when it was waived; None if it was not measured.
        manifest_sha256: digest of the version's manifest when it was waived.
        reason: the text that the person gave.
        user: who waived the gate; None if the server does not know its users.
        at: time in UTC, ISO 8601.
        until: time in UTC, ISO 8601, after which it does not hold any more; None for no end.
    """

    measured: float | None
    manifest_sha256: str
    reason: str
    user: str | None
    at: str
    until: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its end has come."""
        return self.until is not None and self.until < read_clock()

    def covers(self, gate: GateResult, manifest_sha256: str) -> bool:
        """Return whether it was given for this measured value and these files."""
        return self.measured == gate.measured and self.manifest_sha256 == manifest_sha256

    def to_sentence(self, gate_name: str) -> str:
        """Return who waived the gate, and why; control characters are escaped."""
        return escape_controls(f"{gate_name} was waived by {name_user(self.user)}{self._describe_end()}: {self.reason}")

    def to_tag(self) -> str:
        """Return what the version's tag shows in MLflow's UI."""
        return f"waived by {name_user(self.user)} on {self.at[:10]}{self._describe_end()}: {self.reason}"

    def _describe_end(self) -> str:
        return "" if self.until is None else f" until {self.until}"

    def to_row(self) -> dict[str, Any]:
        """Return the columns of its row in the table of waivers, but for those that say what it is about."""
        measured = None if self.measured is None else repr(float(self.measured))
        return asdict(self) | {"measured": measured, "withdrawn": False}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Waiver":
        """Return the waiver of a row."""
        measured = None if row["measured"] is None else float(row["measured"])
        return cls(measured, row["manifest_sha256"], row["reason"], row["user"], row["at"], row["until"])

    @classmethod
    def from_json(cls, text: str) -> "Waiver | None":
        """Return the waiver in a tag of a registry that kept waivers in tags; None if the value holds none."""
        try:
            document = parse_json_text(text)
            return decode(cls, {"until": None, **document} if isinstance(document, dict) else document, "waiver")
        except ValueError:
            return None


class Waivers:
    """Grants and withdraws waivers, and writes both into the audit.

    The waiver is a row of the registry's tables. The version's tag only shows it.
    """

    def __init__(
        self, store: Any, rows: Rows, config: RegistryConfig, audit: AuditLog, records: Records, identities: Identities
    ) -> None:
        """Take MLflow's own store, without the gate, its rows, and the registry's configuration, audit and tables."""
        self._store = store
        self._rows = rows
        self._config = config
        self._audit = audit
        self._records = records
        self._identities = identities

    def find(self, name: str, version: str, gate: GateResult, manifest_sha256: str) -> Waiver | None:
        """Return the waiver that lets a version pass a failed gate; None if there is none that applies."""
        waiver = self._find_last(name, version, gate, manifest_sha256)
        return None if waiver is None or waiver.has_ended else waiver

    def find_end(self, name: str, version: str, gate: GateResult, manifest_sha256: str) -> str | None:
        """Return when a failed gate's waiver ended; None if there is none that applied until then."""
        waiver = self._find_last(name, version, gate, manifest_sha256)
        return waiver.until if waiver is not None and waiver.has_ended else None

    def _find_last(self, name: str, version: str, gate: GateResult, manifest_sha256: str) -> Waiver | None:
        if gate.name in INTEGRITY_GATES:
            return None
        of_gate = (
            WAIVERS.c.model_id == self._identities.find(name),
            WAIVERS.c.version == int(version),
            WAIVERS.c.gate == gate.name,
        )
        last = sqlalchemy.select(WAIVERS).where(*of_gate).order_by(WAIVERS.c.id.desc()).limit(1)
        with self._records.begin() as connection:
            row = connection.execute(last).mappings().first()
        if row is None or row["withdrawn"]:
            return None
        waiver = Waiver.from_row(dict(row))
        return waiver if waiver.covers(gate, manifest_sha256) else None

    def _write(self, name: str, version: str, gate_name: str, row: dict[str, Any]) -> None:
        whose = {"workspace": self._identities.get_workspace(), "model_id": self._identities.find(name)}
        with self._records.begin() as connection:
            connection.execute(WAIVERS.insert().values(whose | {"version": int(version), "gate": gate_name} | row))

    def grant(self, name: str, version: str, gate_name: str, text: str) -> Evidence:
        """Waive a gate that fails now, for its present value and the present files.

        Args:
            name: registered model.
            version: version number.
            gate_name: one of the version's failed gates.
            text: the person's reason, 1 to 1000 characters; with `until 2026-12-31: ` before it, the waiver has an end.

        Returns:
            What the version's files prove.

        Raises:
            MlflowException: PERMISSION_DENIED; the user may not waive, the gate did not fail, or it can never be
                waived.
        """
        action = f"waive {gate_name}"
        location = self._store.get_model_version_download_uri(name, version)
        self._check_user(name, version, action, gate_name)
        try:
            request = parse_request(text)
        except ValueError as error:
            raise self._audit.refuse(name, version, action, str(error)) from error
        try:
            evidence = read_evidence(location)
            failures = {gate.name: gate for gate in evidence.find_failures(self._config.policy)}
            if gate_name in PROMOTION_GATES:  # as it would be judged now
                found = self._store.get_model_version(name, version)
                parts = self._store, self._rows, self._audit
                compared = compare_with_production(*parts, found, evidence, self._config.policy)
                failures |= {compared.name: compared} if compared is not None and not compared.passed else {}
        except EvidenceError as error:
            raise self._audit.refuse(name, version, action, str(error)) from error
        self._check_request(name, version, gate_name, request, evidence, failures)
        measured = failures[gate_name].measured
        waiver = Waiver(measured, evidence.manifest_sha256, request.reason, read_user(), read_clock(), request.until)
        self._audit.record(name, version, action, allowed=True, reason=request.to_text(), evidence=evidence)
        self._write(name, version, gate_name, waiver.to_row())
        self._store.set_model_version_tag(
            name, version, ModelVersionTag(f"{WAIVE_TAG}{gate_name}", self._rows.fit(waiver.to_tag()))
        )
        return evidence

    def withdraw(self, name: str, version: str, gate_name: str) -> Evidence | None:
        """Delete a waiver.

        Returns:
            What the version's files prove; None if they cannot be read.

        Raises:
            MlflowException: PERMISSION_DENIED; the user may not waive.
        """
        action = f"withdraw the waiver of {gate_name}"
        self._check_user(name, version, action, gate_name)
        self._audit.record(name, version, action, allowed=True, reason=NO_GATE_APPLIES)
        self._write(name, version, gate_name, {"user": read_user(), "at": read_clock(), "withdrawn": True})
        self._store.delete_model_version_tag(name, version, f"{WAIVE_TAG}{gate_name}")
        with contextlib.suppress(EvidenceError):
            return read_evidence(self._store.get_model_version_download_uri(name, version))
        return None

    def _check_user(self, name: str, version: str, action: str, gate_name: str) -> None:
        owners = self._config.gate_owners.get(gate_name)
        allowed, what = (self._config.waiver_users, "gates") if owners is None else (owners, gate_name)
        if allowed and (user := read_user()) not in allowed:
            reason = f"{name_user(user)} may not waive {what}; allowed users: {', '.join(allowed)}"
            raise self._audit.refuse(name, version, action, reason)

    def _check_request(
        self,
        name: str,
        version: str,
        gate_name: str,
        request: WaiverRequest,
        evidence: Evidence,
        failures: dict[str, GateResult],
    ) -> None:
        if gate_name in INTEGRITY_GATES:
            problem = "this gate checks the files themselves, so it can never be waived"
        elif gate_name not in failures:
            problem = f"{gate_name} is not a failed gate of this version; failed gates: {', '.join(failures) or 'none'}"
        elif not request.reason or len(request.reason) > _MAX_REASON:
            problem = f"a waiver needs a reason of 1 to {_MAX_REASON} characters"
        elif (character := find_control(request.reason)) is not None:
            problem = f"the reason must be one line of plain text, got the character {character}"
        elif request.until is not None and request.until < read_clock():
            problem = f"the waiver would end {request.until}, which is past"
        else:
            return
        raise self._audit.refuse(name, version, f"waive {gate_name}", problem, evidence)
