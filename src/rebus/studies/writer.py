"""A small language model from nothing that learns to write pictures as codes, and how well it does so.

Dimension key: I images · N codes of an image · D width of the image embedding
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.generate import Decoder
from rebus.grammar import Allow
from rebus.lm import InterleavedLM
from rebus.mini.bank import IndexBatches
from rebus.nn.new_rows import RowInit
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import LanguageConfig, build_language
from rebus.papers.seed.spelling import mini
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.sampling import Sampling
from rebus.sequence import Sequence, collate
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Codes


def retrieved(made_ID: Tensor, meant_ID: Tensor) -> float:
    """Share of vectors whose nearest by cosine, among all that are meant, is the one meant for them."""
    likeness_II = F.normalize(made_ID, dim=-1) @ F.normalize(meant_ID, dim=-1).T
    return (likeness_II.argmax(1) == torch.arange(len(made_ID))).float().mean().item()


class Unruled:
    """A grammar that lets any word follow any other; all else is the grammar's that it wraps."""

    def __init__(self, grammar: SeedGrammar) -> None:
        self.grammar = grammar
        self.anything = Allow(torch.ones(grammar.vocabulary, dtype=torch.bool))

    def next(self, reply: list[int], modality: str, left: int) -> Allow:
        """Any word."""
        return self.anything

    def __getattr__(self, name: str) -> object:
        return getattr(self.grammar, name)


class LanguageTraining(nn.Module):
    """A small causal language model that reads bytes and writes codes."""

    def __init__(self, lm: InterleavedLM) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, sequences: list[Sequence]) -> Losses:
        """Nats per word of the replies."""
        losses = self.lm(collate(sequences, pack=256, pad_id=0))
        return Losses(losses.total, {})


class SequenceBatches(IndexBatches):
    """Batches of sequences that are made when they are needed."""

    def __init__(self, make: Callable[[int], Sequence], n: int, batch: int, *, seed: int) -> None:
        super().__init__(n, batch, seed=seed)
        self.make = make

    def __iter__(self) -> Iterator[list[Sequence]]:  # type: ignore[override]
        for indices in super().__iter__():
            yield [self.make(int(i)) for i in indices]


@dataclass(frozen=True)
class WriterConfig:
    """Sizes and budget of the language model."""

    codes: int
    """Entries of the codebook."""
    per_query: bool = False
    """Whether each place of an image has codes of its own."""
    width: int = 256
    """Width of the model."""
    depth: int = 6
    """Its layers."""
    steps: int = 700
    """Steps of training, 48 pictures each."""


class Writer:
    """The language model, and the pictures that it learns: ids_IN with their captions."""

    def __init__(self, config: WriterConfig, captions: Several[str], ids_IN: Tensor, *, seed: int) -> None:
        self.config, self.captions, self.ids_IN, self.seed = config, captions, ids_IN, seed
        base = {
            "model_type": "llama",
            "hidden_size": config.width,
            "intermediate_size": 3 * config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.width // 32,
            "max_position_embeddings": 512,
        }
        settings = LanguageConfig(base=base, new_words=config.codes + 2, lora_rank=0, rows=RowInit(std=0.02))
        lm, text = build_language(settings, generator=torch.Generator().manual_seed(seed))
        spelling = mini(text.words, config.codes, ids_IN.shape[1], per_query=config.per_query)
        self.grammar = SeedGrammar(text, spelling, "study")
        self.module = LanguageTraining(lm)

    def stage(self) -> Stage:
        """Its training: captions, each followed by its picture."""
        optim = Optim(steps=self.config.steps, warmup=0.06, min_lr_ratio=0.02, betas=(0.9, 0.95), weight_decay=0.05)
        return Stage(
            name="language",
            module=self.module,
            step=lambda module, sequences: module(sequences),
            trainable=[Trainable("*", 2e-3)],
            data=SequenceBatches(self.sequence, len(self.captions), 48, seed=self.seed),
            optim=optim,
            config=self.config,
        )

    def sequence(self, at: int) -> Sequence:
        """One caption and its picture."""
        return self.lay(self.captions[at], self.ids_IN[at])

    def lay(self, caption: str, ids_N: Tensor) -> Sequence:
        """Caption, then picture."""
        picture = Image(generated=Codes(ids_N, "study"))
        document = Document((user(caption), assistant(picture)))
        return self.grammar.serialize(document, template="plain", loss="reply")

    def write(self, captions: list[str], *, ruled: bool) -> list[list[int]]:
        """Replies to captions, sampled from the model's own distribution."""
        grammar = self.grammar if ruled else Unruled(self.grammar)
        sampling = Sampling(max_new_tokens=48, temperature=1.0)
        replies: list[list[int]] = []
        for start in range(0, len(captions), 50):
            some = captions[start : start + 50]
            decoder = Decoder(self.module.lm, grammar, rows=len(some), capacity=400)  # type: ignore[arg-type]
            under_way = []
            for number, caption in enumerate(some):
                prompt = self.grammar.serialize(Document((user(caption),)), reply="image", template="plain")
                seeded = torch.Generator().manual_seed(1000 * self.seed + start + number)
                under_way.append(decoder.add(prompt, modality="image", sampling=sampling, generator=seeded))
            while not decoder.idle:
                decoder.step()
            replies += [reply.ids for reply in under_way]
        return replies

    def is_whole(self, reply: list[int]) -> bool:
        """Is a reply one image, all codes in their places, and then over?"""
        special, count = self.grammar.special, self.grammar.config.per_image
        if reply[:1] != [special.begin_image] or reply[1 + count :] != [special.end_image, special.eos]:
            return False
        try:
            return len(self.grammar.read(reply)) == 1
        except RebusError:
            return False

    @torch.no_grad()
    def measure(
        self, captions: list[str], ids_IN: Tensor, tokenizer: SeedTokenizer, meant_ID: Tensor
    ) -> dict[str, float]:
        """How well the pictures of captions are written that were never learned: their own codes ids_IN, and their
        image embeddings, which `tokenizer` makes of what is written."""
        self.module.eval()
        laid = [self.lay(caption, ids_N) for caption, ids_N in zip(captions, ids_IN, strict=True)]
        nats = [self.module(laid[start : start + 50]).total.item() for start in range(0, len(laid), 50)]
        drawn_IN = []
        for reply in self.write(captions, ruled=True):
            part = self.grammar.read(reply)[0]
            assert isinstance(part, Image) and isinstance(part.generated, Codes)  # the grammar writes an image
            drawn_IN.append(part.generated.ids_N)
        drawn_ID = tokenizer.image_embedding(torch.stack(drawn_IN))
        free = self.write(captions, ruled=False)
        return {
            "nats": sum(nats) / len(nats),
            "valid": sum(map(self.is_whole, free)) / len(free),
            "likeness": F.cosine_similarity(drawn_ID, meant_ID, dim=-1).mean().item(),
            "drawn": retrieved(drawn_ID, meant_ID),
        }
