"""Options of the test run."""

from __future__ import annotations

import pytest
from tests.oracle import best, worst  # noqa: F401  (fixtures)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        action="append",
        metavar="DIR",
        help="folder of golden files that the parity tests read; may be given several times (default: tests/goldens)",
    )
