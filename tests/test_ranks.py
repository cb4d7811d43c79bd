"""ranks.py: two gloo processes on the CPU do what one does, stop together, and go on when one of them dies."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from plumbing import ranks
from plumbing.cli import REPO, UserError

import pytest
import torch
import torch.distributed as dist

from augment import EpochPlan, draw_epoch
from metrics import evaluate
from recipes import RECIPES, Config
from split import load_split
from train import Trainer

BATCH = 8


def torchrun(count: int, *command: object, **options: object) -> subprocess.Popen:
    """Start a script in ``count`` processes, which Ctrl-C would reach all."""
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--rdzv-backend=c10d",
             "--rdzv-endpoint=localhost:0", *map(str, command)]  # fmt: skip
    return subprocess.Popen(
        words, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def train(
    count: int, drawn_pets: Path, save_path: Path, *flags: object, torchrun_flags: tuple = ()
) -> subprocess.Popen:
    return torchrun(
        count, *torchrun_flags, REPO / "src" / "train.py", "--model", "ResNet34_UNet_small", "--name", "R",
        "--data_path", drawn_pets, "--image_size", 32, "--save_path", save_path, "--save_every", 0, *flags,
    )  # fmt: skip


def epochs(folder: Path) -> list[int]:
    rows = (folder / "R" / "R_history.csv").read_text().splitlines()[1:]
    return [int(row.split(",")[0]) for row in rows]


def wait_for(process: subprocess.Popen, line: str) -> str:
    """Read what a process prints, up to a line that begins so."""
    said = ""
    for read in process.stdout:
        said += read
        if read.startswith(line):
            return said
    raise AssertionError(said)


@pytest.fixture(scope="module")
def computed(drawn_pets: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What ``compute`` below found with one process and with two."""
    folder = tmp_path_factory.mktemp("ranks")
    for count in (1, 2):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO / "src")}
        process = torchrun(count, __file__, drawn_pets, folder / f"{count}.pt", env=env)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return [torch.load(folder / f"{count}.pt", weights_only=False) for count in (1, 2)]


def test_two_ranks_take_the_steps_that_one_takes(computed: list[dict]) -> None:
    one, two = computed
    assert two["losses"][0] == pytest.approx(one["losses"][0], rel=1e-6)
    assert (one["gradient"] - two["gradient"]).norm() < 1e-6 * one["gradient"].norm()
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for name, value in one["statistics"].items():  # of BatchNorm, after the first step
        torch.testing.assert_close(two["statistics"][name], value)


def test_an_evaluation_split_over_ranks_gives_equal_scores(computed: list[dict]) -> None:
    for found in computed:
        (*scores, loss), (*scores_of_one, loss_of_one) = found["scores"], found["scores of one"]
        assert scores == scores_of_one
        assert loss == pytest.approx(loss_of_one, rel=1e-6)  # sums are reordered
    assert len(computed[1]["scores"][0]) == 20


def test_batchnorm_over_ranks_takes_bfloat16_as_pytorchs_does(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        ours, reference = ranks.BatchNormOverRanks(3), torch.nn.BatchNorm2d(3)
        features = (5 + 3 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).bfloat16()
        output, expected = ours(features), reference(features)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output, expected, rtol=0.01, atol=0.01)
        torch.testing.assert_close(ours.running_var, reference.running_var, rtol=1e-3, atol=0)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_a_run_stops_on_both_ranks_and_resumes_on_any_number(drawn_pets: Path, tmp_path: Path) -> None:
    process = train(2, drawn_pets, tmp_path, "--epochs", 12, "--batch_size", BATCH)
    said = wait_for(process, "Epoch 1/12")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said += process.communicate(timeout=60)[0]
    assert said.count("Epoch 1/12") == 1  # one rank prints
    assert said.count("go on with: python src/train.py") == 1
    state = torch.load(tmp_path / "R" / "R_last.pth")
    done = state["epoch"]
    assert 1 <= done < 12
    for count in (1, 2):
        process = train(count, drawn_pets, tmp_path, "--resume")
        said = wait_for(process, f"Epoch {done + 1}/12")
        if count == 1:
            os.killpg(process.pid, signal.SIGTERM)
        said += process.communicate(timeout=200)[0]
        done = torch.load(tmp_path / "R" / "R_last.pth")["epoch"]
    assert done == 12
    assert epochs(tmp_path) == list(range(1, 13))
    assert {path.suffix for path in (tmp_path / "R").iterdir()} == {".pth", ".csv", ".npy", ".png", ".json", ".html"}


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_and_torchrun_resumes_it(drawn_pets: Path, tmp_path: Path) -> None:
    process = train(2, drawn_pets, tmp_path, "--epochs", 8, "--batch_size", BATCH, torchrun_flags=("--max_restarts", 1))
    said = wait_for(process, "Epoch 2/8")
    of_ranks = [pid for pid in children(process.pid) if "train.py" in command_line(pid)]
    assert len(of_ranks) == 2
    os.kill(of_ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    said += wait_for(process, "writes to")
    assert time.monotonic() - killed < 60  # 30 s to end, and the start of the new processes
    said += process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert "Traceback" not in re.sub("(?s)torch/distributed/.*", "", said), said
    assert "another process of the run has ended" in said
    assert epochs(tmp_path) == list(range(1, 9))


def test_a_batch_that_the_ranks_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: 3)
    with pytest.raises(UserError, match="--batch_size 4 cannot be divided by 3 processes"):
        Trainer(Config("UNet", batch_size=4), torch.device("cpu"), [], [], torch.float32)


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


# ---------------------------------------------------------------------------------------------- one of the processes


def compute(drawn_pets: Path, result: Path) -> None:
    """Take 20 steps on batches of 8 and score the test split, as one of the ranks; the first writes what it found."""
    # In float32, rounding alone moves this gradient by 0.5%: some features are close to 0, where ReLU bends.
    torch.set_default_dtype(torch.float64)
    device = ranks.join("cpu")
    config = replace(RECIPES["default"]("ResNet34_UNet_small"), batch_size=BATCH, image_size=64, precision="fp32")
    train, test = (load_split(drawn_pets, mode, 64) for mode in ("train", "test"))
    trainer = Trainer(config, device, train, test, torch.float32)
    plan = draw_epoch(config.augmentation, len(train), BATCH, seed=0, epoch=1)
    plan = EpochPlan(*(ranks.shard(part, BATCH) for part in (plan.order, plan.theta, plan.colour)))
    trainer.model.train()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-4
    found = {"losses": []}

    def keep_first(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if "gradient" not in found:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            found["gradient"] = torch.cat([weight.grad.flatten() for weight in weights])
            buffers = trainer.model.named_buffers()
            found["statistics"] = {name: value.clone() for name, value in buffers if "running" in name}

    trainer.optimizer.register_step_pre_hook(keep_first)
    size = BATCH // ranks.world()
    for step in range(20):
        first = step % (len(plan.order) // size) * size
        part = slice(first, first + size)
        loss = trainer.train_step(train.pixels[plan.order[part]], plan.theta[part], plan.colour[part], 64)
        found["losses"].append(float(ranks.mean(loss)))

    def scores() -> list:
        found = evaluate(trainer.predictor, test, 19, trainer.criterion)  # the last batch has one image for two ranks
        return [found.dice.tolist(), found.iou.tolist(), found.empty_target.tolist(), found.loss]

    found["scores"] = scores()
    world, ranks.world, ranks.rank = ranks.world, lambda: 1, lambda: 0
    found["scores of one"] = scores()
    ranks.world = world
    if int(os.environ["RANK"]) == 0:
        torch.save(found, result)


if __name__ == "__main__":
    compute(*map(Path, sys.argv[1:]))
