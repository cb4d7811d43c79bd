"""Faults done to real trainings, by benchmarks/soak.py in its shortest form."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="soak.py reads /proc and mounts a small disk")


@pytest.mark.slow
def test_faults_lose_nothing(tmp_path: Path) -> None:
    """Kills inside saves, a signal, a full disk, damage and a second run, one after the other."""
    import soak

    soak.main(["--minutes", "0.01", "--results", str(tmp_path)])
    figures = json.loads((tmp_path / "soak-cpu.json").read_text())
    assert figures["first_violations"] == []
    assert [figures[name] for name in soak.WRONG] == [0] * len(soak.WRONG)
    assert all(figures[name] for name in soak.DONE)


def test_runs_are_compared_to_the_bit() -> None:
    from soak import is_same

    def run(weight: float = 0.1, seconds: float = 1.0, **more: object) -> dict:
        return {"model": {"w": torch.tensor([weight])}, "history": [{"valid_dice": 0.5, "seconds": seconds}], **more}

    assert is_same(run(), run(seconds=2.0))
    assert not is_same(run(), run(weight=0.1 + 1e-8))
    assert not is_same(run(), run(step=1))
    assert not is_same(run(), run() | {"history": []})
