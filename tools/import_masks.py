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
import itertools
import os
import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from plumbing import cli
from plumbing.cli import (
    ArgumentParser,
    UserError,
    existing_path,
    fraction,
    new_path,
    positive_int,
    run_script,
    shell,
    whole_number,
)
from plumbing.files import atomic_folder, raise_if_occupied
from plumbing.images import PHOTO_SUFFIXES, decode_image, decode_photo, decode_raw, in_threads, opened, read_bytes

import cv2
import numpy as np
from PIL import ExifTags
from tqdm import tqdm

from check_data import Report, read_all, try_to_decode
from oxford_pet import MODES, image_path, trimap_path
from trimap import BACKGROUND, BOUNDARY, PET

SUFFIXES = PHOTO_SUFFIXES | {".jfif"}
LISTS = {"train": "train", "valid": "valid", "val": "valid", "test": "test", "trainval": "train"}  # file: split
COLOUR = 1 << 24  # marks a number as a colour 0xRRGGBB, apart from grey values and palette indices
Files = dict[str, list[Path]]  # the paths in their folder, by what names are compared by


class Reading(NamedTuple):
    """How all masks are read."""

    foreground: frozenset[int]  # the numbers typed; empty if the masks are to show them
    by_index: bool = False  # of palettes and 1-bit files, not by their colours
    threshold: int | None = None  # read as 1 from this grey value up, else as 0


@dataclass
class Pair:
    """An image and its mask, both readable."""

    stem: str  # the path of the image in its folder, without the ending
    image: Path  # in the folder of images
    mask: Path  # in the folder of masks
    sizes: tuple[tuple[int, int], tuple[int, int]]  # of image, as stored, and mask: (height, width)
    values: list[int]  # the numbers in the mask
    palette: bytes  # of the mask; empty without one
    thumbnail: np.ndarray  # (16, 16, 3) float32, of mean 0 and length 1 (0 for an even image)
    orientation: int  # of the image, by EXIF: 1 as stored, 2 to 4 mirrored or upside down, 5 to 8 lying on its side


# ---------------------------------------------------------------------------------------------- names


def stem_of(inside: Path) -> str:
    return unicodedata.normalize("NFC", inside.with_suffix("").as_posix())  # macOS takes letters apart


def plain_name(stem: str) -> str:
    """A name without folders and spaces: ``a b/c`` is ``a_b__c``. Letters of all scripts stay."""
    return re.sub(r"[^A-Za-z0-9_.+\-\u0080-\U0010ffff]|\s", "_", stem.replace("/", "__"))


def key_of(name: str) -> str:
    """What names are compared by: the plain name in lower case, without image endings (``X.jpg.png`` is ``x``)."""
    while os.path.splitext(name)[1].lower() in SUFFIXES:
        name = os.path.splitext(name)[0]
    return plain_name(name).casefold()


def find_files(folder: Path, other: Path, suffix: str, report: Report) -> Files:
    """Find a folder's image files ``NAME{suffix}``, at any depth, links followed, not in ``other``; names the rest."""

    def fail(error: OSError) -> None:
        raise error

    found: Files = {}
    unread, seen = [], {folder, other}
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        for path in [Path(parent, name) for name in sorted(folders)]:
            real = path.resolve()
            if real in seen or path.name.startswith("."):
                folders.remove(path.name)
                unread += [path.relative_to(folder).as_posix()] * (real != other)
            seen.add(real)
        for inside in sorted(Path(parent, name).relative_to(folder) for name in files):
            is_hidden = inside.name.startswith(".")  # such as macOS's shadows of files
            if is_hidden or inside.suffix.lower() not in SUFFIXES or not inside.stem.endswith(suffix):
                unread.append(inside.as_posix())
            else:
                found.setdefault(key_of(stem_of(inside).removesuffix(suffix)), []).append(inside)
    kinds = f"hidden, linked twice, or not NAME{suffix} of type JPEG, PNG, WebP, TIFF, BMP, GIF"
    report.add(f"files not read in {folder}, beside {cli.plural(len(found), 'image')}: {kinds}", sorted(unread))
    return found


def read_lists(folder: Path, images: Files, report: Report) -> dict[str, str]:
    """Read the files of ``LISTS`` that are there: the split of each key.

    A line is a name, or columns that name one image, maybe before numbers, as in the original's ``NAME 1 1 1``.
    """
    splits: dict[str, str] = {}
    missing, twice = [], []
    for path in (folder / f"{listed}.txt" for listed in LISTS if (folder / f"{listed}.txt").is_file()):
        data = read_bytes(path)
        code = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # PowerShell's > writes UTF-16
        text = unicodedata.normalize("NFC", data.decode(code, errors="replace"))
        for line in (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")):
            columns = re.split(r"[,;\s]+", re.sub(r"(\s+\d+)+$", "", line))
            keys = {key_of(line)} & images.keys() or {key_of(column) for column in columns}
            if len(keys) > 1 or not keys <= images.keys():
                missing.append((line, path.name))
                continue
            split, key = LISTS[path.stem], keys.pop()
            before = splits.setdefault(key, split)
            if before != split and not (path.stem == "trainval" and before == "valid"):
                twice.append((line, f"{before} and {split}"))
    if not splits and not missing:
        raise UserError(f"{folder} lists nothing in {', '.join(f'{listed}.txt' for listed in LISTS)}")
    report.add("lines of a list that do not name one image", missing, "WRONG")
    report.add("names on the lists of two splits", twice, "WRONG")
    return splits


def match_files(images: Files, masks: Files, listed: dict[str, str], suffix: str, report: Report) -> list[str]:
    """Report images without a mask, masks without an image, several files of one key; returns the keys of pairs."""
    wanted = sorted(listed or images)
    report.add("images without a mask", [stem_of(images[key][0]) for key in wanted if key not in masks], "WRONG")
    strays = [stem_of(masks[key][0]) for key in sorted(masks.keys() - images.keys())]
    endings = Counter(stem[at:] for stem in strays for at in range(1, len(stem)) if key_of(stem[:at]) in images)
    hint = "; try " + shell(f"--mask_suffix={endings.most_common(1)[0][0]}") if endings else ""
    report.add("masks without an image", strays, "note" if listed else "WRONG", hint)
    report.add("images on no list, which are not taken", sorted(images.keys() - listed.keys()) if listed else [])
    several = [files[key] for files in (images, masks) for key in wanted if len(files.get(key, ())) > 1]
    title = "files of one name, but for the ending, case and what is replaced"
    report.add(title, [" = ".join(map(str, paths)) for paths in several], "WRONG")
    pairs = [key for key in wanted if key in masks]
    stems = [(stem_of(images[key][0]), stem_of(masks[key][0])) for key in pairs]
    report.add("masks named otherwise than their image", [f"{i} = {m}" for i, m in stems if i + suffix != m])
    return pairs


# ---------------------------------------------------------------------------------------------- reading


def number_and_kind(text: str) -> tuple[int, bool]:
    """The number of a grey value or palette index ``V``, or of a colour ``R,G,B``; and whether it may be an index."""
    parts = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(parts) != text.count(",") + 1 or len(parts) not in (1, 3) or (len(parts) == 3 and max(parts) > 255):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a value such as 255 nor a colour such as 255,0,0")
    return int(number_of(np.array(parts))), len(parts) == 1


def number_of(rgb: np.ndarray) -> np.ndarray:
    """The numbers of colours, (..., 3) or, if all are grey, (..., 1); that of a grey colour is its grey value."""
    return np.where((rgb == rgb[..., :1]).all(-1), rgb[..., 0], COLOUR + (rgb * (1 << 16, 1 << 8, 1)).sum(-1))


def show(*values: int) -> str:
    """Values and colours as --foreground takes them, 6 at most: ``0; 255; 9,200,0``."""
    texts = [",".join(str(v >> shift & 255) for shift in (16, 8, 0)) if v >= COLOUR else str(v) for v in values[:7]]
    return "; ".join(texts[:6] + ["..."] * (len(texts) > 6))


def read_header(path: Path) -> tuple[str, bytes, int]:
    """The format, palette and EXIF orientation of an image file; raises UserError if it has several pages."""
    with opened(read_bytes(path), path) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a JPEG with previews
            raise UserError(f"{path} has several pages or frames; save the one that counts as a file of its own")
        orientation = image.getexif().get(ExifTags.Base.Orientation)  # some cameras write 0
        return image.format, bytes(image.getpalette() or ()), orientation if orientation in range(2, 9) else 1


def read_mask(path: Path, reading: Reading) -> np.ndarray:
    """Decode a mask to (H, W) int32: grey values or colours, or as ``reading`` says; what is transparent is 0.

    Raises UserError if it is broken, or if there are two ways to read it, with the cause.
    """
    raw, (kind, palette, orientation) = decode_raw(path), read_header(path)
    values = grey = raw.astype(np.int32)
    alpha = np.array(255)
    if raw.dtype.itemsize == 1 and not (raw.ndim == 2 and reading.by_index):
        *rgb, alpha = np.moveaxis(decode_photo(read_bytes(path), path).astype(np.int32), -1, 0)
        rgb = np.stack(rgb, -1) * alpha[..., None] // 255
        values, grey = number_of(rgb), rgb @ (299, 587, 114) // 1000
    found = np.unique(values).tolist()
    causes = {
        "of floating-point numbers; whole numbers are needed": raw.dtype.kind == "f",
        "with an EXIF orientation; save it as it should be, without EXIF": orientation != 1,
        "in a palette of other colours than black and white; --foreground INDEX or R,G,B says which is foreground: "
        f"{show(*found)}": palette and not reading.foreground and set(found) - {0, 255},
    }
    if reading.threshold is None:
        lowest, highest = (change(values.astype(np.float64), np.ones((3, 3))) for change in (cv2.erode, cv2.dilate))
        flat = set(np.unique(values[lowest == highest]).tolist())
        hint = "; --threshold 128 takes 128 and more as foreground"
        causes |= {
            f"saved as JPEG, which changes values{hint}": kind in ("JPEG", "MPO"),
            f"with half-transparent pixels{hint}": ((alpha > 0) & (alpha < 255)).any(),
            f"with values between those of its areas, as of soft edges{hint}": len(set(found[1:-1]) - flat) > len(flat),
        }
    for cause in (cause for cause, is_so in causes.items() if is_so):
        raise UserError(f"{path} is a mask {cause}")
    return values if reading.threshold is None else (grey >= reading.threshold).astype(np.int32)


def read_pair(roots: tuple[Path, Path], image: Path, mask: Path, reading: Reading) -> Pair | list[tuple[str, str]]:
    """Read a pair of files in the folders ``roots``; returns the files that cannot be taken, each with the reason."""
    paths = roots[0] / image, roots[1] / mask
    pixels = try_to_decode(lambda path: (decode_image(path), read_header(path)[2]), paths[0])
    values = try_to_decode(lambda path: (read_mask(path, reading), read_header(path)[1]), paths[1])
    broken = [(str(path), read) for path, read in zip(paths, (pixels, values), strict=True) if isinstance(read, str)]
    if broken:
        return broken
    (pixels, orientation), (values, palette) = pixels, values
    thumbnail = cv2.resize(pixels, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
    thumbnail -= thumbnail.mean()
    thumbnail /= max(float(np.linalg.norm(thumbnail)), 1e-6)
    sizes = pixels.shape[:2], values.shape
    return Pair(stem_of(image), image, mask, sizes, np.unique(values).tolist(), palette, thumbnail, orientation)


def masks_lie_as_shown(pairs: list[Pair], report: Report) -> bool:
    """Whether masks lie on the images as a viewer shows them, turned by EXIF, or as stored: as more of the sizes fit.

    One rule for all. Reports images that it does not fit, and oriented images if no size tells.
    """
    stored = [pair for pair in pairs if pair.sizes[0] != pair.sizes[1]]  # the misfits by either rule
    shown = [pair for pair in pairs if pair.sizes[0][:: -1 if pair.orientation > 4 else 1] != pair.sizes[1]]
    as_shown = len(shown) < len(stored)
    oriented = [pair.stem for pair in pairs if pair.orientation != 1]
    is_open = bool(oriented) and len(shown) == len(stored)
    hint = "which no size tells: apply it (mogrify -auto-orient FILES) or drop it (exiftool -Orientation= FILES)"
    title = "images with an EXIF orientation; masks lie on images as "
    title += f"shown or as stored, {hint}" if is_open else "shown" if as_shown else "stored"
    report.add(title, oriented, "WRONG" if is_open else "note")
    differ = [f"{p.stem} ({p.sizes[0][::-1]} and {p.sizes[1][::-1]})" for p in (shown if as_shown else stored)]
    report.add("images and masks of different size (width, height)", differ, "WRONG")
    return as_shown


def choose_foreground(pairs: list[Pair], reading: Reading, allow_empty: bool, report: Report) -> set[int]:
    """The values that are foreground: those typed, or the one beside 0 that most masks hold; reports other masks."""
    palettes = Counter(pair.palette for pair in pairs)
    odd = [pair.stem for pair in pairs if reading.by_index and pair.palette != palettes.most_common(1)[0][0]]
    report.add(
        "masks of another palette than most", odd, "WRONG", "; --foreground R,G,B takes a colour of all palettes"
    )
    chosen = set(reading.foreground)
    if not chosen:
        counts = Counter(value for pair in pairs for value in pair.values if value)
        chosen = {max(counts, key=lambda value: (counts[value], value), default=255)}
        other = [(pair.stem, show(*pair.values)) for pair in pairs if set(pair.values) - {0} - chosen]
        title = f"masks with values other than 0 (background) and {show(*chosen)} (foreground)"
        report.add(title, other, "WRONG", "; --foreground VALUE takes all others as background")
    empty = [pair.stem for pair in pairs if not chosen & set(pair.values)]
    mark, hint = ("note", "") if allow_empty else ("WRONG", "; --allow_empty takes them")
    report.add(f"masks without foreground ({show(*sorted(chosen))})", empty, mark, hint)
    return chosen


# ---------------------------------------------------------------------------------------------- splitting


def near_duplicates(pairs: list[Pair]) -> list[list[str]]:
    """Group the stems by image; copies that were resized, compressed, brightened, mirrored or turned are in one group.

    Two images are near-duplicates if their thumbnails, one of them in any of 8 positions, correlate by 0.97 and differ
    nowhere by over 1 standard deviation. Among the 7,349 photos of the pets that finds 39 groups, all of them copies; a
    crop of 3% is missed.
    """
    images = np.stack([pair.thumbnail for pair in pairs])
    thumbnails = images.reshape(len(pairs), -1)
    group = np.arange(len(pairs))  # the number of each pair's group
    for position, start in itertools.product(range(8), range(0, len(pairs), 256)):
        some = np.rot90(images[start : start + 256, :, :: -1 if position > 3 else 1], position, (1, 2))
        some = some.reshape(len(some), -1)
        for first, second in np.argwhere(some @ thumbnails.T >= 0.97):
            difference = np.abs(some[first] - thumbnails[second]).max() * thumbnails.shape[1] ** 0.5
            if group[start + first] != group[second] and difference <= 1:
                group[group == group[second]] = group[start + first]
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
    """
    closed = {"valid", "test"} & set(listed.values())
    splits: dict[str, str] = {}
    for group in groups:
        shortest = min(group, key=lambda stem: (len(stem), stem))
        number = int(hashlib.sha256(f"{seed} {shortest}".encode()).hexdigest()[:12], 16) / 16**12
        in_valid = number < fractions["test"] + fractions["valid"]
        drawn = "test" if number < fractions["test"] else "valid" if in_valid else "train"
        drawn = "train" if drawn in closed else drawn
        lists = {stem: listed.get(key_of(stem), "train") for stem in group}
        splits |= {stem: drawn if lists[stem] == "train" else lists[stem] for stem in group}
    return splits


# ---------------------------------------------------------------------------------------------- writing


def mark_boundary(is_foreground: np.ndarray, pixels: int) -> np.ndarray:
    """Make (H, W) bool a trimap with a band of boundary of ``pixels`` in all: half inside the outline, half outside."""
    trimap = np.where(is_foreground, PET, BACKGROUND).astype(np.uint8)
    if pixels:
        for side, width in ((is_foreground, pixels - pixels // 2), (~is_foreground, pixels // 2)):
            distance = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            trimap[side & (distance <= width)] = BOUNDARY  # 1 for the pixels at the outline
    return trimap


def write_image(source: Path, target: Path, is_turned: bool, link: bool) -> None:
    """Copy an image, or link to it; one that EXIF turns is encoded anew."""
    if is_turned:
        shown = cv2.cvtColor(decode_photo(read_bytes(source), source), cv2.COLOR_RGBA2BGR)
        target.write_bytes(cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    elif link:
        try:
            target.symlink_to(source)
        except OSError:  # Windows does not allow it to everybody
            target.hardlink_to(source)
    else:
        shutil.copyfile(source, target)  # whatever its type: decoders go by content


def write_lists(folder: Path, pairs: list[Pair], splits: dict[str, str]) -> None:
    """Write the lists, and names.csv: name, files of image and mask in their folders, split."""
    for listed, modes in (("trainval", ("train", "valid")), ("valid", ("valid",)), ("test", ("test",))):
        names = [plain_name(pair.stem) for pair in pairs if splits[pair.stem] in modes]
        path = folder / "annotations" / f"{listed}.txt"
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    with open(folder / "names.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "image", "mask", "split"))
        for pair in pairs:
            rows.writerow((plain_name(pair.stem), pair.image.as_posix(), pair.mask.as_posix(), splits[pair.stem]))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        "Make a data set of a folder of images and one of masks with the images' names. All problems are listed at "
        "once, with exit code 1; nothing is written until they are fixed."
    )
    add = parser.add_argument
    add("images", type=existing_path, help="folder of images of any type, at any depth")
    add("masks", type=existing_path, help="folder of masks: same names apart from the ending, same size in pixels")
    add("--output", type=new_path, required=True, help="the data set's folder; made here, and must be new or empty")
    add("--mask_suffix", default="", metavar="_mask", help="what a mask's name has and its image's has not: _mask")
    add("--valid", type=fraction, default=0.1, help="fraction of the validation split")
    add("--test", type=fraction, default=0.2, help="fraction of the test split")
    add(
        "--seed",
        type=whole_number,
        default=0,
        help="an image's split depends on its name and this seed alone",
    )
    lists_help = "folder with train.txt, valid.txt (or val.txt), test.txt, or some: only what is listed is taken"
    add("--lists", type=existing_path, help=lists_help)
    add("--ignore_duplicates", action="store_true", help="split by name alone, even near-duplicates")
    by_value = parser.add_mutually_exclusive_group().add_argument
    foreground_help = (
        "grey value, palette index or colour R,G,B; may be repeated (default: white, or the only one but 0)"
    )
    by_value("--foreground", nargs="+", action="append", metavar="VALUE", help=foreground_help)
    by_value("--threshold", type=positive_int, metavar="VALUE", help="foreground is this grey value and all above")
    add("--boundary_pixels", type=whole_number, default=0, help="width of a band of boundary (3) along the outline")
    add("--allow_empty", action="store_true", help="take masks without foreground")
    add("--link", action="store_true", help="link to the images, which then must stay where they are; no copies")
    add("--all", action="store_true", help="print all names that are wrong, not the first of each problem")
    args = parser.parse_args(argv)
    try:  # PowerShell splits 255,0,0 into three words
        args.foreground = [number_and_kind(",".join(parts)) for parts in args.foreground or ()]
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --foreground: {error}")
    if args.valid + args.test >= 1:
        parser.error(f"--valid {args.valid:g} and --test {args.test:g} leave nothing to train on")
    if args.images.resolve() == args.masks.resolve():
        parser.error("images and masks must be in different folders")
    if len(set(dict(args.foreground or ()).values())) > 1:
        parser.error("--foreground takes values or colours, not both")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    raise_if_occupied(args.output.resolve())
    report, roots = Report(args.all), (args.images.resolve(), args.masks.resolve())
    images, masks = find_files(*roots, "", report), find_files(*reversed(roots), args.mask_suffix, report)
    listed = read_lists(args.lists, images, report) if args.lists else {}
    keys = match_files(images, masks, listed, args.mask_suffix, report)
    typed = {1: False} if args.threshold else dict(args.foreground or ())
    reading = Reading(frozenset(typed), any(typed.values()), args.threshold)
    pairs, broken = read_all(lambda key: read_pair(roots, images[key][0], masks[key][0], reading), keys)
    report.add("files that cannot be taken", broken, "WRONG")
    if not pairs:
        raise UserError(f"no image in {args.images} has a usable mask in {args.masks}; nothing was written")
    as_shown = masks_lie_as_shown(pairs, report)
    foreground = choose_foreground(pairs, reading, args.allow_empty, report)
    groups = [[pair.stem] for pair in pairs] if args.ignore_duplicates else near_duplicates(pairs)
    splits = split_stems(groups, listed, args.seed, {"valid": args.valid, "test": args.test})
    twins = [(" = ".join(g), " and ".join(sorted({splits[stem] for stem in g}))) for g in groups if len(g) > 1]
    report.add("near-duplicates, and the split they share", twins)
    counts = Counter(splits.values())
    report.add("empty splits", [mode for mode in MODES if not counts[mode]], "WRONG", "; another --seed may help")
    has_foreground = any(foreground & set(pair.values) for pair in pairs if splits[pair.stem] == "valid")
    weak = [f"{counts['valid']} images"] * (counts["valid"] < 10) + ["no foreground"] * (not has_foreground)
    report.add("validation under 10 images or without foreground: which epoch is best is a guess", weak)
    if not report.is_right:
        print("nothing is written: fix what is marked WRONG")
        sys.exit(1)

    def convert(pair: Pair) -> float:
        name, is_turned = plain_name(pair.stem), as_shown and pair.orientation != 1
        write_image(roots[0] / pair.image, image_path(folder, name), is_turned, args.link)
        is_foreground = np.isin(read_mask(roots[1] / pair.mask, reading), list(foreground))
        trimap = mark_boundary(is_foreground, args.boundary_pixels)
        trimap_path(folder, name).write_bytes(cv2.imencode(".png", trimap)[1])
        return is_foreground.mean()

    with atomic_folder(args.output) as folder:
        (folder / "images").mkdir()
        (folder / "annotations" / "trimaps").mkdir(parents=True)
        written = tqdm(in_threads(convert, pairs), "writing", len(pairs), unit=" images", leave=False, disable=None)
        covered = list(written)
        write_lists(folder, pairs, splits)
    print(f"wrote {args.output}: " + ", ".join(f"{mode} {counts[mode]}" for mode in MODES))
    print(
        f"foreground covers {np.mean(covered):.0%} of an image on average, {min(covered):.0%} to {max(covered):.0%}; "
        "if that is the background, name the other value by --foreground"
    )
    print(f"next: {shell('python', 'src/train.py', '--model', 'R', '--data_path', args.output)}")


if __name__ == "__main__":
    run_script(main)
