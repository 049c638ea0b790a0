"""The stages that train Mosaic, in the order of its paper."""
