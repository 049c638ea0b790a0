"""SEED's spelling: the official strings, ids, refusals, and what may follow what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rebus.document import Box, Document, Image, Message, assistant, user
from rebus.errors import RebusError
from rebus.grammar import Allow, Force, Writer, special_id
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.spelling import SeedGrammarConfig, after_words, from_added_tokens, mini, official
from rebus.visual import Codes, Features

TEXT = ByteTokenizer()
SMOL = ByteTokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


def image(first: int = 0, count: int = 32, source: str = "seed") -> Image:
    return Image(understood=Codes(torch.arange(first, first + count), source))


def grammar(config: SeedGrammarConfig | None = None, text: ByteTokenizer = TEXT) -> SeedGrammar:
    return SeedGrammar(text, config or after_words(TEXT.words, 8192), "seed")


def shown(grammar: SeedGrammar, ids: list[int]) -> str:
    """Words as the golden file writes them."""
    first, names = grammar.config.first_code, {i: name for name, i in grammar.text.specials.items()}
    names |= {grammar.special.begin_image: "<img>", grammar.special.end_image: "</img>"}
    return "".join(names.get(i) or (f"<img_{i - first:05d}>" if i >= first else chr(i)) for i in ids)


def written(grammar: SeedGrammar, document: Document, **options) -> tuple[str, str]:
    """The whole string and what of it is learned."""
    sequence = grammar.serialize(document, **options)
    learned = [i for i, target in zip(sequence.ids, sequence.target, strict=True) if target]
    return shown(grammar, sequence.ids), shown(grammar, learned)


# ------------------------------------------------------------------------------------------------ templates


CODES = "".join(f"<img_{code:05d}>" for code in range(32))
CAT = Document((user(image(), "What is it?"), assistant("A cat."), user("Draw it."), assistant("Here.", image())))


def test_chat_templates():
    assert written(grammar(), CAT) == (
        f"<s>USER: <img>{CODES}</img>What is it?\nASSISTANT:A cat.\nUSER: Draw it.\nASSISTANT:Here.<img>{CODES}</img></s>",
        f"A cat.Here.<img>{CODES}</img></s>",
    )
    llama2 = replace(official("14b"), **vars_of(after_words(TEXT.words, 8192)))
    assert written(grammar(llama2), CAT)[0] == (
        f"<s>[INST] <img>{CODES}</img>What is it? [/INST]\nA cat.\n[INST] Draw it. [/INST]\nHere.<img>{CODES}</img></s>"
    )
    smol = grammar(mini(SMOL.words, 64), SMOL)
    whole, learned = written(smol, Document((Message("system", ("Be kind.",)), *CAT.messages)))
    assert whole == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        f"<|im_start|>user\n<img>{CODES}</img>What is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        f"<|im_start|>user\nDraw it.<|im_end|>\n<|im_start|>assistant\nHere.<img>{CODES}</img><|im_end|>"
    )
    assert learned == f"A cat.<|im_end|>Here.<img>{CODES}</img><|im_end|>"


def vars_of(config: SeedGrammarConfig) -> dict:
    return {name: getattr(config, name) for name in ("first_code", "begin_image", "end_image")}


@pytest.mark.parametrize("modality", ["any", "text", "image"])
def test_an_open_reply_is_the_closed_ones_beginning(modality):
    for one in (grammar(), grammar(mini(SMOL.words, 64), SMOL)):
        asked = Document(CAT.messages[:3])
        prompt = one.serialize(asked, reply=modality).ids
        assert one.serialize(CAT).ids[: len(prompt)] == prompt
        assert shown(one, prompt).endswith(("ASSISTANT:", "<|im_start|>assistant\n"))


def test_plain_template_and_losses():
    one, pair = grammar(), Document((user(image()), assistant("a cat")))
    assert written(one, pair, template="plain", loss="paper")[1] == f"<s><img>{CODES}</img>a cat</s>"
    assert written(one, pair, template="plain", loss="reply")[1] == "a cat</s>"
    assert written(one, pair, template="chat", loss="all")[1] == written(one, pair)[0]
    smol = grammar(mini(SMOL.words, 64), SMOL)
    assert written(smol, pair, template="plain")[0] == f"<|endoftext|><img>{CODES}</img>a cat<|im_end|>"


def test_the_first_paper_s_prompts():
    text = ByteTokenizer(("<pad>", "</s>"))
    first = grammar(replace(official("v1"), **vars_of(after_words(text.words, 8192))), text)
    caption = Document((user(image()), assistant("a cat")))
    assert written(first, caption, template="plain")[0] == f"</s><img>{CODES}</img>A photo of a cat</s>"
    drawing = Document((user("a cat"), assistant(image())))
    assert written(first, drawing, template="plain")[0] == f"</s>Generate an image a cat<img>{CODES}</img></s>"
    for document, modality in ((caption, "text"), (drawing, "image")):
        asked = Document(document.messages[:1])
        prompt = first.serialize(asked, reply=modality, template="plain").ids
        whole = first.serialize(document, template="plain").ids
        assert whole[: len(prompt)] == prompt
        assert len(whole) - len(prompt) == (6 if modality == "text" else 35)  # the reply itself and what ends it


def test_words_are_cut_the_same_whatever_is_learned():
    cuts = []

    class Noting(ByteTokenizer):
        def encode(self, text):
            cuts.append(text)
            return super().encode(text)

    one = grammar(text=Noting())
    for loss in ("all", "reply", "paper"):
        one.serialize(CAT, loss=loss)
    third = len(cuts) // 3
    assert cuts[:third] == cuts[third : 2 * third] == cuts[2 * third :]
    assert cuts[:third] == ["USER: ", "What is it?\nASSISTANT:", "A cat.", "\nUSER: Draw it.\nASSISTANT:", "Here."]


def test_what_users_write_is_never_special():
    one = grammar()
    ids = one.serialize(Document((user("</s><s><img><img_00001></img>"),)), reply="any").ids
    assert ids.count(one.special.eos) == 0 and ids.count(one.special.bos) == 1
    assert max(ids) < TEXT.words


# ------------------------------------------------------------------------------------------------ ids


def test_official_ids():
    added = {f"<img_{code:05d}>": 32000 + code for code in range(8192)} | {"<img>": 40193, "</img>": 40192}
    config = from_added_tokens(added)
    assert (config.first_code, config.begin_image, config.end_image) == (32000, 40193, 40192)
    with pytest.raises(RebusError, match="2 are missing .<img_08190>, <img_08191>"):
        from_added_tokens({k: v for k, v in added.items() if k not in ("<img_08190>", "<img_08191>")})
    with pytest.raises(RebusError, match="<img_00007> has id 5 and not 32007"):
        from_added_tokens(added | {"<img_00007>": 5})
    assert official("8b").first_code == 32000 and official("14b").codes == 8192


def test_new_words_stand_behind_the_old():
    one = grammar(mini(SMOL.words, 64), SMOL)
    assert (one.special.begin_image, one.special.end_image, one.vocabulary) == (259 + 64, 259 + 65, 259 + 66)


def test_a_template_needs_its_words():
    with pytest.raises(RebusError, match=r"needs the special token '<\|im_end\|>', but the text tokenizer has <unk>"):
        grammar(mini(TEXT.words, 64))
    assert special_id(TEXT, "</s>") == 258
    writer = Writer(SMOL)
    writer.template("<|im_start|>user\n", False)
    assert writer.finish().ids == [257, *b"user\n"]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (image(count=31), "SEED writes an image as 32 codes, but part 2 of message 1 has 31"),
        (image(count=33), "SEED writes an image as 32 codes, but part 2 of message 1 has 33"),
        (image(first=8190), "0 to 8191, but part 2 of message 1 has 8192"),
        (image(source="seed mini 1234"), "codes of seed, but part 2 of message 1 has codes of seed mini 1234"),
        (Image(understood=Features(torch.zeros(1, 2, 3), "vit")), "part 2 of message 1 is Features of vit"),
        (Image(pixels=__import__("PIL.Image").Image.new("RGB", (4, 4))), "part 2 of message 1 has pixels only"),
        (Box(0, 0, 1, 1), "no words for boxes, but part 2 of message 1"),
    ],
)
def test_refusals_name_the_place(part, words):
    with pytest.raises(RebusError, match=words):
        grammar().serialize(Document((user("see", part),)))


# ------------------------------------------------------------------------------------------------ what may follow


@pytest.fixture(scope="module")
def small() -> SeedGrammar:
    return grammar(after_words(TEXT.words, 6, per_image=4))


def words_of(answer: Allow) -> set[int]:
    return set(answer.mask_V.nonzero()[:, 0].tolist())


def test_what_may_follow(small):
    begin, end, eos = small.special.begin_image, small.special.end_image, small.special.eos
    text, codes = {*range(256), eos}, set(range(259, 265))
    assert words_of(small.next([], "any", 6)) == text | {begin}
    assert words_of(small.next([], "any", 5)) == text  # an image takes six
    assert words_of(small.next([65], "text", 99)) == text
    assert words_of(small.next([65, begin], "any", 5)) == codes
    assert words_of(small.next([65, begin, 259, 260, 259], "any", 2)) == codes
    assert small.next([65, begin, 259, 260, 259, 259], "any", 1) == Force((end,))
    image = [begin, 259, 260, 259, 259, end]
    assert words_of(small.next([65, *image], "any", 9)) == text | {begin}
    assert small.next([], "image", 6) == Force((begin,))
    assert small.next(image, "image", 9) == Force((eos,))
    with pytest.raises(RebusError, match="6 words, but only 5 are left"):
        small.next([], "image", 5)


def test_reading_is_the_inverse_of_writing(small):
    for content in (["a"], [image(0, 4)], ["a ü", image(1, 4), image(2, 4), " b"], []):
        document = Document((Message("assistant", tuple(content)),))
        ids = small.serialize(document, template="plain").ids[1:]
        read = small.read(ids)
        assert [p if isinstance(p, str) else p.generated.ids_N.tolist() for p in read] == [
            p if isinstance(p, str) else p.understood.ids_N.tolist() for p in content
        ]
    begin, end = small.special.begin_image, small.special.end_image
    for broken in ([begin, 259, end], [begin, 259, 259, 259, 65, end], [begin, 259, 259, 259, 259]):
        with pytest.raises(RebusError, match="the image at word 2"):
            small.read([65, *broken])


def test_a_past_reply_is_read_as_it_was_written(small):
    two = Image(
        understood=Codes(torch.tensor([0, 0, 0, 0]), "seed"), generated=Codes(torch.tensor([5, 5, 5, 5]), "seed")
    )
    ids = small.serialize(Document((user(two), assistant(two)))).ids
    assert [i - 259 for i in ids if 259 <= i < 265] == [0, 0, 0, 0, 5, 5, 5, 5]


def test_codes_of_their_own_place():
    own = grammar(mini(SMOL.words, 12, per_image=4, per_query=True), SMOL)
    first = own.config.first_code
    reply = [own.special.begin_image]
    for place in range(4):
        allowed = own.next(reply, "image", 50)
        assert isinstance(allowed, Allow)
        assert allowed.mask_V.nonzero().flatten().tolist() == list(range(first + 3 * place, first + 3 * place + 3))
        reply.append(first + 3 * place + 1)
    assert own.next(reply, "image", 50) == Force((own.special.end_image,))
    reply.append(own.special.end_image)
    (drawn,) = own.read(reply)
    assert drawn.generated.ids_N.tolist() == [1, 4, 7, 10]
    wrong = Image(understood=Codes(torch.tensor([1, 4, 1, 10]), "seed"))
    with pytest.raises(RebusError, match="as number 3 are 6 to 8, but .* has 1"):
        own.serialize(Document((user(wrong),)))
