"""The decoding loop: forced runs, hidden states, guidance, beams, rows that come and go; on the toy grammar."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests import tiny
from tests.toy import GRAMMAR, LM, PROJECTING, QUERIES, ToyGrammar, decode, prompt, scores

from rebus.beams import worth
from rebus.document import Document, user
from rebus.errors import RebusError
from rebus.generate import Decoder
from rebus.grammar import Force
from rebus.narrate import Finished, Span
from rebus.nn.running_sums import SummedWords
from rebus.sampling import Sampling, log_scores, restrict
from rebus.sequence import Sequence, collate
from rebus.system import System, encode

# ------------------------------------------------------------------------------------------------ runs and images


@pytest.mark.parametrize("modality", ["any", "image"])
def test_a_forced_run_equals_its_steps(modality):
    queries, letters = GRAMMAR.queries, "abcd"
    single = ToyGrammar(letters)
    single.next = (
        lambda reply, modality, left: (  # type: ignore[method-assign]
            Force(answer.run[:1]) if isinstance(answer := GRAMMAR.next(reply, modality, left), Force) else answer
        )
    )
    for seed in range(4):
        settings = {"lm": PROJECTING, "modality": modality, "temperature": 1.0, "seed": seed}
        runs, steps = decode(**settings), decode(grammar=single, **settings)
        assert runs[0].ids == steps[0].ids
        for a, b in zip(runs[1], steps[1], strict=True):
            if isinstance(a, Span):
                torch.testing.assert_close(a.hidden_ND, b.hidden_ND)
            else:
                assert a == b
        assert modality == "any" or queries == tuple(runs[0].ids[1:4])


@pytest.mark.parametrize(("beams", "seed"), [(1, 0), (1, 1), (1, 5), (3, 0)])
def test_hidden_states_are_those_at_the_queries(beams, seed):
    warmth = {"temperature": 1.0} if beams == 1 else {"beams": beams}
    for modality in ("any", "image"):
        reply, events = decode(PROJECTING, modality=modality, seed=seed, **warmth)
        ids = prompt().ids + reply.ids
        batch = collate([Sequence(ids, [False] * len(ids))])
        hidden = PROJECTING.hidden(PROJECTING.embed(batch), batch)[0]
        places = [i for i, word in enumerate(ids) if word == GRAMMAR.special.begin_image]
        spans = [event for event in events if isinstance(event, Span)]
        assert len(spans) == len(places) and (places or modality == "any")
        for span, place in zip(spans, places, strict=True):
            expected = hidden[place + 1 : place + 1 + QUERIES]
            torch.testing.assert_close(span.hidden_ND, expected, atol=2e-5, rtol=1e-4)
        text = "".join(event for event in events if isinstance(event, str))
        assert text == "".join(chr(word) for word in reply.ids if word < 256)


def test_an_image_at_the_end_of_the_room_is_still_whole():
    for lm in (LM, PROJECTING):
        reply, events = decode(lm, modality="image", max_new_tokens=QUERIES + 2)
        assert len(reply.ids) == QUERIES + 2 and isinstance(events[0], Span) and events[1] == Finished("length")


# ------------------------------------------------------------------------------------------------ guidance


def test_guidance_is_the_formula():
    chosen = ToyGrammar(forced=False)
    special = chosen.special
    reply, _ = decode(grammar=chosen, modality="image", guidance=3.0)
    assert reply.ids[0] == special.begin_image and reply.ids[-2:] == [special.end_image, special.eos]
    for place in range(1, 1 + QUERIES):
        given = scores(LM, prompt().ids + reply.ids[:place])[-1]
        free = scores(LM, [257, *reply.ids[:place]])[-1]
        expected = restrict(free + 3.0 * (given - free), chosen.allow(*chosen.queries).mask_V)
        assert reply.ids[place] == int(expected.argmax())
    logits = torch.randn(3, 9, generator=tiny.generator(0))
    torch.testing.assert_close(log_scores(logits[0], logits[1], 1.0), logits[0].log_softmax(-1))
    torch.testing.assert_close(log_scores(logits[0], logits[1], 0.0), logits[1].log_softmax(-1))


def test_guidance_starts_anew_with_every_image():
    chosen = ToyGrammar(letters="ab", forced=False)
    found = 0
    for seed in range(12):
        reply, _ = decode(
            grammar=chosen, guidance=2.0, max_new_tokens=24, temperature=9.0, image_temperature=0.0, seed=seed
        )
        begins = [i for i, word in enumerate(reply.ids) if word == chosen.special.begin_image]
        found += len(begins) > 1
        for begin in begins:
            for place in range(begin + 1, begin + 1 + QUERIES):
                given = scores(LM, prompt().ids + reply.ids[:place])[-1]
                free = scores(LM, [257, *reply.ids[begin:place]])[-1]
                guided = free + 2.0 * (given - free)
                assert reply.ids[place] == max(chosen.queries, key=lambda word, guided=guided: float(guided[word]))
    assert found


# ------------------------------------------------------------------------------------------------ beams


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
def test_a_wide_beam_finds_the_best_of_all(penalty):
    two = ToyGrammar(letters="ab")
    length, eos = 4, two.special.eos
    reply, events = decode(grammar=two, modality="text", max_new_tokens=length, beams=40, length_penalty=penalty)
    everything = [
        (*head, *tail)
        for n in range(length + 1)
        for head in itertools.product(b"ab", repeat=n)
        for tail in ([(eos,)] if n < length else [()])
    ]
    ids = prompt().ids
    values = {}
    for words in everything:
        given = scores(LM, [*ids, *words])[len(ids) - 1 : -1]
        total = sum(float(given[i, word]) for i, word in enumerate(words))
        values[words] = worth(total, len(words), penalty)
    best = max(values, key=values.__getitem__)
    assert tuple(reply.ids) == best
    assert worth(reply.score, len(reply.ids), penalty) == pytest.approx(values[best], abs=1e-3)
    assert "".join(events[:-1]) == GRAMMAR.text.decode(best)


def test_beams_find_likelier_replies_than_greed():
    gains = []
    for text in ("hello", "a", "zebra", "12", "quite long a text", "x y"):
        greedy, _ = decode(text=text, modality="text", max_new_tokens=8)
        searched, _ = decode(text=text, modality="text", max_new_tokens=8, beams=4, length_penalty=0.0)
        gains.append(searched.score - greedy.score)
    assert min(gains) > -1e-4 and max(gains) > 0


def test_beams_with_images_and_guidance_keep_their_rows_apart():
    chosen = ToyGrammar(letters="ab", forced=False)
    reply, events = decode(grammar=chosen, modality="any", max_new_tokens=14, beams=5, guidance=1.5)
    total, begin = 0.0, 0
    for place, word in enumerate(reply.ids):
        given = scores(LM, prompt().ids + reply.ids[:place])[-1]
        begin = place if word == chosen.special.begin_image else begin
        if word in chosen.queries:
            free = scores(LM, [257, *reply.ids[begin:place]])[-1]
            given = free + 1.5 * (given - free)
        total += 0.0 if word == chosen.special.end_image else float(given[word])
    assert reply.score == pytest.approx(total, abs=1e-2)
    assert isinstance(events[-1], Finished)


# ------------------------------------------------------------------------------------------------ rows that come and go


def test_rows_join_and_leave_while_others_go_on():
    texts = ["hello", "a", "quite a long prompt", "zz", "zz"]
    settings = {"temperature": 1.0, "max_new_tokens": 16}
    alone = [decode(text=text, seed=i, **settings)[0].ids for i, text in enumerate(texts)]
    decoder = Decoder(LM, GRAMMAR, rows=2, capacity=64)
    replies, waiting = [], list(enumerate(texts))
    while waiting or not decoder.idle:
        if waiting and decoder.free_rows:  # one at most between two steps, so that they are never in step
            i, text = waiting.pop(0)
            replies.append(
                decoder.add(prompt(text), modality="any", sampling=Sampling(**settings), generator=tiny.generator(i))
            )
        decoder.step()
    assert [reply.ids for reply in replies] == alone


def test_cancelling_frees_the_rows_and_disturbs_nobody():
    decoder = Decoder(LM, GRAMMAR, rows=3, capacity=64)
    settings = Sampling(max_new_tokens=16, temperature=1.0, min_new_tokens=15)
    one, two = (
        decoder.add(prompt(text), modality="text", sampling=settings, generator=tiny.generator(i))
        for i, text in enumerate(("hello", "other"))
    )
    decoder.step()
    decoder.cancel(one)
    decoder.cancel(one)  # leaving twice is leaving
    assert decoder.free_rows == 2
    three = decoder.add(prompt("third"), modality="text", sampling=settings, generator=tiny.generator(2))
    while not decoder.idle:
        decoder.step()
    for reply, text, seed in ((two, "other", 1), (three, "third", 2)):
        assert reply.ids == decode(text=text, modality="text", seed=seed, temperature=1.0, min_new_tokens=15)[0].ids


def test_no_room():
    decoder = Decoder(LM, GRAMMAR, rows=2, capacity=8)
    with pytest.raises(RebusError, match="needs 3 rows of the decoder, but 2 are free"):
        decoder.add(prompt(), modality="any", sampling=Sampling(beams=3))
    with pytest.raises(RebusError, match="has 21 words, but there is room for 8"):
        decoder.add(prompt("twenty letters long."), modality="any", sampling=Sampling())
    reply = decoder.add(prompt(), modality="text", sampling=Sampling(min_new_tokens=400))
    while not decoder.idle:
        decoder.step()
    assert len(prompt()) + len(reply.ids) == 8  # the reply ends where the room does
    long = Decoder(LM, GRAMMAR, rows=1, capacity=10**6)
    assert long.capacity == 128  # what the model was built for
    assert long.free_rows == 1


# ------------------------------------------------------------------------------------------------ systems


def test_best_of_keeps_what_the_scorer_likes():
    system = System(GRAMMAR, LM)
    documents = [Document((user("hello"),)), Document((user("a"),))]
    seen = []

    def longest(document, message):
        seen.append((document, message.text))
        return len(message.text)

    settings = Sampling(max_new_tokens=12, temperature=1.5, best_of=4)
    generators = [tiny.generator(1), tiny.generator(2)]
    best = system.generate(documents, modality="text", sampling=settings, generators=generators, scorer=longest)
    for document, message in zip(documents, best, strict=True):
        texts = [text for one, text in seen if one is document]
        assert len(texts) == 4 and len(set(texts)) > 1 and len(message.text) == max(map(len, texts))
    with pytest.raises(RebusError, match="without saying what is best"):
        system.generate(documents, sampling=settings)
    with pytest.raises(RebusError, match="2 documents and 1 generators"):
        system.generate(documents, generators=generators[:1])
    with pytest.raises(RebusError, match="cannot take back what it said"):
        next(system.stream(documents[0], sampling=settings))


def test_closing_a_stream_cancels():
    system = System(GRAMMAR, LM)
    made = []
    system.decoder = tiny.counted(system.decoder, made)  # type: ignore[method-assign]
    stream = system.stream(Document((user("hello"),)), modality="text", sampling=Sampling(min_new_tokens=400))
    assert isinstance(next(stream), str)
    stream.close()
    assert len(made) == 1 and made[0].idle and made[0].free_rows == 1


def test_images_come_from_the_output_projector_where_there_is_one():
    document = Document((user("hello"),))
    for lm, source in ((LM, "ids"), (PROJECTING, "hidden")):
        (message,) = System(GRAMMAR, lm).generate([document], modality="image")
        assert [image.generated.source for image in message.images] == [source]


# ------------------------------------------------------------------------------------------ codes that add up


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"beams": 3}], ids=["alone", "guided", "beams"])
@torch.inference_mode()
def test_codes_that_are_read_as_sums_are_so_while_they_are_written(settings):
    system = tiny.fresh("seed")
    grammar, llm = system.grammar, system.lm.llm
    llm.summed = SummedWords(grammar.config.first_code, grammar.config.codes)
    (document,) = encode(system.tokenizer, [tiny.documents()[2]], replies="generation")
    prompt = grammar.serialize(document, reply="image", template="chat")
    decoder = Decoder(system.lm, grammar, rows=6, capacity=len(prompt) + 40)
    reply = decoder.add(prompt, modality="image", sampling=Sampling(max_new_tokens=40, **settings))
    while not decoder.idle:
        decoder.step()

    def scores(words, last):
        ids_1L = torch.tensor([words])
        hidden_LD = llm.hidden(llm.embed(ids_1L), torch.arange(len(words))[None])[0]
        return log_scores(llm.logits(hidden_LD[-last:]))

    begin = grammar.special.begin_image
    start = reply.ids.index(begin) + 1
    codes, before = reply.ids[start : start + 8], prompt.ids + reply.ids[:start]
    told = scores(before + codes[:-1], len(codes))
    if "guidance" in settings:
        untold = scores([*grammar.unconditional(), begin, *codes[:-1]], len(codes))
        told = untold + 2.0 * (told - untold)
    free = slice(llm.summed.first, llm.summed.first + llm.summed.count)
    if "beams" not in settings:
        assert (told[:, free].argmax(-1) + llm.summed.first).tolist() == codes
        return
    scored = sum(float(told[place, code]) for place, code in enumerate(codes))
    assert math.isclose(reply.best.score, scored, rel_tol=1e-3)
