"""LaVIT's detokenizer: what an image depends on, sizes, negatives, bad tokens; a whole system saved and loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny

from rebus.checkpoint import SavedSystem, config_to_json, save_system
from rebus.document import Document, user
from rebus.errors import RebusError
from rebus.papers.lavit.build import build, own_tensors
from rebus.papers.lavit.decoder import Decoder, DecoderConfig
from rebus.papers.lavit.detokenizer import ASPECTS, HighresConfig, LavitDetokenizer, LowresConfig
from rebus.papers.lavit.variants import TINY, LavitConfig
from rebus.sampling import Sampling
from rebus.sequence import collate
from rebus.system import PARTS, System, load
from rebus.visual import Codes, Features, ImageSampling, Progress

SOURCE = "lavit random"
_UNET = {k: v for k, v in TINY.detokenizer.diffusion.unet.items() if not k.startswith(("addition", "projection"))}
LOWRES = replace(
    TINY,
    detokenizer=LowresConfig(
        decoder=TINY.detokenizer.decoder,
        codes=64,
        diffusion=replace(TINY.detokenizer.diffusion, unet={**_UNET, "cross_attention_dim": 8}),
        tokens=8,
        empty=5,
        size=(32, 32),
        steps=2,
        batch=2,
    ),
)


def made(config: LavitConfig) -> System:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        system = build(config, None, PARTS, "cpu", torch.float32, generator=tiny.generator(0))
    with torch.no_grad():  # a fresh decoder says nearly nothing
        for parameter in [*system.detokenizer.decoder.parameters(), *system.detokenizer.head.parameters()]:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=tiny.generator(1)))
        if isinstance(config.detokenizer, LowresConfig):
            system.detokenizer.empty_1SC.copy_(torch.randn(1, 5, 8, generator=tiny.generator(2)))
    return system


@pytest.fixture(scope="module")
def high() -> System:
    return made(TINY)


@pytest.fixture(scope="module")
def low() -> System:
    return made(LOWRES)


def codes(seed: int, count: int = 6, source: str = SOURCE) -> Codes:
    return Codes(torch.randint(64, (count,), generator=tiny.generator(seed)), source)


def draw(system: System, tokens: list[Any], seeds: list[int], *, negatives: Any = None, **sampling: Any) -> list[Any]:
    drawn = system.detokenizer.decode(
        tokens,
        sources=[None] * len(tokens),
        negatives=negatives or [None] * len(tokens),
        generators=[tiny.generator(seed) for seed in seeds],
        sampling=ImageSampling(**sampling),
    )
    return [np.asarray(image) for image in drawn if not isinstance(image, Progress)]


@pytest.mark.parametrize("which", ["high", "low"])
def test_an_image_depends_on_its_codes_and_its_seed_alone(which: str, request: pytest.FixtureRequest) -> None:
    system = request.getfixturevalue(which)
    three = draw(system, [codes(1, 3), codes(2, 16), codes(3, 1)], [5, 6, 7])  # in two batches
    for alone, together in zip(((codes(1, 3), 5), (codes(2, 16), 6), (codes(3, 1), 7)), three, strict=True):
        own = draw(system, [alone[0]], [alone[1]])[0].astype(int)
        assert abs(own - together.astype(int)).max() <= 1 and together.shape == (32, 32, 3)
    assert (three[0] != draw(system, [codes(1, 3)], [8])[0]).any()
    assert (three[0] != draw(system, [codes(9, 3)], [5])[0]).any()


@pytest.mark.parametrize("which", ["high", "low"])
def test_a_negative_image_matters_for_its_own_row_and_only_with_guidance(
    which: str, request: pytest.FixtureRequest
) -> None:
    system = request.getfixturevalue(which)
    plain = draw(system, [codes(1), codes(2)], [5, 6], guidance=3.0)
    led = draw(system, [codes(1), codes(2)], [5, 6], negatives=[None, codes(9)], guidance=3.0)
    np.testing.assert_array_equal(plain[0], led[0])
    assert (plain[1] != led[1]).any()
    unguided = [draw(system, [codes(2)], [6], guidance=1.0, negatives=[negative]) for negative in (None, codes(9))]
    np.testing.assert_array_equal(*unguided)


def test_what_stands_for_nothing_told(high: System, low: System) -> None:
    told, untold = high.detokenizer.conditions([codes(1)], [None], (16, 48))
    assert not untold.tokens_ISC.any() and not untold.pooled_IP.any() and untold.seen_IS is None
    assert told.sizes_I6.tolist() == untold.sizes_I6.tolist() == [[16, 48, 0, 0, 16, 48]]
    told, untold = low.detokenizer.conditions([codes(1)], [None], (32, 32))
    assert told.seen_IS.all() and untold.seen_IS[0].tolist() == [True] * 5 + [False] * 11
    torch.testing.assert_close(untold.tokens_ISC[0, :5], low.detokenizer.empty_1SC[0])
    assert not untold.tokens_ISC[0, 5:].any()


def test_sizes(high: System) -> None:
    assert draw(high, [codes(1)], [0], size=(24, 40))[0].shape == (24, 40, 3)
    assert all(height % 64 == width % 64 == 0 for height, width in ASPECTS.values())
    for shape in ASPECTS.values():
        ratio = shape[1] / shape[0]
        (name,) = (name for name, size in ASPECTS.items() if size == shape)
        wide, tall = map(int, name.split(":"))
        assert abs(ratio - wide / tall) < 0.06 * ratio
    for size in ((30, 32), (0, 32), (32, 4096)):
        with pytest.raises(RebusError, match=f"multiples of 4, up to 128 pixels, but {size[0]} x {size[1]}"):
            draw(high, [codes(1)], [0], size=size)
    with pytest.raises(RebusError, match="at least one step, but 0"):
        draw(high, [codes(1)], [0], steps=0)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (codes(1, 0), "1 to 16 codes of 0 to 63, but image 2 has 0"),
        (codes(1, 17), "image 2 has 17"),
        (Codes(torch.tensor([0, 64]), SOURCE), "from 0 to 64"),
        (codes(1, 4, "seed:mini"), "'seed:mini'"),
        (Features(torch.zeros(1, 8, 8), SOURCE), "is Features"),
    ],
)
def test_tokens_that_it_cannot_draw_are_refused_by_name(high: System, tokens: Any, says: str) -> None:
    with pytest.raises(RebusError, match=says):
        draw(high, [codes(1), tokens], [0, 1])


def test_codes_that_were_packed_wrongly_are_refused() -> None:
    decoder = Decoder(DecoderConfig(patches=4, code_width=3, width=8, depth=1, heads=2, mlp_hidden=8))
    for lengths, rows in (([5], 5), ([2, 2], 3)):
        with pytest.raises(RebusError, match=f"all have {sum(lengths)}, and {rows} were given"):
            decoder(torch.zeros(rows, 3), torch.tensor(lengths))


def test_a_head_of_another_width_than_the_unets_is_refused() -> None:
    assert isinstance(TINY.detokenizer, HighresConfig)
    with pytest.raises(RebusError, match="tokens of width 24, but the decoder's head gives tokens of width 25"):
        LavitDetokenizer(replace(TINY.detokenizer, widths=(9, 16)))


@pytest.mark.parametrize("which", ["high", "low"])
def test_a_saved_system_sees_says_and_draws_the_same(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    system, config = request.getfixturevalue(which), {"high": TINY, "low": LOWRES}[which]
    tiny.liven(system.lm)
    parts = own_tensors(TINY, system.tokenizer, system.lm, system.detokenizer)
    save_system(tmp_path / "w", SavedSystem(name="lavit:tiny", config=config_to_json(config)), parts)
    again = load("lavit", weights=tmp_path / "w", dtype=torch.float32)
    assert again.grammar.config == config.grammar and again.tokenizer.config == config.tokenizer
    (one,), (two,) = (s.tokenizer.encode([tiny.picture()], {"understanding"}) for s in (system, again))
    assert torch.equal(one.generated.ids_N, two.generated.ids_N)
    with torch.no_grad():
        hidden = [
            s.lm.hidden(s.lm.embed(batch), batch)
            for s, image in ((system, one), (again, two))
            for batch in (collate([s.grammar.serialize(Document((user(image, "What?"),)), reply="text")]),)
        ]
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(
        draw(system, [codes(1)], [3])[0], draw(again, [codes(1, source=again.grammar.source)], [3])[0]
    )
    with pytest.raises(RebusError, match="Tokenize the image again"):
        draw(again, [codes(1)], [3])
    blind = load("lavit", weights=tmp_path / "w", parts=("lm", "detokenizer"), dtype=torch.float32)
    assert blind.tokenizer is None
    message = blind.generate([Document((user("a cat"),))], modality="image", sampling=Sampling(max_new_tokens=14))[0]
    assert message.images[0].pixels.size == (32, 32)


def test_official_behaviour_is_switched_on_by_name() -> None:
    system = load("lavit:tiny", official=True, parts=("tokenizer", "lm"))
    assert system.tokenizer.selection == "sample" and not system.grammar.config.wish_marks
