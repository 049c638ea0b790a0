"""Codes that add up: sums that are read as words, and codes that are chosen by what they add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests import tiny

from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.generate import Decoder
from rebus.lm import InterleavedLM, log_likelihoods
from rebus.nn.image_codes import ImageCodes, ImageCodesConfig
from rebus.nn.new_rows import MarkRows, NewRows, Rows
from rebus.nn.running_sums import SummedWords
from rebus.nn.text_model import own_names
from rebus.nn.word_drawings import WordDrawingsConfig
from rebus.nn.word_readings import WordReadingsConfig
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import LanguageConfig, build_language, share_codebook
from rebus.papers.seed.spelling import mini
from rebus.papers.seed.variants import TINY
from rebus.sampling import Sampling
from rebus.sequence import Sequence, collate
from rebus.visual import Codes

FIRST, BEGIN, PLACES, EACH, WIDTH = 262, 278, 4, 4, 6
CONFIG = ImageCodesConfig(
    first=FIRST,
    begin=BEGIN,
    codes=PLACES * EACH,
    places=PLACES,
    width=WIDTH,
    reads=WordReadingsConfig(grid=1, words=2, rank=3, names=8),
    draws=WordDrawingsConfig(words=2, rank=3, hidden=8, depth=1, choices=8, apart=2),
)


def model(config: ImageCodesConfig = CONFIG) -> tuple[InterleavedLM, SeedGrammar, torch.Tensor]:
    """A language model of width 32 that knows of sixteen codes, random throughout, its grammar and the codebook."""
    own = tiny.generator(0)
    language = LanguageConfig(
        base=TINY.language.base, new_words=18, lora_rank=0, summed=SummedWords(FIRST, 16), codes=config
    )
    lm, text = build_language(language, generator=own)
    codebook_VC = torch.randn(16, WIDTH, generator=own)
    share_codebook(lm, codebook_VC)
    codes = lm.llm.codes
    with torch.no_grad():
        for name, x in codes.named_parameters():
            if name != "sharpness":
                x.normal_(generator=own)
        if codes.reads is not None:
            codes.reads.words_QK[:3] = torch.tensor([[5, 70], [71, 80], [90, 5]])
        if codes.draws is not None:
            codes.draws.ids_W[:5] = torch.tensor([5, 70, 71, 80, 90])
    return lm.eval(), SeedGrammar(text, mini(262, 16, PLACES, per_query=True), "seed test"), codebook_VC


def row(grammar: SeedGrammar, which: list[int]) -> Sequence:
    codes = Codes(torch.tensor(which), grammar.source)
    return grammar.serialize(Document((user("a bear"), assistant(Image(generated=codes)))), template="chat")


def test_the_last_codes_are_read_as_words_that_the_sum_says() -> None:
    lm, grammar, codebook_VC = model()
    which = [1, 6, 8, 15]
    ids_1L = torch.tensor([row(grammar, which).ids])
    x_1LD, start = lm.llm.embed(ids_1L), ids_1L[0].tolist().index(BEGIN) + 1
    sums = codebook_VC[which].cumsum(0)
    torch.testing.assert_close(lm.llm.codes.sums(ids_1L)[0, start : start + 4], sums)
    rest = lm.llm.codes.sums(ids_1L)
    rest[0, start : start + 4] = 0
    assert not rest.any()
    reads = lm.llm.codes.reads
    for word, place in enumerate((2, 3)):
        torch.testing.assert_close(x_1LD[0, start + place], reads.read(sums[place][None, None])[0, word])
    # the others are read as they are without
    lm.llm.codes = None
    plain_1LD = lm.llm.embed(ids_1L)
    same = [k for k in range(ids_1L.shape[1]) if k not in (start + 2, start + 3)]
    assert torch.equal(x_1LD[0, same], plain_1LD[0, same])


def test_a_code_is_the_likelier_the_nearer_it_brings_the_sum() -> None:
    lm, _, codebook_VC = model()
    codes = lm.llm.codes
    wanted, hidden, so_far = torch.randn(1, WIDTH), torch.zeros(1, 32), torch.randn(1, WIDTH)
    with torch.no_grad():
        codes.beside.bias.zero_()
        logits_V = codes.logits(wanted, hidden, so_far)[0]
    away_V = (wanted - so_far - codebook_VC).square().sum(1)
    assert torch.equal(logits_V.argsort(descending=True), away_V.argsort())
    # what is said more surely is wanted more sharply, and every state can move what is wanted
    moved = codes.logits(wanted, hidden + 1, so_far)[0]
    torch.testing.assert_close(
        moved, codes.logits(wanted + codes.beside.weight.sum(1), hidden, so_far)[0], atol=1e-4, rtol=1e-4
    )


def test_step_by_step_codes_are_chosen_as_in_one_pass() -> None:
    lm, grammar, _ = model()
    codes = lm.llm.codes
    with torch.no_grad():
        codes.draws.config = replace(codes.draws.config, sharper=1.0)  # while learning nothing is sharpened
    prompt = grammar.serialize(Document((user("a bear"),)), template="chat", reply="image")
    decoder = Decoder(lm, grammar, rows=2, capacity=64)
    for guidance in (1.0, 1.5):
        sampling = Sampling(temperature=0.0, guidance=guidance)
        reply = decoder.add(prompt, modality="image", sampling=sampling)
        told = []
        while not decoder.idle:
            decoder.step()
            stream = reply.branches[0].main
            if stream.wanted is not None:
                told.append(stream.logits_V[FIRST : FIRST + 16])
        ids_1L = torch.tensor([[*prompt.ids, *reply.ids]])
        hidden = lm.llm.hidden(lm.llm.embed(ids_1L), torch.arange(ids_1L.shape[1])[None])
        begin = ids_1L[0].tolist().index(BEGIN)
        where = torch.zeros_like(ids_1L, dtype=torch.bool)
        where[0, begin : begin + PLACES] = True
        logits_NV = codes.next_logits(hidden, ids_1L, where)
        assert len(told) == PLACES
        torch.testing.assert_close(torch.stack(told), logits_NV, atol=1e-4, rtol=1e-4)
        if guidance == 1.0:
            own = [logits_NV[n, n * EACH : (n + 1) * EACH].argmax() + n * EACH for n in range(PLACES)]
            assert ids_1L[0, begin + 1 : begin + 1 + PLACES].tolist() == [FIRST + int(k) for k in own]


def test_in_the_loss_codes_compete_with_those_of_their_place() -> None:
    lm, grammar, _ = model()
    which = [2, 5, 9, 12]
    batch = collate([row(grammar, which)])
    hidden = lm.hidden(lm.embed(batch), batch)
    ids, target = batch.ids_BL, batch.target_BL[:, 1:]
    lost = []
    for at in target[0].nonzero().flatten().tolist():
        word, logits = int(ids[0, at + 1]), lm.llm.logits(hidden[0, at][None])[0]
        if FIRST <= word < FIRST + 16:
            where = torch.zeros_like(ids, dtype=torch.bool)
            where[0, at] = True
            place = (word - FIRST) // EACH
            logits = lm.llm.codes.next_logits(hidden, ids, where)[0, place * EACH : (place + 1) * EACH]
            word = (word - FIRST) % EACH
        lost.append(-logits.log_softmax(0)[word])
    torch.testing.assert_close(lm(batch).text, torch.stack(lost).mean())
    torch.testing.assert_close(log_likelihoods(lm, batch), -torch.stack(lost).sum()[None])
    # rows of codes are not there to be learned, and all that is known of codes is part of the model's own weights
    assert isinstance(lm.llm.rows.output, MarkRows) and lm.llm.rows.output.weight_VD.shape == (2, 32)
    assert {"codes.draws.out.weight", "codes.reads.words_QK", "codes.beside.bias"} <= set(own_names(lm.llm))
    assert not any("codebook" in name for name in lm.llm.state_dict())


def test_where_a_batch_has_no_codes_all_parameters_are_used_all_the_same() -> None:
    lm, grammar, _ = model()
    lm.train()
    batch = collate([grammar.serialize(Document((user("a"), assistant("b"))), template="chat")])
    loss = lm(batch).total
    loss.backward()
    for name, parameter in lm.llm.codes.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    with torch.no_grad():
        torch.testing.assert_close(lm(batch).total, loss.detach())


def test_a_model_that_only_reads_words_writes_by_rows() -> None:
    lm, grammar, _ = model(replace(CONFIG, draws=None))
    assert isinstance(lm.llm.rows, NewRows) and type(lm.llm.rows.output) is Rows
    assert lm.llm.codes.sharpness is None and lm(collate([row(grammar, [0, 4, 8, 12])])).text.isfinite()
    alone = ImageCodes(CONFIG, 32)
    with pytest.raises(RebusError, match="of no language model"):
        alone.wanted(torch.zeros(1, 32))
