"""Asks the tracking server and the model registry for a sign of life, before a command begins its work.

Without it, MLflow repeats each request for minutes, and makes an empty database where a variable was missing.

A server that is not there is named within seconds. One that accepts connections but is slow, because it has just been
started or its machine is busy, is waited for, and a line says so.

>>> check_servers(creates=True)
"""

import logging
import math
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import mlflow
import requests
import sqlalchemy
from mlflow import MlflowClient

from mlflow_plugins._mlflow_compat import get_connect_arguments
from mlflow_plugins.environment import changed_environment
from plantmodels.errors import RegistrationError
from plantmodels.foreign_text import quote_error

LIMIT_S: Final = 5.0
"""Longest wait for an answer if nothing accepts connections. With the import of MLflow, a command says within ten
seconds that a server is down."""

PATIENCE_S: Final = 30.0
"""Longest wait for an answer of a server that accepts connections. On a busy machine with passwords to check, the first
answer took 3.5 s."""

_CONNECT_S: Final = 1.0
_PORTS: Final = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_LOGGER: Final = logging.getLogger("mlflow.plantmodels.servers")
_GATED: Final = "plantmodels:"
_PASSWORD: Final = re.compile(r"(?<=://)[^@/]*@")


def check_servers(*, creates: bool = False, limit_s: float | None = None) -> None:
    """Raise within seconds if the tracking server or the registry cannot be used.

    Args:
        creates: whether a database that does not exist may be made: a training or an export begins one, a question
            does not.
        limit_s: longest wait for an answer if nothing accepts connections; None for `LIMIT_S`. A server that does
            is waited for up to `PATIENCE_S`.

    Raises:
        RegistrationError: one line with the address, the reason and the variable that sets the address.
    """
    check_tracking_server(creates=creates, limit_s=limit_s)
    check_registry_server(creates=creates, limit_s=limit_s)


def check_tracking_server(*, creates: bool = False, limit_s: float | None = None) -> None:
    """Raise as `check_servers` does, but look at the tracking server only."""
    _check(mlflow.get_tracking_uri(), "tracking server", creates, limit_s or LIMIT_S)


def check_registry_server(*, creates: bool = False, limit_s: float | None = None) -> None:
    """Raise as `check_servers` does, but look at the registry only; do nothing if it is the tracking server."""
    if mlflow.get_registry_uri() != mlflow.get_tracking_uri():
        _check(mlflow.get_registry_uri(), "model registry", creates, limit_s or LIMIT_S)


def _check(uri: str, what: str, creates: bool, limit_s: float) -> None:
    def refuse(reason: str) -> RegistrationError:
        variable = "MLFLOW_REGISTRY_URI" if what == "model registry" else "MLFLOW_TRACKING_URI"
        origin = f"{variable} names it" if os.environ.get(variable) else f"{variable} is not set"
        return RegistrationError(f"the {what} {_PASSWORD.sub('***@', uri)} cannot be used: {reason} ({origin})")

    address = uri.removeprefix(_GATED)
    scheme = urlsplit(address).scheme.partition("+")[0]
    if scheme in ("", "file", "sqlite"):
        path = _find_path(address, scheme)
        if path is not None and not path.exists() and not creates:
            raise refuse(f"there is no {'database' if scheme == 'sqlite' else 'folder'} {path}")
        ask = None if path is None or scheme != "sqlite" or not path.is_file() else lambda: _open_sqlite(path)
    elif scheme in ("http", "https"):
        ask = lambda: _list_one(address, what)  # noqa: E731
    elif scheme in ("postgresql", "mysql", "mssql"):
        ask = lambda: _connect(address)  # noqa: E731
    else:
        return
    said = f"the {what} {_PASSWORD.sub('***@', uri)}"
    if ask is not None and (reason := _find_problem(ask, said, address, limit_s)) is not None:
        raise refuse(reason)


def _find_problem(ask: Callable[[], object], said: str, address: str, limit_s: float) -> str | None:
    """Return why a question has no answer; None if it has one."""
    problems: list[str] = []

    def run() -> None:
        try:
            ask()
        except Exception as error:  # each kind of server has exceptions of its own
            problems.append(f"{type(error).__name__}: {quote_error(error)}")

    thread = threading.Thread(target=run, daemon=True)  # a name server may block for longer than any timeout
    with _one_try():
        thread.start()
        thread.join(limit_s)
        if thread.is_alive():
            if not _accepts_connections(address):
                return f"it did not answer within {limit_s:g} seconds"
            _LOGGER.warning(
                "%s is slow: no answer within %g seconds. Waiting up to %g seconds", said, limit_s, PATIENCE_S
            )
            thread.join(PATIENCE_S - limit_s)
    if thread.is_alive():
        return f"it accepts connections, but did not answer within {PATIENCE_S:g} seconds"
    return problems[0] if problems else None


def _accepts_connections(address: str) -> bool:
    """Return whether something listens at an address; also if only a proxy or the driver knows where it is."""
    parts = urlsplit(address)
    scheme = parts.scheme.partition("+")[0]
    if parts.hostname is None or (scheme in ("http", "https") and requests.utils.get_environ_proxies(address)):
        return True
    try:
        with socket.create_connection((parts.hostname, parts.port or _PORTS[scheme]), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _one_try() -> AbstractContextManager[None]:
    timeout = str(math.ceil(PATIENCE_S))
    return changed_environment({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": timeout})


def _find_path(address: str, scheme: str) -> Path | None:
    """Return the file or folder of a local store; None for a database in memory."""
    if scheme == "sqlite":
        database = sqlalchemy.make_url(address).database
        return None if database in (None, "", ":memory:") else Path(str(database))
    return Path(unquote(urlsplit(address).path if scheme else address))


def _open_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LIMIT_S / 2)) as database:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _list_one(address: str, what: str) -> None:
    client = MlflowClient(tracking_uri=address, registry_uri=address)
    if what == "model registry":
        client.search_registered_models(max_results=1)
    else:
        client.search_experiments(max_results=1)


def _connect(address: str) -> None:
    url = sqlalchemy.make_url(address)
    engine = sqlalchemy.create_engine(url, connect_args=get_connect_arguments(url), poolclass=sqlalchemy.NullPool)
    engine.connect().close()
