"""Faults done to real trainings, by benchmarks/soak.py in its shortest form."""

import json
import sys
from pathlib import Path

import pytest
import torch

import soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="soak.py reads /proc and limits another process")
def test_faults_lose_nothing(tmp_path: Path) -> None:
    soak.main(["--minutes", "0.01", "--results", str(tmp_path)])
    figures = json.loads((tmp_path / "soak-cpu.json").read_text())
    assert figures["first_violations"] == []
    assert all(figures[name] for name in soak.DONE)


def test_runs_are_compared_to_the_bit() -> None:
    def run(weight: float = 0.1, seconds: float = 1.0, **more: object) -> dict:
        return {"model": {"w": torch.tensor([weight])}, "history": [{"valid_dice": 0.5, "seconds": seconds}], **more}

    assert soak.is_same(run(), run(seconds=2.0))
    assert not soak.is_same(run(), run(weight=0.1 + 1e-8))
    assert not soak.is_same(run(), run(step=1))
    assert not soak.is_same(run(), run() | {"history": []})
