"""The archive of a built library: a tar with the sources, ``metadata.json`` and the digests of them all.

Equal content makes equal bytes. A tar has no digests of its members: ``SHA256SUMS`` has, as ``sha256sum -c`` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from tvm_tinytrain.errors import ArchiveError

FORMAT = 1
SUMS = "SHA256SUMS"
_AGAIN = "export the module again"

# What every library's metadata holds, and what kind of value
_SHAPE: dict[str, type] = {
    "name": str, "digest": str, "target": dict, "kernels": dict, "options": dict, "versions": dict, "plan": dict,
    "plan_digest": str, "trained_weights": int, "training": dict, "layers": list, "macs": dict, "entries": list,
    "tensors": list, "renamed": dict, "memory": dict,
}  # fmt: skip
_JSON = {str: "text", dict: "an object", list: "a list", int: "an integer"}


def pack(files: dict[str, bytes]) -> bytes:
    """A tar of ``files`` and their digests in order of names: no times, no owners, so that the bytes depend on the content only."""
    sums = "".join(f"{digest}  {name}\n" for name, digest in _digests(files).items())
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted({**files, SUMS: sums.encode()}.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def unpack(path: str | Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and metadata of an archive. Raises ArchiveError for anything that is not one of ours, whole and unaltered."""
    files = _members(path)
    _check_sums(path, files)
    try:
        metadata = json.loads(files["metadata.json"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ArchiveError("load", str(path), error, "an archive with metadata.json", _AGAIN) from error
    if not isinstance(metadata, dict):
        found = f"metadata.json with a {type(metadata).__name__}"
        raise ArchiveError("load", str(path), found, "an object", _AGAIN)
    version = metadata.get("format")
    if type(version) is not int or version != FORMAT:
        raise ArchiveError("load", str(path), f"format {version!r}", FORMAT, "build it with this version")
    for key, kind in _SHAPE.items():
        if type(metadata.get(key)) is not kind:
            found = f"{type(metadata[key]).__name__}" if key in metadata else "nothing"
            raise ArchiveError("load", f"{path}, {key} of metadata.json", found, _JSON[kind], _AGAIN)
    return files, metadata


def _members(path: str | Path) -> dict[str, bytes]:
    """The files in the tar; ArchiveError where it is none, or breaks off inside of one."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                if not member.isfile() or "/" in member.name or member.name.startswith("."):
                    raise ArchiveError("load", str(path), f"member {member.name}", "plain files", _AGAIN)
                content = tar.extractfile(member)
                assert content is not None
                files[member.name] = content.read()
    except FileNotFoundError as error:
        hint = "check the path, or write one with tinytrain compile -o"
        raise ArchiveError("load", str(path), "no such file", "a model library archive", hint) from error
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ArchiveError("load", str(path), error, "an archive with metadata.json", _AGAIN) from error
    return files


def _digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}


def _check_sums(path: str | Path, files: dict[str, bytes]) -> None:
    """Takes SHA256SUMS out of `files`; ArchiveError names the files that it does not fit."""
    if SUMS not in files:
        raise ArchiveError("load", str(path), f"no {SUMS}", "the digests of all files", _AGAIN)
    lines = files.pop(SUMS).decode(errors="replace").splitlines()
    said = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    here = _digests(files)
    wrong = {
        "missing": sorted(said.keys() - here.keys()),
        "unknown": sorted(here.keys() - said.keys()),
        "altered": sorted(name for name in said.keys() & here.keys() if said[name] != here[name]),
    }
    found = ", ".join(f"{what} {', '.join(names)}" for what, names in wrong.items() if names)
    if found:
        raise ArchiveError("load", str(path), found, f"the files of its {SUMS}", _AGAIN)
