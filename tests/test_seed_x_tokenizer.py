"""SEED-X's views, vision encoder and projectors: sizes of any kind, batches, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import PIL.Image
import pytest
import torch
from tests import tiny

from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.nn.resampler import Resampler, ResamplerConfig, sincos_grid
from rebus.papers.seed_x import views
from rebus.papers.seed_x.build import assemble
from rebus.papers.seed_x.projectors import SeedXInputProjector, SeedXOutputProjector
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import MINI, TINY
from rebus.papers.seed_x.vision import VisionConfig, pool_rows
from rebus.sampling import Sampling
from rebus.sequence import collate
from rebus.system import encode
from rebus.visual import Codes, Features

SIDE = 32


def picture(width: int, height: int) -> Image:
    """Columns that are all different."""
    ramp = PIL.Image.linear_gradient("L").resize((width, height))
    return Image(PIL.Image.merge("RGB", (ramp, ramp.rotate(180), ramp)))


@pytest.fixture(scope="module")
def tokenizer() -> SeedXTokenizer:
    return tiny.system("seed_x").tokenizer


# ------------------------------------------------------------------------------------------------ views


def test_views_are_tiles_and_the_whole(tokenizer: SeedXTokenizer) -> None:
    wide = picture(70, 33)
    assert tokenizer.grid(wide) == (2, 1)
    (image,) = tokenizer.encode([wide], {"understanding"})
    seen = image.understood
    assert seen.x_WNC.shape == (3, 16, 24) and seen.source == tokenizer.source
    assert seen.position_W2.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.5]]
    tiles = views.cut(wide.pixels, (2, 1), SIDE)
    assert [tile.size for tile in tiles] == [(SIDE, SIDE)] * 3
    stretched = wide.pixels.resize((64, 32), PIL.Image.Resampling.BICUBIC)
    assert tiles[1].tobytes() == stretched.crop((32, 0, 64, 32)).tobytes()
    alone = tokenizer._features([(Image(tiles[1]), None)])[0]
    torch.testing.assert_close(seen.x_WNC[1], alone[0], atol=1e-5, rtol=1e-4)


def test_an_image_to_be_drawn_is_the_whole_pooled_along_its_rows(tokenizer: SeedXTokenizer) -> None:
    (image,) = tokenizer.encode([picture(70, 33)], {"understanding", "generation"})
    assert image.generated.x_WNC.shape == (1, 4, 24) and image.generated.position_W2 is None
    whole_1NC = image.understood.x_WNC[-1:]
    torch.testing.assert_close(image.generated.x_WNC, pool_rows(whole_1NC, 4), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(image.generated.x_WNC[0, 1], whole_1NC[0, 4:8].mean(0), atol=1e-5, rtol=1e-4)
    again = tokenizer.encode([image], {"understanding", "generation"})[0]
    assert again is image  # what is known is not computed again


def test_views_of_several_images_go_through_together(
    tokenizer: SeedXTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [picture(40, 40), picture(80, 30), picture(10, 90)]
    together = tokenizer.encode(images, {"understanding"})
    monkeypatch.setattr("rebus.papers.seed_x.tokenizer.AT_ONCE", 2)
    for one, other, image in zip(together, tokenizer.encode(images, {"understanding"}), images, strict=True):
        torch.testing.assert_close(one.understood.x_WNC, other.understood.x_WNC, atol=1e-5, rtol=1e-4)
        alone = tokenizer.encode([image], {"understanding"})[0]
        torch.testing.assert_close(one.understood.x_WNC, alone.understood.x_WNC, atol=1e-5, rtol=1e-4)


def test_without_grids_an_image_is_one_view() -> None:
    own = SeedXTokenizer(replace(TINY.tokenizer, grids=()), generator=tiny.generator(0))
    (image,) = own.encode([picture(90, 30)], {"understanding"})
    assert image.understood.x_WNC.shape[0] == 1 and image.understood.position_W2.tolist() == [[0.5, 0.5]]
    own.grids = ((2, 2),)
    assert own.encode([picture(90, 30)], {"understanding"})[0].understood.x_WNC.shape[0] == 5


def test_the_empty_picture_is_zero_once_normalised() -> None:
    own = SeedXTokenizer(replace(TINY.tokenizer, mean=(128 / 255,) * 3), generator=tiny.generator(0))
    (image,) = own.encode([Image(PIL.Image.new("RGB", (8, 8), (128, 128, 128)))], {"generation"})
    assert own.blank().x_WNC.shape == (1, 4, 24) and own.blank().source == own.source
    torch.testing.assert_close(own.blank().x_WNC, image.generated.x_WNC, atol=1e-4, rtol=1e-3)


def test_the_mini_reads_patches_of_its_shared_encoder() -> None:
    own = SeedXTokenizer(MINI.tokenizer)
    (image,) = own.encode([picture(128, 128)], {"understanding", "generation"})
    assert image.understood.x_WNC.shape == (5, 64, 192) and image.generated.x_WNC.shape == (1, 16, 192)
    assert own.config.slots == MINI.grammar.slots and MINI.grammar.vectors == 64


# ------------------------------------------------------------------------------------------------ sizes of any kind


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (2, 1), (3, 4000), (4000, 4000)])
def test_any_size_has_views(tokenizer: SeedXTokenizer, size: tuple[int, int]) -> None:
    (image,) = tokenizer.encode([picture(*size)], {"understanding", "generation"})
    count = len(image.understood.x_WNC)
    assert 2 <= count <= 5 and image.understood.position_W2.shape == (count, 2)
    assert image.understood.x_WNC.isfinite().all() and image.generated.x_WNC.isfinite().all()
    # where nothing of the image would be kept, the first of the smallest grids is taken; else the nearest in shape
    if size == (1, 1):
        assert tokenizer.grid(image) == (1, 1)


def test_strips_have_a_defined_grid() -> None:
    assert views.choose_grid((1, 5000), views.COMPREHENSION, 448) == (1, 1)
    assert views.choose_grid((5000, 1), views.DEMO, 448) == (1, 1)
    assert views.choose_grid((10, 5000), views.COMPREHENSION, 448) == (1, 4)


def test_images_of_nothing_are_refused(tokenizer: SeedXTokenizer) -> None:
    with pytest.raises(RebusError, match="Image 2 of 2 is 0 x 3 pixels"):
        tokenizer.encode([picture(4, 4), Image(PIL.Image.new("RGB", (0, 3)))], {"generation"})
    with pytest.raises(RebusError, match="the image is 0 x 3 and there are 8 grids"):
        views.choose_grid((0, 3), views.COMPREHENSION, 448)
    drawn = Image(generated=Features(torch.zeros(1, 4, 24), tokenizer.source))
    with pytest.raises(RebusError, match="has no pixels and lacks the features for understanding"):
        tokenizer.encode([drawn], {"understanding"})


def test_grids_are_written_as_the_published_lists_are() -> None:
    assert views.grids("1x2 3x1") == ((1, 2), (3, 1)) and len(views.DEMO) == 18
    for name in ("2", "0x1", "ax2", "2x"):
        with pytest.raises(RebusError, match="A grid is written like 2x3"):
            views.grids(name)


def test_configs_that_cannot_be_are_refused() -> None:
    with pytest.raises(RebusError, match="3 of them do not divide a row of 4"):
        SeedXTokenizer(replace(TINY.tokenizer, pooled=3))
    other = SeedXTokenizer(MINI.tokenizer).vision
    with pytest.raises(RebusError, match="not the one its config describes"):
        SeedXTokenizer(TINY.tokenizer, vision=other)
    vision = TINY.tokenizer.vision
    assert isinstance(vision, VisionConfig)
    with pytest.raises(ValueError, match="31 against 32"):
        SeedXTokenizer(
            replace(TINY.tokenizer, vision=VisionConfig(vision.trunk, replace(vision.pool, source_width=31)))
        )


# ------------------------------------------------------------------------------------------------ resampler, projectors


def test_a_resampler_looks_at_squares_only() -> None:
    config = ResamplerConfig(grid=2, width=16, heads=2, source_width=8)
    resampler = Resampler(config, tiny.generator(0))
    assert resampler(torch.zeros(3, 25, 8)).shape == (3, 4, 16)
    with pytest.raises(ValueError, match="got 8 of them"):
        resampler(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="width is 18 with 4 heads"):
        Resampler(replace(config, width=18, heads=4))
    table_NC = sincos_grid(3, 16)
    assert torch.equal(table_NC[:3, :8], table_NC[3:6, :8])  # the first half tells columns
    assert torch.equal(table_NC[0, 8:], table_NC[2, 8:]) and not torch.equal(table_NC[0, 8:], table_NC[3, 8:])


def test_where_a_view_lies_is_added_to_all_of_its_slots() -> None:
    into = SeedXInputProjector(TINY.projectors.into, tiny.generator(0))
    x_1NC = torch.randn(1, 16, 24, generator=tiny.generator(1))
    nowhere = into([Features(x_1NC, "s")])
    somewhere = into([Features(x_1NC, "s", torch.tensor([[0.25, 0.75]]))])
    left_D, top_D, right_D, bottom_D = into.position_4D
    want = 0.5 * (0.25 * left_D + 0.75 * top_D + 0.75 * right_D + 0.25 * bottom_D)
    torch.testing.assert_close(somewhere - nowhere, want.expand(4, -1), atol=1e-5, rtol=1e-4)
    means = SeedXInputProjector(TINY.projectors.into, tiny.generator(0), running_mean=True)
    for t, x_D in enumerate(means([Features(x_1NC, "s"), Features(2 * x_1NC, "s")])[:4], 1):
        torch.testing.assert_close(x_D, nowhere[:t].mean(0), atol=1e-5, rtol=1e-5)
    with pytest.raises(RebusError, match=r"features of width 24, but image 2 of 2 is \[1, 16, 5\]"):
        into([Features(x_1NC, "s"), Features(torch.zeros(1, 16, 5), "s")])
    with pytest.raises(RebusError, match="image 1 of 1 is Codes"):
        into([Codes(torch.tensor([1]), "s")])


def test_the_regression_is_a_mean_over_all_vectors() -> None:
    out_of = SeedXOutputProjector(TINY.projectors.out_of, source="s", generator=tiny.generator(0))
    hidden_TD = torch.randn(8, 32, generator=tiny.generator(1))
    targets = [Features(torch.randn(1, 4, 24, generator=tiny.generator(seed)), "s") for seed in (2, 3)]
    said = torch.cat([out_of(hidden_TD[:4]).x_WNC, out_of(hidden_TD[4:]).x_WNC])
    wanted = torch.cat([target.x_WNC for target in targets])
    torch.testing.assert_close(out_of.loss(hidden_TD, targets), ((said - wanted) ** 2).mean())
    out_of.regression = "cosine"
    cosine = torch.nn.functional.cosine_similarity(said, wanted, dim=-1)
    torch.testing.assert_close(out_of.loss(hidden_TD, targets), 1 - cosine.mean())
    assert out_of(hidden_TD[:4]).source == "s"
    with pytest.raises(RebusError, match="there are 8 states for targets of"):
        out_of.loss(hidden_TD, targets[:1])


def test_a_slot_may_say_that_it_is_as_in_what_was_seen() -> None:
    out_of = SeedXOutputProjector(TINY.projectors.out_of, source="s", keeps=True, generator=tiny.generator(0))
    plain = SeedXOutputProjector(TINY.projectors.out_of, source="s", generator=tiny.generator(0))
    hidden_TD = torch.randn(8, 32, generator=tiny.generator(1))
    view = Features(torch.randn(1, 16, 24, generator=tiny.generator(2)), "s")
    before_SC = view.x_WNC[0].unflatten(0, (4, 4)).mean(1)
    regressed = plain(hidden_TD[:4]).x_WNC[0]
    torch.testing.assert_close(out_of(hidden_TD[:4]).x_WNC[0], regressed)  # nothing was seen
    little = out_of(hidden_TD[:4], view).x_WNC[0]
    torch.testing.assert_close(little, regressed + (before_SC - regressed) * torch.tensor(-3.0).sigmoid())
    with torch.no_grad():
        out_of.keep.weight.normal_(generator=tiny.generator(3))
        share_S1 = out_of.keep(hidden_TD[:4]).sigmoid()
        drawn = out_of(hidden_TD[:4], view).x_WNC[0]
    torch.testing.assert_close(drawn, regressed + (before_SC - regressed) * share_S1)
    targets = [Features(torch.randn(1, 4, 24, generator=tiny.generator(seed)), "s") for seed in (4, 5)]
    said = torch.stack([drawn, plain(hidden_TD[4:]).x_WNC[0]])
    wanted = torch.cat([target.x_WNC for target in targets])
    torch.testing.assert_close(out_of.loss(hidden_TD, targets, [view, None]), (said - wanted).square().mean())
    both = Features(
        torch.cat([target.x_WNC for target in targets]), "s"
    )  # targets may be given as one, of nothing seen
    torch.testing.assert_close(out_of.loss(hidden_TD, [both]), out_of.loss(hidden_TD, targets, [None, None]))
    out_of.loss(hidden_TD, targets, [view, None]).backward()
    assert out_of.keep.weight.grad.any()


def test_what_is_drawn_is_told_what_the_prompt_shows() -> None:
    system = tiny.system("seed_x")
    seen: list[Features | None] = []
    system.lm.output_projector.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    for parts in (("Draw.",), (tiny.picture(), "Draw.", tiny.picture(size=40), "So.")):
        list(system.stream(Document((user(*parts),)), modality="image", sampling=Sampling(max_new_tokens=40)))
    assert seen[0] is None and seen[1].x_WNC.shape == (1, 16, 24)


def test_parts_of_other_widths_are_refused() -> None:
    llm = tiny.fresh("seed_x").lm.llm
    wide = replace(TINY.projectors, out_of=replace(TINY.projectors.out_of, source_width=48))
    with pytest.raises(RebusError, match="gives width 32 and the way out takes 48"):
        assemble(replace(TINY, projectors=wide), llm)


# ------------------------------------------------------------------------------------------------ batches


def test_losses_of_a_batch_do_not_depend_on_its_padding() -> None:
    system = tiny.system("seed_x")
    documents = [
        Document((user("Draw a cat."), assistant("Here: ", picture(40, 40)))),
        Document((user(picture(90, 30), "and", picture(30, 90), "?"), assistant("No."))),
        Document((user("Hi."), assistant("Hello."))),
        Document((user(picture(40, 40), "Make it red."), assistant(picture(40, 40), picture(20, 60)))),
    ]
    encoded = encode(system.tokenizer, documents, replies="generation")
    sequences = [system.grammar.serialize(document) for document in encoded]
    assert [len(s.input_spans) for s in sequences] == [0, 6, 0, 2]
    with torch.no_grad():
        together = system.lm(collate(sequences))
        packed = system.lm(collate(sequences, pack=500))
        alone = [system.lm(collate([sequence])) for sequence in sequences]
    images = [1, 0, 0, 2]
    words = [sum(sequence.target[1:]) for sequence in sequences]
    text = sum(one.text * n for one, n in zip(alone, words, strict=True)) / sum(words)
    image = sum(one.image * n for one, n in zip(alone, images, strict=True) if n) / sum(images)
    for losses in (together, packed):
        torch.testing.assert_close(losses.text, text, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(losses.image, image, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(losses.total, text + 6 * image, atol=1e-3, rtol=1e-4)
    assert alone[2].image is None


def test_images_are_forced_forbidden_and_seen_again() -> None:
    system = tiny.system("seed_x")
    documents = [Document((user("A cat."),)), Document((user(picture(90, 30), "Red."),))]
    drawn = system.generate(documents, modality="image", sampling=Sampling(max_new_tokens=8))
    assert all(len(message.images) == 1 and not message.text for message in drawn)
    said = system.generate(documents, modality="text", sampling=Sampling(max_new_tokens=8))
    assert not any(message.images for message in said)
    # the next turn reads the picture from its pixels, and is drawn from it
    next_turn = documents[1].add(drawn[1], user("Bluer."))
    (again,) = system.generate([next_turn], modality="image", sampling=Sampling(max_new_tokens=8))
    assert again.images[0].pixels is not None
    with pytest.raises(RebusError, match="but only 5 are left"):
        system.generate(documents, modality="image", sampling=Sampling(max_new_tokens=5))


def test_more_views_than_the_model_reads_are_refused() -> None:
    system = tiny.system("seed_x")
    many = Document((user(*(tiny.picture((n % 250, 0, 0)) for n in range(180)), "Which?"),))
    with pytest.raises(RebusError, match="360 views of 180 images, but this model reads 2,048"):
        system.generate([many], modality="text")
