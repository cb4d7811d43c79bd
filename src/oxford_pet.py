"""Oxford-IIIT Pet: download it, list its splits, and load them sample by sample or decoded once as a whole.

Source: Parkhi et al., "Cats and Dogs" (CVPR 2012), https://www.robots.ox.ac.uk/~vgg/data/pets/, CC BY-SA 4.0.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from plumbing.cli import REPO, ArgumentParser, UserError, new_path, run_script, shell
from plumbing.download import download_archives
from plumbing.files import locked
from plumbing.images import decode_image, read_bytes, resize_image

import cv2
import numpy as np
import torch

from trimap import BACKGROUND, BOUNDARY, PET, decode_trimap, resize_trimap

DATASET = REPO / "dataset" / "oxford-iiit-pet"
MODES = ("train", "valid", "test")
FOLDER = "oxford-iiit-pet"
ARCHIVES = {  # URL and MD5
    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
}


# ---------------------------------------------------------------------------------------------- files and splits


def find_root(data_path: str | Path) -> Path:
    """Find the data set's own folder, given that folder, the one above it, or the one that holds ``dataset/``.

    Raises:
        UserError: none of the three holds ``annotations/trainval.txt``.
    """
    data_path = Path(data_path)
    for root in (data_path, data_path / FOLDER, data_path / "dataset" / FOLDER):
        if (root / "annotations" / "trainval.txt").is_file():
            return root
    if not data_path.exists() and data_path.name != FOLDER:
        raise UserError(f"no data set at {data_path}: there is no such folder")
    where = () if data_path.resolve() == DATASET else ("--data_path", data_path)
    download = f"to download Oxford-IIIT Pet: {shell('python', 'src/oxford_pet.py', '--download', *where)}"
    raise UserError(
        f"no data set at {data_path}: no annotations/trainval.txt in it, nor in its {FOLDER}/ or dataset/{FOLDER}/; "
        + (download if data_path.name == FOLDER else "for images and masks of your own: tools/import_masks.py --help")
    )


def training_data_path(data_path: str) -> Path:
    """The folder of the data that a run trained on.

    Raises:
        UserError: the folder does not exist.
    """
    trained_on = REPO / data_path
    if not trained_on.is_dir() and trained_on != DATASET:
        raise UserError(f"the run's data {trained_on} is no longer there; say where it is with --data_path")
    return trained_on


def read_columns(root: Path, list_name: str) -> dict[str, list[str]]:
    """Read ``annotations/<list_name>.txt``: the columns behind each sample's name, in file order.

    Raises:
        UserError: the list cannot be read, or a name is listed twice or is no safe file stem: outputs bear these names.
    """
    path = root / "annotations" / f"{list_name}.txt"
    try:
        lines = read_bytes(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a list in UTF-8: {error}") from error
    columns: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *others = line.split()
        if not is_plain_name(name):
            raise UserError(f"{path}, line {number}: {name[:200]!r} is no plain name of a file")
        if name in columns:
            raise UserError(f"{path}, line {number}: {name} is on a line above already")
        columns[name] = others
    return columns


def is_plain_name(name: str) -> bool:
    """True if ``name`` is a safe file stem: no separators (of Windows too), no NUL, no leading dot."""
    return not re.search(r"^\.|[/\\:\0]", name)


def read_breeds(root: Path) -> dict[str, dict[str, str]]:
    """Each sample's breed and species, by name, if the lists have the original's columns.

    These are the name (``american_bulldog_10``), the class, the species (1 cat, 2 dog) and the breed's number.
    """
    breeds = {}
    for name, columns in (read_columns(root, "trainval") | read_columns(root, "test")).items():
        breed = name.rpartition("_")[0].replace("_", " ")
        if breed and len(columns) == 3 and columns[1] in ("1", "2"):
            breeds[name] = {"breed": breed, "species": "cat" if columns[1] == "1" else "dog"}
    return breeds


def read_split(root: Path, mode: str) -> list[str]:
    """Read the names of a split's samples.

    Validation is ``annotations/valid.txt`` if the data set has one, else every tenth name of trainval.txt, the first
    included. Training is the rest of trainval.txt.

    Args:
        mode: train (3312 samples of the real data), valid (368) or test (3669).
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, not one of {', '.join(MODES)}")
    if mode == "test":
        return list(read_columns(root, "test"))
    names = list(read_columns(root, "trainval"))
    if (root / "annotations" / "valid.txt").is_file():
        valid = list(read_columns(root, "valid"))
        chosen = set(valid)
        return valid if mode == "valid" else [name for name in names if name not in chosen]
    return names[::10] if mode == "valid" else [name for index, name in enumerate(names) if index % 10]


def evenly_spaced(names: list[str], limit: int | None) -> list[str]:
    """At most ``limit`` of the names, spread evenly over the list, its first and last among them."""
    if limit is None or limit >= len(names):
        return names
    return [names[index] for index in np.linspace(0, len(names) - 1, limit).round().astype(int)]


def image_path(root: Path, name: str) -> Path:
    return root / "images" / f"{name}.jpg"


def trimap_path(root: Path, name: str) -> Path:
    return root / "annotations" / "trimaps" / f"{name}.png"


def missing_files(root: Path) -> list[Path]:
    """The images and trimaps that are listed but missing."""
    names = [name for mode in MODES for name in read_split(root, mode)]
    return [path for name in names for path in (image_path(root, name), trimap_path(root, name)) if not path.is_file()]


# ---------------------------------------------------------------------------------------------- sample by sample


class SimpleOxfordPetDataset(torch.utils.data.Dataset):
    """The reports' data set: dicts of numpy arrays, decoded at each access. (Training uses ``load_split`` instead.)

    Args:
        root: the data set's own folder, the one above it, or the one that holds ``dataset/``.
        mode: train, valid or test.
        transform: called as ``transform(image=, mask=, trimap=)`` with arrays (H, W, 3), (H, W), (H, W) at the
            image's own size; returns a dict of the same.
        image_size: height and width of the samples, in pixels.

    A sample is a dict of image (3, S, S) uint8, mask (1, S, S) float32 of 0 and 1 (1 is pet or boundary), and trimap
    (1, S, S) uint8.
    """

    def __init__(
        self, root: str | Path, mode: str = "train", transform: Callable[..., dict] | None = None, image_size: int = 256
    ) -> None:
        self.root = find_root(root)
        self.mode = mode
        self.transform = transform
        self.image_size = image_size
        self.filenames = read_split(self.root, mode)

    def __len__(self) -> int:
        return len(self.filenames)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        name = self.filenames[index]
        image, trimap = decode_image(image_path(self.root, name)), decode_trimap(trimap_path(self.root, name))
        sample = {"image": image, "mask": (trimap != BACKGROUND).astype(np.float32), "trimap": trimap}
        if self.transform is not None:
            sample = self.transform(**sample)
        side = self.image_size
        image = np.moveaxis(resize_image(sample["image"], side, side), -1, 0)  # (3, S, S)
        mask, trimap = (resize_trimap(sample[key], side, side)[None] for key in ("mask", "trimap"))  # (1, S, S)
        arrays = {"image": image, "mask": mask, "trimap": trimap}
        return {key: np.ascontiguousarray(array) for key, array in arrays.items()}


def rotate_and_flip(image: np.ndarray, mask: np.ndarray, trimap: np.ndarray) -> dict[str, np.ndarray]:
    """Augment a sample as report lab2 did: rotation by -15 to 14 whole degrees, and each flip with probability 0.5.

    PyTorch's generator draws them. The empty corners are black, and background.

    Args:
        image, mask, trimap: (H, W, 3) uint8, (H, W) float32 (1 where the trimap is not background), (H, W) uint8.

    Returns:
        A dict of the three, of the same shapes and dtypes.
    """
    from imutils import rotate

    degrees = int(torch.randint(-15, 15, ()))
    flips = [code for code in (1, 0) if torch.rand(()) < 0.5]  # of cv2.flip: horizontal, vertical

    def move(array: np.ndarray) -> np.ndarray:
        array = rotate(array, degrees)
        for code in flips:
            array = cv2.flip(array, code)
        return array

    # The rotation interpolates: halfway from pet (1) to boundary (3) it would find background (2).
    is_foreground, is_pet = move(mask) > 0.5, move((trimap == PET).astype(np.float32)) > 0.5
    moved = np.where(is_foreground, np.where(is_pet, PET, BOUNDARY), BACKGROUND).astype(np.uint8)
    return {"image": move(image), "mask": is_foreground.astype(np.float32), "trimap": moved}


def load_dataset(data_path: str | Path, mode: str) -> SimpleOxfordPetDataset:
    """Load a split as report lab2 did: downloaded if it is missing, augmented if the mode is train."""
    try:
        root = find_root(data_path)
    except UserError:
        download(Path(data_path))
        root = Path(data_path)
    return SimpleOxfordPetDataset(root, mode, rotate_and_flip if mode == "train" else None)


# ---------------------------------------------------------------------------------------------- download


def download(target: Path = DATASET) -> None:
    """Download the data set (0.8 GB) to ``target``, unless it is there, as ``plumbing.download`` does.

    Raises:
        BlockingIOError: another process downloads it.
        FileExistsError: ``target`` holds other files, or an incomplete data set.
        UserError: the download failed.
    """
    with locked(target.absolute().parent / f".{target.name}.lock"):
        if (target / "annotations" / "trainval.txt").is_file() and not missing_files(target):
            print(f"{target} is complete already")
            return
        hint = "Or draw pets: `python tools/draw_pets.py dataset/drawn-pets`, for `--data_path dataset/drawn-pets`."
        download_archives(ARCHIVES, target, hint)
    print(f"wrote {target}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Download the Oxford-IIIT Pet data set.")
    parser.add_argument("--data_path", type=new_path, default=DATASET, help="the data set's folder")
    parser.add_argument("--download", action="store_true", help="download it to --data_path (0.8 GB)")
    args = parser.parse_args(argv)
    if not args.download:
        parser.error("nothing to do: --download downloads the data set")
    return args


def main(argv: list[str] | None = None) -> None:
    data_path = parse_args(argv).data_path
    download(data_path)
    print(f"next: {shell('python', 'src/train.py', '--model', 'R', '--data_path', data_path)}")


if __name__ == "__main__":
    run_script(main)
