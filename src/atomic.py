"""Atomic file and folder writes: what stands under a name is complete, whatever interrupts the writing."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside ``path``; synced to the disk and renamed when the block ends well.

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
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside ``target``; renamed when the block ends well, else removed.

    Parent folders of ``target`` are created. An empty folder at ``target`` is replaced.

    Yields:
        The temporary folder, empty.

    Raises:
        FileExistsError: ``target`` is a file, or a folder that is not empty; it is unchanged.
        OSError: the disk is full or the parent folder cannot be written.
    """
    target = target.resolve()  # of a link, where it points to
    raise_if_occupied(target)
    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
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
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
