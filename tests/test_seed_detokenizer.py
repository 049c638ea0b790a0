"""SEED's detokenizer and its weights: seeds, batches, negatives, bad tokens, saving and loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from rebus import Document, user
from rebus.checkpoint import SavedSystem, config_to_json, save_system
from rebus.errors import RebusError
from rebus.papers.seed.build import build, own_tensors
from rebus.papers.seed.detokenizer import SeedDetokenizer
from rebus.papers.seed.variants import TINY
from rebus.sequence import collate
from rebus.system import PARTS, System, load
from rebus.visual import Codes, Features, ImageSampling, Progress

SOURCE = "seed random"


@pytest.fixture(scope="module")
def system() -> System:
    torch.manual_seed(0)
    made = build(TINY, None, PARTS, "cpu", generator=torch.Generator().manual_seed(0))
    assert isinstance(made.detokenizer, SeedDetokenizer)
    with torch.no_grad():  # a fresh denoiser answers zero to everything
        for parameter in made.detokenizer.denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def codes(seed: int, source: str = SOURCE) -> Codes:
    return Codes(torch.randint(64, (8,), generator=torch.Generator().manual_seed(seed)), source)


def draw(
    system: System, tokens: list[Codes], seeds: list[int], *, negatives=None, **sampling: float
) -> list[np.ndarray]:
    drawn = system.detokenizer.decode(
        tokens,
        sources=[None] * len(tokens),
        negatives=negatives or [None] * len(tokens),
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        sampling=ImageSampling(**sampling),
    )
    return [np.asarray(image) for image in drawn if not isinstance(image, Progress)]


def test_an_image_depends_on_its_codes_and_its_seed_alone(system: System) -> None:
    both = draw(system, [codes(1), codes(2)], [5, 6])
    np.testing.assert_array_equal(both[1], draw(system, [codes(2)], [6])[0])
    assert (both[0] != draw(system, [codes(1)], [7])[0]).any()
    assert (both[0] != draw(system, [codes(3)], [5])[0]).any()
    assert both[0].shape == (32, 32, 3) and both[0].dtype == np.uint8


def test_progress_is_told_after_every_step_then_the_images(system: System) -> None:
    parts = list(
        system.detokenizer.decode(
            [codes(1), codes(2)],
            sources=[None, None],
            negatives=[None, None],
            generators=[torch.Generator().manual_seed(k) for k in (0, 1)],
            sampling=ImageSampling(steps=3),
        )
    )
    assert [(p.step, p.of) for p in parts[:3]] == [(1, 3), (2, 3), (3, 3)]
    assert parts[0].preview is not None and all(isinstance(p, PIL.Image.Image) for p in parts[3:]) and len(parts) == 5


def test_a_negative_image_matters_only_for_its_own_row_and_only_with_guidance(system: System) -> None:
    plain = draw(system, [codes(1), codes(2)], [5, 6], guidance=3.0)
    led = draw(system, [codes(1), codes(2)], [5, 6], negatives=[None, codes(9)], guidance=3.0)
    np.testing.assert_array_equal(plain[0], led[0])
    assert (plain[1] != led[1]).any()
    unguided = draw(system, [codes(2)], [6], guidance=1.0)
    np.testing.assert_array_equal(unguided[0], draw(system, [codes(2)], [6], negatives=[codes(9)], guidance=1.0)[0])


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (Codes(torch.zeros(7, dtype=torch.int64), SOURCE), "as 8 codes of 0 to 63, but image 2 has 7"),
        (Codes(torch.full((8,), 64), SOURCE), "from 64 to 64"),
        (Codes(torch.zeros(8, dtype=torch.int64), "lavit:mini"), "'lavit:mini'"),
        (Features(torch.zeros(1, 8, 8), SOURCE), "is Features"),
    ],
)
def test_tokens_that_it_cannot_draw_are_refused_by_name(system: System, tokens: Codes, says: str) -> None:
    with pytest.raises(RebusError, match=says):
        draw(system, [codes(1), tokens], [0, 1])


def test_bad_sampling_is_refused(system: System) -> None:
    with pytest.raises(RebusError, match="at least one step, but 0"):
        draw(system, [codes(1)], [0], steps=0)
    with pytest.raises(RebusError, match="level 0 to 999, but 1000"):
        draw(system, [codes(1)], [0], noise_level=1000)


def saved(system: System, folder: Path) -> Path:
    parts = own_tensors(TINY, system.tokenizer, system.lm.llm, system.detokenizer)
    save_system(folder, SavedSystem(name="seed:tiny", config=config_to_json(TINY)), parts)
    return folder


def test_a_saved_system_draws_and_reads_the_same(system: System, tmp_path: Path) -> None:
    again = load("seed", weights=saved(system, tmp_path / "tiny"))
    assert again.name == "seed:tiny" and again.grammar.config == TINY.grammar
    for name, tensor in system.detokenizer.state_dict().items():
        torch.testing.assert_close(again.detokenizer.state_dict()[name], tensor, atol=0, rtol=0)
    document = Document((user("Draw a fish."),))
    words = [s.grammar.serialize(document, reply="any") for s in (system, again)]
    with torch.no_grad():
        hidden = [
            s.lm.hidden(s.lm.embed(b), b)
            for s, b in ((s, collate([w])) for s, w in zip((system, again), words, strict=True))
        ]
        torch.testing.assert_close(
            again.lm.llm.logits(hidden[1]), system.lm.llm.logits(hidden[0]), atol=1e-4, rtol=1e-4
        )
    mine = draw(system, [codes(4)], [1])
    theirs = draw(again, [Codes(codes(4).ids_N, again.grammar.source)], [1])
    np.testing.assert_array_equal(mine[0], theirs[0])


def test_codes_of_other_weights_are_refused(system: System, tmp_path: Path) -> None:
    again = load("seed", weights=saved(system, tmp_path / "tiny"))
    with pytest.raises(RebusError, match="Tokenize the image again"):
        draw(again, [codes(1)], [0])


def test_weights_that_lack_an_adapter_are_refused(system: System, tmp_path: Path) -> None:
    parts = own_tensors(TINY, system.tokenizer, system.lm.llm, system.detokenizer)
    parts["lm"] = dict(list(parts["lm"].items())[1:])
    save_system(tmp_path / "tiny", SavedSystem(name="seed:tiny", config=config_to_json(TINY)), parts)
    with pytest.raises(RebusError, match="1 tensors are missing"):
        load("seed", weights=tmp_path / "tiny")
