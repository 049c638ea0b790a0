"""SEED-X against numbers of the official modules: every golden file is a case of its own.

Dimension key: I images · N vectors of a view · L vectors looked at · Q queries · W views of one image · C width
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from safetensors import safe_open
from tests.parity.golden import Golden, kind_of
from tests.parity.seed_x_detokenizer_cases import KINDS as DRAWING
from tests.parity.seed_x_language import check_agent, check_lora
from tests.parity.seed_x_modules import exactly, fill
from tests.parity.seed_x_sequences import check_sequences
from torch import Tensor

from rebus.images import CLIP_MEAN, CLIP_STD, prepare
from rebus.nn.resampler import Resampler, ResamplerConfig, sincos_grid
from rebus.nn.vit import ViTConfig, resize_positions
from rebus.papers.seed_x.convert import resampler_rules, vision_rules
from rebus.papers.seed_x.views import boxes, choose_grid, cut, fitting_area, fitting_shape, positions
from rebus.papers.seed_x.vision import VisionConfig, VisionEncoder, pool_rows

NAMES = r"seed_x_"
SUFFIX = (".safetensors", ".json")


# ------------------------------------------------------------------------------------------------ vision


def vision_config(sizes: dict[str, Any]) -> VisionConfig:
    """The config of a file's sizes; heads of the pool and side of the position table are the official rules'."""
    trunk = ViTConfig(
        image_size=sizes["image_size"],
        patch=sizes["patch_size"],
        width=sizes["width"],
        depth=sizes["layers"],
        heads=sizes["heads"],
        mlp_hidden=int(sizes["width"] * sizes["mlp_ratio"]),
        attention_bias="qkv",
        class_token=False,
        patch_bias=False,
        norm_before=True,
        position_grid=16,
    )
    width, grid = sizes["output_dim"], round(sizes["n_queries"] ** 0.5)
    return VisionConfig(trunk, ResamplerConfig(grid, width, width // 128, sizes["width"], eps=1e-6))


def check_vision(golden: Golden) -> None:
    config = vision_config(golden.config)
    vision = VisionEncoder(config).eval()
    fill(vision, golden.state, vision_rules(config.trunk.heads))
    check = exactly(golden, 2e-5)
    for name in sorted({key.split(".")[0] for key in golden.part("in")}):
        pixels = golden.input(f"{name}.image_u8").float() / 127.5 - 1
        side = pixels.shape[-1] // config.trunk.patch
        x_INC = vision.trunk.embed(pixels)
        stages = {
            "abs_pos": resize_positions(vision.trunk.pos_embed, side, extra=0)[0],
            "pool_key_pos": vision.pool.positions(side),
            "ln_pre": x_INC,
        }
        for number, block in enumerate(vision.trunk.blocks):
            x_INC = block(x_INC)
            stages[f"block{number}"] = x_INC
        pooled_INC = vision.pool(x_INC)
        final_INC = vision(pixels)
        stages |= {"attn_pool": pooled_INC, "ln_post": vision.norm(pooled_INC), "final": final_INC}
        stages["avgpool4"] = pool_rows(final_INC, 4)
        for stage, got in stages.items():
            if f"{name}.{stage}" in golden.part("out"):
                check(f"{name}.{stage}", got)


def check_resampler(golden: Golden) -> None:
    check, outputs = exactly(golden, 1e-5), golden.part("out")
    for use, sizes in golden.config.items():
        config = ResamplerConfig(sizes["grid_size"], sizes["embed_dim"], sizes["num_heads"], sizes["kv_dim"])
        resampler = Resampler(config).eval()
        table_QC = resampler.position_QC.clone()
        fill(resampler, golden.part(f"state.{use}"), resampler_rules("", ""))
        torch.testing.assert_close(resampler.position_QC, table_QC, atol=1e-6, rtol=0)  # ours is the published table
        check(f"{use}.ln_q", resampler.norm_queries(resampler.queries_QC))
        for name, source_BLS in golden.part(f"in.{use}").items():
            if not name.startswith("kv"):
                continue
            place, count = f"{use}.{name}", source_BLS.shape[1]
            projected_BLC = resampler.source(source_BLS)
            stages = {
                "": resampler(source_BLS),
                ".key_pos": resampler.positions(round(count**0.5)),
                ".kv_proj": projected_BLC,
                ".ln_kv": resampler.norm_source(projected_BLC),
            }
            if f"in.{use}.attn_mask_{name}" in golden.tensors:
                stages[".masked"] = resampler(source_BLS, golden.input(f"{use}.attn_mask_{name}"))
            for stage, got in stages.items():
                if place + stage in outputs:
                    check(place + stage, got)
    for name, want in outputs.items():
        if name.startswith(("sincos", "abspos")):
            check(name, table(name, want))


def table(name: str, want: Tensor) -> Tensor:
    """The table that an output such as `sincos_sampled.dim4096_grid8` or `abspos_sampled.dim5120_8to16` names."""
    kind, _, sizes = name.partition(".")
    width, _, grid = sizes.removeprefix("dim").partition("_")
    before, _, after = grid.removeprefix("grid").partition("to")
    table_NC = sincos_grid(int(before), int(width))
    if after:
        table_NC = resize_positions(table_NC[None], int(after), extra=0)[0]
    return table_NC[:: 13 if after else 7, ::97] if kind.endswith("sampled") else table_NC


# ------------------------------------------------------------------------------------------------ any resolution


def check_views(golden: Golden) -> None:
    if golden.path.suffix == ".json":
        check_choices(golden)
    else:
        check_pixels(golden)


def named(grids: list[str]) -> list[tuple[int, int]]:
    return [(int(columns), int(rows)) for columns, _, rows in (name.partition("x") for name in grids)]


def check_choices(golden: Golden) -> None:
    side = golden.json["base_resolution"]
    for case in golden.json["cases"]:
        choices, size = named(golden.json["grid_lists"][case["grids"]]), (case["width"], case["height"])
        area, shape = fitting_area(size, choices, side), fitting_shape(size, choices, side)
        chosen = choose_grid(size, choices, side)
        got = {
            "best_effective": [n * side for n in area],
            "best_aspect": [n * side for n in shape],
            "chosen": [n * side for n in chosen],
            "grid_cols": chosen[0],
            "grid_rows": chosen[1],
            "num_images": len(positions(chosen)),
            "patch_boxes_xyxy": [list(box) for box in boxes(chosen, side)],
        }
        assert got == {name: case[name] for name in got}, f"{case['grids']} {size}"
        torch.testing.assert_close(positions(chosen), torch.tensor(case["patch_positions"]), atol=1e-6, rtol=0)


def check_pixels(golden: Golden) -> None:
    sizes = golden.config
    with safe_open(golden.path, "pt") as file:
        made_with = file.metadata().get("pillow")
    atol = 1e-5 if made_with == PIL.__version__ else 0.03
    for name, want in golden.part("out").items():
        first, _, rest = name.partition(".")
        if first.startswith("pixels"):
            side, choices = sizes["pixel_base_resolution"], named(sizes["grid_lists"]["comprehension8"])
            picture = PIL.Image.fromarray(golden.input(f"{first}.image_u8_hwc").numpy())
            grid = choose_grid(picture.size, choices, side)
            if rest == "patch_position":
                golden.check(name, positions(grid), atol=1e-6, rtol=0)
                continue
            pixels = prepare(cut(picture, grid, side), side, resize="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
            golden.check(name, pixels, atol=atol, rtol=0)
        elif rest == "chosen":
            side, choices = sizes["base_resolution"], named(sizes["grid_lists"][first])
            grids = [choose_grid((width, height), choices, side) for width, height in want[:, :2].tolist()]
            golden.check(name, torch.cat([want[:, :2], torch.tensor(grids, dtype=want.dtype)], dim=1))
        else:  # grids.WIDTHxHEIGHT.patch_position
            width, _, height = rest.removesuffix(".patch_position").partition("x")
            chosen = choose_grid((int(width), int(height)), named(sizes["grid_lists"][first]), sizes["base_resolution"])
            golden.check(name, positions(chosen), atol=1e-6, rtol=0)


KINDS: dict[str, Callable[[Golden], None]] = {
    "seed_x_vit": check_vision,
    "seed_x_resampler": check_resampler,
    "seed_x_anyres": check_views,
    "seed_x_agent": check_agent,
    "seed_x_lora": check_lora,
    "seed_x_sequences": check_sequences,
    **DRAWING,
}


@torch.no_grad()
def test_seed_x(golden: Golden, record_property: Callable[[str, object], None]) -> None:
    kind = kind_of(golden.stem, KINDS)
    assert kind, f"nothing is known about {golden.path.name}; its name begins with none of {sorted(KINDS)}"
    KINDS[kind](golden)
    golden.assert_all_checked()
    record_property("largest difference", golden.largest)
