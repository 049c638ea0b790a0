"""The engine: a reply is the same alone and in a running batch, whenever it joined; systems on one engine take turns."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests import tiny
from tests.toy import GRAMMAR, LM, decode, prompt

from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.generate import Decoder
from rebus.narrate import Finished
from rebus.sampling import Sampling
from rebus.system import Dice, Engine, Job, System

TOY = System(GRAMMAR, LM, name="toy")


def job(text: str, seed: int = 0, system: System = TOY, **settings) -> Job:
    sampling = Sampling(**{"max_new_tokens": 16, "temperature": 1.0, **settings})
    return Job(system, prompt(text), "any", sampling, tiny.generator(seed))


def run(engine: Engine, joining: list[tuple[int, Job]]) -> dict[Job, list]:
    """What is said of each job, when each joins before the step of its number."""
    said: dict[Job, list] = {one: [] for _, one in joining}
    for step in itertools.count():
        for at, one in joining:
            if at == step:
                engine.join(one)
        if engine.idle and all(at <= step for at, _ in joining):
            return said
        for one, part in engine.step():
            said[one].append(part)
    raise AssertionError


def drain(engine: Engine) -> None:
    """Steps until nothing is left to do."""
    while not engine.idle:
        engine.step()


@pytest.mark.parametrize("paper", tiny.PAPERS)
def test_a_reply_is_the_same_alone_and_in_a_running_batch(paper):
    system = tiny.system(paper)
    cases = list(itertools.product(tiny.documents(), ("text", "any", "image"), (1.0, 2.0)))

    def jobs() -> list[Job]:
        made = []
        for number, (document, modality, guidance) in enumerate(cases):
            dice = Dice(tiny.generator(number))
            sampling = Sampling(max_new_tokens=40, temperature=1.0, guidance=guidance)
            words = system.prompts([document], [dice], "chat", modality)[0]
            made.append(Job(system, words, modality, sampling, dice.words))
        return made

    alone = [
        [part for parts in run(Engine(rows=2, capacity=300), [(0, one)]).values() for part in parts] for one in jobs()
    ]
    joining = [(3 * (number // 2) + number % 5, one) for number, one in enumerate(jobs())]
    together = run(Engine(rows=5, capacity=300), joining)
    for (_, one), before in zip(joining, alone, strict=True):
        assert same(together[one]) == same(before)
        assert together[one][-1] in (Finished("end"), Finished("length"))


def same(parts: list) -> list:
    """Parts in a form that can be compared: images by their codes, where they have any."""
    found = []
    for part in parts:
        ids = getattr(part.generated, "ids_N", None) if isinstance(part, Image) else None
        found.append(("image", None if ids is None else tuple(ids.tolist())) if isinstance(part, Image) else part)
    return found


def test_who_leaves_frees_its_rows_for_who_waits():
    engine = Engine(rows=2, capacity=64)
    stays, goes, waits = (
        job("hello", 0, min_new_tokens=15),
        job("a", 1, min_new_tokens=15),
        job("zz", 2, min_new_tokens=5),
    )
    for one in (stays, goes, waits):
        engine.join(one)
    engine.step()
    assert engine.waiting == [waits] and engine.busy_rows == 2
    engine.leave(goes)
    engine.leave(goes)  # leaving twice is leaving
    engine.step()
    assert not engine.waiting and engine.busy_rows == 2
    engine.leave(stays)
    drain(engine)
    assert engine.busy_rows == 0
    assert stays.reply is not None and len(stays.reply.ids) == 2
    assert waits.reply.ids == decode(text="zz", temperature=1.0, seed=2, min_new_tokens=5)[0].ids


def test_a_job_that_cannot_begin_disturbs_nobody():
    good, long, wide = job("hello", 3), job("x" * 70), job("hello", beams=3, temperature=0.0)
    said = run(Engine(rows=2, capacity=64), [(0, long), (0, wide), (0, good)])
    assert [type(part) for part in said[long]] == [type(part) for part in said[wide]] == [RebusError]
    assert "room for 64" in str(said[long][0]) and "needs 3 rows" in str(said[wide][0])
    assert good.reply.ids == decode(text="hello", temperature=1.0, seed=3)[0].ids


def test_systems_on_one_engine_take_turns_and_nobody_waits_for_ever():
    turns: list[str] = []

    class Noting(System):
        def decoder(self, **sizes):
            turns.append(self.name)
            return super().decoder(**sizes)

    one, two = Noting(GRAMMAR, LM, name="one"), Noting(GRAMMAR, LM, name="two")
    settings = {"min_new_tokens": 6, "max_new_tokens": 6}
    first = [job("a", n, one, **settings) for n in range(2)]
    other = [job("b", n, two, **settings) for n in range(2)]
    late = [job("c", n, one, **settings) for n in range(3)]
    engine = Engine(rows=4, capacity=64)
    running: list[set[str]] = []
    step = engine.step

    def watched():
        said = step()
        running.append({each.system.name for each in engine.running.values()})
        return said

    engine.step = watched  # type: ignore[method-assign]
    said = run(
        engine, [(0, first[0]), (1, first[1]), (2, other[0]), (3, late[0]), (4, late[1]), (4, other[1]), (20, late[2])]
    )
    assert all(parts[-1] == Finished("length") for parts in said.values())
    assert all(len(names) <= 1 for names in running)  # never two systems in one batch
    # the late ones of the first system had to let the second one go first, and then ran together
    assert turns == ["one", "two", "one"]


def test_a_step_that_fails_can_be_dropped():
    broken = System(GRAMMAR, LM)
    broken.parts = lambda event, prompt: 1 / 0  # type: ignore[method-assign]
    engine = Engine(rows=1, capacity=64)
    bad, good = job("hello", system=broken), job("hello", 5)
    engine.join(bad)
    engine.join(good)
    with pytest.raises(ZeroDivisionError):
        for _ in range(20):
            engine.step()
    assert engine.drop() == [bad] and engine.waiting == [good]
    drain(engine)
    assert good.reply.ids == decode(text="hello", temperature=1.0, seed=5)[0].ids


# ------------------------------------------------------------------------------------------------ the decoder under it


@pytest.mark.parametrize("beams", [1, 3])
def test_reading_a_prompt_in_chunks_changes_nothing(beams):
    text, warmth = "quite a long prompt, of many words", {"temperature": 1.0} if beams == 1 else {"beams": beams}
    for modality in ("text", "any", "image"):
        said = []
        for chunk in (5, 512):
            sampling = Sampling(max_new_tokens=16, **warmth)
            decoder = Decoder(LM, GRAMMAR, rows=beams, capacity=64, chunk=chunk)
            reply = decoder.add(prompt(text), modality=modality, sampling=sampling, generator=tiny.generator(1))
            steps = 0
            while not decoder.idle:
                decoder.step()
                steps += 1
            said.append((reply.ids, steps))
        assert said[0][0] == said[1][0]
        assert said[0][1] == said[1][1] + (len(prompt(text)) - 1) // 5


def test_a_long_prompt_does_not_hold_up_the_others():
    decoder = Decoder(LM, GRAMMAR, rows=2, capacity=64, chunk=5)
    settings = Sampling(max_new_tokens=16, min_new_tokens=16)
    short = decoder.add(prompt("hi"), modality="text", sampling=settings)
    long = decoder.add(prompt("quite a long prompt, of many words"), modality="text", sampling=settings)
    for _ in range(4):
        decoder.step()
    assert len(short.ids) == 4 and not long.ids


def test_rows_in_use_lie_together():
    decoder = Decoder(LM, GRAMMAR, rows=6, capacity=64)
    settings = {"max_new_tokens": 16, "temperature": 1.0, "min_new_tokens": 12}
    replies = [
        decoder.add(prompt(text), modality="text", sampling=Sampling(**settings), generator=tiny.generator(number))
        for number, text in enumerate(("a", "hello", "zebra", "x y"))
    ]
    guided = decoder.add(
        prompt("g"), modality="any", sampling=Sampling(guidance=2.0, **settings), generator=tiny.generator(9)
    )
    for _ in range(2):
        decoder.step()
    decoder.cancel(replies[1])
    decoder.cancel(replies[0])
    decoder.step()
    assert sorted(row for reply in (*replies[2:], guided) for row in reply.rows) == [0, 1, 2, 3]
    while not decoder.idle:
        decoder.step()
    for number in (2, 3):
        expected = decode(text=("a", "hello", "zebra", "x y")[number], modality="text", seed=number, **settings)
        assert replies[number].ids == expected[0].ids
    assert guided.ids == decode(text="g", modality="any", seed=9, guidance=2.0, **settings)[0].ids
    assert torch.is_inference_mode_enabled() is False and decoder.free_rows == 6


def test_documents_and_streams_go_through_the_same_loop(monkeypatch):
    joined: list[Job] = []
    join = Engine.join
    monkeypatch.setattr(Engine, "join", lambda self, one: (joined.append(one), join(self, one))[1])
    document = Document((user("hello"),))
    streamed = "".join(TOY.stream(document, modality="text"))
    (message,) = TOY.generate([document], modality="text")
    assert message.text == streamed and len(joined) == 2
