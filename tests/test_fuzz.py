"""Damaged and hostile files, drawn at random: each is read as documented, or refused in one line.

``make test`` draws a few of each kind, ``make test-all`` 11,100; the same ones each time.
"""

import copy
import io
import os
import random
import resource
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from plumbing.cli import UserError
from plumbing.images import decode_image, decode_photo, decode_raw

import numpy as np
import pytest
import torch
from conftest import Train
from PIL import Image
from test_checkpoint import contents

import train
from checkpoint import load_checkpoint, provenance
from oxford_pet import image_path, read_list, read_split, trimap_path
from predictor import Predictor
from recipes import Config
from report import read_history
from trimap import decode_trimap

hypothesis = pytest.importorskip("hypothesis", reason="pip install -r requirements-dev.txt")
st = hypothesis.strategies

Check = Callable[[Any], None]
PIXELS = 10**6  # that Pillow is allowed: more would take long
MEMORY = 2**29  # bytes that a property may take at most


def cases(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def for_all(count: int, strategy: Any, check: Check) -> None:
    """Check ``count`` examples of a strategy, none of which may take 20 s or the process ``MEMORY`` more."""
    outcomes.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],  # a failure is reported as drawn: shrinking takes minutes
        deadline=timedelta(seconds=20),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    limits(hypothesis.given(strategy)(check))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY / 1024


outcomes: Counter[str] = Counter()
watched: list[list[str]] = []  # what is done that reading a file must not do


def watch(event: str, args: tuple) -> None:
    is_writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if watched and (is_writing or event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn")):
        watched[-1].append(f"{event} {args[0]!r}")


sys.addaudithook(watch)


@contextmanager
def reading(begins: str) -> Iterator[None]:
    """Nothing is written, no program run, and nothing raised but a UserError, one line that begins with ``begins``."""
    watched.append([])
    try:
        yield
    except UserError as error:
        message = str(error)
        assert (
            message.startswith(begins)
            and len(message.splitlines()) == 1
            and len(message.replace(begins.strip(), "")) < 500
        ), message
        outcomes[message.removeprefix(begins)[:25]] += 1
    finally:
        assert watched.pop() == []


# ---------------------------------------------------------------------------------------------- bytes

NUMBERS = (0, 1, 2, 127, 255, 256, 60_000, 2**16 - 1, 2**31 - 1, 2**32 - 1)
EDITS = st.lists(st.integers(0, 2**64), min_size=1, max_size=3, unique=True)


def edited(data: bytes, seeds: list[int], others: list[bytes]) -> bytes:
    """Apply an edit for each seed to a file's bytes; most are near its beginning, where the headers are."""
    for seed in seeds:
        rng = random.Random(seed)
        kind = rng.choice(("flip", "flip", "number", "number", "delete", "insert", "cut", "splice"))
        at, size = min(4 + int(rng.random() ** 2 * len(data)), len(data)), rng.choice((1, 2, 4, 30))
        if kind == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == "number":
            packed = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS))
            data = data[:at] + (packed if size > 4 else packed[:size]) + data[at + min(size, 4) :]
        elif kind == "delete":
            data = data[:at] + data[at + size :]
        elif kind == "insert":
            data = data[:at] + rng.randbytes(size) + data[at:]
        elif kind == "cut":
            data = data[: len(data) - at]
        elif kind == "splice":
            other = rng.choice(others)
            data = data[:at] + other[min(at, len(other)) :]
    return data


def with_right_checksums(png: bytes) -> bytes:
    """So that an edited PNG is not refused for these alone."""
    at, data = 8, bytearray(png)
    while png.startswith(b"\x89PNG") and at + 12 <= len(png):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end])) if end + 4 <= len(data) else b""
        at = end + 4
    return bytes(data)


def image_files() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    colours, exif = Image.fromarray(noise), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a pet"
    ways: list[tuple[str, str, dict[str, Any]]] = [
        *(("JPEG", mode, options) for mode in ("L", "RGB", "CMYK") for options in ({"exif": exif}, {"progressive": 1})),
        *(("PNG", mode, {"exif": exif}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("WEBP", mode, {"lossless": mode == "RGB"}) for mode in ("RGB", "RGBA")),
        *(("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F")),
        *(("TIFF", "RGB", {"compression": kind}) for kind in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        ("TIFF", "1", {"compression": "group4"}),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *((kind, "RGB", {"save_all": True, "append_images": [colours.convert("RGB")] * 2}) for kind in ("GIF", "MPO")),
        ("WEBP", "RGBA", {"save_all": True, "append_images": [colours.transpose(0)] * 2}),
    ]
    files = []
    for kind, mode, options in ways:
        image = Image.fromarray(noise[..., 0].astype(np.uint16)) if mode == "I;16" else colours.convert(mode)
        image.save(file := io.BytesIO(), kind, **options)
        files.append(file.getvalue())
    for shown in (Image.fromarray(noise[..., 0] % 3 + 1), Image.fromarray(noise[..., 0] % 3 + 1).convert("I;16")):
        shown.save(file := io.BytesIO(), "PNG")  # trimaps
        files += [file.getvalue()] * 3
    return files


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd tags
@cases(60, 5000)
def test_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS)
    files, path = [*image_files(), random.Random(0).randbytes(200)], tmp_path / "x.jpg"
    contents = st.tuples(st.sampled_from(files), EDITS, st.booleans())

    def check(drawn: Any) -> None:
        seed, edits, has_right_checksums = drawn
        data = edited(seed, edits, files)
        data = with_right_checksums(data) if has_right_checksums else data
        path.write_bytes(data)
        for decode in (decode_image, decode_raw, decode_trimap, lambda path: decode_photo(data, path)):
            with reading(f"{path} "):
                image = decode(path)
                outcomes[f"read by {decode.__name__}"] += 1
                assert image.size > 0 and image.shape[0] * image.shape[1] <= 2 * PIXELS
                if decode is decode_image:
                    assert image.dtype == np.uint8 and image.shape[2:] == (3,)
                elif decode is decode_raw:
                    assert image.ndim in (2, 3)
                elif decode is decode_trimap:
                    assert image.dtype == np.uint8 and image.ndim == 2 and set(np.unique(image)) <= {1, 2, 3}
                else:
                    assert image.dtype == np.uint8 and image.shape[2:] == (4,)

    for_all(count, contents, check)
    print(outcomes.most_common())


# ---------------------------------------------------------------------------------------------- lists

WORDS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"[a-z]{1,9}_[0-9]{1,3}", fullmatch=True),
    st.sampled_from(("..", ".", "/etc/x", "a/b", "a\\b", "c:", ".x", "\0", "\x9b2J", "\ufeffa_1")),
)
SEPARATORS = st.sampled_from((" ", " 1 1 1\n", "\n", "\r\n", "\r", "\t", "\0", "\u2028", "\n#", "\n\n", "\x0b"))


@cases(20, 1000)
def test_lists(tmp_path: Path, count: int) -> None:
    (tmp_path / "annotations" / "trimaps").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    texts = st.lists(st.tuples(WORDS, SEPARATORS), max_size=6).map(lambda words: "".join(map("".join, words)))
    files = st.tuples(
        st.one_of(st.just(b""), st.just(b"\xef\xbb\xbf")),
        texts.map(str.encode),
        st.sampled_from((b"",) * 9 + (b"\xff",)),
    )
    readers: list[Callable[[], list[str]]] = [
        lambda name=name: read_list(tmp_path, name) for name in ("trainval", "test")
    ]
    readers += [lambda mode=mode: read_split(tmp_path, mode) for mode in ("train", "valid", "test")]

    def check(drawn: list[tuple[bytes, bytes, bytes]]) -> None:
        for name, parts in zip(("trainval", "valid", "test"), drawn, strict=True):
            (tmp_path / "annotations" / f"{name}.txt").write_bytes(b"".join(parts))
        for read in readers:
            with reading(f"{tmp_path / 'annotations'}/"):
                names = read()
                outcomes["a list" if names else "an empty list"] += 1
                assert len(set(names)) == len(names)
                for name in names:
                    assert name.split() == [name] and name[0] != "."
                    for path in (image_path(tmp_path, name), trimap_path(tmp_path, name)):
                        assert path.resolve().parent in (tmp_path / "images", tmp_path / "annotations" / "trimaps")
                        assert not path.is_file()  # nor is its name too long to ask

    for_all(count, st.tuples(files, files, files), check)
    print(outcomes.most_common())


# ---------------------------------------------------------------------------------------------- checkpoints


def odd_tensors() -> list[torch.Tensor]:
    ones = torch.ones(4)
    kinds = (torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    shapes = ((), (0,), (1,), (3,), (5, 3), (4, 3, 3, 3), (1, 4, 3, 3))
    return [
        *(ones.to(kind) for kind in kinds),
        *(torch.full(shape, value) for shape in shapes for value in (1.0, float("nan"))),
        ones.to("meta"),
        ones.to_sparse(),
        torch.ones(()).expand(10**12),
        torch.nn.Parameter(ones),
    ]


KEYS = st.sampled_from(("0.weight", "epoch", "model", "network", "step", "betas", "lr", "exp_avg", 0, 1, -1, None, 2.5))
PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        st.sampled_from((10**30, -(10**400), 2**63)),
        st.floats(),
        st.text(max_size=9),
        st.sampled_from(
            ("x" * 3000, "a\nb", "auto", "sgd", "\ud800", "../x", b"x", 1j, torch.float32, torch.Size([2]))
        ),
        st.sampled_from(odd_tensors()),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=4,
)
CHANGES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 10**4), min_size=1, max_size=6),
        st.sampled_from(("put", "put", "near", "near", "delete", "insert")),
        st.one_of(st.integers(0, 99), PLAIN),
        KEYS,
    ),
    min_size=1,
    max_size=2,
)


def near(value: Any, number: int) -> Any:
    """A value of the kind that is expected there, or almost."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or not value.is_floating_point() or value.is_meta or value.numel() > 999:
            return value
        changed = (value.double(), value.cfloat(), value.long(), value.flatten(), value[None], value * float("nan"))
        return (*changed, value.to_sparse(), value.to("meta"), -value, value.tolist())[number % 10]
    if isinstance(value, bool | None):
        return not value
    if isinstance(value, int | float):
        small = (value + 1, -value, value * 1.0, str(value)) if abs(value) < 1e9 else ()
        return (*small, float("nan"), torch.tensor([1, 2]), [value])[number % (3 + len(small))]
    return 2 * value if isinstance(value, str | complex) else list(value)


def change(state: Any, changes: list[tuple[list[int], str, Any, Any]]) -> None:
    """Change plain data in place; each change walks down the dicts and lists by the numbers that it is given."""
    for path, kind, value, new_key in changes:
        place, key, inner = None, None, state
        for number in path:
            if not (isinstance(inner, dict | list) and inner):
                break
            place, keys = inner, list(inner) if isinstance(inner, dict) else range(len(inner))
            key = keys[number % len(keys)]
            inner = place[key]
        if place is None:
            return
        if kind == "delete":
            del place[key]
        elif kind == "insert" and isinstance(place, dict):
            place[new_key] = value
        elif kind == "insert":
            place.insert(0, value)
        else:
            place[key] = near(inner, value) if kind == "near" and isinstance(value, int) else value


def of_every_format() -> list[dict[str, Any]]:
    run = {"image_size": 64, "boundary": "ignore", "data_path": "dataset/mine"}
    whole = contents() | provenance()
    old = {"format": 1, "network": "lab2.UNet", "model": whole["model"], "run": run, "recipe": {"name": "lab2"}}
    return [whole, whole, old, dict(whole["model"])]


def check_file(path: Path) -> None:
    """It is refused, or all that is promised of what is loaded holds."""
    with reading(f"{path} "):
        state = load_checkpoint(path)
        Predictor(state, "cpu")
        assert isinstance(state["config"], Config)
        assert all(value.isfinite().all() for value in state["model"].values())
        assert all(isinstance(text, str) for text in (state.get("versions") or {}).values())
        outcomes["loaded"] += 1


@cases(50, 2500)
def test_checkpoints_of_changed_bytes(tiny_network: None, tmp_path: Path, count: int) -> None:
    path, files = tmp_path / "x.pth", []
    for state in of_every_format():
        for is_zip in (True, False):
            torch.save(state, file := io.BytesIO(), _use_new_zipfile_serialization=is_zip)
            files.append(file.getvalue())

    def check(drawn: tuple[bytes, list, bool]) -> None:
        data, edits, is_within = drawn
        if is_within and zipfile.is_zipfile(io.BytesIO(data)):  # the pickled part, under a checksum that is right
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
                for name in old.namelist():
                    part = old.read(name)
                    new.writestr(name, edited(part, edits, files) if name.endswith("data.pkl") else part)
        else:
            path.write_bytes(edited(data, edits, files))
        check_file(path)

    for_all(count, st.tuples(st.sampled_from(files), EDITS, st.booleans()), check)
    print(outcomes.most_common())


@cases(50, 2500)
def test_checkpoints_of_changed_entries(tiny_network: None, tmp_path: Path, count: int) -> None:
    def check(drawn: tuple[int, list]) -> None:
        state = copy.deepcopy(states[drawn[0]])
        change(state, drawn[1])
        torch.save(state, tmp_path / "x.pth")
        check_file(tmp_path / "x.pth")

    states = of_every_format()
    for_all(count, st.tuples(st.integers(0, len(states) - 1), CHANGES), check)
    print(outcomes.most_common())


@cases(5, 100)
def test_training_states_of_changed_entries(
    run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(train, "render_page", lambda *_, **__: None)  # which takes longer than all the rest
    flags, path = ("--recipe", "lab2", "--name", "R"), tmp_path / "R" / "R_last.pth"
    run_train("--epochs", 1, *flags)
    data = path.read_bytes()

    def check(drawn: tuple[list, bool]) -> None:
        state = torch.load(io.BytesIO(data))
        change(state["training"] if drawn[1] else state, drawn[0])
        torch.save(state, path)
        try:
            run_train("--resume", "--epochs", 2, *flags)
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 500, error
            outcomes[str(error).replace(str(path), "")[:50]] += 1
            return
        outcomes["trained"] += 1
        assert len(read_history(path.with_name("R_history.csv"))) == 2

    for_all(count, st.tuples(CHANGES, st.sampled_from((True, True, True, False))), check)
    print(outcomes.most_common())
