"""Whether a version that the gates apply to may be registered or promoted.

Everything is judged by the files themselves: they are read back from the artifact store each time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from mlflow_plugins._mlflow_compat import parse_models_uri
from mlflow_plugins.registry.artifacts.origin import find_logged_model
from mlflow_plugins.registry.audit import AuditLog, permission_denied
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.description import summarize_gates
from mlflow_plugins.registry.evidence import Evidence, EvidenceError, describe_gate, describe_gates, read_evidence
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.people.approvals import Approvals, Request
from mlflow_plugins.registry.records.stamps import Stamps
from mlflow_plugins.registry.regression import compare_with_production
from mlflow_plugins.registry.tags import (
    CLAIM_TAG,
    GATES_TAG,
    GLANCE_TAG,
    MANIFEST_TAG,
    MODEL_TAG,
    OLD_MODEL_TAG,
    RESERVED,
    WAIVE_TAG,
)
from mlflow_plugins.registry.waivers import INTEGRITY_GATES, Waivers
from plantmodels.report.gates import GateResult


@dataclass(frozen=True)
class Source:
    """What a new version is registered from.

    Attributes:
        uri: the URI that the client gave.
        origin: name and version of the registered version that is copied; None if the version is not a copy.
        location: URI of the files.
        is_ready: whether the upload of the files was finished.
    """

    uri: str
    origin: tuple[str, str] | None
    location: str
    is_ready: bool

    @property
    def action(self) -> str:
        """What the client asks for, as the audit records it."""
        return "register a version" if self.origin is None else f"copy models:/{'/'.join(self.origin)}"


@dataclass(frozen=True)
class Admitted:
    """A version that may be promoted.

    Attributes:
        evidence: what its files prove.
        decision: number of the decision in the audit.
    """

    evidence: Evidence
    decision: int


@dataclass(frozen=True)
class Judged:
    """A version whose gates and files let it be promoted.

    Attributes:
        evidence: what its files prove.
        gates: all gates, with `no_regression` if there was a version to compare with; those that failed were waived.
        model_sha256: digest of all its files.
        state: why the gates let it through, with all waivers.
        is_stamped: whether it was stamped when it was registered.
    """

    evidence: Evidence
    gates: tuple[GateResult, ...]
    model_sha256: str
    state: str
    is_stamped: bool


@dataclass(frozen=True)
class Refusal:
    """Why a version may not be promoted.

    Attributes:
        reason: the failed gates with limit and measured value, or what is wrong with the files.
        advice: what the user can do about it; "" if nothing but a new version helps.
        evidence: what the files prove; None if that is the problem.
        error: what was raised while the files were read.
    """

    reason: str
    advice: str = ""
    evidence: Evidence | None = None
    error: EvidenceError | None = None


class Admission:
    """Decides whether a version of a guarded model may be registered or promoted."""

    def __init__(
        self,
        store: Any,
        rows: Rows,
        config: RegistryConfig,
        audit: AuditLog,
        waivers: Waivers,
        stamps: Stamps,
        approvals: Approvals,
    ) -> None:
        """Take MLflow's own store, without the gate, its rows, and the registry's parts that are asked."""
        self._store = store
        self._rows = rows
        self._config = config
        self._audit = audit
        self._waivers = waivers
        self._stamps = stamps
        self._approvals = approvals

    def resolve_source(self, uri: str) -> Source:
        """Find the files that a new version is made from, as MLflow will.

        Raises:
            Exception: MLflow refuses the source as well.
        """
        if urlparse(uri).scheme != "models":
            return Source(uri, None, uri, is_ready=True)
        model_id, name, version = parse_models_uri(uri)
        if model_id is not None:
            return Source(uri, None, *find_logged_model(model_id))
        location = self._store.get_model_version_download_uri(name, version)
        return Source(uri, (str(name), str(version)), location, is_ready=True)

    def find_source(self, uri: object) -> Source | None:
        """Find the files that a new version is made from; None if MLflow will refuse the source."""
        try:
            return self.resolve_source(uri) if isinstance(uri, str) else None
        except Exception:  # whatever it is, MLflow's store meets it again and answers as it always does
            return None

    def claims_flavor(self, source: Source, tags: Iterable[Any]) -> bool:
        """Return whether the client that logged or registered a version called it ours."""
        if any(getattr(tag, "key", None) == CLAIM_TAG for tag in tags):
            return True
        if source.origin is not None or not source.uri.startswith("models:/"):
            return False
        model_id = parse_models_uri(source.uri)[0]
        return model_id is not None and CLAIM_TAG in MlflowClient().get_logged_model(model_id).tags

    def drop_copied_stamps(self, source: Source, tags: list[Any]) -> list[Any]:
        """Return tags without those that MLflow copied from the origin; the copy gets stamps of its own."""
        if source.origin is None or not any(map(_is_stamp, tags)):
            return tags
        copied = self._store.get_model_version(*source.origin).tags
        return [tag for tag in tags if not (_is_stamp(tag) and tag.value == copied.get(tag.key))]

    def check_new_version(self, name: str, source: Source) -> tuple[Evidence, list[ModelVersionTag]]:
        """Check the files of a version that is about to be registered; its gates may fail, unless it is a copy.

        Returns:
            What the files prove, and the stamps that the version gets.

        Raises:
            MlflowException: PERMISSION_DENIED; the files are incomplete or changed, or it copies a failed version.
        """
        if urlparse(source.uri).scheme == "models" and not source.uri.startswith("models:/"):
            raise permission_denied(f"{name}: the source {source.uri!a} must start with 'models:/'")
        try:
            if not source.is_ready:
                raise EvidenceError(f"{source.uri} is not READY: its upload was not finished; log the bundle again")
            evidence = read_evidence(source.location)
            failures = None if evidence.report is None else evidence.find_failures(self._config.policy)
            model_sha256 = evidence.digest_model()
        except EvidenceError as error:
            raise self._audit.refuse(name, None, source.action, str(error)) from error
        gates = self._describe_outcome(evidence)
        if source.origin is not None and (failures is None or failures):
            reason = f"only a version that passed every gate may be copied (gates {gates})"
            raise self._audit.refuse(name, None, source.action, reason, evidence)
        return evidence, _make_stamps(evidence, model_sha256, gates)

    def _describe_outcome(self, evidence: Evidence) -> str:
        """Return how the gates of a version are, as its stamp says it."""
        if evidence.report is None:
            return "never verified"
        failures = evidence.find_failures(self._config.policy)
        return f"failed: {describe_gates(failures)}" if failures else self._describe_passed(evidence)

    def _describe_passed(self, evidence: Evidence) -> str:
        return summarize_gates({}, evidence.find_uncertain(self._config.policy))

    def admit(
        self, version: ModelVersion, action: str, production: int | None = None, alias: str | None = None
    ) -> Admitted:
        """Check a version's gates and then its files before its promotion, and write the decision down.

        Args:
            version: with its present tags.
            action: what was asked, such as "promote to stage Production".
            production: the version that will be in Production; 0 for none, None if that does not change.
            alias: the protected alias that will name the version, for which several users may have to ask; None if
                one user is enough.

        Raises:
            MlflowException: PERMISSION_DENIED with the gate, its limit and the measured value, or with how many users
                must still ask.
        """
        name, number = version.name, version.version
        found = self.judge(version, to_production=bool(production))
        if isinstance(found, Refusal):
            raise self._audit.refuse(name, number, action, found.reason, found.evidence, found.advice) from found.error
        reason = found.state
        if alias is not None:
            request = Request(name, str(number), alias, action, found.model_sha256, found.state)
            reason = "; ".join(filter(None, [found.state, self._approvals.collect(request)]))
        if not found.is_stamped:
            self._stamp(version, found)
        decision = self._audit.record(
            name,
            number,
            action,
            allowed=True,
            reason=reason,
            evidence=found.evidence,
            production=production,
            gates=found.gates,
        )
        return Admitted(found.evidence, decision)

    def judge(self, version: ModelVersion, *, to_production: bool = True) -> "Judged | Refusal":
        """Return whether a version's gates and files let it be promoted now. Nothing is written.

        Args:
            version: with its present tags.
            to_production: whether it is to replace the version in Production; then it may not be worse.
        """
        name, number = version.name, version.version
        try:
            evidence = read_evidence(self._locate(name, number))
            policy, parts = self._config.policy, (self._store, self._rows, self._audit)
            gates = evidence.judge_gates(policy)
            compared = compare_with_production(*parts, version, evidence, policy) if to_production else None
        except EvidenceError as error:
            return Refusal(str(error), error=error)
        gates = gates if compared is None else (*gates, compared)
        failed = [gate for gate in gates if not gate.passed]
        waivers = {gate: self._waivers.find(name, number, gate, evidence.manifest_sha256) for gate in failed}
        refused = [gate for gate, waiver in waivers.items() if waiver is None]
        if refused:
            ends = {gate: self._waivers.find_end(name, number, gate, evidence.manifest_sha256) for gate in refused}
            texts = [f"{describe_gate(gate)}, its waiver ended {end}" for gate, end in ends.items() if end]
            texts.append(describe_gates(gate for gate, end in ends.items() if not end))
            return Refusal("; ".join(filter(None, texts)), _advise(refused, name, number), evidence)
        stamp = self._stamps.find(name, number)
        stamped = version.tags.get(MODEL_TAG, version.tags.get(OLD_MODEL_TAG)) if stamp is None else stamp.model_sha256
        try:  # only now: it takes a download of every file
            model_sha256 = evidence.digest_model()
            if stamped is not None and stamped != model_sha256:
                raise EvidenceError("its files are not those that were registered; register the bundle again")
        except EvidenceError as error:
            return Refusal(str(error), error=error)
        waived = [waiver.to_sentence(gate.name) for gate, waiver in waivers.items() if waiver is not None]
        state = "; ".join(waived) or f"all gates {self._describe_passed(evidence)}"
        return Judged(evidence, gates, model_sha256, state, stamp is not None)

    def _locate(self, name: str, number: str) -> str:
        """Return the URI of a version's files, or raise the error that MLflow has for it."""
        stored = self._rows.find_version(name, number)
        known = None if stored is None else stored.location
        return known or str(self._store.get_model_version_download_uri(name, number))

    def _stamp(self, version: ModelVersion, judged: "Judged") -> None:
        """Stamp a version that was registered before the registry was gated: from now on these files are meant."""
        name, number = version.name, version.version
        tags = _make_stamps(judged.evidence, judged.model_sha256, self._describe_outcome(judged.evidence))
        self._stamps.keep(name, number, {tag.key: tag.value for tag in tags})
        for tag in tags if MODEL_TAG not in version.tags else ():
            self._store.set_model_version_tag(name, number, ModelVersionTag(tag.key, self._rows.fit(tag.value)))


def _is_stamp(tag: Any) -> bool:
    key = getattr(tag, "key", None)
    return isinstance(key, str) and (key == GLANCE_TAG or key.startswith(RESERVED))


def _make_stamps(evidence: Evidence, model_sha256: str, gates: str) -> list[ModelVersionTag]:
    stamps = {MANIFEST_TAG: evidence.manifest_sha256, MODEL_TAG: model_sha256, GATES_TAG: gates}
    return [ModelVersionTag(key, value) for key, value in stamps.items()]


def _advise(refused: Sequence[GateResult], name: str, version: str) -> str:
    """Return how to waive the first gate; nothing if one of the gates can never be waived."""
    if not INTEGRITY_GATES.isdisjoint(gate.name for gate in refused):
        return ""
    gate_name = refused[0].name
    return (
        ". To promote it anyway, waive the gate: "
        f"`plantmodels-registry waive {name} {version} {gate_name} --reason …`, "
        f"or set the version's tag {WAIVE_TAG}{gate_name} to the reason"
    )
