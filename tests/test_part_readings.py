"""Parts of an image that are each read by a layer of their own."""

from __future__ import annotations

import torch
from tests import tiny

from rebus.nn.caption_rows import words_at
from rebus.nn.name_rows import NameFit, names_at, parts_from_names
from rebus.nn.part_readings import PartReadings, parts
from rebus.nn.text_tokenizer import ByteTokenizer
from rebus.papers.seed_x.projectors import SeedXInputProjector
from rebus.papers.seed_x.variants import TINY
from rebus.visual import Features

NAMES = ["bear", "red apple", "sailboat", "violin"]


def test_parts_are_means_of_squares() -> None:
    x = torch.randn(2, 16, 3, generator=tiny.generator(0))
    found = parts(x, 2)
    assert found.shape == (2, 4, 3)
    torch.testing.assert_close(found[:, 1], x[:, [2, 3, 6, 7]].mean(1))
    torch.testing.assert_close(parts(x, 4), x)


def test_readings_add_up_and_each_part_has_its_own() -> None:
    layer = PartReadings(2, 3, 5)
    x = torch.randn(2, 16, 3, generator=tiny.generator(0))
    assert not layer(x).any()  # it begins as nothing
    with torch.no_grad():
        layer.weight_SDC.normal_(generator=tiny.generator(1))
        layer.bias_D.normal_(generator=tiny.generator(2))
        read = layer(x)
        one_by_one = torch.stack([parts(x, 2)[:, s] @ layer.weight_SDC[s].T for s in range(4)], dim=1)
    torch.testing.assert_close(read, one_by_one.cumsum(1) + layer.bias_D)
    # where a thing lies is told apart, as it is not by a mean of one layer
    turned = x.view(2, 4, 4, 3).flip(1).flatten(1, 2)
    assert not torch.allclose(layer(turned)[:, -1], read[:, -1], atol=0.1)


def test_what_is_read_by_part_is_added_to_the_slots() -> None:
    plain, own = (SeedXInputProjector(TINY.projectors.into, tiny.generator(0), by_part=on) for on in (False, True))
    with torch.no_grad():
        own.parts.weight_SDC.normal_(generator=tiny.generator(1))
    x = torch.randn(3, 16, 24, generator=tiny.generator(2))
    seen = [Features(x[:1], "s"), Features(x[1:], "s")]
    torch.testing.assert_close(own(seen) - plain(seen), own.parts(x).flatten(0, 1), atol=1e-5, rtol=1e-4)


def test_the_sum_over_parts_is_fitted_to_names() -> None:
    """What tells two names apart is where a mark lies, which a mean over parts does not say."""
    own = tiny.generator(3)
    name_I = torch.arange(200) % 4
    x_ISC = 0.3 * torch.randn(200, 4, 6, generator=own)
    x_ISC[torch.arange(200), name_I] += 2.0
    table_VD = torch.randn(262, 16, generator=own)
    text = ByteTokenizer()
    fit = NameFit(steps=150, batch=64, lr=2e-2, dropped=0.1)
    weight_SDC, bias_D = parts_from_names(table_VD, text, x_ISC, name_I, NAMES, fit=fit, generator=own)
    made_ID = torch.einsum("isc,sdc->id", x_ISC, weight_SDC) + bias_D
    centre_D, spread = words_at(table_VD)
    torch.testing.assert_close(made_ID.mean(0), centre_D, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close((made_ID - centre_D).square().sum(1).mean().sqrt(), spread, atol=1e-4, rtol=1e-3)
    named = (torch.nn.functional.normalize(made_ID - centre_D, dim=1) @ names_at(table_VD, text, NAMES).T).argmax(1)
    assert (named == name_I).float().mean() > 0.9


def fitted(rank: int | None = None) -> PartReadings:
    """Layers of random numbers, of 2 x 2 parts."""
    layer = PartReadings(2, 3, 5, rank=rank)
    weight_SDC = torch.randn(4, 5, 3, generator=tiny.generator(1))
    layer.begin(weight_SDC, torch.randn(5, generator=tiny.generator(2)), torch.rand(4, 3, generator=tiny.generator(3)))
    return layer


@torch.no_grad()
def test_kept_vectors_are_read_by_the_part_in_which_they_lie() -> None:
    layer, own = fitted(), tiny.generator(5)
    keep_IN = torch.rand(3, 16, generator=own) < 0.4
    keep_IN[2] = torch.tensor([True] + [False] * 15)  # parts of which nothing is kept
    x_INC = torch.randn(3, 16, 3, generator=own)
    read_TD = layer.kept(x_INC[keep_IN], keep_IN)
    part_N = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3])
    for x_NC, keep_N, found_LD in zip(x_INC, keep_IN, read_TD.split(keep_IN.sum(1).tolist()), strict=True):
        said = torch.zeros(5)
        for found_D, n in zip(found_LD, keep_N.nonzero().flatten().tolist(), strict=True):
            share = 1 / int((keep_N & (part_N == part_N[n])).sum())
            said = said + share * layer.weight_SDC[part_N[n]] @ x_NC[n]
            torch.testing.assert_close(found_D, said + layer.bias_D)
    # of an image of which everything is kept the last says what parts say
    whole = layer.kept(x_INC.flatten(0, 1), torch.ones_like(keep_IN)).unflatten(0, (3, 16))
    torch.testing.assert_close(whole[:, -1], layer(x_INC)[:, -1])


@torch.no_grad()
def test_a_rank_comes_near_and_a_full_one_is_the_same() -> None:
    x = torch.randn(64, 16, 3, generator=tiny.generator(6))
    want = fitted()(x)
    torch.testing.assert_close(fitted(rank=5)(x), want, atol=1e-4, rtol=1e-4)
    errors = [(fitted(rank=rank)(x) - want).square().mean() for rank in (1, 3, 4)]
    assert errors[0] > errors[1] > errors[2] > 1e-4
