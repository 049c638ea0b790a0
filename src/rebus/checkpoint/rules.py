"""From published weights to ours and back: a paper's `convert.py` is a table of rules, this is what reads it.

A rule names tensors by patterns: `{n}` stands for one piece of a dotted name, `{rest*}` for all that is left of it. The
first rule that matches a tensor has it. Converting is strict: every tensor of theirs is read or dropped with a reason,
every tensor of ours is filled once and with its own shape, or one error lists all that is wrong. Shapes are checked
before anything is read, and tensors are read one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache

import torch
from einops import EinopsError
from einops import rearrange as einops_rearrange
from torch import Tensor

from rebus.checkpoint.tensors import LazyTensors, meta
from rebus.errors import RebusError


@dataclass(frozen=True)
class Move:
    """One tensor under another name, and where `rearrange` (an einops pattern) says so, with its values moved."""

    theirs: str
    """Pattern of their name."""
    ours: str
    """Our name, with the same placeholders."""
    rearrange: str = ""
    """From their axes to ours: `"i o -> o i"`."""
    axes: Mapping[str, int] = field(default_factory=dict)
    """Lengths that `rearrange` cannot infer."""


@dataclass(frozen=True)
class Join:
    """Several of their tensors, one after the other along `dim`, are one of ours."""

    theirs: tuple[str, ...]
    """Patterns of their names, in order."""
    ours: str
    """Our name."""
    dim: int = 0
    """The axis they are joined along."""
    sizes: tuple[int, ...] = ()
    """Their lengths along `dim`, for the way back. None given: all the same."""


@dataclass(frozen=True)
class Split:
    """One of their tensors is several of ours, cut along `dim`."""

    theirs: str
    """Pattern of their name."""
    ours: tuple[str, ...]
    """Our names, in order."""
    dim: int = 0
    """The axis it is cut along."""
    sizes: tuple[int, ...] = ()
    """Our lengths along `dim`. None given: all the same."""


@dataclass(frozen=True)
class Drop:
    """A tensor of theirs that has no place in ours."""

    theirs: str
    """Pattern of their name."""
    reason: str
    """Why nothing is lost."""


Rule = Move | Join | Split | Drop


@dataclass(frozen=True)
class Converted:
    """The result of `convert`: tensors by our names, and what became of theirs that have no place here."""

    tensors: LazyTensors
    dropped: dict[str, str]
    """Their name → the reason of the rule that dropped it."""
    ignored: list[str]
    """Their names that no rule knows and `ignore_unexpected` let pass."""


def convert(
    theirs: Mapping[str, Tensor],
    rules: Sequence[Rule],
    ours: Mapping[str, Tensor],
    *,
    ignore_unexpected: Sequence[str] = (),
) -> Converted:
    """Their tensors as ours. `ours` is the state dict of the module to be filled (it may be on the meta device).

    `ignore_unexpected` are shell patterns (`"cls.*"`) of their names that may stay without a rule.
    Raises RebusError listing all tensors that are missing, misshapen or unexpected.
    """
    plan = _plan(meta(theirs), rules)
    ignored = [name for name in plan.unmatched if any(fnmatchcase(name, pattern) for pattern in ignore_unexpected)]
    check_complete(plan.shapes, ours, [name for name in plan.unmatched if name not in ignored], plan.problems)
    return Converted(LazyTensors(plan.shapes, lambda name: plan.read(name, theirs)), plan.dropped, ignored)


def export(ours: Mapping[str, Tensor], rules: Sequence[Rule]) -> LazyTensors:
    """Our tensors in the published layout: the same rules backwards. What a rule drops is not made up again.

    Raises RebusError listing the tensors that no rule takes back.
    """
    plan = _plan(meta(ours), [_reverse(rule) for rule in rules if not isinstance(rule, Drop)])
    _raise_if_any({"without a rule": plan.unmatched, "wrong": plan.problems})
    return LazyTensors(plan.shapes, lambda name: plan.read(name, ours))


def check_complete(
    have: Mapping[str, Tensor], want: Mapping[str, Tensor], unexpected: Sequence[str] = (), problems: Sequence[str] = ()
) -> None:
    """Raises RebusError unless `have` has exactly the names and shapes of `want` and nothing else is wrong."""
    misshapen = [
        f"{name}: {list(have[name].shape)}, but {list(want[name].shape)} is needed"
        for name in want
        if name in have and have[name].shape != want[name].shape
    ]
    missing = [f"{name} {list(want[name].shape)}" for name in want if name not in have]
    surplus = [*unexpected, *(name for name in have if name not in want)]
    _raise_if_any({"missing": missing, "misshapen": misshapen, "unexpected": surplus, "wrong": list(problems)})


def _raise_if_any(lists: Mapping[str, Sequence[str]]) -> None:
    found = {what: names for what, names in lists.items() if names}
    if found:
        counts = ", ".join(f"{len(names)} {what}" for what, names in found.items())
        listed = "\n".join(f"  {what}: {name}" for what, names in found.items() for name in names)
        raise RebusError(
            f"The weights do not fit the model: {counts}.\n{listed}\n"
            "Check that the file and the variant belong together; tensors that are known to be of no use can be let "
            "pass with `--ignore-unexpected PATTERN`."
        )


# ------------------------------------------------------------------------------------------------ how rules are read


@dataclass(frozen=True)
class _Step:
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[list[Tensor]], list[Tensor]]


@dataclass
class _Plan:
    step: dict[str, _Step] = field(default_factory=dict)
    """Output name → the step that makes it."""
    shapes: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def read(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        step = self.step[name]
        return step.run([tensors[key] for key in step.inputs])[step.outputs.index(name)]


def _plan(inputs: Mapping[str, Tensor], rules: Sequence[Rule]) -> _Plan:
    plan = _Plan()
    used: set[str] = set()
    for name in inputs:
        if name in used:
            continue
        found = _first(name, rules)
        if found is None:
            plan.unmatched.append(name)
        elif isinstance(found[0], Drop):
            plan.dropped[name] = found[0].reason
        else:
            step = _step(*found)
            used.update(step.inputs)
            _dry_run(plan, step, inputs)
    return plan


def _dry_run(plan: _Plan, step: _Step, inputs: Mapping[str, Tensor]) -> None:
    """Adds the shapes that a step gives to the plan, or what is wrong with it."""
    if absent := [key for key in step.inputs if key not in inputs]:
        plan.problems.append(f"{' + '.join(step.outputs)} needs {', '.join(absent)}, which is not there")
        return
    try:
        results = step.run([inputs[key] for key in step.inputs])
    except (EinopsError, RuntimeError, ValueError) as error:
        plan.problems.append(f"{' + '.join(step.inputs)} → {' + '.join(step.outputs)}: {str(error).splitlines()[0]}")
        return
    for key, tensor in zip(step.outputs, results, strict=True):
        if key in plan.step:
            plan.problems.append(f"{key} is filled twice: from {plan.step[key].inputs} and from {step.inputs}")
        plan.step[key] = step
        plan.shapes[key] = tensor


def _first(name: str, rules: Sequence[Rule]) -> tuple[Rule, dict[str, str]] | None:
    for rule in rules:
        for pattern in (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs:
            if match := _compile(pattern).fullmatch(name):
                return rule, match.groupdict()
    return None


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+\*?)\}", pattern)
    for at in range(0, len(pieces), 2):
        pieces[at] = re.escape(pieces[at])
    for at in range(1, len(pieces), 2):
        pieces[at] = f"(?P<{pieces[at].rstrip('*')}>{'.+' if pieces[at].endswith('*') else '[^.]+'})"
    return re.compile("".join(pieces))


def _step(rule: Rule, values: dict[str, str]) -> _Step:
    def name(pattern: str) -> str:
        return pattern.replace("*}", "}").format(**values)

    match rule:
        case Move(theirs, ours, rearrange, axes):
            return _Step((name(theirs),), (name(ours),), lambda xs: [_rearrange(xs[0], rearrange, axes)])
        case Join(theirs_all, ours, dim):
            return _Step(tuple(map(name, theirs_all)), (name(ours),), lambda xs: [_join(xs, dim)])
        case Split(theirs, ours_all, dim, sizes):
            return _Step((name(theirs),), tuple(map(name, ours_all)), lambda xs: _cut(xs[0], len(ours_all), dim, sizes))
    raise TypeError(f"{rule} is not a rule that makes tensors")


def _rearrange(x: Tensor, pattern: str, axes: Mapping[str, int]) -> Tensor:
    return einops_rearrange(x, pattern, **axes) if pattern else x


def _join(xs: Sequence[Tensor], dim: int) -> Tensor:
    first = xs[0]
    if not first.is_meta:
        return torch.cat(list(xs), dim)
    # the meta device's own `cat` first loads torch's compiler, which takes seconds
    shapes = [[*x.shape[:dim], 0, *x.shape[dim + 1 :]] for x in xs]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"tensors of {[list(x.shape) for x in xs]} cannot be joined along axis {dim}")
    shapes[0][dim] = sum(x.shape[dim] for x in xs)
    return torch.empty(shapes[0], dtype=first.dtype, device="meta")


def _cut(x: Tensor, count: int, dim: int, sizes: Sequence[int]) -> list[Tensor]:
    if not sizes and x.shape[dim] % count:
        raise ValueError(f"an axis of {x.shape[dim]} cannot be cut into {count} equal parts")
    return list(x.split(list(sizes) or [x.shape[dim] // count] * count, dim))


def _reverse(rule: Rule) -> Rule:
    match rule:
        case Move(theirs, ours, rearrange, axes):
            before, arrow, after = rearrange.partition("->")
            return Move(ours, theirs, f"{after.strip()} -> {before.strip()}" if arrow else "", axes)
        case Join(theirs_all, ours, dim, sizes):
            return Split(ours, theirs_all, dim, sizes)
        case Split(theirs, ours_all, dim, sizes):
            return Join(ours_all, theirs, dim, sizes)
    raise TypeError(f"{rule} has no way back")
