"""Mosaic, a paper that does not exist: an image is sixteen words, the colours of a four by four grid (nine at size tiny).

The tokenizer takes the mean colour of each cell and the nearest of 64 fixed colours; the language model reads and writes
these colours among its own words; the detokenizer paints the squares. Nothing but the language model learns.

It is here to show what a paper has to supply, and that nothing else has to change.
"""

from examples.mosaic.build import VARIANTS, MosaicConfig, build

__all__ = ["VARIANTS", "MosaicConfig", "build"]
