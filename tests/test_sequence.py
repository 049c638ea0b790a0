"""Sequences become batches: positions, documents, targets, spans, attention."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from rebus.errors import RebusError
from rebus.lm import CodePositions, InterleavedLM, log_likelihoods, next_token_loss
from rebus.sequence import Sequence, by_length, collate
from rebus.visual import Features


def plain(*ids: int) -> Sequence:
    return Sequence(list(ids), [True] * len(ids))


def vectors(views: int, slots: int, value: float = 0.0) -> Features:
    return Features(torch.full((views, slots, 3), value), "test")


def test_padding():
    batch = collate([plain(1, 2, 3), plain(4, 5)], pad_id=9)
    assert batch.ids_BL.tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch.positions_BL.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.documents_BL.tolist() == [[0, 0, 0], [1, 1, -1]]
    assert batch.target_BL.tolist() == [[False, True, True], [False, True, False]]
    assert batch.places == [(0, 0, 3), (1, 0, 2)]
    assert batch.attend() is None  # right padding is out of sight of causal attention


def test_packing_fills_rows_and_keeps_documents_apart():
    sequences = [plain(1, 2, 3), plain(4, 5, 6, 7), plain(8, 9), plain(10)]
    batch = collate(sequences, pack=6)
    assert batch.ids_BL.tolist() == [[1, 2, 3, 8, 9, 10], [4, 5, 6, 7, 0, 0]]
    assert batch.positions_BL[0].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch.documents_BL.tolist() == [[0, 0, 0, 2, 2, 3], [1, 1, 1, 1, -1, -1]]
    assert batch.target_BL[0].tolist() == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]  # no word is asked of another document
    assert batch.places == [(0, 0, 3), (1, 0, 4), (0, 3, 5), (0, 5, 6)]
    attend = batch.attend()
    assert attend is not None and attend.shape == (2, 1, 6, 6)
    for b in range(2):
        for q in range(6):
            for k in range(6):
                same = batch.documents_BL[b, q] == batch.documents_BL[b, k]
                assert attend[b, 0, q, k] == bool(same and k <= q)
    assert attend.any(-1).all()  # no query without a key, or its softmax would be no number


def test_spans_and_vectors_follow_their_sequences():
    one = Sequence([1] * 6, [False] * 6, [(1, 3), (3, 5)], [], [vectors(2, 2, 1.0)])
    two = Sequence([2] * 5, [True] * 5, [(0, 2)], [(3, 5)], [vectors(1, 2, 2.0)], [vectors(1, 2, 3.0)])
    batch = collate([two, one, two], pack=11)
    assert batch.input_BL.nonzero().tolist() == [[0, 0], [0, 1], [0, 6], [0, 7], [0, 8], [0, 9], [1, 0], [1, 1]]
    assert [float(f.x_WNC[0, 0, 0]) for f in batch.inputs] == [2.0, 1.0, 2.0]
    assert batch.output_BL.nonzero().tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]
    assert len(batch.outputs) == 2
    # a later sequence that fits an earlier row goes there, and its vectors with it
    batch = collate([one, one, two], pack=11)
    assert [float(f.x_WNC[0, 0, 0]) for f in batch.inputs] == [1.0, 2.0, 1.0]


def test_to_moves_the_tensors():
    batch = collate([plain(1, 2)]).to("meta")
    assert batch.ids_BL.device.type == batch.target_BL.device.type == "meta" and batch.places == [(0, 0, 2)]


def test_bad_batches():
    with pytest.raises(RebusError, match="at least one sequence"):
        collate([])
    with pytest.raises(RebusError, match="Sequence 2 of the batch has 5 words, but a packed row holds 4"):
        collate([plain(1), plain(1, 2, 3, 4, 5)], pack=4)
    with pytest.raises(RebusError, match="3 words and 2 marks"):
        Sequence([1, 2, 3], [True, False])


# ------------------------------------------------------------------------------------------------ through a model


class Scale(torch.nn.Module):
    """An input projector: vectors of 3 numbers to the model's width."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 32)

    def forward(self, inputs):
        return torch.cat([self.linear(f.x_WNC.flatten(0, 1)) for f in inputs])


class Regress(torch.nn.Module):
    """An output projector: hidden states to vectors of 3 numbers."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 3)

    def forward(self, hidden_SD, seen=None):
        return Features(self.linear(hidden_SD)[None], "regressed")

    def loss(self, hidden_TD, outputs, seen=None):
        target_TC = torch.cat([f.x_WNC.flatten(0, 1) for f in outputs])
        return (self.linear(hidden_TD) - target_TC).square().mean()


def test_what_was_seen_before_a_drawing_is_the_last_image_that_ended_before_it():
    first, second, third = (Features(torch.zeros(views, 2, 3), str(views)) for views in (1, 2, 1))
    row = Sequence([0] * 20, [True] * 20, [(1, 3), (7, 9), (9, 11), (16, 18)], [(0, 1), (4, 6), (12, 14), (17, 19)])
    row.inputs = [first, second, third]
    assert row.seen_before == [None, first, second, second]
    row.outputs = [third] * 4
    other = Sequence([0] * 4, [True] * 4, [(0, 1)], [(1, 2)], [third], [first])
    batch = collate([row, other], pack=24)
    assert batch.seen_before == [None, first, second, second, third] and len(batch.outputs) == 5


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("pack", [None, 14, 40])
def test_padded_packed_and_alone_are_equal(kind, pack):
    torch.manual_seed(0)
    lm = InterleavedLM(tiny.text_model(kind), Scale(), Regress(), image_weight=6.0).eval()
    some = torch.Generator().manual_seed(0)

    def sequence(length):
        ids = torch.randint(57, (length,), generator=some).tolist()
        target = (torch.rand(length, generator=some) < 0.6).tolist()
        features = [Features(torch.randn(1, 2, 3, generator=some), "test") for _ in range(2)]
        return Sequence(ids, target, [(1, 3)], [(4, 6)], features[:1], features[1:])

    sequences = [sequence(n) for n in (7, 11, 9, 14)]
    batch = collate(sequences, pack=pack, pad_id=3)
    hidden = lm.hidden(lm.embed(batch), batch)
    alone = [collate([s]) for s in sequences]
    for one, (row, start, stop) in zip(alone, batch.places, strict=True):
        torch.testing.assert_close(
            hidden[row, start:stop], lm.hidden(lm.embed(one), one)[0], atol=2e-5, rtol=1e-4
        )  # fmt: skip
    losses = [lm(one) for one in alone]
    counts = [sum(s.target[1:]) for s in sequences]
    text = sum(loss.text * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
    image = sum(loss.image for loss in losses) / len(losses)
    together = lm(batch)
    torch.testing.assert_close(together.text, text, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.image, image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.total, text + 6 * image, atol=1e-4, rtol=1e-4)


def test_the_loss_is_that_of_the_whole_row_of_scores():
    lm = InterleavedLM(tiny.text_model("llama"))
    batch = collate([Sequence([5, 6, 52, 8], [True, False, True, True]), Sequence([7, 8], [False, False])])
    hidden = lm.hidden(lm.embed(batch), batch)
    log_probs = lm.llm.logits(hidden).log_softmax(-1)
    expected = -(log_probs[0, 1, 52] + log_probs[0, 2, 8]) / 2
    torch.testing.assert_close(next_token_loss(lm.llm, hidden, batch), expected)
    weights = torch.ones(lm.llm.vocabulary)
    weights[52] = 3.0
    lm.weigh_words(weights)
    torch.testing.assert_close(lm.train()(batch).text, -(3 * log_probs[0, 1, 52] + log_probs[0, 2, 8]) / 2)
    torch.testing.assert_close(lm.eval()(batch).text, expected)  # what is measured is not weighed
    nothing = collate([Sequence([7, 8], [True, False])])
    loss = lm(nothing).total
    loss.backward()
    assert loss == 0


def test_codes_may_compete_with_those_of_their_place_alone():
    lm = InterleavedLM(tiny.text_model("llama"))
    first = lm.llm.words
    lm.restrict_codes(CodePositions(1, 2, 2))  # new words 1 and 2 stand first, 3 and 4 second
    ids = [5, first + 2, first + 3, 8]
    batch = collate([Sequence(ids, [False, True, True, True])])
    hidden = lm.hidden(lm.embed(batch), batch)
    logits = lm.llm.logits(hidden)[0]
    expected = (
        logits[0, first + 1 : first + 3].log_softmax(0)[1]
        + logits[1, first + 3 : first + 5].log_softmax(0)[0]
        + logits[2].log_softmax(0)[8]
    )
    torch.testing.assert_close(next_token_loss(lm.llm, hidden, batch, places=lm.places), -expected / 3)
    torch.testing.assert_close(lm(batch).text, -expected / 3)
    torch.testing.assert_close(log_likelihoods(lm, batch), expected[None])
    only = collate([Sequence([5, first + 1], [False, True])])
    assert lm(only).total.item() > 0


def test_vectors_that_do_not_fit_their_slots():
    reads = InterleavedLM(tiny.text_model("llama"), Scale())
    slots = Sequence([1] * 4, [False] * 4, [(0, 3)], [], [vectors(1, 2)])
    with pytest.raises(RebusError, match="2 vectors, but the sequences have 3 slots"):
        reads(collate([slots]))
    with pytest.raises(RebusError, match="reads images as words"):
        InterleavedLM(tiny.text_model("llama"))(collate([slots]))


def test_long_sequences_do_not_lengthen_the_rows_of_short_ones():
    short, long, longer = plain(1, 2), plain(*range(9)), plain(*range(12))
    assert by_length([short, long, short, longer], 6) == [([short, short], 6), ([long, longer], 12)]
    assert by_length([short], 6) == [([short], 6)]
    assert by_length([long], 6) == [([long], 9)]
