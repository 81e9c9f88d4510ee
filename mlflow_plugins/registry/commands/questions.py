"""How a client asks a gated registry what MLflow's own calls cannot say, such as its decisions.

The question travels in the filter of a search for registered models, and the answer in a tag of the models that are
found. So it needs no port of its own, and MLflow's permissions apply: whoever may read a model gets the answer. A
registry without the gate finds nothing.

>>> question = Question("audit", "plant-disease", {"version": "3"})
>>> Question.from_filter(question.to_filter()) == question
True
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel, RegisteredModelTag
from mlflow.exceptions import MlflowException

from mlflow_plugins.registry.tags import RESERVED
from plantmodels.errors import RegistryError

_TAG: Final = f"{RESERVED}question"
_FILTER: Final = re.compile(rf"tag\.`{re.escape(_TAG)}` = '([A-Za-z0-9_=-]+)'")


@dataclass(frozen=True)
class Question:
    """What a client asks.

    Attributes:
        kind: one of the kinds that the server's `Answers` knows.
        name: registered model; "" if the question is about all of them.
        arguments: further arguments; values that JSON can hold.
    """

    kind: str
    name: str
    arguments: Mapping[str, Any]

    def to_filter(self) -> str:
        """Return the filter that carries the question."""
        text = base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()
        return f"tag.`{_TAG}` = '{text}'"

    @classmethod
    def from_filter(cls, text: object) -> "Question | None":
        """Return the question in a filter; None if it is a filter like any other."""
        found = _FILTER.match(text) if isinstance(text, str) else None
        if found is None:
            return None
        try:
            document = json.loads(base64.urlsafe_b64decode(found[1]))
            return cls(str(document["kind"]), str(document["name"]), dict(document["arguments"]))
        except (ValueError, KeyError, TypeError):
            return None


def write_answer(name: str, answer: Any) -> RegisteredModel:
    """Return a search result about a model that carries an answer, which may be anything that JSON can hold."""
    return RegisteredModel(name, tags=[RegisteredModelTag(_TAG, json.dumps(answer))])


def ask_about(kind: str, name: str, **arguments: Any) -> Any:
    """Ask the gated registry about one registered model and return its answer.

    Raises:
        RegistryError: it is not a gated registry, or it refuses to answer, or the user may not read the model.
    """
    answers = ask(Question(kind, name, arguments))
    if name not in answers:
        raise RegistryError(
            f"{mlflow.get_registry_uri()} is not a gated registry, or you may not read {name!r} there; use the address "
            "of a gated server, or plantmodels:DATABASE"
        )
    return answers[name]


def ask(question: Question) -> dict[str, Any]:
    """Ask the gated registry and return its answers by the names of registered models.

    There are none if it is not a gated registry, or if the user may read none of the models.

    Raises:
        RegistryError: it refuses to answer.
    """
    with registry_errors():
        found = MlflowClient().search_registered_models(filter_string=question.to_filter())
        return {model.name: json.loads(model.tags[_TAG]) for model in found if _TAG in model.tags}


@contextmanager
def registry_errors() -> Iterator[None]:
    """Turn an error of MLflow's client into a `RegistryError` that names the registry."""
    try:
        yield
    except MlflowException as error:
        raise RegistryError(f"{mlflow.get_registry_uri()}: {error.message}") from error
