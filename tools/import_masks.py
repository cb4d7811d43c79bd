"""Make a data set of two folders: images, and masks with the images' names.

python tools/import_masks.py photos masks --output dataset/leaves
python tools/import_masks.py photos masks --output dataset/leaves --foreground 255,0,0 --boundary_pixels 4 --link
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import argparse
import csv
import hashlib
import os
import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import dataclass

from plumbing import cli
from plumbing.cli import ArgumentParser, UserError, existing_path, fraction, run_script, shell, whole_number
from plumbing.files import atomic_folder, raise_if_occupied
from plumbing.images import PHOTO_SUFFIXES, decode_image, decode_photo, decode_raw, in_threads, read_bytes

import cv2
import numpy as np
from tqdm import tqdm

from check_data import Report, try_to_decode
from oxford_pet import MODES, image_path, trimap_path
from trimap import BACKGROUND, BOUNDARY, PET

SUFFIXES = PHOTO_SUFFIXES | {".jfif", ".jp2", ".pgm", ".ppm", ".pbm", ".pnm", ".tga"}
LISTS = {"train": "train", "valid": "valid", "val": "valid", "test": "test", "trainval": "train"}  # file: split
COLOUR = 1 << 24  # marks a number as a colour 0xRRGGBB, apart from grey values and palette indices
Files = dict[str, list[Path]]  # by stem: the path in their folder, without the ending


@dataclass
class Pair:
    """An image and its mask, both readable.

    Attributes:
        stem: the path in the folder of images, without the ending.
        sizes: of image and mask, (height, width).
        values: the numbers in the mask, as ``mask_values`` gives them.
        thumbnail: (768,) float32, the image at 16x16 pixels, of mean 0 and length 1 (0 for an even image).
        is_turned: whether the mask lies on the image as a viewer shows it, after an EXIF rotation.
    """

    stem: str
    image: Path
    mask: Path
    sizes: tuple[tuple[int, int], tuple[int, int]]
    values: list[int]
    thumbnail: np.ndarray
    is_turned: bool


# ---------------------------------------------------------------------------------------------- reading


def find_files(folder: Path, other: Path) -> Files:
    """Find a folder's image files, at any depth, by their path without the ending; ``other`` may lie in the folder.

    Raises:
        UserError: there are none.
    """
    is_nested = other != folder and other.is_relative_to(folder)
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)  # such as macOS's shadows of files
        if path.suffix.lower() in SUFFIXES and not is_hidden and not (is_nested and path.is_relative_to(other)):
            stem = unicodedata.normalize("NFC", inside.with_suffix("").as_posix())  # macOS takes letters apart
            found.setdefault(stem, []).append(path)
    if not found:
        raise UserError(f"there are no image files in {folder}")
    print(f"{folder}: {cli.plural(len(found), 'image file')}")
    return found


def plain_name(stem: str) -> str:
    """A name without folders and spaces: ``a b/c`` is ``a_b__c``. Letters of all scripts stay."""
    return re.sub(r"[^A-Za-z0-9_.+\-\u0080-\U0010ffff]|\s", "_", stem.replace("/", "__"))


def mask_values(path: Path, as_colours: bool) -> np.ndarray:
    """Decode a mask to (H, W) int32: the grey value or palette index, or a colour as ``colour_number`` of it.

    Args:
        as_colours: take the colours of a palette, not its indices.

    Raises:
        UserError: broken, or not of whole numbers.
    """
    raw = decode_image(path) if as_colours else decode_raw(path)
    if raw.dtype.kind == "f":
        raise UserError(f"{path} is a mask of floating-point numbers; whole numbers are needed")
    values = raw.astype(np.int32)
    if raw.ndim == 2:
        return values
    if raw.shape[2] in (2, 4):  # with transparency: what is not painted is 0
        values = np.where(values[:, :, -1:] == 0, 0, values[:, :, :-1])
    red, green, blue = np.moveaxis(np.broadcast_to(values, (*values.shape[:2], 3)), -1, 0)
    return np.where((red == green) & (green == blue), red, COLOUR | red << 16 | green << 8 | blue)


def colour_number(text: str) -> int:
    """The number of a grey value or palette index ``V``, or of a colour ``R,G,B``; a grey colour is its grey value."""
    parts = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(parts) != text.count(",") + 1 or len(parts) not in (1, 3) or (len(parts) == 3 and max(parts) > 255):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a value such as 255 nor a colour such as 255,0,0")
    return parts[0] if len(set(parts)) == 1 else COLOUR | parts[0] << 16 | parts[1] << 8 | parts[2]


def show(*values: int) -> str:
    """Values and colours as --foreground takes them, 6 at most: ``0; 255; 9,200,0``."""
    texts = [",".join(str(v >> shift & 255) for shift in (16, 8, 0)) if v >= COLOUR else str(v) for v in values[:7]]
    return "; ".join(texts[:6] + ["..."] * (len(texts) > 6))


def read_pair(stem: str, image_file: Path, mask_file: Path, as_colours: bool) -> Pair | list[tuple[str, str]]:
    """Read a pair; if that fails, return its broken files, each with what is wrong."""
    image = try_to_decode(decode_image, image_file)
    values = try_to_decode(lambda path: mask_values(path, as_colours), mask_file)
    broken = [(str(path), read) for path, read in ((image_file, image), (mask_file, values)) if isinstance(read, str)]
    if broken:
        return broken
    is_turned = False
    if image.shape[:2] != values.shape and image.shape[1::-1] == values.shape:  # a portrait stored lying down
        shown = try_to_decode(lambda path: decode_photo(read_bytes(path), path), image_file)
        is_turned = not isinstance(shown, str) and shown.shape[:2] == values.shape
    size = values.shape if is_turned else image.shape[:2]
    thumbnail = cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    thumbnail -= thumbnail.mean()
    thumbnail /= max(float(np.linalg.norm(thumbnail)), 1e-6)
    found = np.unique(values).tolist()
    return Pair(stem, image_file, mask_file, (size, values.shape), found, thumbnail, is_turned)


def choose_foreground(pairs: list[Pair]) -> tuple[int, int]:
    """Background and foreground, of the two values that most masks have: the smaller and the larger one.

    Where there are colours, the background is black, or the user has to say which is the foreground.
    """
    counts = Counter(value for pair in pairs for value in pair.values)
    common = sorted(counts, key=lambda value: (-counts[value], value != 0, -value))[:2]
    if len(common) < 2:
        common.append(255 if 0 in common else 0)
    return 0 if max(common) >= COLOUR else min(common), max(common)


# ---------------------------------------------------------------------------------------------- splitting


def read_lists(folder: Path, stems: set[str], report: Report) -> dict[str, str]:
    """Read the files of ``LISTS`` that are there: the split of each stem.

    A line is a stem, a plain name or a file name; or its first word is, as in the original's ``NAME 1 1 1``.
    """
    known = {plain_name(stem): stem for stem in stems} | {stem: stem for stem in stems}
    splits: dict[str, str] = {}
    missing, twice = [], []
    paths = [folder / f"{listed}.txt" for listed in LISTS if (folder / f"{listed}.txt").is_file()]
    if not paths:
        raise UserError(f"{folder} has none of {', '.join(f'{listed}.txt' for listed in LISTS)}")
    for path in paths:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig", errors="replace"))
        for line in (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")):
            forms = (line, os.path.splitext(line)[0], line.split()[0])
            stem = next((known[form] for form in forms if form in known), None)
            if stem is None:
                missing.append((line, path.name))
                continue
            split = LISTS[path.stem]
            before = splits.setdefault(stem, split)
            if before != split and not (path.stem == "trainval" and before == "valid"):
                twice.append((stem, f"{before} and {split}"))
    report.add("names on a list that have no file", missing, "WRONG")
    report.add("names on the lists of two splits", twice, "WRONG")
    return splits


def near_duplicates(pairs: list[Pair]) -> list[list[str]]:
    """Group the stems by image; copies that were resized, compressed or made brighter are in one group.

    Two images are near-duplicates if their thumbnails correlate by 0.97 and differ nowhere by over 1 standard
    deviation. Among the 7,349 photos of the pets that finds 39 groups, all of them copies; a crop of 3% is missed.
    """
    thumbnails = np.stack([pair.thumbnail for pair in pairs])
    group = np.arange(len(pairs))  # the number of each pair's group
    for start in range(0, len(pairs), 256):
        alike = thumbnails[start : start + 256] @ thumbnails.T >= 0.97
        for first, second in np.argwhere(alike) + np.array((start, 0)):
            difference = np.abs(thumbnails[first] - thumbnails[second]).max() * thumbnails.shape[1] ** 0.5
            if group[first] != group[second] and difference <= 1:
                group[group == group[second]] = group[first]
    members: dict[int, list[str]] = {}
    for pair, number in zip(pairs, group.tolist(), strict=True):
        members.setdefault(number, []).append(pair.stem)
    return list(members.values())


def split_stems(
    groups: list[list[str]], listed: dict[str, str], seed: int, fractions: dict[str, float]
) -> dict[str, str]:
    """The split of each stem: that of its list, or one drawn for its group by a hash of the group's shortest name.

    Copies tend to have longer names, so the shortest keeps an image where it was before its copies came. A split that
    has a list takes no others; what was drawn for it, and is on train's list, stays in train.

    Args:
        fractions: of ``test`` and ``valid``.
    """
    closed = {"valid", "test"} & set(listed.values())
    splits: dict[str, str] = {}
    for group in groups:
        shortest = min(group, key=lambda stem: (len(stem), stem))
        number = int(hashlib.sha256(f"{seed} {shortest}".encode()).hexdigest()[:12], 16) / 16**12
        in_valid = number < fractions["test"] + fractions["valid"]
        drawn = "test" if number < fractions["test"] else "valid" if in_valid else "train"
        drawn = "train" if drawn in closed else drawn
        splits |= {stem: drawn if listed.get(stem, "train") == "train" else listed[stem] for stem in group}
    return splits


# ---------------------------------------------------------------------------------------------- checking and writing


def match_files(images: Files, masks: Files, stems: list[str], report: Report) -> list[str]:
    """Report stems without an image or a mask, with several, or with one plain name; returns those that have both."""
    report.add("images without a mask", [stem for stem in stems if stem not in masks], "WRONG")
    report.add("masks without an image", [stem for stem in stems if stem not in images], "WRONG")
    several = [files[stem] for files in (images, masks) for stem in stems if len(files.get(stem, ())) > 1]
    report.add("files of one name", [" = ".join(map(str, paths)) for paths in several], "WRONG")
    by_name: dict[str, list[str]] = {}
    for stem in stems:
        by_name.setdefault(plain_name(stem), []).append(stem)
    collisions = [(" = ".join(same), f"would be {name}") for name, same in by_name.items() if len(same) > 1]
    report.add("names that differ only in what is replaced", collisions, "WRONG")
    return [stem for stem in stems if stem in images and stem in masks]


def read_pairs(images: Files, masks: Files, stems: list[str], as_colours: bool, report: Report) -> list[Pair]:
    """Read the pairs of images and masks; reports what cannot be read."""
    reading = in_threads(lambda stem: read_pair(stem, images[stem][0], masks[stem][0], as_colours), stems)
    read = list(tqdm(reading, "reading", len(stems), unit=" images", leave=False, disable=None))
    report.add("broken files", [file for one in read if isinstance(one, list) for file in one], "WRONG")
    return [one for one in read if isinstance(one, Pair)]


def check_masks(pairs: list[Pair], foreground: list[int] | None, allow_empty: bool, report: Report) -> set[int]:
    """Report sizes and values that do not fit; returns the values that are foreground."""
    sizes = [(f"{p.stem} ({p.sizes[0][::-1]} and {p.sizes[1][::-1]})") for p in pairs if p.sizes[0] != p.sizes[1]]
    report.add("images and masks of different size (width, height)", sizes, "WRONG")
    chosen = set(foreground or ())
    if not foreground:
        zero, one = choose_foreground(pairs)
        chosen = {one}
        other = [(p.stem, show(*p.values)) for p in pairs if set(p.values) - {zero, one}]
        title = f"masks with values other than {show(zero)} (background) and {show(one)} (foreground)"
        report.add(f"{title}; --foreground VALUE takes all others as background" if other else title, other, "WRONG")
    empty = [pair.stem for pair in pairs if not chosen & set(pair.values)]
    title = f"masks without foreground ({show(*sorted(chosen))})"
    title += "; --allow_empty takes them" if empty and not allow_empty else ""
    report.add(title, empty, "note" if allow_empty else "WRONG")
    return chosen


def mark_boundary(is_foreground: np.ndarray, pixels: int) -> np.ndarray:
    """Make (H, W) bool a trimap with a band of boundary of ``pixels`` in all: half inside the outline, half outside."""
    trimap = np.where(is_foreground, PET, BACKGROUND).astype(np.uint8)
    if pixels:
        for side, width in ((is_foreground, pixels - pixels // 2), (~is_foreground, pixels // 2)):
            distance = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            trimap[side & (distance <= width)] = BOUNDARY  # 1 for the pixels at the outline
    return trimap


def write_pair(folder: Path, pair: Pair, trimap: np.ndarray, link: bool) -> None:
    """Write an image and its trimap, (H, W) uint8."""
    target = image_path(folder, plain_name(pair.stem))
    if pair.is_turned:
        shown = decode_photo(read_bytes(pair.image), pair.image)
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(shown, cv2.COLOR_RGBA2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        target.write_bytes(jpeg)
    elif link:
        target.symlink_to(pair.image)
    else:
        shutil.copyfile(pair.image, target)  # whatever its type: decoders go by content
    trimap_path(folder, plain_name(pair.stem)).write_bytes(cv2.imencode(".png", trimap)[1])


def write_lists(folder: Path, pairs: list[Pair], splits: dict[str, str], roots: tuple[Path, Path]) -> None:
    """Write the lists, and names.csv: name, files of image and mask in their folders ``roots``, split."""
    for listed, modes in (("trainval", ("train", "valid")), ("valid", ("valid",)), ("test", ("test",))):
        names = [plain_name(pair.stem) for pair in pairs if splits[pair.stem] in modes]
        path = folder / "annotations" / f"{listed}.txt"
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    with open(folder / "names.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "image", "mask", "split"))
        for pair in pairs:
            image, mask = pair.image.relative_to(roots[0]), pair.mask.relative_to(roots[1])
            rows.writerow((plain_name(pair.stem), image.as_posix(), mask.as_posix(), splits[pair.stem]))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        "Make a data set of a folder of images and one of masks with the images' names. All problems are listed at "
        "once, with exit code 1; nothing is written until they are fixed."
    )
    add = parser.add_argument
    add("images", type=existing_path, help="folder of images of any type, at any depth")
    add("masks", type=existing_path, help="folder of masks: the same names but for the ending, the same size in pixels")
    add("--output", type=Path, required=True, help="the data set's folder; made here, and must be new or empty")
    add("--valid", type=fraction, default=0.1, help="fraction of the validation split")
    add("--test", type=fraction, default=0.2, help="fraction of the test split")
    add("--seed", type=whole_number, default=0, help="of the split; an image's depends on seed and name alone")
    lists_help = "folder with train.txt, valid.txt (or val.txt), test.txt, or some: only what is listed is taken"
    add("--lists", type=existing_path, help=lists_help)
    add("--ignore_duplicates", action="store_true", help="split by name alone, even near-duplicates")
    foreground_help = "a value such as 255 or a colour such as 255,0,0; may be repeated (default: the larger of two)"
    add("--foreground", type=colour_number, action="append", metavar="VALUE", help=foreground_help)
    add("--boundary_pixels", type=whole_number, default=0, help="width of a band of boundary (3) along the outline")
    add("--allow_empty", action="store_true", help="take masks without foreground")
    add("--link", action="store_true", help="link to the images, which then must stay where they are; no copies")
    add("--all", action="store_true", help="print all names that are wrong, not the first of each problem")
    args = parser.parse_args(argv)
    if args.valid + args.test >= 1:
        parser.error(f"--valid {args.valid:g} and --test {args.test:g} leave nothing to train on")
    if args.images.resolve() == args.masks.resolve():
        parser.error("images and masks need a folder each")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    raise_if_occupied(args.output.resolve())
    report, roots = Report(args.all), (args.images.resolve(), args.masks.resolve())
    images, masks = find_files(*roots), find_files(*reversed(roots))
    as_colours = any(value >= COLOUR for value in args.foreground or ())
    listed = read_lists(args.lists, images.keys() | masks.keys(), report) if args.lists else {}
    stems = match_files(images, masks, sorted(listed or images.keys() | masks.keys()), report)
    pairs = read_pairs(images, masks, stems, as_colours, report)
    foreground, splits = set(), {}
    if pairs:
        foreground = check_masks(pairs, args.foreground, args.allow_empty, report)
        groups = [[pair.stem] for pair in pairs] if args.ignore_duplicates else near_duplicates(pairs)
        report.add("near-duplicates, which share a split", [" = ".join(group) for group in groups if len(group) > 1])
        splits = split_stems(groups, listed, args.seed, {"valid": args.valid, "test": args.test})
    counts = Counter(splits.values())
    report.add("empty splits; another --seed may help", [mode for mode in MODES if not counts[mode]], "WRONG")
    if not report.is_right:
        print("nothing is written: fix what is marked WRONG")
        sys.exit(1)

    def convert(pair: Pair) -> None:
        is_foreground = np.isin(mask_values(pair.mask, as_colours), list(foreground))
        write_pair(folder, pair, mark_boundary(is_foreground, args.boundary_pixels), args.link)

    with atomic_folder(args.output) as folder:
        (folder / "images").mkdir()
        (folder / "annotations" / "trimaps").mkdir(parents=True)
        for _ in tqdm(in_threads(convert, pairs), "writing", len(pairs), unit=" images", leave=False, disable=None):
            pass
        write_lists(folder, pairs, splits, roots)
    turned = sum(pair.is_turned for pair in pairs)
    if turned:
        print(f"{cli.plural(turned, 'image')} turned as EXIF says, because the masks lie on them so")
    print(f"wrote {args.output}: " + ", ".join(f"{mode} {counts[mode]}" for mode in MODES))
    print(f"next: {shell('python', 'src/train.py', '--model', 'R', '--data_path', args.output)}")


if __name__ == "__main__":
    run_script(main)
