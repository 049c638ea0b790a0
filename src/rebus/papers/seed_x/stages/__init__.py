"""The stages that train SEED-X, one file each."""
