"""SEED-X's image decoders in the published layout, tiny and random: laid over SDXL, written back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rebus.checkpoint import read_tensors
from rebus.errors import RebusError
from rebus.papers.seed_x.convert_decoder import convert_decoder, export_decoder
from seed_x_decoders import decoder, sdxl_config, write_sdxl, write_stage

EMPTY = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seed_x")
    write_sdxl(made / "sdxl", decoder("sdxl", 1))
    for stage in (1, 2):
        write_stage(made / f"{stage}.bin", decoder("sdxl", stage))
    write_stage(made / "part.bin", decoder("sdxl", 1), only=".to_k.")
    return made


@pytest.mark.parametrize("stage", [1, 2])
def test_there_and_back(folder: Path, tmp_path: Path, stage: int) -> None:
    result = convert_decoder(folder / f"{stage}.bin", folder / "sdxl", EMPTY, config=sdxl_config(1))
    assert result.stage == stage and result.config.source_channels == 4 * (stage - 1)
    want = decoder("sdxl", stage).state_dict()
    vae = decoder("sdxl", 1).state_dict()  # SDXL's own
    assert result.tensors.keys() == want.keys()
    for name in want:
        source = EMPTY if name == "empty_SC" else vae[name] if ".vae." in name else want[name]
        torch.testing.assert_close(result.tensors[name], source, atol=0, rtol=0, msg=name)
    path = export_decoder(result.tensors, result.config, tmp_path)
    assert path == tmp_path / "seed_detokenizer" / ("first_stage", "second_stage")[stage - 1] / "pytorch_model.bin"
    back, first = (torch.load(file, weights_only=True) for file in (path, folder / f"{stage}.bin"))
    assert back.keys() == first.keys() and all(torch.equal(back[name], first[name]) for name in back)
    assert sorted(p.name for p in path.parent.iterdir()) == ["pytorch_model.bin"]


def test_a_file_of_what_was_trained_is_laid_over_sdxl(folder: Path) -> None:
    result = convert_decoder(folder / "part.bin", folder / "sdxl", EMPTY, config=sdxl_config(1))
    trained, sdxl = decoder("sdxl", 1).state_dict(), read_tensors(folder / "sdxl" / "unet")
    for name in result.tensors:
        inside = name.removeprefix("diffusion.unet.")
        if inside in sdxl:
            want = trained[name] if ".to_k." in name else sdxl[inside]
            assert torch.equal(result.tensors[name], want), name


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    held = torch.load(folder / "1.bin", weights_only=True)
    sdxl, config = folder / "sdxl", sdxl_config(1)

    def refused(changes: dict, words: str, **options: object) -> None:
        kept = {**held, **changes}
        torch.save({name: x for name, x in kept.items() if x is not None}, tmp_path / "bad.bin")
        with pytest.raises(RebusError, match=words):
            convert_decoder(tmp_path / "bad.bin", sdxl, EMPTY, config=config, **options)

    refused({"resampler.latents": None}, "1 missing.*\n.*adapter.latents_1SC")
    refused({"resampler.extra": torch.ones(1)}, "resampler.extra")
    refused({"unet.other.weight": torch.ones(1)}, "1 unexpected")
    refused({"unet.conv_in.weight": torch.ones(8, 5, 3, 3)}, "takes 5 channels, but a first stage has 4 and a second 8")
    refused({"resampler.proj_in.weight": torch.ones(16, 9)}, "1 misshapen")
    with pytest.raises(RebusError, match=r"the shape \[4, 9\], but \[4, 12\] is needed"):
        convert_decoder(folder / "1.bin", sdxl, torch.zeros(4, 9), config=config)
    with pytest.raises(RebusError, match="no whole diffusers folder"):
        convert_decoder(folder / "1.bin", tmp_path, EMPTY, config=config)
    (tmp_path / "code.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(RebusError, match="cannot be read as a state dict"):
        convert_decoder(tmp_path / "code.bin", sdxl, EMPTY, config=config)
    held = {**held, "more": torch.ones(1)}
    torch.save(held, tmp_path / "more.bin")
    passed = convert_decoder(tmp_path / "more.bin", sdxl, EMPTY, config=config, ignore_unexpected=("more",))
    assert passed.converted.ignored == ["more"]
