"""Write a small copy of a data set: all listed images and trimaps at N x N pixels.

python tools/shrink_data.py dataset/oxford-iiit-pet dataset/pets-128 --size 128
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import shutil

from plumbing.cli import ArgumentParser, existing_path, image_size, new_path, run_script, shell
from plumbing.files import atomic_folder

import cv2

from oxford_pet import MODES, find_root, image_path, read_split, trimap_path
from split import decode_all
from trimap import without_split

README = """\
{count} images and trimaps of the data set {name}, resized to {size}x{size} pixels
(the aspect ratio is not kept); images encoded again as JPEG of quality 90.
If this is Oxford-IIIT Pet (Parkhi et al., 2012): its licence is CC BY-SA 4.0, and the copyright
of the images remains with their owners.
"""


def shrink(root: Path, output: Path, size: int) -> int:
    """Write a copy of a data set with all listed images (JPEG, quality 90) and trimaps at size x size pixels.

    Returns:
        The number of images.

    Raises:
        FileExistsError: the output folder is there and not empty.
        UserError: a file cannot be read.
    """
    names = list(dict.fromkeys(name for mode in MODES for name in read_split(root, mode)))
    with atomic_folder(output) as folder:
        (folder / "images").mkdir()
        (folder / "annotations" / "trimaps").mkdir(parents=True)
        for path in sorted((root / "annotations").glob("[!.]*.txt")):
            shutil.copy2(path, folder / "annotations")
        for name, pixels in zip(names, decode_all(root, names, size, "shrinking"), strict=True):
            image = cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_RGB2BGR)
            _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            _, png = cv2.imencode(".png", without_split(pixels[:, :, 3]))
            image_path(folder, name).write_bytes(jpeg)
            trimap_path(folder, name).write_bytes(png)
        (folder / "README").write_text(README.format(count=len(names), name=root.name, size=size), encoding="utf-8")
    return len(names)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Write a small copy of a data set: all listed images and trimaps at N x N pixels.")
    parser.add_argument("data_path", type=existing_path, help="the data set's folder")
    parser.add_argument("output", type=new_path, help="the folder of the copy; made here, and must be new or empty")
    parser.add_argument("--size", type=image_size, default=128, metavar="N", help="height and width, in pixels")
    args = parser.parse_args(argv)
    count = shrink(find_root(args.data_path), args.output, args.size)
    train = ("src/train.py", "--model", "R", "--data_path", args.output, "--image_size", args.size)
    print(f"wrote {count} images and trimaps to {args.output}\nnext: {shell('python', *train)}")


if __name__ == "__main__":
    run_script(main)
