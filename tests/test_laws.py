"""The seven laws, for every paper: its tiny variant is found and built by `tiny.py`. The paper that the documentation
walks through, a package outside of the library, keeps them too."""

from __future__ import annotations

import base64
import importlib
import io
import itertools

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

from rebus.checkpoint import config_from_json, config_to_json
from rebus.document import Document, Image, from_json, to_json
from rebus.errors import RebusError
from rebus.generate import Decoder
from rebus.grammar import Allow, Force
from rebus.lm import log_likelihoods
from rebus.nn.lora import add_lora
from rebus.nn.text_model import own_names
from rebus.sampling import Sampling
from rebus.sequence import collate
from rebus.system import encode, load
from rebus.train import Trainable
from rebus.visual import Features

pytestmark = pytest.mark.parametrize("paper", [*tiny.PAPERS, "examples.mosaic"])
LONG = Sampling(max_new_tokens=70, temperature=1.0, image_temperature=0.8)


def sequences(system, loss="all", template="chat"):
    documents = encode(system.tokenizer, tiny.documents(), replies="generation")
    return [system.grammar.serialize(d, loss=loss, template=template) for d in documents]


def replies(paper, modality, sampling=LONG, seeds=(0, 1, 2)):
    """(document, reply) for every document and several seeds."""
    system = tiny.system(paper)
    pairs = list(itertools.product(tiny.documents(), seeds))
    generators = [tiny.generator(seed) for _, seed in pairs]
    documents = [document for document, _ in pairs]
    messages = system.generate(documents, modality=modality, sampling=sampling, generators=generators)
    return list(zip(documents, messages, strict=True))


# ------------------------------------------------------------------------------------------ 1


@pytest.mark.parametrize("modality", ["text", "image", "any"])
def test_law_1_what_is_said_can_be_written(paper, modality):
    system = tiny.system(paper)
    pairs = replies(paper, modality)
    assert any(message.images for _, message in pairs) == (modality != "text")
    for document, message in pairs:
        (before,) = encode(system.tokenizer, [document], replies="understanding")
        (after,) = encode(system.tokenizer, [before.add(message)], replies="understanding")
        prompt = system.grammar.serialize(before, reply=modality, template="plain")
        whole = system.grammar.serialize(after, template="plain")
        assert whole.ids[: len(prompt)] == prompt.ids
        if not whole.input_spans:  # else images are read again from their pixels, as vectors
            again = system.grammar.read(whole.ids[len(prompt) :])
            assert tiny.said(type(message)("assistant", tuple(again))) == tiny.said(message)
        assert len(after.images) == len(before.images) + len(message.images)


# ------------------------------------------------------------------------------------------ 2


@torch.inference_mode()
def test_law_2_the_cache_changes_nothing(paper):
    lm = tiny.system(paper).lm
    for sequence in sequences(tiny.system(paper)):
        batch = collate([sequence])
        x_1LD = lm.embed(batch)
        whole = lm.hidden(x_1LD, batch)[0]
        steps, runs = lm.llm.row_cache(2, len(sequence)), lm.llm.row_cache(2, len(sequence))
        by_step = torch.cat([lm.read(x_1LD[:, i : i + 1], steps, [1])[0] for i in range(len(sequence))])
        cuts = [0, 3, 4, len(sequence) - 2, len(sequence)]
        by_run = torch.cat([lm.read(x_1LD[:, a:b], runs, [0])[0] for a, b in itertools.pairwise(cuts)])
        torch.testing.assert_close(by_step, whole, atol=3e-5, rtol=1e-4)
        torch.testing.assert_close(by_run, whole, atol=3e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------ 3


class Watched:
    """A grammar that notes what it allowed."""

    def __init__(self, grammar):
        self.grammar = grammar
        self.answers = {}

    def __getattr__(self, name):
        return getattr(self.grammar, name)

    def next(self, reply, modality, left):
        answer = self.grammar.next(reply, modality, left)
        self.answers[tuple(reply)] = answer
        return answer


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("modality", ["text", "image", "any"])
def test_law_3_the_grammar_is_obeyed(paper, modality, beams):
    system = tiny.system(paper)
    begin, end = system.grammar.special.begin_image, system.grammar.special.end_image
    image = next(n for n in range(1, 200) if _fits(system.grammar, n))
    for budget, seed in itertools.product((image, image + 1, 3 * image + 5), range(3)):
        watched = Watched(system.grammar)
        prompt = sequences(system)[seed]
        warmth = {"temperature": 1.5} if beams == 1 else {"beams": beams}
        decoder = Decoder(system.lm, watched, rows=beams, capacity=len(prompt) + budget)
        reply = decoder.add(
            prompt,
            modality=modality,
            sampling=Sampling(max_new_tokens=budget, **warmth),
            generator=tiny.generator(seed),
        )
        while not decoder.idle:
            decoder.step()
        place = 0
        while place < len(reply.ids):
            match watched.answers[tuple(reply.ids[:place])]:
                case Allow(mask_V):
                    assert mask_V[reply.ids[place]]
                    place += 1
                case Force(run):
                    assert tuple(reply.ids[place : place + len(run)]) == run
                    place += len(run)
        assert len(reply.ids) <= budget
        assert reply.ids.count(begin) == reply.ids.count(end)
        assert (begin in reply.ids) or modality != "image"
        assert (begin not in reply.ids) or modality != "text"
        assert decoder.free_rows == beams


def _fits(grammar, left):
    try:
        grammar.next([], "image", left)
    except RebusError as error:
        assert f"only {left}" in str(error)
        return False
    return True


# ------------------------------------------------------------------------------------------ 4


@pytest.mark.parametrize("patterns", [["llm.rows.*", "llm.*lora_*"], ["llm.*q_proj.lora_A*"], ["*"]])
def test_law_4_what_should_train_does_and_only_that(paper, patterns):
    from rebus.train.optimiser import select

    system = tiny.fresh(paper)
    add_lora(system.lm.llm, rank=2)  # a loaded system has none: they are folded into its weights
    tiny.liven(system.lm)
    wanted = select(system.lm, [Trainable(pattern, 1e-3) for pattern in patterns])
    batch = collate(sequences(system), pack=512)
    system.lm(batch).total.backward()
    moved = {name for name, p in system.lm.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == set(wanted)
    assert moved


# ------------------------------------------------------------------------------------------ 5


def test_law_5_a_seed_is_a_seed(paper):
    system = tiny.system(paper)
    document = tiny.documents()[2]

    def answer(seed, modality):
        message = system.generate(
            [document], modality=modality, sampling=LONG, generators=[tiny.generator(seed)]
        )[0]  # fmt: skip
        return tiny.said(message), [image.pixels.tobytes() for image in message.images if image.pixels]

    for modality in ("any", "image"):
        torch.manual_seed(1)
        first = answer(3, modality)
        torch.manual_seed(2)  # the global generator is nobody's business
        assert answer(3, modality) == first
        assert answer(4, modality) != first
        stream = system.stream(document, modality=modality, sampling=LONG, generator=tiny.generator(3))
        parts = [part for part in stream if isinstance(part, str | Image)]
        assert "".join(p for p in parts if isinstance(p, str)) == "".join(p for p in first[0] if isinstance(p, str))
        assert [p.pixels.tobytes() for p in parts if isinstance(p, Image) and p.pixels] == first[1]


def test_law_5_encoding_is_deterministic(paper):
    system = tiny.system(paper)
    images = [image for document in tiny.documents() for image in document.images]
    one, two = (
        system.tokenizer.encode(images, {purpose}, generators=[tiny.generator(i) for i in range(len(images))])
        for purpose in ("understanding", "understanding")
    )
    for a, b in zip(one, two, strict=True):
        for x, y in zip(vars(a.understood).values(), vars(b.understood).values(), strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


# ------------------------------------------------------------------------------------------ 6


@torch.inference_mode()
@pytest.mark.parametrize("pack", [None, 160, 1000])
def test_law_6_rows_do_not_touch_in_training(paper, pack):
    system = tiny.system(paper)
    many = sequences(system) * 2
    batch = collate(many, pack=pack)
    together = system.lm.hidden(system.lm.embed(batch), batch)
    scores = log_likelihoods(system.lm, batch)
    for sequence, (row, start, stop), score in zip(many, batch.places, scores, strict=True):
        alone = collate([sequence])
        hidden = system.lm.hidden(system.lm.embed(alone), alone)[0]
        torch.testing.assert_close(together[row, start:stop], hidden, atol=3e-5, rtol=1e-4)
        torch.testing.assert_close(score, log_likelihoods(system.lm, alone)[0], atol=1e-3, rtol=1e-4)
    losses = [system.lm(collate([sequence])).text for sequence in many]
    counts = [sum(sequence.target[1:]) for sequence in many]
    mean = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(system.lm(batch).text, mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("modality", ["text", "image", "any"])
def test_law_6_rows_do_not_touch_in_decoding(paper, modality):
    system = tiny.system(paper)
    documents = tiny.documents()
    for sampling in (
        Sampling(max_new_tokens=40, temperature=1.0),
        Sampling(max_new_tokens=16, beams=2),
        Sampling(max_new_tokens=30, temperature=1.0, guidance=1.7),
    ):
        together, narrow = (
            system.generate(
                documents,
                modality=modality,
                sampling=sampling,
                generators=[tiny.generator(i) for i in range(len(documents))],
                rows=rows,
            )
            for rows in (16, 4)  # with 4, replies wait for rows and join later
        )
        for i, document in enumerate(documents):
            alone = system.generate(
                [document], modality=modality, sampling=sampling, generators=[tiny.generator(i)]
            )[0]  # fmt: skip
            assert tiny.said(together[i]) == tiny.said(alone) == tiny.said(narrow[i])


# ------------------------------------------------------------------------------------------ 7


def _from_data_url(url):
    return PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_law_7_documents_survive_their_json(paper):
    for document, message in replies(paper, "any", seeds=(0,)):
        whole = Document((*document.messages, *([message] if all(i.pixels for i in message.images) else [])))
        again = from_json(to_json(whole), _from_data_url)
        assert [m.role for m in again.messages] == [m.role for m in whole.messages]
        assert [m.text for m in again.messages] == [m.text for m in whole.messages]
        assert [i.pixels.tobytes() for i in again.images] == [i.pixels.convert("RGB").tobytes() for i in whole.images]


def test_law_7_weights_and_configs_survive_their_files(paper, tmp_path):
    package = importlib.import_module(paper if "." in paper else f"rebus.papers.{paper}")
    for config in package.VARIANTS.values():
        written = config_to_json(config)  # compared as written: in a library's own settings a tuple becomes a list
        assert config_to_json(config_from_json(type(config), written)) == written
    one, two = tiny.fresh(paper, seed=0), tiny.fresh(paper, seed=1)
    (x,), (y,) = ([log_likelihoods(s.lm, collate(sequences(one)[:1]))] for s in (one, two))
    assert not torch.allclose(x, y)
    save_file({k: v.clone() for k, v in one.lm.state_dict().items()}, tmp_path / "lm.safetensors")
    two.lm.load_state_dict(load_file(tmp_path / "lm.safetensors"))
    assert torch.equal(x, log_likelihoods(two.lm, collate(sequences(one)[:1])))
    for part in ("tokenizer", "detokenizer"):
        for name, value in getattr(one, part).state_dict().items():
            getattr(two, part).state_dict()[name].copy_(value)
    three = tiny.fresh(paper, seed=2)
    own = own_names(three.lm.llm)  # adapters and new rows are all that a trained model has of its own
    rest = {k: v for k, v in one.lm.llm.state_dict().items() if k not in own}
    three.lm.llm.load_state_dict(rest, strict=False)
    three.lm.llm.load_state_dict({k: one.lm.llm.state_dict()[k] for k in own}, strict=False)
    for projector in ("input_projector", "output_projector"):  # and its ways in and out, where it has them
        if getattr(one.lm, projector) is not None:
            getattr(three.lm, projector).load_state_dict(getattr(one.lm, projector).state_dict())
    assert torch.equal(x, log_likelihoods(three.lm, collate(sequences(one)[:1])))


def test_law_7_merging_keeps_what_is_said(paper):
    system = tiny.fresh(paper)
    batch = collate(sequences(system))
    before = log_likelihoods(system.lm, batch)
    system.lm.llm.merge()
    torch.testing.assert_close(log_likelihoods(system.lm, batch), before, atol=1e-3, rtol=1e-4)


# ------------------------------------------------------------------------------------------ loading


def test_a_system_is_found_by_its_name(paper):
    only = load(f"{paper}:tiny", parts=("lm",))
    assert only.name == f"{paper}:tiny" and only.tokenizer is None and only.detokenizer is None
    with pytest.raises(RebusError, match=f"no system '{paper}:huge'. The variants of {paper} are .*tiny"):
        load(f"{paper}:huge")
    with pytest.raises(RebusError, match=f"no system 'nothing'. The papers here are {', '.join(tiny.PAPERS)};"):
        load("nothing")
    with pytest.raises(RebusError, match="'ears' was asked for"):
        load(f"{paper}:tiny", parts=("ears",))
    with pytest.raises(RebusError, match=r"There is no system.json"):
        load(f"{paper}:tiny", weights="nowhere")
    image = Image(generated=Features(torch.zeros(1, 2, 3), "elsewhere"))
    with pytest.raises(RebusError, match="message 1"):
        only.generate([Document((tiny.user("a", image),))])
