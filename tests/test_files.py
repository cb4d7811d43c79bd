import errno
import os
import subprocess
import sys
from pathlib import Path

from plumbing.cli import REPO
from plumbing.files import atomic_folder, atomic_write, locked, remove_stale_temp_files

import pytest

SRC = str(REPO / "src")


def test_file_takes_its_name_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_stale_temp_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".pets.01234567.part" / "images").mkdir(parents=True)
    with atomic_folder(tmp_path / "pets"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


@pytest.mark.parametrize("empty_folder_there", [False, True])
def test_folder_takes_its_name_only_when_complete(tmp_path: Path, empty_folder_there: bool) -> None:
    target = tmp_path / "new" / "folder"
    if empty_folder_there:
        target.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert target.is_dir() == empty_folder_there
    with atomic_folder(target) as folder:
        (folder / "file").write_text("all")
        assert not (target / "file").exists()
    assert (target / "file").read_text() == "all"
    assert list(target.parent.iterdir()) == [target]


def test_folder_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(target) as folder:
        (folder / "file").write_text("mine")
        target.mkdir()
        (target / "file").write_text("of another process")
    assert (target / "file").read_text() == "of another process"
    for occupied in (target, target / "file"):
        with pytest.raises(FileExistsError, match="exists already"), atomic_folder(occupied):
            raise AssertionError("the block must not run")
    assert list(tmp_path.iterdir()) == [target]


def test_a_lock_says_who_holds_it_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs" / ".R.lock"
    with locked(path):
        with pytest.raises(BlockingIOError, match=rf"held by process {os.getpid()} on .* since 20"), locked(path):
            pass
        assert path.exists()
    with locked(path):
        pass
    assert list(path.parent.iterdir()) == []


def test_the_lock_of_a_killed_process_holds_nobody(tmp_path: Path) -> None:
    path = tmp_path / ".R.lock"
    code = f"import sys; sys.path.insert(0, {SRC!r}); import time; from pathlib import Path\n"
    code += "from plumbing.files import locked\n"
    code += f"with locked(Path({str(path)!r})): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"held by process {process.pid} on"), locked(path):
        pass
    process.kill()
    process.wait()
    assert path.exists()
    with locked(path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match="No locks") as caught, locked(tmp_path / ".R.lock"):
        pass
    assert caught.value.filename == str(tmp_path / ".R.lock")


def test_stale_temp_files_are_removed(tmp_path: Path) -> None:
    others = {".U_last.pth.12345678.part", "R_last.pth", ".R_notes", ".R_mine.part", ".R_mine.2026.part"}
    for name in (".R_last.pth.12345678.part", *others):
        (tmp_path / name).touch()
    (tmp_path / ".R_folder.12345678.part" / "inner").mkdir(parents=True)
    remove_stale_temp_files(tmp_path, "R_*")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == others


def test_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk" / "pets").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "pets")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "disk" / "pets" / "file").exists()
    assert (tmp_path / "link").is_symlink()
