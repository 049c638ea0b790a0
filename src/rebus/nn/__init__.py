"""Modules that know nothing of papers: attention, vision transformer, quantiser, resampler, text model."""
