"""/v1/responses: conversations that go on from a response by its name, with pictures that are drawn and changed turn by
turn."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request

from rebus.apps.server.chat import give_up
from rebus.apps.server.errors import RESPONSES, ApiError
from rebus.apps.server.gate import OWNER
from rebus.apps.server.incoming import bytes_of_base64, document_of
from rebus.apps.server.models import Models, check_size, new_seed
from rebus.apps.server.outgoing import EventStream, Frames, Previews, base64_of, new_id, unless_gone
from rebus.apps.server.response_schema import DrawnBefore, InputImage, InputMessage, ResponseRequest, WrittenText
from rebus.apps.server.shelf import Kept, Shelf
from rebus.apps.server.worker import Answer, Order
from rebus.document import Box, Document, Image, Message, Part
from rebus.system.parts import joined, last_picture
from rebus.visual import Progress

Event = dict[str, Any]


def response_routes(models: Models) -> APIRouter:
    """The routes, for these models."""
    router, shelf = APIRouter(responses=RESPONSES), Shelf(models.config)

    @router.post("/v1/responses", summary="Answer, and remember the conversation")
    async def create_response(asked: ResponseRequest, request: Request) -> Any:
        turn = Turn(models, shelf, asked, request.scope.get(OWNER, ""))
        answer = await unless_gone(request, turn.ask(), models.config)
        if asked.stream:
            fault = models.worker(asked.model).fault
            return EventStream(turn.events(answer), models.config, fault=fault, close=lambda: give_up([answer]))
        try:
            return await unless_gone(request, turn.whole(answer), models.config)
        finally:
            give_up([answer])

    @router.get("/v1/responses/{response_id}", summary="A response that is still kept")
    async def get_response(response_id: str, request: Request) -> Any:
        kept = shelf.get(request.scope.get(OWNER, ""), response_id)
        if kept is None:
            raise _unknown()
        return kept.body

    @router.delete("/v1/responses/{response_id}", summary="Forget a response")
    async def delete_response(response_id: str, request: Request) -> Any:
        if not shelf.remove(request.scope.get(OWNER, ""), response_id):
            raise _unknown()
        return {"id": response_id, "object": "response", "deleted": True}

    return router


def _unknown() -> ApiError:
    return ApiError(
        404,
        "There is no such response: it was not stored, was too old, or is another's. Send the conversation itself.",
        code="response_not_found",
    )


@dataclass(eq=False)
class Turn:
    """One request to /v1/responses and what comes of it."""

    models: Models
    shelf: Shelf
    asked: ResponseRequest
    owner: str
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    document: Document = Document(())
    output: list[Event] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    drawn: dict[str, Image] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = self.asked
        self.seed = new_seed() if asked.seed is None else asked.seed

    # ------------------------------------------------------------------------------------------ asking

    async def ask(self) -> Answer:
        """The answer to come. Raises ApiError."""
        asked, models = self.asked, self.models
        sampling = asked.sampling(models.config, max_tokens=asked.max_output_tokens)
        if asked.size is not None:
            check_size(asked.size, models.config, "tools")

        async def prepare() -> Order:
            self.document = await self._document()
            system = models.check(asked.model, self.document, asked.modality, sampling, 1)
            if asked.tool.action == "edit" and not (system.edits and last_picture(self.document)):
                raise ApiError(
                    400,
                    f"There is nothing to edit: either the conversation has no picture, or {asked.model} draws every "
                    "picture anew.",
                    code="unsupported",
                    param="tools",
                )
            previews = bool(asked.stream and asked.tool.partial_images)
            return Order(system, self.document, asked.modality, sampling, self.seed, previews=previews)

        return (await models.worker(asked.model).ask(prepare))[0]

    async def _document(self) -> Document:
        """The conversation: what was kept, what is sent, and the instructions of this turn before both."""
        asked, pictures = self.asked, self.models.pictures()
        before = Document(())
        if asked.previous_response_id is not None:
            kept = self.shelf.get(self.owner, asked.previous_response_id)
            if kept is None:
                raise _unknown()
            before, self.drawn = kept.document, dict(kept.drawn)
        items = asked.input
        if isinstance(items, str):
            items = [InputMessage(role="user", content=items)]
        written: list[dict[str, Any]] = []
        shown: dict[int, Image] = {}
        for number, item in enumerate(items):
            if isinstance(item, DrawnBefore):
                shown[number] = await self._shown(item, pictures, f"Item {number + 1} of the input")
                written.append({"role": "assistant", "content": []})
            else:
                role = "system" if item.role == "developer" else item.role
                written.append({"role": role, "content": _content(item)})
        sent = list((await document_of(written, pictures, self.models.config)).messages)
        for number, image in shown.items():
            sent[number] = Message("assistant", (image,))
        first = [Message("system", (asked.instructions,))] if asked.instructions else []
        # instructions are those of one turn: what is kept has none
        self._kept_messages = (*before.messages, *sent)
        return Document((*first, *before.messages, *sent))

    async def _shown(self, item: DrawnBefore, pictures: Any, name: str) -> Image:
        if item.id is not None and item.id in self.drawn:
            return self.drawn[item.id]
        if item.result is None:
            raise ApiError(
                400,
                f"{name} is a picture of a response that is not kept here. Send it with its `result`.",
                code="invalid_value",
                param="input",
            )
        return Image(await pictures.of(bytes_of_base64(item.result, name), name))

    # ------------------------------------------------------------------------------------------ answering

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The response once it is complete."""
        async for _ in self.events(answer):
            pass
        return self.body(answer, self._status(answer))

    def body(self, answer: Answer | None, status: str) -> dict[str, Any]:
        """The response as JSON."""
        usage = None
        if answer is not None and status in ("completed", "incomplete"):
            usage = {
                "input_tokens": answer.read,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": answer.written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.read + answer.written,
            }
        asked = self.asked
        choice = asked.tool_choice if isinstance(asked.tool_choice, str) else asked.tool_choice.model_dump()
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": asked.model,
            "output": list(self.output),
            "usage": usage,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "previous_response_id": asked.previous_response_id,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": False,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "tool_choice": choice,
            "tools": [tool.model_dump() for tool in asked.tools],
            "seed": self.seed,
        }

    @staticmethod
    def _status(answer: Answer) -> str:
        return "incomplete" if answer.ending == "length" else "completed"

    async def events(self, answer: Answer) -> Frames:
        """The events of a stream, numbered. What they say is gathered in `output` and kept at the end."""
        number = 0
        async for event in self._events(answer):
            yield {**event, "sequence_number": number}
            number += 1

    async def _events(self, answer: Answer) -> AsyncIterator[Event]:
        yield {"type": "response.created", "response": self.body(None, "in_progress")}
        yield {"type": "response.in_progress", "response": self.body(None, "in_progress")}
        text: Event | None = None
        call: Event | None = None
        previews = Previews(0)
        async for piece in answer:
            self.parts += [] if isinstance(piece, Progress) else [piece]
            if isinstance(piece, str):
                if text is None:
                    text = self._item({"type": "message", "role": "assistant", "status": "in_progress", "content": []})
                    for event in self._text_begins(text):
                        yield event
                content = text["content"][0]
                content["text"] += piece
                yield {"type": "response.output_text.delta", "delta": piece, "logprobs": [], **self._place(text)}
                continue
            if text is not None:
                for event in self._text_ends(text):
                    yield event
                text = None
            if isinstance(piece, Box):
                self._item({"type": "box", "status": "completed", "box": [piece.cx, piece.cy, piece.w, piece.h]})
                continue
            if call is None:
                call, previews = self._call(), Previews(self.asked.tool.partial_images)
                yield {"type": "response.output_item.added", "item": dict(call), "output_index": len(self.output) - 1}
                for stage in ("in_progress", "generating"):
                    yield {"type": f"response.image_generation_call.{stage}", **self._named(call)}
            if isinstance(piece, Progress):
                if previews.wants(piece) and piece.preview is not None:
                    text64 = await self._base64(piece.preview)
                    shown = {"partial_image_index": previews.shown - 1, "partial_image_b64": text64}
                    yield {"type": "response.image_generation_call.partial_image", **self._named(call), **shown}
                continue
            assert piece.pixels is not None
            call |= {"status": "completed", "result": await self._base64(piece)}
            self.drawn[call["id"]] = piece
            yield {"type": "response.image_generation_call.completed", **self._named(call)}
            yield {"type": "response.output_item.done", "item": dict(call), "output_index": len(self.output) - 1}
            call = None
        if text is not None:
            for event in self._text_ends(text):
                yield event
        status = self._status(answer)
        body = self.body(answer, status)
        if self.asked.store is not False:
            said = Message("assistant", joined(self.parts))
            self.shelf.put(self.owner, self.id, Kept(body, Document((*self._kept_messages, said)), self.drawn))
        yield {"type": f"response.{status}", "response": body}

    async def _base64(self, picture: Any) -> str:
        return await base64_of(picture, self.asked.tool.output_format, self.asked.size)

    def _item(self, item: Event) -> Event:
        item = {"id": new_id("msg"), **item}
        self.output.append(item)
        return item

    def _call(self) -> Event:
        item = {"id": new_id("ig"), "type": "image_generation_call", "status": "generating", "result": None}
        self.output.append(item)
        return item

    def _named(self, item: Event) -> Event:
        return {"item_id": item["id"], "output_index": len(self.output) - 1}

    def _place(self, item: Event) -> Event:
        return {**self._named(item), "content_index": 0}

    def _text_begins(self, item: Event) -> list[Event]:
        added = {"type": "response.output_item.added", "item": {**item, "content": []}}
        item["content"] = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
        part = {"type": "response.content_part.added", "part": dict(item["content"][0]), **self._place(item)}
        return [{**added, "output_index": len(self.output) - 1}, part]

    def _text_ends(self, item: Event) -> list[Event]:
        item["status"] = "completed"
        part = dict(item["content"][0])
        done = {"type": "response.output_item.done", "item": {**item, "content": [part]}}
        return [
            {"type": "response.output_text.done", "text": part["text"], "logprobs": [], **self._place(item)},
            {"type": "response.content_part.done", "part": part, **self._place(item)},
            {**done, "output_index": len(self.output) - 1},
        ]


def _content(item: InputMessage) -> list[dict[str, Any]]:
    if isinstance(item.content, str):
        return [{"type": "text", "text": item.content}]
    parts: list[dict[str, Any]] = []
    for part in item.content:
        if isinstance(part, WrittenText):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, InputImage):
            parts.append({"type": "image_url", "image_url": {"url": part.image_url}})
        else:
            parts.append(part.model_dump())
    return parts
