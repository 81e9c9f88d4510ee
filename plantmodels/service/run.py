"""Runs the service under uvicorn, in one process or in several."""

import os
from contextlib import ExitStack
from typing import Final

import uvicorn

from plantmodels.bundle.temporary import temporary_folder
from plantmodels.service.headers import BoundedHeaders
from plantmodels.service.model import find_opener
from plantmodels.service.settings import FOLDER_VARIABLE, VARIABLE, Settings

_GRACE_S: Final = 30
"""Seconds in which requests may end after the service was told to stop."""


def run_service(settings: Settings, *, host: str, port: int, workers: int) -> None:
    """Serve until a signal ends the process.

    Args:
        settings: what to serve and how.
        host: the address to listen on.
        port: the port to listen on.
        workers: number of processes, each of which loads the model for itself.

    Raises:
        ServiceError: nothing that is installed opens the model.
    """
    # An error is one line here, and a traceback in a worker process.
    find_opener(settings.model, interval_s=settings.interval_s, **settings.load_options)
    os.environ[VARIABLE] = settings.to_json()
    with ExitStack() as stack:
        if workers > 1:  # each process writes its numbers here; see `metrics`
            os.environ[FOLDER_VARIABLE] = str(stack.enter_context(temporary_folder("metrics")))
        _run(host, port, workers)


def _run(host: str, port: int, workers: int) -> None:
    uvicorn.run(
        "plantmodels.service.app:create_app",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http=BoundedHeaders,
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
