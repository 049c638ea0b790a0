"""Attention gives the same whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rebus.nn import attention


@pytest.mark.parametrize("length", [65, 200])
def test_plain_products_and_the_kernel_agree_in_bfloat16(length, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 48, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    plain = attention.attend(q, k, v, heads=4)
    grads = torch.autograd.grad(plain.float().square().sum(), (q, k, v))
    with monkeypatch.context() as patch:
        patch.setattr(attention, "SHORT", 0)
        kernel = attention.attend(q, k, v, heads=4)
        wanted = torch.autograd.grad(kernel.float().square().sum(), (q, k, v))
    torch.testing.assert_close(plain, kernel, atol=1e-2, rtol=2e-2)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert F.cosine_similarity(ours.float().flatten(), theirs.float().flatten(), dim=0) > 0.999


def test_full_precision_takes_the_kernel():
    x = torch.randn(1, 8, 16)
    assert not attention.plain_products_are_faster(x, x, None, 0.0)
    assert attention.plain_products_are_faster(x.bfloat16(), x.bfloat16(), None, 0.0)
    mask, learned = torch.ones(8, 8, dtype=torch.bool), x.bfloat16().requires_grad_()
    assert not attention.plain_products_are_faster(x.bfloat16(), x.bfloat16(), mask, 0.0)
    assert attention.plain_products_are_faster(x.bfloat16(), learned, mask, 0.0)
    with torch.no_grad():
        assert not attention.plain_products_are_faster(x.bfloat16(), learned, mask, 0.0)


@pytest.mark.parametrize("kind", ["rule", "number"])
def test_plain_products_and_the_kernel_agree_under_a_mask(kind, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(3, length, 48, generator=generator).bfloat16().requires_grad_() for length in (20, 30, 30))
    mask = torch.rand(3, 1, 20, 30, generator=generator) < 0.5
    if kind == "rule":
        mask[1, :, 4] = False  # a query that may look at nothing
    else:
        mask = torch.randn(1, 1, 20, 30, generator=generator).bfloat16()
    plain = attention.attend(q, k, v, heads=4, mask=mask)
    grads = torch.autograd.grad(plain.float().square().sum(), (q, k, v))
    with monkeypatch.context() as patch:
        patch.setattr(attention, "SHORT", 0)
        kernel = attention.attend(q, k, v, heads=4, mask=mask)
        wanted = torch.autograd.grad(kernel.float().square().sum(), (q, k, v))
    if kind == "rule":
        assert plain[1, 4].abs().max() == 0
    torch.testing.assert_close(plain, kernel, atol=1e-2, rtol=2e-2)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert F.cosine_similarity(ours.float().flatten(), theirs.float().flatten(), dim=0) > 0.999
