"""The four parts together: a system reads a document and writes the next message, in words and pictures.

Understanding, drawing, editing and interleaved chat are all the same verb on different documents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from rebus.checkpoint import SavedSystem
from rebus.document import Box, Document, Image, Message, Part
from rebus.errors import RebusError
from rebus.generate import Decoder
from rebus.grammar import Grammar, Modality, TemplateName
from rebus.lm import InterleavedLM
from rebus.narrate import Event, Finished, Span
from rebus.sampling import Sampling
from rebus.sequence import Sequence as Words
from rebus.system.dice import Dice
from rebus.system.encoding import encode
from rebus.system.engine import Engine, Job
from rebus.visual import Detokenizer, Drawn, DrawsReplies, Editor, ImageSampling, Progress, VisualTokenizer

Scorer = Callable[[Document, Message], float]
"""How good a reply to a document is; higher is better."""


@dataclass(eq=False)
class System:
    """A model that can be talked to."""

    grammar: Grammar
    lm: InterleavedLM
    tokenizer: VisualTokenizer | None = None
    """absent: prompts of text, or of images that already carry tokens"""
    detokenizer: Detokenizer | None = None
    """absent: images stay tokens"""
    name: str = ""
    """`PAPER:VARIANT`, as it was loaded"""
    config: Any = None
    """what it was built from, as `load` knows it"""
    folder: Path | None = None
    """where its weights lie; None: they are random, or the paper does not say"""
    adapter: str = ""
    """which speciality it has been given; empty: none"""
    weights: str = ""
    """Hash of the weights of all parts, by which what was drawn can be told from what others draw; empty: not known"""

    def with_adapter(self, adapter: Path | str) -> System:
        """This system with a speciality: a further one, which shares all weights that the adapter does not bring. This one
        stays as it is, and both can be used side by side. `adapter` is a folder, or the name of one beside these weights.

        Raises RebusError for a paper without adapters, a name that is not there, and an adapter of another base.
        """
        from rebus.system.loading import adapted  # which imports this module

        return adapted(self, adapter)

    @property
    def edits(self) -> bool:
        """Whether drawing can keep what a source image shows."""
        return isinstance(self.detokenizer, Editor) and self.detokenizer.edits

    def stream(
        self,
        document: Document,
        *,
        modality: Modality = "any",
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        source: PIL.Image.Image | None = None,
        template: TemplateName = "chat",
    ) -> Iterator[str | Image | Box | Progress]:
        """The assistant's reply as it comes: text, images and boxes, and `Progress` while an image is drawn.

        Closing the iterator cancels. `source` is what a detokenizer that edits starts from, by default the document's
        last image. Without a generator the same document gets the same reply. Raises RebusError for a document that
        this model cannot read, one too long for it, and a drawing setting that says nothing to its detokenizer.
        """
        sampling = sampling or Sampling()
        if sampling.best_of > 1:
            raise RebusError(
                f"A stream cannot take back what it said, but best_of is {sampling.best_of}. Use `generate` with a scorer."
            )
        self._check_images(modality, sampling)
        dice = Dice(generator)
        prompt = self.prompts([document], [dice], template, modality)[0]
        source = source or last_picture(document)
        with closing(self._decoded([Job(self, prompt, modality, sampling, dice.words)])) as decoded:
            for _, part in decoded:
                if isinstance(part, Image):
                    yield from self.draw([part], [source], [dice.image()], self.as_written(sampling.image))
                else:
                    yield part

    def generate(
        self,
        documents: Sequence[Document],
        *,
        modality: Modality = "any",
        sampling: Sampling | None = None,
        generators: Sequence[torch.Generator] | None = None,
        scorer: Scorer | None = None,
        rows: int = 16,
        template: TemplateName = "chat",
    ) -> list[Message]:
        """The assistant's reply to each document. Replies run side by side in up to `rows` rows of the decoder, and a
        document's reply does not depend on its neighbours. With `best_of` above 1 that many replies to each are
        sampled and drawn, and the one kept that `scorer` likes best; a scorer whose `before_drawing` is true is shown
        images as tokens, and only the pictures of the one that is kept are drawn.

        Raises RebusError as `stream` does, and when `best_of` lacks a scorer or generators do not match documents.
        """
        sampling = sampling or Sampling()
        if generators is not None and len(generators) != len(documents):
            raise RebusError(
                f"Every document needs a generator of its own, but there are {len(documents)} documents and "
                f"{len(generators)} generators. Give as many, or none."
            )
        if sampling.best_of > 1 and scorer is None:
            raise RebusError(
                f"The best of {sampling.best_of} replies was asked for without saying what is best. "
                "Give `scorer=`, a function of document and message."
            )
        self._check_images(modality, sampling)
        dice = [Dice(None if generators is None else generators[i]) for i in range(len(documents))]
        prompts = self.prompts(documents, dice, template, modality)
        each = sampling.best_of
        jobs = [(i, prompts[i], one) for i in range(len(documents)) for one in dice[i].split(each)]
        decoded = [Job(self, prompt, modality, sampling, one.words) for _, prompt, one in jobs]
        said: dict[Job, list[Part]] = {job: [] for job in decoded}
        for job, part in self._decoded(decoded, rows):
            said[job].append(part)
        replies = list(said.values())

        def drawn(chosen: Sequence[int]) -> list[Message]:
            sources = [last_picture(documents[jobs[j][0]]) for j in chosen]
            return self._drawn(
                [replies[j] for j in chosen], sources, [jobs[j][2] for j in chosen], self.as_written(sampling.image)
            )

        every = range(len(jobs))
        if scorer is None or each == 1:
            return drawn(every)
        early = getattr(scorer, "before_drawing", False)
        judged = [Message("assistant", joined(reply)) for reply in replies] if early else drawn(every)
        scores = [scorer(documents[jobs[j][0]], judged[j]) for j in every]
        best = [max(every[i * each : (i + 1) * each], key=scores.__getitem__) for i in range(len(documents))]
        return drawn(best) if early else [judged[j] for j in best]

    def _decoded(self, jobs: Sequence[Job], rows: int = 1) -> Generator[tuple[Job, Part]]:
        """What the replies say as it comes, images as tokens. Closing the iterator cancels. Raises what a job raises."""
        wanted = max((job.rows for job in jobs), default=1)
        longest = max((len(job.prompt) + job.sampling.max_new_tokens for job in jobs), default=1)
        engine = Engine(rows=max(min(rows, wanted * len(jobs)), wanted), capacity=longest)
        for job in jobs:
            engine.join(job)
        try:
            while not engine.idle:
                for job, said in engine.step():
                    if isinstance(said, RebusError):
                        raise said
                    if not isinstance(said, Finished):
                        yield job, said
        finally:
            for job in jobs:
                engine.leave(job)

    def _drawn(
        self,
        replies: list[list[Part]],
        sources: list[PIL.Image.Image | None],
        dice: list[Dice],
        sampling: ImageSampling,
    ) -> list[Message]:
        """Messages of the replies, their images drawn."""
        where = [(r, p) for r, reply in enumerate(replies) for p, part in enumerate(reply) if isinstance(part, Image)]
        images = [part for reply in replies for part in reply if isinstance(part, Image)]
        generators = [dice[r].image() for r, _ in where]
        drawn = [d for d in self.draw(images, [sources[r] for r, _ in where], generators, sampling)]
        for (r, p), image in zip(where, (d for d in drawn if isinstance(d, Image)), strict=True):
            replies[r][p] = image
        return [Message("assistant", joined(reply)) for reply in replies]

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        report: str | os.PathLike[str] | None = None,
        licence: str = "other",
        dtype: torch.dtype | None = None,
        overwrite: bool = False,
    ) -> SavedSystem:
        """Writes a folder that stands alone and that `load(folder)` reads, whole or not at all: safetensors of every part
        with adapters folded in, config, text tokenizer, and a model card. `report` is a folder that `rebus eval` wrote,
        whose figures and picture sheets go into the card; `licence` is the card's; `dtype` is what numbers are stored as
        (None: as they are held).

        Raises RebusError if there is something at `folder` and not `overwrite`, for a system that was loaded without its
        tokenizer or language model or that `load` did not make, and for weights held in int8.
        """
        from rebus.system.loading import paper_module  # it imports this module
        from rebus.system.pretrained import save_pretrained

        paper, portable = paper_module(self.name, "portable", "cannot be saved to stand alone")
        if self.config is None:
            raise RebusError(
                f"This system has no config that could be written beside its weights; its name is {self.name!r}. "
                "Only what `load` returned can be saved."
            )
        return save_pretrained(
            self,
            folder,
            portable.portable,
            paper.__doc__ or "",
            report=report,
            licence=licence,
            dtype=dtype,
            overwrite=overwrite,
        )

    # ------------------------------------------------------------------------------------------ the steps, for servers

    def prompts(
        self, documents: Sequence[Document], dice: Sequence[Dice], template: TemplateName, modality: Modality
    ) -> list[Words]:
        """Documents → prompts with the assistant's message open: images encoded, everything laid out."""
        if self.tokenizer is not None:
            generators = [one.encoding for document, one in zip(documents, dice, strict=True) for _ in document.images]
            documents = encode(self.tokenizer, documents, replies="understanding", generators=generators)
        return [self.grammar.serialize(d, reply=modality, template=template) for d in documents]

    def decoder(self, *, rows: int, capacity: int) -> Decoder:
        """A decoder of so many rows, each for a prompt and its reply of together at most `capacity` words."""
        return Decoder(self.lm, self.grammar, rows=rows, capacity=capacity)

    def parts(self, event: Event, prompt: Words | None = None) -> list[Part]:
        """What an event of the decoder says, images as tokens; `prompt` is what it replies to."""
        match event:
            case str():
                return [event]
            case Span(hidden_ND=None):
                return self.grammar.read(event.ids)
            case Span():
                assert self.lm.output_projector is not None
                seen = prompt.inputs[-1] if prompt is not None and prompt.inputs else None
                return [Image(generated=self.lm.output_projector(event.hidden_ND, seen))]
        return []

    def as_written(self, sampling: ImageSampling) -> ImageSampling:
        """How images of a reply are drawn: a detokenizer may have a way of its own for tokens that a language model wrote."""
        return self.detokenizer.as_written(sampling) if isinstance(self.detokenizer, DrawsReplies) else sampling

    def _check_images(self, modality: Modality, sampling: Sampling) -> None:
        """Raises RebusError as `check_drawing` does, before any word was written, where a reply may hold images."""
        if modality != "text":
            self.check_drawing(self.as_written(sampling.image))

    def check_drawing(self, sampling: ImageSampling) -> None:
        """Raises RebusError for a setting that says nothing to the detokenizer: it would be passed over in silence."""
        if self.detokenizer is None:
            return
        settings = self.detokenizer.settings
        if unused := sampling.unused(settings):
            known = ", ".join(sorted(settings)) or "no setting"
            raise RebusError(
                f"{self.name} draws by {known}, but {' and '.join(unused)} was given, which says nothing to its image decoder. "
                "Leave it out, or name another model."
            )

    def draw(
        self,
        images: Sequence[Image],
        sources: Sequence[PIL.Image.Image | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | Image]:
        """Images with tokens → `Progress`, then the same images with pixels and how they were drawn; without a detokenizer
        as they are. Every image has a fresh generator. Raises RebusError for a setting that says nothing to this detokenizer."""
        if self.detokenizer is None or not images:
            yield from images
            return
        self.check_drawing(sampling)
        tokens = [image.generated for image in images if image.generated is not None]
        drawing = self.detokenizer.decode(
            tokens, sources=sources, negatives=[None] * len(tokens), generators=generators, sampling=sampling
        )
        done = iter(images)
        seeds = [generator.initial_seed() for generator in generators]
        how = (
            Drawn(self.name, self.weights, seed, sampling, source if self.edits else None)
            for seed, source in zip(seeds, sources, strict=True)
        )
        for piece in drawing:
            yield piece if isinstance(piece, Progress) else Image(piece, None, next(done).generated, next(how))


def last_picture(document: Document) -> PIL.Image.Image | None:
    """The pixels of the last image that has any."""
    return next((image.pixels for image in reversed(document.images) if image.pixels is not None), None)


def joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with neighbouring texts made one."""
    out: list[Part] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)
