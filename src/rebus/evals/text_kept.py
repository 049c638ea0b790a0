"""Has a language model that learned pictures kept its words? Its answers to plain questions beside those of the same
model without what was trained, and its perplexity on plain text.

Dimension key: I texts · C width of the sentence vectors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files

import torch
from torch import Tensor

from rebus.document import Document, user
from rebus.errors import RebusError
from rebus.evals.exam import Exam
from rebus.evals.figures import Figure, Found, Sample, compare
from rebus.lm import InterleavedLM, log_likelihoods
from rebus.nn.new_rows import RowInit
from rebus.nn.text_model import TextModel
from rebus.sequence import Sequence as Words
from rebus.sequence import collate
from rebus.system import System

ANSWER_WORDS = 64
"""Longest answer to a plain question."""


def text_kept(exam: Exam) -> Iterator[Found]:
    """`text_kept/…`: similarity (cosine of the sentence vectors of its answer and the base model's, both greedy, where the
    exam has a sentence encoder), perplexity (on text written for this test). Yields nothing for an exam without a base."""
    if exam.base is None:
        return
    base = base_system(exam.system, exam.base())
    plain = json.loads(files("rebus.evals").joinpath("plain_text.json").read_text())
    if exam.sentences is not None:
        yield from _similarity(exam, base, plain["prompts"][: exam.config.n])
    texts = plain["held_back"][: exam.config.n]
    after, before = perplexity(exam.system, texts), perplexity(base, texts)
    yield Figure(
        "text_kept/perplexity",
        (after,),
        n=len(texts),
        chance=float(exam.system.grammar.text.words),
        ceiling=before,
        better="lower",
        note="ceiling: the base model's; chance: all words alike",
    )


def base_system(system: System, llm: TextModel) -> System:
    """A base language model with the spelling of a system that was made from it: it has the words for images, but has
    learned none of them. Raises RebusError for a base that reads another number of words, or is of another width."""
    ours, theirs = (system.grammar.text.words, system.lm.llm.width), (llm.words, llm.width)
    if ours != theirs:
        raise RebusError(
            f"The base language model has {theirs[0]:,} words of width {theirs[1]}, but this system's text has {ours[0]:,} "
            f"of width {ours[1]}, so it was made from another. Give the base that it was made from."
        )
    if system.grammar.vocabulary > llm.vocabulary:
        llm.extend(system.grammar.vocabulary - llm.words, input_init=RowInit(std=0.0))
    return System(system.grammar, InterleavedLM(llm).eval(), name="base")


def _similarity(exam: Exam, base: System, prompts: list[str]) -> Iterator[Found]:
    assert exam.sentences is not None
    documents = [Document((user(prompt),)) for prompt in prompts]
    config = replace(exam.config, max_new_tokens=ANSWER_WORDS)

    def replies(what: str, system: System, temperature: float) -> list[str]:
        asked = replace(exam, system=system, config=replace(config, temperature=temperature))
        return [m.text for m in asked.replies(what, documents, "text", 0)]

    answers = replies("plain questions", exam.system, 0.0)
    wanted = replies("plain questions to the base model", base, 0.0)
    again = replies("the same, sampled", base, config.temperature or 0.7)
    encode = exam.sentences()
    ours, theirs, theirs_again = (list(encode(texts)) for texts in (answers, wanted, again))

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
    for prompt, answer, meant, a, b in zip(prompts, answers, wanted, ours, theirs, strict=True):
        yield Sample("text_kept", asked=prompt, wanted=meant, said=answer, score=cosine(a, b))


@torch.inference_mode()
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
