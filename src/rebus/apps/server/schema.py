"""Requests as JSON. What is not named here is refused; what OpenAI's clients send and a reply does not depend on is taken
and not used."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rebus.apps.server.settings import ServerConfig
from rebus.sampling import Sampling
from rebus.visual import ImageSampling

Count = Annotated[int, Field(ge=1, le=64)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Code = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Id = Annotated[str, Field(min_length=1, max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Previews = Annotated[int, Field(ge=0, le=3)]


class Strict(BaseModel):
    """An object that has the fields named and no other."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Lenient(BaseModel):
    """An object whose further fields are not used."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Body(Strict):
    """A whole request. Its strings are text: JSON can also write halves of characters, which no text holds."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, sent: Any) -> Any:
        left = [sent]
        while left:
            one = left.pop()
            if isinstance(one, dict):
                left += [*one, *one.values()]
            elif isinstance(one, list):
                left += one
            elif isinstance(one, str):
                try:
                    one.encode()
                except UnicodeEncodeError:
                    raise ValueError("a string of it holds half a character (a lone surrogate)") from None
        return sent


# ------------------------------------------------------------------------------------------------ messages


class ImageUrl(Lenient):
    """Where a picture is."""

    url: str = Field(description="a data URL, or an http address where the server fetches pictures")


class TextPart(Lenient):
    """Text."""

    type: Literal["text"]
    text: str


def _as_object(url: Any) -> Any:
    return {"url": url} if isinstance(url, str) else url


class ImagePart(Lenient):
    """A picture."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_object)]


class CodesPart(Lenient):
    """A picture as codes, as /v1/tokenize gives them."""

    type: Literal["image_codes"]
    source: str = Field(min_length=1, max_length=256)
    codes: list[Code] = Field(min_length=1, max_length=4096)


class BoxPart(Lenient):
    """A region of the picture before it: centre x, centre y, width, height as fractions of its sides."""

    type: Literal["box"]
    box: tuple[Fraction, Fraction, Fraction, Fraction]


Part = Annotated[TextPart | ImagePart | CodesPart | BoxPart, Field(discriminator="type")]


class ChatMessage(Lenient):
    """What one speaker says."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    images: list[ImagePart] | None = Field(
        default=None, description="a reply's pictures, as `image_output: images` gives them"
    )
    tool_calls: None = None

    def written(self) -> dict[str, Any]:
        """The message in the chat-message form of documents."""
        content = self.content or []
        parts: list[Any] = [TextPart(type="text", text=content)] if isinstance(content, str) else list(content)
        parts += self.images or []
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": [part.model_dump() for part in parts]}


# ------------------------------------------------------------------------------------------------ how a reply is decoded


class Drawing(Strict):
    """How pictures are drawn; what is absent is the model's own."""

    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=0, le=100)
    image_guidance: float | None = Field(default=None, ge=0, le=100)
    noise_level: int | None = Field(default=None, ge=0, le=999)
    size: tuple[int, int] | None = Field(default=None, description="height and width, where the model draws several")
    codes: int | None = Field(
        default=None, ge=1, le=1024, description="how many of an image's first codes are drawn from, where codes add up"
    )

    def sampling(self) -> ImageSampling:
        """The library's settings."""
        return ImageSampling(self.steps, self.guidance, self.image_guidance, self.noise_level, self.size, self.codes)


class Settings(Body):
    """What every kind of reply can be asked to be like."""

    model: Id
    seed: Seed | None = Field(
        default=None, description="the same seed gives the same reply; absent: a new one each time"
    )
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    repetition_penalty: float = Field(default=1.0, ge=0.1, le=10)
    image_temperature: float | None = Field(
        default=None, ge=0, le=2, description="inside pictures; absent: as for text"
    )
    image_top_p: float | None = Field(default=None, gt=0, le=1)
    image_top_k: int | None = Field(default=None, ge=1)
    guidance: float = Field(
        default=1.0, ge=0, le=20, description="classifier-free guidance of a picture's words; 1 is off"
    )
    drawing: Drawing | None = None
    # what clients send and no reply depends on
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None

    def sampling(
        self, config: ServerConfig, *, max_tokens: int | None, min_tokens: int = 0, stop: tuple[str, ...] = ()
    ) -> Sampling:
        """The library's settings, with the server's where the request does not say."""
        temperature = config.temperature if self.temperature is None else self.temperature
        return Sampling(
            max_new_tokens=min(max_tokens or config.max_tokens, config.context),
            min_new_tokens=min_tokens,
            temperature=_warm(temperature),
            top_p=self.top_p or 1.0,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            image_temperature=None if self.image_temperature is None else _warm(self.image_temperature),
            image_top_p=self.image_top_p,
            image_top_k=self.image_top_k,
            guidance=self.guidance,
            stop=stop,
            image=(self.drawing or Drawing()).sampling(),
        )


def _warm(temperature: float) -> float:
    # below this, dividing by it leaves the range of float32, and the likeliest word is taken anyhow
    return temperature if temperature >= 1e-3 else 0.0


class StreamOptions(Lenient):
    """Further events of a stream."""

    include_usage: bool | None = None


class TextFormat(Lenient):
    """Plain text is the one form that replies have."""

    type: Literal["text"]


class ChatRequest(Settings):
    """A conversation to answer."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024)
    modalities: list[Literal["text", "image"]] = Field(default=["text"], min_length=1, max_length=2)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0, description="fewest words before a reply may end")
    n: Count = 1
    stop: Stop | list[Stop] | None = Field(default=None)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    image_output: Literal["images", "parts", "segments"] = Field(
        default="images",
        description="where a reply's pictures are: `message.images`, parts of `message.content`, or `message.segments`",
    )
    partial_images: Previews = Field(
        default=0, description="in a stream: how often a picture is shown while it is drawn"
    )
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    store: bool | None = None
    verbosity: str | None = None
    reasoning_effort: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a reply."""
        stop = self.stop or []
        return (stop,) if isinstance(stop, str) else tuple(stop[:16])


# ------------------------------------------------------------------------------------------------ pictures as codes


class TokenizeRequest(Body):
    """Pictures that become codes."""

    model: Id
    images: list[str] = Field(min_length=1, max_length=64, description="data URLs or base64")
    seed: Seed = 0


class CodesItem(Lenient):
    """A picture as codes."""

    source: str = Field(min_length=1, max_length=256)
    codes: list[Code] = Field(min_length=1, max_length=4096)


class DetokenizeRequest(Body):
    """Codes that become pictures."""

    model: Id
    images: list[CodesItem] = Field(min_length=1, max_length=64)
    seed: Seed = 0
    drawing: Drawing | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
