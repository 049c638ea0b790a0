"""Experiments that ask of a paper whether its claim holds, at equal bits, steps and data: `rebus study NAME`."""
