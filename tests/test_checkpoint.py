"""Weights on disk: conversion is strict both ways, folders appear whole or not at all, nothing is lost."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rebus.checkpoint import (
    Drop,
    Join,
    LazyTensors,
    Move,
    SavedSystem,
    Split,
    config_from_json,
    config_to_json,
    convert,
    export,
    load_module,
    load_system,
    read_tensors,
    save_system,
    without_weights,
    write_tensors,
)
from rebus.errors import RebusError
from rebus.papers.seed.qformer import QFormerConfig
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig

RULES_OF_ALL_KINDS = (
    Drop("old.{rest*}", "of no use"),
    Move("table.{n}.weight", "rows.{n}", "i o -> o i"),
    Move("heads.{p}", "qkv.{p}", "(h three e) c -> (three h e) c", {"three": 3, "h": 2}),
    Join(("q.{n}", "k.{n}"), "qk.{n}", sizes=(2, 3)),
    Split("both", ("first", "second"), dim=1),
    Move("{rest*}", "{rest*}"),
)


def example() -> dict[str, Tensor]:
    sizes = {
        "table.0.weight": (2, 3),
        "heads.w": (12, 2),
        "q.1": (2, 4),
        "k.1": (3, 4),
        "both": (2, 6),
        "plain.x": (1,),
    }
    return {name: torch.randn(size, generator=torch.Generator().manual_seed(len(name))) for name, size in sizes.items()}


def wanted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `RULES_OF_ALL_KINDS` make of `example`, worked out by hand."""
    return {
        "rows.0": tensors["table.0.weight"].T,
        "qkv.w": tensors["heads.w"].view(2, 3, 2, 2).transpose(0, 1).reshape(12, 2),
        "qk.1": torch.cat([tensors["q.1"], tensors["k.1"]]),
        "first": tensors["both"][:, :3],
        "second": tensors["both"][:, 3:],
        "plain.x": tensors["plain.x"],
    }


# ------------------------------------------------------------------------------------------------ rules


def test_rules_give_the_right_values_and_go_back() -> None:
    theirs = example()
    result = convert({**theirs, "old.a.b": torch.ones(1)}, RULES_OF_ALL_KINDS, wanted(theirs))
    assert result.dropped == {"old.a.b": "of no use"}
    for name, x in wanted(theirs).items():
        assert torch.equal(result.tensors[name], x), name
    back = export(dict(result.tensors), RULES_OF_ALL_KINDS)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], x) for name, x in theirs.items())


def test_one_error_lists_everything_that_is_wrong() -> None:
    theirs = example()
    ours = wanted(theirs) | {"first": torch.zeros(2, 2), "never.filled": torch.zeros(7)}
    del theirs["k.1"]
    with pytest.raises(RebusError) as error:
        convert(theirs | {"surplus.y": torch.zeros(1)}, RULES_OF_ALL_KINDS, ours)
    text = str(error.value)
    assert "missing: never.filled [7]" in text
    assert "misshapen: first: [2, 3], but [2, 2] is needed" in text
    assert "unexpected: surplus.y" in text
    assert "wrong: qk.1 needs k.1, which is not there" in text


def test_a_tensor_filled_twice_is_an_error() -> None:
    rules = (Move("a", "x"), Move("b", "x"))
    with pytest.raises(RebusError, match="x is filled twice"):
        convert({"a": torch.ones(1), "b": torch.ones(1)}, rules, {"x": torch.ones(1)})


def test_what_no_rule_knows_is_an_error_unless_a_pattern_lets_it_pass() -> None:
    theirs, rules, ours = {"a": torch.ones(1), "b.c": torch.ones(1)}, (Move("a", "a"),), {"a": torch.ones(1)}
    with pytest.raises(RebusError, match="unexpected: b.c"):
        convert(theirs, rules, ours)
    assert convert(theirs, rules, ours, ignore_unexpected=["b.*"]).ignored == ["b.c"]
    with pytest.raises(RebusError, match="without a rule: z"):
        export({"a": torch.ones(1), "z": torch.ones(1)}, rules)


def test_shapes_are_checked_before_anything_is_read() -> None:
    def read(name: str) -> Tensor:
        raise AssertionError(f"{name} was read")

    lazy = LazyTensors({"a": torch.empty(3, device="meta")}, read)
    with pytest.raises(RebusError, match="misshapen"):
        convert(lazy, (Move("a", "a"),), {"a": torch.empty(4)})
    convert(lazy, (Move("a", "a"),), {"a": torch.empty(3)})


# ------------------------------------------------------------------------------------------------ files


def small() -> dict[str, Tensor]:
    return OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.ones(4, dtype=torch.float16), c=torch.tensor([1, 2]))


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


def test_shards_and_single_files_hold_the_same(tmp_path: Path) -> None:
    (whole,) = write_tensors(tmp_path, "whole", small())
    shards = write_tensors(tmp_path, "cut", small(), shard_bytes=24)
    pieces = [f"cut-0000{number}-of-00002.safetensors" for number in (1, 2)]  # 24 bytes, then 8 + 16
    assert list(shards) == [*pieces, "cut.safetensors.index.json"]
    assert same(read_tensors(tmp_path / whole), small())
    assert same(read_tensors(tmp_path / "cut.safetensors.index.json"), small())
    assert same(read_tensors(*(tmp_path / name for name in pieces)), small())


def test_reading_a_folder_and_a_pickle(tmp_path: Path) -> None:
    torch.save({"model": small()}, tmp_path / "weights.pth")
    assert same(read_tensors(tmp_path), small())
    save_file(dict(small()), tmp_path / "one.safetensors")
    assert same(read_tensors(tmp_path), small())  # safetensors before pickles
    save_file(dict(small()), tmp_path / "two.safetensors")
    with pytest.raises(RebusError, match=r"one.safetensors, two.safetensors"):
        read_tensors(tmp_path)


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(1), "b": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(RebusError, match="evil.pt cannot be read"):
        read_tensors(tmp_path / "evil.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_cut_off_file_is_named(tmp_path: Path, cut: int) -> None:
    save_file(dict(small()), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:cut])
    with pytest.raises(RebusError, match=r"w\.safetensors is not a whole"):
        read_tensors(tmp_path / "w.safetensors")


# ------------------------------------------------------------------------------------------------ saved systems

SYSTEM = SavedSystem(
    name="seed:tiny",
    config={"width": 3},
    source="a test",
    dropped={"tokenizer": {"old": "of no use"}},
    ignored={"tokenizer": ["x.y"]},
)


def test_a_system_survives_the_round_trip(tmp_path: Path) -> None:
    save_system(tmp_path / "s", SYSTEM, {"tokenizer": small(), "lm": {"t": torch.ones(2)}})
    loaded = load_system(tmp_path / "s")
    loaded.verify()
    assert replace(loaded, files={}, folder=Path()) == SYSTEM
    assert same(loaded.tensors("tokenizer"), small())
    assert len(loaded.hash("tokenizer")) == 8 and loaded.hash("tokenizer") != loaded.hash("lm")
    with pytest.raises(RebusError, match="'detokenizer'; it has tokenizer, lm"):
        loaded.tensors("detokenizer")
    (tmp_path / "s" / "lm.safetensors").write_bytes(b"other")
    with pytest.raises(RebusError, match="lm.safetensors: its sha256"):
        loaded.verify()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_write_leaves_nothing_and_harms_nothing(tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        save_system(tmp_path / "s", SYSTEM, {"lm": small()})

    def read(name: str) -> Tensor:
        raise OSError("the disk is full")

    broken = LazyTensors({"a": torch.empty(1, device="meta")}, read)
    with pytest.raises(OSError, match="disk is full"):
        save_system(tmp_path / "s", SYSTEM, {"tokenizer": small(), "lm": broken}, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == (["s"] if overwrite else [])
    if overwrite:
        load_system(tmp_path / "s").verify()


def test_an_existing_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    save_system(tmp_path / "s", SYSTEM, {"lm": small(), "tokenizer": small()})
    with pytest.raises(RebusError, match="already"):
        save_system(tmp_path / "s", SYSTEM, {"lm": small()})
    save_system(tmp_path / "s", SYSTEM, {"lm": small()}, overwrite=True, dtype=torch.float16)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["lm.safetensors", "system.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    stored = load_file(tmp_path / "s" / "lm.safetensors")
    assert stored["a"].dtype == torch.float16 and stored["c"].dtype == torch.int64


def test_what_is_not_a_system_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="There is no system.json"):
        load_system(tmp_path)
    (tmp_path / "system.json").write_text("{")
    with pytest.raises(RebusError, match="damaged"):
        load_system(tmp_path)
    (tmp_path / "system.json").write_text('{"format": 2, "name": "x"}')
    with pytest.raises(RebusError, match="format 2"):
        load_system(tmp_path)


# ------------------------------------------------------------------------------------------------ modules


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("frequencies", torch.arange(3.0), persistent=False)
        self.register_buffer("hits", torch.zeros(5))


def test_loading_is_strict_and_keeps_ties_and_computed_buffers() -> None:
    with without_weights():
        module = Tied()
    assert module.table.weight.is_meta and module.head.weight is module.table.weight
    assert not module.frequencies.is_meta
    values = {"table.weight": torch.randn(5, 3), "hits": torch.ones(5)}
    with pytest.raises(RebusError, match="missing: hits"):
        load_module(module, {"table.weight": values["table.weight"]})
    with pytest.raises(RebusError, match="unexpected: extra"):
        load_module(module, values, {"extra": torch.ones(1)})
    assert module.table.weight.is_meta  # nothing was changed
    assert load_module(module, values, {"extra": torch.ones(1)}, ignore_unexpected=["ex*"]) == ["extra"]
    assert module.head.weight is module.table.weight
    assert torch.equal(module.head.weight, values["table.weight"])
    assert module.head.weight.requires_grad and torch.equal(module.hits, torch.ones(5))


def test_a_subset_is_laid_over_its_base() -> None:
    module = Tied()
    base = {"table.weight": torch.zeros(5, 3), "hits": torch.zeros(5)}
    load_module(module, base, {"hits": torch.ones(5)}, dtype=torch.bfloat16)
    assert torch.equal(module.hits, torch.ones(5, dtype=torch.bfloat16)) and not module.table.weight.any()


def test_without_weights_leaves_no_trace() -> None:
    with pytest.raises(KeyError), without_weights():
        raise KeyError
    assert not nn.Linear(2, 2).weight.is_meta


def test_built_without_weights_a_tokenizer_loads_and_agrees() -> None:
    config = tiny_tokenizer()
    model = SeedTokenizer(config, generator=torch.Generator().manual_seed(0)).eval()
    with without_weights():
        other = SeedTokenizer(config, generator=torch.Generator()).eval()
    load_module(other, model.state_dict())
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.ids(pixels), other.ids(pixels))


# ------------------------------------------------------------------------------------------------ configs


def tiny_tokenizer() -> SeedTokenizerConfig:
    base = SeedTokenizerConfig()
    return SeedTokenizerConfig(
        vision=replace(base.vision, image_size=28, width=16, depth=1, heads=2, mlp_hidden=16),
        qformer=replace(base.qformer, queries=4, width=12, depth=2, heads=2, mlp_hidden=16, source_width=16),
        codebook_size=8,
        code_width=4,
        decoder_depth=1,
        decoder_heads=2,
        decoder_hidden=16,
        head_widths=(8, 4),
        image_width=10,
    )


@dataclass(frozen=True)
class Nested:
    one: SeedTokenizerConfig | QFormerConfig | None
    sizes: tuple[int, ...] | None = None
    named: dict[str, QFormerConfig] = field(default_factory=dict)
    scale: float = 1


@pytest.mark.parametrize(
    "config",
    [
        SeedTokenizerConfig(),
        tiny_tokenizer(),
        Nested(QFormerConfig(queries=3), (1, 2), {"a": QFormerConfig()}),
        Nested(tiny_tokenizer(), None),
        Nested(None),
    ],
)
def test_configs_survive_json(config: Any) -> None:
    data = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(type(config), data) == config


def test_a_config_of_before_a_field_came_to_be_is_of_the_same_class() -> None:
    """One of a union is known by its fields; an earlier version wrote fewer."""
    config = Nested(one=QFormerConfig(width=48))
    data = config_to_json(config)
    del data["one"]["dropout"]
    assert config_from_json(Nested, data) == config
    data["one"] = config_to_json(SeedTokenizerConfig())
    del data["one"]["codebook"]
    assert config_from_json(Nested, data).one == SeedTokenizerConfig()


def test_an_unknown_field_of_a_config_is_named() -> None:
    with pytest.raises(RebusError, match=r"surprise in QFormerConfig"):
        config_from_json(QFormerConfig, {"width": 3, "surprise": 1})


def test_weights_are_laid_only_over_the_base_that_they_were_made_with(tmp_path: Path) -> None:
    parts = {"vision": {"w": torch.ones(2)}, "denoiser": {"w": torch.ones(3)}}
    base = save_system(tmp_path / "mini", SavedSystem("mini", {}), parts)
    own = SavedSystem("seed:mini", {}, base="mini")
    save_system(tmp_path / "seed-mini", own, {"lm": {"w": torch.zeros(1)}})
    saved = load_system(tmp_path / "seed-mini")
    assert saved.base_hashes == {part: base.hash(part) for part in parts}
    shared = saved.shared()
    assert shared is not None and torch.equal(shared.tensors("vision")["w"], torch.ones(2))
    assert base.shared() is None and load_system(tmp_path / "mini") == base
    other = {**parts, "vision": {"w": torch.zeros(2)}}
    save_system(tmp_path / "mini", SavedSystem("mini", {}), other, overwrite=True)
    shared = saved.shared()
    assert shared is not None and len(shared.tensors("denoiser")) == 1  # as it was
    with pytest.raises(RebusError, match=f"The part 'vision' in .*mini is .*made with {base.hash('vision')}"):
        shared.tensors("vision")
    save_system(tmp_path / "alone" / "seed-mini", own, {"lm": {"w": torch.zeros(1)}})
    with pytest.raises(RebusError, match="no system.json"):
        load_system(tmp_path / "alone" / "seed-mini").shared()
