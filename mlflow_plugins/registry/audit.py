"""Waivers and audit lines: what the gated registry writes into its own tags, and reads back.

A tag whose key starts with `plantmodels.` is the registry's own: it refuses those that clients send, but for
the one by which a person asks for a waiver.

>>> Waiver.from_json('{"reason": "…", …}').covers(gate, manifest_sha256)  # doctest: +SKIP
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from plantmodels.report.gates import GateResult

ALIAS: Final = "production"
RESERVED: Final = "plantmodels."
GUARDED_TAG: Final = f"{RESERVED}guarded"
MANIFEST_TAG: Final = f"{RESERVED}manifest_sha256"
MODEL_TAG: Final = f"{RESERVED}model_sha256"
GATES_TAG: Final = f"{RESERVED}gates"
WAIVE_TAG: Final = f"{RESERVED}waive."
AUDIT_TAG: Final = f"{RESERVED}audit."
COUNT_TAG: Final = f"{RESERVED}decisions"

_MAX_REASON: Final = 2000
"""Characters; a registered model's tag, where the audit of deleted versions goes, holds 5,000 in all."""

INTEGRITY_GATES: Final = frozenset({"loads", "heads_complete"})
"""They say that the files are whole and the classes in order: never waived."""


@dataclass(frozen=True)
class Waiver:
    """One failed gate that a person answers for, on one version.

    Attributes:
        measured: the gate's value when it was waived; None when it was not measured.
        manifest_sha256: of the version's files when it was waived.
        reason: as the person gave it.
        user: None where the server does not know its users.
        at: UTC, ISO 8601.
    """

    measured: float | None
    manifest_sha256: str
    reason: str
    user: str | None
    at: str

    def covers(self, gate: GateResult, manifest_sha256: str) -> bool:
        """Whether it is about this measurement of these files."""
        return self.measured == gate.measured and self.manifest_sha256 == manifest_sha256

    def to_json(self) -> str:
        """The tag's value."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Waiver | None":
        """Reads a tag's value; None when it is not one that the registry wrote."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Decision:
    """One line of the audit.

    Attributes:
        at: UTC, ISO 8601 with microseconds.
        user: None where the server does not know its users.
        version: None for a decision about a whole registered model.
        action: what was asked, such as "promote to Production".
        allowed: whether it was.
        reason: why.
        manifest_sha256: of the files; None where they could not be read.
        number: of the decision among those about the model, so that their order outlives a clock set back; 0 where
            there is no such model, and for decisions of before there were numbers.
    """

    at: str
    user: str | None
    version: str | None
    action: str
    allowed: bool
    reason: str
    manifest_sha256: str | None
    number: int = 0

    def describe(self) -> str:
        """One line for people."""
        verdict = "allowed" if self.allowed else "REFUSED"
        version = "" if self.version is None else f" version {self.version}"
        digest = "" if self.manifest_sha256 is None else f" [manifest {self.manifest_sha256[:12]}]"
        return f"{self.at}  {verdict}  {self.user or 'unknown user'}: {self.action}{version}{digest}: {self.reason}"

    def to_tag(self) -> tuple[str, str]:
        """Key and value: one tag a decision, so that two servers never overwrite each other's."""
        return f"{AUDIT_TAG}{self.at.replace(':', '')}.{secrets.token_hex(3)}", json.dumps(
            asdict(self) | {"reason": self.reason[:_MAX_REASON]}, ensure_ascii=False
        )


def now() -> str:
    """UTC to the microsecond, ISO 8601 of one length, so that it sorts by time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read_decisions(tags: Iterable[Mapping[str, str]]) -> list[Decision]:
    """All decisions in the tags of a model and its versions, oldest first by their numbers and then by the clock."""
    found = {key: value for group in tags for key, value in group.items() if key.startswith(AUDIT_TAG)}
    decisions = [Decision(**json.loads(found[key])) for key in sorted(found)]
    return sorted(decisions, key=lambda decision: decision.number)
