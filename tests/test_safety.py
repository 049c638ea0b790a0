"""The safety checker: what it flags is black, what it lets pass is untouched, and previews are kept back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from rebus.diffusion.safety import Checked, SafetyChecker
from rebus.errors import RebusError
from rebus.visual import Codes, ImageSampling, Progress

RED = PIL.Image.new("RGB", (20, 12), (220, 30, 30))


def write_checker(folder: Path, threshold: float) -> Path:
    """A checker that flags every picture whose cosine to a concept is above the threshold."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 8}, projection_dim=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = StableDiffusionSafetyChecker(config)
    net.concept_embeds_weights.data.fill_(threshold)
    net.special_care_embeds_weights.data.fill_(2)
    net.save_pretrained(folder)
    return folder


class Drawer:
    """Shows a preview, then the picture."""

    source = "a drawer"

    def decode(self, tokens, *, sources, negatives, generators, sampling):
        yield Progress(1, 1, RED)
        yield from [RED for _ in tokens]


@pytest.mark.parametrize(("threshold", "flagged"), [(-2.0, True), (2.0, False)])
def test_what_is_flagged_is_black(tmp_path: Path, threshold: float, flagged: bool) -> None:
    drawer = Checked(Drawer(), SafetyChecker(write_checker(tmp_path / "checker", threshold)))
    told = {"sources": [None] * 2, "negatives": [None] * 2, "generators": [torch.Generator()] * 2}
    progress, *images = drawer.decode([Codes(torch.tensor([1]), "x")] * 2, **told, sampling=ImageSampling())
    assert progress == Progress(1, 1) and len(images) == 2 and drawer.source == "a drawer"
    for image in images:
        assert image.size == RED.size
        np.testing.assert_array_equal(np.asarray(image), np.asarray(RED) * (not flagged))


def test_a_folder_without_a_checker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="holds no safety checker that can be read"):
        SafetyChecker(tmp_path)
