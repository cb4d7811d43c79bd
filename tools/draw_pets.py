"""Draw pets in the layout of the Oxford-IIIT Pet data set, for the demo and the tests.

python tools/draw_pets.py dataset/drawn-pets --count 400 --seed 0

A pet is a table of outlines, painted back to front with fur and light at twice the image's size; a fourth channel
marks its pixels. Walls, rugs and toys often take the pet's own colours, so that neither position nor colour gives the
mask away.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
import math
import re
from contextlib import closing
from functools import cache, partial
from typing import NamedTuple

from plumbing.cli import ArgumentParser, new_path, number, run_script, shell, whole_number
from plumbing.files import atomic_folder
from plumbing.images import in_threads

import cv2
import numpy as np
from tqdm import tqdm

from oxford_pet import image_path, trimap_path
from trimap import BACKGROUND, BOUNDARY, PET

SUPERSAMPLE = 2
MARKER = "drawn_pets.txt"  # says which pets a folder holds
MADE_BY = "Pets drawn by tools/draw_pets.py; no photographs."
VERSION = 2  # raise it when the same seed gives other pixels, so that an older folder is not taken for a new one

COLOURS = {  # RGB in hexadecimal; where there are several, one is drawn at random
    "white": "f0ece4", "cream": "e6d4b6", "tan": "c49a6a", "orange": "da924e", "rust": "ac5c2c", "brown": "7c5436",
    "seal": "503a30", "black": "363335", "grey": "8c8e94", "smoke": "5c5e66", "green": "96b054", "amber": "d6a032",
    "blue": "70a4d6", "hazel": "462c1a", "pink": "d89692", "tongue": "de7076", "ink": "181416", "glint": "fafafa",
    "whisker": "ffffff", "collar": "c43030 2c5cb0 348c54 e2b43c 964696", "petal": "f0ecdc eccc46 ce78aa",
    "toy": "ce3c38 4278be bed646 b88e62 5a96a0", "trimming": "e6d4b6 e2be5a 465a78 b45046",
    "leaf": "46783c 688c4c 385c42", "cloth": "c4a05a 56788c aa5a64 687880 96544c beb096 56624e",
    "plush": "b08054 c8b4a0 96a0be", "rug": "b0463e 466082 e2d6be", "border": "b0463e 466082 e2d6be",
    "sea": "548aa0 4c7c98", "lamp": "a48e6c 9e684a 6880a4",
}  # fmt: skip
HAIR = {"cloth": 0.4, "plush": 0.7, "rug": 0.5, "border": 0.5, "sea": 0.3}  # length of the hair; others have none


class Breed(NamedTuple):
    name: str  # a cat's begins with a capital letter, as in the real data set
    coats: str  # choices of four colours: coat, marking, trim (chest, muzzle, paws), tips (ears, tail)
    pattern: str = "solid"  # how the marking lies on the coat
    ears: str = "prick"
    tail: str = "long"
    eyes: str = "hazel"
    fluff: float = 1.0  # factors on a medium-sized pet's length of hair, width and length of the legs
    wide: float = 1.0
    legs: float = 1.0


CATS = (
    Breed("Bengal", "tan seal cream tan, cream brown white cream", "spots", eyes="green", wide=0.9),
    Breed("Calico", "white orange white black, white smoke white tan", "patches", eyes="amber"),
    Breed("Persian", "cream tan white cream, grey smoke grey smoke", tail="plume", eyes="amber", fluff=2.4, wide=1.2),
    Breed("Russian_Blue", "smoke grey grey smoke, grey smoke grey smoke", eyes="green", wide=0.9),
    Breed("Siamese", "cream tan seal seal, white cream smoke smoke", eyes="blue", wide=0.85, legs=1.1),
    Breed("Tabby", "tan seal cream tan, grey smoke white grey, orange rust cream orange", "stripes", eyes="green"),
    Breed("Tuxedo", "black smoke white black, smoke black white smoke", eyes="amber"),
)
DOGS = (
    Breed("beagle", "white rust white rust, tan black white brown", "patches", "drop", legs=0.85),
    Breed("corgi", "orange white white orange, tan black white tan", "saddle", tail="stub", fluff=1.5, legs=0.5),
    Breed("dachshund", "rust brown rust brown, black black tan black", ears="drop", wide=1.15, legs=0.4),
    Breed("dalmatian", "white black white black, white brown white brown", "spots", "drop", wide=0.9, legs=1.15),
    Breed("husky", "grey smoke white smoke, smoke black white black", "saddle", tail="plume", eyes="blue", fluff=1.7),
    Breed("retriever", "cream tan cream tan, seal black brown seal", ears="drop", tail="plume", fluff=1.7),
    Breed("terrier", "tan smoke cream brown, grey white white smoke", "saddle", "button", "stub", fluff=2.2, legs=0.7),
)
BREEDS = CATS + DOGS
LIST_HEADER = "#Image CLASS-ID SPECIES BREED ID\n#SPECIES: 1:Cat 2:Dog\n"
PATTERNS = {  # lumps of the noise across a pet's height, and the weight of the marking
    "solid": (6, lambda noise, x, y: 0.2 + 0.25 * noise),
    "spots": (18, lambda noise, x, y: 3 * noise - 2.6),
    "patches": (3, lambda noise, x, y: 9 * noise - 1.5),
    "saddle": (6, lambda noise, x, y: 8 * (0.42 - y) + 0.5 * noise),
    "stripes": (6, lambda noise, x, y: 0.3 + np.sin(47 * (x + 0.25 * y) + 1.6 * noise)),
}

# Outlines: [both] [dark] PAINT KIND POINTS, back to front. `both` adds the mirrored outline; PAINT is one of COLOURS or
# of a pet's own; KIND is blob (smooth), even (a blob's right half), poly (corners), oval (x y rx ry) or limb (x y
# half-width along a path; the first half-width goes for those left out). x to the right, y up; a body is about 1.3
# units tall without its head.

EARS = {
    "prick": "both tips blob .92 .1, .9 .72, .74 1.36, .42 1, .1 .72; both pink blob .76 .4, .8 .8, .7 1.16, .46 .88",
    "drop": "both tips blob .5 .8, .85 .72, 1.13 .1, 1.13 -.62, .86 -.72, .72 0",
    "button": "both tips blob .3 .88, .66 1.12, .98 .86, 1.04 .42, .78 .56",
}
CAT_HEAD = (  # skull, eyes, muzzle
    "coat even 0 .8, .6 .72, .95 .25, 1.02 -.2, .7 -.66, 0 -.84",
    """both ink oval .44 .08 .24 .225; both iris oval .44 .08 .2 .185; both ink oval .44 .08 .085 .15
    glint oval -.5 .15 .05 .05; glint oval .38 .15 .05 .05""",
    """trim oval 0 -.58 .26 .2; both trim oval .21 -.4 .29 .22; both seal limb 0 -.24 .022, 0 -.44, .14 -.51, .3 -.44
    nose even 0 -.17, .12 -.17, .07 -.31, 0 -.33; both whisker limb .3 -.4 .011, .8 -.52, 1.25 -.68
    both whisker limb .3 -.4 .011, .8 -.36, 1.25 -.42; both whisker limb .3 -.4 .011, .8 -.2, 1.25 -.16""",
)
DOG_HEAD = (
    "coat even 0 .9, .5 .82, .8 .4, .84 -.1, .62 -.6, 0 -.9; blaze even 0 .8, .13 .3, .3 -.3, 0 -.4",
    """both ink oval .36 .2 .17 .155; both iris oval .36 .2 .14 .13; both ink oval .36 .2 .085 .105
    glint oval -.4 .25 .035 .035; glint oval .32 .25 .035 .035""",
    """trim oval 0 -.48 .46 .36; both seal limb 0 -.3 .022, 0 -.64, .14 -.71, .3 -.64
    nose even 0 -.23, .2 -.23, .12 -.42, 0 -.45; grey oval -.06 -.26 .06 .03
    tongue blob -.13 -.68, .13 -.68, .13 -.98, -.13 -.98""",
)
TAILS = {
    "stub": "tips limb .1 0 .1, -.06 .06, -.14 .14 .06",
    "long": "tips limb .1 0 .08, -.3 .02 .085, -.62 .14 .085, -.6 .42 .05",
    "plume": "tips limb .1 0 .12, -.28 .02 .14, -.56 .16 .15, -.5 .46 .07",
}
FRONT_LEG = "coat limb 0 .2 .17, .04 -.32 .095, 0 -.66 .08; trim oval .03 -.66 .13 .07"
HIND_LEG = "coat limb 0 .2 .22, .1 -.2 .14, -.12 -.46 .075, -.06 -.66 .07; trim oval -.03 -.66 .13 .07"
OPTIONAL = ("collar", "blaze", "tongue")  # paints of the parts that half of the pets have


class Pose(NamedTuple):
    body: str
    head: tuple[float, float, float]  # x, y, scale
    tail: tuple[float, float, float] | None = None  # x, y, and how many radians it is lifted at most
    legs: tuple[tuple[float, str], ...] = ()  # x and outlines; y = 0 is the belly


STANDING = Pose("""
    coat blob .8 .28, .62 0, 0 .05, -.5 .09, -.84 .31, -.66 .6, 0 .58, .55 .66, .76 .5; coat limb .52 .38 .3, .82 .9 .22
    trim oval .74 .26 .12 .24; collar limb .54 .9 .043, .76 .72, .98 .7; collar oval .78 .62 .05 .06""",
    head=(0.98, 1.04, 0.39), tail=(-0.75, 0.48, 0.9), legs=(
        (0.5, FRONT_LEG.replace("coat", "dark coat")), (-0.5, HIND_LEG.replace("coat", "dark coat")),
        (-0.58, HIND_LEG), (0.58, FRONT_LEG),
    ))  # fmt: skip
SITTING = Pose("""
    both coat oval .42 .3 .26 .32; coat even 0 1.36, .26 1.26, .38 .9, .5 .4, .42 .1, 0 .06; trim oval 0 .94 .2 .34
    both trim oval .46 .07 .19 .08; both coat limb .2 .85 .15, .19 .4 .105, .18 .1 .1; both trim oval .18 .07 .14 .08
    both seal limb .13 .02 .009, .13 .08; both seal limb .22 .02 .009, .22 .08
    collar limb -.26 1.28 .043, 0 1.18, .26 1.28; collar oval .02 1.1 .05 .06""",
    head=(0, 1.56, 0.48), tail=(-0.4, 0.12, 0.5))  # fmt: skip
SITTING_ASIDE = Pose("""
    dark coat limb .34 .8 .14, .52 .4 .09, .54 .08 .085; trim oval .6 .06 .13 .065
    coat blob -.5 .06, -.62 .36, -.4 .8, -.08 1.14, .14 1.4, .48 1.3, .54 .95, .42 .6, .2 .1; trim oval .44 .98 .12 .28
    coat limb .3 .85 .17, .36 .4 .1, .38 .08 .09; trim oval .44 .06 .14 .07
    coat oval -.24 .34 .34 .32; trim oval .02 .06 .2 .075
    collar limb .08 1.37 .043, .3 1.22, .52 1.27; collar oval .32 1.14 .05 .06""",
    head=(0.34, 1.6, 0.46), tail=(-0.5, 0.12, 0.3))  # fmt: skip
LYING = Pose("""
    dark coat limb .6 .3 .15, .95 .16 .1, 1.25 .12 .09; trim oval 1.3 .12 .13 .08
    coat blob -.95 .14, -.96 .45, -.55 .7, 0 .64, .45 .78, .82 .62, .8 .2, .5 .03, -.6 .02
    coat limb .5 .45 .3, .72 .82 .22; trim oval .74 .42 .15 .26; coat oval -.58 .33 .36 .3
    trim limb -.5 .08 .08, -.2 .07 .09; coat limb .5 .28 .17, .8 .1 .11, 1.08 .07 .09; trim oval 1.14 .07 .14 .08
    collar limb .44 .82 .043, .68 .68, .92 .74; collar oval .7 .6 .05 .06""",
    head=(0.76, 1.02, 0.43), tail=(-0.85, 0.14, 0.2))  # fmt: skip
PORTRAIT = Pose("""
    coat even 0 2.1, .6 1.85, .95 1.2, 1.15 .3, 0 0; trim oval 0 1.1 .42 .62
    collar limb -.66 1.54 .043, 0 1.44, .66 1.54; collar oval .02 1.36 .06 .07""", head=(0, 2.4, 1))  # fmt: skip
POSES = (STANDING, SITTING, SITTING_ASIDE, LYING, PORTRAIT)

TOYS = (  # ball, box, plant, cushion, teddy (furry, with a face, and not a pet), wool
    "toy oval 0 .5 .5 .5; trimming limb -.46 .42 .06, 0 .3, .46 .5; glint oval -.16 .74 .1 .06",
    """toy poly -.6 0, .6 0, .6 .8, -.6 .8; toy poly -.6 .8, .6 .8, .8 1.05, -.35 1.05
    dark toy poly .6 0, .8 .25, .8 1.05, .6 .8; trimming poly -.1 0, .1 0, .1 .8, -.1 .8""",
    """both leaf limb 0 .5 .03, .34 .9 .1, .84 .98 .02; both leaf limb 0 .5 .03, .22 .92 .1, .52 1.32 .02
    both leaf limb 0 .5 .03, .08 .94 .1, .16 1.5 .02; toy poly -.3 .6, .3 .6, .22 0, -.22 0""",
    """cloth even 0 .84, .5 .9, .44 .45, .5 0, 0 .06; trimming poly -.05 .1, .05 .1, .05 .8, -.05 .8
    both trimming poly .22 .1, .31 .1, .31 .8, .22 .8""",
    """both plush oval .3 1.28 .14 .14; both plush oval .42 .55 .14 .2; plush oval 0 .42 .38 .4
    both plush oval .3 .12 .17 .14; plush oval 0 1.02 .4 .36; cream oval 0 .92 .17 .13
    both ink oval .14 1.08 .045 .05; ink oval 0 .97 .07 .05""",
    """toy limb .3 .05 .02, .7 .03, .9 .12, 1.2 .03; toy oval 0 .42 .42 .42; dark toy limb -.4 .42 .015, .1 .5, .4 .42
    dark toy limb -.34 .2 .015, -.05 .55, .3 .7; dark toy limb .34 .2 .015, .12 .3, -.3 .7""",
)
THINGS = {  # how many, their size as a fraction of the image's shorter side, height (0 top, 1 horizon, 2 bottom)
    "skirting": ((1, 1), (0.5, 1), (1, 1), "white poly -5 0, 5 0, 5 .06, -5 .06"),
    "frame": ((0, 1), (0.15, 0.35), (0.2, 0.7), """
        toy poly -1 -.7, 1 -.7, 1 .7, -1 .7; sea poly -.8 -.5, .8 -.5, .8 .5, -.8 .5"""),
    "rug": ((0, 1), (0.4, 0.8), (1.3, 2), """
        rug oval 0 0 1 .36; border oval 0 0 .86 .31; rug oval 0 0 .55 .2; border oval 0 0 .45 .16"""),
    "sofa": ((1, 1), (0.4, 0.9), (1, 1.1), """
        both cloth blob .03 .74, .5 .82, .97 .74, 1 0, 0 0; both cloth blob 1.03 .74, 1.5 .82, 1.97 .74, 2 0, 1 0
        cloth poly -5 0, 5 0, 5 -1, -5 -1"""),
    "flower": ((0, 13), (0.008, 0.02), (1, 2), """
        petal oval 0 1 .8 .8; both petal oval .95 .31 .8 .8; both petal oval .59 -.81 .8 .8; amber oval 0 0 .6 .6"""),
    "sea": ((1, 1), (0.3, 1.5), (1, 1), "sea poly -5 0, 5 0, 5 .3, -5 .3; white limb -5 0 .01, -1 .01, 0 -.01, 5 0"),
    "lamp": ((4, 13), (0.02, 0.07), (0, 0.95), "lamp oval 0 0 1 1"),
}  # fmt: skip
MATERIALS = {  # colours, contrast and angle of the grain, contrast of the lumps, where it is darker
    "plaster": ("c4ccc4 deceb0 96acba ba8c80 cec8bc", 0.03, 1.6, 0.06, None),
    "wallpaper": ("c4ccc4 deceb0 96acba ba8c80 b0bcbe", 0.03, 1.6, 0.06, lambda x, y: x % 1 < 0.45),
    "bricks": ("d6dcd6 b0c4cc e2d2b4", 0.03, 0, 0.06, lambda x, y: (y % 1 < 0.07) | ((x + y // 1 / 2) % 1 < 0.07)),
    "tiles": ("e2ded4 cebea0", 0.02, 0, 0.06, lambda x, y: (x % 1 < 0.5) ^ (y % 1 < 0.5)),
    "wood": ("a8764c 825c40 c4a67e 9e8060 cac6bc", 0.04, 1.6, 0.06, lambda x, y: x % 1 < 0.06),
    "carpet": ("968c96 6e788c aa5a50", 0.07, 1.2, 0.06, None),
    "hedge": ("486838 345434", 0.12, 0.8, 0.16, None),
    "grass": ("709240 587e3a 96a054", 0.15, 1.6, 0.1, None),
    "sand": ("d6be94 bea47c e2d2b0", 0.06, 0, 0.1, None),
    "asphalt": ("3e3e48 343e34 54463a", 0.06, 0.2, 0.12, None),
    "sky": ("accce6 b0cee2 e0c4b0 96b0c8", 0, 0, 0.06, None),
    "dusk": ("22283e 1c1e2c 362a3e", 0.03, 0, 0.15, None),
}
PLACES = (  # wall, ground, things
    "plaster wood skirting frame rug", "wallpaper carpet skirting frame rug", "wallpaper wood frame sofa rug",
    "plaster carpet frame sofa", "bricks tiles", "bricks wood rug", "hedge grass flower", "wood grass flower",
    "sky grass flower", "sky sand sea", "dusk sand sea", "dusk asphalt lamp",
)  # fmt: skip


class Shape(NamedTuple):
    points: np.ndarray  # (K, 2) float64
    paint: str
    gain: float  # brightness


def spline(points: np.ndarray) -> np.ndarray:
    """Close a Catmull-Rom spline through (K, 2) points, eight steps from each to the next: (8 K, 2)."""
    a, b, c, d = (np.roll(points, shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    t = np.arange(8)[:, None] / 8
    path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return path.reshape(-1, 2)


def limb(joints: np.ndarray) -> np.ndarray:
    """Return the outline, with round ends, of a path through (K, 3) joints: x, y and half-width."""
    xy, half = joints[:, :2], joints[:, 2:]
    ahead = np.gradient(xy, axis=0)
    ahead *= half / np.linalg.norm(ahead, axis=1, keepdims=True)
    left = ahead[:, ::-1] * (-1, 1)
    return spline(np.concatenate([xy + left, xy[-1:] + ahead[-1:], (xy - left)[::-1], xy[:1] - ahead[:1]]))


CIRCLE = np.stack([np.cos(np.arange(0, 2 * np.pi, 0.16)), np.sin(np.arange(0, 2 * np.pi, 0.16))], axis=1)


@cache
def parse(table: str) -> list[Shape]:
    """Parse a table of outlines."""
    shapes = []
    for both, dark, paint, kind, numbers in re.findall(r"(both )?(dark )?(\w+) (\w+) ([-\d., ]+)", table):
        rows = [[float(number) for number in row.split()] for row in numbers.split(",")]
        if kind == "even":
            rows += [[-x, y] for x, y in rows[-2:0:-1]]
        if kind == "limb":
            rows = [(row + rows[0][2:])[:3] for row in rows]
        points = np.array(rows)
        if kind == "limb":
            points = limb(points)
        elif kind == "oval":
            points = points[:, :2] + points[:, 2:] * CIRCLE
        elif kind != "poly":
            points = spline(points)
        shapes += [Shape(points * (side, 1), paint, 0.72 if dark else 1) for side in ((-1, 1) if both else (1,))]
    return shapes


def moved(shapes: list[Shape], x=0.0, y=0.0, scale=(1.0, 1.0), turn=0.0) -> list[Shape]:
    """Stretch shapes by `scale` (negative: mirrored), turn them left by `turn` radians, then shift them by (x, y)."""
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = np.array([[scale[0] * cos, scale[0] * sin], [-scale[1] * sin, scale[1] * cos]])
    return [shape._replace(points=shape.points @ matrix + (x, y)) for shape in shapes]


def outline_head(breed: Breed, rng: np.random.Generator) -> list[Shape]:
    """Outline a head around (0, 0), about one unit to a cheek."""
    gaze, nod = rng.uniform(-0.14, 0.14), rng.uniform(-0.06, 0.06)  # the face slides over the skull as the head turns
    skull, eyes, muzzle = map(parse, CAT_HEAD if breed in CATS else DOG_HEAD)
    head, ears = skull + moved(eyes, gaze, nod) + moved(muzzle, 1.8 * gaze, nod), parse(EARS[breed.ears])
    return moved(ears + head if breed.ears == "prick" else head + ears, turn=rng.uniform(-0.2, 0.2))


def outline_pet(breed: Breed, pose: Pose, rng: np.random.Generator) -> list[Shape]:
    """Outline a pet that looks to a side or at the camera, in the units of the tables."""
    pet = moved(parse(pose.body), scale=(breed.wide, 1))
    if pose.tail:
        x, y, lift = pose.tail
        pet = moved(parse(TAILS[breed.tail]), x * breed.wide, y, turn=-lift * rng.random()) + pet
    for x, leg in pose.legs:
        shapes = moved(parse(leg), x * breed.wide, 0, (1, breed.legs), rng.uniform(-0.22, 0.22))
        pet = shapes + pet if "dark" in leg else pet + shapes
    x, y, scale = pose.head
    scale *= rng.uniform(0.93, 1.07)
    pet += moved(outline_head(breed, rng), x * breed.wide, y, (scale, scale))
    absent = [paint for paint in OPTIONAL if rng.random() < 0.5]
    pet = [shape for shape in pet if shape.paint not in absent]
    return moved(pet, scale=(rng.choice([-1, 1]), 1), turn=rng.normal(0, 0.04))


def rgb(colours: str) -> np.ndarray:
    """Parse colours in hexadecimal: (K, 3) uint8."""
    return np.frombuffer(bytes.fromhex(colours), np.uint8).reshape(-1, 3)


def clouds(rng: np.random.Generator, height: int, width: int, cells: int = 4) -> np.ndarray:
    """Draw smooth noise of deviation about 1, `cells` lumps across: (height, width) float32."""
    coarse, fine = (rng.standard_normal((n, n), dtype=np.float32) for n in (cells, 2 * cells))
    lumps = 1.2 * cv2.resize(coarse, fine.shape, interpolation=cv2.INTER_CUBIC) + 0.6 * fine
    return cv2.resize(lumps, (width, height), interpolation=cv2.INTER_CUBIC)


NOISE = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32), (0, 0), 0.9)
STRANDS = cv2.blur(NOISE, (19, 1)) / cv2.blur(NOISE, (19, 1)).std()


def brushed(rng: np.random.Generator, height: int, width: int, angle: float) -> np.ndarray:
    """Draw noise of deviation 1 brushed along `angle` radians, left from the x axis: (height, width) float32."""
    turn = cv2.getRotationMatrix2D(rng.uniform(0, 512, 2), math.degrees(angle), 1)
    return cv2.warpAffine(STRANDS, turn, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP)


class Scene:
    """An image that is being drawn, at twice its size."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, pet_colours: np.ndarray):
        self.rng, self.height, self.width, self.pet_colours = rng, height, width, pet_colours
        self.side = min(height, width)
        self.light = float(rng.choice([-1, 1])) * rng.uniform(0.3, 1)  # -1 from the left, 1 from the right
        self.canvas = np.zeros((height, width, 4), np.uint8)  # RGB, and 255 where the pet is

    def tint(self, colours: str) -> np.ndarray:
        """Vary one of several colours, or at times one of the pet's; a single one is fixed: (3,) float32 RGB."""
        choices = rgb(colours)
        if len(choices) == 1:
            return choices[0].astype(np.float32)
        choices = self.pet_colours[:3] if self.rng.random() < 0.22 else choices
        colour = self.rng.choice(choices) * self.rng.uniform(0.85, 1.15) + self.rng.normal(0, 7, 3)
        return np.clip(colour, 12, 250).astype(np.float32)

    def fill(self, top: int, bottom: int, material: str, is_ground: bool) -> None:
        """Fill the rows from top to bottom with one material; the ground is seen in perspective."""
        colours, grain, angle, lumps, tiling = MATERIALS[material]
        shape = (bottom - top, self.width)
        gain = 1 + grain * brushed(self.rng, *shape, angle) + lumps * clouds(self.rng, *shape)
        if tiling:
            x = np.arange(self.width, dtype=np.float32) / self.side - 0.5
            y = np.arange(len(gain), dtype=np.float32)[:, None] / self.side
            if is_ground:  # tiles are four times as large at the bottom as at the horizon
                y = 1 / np.linspace(1, 4, len(gain), dtype=np.float32)[:, None]
                x, y = x * y, 2 * y
            number = self.rng.uniform(6, 14)
            dark = np.broadcast_to(tiling(number * x, number * y), shape)
            np.multiply(gain, self.rng.uniform(0.65, 0.9), out=gain, where=dark, casting="unsafe")
        self.canvas[top:bottom, :, :3] = np.clip(self.tint(colours) * gain[..., None], 0, 255)

    def put(self, table: str, y: float, size: float, tilt: float = 0.0) -> None:
        """Draw a thing with its foot on row y, at any x; a unit of its table is `size` times the shorter side."""
        unit, x = size * self.side, self.rng.uniform(-0.02, 1.02) * self.width
        shapes = moved(parse(table), scale=(self.rng.choice([-1, 1]), 1), turn=self.rng.uniform(-tilt, tilt))
        self.draw(moved(shapes, x, y, (unit, -unit)), unit, {})

    def draw(self, shapes: list[Shape], unit: float, paints: dict[str, tuple[np.ndarray, float]], pet=0) -> None:
        """Paint shapes, whose points are pixels with y down, back to front.

        unit: pixels to a unit of their table; paints: RGB, (3,) or (H, W, 3), and length of the hair, 0 for none; those
        that are not here are tints of COLOURS; pet: the fourth channel, which whiskers leave as it is.
        """
        for points, name, gain in shapes:
            if name not in paints:
                paints[name] = self.tint(COLOURS[name]), HAIR.get(name, 0)
            colour, fur = paints[name]
            margin = 4 + 0.06 * unit * fur
            box = np.stack([points.min(axis=0) - margin, points.max(axis=0) + margin])
            (left, top), (right, bottom) = np.clip(box, 0, (self.width, self.height)).astype(int)
            if right <= left or bottom <= top:
                continue
            view = self.canvas[top:bottom, left:right]
            cover = np.zeros(view.shape[:2], np.uint8)
            cv2.fillPoly(cover, [np.round((points - (left, top)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
            if fur:  # along the longer axis, or hanging down where the two are about the same
                (var_x, cov), (_, var_y) = np.cov((points * (1, 1.3)).T)
                strands = brushed(self.rng, *cover.shape, -0.5 * math.atan2(2 * cov, var_x - var_y))
                size = max(3, round(0.045 * unit * fur))
                cover = np.where(cv2.blur(cover, (size, size)) + 22 * strands > 128, np.uint8(255), np.uint8(0))
                gain = gain + gain * (0.09 + 0.03 * fur) * strands
            # Light: a box average whose window reaches away from it, full at the lit edge, half empty at the far one.
            size = max(3, round(0.55 * min(*np.ptp(points, axis=0), 0.8 * unit)))
            anchor = (round((size - 1) * (0.5 + 0.3 * self.light)), round((size - 1) * 0.28))
            light = cv2.blur(cover, (size, size), anchor=anchor, borderType=cv2.BORDER_REPLICATE)
            gain = gain * (0.6 + light * np.float32(0.46 / 255))
            colour = colour if colour.ndim == 1 else colour[top:bottom, left:right]
            painted = np.clip(colour * gain[..., None], 0, 255)
            np.copyto(view[..., :3], painted, casting="unsafe", where=cover[..., None] > 100)
            if name != "whisker":
                view[..., 3][cover > 100] = pet

    def cast_shadow(self, shapes: list[Shape], foot: float, on_wall: bool) -> None:
        """Darken the canvas by the shadow of a pet: on the ground from row `foot` up, or on the wall behind it."""
        mask = np.zeros((self.height // 8 + 1, self.width // 8 + 1), np.uint8)
        shift, lean, squash = (-0.08 * self.width * self.light, 0, 1) if on_wall else (0, 0.7 * self.light, 0.3)
        for shape in shapes:
            points = (shape.points - (0, foot)) @ [[1, 0], [lean, squash]] + (shift, foot)
            cv2.fillPoly(mask, [np.round(points / 8).astype(np.int32)], 255)
        mask = cv2.GaussianBlur(mask, (0, 0), 0.02 * max(mask.shape) + 0.5)
        mask = cv2.resize(mask, None, fx=8, fy=8)[: self.height, : self.width]
        gain = 1 - np.float32(self.rng.uniform(0.3, 0.6) / 255) * mask
        self.canvas[..., :3] = self.canvas[..., :3] * gain[..., None]

    def photograph(self) -> np.ndarray:
        """Return the canvas at the image's size, (H, W, 4) uint8, with uneven light, a tone and noise."""
        rng, h, w = self.rng, self.height // SUPERSAMPLE, self.width // SUPERSAMPLE
        image = cv2.resize(self.canvas, (w, h), interpolation=cv2.INTER_AREA)
        x, y = np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32)[:, None]
        light = 1 + rng.uniform(0, 0.2) * self.light * x - rng.uniform(0, 0.15) * y - 0.06 * (x**2 + y**2)
        tone = (rng.uniform(0.85, 1.12) * rng.normal(1, 0.03, 3)).astype(np.float32)
        noise = rng.standard_normal((h, w, 1), dtype=np.float32) * np.float32(rng.uniform(1, 4))
        image[..., :3] = np.clip(image[..., :3] * (light[..., None] * tone) + noise, 0, 255)
        return image


def coat(scene: Scene, breed: Breed, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) float32 RGB, the marking on the coat; x (W,), y (H, 1): 0 at its top left, 1 a pet's height."""
    lumps, pattern = PATTERNS[breed.pattern]
    noise = clouds(scene.rng, y.size, x.size, max(2, round(lumps * max(np.ptp(x), np.ptp(y)))))
    ground, marking = scene.pet_colours[:2]
    return ground + np.clip(pattern(noise, x, y), 0, 1)[..., None] * (marking - ground)


def to_trimap(mask: np.ndarray) -> np.ndarray:
    """Turn a mask (H, W) bool into a trimap (H, W) uint8; the boundary is a band astride the outline."""
    reach = max(1, round(0.0135 * math.sqrt(mask.size)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    mask = cv2.medianBlur(mask.astype(np.uint8), 3)  # single hairs are not worth a band
    trimap = np.where(cv2.dilate(mask, disc), np.uint8(BOUNDARY), np.uint8(BACKGROUND))
    trimap[cv2.erode(mask, disc) == 1] = PET
    return trimap


def draw_pet(rng: np.random.Generator, breed: Breed, size=(180, 330)) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image, whose sides in pixels are from size[0] to size[1].

    Returns image (H, W, 3) uint8 RGB and trimap (H, W) uint8.
    """
    h, w = (int(side) * SUPERSAMPLE for side in rng.integers(size[0], size[1] + 1, 2))
    colours = rgb(" ".join(COLOURS[name] for name in rng.choice(breed.coats.split(", ")).split()))
    colours = np.clip(colours * rng.uniform(0.85, 1.1) + rng.normal(0, 6, 3), 10, 250).astype(np.float32)
    scene = Scene(rng, h, w, colours)

    # How much of the image the pet's box fills, then where it is: up to a fifth of its width may be cut off.
    pose = POSES[rng.integers(len(POSES))]
    pet = outline_pet(breed, pose, rng)
    points = np.concatenate([shape.points for shape in pet if shape.paint != "whisker"])
    extent = np.ptp(points, axis=0)
    area = h * w * rng.uniform(0.5 if pose is PORTRAIT else 0.4, 0.9)
    most = (1.2 * w, (1.5 if pose is PORTRAIT else 1.15) * h)
    unit = min(math.sqrt(area / extent.prod()), *(most / extent))
    box_w, box_h = unit * extent
    left = rng.uniform(*sorted((-0.2 * box_w, w - 0.8 * box_w)))
    top = h - 0.97 * box_h if pose is PORTRAIT else rng.uniform(*sorted((-0.08 * box_h, h - 0.85 * box_h)))
    foot = top + box_h
    pet = moved(moved(pet, *-points.min(axis=0)), left, foot, (unit, -unit))

    horizon = int(np.clip(foot - rng.uniform(0.12, 0.8) * box_h, 0.15 * h, 0.88 * h))
    wall, ground, *things = rng.choice(PLACES).split()
    scene.fill(0, horizon, wall, is_ground=False)
    scene.fill(horizon, h, ground, is_ground=True)
    for counts, sizes, heights, table in map(THINGS.get, things):
        for _ in range(rng.integers(*counts, endpoint=True)):
            scene.put(table, np.interp(rng.uniform(*heights), (0, 1, 2), (0, horizon, h)), rng.uniform(*sizes))
    for _ in range(rng.integers(0, 4)):
        scene.put(rng.choice(TOYS), rng.uniform(horizon, max(horizon, min(foot, h))), rng.uniform(0.12, 0.4), 0.12)
    scene.cast_shadow(pet, foot, on_wall=pose is PORTRAIT)
    blur = max(1, round(rng.uniform(0.008, 0.024) * scene.side))  # the pet is in focus, what is behind it less so
    scene.canvas = cv2.blur(scene.canvas, (blur, blur))

    x = (np.arange(0, w, 2, dtype=np.float32) - left) / box_h  # at half the size: fur is soft
    y = (np.arange(0, h, 2, dtype=np.float32)[:, None] - foot) / box_h + 1
    nose = "pink" if breed in CATS and breed.coats.split()[2] == "white" else "ink"
    paints = {name: (colours[index], breed.fluff) for name, index in (("trim", 2), ("blaze", 2), ("tips", 3))}
    paints["coat"] = cv2.resize(coat(scene, breed, x, y), (w, h)), breed.fluff
    paints |= {"iris": (scene.tint(COLOURS[breed.eyes]), 0), "nose": (scene.tint(COLOURS[nose]), 0)}
    scene.draw(pet, unit, paints, pet=255)
    if rng.random() < 0.25:  # something in front of the pet
        scene.put(rng.choice(TOYS), rng.uniform(0.98, 1.1) * h, rng.uniform(0.15, 0.3), 0.12)
    image = scene.photograph()
    return image[..., :3].copy(), to_trimap(image[..., 3] > 127)


# ---------------------------------------------------------------------------------------------- the data set


def breed_of(index: int) -> Breed:
    """Return the breed of pet `index`: golden-ratio steps, so that any evenly spaced subset has cats and dogs."""
    return BREEDS[int(len(BREEDS) * ((0.3 + index * (math.sqrt(5) - 1) / 2) % 1))]


def write_pet(folder: Path, seed: int, size: tuple[int, int], index: int) -> str:
    """Draw pet `index`, whose randomness is (seed, index) alone, and write it; returns its line for the lists."""
    breed = breed_of(index)
    name = f"{breed.name}_{index + 1:03d}"
    image, trimap = draw_pet(np.random.default_rng([seed, index]), breed, size)
    # Not cv2.imwrite: where the disk is full, it returns False and write_bytes raises.
    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    image_path(folder, name).write_bytes(jpeg.tobytes())
    trimap_path(folder, name).write_bytes(cv2.imencode(".png", trimap)[1].tobytes())
    species, kin = (1, CATS) if breed in CATS else (2, DOGS)
    return f"{name} {BREEDS.index(breed) + 1} {species} {kin.index(breed) + 1}\n"


def write_dataset(folder: str | Path, count: int = 400, seed: int = 0, size: tuple[int, int] = (180, 330)) -> Path:
    """Draw ``count`` pets, half of them test, into a folder, unless it holds these pets already; returns its full path.

    Args:
        size: the smallest and the largest side of an image, in pixels.

    Raises:
        OSError: the folder holds anything else, or it cannot be written.
    """
    root = Path(folder).resolve()
    marker = f"{MADE_BY}\ncount {count}, seed {seed}, size {size[0]} {size[1]}, version {VERSION}\n"
    if (root / MARKER).is_file() and (root / MARKER).read_bytes() == marker.encode():
        return root
    with (
        atomic_folder(root) as draft,
        closing(in_threads(partial(write_pet, draft, seed, size), range(count))) as drawn,
    ):
        for path in (image_path(draft, ""), trimap_path(draft, "")):
            path.parent.mkdir(parents=True)
        lines = list(tqdm(drawn, "drawing", count, unit="pet", disable=None))
        for name, chosen in (("trainval", lines[::2]), ("test", lines[1::2]), ("list", [LIST_HEADER, *lines])):
            (draft / "annotations" / f"{name}.txt").write_text("".join(chosen), encoding="utf-8")
        (draft / MARKER).write_bytes(marker.encode())
    return root


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Draw cats and dogs in the layout of the Oxford-IIIT Pet data set.")
    add, side = parser.add_argument, number("from 32 to 1000 pixels", 32, 1000, whole=True)
    add("folder", metavar="DIR", type=new_path, help="folder to write")
    add("--count", type=number("a whole number from 4 up", 4, math.inf, whole=True), default=400, help="half are test")
    add("--seed", type=whole_number, default=0, help="same seed and versions of numpy and cv2, same pixels")
    add("--size", type=side, nargs=2, default=(180, 330), metavar=("MIN", "MAX"), help="sides in pixels")
    args = parser.parse_args(argv)
    if args.size[0] > args.size[1]:
        parser.error(f"--size {args.size[0]} {args.size[1]}: the smaller one comes first")
    print(f"drawing {args.count} pets, half of them test, seed {args.seed}, unless they are there already", flush=True)
    write_dataset(args.folder, args.count, args.seed, tuple(args.size))
    print(f"{args.folder} holds {args.count} pets")
    train = ("src/train.py", "--model", "R", "--data_path", args.folder, "--image_size", 128, "--epochs", 32)
    print(f"next: {shell('python', *train)}")


if __name__ == "__main__":
    run_script(main)
