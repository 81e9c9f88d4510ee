import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry

from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.records.tables import METADATA, SCHEMA, SCHEMA_VERSION, Records
from mlflow_plugins.registry.store import build_gated_store
from mlflow_plugins.registry_store import build_store
from plantmodels.errors import RegistryError
from tests.fixtures.databases import ON_EVERY_DATABASE


@pytest.fixture
def engine(tmp_path: Path) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'a.db'}")


@ON_EVERY_DATABASE
def test_tables_are_made_once_by_servers_that_start_together(registry_database: str) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            Records.open(sqlalchemy.create_engine(registry_database), None)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    engine = sqlalchemy.create_engine(registry_database)
    assert set(METADATA.tables) <= set(sqlalchemy.inspect(engine).get_table_names())
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.select(SCHEMA)).fetchall() == [(SCHEMA_VERSION,)]


def test_requests_that_come_to_a_new_server_at_once_share_one_store(registry_database: str) -> None:
    """MLflow's cache of stores is filled only when the first store is built, so all of them ask for one."""
    registry, start = ModelRegistryStoreRegistry(), threading.Barrier(8)
    registry.register("plantmodels", build_store)

    def ask(address: str) -> object:
        start.wait()
        return registry.get_store(address)

    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(ask, [f"plantmodels:{registry_database}"] * 8))
    assert len(stores) == 8 and len(set(map(id, stores))) == 1


def test_tables_that_a_crash_left_unfinished_are_finished(engine: sqlalchemy.Engine) -> None:
    METADATA.tables["plantmodels_decisions"].create(engine)
    Records.open(engine, None)
    assert set(METADATA.tables) <= set(sqlalchemy.inspect(engine).get_table_names())


def test_tables_of_a_newer_version_are_refused(engine: sqlalchemy.Engine) -> None:
    Records.open(engine, None)
    with engine.begin() as connection:
        connection.execute(SCHEMA.insert().values(version=SCHEMA_VERSION + 1))
    with pytest.raises(RegistryError, match=r"a\.db: the tables plantmodels_\* have version 2, and this .* version 1"):
        Records.open(engine, None)


@ON_EVERY_DATABASE
def test_mlflow_opens_and_upgrades_a_database_that_has_the_tables(registry_database: str) -> None:
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, _get_schema_version, _verify_schema

    engine = build_gated_store(registry_database).engine
    before = _get_schema_version(engine)
    settings = _get_alembic_config(registry_database)
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "heads")  # as `mlflow db upgrade` does
    _verify_schema(engine)
    assert _get_schema_version(engine) == before
    SqlAlchemyStore(registry_database)
    assert set(METADATA.tables) <= set(sqlalchemy.inspect(engine).get_table_names())


def test_another_database_may_hold_the_tables(embedded_mlflow: str, tmp_path: Path) -> None:
    config = RegistryConfig(database_uri=f"sqlite:///{tmp_path / 'decisions.db'}")
    store = build_gated_store(embedded_mlflow, config)
    assert not set(METADATA.tables) & set(sqlalchemy.inspect(store.engine).get_table_names())
    assert (tmp_path / "decisions.db").exists()


@pytest.mark.parametrize("address", ["decisions", "nothing://host/name"])
def test_an_address_that_is_no_database_is_named(engine: sqlalchemy.Engine, address: str) -> None:
    with pytest.raises(RegistryError, match="PLANTMODELS_DATABASE_URI must be the address of a database"):
        Records.open(engine, address)


def test_a_database_that_cannot_be_written_is_tried_again_by_clients(engine: sqlalchemy.Engine) -> None:
    records = Records(engine)
    with pytest.raises(MlflowException, match="no such table") as raised, records.begin() as connection:
        connection.execute(SCHEMA.insert().values(version=1))
    assert raised.value.error_code == "TEMPORARILY_UNAVAILABLE"


def test_the_address_of_a_server_is_refused_with_what_to_do() -> None:
    with pytest.raises(RegistryError, match=r"plantmodels:http://127\.0\.0\.1:1: the gates are in the server"):
        build_gated_store("http://127.0.0.1:1")
