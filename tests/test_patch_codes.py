"""Codes of kept patches: an image is said first, and its codes are read off it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from tests import tiny

from rebus.document import Document, Image, assistant, user
from rebus.generate import Decoder
from rebus.lm import InterleavedLM, log_likelihoods
from rebus.nn import patch_codes
from rebus.nn.new_rows import MarkRows
from rebus.nn.patch_codes import PatchCodes, PatchCodesConfig, moves
from rebus.nn.text_model import own_names
from rebus.nn.word_drawings import WordDrawingsConfig
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.language import LanguageConfig, build_language, share_codebook
from rebus.papers.lavit.spelling import mini
from rebus.papers.lavit.variants import TINY
from rebus.sampling import Sampling
from rebus.sequence import Sequence, collate
from rebus.visual import Codes

BEGIN, END, FIRST, CODES, PATCHES, WIDTH = 262, 263, 264, 6, 4, 3
CONFIG = PatchCodesConfig(
    begin=BEGIN,
    end=END,
    codes=CODES,
    patches=PATCHES,
    width=WIDTH,
    draws=WordDrawingsConfig(words=2, rank=3, hidden=8, depth=1, choices=8, apart=2),
)


def model() -> tuple[InterleavedLM, LavitGrammar]:
    """A language model of width 32 that knows of six codes of four patches, random throughout, and its grammar."""
    own = tiny.generator(0)
    llm, text = build_language(
        LanguageConfig(base=TINY.language.base, new_words=2 + CODES, codes=CONFIG), generator=own
    )
    share_codebook(llm, torch.randn(CODES, WIDTH, generator=own))
    assert isinstance(llm.codes, PatchCodes)
    with torch.no_grad():
        for name, x in llm.codes.named_parameters():
            if name != "sharpness":
                x.normal_(generator=own)
        llm.codes.draws.ids_W[:5] = torch.tensor([5, 70, 71, 80, 90])
        llm.codes.draws.centre_SC[:, 0] = 0.5
    return InterleavedLM(llm).eval(), LavitGrammar(text, mini(262, CODES, PATCHES, fewest=1, most=4), "lavit test")


def row(grammar: LavitGrammar, which: list[int]) -> Sequence:
    codes = Codes(torch.tensor(which), grammar.source)
    return grammar.serialize(Document((user("a bear"), assistant(Image(generated=codes)))), template="chat")


def test_what_comes_next_is_what_all_ways_to_keep_patches_say_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_codes, "FLOOR", 0.0)
    lm, _ = model()
    codes = lm.llm.codes
    wanted = torch.randn(1, PATCHES, 1 + WIDTH, generator=tiny.generator(1)) + 0.3
    keep, emit = codes.kept(wanted)[0], codes.emissions(wanted)[0].detach()
    torch.testing.assert_close(emit.sum(-1), torch.ones(PATCHES))

    def likely(written: list[int], ended: bool) -> float:
        total = 0.0
        for count in range(len(written), PATCHES + 1):
            for kept in combinations(range(PATCHES), count):
                if ended and count > len(written):
                    continue
                own = torch.stack([keep[p] if p in kept else 1 - keep[p] for p in range(PATCHES)]).prod()
                total += float(
                    own
                    * torch.stack([torch.ones(()), *(emit[p, k] for p, k in zip(kept, written, strict=False))]).prod()
                )
        return total

    written = [3, 0, 5]
    said = codes.follow(wanted, torch.tensor([written]))[0]
    assert said.shape == (4, 1 + CODES)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(4))
    for n in range(4):
        before = likely(written[:n], False)
        torch.testing.assert_close(said[n, 0].exp().item(), likely(written[:n], True) / before, atol=1e-5, rtol=1e-4)
        for k in range(CODES):
            torch.testing.assert_close(
                said[n, 1 + k].exp().item(), likely([*written[:n], k], False) / before, atol=1e-5, rtol=1e-4
            )


def test_a_move_leads_to_a_patch_behind_or_to_the_end() -> None:
    keep = torch.tensor([[0.2, 0.9, 0.5]])
    move = moves(keep)[0]
    wanted = torch.tensor([[0.2, 0.72, 0.04], [0.0, 0.9, 0.05], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(move, wanted)


def test_when_drawn_the_likeliest_patches_are_kept_as_many_as_before() -> None:
    codes = PatchCodes(CONFIG, 32)
    wanted = torch.zeros(1, PATCHES, 1 + WIDTH)
    wanted[0, :, 0] = torch.tensor([0.45, 0.3, 0.85, 0.4])
    sure = codes.kept(wanted, 8.0)[0]
    assert sure.argsort().tolist() == [1, 3, 0, 2] and int((sure > 0.5).sum()) == 2
    torch.testing.assert_close(codes.kept(wanted)[0], wanted[0, :, 0])
    codes.codebook_VC = torch.nn.functional.normalize(torch.randn(CODES, WIDTH, generator=tiny.generator(2)), dim=-1)
    seen = torch.randn(1, PATCHES, 1 + WIDTH, generator=tiny.generator(3))
    once, often = codes.emissions(seen), codes.emissions(seen, 4.0)
    assert torch.equal(once.argmax(-1), often.argmax(-1)) and (often.amax(-1) > once.amax(-1)).all()
    # what is surely kept or surely not is said to be so, and nothing is impossible
    wanted[0, :, 0] = torch.tensor([1.3, -0.2, 0.9, 0.1])
    bounds = codes.kept(wanted)[0]
    assert bounds.min() == pytest.approx(patch_codes.LEAST) and bounds.max() == pytest.approx(1 - patch_codes.LEAST)


def test_step_by_step_codes_are_chosen_as_in_one_pass() -> None:
    lm, grammar = model()
    codes = lm.llm.codes
    codes.draws.config, codes.config = replace(codes.draws.config, sharper=1.0), replace(codes.config, surer=1.0)
    prompt = grammar.serialize(Document((user("a bear"),)), template="chat", reply="image")
    decoder = Decoder(lm, grammar, rows=2, capacity=64)
    for guidance in (1.0, 1.5):
        reply = decoder.add(prompt, modality="image", sampling=Sampling(temperature=0.0, guidance=guidance))
        told = []
        while not decoder.idle:
            decoder.step()
            stream = reply.branches[0].main
            if stream.wanted is not None:
                told.append(stream.logits_V[END : FIRST + CODES])
        ids_1L = torch.tensor([[*prompt.ids, *reply.ids]])
        hidden = lm.llm.hidden(lm.llm.embed(ids_1L), torch.arange(ids_1L.shape[1])[None])
        begin = ids_1L[0].tolist().index(BEGIN)
        where = torch.zeros_like(ids_1L, dtype=torch.bool)
        where[0, begin : begin + len(told)] = True
        logits_NV = codes.next_logits(hidden, ids_1L, where)
        assert 1 <= len(told) <= 4 + 1
        torch.testing.assert_close(torch.stack(told), logits_NV, atol=1e-4, rtol=1e-4)
        assert reply.ids.count(END) == 1 and all(FIRST <= k < FIRST + CODES for k in reply.ids[1 : len(told)])


def test_in_the_loss_codes_compete_with_each_other_and_the_end() -> None:
    lm, grammar = model()
    batch = collate([row(grammar, [2, 5]), row(grammar, [1])])
    hidden = lm.hidden(lm.embed(batch), batch)
    ids, target = batch.ids_BL, batch.target_BL[:, 1:]
    lost, of_rows = [], []
    for at_row, at in target.nonzero().tolist():
        word, logits = int(ids[at_row, at + 1]), lm.llm.logits(hidden[at_row, at][None])[0]
        if END <= word < FIRST + CODES:
            where = torch.zeros_like(ids, dtype=torch.bool)
            where[at_row, at] = True
            logits, word = lm.llm.codes.next_logits(hidden, ids, where)[0], word - END
        lost.append(-logits.log_softmax(0)[word])
        of_rows.append(at_row)
    torch.testing.assert_close(lm(batch).text, torch.stack(lost).mean())
    each = torch.zeros(2).index_add(0, torch.tensor(of_rows), torch.stack(lost))
    torch.testing.assert_close(log_likelihoods(lm, batch), -each)
    # rows of codes are not there to be written, and all that is known of codes is part of the model's own weights
    assert isinstance(lm.llm.rows.output, MarkRows) and lm.llm.rows.output.weight_VD.shape == (2, 32)
    assert not lm.llm.rows.output.table()[2:].any() and len(lm.llm.rows.output.table()) == 2 + CODES
    assert {"codes.draws.out.weight", "codes.sharpness"} <= set(own_names(lm.llm))
    assert not any("codebook" in name for name in lm.llm.state_dict())


def test_where_a_batch_has_no_codes_all_parameters_are_used_all_the_same() -> None:
    lm, grammar = model()
    lm.train()
    batch = collate([grammar.serialize(Document((user("a"), assistant("b"))), template="chat")])
    loss = lm(batch).total
    loss.backward()
    for name, parameter in lm.llm.codes.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_what_is_fitted_to_is_whether_a_patch_is_kept_and_its_code() -> None:
    lm, _ = model()
    codes = lm.llm.codes
    keep = torch.tensor([[True, False, False, True], [False, True, False, False]])
    aim = codes.aim(keep, [torch.tensor([4, 1]), torch.tensor([0])])
    assert torch.equal(aim[..., 0], keep.float()) and not aim[~keep].any()
    torch.testing.assert_close(aim[keep][:, 1:], 2 * codes.codebook_VC[[4, 1, 0]])
    torch.testing.assert_close(codes.codebook_VC.norm(dim=-1), torch.ones(CODES))
