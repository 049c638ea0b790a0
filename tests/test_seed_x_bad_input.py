"""What SEED-X cannot take, and what is odd but defined: strips, single pixels, too many views, boxes and adapters."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from rebus.document import Box, Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.papers.seed_x.boxes import box_words, read_box, split_boxes
from rebus.papers.seed_x.views import COMPREHENSION, choose_grid, cut
from rebus.sampling import Sampling
from seed_x_mini import picture


@pytest.mark.parametrize(
    ("size", "grid"), [((1, 5000), (1, 1)), ((5000, 1), (1, 1)), ((100, 5000), (1, 4)), ((1, 1), (1, 1))]
)
def test_strips_and_single_pixels_are_read(size: tuple[int, int], grid: tuple[int, int]) -> None:
    image = picture(size=size)
    assert choose_grid(size, COMPREHENSION, 448) == grid
    views = cut(image.pixels, grid, 64)  # type: ignore[arg-type]
    assert len(views) == grid[0] * grid[1] + 1 and {view.size for view in views} == {(64, 64)}
    system = tiny.system("seed_x")
    [encoded] = system.tokenizer.encode([image], {"understanding", "generation"})  # type: ignore[union-attr]
    assert torch.isfinite(encoded.understood.x_WNC).all() and torch.isfinite(encoded.generated.x_WNC).all()  # type: ignore[union-attr]
    reply = system.generate([Document((user(image, "What?"),))], modality="text", sampling=Sampling(max_new_tokens=4))
    assert reply[0].role == "assistant"


def test_more_views_than_the_context_holds_are_refused() -> None:
    system = tiny.system("seed_x")
    many = Document((user(*[picture(size=(128, 128))] * 80, "What?"),))
    with pytest.raises(
        RebusError, match=r"words, 2,400 of them for 400 views of 80 images, but this model reads 2,048"
    ):
        system.generate([many], sampling=Sampling(max_new_tokens=4))


def test_boxes_lie_in_the_picture_and_have_four_locations() -> None:
    for wrong in ((1.2, 0.5, 0.1, 0.1), (0.5, -0.1, 0.1, 0.1), (0.5, 0.5, float("nan"), 0.1)):
        with pytest.raises(RebusError, match="between 0 and 1"):
            Box(*wrong)
    config = tiny.system("seed_x").grammar.config  # type: ignore[attr-defined]
    words = box_words(Box(1.0, 1.0, 1.0, 1.0), config)
    assert read_box(words, config).cx == 15 / 16  # the scale ends below the whole
    five = [*words[:-1], config.first_location, words[-1]]
    for damaged in (five, words[:-2] + words[-1:], words[1:], []):
        with pytest.raises(RebusError, match="four|locations"):
            read_box(damaged, config)
    with pytest.raises(RebusError, match="locations from 0 to 223"):
        split_boxes("<box_start><loc-1><loc-2><loc-3><loc-4><loc-5><box_end>", 224)
    with pytest.raises(RebusError, match="locations from 0 to 223"):
        split_boxes("<box_start><loc-1><loc-2><loc-3><loc-224><box_end>", 224)


# ------------------------------------------------------------------------------------------------ beyond the published code


def several() -> list[Document]:
    """Turns with no, one and three images, of one view and of several."""
    return [
        Document((user("Hello."),)),
        Document((user(picture(size=(64, 32)), "What is it?"),)),
        Document((user(picture(), " and ", picture((0, 99, 0), (64, 64)), " and ", picture(), ": what is alike?"),)),
        Document((user(picture(), "Bluer."), assistant(picture((0, 0, 200))), user("Greener."))),
    ]


@pytest.mark.parametrize("modality", ["any", "text", "image"])
def test_replies_in_a_batch_are_those_of_each_document_alone(modality: str) -> None:
    system = tiny.system("seed_x")
    settings = {"modality": modality, "sampling": Sampling(max_new_tokens=24, temperature=1.0)}
    together = system.generate(several(), generators=[tiny.generator(n) for n in range(4)], **settings)  # type: ignore[arg-type]
    for number, document in enumerate(several()):
        [alone] = system.generate([document], generators=[tiny.generator(number)], **settings)  # type: ignore[arg-type]
        assert tiny.said(alone) == tiny.said(together[number])
        images = [part for part in together[number].content if isinstance(part, Image)]
        # an image may be forced, forbidden, or left to the model
        assert len(images) == 1 if modality == "image" else modality == "any" or not images
        for one, two in zip(alone.images, images, strict=True):
            torch.testing.assert_close(one.generated.x_WNC, two.generated.x_WNC, atol=3e-5, rtol=1e-4)  # type: ignore[union-attr]
