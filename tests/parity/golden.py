"""Golden files: tiny official modules with random weights, inputs and outputs, one test case for each file.

A test module says which kinds of file it knows, `KINDS = {"seed_qformer": check, …}`, which names are its paper's,
`NAMES = r"seed_(?!x_)"` (and `SUFFIX`, one or several, if not all of its files are safetensors), and takes the fixture
`golden`. A kind may come in several sizes: `seed_qformer_wide` is one more case of `seed_qformer`.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor


class Golden:
    """One golden file. `check` compares with an output; a test must have checked all of them when it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stem = path.stem
        self.checked: set[str] = set()
        self.largest = 0.0
        """Largest absolute difference of a number that `check` has compared so far."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The sizes the file was made with."""
        with safe_open(self.path, "pt") as file:
            return json.loads(file.metadata()["config"])

    @cached_property
    def json(self) -> Any:
        """The content of a JSON file."""
        return json.loads(self.path.read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        if self.path.suffix == ".json":
            return {}
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under `prefix.`, without it."""
        return {name[len(prefix) + 1 :]: x for name, x in self.tensors.items() if name.startswith(prefix + ".")}

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights, by official names."""
        return self.part("state")

    def input(self, name: str) -> Tensor:
        return self.tensors[f"in.{name}"]

    def out(self, name: str) -> Tensor:
        """An output that the test compares in its own way."""
        self.checked.add(name)
        return self.tensors[f"out.{name}"]

    def check(self, name: str, got: Tensor | float, *, atol: float = 1e-5, rtol: float = 1e-4) -> None:
        """Fails unless `got` is the output `name`: integers exactly, numbers within the tolerance."""
        want = self.out(name)
        got = torch.as_tensor(got, dtype=want.dtype) if not isinstance(got, Tensor) else got.detach()
        exact = not want.is_floating_point()
        if got.shape == want.shape and want.numel():
            self.largest = max(self.largest, float((got.double() - want.double()).abs().max()))
        torch.testing.assert_close(
            got,
            want,
            atol=0 if exact else atol,
            rtol=0 if exact else rtol,
            msg=lambda text: f"{self.stem}: {name}\n{text}",
        )

    def assert_all_checked(self) -> None:
        unchecked = sorted(set(self.part("out")) - self.checked)
        assert not unchecked, f"{self.stem} has outputs that nothing was compared with: {unchecked}"


def kind_of(stem: str, kinds: dict[str, Any]) -> str | None:
    """The longest known kind that `stem` is or begins with."""
    fitting = [kind for kind in kinds if stem == kind or stem.startswith(kind + "_")]
    return max(fitting, key=len, default=None)


def cases(kinds: dict[str, Any], names: str, suffix: str | tuple[str, ...], folders: list[Path]) -> list[Any]:
    """Parameters for the fixture `golden`: every file of the folders, and a skip for every kind that none of them has."""
    suffixes = (suffix,) if isinstance(suffix, str) else suffix
    files = {  # the same file in two folders is one case
        (path.stem, hashlib.sha256(path.read_bytes()).digest()): path
        for folder in folders
        for path in sorted(folder.glob("*"))
        if path.name.endswith(suffixes) and re.match(names, path.stem)
    }
    stems = {path.stem for path in files.values() if path.suffix != ".json"}
    found = [  # a JSON file beside one of tensors keeps its ending, so that the other's name stays as it is
        pytest.param(Golden(path), id=path.name if path.suffix == ".json" and stem in stems else stem)
        for (stem, _), path in files.items()
    ]
    for kind in sorted(kinds.keys() - {kind_of(stem, kinds) for stem, _ in files}):
        where = ", ".join(map(str, folders))
        reason = f"no {kind}*{' or '.join(suffixes)} in {where}; name the folder that has it with --goldens"
        found.append(pytest.param(None, id=kind, marks=pytest.mark.skip(reason=reason)))
    return found
