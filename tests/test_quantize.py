"""Vector quantisation: nearest entries, both loss orders, running means, k-means, revival, usage.

Dimension key: T vectors · K codebook entries · C codebook width
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebus.errors import RebusError
from rebus.nn.discriminant import discriminant
from rebus.nn.quantize import (
    CodeUsage,
    EmaQuantizer,
    GroupedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    kmeans,
    nearest,
    usage,
)


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_the_nearest_entry_is_found_and_the_lowest_id_wins() -> None:
    x_TC, codebook_KC = torch.randn(50, 4, generator=seeded()), torch.randn(20, 4, generator=seeded(1))
    assert torch.equal(nearest(x_TC, codebook_KC), torch.cdist(x_TC.double(), codebook_KC.double()).argmin(-1))
    twice_KC = torch.cat([codebook_KC, codebook_KC])
    assert nearest(x_TC, twice_KC).max() < 20


def test_ids_are_those_of_float32_under_autocast_and_in_half_precision() -> None:
    quantizer = VectorQuantizer(256, 8, generator=seeded())
    x_TC = quantizer.codebook_KC.detach() + 1e-5 * torch.randn(256, 8, generator=seeded(1))
    assert torch.equal(quantizer.encode(x_TC), torch.arange(256))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(x_TC), torch.arange(256))


def test_the_orders_have_one_value_and_swapped_gradients() -> None:
    x = torch.randn(2, 5, 4, generator=seeded())
    gradients = {}
    for order in ("legacy", "standard"):
        quantizer = VectorQuantizer(7, 4, beta=0.25, order=order, generator=seeded(1))
        z = x.clone().requires_grad_()
        loss = quantizer(z).loss
        gradients[order] = (loss.detach(), *torch.autograd.grad(loss, (z, quantizer.codebook_KC)))
    (value, z_legacy, book_legacy), (same, z_standard, book_standard) = gradients["legacy"], gradients["standard"]
    torch.testing.assert_close(value, same)
    torch.testing.assert_close(z_standard, 0.25 * z_legacy)
    torch.testing.assert_close(book_legacy, 0.25 * book_standard)


def test_the_gradient_goes_straight_through() -> None:
    quantizer = VectorQuantizer(7, 4, generator=seeded())
    z = torch.randn(3, 4, generator=seeded(1)).requires_grad_()
    upstream = torch.randn(3, 4, generator=seeded(2))
    result = quantizer(z)
    torch.testing.assert_close(result.x, quantizer.decode(result.ids))
    (gradient,) = torch.autograd.grad(result.x, z, upstream)
    assert torch.equal(gradient, upstream)


def test_running_means_find_the_clusters_and_carry_no_gradient() -> None:
    centre_KC = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    quantizer = EmaQuantizer(4, 2, decay=0.5, generator=seeded())
    quantizer.codebook_KC.copy_(torch.cat([centre_KC + 1, torch.full((1, 2), 99.0)]))
    assert not quantizer.codebook_KC.requires_grad
    for step in range(20):
        x_TC = (centre_KC + 0.1 * torch.randn(32, 3, 2, generator=seeded(step))).flatten(0, 1)
        quantizer.update(x_TC, quantizer(x_TC).ids)
    torch.testing.assert_close(quantizer.codebook_KC[:3], centre_KC, atol=0.05, rtol=0)
    assert quantizer.codebook_KC[3].tolist() == [99.0, 99.0]  # never hit, never moved


def test_revived_entries_are_vectors_of_the_batch_and_start_their_means_again() -> None:
    quantizer = EmaQuantizer(6, 2, generator=seeded())
    x_TC = torch.randn(4, 2, generator=seeded(1))
    quantizer.update(x_TC, torch.tensor([0, 0, 1, 2]))
    before_KC = quantizer.codebook_KC.clone()
    dead_K = quantizer.hits_K == 0
    assert quantizer.revive(dead_K, x_TC, seeded(2)) == 3
    assert torch.equal(quantizer.codebook_KC[:3], before_KC[:3])
    assert all((row == x_TC).all(-1).any() for row in quantizer.codebook_KC[3:])
    assert not quantizer.hits_K[3:].any()
    with_more = VectorQuantizer(9, 2, generator=seeded())
    assert with_more.revive(torch.ones(9, dtype=torch.bool), x_TC, seeded()) == 9  # more than there are vectors


def test_kmeans_recovers_separate_clusters_and_is_seeded() -> None:
    centre_KC = 20 * torch.eye(4)
    x_TC = (centre_KC + 0.1 * torch.randn(64, 4, 4, generator=seeded())).flatten(0, 1)
    quantizer = VectorQuantizer(32, 4, generator=seeded())
    quantizer.start_from(x_TC, seeded(1))
    assert torch.cdist(centre_KC, quantizer.codebook_KC).min(dim=1).values.max() < 0.3
    assert torch.equal(kmeans(x_TC, 5, seeded(3)), kmeans(x_TC, 5, seeded(3)))
    assert quantizer.codebook_KC.requires_grad


def test_usage_counts_entries_and_perplexity() -> None:
    assert usage(torch.arange(8).repeat(3), 16) == (8, pytest.approx(8))
    assert usage(torch.zeros(5, dtype=torch.long), 16) == (1, pytest.approx(1))
    counts = CodeUsage(4, decay=0.5)
    for _ in range(10):
        counts.add(torch.tensor([[0, 1], [1, 1]]))
    assert counts.dead_K().tolist() == [False, False, True, True]


def test_grouped_codes_say_their_place():
    generator = torch.Generator().manual_seed(0)
    quantizer = GroupedQuantizer(12, 3, places=4)
    x_INC = torch.randn(50, 4, 3, generator=generator) + torch.arange(4.0)[None, :, None]
    quantizer.start_from(x_INC.flatten(0, 1), generator)
    ids_IN = quantizer.encode(x_INC)
    assert (ids_IN // 3 == torch.arange(4)).all() and len(ids_IN.unique()) == 12
    for place in range(4):  # each the nearest of its own
        own_KC = quantizer.codebook_KC[3 * place : 3 * place + 3]
        assert torch.equal(ids_IN[:, place] - 3 * place, torch.cdist(x_INC[:, place], own_KC).argmin(1))
    assert torch.equal(quantizer(x_INC).ids, ids_IN)
    dead_K = torch.zeros(12, dtype=torch.bool)
    dead_K[[1, 10]] = True
    assert quantizer.revive(dead_K, x_INC.flatten(0, 1), generator) == 2
    for entry in (1, 10):
        assert (x_INC[:, entry // 3] == quantizer.codebook_KC[entry]).all(1).any()
    with pytest.raises(RebusError, match="evenly"):
        GroupedQuantizer(10, 3, places=4)


def test_residual_codes_add_up_and_the_first_say_the_most() -> None:
    generator = torch.Generator().manual_seed(0)
    quantizer = ResidualQuantizer(32, 3, places=4)
    x_INC = torch.randn(200, 1, 3, generator=generator).expand(200, 4, 3)
    quantizer.start_from(x_INC.flatten(0, 1), generator)
    ids_IN = quantizer.encode(x_INC)
    assert (ids_IN // 8 == torch.arange(4)).all()
    sums_INC = quantizer.decode(ids_IN)
    assert torch.allclose(sums_INC[:, -1], quantizer.codebook_KC[ids_IN].sum(1), atol=1e-6)
    left_N = (x_INC - sums_INC).square().sum(-1).mean(0)
    assert (left_N.diff() < 0).all() and left_N[0] < 0.5 * x_INC[:, 0].square().sum(-1).mean()
    for place in range(4):  # each the nearest of its own to what was left
        left_IC = x_INC[:, place] - (sums_INC[:, place - 1] if place else 0)
        own_KC = quantizer.codebook_KC[8 * place : 8 * place + 8]
        assert torch.equal(ids_IN[:, place] - 8 * place, torch.cdist(left_IC, own_KC).argmin(1))
    quantized = quantizer(x_INC)
    assert torch.equal(quantized.ids, ids_IN) and torch.allclose(quantized.x, sums_INC, atol=1e-6)
    dead_K = torch.zeros(32, dtype=torch.bool)
    dead_K[[2, 30]] = True
    assert quantizer.revive(dead_K, x_INC.flatten(0, 1), generator) == 2
    assert (x_INC[:, 0] == quantizer.codebook_KC[2]).all(1).any()  # nothing was taken from the first place's
    assert not (x_INC[:, 3] == quantizer.codebook_KC[30]).all(1).any()


def of_eight_names(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Vectors whose first two numbers their name gives, nearly, and whose others, which are larger, it does not."""
    name_T = torch.arange(400) % 8
    angle_T = name_T * torch.pi / 4
    named_T2 = torch.stack([angle_T.cos(), angle_T.sin()], dim=1) + 0.02 * torch.randn(400, 2, generator=generator)
    return torch.cat([named_T2, 5 * torch.randn(400, 3, generator=generator)], dim=1), name_T


def test_names_differ_along_the_discriminant_and_of_one_name_all_vary_by_one() -> None:
    x_TC, name_T = of_eight_names(torch.Generator().manual_seed(3))
    along_CP = discriminant(x_TC, name_T, 2, ridge=1e-8)
    means_QC = torch.stack([x_TC[name_T == name].mean(0) for name in range(8)])
    own_TP = (x_TC - means_QC[name_T]) @ along_CP
    torch.testing.assert_close(own_TP.T @ own_TP / 400, torch.eye(2), atol=1e-2, rtol=0)
    # a number says nothing of a name where it varies as much within each
    assert (along_CP[2:] * x_TC[:, 2:].std(0)[:, None]).abs().max() < 0.5
    apart_QQ = torch.cdist(means_QC @ along_CP, means_QC @ along_CP)
    assert apart_QQ[~torch.eye(8, dtype=torch.bool)].min() > 10


def test_first_codes_that_look_for_a_name_know_it_and_the_rest_bring_what_varies() -> None:
    generator = torch.Generator().manual_seed(3)
    x_TC, name_T = of_eight_names(generator)
    x_INC = x_TC[:, None].expand(-1, 4, -1)
    told = ResidualQuantizer(64, 5, places=4, meaning=2, directions=2)
    told.along_CP.copy_(discriminant(x_TC, name_T, 2))
    plain = ResidualQuantizer(64, 5, places=4)
    sure, left = [], []
    for quantizer in (told, plain):
        quantizer.start_from(x_INC.flatten(0, 1), torch.Generator().manual_seed(0), steps=20)
        ids_IN = quantizer.encode(x_INC)
        # pictures whose name is the most frequent one of their first code
        of_code_KQ = torch.zeros(16, 8).index_put_((ids_IN[:, 0], name_T), torch.ones(400), accumulate=True)
        sure.append(float(of_code_KQ.amax(1).sum()) / 400)
        left.append((x_INC - quantizer.decode(ids_IN)).square().sum(-1).mean(0))
        assert torch.equal(quantizer(x_INC).ids, ids_IN)
    assert sure[0] > 0.95 and sure[1] < 0.5
    assert left[0][3] < 0.5 * left[0][1]  # what the first did not look for is left to the others
    assert "along_CP" in told.state_dict() and "along_CP" not in plain.state_dict()
    for meaning, directions in ((5, 2), (1, 6), (-1, 2)):
        with pytest.raises(RebusError, match="Give 0 to 4 places and 1 to 5 directions"):
            ResidualQuantizer(64, 5, places=4, meaning=meaning, directions=directions)
