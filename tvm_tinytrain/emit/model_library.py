"""The archive of a built library: a tar with the sources and ``metadata.json``, equal bytes for equal content."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from tvm_tinytrain.errors import ArchiveError

FORMAT = 1


def pack(files: dict[str, bytes]) -> bytes:
    """A tar of ``files`` in order of their names: no times, no owners, so that the bytes depend on the content only."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(files[name]))
    return stream.getvalue()


def unpack(path: str | Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and metadata of an archive. Raises ArchiveError for anything that is not one of ours, in full."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                if not member.isfile() or "/" in member.name or member.name.startswith("."):
                    raise ArchiveError(
                        "load", str(path), f"member {member.name}", "plain files", "export the module again"
                    )
                content = tar.extractfile(member)
                assert content is not None
                files[member.name] = content.read()
        metadata = json.loads(files["metadata.json"])
    except FileNotFoundError as error:
        hint = "check the path, or write one with tinytrain compile -o"
        raise ArchiveError("load", str(path), "no such file", "a model library archive", hint) from error
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise ArchiveError(
            "load", str(path), error, "an archive with metadata.json", "export the module again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ArchiveError(
            "load", str(path), f"format {metadata.get('format')}", FORMAT, "build it with this version"
        )
    return files, metadata
