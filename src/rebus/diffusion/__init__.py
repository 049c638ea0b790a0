"""Latent diffusion: the only folder that imports diffusers."""
