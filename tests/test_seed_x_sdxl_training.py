"""SEED-X's image decoder on SDXL, tiny: both stages on real pictures and edits, one after the other."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rebus.checkpoint import export
from rebus.data.edit_pairs import EditBatches
from rebus.errors import RebusError
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.vit import ViTConfig
from rebus.papers.seed_x.convert import vision_rules
from rebus.papers.seed_x.stages import detokenizer1, detokenizer2
from rebus.papers.seed_x.tokenizer import SeedXTokenizerConfig
from rebus.papers.seed_x.vision import VisionConfig, VisionEncoder
from rebus.train import Optim, Stage, fit
from seed_pairs import COLOURS, png, write_pairs
from seed_x_decoders import decoder, sdxl_config, write_sdxl

SHORT = Optim(steps=2, precision="fp32")
VISION = VisionConfig(
    trunk=ViTConfig(
        image_size=16,
        patch=4,
        width=16,
        depth=1,
        heads=2,
        mlp_hidden=16,
        class_token=False,
        patch_bias=False,
        norm_before=True,
        attention_bias="qkv",
        position_grid=4,
    ),
    pool=ResamplerConfig(grid=4, width=12, heads=2, source_width=16, eps=1e-6),
)
TOKENIZER = SeedXTokenizerConfig(vision=VISION)
FIRST = detokenizer1.Config(tokenizer=TOKENIZER, detokenizer=sdxl_config(1), batch=2, lr=1e-2, optim=SHORT)
SECOND = detokenizer2.Config(
    tokenizer=TOKENIZER, first=sdxl_config(1), share=0.5, batch=4, lr=1e-2, optim=SHORT, untold=0.0, unseen=0.0
)


def write_edits(path: Path, count: int = 6) -> Path:
    """Edits as chats: a picture and what to do, answered by a picture."""

    def url(colour: str) -> dict[str, Any]:
        data = base64.b64encode(png(COLOURS[colour], 20)).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    ask = {"role": "user", "content": [url("red"), {"type": "text", "text": "Make it blue."}]}
    line = json.dumps({"messages": [ask, {"role": "assistant", "content": [url("blue")]}]})
    path.write_text(f"{line}\n" * count)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sdxl")
    write_sdxl(folder / "sdxl", decoder("sdxl", 1))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vision = VisionEncoder(VISION).state_dict()
    theirs = export(vision, vision_rules(VISION.trunk.heads))
    torch.save({name: theirs[name].clone() for name in theirs}, folder / "qwen_vit_G.pt")
    return {
        "data": write_pairs(folder / "pairs", 8),
        "edits": write_edits(folder / "edits.jsonl"),
        "vision": folder / "qwen_vit_G.pt",
        "pixels": folder / "sdxl",
        "work": folder / "work",
    }


def run(stage: Stage, work: Path) -> set[str]:
    """What a run of the stage has changed."""
    before = {name: x.clone() for name, x in stage.module.state_dict().items()}
    fit(stage, work / stage.name, device="cpu")
    return {name for name, x in stage.module.state_dict().items() if not torch.equal(before[name], x)}


def test_both_stages_train_what_the_paper_trains(files: dict[str, Path]) -> None:
    given = {name: files[name] for name in ("data", "vision", "pixels")}
    names = run(detokenizer1.stage(FIRST, files["work"], **given), files["work"])
    unet = {name for name in names if ".unet." in name}
    assert unet and all(".to_k." in name or ".to_v." in name for name in unet)
    assert {name.split(".")[1] for name in names} == {"adapter", "diffusion"}

    stage = detokenizer2.stage(SECOND, files["work"], edits=files["edits"], **given)
    model = stage.module.detokenizer
    assert model.edits and model.diffusion.unet.conv_in.in_channels == 8
    assert not model.diffusion.unet.conv_in.weight[:, 4:].any()
    names = run(stage, files["work"])
    assert "detokenizer.diffusion.unet.conv_in.weight" in names and any(".adapter." in name for name in names)
    assert not any(name.startswith(("tokenizer.", "detokenizer.diffusion.vae.")) for name in names)
    assert model.diffusion.unet.conv_in.weight[:, 4:].any()


def test_batches_mix_edits_and_pure_pictures(files: dict[str, Path]) -> None:
    def batches(seed: int = 0) -> EditBatches:
        return EditBatches(files["data"], files["edits"], 4, 16, share=0.5, seed=seed)

    first, again = batches(), batches()
    mine = [next(iter(first)) for _ in range(4)]
    again.load_state_dict({"position": 3, "skipped": 0})
    for one, two in zip(mine[3], next(iter(again)), strict=True):
        assert torch.equal(one, two)
    seen_I = torch.cat([batch.seen_I for batch in mine])
    sources = torch.cat([batch.source_I3hw for batch in mine])
    targets = torch.cat([batch.target_I3hw for batch in mine])
    assert seen_I.any() and not seen_I.all() and not sources[~seen_I].any()
    red, blue = (torch.tensor(COLOURS[name]) / 127.5 - 1 for name in ("red", "blue"))
    torch.testing.assert_close(sources[seen_I][0, :, 5, 5], red, atol=0.02, rtol=0)
    torch.testing.assert_close(targets[seen_I][0, :, 5, 5], blue, atol=0.02, rtol=0)
    alone = next(iter(EditBatches(files["data"], None, 4, 16)))
    assert not alone.seen_I.any() and alone.target_I3hw.shape == (4, 3, 16, 16)


def test_what_lacks_is_named(files: dict[str, Path]) -> None:
    with pytest.raises(RebusError, match="needs pictures, but `data` names none"):
        detokenizer1.stage(FIRST, files["work"])
    with pytest.raises(RebusError, match="needs edits, but `edits` names none"):
        detokenizer2.stage(SECOND, files["work"], data=files["data"])
    with pytest.raises(RebusError, match="needs the vision encoder's weights"):
        detokenizer1.stage(FIRST, files["work"], data=files["data"])
    with pytest.raises(RebusError, match="share of edits in a batch is 0.5, but no source"):
        EditBatches(files["data"], None, 4, 16, share=0.5)
    with pytest.raises(RebusError, match="holds 8 documents, but a step takes 9"):
        EditBatches(files["data"], None, 9, 16)
    many = replace(FIRST, batch=9)
    with pytest.raises(RebusError, match="a step takes 9"):
        detokenizer1.stage(many, files["work"], **{name: files[name] for name in ("data", "vision", "pixels")})
