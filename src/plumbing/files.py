"""Atomic file and folder writes, and locks: what stands under a name is complete, whatever interrupts the writing."""

import errno
import glob
import os
import re
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


@contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside ``path``; renamed when the block ends well.

    Args:
        sync: to the disk before the renaming, so that the file survives a loss of power too; many small files that can
            be made again are faster without.

    Yields:
        The open temporary file.

    Raises:
        OSError: the disk is full or the folder cannot be written. A file that was at ``path`` is unchanged.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside ``target``; renamed when the block ends well, else removed.

    Parent folders of ``target`` are created. An empty folder at ``target`` is replaced. What a killed process left of
    its own attempt is removed.

    Yields:
        The temporary folder, empty.

    Raises:
        BlockingIOError: another process fills it.
        FileExistsError: ``target`` is a file, or a folder that is not empty; it is unchanged.
        OSError: the disk is full or the parent folder cannot be written.
    """
    target = target.resolve()  # of a link, where it points to
    raise_if_occupied(target)
    temporary = temporary_name(target)
    with locked(target.with_name(f".{target.name}.folder-lock")):
        remove_leftovers(target.parent, glob.escape(target.name))
        try:
            temporary.mkdir()
            yield temporary
            raise_if_occupied(target)
            if target.is_dir():
                target.rmdir()  # Windows renames onto no folder, not even onto an empty one
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def raise_if_occupied(target: Path) -> None:
    """Raise FileExistsError if ``target`` is a file or a folder that is not empty."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise FileExistsError(errno.EEXIST, "exists already; name another folder or remove it", str(target))


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Remove what killed writes of files or folders of these names left in a folder; call it under their lock only.

    Args:
        patterns: such as ``*_mask.png``. A hidden file of any other form than ``temporary_name`` gives stays.
    """
    for pattern in patterns:
        for path in folder.glob(f".{pattern}.*.part"):
            if re.fullmatch(r".*\.[0-9a-f]{8}\.part", path.name, re.DOTALL):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, so that only one process at a time writes what the file stands for.

    The system releases it when the process ends, however that comes, so no lock is ever stale. The file says who holds
    it. Its folder is created.

    Args:
        wait: for another process to release it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(errors="replace").strip()
        holder = holder or "another process"
        if not wait:
            raise BlockingIOError(errno.EAGAIN, f"held by {holder}; wait until that ends", str(path)) from None
        print(f"waiting for {holder}, which writes to {path.parent}", file=sys.stderr)
        lock.acquire()
    except OSError as error:  # a network file system without locks, say: the system's error lacks the name
        raise OSError(error.errno, error.strerror, str(path)) from error
    with lock:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):  # Windows: nobody else may open a locked file
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
