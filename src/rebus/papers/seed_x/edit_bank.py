"""A fixed bank of edits beside the mini family's bank of pictures, and what SEED-X's frozen parts say of both.

Dimension key: I pictures · S features of one · C width · c latent channels · h w sides
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rebus.data.edits import MIX, Edits
from rebus.data.line_art import FILE, load_line_art
from rebus.data.pictures import load_pictures
from rebus.mini.bank import cached, in_batches, write_array
from rebus.mini.frozen import Frozen, fingerprint, take
from rebus.papers.seed_x.vision import pool_rows


@dataclass(frozen=True)
class EditBankConfig:
    """How many edits there are, and of what kinds."""

    train: int = 12_000
    """Edits to train on."""
    val: int = 500
    """Edits to measure with."""
    mix: Mapping[str, float] = field(default_factory=lambda: MIX)
    """Share of each kind."""


@dataclass(frozen=True, eq=False)
class EditBank:
    """Edits of one split."""

    images_I2hw3: np.ndarray
    """Source and target."""
    masks_Ihw: np.ndarray
    """Where they may differ."""
    kinds: list[str]
    """Of each, its kind."""
    made_of: str
    """What it was made of, by which what is derived from it is known."""

    def __len__(self) -> int:
        return len(self.kinds)

    def pixels(self, i: np.ndarray, which: int) -> Tensor:
        """Sources (0) or targets (1) as float32 [I, 3, h, w] in −1..1."""
        images = torch.from_numpy(np.ascontiguousarray(self.images_I2hw3[i, which]))
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def load_edit_bank(work: Path, split: str, config: EditBankConfig) -> EditBank:
    """The bank of `split` under `work/edits`, made from the pictures in `work/emoji` the first time. Without the line drawings
    that `rebus data lines` makes beside these, no edit turns to lines or back."""
    count = getattr(config, split)
    images, masks, about = (work / "edits" / f"{split}.{ending}" for ending in ("npy", "masks.npy", "json"))
    folder = work / "emoji"
    made_of = {"count": count, "mix": dict(config.mix), "lines": (folder / FILE).exists()}
    held = json.loads(about.read_text()) if about.exists() else {}
    if held.get("made_of") != made_of:  # another number, other kinds, or line drawings that came later
        images.parent.mkdir(parents=True, exist_ok=True)
        about.unlink(missing_ok=True)
        lines = load_line_art(folder / FILE) if made_of["lines"] else None
        edits = Edits(load_pictures(folder), split, seed=0, mix=config.mix, lines=lines)
        made = [edits[i] for i in range(count)]
        write_array(images, np.stack([np.stack([np.asarray(e.source), np.asarray(e.target)]) for e in made]))
        write_array(masks, np.stack([e.mask_hw for e in made]))
        part = about.with_suffix(".part")
        held = {
            "kinds": [e.kind for e in made],
            "instructions": [e.instruction for e in made],
            "made_of": made_of,
        }
        part.write_text(json.dumps(held))
        part.replace(about)
    return EditBank(np.load(images, mmap_mode="r"), np.load(masks, mmap_mode="r"), held["kinds"], json.dumps(made_of))


class Seen:
    """What the frozen parts say of the pictures and edits under `work`, computed once: the features that an image is drawn
    from [S, C], and standardised latents [c, h, w]."""

    def __init__(self, work: Path, strip: int, edits: EditBankConfig | None = None) -> None:
        self.data, self.strip, self.edits = Frozen(work), strip, edits

    @cached_property
    def banks(self) -> dict[str, EditBank]:
        """The edits of both splits."""
        assert self.edits is not None
        return {split: load_edit_bank(self.data.work, split, self.edits) for split in ("train", "val")}

    def pure(self, split: str, i: np.ndarray) -> tuple[Tensor, Tensor]:
        """Latents and features of pictures of the bank."""
        return self.data.rows(split, i, "latents")[0], self.features(split, i)

    def features(self, split: str, i: np.ndarray) -> Tensor:
        """Features of pictures of the bank."""
        pooled = self.data.derive(
            f"seed_x_features_{self.strip}",
            split,
            lambda rows: pool_rows(take(self.data.array("tokens", split), rows)[:, 1:], self.strip),
            of=self.data.vision_print,
        )
        return take(pooled, i)

    def examples(self, most: int = 4096) -> Tensor:
        """Features of the first trained pictures, [I, S, C]."""
        return self.features("train", np.arange(min(most, len(self.data.bank("train")))))

    def edited(self, split: str, i: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Latents and features of targets, and latents of sources."""
        return tuple(take(self._edited(name, split), i) for name in ("target", "features", "source"))  # type: ignore[return-value]

    def _edited(self, name: str, split: str) -> np.ndarray:
        bank = self.banks[split]

        def run(i: np.ndarray) -> Tensor:
            if name == "features":
                return pool_rows(self.data.vision.vit(bank.pixels(i, 1))[:, 1:], self.strip)
            return self.data.codec.encode(bank.pixels(i, 1 if name == "target" else 0))

        file = self.data.work / "cache" / f"seed_x_edits_{name}_{self.strip}.{split}.npy"
        maker = self.data.vision_print if name == "features" else fingerprint(self.data.codec)
        of = fingerprint(maker, bank.made_of)
        return cached(file, lambda: in_batches(run, len(bank)), of=of)
