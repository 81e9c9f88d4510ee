"""What `/metrics` tells Prometheus: requests, seconds, images by outcome, species, and the version that answers.

With several worker processes, each writes its numbers into the folder that `PROMETHEUS_MULTIPROC_DIR` names. The
process that is asked adds them up. `prometheus_client` reads this variable when it is first imported.

>>> metrics = Metrics()
>>> metrics.count_images([Prediction(error="zero bytes")])
>>> [line for line in metrics.render().decode().splitlines() if line.startswith("plantmodels_images_total")]
['plantmodels_images_total{outcome="bad"} 1.0']
"""

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plantmodels.serve.prediction import Prediction
from plantmodels.service.model import Version
from plantmodels.service.settings import FOLDER_VARIABLE

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the histogram. A small student answers one image in 3 ms, and in a full service a request waits."""

_PROCESS: Final = re.compile(r"_(\d+)\.db$")


class Metrics:
    """The numbers of one service."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "plantmodels_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "plantmodels_request_seconds",
            "Seconds from the headers of a request to the end of its answer.",
            ["path"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.images = Counter(
            "plantmodels_images",
            "Images by outcome: accepted, rejected as out-of-distribution, or bad.",
            ["outcome"],
            registry=self._registry,
        )
        self.species = Counter(
            "plantmodels_species", "Accepted images by species.", ["species"], registry=self._registry
        )
        self.processes = Gauge(
            "plantmodels_version_processes",
            "Processes that answer by this version.",
            ["name", "version"],
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._version: Version | None = None

    def count_images(self, predictions: Iterable[Prediction]) -> None:
        """Count answers. The species of a rejected image means nothing, so it is not counted."""
        for prediction in predictions:
            if prediction.error is not None:
                self.images.labels("bad").inc()
            elif prediction.rejected:
                self.images.labels("rejected").inc()
            else:
                self.images.labels("accepted").inc()
                self.species.labels(prediction.species).inc()

    def note_version(self, version: Version | None) -> None:
        """Note which version answers now."""
        if version is self._version:
            return
        if self._version is not None:
            self.processes.labels(self._version.name, self._version.version).set(0)
        if version is not None:
            self.processes.labels(version.name, version.version).set(1)
        self._version = version

    def render(self) -> bytes:
        """Return all numbers in the text format of Prometheus; with several processes, their sums."""
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is None:
            return generate_latest(self._registry)
        _forget_ended_processes(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)
        return generate_latest(registry)


def _forget_ended_processes(folder: Path) -> None:
    """Remove the gauges of worker processes that have ended; their counts stay."""
    found = {match[1] for path in folder.glob("gauge_live*.db") if (match := _PROCESS.search(path.name))}
    for process in found:
        if not Path("/proc", process).exists():
            mark_process_dead(int(process), path=str(folder))


class CountRequests:
    """ASGI middleware that counts requests and their seconds; a path that does not exist counts as "other"."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """Wrap an application.

        Args:
            app: the application.
            metrics: where requests are counted.
            paths: the paths that exist.
        """
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
