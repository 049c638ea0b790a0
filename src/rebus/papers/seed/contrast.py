"""SEED's stage 1 on image-text pairs: contrast, and the two losses of BLIP-2 that the release has switched off.

Dimension key: I images (as many texts) · J images of all processes · S image tokens · N queries · L words · C width
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.data.pairs import PairBatch
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.papers.seed.losses import ContrastiveHeads, caption_loss, contrastive_loss, hard_negatives
from rebus.papers.seed.pairs import bert_words
from rebus.papers.seed.qformer import TextBranch, joint_mask
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.train import Losses, parallel

Gather = Literal["no_gradient", "gradient"]


class PairTraining(nn.Module):
    """The tokenizer with BERT's text half and the projections of stage 1. `text` cuts captions; the word behind its
    vocabulary is [DEC], which begins a caption that is to be written."""

    def __init__(
        self,
        tokenizer: SeedTokenizer,
        text: TextTokenizer,
        *,
        contrast_width: int = 256,
        words: int = 32,
        smoothing: float = 0.1,
        gather: Gather = "no_gradient",
        matching: float = 0.0,
        captioning: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        width = tokenizer.config.qformer.width
        self.tokenizer = tokenizer
        self.text = TextBranch(tokenizer.config.qformer, text.words + 1, max(512, words), generator)
        self.heads = ContrastiveHeads(width, contrast_width, generator=generator)
        self.matching = nn.Linear(width, 2)
        nn.init.trunc_normal_(self.matching.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.matching.bias)
        self.cut, self.begin, self.words = text, text.words, words
        self.smoothing, self.gather = smoothing, gather
        self.weights = {"matching": matching, "captioning": captioning}

    def losses(self, batch: PairBatch, generator: torch.Generator) -> Losses:
        """The weighted sum. `generator` chooses the wrong pairs of the matching loss."""
        tokenizer, text = self.tokenizer, self.text
        with torch.no_grad():
            x_ISC = tokenizer.features(batch.pixels_I3hw)
        source_ISC = tokenizer.source_positions(tokenizer.vision_norm(x_ISC.to(tokenizer.vision_norm.weight.dtype)))
        x_INC = tokenizer.qformer(source_ISC)
        ids_IL, mask_IL = (x.to(x_INC.device) for x in bert_words(self.cut, batch.captions, self.words))
        image_IC = self.heads.image(x_INC)
        text_IC = self.heads.text(text.text(tokenizer.qformer, ids_IL, mask_IL))
        keep = self.gather == "gradient"
        contrast = contrastive_loss(
            image_IC,
            text_IC,
            self.heads.temperature,
            all_image_JC=parallel.all_gather_features(image_IC, gradient=keep),
            all_text_JC=parallel.all_gather_features(text_IC, gradient=keep),
            first=parallel.first_of(len(image_IC)),
            smoothing=self.smoothing,
        )
        similarity_II = (image_IC @ text_IC.T).detach()
        own_I = torch.arange(len(image_IC), device=image_IC.device)
        parts: dict[str, Tensor | float] = {
            "contrast": contrast,
            "temperature": self.heads.temperature,
            "accuracy": (similarity_II.argmax(1) == own_I).float().mean(),
        }
        total = contrast
        if self.weights["matching"]:
            similarity_II = similarity_II / self.heads.temperature.detach()
            parts["matching"] = self._matching(source_ISC, ids_IL, mask_IL, similarity_II, generator)
            total = total + self.weights["matching"] * parts["matching"]
        if self.weights["captioning"]:
            caption_IL = ids_IL.clone()
            caption_IL[:, 0] = self.begin
            logits_ILV = text.caption_logits(tokenizer.qformer, source_ISC, caption_IL, mask_IL)
            parts["captioning"] = caption_loss(logits_ILV, caption_IL, mask_IL)
            total = total + self.weights["captioning"] * parts["captioning"]
        return Losses(total, parts)

    def _matching(
        self, source_ISC: Tensor, ids_IL: Tensor, mask_IL: Tensor, similarity_II: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Cross-entropy of whether an image and a text belong together, over the true pairs, each image with a wrong text
        and each text with a wrong image. Wrong ones are drawn from this process's batch, the likelier the more alike."""
        image_I, text_I = (n.to(ids_IL.device) for n in hard_negatives(similarity_II, generator))
        source = torch.cat([source_ISC, source_ISC, source_ISC[image_I]])
        ids, words = (torch.cat([x, x[text_I], x]) for x in (ids_IL, mask_IL))
        qformer = self.tokenizer.qformer
        queries = qformer.config.queries
        x_JNC = self.text.joint(qformer, source, ids, joint_mask(queries, words, source))[:, :queries]
        belongs_J = torch.arange(3 * len(ids_IL), device=ids.device) < len(ids_IL)
        return F.cross_entropy(self.matching(x_JNC).mean(1), belongs_J.long())
