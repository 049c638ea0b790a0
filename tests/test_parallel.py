"""Two processes that train together learn as one that has all the data, whole or in shards; and fail and stop together."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests import parallel_runs as runs
from tests import seed_pairs, seed_release

from rebus.errors import RebusError
from rebus.train import Layout, dcp, parallel
from rebus.train.process import seed_of

DDP, FSDP = Layout("ddp"), Layout("fsdp")
RECOMPUTED = Layout("fsdp", recompute=True)


def same_run(one: list[float], one_folder: Path, others: list, folder: Path, tolerance: float = 1e-4) -> None:
    """The losses and weights of a run of several processes are those of one."""
    for losses in others:
        assert not isinstance(losses, Exception), losses
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(one), atol=tolerance, rtol=tolerance)
    left, right = (load_file(path / "weights.safetensors") for path in (one_folder, folder))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(right[name], left[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("paper", runs.LANGUAGE)
def test_two_processes_are_one(paper: str, tmp_path: Path) -> None:
    """Losses over the words of all processes, of which the first has no image in its first batch."""
    one = runs.train_paper(paper, tmp_path / "one", Layout())
    for layout in (DDP, RECOMPUTED):
        folder = tmp_path / f"{layout.shard}"
        same_run(one, tmp_path / "one", runs.run(2, runs.train_paper, paper, folder, layout), folder)


def test_accumulated_batches_are_one(tmp_path: Path) -> None:
    """Two batches of two processes are one of one, whatever number of words each holds; frozen parts may be of another
    type than what learns."""
    for base, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        options = {"base": base, "precision": "fp32" if base == torch.float32 else "bf16"}
        folder = tmp_path / str(base)
        one = runs.train_paper("seed_x", folder / "one", Layout(), 8, **options)
        for layout in (DDP, FSDP):
            both = runs.run(2, train_two, folder / layout.shard, layout, options)
            same_run(one, folder / "one", both, folder / layout.shard, tolerance)


def train_two(folder: Path, layout: Layout, options: dict) -> list[float]:
    return runs.train_paper("seed_x", folder, layout, 4, accumulate=2, ema=None, **options)


def test_recomputed_is_the_same(tmp_path: Path) -> None:
    kept = runs.train_paper("lavit", tmp_path / "kept", Layout())
    assert runs.train_paper("lavit", tmp_path / "again", Layout(recompute=True)) == kept


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    seed_pairs.write_pairs(folder / "data")
    seed_pairs.write_bert(folder / "bert")
    seed_release.write_tokenizer(folder)
    return folder


def test_contrast_is_over_the_pairs_of_all_processes(files: Path, tmp_path: Path) -> None:
    one = runs.train_pairs(files, tmp_path / "one", "gradient", Layout())
    for layout in (DDP, RECOMPUTED):
        folder = tmp_path / layout.shard
        same_run(one, tmp_path / "one", runs.run(2, runs.train_pairs, files, folder, "gradient", layout), folder)


def test_processes_may_hold_different_numbers_of_features() -> None:
    one, two = runs.run(2, runs.gathered, (3, 1))
    torch.testing.assert_close(one[0], two[0])
    assert one[0].shape == (4, 2) and (one[2], two[2]) == (0, 3)
    # each process multiplies row n by n and its own number; the gradient is the sum over both
    assert one[1].tolist() == [[0, 0], [3, 3], [6, 6]] and two[1].tolist() == [[9, 9]]


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(("wrote", "reads"), [((2, FSDP), (1, DDP)), ((1, DDP), (2, FSDP)), ((2, DDP), (3, FSDP))])
def test_a_checkpoint_of_some_processes_is_read_by_others(
    wrote: tuple[int, Layout], reads: tuple[int, Layout], tmp_path: Path
) -> None:
    folder, optim = tmp_path / "run", {"steps": 4, "ema": 0.9}
    whole = runs.run(wrote[0], train_more, folder, wrote[1], optim)[0]
    for path in dcp.checkpoints(folder)[1:]:
        shutil.rmtree(path)
    (folder / "weights.safetensors").rename(tmp_path / "weights.safetensors")
    rest = runs.run(reads[0], train_more, folder, reads[1], optim)
    same_run(whole[2:], tmp_path, rest, folder)


def train_more(folder: Path, layout: Layout, optim: dict) -> list[float]:
    return runs.train_paper("seed_x", folder, layout, 12, **optim)


@pytest.mark.parametrize("layout", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_resumed_run_is_the_unbroken_run(layout: Layout, tmp_path: Path) -> None:
    """To the bit, though each process has noise of its own and one of them alone was asked to stop."""
    whole = runs.run(2, runs.train_line, tmp_path / "whole", layout)
    assert [result.step for result in whole] == [6, 6] and whole[0].losses == whole[1].losses
    first = runs.run(2, runs.train_line, tmp_path / "broken", layout, "stop")
    assert [result.stopped_by for result in first] == ["another process", "SIGTERM"]
    second = runs.run(2, runs.train_line, tmp_path / "broken", layout)
    assert first[0].step == 4 and first[0].losses + second[0].losses == whole[0].losses
    one, two = (load_file(tmp_path / run / "weights.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    record = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()[0]
    assert '"drawn": 0.5' in record and '"samples": 8' in record  # means and sums over both processes
    assert seed_of(7, 0) == 7 and seed_of(7, 1) != 7


@pytest.mark.parametrize("layout", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_gate_stops_all_processes_with_the_last_good_weights(layout: Layout, tmp_path: Path) -> None:
    results = runs.run(2, runs.train_watched, tmp_path, layout)
    for step, fell, weights in results:
        assert (step, fell) == (4, "able fell from 0.9 (best) to 0.1, by more than 0.3")
        good = load_file(tmp_path / "last-good.safetensors")
        written = load_file(tmp_path / "weights.safetensors")
        assert good.keys() == written.keys() == weights.keys()
        for name, x in weights.items():
            assert torch.equal(good[name], written[name]) and torch.equal(good[name], x)
    with safe_open(tmp_path / "last-good.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"


def test_what_goes_wrong_on_one_process_ends_all(tmp_path: Path) -> None:
    for trouble, said in (
        ("refuse", ("334 words", "334 words")),
        ("nan", ("the part 'loss' of the loss is nan",) * 2),
        ("full", ("could not be written", "could not be written")),
    ):
        folder = tmp_path / trouble
        errors = runs.run(2, runs.train_line, folder, FSDP, trouble)
        assert all(isinstance(error, RebusError) for error in errors), errors
        assert [part in str(error) for part, error in zip(said, errors, strict=True)] == [True, True], errors
        assert [dcp.step_of(path) for path in dcp.checkpoints(folder)][-1] == {"refuse": 3}.get(trouble, 2)
        assert not list(folder.glob(".checkpoint-*"))
        assert runs.run(2, runs.train_line, folder, FSDP)[0].finished


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    errors = runs.run(3, runs.train_line, tmp_path, DDP)
    assert "A batch of 4 cannot be shared evenly by 3 processes" in str(errors[0])


def test_the_command_joins_the_processes_that_torchrun_started(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for words, codes in ((["--refuse"], [2, 2]), (["--parallel", "fsdp"], [0, 0])):
        both = runs.run(2, command, tmp_path / "run", port, words)
        assert [code for code, _, _ in both] == codes, both
        (_, said, wrong), (_, other, _) = both
        assert other == "" and "line: step" in said
        assert ("6 steps done" in said) != ("334 words" in wrong)
    assert "step 3 of 6" in said


def command(folder: Path, port: int, words: list[str]) -> tuple[int, str, str]:
    return runs.command(folder, parallel.rank(), port, words)
