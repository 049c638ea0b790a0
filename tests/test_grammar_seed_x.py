"""SEED-X's spelling: what is laid out, learned and allowed, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rebus.document import Box, Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.grammar import Allow, Force
from rebus.mini.llm import SPECIAL_BYTES
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.papers.seed_x.boxes import box_words, read_box, split_boxes
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.spelling import (
    EDIT,
    INSTRUCT,
    QUESTION,
    SeedXGrammarConfig,
    added_tokens,
    after_words,
    from_added_tokens,
    mini,
    new_words,
)
from rebus.visual import Codes, Features

SOURCE = "seed_x:test 1"
CONFIG = mini(262, 3, vectors=9, context=200, locations=8)
PUBLISHED = replace(after_words(262, 3, 8), vectors=9)
SLOTS = [262, 263, 264]
BEGIN, END, PATCH, PATCH_END, LOCATION = 265, 266, 267, 268, 269
BOX, BOX_END = 277, 278


def grammar(config: SeedXGrammarConfig = CONFIG) -> SeedXGrammar:
    return SeedXGrammar(ByteTokenizer(SPECIAL_BYTES), config, SOURCE)


def features(views: int = 1, *, count: int = 9, source: str = SOURCE, places: int | None = None) -> Features:
    return Features(torch.zeros(views, count, 4), source, torch.zeros(views if places is None else places, 2))


def target(count: int = 3, source: str = SOURCE) -> Features:
    return Features(torch.zeros(1, count, 4), source)


READ, DRAWN = Image(understood=features(3)), Image(generated=target())
VIEW = [BEGIN, *SLOTS, END]


def written(config: SeedXGrammarConfig, document: Document, **options: Any) -> str:
    """The words as text, special ones by name."""
    one = grammar(config)
    names = {word: name for name, word in (*one.text.specials.items(), *added_tokens(config).items())}
    return "".join(names.get(word) or chr(word) for word in one.serialize(document, **options).ids)


# ------------------------------------------------------------------------------------------------ laying out


def test_views_stand_in_order_the_whole_last_and_nothing_of_them_is_learned() -> None:
    one = grammar()
    for loss in ("reply", "all", "paper"):
        sequence = one.serialize(Document((user(READ, "What?"), assistant("A cat."))), template="plain", loss=loss)
        tile = [PATCH, *SLOTS, PATCH_END]
        assert sequence.ids[1:16] == [*tile, *tile, *VIEW]
        assert sequence.input_spans == [(2, 5), (7, 10), (12, 15)] and not sequence.output_spans
        assert [view.x_WNC.shape for view in sequence.inputs] == [(1, 9, 4)] * 3
        assert not any(sequence.target[1:16]) and all(sequence.target[21:])
        assert sequence.target[16:21] == [loss == "all"] * 5


def test_of_a_drawn_image_the_opening_mark_alone_is_learned() -> None:
    sequence = grammar().serialize(Document((user("Draw."), assistant("Here:", DRAWN, "!"))), template="plain")
    at = sequence.ids.index(BEGIN)
    assert sequence.ids[at : at + 5] == VIEW and sequence.output_spans == [(at + 1, at + 4)]
    assert sequence.target[at : at + 5] == [True, False, False, False, False]
    assert sequence.outputs == [DRAWN.generated] and all(sequence.target[at + 5 :])


def test_images_of_past_replies_are_read_and_those_of_whole_documents_drawn() -> None:
    both = Image(understood=features(2), generated=target())
    document = Document((user("Red."), assistant(both), user("Blue.")))
    whole, past = grammar().serialize(document), grammar().serialize(document, reply="image")
    assert len(whole.output_spans) == 1 and not whole.input_spans
    assert len(past.input_spans) == 2 and not past.output_spans
    # one that a next turn is to see, in training too, has no features to be drawn by
    seen = Document((user("Red."), assistant(Image(understood=features(2))), user("Blue."), assistant(DRAWN)))
    sequence = grammar().serialize(seen)
    assert len(sequence.input_spans) == 2 and len(sequence.output_spans) == 1


def test_several_images_of_a_turn_and_turns_without_any() -> None:
    document = Document((user(READ, "and", Image(understood=features(1)), "?"), assistant("Yes."), user("Why?")))
    sequence = grammar().serialize(document, reply="text")
    assert len(sequence.input_spans) == 4
    assert "".join(map(chr, (word for word in sequence.ids if word < 256))).count("and") == 1


@pytest.mark.parametrize(
    ("chat", "document", "options", "want"),
    [
        (
            INSTRUCT,
            Document((user("Hi."), assistant("Yes."), user("Go."), assistant("Ok."))),
            {},
            "<s>[INST] Hi. [/INST]\nYes.\n[INST] Go. [/INST]\nOk.</s>",
        ),
        (
            INSTRUCT,
            Document((user("A cat"),)),
            {"reply": "image"},
            "<s>[INST] Generate an image: A cat [/INST]\n",
        ),
        (
            INSTRUCT,
            Document((user("A cat"), assistant("Here."), user("Why?"))),
            {"reply": "text"},
            "<s>[INST] A cat [/INST]\nHere.\n[INST] Why? [/INST]\n",
        ),
        (
            INSTRUCT,
            Document((user(Image(understood=features(1)), "Red"),)),
            {"reply": "image"},
            "<s>[INST] <img><img_00000><img_00001><img_00002></img>Red [/INST]\n",
        ),
        (EDIT, Document((user("Red"),)), {"reply": "image"}, "<s>[INST] Red [/INST]\n"),
        (
            QUESTION,
            Document((user(Image(understood=features(2)), "What?"),)),
            {"reply": "text"},
            "<s>Question: <patch><img_00000><img_00001><img_00002></patch><img><img_00000><img_00001><img_00002></img>"
            "What?\nAnswer:",
        ),
        (
            INSTRUCT,
            Document((user("Where?"), assistant("Here ", Box(0.5, 0.25, 1.0, 0.0)))),
            {},
            "<s>[INST] Where? [/INST]\nHere <box_start><loc-4><loc-2><loc-7><loc-0><box_end></s>",
        ),
    ],
)
def test_templates(chat: Any, document: Document, options: dict[str, Any], want: str) -> None:
    assert written(replace(PUBLISHED, chat=chat), document, **options) == want


def test_the_mini_writes_chatml() -> None:
    document = Document((user("Hi."), assistant("Yes."), user("Go.")))
    want = (
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert written(CONFIG, document, reply="text") == want
    ends = grammar().serialize(Document((user("Hi."), assistant("Yes."))))
    assert ends.ids[-1] == grammar().special.eos and ends.target[-1]


# ------------------------------------------------------------------------------------------------ what may follow


def allowed(reply: list[int], modality: Any = "any", left: int = 50, config: SeedXGrammarConfig = CONFIG) -> set[int]:
    action = grammar(config).next(reply, modality, left)
    assert isinstance(action, Allow)
    return set(action.mask_V.nonzero()[:, 0].tolist())


def test_an_image_is_one_forced_run() -> None:
    one = grammar()
    assert one.next([], "image", 5) == Force(tuple(VIEW))
    assert one.next([72, BEGIN], "any", 4) == Force((*SLOTS, END))
    assert one.next([72, BEGIN, *SLOTS[:2]], "any", 2) == Force((SLOTS[2], END))
    assert one.next(VIEW, "image", 9) == Force((one.special.eos,))
    assert BEGIN in allowed(VIEW) and BEGIN not in allowed([], left=4) and BEGIN not in allowed([], "text")
    with pytest.raises(RebusError, match="writes an image in 5 words, but only 4 are left"):
        one.next([], "image", 4)


def test_a_box_has_exactly_four_locations() -> None:
    places = set(range(LOCATION, LOCATION + 8))
    reply = [72, BOX]
    for _ in range(4):
        assert allowed(reply, "text") == places
        reply.append(LOCATION + 1)
    assert grammar().next(reply, "text", 1) == Force((BOX_END,))
    assert not allowed([*reply, BOX_END]) & places and BOX in allowed([*reply, BOX_END])
    assert BOX not in allowed([], left=5) and BOX in allowed([], left=6)
    text = allowed([])
    assert not text & {*SLOTS, END, PATCH, PATCH_END, BOX_END, *places} and grammar().special.eos in text


def test_free_replies_may_hold_anything_but_the_inside_of_an_image() -> None:
    free = replace(CONFIG, replies="free")
    everything = set(range(grammar().vocabulary))
    assert allowed([], left=1, config=free) == everything - {*SLOTS, END}
    assert allowed([72, BOX], "text", config=free) == everything - {*SLOTS, END, BEGIN}
    assert grammar(free).next([BEGIN], "any", 2) == Force(tuple(SLOTS[:2]))  # cut off, where no room is left
    assert not grammar(free).special.spans


def test_a_reply_is_read_as_it_was_written() -> None:
    one, box = grammar(), Box(0.5, 0.25, 0.875, 0.125)
    document = Document((user("Go."), assistant("A ", box, " and ", DRAWN, ".")))
    prompt = one.serialize(Document((user("Go."),)), reply="any")
    parts = one.read(one.serialize(document).ids[len(prompt) :])
    assert parts[:3] == ["A ", box, " and "] and isinstance(parts[3], Image) and parts[4:] == ["."]
    assert parts[3].generated.x_WNC.shape == (1, 3, 0)


# ------------------------------------------------------------------------------------------------ boxes


def test_boxes_are_words_and_text() -> None:
    box = Box(0.5, 0.25, 0.125, 1.0)  # there is no word for a whole
    assert box_words(box, CONFIG) == [BOX, LOCATION + 4, LOCATION + 2, LOCATION + 1, LOCATION + 7, BOX_END]
    assert read_box(box_words(box, CONFIG), CONFIG) == Box(0.5, 0.25, 0.125, 0.875)
    for place in range(8):
        own = Box(place / 8, place / 8, place / 8, place / 8)
        assert read_box(box_words(own, CONFIG), CONFIG) == own
    text = "a <box_start><loc-1><loc-2>\n<loc-3><loc-0><box_end>b"
    assert split_boxes(text, 8) == ("a ", Box(0.125, 0.25, 0.375, 0.0), "b")
    assert split_boxes("no box", 8) == ("no box",)


@pytest.mark.parametrize("ids", [[1, 2, 3], [1, 2, 3, 4, 5], [], [1, 2, 3, 8]])
def test_a_box_of_another_number_of_locations_is_refused(ids: list[int]) -> None:
    words = [BOX, *(LOCATION + i for i in ids), BOX_END]
    with pytest.raises(RebusError, match="A box is four locations from 0 to 7"):
        grammar().read([72, *words])
    text = "<box_start>" + "".join(f"<loc-{i}>" for i in ids) + "<box_end>"
    with pytest.raises(RebusError, match="A box is four locations from 0 to 7"):
        split_boxes(text, 8)


def test_boxes_outside_the_image_are_refused() -> None:
    for values in ((-0.1, 0.5, 0.5, 0.5), (0.5, 0.5, 1.1, 0.5), (float("nan"), 0.5, 0.5, 0.5)):
        with pytest.raises(RebusError, match="fractions of the image's sides between 0 and 1"):
            Box(*values)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (Image(understood=Codes(torch.tensor([1]), SOURCE)), "as features, but part 2 of message 1 is Codes"),
        (
            Image(understood=features(source="other")),
            f"features of {SOURCE}, but part 2 of message 1 has features of other",
        ),
        (Image(understood=features(count=4)), r"views of 9 vectors .* part 2 of message 1 is \[1, 4, 4\]"),
        (Image(understood=features(2, places=1)), r"with places \[1, 2\]"),
        (Image(understood=Features(torch.zeros(0, 9, 4), SOURCE)), r"is \[0, 9, 4\] with places None"),
        (DRAWN, "vectors of its views, but part 2 of message 1 has none"),
    ],
)
def test_images_that_cannot_be_read_are_refused(image: Image, match: str) -> None:
    with pytest.raises(RebusError, match=match):
        grammar().serialize(Document((user("Look:", image),)), reply="text")


def test_images_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(RebusError, match=r"from 3 vectors, but part 1 of message 2 is \[1, 9\]"):
        grammar().serialize(Document((user("Draw."), assistant(Image(generated=target(9))))))
    with pytest.raises(RebusError, match="from its pixels, but part 1 of message 2"):
        grammar().serialize(Document((user("Draw."), assistant(DRAWN), user("Again."))), reply="any")


def test_more_views_than_the_context_holds_are_refused() -> None:
    many = Image(understood=features(45))
    with pytest.raises(RebusError, match=r"225 of them for 45 views of 1 images, but this model reads 200"):
        grammar().serialize(Document((user(many, "What?"),)), reply="text")


def test_replies_without_an_end_are_refused() -> None:
    for words in ([BEGIN, *SLOTS], [BEGIN, SLOTS[0], END], [BEGIN]):
        with pytest.raises(RebusError, match="3 slots between two marks, but the image at word 2"):
            grammar().read([72, *words])
    with pytest.raises(RebusError, match="A box is four locations"):
        grammar().read([BOX, LOCATION])


# ------------------------------------------------------------------------------------------------ vocabularies


def test_the_published_vocabulary() -> None:
    config = SeedXGrammarConfig()
    added = added_tokens(config)
    assert len(added) == 330 and sorted(added.values()) == list(range(32000, 32330))
    assert (added["<img_00099>"], added["<img>"], added["</patch>"], added["<loc-223>"]) == (32099, 32100, 32103, 32327)
    assert (added["<box_start>"], added["<box_end>"]) == (32328, 32329)
    assert from_added_tokens(added) == config
    assert new_words(64) == 64 + 224 + 6


def test_added_tokens_of_another_model_are_refused() -> None:
    added = added_tokens(SeedXGrammarConfig())
    with pytest.raises(RebusError, match="2 are missing .<loc-7>, </img> …"):
        from_added_tokens({k: v for k, v in added.items() if k not in ("</img>", "<loc-7>")})
    with pytest.raises(RebusError, match="<loc-9> has id 3 after <loc-0>"):
        from_added_tokens({**added, "<loc-9>": 3})
