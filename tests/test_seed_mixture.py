"""The tables of what SEED-LLaMA was trained on."""

from __future__ import annotations

import pytest

from rebus.data.source_batches import unnamed
from rebus.errors import RebusError
from rebus.papers.seed.mixture import INSTRUCT, PRETRAIN


def test_the_mixtures_are_the_published_ones() -> None:
    assert len(PRETRAIN) == 6 and len(INSTRUCT) == 18
    assert sum(source.weight for source in PRETRAIN) == pytest.approx(10)
    assert sum(source.weight for source in INSTRUCT) == pytest.approx(3.81)
    assert {source.name: source.batch for source in PRETRAIN}["laion-coco"] == 164


def test_what_a_user_has_not_named_is_listed() -> None:
    assert unnamed(PRETRAIN, ["MMC4", "OBELICS"])[:2] == ["Unsplash", "CC3M"]
    with pytest.raises(RebusError, match="'Flickr' is in no source"):
        unnamed(PRETRAIN, ["Flickr"])
