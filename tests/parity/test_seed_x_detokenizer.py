"""SEED-X's image decoder against numbers of the official modules."""

from __future__ import annotations

from tests.parity.golden import Golden, kind_of
from tests.parity.seed_x_detokenizer_cases import KINDS

NAMES = r"seed_x_(adapter|sdxl_resampler)"


def test_golden(golden: Golden) -> None:
    KINDS[kind_of(golden.stem, KINDS)](golden)
    golden.assert_all_checked()
