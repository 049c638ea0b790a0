"""SEED-X's image decoders, on SDXL's kind of UNet and on the mini denoiser: seeds, batches, sources, guidance, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tests.tiny import picture

from rebus.diffusion.editing import EditGuidance, sample_edit
from rebus.errors import RebusError
from rebus.images import to_rgb
from rebus.visual import Codes, Editor, Features, ImageSampling, Progress
from seed_x_decoders import decoder

KINDS = ("sdxl", "mini")


@pytest.fixture(scope="module", params=KINDS)
def first(request: pytest.FixtureRequest) -> Any:
    return decoder(request.param, 1)


@pytest.fixture(scope="module", params=KINDS)
def second(request: pytest.FixtureRequest) -> Any:
    return decoder(request.param, 2)


def features(seed: int, count: int = 4, source: str = "ours") -> Features:
    return Features(torch.randn(1, count, 12, generator=torch.Generator().manual_seed(seed)), source)


def source(colour: tuple[int, int, int] = (200, 30, 30)) -> PIL.Image.Image:
    return to_rgb(picture(colour).pixels)


def draw(model: Any, tokens: list, seeds: list[int], sources=None, negatives=None, **sampling: Any) -> list[np.ndarray]:
    drawn = model.decode(
        tokens,
        sources=sources or [None] * len(tokens),
        negatives=negatives or [None] * len(tokens),
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        sampling=ImageSampling(**sampling),
    )
    return [np.asarray(image).astype(int) for image in drawn if not isinstance(image, Progress)]


def close(one: np.ndarray, two: np.ndarray) -> None:
    assert one.shape == two.shape and abs(one - two).max() <= 1  # rows of a batch are summed in another order


def test_an_image_depends_on_its_features_its_source_and_its_seed_alone(second: Any) -> None:
    sources = [source(), None, source((0, 90, 200))]
    tokens = [features(1), features(2), features(3)]
    together = draw(second, tokens, [5, 6, 7], sources)
    for row, image in enumerate(together):
        close(image, draw(second, [tokens[row]], [5 + row], [sources[row]])[0])
    assert (together[0] != draw(second, [features(1)], [8], [source()])[0]).any()
    assert (together[0] != draw(second, [features(4)], [5], [source()])[0]).any()
    assert (together[0] != draw(second, [features(1)], [5], [source((9, 9, 9))])[0]).any()
    assert (together[0] != draw(second, [features(1)], [5])[0]).any()


def test_only_the_second_stage_edits(first: Any, second: Any) -> None:
    assert isinstance(first, Editor) and not first.edits and second.edits
    np.testing.assert_array_equal(draw(first, [features(1)], [5])[0], draw(first, [features(1)], [5], [source()])[0])


def test_both_guidances_are_heard(second: Any) -> None:
    def drawn(text: float, image: float, pictures: list) -> np.ndarray:
        return draw(second, [features(1)], [5], pictures, guidance=text, image_guidance=image)[0]

    with_source = [drawn(text, image, [source()]) for text, image in ((3, 1), (3, 2), (6, 1), (1, 1))]
    for number, one in enumerate(with_source):
        assert all((one != other).any() for other in with_source[:number])
    # with nothing told twice as loud, nothing is louder
    close(drawn(3, 2, [None]), drawn(3, 1, [None]))
    # one row only: neither is heard
    close(drawn(1, 2, [source()]), drawn(3, 0.5, [source()]))


def test_a_negative_image_matters_only_for_its_own_row(first: Any) -> None:
    plain = draw(first, [features(1), features(2)], [5, 6], guidance=3.0)
    led = draw(first, [features(1), features(2)], [5, 6], negatives=[None, features(9)], guidance=3.0)
    close(plain[0], led[0])
    assert (plain[1] != led[1]).any()


def test_progress_is_told_after_every_step(second: Any) -> None:
    parts = list(
        second.decode(
            [features(1)],
            sources=[source()],
            negatives=[None],
            generators=[torch.Generator().manual_seed(0)],
            sampling=ImageSampling(steps=3),
        )
    )
    assert [(p.step, p.of) for p in parts[:-1]] == [(1, 3), (2, 3), (3, 3)] and isinstance(parts[-1], PIL.Image.Image)
    assert not list(second.decode([], sources=[], negatives=[], generators=[], sampling=ImageSampling()))


def test_three_rows_without_weight_are_two() -> None:
    model = decoder("sdxl", 2)
    told, untold = model.conditions([features(1)], [source()], [None], (32, 32))
    noise, generators = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)), [torch.Generator()]

    def last(guidance: EditGuidance) -> torch.Tensor:
        runs = sample_edit(model.diffusion, noise, told, untold, guidance=guidance, steps=3, generators=generators)
        return list(runs)[-1][2]

    torch.testing.assert_close(last(EditGuidance(3, 1)), last(EditGuidance(3, 1 + 1e-6)), atol=1e-3, rtol=0)
    assert (last(EditGuidance(3, 1)) - last(EditGuidance(3, 1, rescale=0.7))).abs().max() > 1e-3


def test_views_of_another_length_are_drawn_by_sdxl() -> None:
    model = decoder("sdxl", 1)
    pair = draw(model, [features(1, 16), features(2, 4)], [3, 4])
    close(pair[0], draw(model, [features(1, 16)], [3])[0])
    wide = draw(model, [features(1)], [3], size=(16, 48))[0]
    assert wide.shape == (16, 48, 3)
    with pytest.raises(RebusError, match="draws an image from 4 features, but image 1 of 1 has 16"):
        draw(decoder("mini", 1), [features(1, 16)], [3])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (Codes(torch.tensor([1]), "ours"), "draws from features, but image 1 of 1 is Codes"),
        (features(1, source="theirs"), "features of 'theirs', but this detokenizer belongs to 'ours'"),
        (Features(torch.zeros(2, 4, 12), "ours"), r"image 1 of 1 has the shape \[2, 4, 12\]"),
        (Features(torch.zeros(1, 4, 11), "ours"), "vectors of width 12"),
        (Features(torch.full((1, 4, 12), float("nan")), "ours"), "numbers that are not finite"),
    ],
)
def test_other_tokens_are_refused(first: Any, tokens: Any, words: str) -> None:
    with pytest.raises(RebusError, match=words):
        draw(first, [tokens], [1])


def test_what_cannot_be_drawn_is_refused(second: Any) -> None:
    with pytest.raises(RebusError, match="at least one step"):
        draw(second, [features(1)], [1], steps=0)
    with pytest.raises(RebusError, match="multiples of 4"):
        draw(decoder("sdxl", 2), [features(1)], [1], size=(30, 32))
