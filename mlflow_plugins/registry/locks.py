"""One change of a registered model at a time, across threads, server workers and servers."""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy

from plantmodels.bundle.file_lock import LockedError, hold_file_lock

TIMEOUT_S: Final = 120
"""How long a change waits for another change of the same model, in seconds."""


class RegistryLocks:
    """Locks by model name: in the database of a server, or in a file beside an sqlite database.

    If a server dies, the database ends its connection, or the operating system releases its file lock. Within a
    process, threads queue before they ask the database, so a waiting thread holds no connection.
    """

    def __init__(self, engine: sqlalchemy.Engine | None) -> None:
        """Take the database's engine; None, as for a REST server, locks within this process only."""
        self._engine = engine
        self._threads: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for the lock of a registered model and hold it during the block.

        Raises:
            TimeoutError: it was not free within `TIMEOUT_S`, or sqlite's file system has no locks.
        """
        mutex = self._threads[name]
        if not mutex.acquire(timeout=TIMEOUT_S):
            raise TimeoutError(_explain_timeout(name))
        try:
            if self._engine is None:
                yield
            elif self._engine.dialect.name != "sqlite":
                with _hold_database_lock(self._engine, name):
                    yield
            elif self._engine.url.database:
                with _hold_sqlite_lock(Path(self._engine.url.database), name):
                    yield
            else:  # an sqlite database in memory belongs to this process
                yield
        finally:
            mutex.release()


def _explain_timeout(name: str) -> str:
    return f"another change of {name!r} has not finished within {TIMEOUT_S} s; try again"


@contextmanager
def _hold_sqlite_lock(database: Path, name: str) -> Iterator[None]:
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = database.with_name(f"{database.name}.{digest}.lock")
    try:
        with hold_file_lock(path, timeout_s=TIMEOUT_S) as is_held:
            if not is_held:
                raise TimeoutError(
                    f"{path}: this file system has no locks, so two promotions could run at once; "
                    "put the database on a local disk"
                )
            yield
    except LockedError as error:
        raise TimeoutError(_explain_timeout(name)) from error


@contextmanager
def _hold_database_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    statements = _write_statements(engine.dialect.name, name)
    with engine.connect() as connection:
        try:
            connection.execute(statements.limit_wait)
            is_held = connection.execute(statements.acquire, statements.key).scalar() not in (0, False)
        except sqlalchemy.exc.OperationalError as error:
            raise TimeoutError(f"{_explain_timeout(name)} ({error.orig})") from error
        if not is_held:
            raise TimeoutError(_explain_timeout(name))
        try:
            yield
        finally:
            connection.execute(statements.release, statements.key)
            connection.rollback()


@dataclass(frozen=True)
class _Statements:
    """The SQL of one lock.

    Attributes:
        limit_wait: sets how long to wait.
        acquire: takes the lock; answers 0, or raises, if it was not free in time.
        release: releases the lock.
        key: parameter of the last two.
    """

    limit_wait: sqlalchemy.TextClause
    acquire: sqlalchemy.TextClause
    release: sqlalchemy.TextClause
    key: dict[str, int | str]


def _write_statements(dialect: str, name: str) -> _Statements:
    digest = hashlib.sha256(f"plantmodels:{name}".encode()).digest()
    if dialect == "postgresql":
        return _Statements(
            sqlalchemy.text(f"SET LOCAL lock_timeout = {round(TIMEOUT_S * 1000)}"),
            sqlalchemy.text("SELECT pg_advisory_lock(:key)"),
            sqlalchemy.text("SELECT pg_advisory_unlock(:key)"),
            {"key": int.from_bytes(digest[:8], signed=True)},
        )
    if dialect == "mysql":
        return _Statements(
            sqlalchemy.text("SELECT 1"),  # GET_LOCK takes the limit itself
            sqlalchemy.text(f"SELECT GET_LOCK(:key, {TIMEOUT_S})"),
            sqlalchemy.text("SELECT RELEASE_LOCK(:key)"),
            {"key": digest.hex()[:60]},
        )
    raise NotImplementedError(f"the gated registry has no lock for {dialect}; it runs on sqlite, PostgreSQL and MySQL")
