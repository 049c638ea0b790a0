"""SEED's stages in the order of the paper: causal Q-Former, codebook, image decoder, language model, instruction tuning."""
