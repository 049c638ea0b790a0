"""/v1/tokenize and /v1/detokenize: pictures as the codes that a model writes them with, and back."""

from __future__ import annotations

import time
from typing import Any

import torch
from fastapi import APIRouter, Request

from rebus.apps.files import codes_json
from rebus.apps.server.artist import Drawing
from rebus.apps.server.errors import RESPONSES, ApiError
from rebus.apps.server.incoming import bytes_of_base64
from rebus.apps.server.models import Models
from rebus.apps.server.outgoing import base64_of, unless_gone
from rebus.apps.server.schema import DetokenizeRequest, TokenizeRequest
from rebus.document import Image
from rebus.system import System
from rebus.visual import Codes, ImageSampling


def code_routes(models: Models) -> APIRouter:
    """The routes, for these models."""
    router = APIRouter(responses=RESPONSES)

    @router.post("/v1/tokenize", summary="Turn pictures into codes")
    async def tokenize(asked: TokenizeRequest, request: Request) -> Any:
        data = await unless_gone(request, _tokenized(models, asked), models.config)
        return {"object": "list", "model": asked.model, "data": data}

    @router.post("/v1/detokenize", summary="Turn codes into pictures")
    async def detokenize(asked: DetokenizeRequest, request: Request) -> Any:
        data = await unless_gone(request, _drawn(models, asked), models.config)
        return {"object": "list", "model": asked.model, "created": int(time.time()), "data": data}

    return router


async def _tokenized(models: Models, asked: TokenizeRequest) -> list[dict[str, Any]]:
    system, worker, pictures = models.system(asked.model), models.worker(asked.model), models.pictures()
    tokenizer = system.tokenizer
    if tokenizer is None:
        raise ApiError(400, f"{asked.model} does not see.", code="unsupported", param="model")
    with worker.place():
        opened = []
        for number, url in enumerate(asked.images, 1):
            name = f"Picture {number}"
            if url.startswith(("http://", "https://")):
                opened.append(Image(await pictures.at(url, name)))
            else:
                opened.append(Image(await pictures.of(bytes_of_base64(url, name), name)))

        @torch.no_grad()
        def encoded() -> list[dict[str, Any]]:
            generators = [torch.Generator().manual_seed(asked.seed) for _ in opened]
            return codes_json(tokenizer.encode(opened, {"generation"}, generators=generators))

        return await worker.run(encoded)


async def _drawn(models: Models, asked: DetokenizeRequest) -> list[dict[str, Any]]:
    system, worker = models.system(asked.model), models.worker(asked.model)
    if system.detokenizer is None:
        raise ApiError(400, f"{asked.model} does not draw.", code="unsupported", param="model")
    if len(asked.images) > models.config.images:
        raise ApiError(
            400,
            f"The request has {len(asked.images)} pictures, and one may have {models.config.images}. Leave some out.",
            code="too_many_images",
        )
    sampling = ImageSampling() if asked.drawing is None else asked.drawing.sampling()
    models.check_drawing(system, sampling)
    data = []
    with worker.place():
        for item in asked.images:
            codes = Codes(torch.tensor(item.codes), item.source)
            picture = await _one(worker, system, codes, asked.seed, sampling)
            data.append({"b64_json": await base64_of(picture, asked.output_format)})
    return data


async def _one(worker: Any, system: System, codes: Codes, seed: int, sampling: ImageSampling) -> Any:
    def drawing(tell: Any) -> Drawing:
        generator = torch.Generator().manual_seed(seed)
        return Drawing(system, Image(generated=codes), None, generator, sampling, False, tell)

    async for piece in worker.draw(drawing):
        if isinstance(piece, Image):
            return piece.pixels
    raise AssertionError("a drawing ends with a picture")
