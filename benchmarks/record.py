"""Write a benchmark's figures as JSON, with the machine, versions, commit and command that they come from."""

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from plumbing.cli import REPO, machine, shell
from plumbing.files import atomic_write

import torch

from checkpoint import provenance

RESULTS = REPO / "benchmarks" / "results"


def device_slug(device: torch.device) -> str:
    """How files of results name a device: ``cpu``, ``nvidia-h200``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def origin(script: str, argv: list[str]) -> dict[str, Any]:
    """Where figures come from.

    Args:
        script: its name, such as ``speed.py``.
        argv: its flags; an absolute path is cut to its last part, because it means nothing on another machine.
    """
    flags = [Path(part).name if Path(part).is_absolute() else part for part in argv]
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        **provenance(),
        "command": shell("python", f"benchmarks/{script}", *flags),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically, one top-level entry a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    with atomic_write(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
