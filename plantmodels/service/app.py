"""The ASGI application: its routes and their answers.

`uvicorn --factory plantmodels.service.app:create_app` runs it with the settings in the variable `PLANTMODELS_SERVICE`.
"""

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, get_args

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from plantmodels import __version__
from plantmodels.errors import ImageError, PlantModelsError, is_out_of_memory
from plantmodels.foreign_text import quote_error
from plantmodels.serve.loading import LoadOptions
from plantmodels.serve.prediction import Prediction
from plantmodels.serve.routing import ROUTINGS, Routing
from plantmodels.service.answers import answer_error, answer_http_exception, answer_json, describe_row
from plantmodels.service.bodies import (
    RETRY_AFTER,
    Admission,
    ClientGoneError,
    Reservation,
    read_announced_size,
    read_chunks,
    read_whole,
)
from plantmodels.service.images import MULTIPART, check_json, check_type, read_parts
from plantmodels.service.invocations import read_invocation
from plantmodels.service.memory import exempt_from_collection, return_large_blocks
from plantmodels.service.metrics import CountRequests, Metrics
from plantmodels.service.model import Handle, ServedModel, Version, find_opener
from plantmodels.service.openapi import describe_api, render_page
from plantmodels.service.settings import VARIABLE, Settings
from plantmodels.service.work import Work

_LOGGER: Final = logging.getLogger(__name__)

_RETRY_S: Final = 1.0
"""Pause after the first attempt to open the model; it doubles from one attempt to the next."""

_NOTE_S: Final = 1.0
"""Seconds after which the metrics are told again which version answers."""


class Service:
    """What the routes share: the model, the threads that compute, and what is held for requests."""

    def __init__(self, settings: Settings) -> None:
        """Prepare to serve. Nothing is opened before `run`.

        Raises:
            ServiceError: nothing that is installed opens the model.
            ValueError: `LoadOptions` refuses a setting.
        """
        self.settings = settings
        LoadOptions(**settings.load_options)  # refuses wrong values now, not in the thread that opens the model
        self._open = find_opener(settings.model, interval_s=settings.interval_s, **settings.load_options)
        self.model = ServedModel(self._open_model, retry_s=_RETRY_S)
        self.admission = Admission(settings.limits)
        self.work = Work()
        self.metrics = Metrics()
        self._document = describe_api(settings.limits)

    @asynccontextmanager
    async def run(self, app: Starlette) -> AsyncIterator[None]:
        """Open the model in its thread; when the application ends, close everything."""
        with self.model:
            noting = asyncio.create_task(self._note_version())
            yield
            noting.cancel()
        self.work.close()
        gc.unfreeze()

    def _open_model(self) -> Handle:
        handle = self._open()
        exempt_from_collection()  # now that all that opening imports is there, and before the first answer
        return handle

    async def _note_version(self) -> None:
        """Tell the metrics which version answers, also while nobody asks."""
        while True:
            self.metrics.note_version(self.model.current)
            await asyncio.sleep(_NOTE_S)

    def find_version(self) -> Version:
        """Return the version that answers now. A request keeps it to its end, whatever is promoted meanwhile.

        Raises:
            HTTPException: no version was opened yet (503).
        """
        if (version := self.model.current) is None:
            raise HTTPException(503, self.describe_wait(), RETRY_AFTER)
        return version

    def describe_wait(self) -> str:
        """Return why no version answers yet."""
        failure = self.model.failure
        reason = "it is being loaded" if failure is None else quote_error(failure)
        return f"waiting for {self.settings.model}: {reason}"

    async def predict(self, request: Request) -> Response:
        """Classify the image that is the body, or each file of a multipart body."""
        version, media_type = self.find_version(), check_type(request.headers.get("content-type"))
        options = read_options(request.query_params)
        with self.admission.admit(read_announced_size(request)) as reservation:
            if media_type == MULTIPART:
                return await self._predict_parts(request, reservation, version, options)
            image = await read_whole(self._read(request, reservation))
            (answer,) = await self._classify(request, version, [image], options)
        if answer.error is not None:
            raise HTTPException(422, answer.error)
        return answer_json({"version": version.version, **describe_row(answer, top_k=options["top_k"])})

    async def _predict_parts(
        self, request: Request, reservation: Reservation, version: Version, options: Mapping[str, Any]
    ) -> Response:
        chunks = self._read(request, reservation)
        parts = await read_parts(request.headers["content-type"], chunks, self.settings.limits.images)
        answers = await self._classify(request, version, [part.content for part in parts], options)
        rows = [
            {"file": part.name, **describe_row(answer, top_k=options["top_k"])}
            for part, answer in zip(parts, answers, strict=True)
        ]
        return answer_json({"version": version.version, "predictions": rows})

    def _read(self, request: Request, reservation: Reservation) -> AsyncIterator[bytes]:
        return read_chunks(request, reservation, self.settings.limits.body_timeout_s)

    async def _classify(
        self, request: Request, version: Version, images: Sequence[bytes | bytearray], options: Mapping[str, Any]
    ) -> list[Prediction]:
        answers = await self.work.run(request, partial(version.classifier.predict, images, **options))
        self.metrics.count_images(answers)
        return answers

    async def invocations(self, request: Request) -> Response:
        """Classify images in one of MLflow's JSON forms."""
        version = self.find_version()
        check_json(request.headers.get("content-type"))
        with self.admission.admit(read_announced_size(request)) as reservation:
            body = await read_whole(self._read(request, reservation))
            work = partial(answer_invocation, version, body, self.settings.limits.images)
            try:
                response, answers = await self.work.run(request, work)
            except (ValueError, ImageError) as error:
                raise HTTPException(400, str(error)) from error
        self.metrics.count_images(answers)
        return response

    async def health(self, request: Request) -> Response:
        """Say that the process lives."""
        return answer_json({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """Say whether a version answers, and why the latest look for another one failed."""
        if (version := self.model.current) is None:
            return answer_error(503, self.describe_wait(), RETRY_AFTER)
        failure = self.model.failure
        return answer_json({"version": version.version, "failure": None if failure is None else quote_error(failure)})

    async def version(self, request: Request) -> Response:
        """Say which version answers, and which program."""
        current = self.model.current
        found = None if current is None else {"name": current.name, "version": current.version}
        return answer_json({"plantmodels": __version__, "address": self.settings.model, "model": found})

    async def show_metrics(self, request: Request) -> Response:
        """Return the numbers for Prometheus."""
        self.metrics.note_version(self.model.current)
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def show_api(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return answer_json(self._document)

    async def show_page(self, request: Request) -> Response:
        """Return the OpenAPI document as a page."""
        return Response(render_page(self._document), media_type="text/html")


def read_options(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of `PlantClassifier.predict` that a query names.

    Raises:
        HTTPException: an option is unknown or has a wrong value (400).
    """
    if unknown := sorted(set(query) - {"top_k", "routing"}):
        raise HTTPException(400, f"unknown option {unknown[0]!r:.60}; expected top_k or routing")
    top_k, routing = query.get("top_k", "0"), query.get("routing", "hard")
    if not (top_k.isascii() and top_k.isdecimal() and len(top_k) <= 6):
        raise HTTPException(400, f"top_k must be a whole number of at least 0, got {top_k!r:.60}")
    if routing not in ROUTINGS:
        raise HTTPException(400, f"routing must be one of {', '.join(get_args(Routing))}, got {routing!r:.60}")
    return {"top_k": int(top_k), "routing": routing}


def answer_invocation(version: Version, body: bytes, max_images: int) -> tuple[Response, list[Prediction]]:
    """Return the answer to a body in one of MLflow's JSON forms, and the predictions in it.

    Args:
        version: the version that answers.
        body: the body.
        max_images: number of images that a request may have.

    Raises:
        HTTPException: the body has too many images (413).
        ImageError: an image is bad, and the body asks for an error in this case.
        ValueError: the body is malformed.
    """
    asked = read_invocation(body)
    if len(asked.images) > max_images:
        raise HTTPException(413, f"the body has {len(asked.images):,} images; at most {max_images} are answered")
    predictions = version.classifier.predict(asked.images, **asked.options)
    if version.contract == 1 and asked.options["routing"] == "hard":
        predictions = [replace(p, disease_probability=p.disease_given_species_probability) for p in predictions]
    shown = {name: asked.options[name] for name in ("top_k", "return_embedding")}
    rows: list[Any] = [describe_row(p, contract=version.contract, **shown) for p in predictions]
    if asked.as_struct:
        rows = [{"prediction": row} for row in rows]
    return answer_json({"predictions": rows}), predictions


def create_app(settings: Settings | None = None) -> Starlette:
    """Return the application.

    Args:
        settings: what to serve and how; None reads the variable `PLANTMODELS_SERVICE`.

    Raises:
        ServiceError: nothing that is installed opens the model.
    """
    # This library warns of each malformed body, which the answer to the client says already.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return_large_blocks()
    service = Service(Settings.from_json(os.environ[VARIABLE]) if settings is None else settings)
    endpoints: dict[str, tuple[str, Callable[[Request], Awaitable[Response]]]] = {
        "/predict": ("POST", service.predict),
        "/invocations": ("POST", service.invocations),
        "/health": ("GET", service.health),
        "/ready": ("GET", service.ready),
        "/version": ("GET", service.version),
        "/metrics": ("GET", service.show_metrics),
        "/openapi.json": ("GET", service.show_api),
        "/docs": ("GET", service.show_page),
    }
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for path, (method, endpoint) in endpoints.items()],
        exception_handlers={
            HTTPException: _answer_refusal,
            ClientGoneError: _answer_nobody,
            PlantModelsError: _answer_failure,
            Exception: _answer_bug,
        },
        middleware=[Middleware(CountRequests, metrics=service.metrics, paths=frozenset(endpoints))],
        lifespan=service.run,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return answer_error(404, f"no such path: {request.url.path!r:.200}")
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        return answer_error(405, f"{request.method:.20} is not allowed here; expected {allowed}", {"Allow": allowed})
    return answer_http_exception(error)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return answer_error(499, "the client is gone")


async def _answer_failure(request: Request, error: Exception) -> Response:
    _LOGGER.error("%s: %s", request.url.path, quote_error(error))
    if is_out_of_memory(error):
        return answer_error(503, "memory ran out; try again later", RETRY_AFTER)
    return answer_error(500, quote_error(error))


async def _answer_bug(request: Request, error: Exception) -> Response:
    return answer_error(500, "the service failed; its log says why")
