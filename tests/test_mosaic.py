"""The paper that the documentation walks through: it sees, learns, is saved and is loaded, without a change elsewhere.

The laws hold for it too (`test_laws.py`).
"""

from __future__ import annotations

import PIL.Image
import pytest
import torch
from examples.mosaic.build import VARIANTS
from safetensors.torch import load_file

from rebus.apps.cli import main
from rebus.apps.training import find_stage
from rebus.checkpoint import SavedSystem, config_to_json, save_system
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.sampling import Sampling
from rebus.system import known_systems, load, plan
from rebus.train import fit

STAGE = "examples.mosaic.stages.stage1_language"


def quarters():
    """A picture of four colours that are in the palette, and their codes on a grid of four by four."""
    picture = PIL.Image.new("RGB", (64, 64), (255, 0, 0))
    for place, colour in (((32, 0), (0, 255, 0)), ((0, 32), (0, 0, 255)), ((32, 32), (255, 255, 255))):
        picture.paste(colour, (*place, place[0] + 32, place[1] + 32))
    red, green, blue, white = 3 * 16, 3 * 4, 3, 63
    return picture, [red, red, green, green] * 2 + [blue, blue, white, white] * 2


def test_codes_are_colours():
    from examples.mosaic.detokenizer import MosaicDetokenizer
    from examples.mosaic.tokenizer import MosaicTokenizer

    from rebus.visual import ImageSampling

    tokenizer = MosaicTokenizer(4, 4, "mosaic")
    picture, codes = quarters()
    (image,) = tokenizer.encode([Image(picture)], {"generation"})
    assert image.generated.ids_N.tolist() == codes
    _, drawn = MosaicDetokenizer(tokenizer).decode(
        [image.generated], sources=[None], negatives=[None], generators=[], sampling=ImageSampling()
    )
    assert drawn.tobytes() == picture.tobytes()


def test_it_is_no_part_of_the_library():
    assert "mosaic" not in known_systems()
    with pytest.raises(RebusError, match="no module 'portable'"):
        plan("examples.mosaic:tiny")
    with pytest.raises(RebusError, match="no official behaviour"):
        load("examples.mosaic:tiny", official=True)


def test_it_learns_and_what_it_learned_is_loaded(tmp_path):
    module = find_stage(STAGE)
    stage = module.stage(module.CONFIGS["tiny"])
    stage.optim = type(stage.optim)(steps=30)
    documents = next(iter(stage.data))
    before = stage.module(documents).total.item()
    done = fit(stage, tmp_path / "run", device=torch.device("cpu"))
    assert done.finished and stage.module(documents).total.item() < 0.8 * before

    config = VARIANTS["tiny"]
    rows = {name.removeprefix("lm."): x for name, x in load_file(done.weights).items()}
    system = SavedSystem("examples.mosaic:tiny", config_to_json(config))
    save_system(tmp_path / "weights", system, {"lm": rows})
    loaded = load("examples.mosaic", weights=tmp_path / "weights", dtype=torch.float32)
    assert loaded.name == "examples.mosaic:tiny"
    trained = stage.module.lm.llm.rows
    assert torch.equal(loaded.lm.llm.rows.output.table(), trained.output.table())
    with pytest.raises(RebusError, match="does not decide what is imported"):
        load(tmp_path / "weights")  # a folder names no code


def test_it_draws_from_the_command_line(tmp_path, capsys):
    assert main(["draw", "a red apple", "--system", "examples.mosaic:tiny", "-o", str(tmp_path / "a.png")]) == 0
    assert PIL.Image.open(tmp_path / "a.png").size == (64, 64)
    assert main(["tokenize", "examples.mosaic:tiny", str(tmp_path / "a.png")]) == 0
    assert len(capsys.readouterr().out.split("\n")[-2].split()) == 9
    system = load("examples.mosaic:tiny")
    (reply,) = system.generate([Document((user("Draw."),))], modality="image", sampling=Sampling(max_new_tokens=20))
    assert len(reply.images) == 1 and reply.images[0].generated.source == "mosaic"
