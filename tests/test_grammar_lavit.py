"""LaVIT's spelling: what is laid out, learned and allowed, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rebus.document import Box, Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.grammar import Allow, Force, Template
from rebus.mini.llm import SPECIAL_BYTES
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.spelling import LavitGrammarConfig, mini
from rebus.visual import Codes, Features, Patches

SOURCE = "lavit:test 1"
CONFIG = mini(262, 64, 16, fewest=2, most=5)
PUBLISHED = LavitGrammarConfig(codes=64, patches=16, fewest=2, most=5, begin_image=262, end_image=263, first_code=264)
BEGIN, END, FIRST = 262, 263, 264


def grammar(config: LavitGrammarConfig = CONFIG) -> LavitGrammar:
    return LavitGrammar(ByteTokenizer(SPECIAL_BYTES), config, SOURCE)


def patches(kept: int = 3, *, count: int = 16, source: str = SOURCE) -> Patches:
    return Patches(torch.zeros(count, 4), torch.arange(count) < kept, source)


def codes(*ids: int, source: str = SOURCE) -> Codes:
    return Codes(torch.tensor(ids, dtype=torch.int64), source)


READ = Image(understood=patches(3), generated=codes(7, 8, 9))
DRAWN = Image(generated=codes(1, 2))


def image_words(*ids: int) -> list[int]:
    return [BEGIN, *(FIRST + i for i in ids), END]


# ------------------------------------------------------------------------------------------------ laying out


def test_an_image_that_is_read_is_its_codes_with_vectors_over_them() -> None:
    sequence = grammar().serialize(Document((user(READ, "What?"), assistant("A cat."))), template="plain", loss="all")
    ids = sequence.ids
    assert ids[1:6] == image_words(7, 8, 9)
    assert sequence.input_spans == [(2, 5)] and sequence.inputs == [READ.understood]
    assert all(sequence.target)


def test_the_loss_on_read_images_is_a_choice_and_needs_their_codes() -> None:
    document = Document((user(READ), assistant("A cat.")))

    def learned(config: LavitGrammarConfig, document: Document) -> list[bool]:
        return grammar(config).serialize(document, template="plain", loss="paper").target

    assert all(learned(CONFIG, document))
    silent = learned(replace(CONFIG, visual_loss=False), document)
    assert silent[:6] == [True, True, False, False, False, False] and all(silent[6:])
    for other in (None, codes(7, 8), codes(1, 2, 3, source="other")):  # none, of another choice, of another tokenizer
        image = Image(understood=patches(3), generated=other)
        sequence = grammar().serialize(Document((user(image), assistant("A cat."))), template="plain", loss="paper")
        assert sequence.ids[1:6] == [BEGIN] * 4 + [END] and sequence.input_spans == [(2, 5)]
        assert sequence.target == [True, True, False, False, False, True] + [True] * 7
    reply = grammar().serialize(document)
    assert not any(reply.target[: reply.ids.index(END) + 1])  # of a question nothing is learned


def test_an_image_that_is_written_is_learned_codes() -> None:
    sequence = grammar().serialize(Document((user("Draw."), assistant(DRAWN))))
    at = sequence.ids.index(BEGIN)
    assert sequence.ids[at : at + 4] == image_words(1, 2) and all(sequence.target[at : at + 4])
    assert not sequence.input_spans
    again = grammar().serialize(Document((user(Image(understood=codes(4, 5))),)), template="plain")
    assert again.ids[1:5] == image_words(4, 5) and not again.input_spans  # codes can be read too


@pytest.mark.parametrize(
    ("config", "spans", "words"),
    [
        (CONFIG, [], image_words(7, 8, 9)),
        (replace(CONFIG, wish_marks=False), [], image_words(7, 8, 9)[1:-1]),
        (replace(CONFIG, wish="vectors"), [(1, 4)], image_words(7, 8, 9)),
    ],
)
def test_the_images_of_a_wish(config: LavitGrammarConfig, spans: list[Any], words: list[int]) -> None:
    bare = replace(config, chat=Template())
    for document, reply in (
        (Document((user(READ, READ, " and snow"),)), "image"),
        (Document((user(READ, READ, " and snow"), assistant(DRAWN))), None),
    ):
        sequence = grammar(bare).serialize(document, reply=reply)
        assert sequence.ids[: 2 * len(words)] == words * 2 and sequence.input_spans[:1] == spans[:1]
    asked = grammar(bare).serialize(Document((user(READ, "What?"),)), reply="text")
    assert asked.input_spans == [(1, 4)]


def test_the_published_templates_have_nothing_around_messages_but_a_question() -> None:
    spelled = grammar(PUBLISHED)

    def ids(document: Document, reply: Any) -> list[int]:
        return spelled.serialize(document, reply=reply).ids

    assert ids(Document((user(READ),)), "text") == image_words(7, 8, 9)
    asked = ids(Document((user(READ, "What?"),)), "text")
    assert asked == [*image_words(7, 8, 9), *b"Question: What? Answer:"]
    assert ids(Document((user("A cat."),)), "image") == list(b"A cat.")
    assert ids(Document(()), "image") == [] == spelled.unconditional()
    whole = spelled.serialize(Document((user(READ), assistant("A cat."))), template="plain")
    assert whole.ids == [*image_words(7, 8, 9), *b"A cat.", 258]


# ------------------------------------------------------------------------------------------------ writing


def test_an_image_is_as_long_as_the_model_wants_within_bounds() -> None:
    spelled = grammar()
    for count in range(6):
        action = spelled.next([BEGIN, *[FIRST] * count], "any", 40)
        if count == 5:
            assert action == Force((END,))
            continue
        assert isinstance(action, Allow)
        assert action.mask_V[END] == (count >= 2) and action.mask_V[FIRST : FIRST + 64].all()
        assert action.mask_V.sum() == 64 + (count >= 2)
        assert action.first == (END if count >= 2 else None)
    published = grammar(PUBLISHED).next([BEGIN, FIRST, FIRST], "any", 40)
    assert isinstance(published, Allow) and published.mask_V[END] and published.first is None


def test_an_image_is_only_begun_when_it_can_be_finished_and_ends_where_the_reply_does() -> None:
    spelled = grammar()
    assert spelled.next([], "image", 4) == Force((BEGIN,))
    with pytest.raises(RebusError, match="at least 4 words, but only 3 are left"):
        spelled.next([], "image", 3)
    for left, begins in ((4, True), (3, False)):
        action = spelled.next([5], "any", left)
        assert isinstance(action, Allow) and bool(action.mask_V[BEGIN]) == begins
    assert spelled.next([BEGIN, FIRST, FIRST], "any", 1) == Force((END,))
    assert spelled.next([BEGIN, FIRST, END], "image", 9) == Force((spelled.special.eos,))
    action = spelled.next([], "text", 99)
    assert isinstance(action, Allow) and not action.mask_V[BEGIN:].any()


def test_a_reply_is_read_as_it_was_written() -> None:
    spelled = grammar()
    parts = spelled.read([*b"Here: ", *image_words(1, 2), *b"!", spelled.special.eos, *b"no more"])
    assert parts[0] == "Here: " and parts[2] == "!" and len(parts) == 3
    assert parts[1].generated.ids_N.tolist() == [1, 2] and parts[1].generated.source == SOURCE
    assert spelled.codes([0, BEGIN, FIRST + 5, 3, FIRST + 64, FIRST, END]) == [5, 0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*b"ab", BEGIN, FIRST, FIRST + 1], "at word 3 of the reply has 2 codes in 2 words and no end"),
        ([BEGIN, END], "has 0 codes in 0 words"),
        ([BEGIN, FIRST, 65, END], "has 1 codes in 2 words"),
    ],
)
def test_an_image_that_is_none_is_refused(words: list[int], says: str) -> None:
    with pytest.raises(RebusError, match=says):
        grammar().read(words)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image(understood=patches(0)), "16 patches and keeps 0 of 16"),
        (Image(understood=patches(3, count=17)), "17 patches and keeps 3 of 17"),
        (Image(understood=Patches(torch.zeros(16, 4), torch.ones(9, dtype=torch.bool), SOURCE)), "keeps 9 of 9"),
        (Image(understood=patches(3, source="lavit:other 2")), "has tokens of lavit:other 2"),
        (Image(understood=Features(torch.zeros(1, 2, 3), "x")), "is Features of x"),
        (Image(generated=codes()), "1 to 16 codes, but part 2 of message 1 has 0"),
        (Image(generated=codes(*range(17))), "1 to 16 codes, but part 2 of message 1 has 17"),
        (Image(generated=codes(3, 64)), "0 to 63, but part 2 of message 1 has 64"),
        (Image(generated=codes(-1)), "has -1"),
        (Image(generated=codes(3, source="seed:mini 5")), "has tokens of seed:mini 5"),
        (Box(0.5, 0.5, 1, 1), "no words for boxes"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(image: Any, says: str) -> None:
    with pytest.raises(RebusError, match=says):
        grammar().serialize(Document((user("a", image),)))


def test_pixels_alone_are_refused() -> None:
    import PIL.Image

    with pytest.raises(RebusError, match="part 1 of message 1 has pixels only"):
        grammar().serialize(Document((user(Image(PIL.Image.new("RGB", (4, 4)))),)))


@pytest.mark.parametrize(("fewest", "most"), [(0, 5), (6, 5), (2, 17)])
def test_bounds_that_cannot_be_are_refused(fewest: int, most: int) -> None:
    with pytest.raises(RebusError, match=f"these are {fewest}, {most} and 16"):
        grammar(replace(CONFIG, fewest=fewest, most=most))
