"""Keep a computed array as a file that all processes map into memory."""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from plumbing.files import atomic_write, locked, remove_stale_temp_files

import numpy as np


def cached_array(
    folder: Path,
    name: str,
    key: str,
    shape: tuple[int, ...],
    compute: Callable[[], Iterable[np.ndarray]],
    fingerprint: Callable[[np.ndarray], str],
) -> tuple[np.ndarray, str]:
    """Map ``folder/<name>-<key>.npy`` into memory; if it is missing or damaged, compute and write it first.

    One process computes while the others wait. Files of the same name with another key are removed. If the folder
    cannot be written, the array is computed in memory.

    Args:
        key: a hash of all that the array depends on.
        shape: of the array.
        compute: yields the rows of the array, uint8, in order.
        fingerprint: of the array; kept at the file's end, and compared whenever it is read.

    Returns:
        The array, of ``shape`` and uint8 (writing to it does not change the file), and its fingerprint.
    """
    path = folder / f"{name}-{key}.npy"
    found = _read(path, shape, fingerprint)
    if found is None:
        try:
            found = _compute(path, shape, compute, fingerprint)
        except OSError as error:  # no permission, full disk
            print(f"note: {name} cannot be cached in {folder} ({error.strerror})", file=sys.stderr)
            array = np.stack(list(compute()))
            found = array, fingerprint(array)
    for stale in folder.glob(f"{name}-*.npy"):
        if stale != path:
            with suppress(OSError):  # Windows: another process still reads it
                stale.unlink()
    return found


def _read(
    path: Path, shape: tuple[int, ...], fingerprint: Callable[[np.ndarray], str]
) -> tuple[np.ndarray, str] | None:
    """Map the array into memory; None if it is missing, damaged or another."""
    with suppress(OSError, ValueError, EOFError):
        array = np.load(path, mmap_mode="c")
        if array.shape == shape and array.dtype == np.uint8:
            found = fingerprint(array)
            with open(path, "rb") as file:
                file.seek(-len(found), os.SEEK_END)
                if file.read() == found.encode():
                    return array, found
    return None


def _compute(
    path: Path,
    shape: tuple[int, ...],
    compute: Callable[[], Iterable[np.ndarray]],
    fingerprint: Callable[[np.ndarray], str],
) -> tuple[np.ndarray, str]:
    """Compute the array and write it, unless the process that had the lock before has done so."""
    with locked(path.parent / ".lock", wait=True):
        found = _read(path, shape, fingerprint)
        if found is not None:
            return found
        remove_stale_temp_files(path.parent, "*.npy")
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for row in compute():
                file.write(row.data)
            file.flush()
            found = fingerprint(np.load(file.name, mmap_mode="r"))
            file.write(found.encode())
        return np.load(path, mmap_mode="c"), found
