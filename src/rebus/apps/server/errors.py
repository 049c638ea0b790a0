"""What went wrong, in the form that clients of OpenAI's API know: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rebus.errors import RebusError

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "server_error"}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, what in {
        400: "The request cannot be answered as it stands",
        401: "The API key is missing or wrong",
        403: "This origin may not ask",
        404: "There is no such model or response",
        408: "It took longer than a request may",
        413: "The request is too large",
        415: "The body is of another type",
        421: "The server is not called that",
        429: "Too many requests wait",
    }.items()
}
"""What every route may answer beside its reply, for the OpenAPI description."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


class ApiError(Exception):
    """An answer of the 4xx or 5xx kind."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as a response."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def refusal(error: RebusError, *, param: str | None = None) -> ApiError:
    """What the library refuses is a request that cannot be answered."""
    return ApiError(400, str(error), code="invalid_value", param=param)


def too_slow(seconds: float) -> ApiError:
    """A request that took too long."""
    return ApiError(
        408,
        f"The request took longer than the {seconds:g} s that one may take here. Ask for less, or ask again later.",
        code="timeout",
    )


def broken() -> ApiError:
    """A fault of our own; what it was is for the log alone."""
    return ApiError(
        500, "The server made a mistake while it answered. It was logged; ask again.", code="internal_error"
    )


# ------------------------------------------------------------------------------------------------ handlers


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    """An ApiError becomes its response."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_refusal(request: Request, error: Exception) -> JSONResponse:
    """A RebusError becomes 400."""
    assert isinstance(error, RebusError)
    return refusal(error).response()


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """What does not fit a schema becomes 400, naming the first thing that does not; the request is not repeated."""
    assert isinstance(error, RequestValidationError)
    return invalid(list(error.errors())).response()


def invalid(found: list[Any]) -> ApiError:
    """The error for what pydantic found."""
    first = found[0] if found else {"loc": (), "msg": "it is not what the route takes", "type": "invalid"}
    where = [str(place) for place in first["loc"] if place not in ("body", "query", "path")]
    # a place in a union names the alternatives that were tried, and one in a mapping whatever key was sent
    param = ".".join(where)[:200] or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", code="unknown_parameter", param=param)
    more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
    return ApiError(
        400,
        f"{param or 'The request'} is not as it should be: {first['msg']}{more}.",
        code="invalid_value",
        param=param,
    )


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Unknown routes and wrong methods."""
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    headers = dict(error.headers or {})
    return ApiError(error.status_code, f"{error.detail}.", code=code, headers=headers).response()
