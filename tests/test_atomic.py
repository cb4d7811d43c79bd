from pathlib import Path

import pytest

from atomic import atomic_folder, atomic_write


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


def test_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk" / "pets").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "pets")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "disk" / "pets" / "file").exists()
    assert (tmp_path / "link").is_symlink()
