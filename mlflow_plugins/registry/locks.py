"""One promotion at a time for each registered model, across threads, server workers and servers.

>>> with Locks(store.engine).hold("plant-disease"):  # doctest: +SKIP
...     ...
"""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import filelock
import sqlalchemy

TIMEOUT_S: Final = 120
"""How long a promotion waits for another one of the same model."""


class Locks:
    """Locks by name, held in the database itself, or beside a sqlite file.

    A server that dies lets go of its lock: the database ends its connection, the system its file lock. Within a
    process threads queue before they ask the database, so that waiting ones hold no connection.
    """

    def __init__(self, engine: sqlalchemy.Engine | None) -> None:
        """Takes the database's engine; None locks within this process only, as for a REST server."""
        self._engine = engine
        self._threads: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Waits for the lock of a name and holds it.

        Raises:
            TimeoutError: not free within `TIMEOUT_S`.
        """
        mutex = self._threads[name]
        if not mutex.acquire(timeout=TIMEOUT_S):
            raise TimeoutError(_not_free(name))
        try:
            with self._hold_shared(name):
                yield
        finally:
            mutex.release()

    @contextmanager
    def _hold_shared(self, name: str) -> Iterator[None]:
        if self._engine is None or (self._engine.dialect.name == "sqlite" and not self._engine.url.database):
            yield
        elif self._engine.dialect.name == "sqlite":
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]
            lock = filelock.FileLock(f"{self._engine.url.database}.{digest}.lock", thread_local=False)
            try:
                lock.acquire(timeout=TIMEOUT_S)
            except filelock.Timeout as error:
                raise TimeoutError(_not_free(name)) from error
            try:
                yield
            finally:
                lock.release()
        else:
            limit, take, let_go, key = _statements(self._engine.dialect.name, name)
            with self._engine.connect() as connection:
                try:
                    connection.execute(limit)
                    is_held = connection.execute(take, key).scalar() not in (0, False)
                except sqlalchemy.exc.OperationalError as error:
                    raise TimeoutError(f"{_not_free(name)} ({error.orig})") from error
                if not is_held:
                    raise TimeoutError(_not_free(name))
                try:
                    yield
                finally:
                    connection.execute(let_go, key)
                    connection.rollback()


def _not_free(name: str) -> str:
    return f"another promotion of {name!r} has not ended for {TIMEOUT_S} s"


def _statements(
    dialect: str, name: str
) -> tuple[sqlalchemy.TextClause, sqlalchemy.TextClause, sqlalchemy.TextClause, dict[str, Any]]:
    """How long to wait, the lock, its release, and their key."""
    digest = hashlib.sha256(f"plantmodels:{name}".encode()).digest()
    if dialect == "postgresql":
        limit = f"SET LOCAL lock_timeout = {round(TIMEOUT_S * 1000)}"
        take, let_go = "SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
        key: dict[str, Any] = {"key": int.from_bytes(digest[:8], signed=True)}
    elif dialect == "mysql":
        limit = "SELECT 1"  # GET_LOCK has a limit of its own
        take, let_go = f"SELECT GET_LOCK(:key, {TIMEOUT_S})", "SELECT RELEASE_LOCK(:key)"
        key = {"key": digest.hex()[:60]}
    else:
        raise NotImplementedError(
            f"the gated registry has no lock for {dialect}; it runs on sqlite, PostgreSQL and MySQL"
        )
    return sqlalchemy.text(limit), sqlalchemy.text(take), sqlalchemy.text(let_go), key
