"""How the mini's ways into and out of the language model begin: as a reading that is right on the average, from which some ten
thousand documents can teach the rest. The paper begins from noise and has a hundred million.

Dimension key: I pictures · N patches · S vectors looked at, a square grid · Q queries · C width · D language-model width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rebus.diffusion.draft import least_squares
from rebus.mini.frozen import Frozen, named_tokens, take
from rebus.mini.named import load_named
from rebus.mini.wishes import Wishes
from rebus.nn.caption_rows import linear_from_captions
from rebus.nn.name_rows import linear_from_names
from rebus.nn.resampler import Resampler
from rebus.nn.word_readings import parts, words_of_names
from rebus.papers.seed_x.language_training import LanguageTraining
from rebus.papers.seed_x.projectors import SeedXInputProjector, SeedXOutputProjector
from rebus.papers.seed_x.vision import pool_rows


@torch.no_grad()
def begin_projectors(
    module: LanguageTraining, data: Frozen, generator: torch.Generator, *, named: bool, most: int = 2048
) -> None:
    """Sets both projectors. Each query looks at its own place; what it finds, mapped linearly, points to the words of the
    caption of `most` single pictures of the bank, or, where `named`, to the names of all that training names, to which what reads
    words is fitted then; what is drawn begins as the mean of the single pictures."""
    lm, singles = module.lm, data.singles("train", most)
    assert isinstance(lm.input_projector, SeedXInputProjector)
    into = lm.input_projector.resampler
    x_INC = data.rows("train", singles, "tokens")[0][:, 1:]
    look_nearby(into, x_INC[:512])
    for identity in (into.value, into.proj):
        identity.weight.copy_(torch.eye(into.config.width))
        identity.bias.zero_()
    text, table_VD = module.grammar.text, lm.llm.base.get_input_embeddings().weight
    if named:
        held = load_named(data.work, "train")
        some = torch.arange(len(held)).split(256)
        found_IQC = torch.cat([into(data.vision.vit(held.pixels(i))[:, 1:]) for i in some])
        real_IQ = torch.ones(found_IQC.shape[:2], dtype=torch.bool)
        weight_DC, bias_D = linear_from_names(
            table_VD, text, found_IQC, real_IQ, held.name_N, held.names, generator=generator
        )
    else:
        found_IQC = torch.cat([into(part) for part in x_INC.split(256)])
        captions = [data.bank("train").captions[i] for i in singles]
        lengths = [into.config.queries] * len(singles)
        weight_DC, bias_D = linear_from_captions(table_VD, text, found_IQC.flatten(0, 1), lengths, captions)
    into.proj.weight.copy_(weight_DC)
    into.proj.bias.copy_(bias_D)
    if named and (words := lm.input_projector.words) is not None:
        tokens, name_I, names = named_tokens(data, "train")
        some = np.array_split(np.arange(len(tokens)), 64)
        x_ISC = torch.cat([parts(take(tokens, i)[:, 1:], words.config.grid) for i in some])
        words.fit(x_ISC, name_I, words_of_names(text, names, words.config.words), generator=generator)
    begin_way_out(module, data, generator, most=most)


@torch.no_grad()
def begin_way_out(module: LanguageTraining, data: Frozen, generator: torch.Generator, *, most: int = 2048) -> None:
    """Sets the way out alone: each query looks at its own place, and what is drawn is the mean of `most` single pictures."""
    assert isinstance(module.lm.output_projector, SeedXOutputProjector)
    out_of = module.lm.output_projector.resampler
    x_INC = data.rows("train", data.singles("train", most), "tokens")[0][:, 1:]
    # hidden states are not known yet: noise of the size that a norm gives them stands for them
    look_nearby(out_of, torch.randn(256, out_of.config.queries, out_of.config.source_width, generator=generator))
    out_of.proj.bias.copy_(x_INC.mean((0, 1)))


@torch.no_grad()
def fit_drawings(module: LanguageTraining, data: Frozen, wishes: Wishes, generator: torch.Generator) -> None:
    """Fits what draws from words to the pictures of wishes, where the way out has that; nothing is added to it at first."""
    way_out = module.lm.output_projector
    assert isinstance(way_out, SeedXOutputProjector)
    if (words := way_out.words) is None:
        return
    way_out.resampler.proj.weight.zero_()
    way_out.resampler.proj.bias.zero_()
    tokens, _, _ = named_tokens(data, wishes.split)
    some = np.array_split(np.arange(len(wishes.rows)), 64)
    strip = module.tokenizer.config.pooled
    x_ISC = torch.cat([pool_rows(take(tokens, i)[:, 1:], strip) for i in some if len(i)])
    words.fit(wishes.said(module.grammar.text, words.config.words), x_ISC, generator=generator)


@torch.no_grad()
def look_nearby(resampler: Resampler, source_ISC: Tensor, *, spread: float = 0.5) -> None:
    """Sets three numbers of each head so that a query looks at the vectors around its place, as a Gaussian of `spread` cells of
    the queries' grid falls off; the other numbers stay as they are. `source_ISC` are examples of what is looked at."""
    config, side = resampler.config, round(source_ISC.shape[1] ** 0.5)
    sharpness = config.grid**2 / (2 * spread**2)
    each = config.width // config.heads
    keys_ISC = resampler.norm_source(resampler.source(source_ISC)) + resampler.positions(side)
    where_S3 = _places(side)
    wanted_TK = where_S3.expand(len(keys_ISC), -1, -1).flatten(0, 1)
    weight_KC, key_K = least_squares(keys_ISC.flatten(0, 1), wanted_TK, 1e-3)
    # -|q - k|² = 2 q·k - |k|², but for what is the same for all keys; attention divides by the root of a head's width
    query_Q3 = _places(config.grid)
    query_Q3 = torch.cat([2 * query_Q3[:, :2], -torch.ones(len(query_Q3), 1)], dim=1) * sharpness * each**0.5
    queries_QC = resampler.norm_queries(resampler.queries_QC) + resampler.position_QC
    weight_QC, query_K = least_squares(queries_QC, query_Q3, 1e-6)
    for first in range(0, config.width, each):
        rows = slice(first, first + 3)
        for layer, weight, bias in ((resampler.key, weight_KC, key_K), (resampler.query, weight_QC, query_K)):
            layer.weight[rows] = weight
            layer.bias[rows] = bias


def _places(side: int) -> Tensor:
    """Column, row, and the sum of their squares, of the cells of a grid over 0..1, row by row: [side², 3]."""
    along = (torch.arange(side) + 0.5) / side
    row, column = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([column, row, column.square() + row.square()], dim=-1).flatten(0, 1)
