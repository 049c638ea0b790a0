"""The text model's attention is Hugging Face's, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rebus.nn import text_attention
from rebus.nn.text_model import build_causal_lm


class _Layer(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


def _inputs(length: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, length, 16, generator=generator) for heads in (9, 3, 3))
    documents = torch.arange(length) // 5
    sees = (documents[:, None] == documents) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(2, 1, length, length).masked_fill(~sees, torch.finfo(dtype).min)
    return (*(x.to(dtype).requires_grad_() for x in (query, key, value)), mask.to(dtype))


def test_products_and_the_kernel_agree_over_packed_rows(monkeypatch):
    query, key, value, mask = _inputs(37, torch.bfloat16)
    wanted = sdpa_attention_forward(_Layer(), query, key, value, mask)[0]
    grads = torch.autograd.grad(wanted.float().square().sum(), (query, key, value))
    monkeypatch.setattr(text_attention, "sdpa_attention_forward", None)
    ours = text_attention.text_attention(_Layer(), query, key, value, mask)[0]
    torch.testing.assert_close(ours, wanted, atol=2e-2, rtol=2e-2)
    for mine, theirs in zip(torch.autograd.grad(ours.float().square().sum(), (query, key, value)), grads, strict=True):
        assert F.cosine_similarity(mine.float().flatten(), theirs.float().flatten(), dim=0) > 0.999


@pytest.mark.parametrize("case", ["float32", "no mask", "no gradient", "dropout", "long"])
def test_all_else_takes_the_kernel(case, monkeypatch):
    query, key, value, mask = _inputs(8, torch.float32 if case == "float32" else torch.bfloat16)
    if case == "long":
        monkeypatch.setattr(text_attention, "SHORT", 63)
    if case == "no gradient":
        query = query.detach()
    given = None if case == "no mask" else mask
    assert not text_attention._products_win(query, key, given, 0.1 if case == "dropout" else 0.0)


def test_a_model_without_a_mask_is_still_causal():
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "llama", "vocab_size": 50, "num_key_value_heads": 2, **shape}
    model = build_causal_lm(config, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(12)[None]
    whole = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids[:, :7]).logits, whole[:, :7], atol=1e-5, rtol=1e-4)
