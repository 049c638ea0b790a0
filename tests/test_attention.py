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
    assert not attention.plain_products_are_faster(x.bfloat16(), x.bfloat16(), torch.ones(8, 8, dtype=torch.bool), 0.0)
