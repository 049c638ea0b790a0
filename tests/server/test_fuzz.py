"""Requests made up from the server's own OpenAPI description: whatever they are, none is a fault of the server's."""

from __future__ import annotations

import os

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from tests import tiny
from tests.serving import QUICK, running

from rebus.apps.server.settings import ServerConfig

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
"""Requests for each route that fit the description, and as many that do not; more are asked for by hand."""


@pytest.fixture(scope="module")
def api():
    """The description, and the application that it is asked of."""
    config = ServerConfig(**{**QUICK, "max_tokens": 12, "context": 120, "pixels": 10_000, "steps": 2})
    with running({"m": tiny.fresh("seed"), "e": tiny.fresh("seed_x")}, config) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json"), server.app


def test_the_description_names_every_route(api):
    schema, _ = api
    found = {operation.ok().label for operation in schema.get_all_operations()}
    assert found == {
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "GET /v1/responses/{response_id}",
        "DELETE /v1/responses/{response_id}",
        "POST /v1/images/generations",
        "POST /v1/images/edits",
        "POST /v1/tokenize",
        "POST /v1/detokenize",
        "GET /v1/models",
        "GET /v1/models/{name}",
        "GET /health",
        "GET /metrics",
    }


@pytest.mark.parametrize(
    "route", ["chat/completions", "responses", "images/generations", "images/edits", "tokenize", "detokenize"]
)
def test_no_request_is_a_fault(api, route):
    schema, app = api
    operation = schema[f"/v1/{route}"]["POST"]
    seen: set[int] = set()

    kinds = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @hypothesis.given(case=hypothesis.strategies.one_of(kinds))
    @settings(
        max_examples=2 * EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    def fuzz(case):
        if isinstance(case.body, dict):
            case.body["model"] = "em"[len(str(case.body)) % 2]
        answer = case.call()
        seen.add(answer.status_code)
        assert answer.status_code < 500, (case.body, answer.text)

    fuzz()
    assert 400 in seen and app.state.models.alive
    assert 200 in seen or route not in ("chat/completions", "responses", "images/generations")
    assert app.state.models.meters.faults._value.get() == 0
