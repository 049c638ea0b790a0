"""How much of its visual vocabulary a tokenizer uses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rebus.evals.exam import Exam
from rebus.evals.figures import Figure, Found
from rebus.evals.nearest import choose
from rebus.visual import Codes


def codebook(exam: Exam) -> Iterator[Found]:
    """`codebook/…` over the plain pictures of the split, up to `config.codebook_n`: codes used, their share and the dead
    ones, perplexity, bits of an image, pictures that share all their codes with another.

    Yields nothing for a system whose tokens are not codes.
    """
    rows = choose(exam.pictures, exam.config.split, exam.config.codebook_n, exam.config.choice)
    tokens = exam.encode([exam.pictures.image(row, 64) for row in rows])
    if not all(isinstance(token, Codes) for token in tokens):
        return
    ids = [token.ids_N.tolist() for token in tokens if isinstance(token, Codes)]
    yield from codebook_figures(ids, entries(exam.system.tokenizer))


def entries(tokenizer: Any) -> int | None:
    """The size of a tokenizer's codebook, where its config names one as `codebook_size`."""
    size = getattr(getattr(tokenizer, "config", None), "codebook_size", None)
    return size if isinstance(size, int) else None


def codebook_figures(ids: Sequence[Sequence[int]], size: int | None) -> Iterator[Figure]:
    """The figures of the codes of some images; `size` is that of the codebook, where it is known. Ceilings are what
    codes drawn evenly and independently would give in as many images. Where each place has codes of its own, to know the
    place is no information, and is taken off the bits."""
    counts = Counter(code for image in ids for code in image)
    total = counts.total()
    entropy = -sum(count / total * math.log2(count / total) for count in counts.values())
    per_image = total / len(ids)
    known = math.log2(per_image) if own_codes(ids) else 0.0  # of a code's entropy, what its place says already
    even = None if size is None else size * (1 - (1 - 1 / size) ** total)
    note = f"{len(ids)} images, {total} codes"

    def figure(name: str, value: float, ceiling: float | None, better: str = "higher") -> Figure:
        return Figure(f"codebook/{name}", (value,), len(ids), ceiling=ceiling, better=better, note=note)  # type: ignore[arg-type]

    yield figure("used", len(counts), even)
    if size is not None and even is not None:
        yield figure("used_share", len(counts) / size, even / size)
        yield figure("dead", size - len(counts), size - even, "lower")
    yield figure("perplexity", 2**entropy, None if size is None else float(size))
    yield figure("codes_per_image", per_image, None, "")
    most = None if size is None else per_image * (math.log2(size) - known)
    yield figure("bits_per_image", per_image * (entropy - known), most, "")
    same = Counter(tuple(image) for image in ids)
    yield figure("not_unique", sum(count for count in same.values() if count > 1) / len(ids), 0.0, "lower")


def own_codes(ids: Sequence[Sequence[int]]) -> bool:
    """Whether all images have as many codes, and no code occurs at two places."""
    places: dict[int, set[int]] = {}
    for image in ids:
        for place, code in enumerate(image):
            places.setdefault(code, set()).add(place)
    return len({len(image) for image in ids}) == 1 and all(len(found) == 1 for found in places.values())
