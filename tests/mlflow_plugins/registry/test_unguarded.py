"""On models that are not guarded, MLflow's store and ours answer every call alike: results, rows, errors and codes.

A driver calls both with the same arguments, odd ones and None included, and compares what they answer and what their
databases hold, with workspaces and without. `DRIVER_STEPS` sets the number of calls; CI makes 5,000.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import mlflow
import pytest
import sqlalchemy
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_context import WorkspaceContext

from mlflow_plugins._mlflow_compat import get_store_class
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.store import build_gated_store

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

STEPS: Final = int(os.environ.get("DRIVER_STEPS", "400"))
_AT_ONCE: Final = 50
"""Calls on one pair of databases."""

TABLES: Final = (
    "registered_models",
    "registered_model_tags",
    "registered_model_aliases",
    "model_versions",
    "model_version_tags",
)

NAMES = st.sampled_from(["a", "b", "A", "ä", "a ", "a\n", "Ω/x", "", " ", None, "x:y", "b" * 300, 3, "\ud800"])
KNOWN = st.sampled_from(["a", "b", "a", "b", "A"])
VERSIONS = st.sampled_from(["1", "2", 1, 2, "3", "１", " 1 ", 1.5, True, 0, -1, "x", "", None, 10**30, float("inf")])
STAGES = st.sampled_from(["Production", "production", "STAGING", "Archived", "None", "none", "x", "", None, 3])
ALIASES = st.sampled_from(
    [
        "production",
        "PRODUCTION",
        "pröduction",
        "production\n",
        "ｐroduction",
        "champion",
        "latest",
        "v1",
        "",
        " ",
        None,
        3,
    ]
)
KEYS = st.sampled_from(["k", "K", "ä", " k", "k\n", "mlflow.prompt.is_prompt", "a/../b", "", None, 3, "k" * 300])
VALUES = st.sampled_from(["v", "true", "", None, 3, "v" * 6000, "\n", "\x1b[2K"])
TEXTS = st.sampled_from(["d", "", None, "d" * 6000])
TAGS = st.one_of(
    st.none(), st.just([]), st.lists(st.tuples(KEYS, VALUES), max_size=3), st.sampled_from(["text", [3], iter(())])
)


class Pair:
    """MLflow's store and ours on two databases that began alike."""

    def __init__(self, folder: Path) -> None:
        addresses = [f"sqlite:///{folder / name}" for name in ("plain.db", "gated.db")]
        self.plain = get_store_class()(addresses[0])
        self.gated = build_gated_store(addresses[1], RegistryConfig(guarded=("guarded-*",)))
        self.workspace = "default"

    def call(self, method: str, *arguments: Any, **named: Any) -> None:
        with WorkspaceContext(self.workspace) if MLFLOW_ENABLE_WORKSPACES.get() else contextlib.nullcontext():
            answers = [_answer(getattr(store, method), arguments, named) for store in (self.plain, self.gated)]
        assert answers[0] == answers[1], (method, arguments, named)

    def rows(self) -> list[dict[str, list[Any]]]:
        return [{table: _read_rows(store.engine, table) for table in TABLES} for store in (self.plain, self.gated)]

    def close(self) -> None:
        for store in (self.plain, self.gated):
            store.engine.dispose()


def _answer(method: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> object:
    """What a call returns, or the type, code and text of its error; times are left out."""
    try:
        found = method(*arguments, **named)
    except MlflowException as error:
        return type(error), error.error_code, _mask(error.message)
    except Exception as error:
        return type(error), _mask(str(error))
    return _describe(found)


def _describe(value: Any) -> Any:
    if isinstance(value, list):
        return [_describe(item) for item in value], getattr(value, "token", None)
    if not hasattr(value, "__dict__"):
        return value
    return type(value), {
        key: _describe(item) for key, item in sorted(vars(value).items()) if not re.search("time|_store", key)
    }


def _mask(text: str) -> str:
    """Without times, memory addresses and the names of the databases' files."""
    return re.sub(r"\d{13}|0x[0-9a-f]+|(plain|gated)\.db", "…", text)


def _read_rows(engine: sqlalchemy.Engine, table: str) -> list[Any]:
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).mappings()
        rows = [{key: value for key, value in row.items() if not key.endswith("_time")} for row in found]
    return sorted(rows, key=repr)


def _tags(kind: type, pairs: Any) -> Any:
    return [kind(*pair) if isinstance(pair, tuple) else pair for pair in pairs] if isinstance(pairs, list) else pairs


class Driver(RuleBasedStateMachine):
    """Calls MLflow's store and ours alike."""

    folder: Path
    sources: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(Path(tempfile.mkdtemp(dir=self.folder)))
        for name in ("a", "b"):
            self.pair.call("create_registered_model", name)
            self.pair.call("create_model_version", name, self.sources[0])

    def teardown(self) -> None:
        self.pair.close()

    @invariant()
    def the_rows_are_the_same(self) -> None:
        plain, gated = self.pair.rows()
        assert plain == gated

    @rule(workspace=st.sampled_from(["default", "team-a"]))
    def enter_a_workspace(self, workspace: str) -> None:
        """What follows is asked there; without workspaces nothing changes."""
        self.pair.workspace = workspace
        self.pair.call("search_registered_models")

    @rule(name=NAMES, tags=TAGS, description=TEXTS)
    def create_registered_model(self, name: Any, tags: Any, description: Any) -> None:
        self.pair.call("create_registered_model", name, _tags(RegisteredModelTag, tags), description)

    @rule(name=KNOWN | NAMES, new_name=NAMES)
    def rename_registered_model(self, name: Any, new_name: Any) -> None:
        self.pair.call("rename_registered_model", name, new_name)

    @rule(name=KNOWN | NAMES)
    def delete_registered_model(self, name: Any) -> None:
        self.pair.call("delete_registered_model", name)
        self.pair.call("create_registered_model", "a")

    @rule(name=KNOWN | NAMES, tags=TAGS, data=st.data(), description=TEXTS, run_id=st.sampled_from([None, "r", ""]))
    def create_model_version(self, name: Any, tags: Any, data: Any, description: Any, run_id: Any) -> None:
        source = data.draw(st.sampled_from(self.sources))
        tags = _tags(ModelVersionTag, tags)
        self.pair.call("create_model_version", name, source, run_id, tags, None, description=description)

    @rule(name=KNOWN, data=st.data())
    def create_good_version(self, name: str, data: Any) -> None:
        self.pair.call("create_model_version", name, data.draw(st.sampled_from(self.sources[:4])))

    @rule(name=KNOWN | NAMES, version=VERSIONS)
    def delete_model_version(self, name: Any, version: Any) -> None:
        self.pair.call("delete_model_version", name, version)

    @rule(name=KNOWN | NAMES, version=VERSIONS, stage=STAGES, archive=st.sampled_from([True, False, None]))
    def transition_model_version_stage(self, name: Any, version: Any, stage: Any, archive: Any) -> None:
        self.pair.call("transition_model_version_stage", name, version, stage, archive)

    @rule(name=KNOWN | NAMES, alias=ALIASES, version=VERSIONS)
    def set_registered_model_alias(self, name: Any, alias: Any, version: Any) -> None:
        self.pair.call("set_registered_model_alias", name, alias, version)

    @rule(name=KNOWN | NAMES, alias=ALIASES)
    def delete_registered_model_alias(self, name: Any, alias: Any) -> None:
        self.pair.call("delete_registered_model_alias", name, alias)
        self.pair.call("get_model_version_by_alias", name, alias)

    @rule(name=KNOWN | NAMES, key=KEYS, value=VALUES)
    def tag_a_model(self, name: Any, key: Any, value: Any) -> None:
        self.pair.call("set_registered_model_tag", name, RegisteredModelTag(key, value))
        self.pair.call("get_registered_model", name)

    @rule(name=KNOWN | NAMES, key=KEYS)
    def delete_registered_model_tag(self, name: Any, key: Any) -> None:
        self.pair.call("delete_registered_model_tag", name, key)

    @rule(name=KNOWN | NAMES, version=VERSIONS, key=KEYS, value=VALUES)
    def tag_a_version(self, name: Any, version: Any, key: Any, value: Any) -> None:
        self.pair.call("set_model_version_tag", name, version, ModelVersionTag(key, value))
        self.pair.call("get_model_version", name, version)

    @rule(name=KNOWN | NAMES, version=VERSIONS, key=KEYS)
    def delete_model_version_tag(self, name: Any, version: Any, key: Any) -> None:
        self.pair.call("delete_model_version_tag", name, version, key)

    @rule(name=KNOWN | NAMES, version=VERSIONS, description=TEXTS)
    def update(self, name: Any, version: Any, description: Any) -> None:
        self.pair.call("update_model_version", name, version, description)
        self.pair.call("update_registered_model", name, description)
        self.pair.call("search_model_versions", f"name = '{name}'")


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        return model_input


@pytest.fixture
def sources() -> Iterator[list[Any]]:
    """What versions of others are made from; the first four exist."""
    with mlflow.start_run():
        model = mlflow.pyfunc.log_model(name="other", python_model=Echo(), pip_requirements=[]).model_uri
    location = mlflow.get_logged_model(model.removeprefix("models:/")).artifact_location
    yield [
        location,
        model,
        "/no/such/folder",
        "dummy-source",
        "models:/a/1",
        "models:/b/1",
        "models:/a",
        "models:/a@production",
        "models:/m-0",
        "Models:/a/1",
        " models:/a/1",
        "nothing://here",
        "s" * 600,
        "",
        None,
        3,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workspaces", [False, True])
def test_the_driver_finds_no_difference(
    tmp_path: Path, sources: list[Any], monkeypatch: pytest.MonkeyPatch, workspaces: bool
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", str(workspaces))
    monkeypatch.setattr(Driver, "folder", tmp_path, raising=False)
    monkeypatch.setattr(Driver, "sources", sources, raising=False)
    run_state_machine_as_test(
        Driver,
        settings=settings(
            max_examples=max(1, STEPS // 2 // _AT_ONCE),
            stateful_step_count=_AT_ONCE,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
