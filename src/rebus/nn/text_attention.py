"""Attention of the text model, as one more implementation of Hugging Face's: theirs (SDPA), but plain products where these win.

torch's kernel for bfloat16 on a CPU (2.13) takes twice to four times as long as two products and a softmax while a model
is trained on rows of a few hundred words, most of it in the backward pass; that was a quarter of a training step.

Dimension key: B batch · H heads · K key heads · G query heads of a key head · L queries · S keys · E head width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rebus_sdpa"
"""What models name as their `attn_implementation`."""

SHORT = 768 * 768
"""Scores of one head up to which the products are taken; beyond, their memory costs more than their speed is worth."""


def text_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, H, L, E], key and value [B, K, S, E], additive mask [B, 1, L, S] or none (causal) → [B, L, H, E].

    The order, names and result are those that Hugging Face's models expect of an attention.
    """
    if not _products_win(query, key, attention_mask, dropout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    assert attention_mask is not None
    # rotary positions leave float32 behind under autocast
    query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
    batch, heads, length, width = query.shape
    key_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # the query heads of a key head lie behind one another, so that no key has to be copied
    query_BKTE = (query * scale).reshape(batch, key_heads, -1, width)
    scores_BKGLS = (query_BKTE @ key.transpose(-1, -2)).view(batch, key_heads, heads // key_heads, length, -1)
    weights_BKTS = (scores_BKGLS + attention_mask[:, :, None]).softmax(-1).view(batch, key_heads, -1, key.shape[2])
    x_BHLE = (weights_BKTS @ value).view(batch, heads, length, -1)
    return x_BHLE.transpose(1, 2).contiguous(), None


def _products_win(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Training in bfloat16 on a CPU under one mask for all heads, over rows that are not long."""
    cast_to = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    on_cpu = query.device.type == "cpu" and cast_to == torch.bfloat16
    one_mask = mask is not None and mask.shape[1] == 1 and mask.is_floating_point()
    return on_cpu and one_mask and not dropout and query.requires_grad and query.shape[2] * key.shape[2] <= SHORT


AttentionInterface.register(NAME, text_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
