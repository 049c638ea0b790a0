"""/v1/images/generations and /v1/images/edits: a picture from words, or from a picture and words."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from rebus.apps.server.chat import all_of, give_up, merged
from rebus.apps.server.errors import RESPONSES, ApiError, invalid
from rebus.apps.server.models import Models, check_size, new_seed
from rebus.apps.server.outgoing import EventStream, FileFormat, Frames, Previews, base64_of, data_url, unless_gone
from rebus.apps.server.schema import Count, Settings
from rebus.apps.server.schema import Previews as PreviewCount
from rebus.apps.server.worker import Answer, Order
from rebus.apps.wording import drawing_request
from rebus.document import Document, Image, user
from rebus.visual import Progress


class PictureRequest(Settings):
    """A picture that is wished for. It is drawn in the model's own size and brought to the `size` that is asked for."""

    prompt: str = Field(min_length=1, max_length=32_000)
    n: Count = 1
    size: str | None = Field(
        default=None, pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$", description="width x height"
    )
    response_format: Literal["b64_json", "url"] | None = Field(default=None, description="`url` is a data URL")
    output_format: FileFormat = "png"
    stream: bool | None = False
    partial_images: PreviewCount = 0
    # what clients send and no picture depends on
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    input_fidelity: Literal["low", "high"] | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height, where they are asked for."""
        if self.size in (None, "auto"):
            return None
        width, height = str(self.size).split("x")
        return int(width), int(height)


FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt", "model"],
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "or several, as `image[]`"},
                        "prompt": {"type": "string", "minLength": 1, "maxLength": 32_000},
                        "model": {"type": "string", "minLength": 1, "maxLength": 256},
                        "n": {"type": "integer", "minimum": 1, "maximum": 64},
                        "size": {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"},
                        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
                        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
                        "stream": {"type": "boolean"},
                        "partial_images": {"type": "integer", "minimum": 0, "maximum": 3},
                        "seed": {"type": "integer"},
                        "steps": {"type": "integer", "minimum": 1, "maximum": 1000},
                        "guidance": {"type": "number", "minimum": 0, "maximum": 100},
                        "image_guidance": {"type": "number", "minimum": 0, "maximum": 100},
                    },
                }
            }
        },
    }
}

DRAWING_FIELDS = {"steps", "guidance", "image_guidance", "noise_level"}
"""Fields of an edit's form that are fields of `drawing` elsewhere; a form holds no objects."""


def drawing_routes(models: Models) -> APIRouter:
    """The routes, for these models."""
    router = APIRouter(responses=RESPONSES)

    @router.post("/v1/images/generations", summary="Draw what words say")
    async def images_generations(asked: PictureRequest, request: Request) -> Any:
        async def document() -> Document:
            return Document((user(drawing_request(asked.prompt)),))

        return await _answer(models, asked, request, document, "image_generation")

    @router.post("/v1/images/edits", summary="Change a picture as words say", openapi_extra=FORM)
    async def images_edits(request: Request) -> Any:
        asked, files = await _form(request, models)
        if not models.system(asked.model).edits:
            raise ApiError(
                400,
                f"{asked.model} draws every picture anew and does not see the one that is to be changed. "
                "Name a model whose entry in /v1/models says `edits`.",
                code="unsupported",
                param="model",
            )

        async def document() -> Document:
            pictures = models.pictures()
            opened = [Image(await pictures.of(data, f"Picture {n}")) for n, data in enumerate(files, 1)]
            return Document((user(*opened, asked.prompt),))

        return await _answer(models, asked, request, document, "image_edit")

    return router


async def _form(request: Request, models: Models) -> tuple[PictureRequest, list[bytes]]:
    """The fields and the files of a multipart request."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "An edit is sent as multipart/form-data, with the picture as `image`.", code="wrong_type")
    try:
        form = await request.form(max_files=models.config.images + 1, max_fields=64, max_part_size=2**20)
    except HTTPException as error:
        raise ApiError(400, f"The form cannot be read: {error.detail}", code="invalid_form") from None
    try:
        files = [await file.read() for file in _files(form)]
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    finally:
        await form.close()
    if not files:
        raise ApiError(400, "The form has no file `image`, so there is nothing to change.", param="image")
    drawing = {name: fields.pop(name) for name in DRAWING_FIELDS & fields.keys()}
    try:
        return PictureRequest.model_validate({**fields, **({"drawing": drawing} if drawing else {})}), files
    except ValidationError as error:
        raise invalid(list(error.errors())) from None


def _files(form: FormData) -> list[UploadFile]:
    files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    for name, _ in files:
        if name == "mask":
            raise ApiError(400, "Masks are not used: say in words what is to change.", code="unsupported", param="mask")
        if name not in ("image", "image[]"):
            raise ApiError(400, "Files are sent as `image` or `image[]`.", code="unknown_parameter", param="image")
    return [value for _, value in files]


async def _answer(
    models: Models, asked: PictureRequest, request: Request, document: Callable[[], Awaitable[Document]], kind: str
) -> Any:
    seed = new_seed() if asked.seed is None else asked.seed
    sampling = asked.sampling(models.config, max_tokens=None)
    if asked.pixels is not None:
        check_size(asked.pixels, models.config, "size")
    worker = models.worker(asked.model)

    async def prepare() -> Order:
        written = await document()
        system = models.check(asked.model, written, "image", sampling, asked.n)
        return Order(system, written, "image", sampling, seed, previews=bool(asked.stream and asked.partial_images))

    answers = await unless_gone(request, worker.ask(prepare, asked.n), models.config)
    head = {"created": int(time.time()), "seed": seed}
    if asked.stream:
        frames = _stream(head, answers, asked, kind)
        return EventStream(frames, models.config, fault=worker.fault, close=lambda: give_up(answers))
    try:
        return await unless_gone(request, _whole(head, answers, asked), models.config)
    finally:
        give_up(answers)


async def _whole(head: dict[str, Any], answers: Sequence[Answer], asked: PictureRequest) -> dict[str, Any]:
    data = await all_of([_picture(answer, asked) for answer in answers])
    return {**head, "data": data, "output_format": asked.output_format, "usage": usage_of_pictures(answers)}


def usage_of_pictures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Words read and written, as the pictures' routes call them."""
    read, written = answers[0].read, sum(answer.written for answer in answers)
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


async def _picture(answer: Answer, asked: PictureRequest) -> dict[str, str]:
    async for piece in answer:
        if isinstance(piece, Image) and piece.pixels is not None:
            text = await base64_of(piece, asked.output_format, asked.pixels)
            if asked.response_format == "url":
                return {"url": data_url(text, asked.output_format)}
            return {"b64_json": text}
    raise ApiError(400, "The model drew nothing. Use other words or another seed.", code="no_image")


async def _stream(head: dict[str, Any], answers: Sequence[Answer], asked: PictureRequest, kind: str) -> Frames:
    seen = {"created_at": head["created"], "output_format": asked.output_format, "size": asked.size or "auto"}
    seen |= {"quality": "auto", "background": "opaque"}

    async def frames_of(index: int, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        previews = Previews(asked.partial_images)
        async for piece in answer:
            if isinstance(piece, Progress):
                if previews.wants(piece) and piece.preview is not None:
                    text = await base64_of(piece.preview, asked.output_format, asked.pixels)
                    shown = {"partial_image_index": previews.shown - 1, "image_index": index, "b64_json": text}
                    yield {"type": f"{kind}.partial_image", **shown, **seen}
            elif isinstance(piece, Image) and piece.pixels is not None:
                text = await base64_of(piece, asked.output_format, asked.pixels)
                usage = usage_of_pictures([answer])
                yield {"type": f"{kind}.completed", "image_index": index, "b64_json": text, "usage": usage, **seen}

    async with aclosing(merged([frames_of(index, answer) for index, answer in enumerate(answers)])) as frames:
        async for one in frames:
            yield {**one, "seed": head["seed"]}
