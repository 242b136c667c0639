"""Files that are either whole or absent, and content hashes."""

import errno
import hashlib
import os
import platform
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import WriteFailed

_ADVICE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "that file system is mounted read-only: have it mounted writable, or copy the run elsewhere",
    errno.EACCES: "get permission to write in that folder, or copy the run elsewhere",
    errno.EPERM: "get permission to write in that folder, or copy the run elsewhere",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system refuses while `path` is written is a `WriteFailed` that says so."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "see to the disk")
        raise WriteFailed(
            f"{path} cannot be written: {error.strerror or error}. What was finished before is kept; {advice}, "
            "then run the same command again"
        ) from None


def write_atomic(
    path: Path, write: Callable[[Path], object], check: Callable[[Path], None] | None = None
) -> None:
    """Let `write(temporary path)` make a file, make it durable, `check` it, then give it its name.

    `check(temporary path)` reads the file back and raises where it is not what was meant. The temporary
    file lies in the same folder and is removed on failure; a kill at any moment leaves either no file or a
    whole one under `path`. Its name is unique: ranks on other hosts, with the same process id, may write the
    same file. `write` should still open it as new ("x"). Raises `WriteFailed` where the system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{secrets.token_hex(8)}.tmp")
    with writing(path):
        try:
            write(temporary)
            with ThreadPoolExecutor(
                max_workers=1
            ) as pool:  # the disk works while the file is read back from memory
                durable = pool.submit(_sync, temporary)
                if check is not None:
                    check(temporary)
                durable.result()
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # the reason is what matters, not that tidying up failed for the same one
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _sync(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all. Raises `WriteFailed`."""

    def write(temporary: Path) -> None:
        with open(temporary, "x", encoding="utf-8") as handle:
            handle.write(text)

    write_atomic(path, write)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably; one that is there stays. Raises `WriteFailed`."""
    path = Path(path)
    with writing(path):
        if path.is_dir():
            return
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)


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
