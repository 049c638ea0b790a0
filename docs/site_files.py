"""Figures that lie elsewhere in the repository become files of the site, so that none is kept twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"weights/curves": "curves", "weights/sheets": "sheets", "examples": "examples"}
"""Folder of the repository → folder of the site."""


def on_files(files: Files, *, config: Any) -> Files:
    """Adds every picture of the folders."""
    for folder, place in FOLDERS.items():
        for picture in sorted((ROOT / folder).glob("*.png")):
            files.append(File.generated(config, f"{place}/{picture.name}", abs_src_path=str(picture)))
    return files
