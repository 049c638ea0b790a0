"""LaVIT (2309.04669): an image is as many tokens as it needs, vectors to be read and words to be written.

A selector keeps about a third of the patches, a merger lets these take up what the others hold, and a codebook makes
words of them. The language model reads the kept patches as vectors, through a merger of its own, and writes codes; a
decoder turns codes back into patch features, which a latent diffusion model paints.

Departures from the published code: patches are chosen without dice by default (`selection`); an image keeps at least one
patch; images of a wish stand between marks (`wish_marks`); the guidance stream is explicit; special words cannot occur
within an image; an image is always finished; the tensor path of the image loader, which resizes without a filter, is
left out; the attention pool asks once and not once for every patch. `official` brings back the first and the third.
"""

from rebus.papers.lavit.build import build, official
from rebus.papers.lavit.variants import VARIANTS, LavitConfig

__all__ = ["VARIANTS", "LavitConfig", "build", "official"]
