"""What a gated registry answers to the questions of `plantmodels-registry`."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from mlflow_plugins.registry.admission import Admission, Refusal
from mlflow_plugins.registry.audit import AuditLog, DecisionQuery
from mlflow_plugins.registry.commands.doctor import Doctor
from mlflow_plugins.registry.commands.questions import Question, write_answer
from mlflow_plugins.registry.guard.guard import Guard


class Answers:
    """Answers questions about the models of one registry."""

    def __init__(self, store: Any, audit: AuditLog, doctor: Doctor, guard: Guard, admission: Admission) -> None:
        """Take MLflow's own store without the gate, and the registry's parts that know the answers."""
        self._store = store
        self._guard = guard
        self._admission = admission
        self._audit = audit
        self._doctor = doctor
        self._kinds: dict[str, Callable[[Question], list[RegisteredModel]]] = {
            "audit": self._read_audit,
            "guarded": self._list_guarded,
            "doctor": self._examine,
            "check": self._judge,
        }

    def answer(self, question: Question) -> list[RegisteredModel]:
        """Return the answer as search results, one for each model that it is about.

        Raises:
            MlflowException: the question is unknown, or it is about a model that never existed.
        """
        if question.kind not in self._kinds:
            raise MlflowException.invalid_parameter_value(
                f"the server's plantmodels does not know the question {question.kind!a}; it knows: "
                f"{', '.join(self._kinds)}"
            )
        return self._kinds[question.kind](question)

    def _read_audit(self, question: Question) -> list[RegisteredModel]:
        try:
            query = DecisionQuery(name=question.name, **question.arguments)
            decisions = self._audit.find(query)
        except (TypeError, ValueError) as error:
            raise MlflowException.invalid_parameter_value(f"audit of {question.name!a}: {error}") from error
        if not decisions and not self._audit.find(DecisionQuery(question.name, limit=1)):
            self._store.get_registered_model(question.name)  # raises if there is no such model
        return [write_answer(question.name, [asdict(decision) for decision in decisions])]

    def _judge(self, question: Question) -> list[RegisteredModel]:
        version = self._store.get_model_version(question.name, str(question.arguments.get("version")))
        found = self._admission.judge(version) if self._is_judged(version) else None
        return [write_answer(question.name, found.reason if isinstance(found, Refusal) else None)]

    def _is_judged(self, version: ModelVersion) -> bool:
        """Return whether the gates would be asked before a promotion; unlike the promotion, mark nothing."""
        name = version.name
        if self._guard.exempts(name) or self._guard.is_guarded(name):
            return not self._guard.exempts(name)
        location = self._store.get_model_version_download_uri(name, version.version)
        return self._guard.ask_flavor(version.source, location)[0]

    def _list_guarded(self, question: Question) -> list[RegisteredModel]:
        return [write_answer(name, None) for name in self._guard.list_guarded()]

    def _examine(self, question: Question) -> list[RegisteredModel]:
        findings = self._doctor.examine(question.name)
        return [write_answer(question.name, [asdict(finding) for finding in findings])]
