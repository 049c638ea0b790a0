"""Has a language model that learned pictures kept its words? Its answers to plain questions beside those of the same
model without what was trained, and its perplexity on plain text.

Dimension key: I texts · C width of the sentence vectors
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files

import torch
from torch import Tensor

from rebus.document import Document, user
from rebus.evals.exam import Exam
from rebus.evals.figures import Figure, Found, Sample, compare
from rebus.lm import InterleavedLM, log_likelihoods
from rebus.sequence import Sequence as Words
from rebus.sequence import collate
from rebus.system import System

ANSWER_WORDS = 64
"""Longest answer to a plain question."""


def text_kept(exam: Exam) -> Iterator[Found]:
    """`text_kept/…`: similarity (cosine of the sentence vectors of its answer and the base model's, both greedy, where the
    exam has a sentence encoder), perplexity (on text written for this test).

    The base model is the same one with its adapters switched off. Yields nothing for a model without adapters.
    """
    adapters = list(adapted(exam.system.lm))
    if not adapters:
        return
    plain = json.loads(files("rebus.evals").joinpath("plain_text.json").read_text())
    if exam.sentences is not None:
        yield from _similarity(exam, plain["prompts"][: exam.config.n])
    texts = plain["held_back"][: exam.config.n]
    with torch.inference_mode():
        after = perplexity(exam.system, texts)
        with without_adapters(exam.system.lm):
            before = perplexity(exam.system, texts)
    yield Figure(
        "text_kept/perplexity",
        (after,),
        n=len(texts),
        chance=float(exam.system.grammar.text.words),
        ceiling=before,
        better="lower",
        note="ceiling: the base model's; chance: all words alike",
    )


def _similarity(exam: Exam, prompts: list[str]) -> Iterator[Found]:
    assert exam.sentences is not None
    documents = [Document((user(prompt),)) for prompt in prompts]
    settings = replace(exam.config, max_new_tokens=ANSWER_WORDS)
    greedy = replace(exam, config=replace(settings, temperature=0.0))
    answers = [m.text for m in greedy.replies("plain questions", documents, "text", 0)]
    with without_adapters(exam.system.lm):
        base = [m.text for m in greedy.replies("plain questions to the base model", documents, "text", 0)]
        sampled = replace(exam, config=replace(settings, temperature=exam.config.temperature or 0.7))
        again = [m.text for m in sampled.replies("the same, sampled", documents, "text", 0)]
    encode = exam.sentences()
    ours, theirs, theirs_again = (list(encode(texts)) for texts in (answers, base, again))

    def cosine(one: Tensor, other: Tensor) -> float:
        return float(one @ other)

    yield compare(
        "text_kept/similarity",
        cosine,
        [ours],
        theirs,
        chance=theirs[1:] + theirs[:1],
        ceiling=theirs_again,
        note="greedy answers; chance: the base model's answer to another question; ceiling: its own, sampled",
    )
    for prompt, answer, wanted, a, b in zip(prompts, answers, base, ours, theirs, strict=True):
        yield Sample("text_kept", asked=prompt, wanted=wanted, said=answer, score=cosine(a, b))


def perplexity(system: System, texts: Sequence[str]) -> float:
    """exp of the mean loss over all words of some texts but the first of each."""
    grammar, lm = system.grammar, system.lm
    begin = [] if grammar.special.bos is None else [grammar.special.bos]
    lost, count = 0.0, 0
    for text in texts:
        ids = begin + grammar.text.encode(text)
        target = [False] + [True] * (len(ids) - 1)
        lost -= float(log_likelihoods(lm, collate([Words(ids, target)]).to(lm.llm.device)).sum())
        count += len(ids) - 1
    return math.exp(lost / count)


def adapted(lm: InterleavedLM) -> Iterator[torch.nn.Module]:
    """The layers beside which an adapter was put."""
    return (module for module in lm.llm.modules() if callable(getattr(module, "enable_adapters", None)))


@contextlib.contextmanager
def without_adapters(lm: InterleavedLM) -> Iterator[None]:
    """The base model alone, for as long as the context lasts."""
    layers = list(adapted(lm))
    learning = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)  # type: ignore[operator]
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # type: ignore[operator]
        for parameter, learns in learning:  # which switching on and off changes
            parameter.requires_grad_(learns)
