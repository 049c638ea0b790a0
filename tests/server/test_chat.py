"""/v1/chat/completions through the official client."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import PIL.Image
import pytest
from tests import tiny
from tests.serving import QUICK, ask, opened, running, url

from rebus.apps.server.settings import ServerConfig
from rebus.document import Box, Document, Image, user
from rebus.sampling import Sampling
from rebus.system import System
from rebus.visual import Progress

MODALITIES = {"text": ["text"], "image": ["image"], "any": ["text", "image"]}


def streamed(system: System, document: Document, modality: str, seed: int, **settings) -> list:
    """What the library says: text joined, pictures as pixels."""
    sampling = Sampling(**{"max_new_tokens": 60, "temperature": 0.7, **settings})
    parts: list = []
    for part in system.stream(document, modality=modality, sampling=sampling, generator=tiny.generator(seed)):
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif isinstance(part, Box):
            parts.append([part.cx, part.cy, part.w, part.h])
        elif not isinstance(part, Progress):
            parts.append(part.pixels.tobytes() if isinstance(part, Image) else part)
    return parts


def parts_of(content: list[dict]) -> list:
    """The same of a reply's content parts."""
    return [opened(p["image_url"]["url"]).tobytes() if p["type"] == "image_url" else p[p["type"]] for p in content]


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("model", ["seed:tiny", "seed_x:tiny"])
def test_a_reply_is_the_librarys(server, served, model, modality):
    document = Document((user(tiny.picture(), "What is this?"),))
    for seed in (1, 2):
        answer = server.client().chat.completions.create(
            model=model,
            messages=ask("What is this?", url()),
            modalities=MODALITIES[modality],
            seed=seed,
            extra_body={"image_output": "parts"},
        )
        said = parts_of(answer.choices[0].message.content)
        assert said == streamed(served[model], document, modality, seed)
        assert answer.usage.completion_tokens <= 60 and answer.usage.prompt_tokens > 10
        assert answer.seed == seed and answer.model == model


def test_pictures_leave_as_parts_as_images_and_as_segments(server):
    client, replies = server.client(), {}
    for output in ("parts", "images", "segments"):
        answer = client.chat.completions.create(
            model="seed:tiny",
            messages=ask("hi"),
            modalities=["text", "image"],
            seed=3,
            extra_body={"image_output": output},
        )
        replies[output] = answer.choices[0].message
    parts = replies["parts"].content
    assert {part["type"] for part in parts} == {"text", "image_url"}
    assert replies["segments"].segments == parts
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    assert replies["images"].content == replies["segments"].content == text
    images = [part for part in parts if part["type"] == "image_url"]
    shown = replies["images"].images
    assert [one["image_url"] for one in shown] == [one["image_url"] for one in images]
    first = parts.index(images[0])
    assert shown[0]["position"] == len("".join(part["text"] for part in parts[:first]))


@pytest.mark.parametrize("output", ["parts", "images", "segments"])
def test_a_stream_says_what_the_whole_says(server, output):
    asked = {"model": "seed:tiny", "messages": ask("hi"), "modalities": ["text", "image"], "seed": 4}
    client = server.client()
    whole = client.chat.completions.create(**asked, extra_body={"image_output": "parts"})
    chunks = list(
        client.chat.completions.create(
            **asked,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"image_output": output, "partial_images": 1},
        )
    )
    said, previews = [], 0
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        delta = choice.delta
        extra = delta.model_extra
        previews += "partial_image" in extra
        content = delta.content if isinstance(delta.content, list) else extra.get("segments") or []
        if isinstance(delta.content, str) and delta.content:
            content = [{"type": "text", "text": delta.content}]
        for part in [*content, *extra.get("images", [])]:
            if part["type"] == "text" and said and isinstance(said[-1], str):
                said[-1] += part["text"]
            else:
                said += parts_of([part])
    assert said == parts_of(whole.choices[0].message.content)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert previews == sum(not isinstance(part, str) for part in said)


def test_several_replies_to_one_request(server, served):
    asked = {"model": "seed:tiny", "messages": ask("hi"), "seed": 5, "n": 3}
    answer = server.client().chat.completions.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) == 3
    streams = ["", "", ""]
    for chunk in server.client().chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streams[choice.index] += choice.delta.content or ""
    assert streams == texts


def test_stop_and_length(server, served):
    client = server.client()
    asked = {"model": "seed:tiny", "messages": ask("hi"), "seed": 6}
    whole = client.chat.completions.create(**asked, max_tokens=40).choices[0]
    assert whole.finish_reason == "length"
    stop = whole.message.content[5:7]
    cut = client.chat.completions.create(**asked, max_tokens=40, stop=[stop, "never said"]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == whole.message.content[: whole.message.content.index(stop)]
    short = client.chat.completions.create(**asked, max_completion_tokens=3)
    assert short.usage.completion_tokens == 3


def test_a_conversation_goes_on_with_what_was_said(server, served):
    client = server.client()
    first = client.chat.completions.create(
        model="seed:tiny", messages=ask("draw"), modalities=["image"], seed=1
    ).choices[0].message  # fmt: skip
    again = client.chat.completions.create(
        model="seed:tiny",
        messages=[*ask("draw"), first.model_dump(), *ask("and now?")],
        seed=2,
        max_tokens=20,
    )
    pixels = opened(first.images[0]["image_url"]["url"])
    document = Document((user("draw"),)).add(
        type(user())("assistant", (Image(pixels),)), user("and now?")
    )  # fmt: skip
    (text,) = streamed(served["seed:tiny"], document, "text", 2, max_new_tokens=20)
    assert again.choices[0].message.content == text


def test_codes_serve_as_a_picture(server):
    client = server.client()
    codes = client.post("/tokenize", cast_to=object, body={"model": "seed:tiny", "images": [url()]})["data"][0]
    seen = [
        client.chat.completions.create(
            model="seed:tiny",
            messages=[{"role": "user", "content": [part, {"type": "text", "text": "?"}]}],
            seed=1,
        ).choices[0].message.content
        for part in (codes, {"type": "image_url", "image_url": {"url": url()}})
    ]  # fmt: skip
    assert seen[0] == seen[1]
    with pytest.raises(openai.BadRequestError, match="codes of"):
        content = [{**codes, "source": "another"}]
        client.chat.completions.create(model="seed:tiny", messages=[{"role": "user", "content": content}])


# ------------------------------------------------------------------------------------------------ the running batch


def test_replies_are_the_same_alone_and_among_others(server):
    client = server.client()

    def reply(number: int) -> list:
        time.sleep(0.02 * (number % 5))  # so that they join while others are under way
        answer = client.chat.completions.create(
            model="seed:tiny",
            messages=ask("hello" * (number % 3 + 1), *[url()] * (number % 2)),
            modalities=[["text"], ["image"], ["text", "image"]][number % 3],
            seed=number,
            extra_body={"image_output": "parts", "guidance": 1.0 + number % 2},
        )
        return parts_of(answer.choices[0].message.content)

    alone = [reply(number) for number in range(6)]
    before = _together(server)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(reply, range(6))) == alone
    assert _together(server) > before  # several were decoded in one step


def _together(server) -> float:
    """Steps so far in which two or more replies were decoded."""
    meters = server.app.state.models.meters
    counts = {s.labels["le"]: s.value for s in meters.batch.collect()[0].samples if "le" in s.labels}
    return counts["+Inf"] - counts["1.0"]


def test_text_goes_on_while_a_picture_is_drawn():
    system = tiny.fresh("seed")
    drawing, finish = threading.Event(), threading.Event()

    class Slow:
        settings = frozenset()

        def decode(self, tokens, *, sources, negatives, generators, sampling):
            drawing.set()
            assert finish.wait(60)
            yield Progress(1, 1)
            yield from (PIL.Image.new("RGB", (4, 4)) for _ in tokens)

    system.detokenizer = Slow()
    with running({"one": system}) as server, ThreadPoolExecutor(1) as pool:
        client = server.client()
        picture = pool.submit(client.images.generate, model="one", prompt="a house")
        assert drawing.wait(60)
        for seed in range(2):
            answer = client.chat.completions.create(model="one", messages=ask(), seed=seed, max_tokens=12)
            assert answer.choices[0].message.content
        assert not picture.done()
        finish.set()
        assert opened(picture.result().data[0].b64_json).size == (4, 4)


def test_adapters_of_one_base_take_turns(served):
    base = served["seed:tiny"]
    active: list[str] = []

    class Adapted(System):
        def decoder(self, **sizes):
            active.append(self.name)
            return super().decoder(**sizes)

    systems = {f"base+{name}": Adapted(base.grammar, base.lm, base.tokenizer, base.detokenizer) for name in "ab"}
    with running(systems) as server, ThreadPoolExecutor(6) as pool:
        client = server.client()

        def reply(number: int) -> str:
            name = "base+" + "ab"[number % 2]
            answer = client.chat.completions.create(model=name, messages=ask(), seed=number, max_tokens=10)
            return answer.choices[0].message.content

        together = list(pool.map(reply, range(6)))
        turns = len(active)
        assert together == [reply(number) for number in range(6)]
    assert set(active) == set(systems) and turns < 6  # some shared a turn


# ------------------------------------------------------------------------------------------------ who goes, what breaks


def wait_for(condition, seconds: float = 20) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(endless, stream):
    system, gate = endless
    with running({"toy": system}, ServerConfig(**{**QUICK, "rows": 1, "context": 100})) as server:
        engine = server.app.state.models.worker("toy")._engine
        client = server.client(http_client=openai.DefaultHttpxClient())
        gate.open.clear()
        asked = {"model": "toy", "messages": ask("x"), "max_tokens": 90}
        if stream:
            chunks = client.chat.completions.create(**asked, stream=True)
            next(chunks)
            chunks.response.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.3).chat.completions.create(**asked)
        client.close()
        worker = server.app.state.models.worker("toy")
        wait_for(lambda: worker._pending == 0)
        gate.open.set()
        wait_for(lambda: engine.idle)
        assert gate.reads < 20
        assert server.client().chat.completions.create(model="toy", messages=ask("y"), max_tokens=5)


def test_a_fault_ends_its_replies_and_no_others(endless):
    system, gate = endless
    read, broken = system.lm.read, [False]

    def breaking(*args):
        if broken[0]:
            broken[0] = False
            raise RuntimeError("a secret of ours")
        return read(*args)

    system.lm.read = breaking  # type: ignore[method-assign]
    with running({"toy": system}) as server:
        client = server.client()
        broken[0] = True
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="toy", messages=ask("x"), max_tokens=5)
        assert "secret" not in str(caught.value)
        broken[0] = True
        with pytest.raises(openai.APIError, match="made a mistake"):
            list(client.chat.completions.create(model="toy", messages=ask("x"), max_tokens=5, stream=True))
        answer = client.chat.completions.create(model="toy", messages=ask("x"), max_tokens=5, seed=1)
        assert len(answer.choices[0].message.content) == 5
        assert server.app.state.models.meters.faults._value.get() == 2


def test_sigterm_finishes_what_runs(endless):
    system, gate = endless
    with running({"toy": system}) as server, ThreadPoolExecutor(1) as pool:
        client = server.client()
        gate.open.clear()
        chunks = client.chat.completions.create(
            model="toy", messages=ask("x"), max_tokens=30, seed=1, stream=True, temperature=0
        )
        next(chunks)
        rest = pool.submit(list, chunks)
        server.server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.3)
        with pytest.raises(openai.APIConnectionError):
            server.client().models.list()
        gate.open.set()
        said = rest.result(timeout=30)
        assert sum(len(chunk.choices[0].delta.content or "") for chunk in said) == 30
        assert said[-1].choices[0].finish_reason == "length"
        server.thread.join(timeout=20)
        assert not server.thread.is_alive()
        assert not server.app.state.models.alive
