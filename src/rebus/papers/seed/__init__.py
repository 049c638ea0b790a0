"""SEED (2307.08041) and SEED-LLaMA (2310.01218): an image is 32 words, each depending on those before it."""
