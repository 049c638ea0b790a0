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
