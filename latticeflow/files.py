"""Files that are either whole or absent, and content hashes."""

import hashlib
import os
import platform
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomic(
    path: Path, write: Callable[[Path], object], check: Callable[[Path], None] | None = None
) -> None:
    """Let `write(temporary path)` make a file, make it durable, `check` it, then give it its name.

    `check(temporary path)` reads the file back and raises where it is not what was meant. The temporary
    file lies in the same folder and is removed on failure; a kill at any moment leaves either no file or a
    whole one under `path`. Its name is unique: ranks on other hosts, with the same process id, may write the
    same file. `write` should still open it as new ("x").
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{secrets.token_hex(8)}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "x", encoding="utf-8") as handle:
            handle.write(text)

    write_atomic(path, write)


def source_hash(folder: Path) -> str:
    """Hash of the Python files of a folder: marks what was computed with them."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
