"""A toy grammar, whose images are forced queries and whose text is a few letters, and a tiny language model for it."""

from __future__ import annotations

import torch
from tests import tiny
from torch import nn

from rebus.document import Document, Image, user
from rebus.generate import Decoder
from rebus.grammar import Allow, Force, SpecialTokens
from rebus.lm import InterleavedLM
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.sampling import Sampling
from rebus.sequence import Sequence, collate
from rebus.visual import Features

QUERIES = 3


class ToyGrammar:
    """Letters, and images of three queries: always forced where `forced`, else chosen one by one."""

    def __init__(self, letters: str = "abcd", forced: bool = True):
        self.text = ByteTokenizer()
        words = self.text.words
        self.queries = tuple(range(words + 2, words + 2 + QUERIES))
        self.vocabulary = words + 2 + QUERIES
        self.special = SpecialTokens(eos=258, pad=256, begin_image=words, end_image=words + 1, bos=257)
        self.letters = [*letters.encode(), self.special.eos]
        self.forced = forced

    def allow(self, *words: int) -> Allow:
        mask_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        mask_V[list(words)] = True
        return Allow(mask_V)

    def serialize(self, document, *, reply=None, template="chat", loss="reply"):
        ids = [257, *self.text.encode("".join(m.text for m in document.messages))]
        return Sequence(ids, [False] * len(ids))

    def next(self, reply, modality, left):
        special = self.special
        if special.begin_image in reply:
            inside = list(reversed(reply)).index(special.begin_image)
            if special.end_image not in reply[len(reply) - inside :]:
                if inside == QUERIES:
                    return Force((special.end_image,))
                if self.forced:
                    return Force((*self.queries[inside:], special.end_image))
                return self.allow(*self.queries)
            if modality == "image":
                return Force((special.eos,))
        elif modality == "image":
            return Force((special.begin_image,))
        begins = [special.begin_image] if modality == "any" and left >= QUERIES + 2 else []
        return self.allow(*self.letters, *begins)

    def read(self, ids):
        return [Image(generated=Features(torch.tensor(ids[1:-1], dtype=torch.float)[None, :, None], "ids"))]

    def unconditional(self):
        return [257]


class Regress(nn.Module):
    """An output projector that hands hidden states on."""

    def forward(self, hidden_SD, seen=None):
        return Features(hidden_SD[None], "hidden")


def toy_lm(projects: bool = False, seed: int = 0) -> InterleavedLM:
    base = build_causal_lm({**tiny.LLAMA, "vocab_size": 259}, generator=tiny.generator(seed))
    llm = TextModel(base).extend(2 + QUERIES, generator=tiny.generator(seed + 1))
    with torch.no_grad():
        llm.rows.output.weight_VD.mul_(20)
    return InterleavedLM(llm, None, Regress() if projects else None).eval()


LM, PROJECTING, GRAMMAR = toy_lm(), toy_lm(projects=True), ToyGrammar()


def prompt(text: str = "hello") -> Sequence:
    return GRAMMAR.serialize(Document((user(text),)))


def decode(lm=LM, grammar=GRAMMAR, text="hello", modality="any", seed=0, **settings):
    """The reply to a prompt and its events."""
    sampling = Sampling(**{"max_new_tokens": 16, **settings})
    decoder = Decoder(lm, grammar, rows=Decoder.rows_for(sampling), capacity=64)
    reply = decoder.add(prompt(text), modality=modality, sampling=sampling, generator=tiny.generator(seed))
    events = []
    while not decoder.idle:
        events += [event for _, event in decoder.step()]
    return reply, events


@torch.no_grad()
def scores(lm, ids: list[int]) -> torch.Tensor:
    """Log-probabilities after each word of a sequence, all at once and without a cache."""
    batch = collate([Sequence(ids, [False] * len(ids))])
    return lm.llm.logits(lm.hidden(lm.embed(batch), batch)[0]).log_softmax(-1)
