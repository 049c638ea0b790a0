"""Weights of stages become a saved system and come back."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from rebus.checkpoint import SavedSystem, load_system, save_system
from rebus.errors import RebusError
from rebus.train.packing import gather, spread

PLACES = {"tokenizer": [("one", "tokenizer."), ("two", "tokenizer.")], "lm": [("three", "lm.")]}


def test_packing_and_unpacking_give_the_same_parts(tmp_path):
    stages = {
        "one": {"tokenizer.a": torch.zeros(2), "tokenizer.b": torch.ones(3), "heads.c": torch.ones(1)},
        "two": {"tokenizer.a": torch.full((2,), 0.5)},
        "three": {"lm.rows": torch.arange(4.0), "lm.steps": torch.tensor(7)},
    }
    for stage, tensors in stages.items():
        (tmp_path / "work" / stage).mkdir(parents=True)
        save_file(tensors, tmp_path / "work" / stage / "weights.safetensors")
    parts = gather(tmp_path / "work", PLACES)
    assert parts["tokenizer"].keys() == {"a", "b"} and parts["tokenizer"]["a"].tolist() == [0.5, 0.5]
    saved = save_system(tmp_path / "packed", SavedSystem(name="x", config={}), parts, dtype=torch.float16)
    with pytest.raises(RebusError, match="not written over"):
        spread(saved, tmp_path / "work", PLACES)
    written = spread(load_system(tmp_path / "packed"), tmp_path / "again", PLACES)
    assert [file.parent.name for file in written] == ["one", "two", "three"]
    back = gather(tmp_path / "again", PLACES)
    for part, tensors in parts.items():
        assert back[part].keys() == tensors.keys()
        for name, x in tensors.items():
            torch.testing.assert_close(back[part][name], x)
    assert load_file(written[0])["tokenizer.b"].dtype == torch.float32
    assert load_file(written[2])["lm.steps"].dtype == torch.int64
