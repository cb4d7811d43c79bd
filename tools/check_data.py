"""Read every file of a data set and report what is wrong or odd.

python tools/check_data.py dataset/oxford-iiit-pet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plumbing.cli import (
    ArgumentParser,
    UserError,
    existing_path,
    run_script,
)
from plumbing.images import decode_image, in_threads

import numpy as np
from imutils.paths import list_images
from PIL import Image
from tqdm import tqdm

from oxford_pet import DATASET, MODES, find_root, image_path, missing_files, read_split, trimap_path
from trimap import PET, decode_trimap

SHOWN = 3  # kinds of a problem, and names of each kind, that are printed without --all


@dataclass
class Sample:
    """A listed sample that could be read: what its image and its trimap are."""

    name: str
    formats: tuple[str, str]  # JPEG, PNG, ...
    colour_mode: str  # of the image, as Pillow calls it
    digest: str  # of the decoded image
    sizes: tuple[str, str]  # 500x375
    has_pet: bool


def read_sample(root: Path, name: str) -> Sample | list[tuple[str, str]]:
    """Read a sample; if that fails, return the names of its broken files, each with what is wrong."""
    paths = image_path(root, name), trimap_path(root, name)
    image, trimap = try_to_decode(decode_image, paths[0]), try_to_decode(decode_trimap, paths[1])
    broken = [
        (path.name, result) for path, result in zip(paths, (image, trimap), strict=True) if isinstance(result, str)
    ]
    if broken:
        return broken
    with Image.open(paths[0]) as opened_image, Image.open(paths[1]) as opened_trimap:
        formats, colour_mode = (opened_image.format, opened_trimap.format), opened_image.mode
    sizes = tuple(f"{array.shape[1]}x{array.shape[0]}" for array in (image, trimap))
    digest = hashlib.sha256(sizes[0].encode() + image.tobytes()).hexdigest()
    return Sample(name, formats, colour_mode, digest, sizes, bool((trimap == PET).any()))


def try_to_decode(decode: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | str:
    """Decode a file; if that fails, return what is wrong, without the path."""
    try:
        return decode(path)
    except UserError as error:
        return str(error).removeprefix(f"{path} ")


class Report:
    """Prints one line per test, and below it the names that failed, grouped by what is wrong with them.

    Attributes:
        is_right: whether no test so far that matters to training failed.
        is_cut: whether names were left out.
    """

    def __init__(self, show_all: bool) -> None:
        self.show_all = show_all
        self.is_right = True
        self.is_cut = False

    def add(self, title: str, failed: Iterable[str | tuple[str, str]], mark: str = "note") -> None:
        """Print a test's result.

        Args:
            failed: names, or pairs of a name and what is wrong with it.
            mark: WRONG if training would be wrong, note if it would not.
        """
        groups: dict[str, list[str]] = {}
        for entry in failed:
            name, reason = (entry, "") if isinstance(entry, str) else entry
            groups.setdefault(reason, []).append(name)
        count = sum(map(len, groups.values()))
        self.is_right &= not (count and mark == "WRONG")
        print(f"{mark if count else 'ok':>5} {count:5} {title}")
        by_count = sorted(groups.items(), key=lambda group: -len(group[1]))
        for reason, names in self._shown(by_count):
            listed = ", ".join(self._shown(names)) + self._left_out(names)
            print(f"{'':12}{reason}: {listed}" if reason else f"{'':12}{listed}")
        if self._left_out(by_count):
            print(f"{'':12}...{self._left_out(by_count)} kinds")

    def _shown(self, entries: list) -> list:
        return entries if self.show_all else entries[:SHOWN]

    def _left_out(self, entries: list) -> str:
        left_out = len(entries) - len(self._shown(entries))
        self.is_cut |= left_out > 0
        return f" and {left_out} more" if left_out else ""


def check(root: Path, show_all: bool = False) -> bool:
    """Read every listed file and print what is wrong or odd.

    Returns:
        Whether training would be right: false for missing or unreadable files, trimap values outside 1, 2, 3, sizes
        that differ, a name on the lists twice, or an empty split. The rest (a wrong ending, a trimap without a pet, an
        image that is there twice) is reported too, but the original data has such files and training copes.
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
    reading = in_threads(lambda name: read_sample(root, name), there)
    read = list(tqdm(reading, "reading", len(there), unit=" images", leave=False, disable=None))
    samples = [one for one in read if isinstance(one, Sample)]
    broken = [file for one in read if not isinstance(one, Sample) for file in one]
    if samples:
        sizes = sorted((sample.sizes[0] for sample in samples), key=lambda size: math.prod(map(int, size.split("x"))))
        print(f"image sizes {sizes[0]} to {sizes[-1]}; {dict(Counter(sample.colour_mode for sample in samples))}")

    report = Report(show_all)
    report.add("empty splits", [mode for mode in MODES if not splits[mode]], "WRONG")
    report.add("names listed twice", [(n, " and ".join(m)) for n, m in places.items() if len(m) > 1], "WRONG")
    report.add("missing files", [(path.name, str(path.parent.relative_to(root))) for path in missing], "WRONG")
    report.add("broken files", broken, "WRONG")
    differ = [(f"{s.name} ({s.sizes[0]} and {s.sizes[1]})") for s in samples if s.sizes[0] != s.sizes[1]]
    report.add("images and trimaps of different size", differ, "WRONG")
    formats = [(f"{s.name}.jpg", f"really {s.formats[0]}") for s in samples if s.formats[0] not in ("JPEG", "MPO")]
    formats += [(f"{s.name}.png", f"really {s.formats[1]}") for s in samples if s.formats[1] != "PNG"]
    report.add("files that are not what their name says", formats)
    report.add("images not stored as RGB", [(s.name, s.colour_mode) for s in samples if s.colour_mode != "RGB"])
    report.add("trimaps without a pet", [s.name for s in samples if not s.has_pet])
    add_duplicates(report, samples, places)
    report.add("files on no list, not used", stray_files(root, places))
    if report.is_cut:
        print("(--all prints every name)")
    print("training would be right" if report.is_right else "training would be wrong: fix what is marked WRONG")
    return report.is_right


def add_duplicates(report: Report, samples: list[Sample], places: dict[str, list[str]]) -> None:
    """Report images that are there under several names; those in both train and test apart."""
    same: dict[str, list[str]] = {}
    for sample in samples:
        same.setdefault(sample.digest, []).append(sample.name)
    twins = [names for names in same.values() if len(names) > 1]
    leaks = [names for names in twins if {"train", "test"} <= {mode for name in names for mode in places[name]}]
    others = [names for names in twins if names not in leaks]
    for title, groups in (("images in both train and test", leaks), ("other images that are there twice", others)):
        report.add(title, [" = ".join(f"{name} ({', '.join(places[name])})" for name in names) for names in groups])


def stray_files(root: Path, places: dict[str, list[str]]) -> list[str]:
    """The names of images in the data set's folders that are on no list."""
    return [
        path.name
        for folder in (root / "images", root / "annotations" / "trimaps")
        for path in sorted(map(Path, list_images(folder)))
        if path.stem not in places and not path.name.startswith(".")
    ]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        "Read every file of a data set and report what is wrong or odd. The exit code is 1 if training would be wrong."
    )
    parser.add_argument("data_path", nargs="?", type=existing_path, default=DATASET, help="the data set's folder")
    parser.add_argument("--all", action="store_true", help=f"print all names, not the first {SHOWN} of each kind")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not check(find_root(args.data_path), args.all):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
