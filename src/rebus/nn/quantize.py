"""Vector quantisation: a vector becomes the index of its nearest codebook entry.

`VectorQuantizer` trains its codebook by gradient (SEED); in `GroupedQuantizer` every place of an image has entries of its
own, in `ResidualQuantizer` these add up. `EmaQuantizer` moves it to the running mean of what was
assigned to each entry, `UnitQuantizer` (LaVIT) to its direction. All can start from k-means and revive entries that nothing is assigned to.

Dimension key: T vectors · K codebook entries · C codebook width · … any leading axes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.errors import RebusError

LossOrder = Literal["legacy", "standard"]
"""What `beta` weighs: `standard` the commitment of the encoder (VQ-VAE), `legacy` the codebook's term (SEED's code)."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What quantising gives: entries with straight-through gradient, their ids, and the loss that trains both sides."""

    x: Tensor
    """[…, C], equal to the entries in value, with the gradient of the input."""
    ids: Tensor
    """[…] int64, 0..K-1."""
    loss: Tensor
    """Scalar."""


class VectorQuantizer(nn.Module):
    """A codebook that is looked up by Euclidean distance and trained by gradient."""

    def __init__(
        self,
        codebook_size: int,
        width: int,
        *,
        beta: float = 0.25,
        order: LossOrder = "standard",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.order: LossOrder = order
        self.codebook_KC = nn.Parameter(torch.empty(codebook_size, width))
        nn.init.uniform_(self.codebook_KC, -1 / codebook_size, 1 / codebook_size, generator=generator)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """[…, C] → ids […]: the nearest entry, the lowest id among equals.

        Always in float32: the gap between the two nearest entries is often smaller than half precision resolves.
        """
        return nearest(x.flatten(0, -2), self.codebook_KC).view(x.shape[:-1])

    def decode(self, ids: Tensor) -> Tensor:
        """Ids […] → entries […, C]."""
        return F.embedding(ids, self.codebook_KC)

    def forward(self, x: Tensor) -> Quantized:
        """[…, C] → `Quantized`; the loss is mean squared error in both directions, `beta` times on one of them."""
        ids = self.encode(x)
        entries = self.decode(ids)
        commitment = F.mse_loss(x, entries.detach())
        codebook = F.mse_loss(entries, x.detach())
        loss = commitment + self.beta * codebook if self.order == "legacy" else codebook + self.beta * commitment
        return Quantized(x + (entries - x).detach(), ids, loss)

    @torch.no_grad()
    def start_from(self, x_TC: Tensor, generator: torch.Generator | None = None, *, steps: int = 10) -> None:
        """Sets the codebook to the k-means centres of `x_TC` (a first batch or several)."""
        self.codebook_KC.copy_(kmeans(x_TC.float(), len(self.codebook_KC), generator, steps=steps))

    @torch.no_grad()
    def revive(self, dead_K: Tensor, x_TC: Tensor, generator: torch.Generator | None = None) -> int:
        """Moves the entries where `dead_K` is true onto random vectors of `x_TC`; returns how many were moved."""
        dead_D = dead_K.nonzero().flatten()
        self.codebook_KC[dead_D] = _of_first(_pick(x_TC, len(dead_D), generator)).to(self.codebook_KC.dtype)
        return len(dead_D)


class GroupedQuantizer(VectorQuantizer):
    """A codebook of which every place of a vector's sequence has its own part: entry k belongs to place k // (K / N).

    The last but one axis of what is quantised has the N places. An id says what it says wherever it is read, so that
    a language model learns its meaning from far fewer pictures than that of an id shared by all places.
    Raises RebusError when the entries cannot be shared out evenly.
    """

    def __init__(
        self,
        codebook_size: int,
        width: int,
        places: int,
        *,
        beta: float = 0.25,
        order: LossOrder = "standard",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(codebook_size, width, beta=beta, order=order, generator=generator)
        if codebook_size % places:
            raise RebusError(
                f"{codebook_size} codes cannot be shared out evenly among {places} places. "
                f"Use a multiple of {places}, such as {-(-codebook_size // places) * places}."
            )
        self.places = places

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """[…, N, C] → ids […, N]: for each place the nearest of its own entries, the lowest id among equals."""
        x_TNC = x.reshape(-1, self.places, x.shape[-1])
        own_NKC = self.codebook_KC.view(self.places, -1, x.shape[-1])
        ids_NT = torch.stack([nearest(x_TC, own_KC) for x_TC, own_KC in zip(x_TNC.unbind(1), own_NKC, strict=True)])
        first_N1 = torch.arange(self.places, device=x.device)[:, None] * own_NKC.shape[1]
        return (ids_NT + first_N1).T.reshape(x.shape[:-1])

    @torch.no_grad()
    def start_from(self, x_TC: Tensor, generator: torch.Generator | None = None, *, steps: int = 10) -> None:
        """Sets each place's entries to the k-means centres of that place; `x_TC` is […, N, C] laid flat."""
        own = len(self.codebook_KC) // self.places
        x_TNC = x_TC.float().view(-1, self.places, x_TC.shape[-1])
        self.codebook_KC.copy_(torch.cat([kmeans(x_TC, own, generator, steps=steps) for x_TC in x_TNC.unbind(1)]))

    @torch.no_grad()
    def revive(self, dead_K: Tensor, x_TC: Tensor, generator: torch.Generator | None = None) -> int:
        """Moves the entries where `dead_K` is true onto random vectors of their places; returns how many were moved."""
        dead_D = dead_K.nonzero().flatten().to(x_TC.device)
        x_TNC = x_TC.view(-1, self.places, x_TC.shape[-1])
        device = x_TC.device if generator is None else generator.device
        chosen_D = torch.randint(len(x_TNC), dead_D.shape, generator=generator, device=device).to(x_TC.device)
        places_D = dead_D // (len(self.codebook_KC) // self.places)
        self.codebook_KC[dead_D] = _of_first(x_TNC[chosen_D, places_D]).to(self.codebook_KC.dtype)
        return len(dead_D)


class ResidualQuantizer(GroupedQuantizer):
    """A codebook in which every place's entry is added to those before it: what the sum of the earlier entries leaves of
    the vector at a place is what is looked up there (residual vector quantisation). So the first entries say the most.

    Ids stand for the running sums: `decode` gives for each place the sum of the entries up to it.

    At the `meaning` first places the nearest entry is sought along `along_CP` alone, directions [width, P] that whoever trains the
    codebook sets: what varies across them does not choose these codes.
    """

    DIRECTIONS = 16
    """Of what is left at a place, along which k-means looks for neighbours."""

    along_CP: Tensor

    def __init__(
        self, codebook_size: int, width: int, places: int, *, meaning: int = 0, directions: int = 32, **options: Any
    ) -> None:
        super().__init__(codebook_size, width, places, **options)
        if not 0 <= meaning <= places or (meaning and not 1 <= directions <= width):
            raise RebusError(
                f"Of {places} places {meaning} were to look along {directions} directions of {width} numbers. Give 0 to {places} "
                f"places and 1 to {width} directions."
            )
        self.meaning = meaning
        if meaning:
            self.register_buffer("along_CP", torch.eye(width, directions))

    def sought(self, place: int, x_TC: Tensor) -> Tensor:
        """What of vectors chooses a code at this place, in float32 as `nearest` is."""
        if place >= self.meaning:
            return x_TC
        with torch.autocast(x_TC.device.type, enabled=False):
            return x_TC.float() @ self.along_CP.float()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """[…, N, C] → ids […, N]: for each place the nearest of its own entries to what is left there."""
        ids_NT = [ids_T for ids_T, _ in self._walk(x.reshape(-1, self.places, x.shape[-1]))]
        return torch.stack(ids_NT, dim=1).reshape(x.shape[:-1])

    def decode(self, ids: Tensor) -> Tensor:
        """Ids […, N] → running sums of entries […, N, C]."""
        return F.embedding(ids, self.codebook_KC).cumsum(-2)

    @torch.no_grad()
    def start_from(self, x_TC: Tensor, generator: torch.Generator | None = None, *, steps: int = 10) -> None:
        """Sets each place's entries to the k-means centres of what the places before it leave; `x_TC` is […, N, C] laid
        flat. Neighbours are sought along the directions in which that varies most: along all of them one centre would
        take nearly everything, and the others single vectors."""
        x_TNC = x_TC.float().view(-1, self.places, x_TC.shape[-1])
        sum_TC, own = torch.zeros_like(x_TNC[:, 0]), len(self.codebook_KC) // self.places
        for place in range(self.places):
            left_TC = x_TNC[:, place] - sum_TC
            along_TC = self.sought(place, left_TC - left_TC.mean(0))
            directions = torch.linalg.eigh(along_TC.T @ along_TC).eigenvectors[:, -self.DIRECTIONS :]
            along_TC = along_TC @ directions
            ids_T = nearest(along_TC, kmeans(along_TC, own, generator, steps=steps))
            hits_K = torch.bincount(ids_T, minlength=own).clamp(min=1)
            centre_KC = torch.zeros(own, x_TC.shape[-1], device=x_TC.device).index_add_(0, ids_T, left_TC)
            centre_KC /= hits_K[:, None]
            self.codebook_KC[place * own : (place + 1) * own] = centre_KC
            ids_T = nearest(self.sought(place, left_TC), self.sought(place, centre_KC))
            sum_TC = sum_TC + centre_KC[ids_T]

    @torch.no_grad()
    def revive(self, dead_K: Tensor, x_TC: Tensor, generator: torch.Generator | None = None) -> int:
        """Moves the entries where `dead_K` is true onto what is left of random vectors at their places; returns how many
        were moved."""
        x_TNC = x_TC.view(-1, self.places, x_TC.shape[-1])
        left_TNC = torch.stack([left_TC for _, left_TC in self._walk(x_TNC)], dim=1)
        return super().revive(dead_K, left_TNC.flatten(0, 1), generator)

    def _walk(self, x_TNC: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The ids_T and what was left_TC at each place."""
        own_NKC = self.codebook_KC.view(self.places, -1, x_TNC.shape[-1])
        sum_TC = torch.zeros_like(x_TNC[:, 0])
        for place, (x_TC, own_KC) in enumerate(zip(x_TNC.unbind(1), own_NKC, strict=True)):
            ids_T = nearest(self.sought(place, x_TC - sum_TC), self.sought(place, own_KC))
            yield ids_T + place * len(own_KC), x_TC - sum_TC
            sum_TC = sum_TC + own_KC[ids_T]


class EmaQuantizer(VectorQuantizer):
    """A codebook that follows the running mean of the vectors assigned to each entry; only the encoder has a loss."""

    hits_K: Tensor
    sum_KC: Tensor

    def __init__(
        self,
        codebook_size: int,
        width: int,
        *,
        beta: float = 1.0,
        decay: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(codebook_size, width, beta=beta, generator=generator)
        self.decay = decay
        codebook_KC = self.codebook_KC.data
        del self.codebook_KC  # no gradient moves it: a buffer, which is saved though it does not learn
        self.register_buffer("codebook_KC", codebook_KC)
        self.register_buffer("hits_K", torch.zeros(codebook_size))
        self.register_buffer("sum_KC", torch.zeros(codebook_size, width))

    def forward(self, x: Tensor) -> Quantized:
        """[…, C] → `Quantized`; the loss is `beta` times the commitment. The codebook moves in `update`."""
        ids = self.encode(x)
        entries = self.decode(ids)
        return Quantized(x + (entries - x).detach(), ids, self.beta * F.mse_loss(x, entries))

    @torch.no_grad()
    def update(self, x: Tensor, ids: Tensor) -> None:
        """One step of the running means with the vectors […, C] and their ids, over all processes; entries that have
        never been hit stay where they are."""
        x_TC, ids_T = x.flatten(0, -2).float(), ids.flatten()
        hits_K = torch.bincount(ids_T, minlength=len(self.hits_K)).to(self.hits_K.dtype)
        sum_KC = torch.zeros_like(self.sum_KC).index_add_(0, ids_T, x_TC.to(self.sum_KC.dtype))
        if _several():
            dist.all_reduce(hits_K)
            dist.all_reduce(sum_KC)
        self.hits_K.lerp_(hits_K, 1 - self.decay)
        self.sum_KC.lerp_(sum_KC, 1 - self.decay)
        mean_KC = self.sum_KC / self.hits_K.clamp(min=1e-12)[:, None]
        self.codebook_KC.copy_(torch.where(self.hits_K[:, None] > 1e-12, mean_KC, self.codebook_KC))

    @torch.no_grad()
    def revive(self, dead_K: Tensor, x_TC: Tensor, generator: torch.Generator | None = None) -> int:
        """As for the parent; the running means of the moved entries start again."""
        moved = super().revive(dead_K, x_TC, generator)
        self.hits_K[dead_K] = 0
        self.sum_KC[dead_K] = 0
        return moved


class UnitQuantizer(EmaQuantizer):
    """A codebook of rows of length 1 for vectors of length 1, which then are looked up by cosine. `hits_K` is how often a
    row was hit in a batch of late; a row begins, and begins again, as if it had been hit `prior` times."""

    def __init__(
        self,
        codebook_size: int,
        width: int,
        *,
        beta: float = 1.0,
        decay: float = 0.99,
        prior: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(codebook_size, width, beta=beta, decay=decay, generator=generator)
        self.prior = prior
        self._begin(torch.ones(codebook_size, dtype=torch.bool))

    @torch.no_grad()
    def start_from(self, x_TC: Tensor, generator: torch.Generator | None = None, *, steps: int = 10) -> None:
        """Sets the codebook to the directions of the k-means centres of `x_TC`."""
        super().start_from(x_TC, generator, steps=steps)
        self._begin(torch.ones_like(self.hits_K, dtype=torch.bool))

    @torch.no_grad()
    def update(self, x: Tensor, ids: Tensor) -> None:
        """One step of the running means, of which the rows are the directions."""
        super().update(x, ids)
        self.codebook_KC.copy_(F.normalize(self.codebook_KC, dim=-1))

    @torch.no_grad()
    def revive(self, dead_K: Tensor, x_TC: Tensor, generator: torch.Generator | None = None) -> int:
        """As for the parent; the running means of the moved rows begin again."""
        moved = super().revive(dead_K, x_TC, generator)
        self._begin(dead_K)
        return moved

    @torch.no_grad()
    def _begin(self, rows_K: Tensor) -> None:
        unit_KC = F.normalize(self.codebook_KC[rows_K], dim=-1)
        self.codebook_KC[rows_K] = unit_KC
        self.hits_K[rows_K] = self.prior
        self.sum_KC[rows_K] = self.prior * unit_KC


class CodeUsage(nn.Module):
    """How often each entry was used lately: counts that decay by `decay` with every batch added."""

    def __init__(self, codebook_size: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.counts_K = nn.Buffer(torch.zeros(codebook_size))
        self.batches = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.decay = decay

    def add(self, ids: Tensor) -> None:
        """Counts a batch of ids of any shape, of all processes."""
        counts_K = torch.bincount(ids.detach().flatten(), minlength=len(self.counts_K))
        if _several():
            dist.all_reduce(counts_K)
        self.counts_K.mul_(self.decay).add_(counts_K)
        self.batches.add_(1)

    def dead_K(self, threshold: float = 0.01) -> Tensor:
        """True for the entries whose decayed count is below `threshold`."""
        return self.counts_K < threshold


def usage(ids: Tensor, codebook_size: int) -> tuple[int, float]:
    """Of ids of any shape: how many different entries occur, and the perplexity of their distribution (1..K)."""
    counts_K = torch.bincount(ids.flatten(), minlength=codebook_size).double()
    share = counts_K[counts_K > 0] / counts_K.sum()
    return len(share), float(torch.exp(-(share * share.log()).sum()))


def nearest(x_TC: Tensor, codebook_KC: Tensor) -> Tensor:
    """ids_T of the entries at the smallest Euclidean distance, in float32 whatever the surrounding autocast."""
    with torch.autocast(x_TC.device.type, enabled=False):
        x_TC, codebook_KC = x_TC.float(), codebook_KC.float()
        return distances(x_TC, codebook_KC).argmin(dim=-1)


def distances(x_TC: Tensor, codebook_KC: Tensor) -> Tensor:
    """Squared Euclidean distances_TK as |x|² + |e|² − 2 x·e."""
    return x_TC.square().sum(1, keepdim=True) + codebook_KC.square().sum(1) - 2 * x_TC @ codebook_KC.T


@torch.no_grad()
def kmeans(x_TC: Tensor, clusters: int, generator: torch.Generator | None = None, *, steps: int = 10) -> Tensor:
    """Centres [clusters, C] after `steps` of Lloyd's algorithm from random vectors of `x_TC`; a centre that nothing is
    nearest to stays where it is."""
    centre_KC = _pick(x_TC, clusters, generator)
    for _ in range(steps):
        ids_T = nearest(x_TC, centre_KC)
        hits_K = torch.bincount(ids_T, minlength=clusters).to(x_TC.dtype)
        sum_KC = torch.zeros_like(centre_KC).index_add_(0, ids_T, x_TC)
        centre_KC = torch.where(hits_K[:, None] > 0, sum_KC / hits_K.clamp(min=1)[:, None], centre_KC)
    return centre_KC


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _of_first(x_TC: Tensor) -> Tensor:
    """The first process's vectors: a codebook is the same on all of them."""
    if _several():
        x_TC = x_TC.contiguous()
        dist.broadcast(x_TC, 0)
    return x_TC


def _pick(x_TC: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` random rows: without repetition while there are enough, then each row again."""
    device = x_TC.device if generator is None else generator.device
    order_T = torch.randperm(len(x_TC), generator=generator, device=device).to(x_TC.device)
    return x_TC[order_T.repeat(-(-count // len(x_TC)))[:count]].clone()
