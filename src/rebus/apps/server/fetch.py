"""Pictures from the network, fetched only from public addresses.

A name is resolved here, every address that it has is checked, and the connection is made to the address that was checked,
so that a name which says something else the second time gains nothing. Redirects go through the same door, proxies of
the environment are not used, and size and time end.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from rebus.apps.server.errors import ApiError

REDIRECTS = 3
"""Redirects that are followed."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that stand for IPv4 ones."""

Allowed = Callable[[str], bool]


def is_public(address: str) -> bool:
    """Is this an address of the open network: not private, loopback, link-local, multicast, reserved, nor one that
    stands for such an IPv4 address?"""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None and not is_public(str(inner)):
            return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


class Checked(httpcore.AsyncNetworkBackend):
    """Connects to addresses that are allowed, and to nothing else."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of `host`, once all of them are allowed. Raises ApiError otherwise."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _not_fetched(f"there is no address for {host!r}") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses or not all(self._allowed(address) for address in addresses):
            raise _not_fetched(f"{host!r} is not on the public network")
        return await self._backend.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise _not_fetched("it is no address of the network")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


async def fetch(url: str, *, most_bytes: int, seconds: float, allowed: Allowed = is_public) -> bytes:
    """What is at an http or https URL. Raises ApiError (400) when it is not allowed, absent, too large or too slow."""
    try:
        async with asyncio.timeout(seconds):
            async with httpcore.AsyncConnectionPool(
                ssl_context=ssl.create_default_context(), network_backend=Checked(allowed), retries=0
            ) as pool:
                for _ in range(REDIRECTS + 1):
                    body, elsewhere = await _get(pool, url, most_bytes)
                    if elsewhere is None:
                        return body
                    url = urljoin(url, elsewhere)
    except TimeoutError:
        raise _not_fetched(f"it took longer than {seconds:g} s") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError) as error:
        raise _not_fetched(f"the connection failed ({type(error).__name__})") from None
    raise _not_fetched(f"it leads on more than {REDIRECTS} times")


async def _get(pool: httpcore.AsyncConnectionPool, url: str, most: int) -> tuple[bytes, str | None]:
    """The body, or where else it is."""
    if not url.isascii():
        raise _not_fetched("its address has letters that addresses spell otherwise (%C3%A9 for é, xn--… in names)")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise _not_fetched("only http and https addresses without a user name are")
    headers = [("Host", parts.netloc), ("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "rebus")]
    url = parts._replace(fragment="").geturl()
    async with pool.stream("GET", url, headers=headers) as response:
        found = {name.lower(): value for name, value in response.headers}
        if response.status in (301, 302, 303, 307, 308) and b"location" in found:
            return b"", found[b"location"].decode("latin-1")
        if response.status != 200:
            raise _not_fetched(f"the answer was {response.status}")
        if found.get(b"content-encoding", b"identity") != b"identity":
            raise _not_fetched("it is compressed, which was not asked for")
        body = bytearray()
        async for piece in response.aiter_stream():
            body += piece
            if len(body) > most:
                raise _not_fetched(f"it has more than {most:,} bytes")
        return bytes(body), None


def _not_fetched(why: str) -> ApiError:
    return ApiError(
        400,
        f"A picture was not fetched from the network: {why}. Send it as a data URL.",
        code="invalid_image_url",
    )
