"""Multi-head attention, feed-forward and the pre-norm block, as vision transformers use them.

Dimension key: B batch · L queries · S keys · C width · H heads · E head width
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionBias = Literal["qkv", "qv"]
"""`qkv`: all three projections have a bias. `qv`: the key has none (EVA-CLIP); softmax cannot see a key bias anyway."""

SHORT = 128 * 128
"""Scores of one head up to which sequences count as short."""


def attend(
    q_BLC: Tensor, k_BSC: Tensor, v_BSC: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention over `heads` contiguous slices of the width → x_BLC.

    `mask` broadcasts to [B, H, L, S]: boolean (true = may look) or a number added to the scores.
    """
    q_BHLE, k_BHSE, v_BHSE = (rearrange(x, "b l (h e) -> b h l e", h=heads) for x in (q_BLC, k_BSC, v_BSC))
    if plain_products_are_faster(q_BHLE, k_BHSE, mask, dropout):
        weights_BHLS = _weights((q_BHLE * q_BHLE.shape[-1] ** -0.5) @ k_BHSE.transpose(-1, -2), mask)
        x_BHLE = weights_BHLS.to(v_BHSE.dtype) @ v_BHSE
    else:
        x_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHSE, v_BHSE, attn_mask=mask, dropout_p=dropout)
    return rearrange(x_BHLE, "b h l e -> b l (h e)")


def _weights(scores_BHLS: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scores under a mask as in `attend`; a query that may look at nothing has no weights, as in torch's
    attention."""
    if mask is None:
        return scores_BHLS.softmax(-1)
    if mask.dtype != torch.bool:
        return (scores_BHLS + mask).softmax(-1)
    return scores_BHLS.masked_fill(~mask, torch.finfo(scores_BHLS.dtype).min).softmax(-1) * mask


@contextlib.contextmanager
def short_attention(x: Tensor) -> Iterator[None]:
    """For networks that call torch's attention themselves, on short sequences: plain products where those are faster
    for what autocast makes of `x` (see `plain_products_are_faster`)."""
    if (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    ):
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def plain_products_are_faster(q_BHLE: Tensor, k_BHSE: Tensor, mask: Tensor | None, dropout: float) -> bool:
    """Whether torch's attention loses to three plain steps: in bfloat16 on a CPU, where its kernel (torch 2.13) takes
    twice as long for a hundred positions, above all backward; under a mask, where something is learned."""
    short = q_BHLE.shape[-2] * k_BHSE.shape[-2] <= SHORT
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BHLE, k_BHSE))
    on_cpu = q_BHLE.device.type == "cpu" and q_BHLE.dtype == torch.bfloat16
    return short and (mask is None or learns) and not dropout and on_cpu


class SelfAttention(nn.Module):
    """Self-attention with one fused projection; its rows are all of q, then all of k, then all of v."""

    def __init__(self, width: int, heads: int, *, bias: AttentionBias = "qkv") -> None:
        super().__init__()
        self.heads = heads
        self.bias = bias
        self.qkv = nn.Linear(width, 3 * width, bias=bias == "qkv")
        if bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLC: Tensor, mask: Tensor | None = None) -> Tensor:
        """x_BLC → x_BLC; `mask` as in `attend`."""
        bias: Tensor = self.qkv.bias
        if self.bias == "qv":
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q_BLC, k_BLC, v_BLC = F.linear(x_BLC, self.qkv.weight, bias).chunk(3, dim=-1)
        return self.proj(attend(q_BLC, k_BLC, v_BLC, self.heads, mask))


class Attention(nn.Module):
    """Attention with separate projections, over another sequence (possibly of another width) or over its own."""

    def __init__(self, width: int, heads: int, *, source_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width or width, width)
        self.value = nn.Linear(source_width or width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLC: Tensor, source_BSC: Tensor, mask: Tensor | None = None) -> Tensor:
        """x_BLC and what it looks at → x_BLC; `mask` as in `attend`; `dropout` of the weights while training."""
        dropout = self.dropout if self.training else 0.0
        q_BLC, k_BSC, v_BSC = self.query(x_BLC), self.key(source_BSC), self.value(source_BSC)
        return self.proj(attend(q_BLC, k_BSC, v_BSC, self.heads, mask, dropout))


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """x_BLC → x_BLC."""
        return self.fc2(F.gelu(self.fc1(x_BLC)))


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, width: int, heads: int, mlp_hidden: int, *, eps: float = 1e-6, bias: AttentionBias = "qkv"
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width, heads, bias=bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, mlp_hidden)

    def forward(self, x_BLC: Tensor, mask: Tensor | None = None) -> Tensor:
        """x_BLC → x_BLC; `mask` as in `attend`."""
        x_BLC = x_BLC + self.attn(self.norm1(x_BLC), mask)
        return x_BLC + self.mlp(self.norm2(x_BLC))


@torch.no_grad()
def init_transformer(blocks: nn.ModuleList, generator: torch.Generator | None = None) -> None:
    """Linear weights from a normal of std 0.02, biases zero; those of the two projections of block l (from 1) that
    write into the residual stream are smaller by sqrt(2 l), as in BEiT and EVA."""
    for depth, block in enumerate(blocks, 1):
        init_linears(block, generator)
        assert isinstance(block, Block)
        for linear in (block.attn.proj, block.mlp.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02 / (2 * depth) ** 0.5, generator=generator)


@torch.no_grad()
def init_linears(module: nn.Module, generator: torch.Generator | None = None, std: float | None = 0.02) -> None:
    """Every linear layer of `module`: weight from a normal of `std` (none: 1/√inputs, which keeps the size of what goes
    through), bias zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            own = part.in_features**-0.5 if std is None else std
            nn.init.trunc_normal_(part.weight, std=own, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


@torch.no_grad()
def init_linears_by_width(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Every linear layer of `module`: weight and bias uniform within ±1/sqrt(inputs), which is torch's own default."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            bound = part.in_features**-0.5
            for values in (part.weight, part.bias):
                if values is not None:
                    nn.init.uniform_(values, -bound, bound, generator=generator)
