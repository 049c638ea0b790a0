"""The shared small parts of the mini family: base language model, vision encoder, VAE, base denoiser.

The papers start from LLaMA, EVA-CLIP and Stable Diffusion. Their mini variants start from one stand-in for each, trained
or fetched once and shared, so that papers can be compared on equal terms.
"""
