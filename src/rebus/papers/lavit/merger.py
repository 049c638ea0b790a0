"""LaVIT's token merger: kept patches take up what the dropped ones hold (section 3.1, "token merger").

    for each block:   x += causal attention among kept patches
                      x += attention to the dropped patches (as the vision encoder gave them)
                      x += feed-forward

`Merger.forward` computes every row, kept or not, as the published code does; the selector is trained through it.
`Merger.packed` computes kept rows only.

Dimension key: I images · N patches · T kept patches of all images · S dropped ones · L rows of the longest image ·
C width · H heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.attention import MLP, Attention, SelfAttention, attend, init_linears
from rebus.nn.positions import cosine_grid
from rebus.papers.lavit.rows import slots, spread

Softmax = Literal["policy_eps", "masked"]
"""What attention makes of keys that a query may not see. `policy_eps`: the published form. The maximum is taken over
forbidden keys too and a small epsilon is added everywhere, so forbidden keys leak a little, and where the best score is a
forbidden key's, attention falls back to the mean of all. `masked`: they get nothing; a query that may see no key gets no
update."""

EPS = 1e-6
"""The epsilon of `policy_eps`."""


@dataclass(frozen=True)
class MergerConfig:
    """Sizes of the merger; the defaults are the published ones."""

    width: int = 1408
    """Width of the patch vectors."""
    depth: int = 12
    """Blocks."""
    heads: int = 16
    """Attention heads."""
    mlp_hidden: int = 6144
    """Hidden width of the feed-forward."""
    eps: float = 1e-5
    """Epsilon of the layer norms."""
    grid: int = 0
    """Not 0: patches are told where in a grid of this side they lie, by cosines that are added to them; for encoders whose
    patches know little of their places. (The paper adds nothing.)"""
    softmax: Softmax = "policy_eps"
    """What attention makes of forbidden keys. Released weights were trained with `policy_eps`."""


def softmax_over(scores_IHNS: Tensor, allow_INS: Tensor, form: Softmax) -> Tensor:
    """Attention weights in float32. `allow_INS` is 0 or 1 and may carry a gradient: it multiplies the exponentials."""
    allow_I1NS = allow_INS[:, None].float()
    if form == "policy_eps":
        highest = scores_IHNS.amax(-1, keepdim=True)
        e = (scores_IHNS - highest).float().exp() * allow_I1NS
        return (e + EPS / e.shape[-1]) / (e.sum(-1, keepdim=True) + EPS)
    highest = scores_IHNS.masked_fill(allow_I1NS == 0, float("-inf")).amax(-1, keepdim=True)
    highest = highest.masked_fill(highest == float("-inf"), 0)
    # a forbidden key may score higher than every allowed one; it weighs nothing, but must not overflow
    e = (scores_IHNS - highest).clamp(max=0).float().exp() * allow_I1NS
    return e / e.sum(-1, keepdim=True).clamp(min=1e-20)


class MergerBlock(nn.Module):
    """One block. Both attentions come in a dense form, over all patches, and the block also in a packed one."""

    entries = ("packed",)

    def __init__(self, config: MergerConfig) -> None:
        super().__init__()
        width, heads, eps = config.width, config.heads, config.eps
        self.softmax: Softmax = config.softmax
        self.norm0 = nn.LayerNorm(width, eps=eps)
        self.causal = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.cross = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.mlp_hidden)

    # -------------------------------------------------------------------------------------- dense

    def among_kept(self, x_INC: Tensor, allow_INN: Tensor) -> Tensor:
        """What causal attention gives, of the normalised rows."""
        q_INC, k_INC, v_INC = self.causal.qkv(x_INC).chunk(3, dim=-1)
        return self.causal.proj(self._weigh(q_INC, k_INC, v_INC, allow_INN))

    def to_dropped(self, x_INC: Tensor, source_INC: Tensor, drop_IN: Tensor) -> Tensor:
        """What attention to the dropped patches gives, of the normalised rows."""
        allow_INN = drop_IN[:, None, :].expand(-1, x_INC.shape[1], -1)
        q_INC, k_INC, v_INC = self.cross.query(x_INC), self.cross.key(source_INC), self.cross.value(source_INC)
        update_INC = self.cross.proj(self._weigh(q_INC, k_INC, v_INC, allow_INN))
        if self.softmax == "policy_eps":
            return update_INC
        return update_INC * (drop_IN.sum(1) > 0).to(update_INC)[:, None, None]

    def _weigh(self, q_INC: Tensor, k_INC: Tensor, v_INC: Tensor, allow_INN: Tensor) -> Tensor:
        q, k, v = (rearrange(x, "i n (h e) -> i h n e", h=self.causal.heads) for x in (q_INC, k_INC, v_INC))
        weights = softmax_over((q * q.shape[-1] ** -0.5) @ k.mT, allow_INN, self.softmax)
        return rearrange(weights.to(v.dtype) @ v, "i h n e -> i n (h e)")

    def forward(self, x_INC: Tensor, source_INC: Tensor, keep_IN: Tensor) -> Tensor:
        """All rows → all rows. `keep_IN` is 0 or 1 and may carry a gradient."""
        own_NN = torch.eye(x_INC.shape[1], device=x_INC.device)
        allow_INN = (keep_IN[:, None, :] * (1 - own_NN) + own_NN).tril()
        x_INC = x_INC + self.among_kept(self.norm0(x_INC), allow_INN)
        x_INC = x_INC + self.to_dropped(self.norm1(x_INC), source_INC, 1 - keep_IN)
        return x_INC + self.mlp(self.norm2(x_INC))

    # -------------------------------------------------------------------------------------- packed

    def packed(self, x_TC: Tensor, source_SC: Tensor, kept_IL: Tensor, dropped_IL: Tensor) -> Tensor:
        """Kept rows → kept rows, with clean masks whatever `softmax` says; an image with no source gets no update from it."""
        heads = self.causal.heads
        q_ILC, k_ILC, v_ILC = spread(self.causal.qkv(self.norm0(x_TC)), kept_IL).chunk(3, dim=-1)
        # in a row that is padded behind its words, causality alone keeps the padding out of sight
        earlier_LL = torch.ones(q_ILC.shape[1], q_ILC.shape[1], dtype=torch.bool, device=x_TC.device).tril()
        x_TC = x_TC + self.causal.proj(attend(q_ILC, k_ILC, v_ILC, heads, earlier_LL)[kept_IL])
        if len(source_SC):
            q_ILC = spread(self.cross.query(self.norm1(x_TC)), kept_IL)
            k_ILC, v_ILC = (spread(map_(source_SC), dropped_IL) for map_ in (self.cross.key, self.cross.value))
            some_I = dropped_IL.any(1)
            seen_IL = dropped_IL | ~some_I[:, None]  # softmax needs something to see; what it finds there is not used
            found_TC = self.cross.proj(attend(q_ILC, k_ILC, v_ILC, heads, seen_IL[:, None, None])[kept_IL])
            x_TC = x_TC + found_TC * some_I[kept_IL.nonzero()[:, 0], None]
        return x_TC + self.mlp(self.norm2(x_TC))


class Merger(nn.Module):
    """Patch features and which are kept → the kept ones, each with something of the dropped ones."""

    def __init__(self, config: MergerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if config.width % config.heads:
            raise RebusError(
                f"The merger's {config.heads} heads share its width of {config.width}, which they do not divide. "
                "Choose other sizes."
            )
        self.config = config
        self.place_NC = nn.Buffer(cosine_grid(config.grid, config.width), persistent=False) if config.grid else None
        self.source_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.blocks = nn.ModuleList(MergerBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        init_linears(self, generator, std=None)  # at the published width 0.027, at the mini's 0.07

    def forward(self, x_INC: Tensor, keep_IN: Tensor) -> Tensor:
        """Raw features and a mask of 0 and 1 → all rows x_INC; those of dropped patches mean nothing. The mask may carry
        a gradient."""
        keep_IN, x_INC = keep_IN.to(x_INC.dtype), self.placed(x_INC)
        source_INC = self.source_norm(x_INC)
        for block in self.blocks:
            x_INC = block(x_INC, source_INC, keep_IN)
        return self.norm(x_INC)

    def placed(self, x_INC: Tensor) -> Tensor:
        """Features, with their places added where the config says so."""
        return x_INC if self.place_NC is None else x_INC + self.place_NC.to(x_INC.dtype)

    def kept(self, x_INC: Tensor, keep_IN: Tensor) -> Tensor:
        """Raw features and a bool mask → the kept rows x_TC, image by image, in raster order: the packed form where the
        config's softmax allows it."""
        if self.config.softmax == "policy_eps":
            return self(x_INC, keep_IN)[keep_IN]
        return self.packed(x_INC, keep_IN)

    def packed(self, x_INC: Tensor, keep_IN: Tensor) -> Tensor:
        """As `kept`, computing kept rows only, with clean masks whatever the config says: where no forbidden key scores
        far above the allowed ones, the two forms are the same to five digits."""
        dropped_I, x_INC = (~keep_IN).sum(1), self.placed(x_INC)
        source_SC = self.source_norm(x_INC[~keep_IN])
        if self.config.softmax == "policy_eps" and not dropped_I.all():
            # nothing to look at is the mean of everything there, and so one key with the mean's value
            pieces = [
                self.source_norm(x_NC).mean(0, keepdim=True) if not len(piece) else piece
                for x_NC, piece in zip(x_INC, source_SC.split(dropped_I.tolist()), strict=True)
            ]
            source_SC, dropped_I = torch.cat(pieces), dropped_I.clamp(min=1)
        kept_IL, dropped_IL = slots(keep_IN.sum(1)), slots(dropped_I)
        x_TC = x_INC[keep_IN]
        for block in self.blocks:
            assert isinstance(block, MergerBlock)
            x_TC = block.packed(x_TC, source_SC, kept_IL, dropped_IL)
        return self.norm(x_TC)
