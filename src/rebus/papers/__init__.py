"""One folder for each paper; the folders are the registry. No paper imports another."""
