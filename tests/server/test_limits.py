"""What a server refuses: too much, too long, too many, from the wrong place, without a key."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tests.server.test_chat import wait_for
from tests.serving import QUICK, ask, png, running, url

from rebus.apps.server.settings import ServerConfig

CHAT = "/v1/chat/completions"


def post(server, path: str, body: dict | bytes, headers: dict | None = None) -> tuple[int, dict, dict]:
    """Status, JSON and headers of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read()), _lower(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), _lower(error.headers)


def _lower(headers) -> dict:
    return {name.lower(): value for name, value in headers.items()}


def chat(**more) -> dict:
    """A small request."""
    return {"model": "seed:tiny", "messages": ask(), "max_tokens": 3, **more}


WRONG: list[tuple[str, dict, int, str]] = [
    ("an unknown model", chat(model="seed:mini"), 404, "This server has seed:tiny"),
    ("an unknown argument", chat(colour="red"), 400, "Unrecognized request argument supplied: colour"),
    ("no messages", chat(messages=[]), 400, "messages"),
    ("the last word is not the user's", chat(messages=[{"role": "system", "content": "x"}]), 400, "not a user's"),
    ("nothing said", chat(messages=[{"role": "tool", "content": "x"}]), 400, "messages.0.role"),
    ("too many replies", chat(n=9), 400, "9 replies were asked for, and a request may ask for 8"),
    ("too hot", chat(temperature=3), 400, "temperature"),
    ("tools", chat(tools=[{"type": "function"}]), 400, "tools"),
    ("a penalty that is not there", chat(frequency_penalty=0.5), 400, "frequency_penalty"),
    ("a long prompt", chat(messages=ask("word " * 200)), 400, "but this server reads 400"),
    ("a very long prompt", chat(messages=ask("x" * 30_000)), 400, "30,000 letters"),
    ("no room for a picture", chat(modalities=["image"]), 400, "writes an image in 10 words, but only 3"),
    ("too many steps", chat(modalities=["image"], drawing={"steps": 101}), 400, "at most 100"),
    ("a size that is no size", chat(drawing={"size": [1, 9999]}), 400, "sides of 8 to 8192"),
    ("guidance of many rows", chat(guidance=2.0, n=8), 200, ""),
    ("too many pictures", chat(messages=ask("x", *[url()] * 17)), 400, "more than the 16 pictures"),
    ("too many pixels", chat(messages=ask("x", url(png(size=700)))), 400, "more than the 250,000 pixels"),
    ("too many in all", chat(messages=ask("x", *[url(png(size=300))] * 3)), 400, "more than the 70,000 pixels"),
    ("a broken picture", chat(messages=ask("x", url(png()[:90]))), 400, "damaged or cut-off"),
    ("no picture", chat(messages=ask("x", "data:text/plain,hello")), 400, "broken data URL"),
    ("a picture from elsewhere", chat(messages=ask("x", "http://example.org/a.png")), 400, "fetches nothing"),
    ("a file", chat(messages=ask("x", "file:///etc/passwd")), 400, "neither a data URL nor an http address"),
    ("a box for SEED", chat(messages=[{"role": "user", "content": [{"type": "box", "box": [0, 0, 1, 1]}]}]), 400, "no words for boxes"),
]  # fmt: skip


@pytest.fixture(scope="module")
def small(served):
    """A server with a small limit for pixels."""
    with running({"seed:tiny": served["seed:tiny"]}, ServerConfig(**QUICK, pixels=250_000)) as one:
        yield one


def test_what_is_wrong_is_said(small):
    for what, body, status, words in WRONG:
        found, answer, _ = post(small, CHAT, body)
        assert (found, words in json.dumps(answer, ensure_ascii=False)) == (status, True), (what, answer)
        assert status == 200 or set(answer["error"]) == {"message", "type", "param", "code"}
    context = post(small, CHAT, chat(messages=ask("word " * 200)))[1]["error"]
    assert context["code"] == "context_length_exceeded" and context["param"] == "messages"
    for path, body in (("/v1/nothing", {}), ("/v1/models", {})):
        assert post(small, path, body)[1]["error"]["type"] == "invalid_request_error"
    assert post(small, CHAT, b"{")[0] == 400
    assert post(small, CHAT, b'{"model": "\xff"}')[0] == 400
    assert post(small, CHAT, b'{"model": "seed:tiny", "messages": [{"role": "user", "content": "\\ud800"}]}')[0] == 400
    assert post(small, CHAT, json.dumps(chat()).encode(), {"Content-Type": "text/plain"})[0] == 400


def test_a_body_that_is_too_large_is_not_read(served):
    with running({"seed:tiny": served["seed:tiny"]}, ServerConfig(**QUICK, body_bytes=10_000)) as server:
        status, answer, _ = post(server, CHAT, chat(messages=ask("x" * 20_000)))
        assert (status, answer["error"]["code"]) == (413, "request_too_large")
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b" " * 4096 + b"\r\n" + b"2000\r\n" + b" " * 8192
            )
            assert b"413" in raw.recv(100)  # before the body ended
        assert post(server, CHAT, chat())[0] == 200


def test_who_waits_too_long_or_comes_too_late_is_told(endless):
    system, gate = endless
    config = ServerConfig(**{**QUICK, "rows": 1, "queue": 1, "seconds": 1.5, "context": 100})
    with running({"toy": system}, config) as server, ThreadPoolExecutor(2) as pool:
        gate.open.clear()
        body = {"model": "toy", "messages": ask("x"), "max_tokens": 50}
        worker = server.app.state.models.worker("toy")
        slow = [pool.submit(post, server, CHAT, body) for _ in range(2)]
        wait_for(lambda: worker._pending == 2)
        status, answer, headers = post(server, CHAT, body)
        assert (status, answer["error"]["type"], answer["error"]["code"]) == (429, "rate_limit_error", "queue_full")
        assert 1 <= int(headers["retry-after"]) <= 120
        for one in slow:
            status, answer, _ = one.result()
            assert (status, answer["error"]["code"]) == (408, "timeout") and "1.5 s" in answer["error"]["message"]
        stream = server.client().chat.completions.create(**body, stream=True)
        with pytest.raises(openai.APIError, match=r"longer than the 1\.5 s"):
            list(stream)
        gate.open.set()
        wait_for(lambda: worker._pending == 0 and worker._engine.idle)
        assert post(server, CHAT, {**body, "max_tokens": 3})[0] == 200
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
            raw.settimeout(20)
            assert b"408" in raw.recv(100)  # who sends half a request is not waited for


def test_a_stream_in_which_nothing_happens_says_so(endless):
    system, gate = endless
    with running({"toy": system}, ServerConfig(**QUICK, ping=0.05)) as server:
        gate.open.clear()
        body = {"model": "toy", "messages": ask("x"), "max_tokens": 3, "stream": True}
        request = urllib.request.Request(
            server.url + CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            first = answer.readline()
            assert first.startswith(b"data: ") and answer.readline() == b"\n"
            assert answer.readline() == b": still at it\n"
            gate.open.set()
            assert answer.read().endswith(b"data: [DONE]\n\n")


# ------------------------------------------------------------------------------------------------ who may ask


def test_keys(served):
    config = ServerConfig(**QUICK, keys=("first-key", "second-key"))
    with running({"seed:tiny": served["seed:tiny"]}, config) as server:
        for key in ("first-key", "second-key"):
            assert [model.id for model in server.client(key).models.list()] == ["seed:tiny"]
        for key in ("first-ke", "first-key,second-key", "x"):
            with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
                server.client(key).models.list()
        for path, status in (("/metrics", 401), ("/v1/models", 401), ("/health", 200), ("/openapi.json", 200)):
            try:
                found = urllib.request.urlopen(server.url + path, timeout=30).status
            except urllib.error.HTTPError as error:
                found = error.code
                assert error.headers["WWW-Authenticate"] == "Bearer"
            assert found == status, path


def test_pages_of_other_origins_and_names_of_other_servers(served):
    config = ServerConfig(**QUICK, origins=("https://good.example",), hosts=("127.0.0.1",))
    with running({"seed:tiny": served["seed:tiny"]}, config) as server:
        assert post(server, CHAT, chat(), {"Origin": "https://bad.example"})[0] == 403
        status, _, headers = post(server, CHAT, chat(), {"Origin": "https://good.example"})
        assert status == 200 and headers["access-control-allow-origin"] == "https://good.example"
        assert post(server, CHAT, chat(), {"Origin": server.url})[0] == 200  # a page of its own
        status, answer, _ = post(server, CHAT, chat(), {"Host": "rebound.example"})
        assert (status, answer["error"]["code"]) == (421, "unknown_host")
    with running({"seed:tiny": served["seed:tiny"]}) as server:
        status, _, headers = post(server, CHAT, chat(), {"Origin": "https://good.example"})
        assert status == 403 and not any(name.startswith("access-control") for name in headers)


def test_metrics_count_what_was_done(served):
    with running({"seed:tiny": served["seed:tiny"]}) as server:
        answer = server.client().chat.completions.create(**chat(modalities=["image"], max_tokens=40))
        post(server, CHAT, chat(n=9))
        post(server, "/v2/x", {})
        time.sleep(0.1)
        text = urllib.request.urlopen(server.url + "/metrics", timeout=30).read().decode()
        figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert figures[f'rebus_requests_total{{route="{CHAT}",status="200"}}'] == "1.0"
        assert figures[f'rebus_requests_total{{route="{CHAT}",status="400"}}'] == "1.0"
        assert figures['rebus_images_drawn_total{model="seed:tiny"}'] == "1.0"
        words = float(figures['rebus_tokens_total{kind="written",model="seed:tiny"}'])
        assert words == answer.usage.completion_tokens
        assert figures['rebus_busy_rows{worker="seed:tiny"}'] == figures['rebus_waiting{worker="seed:tiny"}'] == "0.0"
        assert 'rebus_requests_total{route="none",status="404"}' in figures  # no label for every path that is tried


def test_a_server_whose_threads_are_gone_says_so(endless):
    system, _ = endless
    with running({"toy": system}) as server:
        assert urllib.request.urlopen(server.url + "/health", timeout=30).status == 200
        server.app.state.models.close()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(server.url + "/health", timeout=30)
