"""/v1/images, /v1/responses, /v1/tokenize and /v1/models through the official client."""

from __future__ import annotations

import base64

import openai
import pytest
from tests import tiny
from tests.serving import QUICK, opened, png, running, url

from rebus.apps.memory import recall
from rebus.apps.replay import draw_again
from rebus.apps.server.outgoing import Previews
from rebus.apps.server.settings import ServerConfig
from rebus.document import Document, Image, user
from rebus.images import decode_image, note_of
from rebus.sampling import Sampling
from rebus.visual import Progress

DRAW = [{"type": "image_generation"}]


def drawn(system, document: Document, seed: int) -> bytes:
    """The pixels of what the library draws."""
    sampling = Sampling(max_new_tokens=60, temperature=0.7)
    parts = system.stream(document, modality="image", sampling=sampling, generator=tiny.generator(seed))
    (image,) = [part for part in parts if isinstance(part, Image)]
    return image.pixels.tobytes()


# ------------------------------------------------------------------------------------------------ what leaves remembers


def remembered(server, **asked):
    """The PNG file of a picture that the server draws, or another file."""
    wished = {"prompt": "a cat", "response_format": "b64_json", "extra_body": {"seed": 5}, **asked}
    data = server.client().images.generate(**wished).data
    return base64.b64decode(data[0].b64_json)


@pytest.mark.parametrize("model", ["seed:tiny", "seed_x:tiny"])
def test_a_png_that_leaves_is_drawn_again_from_what_it_remembers(model, server, served):
    file = remembered(server, model=model)
    pixels = decode_image(file, name="a.png")
    tokens, how = recall(note_of(file), pixels)
    assert how.model == served[model].name and how.weights == served[model].weights
    *_, again = draw_again(served[model], tokens, how)
    assert again.pixels.tobytes() == pixels.tobytes()


def test_other_files_and_sizes_remember_nothing(server):
    for asked in ({"output_format": "webp"}, {"size": "96x96"}):
        assert note_of(remembered(server, model="seed:tiny", **asked)) is None


def test_chat_and_responses_remember_too(server):
    client = server.client()
    said = client.chat.completions.create(
        model="seed:tiny", messages=[{"role": "user", "content": "a cat"}], modalities=["image"], seed=1
    )
    (part,) = (part for part in said.choices[0].message.model_extra["images"])
    assert note_of(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
    asked = client.responses.create(model="seed:tiny", input="a cat", tools=DRAW, tool_choice=DRAW[0])
    (call,) = (item for item in asked.output if item.type == "image_generation_call")
    assert note_of(base64.b64decode(call.result))


# ------------------------------------------------------------------------------------------------ models and codes


def test_models(server):
    client = server.client()
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["seed:tiny", "seed_x:tiny"]
    assert not found["seed:tiny"].edits and found["seed_x:tiny"].edits
    assert client.models.retrieve("seed:tiny") == found["seed:tiny"]
    with pytest.raises(openai.NotFoundError, match="has seed:tiny, seed_x:tiny"):
        client.models.retrieve("seed:mini")


def test_codes_there_and_back(server, served):
    client, system = server.client(), served["seed:tiny"]
    asked = {"model": "seed:tiny", "images": [url(), url(png((0, 90, 0)))[22:]]}  # the second without `data:`
    data = client.post("/tokenize", cast_to=object, body=asked)["data"]
    pictures = [tiny.picture(), tiny.picture((0, 90, 0))]
    expected = system.tokenizer.encode(pictures, {"generation"}, generators=[tiny.generator(0)] * 2)
    assert [item["codes"] for item in data] == [image.generated.ids_N.tolist() for image in expected]
    back = client.post("/detokenize", cast_to=object, body={"model": "seed:tiny", "images": data, "seed": 4})["data"]
    for item, image in zip(back, expected, strict=True):
        (pixels,) = [
            one for one in system.draw([image], [None], [tiny.generator(4)], Sampling().image) if isinstance(one, Image)
        ]
        assert opened(item["b64_json"]).tobytes() == pixels.pixels.tobytes()
    with pytest.raises(openai.BadRequestError, match="only codes can be written down"):
        client.post("/tokenize", cast_to=object, body={"model": "seed_x:tiny", "images": [url()]})
    for codes, words in (([1, 2], "writes an image as 8 codes"), ([10**6] * 8, "codes of 0 to")):
        broken = [{"source": data[0]["source"], "codes": codes}]
        with pytest.raises(openai.BadRequestError, match=words):
            client.post("/detokenize", cast_to=object, body={"model": "seed:tiny", "images": broken})


# ------------------------------------------------------------------------------------------------ images


def test_generations(server, served):
    client = server.client()
    found = client.images.generate(model="seed:tiny", prompt="a red car", n=2, extra_body={"seed": 3})
    assert len(found.data) == 2 and found.usage.output_tokens == 2 * (8 + 3)
    one = client.images.generate(model="seed:tiny", prompt="a red car", extra_body={"seed": 3})
    expected = drawn(served["seed:tiny"], Document((user("Draw a red car."),)), 3)
    assert opened(one.data[0].b64_json).tobytes() == expected
    sized = client.images.generate(
        model="seed:tiny", prompt="a red car", size="48x24", response_format="url", extra_body={"seed": 3}
    )
    assert sized.data[0].url.startswith("data:image/png;base64,") and opened(sized.data[0].url).size == (48, 24)
    web = client.images.generate(model="seed:tiny", prompt="a red car", output_format="webp")
    assert opened(web.data[0].b64_json).format == "WEBP"


def test_generations_stream_with_previews(server):
    client = server.client()
    asked = {"model": "seed:tiny", "prompt": "a house", "extra_body": {"seed": 1, "drawing": {"steps": 6}}}
    events = list(client.images.generate(**asked, stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1]
    whole = client.images.generate(**asked)
    assert events[-1].b64_json == whole.data[0].b64_json


def test_previews_are_spread_evenly():
    for count, steps, expected in (
        (3, 12, [3, 6, 9]), (2, 12, [4, 8]), (1, 5, [3]), (0, 9, []), (3, 2, [1]), (3, 4, [1, 2, 3]),
    ):  # fmt: skip
        previews, picture = Previews(count), tiny.picture().pixels
        assert [n for n in range(1, steps + 1) if previews.wants(Progress(n, steps, picture))] == expected
    assert not Previews(3).wants(Progress(1, 2, None))


def test_edits(server, served):
    client = server.client()
    document = Document((user(tiny.picture(), "make it blue"),))
    asked = {"model": "seed_x:tiny", "prompt": "make it blue", "extra_body": {"seed": 2}}
    found = client.images.edit(image=png(), **asked)
    assert opened(found.data[0].b64_json).tobytes() == drawn(served["seed_x:tiny"], document, 2)
    several = client.images.edit(image=[png((0, 99, 0)), png()], n=2, size="16x16", **asked)
    assert [opened(one.b64_json).size for one in several.data] == [(16, 16)] * 2
    events = list(client.images.edit(image=png(), stream=True, partial_images=1, **asked))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[-1].b64_json == found.data[0].b64_json
    once = {**asked, "extra_body": {"seed": 2, "steps": 1}}  # one step, before which there is nothing to show
    events = list(client.images.edit(image=png(), stream=True, partial_images=1, **once))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_edits_that_cannot_be(server):
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="draws every picture anew") as caught:
        client.images.edit(model="seed:tiny", prompt="make it blue", image=png())
    assert caught.value.code == "unsupported"
    for asked, words in (
        ({"image": png(), "mask": png()}, "Masks are not used"),
        ({"image": b"no picture"}, "is not a picture"),
        ({"image": png(), "n": 9}, "9 replies"),
        ({"image": png(), "extra_body": {"colour": "red"}}, "Unrecognized request argument supplied: colour"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.images.edit(model="seed_x:tiny", prompt="make it blue", **asked)
    with pytest.raises(openai.NotFoundError):
        client.images.edit(model="nothing", prompt="make it blue", image=png())


# ------------------------------------------------------------------------------------------------ responses


def test_pictures_are_drawn_and_changed_turn_by_turn(server, served):
    client, system = server.client(), served["seed_x:tiny"]
    must = {"model": "seed_x:tiny", "tools": DRAW, "tool_choice": {"type": "image_generation"}}
    first = client.responses.create(input="a red house", **must, extra_body={"seed": 1})
    (call,) = first.output
    assert call.type == "image_generation_call" and call.status == first.status == "completed"
    document = Document((user("a red house"),))
    assert opened(call.result).tobytes() == drawn(system, document, 1)

    second = client.responses.create(
        input="make it blue", previous_response_id=first.id, **must, extra_body={"seed": 2}
    )
    document = document.add(type(user())("assistant", (Image(opened(call.result)),)), user("make it blue"))
    assert opened(second.output[0].result).tobytes() == drawn(system, document, 2)

    # the same by sending the conversation, with the picture or with its name
    for shown in ({"id": "other", "result": call.result}, {"id": call.id}):
        again = client.responses.create(
            input=[
                {"role": "user", "content": [{"type": "input_text", "text": "a red house"}]},
                {"type": "image_generation_call", **shown},
                {"role": "user", "content": "make it blue"},
            ] if "result" in shown else "make it blue",
            **({} if "result" in shown else {"previous_response_id": first.id}),
            **must,
            extra_body={"seed": 2},
        )  # fmt: skip
        assert again.output[0].result == second.output[0].result
    assert client.responses.retrieve(second.id).output[0].result == second.output[0].result
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError, match="no such response"):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="seed:tiny", input="x", previous_response_id=second.id)


@pytest.mark.parametrize("tools", [[], DRAW])
def test_a_response_as_a_stream(server, tools):
    client = server.client()
    tools = [{**tool, "partial_images": 1} for tool in tools]
    asked = {"model": "seed:tiny", "input": "hi", "tools": tools, "max_output_tokens": 30, "extra_body": {"seed": 9}}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == whole.status == "incomplete"
    assert events[-1].response.output_text == whole.output_text
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text
    pictures = [item.result for item in whole.output if item.type == "image_generation_call"]
    done = [e.item for e in events if e.type == "response.output_item.done"]
    assert [item.result for item in done if item.type == "image_generation_call"] == pictures
    assert bool(pictures) == bool(tools)
    if tools:
        assert kinds.count("image_generation_call.partial_image") == len(pictures)
        begins = [e for e in events if e.type == "response.output_item.added"]
        assert [e.output_index for e in begins] == list(range(len(whole.output)))


def test_responses_are_kept_for_their_owner_and_not_for_ever():
    config = ServerConfig(**QUICK, keys=("one", "two"), responses=2)
    with running({"seed:tiny": tiny.fresh("seed")}, config) as server:
        mine, theirs = server.client("one"), server.client("two")
        asked = {"model": "seed:tiny", "input": "hi", "max_output_tokens": 3}
        first = mine.responses.create(**asked)
        assert mine.responses.retrieve(first.id).id == first.id
        with pytest.raises(openai.NotFoundError):
            theirs.responses.retrieve(first.id)
        forgotten = mine.responses.create(**asked, store=False)
        with pytest.raises(openai.NotFoundError):
            mine.responses.retrieve(forgotten.id)
        for _ in range(2):
            theirs.responses.create(**asked)
        with pytest.raises(openai.NotFoundError):
            mine.responses.retrieve(first.id)  # the oldest made room


def test_edit_is_refused_where_there_is_nothing_to_edit(server):
    client = server.client()
    for model in ("seed:tiny", "seed_x:tiny"):
        with pytest.raises(openai.BadRequestError, match="nothing to edit"):
            client.responses.create(model=model, input="blue", tools=[{"type": "image_generation", "action": "edit"}])


def test_a_setting_that_says_nothing_to_a_model_is_refused_before_it_draws(server):
    client = server.client()
    for model, told in (("seed:tiny", {"size": [32, 32]}), ("seed_x:tiny", {"codes": 2})):
        with pytest.raises(openai.BadRequestError, match="says nothing to its image decoder") as refused:
            client.images.generate(model=model, prompt="a house", extra_body={"seed": 1, "drawing": told})
        assert refused.value.param == "drawing"


def test_codes_that_cannot_be_left_out_are_an_error_that_says_so(server):
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="do not add up"):
        client.images.generate(model="seed:tiny", prompt="a house", extra_body={"seed": 1, "drawing": {"codes": 2}})
