"""The gated registry store: MLflow's own store, with a check before every write that could promote a version.

A model is guarded if the server's configuration names it or one of its versions holds our flavor. A version of a
guarded model reaches Staging, Production or `@production` only after its files were read back from the artifact store
and every gate passed or was waived. Alias and stage move together, under a lock; the version that was in Production
before is archived. Every decision is written down before it is carried out.

Every other call goes to MLflow's store exactly as it came, and is answered by it. Only the tags `.gates` and
`plantmodels.…` are reserved. Names are used as the database spells them: some databases ignore case and accents.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from mlflow_plugins._mlflow_compat import (
    STAGE_PRODUCTION,
    STAGE_STAGING,
    get_canonical_stage,
    get_store_class,
    get_workspace,
    is_prompt,
)
from mlflow_plugins.registry.admission import Admission, Source
from mlflow_plugins.registry.audit import NO_GATE_APPLIES, AuditLog, permission_denied
from mlflow_plugins.registry.commands.answers import Answers
from mlflow_plugins.registry.commands.doctor import Doctor
from mlflow_plugins.registry.commands.questions import Question
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.description import Descriptions
from mlflow_plugins.registry.guard.guard import Guard, is_prompt_tag
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.locks import RegistryLocks
from mlflow_plugins.registry.people.approvals import Approvals
from mlflow_plugins.registry.production import Production
from mlflow_plugins.registry.records.identity import Identities
from mlflow_plugins.registry.records.old_tags import has_old_tags, move_old_tags
from mlflow_plugins.registry.records.stamps import Stamps
from mlflow_plugins.registry.records.tables import Records
from mlflow_plugins.registry.tags import ALIAS, GATES_TAG, UNREAD_TAG, WAIVE_TAG
from mlflow_plugins.registry.waivers import Waivers
from mlflow_plugins.registry.webhooks import AliasEvents
from plantmodels.errors import RegistryError

_Store: Any = object
"""Stands for MLflow's store class, which `build_gated_store` adds as the second base."""


def build_gated_store(inner_uri: str, config: RegistryConfig | None = None) -> Any:
    """Return MLflow's store for an address, with the gate in front of it.

    A server's read replica is not used: one that lags behind would answer with outdated tags and stages.

    Args:
        inner_uri: a database URI.
        config: what is guarded and by which limits; None reads the environment.

    Raises:
        RegistryError: it is the address of a server, or the database has tables of a newer version of plantmodels.
    """
    if inner_uri.startswith(("http://", "https://")):
        raise RegistryError(
            f"plantmodels:{inner_uri}: the gates are in the server, so start it with --registry-store-uri "
            f"plantmodels:DATABASE and give clients the address {inner_uri}"
        )
    config = config or RegistryConfig.from_environment()
    base = get_store_class()
    store = type(f"Gated{base.__name__}", (GatedStoreMixin, base), {})(inner_uri)
    locks, records = RegistryLocks(store.engine), Records.open(store.engine, config.database_uri)
    if has_old_tags(store.engine):
        with locks.hold("plantmodels_schema"):
            move_old_tags(store.engine, records)
    store.install_gate(config, locks, records)
    return store


class GatedStoreMixin(_Store):  # type: ignore[misc]  # its base is known at run time only
    """Overrides every public method of a registry store by which a version could reach Production."""

    _guard: Guard
    _admission: Admission
    _waivers: Waivers
    _approvals: Approvals
    _production: Production
    _descriptions: Descriptions
    _events: AliasEvents
    _audit: AuditLog
    _config: RegistryConfig
    _locks: RegistryLocks
    _stamps: Stamps
    _answers: Answers
    _rows: Rows
    _identities: Identities

    def install_gate(self, config: RegistryConfig, locks: RegistryLocks, records: Records) -> None:
        """Set up the checks; they reach MLflow's own methods through `super()`, past the gate."""
        plain_store = super()
        self._config, self._locks = config, locks
        self._rows = Rows(self.engine, lambda: get_workspace(self))
        self._identities = identities = Identities(plain_store, self._rows)
        self._audit = AuditLog(records, identities)
        self._stamps = Stamps(records, identities)
        self._guard = Guard(plain_store, config, self._rows)
        self._waivers = Waivers(plain_store, self._rows, config, self._audit, records, identities)
        self._approvals = Approvals(records, identities, config, self._audit)
        parts = self._audit, self._waivers, self._stamps, self._approvals
        self._admission = Admission(plain_store, self._rows, config, *parts)
        self._production = Production(plain_store, self._rows, config, self._audit)
        self._descriptions = Descriptions(plain_store, self._rows, config.policy, self._waivers)
        doctor = Doctor(plain_store, self._rows, config, self._audit, self._waivers, self._stamps)
        self._answers = Answers(plain_store, self._audit, doctor, self._guard, self._admission)
        self._events = AliasEvents(self)

    @contextlib.contextmanager
    def _lock_models(self, *names: str) -> Iterator[None]:
        try:
            with self._locks.hold(*names), self._identities.remember():
                yield
        except TimeoutError as error:
            raise permission_denied(str(error)) from error

    # versions

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, tags: Any = None, *args: Any, **kwargs: Any
    ) -> ModelVersion:
        """Register a version. A version of a guarded model must be complete, and gets stamps of what its files are."""
        plain_store: Any = super()

        def create(tags: Any) -> ModelVersion:
            version: ModelVersion = plain_store.create_model_version(name, source, run_id, tags, *args, **kwargs)
            return version

        given = _list_tags(tags)
        if self._guard.is_guarded(name):
            return self._create_guarded(name, self._admission.resolve_source(source), given, create)
        found = None if self._guard.exempts(name) else self._admission.find_source(source)
        if found is None:
            self._guard.refuse_reserved_tags(given)
            return create(tags)
        is_ours, problem = self._guard.ask_flavor(source, found.location)
        if is_ours:
            return self._create_guarded(name, found, given, create)
        wanted = self._admission.drop_copied_stamps(found, given)
        self._guard.refuse_reserved_tags(wanted)
        if problem is not None and self._admission.claims_flavor(found, given):
            why = self._rows.fit(f"{problem}; its gates are checked when it is promoted")
            wanted = [*wanted, ModelVersionTag(UNREAD_TAG, why)]
        return create(tags if wanted == given else wanted)

    def _create_guarded(
        self, name: str, source: Source, tags: list[Any], create: Callable[[Any], ModelVersion]
    ) -> ModelVersion:
        """Register a version that the gates apply to, with stamps of what its files are."""
        stored = self._rows.find_model(name)
        if stored is None:  # the error that MLflow has for it
            return create(tags)
        name = stored.name
        if any(map(is_prompt_tag, tags)):
            raise permission_denied(f"{name}: a version with artifacts or of a guarded model cannot be a prompt")
        tags = self._admission.drop_copied_stamps(source, tags)
        self._guard.refuse_reserved_tags(tags)
        evidence, stamps = self._admission.check_new_version(name, source)
        if not self._guard.is_guarded(name):  # versions promoted so far were never asked for their gates
            self._production.refuse_if_occupied(name, source.action)
        self._guard.mark(name)
        shown = [ModelVersionTag(stamp.key, self._rows.fit(stamp.value)) for stamp in stamps]
        version = create([self._descriptions.make_tag(evidence), *tags, *shown])
        self._stamps.keep(name, version.version, {tag.key: tag.value for tag in stamps})
        gates = next(tag.value for tag in stamps if tag.key == GATES_TAG)
        self._audit.record(
            name, version.version, source.action, allowed=True, reason=f"gates {gates}", evidence=evidence
        )
        self._descriptions.renew_version(name, version.version, evidence)
        described: ModelVersion = super().get_model_version(name, version.version)
        return described

    def delete_model_version(self, name: str, version: str) -> None:
        """Delete a version that is not in Production."""
        guarded = self._guard.find_guarded_version(name, version)
        if guarded is None:
            super().delete_model_version(name, version)
            return
        name = guarded.name
        with self._lock_models(name):
            found: ModelVersion = super().get_model_version(name, guarded.version)
            self._production.refuse_deletion(found)
            reason = f"it was in stage {found.current_stage}"
            self._audit.record(name, None, f"delete version {found.version}", allowed=True, reason=reason)
            super().delete_model_version(name, guarded.version)

    # promotion

    def transition_model_version_stage(
        self, name: str, version: str, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        """Move a version to a stage; checks it before Production and Staging, and keeps the alias in step."""
        transition: Callable[..., ModelVersion] = super().transition_model_version_stage
        wanted = _read_stage(stage)
        is_promotion = wanted in (STAGE_PRODUCTION, STAGE_STAGING)
        find = self._guard.find_judged_version if is_promotion else self._guard.find_guarded_version
        guarded = None if wanted is None else find(name, version)
        if guarded is None:
            return transition(name, version, stage, archive_existing_versions)
        name, version = guarded.name, guarded.version
        with self._lock_models(name):
            found = self._production.read_version(name, version)
            if wanted == STAGE_PRODUCTION:
                self._promote(found, "promote to stage Production")
                if ALIAS not in found.aliases:
                    self._events.tell_created(name, ALIAS, version)
                return self._production.read_version(name, version)
            left = 0 if ALIAS in found.aliases else None  # what is in Production afterwards
            action = f"{'promote' if is_promotion else 'move'} to stage {wanted}"
            if is_promotion or left == 0 or found.current_stage == STAGE_PRODUCTION:
                self._approvals.check_promoter(name, version, action)
            if wanted == STAGE_STAGING:
                decision = self._admission.admit(found, action, left).decision
            else:
                reason = NO_GATE_APPLIES
                decision = self._audit.record(name, version, action, allowed=True, reason=reason, production=left)
            moved: ModelVersion = transition(name, version, wanted, archive_existing_versions)
            if ALIAS in found.aliases:
                super().delete_registered_model_alias(name, ALIAS)
                self._audit.confirm(decision)
                self._events.tell_deleted(name, ALIAS)
                self._descriptions.renew_model(name, None)
                moved = self._production.read_version(name, version)
            return moved

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Set an alias; checks the version before a protected one. `production` moves it to the stage as well."""
        protected = self._guard.find_protected_alias(alias)
        guarded = None if protected is None else self._guard.find_judged_version(name, version)
        if guarded is None:
            super().set_registered_model_alias(name, alias, version)
            return
        name, version = guarded.name, guarded.version
        if alias != protected:
            reason = f"this alias must be written {protected!r}"
            raise self._audit.refuse(name, version, f"set alias {alias}", reason)
        with self._lock_models(name):
            self._promote(self._production.read_version(name, version), f"set alias {alias}", alias)

    def _promote(self, version: ModelVersion, action: str, alias: str = ALIAS) -> None:
        """Give a version a protected alias, after all checks. One that has it already needs no more approvals."""
        self._approvals.check_promoter(version.name, version.version, action)
        asked = None if alias in version.aliases else alias
        if alias != ALIAS:
            admitted = self._admission.admit(version, action, alias=asked)
            super().set_registered_model_alias(version.name, alias, version.version)
            self._descriptions.renew_version(version.name, version.version, admitted.evidence)
            return
        admitted = self._admission.admit(version, action, int(version.version), asked)
        self._production.move_in(version)
        self._audit.confirm(admitted.decision)
        self._descriptions.renew_version(version.name, version.version, admitted.evidence)
        self._descriptions.renew_model(version.name, str(version.version))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """Delete an alias; only promoters delete a protected one. `production` archives the version as well."""
        protected = self._guard.find_protected_alias(alias)
        guarded = None if protected is None else self._guard.find_guarded(name)
        if guarded is None or self._rows.find_alias(name, alias) not in (None, protected):
            super().delete_registered_model_alias(name, alias)
            return
        name, alias = guarded.name, str(protected)
        with self._lock_models(name):
            held = self._rows.find_aliased(name, alias)
            action, reason = f"delete alias {alias}", NO_GATE_APPLIES
            self._approvals.check_promoter(name, held, action)
            left = 0 if alias == ALIAS else None  # what is in Production afterwards
            decision = self._audit.record(name, held, action, allowed=True, reason=reason, production=left)
            if held is not None and alias == ALIAS:
                self._production.archive(name)
            super().delete_registered_model_alias(name, alias)
            if alias == ALIAS:
                self._audit.confirm(decision)
                if held is not None:
                    self._descriptions.renew_model(name, None)

    # registered models

    def create_registered_model(self, name: str, tags: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Create a registered model; refuses reserved tags, and a prompt with a name that is listed for models."""
        given = _list_tags(tags)
        self._guard.refuse_reserved_tags(given)
        if any(map(is_prompt_tag, given)) and self._guard.lists(name):
            raise permission_denied(f"{name}: this name is guarded, so it cannot be a prompt")
        return super().create_registered_model(name, tags, *args, **kwargs)

    def delete_registered_model(self, name: str) -> None:
        """Delete a registered model unless a version is in Production; its audit is kept."""
        guarded = self._guard.find_guarded(name)
        if guarded is None:
            super().delete_registered_model(name)
            return
        name = guarded.name
        with self._lock_models(name):
            action = "delete the registered model"
            self._production.refuse_if_occupied(name, action)
            self._audit.record(name, None, action, allowed=True, reason="nothing is in Production")
            super().delete_registered_model(name)

    def search_registered_models(self, filter_string: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Search registered models; a filter that carries a question of `plantmodels-registry` is answered."""
        question = Question.from_filter(filter_string)
        if question is None:
            return super().search_registered_models(filter_string, *args, **kwargs)
        return PagedList(self._answers.answer(question), token=None)

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        """Rename a registered model.

        If the old name is guarded, or the configuration guards the new one, no version may be in Production. If only
        the configuration's guard of the new name applies, every version must be one that could be promoted.
        """
        rename = super().rename_registered_model
        stored = self._rows.find_model(name)
        if stored is None or not (self._guard.is_guarded(name) or self._guard.lists(new_name)):
            return rename(name, new_name)
        name = stored.name
        with self._lock_models(name, new_name):
            action = f"rename {name} to {new_name}"
            self._production.refuse_if_occupied(name, action)
            if self._guard.lists(new_name) and not self._guard.lists(name):
                self._approvals.check_promoter(name, None, action)
                self._admit_all(name, action)
            self._audit.record(name, None, action, allowed=True, reason="nothing is in Production")
            return rename(name, new_name)

    def _admit_all(self, name: str, action: str) -> None:
        """Check every version of a model that is about to get a guarded name."""
        if is_prompt(super().get_registered_model(name)):
            raise self._audit.refuse(name, None, action, "a prompt cannot have a guarded name")
        for version in self._production.list_versions(name):
            self._admission.admit(version, action)

    # tags

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        """Set a tag of a model; refuses reserved tags, and the tag that would make a guarded model a prompt."""
        self._guard.refuse_reserved_tags([tag])
        if is_prompt_tag(tag) and self._guard.is_guarded(name):
            raise permission_denied(f"{name}: a guarded model cannot be a prompt")
        super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Delete a tag of a model; refuses reserved tags."""
        self._guard.refuse_reserved_tag(key)
        super().delete_registered_model_tag(name, key)

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        """Set a tag of a version; `plantmodels.waive.<gate>` waives a gate, other reserved tags are refused."""
        gate = _read_waived_gate(tag.key)
        guarded = None if gate is None else self._rows.find_version(name, version)
        if gate is not None and guarded is not None:
            evidence = self._waivers.grant(guarded.name, guarded.version, gate, tag.value)
            self._descriptions.renew_version(guarded.name, guarded.version, evidence)
            return
        if gate is None:
            self._guard.refuse_reserved_tag(tag.key)
        if is_prompt_tag(tag) and (guarded := self._guard.find_guarded_version(name, version)) is not None:
            raise permission_denied(f"{guarded.name} version {guarded.version}: a guarded model cannot be a prompt")
        super().set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        """Delete a tag of a version; `plantmodels.waive.<gate>` withdraws a waiver, other reserved tags are refused."""
        gate = _read_waived_gate(key)
        found = None if gate is None else self._rows.find_version(name, version)
        if gate is not None and found is not None:
            evidence = self._waivers.withdraw(found.name, found.version, gate)
            if evidence is not None:
                self._descriptions.renew_version(found.name, found.version, evidence)
            return
        if gate is None:
            self._guard.refuse_reserved_tag(key)
        super().delete_model_version_tag(name, version, key)


def _list_tags(tags: object) -> list[Any]:
    """Return the tags of a request. A request over HTTP brings them in a container of protobuf's, which is no list."""
    return list(tags) if isinstance(tags, Sequence) and not isinstance(tags, str) else []


def _read_stage(stage: object) -> str | None:
    """Return the stage that a text means; None if MLflow will refuse it."""
    try:
        return str(get_canonical_stage(stage))
    except (MlflowException, AttributeError):
        return None


def _read_waived_gate(key: object) -> str | None:
    """Return the gate that a tag asks to waive; None for all other tags."""
    return key.removeprefix(WAIVE_TAG) if isinstance(key, str) and key.startswith(WAIVE_TAG) else None
