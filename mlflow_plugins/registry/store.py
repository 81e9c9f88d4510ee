"""The checks of the gated registry, over MLflow's own store.

A guarded model is one that the server's configuration names, or of which a version holds our flavor. For it, a
version becomes Production, Staging or `@production` only after its files were read back from the artifact store
and every gate passed or was waived. The alias leads and the stage follows, under a lock; what was in Production
before is archived. Every promotion is written down before it is carried out.

>>> store = build_gated_store("sqlite:///mlflow.db")  # doctest: +SKIP
"""

import contextlib
import fnmatch
import getpass
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST, ErrorCode

from mlflow_plugins._mlflow_compat import (
    PROMPT_SOURCES,
    PROMPT_TAG,
    STAGE_ARCHIVED,
    STAGE_PRODUCTION,
    STAGE_STAGING,
    get_canonical_stage,
    is_serving,
    parse_models_uri,
    read_authenticated_user,
    rest_store_arguments,
    store_class,
)
from mlflow_plugins.registry.audit import (
    ALIAS,
    AUDIT_TAG,
    COUNT_TAG,
    GATES_TAG,
    GUARDED_TAG,
    INTEGRITY_GATES,
    MANIFEST_TAG,
    MODEL_TAG,
    RESERVED,
    WAIVE_TAG,
    Decision,
    Waiver,
    now,
)
from mlflow_plugins.registry.evidence import Evidence, EvidenceError, describe_gate, has_flavor, read_evidence
from mlflow_plugins.registry.locks import Locks
from plantmodels.report.gates import GateResult
from plantmodels.report.policy import GatePolicy, read_policy

_Store: Any = object
"""One of MLflow's stores takes its place in `build_gated_store`."""

_AUDIT_LOGGER = logging.getLogger(
    "mlflow.plantmodels.audit"
)  # below MLflow's logger, so that the server's log shows it
_MAX_REASON: Final = 1000
_PASSED: Final = "passed"


@dataclass(frozen=True)
class RegistryConfig:
    """What the server's environment says; clients have no part in it.

    Attributes:
        guarded: name patterns of models that are always guarded (`PLANTMODELS_GUARDED`, comma between).
        waiver_users: who may waive a gate (`PLANTMODELS_WAIVER_USERS`); empty for everybody who may edit a version.
        policy: limits that every report must meet, whatever limits it was made with (`PLANTMODELS_POLICY`, a
            `gates.toml`; contract 5's when not given).
    """

    guarded: tuple[str, ...] = ()
    waiver_users: tuple[str, ...] = ()
    policy: GatePolicy = field(default_factory=GatePolicy)

    @classmethod
    def from_environment(cls) -> "RegistryConfig":
        """Reads the three variables.

        Raises:
            PolicyError: the policy file is not one.
        """
        policy = os.environ.get("PLANTMODELS_POLICY")
        return cls(
            _split(os.environ.get("PLANTMODELS_GUARDED", "")),
            _split(os.environ.get("PLANTMODELS_WAIVER_USERS", "")),
            read_policy(Path(policy) if policy else None),
        )

    def guards(self, name: str) -> bool:
        """Whether a name is guarded whatever it holds; case does not count, as on some databases."""
        return any(fnmatch.fnmatchcase(name.casefold(), pattern.casefold()) for pattern in self.guarded)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def build_gated_store(inner_uri: str, config: RegistryConfig | None = None) -> Any:
    """Puts the gate before MLflow's store for an address.

    Args:
        inner_uri: a database URI, or the address of a REST server.
        config: None reads the environment.
    """
    base = store_class(inner_uri)
    gated = type(f"Gated{base.__name__}", (GateMixin, base), {})
    is_rest = inner_uri.startswith(("http://", "https://"))
    # a server's read replica is not given on: one that lags behind would answer with tags and stages of before
    store = gated(*(rest_store_arguments(inner_uri) if is_rest else (inner_uri,)))
    store.config = config or RegistryConfig.from_environment()
    store.locks = Locks(None if is_rest else store.engine)
    return store


def refusal(message: str) -> MlflowException:
    """PERMISSION_DENIED: the one code whose message reaches the UI and every client whole."""
    return MlflowException(message, error_code=PERMISSION_DENIED)


def _is_absent(error: MlflowException) -> bool:
    return bool(error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST))


def _is_spelling_of_alias(alias: str) -> bool:
    return unicodedata.normalize("NFKC", str(alias)).casefold() == ALIAS


class GateMixin(_Store):  # type: ignore[misc]  # its base is known at run time only
    """Overrides every public method of a registry store by which a version could reach Production."""

    config: RegistryConfig
    locks: Locks

    # what is guarded

    def _names_guarded(self, name: str) -> bool:
        return self.config.guards(name) or self._is_marked(name)

    def _is_marked(self, name: str) -> bool:
        """By this store, when it saw our flavor under the name."""
        try:
            return GUARDED_TAG in super().get_registered_model(name).tags
        except MlflowException as error:
            if _is_absent(error):
                return False
            raise

    def _is_guarded(self, name: str, version: ModelVersion) -> bool:
        if version.source in PROMPT_SOURCES:  # among our models it is no prompt, but a version that cannot be loaded
            return self._is_marked(name)
        if self._names_guarded(name):
            return True
        try:
            found = has_flavor(self._locate(version))
        except EvidenceError as error:
            raise refusal(
                f"{name} version {version.version}: {error}; the registry cannot tell whether its gates passed"
            ) from error
        if found:  # registered before the gate was put there
            super().set_registered_model_tag(name, RegisteredModelTag(GUARDED_TAG, "true"))
        return found

    def _locate(self, version: ModelVersion) -> str:
        location: str = super().get_model_version_download_uri(version.name, version.version)
        return location

    # decisions

    def _record(
        self, name: str, version: str | None, action: str, allowed: bool, reason: str, evidence: Evidence | None
    ) -> None:
        digest = None if evidence is None else evidence.manifest_sha256
        text = None if version is None else str(version)
        decision = Decision(now(), _user(), text, action, allowed, reason, digest, self._count_decision(name))
        _AUDIT_LOGGER.info("%s: %s", name, decision.describe())
        key, value = decision.to_tag()
        if version is None:
            with contextlib.suppress(MlflowException):  # a refused name may not exist
                super().set_registered_model_tag(name, RegisteredModelTag(key, value))
        else:
            super().set_model_version_tag(name, version, ModelVersionTag(key, value))

    def _count_decision(self, name: str) -> int:
        """The next decision's number; promotions, which are under the lock, never get the same one."""
        number = 0
        with contextlib.suppress(MlflowException):  # a refused name may not exist; outside the lock two may write
            number = int(super().get_registered_model(name).tags.get(COUNT_TAG, 0)) + 1
            super().set_registered_model_tag(name, RegisteredModelTag(COUNT_TAG, str(number)))
        return number

    def _refuse(
        self,
        name: str,
        version: str | None,
        action: str,
        reason: str,
        evidence: Evidence | None = None,
        advice: str = "",
    ) -> MlflowException:
        """Writes a refusal down and returns the error that tells of it."""
        self._record(name, version, action, False, reason, evidence)
        what = name if version is None else f"{name} version {version}"
        return refusal(f"{what}: refused to {action}: {reason}{advice}")

    def _admit(self, version: ModelVersion, action: str) -> None:
        """Checks a version's files and gates, and writes the decision down.

        Raises:
            MlflowException: PERMISSION_DENIED with the gate, its limit and the measured value.
        """
        name, number = version.name, version.version
        try:
            evidence = read_evidence(self._locate(version))
            stamped = version.tags.get(MODEL_TAG)
            if stamped is not None and stamped != evidence.model_sha256:
                raise EvidenceError("its files are not those that were registered")
            failures = evidence.find_failures(self.config.policy)
        except EvidenceError as error:
            raise self._refuse(name, number, action, str(error)) from error
        passed, failed = [], []
        for gate in failures:
            waiver = Waiver.from_json(version.tags.get(f"{WAIVE_TAG}{gate.name}", ""))
            integrity = gate.name in INTEGRITY_GATES
            if waiver is None or integrity or not waiver.covers(gate, evidence.manifest_sha256):
                failed.append(gate)
            else:
                passed.append(f"{gate.name} waived by {waiver.user or 'unknown user'}: {waiver.reason}")
        if failed:
            reason, advice = "; ".join(map(describe_gate, failed)), _advice(failed[0].name, name, number)
            raise self._refuse(name, number, action, reason, evidence, advice)
        if stamped is None:  # registered before the gate was put there: from now on these files are meant
            for tag in _make_stamps(evidence, failures):
                super().set_model_version_tag(name, number, tag)
        self._record(name, number, action, True, "; ".join(passed) or "all gates passed", evidence)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        try:
            with self.locks.hold(name):
                yield
        except TimeoutError as error:
            raise refusal(str(error)) from error

    # creation

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, tags: Any = None, *args: Any, **kwargs: Any
    ) -> ModelVersion:
        """Stamps what the files of a guarded version are; refuses incomplete ones and forged stamps."""
        tags = list(tags or [])
        create: Callable[..., ModelVersion] = super().create_model_version
        if source in PROMPT_SOURCES and not self._is_marked(name):
            _refuse_reserved(tag.key for tag in tags)
            return create(name, source, run_id, tags, *args, **kwargs)
        if PROMPT_TAG in (tag.key for tag in tags):
            raise refusal(f"{name}: a version with the source {source} is no prompt")
        if urlparse(source.strip()).scheme == "models" and not source.startswith("models:/"):
            raise refusal(f"{name}: the source {source!r} must start with 'models:/'")  # MLflow reads other spellings
        origin = self._read_origin(source)
        if origin is not None:  # a copy brings the stamps of its origin along: they are made anew
            tags = [tag for tag in tags if not (tag.key.startswith(RESERVED) and tag.value == origin.tags.get(tag.key))]
        _refuse_reserved(tag.key for tag in tags)
        location, is_ready = self._locate_source(source, origin)
        if not self._guards_new(name, location):
            return create(name, source, run_id, tags, *args, **kwargs)
        action = "register it" if origin is None else f"copy models:/{origin.name}/{origin.version}"
        try:
            if not is_ready:
                raise EvidenceError(f"{source} is not READY: its upload was not finished")
            evidence = read_evidence(location)
            failures = None if evidence.report is None else evidence.find_failures(self.config.policy)
        except EvidenceError as error:
            raise self._refuse(name, None, action, str(error)) from error
        gates = _describe_gates(failures)
        if origin is not None and gates != _PASSED:
            raise self._refuse(name, None, action, gates, evidence)
        if not self._names_guarded(name):  # what was promoted before was never asked for its gates
            self._refuse_in_production(name, action)
        super().set_registered_model_tag(name, RegisteredModelTag(GUARDED_TAG, "true"))
        tags += _make_stamps(evidence, failures)
        version: ModelVersion = create(name, source, run_id, tags, *args, **kwargs)
        self._record(name, version.version, action, True, f"gates {gates}", evidence)
        return version

    def _read_origin(self, source: str) -> ModelVersion | None:
        """The registered version that a source names, if it names one."""
        if not source.startswith("models:/"):
            return None
        model_id, name, version = parse_models_uri(source)
        if model_id is not None or version is None:
            return None
        origin: ModelVersion = super().get_model_version(name, version)
        return origin

    def _locate_source(self, source: str, origin: ModelVersion | None) -> tuple[str, bool]:
        """Where a source's files lie, and whether the logged model is finished."""
        if origin is not None:
            return self._locate(origin), True
        model_id = parse_models_uri(source)[0] if source.startswith("models:/") else None
        if model_id is None:
            return source, True
        model = MlflowClient().get_logged_model(model_id)
        return model.artifact_location, model.status == LoggedModelStatus.READY

    def _guards_new(self, name: str, location: str) -> bool:
        """Whether a version to be made is guarded; one that cannot be read is asked again at its promotion."""
        with contextlib.suppress(EvidenceError):
            return self._names_guarded(name) or has_flavor(location)
        return False

    # promotion

    def transition_model_version_stage(
        self, name: str, version: str, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        """Checks before Production and Staging; moves the alias along with Production."""
        transition: Callable[..., ModelVersion] = super().transition_model_version_stage
        found: ModelVersion = super().get_model_version(name, version)
        wanted = get_canonical_stage(stage)
        is_promotion = wanted in (STAGE_PRODUCTION, STAGE_STAGING)
        if not (self._is_guarded(name, found) if is_promotion else self._names_guarded(name)):
            return transition(name, version, stage, archive_existing_versions)
        with self._locked(name):
            found = super().get_model_version(name, version)
            if wanted == STAGE_PRODUCTION:
                return self._promote(found, "promote to stage Production")
            if wanted == STAGE_STAGING:
                self._admit(found, "promote to stage Staging")
            moved: ModelVersion = transition(name, version, wanted, archive_existing_versions)
            if not is_promotion:
                self._record(name, found.version, f"move to stage {wanted}", True, "asked for", None)
            if ALIAS in found.aliases:
                super().delete_registered_model_alias(name, ALIAS)
                moved = super().get_model_version(name, version)
            return moved

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Checks before the alias `production`, and moves the stage along with it."""
        found: ModelVersion = super().get_model_version(name, version)
        if not _is_spelling_of_alias(alias) or not self._is_guarded(name, found):
            super().set_registered_model_alias(name, alias, version)
            return
        if alias != ALIAS:
            raise self._refuse(name, found.version, f"set alias {alias}", f"this alias is spelt {ALIAS!r}")
        with self._locked(name):
            self._promote(super().get_model_version(name, version), f"set alias {ALIAS}")

    def _promote(self, version: ModelVersion, action: str) -> ModelVersion:
        """Both steps can be repeated; between them the alias is already right."""
        self._admit(version, action)
        name, number = version.name, version.version
        super().set_registered_model_alias(name, ALIAS, number)
        super().transition_model_version_stage(name, number, STAGE_PRODUCTION, True)
        promoted: ModelVersion = super().get_model_version(name, number)
        return promoted

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """Archives what was in Production, then takes its alias away."""
        if alias != ALIAS or not self._names_guarded(name):
            super().delete_registered_model_alias(name, alias)
            return
        with self._locked(name):
            held = super().get_registered_model(name).aliases.get(ALIAS)
            if held is not None:
                self._record(name, str(held), f"delete alias {ALIAS}", True, "asked for", None)
                self._archive_production(name)
            super().delete_registered_model_alias(name, alias)

    def delete_model_version(self, name: str, version: str) -> None:
        """Keeps the version's audit on the registered model; MLflow takes its alias and stage away with it."""
        if not self._names_guarded(name):
            super().delete_model_version(name, version)
            return
        with self._locked(name):
            found: ModelVersion = super().get_model_version(name, version)
            for key, value in found.tags.items():
                if key.startswith(AUDIT_TAG):
                    super().set_registered_model_tag(name, RegisteredModelTag(key, value))
            self._record(name, None, f"delete version {version}", True, f"was in stage {found.current_stage}", None)
            if ALIAS in found.aliases:  # a promotion that stopped half-way leaves another one in the stage
                self._archive_production(name)
            super().delete_model_version(name, version)

    def delete_registered_model(self, name: str) -> None:
        """Refuses while a version is in Production; the audit goes with the model, but for the server's log."""
        if not self._names_guarded(name):
            super().delete_registered_model(name)
            return
        with self._locked(name):
            self._refuse_in_production(name, "delete the registered model")
            self._record(name, None, "delete the registered model", True, "asked for", None)
            super().delete_registered_model(name)

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        """Neither a guarded model away from its name nor any model into a guarded one while it is in Production.

        Into a name that is guarded by configuration, only models of which every version may be promoted.
        """
        rename = super().rename_registered_model
        if not (self._names_guarded(name) or self.config.guards(new_name)):
            return rename(name, new_name)
        first, second = sorted((name, str(new_name)))
        with self._locked(first), self._locked(second) if second != first else contextlib.nullcontext():
            action = f"rename {name} to {new_name}"
            self._refuse_in_production(name, action)
            if self.config.guards(new_name) and not self.config.guards(name):
                for version in self._list_versions(name):
                    self._admit(version, action)
            self._record(name, None, action, True, "nothing is in Production", None)
            return rename(name, new_name)

    def _list_versions(self, name: str) -> Iterator[ModelVersion]:
        """Every version, by its number: MLflow's search leaves out what a client's tag or a quote in a name hides."""
        get = super().get_model_version
        latest = super().get_registered_model(name).latest_versions or []
        for number in range(1, max((int(version.version) for version in latest), default=0) + 1):
            try:
                yield get(name, str(number))
            except MlflowException as error:
                if not _is_absent(error):
                    raise

    def _archive_production(self, name: str) -> None:
        for version in self._list_versions(name):
            if version.current_stage == STAGE_PRODUCTION:
                super().transition_model_version_stage(name, version.version, STAGE_ARCHIVED, False)

    def _refuse_in_production(self, name: str, action: str) -> None:
        held = {str(v) for a, v in super().get_registered_model(name).aliases.items() if _is_spelling_of_alias(a)}
        held |= {str(v.version) for v in self._list_versions(name) if v.current_stage == STAGE_PRODUCTION}
        if held:
            raise self._refuse(
                name, None, action, f"version {', '.join(sorted(held))} is in Production; take it out first"
            )

    # tags

    def create_registered_model(self, name: str, tags: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Refuses reserved tags."""
        _refuse_reserved(tag.key for tag in tags or [])
        return super().create_registered_model(name, tags, *args, **kwargs)

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        """Refuses reserved tags, and to call a guarded model a prompt."""
        _refuse_reserved([tag.key])
        if tag.key == PROMPT_TAG and self._names_guarded(name):
            raise refusal(f"{name}: a guarded model is no prompt")
        super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Refuses reserved tags."""
        _refuse_reserved([key])
        super().delete_registered_model_tag(name, key)

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        """Turns `plantmodels.waive.<gate>` into a waiver; refuses other reserved tags."""
        if tag.key.startswith(WAIVE_TAG):
            self._waive(name, version, tag.key.removeprefix(WAIVE_TAG), tag.value)
            return
        _refuse_reserved([tag.key])
        if tag.key == PROMPT_TAG and super().get_model_version(name, version).source not in PROMPT_SOURCES:
            raise refusal(f"{name} version {version}: a version with artifacts is no prompt")
        super().set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        """Takes a waiver back; refuses other reserved tags."""
        if key.startswith(WAIVE_TAG):
            self._check_may_waive(name, version, f"take the waiver of {key.removeprefix(WAIVE_TAG)} back")
            self._record(name, version, f"take the waiver of {key.removeprefix(WAIVE_TAG)} back", True, "asked", None)
        else:
            _refuse_reserved([key])
        super().delete_model_version_tag(name, version, key)

    def _check_may_waive(self, name: str, version: str, action: str) -> None:
        allowed = self.config.waiver_users
        if allowed and _user() not in allowed:
            raise self._refuse(name, version, action, f"{_user() or 'unknown user'} is not of {', '.join(allowed)}")

    def _waive(self, name: str, version: str, gate_name: str, reason: str) -> None:
        """Binds a person's reason to the gate's measured value and to the files, as they are now."""
        action = f"waive {gate_name}"
        found: ModelVersion = super().get_model_version(name, version)
        self._check_may_waive(name, version, action)
        try:
            evidence = read_evidence(self._locate(found))
            failures = {gate.name: gate for gate in evidence.find_failures(self.config.policy)}
        except EvidenceError as error:
            raise self._refuse(name, version, action, str(error)) from error
        if gate_name in INTEGRITY_GATES:
            raise self._refuse(name, version, action, "it says whether the files are whole: never waived", evidence)
        if gate_name not in failures:
            listed = ", ".join(failures) or "none"
            raise self._refuse(name, version, action, f"no such gate failed; those that did: {listed}", evidence)
        if not reason.strip() or len(reason) > _MAX_REASON:
            raise self._refuse(name, version, action, f"it needs a reason of 1 to {_MAX_REASON} characters", evidence)
        measured = failures[gate_name].measured
        waiver = Waiver(measured, evidence.manifest_sha256, reason.strip(), _user(), now())
        self._record(name, version, action, True, reason.strip(), evidence)
        super().set_model_version_tag(name, version, ModelVersionTag(f"{WAIVE_TAG}{gate_name}", waiver.to_json()))


def _user() -> str | None:
    """Who asks: the authenticated user of a server, or of this machine where there is no server."""
    return read_authenticated_user() or (None if is_serving() else getpass.getuser())


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


def _advice(gate: str, name: str, version: str) -> str:
    if gate in INTEGRITY_GATES:
        return ""
    return (
        f". To answer for a gate: `plantmodels-registry waive {name} {version} {gate} --reason …`, "
        f"or the version's tag {WAIVE_TAG}{gate} with the reason as its value"
    )


def _refuse_reserved(keys: Iterable[str]) -> None:
    for key in keys:
        if key.casefold().startswith(RESERVED):
            raise refusal(f"tag {key!r}: names that start with {RESERVED!r} are the registry's own")
