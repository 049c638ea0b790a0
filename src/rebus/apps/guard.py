"""From exceptions to exit codes: the one place where what went wrong becomes a line on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from rebus.errors import RebusError


def guarded(work: Callable[[], Any], *, with_traceback: bool = False) -> int:
    """Does the work and returns the exit code: 0; 2 for bad input, a wrong option or Ctrl-C; 1 for a fault of our own.

    What went wrong is told in one line on stderr; with_traceback lets the exception through.
    """
    try:
        with contextlib.nullcontext() if with_traceback else libraries_silent():
            work()
        return 0
    except SystemExit as end:  # the usage was shown
        return end.code if isinstance(end.code, int) else 2
    except BrokenPipeError:  # `rebus list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 0
    except (KeyboardInterrupt, Exception) as error:
        if with_traceback:
            raise
        said, code = _one_line(error)
        Console(stderr=True, highlight=False).print(
            Text.assemble(("error: ", "bold red"), (said, "red")), soft_wrap=True
        )
        return code


@contextlib.contextmanager
def libraries_silent() -> Iterator[None]:
    """Keeps what imported libraries warn of, and users can do nothing about, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _one_line(error: BaseException) -> tuple[str, int]:
    """What a user is told about an exception, and the exit code."""
    match error:
        case KeyboardInterrupt():
            return "stopped.", 2
        case RebusError():
            return " ".join(str(error).split()), 2
        case FileNotFoundError() if error.filename:
            return f"There is no file {error.filename}. Check the path.", 2
        case OSError() if error.filename:
            return f"{error.filename} cannot be used: {error.strerror or error}. Check its path and permissions.", 2
        case torch.OutOfMemoryError() | MemoryError():
            return "The memory is full. Close other programs, or use a smaller model or --device cpu.", 2
    said = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {said} (this is a fault of rebus; --traceback shows where it happened)", 1
