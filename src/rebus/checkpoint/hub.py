"""A published folder from the hub or a mirror of it: fetched once by the hub's own client, its files checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rebus.checkpoint.tensors import sha256
from rebus.errors import RebusError


@dataclass(frozen=True)
class HubFolder:
    """A repository of the hub."""

    repo: str
    """Its id, `owner/name`."""
    revision: str = "main"
    """Branch, tag or commit."""
    mirror: str | None = None
    """Address of a server that has it too; none: the hub's own."""
    files: tuple[str, ...] = ("*",)
    """Patterns of the files that are needed."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """File → the sha256 that it must have. Files that are not named here are not checked."""


def hub_folder(source: HubFolder, cache: Path | None = None) -> Path:
    """The local folder of a repository, fetched into `cache` (none: the client's own) where it is not there yet.

    Raises RebusError when it cannot be fetched, when a file to be checked is missing, or when its sha256 is another.
    """
    import huggingface_hub

    try:
        fetched = huggingface_hub.snapshot_download(
            source.repo,
            revision=source.revision,
            endpoint=source.mirror,
            cache_dir=cache,
            allow_patterns=list(source.files),
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RebusError(
            f"{source.repo} could not be fetched from {source.mirror or 'the hub'}: {reason}. Check the connection and "
            "the name; if it is gone there, name a mirror, or a folder that you have."
        ) from error
    folder = Path(fetched)
    for name, digest in source.digests.items():
        found = sha256(folder / name) if (folder / name).exists() else "missing"
        if found != digest:
            raise RebusError(
                f"{name} of {source.repo} is not the file that was asked for: its sha256 is {found}, expected {digest}. "
                "Check the mirror, or the checksum."
            )
    return folder
