"""Frozen text encoders: a BERT with mean pooling (one vector for a caption), and the CLIP text half that published
diffusion models read their prompts with.

Dimension key: I captions · L length · C width
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPTextModel

from rebus.errors import RebusError


class SentenceEncoder(nn.Module):
    """Captions → unit vectors. `folder` holds a Hugging Face BERT with its tokenizer (MiniLM in the mini family)."""

    def __init__(self, folder: Path):
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.bert = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Width C of the vectors."""
        return self.bert.config.hidden_size

    @torch.no_grad()
    def forward(self, captions: Sequence[str], *, batch: int = 256) -> Tensor:
        """[I, C] float32, each of length 1, in the order of `captions`. Equal captions are encoded once."""
        unique = sorted(set(captions), key=lambda text: (len(text), text))
        row = {text: i for i, text in enumerate(unique)}
        vectors = []
        for start in range(0, len(unique), batch):
            tokens = self.tokenizer(unique[start : start + batch], padding=True, truncation=True, return_tensors="pt")
            tokens = tokens.to(self.bert.device)
            hidden_ILC = self.bert(**tokens).last_hidden_state.float()
            mask_IL1 = tokens["attention_mask"][..., None].float()
            vectors.append(F.normalize((hidden_ILC * mask_IL1).sum(1) / mask_IL1.sum(1), dim=-1))
        return torch.cat(vectors)[[row[text] for text in captions]]


class PromptEncoder(nn.Module):
    """Prompts → the last states of the CLIP text model in a diffusers folder, which tell a diffusion model what to draw.
    Raises RebusError when the folder has none."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise RebusError(
                f"{folder} has no text encoder that can be read ({str(error).splitlines()[0]}). Name a whole diffusers "
                "folder, with `tokenizer` and `text_encoder` in it."
            ) from error
        self.clip = clip.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """[I, L, C] float32, padded to the length L that the model was trained with."""
        length = self.clip.config.max_position_embeddings
        ids = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.clip(ids["input_ids"].to(self.clip.device)).last_hidden_state


def prompt_states(folder: Path, prompts: Sequence[str]) -> Tensor:
    """The states [I, L, C] of `prompts`; see `PromptEncoder`, whose errors are raised."""
    return PromptEncoder(folder)(prompts)
