"""Answers as JSON: a row for each image, and one line for each error.

>>> describe_row(Prediction(error="zero bytes"), top_k=0)["error"]
'zero bytes'
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from plantmodels.serve.prediction import PREDICTION_CONTRACT, Prediction

_COLUMNS: Final = tuple(field.name for field in fields(Prediction) if field.name not in ("candidates", "embedding"))

_NEW_COLUMNS: Final[Mapping[str, int]] = {"disease_given_species_probability": 2}
"""The version of contract 4 that added a column. All other columns are in version 1."""


def describe_row(
    prediction: Prediction, *, top_k: int, return_embedding: bool = False, contract: int = PREDICTION_CONTRACT
) -> dict[str, Any]:
    """Return a prediction as JSON values; candidates and embedding are in it only if they were asked for.

    Args:
        prediction: the prediction.
        top_k: number of candidates that were asked for; 0 leaves the candidates out.
        return_embedding: whether the embedding was asked for.
        contract: the version of contract 4 to answer by, which decides the columns.
    """
    row = {name: getattr(prediction, name) for name in _COLUMNS if _NEW_COLUMNS.get(name, 1) <= contract}
    if top_k:
        candidates = prediction.candidates
        row["candidates"] = None if candidates is None else [vars(candidate) for candidate in candidates]
    if return_embedding:
        row["embedding"] = None if prediction.embedding is None else prediction.embedding.tolist()
    return row


def answer_json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with one line of JSON."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return Response(text.encode() + b"\n", status, dict(headers or {}), "application/json")


def answer_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as one line of JSON."""
    return answer_json({"error": " ".join(message.split())}, status, headers)


def answer_http_exception(error: HTTPException) -> Response:
    """Return the error of a request that was refused."""
    return answer_error(error.status_code, error.detail, error.headers)
