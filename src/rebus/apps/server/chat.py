"""/v1/chat/completions: a conversation in, the next message out, whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request

from rebus.apps.server.errors import RESPONSES
from rebus.apps.server.incoming import document_of
from rebus.apps.server.models import Models, new_seed
from rebus.apps.server.outgoing import EventStream, Frames, Previews, base64_of, data_url, new_id, unless_gone
from rebus.apps.server.schema import ChatRequest
from rebus.apps.server.worker import Answer, Order
from rebus.document import Box, Image
from rebus.grammar import Modality
from rebus.visual import Progress

T = TypeVar("T")

REASONS = {"end": "stop", "stop": "stop", "length": "length"}


def chat_routes(models: Models) -> APIRouter:
    """The route, for these models."""
    router = APIRouter(responses=RESPONSES)

    @router.post("/v1/chat/completions", summary="Answer a conversation, in words and pictures")
    async def chat_completions(asked: ChatRequest, request: Request) -> Any:
        seed = new_seed() if asked.seed is None else asked.seed
        answers = await unless_gone(request, _ask(models, asked, seed), models.config)
        head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": asked.model, "seed": seed}
        if asked.stream:
            frames, fault = _stream(head, answers, asked), models.worker(asked.model).fault
            return EventStream(frames, models.config, fault=fault, close=lambda: give_up(answers), done=True)
        try:
            return await unless_gone(request, _whole(head, answers, asked), models.config)
        finally:
            give_up(answers)

    return router


async def _ask(models: Models, asked: ChatRequest, seed: int) -> list[Answer]:
    most = asked.max_completion_tokens or asked.max_tokens
    sampling = asked.sampling(models.config, max_tokens=most, min_tokens=asked.min_tokens, stop=asked.stops)
    models.system(asked.model)

    async def prepare() -> Order:
        messages = [message.written() for message in asked.messages]
        document = await document_of(messages, models.pictures(), models.config)
        system = models.check(asked.model, document, modality_of(asked), sampling, asked.n)
        previews = bool(asked.stream and asked.partial_images)
        return Order(system, document, modality_of(asked), sampling, seed, previews=previews)

    return await models.worker(asked.model).ask(prepare, asked.n)


def modality_of(asked: ChatRequest) -> Modality:
    """What a reply may hold."""
    return "any" if len(set(asked.modalities)) == 2 else asked.modalities[0]


def usage_of(answers: Sequence[Answer]) -> dict[str, int]:
    """Words read and written; the prompt of several replies is counted once, as it is encoded once."""
    read, written = answers[0].read, sum(answer.written for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


# ------------------------------------------------------------------------------------------------ whole


async def _whole(head: dict[str, Any], answers: list[Answer], asked: ChatRequest) -> dict[str, Any]:
    choices = await all_of([_choice(index, answer, asked) for index, answer in enumerate(answers)])
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage_of(answers)}


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of what reads several answers; when one fails, the others are given up."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except* Exception as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def give_up(answers: Sequence[Answer]) -> None:
    """Nobody listens to these any more."""
    for answer in answers:
        answer.cancel()


async def _choice(index: int, answer: Answer, asked: ChatRequest) -> dict[str, Any]:
    segments: list[dict[str, Any]] = []
    async for piece in answer:
        if not isinstance(piece, Progress):
            add(segments, await segment_of(piece))
    message = {"role": "assistant", **message_of(segments, asked.image_output)}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": REASONS[answer.ending or "end"]}


async def segment_of(piece: str | Image | Box) -> dict[str, Any]:
    """A piece of a reply as a content part."""
    match piece:
        case str():
            return {"type": "text", "text": piece}
        case Box():
            return {"type": "box", "box": [piece.cx, piece.cy, piece.w, piece.h]}
        case Image():
            assert piece.pixels is not None
            return {"type": "image_url", "image_url": {"url": data_url(await base64_of(piece))}}


def add(segments: list[dict[str, Any]], segment: dict[str, Any]) -> None:
    """Put a segment behind the others, text to text."""
    if segments and segments[-1]["type"] == segment["type"] == "text":
        segments[-1]["text"] += segment["text"]
    else:
        segments.append(segment)


def message_of(segments: list[dict[str, Any]], output: str) -> dict[str, Any]:
    """A reply in the form that was asked for. `images` keeps `content` a string, as programs expect that know of none;
    where a picture or box stood in the text is its `position`, in letters."""
    if output == "parts":
        return {"content": segments}
    text = ""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for segment in segments:
        if segment["type"] == "text":
            text += segment["text"]
        else:
            (images if segment["type"] == "image_url" else boxes).append({**segment, "position": len(text)})
    if output == "segments":
        return {"content": text, "segments": segments}
    return {"content": text, **({"images": images} if images else {}), **({"boxes": boxes} if boxes else {})}


# ------------------------------------------------------------------------------------------------ streaming


async def _stream(head: dict[str, Any], answers: list[Answer], asked: ChatRequest) -> Frames:
    head = {**head, "object": "chat.completion.chunk"}
    counted = bool(asked.stream_options and asked.stream_options.include_usage)

    def frame(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice], **({"usage": None} if counted else {})}

    async def frames_of(index: int, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        yield frame(index, {"role": "assistant", "content": "" if asked.image_output != "parts" else []})
        pictures, previews = 0, Previews(asked.partial_images)
        async for piece in answer:
            if isinstance(piece, Progress):
                if previews.wants(piece) and piece.preview is not None:
                    shown = {"index": pictures, "partial_image_index": previews.shown - 1, "step": piece.step}
                    url = data_url(await base64_of(piece.preview))
                    yield frame(index, {"partial_image": {**shown, "of": piece.of, "image_url": {"url": url}}})
                continue
            segment = await segment_of(piece)
            if isinstance(piece, Image):
                segment["index"] = pictures
                pictures, previews = pictures + 1, Previews(asked.partial_images)
            yield frame(index, _delta(segment, asked.image_output))
        yield frame(index, {}, REASONS[answer.ending or "end"])

    async with aclosing(merged([frames_of(index, answer) for index, answer in enumerate(answers)])) as frames:
        async for one in frames:
            yield one
    if counted:
        yield {**head, "choices": [], "usage": usage_of(answers)}


def _delta(segment: dict[str, Any], output: str) -> dict[str, Any]:
    if output == "parts":
        return {"content": [segment]}
    if output == "segments":
        return {"segments": [segment]}
    if segment["type"] == "text":
        return {"content": segment["text"]}
    return {"images" if segment["type"] == "image_url" else "boxes": [segment]}


async def merged(sources: Sequence[AsyncIterator[T]]) -> Any:
    """What several sources give, as it comes. All are closed at the end."""
    waiting: dict[asyncio.Future[T], AsyncIterator[T]] = {asyncio.ensure_future(_next(s)): s for s in sources}
    async with AsyncExitStack() as stack:
        for source in sources:
            stack.push_async_callback(source.aclose)  # type: ignore[attr-defined]
        stack.push_async_callback(_cancelled, waiting)
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                source = waiting.pop(one)
                try:
                    piece = one.result()
                except StopAsyncIteration:
                    continue
                yield piece
                waiting[asyncio.ensure_future(_next(source))] = source


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source)


async def _cancelled(waiting: dict[asyncio.Future[T], AsyncIterator[T]]) -> None:
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
