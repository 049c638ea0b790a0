"""LaVIT's stages in the order of the paper: selector and merger, codebook, language model, image decoder; then instructions."""
