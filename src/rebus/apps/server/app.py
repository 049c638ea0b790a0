"""The application: every route, for the systems that it is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from rebus.apps.server.chat import chat_routes
from rebus.apps.server.codes import code_routes
from rebus.apps.server.drawings import drawing_routes
from rebus.apps.server.errors import (
    RESPONSES,
    SCHEMA,
    ApiError,
    on_api_error,
    on_http_error,
    on_invalid,
    on_refusal,
)
from rebus.apps.server.fetch import Allowed, is_public
from rebus.apps.server.gate import Gate
from rebus.apps.server.models import Models
from rebus.apps.server.responses import response_routes
from rebus.apps.server.settings import ServerConfig
from rebus.errors import RebusError
from rebus.system import System


def create_app(
    systems: Mapping[str, System], config: ServerConfig | None = None, *, allowed: Allowed = is_public
) -> FastAPI:
    """The application for `systems`, by the names that requests call them by. `allowed` says which network addresses
    pictures may be fetched from, where they are fetched at all. The application's `models` end with its lifespan."""
    models = Models(systems, config or ServerConfig(), allowed=allowed)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        models.close()

    # the pages that describe the routes would load scripts from elsewhere
    app = FastAPI(
        title="Rebus",
        version=metadata.version("rebus-lm"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.models = models
    for kind, handler in {
        ApiError: on_api_error,
        RebusError: on_refusal,
        RequestValidationError: on_invalid,
        HTTPException: on_http_error,
    }.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Gate, config=models.config, meters=models.meters)
    if models.config.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(models.config.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    for routes in (chat_routes, response_routes, drawing_routes, code_routes):
        app.include_router(routes(models))
    _add_plain_routes(app, models)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    return app


def _add_plain_routes(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models", summary="The models that requests may name", responses=RESPONSES)
    async def list_models() -> Any:
        return {"object": "list", "data": [models.entry(name) for name in models.names]}

    @app.get("/v1/models/{name:path}", summary="One model", responses=RESPONSES)
    async def get_model(name: str) -> Any:
        return models.entry(name)

    @app.get("/health", summary="Whether the server can answer")
    async def health() -> Any:
        fine = models.alive
        return JSONResponse({"status": "ok" if fine else "broken"}, 200 if fine else 503)

    @app.get("/metrics", summary="What was measured, for Prometheus", responses=RESPONSES)
    async def metrics() -> Any:
        return Response(generate_latest(models.meters.registry), media_type=CONTENT_TYPE_LATEST)


def _description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description: what does not fit a schema is answered with 400 here, not with 422."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        found.setdefault("components", {}).setdefault("schemas", {})["Error"] = SCHEMA
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema
