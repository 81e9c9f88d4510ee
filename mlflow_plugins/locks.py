"""One promotion at a time for each registered model, across threads, server workers and servers.

>>> with Locks("sqlite:////srv/mlflow.db", engine=None).hold("plant-disease"):  # doctest: +SKIP
...     ...
"""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
            raise TimeoutError(f"another promotion of {name!r} has not ended for {TIMEOUT_S} s")
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
            database = Path(str(self._engine.url.database))
            with filelock.FileLock(f"{database}.{digest}.lock", timeout=TIMEOUT_S, thread_local=False):
                yield
        else:
            with self._engine.connect() as connection:
                take, let_go, key = _statements(self._engine.dialect.name, name)
                if connection.execute(take, key).scalar() in (0, False):
                    raise TimeoutError(f"another promotion of {name!r} has not ended for {TIMEOUT_S} s")
                try:
                    yield
                finally:
                    connection.execute(let_go, key)
                    connection.rollback()


def _statements(dialect: str, name: str) -> tuple[sqlalchemy.TextClause, sqlalchemy.TextClause, dict[str, Any]]:
    digest = hashlib.sha256(f"plantmodels:{name}".encode()).digest()
    if dialect == "postgresql":
        key = int.from_bytes(digest[:8], signed=True)
        take, let_go = "SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
        return sqlalchemy.text(take), sqlalchemy.text(let_go), {"key": key}
    if dialect == "mysql":
        take, let_go = f"SELECT GET_LOCK(:key, {TIMEOUT_S})", "SELECT RELEASE_LOCK(:key)"
        return sqlalchemy.text(take), sqlalchemy.text(let_go), {"key": digest.hex()[:60]}
    raise NotImplementedError(f"the gated registry has no lock for {dialect}; it runs on sqlite, PostgreSQL and MySQL")
