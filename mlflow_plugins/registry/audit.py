"""The registry's audit: every decision is written into tags before it is carried out, and can be read back.

>>> Decision("2026-11-24T10:00:00Z", "ada", "3", "set alias production", True, "all gates passed", None).to_sentence()
'2026-11-24T10:00:00Z  allowed: ada asked to set alias production (version 3): all gates passed'
"""

import contextlib
import getpass
import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from mlflow_plugins._mlflow_compat import is_serving, read_authenticated_user
from mlflow_plugins.registry.evidence import Evidence
from mlflow_plugins.registry.tags import AUDIT_TAG, COUNT_TAG
from plantmodels.bundle.serialization import decode, parse_json_text
from plantmodels.foreign_text import escape_controls

_LOGGER: Final = logging.getLogger("mlflow.plantmodels.audit")
"""A child of MLflow's logger, so that the server's log shows every decision."""

_MAX_REASON: Final = 2000
"""Characters. The audit of deleted versions moves to tags of the registered model, which hold 5,000 characters."""

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
        number: position among the decisions about this model, so that their order survives a clock that is set back.
            0 if the model does not exist, and in entries written before decisions were numbered.
    """

    at: str
    user: str | None
    version: str | None
    action: str
    allowed: bool
    reason: str
    manifest_sha256: str | None
    number: int = 0

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

    def to_tag(self) -> tuple[str, str]:
        """Return key and value of the decision's tag. Each decision has its own, so servers never overwrite any."""
        return f"{AUDIT_TAG}{self.at.replace(':', '')}.{secrets.token_hex(3)}", json.dumps(
            asdict(self) | {"reason": self.reason[:_MAX_REASON]}, ensure_ascii=False
        )


def read_decisions(tags: Iterable[Mapping[str, str]]) -> list[Decision]:
    """Return all decisions in the tags of a model and its versions, ordered by number and then by time."""
    found = {key: value for group in tags for key, value in group.items() if key.startswith(AUDIT_TAG)}
    documents = [{"number": 0, **parse_json_text(found[key])} for key in sorted(found)]
    decisions = [decode(Decision, document, "decision") for document in documents]
    return sorted(decisions, key=lambda decision: decision.number)


class AuditLog:
    """Writes decisions into the tags of versions and models, and into the server's log."""

    def __init__(self, store: Any) -> None:
        """Take MLflow's own store, without the gate, as the place for the tags."""
        self._store = store

    def record(
        self,
        name: str,
        version: str | None,
        action: str,
        *,
        allowed: bool,
        reason: str,
        evidence: Evidence | None = None,
    ) -> None:
        """Write one decision down.

        Args:
            name: registered model.
            version: version number; None for a decision about the whole model.
            action: what was asked, as it continues "asked to …".
            allowed: the decision.
            reason: why.
            evidence: what was read from the version's files, if anything was.
        """
        digest = None if evidence is None else evidence.manifest_sha256
        number_text = None if version is None else str(version)
        decision = Decision(
            read_clock(), read_user(), number_text, action, allowed, reason, digest, self._count_decision(name)
        )
        _LOGGER.info("%s: %s", escape_controls(name), decision.to_sentence())
        key, value = decision.to_tag()
        if version is None:
            with contextlib.suppress(MlflowException):  # the refused name may belong to no model
                self._store.set_registered_model_tag(name, RegisteredModelTag(key, value))
        else:
            self._store.set_model_version_tag(name, version, ModelVersionTag(key, value))

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

    def keep_for_model(self, version: Any) -> None:
        """Copy a version's audit to its registered model, because deleting the version deletes its tags."""
        for key, value in version.tags.items():
            if key.startswith(AUDIT_TAG):
                self._store.set_registered_model_tag(version.name, RegisteredModelTag(key, value))

    def _count_decision(self, name: str) -> int:
        """Return the next decision's number.

        Promotions happen under the model's lock, so they never share a number. Other decisions may.
        """
        number = 0
        with contextlib.suppress(MlflowException):  # the refused name may belong to no model
            number = int(self._store.get_registered_model(name).tags.get(COUNT_TAG, 0)) + 1
            self._store.set_registered_model_tag(name, RegisteredModelTag(COUNT_TAG, str(number)))
        return number
