"""Schemathesis asks whatever the OpenAPI document allows and forbids: no crash, and no undocumented answer."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode

from plantmodels.service.openapi import describe_api
from plantmodels.service.settings import Limits
from tests.service.conftest import Running

CASES = [
    (path, method.upper(), mode)
    for path, methods in describe_api(Limits())["paths"].items()
    for method in methods
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if method == "post" or mode is GenerationMode.POSITIVE  # nothing can be wrong in a request without a body
]
MOST = 40
"""Requests for each path and mode: they take seconds, and another run draws others."""

OF_OURS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@pytest.mark.parametrize(("path", "method", "mode"), CASES, ids=lambda value: getattr(value, "value", value))
def test_every_answer_is_documented(service: Running, path: str, method: str, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_dict(describe_api(Limits()))
    checks = [CHECKS.get_one(name) for name in OF_OURS]

    @settings(max_examples=MOST if method == "POST" else 1, suppress_health_check=list(HealthCheck))
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{service.port}")
        case.validate_response(response, checks=checks)

    ask()
    assert service.service.admission.requests == 0


@settings(max_examples=MOST)
@given(body=st.binary(max_size=300), kind=st.sampled_from(["image/jpeg", "multipart/form-data; boundary=b", "x", ""]))
def test_any_bytes_get_one_line(service: Running, body: bytes, kind: str) -> None:
    for path in ("/predict", "/invocations"):
        answer = service.ask(path, body, {"Content-Type": kind})
        assert 400 <= answer.status < 500 and answer.error
