import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy

from mlflow_plugins.registry import locks
from mlflow_plugins.registry.locks import RegistryLocks


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        f"sqlite:///{tmp_path / 'a.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgresql_database")
    )


def _count(database: str, counter: Path, turns: int) -> None:
    """Adds one, slowly: two processes without a lock would lose counts."""
    held = RegistryLocks(sqlalchemy.create_engine(database))
    for _ in range(turns):
        with held.hold("leaves"):
            number = int(counter.read_text())
            time.sleep(0.005)
            counter.write_text(str(number + 1))


def test_one_process_at_a_time_holds_the_lock(database: str, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_count, args=(database, counter, 10)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "20"


def test_a_lock_that_is_not_free_in_time_is_an_error(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TIMEOUT_S", 0.3)
    held = RegistryLocks(sqlalchemy.create_engine(database))
    never = pytest.raises(TimeoutError, match="'leaves' has not finished")
    with held.hold("leaves"), held.hold("another"), never, held.hold("leaves"):
        pass


def test_another_server_waits_no_longer_than_the_timeout(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TIMEOUT_S", 1)
    first, second = (RegistryLocks(sqlalchemy.create_engine(database)) for _ in range(2))
    never = pytest.raises(TimeoutError, match="'leaves' has not finished within 1 s")
    with first.hold("leaves"), never, second.hold("leaves"):
        pass
    with second.hold("leaves"):  # the first one has released it
        pass


def test_an_error_releases_the_lock(database: str) -> None:
    held = RegistryLocks(sqlalchemy.create_engine(database))
    with pytest.raises(KeyError), held.hold("leaves"):
        raise KeyError
    with held.hold("leaves"):
        pass


def test_without_a_database_threads_are_kept_apart() -> None:
    held = RegistryLocks(None)
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


def test_other_databases_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="no lock for oracle"):
        locks._write_statements("oracle", "leaves")
