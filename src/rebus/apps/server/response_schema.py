"""Requests of /v1/responses as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rebus.apps.server.schema import BoxPart, CodesPart, Id, Lenient, Previews, Settings, TextFormat
from rebus.grammar import Modality


class WrittenText(Lenient):
    """Text that somebody wrote."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputImage(Lenient):
    """A picture that somebody shows."""

    type: Literal["input_image"]
    image_url: str = Field(description="a data URL, or an http address where the server fetches pictures")


Content = Annotated[WrittenText | InputImage | CodesPart | BoxPart, Field(discriminator="type")]


class InputMessage(Lenient):
    """What one speaker said."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content]


class DrawnBefore(Lenient):
    """A picture that was drawn in an earlier response: by its name, or the picture itself."""

    type: Literal["image_generation_call"]
    id: Id | None = None
    result: str | None = Field(default=None, description="the picture in base64")


def _kind(item: Any) -> str:
    """Messages may leave their type out."""
    found = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "image_generation_call" if found == "image_generation_call" else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[DrawnBefore, Tag("image_generation_call")],
    Discriminator(_kind),
]


class DrawingTool(Lenient):
    """Lets a reply hold pictures."""

    type: Literal["image_generation"]
    action: Literal["auto", "generate", "edit"] = "auto"
    partial_images: Previews = 0
    size: str | None = Field(default=None, pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")
    output_format: Literal["png", "jpeg", "webp"] = "png"


class ToolChoice(Lenient):
    """Asks for a picture."""

    type: Literal["image_generation"]


class TextOptions(Lenient):
    """The form of a reply's text."""

    format: TextFormat | None = None


class ResponseRequest(Settings):
    """A conversation, or how one goes on."""

    input: str | list[Item] = Field(min_length=1, max_length=1024)
    instructions: str | None = None
    previous_response_id: Id | None = None
    tools: list[DrawingTool] = Field(default=[], max_length=1)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"
    max_output_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = False
    store: bool | None = True
    text: TextOptions | None = None
    # what clients send and no reply depends on
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None
    include: list[str] | None = None
    background: Literal[False] | None = None

    @property
    def modality(self) -> Modality:
        """What a reply may hold: pictures where the tool for them is given, and nothing else where it must be used."""
        if not self.tools or self.tool_choice == "none":
            return "text"
        return "any" if self.tool_choice == "auto" else "image"

    @property
    def tool(self) -> DrawingTool:
        """How pictures leave."""
        return self.tools[0] if self.tools else DrawingTool(type="image_generation")

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of pictures, where they are asked for."""
        if self.tool.size in (None, "auto"):
            return None
        width, height = str(self.tool.size).split("x")
        return int(width), int(height)
