"""LaVIT's language model in training: documents in, losses out, with the frozen tokenizer and the grammar between.

An image that is read goes in as vectors of the projector, which learns with the language model; its codes, of one and the
same choice of patches, may be learned at its places. An image that is written is codes.

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from rebus.data.layouts import plain_text, turns
from rebus.data.records import Record
from rebus.data.source_batches import Source, SourceBatch, SourceBatches, read_places
from rebus.document import Document, assistant, user
from rebus.errors import RebusError
from rebus.grammar import LossKind, TemplateName
from rebus.lm import InterleavedLM, Losses
from rebus.nn.precision import BaseNumbers, dtype_of_base
from rebus.nn.written_codes import CodePositions
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.language import LanguageConfig, build_language, share_codebook
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.reconstruction import stage_weights
from rebus.papers.lavit.selector import Selection
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import LavitConfig
from rebus.sequence import Collated, collated
from rebus.sequence import Sequence as Words
from rebus.system import encode
from rebus.train import Trainable, parallel

# ------------------------------------------------------------------------------------------------ the published mixtures


def image_first(record: Record, rng: object) -> Document:
    """`text`: the picture, then its caption."""
    return Document((user(*record.pictures(1)[:1]), assistant(record.text("text"))))


def text_first(record: Record, rng: object) -> Document:
    """`text`: the caption, then the picture."""
    return Document((user(record.text("text")), assistant(*record.pictures(1)[:1])))


CodeSoftmax = Literal["vocabulary", "image"]
"""What the softmax of a code is over in the loss."""

TEMPLATES = {"image first": image_first, "text first": text_first, "text": plain_text, "turns": turns}
"""How records are laid out, by the name that the tables give it."""

PRETRAIN: tuple[Source, ...] = (
    Source("captions", ("CC3M", "CC12M", "SBU", "BLIP-CapFilt"), 2048, 32, 0.93, "caption", template="image first"),
    Source("drawings", ("LAION-Aesthetics",), 2048, 32, 1.0, "caption", template="text first"),
    Source("web text", ("RedPajama CommonCrawl",), 2048, 8, 2.59, "text", template="text"),
    Source("c4", ("RedPajama C4",), 2048, 8, 0.58, "text", template="text"),
    Source("code", ("RedPajama GitHub",), 2048, 8, 0.174, "text", template="text"),
    Source("wikipedia", ("RedPajama Wikipedia",), 2048, 8, 0.174, "text", template="text"),
    Source("books", ("RedPajama Books",), 2048, 8, 0.174, "text", template="text"),
    Source("papers", ("RedPajama ArXiv",), 2048, 8, 0.097, "text", template="text"),
    Source("answers", ("RedPajama StackExchange",), 2048, 8, 0.077, "text", template="text"),
)
"""Stage 2: 93 M pairs with the image first, 100 M with the text first, and text in LLaMA's mixture, two batches to each of
images (the authors' public answer)."""

INSTRUCT: tuple[Source, ...] = (Source("llava", ("LLaVA-1.5 665k",), 2048, 16, 1.0, template="turns"),)
"""Stage 4: Video-LaVIT's instructions, without those about videos."""


# ------------------------------------------------------------------------------------------------ the module


class LanguageTraining(nn.Module):
    """The language model with its projector, the frozen tokenizer, and the grammar that lays documents out.

    `generator` is what patches are drawn with where the tokenizer draws them.
    """

    def __init__(
        self,
        lm: InterleavedLM,
        tokenizer: LavitTokenizer,
        grammar: LavitGrammar,
        *,
        template: TemplateName,
        loss: LossKind,
        pack: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer.requires_grad_(False)
        self.grammar = grammar
        self.template: TemplateName = template
        self.loss: LossKind = loss
        self.pack, self.generator = pack, generator

    def prepare(self, batch: list[Document] | SourceBatch) -> Collated:
        """Images become tokens, documents become rows; of real sources at most as long as the source says."""
        documents = batch.documents if isinstance(batch, SourceBatch) else batch
        sequences = self.sequences(documents)
        if isinstance(batch, SourceBatch):
            sequences = [cut(words, batch.source.max_length) for words in sequences]
        return collated(
            sequences,
            pack=self.pack,
            least=min(2, parallel.world_size()),
            pad_id=self.grammar.special.pad,
            device=self.lm.llm.device,
        )

    def forward(self, batch: list[Document] | SourceBatch | Collated) -> Losses:
        """The mean over all words that are learned."""
        return self.lm.losses(batch if isinstance(batch, Collated) else self.prepare(batch))

    def sequences(self, documents: Sequence[Document]) -> list[Words]:
        """Documents as words, targets and vectors."""
        generators = None
        if self.tokenizer.selection == "sample":
            images = sum(len(document.images) for document in documents)
            seeds = torch.randint(2**62, (images,), generator=self.generator).tolist()
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        encoded = encode(self.tokenizer, documents, replies="generation", generators=generators)
        return [self.grammar.serialize(d, template=self.template, loss=self.loss) for d in encoded]


def cut(words: Words, most: int) -> Words:
    """A sequence cut to at most `most` words, before an image's vectors that would not fit as a whole."""
    if len(words) <= most:
        return words
    stop = min([most, *(start for start, end in words.input_spans if end > most)])
    whole = [number for number, (_, end) in enumerate(words.input_spans) if end <= stop]
    inputs = [words.inputs[number] for number in whole]
    return Words(words.ids[:stop], words.target[:stop], [words.input_spans[n] for n in whole], inputs=inputs)


def begin(
    system: LavitConfig,
    tokenizer: LavitTokenizer,
    *,
    template: TemplateName,
    loss: LossKind,
    pack: int | None,
    visual_loss: bool,
    selection: Selection,
    base: Path | None = None,
    base_dtype: BaseNumbers = "fp32",
    code_softmax: CodeSoftmax = "vocabulary",
    generator: torch.Generator,
) -> LanguageTraining:
    """The base language model with new rows (and adapters, where the system has some), and a projector whose merger begins
    as the tokenizer's. `code_softmax`: what the softmax of a code is over in the loss, the `vocabulary` (the paper), or
    what the grammar allows inside an `image`. A base in bfloat16 is one that stays as it is. Raises RebusError for a system whose language model is merged."""
    if not isinstance(system.language, LanguageConfig):
        raise RebusError(
            "A merged language model has no rows for new words to train, but this system's is one. Give the stage a "
            "`language` that names its folder as `base`."
        )
    if system.projector != system.tokenizer.merger:
        raise RebusError(
            "The projector's merger begins as the tokenizer's, but they have other sizes: "
            f"{system.projector} against {system.tokenizer.merger}. Make them the same."
        )
    if base_dtype != "fp32" and not system.language.lora_rank:
        raise RebusError(
            f"A language model that is trained as a whole is trained in float32, but `base_dtype` is {base_dtype} and there are no "
            "adapters. Give `lora_rank`, or leave the base in fp32."
        )
    dtype = dtype_of_base(base_dtype)
    llm, text = build_language(system.language, base=base, dtype=dtype, generator=generator)
    projector = LavitInputProjector(
        system.projector, llm.width, generator, running_mean=system.running_mean, words=system.words
    )
    projector.merger.load_state_dict(tokenizer.merger.state_dict())
    share_codebook(llm, tokenizer.quantizer.codebook_KC)
    tokenizer.choose(selection)
    spelling = replace(system.grammar, visual_loss=visual_loss)
    grammar = LavitGrammar(text, spelling, tokenizer.source)
    lm = InterleavedLM(llm, projector)
    if code_softmax == "image":
        # in an image the grammar lets the model choose from these alone: the mark that ends it, and the codes behind it
        lm.restrict_codes(CodePositions(spelling.end_image - llm.words, 1, spelling.codes + 1))
    return LanguageTraining(lm, tokenizer, grammar, template=template, loss=loss, pack=pack, generator=generator)


def trainable(
    system: LavitConfig, lr: float, row_lr: float, visual_lr: float, word_lr: float = 1e-6
) -> list[Trainable]:
    """Rows of new words, the projector, and adapters or, where there are none, the whole language model."""
    language = system.language
    adapters = isinstance(language, LanguageConfig) and language.lora_rank > 0
    return [
        Trainable("lm.llm.rows.*", row_lr),
        *way_in(system, visual_lr, word_lr),
        Trainable("lm.llm.*lora_*" if adapters else "lm.llm.base.*", lr),
    ]


def way_in(system: LavitConfig, lr: float, word_lr: float) -> list[Trainable]:
    """The projector; where something in it reads words, which was fitted to names, that and the merger before it learn at a rate of
    their own."""
    fitted = ("words", "merger") if system.words else ()
    return [
        *(Trainable(f"lm.input_projector.{part}.*", word_lr) for part in fitted),
        Trainable("lm.input_projector.*", lr),
    ]


def go_on(module: LanguageTraining, folder: Path) -> None:
    """Fills the module with what a stage left in `folder`. Raises RebusError when there is nothing, or it is another
    model's."""
    found, ours = stage_weights(folder / "weights.safetensors"), module.state_dict()
    found = {name: x for name, x in found.items() if name.startswith("lm.")}
    wrong = sorted(name for name, x in found.items() if name not in ours or ours[name].shape != x.shape)
    if wrong or not found:
        raise RebusError(
            f"The weights in {folder} are of another model: {len(wrong)} of their {len(found)} tensors do not fit "
            f"({', '.join(wrong[:3])}). Use the system that they were trained with."
        )
    module.load_state_dict(found, strict=False)


def mixture(data: Path, sources: Sequence[Source], *, batch: int | None, seed: int) -> SourceBatches:
    """Batches from the sets that the user has, which the JSON file `data` names."""
    places = read_places(data, sources)
    rank, world = parallel.rank(), parallel.world_size()
    return SourceBatches(sources, places, TEMPLATES, batch=batch, seed=seed, rank=rank, world=world)


def code_counts(codes: Sequence[Tensor], size: int) -> Tensor:
    """How often each of `size` codes occurs in each image: counts_IK."""
    return torch.stack([torch.bincount(ids_N, minlength=size).float() for ids_N in codes])
