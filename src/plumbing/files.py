"""Atomic file and folder writes, and locks: whatever interrupts a write, a name never stands for half a file."""

import errno
import glob
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder onto ``target``.

    Windows refuses while another program holds it (Excel, OneDrive, a virus scanner): tried again for 5 s.
    """
    for wait in (0.1, 0.3, 0.6, 1, 3, None):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if wait is None:
                reason = "cannot be replaced; does another program hold it open?"
                raise PermissionError(error.errno, reason, str(target)) from error
            time.sleep(wait)


@contextmanager
def expendable(what: str) -> Iterator[None]:
    """Make an OSError of the block a note: ``what`` it writes can be made again."""
    try:
        yield
    except OSError as error:
        print(f"note: {what} not written: {error}", file=sys.stderr)


@contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside ``path``; rename it when the block succeeds.

    Args:
        sync: fsync before renaming, so that the file survives a power loss; slow for many small files.
    """
    temporary = _temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder beside ``target``; rename it when the block succeeds, else remove it.

    Creates the parents of ``target``, replaces an empty folder, and removes stale temporary folders of ``target``.

    Raises:
        BlockingIOError: another process fills it.
        FileExistsError: ``target`` is a file, or a folder that is not empty; it is unchanged.
    """
    target = target.resolve()  # of a link, where it points to
    raise_if_occupied(target)
    temporary = _temporary_name(target)
    with locked(target.with_name(f".{target.name}.folder-lock")):
        remove_stale_temp_files(target.parent, glob.escape(target.name))
        try:
            temporary.mkdir()
            yield temporary
            raise_if_occupied(target)
            if target.is_dir():
                target.rmdir()  # Windows cannot rename onto a folder, not even an empty one
            replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def raise_if_occupied(target: Path) -> None:
    """Raise FileExistsError if ``target`` is a file or a folder that is not empty."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(errno.EEXIST, "exists already; name another folder or remove it", str(target))


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def remove_stale_temp_files(folder: Path, *patterns: str) -> None:
    """Remove what killed writes of such names (``*_mask.png``) left; call it under their lock only."""
    for pattern in patterns:
        for path in folder.glob(f".{pattern}.{'[0-9a-f]' * 8}.part"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, which says who holds it; its folder is created. The system frees it if the process dies.

    Args:
        wait: for another process to free it, instead of raising BlockingIOError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = ""
        with suppress(OSError):  # Windows: a locked file cannot be read
            holder = path.read_text(encoding="utf-8", errors="replace").strip()
        holder = holder or "another process"
        if not wait:
            raise BlockingIOError(errno.EAGAIN, f"held by {holder}; wait until that ends", str(path)) from None
        print(f"waiting for {holder}, which writes to {path.parent}", file=sys.stderr)
        lock.acquire()
    with lock:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):
            holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
            path.write_text(holder, encoding="utf-8", errors="backslashreplace")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
