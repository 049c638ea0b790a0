"""The option that has drawn pictures checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

Safety = Annotated[
    Path | None,
    arg(
        metavar="FOLDER",
        help="black out what the safety checker in this folder flags (Stable Diffusion's `safety_checker`)",
        help_behavior_hint="(default: nothing is checked)",
    ),
]


def check_drawings(model: Any, safety: Path | None) -> None:
    """Has the checker in a folder look at all that the model draws from now on."""
    if safety is None:
        return
    from rebus.diffusion.safety import Checked, SafetyChecker  # importing takes seconds

    model.detokenizer = Checked(model.detokenizer, SafetyChecker(safety))
