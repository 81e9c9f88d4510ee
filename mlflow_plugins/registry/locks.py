"""One change of a registered model at a time, across threads, server workers and servers.

>>> with RegistryLocks(sqlalchemy.create_engine("sqlite://")).hold("plant-disease"):
...     pass
"""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import sqlalchemy

from mlflow_plugins._mlflow_compat import get_connect_arguments
from mlflow_plugins.registry.guard.names import fold
from mlflow_plugins.registry.places import lend_place
from plantmodels.bundle.file_lock import LockedError, hold_file_lock

_LOGGER: Final = logging.getLogger("mlflow.plantmodels.locks")

TIMEOUT_S: Final = 120
"""How long a change waits for another change of the same model, in seconds."""

CONNECTIONS: Final = 4
"""Connections that locks of one process use at most, beside those of MLflow's own pool."""

_DIALECTS: Final = ("sqlite", "postgresql", "mysql", "mariadb")


class RegistryLocks:
    """Locks by model name: in the database of a server, or in a file beside an sqlite database.

    Names that differ only in case, accents or width share a lock, because some databases take them for one name.

    Locks have connections of their own. Threads wait for one before they ask the database, so neither a waiting nor a
    promoting thread keeps others from MLflow's connections. If a server dies, the database ends its transaction, or
    the operating system releases its file lock.
    """

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        """Take the engine of the database that holds the registered models.

        Raises:
            NotImplementedError: the registry has no lock for such a database.
        """
        dialect = engine.dialect.name
        if dialect not in _DIALECTS:
            raise NotImplementedError(
                f"the gated registry has no lock for {dialect}; it runs on sqlite, PostgreSQL, MariaDB and MySQL"
            )
        self._engine = engine
        self._process = _find_process_locks(engine.url.render_as_string(hide_password=False))

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Wait for the locks of registered models and hold them during the block.

        Raises:
            TimeoutError: one was not free within `TIMEOUT_S`, or sqlite's file system has no locks.
        """
        keys = sorted({_make_key(name) for name in names})
        with ExitStack() as stack:
            for key in keys:
                stack.enter_context(self._process.hold(key, names))
            if self._engine.dialect.name != "sqlite":
                stack.enter_context(self._process.hold_connection(names))
                stack.enter_context(_hold_database_locks(self._process.engine, keys, names))
            elif self._engine.url.database not in (None, "", ":memory:"):  # one in memory belongs to this process
                for key in keys:
                    stack.enter_context(_hold_sqlite_lock(Path(str(self._engine.url.database)), key, names))
            yield


def _make_key(name: str) -> str:
    return hashlib.sha256(f"plantmodels:{fold(name)}".encode("utf-8", "surrogatepass")).hexdigest()


def _explain_timeout(names: tuple[str, ...]) -> str:
    described = " or ".join(map(repr, names))
    return f"another change of {described} has not finished within {TIMEOUT_S} s; try again"


class _ProcessLocks:
    """What all stores of one process share for one database: a mutex for each name, and the locks' connections."""

    def __init__(self, url: str) -> None:
        self._url = sqlalchemy.make_url(url)
        self._guard = threading.Lock()
        self._mutexes: dict[str, threading.Lock] = {}
        self._free = threading.Semaphore(CONNECTIONS)
        self._engine: sqlalchemy.Engine | None = None

    @property
    def engine(self) -> sqlalchemy.Engine:
        """The engine of the locks' connections, made when it is first needed."""
        with self._guard:
            if self._engine is None:
                self._engine = sqlalchemy.create_engine(
                    self._url,
                    pool_size=CONNECTIONS,
                    max_overflow=0,
                    pool_pre_ping=True,
                    connect_args=get_connect_arguments(self._url),
                )
            return self._engine

    @contextmanager
    def hold(self, key: str, names: tuple[str, ...]) -> Iterator[None]:
        """Hold the mutex of one name, so that only one thread of this process asks the database for its lock."""
        with self._guard:
            mutex = self._mutexes.setdefault(key, threading.Lock())
        _wait_for(mutex, names)
        try:
            yield
        finally:
            mutex.release()

    @contextmanager
    def hold_connection(self, names: tuple[str, ...]) -> Iterator[None]:
        """Wait until one of the locks' connections is free."""
        _wait_for(self._free, names)
        try:
            yield
        finally:
            self._free.release()


def _wait_for(lock: "threading.Lock | threading.Semaphore", names: tuple[str, ...]) -> None:
    """Acquire a lock of this process, and let the server answer other requests until it is free."""
    if lock.acquire(blocking=False):
        return
    with lend_place():
        if not lock.acquire(timeout=TIMEOUT_S):
            raise TimeoutError(_explain_timeout(names))


@cache
def _find_process_locks(url: str) -> _ProcessLocks:
    return _ProcessLocks(url)


@contextmanager
def _hold_sqlite_lock(database: Path, key: str, names: tuple[str, ...]) -> Iterator[None]:
    path = database.with_name(f"{database.name}.{key[:16]}.lock")
    try:
        with hold_file_lock(path, timeout_s=TIMEOUT_S) as is_held:
            if not is_held:
                raise TimeoutError(
                    f"{path}: this file system has no locks, so two promotions could run at once; "
                    "put the database on a local disk"
                )
            yield
    except LockedError as error:
        raise TimeoutError(_explain_timeout(names)) from error


@contextmanager
def _hold_database_locks(engine: sqlalchemy.Engine, keys: list[str], names: tuple[str, ...]) -> Iterator[None]:
    is_mysql = engine.dialect.name in ("mysql", "mariadb")
    acquire, release = (_acquire_mysql, _release_mysql) if is_mysql else (_acquire_postgresql, _release_postgresql)
    with engine.connect() as connection:
        try:
            is_held = acquire(connection, keys)
        except sqlalchemy.exc.OperationalError as error:
            connection.invalidate()  # MySQL's locks belong to the connection: none may go back to the pool
            raise TimeoutError(f"{_explain_timeout(names)} ({error.orig})") from error
        if not is_held:
            raise TimeoutError(_explain_timeout(names))
        try:
            yield
        finally:
            try:
                release(connection, keys)
            except sqlalchemy.exc.SQLAlchemyError as error:
                connection.invalidate()
                _LOGGER.warning("the lock of %s was lost before its change ended: %s", " and ".join(names), error)


def _acquire_postgresql(connection: sqlalchemy.Connection, keys: list[str]) -> bool:
    """Take locks that end with the transaction, so that they work behind pgbouncer's transaction pooling too.

    The transaction stays idle while the change is carried out. A server that ends idle transactions soon must not end
    this one, so its limit is set for this transaction.
    """
    limit_ms = round(TIMEOUT_S * 1000)
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {limit_ms}")
    connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {limit_ms}")
    for key in keys:
        number = int.from_bytes(bytes.fromhex(key)[:8], signed=True)
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": number})
    return True


def _release_postgresql(connection: sqlalchemy.Connection, keys: list[str]) -> None:
    connection.commit()


def _acquire_mysql(connection: sqlalchemy.Connection, keys: list[str]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    for place, key in enumerate(keys):
        left_s = max(0.0, deadline - time.monotonic())
        asked = {"key": key[:60], "wait": left_s}
        if connection.execute(sqlalchemy.text("SELECT GET_LOCK(:key, :wait)"), asked).scalar() != 1:
            _release_mysql(connection, keys[:place])
            return False
    connection.commit()  # these locks belong to the connection: no transaction stays open
    return True


def _release_mysql(connection: sqlalchemy.Connection, keys: list[str]) -> None:
    for key in keys:
        connection.execute(sqlalchemy.text("SELECT RELEASE_LOCK(:key)"), {"key": key[:60]})
    connection.commit()
