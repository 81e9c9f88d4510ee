import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy

from mlflow_plugins.registry import locks
from mlflow_plugins.registry.locks import RegistryLocks
from tests.fixtures.databases import ON_EVERY_DATABASE


def _count(database: str, counter: Path, turns: int) -> None:
    """Adds one, slowly: two processes without a lock would lose counts."""
    held = RegistryLocks(sqlalchemy.create_engine(database))
    for _ in range(turns):
        with held.hold("leaves"):
            number = int(counter.read_text())
            time.sleep(0.005)
            counter.write_text(str(number + 1))


@ON_EVERY_DATABASE
def test_one_process_at_a_time_holds_the_lock(registry_database: str, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_count, args=(registry_database, counter, 10)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "20"


@ON_EVERY_DATABASE
def test_a_lock_that_is_not_free_in_time_is_an_error(registry_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TIMEOUT_S", 0.3)
    held = RegistryLocks(sqlalchemy.create_engine(registry_database))
    never = pytest.raises(TimeoutError, match="'leaves' has not finished")
    with held.hold("leaves"), held.hold("another"), never, held.hold("leaves"):
        pass


@ON_EVERY_DATABASE
def test_another_server_waits_no_longer_than_the_timeout(
    registry_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TIMEOUT_S", 1)
    first, second = (RegistryLocks(sqlalchemy.create_engine(registry_database)) for _ in range(2))
    never = pytest.raises(TimeoutError, match="'leaves' has not finished within 1 s")
    with first.hold("leaves"), never, second.hold("leaves"):
        pass
    with second.hold("leaves"):  # the first one has released it
        pass


def test_a_server_that_ends_idle_transactions_soon_does_not_end_a_lock(postgresql_database: str) -> None:
    engine = sqlalchemy.create_engine(postgresql_database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        name = engine.url.database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = 200")
    held = RegistryLocks(engine)
    with held.hold("leaves"):
        time.sleep(1)
        with engine.connect() as connection:
            locks_now = connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").scalar()
    assert locks_now == 1


def test_a_lock_that_the_database_ended_is_a_warning_and_can_be_taken_again(
    postgresql_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = sqlalchemy.create_engine(postgresql_database, isolation_level="AUTOCOMMIT")
    held = RegistryLocks(engine)
    with held.hold("leaves"), engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    assert "the lock of leaves was lost before its change ended" in caplog.text
    with held.hold("leaves"):
        pass


def test_no_more_connections_than_allowed_are_used(postgresql_database: str) -> None:
    engine = sqlalchemy.create_engine(postgresql_database)
    held, inside, most = RegistryLocks(engine), threading.Semaphore(0), []

    def change(name: str) -> None:
        with held.hold(name):
            inside.release()
            with engine.connect() as connection:
                most.append(
                    connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").scalar()
                )

    threads = [threading.Thread(target=change, args=(f"model {number}",)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 30 and max(most) <= locks.CONNECTIONS


@ON_EVERY_DATABASE
def test_an_error_releases_the_lock(registry_database: str) -> None:
    held = RegistryLocks(sqlalchemy.create_engine(registry_database))
    with pytest.raises(KeyError), held.hold("leaves"):
        raise KeyError
    with held.hold("leaves"):
        pass


def test_an_sqlite_database_in_memory_keeps_threads_apart() -> None:
    held = RegistryLocks(sqlalchemy.create_engine("sqlite://"))
    done = threading.Event()

    def wait() -> None:
        with held.hold("leaves"):
            done.set()

    thread = threading.Thread(target=wait)
    with held.hold("leaves"):
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(600)
    thread.join()


def test_spellings_that_a_database_may_take_for_one_name_share_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TIMEOUT_S", 0.1)
    held = RegistryLocks(sqlalchemy.create_engine("sqlite://"))
    with held.hold("pröduction", "Production "):  # one lock, taken once
        for name in ("production", "PRODUCTION", "ｐroduction"):
            with pytest.raises(TimeoutError, match=f"'{name}' has not finished"), held.hold(name):
                pass


@ON_EVERY_DATABASE
def test_two_threads_that_want_two_locks_each_wait_for_each_other(registry_database: str) -> None:
    held = RegistryLocks(sqlalchemy.create_engine(registry_database))
    held_at_once: list[str] = []

    def swap(*names: str) -> None:
        for _ in range(20):
            with held.hold(*names):
                held_at_once.append("in")
                assert held_at_once.count("in") == held_at_once.count("out") + 1
                held_at_once.append("out")

    threads = [threading.Thread(target=swap, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held_at_once) == 80


def test_other_databases_are_refused() -> None:
    engine = sqlalchemy.create_mock_engine("oracle://", None)
    with pytest.raises(
        NotImplementedError, match="no lock for oracle; it runs on sqlite, PostgreSQL, MariaDB and MySQL"
    ):
        RegistryLocks(engine)
