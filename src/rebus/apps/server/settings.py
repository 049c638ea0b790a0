"""What a server allows, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Suppress


@dataclass(frozen=True)
class ServerConfig:
    """The limits of a server. What is beyond one gets an error of the 4xx kind that names it."""

    rows: int = 8
    """Replies that a model decodes side by side. The cache takes memory for all of them."""
    context: int = 2048
    """Most words of a request and its reply together; at most what the model was built for."""
    queue: int = 64
    """Replies that wait for a row before further requests are turned away (429)."""
    body_bytes: int = 32 * 2**20
    """Largest request."""
    pixels: int = 20_000_000
    """Most pixels of a request's pictures, all together."""
    images: int = 16
    """Most pictures of a request."""
    replies: int = 8
    """Most replies to one request (`n`)."""
    steps: int = 100
    """Most denoising steps of a picture."""
    max_tokens: int = 512
    """Longest reply where a request does not say."""
    temperature: float = 0.7
    """Temperature where a request does not say."""
    seconds: float = 600.0
    """Longest time that a request may take, from its first byte to the end of the reply."""
    grace: float = 120.0
    """How long what runs may go on after SIGTERM."""
    ping: float = 15.0
    """A stream in which nothing happens says so this often, in seconds, for whoever stands between."""
    keys: Annotated[tuple[str, ...], Suppress] = ()
    """API keys, one of which every request must bear; none: anybody may ask. No option: a command line is seen by everyone."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser (CORS)."""
    hosts: tuple[str, ...] = ()
    """Names by which the server may be called (the Host header), against rebinding; none: any."""
    fetch: bool = False
    """Whether pictures are fetched from public addresses on the network."""
    fetch_bytes: int = 16 * 2**20
    """Largest picture file that is fetched."""
    fetch_seconds: float = 10.0
    """Longest time that fetching one takes."""
    responses: int = 256
    """Conversations that /v1/responses keeps, so that one can go on from them; 0 keeps none."""
    response_pixels: int = 100_000_000
    """Pixels of all pictures in them."""
