"""How LaVIT's published demos and evaluation decode; what an image's length may be is the grammar's."""

from __future__ import annotations

from rebus.sampling import Sampling

CAPTION = Sampling(max_new_tokens=36, min_new_tokens=8, beams=2, length_penalty=1.0, stop=(".",))
"""A caption: an image without a question, up to the first full stop."""
ANSWER = Sampling(
    max_new_tokens=10, min_new_tokens=2, beams=5, length_penalty=0.0, stop=("\n", "question:", "Long answer:", ",", ".")
)
"""A short answer to a question about an image."""
DRAW = Sampling(max_new_tokens=202, temperature=1.0, top_k=50, guidance=4.0)
"""A drawing, of 200 codes at most. The evaluation of FID takes top_k 300 and guidance 1.5, the paper 200 and 2, and both
the best of four by CLIP's score."""
