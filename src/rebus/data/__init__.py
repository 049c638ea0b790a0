"""Data: where Documents come from (files of others, the embedded pictures), and how they are mixed and loaded."""
