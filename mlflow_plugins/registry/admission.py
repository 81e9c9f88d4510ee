"""Which versions the gates apply to, and whether such a version may be registered or promoted.

Everything is judged by the files themselves: they are read back from the artifact store each time.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from mlflow_plugins._mlflow_compat import PROMPT_SOURCES, parse_models_uri
from mlflow_plugins.registry.audit import AuditLog, permission_denied
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.evidence import Evidence, EvidenceError, describe_gate, has_flavor, read_evidence
from mlflow_plugins.registry.tags import (
    GATES_TAG,
    GLANCE_TAG,
    GUARDED_TAG,
    MANIFEST_TAG,
    MODEL_TAG,
    RESERVED,
    WAIVE_TAG,
)
from mlflow_plugins.registry.waivers import INTEGRITY_GATES, find_waiver
from plantmodels.report.gates import GateResult

_PASSED: Final = "passed"


def is_not_found(error: MlflowException) -> bool:
    """Return whether MLflow says that a model or version does not exist."""
    return bool(error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST))


def is_reserved(key: str) -> bool:
    """Return whether only the registry may write a tag."""
    return key.casefold() == GLANCE_TAG or key.casefold().startswith(RESERVED)


def refuse_reserved_tags(keys: Iterable[str]) -> None:
    """Refuse tags that only the registry may write.

    Raises:
        MlflowException: PERMISSION_DENIED, naming the tag.
    """
    for key in keys:
        if is_reserved(key):
            raise permission_denied(
                f"tag {key!r}: {GLANCE_TAG!r} and names that start with {RESERVED!r} are reserved for the registry"
            )


class Guard:
    """Knows which registered models are guarded: by configuration, or because a version holds our flavor."""

    def __init__(self, store: Any, config: RegistryConfig) -> None:
        """Take MLflow's own store, without the gate, and the registry's configuration."""
        self._store = store
        self._config = config

    def is_guarded(self, name: str) -> bool:
        """Return whether a model is guarded by configuration or by an earlier version of our flavor."""
        return self._config.guards(name) or self.is_marked(name)

    def is_marked(self, name: str) -> bool:
        """Return whether this registry has seen our flavor under the name before."""
        try:
            return GUARDED_TAG in self._store.get_registered_model(name).tags
        except MlflowException as error:
            if is_not_found(error):
                return False
            raise

    def mark(self, name: str) -> None:
        """Guard a model from now on."""
        self._store.set_registered_model_tag(name, RegisteredModelTag(GUARDED_TAG, "true"))

    def is_guarded_version(self, version: ModelVersion) -> bool:
        """Return whether the gates apply to a version; marks its model if the version holds our flavor.

        Raises:
            MlflowException: PERMISSION_DENIED; the version's files cannot be read, so the answer is unknown.
        """
        name = version.name
        if version.source in PROMPT_SOURCES:  # in a marked model it is not a prompt, but a version without files
            return self.is_marked(name)
        if self.is_guarded(name):
            return True
        try:
            found = has_flavor(self._store.get_model_version_download_uri(name, version.version))
        except EvidenceError as error:
            raise permission_denied(
                f"{name} version {version.version}: {error}, so the registry cannot tell whether the gates apply"
            ) from error
        if found:  # it was registered before the registry was gated
            self.mark(name)
        return found

    def guards_new_version(self, name: str, location: str) -> bool:
        """Return whether the gates apply to a version that is about to be registered.

        Args:
            name: registered model.
            location: URI of the version's files. If they cannot be read, the answer is False: the question is asked
                again when the version is promoted.
        """
        with contextlib.suppress(EvidenceError):
            return self.is_guarded(name) or has_flavor(location)
        return False


@dataclass(frozen=True)
class Source:
    """What a new version is registered from.

    Attributes:
        uri: the URI that the client gave.
        origin: the registered version that is copied; None if the version is not a copy.
        location: URI of the files.
        is_ready: whether the upload of the files was finished.
    """

    uri: str
    origin: ModelVersion | None
    location: str
    is_ready: bool

    @property
    def action(self) -> str:
        """What the client asks for, as the audit records it."""
        if self.origin is None:
            return "register a version"
        return f"copy models:/{self.origin.name}/{self.origin.version}"

    def drop_copied_stamps(self, tags: list[Any]) -> list[Any]:
        """Return tags without those that MLflow copied from the origin; the copy gets stamps of its own."""
        copied = {} if self.origin is None else self.origin.tags
        return [tag for tag in tags if not (is_reserved(tag.key) and tag.value == copied.get(tag.key))]


class Admission:
    """Decides whether a version of a guarded model may be registered or promoted."""

    def __init__(self, store: Any, config: RegistryConfig, audit: AuditLog) -> None:
        """Take MLflow's own store, without the gate, and the registry's configuration and audit."""
        self._store = store
        self._config = config
        self._audit = audit

    def resolve_source(self, name: str, uri: str) -> Source:
        """Find the files that a new version of a model is made from.

        Raises:
            MlflowException: no such version or logged model, or a spelling of `models:/` that MLflow reads
                differently.
        """
        if urlparse(uri.strip()).scheme == "models" and not uri.startswith("models:/"):
            raise permission_denied(f"{name}: the source {uri!r} must start with 'models:/'")
        if not uri.startswith("models:/"):
            return Source(uri, None, uri, is_ready=True)
        model_id, origin_name, origin_version = parse_models_uri(uri)
        if model_id is not None:
            model = MlflowClient().get_logged_model(model_id)
            return Source(uri, None, model.artifact_location, model.status == LoggedModelStatus.READY)
        if origin_version is None:
            return Source(uri, None, uri, is_ready=True)
        origin = self._store.get_model_version(origin_name, origin_version)
        location = self._store.get_model_version_download_uri(origin.name, origin.version)
        return Source(uri, origin, location, is_ready=True)

    def check_new_version(self, name: str, source: Source) -> tuple[Evidence, list[ModelVersionTag]]:
        """Check the files of a version that is about to be registered; its gates may fail, unless it is a copy.

        Returns:
            What the files prove, and the stamps that the version gets.

        Raises:
            MlflowException: PERMISSION_DENIED; the files are incomplete or changed, or it copies a failed version.
        """
        try:
            if not source.is_ready:
                raise EvidenceError(f"{source.uri} is not READY: its upload was not finished; log the bundle again")
            evidence = read_evidence(source.location)
            failures = None if evidence.report is None else evidence.find_failures(self._config.policy)
        except EvidenceError as error:
            raise self._audit.refuse(name, None, source.action, str(error)) from error
        gates = _describe_gates(failures)
        if source.origin is not None and gates != _PASSED:
            reason = f"only a version that passed every gate may be copied (gates {gates})"
            raise self._audit.refuse(name, None, source.action, reason, evidence)
        return evidence, _make_stamps(evidence, failures)

    def admit(self, version: ModelVersion, action: str) -> Evidence:
        """Check a version's files and gates before its promotion, and write the decision down.

        Args:
            version: with its present tags.
            action: what was asked, such as "promote to stage Production".

        Returns:
            What its files prove.

        Raises:
            MlflowException: PERMISSION_DENIED with the gate, its limit and the measured value.
        """
        name, number = version.name, version.version
        stamped = version.tags.get(MODEL_TAG)
        try:
            evidence = read_evidence(self._store.get_model_version_download_uri(name, number))
            if stamped is not None and stamped != evidence.model_sha256:
                raise EvidenceError("its files are not those that were registered; register the bundle again")
            failures = evidence.find_failures(self._config.policy)
        except EvidenceError as error:
            raise self._audit.refuse(name, number, action, str(error)) from error
        waivers = {gate: find_waiver(version, gate, evidence.manifest_sha256) for gate in failures}
        refused = [gate for gate, waiver in waivers.items() if waiver is None]
        if refused:
            reason, advice = "; ".join(map(describe_gate, refused)), _advise(refused[0].name, name, number)
            raise self._audit.refuse(name, number, action, reason, evidence, advice)
        if stamped is None:  # registered before the registry was gated: from now on these files are meant
            for tag in _make_stamps(evidence, failures):
                self._store.set_model_version_tag(name, number, tag)
        waived = "; ".join(waiver.to_sentence(gate.name) for gate, waiver in waivers.items() if waiver is not None)
        self._audit.record(name, number, action, allowed=True, reason=waived or "all gates passed", evidence=evidence)
        return evidence


def _make_stamps(evidence: Evidence, failures: tuple[GateResult, ...] | None) -> list[ModelVersionTag]:
    stamps = {
        MANIFEST_TAG: evidence.manifest_sha256,
        MODEL_TAG: evidence.model_sha256,
        GATES_TAG: _describe_gates(failures),
    }
    return [ModelVersionTag(key, value) for key, value in stamps.items()]


def _describe_gates(failures: tuple[GateResult, ...] | None) -> str:
    if failures is None:
        return "never verified"
    return "failed: " + "; ".join(map(describe_gate, failures)) if failures else _PASSED


def _advise(gate_name: str, name: str, version: str) -> str:
    if gate_name in INTEGRITY_GATES:
        return ""
    return (
        ". To promote it anyway, waive the gate: "
        f"`plantmodels-registry waive {name} {version} {gate_name} --reason …`, "
        f"or set the version's tag {WAIVE_TAG}{gate_name} to the reason"
    )
