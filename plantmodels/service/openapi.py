"""The OpenAPI document of the service, `/openapi.json`, and a page that shows it, `/docs`.

The page is written here and loads nothing from elsewhere, so it also works where there is no internet.

>>> sorted(describe_api(Limits())["paths"])
['/health', '/invocations', '/metrics', '/predict', '/ready', '/version']
"""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from plantmodels import __version__
from plantmodels.serve.routing import ROUTINGS
from plantmodels.service.images import IMAGE_TYPES, MULTIPART
from plantmodels.service.settings import MEGABYTE, Limits

_PROBABILITY: Final = {"type": ["number", "null"], "minimum": 0, "maximum": 1}

_ROW: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["species", "species_probability", "disease", "rejected", "error"],
    "properties": {
        "file": {"type": "string", "description": "name of the file, of a multipart body"},
        "species": {"type": ["string", "null"]},
        "species_index": {"type": ["integer", "null"]},
        "species_probability": _PROBABILITY,
        "disease": {"type": ["string", "null"], "description": "null if the species has no disease head"},
        "disease_probability": _PROBABILITY | {"description": "how likely the answer is right"},
        "disease_given_species_probability": _PROBABILITY,
        "ood_score": {"type": ["number", "null"], "description": "higher means more out-of-distribution"},
        "ood_p_value": _PROBABILITY | {"description": "fraction of known plants with at least this score"},
        "rejected": {"type": ["boolean", "null"], "description": "out-of-distribution: the species means nothing"},
        "error": {"type": ["string", "null"], "description": "why the image could not be classified"},
        "candidates": {
            "type": ["array", "null"],
            "items": {"type": "object", "properties": {"species": {"type": "string"}, "probability": _PROBABILITY}},
        },
        "embedding": {"type": ["array", "null"], "items": {"type": "number"}},
    },
}

_BINARY: Final = {"type": "string", "format": "binary"}
_LIST: Final = {"type": "array"}


def describe_api(limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI document of a service with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "plantmodels",
            "version": __version__,
            "description": "Species, disease and out-of-distribution rejection of plant images.",
        },
        "paths": {
            "/predict": {"post": _describe_predict(limits)},
            "/invocations": {"post": _describe_invocations(limits)},
            "/health": {"get": _describe_get("Say that the process lives.", {"status": {"const": "alive"}})},
            "/ready": {
                "get": _describe_get(
                    "Say whether a version answers, and why the latest look for another one failed.",
                    {"version": {"type": "string"}, "failure": {"type": ["string", "null"]}},
                    **{"503": "no version answers yet"},
                )
            },
            "/version": {
                "get": _describe_get(
                    "Say which version answers, and which program.",
                    {
                        "plantmodels": {"type": "string"},
                        "address": {"type": "string"},
                        "model": {"type": ["object", "null"]},
                    },
                )
            },
            "/metrics": {
                "get": {
                    "summary": "Numbers for Prometheus.",
                    "responses": {"200": {"description": "numbers", "content": {"text/plain": {}}}},
                }
            },
        },
        "components": {
            "schemas": {
                "Row": _ROW,
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                    "additionalProperties": False,
                },
            }
        },
    }


def _describe_predict(limits: Limits) -> dict[str, Any]:
    form = {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY, "maxItems": limits.images}}}
    content = {kind: {"schema": _BINARY} for kind in IMAGE_TYPES} | {MULTIPART: {"schema": form}}
    options = [
        _describe_option(
            "top_k", {"type": "integer", "minimum": 0, "maximum": 999_999}, "Number of candidate species."
        ),
        _describe_option("routing", {"enum": list(ROUTINGS)}, "How the disease is chosen."),
    ]
    one = {"allOf": [_refer("Row"), {"type": "object", "properties": {"version": {"type": "string"}}}]}
    several = {
        "type": "object",
        "required": ["version", "predictions"],
        "properties": {"version": {"type": "string"}, "predictions": _LIST | {"items": _refer("Row")}},
    }
    return {
        "summary": "Classify the image that is the body, or each file of a multipart body.",
        "parameters": options,
        "requestBody": {"required": True, "content": content},
        "responses": _describe_responses({"anyOf": [one, several]}, limits, **{"422": "the image cannot be used"}),
    }


def _describe_invocations(limits: Limits) -> dict[str, Any]:
    table = {"type": "object", "required": ["data"], "properties": {"columns": _LIST, "data": _LIST, "index": {}}}
    column = {"anyOf": [_LIST, {"type": "object", "properties": {"image": _LIST}}]}
    forms = {"dataframe_split": table, "dataframe_records": _LIST, "instances": column, "inputs": column}
    params = {"type": ["object", "null"]}
    schemas = [
        {
            "type": "object",
            "required": [name],
            "properties": {name: form, "params": params},
            "additionalProperties": False,
        }
        for name, form in forms.items()
    ]
    answer = {
        "type": "object",
        "required": ["predictions"],
        "properties": {"predictions": _LIST | {"items": {"type": "object"}}},
    }
    return {
        "summary": "Classify images as base64 text in one of MLflow's JSON forms.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"oneOf": schemas}}}},
        "responses": _describe_responses(answer, limits),
    }


def _describe_responses(answer: dict[str, Any], limits: Limits, **more: str) -> dict[str, Any]:
    errors = {
        "400": "the request is malformed",
        "408": f"the body did not arrive in {limits.body_timeout_s:g} s",
        "413": f"the body is larger than {limits.body_bytes / MEGABYTE:g} MB, or has more than {limits.images} images",
        "415": "the body has another type, or is compressed",
        "503": "the service is full, or no version answers yet; Retry-After says when to ask again",
    }
    return _describe_answer(answer) | {status: _describe_error(text) for status, text in (errors | more).items()}


def _describe_get(summary: str, properties: dict[str, Any], **errors: str) -> dict[str, Any]:
    answer = {"type": "object", "required": list(properties), "properties": properties}
    failed = {status: _describe_error(text) for status, text in errors.items()}
    return {"summary": summary, "responses": _describe_answer(answer) | failed}


def _describe_answer(schema: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": "the answer", "content": {"application/json": {"schema": schema}}}}


def _describe_error(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _refer("Error")}}}


def _describe_option(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _refer(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#eee;padding:0 .2em}td,th{text-align:left;padding:.1em 1em .1em 0;vertical-align:top}"
)


def render_page(document: Mapping[str, Any]) -> str:
    """Return the OpenAPI document as a page of HTML."""
    parts = [
        _render_path(path, method, about)
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    ]
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p>{escape(document["info"]["description"])} <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(parts)}</html>\n"
    )


def _render_path(path: str, method: str, about: Mapping[str, Any]) -> str:
    kinds = about.get("requestBody", {}).get("content", {})
    rows = [("body", " or ".join(f"<code>{escape(kind)}</code>" for kind in kinds))] if kinds else []
    rows += [
        (f"<code>?{option['name']}=</code>", escape(option["description"])) for option in about.get("parameters", ())
    ]
    rows += [(status, escape(answer["description"])) for status, answer in sorted(about["responses"].items())]
    table = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows)
    return f"<h2><code>{method.upper()} {path}</code></h2><p>{escape(about['summary'])}</p><table>{table}</table>"
