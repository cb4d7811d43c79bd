"""Read every file of a data set and report errors and oddities.

python tools/check_data.py dataset/oxford-iiit-pet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plumbing.cli import ArgumentParser, UserError, existing_path, image_size, run_script
from plumbing.images import decode_image, in_threads

import numpy as np
from imutils.paths import list_images
from tqdm import tqdm

from oxford_pet import DATASET, MODES, find_root, image_path, missing_files, read_split, trimap_path
from trimap import PET, decode_trimap, resize_trimap

SHOWN = 3  # names of each problem that are printed without --all


@dataclass
class Sample:
    """A listed sample whose files could be read."""

    name: str
    digest: str  # of the decoded image
    sizes: tuple[str, str]  # of image and trimap: 500x375
    has_foreground: bool
    keeps_foreground: bool  # at the image size


def read_sample(root: Path, name: str, image_size: int) -> Sample | list[tuple[str, str]]:
    """Read a sample; if that fails, return the names of its broken files, each with the error."""
    paths = image_path(root, name), trimap_path(root, name)
    image, trimap = try_to_decode(decode_image, paths[0]), try_to_decode(decode_trimap, paths[1])
    broken = [(path.name, read) for path, read in zip(paths, (image, trimap), strict=True) if isinstance(read, str)]
    if broken:
        return broken
    sizes = tuple(f"{array.shape[1]}x{array.shape[0]}" for array in (image, trimap))
    digest = hashlib.sha256(sizes[0].encode() + image.tobytes()).hexdigest()
    has, keeps = ((array == PET).any() for array in (trimap, resize_trimap(trimap, image_size, image_size)))
    return Sample(name, digest, sizes, bool(has), bool(keeps))


def try_to_decode(decode: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | str:
    """Decode a file; if that fails, return the error without the path."""
    try:
        return decode(path)
    except UserError as error:
        return str(error).removeprefix(f"{path} ")


def read_all(read: Callable[[str], object], names: list[str]) -> tuple[list, list[tuple[str, str]]]:
    """Call a function for each name, in threads: its results, and the broken files of which it returned a list."""
    results = list(tqdm(in_threads(read, names), "reading", len(names), unit=" images", leave=False, disable=None))
    broken = [file for result in results if isinstance(result, list) for file in result]
    return [result for result in results if not isinstance(result, list)], broken


class Report:
    """Prints one line per check, and below it the names that failed, grouped by reason.

    Attributes:
        is_right: no check marked WRONG has failed so far.
    """

    def __init__(self, show_all: bool) -> None:
        self.shown = None if show_all else SHOWN
        self.is_right = True

    def add(self, title: str, failed: Iterable[str | tuple[str, str]], mark: str = "note", hint: str = "") -> None:
        """Print a check's result.

        Args:
            failed: names, or pairs of a name and a reason.
            mark: WRONG for errors, note for oddities that training copes with.
            hint: printed behind the title if any failed.
        """
        groups: dict[str, list[str]] = {}
        for entry in failed:
            name, reason = (entry, "") if isinstance(entry, str) else entry
            groups.setdefault(reason, []).append(name)
        count = sum(map(len, groups.values()))
        self.is_right &= not (count and mark == "WRONG")
        print(f"{mark if count else 'ok':>5} {count:5} {title}{hint if count else ''}")
        for reason, names in groups.items():
            listed = ", ".join(names[: self.shown])
            more = len(names) - len(names[: self.shown])
            listed += f" and {more} more (--all prints every name)" if more else ""
            print(f"{'':12}{reason}: {listed}" if reason else f"{'':12}{listed}")


def check(root: Path, image_size: int, show_all: bool = False) -> bool:
    """Read every listed file and print errors and oddities; ``image_size`` is that of the training.

    Returns:
        False for errors: missing or unreadable files, trimap values outside 1, 2, 3, sizes that differ, a name that is
        listed twice, an empty split. Oddities (trimaps without foreground, duplicates) are in the original data too.
    """
    splits = {mode: read_split(root, mode) for mode in MODES}
    places: dict[str, list[str]] = {}
    for mode, names in splits.items():
        for name in names:
            places.setdefault(name, []).append(mode)
    print(f"{root}\n" + ", ".join(f"{mode} {len(names)}" for mode, names in splits.items()))

    missing = missing_files(root)
    incomplete = {path.stem for path in missing}
    there = [name for name in places if name not in incomplete]
    samples, broken = read_all(lambda name: read_sample(root, name, image_size), there)

    report = Report(show_all)
    report.add("empty splits", [mode for mode in MODES if not splits[mode]], "WRONG")
    report.add("names listed twice", [(n, " and ".join(m)) for n, m in places.items() if len(m) > 1], "WRONG")
    report.add("missing files", [(path.name, str(path.parent.relative_to(root))) for path in missing], "WRONG")
    report.add("broken files", broken, "WRONG")
    differ = [(f"{s.name} ({s.sizes[0]} and {s.sizes[1]})") for s in samples if s.sizes[0] != s.sizes[1]]
    report.add("images and trimaps of different size", differ, "WRONG")
    report.add("trimaps without foreground", [s.name for s in samples if not s.has_foreground])
    lost = [sample.name for sample in samples if sample.has_foreground and not sample.keeps_foreground]
    report.add(f"trimaps that lose all their foreground at {image_size}x{image_size}", lost)
    report.add("equal images", find_duplicates(samples, places))
    report.add("files on no list, not used", stray_files(root, places))
    print("no errors found" if report.is_right else "errors found: fix what is marked WRONG")
    return report.is_right


def find_duplicates(samples: list[Sample], places: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Equal images under several names, and what to report of them: where they are."""
    same: dict[str, list[str]] = {}
    for sample in samples:
        same.setdefault(sample.digest, []).append(sample.name)
    twins = [names for names in same.values() if len(names) > 1]
    return [(" = ".join(names), " = ".join(places[name][0] for name in names)) for names in twins]


def stray_files(root: Path, places: dict[str, list[str]]) -> list[str]:
    """The names of images in the data set's folders that are on no list."""
    return [
        path.relative_to(folder).as_posix()
        for folder in (root / "images", root / "annotations" / "trimaps")
        for path in sorted(map(Path, list_images(folder)))
        if (path.stem not in places or path.parent != folder) and not path.name.startswith(".")
    ]


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Read every file of a data set and report errors (exit code 1) and oddities.")
    parser.add_argument("data_path", nargs="?", type=existing_path, default=DATASET, help="the data set's folder")
    parser.add_argument("--all", action="store_true", help=f"print all names, not the first {SHOWN} of each problem")
    size_help = "of the training, height and width in pixels"
    parser.add_argument("--image_size", type=image_size, default=256, help=size_help)
    args = parser.parse_args(argv)
    nested = args.data_path / "annotations" / "annotations"
    if nested.is_dir():
        raise UserError(f"{args.data_path} lies in itself: move what is in {nested}, and in images/images, a folder up")
    if not check(find_root(args.data_path), args.image_size, args.all):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
