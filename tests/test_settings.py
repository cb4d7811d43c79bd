"""settings.py: any field by --set, a run by --config, and the page that lists the fields."""

import inspect
import json
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from plumbing.cli import REPO, UserError

import pytest
import torch
from conftest import shake_norms
from torchvision.models import resnet34
from torchvision.models.feature_extraction import create_feature_extractor

import train
from augment import Augmentation
from checkpoint import checkpoint_path, load_checkpoint, pretrained_encoder
from losses import LOSSES
from models import NETWORKS, build_network
from recipes import CHOICES, RANGES, RECIPES, Config
from settings import FIELDS, parse_args, parse_setting, resolve_config

Train = Callable[..., None]


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "loss=mse": "mse",
        "augmentation.rotation=30": 30,
        "augmentation.integer_degrees=true": True,
        "ema_steps=0": 0,
        "weight_decay=1e-3": 0.001,
        "limit=none": None,
        "mean=1,2.5,3": (1, 2.5, 3),
        "progressive=((0.5, 2),)": ((0.5, 2),),
        "pretrained=imagenet": "imagenet",
    }.items(),
)
def test_a_setting_is_parsed_by_its_fields_type(text: str, value: object) -> None:
    assert parse_setting(text) == (text.partition("=")[0], value)
    config = resolve_config("ResNet34_UNet", dict([parse_setting(text)]))
    owner = config.augmentation if text.startswith("augmentation") else config
    assert getattr(owner, text.partition("=")[0].rpartition(".")[2]) == value


@pytest.mark.parametrize(
    ("text", "error"),
    {
        "rotation=3": r"no setting 'rotation=3'; did you mean augmentation\.rotation=3\?",
        "augmentation.rotatoin=3": r"did you mean augmentation\.rotation=3",
        "los=bce": "did you mean loss=bce",
        "loss": "no setting 'loss'",
        "xyz=1": r"no setting 'xyz=1'; docs/training\.md lists them",
        "loss=cross": "loss cannot be 'cross'; there are bce_dice, bce, mse",
        "epochs=1.5": "epochs cannot be '1.5'; it can be from 1 up",
        "epochs=true": "epochs cannot be 'true'",
        "score_train=1": "score_train cannot be '1'",
        "warmup=nan": "warmup cannot be 'nan'",
        "network=UNet": "--model and --recipe choose the network",
    }.items(),
)
def test_what_cannot_be_set_is_named(text: str, error: str) -> None:
    with pytest.raises(ArgumentTypeError, match=error):
        parse_setting(text)


@pytest.mark.parametrize(
    ("flags", "said"),
    {
        "--epochs 3 --set epochs=4": "--set epochs is given twice",
        "--set warmup=0 --set warmup=0.1": "--set warmup is given twice",
        f"--config {__file__}": "--config starts a new run",
        f"--pretrained --init_from {__file__}": "--pretrained starts a new run",
    }.items(),
)
def test_flags_that_contradict_each_other_are_refused(
    flags: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--model", "R", *flags.split()])
    assert f"error: {said}" in capsys.readouterr().err


def test_a_setting_is_recorded_and_kept_by_resume(run_train: Train, tmp_path: Path) -> None:
    flags = ("--set", "augmentation.rotation=30", "optimizer=sgd", "--lr", "0.1", "--epochs")
    run_train(*flags, 1)
    recorded = json.loads((tmp_path / "R" / "R_config.json").read_text())["config"]
    assert (recorded["augmentation"]["rotation"], recorded["optimizer"], recorded["learning_rate"]) == (30, "sgd", 0.1)
    with pytest.raises(UserError, match=r"cannot resume: augmentation\.rotation changed from 30 to 31"):
        run_train("--resume", "--set", "augmentation.rotation=31")
    run_train("--load_model_epoch", "final", "--set", "loss=mse", "--epochs", 2)
    config = load_checkpoint(checkpoint_path(tmp_path, "R", "final"))["config"]
    assert (config.loss, config.optimizer, config.augmentation.rotation) == ("mse", "sgd", 30)


def test_a_run_by_another_runs_config_is_the_same_run(run_train: Train, tmp_path: Path) -> None:
    run_train("--recipe", "cpu", "--epochs", 2, "--set", "augmentation.zoom=1.1", "mean=1,2,3", "--name", "first")
    path = tmp_path / "first" / "first_config.json"
    train.main(["--config", str(path), "--save_path", str(tmp_path), "--name", "again"])
    first, again = (load_checkpoint(checkpoint_path(tmp_path, name, "final")) for name in ("first", "again"))
    assert first["config"] == again["config"]
    assert all(torch.equal(value, again["model"][name]) for name, value in first["model"].items())
    args = parse_args(["--config", str(path), "--epochs", "5"])
    assert (args.name, resolve_config(args.model, args.typed, base=args.base).epochs) == ("cpu-R", 5)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"first_config\.json is not the \.\.\._config\.json of a run \(KeyError"):
        parse_args(["--config", str(path)])


def test_early_answers(run_train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line, before anything is written."""
    monkeypatch.setitem(RECIPES, "typo", lambda network: Config(network, recipe="typo", los="bce"))
    with pytest.raises(UserError, match=r"recipe 'typo': .*unexpected keyword argument 'los'"):
        run_train("--recipe", "typo")
    monkeypatch.setitem(LOSSES, "bce", lambda logits, target, weight: logits)
    with pytest.raises(UserError, match=r"the loss bce returns \(2, 1, 64, 64\) .*; training needs a scalar"):
        run_train("--loss", "bce")
    for layer, found in (
        (torch.nn.Conv2d(3, 2, 1), r"\(2, 2, 64, 64\)"),
        (torch.nn.Conv2d(3, 1, 2), r"\(2, 1, 63, 63\)"),
    ):
        monkeypatch.setitem(NETWORKS, "ResNet34_UNet", lambda layer=layer: layer)
        with pytest.raises(UserError, match=rf"ResNet34_UNet returns {found} for \(2, 3, 64, 64\) images"):
            run_train()
    assert list(tmp_path.iterdir()) == []


def test_the_page_lists_every_field() -> None:
    """The table of docs/training.md is made from Config; if they differ, the page is renewed, and the test fails."""
    rows = ["| field | default | values | |", "| --- | --- | --- | --- |"]
    for owner, prefix in ((Config, ""), (Augmentation, "augmentation.")):
        comments = dict(re.findall(r"^    (\w+): [^#\n]*(?:# (.*))?$", inspect.getsource(owner), re.MULTILINE))
        for one in fields(owner):
            if prefix + one.name in FIELDS and one.name not in ("network", "recipe", "augmentation"):
                low_high = RANGES.get(one.name) if one.name not in ("mean", "std") else None
                values = ", ".join(CHOICES.get(one.name, ()))
                if low_high:
                    values = f"from {low_high[0]:g}" + (f" to {low_high[1]:g}" if low_high[1] < 1e6 else "")
                default = f"`{one.default!r}`".replace('"', "").replace("'", "")
                rows.append(f"| `{prefix}{one.name}` | {default} | {values} | {comments[one.name]} |")
    page = REPO / "docs" / "training.md"
    before, rest = page.read_text().split("<!-- config -->\n")
    found, after = rest.split("<!-- /config -->\n")
    table = "\n".join(rows) + "\n"
    if found != table:
        page.write_text(f"{before}<!-- config -->\n{table}<!-- /config -->\n{after}")
    assert found == table


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A file as torchvision's, with random weights and statistics."""
    torch.manual_seed(1)
    path = tmp_path / "resnet34.pth"
    torch.save(shake_norms(resnet34()).state_dict(), path)
    return path


@pytest.mark.parametrize("network", ["ResNet34_UNet", "UNetPlusPlus"])
def test_a_pretrained_encoder_has_torchvisions_features(network: str, imagenet: Path) -> None:
    theirs = resnet34().eval()
    theirs.load_state_dict(torch.load(imagenet))
    nodes = ["relu", "layer1", "layer2", "layer3", "layer4"]
    model = build_network(network).eval()
    model.encoder.load_state_dict(pretrained_encoder(network, str(imagenet)))
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = create_feature_extractor(theirs.double(), nodes)(images)
        found = model.double().encoder(images)
    for features, node in zip(found, nodes, strict=True):
        assert expected[node].std() > 0.01
        torch.testing.assert_close(features, expected[node], rtol=1e-5, atol=1e-5)


def test_training_starts_from_a_pretrained_encoder(
    imagenet: Path, drawn_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_main(*flags: object) -> None:
        data = ("--data_path", drawn_pets, "--save_path", tmp_path, "--image_size", 32, "--epochs", 1, "--limit", 4)
        train.main([str(flag) for flag in ("--model", "R", *data, *flags)])

    train_main("--recipe", "lab2", "--model", "UNetPlusPlus", "--pretrained", imagenet, "--name", "run")
    start, config = (load_checkpoint(checkpoint_path(tmp_path, "run", "0"))[key] for key in ("model", "config"))
    assert (config.pretrained, config.mean, config.std) == (str(imagenet), Config.mean, Config.std)
    for name, value in pretrained_encoder("ResNet34_UNet", str(imagenet)).items():
        torch.testing.assert_close(start[f"encoder.{name}"], value, msg=name)
    assert f"pretrained {imagenet}" in (tmp_path / "run" / "run_report.html").read_text()

    (tmp_path / "text.pth").write_text("weights")
    torch.save(build_network("lab2.UNet").state_dict(), tmp_path / "other.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    for flags, message in {
        ("--pretrained", tmp_path / "none.pth"): r"no file .*none\.pth; torchvision's weights are https://.*\.pth$",
        ("--pretrained", tmp_path / "text.pth"): r"text\.pth is broken",
        ("--pretrained", tmp_path / "other.pth"): r"other\.pth does not hold the weights of torchvision's resnet34",
        ("--pretrained",): r"cannot download https://.*/(resnet34-\w+\.pth) \(offline\); put it into .*checkpoints$",
        ("--model", "U", "--pretrained"): "is for ResNet34_UNet and UNetPlusPlus, not for UNet",
        ("--model", "ResNet34_UNet_small", "--pretrained"): "not for ResNet34_UNet_small",
    }.items():
        with pytest.raises(UserError, match=message):
            train_main(*flags, "--name", "new")
    assert not (tmp_path / "new").exists()


def test_tensorboard_has_scalars_and_overlays_of_the_whole_run(run_train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard reads its own log")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_train("--tensorboard", "--epochs", 2)
    run_train("--tensorboard", "--load_model_epoch", "final", "--epochs", 3)
    log = EventAccumulator(str(tmp_path / "R" / "tensorboard")).Reload()
    history = load_checkpoint(checkpoint_path(tmp_path, "R", "final"))["history"]
    found = [(event.step, event.value) for event in log.Scalars("valid_dice")]
    assert found == [(row["epoch"], pytest.approx(row["valid_dice"])) for row in history]
    images = log.Tags()["images"]
    assert len(images) == 2
    assert [event.step for event in log.Images(images[0])] == [1, 2, 3]
    run_train("--tensorboard", "--overwrite", "--epochs", 1)
    assert len(list((tmp_path / "R" / "tensorboard").iterdir())) == 1
