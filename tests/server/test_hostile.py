"""Strings of requests: never a path, an import or an address that this machine would rather not call."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator

import pytest
from tests import tiny
from tests.server.test_limits import CHAT, chat, post
from tests.serving import QUICK, ask, png, running

from rebus.apps.server.errors import ApiError
from rebus.apps.server.fetch import fetch, is_public
from rebus.apps.server.incoming import Pictures
from rebus.apps.server.settings import ServerConfig

# ------------------------------------------------------------------------------------------------ names

WATCHED: list[list[str]] = []
"""While somebody watches: what was opened or imported. A hook cannot be taken out again, so it is always there."""


def _note(event: str, args: tuple) -> None:
    if WATCHED and event in ("open", "import", "os.listdir", "os.scandir", "subprocess.Popen", "socket.getaddrinfo"):
        WATCHED[-1].append(f"{event} {args}")


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """What any thread opens, imports, starts or looks up meanwhile."""
    if not getattr(watching, "added", False):
        sys.addaudithook(_note)
        watching.added = True  # type: ignore[attr-defined]
    WATCHED.append([])
    try:
        yield WATCHED[-1]
    finally:
        WATCHED.pop()


MARK = "hostilename"
HOSTILE = [
    f"../../{MARK}",
    f"/etc/{MARK}",
    f"{MARK}.module:tiny",
    f"os.{MARK}",
    f"file:///{MARK}",
    f"seed:tiny+{MARK}",
    f"seed:tiny=/{MARK}",
    f"http://{MARK}.example/",
    f"\x00{MARK}",
]


def test_strings_of_requests_open_and_import_nothing(server):
    client = server.client()
    assert client.chat.completions.create(**chat()).choices  # whatever is imported lazily is there
    with watching() as seen:
        open("/dev/null").close()
        assert seen  # somebody watches
        for name in HOSTILE:
            for path, body in (
                (CHAT, chat(model=name)),
                (CHAT, chat(messages=ask(name, name))),
                (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_codes", "source": name, "codes": [1] * 8}]}])),
                ("/v1/responses", {"model": name, "input": "x"}),
                ("/v1/responses", {"model": "seed:tiny", "input": "x", "previous_response_id": name}),
                ("/v1/images/generations", {"model": name, "prompt": "x"}),
                ("/v1/tokenize", {"model": name, "images": [name]}),
                ("/v1/tokenize", {"model": "seed:tiny", "images": [name]}),
                ("/v1/detokenize", {"model": "seed:tiny", "images": [{"source": name, "codes": [1] * 8}]}),
            ):  # fmt: skip
                status, answer, _ = post(server, path, body)
                assert status in (400, 404), (path, body, answer)
            assert post(server, CHAT, chat(messages=ask(name)))[0] == 200  # in text it is text
    assert not [event for event in seen if MARK in event]


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("1.1.1.1", True), ("2606:4700:4700::1111", True),
        ("127.0.0.1", False), ("127.9.9.9", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("240.0.0.1", False), ("192.0.2.1", False), ("198.18.0.1", False),
        ("::1", False), ("::", False), ("fe80::1", False), ("fe80::1%eth0", False), ("fc00::1", False), ("fd12::1", False),
        ("ff02::1", False), ("2001:db8::1", False), ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False), ("64:ff9b::a00:1", False), ("2002:7f00:1::", False), ("2002:a00:1::", False),
        ("::127.0.0.1", False), ("localhost", False), ("", False), ("0x7f.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) == public


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A server of pictures, of redirects and of other things."""

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        path, _, rest = self.path[1:].partition("/")
        if path == "redirect":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        self.send_response(404 if path == "absent" else 200)
        if path == "zipped":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(OSError):
            if path == "slow":
                while not self.server.over.wait(0.05):
                    self.wfile.write(b".")
            self.wfile.write(b"x" * 300_000 if path == "large" else png())

    def log_message(self, *args):
        pass


@pytest.fixture
def elsewhere() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server on this machine that stands for one on the network."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    server.daemon_threads = True
    server.asked, server.over = [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def get(url: str, allowed=lambda address: True, seconds: float = 10.0) -> bytes:
    """What is fetched, here where every address is allowed."""
    return asyncio.run(fetch(url, most_bytes=200_000, seconds=seconds, allowed=allowed))


def test_fetching(elsewhere):
    assert get(f"{elsewhere.url}/picture") == png()
    (asked,) = elsewhere.asked
    assert asked[1]["Accept-Encoding"] == "identity" and asked[1]["Host"] == elsewhere.url[7:]
    assert get(f"{elsewhere.url}/redirect/{elsewhere.url}/picture") == png()
    assert get(f"{elsewhere.url}/redirect//picture") == png()
    for path, words in (
        ("large", "more than 200,000 bytes"),
        ("absent", "the answer was 404"),
        ("zipped", "compressed"),
        ("redirect/file:///etc/passwd", "only http and https"),
        ("redirect//redirect//redirect//redirect//redirect//picture", "more than 3 times"),
    ):
        with pytest.raises(ApiError, match=words):
            get(f"{elsewhere.url}/{path}")
    with pytest.raises(ApiError, match="longer than 0.3 s"):
        get(f"{elsewhere.url}/slow", seconds=0.3)
    with pytest.raises(ApiError, match="without a user name"):
        get(elsewhere.url.replace("//", "//user:word@"))
    for bad in ("http://", "http://[::1", "http://x:99999/", "http://a b/", "http://ä\x00/"):
        with pytest.raises(ApiError, match="not fetched"):
            get(bad)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::ffff:127.0.0.1]"])
def test_this_machine_is_never_asked(elsewhere, host):
    port = elsewhere.server_address[1]
    with pytest.raises(ApiError, match="not on the public network|no address|connection failed"):
        get(f"http://{host}:{port}/picture", allowed=is_public)
    assert not elsewhere.asked


def test_a_redirect_to_this_machine_is_not_followed(elsewhere, monkeypatch):
    calls = []

    def allowed(address: str) -> bool:
        calls.append(address)
        return len(calls) == 1  # the first server is on the network, so to say; what it names is not

    port = elsewhere.server_address[1]
    with pytest.raises(ApiError, match="'localhost' is not on the public network"):
        get(f"{elsewhere.url}/redirect/http://localhost:{port}/picture", allowed=allowed)
    assert [path for path, _ in elsewhere.asked] == [f"/redirect/http://localhost:{port}/picture"]


def test_the_address_that_was_checked_is_the_one_that_is_called(elsewhere, monkeypatch):
    """A name that says a public address first and a private one then (DNS rebinding) is looked up once; one that says
    both at once is refused."""
    port, lookups = elsewhere.server_address[1], []

    async def getaddrinfo(self, host, port, **options):
        lookups.append(host)
        found = ["203.0.113.7", "127.0.0.1"] if host == "both.example" else ["127.0.0.1"]
        return [(2, 1, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    assert get(f"http://rebound.example:{port}/picture") == png()
    assert lookups == ["rebound.example"]  # the connection was made to the address, not to the name again
    assert elsewhere.asked[0][1]["Host"] == f"rebound.example:{port}"
    with pytest.raises(ApiError, match="'both.example' is not on the public network"):
        get(f"http://both.example:{port}/picture", allowed=lambda address: address == "203.0.113.7")
    assert len(elsewhere.asked) == 1


def test_a_server_that_may_fetch(served, elsewhere):
    config = ServerConfig(**QUICK, fetch=True)
    system = {"seed:tiny": served["seed:tiny"]}
    body = chat(messages=ask("x", f"{elsewhere.url}/picture"), seed=1)
    with running(system, config) as server:
        status, answer, _ = post(server, CHAT, body)
        assert status == 400 and "not on the public network" in json.dumps(answer)
    with running(system, config, allowed=lambda address: True) as server:
        assert post(server, CHAT, body)[0] == 200
    assert [path for path, _ in elsewhere.asked] == ["/picture"]
    picture = asyncio.run(Pictures(config, lambda address: True).at(f"{elsewhere.url}/picture", "it"))
    assert picture.tobytes() == tiny.picture().pixels.tobytes()
