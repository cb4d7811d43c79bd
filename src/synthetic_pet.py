"""Drawn pets in the layout of the Oxford-IIIT Pet data set: what the demo and the tests train on.

    python src/synthetic_pet.py dataset/drawn-pets --count 400 --seed 0

Drawings are tables of outlines, painted back to front with fur, light and shadow on a canvas twice the picture's size,
whose fourth channel says which pixels are the pet's. Walls, rugs, cushions and toys often take the pet's own
colours, so that neither place nor colour gives the mask away.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

SUPERSAMPLE = 2
MARKER = "drawn_pets.json"  # lies in every folder that this script made; a folder without it is never touched
DRAWING = 1  # raise it when the same seed gives other pixels, so that an older folder is not taken for a new one

COLOURS = {  # RGB; also the names of flat paints in the drawings
    "white": (240, 236, 228), "cream": (230, 212, 182), "tan": (196, 154, 106), "orange": (218, 146, 78),
    "rust": (172, 92, 44), "brown": (124, 84, 54), "seal": (80, 58, 48), "black": (54, 51, 53), "grey": (140, 142, 148),
    "smoke": (92, 94, 102), "green": (150, 176, 84), "amber": (214, 160, 50), "blue": (112, 164, 214),
    "hazel": (70, 44, 26), "pink": (216, 150, 146), "tongue": (222, 112, 118), "ink": (24, 20, 22),
    "glint": (250, 250, 250), "whisker": (240, 236, 228),
}  # fmt: skip


@dataclass(frozen=True)
class Breed:
    """What tells one breed from another; fluff, plump and legs are factors on a medium-sized pet's."""

    name: str  # cats begin with a capital letter, as in the real data set
    coats: str  # choices of four colours: coat, marking, trim (chest, muzzle, paws), tips (ears, tail)
    pattern: str = "solid"  # how the marking lies on the coat: solid, stripes, spots, patches, saddle
    ears: str = "prick"  # prick, drop, button
    tail: str = "long"  # long, plume, stub
    eyes: str = "hazel"
    fluff: float = 1.0
    plump: float = 1.0
    legs: float = 1.0

    @property
    def is_cat(self) -> bool:
        return self.name[0].isupper()


BREEDS = (
    Breed("Bengal", "tan seal cream tan, cream brown white cream", "spots", eyes="green", plump=0.9),
    Breed("Calico", "white orange white black, white smoke white tan", "patches", eyes="amber"),
    Breed("Persian", "cream tan white cream, grey smoke grey smoke", tail="plume", eyes="amber", fluff=2.4, plump=1.2),
    Breed("Russian_Blue", "smoke grey grey smoke, grey smoke grey smoke", eyes="green", plump=0.9),
    Breed("Siamese", "cream tan seal seal, white cream smoke smoke", eyes="blue", plump=0.85, legs=1.1),
    Breed("Tabby", "tan seal cream tan, grey smoke white grey, orange rust cream orange", "stripes", eyes="green"),
    Breed("Tuxedo", "black smoke white black, smoke black white smoke", eyes="amber"),
    Breed("beagle", "white rust white rust, tan black white brown", "patches", "drop", legs=0.85),
    Breed("corgi", "orange white white orange, tan black white tan", "saddle", tail="stub", fluff=1.5, legs=0.5),
    Breed("dachshund", "rust brown rust brown, black black tan black", ears="drop", plump=0.85, legs=0.4),
    Breed("dalmatian", "white black white black, white brown white brown", "spots", "drop", plump=0.9, legs=1.15),
    Breed("husky", "grey smoke white smoke, smoke black white black", "saddle", tail="plume", eyes="blue", fluff=1.7),
    Breed("retriever", "cream tan cream tan, seal black brown seal", ears="drop", tail="plume", fluff=1.7),
    Breed("terrier", "tan smoke cream brown, grey white white smoke", "saddle", "button", "stub", fluff=2.2, legs=0.7),
)
CATS = sum(breed.is_cat for breed in BREEDS)
LIST_HEADER = f"""#Image CLASS-ID SPECIES BREED ID
#ID: 1:{len(BREEDS)} Class ids
#SPECIES: 1:Cat 2:Dog
#BREED ID: 1-{CATS}:Cat 1:{len(BREEDS) - CATS}:Dog
#All images with 1st letter as captial are cat images
#images with small first letter are dog images
"""

# Drawings: [both] PAINT KIND POINTS, back to front. `both` adds the mirrored outline; PAINT is a key of a palette or of
# COLOURS; KIND is oval (x y rx ry), blob (smooth), even (a blob's right half), poly (corners), limb (x y half-width on
# a path) or line (width, then points). x to the right, y up; a body is about 1.3 units tall without its head.

EARS = {
    "prick": "both tips blob .92 .1, .9 .72, .74 1.36, .42 1, .1 .72; both pink blob .76 .4, .8 .8, .7 1.16, .46 .88",
    "drop": "both tips blob .5 .8, .85 .72, 1.13 .1, 1.13 -.62, .86 -.72, .72 0",
    "button": "both tips blob .3 .88, .66 1.12, .98 .86, 1.04 .42, .78 .56",
}
CAT_SKULL = "coat even 0 .8, .6 .72, .95 .25, 1.02 -.2, .7 -.66, 0 -.84"
DOG_SKULL = "coat even 0 .9, .5 .82, .8 .4, .84 -.1, .62 -.6, 0 -.9"
BLAZE = "trim even 0 .8, .13 .3, .3 -.3, 0 -.4"
EYE = "ink oval 0 0 1.2 1.12; iris oval 0 0 1 .93; ink oval 0 0 {} .74; glint oval -.3 .35 .24 .24"
CAT_MUZZLE = """
    trim oval 0 -.58 .26 .2; both trim oval .21 -.4 .29 .22; both seal line .045, 0 -.24, 0 -.44, .14 -.51, .3 -.44
    nose even 0 -.17, .12 -.17, .07 -.31, 0 -.33; both whisker line .022, .3 -.4, .8 -.52, 1.25 -.68
    both whisker line .022, .3 -.4, .8 -.36, 1.25 -.42; both whisker line .022, .3 -.4, .8 -.2, 1.25 -.16"""
DOG_MUZZLE = """
    trim oval 0 -.48 .46 .36; both seal line .045, 0 -.3, 0 -.64, .14 -.71, .3 -.64
    nose even 0 -.23, .2 -.23, .12 -.42, 0 -.45; grey oval -.06 -.26 .06 .03"""
TAILS = {
    "stub": "tips limb .1 0 .1, -.06 .06 .1, -.14 .14 .06",
    "long": "tips limb .1 0 .08, -.3 .02 .085, -.62 .14 .085, -.6 .42 .05",
    "plume": "tips limb .1 0 .12, -.28 .02 .14, -.56 .16 .15, -.5 .46 .07",
}
TONGUE = "tongue blob -.13 -.68, .13 -.68, .13 -.98, -.13 -.98"
FRONT_LEG = "{} limb 0 .2 .17, .04 -.32 .095, 0 -.66 .08; trim oval .03 -.66 .13 .07"
HIND_LEG = "{} limb 0 .2 .22, .1 -.2 .14, -.12 -.46 .075, -.06 -.66 .07; trim oval -.03 -.66 .13 .07"


class Pose(NamedTuple):
    often: float  # share of the pictures
    body: str
    head: tuple[float, float, float]  # x, y, scale
    tail: tuple[float, float, float] | None = None  # x, y, and how many radians it is lifted at most
    level: bool = False  # the back is level, so that a plump pet is taller and not wider
    legs: tuple[tuple[float, str], ...] = ()  # x and drawing of the far pair, then of the near pair; y = 0 is the belly


STANDING = Pose(0.24, """
    coat blob .8 .28, .62 0, 0 .05, -.5 .09, -.84 .31, -.66 .6, 0 .58, .55 .66, .76 .5; coat limb .52 .38 .3, .82 .9 .22
    trim oval .74 .26 .12 .24; collar line .085, .54 .9, .76 .72, .98 .7; tag oval .78 .62 .05 .06""",
    head=(0.98, 1.04, 0.39), tail=(-0.75, 0.48, 0.9), level=True, legs=(
        (0.5, FRONT_LEG.format("shade")), (-0.5, HIND_LEG.format("shade")),
        (-0.58, HIND_LEG.format("coat")), (0.58, FRONT_LEG.format("coat")),
    ))  # fmt: skip
SITTING = Pose(0.22, """
    both coat oval .42 .3 .26 .32; coat even 0 1.36, .26 1.26, .38 .9, .5 .4, .42 .1, 0 .06; trim oval 0 .94 .2 .34
    both trim oval .46 .07 .19 .08; both coat limb .2 .85 .15, .19 .4 .105, .18 .1 .1; both trim oval .18 .07 .14 .08
    both seal line .018, .13 .02, .13 .08; both seal line .018, .22 .02, .22 .08
    collar line .085, -.26 1.28, 0 1.18, .26 1.28; tag oval .02 1.1 .05 .06""",
    head=(0, 1.56, 0.48), tail=(-0.4, 0.12, 0.5))  # fmt: skip
SITTING_ASIDE = Pose(0.18, """
    shade limb .34 .8 .14, .52 .4 .09, .54 .08 .085; trim oval .6 .06 .13 .065
    coat blob -.5 .06, -.62 .36, -.4 .8, -.08 1.14, .14 1.4, .48 1.3, .54 .95, .42 .6, .2 .1; trim oval .44 .98 .12 .28
    coat limb .3 .85 .17, .36 .4 .1, .38 .08 .09; trim oval .44 .06 .14 .07
    coat oval -.24 .34 .34 .32; trim oval .02 .06 .2 .075
    collar line .085, .08 1.37, .3 1.22, .52 1.27; tag oval .32 1.14 .05 .06""",
    head=(0.34, 1.6, 0.46), tail=(-0.5, 0.12, 0.3))  # fmt: skip
LYING = Pose(0.2, """
    shade limb .6 .3 .15, .95 .16 .1, 1.25 .12 .09; trim oval 1.3 .12 .13 .08
    coat blob -.95 .14, -.96 .45, -.55 .7, 0 .64, .45 .78, .82 .62, .8 .2, .5 .03, -.6 .02
    coat limb .5 .45 .3, .72 .82 .22; trim oval .74 .42 .15 .26; coat oval -.58 .33 .36 .3
    trim limb -.5 .08 .08, -.2 .07 .09; coat limb .5 .28 .17, .8 .1 .11, 1.08 .07 .09; trim oval 1.14 .07 .14 .08
    collar line .085, .44 .82, .68 .68, .92 .74; tag oval .7 .6 .05 .06""",
    head=(0.76, 1.02, 0.43), tail=(-0.85, 0.14, 0.2), level=True)  # fmt: skip
PORTRAIT = Pose(0.16, """
    coat even 0 2.1, .6 1.85, .95 1.2, 1.15 .3, 0 0; trim oval 0 1.1 .42 .62
    collar line .085, -.66 1.54, 0 1.44, .66 1.54; tag oval .02 1.36 .06 .07""", head=(0, 2.4, 1))  # fmt: skip
POSES = (STANDING, SITTING, SITTING_ASIDE, LYING, PORTRAIT)

TOYS = (
    "a oval 0 .5 .5 .5; b line .12, -.46 .42, 0 .3, .46 .5; glint oval -.16 .74 .1 .06",  # ball
    """a poly -.6 0, .6 0, .6 .8, -.6 .8; a poly -.6 .8, .6 .8, .8 1.05, -.35 1.05
    dark poly .6 0, .8 .25, .8 1.05, .6 .8; b poly -.1 0, .1 0, .1 .8, -.1 .8""",  # box
    """both leaf limb 0 .5 .03, .34 .9 .1, .84 .98 .02; both leaf limb 0 .5 .03, .22 .92 .1, .52 1.32 .02
    both leaf limb 0 .5 .03, .08 .94 .1, .16 1.5 .02; a poly -.3 .6, .3 .6, .22 0, -.22 0""",  # plant
    """cloth even 0 .84, .5 .9, .44 .45, .5 0, 0 .06; b poly -.05 .1, .05 .1, .05 .8, -.05 .8
    both b poly .22 .1, .31 .1, .31 .8, .22 .8""",  # cushion
    """both plush oval .3 1.28 .14 .14; both plush oval .42 .55 .14 .2; plush oval 0 .42 .38 .4
    both plush oval .3 .12 .17 .14; plush oval 0 1.02 .4 .36; cream oval 0 .92 .17 .13
    both ink oval .14 1.08 .045 .05; ink oval 0 .97 .07 .05""",  # teddy: furry, with a face, and no pet
    """a line .04, .3 .05, .7 .03, .9 .12, 1.2 .03; a oval 0 .42 .42 .42; dark line .03, -.4 .42, .1 .5, .4 .42
    dark line .03, -.34 .2, -.05 .55, .3 .7; dark line .03, .34 .2, .12 .3, -.3 .7""",  # wool
)


# Outlines.


class Shape(NamedTuple):
    points: np.ndarray  # (K, 2) float64
    paint: str
    line: float = 0.0  # > 0: an open line of this width instead of a filled outline


def spline(points: np.ndarray, closed: bool) -> np.ndarray:
    """Catmull-Rom spline through (K, D) points, eight steps from each to the next."""
    p = np.concatenate([points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]])
    a, b, c, d = (q[:, None] for q in (p[:-3], p[1:-2], p[2:-1], p[3:]))
    t = np.linspace(0, 1, 8, endpoint=False)[:, None]
    path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    path = path.reshape(-1, points.shape[1])
    return path if closed else np.concatenate([path, points[-1:]])


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def limb(joints: np.ndarray) -> np.ndarray:
    """The outline of a smooth path through (K, 3) joints, x, y and half width, with round ends."""
    path = spline(joints, closed=False)
    xy, half = path[:, :2], path[:, 2:]
    ahead = np.gradient(xy, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    left = ahead[:, ::-1] * (-1, 1)
    swing = np.linspace(0, np.pi, 9)[1:-1, None]
    end = xy[-1] + half[-1] * (np.cos(swing) * left[-1] + np.sin(swing) * ahead[-1])
    start = xy[0] - half[0] * (np.cos(swing) * left[0] + np.sin(swing) * ahead[0])
    return np.concatenate([xy + half * left, end, (xy - half * left)[::-1], start])


@cache
def drawing(table: str) -> tuple[Shape, ...]:
    """The shapes of a table of outlines, back to front."""
    shapes = []
    for both, paint, kind, numbers in re.findall(r"(both )?(\w+) (\w+) ([-\d., ]+)", table):
        points = [[float(number) for number in point.split()] for point in numbers.split(",")]
        line = points.pop(0)[0] if kind == "line" else 0.0
        if kind == "even":
            points += [[-x, y] for x, y in points[-2:0:-1]]
        points = np.array(points)
        outline = {
            "oval": lambda p: ellipse(*p[0]),
            "blob": lambda p: spline(p, closed=True),
            "even": lambda p: spline(p, closed=True),
            "poly": lambda p: p,
            "limb": limb,
            "line": lambda p: spline(p, closed=False),
        }[kind](points)
        shapes += [Shape(outline * (side, 1), paint, line) for side in ((-1, 1) if both else (1,))]
    return tuple(shapes)


def moved(shapes: Iterable[Shape], x=0.0, y=0.0, scale=(1.0, 1.0), turn=0.0) -> list[Shape]:
    """The shapes stretched by `scale` (negative: mirrored), turned left by `turn` radians, then shifted by (x, y)."""
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = np.array([[scale[0] * cos, scale[0] * sin], [-scale[1] * sin, scale[1] * cos]])
    return [s._replace(points=s.points @ matrix + (x, y), line=s.line * abs(scale[1])) for s in shapes]


# Pets.


def draw_head(breed: Breed, rng: np.random.Generator) -> list[Shape]:
    """A head around (0, 0), about one unit to a cheek."""
    gaze, nod = rng.uniform(-0.14, 0.14), rng.uniform(-0.06, 0.06)  # the face slides over the skull as the head turns
    if breed.is_cat:
        skull, muzzle, pupil, (x, y, r) = CAT_SKULL, CAT_MUZZLE, 0.42, (0.44, 0.08, 0.2)
    else:
        skull, muzzle, pupil, (x, y, r) = DOG_SKULL, DOG_MUZZLE, 0.6, (0.36, 0.2, 0.14)
        skull += f"; {BLAZE}" if rng.random() < 0.5 else ""
        muzzle += f"; {TONGUE}" if rng.random() < 0.5 else ""
    face = [s for side in (-x, x) for s in moved(drawing(EYE.format(pupil)), side + gaze, y + nod, (r, r))]
    face += moved(drawing(muzzle), 1.8 * gaze, nod)
    parts = [drawing(EARS[breed.ears]), drawing(skull), face]
    if breed.ears != "prick":
        parts = parts[1:] + parts[:1]  # these hang over the face
    return moved([s for part in parts for s in part], turn=rng.uniform(-0.2, 0.2))


def draw_body(pose: Pose, breed: Breed, rng: np.random.Generator) -> list[Shape]:
    """A whole pet that faces right or the camera."""
    with_collar = rng.random() < 0.5
    body = [s for s in drawing(pose.body) if with_collar or s.paint not in ("collar", "tag")]
    wide, tall = (1, breed.plump) if pose.level else (breed.plump, 1)
    body = moved(body, scale=(wide, tall))
    if pose.tail:
        x, y, lift = pose.tail
        body = moved(drawing(TAILS[breed.tail]), x, y, turn=-lift * rng.random()) + body
    if pose.legs:
        far, far_too, near, near_too = (
            moved(drawing(leg), x, 0, (1, breed.legs), turn=rng.uniform(-0.22, 0.22)) for x, leg in pose.legs
        )
        body = far + far_too + body + near + near_too
    x, y, scale = pose.head
    scale *= rng.uniform(0.93, 1.07)
    return body + moved(draw_head(breed, rng), x * wide, y * tall, (scale, scale))


# Paint.


class Paint(NamedTuple):
    colour: np.ndarray  # RGB, (3,) or one for every pixel of the canvas, (H, W, 3) float32
    fur: float = 0.0  # 0 smooth, 1 short hair: texture and a rough edge
    gain: float = 1.0  # brightness
    round: bool = True  # lit from one side; else flat


@cache
def hair() -> np.ndarray:
    """(8, 512, 512) float32 of mean 0 and deviation 1: brushed noise, layer k along k * 22.5 degrees to the left."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32), (0, 0), 0.9)
    layers = []
    for angle in np.arange(8) * np.pi / 8:
        kernel = np.zeros((21, 21), np.float32)
        dx, dy = round(9 * math.cos(angle)), round(9 * math.sin(angle))
        cv2.line(kernel, (10 - dx, 10 + dy), (10 + dx, 10 - dy), 1.0)
        layers.append(cv2.filter2D(noise, -1, kernel))
    return np.stack([layer / layer.std() for layer in layers])


def brushed(rng: np.random.Generator, height: int, width: int, angle: float) -> np.ndarray:
    """(height, width) float32: hair along `angle` radians, to the left from the x axis."""
    rows, columns = (int(rng.integers(512)) + np.arange(n) for n in (height, width))
    return hair()[round(8 * angle / np.pi) % 8].take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")


def clouds(rng: np.random.Generator, height: int, width: int, cells: int = 4) -> np.ndarray:
    """(height, width) float32: smooth noise of deviation about 1, `cells` lumps across."""
    total = np.zeros((height, width), np.float32)
    for grid, weight in ((cells, 1.2), (2 * cells, 0.6)):
        lumps = rng.standard_normal((grid, grid), dtype=np.float32) * np.float32(weight)
        total += cv2.resize(lumps, (width, height), interpolation=cv2.INTER_CUBIC)
    return total


class Scene:
    """A picture in the making, at twice its size."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, horizon: int, pet_colours: np.ndarray):
        self.rng, self.height, self.width, self.horizon, self.pet_colours = rng, height, width, horizon, pet_colours
        self.side = min(height, width)
        self.lit_from = float(rng.choice([-1, 1]) * rng.uniform(0.3, 1))  # -1 from the left, 1 from the right
        self.canvas = np.zeros((height, width, 4), np.uint8)  # RGB, and 255 where the pet is

    def tint(self, *usual: tuple[int, int, int], like_pet: float = 0.25) -> np.ndarray:
        """(3,) RGB: one of the usual colours or, with probability like_pet, of the pet's; slightly off either way."""
        pool = self.pet_colours[:3] if self.rng.random() < like_pet else usual
        colour = np.asarray(pool[self.rng.integers(len(pool))]) * self.rng.uniform(0.85, 1.15)
        return np.clip(colour + self.rng.normal(0, 7, 3), 12, 250).astype(np.float32)

    def fill(self, top: int, bottom: int, colour: np.ndarray, grain=0.03, angle=0.0, lumps=0.06) -> None:
        """Rows top to bottom of one material: brushed along `angle`; grain and lumps are contrasts, 0 none."""
        gain = 1 + grain * brushed(self.rng, bottom - top, self.width, angle)
        gain += lumps * clouds(self.rng, bottom - top, self.width)
        self.canvas[top:bottom, :, :3] = np.clip(np.asarray(colour, np.float32) * gain[..., None], 0, 255)

    def darken(self, top: int, mask: np.ndarray, gain: float) -> None:
        """Multiply the picture by `gain` where mask, (rows, W) from row `top` on, is true."""
        rows = self.canvas[top : top + len(mask), :, :3]
        np.copyto(rows, rows * np.float32(gain), casting="unsafe", where=mask[..., None])

    def planks(self, top: int, bottom: int, fan: float) -> None:
        """Gaps between boards; fan > 1 spreads them towards the viewer."""
        gaps = np.zeros((bottom - top, self.width), np.uint8)
        for x in np.linspace(-1, 1, 26) * self.width:
            cv2.line(gaps, (round(self.width / 2 + x), 0), (round(self.width / 2 + x * fan), bottom - top), 1, 2)
        self.darken(top, gaps > 0, 0.72)

    def paint(self, points: np.ndarray, paint: Paint, unit=0.0, line=0.0, pet: int | None = 0) -> None:
        """Paint one outline of (K, 2) pixels, y down.

        unit: pixels to a unit of the drawing, by default the picture's side; pet: the fourth channel, None leaves it.
        """
        unit = unit or self.side
        margin = 4 + line + 0.06 * unit * paint.fur
        left, top = np.maximum(points.min(axis=0) - margin, 0).astype(int)
        right, bottom = np.minimum(points.max(axis=0) + margin, (self.width, self.height)).astype(int)
        if right <= left or bottom <= top:
            return
        view = self.canvas[top:bottom, left:right]
        h, w = view.shape[:2]
        cover = np.zeros((h, w), np.uint8)
        corners = np.round((points - (left, top)) * 16).astype(np.int32)  # 4 fractional bits
        if line:
            cv2.polylines(cover, [corners], False, 255, max(1, round(line)), cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(cover, [corners], 255, cv2.LINE_AA, 4)
        gain = np.full((h, w), paint.gain, np.float32)
        if paint.fur:
            # Hair lies along the longer axis, or hangs down where the two are about the same; pixels have y down.
            (var_x, cov), (_, var_y) = np.cov((points * (1, 1.3)).T)
            strands = brushed(self.rng, h, w, -0.5 * math.atan2(2 * cov, var_x - var_y))
            size = max(3, round(0.045 * unit * paint.fur))
            cover = np.where(cv2.blur(cover, (size, size)) + 22 * strands > 128, np.uint8(255), np.uint8(0))
            gain *= 1 + (0.09 + 0.03 * paint.fur) * strands
        if paint.round:
            # A box average whose window reaches away from the light: full at the lit edge, half empty at the far one.
            size = max(3, round(0.55 * min(*np.ptp(points, axis=0), 0.8 * unit)))
            anchor = (round((size - 1) * (0.5 + 0.3 * self.lit_from)), round((size - 1) * 0.28))
            light = cv2.blur(cover, (size, size), anchor=anchor, borderType=cv2.BORDER_REPLICATE)
            gain *= 0.6 + light * np.float32(0.46 / 255)
        colour = paint.colour if paint.colour.ndim == 1 else paint.colour[top:bottom, left:right]
        covered = cover > 100
        rgb = np.clip(colour * gain[..., None], 0, 255)
        np.copyto(view[..., :3], rgb, casting="unsafe", where=covered[..., None])
        if pet is not None:
            np.copyto(view[..., 3], np.uint8(pet), where=covered)

    def draw(self, shapes: Iterable[Shape], palette: dict[str, Paint], unit: float, pet: int = 0) -> None:
        """Paint shapes whose points are pixels."""
        for shape in shapes:
            paint = palette.get(shape.paint) or Paint(np.array(COLOURS[shape.paint], np.float32), round=False)
            self.paint(shape.points, paint, unit, shape.line, None if shape.paint == "whisker" else pet)

    def toy(self, low: float, high: float, size: float) -> None:
        """Put something on the ground: its foot between rows low and high, `size` of the picture's shorter side."""
        rng, unit = self.rng, size * self.side
        a = Paint(self.tint((206, 60, 56), (66, 120, 190), (190, 214, 70), (184, 142, 98), (90, 150, 160)))
        palette = {
            "a": a,
            "dark": a._replace(gain=0.72),
            "b": Paint(self.tint(COLOURS["cream"], (226, 190, 90), (70, 90, 120), (180, 80, 70)), round=False),
            "leaf": Paint(self.tint((70, 120, 60), (104, 140, 76), (56, 92, 66), like_pet=0.2)),
            "cloth": Paint(self.tint((196, 160, 90), (86, 120, 140), (170, 90, 100)), fur=0.4),
            "plush": Paint(self.tint((176, 128, 84), (200, 180, 160), (150, 160, 190)), fur=0.7),
        }
        x, y = rng.uniform(-0.02, 1.02) * self.width, rng.uniform(low, high)
        shapes = drawing(TOYS[rng.integers(len(TOYS))])
        shapes = moved(shapes, scale=(rng.choice([-1, 1]), 1), turn=rng.uniform(-0.12, 0.12))
        self.draw(moved(shapes, x, y, (unit, -unit)), palette, unit)


# Places.


def room(scene: Scene) -> None:
    rng, h, w, horizon = scene.rng, scene.height, scene.width, scene.horizon
    wall = scene.tint((196, 204, 196), (222, 206, 176), (150, 172, 186), (186, 140, 128))
    scene.fill(0, horizon, wall, 0.03, np.pi / 2)
    if rng.random() < 0.5:  # wallpaper
        period = rng.integers(30, 90)
        stripes = np.arange(w) % period < period * rng.uniform(0.3, 0.6)
        scene.darken(0, np.broadcast_to(stripes, (horizon, w)), rng.uniform(0.8, 0.93))
    if rng.random() < 0.5:  # a picture
        middle, half = rng.uniform((0.1, 0.1), (0.9, 0.5)) * (w, horizon), rng.uniform(0.1, 0.25, 2) * (w, horizon)
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
        scene.paint(middle + corners, Paint(scene.tint((110, 76, 50), (230, 228, 222))))
        scene.paint(middle + 0.82 * corners, Paint(scene.tint((150, 190, 220), (90, 120, 90)), round=False))
    if rng.random() < 0.5:
        scene.fill(horizon, h, scene.tint((168, 118, 76), (130, 92, 64), (196, 166, 126)))
        scene.planks(horizon, h, rng.uniform(2, 4))
    else:
        scene.fill(horizon, h, scene.tint((150, 140, 150), (110, 120, 140), (170, 90, 80)), 0.07, 1.2)
    scene.canvas[horizon - h // 40 : horizon, :, :3] = 226, 222, 214  # skirting board
    if rng.random() < 0.6:
        x, y, r = rng.uniform(0.2, 0.8) * w, rng.uniform(horizon + 0.3 * (h - horizon), h), rng.uniform(0.3, 0.6) * w
        for ring in (1, 0.86, 0.55, 0.45):  # a rug
            dye = scene.tint((176, 70, 62), (70, 96, 130), (226, 214, 190))
            scene.paint(ellipse(x, y, ring * r, 0.36 * ring * r), Paint(dye, fur=0.5, round=False))


def kitchen(scene: Scene) -> None:
    rng, h, w, horizon = scene.rng, scene.height, scene.width, scene.horizon
    scene.fill(0, horizon, scene.tint((214, 220, 214), (176, 196, 204), (226, 210, 180)))
    step = int(rng.integers(36, 80))
    y, x = np.mgrid[:horizon, :w]
    scene.darken(0, (y % step < 3) | ((x + y // step % 2 * step // 2) % step < 3), 0.82)
    scene.fill(horizon, h, scene.tint((226, 222, 212), (206, 190, 160)), 0.02)
    depth = 1 / np.linspace(0.25, 1, h - horizon)[:, None]  # tiles recede towards the horizon
    tiles = np.floor(5 * depth) + np.floor((np.arange(w) - w / 2) * 2.5 * depth / scene.side)
    scene.darken(horizon, tiles % 2 > 0, rng.uniform(0.6, 0.85))


def lawn(scene: Scene) -> None:
    rng, h, w, horizon = scene.rng, scene.height, scene.width, scene.horizon
    behind = rng.integers(3)
    if behind == 0:  # a hedge
        scene.fill(0, horizon, scene.tint((72, 104, 56), (52, 84, 52), like_pet=0.1), 0.12, 0.8, 0.16)
    elif behind == 1:  # a fence
        scene.fill(0, horizon, scene.tint((158, 128, 96), (202, 198, 188)), 0.05, np.pi / 2)
        scene.planks(0, horizon, 1.0)
    else:
        scene.fill(0, horizon, (172, 204, 230), 0.0)
    grass = scene.tint((112, 146, 64), (88, 126, 58), (150, 160, 84), like_pet=0.2)
    scene.fill(horizon, h, grass, 0.15, rng.uniform(1.2, 2), 0.1)
    for _ in range(rng.integers(0, 14)):  # flowers
        x, y, r = rng.uniform(0, w), rng.uniform(horizon, h), rng.uniform(0.008, 0.02) * scene.side
        petals = Paint(scene.tint((240, 236, 220), (236, 204, 70), (206, 120, 170)), round=False)
        for angle in np.arange(5) * 2 * np.pi / 5:
            scene.paint(ellipse(x + r * math.cos(angle), y + r * math.sin(angle), 0.8 * r, 0.8 * r), petals)
        scene.paint(ellipse(x, y, 0.6 * r, 0.6 * r), Paint(np.array(COLOURS["amber"]), round=False))


def sofa(scene: Scene) -> None:
    rng, h, w, horizon = scene.rng, scene.height, scene.width, scene.horizon
    cloth = Paint(scene.tint((104, 120, 128), (150, 84, 76), (190, 176, 150), (86, 98, 78)), fur=0.35)
    scene.fill(0, horizon, scene.tint((206, 200, 188), (176, 188, 190)))
    scene.fill(horizon, h, cloth.colour)
    seats, top, low = int(rng.integers(1, 4)), horizon * rng.uniform(0.05, 0.4), horizon + 0.05 * h
    back = drawing("cloth blob .03 .9, .5 1, .97 .9, 1 0, 0 0")[0].points
    for seat in range(seats):
        scene.paint(back * (w / seats, top - low) + (seat * w / seats, low), cloth)
    edge = horizon + (h - horizon) * rng.uniform(0.5, 0.9)
    front = np.array([(-20, horizon), (w + 20, horizon), (w + 20, edge), (-20, edge)])
    scene.paint(front, cloth._replace(gain=1.08))


def beach(scene: Scene) -> None:
    rng, h, w, horizon = scene.rng, scene.height, scene.width, scene.horizon
    scene.fill(0, horizon, scene.tint((176, 206, 226), (224, 196, 176), (150, 176, 200), like_pet=0.15), 0.0)
    scene.fill(int(horizon * rng.uniform(0.55, 0.9)), horizon, (84, 138, 160), 0.08)
    scene.fill(horizon, h, scene.tint((214, 190, 148), (190, 164, 124), (226, 210, 176)), 0.06, 0.0, 0.1)
    surf = np.stack([np.arange(w), horizon + 4 * np.sin(np.arange(w) / rng.uniform(20, 60))], axis=1)
    scene.paint(surf, Paint(np.array(COLOURS["white"]), round=False), line=rng.uniform(3, 9))


def night(scene: Scene) -> None:
    rng, h, w, horizon = scene.rng, scene.height, scene.width, scene.horizon
    scene.fill(0, horizon, scene.tint((34, 40, 62), (28, 30, 44), (54, 42, 62), like_pet=0.2), 0.03, 0.0, 0.15)
    lamps = scene.canvas[:horizon].copy()
    for _ in range(rng.integers(4, 14)):
        glow = ((250, 214, 140), (240, 150, 90), (150, 190, 240))[rng.integers(3)]
        centre = (int(rng.integers(w)), int(rng.integers(horizon)))
        cv2.circle(lamps, centre, int(rng.uniform(0.02, 0.07) * scene.side), (*glow, 0), -1, cv2.LINE_AA)
    scene.canvas[:horizon] = cv2.addWeighted(lamps, 0.6, scene.canvas[:horizon], 0.4, 0)
    scene.fill(horizon, h, scene.tint((62, 62, 72), (52, 62, 52), (84, 70, 58), like_pet=0.3), 0.06, 0.2, 0.12)


PLACES = (room, kitchen, lawn, sofa, beach, night)


# The picture.


def coat_map(breed: Breed, colours: np.ndarray, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 RGB: the marking, colours[1], on the coat, colours[0].

    x (W,) and y (H, 1) float32: the pixels' places from the pet's upper left corner, 1 the height of the pet.
    """
    pattern = breed.pattern
    cells = max(2, round(6 * max(np.ptp(x), np.ptp(y))))  # lumps of a sixth of the pet, whatever its scale
    cells = {"spots": 3 * cells, "patches": max(2, cells // 2)}.get(pattern, cells)
    noise = clouds(rng, y.size, x.size, cells)
    if pattern == "stripes":
        weight = np.sin(rng.uniform(40, 55) * (x + 0.25 * y) + 1.6 * noise) + 0.3
    elif pattern == "saddle":
        weight = 8 * (0.42 - y) + 0.5 * noise
    else:
        slope, offset = {"solid": (0.25, 0.2), "spots": (3, -2.6), "patches": (9, -1.5)}[pattern]
        weight = slope * noise + offset
    return colours[0] + np.clip(weight, 0, 1)[..., None] * (colours[1] - colours[0])


def cast_shadow(scene: Scene, silhouette: np.ndarray, foot: float, on_wall: bool) -> None:
    """Darken the picture by the shadow of a pet, (H / 8, W / 8) uint8: flat on the ground or on the wall behind it."""
    h, w = silhouette.shape
    squash, lean, shift = (1, 0, -0.08 * w * scene.lit_from) if on_wall else (0.3, 0.7 * scene.lit_from, 0)
    matrix = np.array([[1, lean, shift - lean * foot / 8], [0, squash, (1 - squash) * foot / 8]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(silhouette, matrix, (w, h)), (0, 0), 0.02 * max(h, w) + 0.5)
    shadow = cv2.resize(shadow, (w * 8, h * 8))[: scene.height, : scene.width]
    gain = 1 - np.float32(scene.rng.uniform(0.3, 0.6) / 255) * shadow
    scene.canvas[..., :3] = scene.canvas[..., :3] * gain[..., None]


def silhouette_of(shapes: list[Shape], height: int, width: int) -> np.ndarray:
    """(height, width) uint8, 255 where a filled outline covers."""
    mask = np.zeros((height, width), np.uint8)
    for shape in shapes:
        if not shape.line:
            cv2.fillPoly(mask, [np.round(shape.points).astype(np.int32)], 255)
    return mask


def to_trimap(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool mask to uint8 trimap: 1 pet, 2 background, 3 a band astride the outline, as in the real set."""
    reach = max(1, round(0.0135 * math.sqrt(mask.size)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    mask = cv2.medianBlur(mask.astype(np.uint8), 3)  # single hairs are not worth a band
    trimap = np.full(mask.shape, 3, np.uint8)
    trimap[cv2.erode(mask, disc) == 1] = 1
    trimap[cv2.dilate(mask, disc) == 0] = 2
    return trimap


def photograph(scene: Scene) -> np.ndarray:
    """(H, W, 4) uint8: the scene as a camera sees it, in the room's light, with a tone and noise."""
    rng = scene.rng
    small = cv2.resize(scene.canvas, None, fx=1 / SUPERSAMPLE, fy=1 / SUPERSAMPLE, interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    x, y = np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    light = 1 + rng.uniform(0, 0.2) * scene.lit_from * x - rng.uniform(0, 0.15) * y - 0.06 * (x**2 + y**2)
    tone = (rng.uniform(0.85, 1.12) * rng.normal(1, 0.03, 3)).astype(np.float32)
    noise = rng.standard_normal((h, w, 1), dtype=np.float32) * np.float32(rng.uniform(1, 4))
    small[..., :3] = np.clip(small[..., :3] * (light[..., None] * tone) + noise, 0, 255)
    return small


def draw_pet(
    rng: np.random.Generator, size: tuple[int, int] = (180, 330), breed: Breed | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture.

    size: the range of its sides in pixels; breed: any of BREEDS if not given.
    Returns image (H, W, 3) uint8 RGB and trimap (H, W) uint8: 1 pet, 2 background, 3 boundary.
    """
    breed = breed or BREEDS[rng.integers(len(BREEDS))]
    h, w = (int(side) * SUPERSAMPLE for side in rng.integers(size[0], size[1] + 1, 2))
    coats = breed.coats.split(", ")
    colours = np.array([COLOURS[name] for name in coats[rng.integers(len(coats))].split()])
    colours = np.clip(colours * rng.uniform(0.85, 1.1) + rng.normal(0, 6, 3), 10, 250).astype(np.float32)

    pose = POSES[rng.choice(len(POSES), p=[pose.often for pose in POSES])]
    pet = moved(draw_body(pose, breed, rng), scale=(rng.choice([-1, 1]), 1), turn=rng.normal(0, 0.04))
    points = np.concatenate([s.points for s in pet if s.paint != "whisker"])
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    pet = moved(pet, *(-low))
    # How much of the picture the pet fills, then where it is: up to a fifth of its width and height may be cut off.
    close_up = pose is PORTRAIT
    grid = 50  # pixels to a unit, to measure the area
    columns, rows = (extent * grid).astype(int) + 1
    area = np.count_nonzero(silhouette_of(moved(pet, scale=(grid, grid)), rows, columns)) / grid**2
    share = rng.uniform(0.4, 0.8) if close_up else rng.uniform(0.16, 0.62)
    unit = min(math.sqrt(share * h * w / area), 1.2 * w / extent[0], (1.5 if close_up else 1.15) * h / extent[1])
    box_w, box_h = unit * extent
    left = rng.uniform(*sorted((-0.2 * box_w, w - 0.8 * box_w)))
    top = rng.uniform(*sorted((-0.08 * box_h, h - 0.85 * box_h)))
    foot = max(top, h - 0.97 * box_h) + box_h if close_up else top + box_h
    pet = moved(pet, left, foot, (unit, -unit))

    horizon = int(np.clip(foot - rng.uniform(0.12, 0.8) * box_h, 0.15 * h, 0.88 * h))
    scene = Scene(rng, h, w, horizon, colours)
    PLACES[rng.integers(len(PLACES))](scene)
    for _ in range(rng.integers(0, 4)):
        scene.toy(horizon, max(horizon, min(foot, h)), rng.uniform(0.12, 0.4))
    silhouette = silhouette_of(moved(pet, scale=(1 / 8, 1 / 8)), h // 8 + 1, w // 8 + 1)
    cast_shadow(scene, silhouette, foot, on_wall=close_up)
    blur = max(1, round(rng.uniform(0.008, 0.024) * min(h, w)))  # the pet is in focus, what is behind it less so
    scene.canvas = cv2.blur(scene.canvas, (blur, blur))
    x = (np.arange(0, w, 2, dtype=np.float32) - left) / box_h  # at half the size: fur is soft
    y = (np.arange(0, h, 2, dtype=np.float32)[:, None] - foot) / box_h + 1
    coat = Paint(cv2.resize(coat_map(breed, colours, rng, x, y), (w, h)), breed.fluff)
    collar = ((196, 48, 48), (44, 92, 176), (52, 140, 84), (226, 180, 60), (150, 70, 150))[rng.integers(5)]
    pink_nose = breed.is_cat and breed.coats.split()[2] == "white"
    palette = {
        "coat": coat,
        "shade": coat._replace(gain=0.72),  # limbs on the far side
        "trim": Paint(colours[2], breed.fluff),
        "tips": Paint(colours[3], breed.fluff),
        "collar": Paint(np.array(collar)),
        "tag": Paint(np.array(COLOURS["amber"])),
        "iris": Paint(np.array(COLOURS[breed.eyes]), round=False),
        "nose": Paint(np.array(COLOURS["pink" if pink_nose else "ink"]), round=False),
    }
    scene.draw(pet, palette, unit, pet=255)
    if rng.random() < 0.25:  # something in front of the pet
        scene.toy(0.98 * h, 1.1 * h, rng.uniform(0.15, 0.3))
    picture = photograph(scene)
    return picture[..., :3].copy(), to_trimap(picture[..., 3] > 127)


# The data set.


def breed_of(index: int) -> Breed:
    """The breed of picture `index`: golden-ratio steps, so that any evenly spaced subset has cats and dogs."""
    return BREEDS[int(len(BREEDS) * ((0.3 + index * (math.sqrt(5) - 1) / 2) % 1))]


def write_pet(folder: Path, index: int, seed: int, size: tuple[int, int]) -> str:
    """Draw picture `index`, whose randomness is (seed, index) alone, and write it; returns its line for the lists."""
    breed = breed_of(index)
    name = f"{breed.name}_{index + 1:03d}"
    image, trimap = draw_pet(np.random.default_rng([seed, index]), size, breed)
    # Not cv2.imwrite: where the disk is full, it returns False and these raise.
    jpg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    (folder / "images" / f"{name}.jpg").write_bytes(jpg.tobytes())
    (folder / "annotations" / "trimaps" / f"{name}.png").write_bytes(cv2.imencode(".png", trimap)[1].tobytes())
    class_id = BREEDS.index(breed) + 1
    return f"{name} {class_id} 1 {class_id}\n" if breed.is_cat else f"{name} {class_id} 2 {class_id - CATS}\n"


def describe(count: int, seed: int, size: tuple[int, int]) -> dict:
    """What the marker says: all that decides the pixels but for versions. ValueError if out of range."""
    if count < 4:
        raise ValueError(f"--count is {count}; it takes 4 pictures to have cats and dogs in both halves")
    if seed < 0:
        raise ValueError(f"--seed is {seed}; it cannot be negative")
    if not 32 <= size[0] <= size[1] <= 1000:
        raise ValueError(f"--size is {size[0]} {size[1]}; it takes a smaller and a larger number from 32 to 1000")
    about = "Pets drawn by src/synthetic_pet.py in the layout of the Oxford-IIIT Pet data set; no photographs."
    return {"about": about, "drawing": DRAWING, "count": count, "seed": seed, "size": list(size)}


def already_drawn(root: Path, description: dict, overwrite: bool = False) -> bool:
    """Whether root holds exactly these pets; ValueError if it holds anything else that must not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MARKER).read_text())
        ours = found["about"] == description["about"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"{root} was not made by this script and is left as it is; choose another folder")
    files = [len(list(root.glob(pattern))) for pattern in ("images/*.jpg", "annotations/trimaps/*.png")]
    if found == description and files == [description["count"]] * 2:
        return True
    if not overwrite:
        holds = ", ".join(f"{key} {found.get(key)}" for key in ("count", "seed", "size", "drawing"))
        raise ValueError(f"{root} holds other pets ({holds}) or lacks some; choose another folder or add --overwrite")
    return False


def write_dataset(
    root: str | Path,
    count: int = 400,
    seed: int = 0,
    size: tuple[int, int] = (180, 330),
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write `count` pictures with sides in `size` pixels, their trimaps and lists to root; half are test. Returns root.

    root has its name only once it is complete. Where it holds these pictures already, nothing is drawn.
    Raises ValueError for a number out of range or a folder that must not be replaced, OSError if it cannot be written.
    """
    root = Path(root).resolve()
    description = describe(count, seed, size)
    if already_drawn(root, description, overwrite):
        return root
    draft, old = (root.with_name(f"{root.name}.{suffix}-{os.getpid()}") for suffix in ("draft", "old"))
    (draft / "annotations" / "trimaps").mkdir(parents=True)
    (draft / "images").mkdir()
    pool = ThreadPoolExecutor(os.cpu_count())  # cv2 and numpy release the interpreter's lock
    try:
        drawn = pool.map(lambda index: write_pet(draft, index, seed, size), range(count))
        lines = list(tqdm(drawn, "drawing", count, unit="pet", disable=not progress))
        for name, text in (("trainval", lines[::2]), ("test", lines[1::2]), ("list", [LIST_HEADER, *lines])):
            (draft / "annotations" / f"{name}.txt").write_text("".join(text))
        (draft / MARKER).write_text(json.dumps(description, indent=1) + "\n")
        if root.exists():
            root.rename(old)  # empty or ours: already_drawn refuses all others
        draft.rename(root)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(draft, ignore_errors=True)
    return root


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw cats and dogs in the layout of the Oxford-IIIT Pet data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="folder to write")
    add("--count", type=int, default=400, help="pictures; half of them are test")
    add("--seed", type=int, default=0, help="same seed and versions of numpy and cv2, same pixels")
    add("--size", type=int, nargs=2, default=(180, 330), metavar=("MIN", "MAX"), help="pixels to a picture's side")
    add("--overwrite", action="store_true", help="replace DIR, with all in it, if this script made it")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    started = time.perf_counter()
    try:
        if already_drawn(args.folder, describe(args.count, args.seed, args.size), args.overwrite):
            print(f"{args.folder} holds these {args.count} pets already.")
        else:
            print(f"Drawing {args.count} pets of {len(BREEDS)} breeds, half of them test, {args.size[0]} to", end=" ")
            print(f"{args.size[1]} pixels a side, seed {args.seed}, into {args.folder}", flush=True)
            write_dataset(args.folder, args.count, args.seed, args.size, args.overwrite, progress=True)
            print(f"Wrote {args.folder} in {time.perf_counter() - started:.1f} s.")
    except (ValueError, OSError) as error:
        reason = f"cannot write {args.folder}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"synthetic_pet.py: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("synthetic_pet.py: stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"Next: python src/train.py --model R --data_path {args.folder} --image_size 128 --epochs 15")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an unfinished folder is removed
    sys.exit(main())
