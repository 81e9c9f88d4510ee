"""Tags of a registered model that several requests set at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_plugins.registry.records.identity import set_model_tag
from tests.fixtures.databases import ON_EVERY_DATABASE


@ON_EVERY_DATABASE
def test_all_of_eight_set_one_tag_at_once(registry_database: str, _quick_databases: None) -> None:
    store = SqlAlchemyStore(registry_database)
    for turn in range(5):
        store.create_registered_model(name := f"plants {turn}")
        together = threading.Barrier(8)

        def set_together(name: str, together: threading.Barrier = together) -> None:
            together.wait(600)
            set_model_tag(store, name, "guarded", "true")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(set_together, [name] * 8))  # raises what a thread raised
        assert store.get_registered_model(name).tags == {"guarded": "true"}


def test_a_tag_that_cannot_be_set_says_why(tmp_path, _quick_databases: None) -> None:
    store = SqlAlchemyStore(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(MlflowException, match="Registered Model with name=roses not found"):
        set_model_tag(store, "roses", "guarded", "true")
