"""What every proxy's config.json has in common; whatever is wrong raises UsageError with file, key and mend."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from planes.mesh.tls import KeyFiles
from testbed.errors import UsageError


def read(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as cause:
        raise UsageError(f"{file}: {cause}; it must be the JSON that the deployer writes") from cause


def misshapen(file: Path, cause: Exception) -> UsageError:
    return UsageError(f"{file}: key {cause} is missing or of the wrong shape")


def identities(told: dict[str, dict[str, str]], folder: Path) -> dict[str, KeyFiles]:
    """By SPIFFE URI. Raises KeyError, TypeError, AttributeError."""
    return {
        uri: KeyFiles(
            certificate=folder / files["certificate"], key=folder / files["key"],
            roots=folder / files.get("roots", files.get("ca", "roots.pem")),
        )
        for uri, files in told.items()
    }  # fmt: skip


def workload(text: str) -> tuple[str, str]:
    """`namespace/name`."""
    namespace, _, name = text.partition("/")
    return namespace, name


def address(pair: list) -> tuple[str, int]:
    host, port = pair
    return host, int(port)


def refuse_unknown(file: Path, options: dict, known: Collection[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"{file}: options: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
