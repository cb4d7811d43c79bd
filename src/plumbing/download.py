"""Download archives, verify their checksums, and unpack them."""

import io
import shutil
import sys
import tarfile
from contextlib import nullcontext, redirect_stderr
from http.client import HTTPException
from pathlib import Path

from plumbing.cli import UserError
from plumbing.files import atomic_folder, raise_if_occupied


def download_archives(archives: dict[str, str], target: Path, hint: str) -> None:
    """Download archives and unpack them into the folder ``target``, which appears when it is complete.

    An archive that the user has put beside ``target`` is used instead. Complete downloads are kept for the next try.

    Args:
        archives: the MD5 of each, by URL.
        hint: ends the message of a failed download.

    Raises:
        FileExistsError: ``target`` is a file, or a folder that is not empty.
        UserError: the download failed, an archive that the user has put there is broken, or Python is before 3.11.4.
    """
    from torchvision.datasets.utils import extract_archive  # here, since importing torchvision takes 3 s

    raise_if_occupied(target)
    names = " and ".join(url.rsplit("/", 1)[1] for url in archives)
    source = next(iter(archives)).rpartition("/")[0]
    if not hasattr(tarfile, "data_filter"):
        raise UserError(
            f"unpacking safely needs Python 3.11.4 or newer; or unpack {names} (from {source}) into {target} yourself"
        )
    parent = target.absolute().parent
    downloads = parent / f".{target.name}.download"
    try:
        paths = [_fetch(url, md5, parent, downloads) for url, md5 in archives.items()]
    except (OSError, HTTPException, RuntimeError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = f"On macOS, first run Install Certificates.command in /Applications/Python 3.x.\n{hint}"
        raise UserError(
            f"the download failed: {error}\n"
            f"By hand: put {names} (from {source}) into {parent} and run the command again.\n{hint}"
        ) from error
    with atomic_folder(target) as folder:
        for path in paths:
            print(f"unpacking {path.name}", flush=True)
            extract_archive(path, folder)
    shutil.rmtree(downloads, ignore_errors=True)


def _fetch(url: str, md5: str, parent: Path, downloads: Path) -> Path:
    """Return the path of a verified archive: in ``parent``, where users put archives, or in ``downloads``."""
    from torchvision.datasets.utils import check_integrity, download_url

    name = url.rsplit("/", 1)[1]
    for path in (parent / name, downloads / name):
        if check_integrity(path, md5):
            print(f"using {path}")
            return path
    if (parent / name).is_file():
        raise UserError(f"{parent / name} is broken: its MD5 is not {md5}; remove it, or copy it from {url} again")
    print(f"downloading {url}", flush=True)
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):  # no progress bar in a pipe
        download_url(url, downloads, md5=md5)
    return downloads / name
