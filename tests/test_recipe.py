"""What a run's length would hide: each number of the recipe, and what happens to odd files, places and streams."""
import argparse
import errno
import io
import math
import os
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import nn

import datasets
import evaluate
import model as models
import train
from conftest import figures, picture, run
from test_fuzz import SMALL, Tiny, make_base

RESUME = ("train.py", "--resume", "checkpoints/run/last.pth")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def place(base, tmp_path, monkeypatch) -> Path:
    """A working folder with tiny sets, a picture, and a tiny network's run that stopped after epoch 1 of 2."""
    monkeypatch.setattr(models, "FaceNet", Tiny)
    shutil.copytree(base / "data", tmp_path / "data", symlinks=True)
    for name, target in (("last.pth", "checkpoints/run/last.pth"), ("tiny.pth", "checkpoints/run/best.pth"),
                         ("log.txt", "logs/run.txt"), ("a.png", "a.png")):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / name, tmp_path / target)
    return tmp_path


def change(place: Path, *keys_and_value) -> None:
    """Put something else into last.pth: keys, one in the other, and the value."""
    file = place / "checkpoints/run/last.pth"
    content = part = torch.load(file, weights_only=True)
    *keys, last, value = keys_and_value
    for key in keys:
        part = part[key]
    part[last] = value
    torch.save(content, file)


def settings(**others) -> argparse.Namespace:
    """The arguments of a Trainer."""
    return argparse.Namespace(**{
        "weights": [1, 1, 1], "samples": None, "batch_size": 4, "epochs": 1, "lr": 0.1, "seed": 0,
        "image_size": 32, "compile": False} | others)


# ---- the recipe

def test_steps_are_nesterovs_and_only_weights_of_layers_decay():
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    optimizer = train.make_optimizer(network, 0.1)
    values = {name: [1.0, 0.0] for name, _ in network.named_parameters()}     # and its velocity
    for parameter in network.parameters():
        parameter.data.fill_(1)
    for _ in range(3):
        for name, parameter in network.named_parameters():
            parameter.grad = torch.ones_like(parameter)
            value, velocity = values[name]
            gradient = 1 + 1e-3 * value * (name == "0.weight")
            velocity = 0.9 * velocity + gradient
            values[name] = [value - 0.1 * (gradient + 0.9 * velocity), velocity]
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert parameter.item() == pytest.approx(values[name][0], rel=1e-6), name


def test_augment_varies_contrast_around_mid_grey_and_brightness():
    grey = torch.full((1, 16, 16, 3), 51, dtype=torch.uint8)               # a fifth of white
    for contrast, brightness, expected in ((1, 0.5, 0.14), (0, 0.5, 0.26), (0.5, 1, 0.3), (0.5, 0, 0.1)):
        draws = torch.full((1, models.DRAWS), 0.5)
        draws[0, 6:8] = torch.tensor([contrast, brightness])
        values = models.augment([grey], 16, draws)[0] * torch.tensor(models.STD).view(3, 1, 1)
        values += torch.tensor(models.MEAN).view(3, 1, 1)
        torch.testing.assert_close(values, torch.full((3, 16, 16), expected), atol=1e-5, rtol=0)


def test_tta_is_the_mean_of_the_probabilities_of_both_images():
    def network(inputs, tasks):                             # looks at the left edge alone
        return {"gender": inputs[:, 0, 0, :1] * torch.tensor([[1.0, -1.0]])}
    image = torch.zeros((1, 16, 16, 3), dtype=torch.uint8)
    image[:, :, 8:] = 255
    one, other, both = (evaluate.logits_of(network, [images], 16, ["gender"], tta)["gender"].softmax(1)
                        for images, tta in ((image, False), (image.flip(2), False), (image, True)))
    assert (one - other).abs().max() > 0.1
    torch.testing.assert_close(both, (one + other) / 2)


def test_the_heads_of_tasks_of_weight_0_are_frozen(monkeypatch):
    monkeypatch.setattr(models, "FaceNet", Tiny)
    trainer = train.Trainer(settings(weights=[0, 0.5, 0]), torch.device("cpu"))
    frozen = {name.split(".")[0] for name, parameter in trainer.model.named_parameters()
              if not parameter.requires_grad}
    assert frozen == {"age", "emotion"}
    trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(trained) == sum(parameter.requires_grad for parameter in trainer.model.parameters())


# ---- the best epoch

@pytest.mark.parametrize("errors, best", [
    ([9, 8, math.nan, 8.5], 2), ([math.nan, 9, 7], 3), ([9, 9, math.inf], 1), ([math.nan], None)])
def test_best_is_the_first_epoch_of_the_least_error_in_a_run_and_in_the_table(errors, best, place, monkeypatch):
    told = iter(errors)
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: {"age_mae": float(next(told))})
    run("train.py", *SMALL, "--split", "cvpr2016", "--weights", 1, 0, 0, "--epochs", len(errors), "--logs", "new",
        "--checkpoints", "new", cwd=place)
    (last,) = place.glob("new/*/last.pth")
    assert torch.load(last, weights_only=True)["epoch"] == len(errors)
    kept = [torch.load(file, weights_only=True)["epoch"] for file in place.glob("new/*/best.pth")]
    assert kept == [best] * (best is not None)
    if best:
        row = run("evaluate.py", "--logs", "new", cwd=place).stdout.splitlines()[-1]
        assert row.split("|")[2].strip() == f"{errors[best - 1]:.2f}"


def test_a_resumed_run_keeps_a_better_best(place):
    best = place / "checkpoints/run/best.pth"
    before = best.read_bytes()
    change(place, "training", "best", 1e-9)
    run(*RESUME, cwd=place)
    assert best.read_bytes() == before
    assert torch.load(best.with_name("last.pth"), weights_only=True)["training"]["best"] == 1e-9


# ---- resuming

def test_the_scaler_of_float16_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr(models, "FaceNet", Tiny)
    trainers = [train.Trainer(settings(), torch.device("cpu")) for _ in range(2)]
    for trainer in trainers:
        trainer.scaler = torch.amp.GradScaler("cpu")
    before, after = trainers
    before.scaler.load_state_dict(before.scaler.state_dict() | {"scale": 128.0, "_growth_tracker": 5})
    content = {"model": before.model.state_dict(), "training": before.state()}
    after.load_state(content, Path("last.pth"))
    assert after.scaler.state_dict() == before.scaler.state_dict()
    for scaler in ({}, None, [1], {"scale": math.nan, "_growth_tracker": 5}, {"scale": 0.0, "_growth_tracker": 5},
                   {"scale": torch.ones(2), "_growth_tracker": 5}, {"scale": 8.0, "_growth_tracker": None}):
        content["training"]["scaler"] = scaler                              # left as it was
        after.load_state(content, Path("last.pth"))
        assert after.scaler.get_scale() == 128


@pytest.mark.parametrize("odd", [
    lambda buffer: buffer[:1], lambda buffer: None, lambda buffer: buffer.to_sparse(),
    lambda buffer: buffer * math.nan, lambda buffer: buffer.to(torch.complex64), lambda buffer: "x"])
def test_an_odd_momentum_is_refused(odd, place):
    file = place / "checkpoints/run/last.pth"
    buffer = torch.load(file, weights_only=True)["training"]["optimizer"]["state"][3]["momentum_buffer"]
    change(place, "training", "optimizer", "state", 3, "momentum_buffer", odd(buffer))
    assert "last.pth: momentum 3 " in run(*RESUME, cwd=place, status=2).stderr


def test_the_optimizers_settings_are_the_codes_not_the_files(place, base, tmp_path):
    for i in range(2):
        if i:
            shutil.copy(base / "last.pth", place / "checkpoints/run/last.pth")
            shutil.copy(base / "log.txt", place / "logs/run.txt")
            for group in range(2):
                for name, value in (("maximize", True), ("momentum", 0.1), ("lr", 9.0), ("nesterov", False)):
                    change(place, "training", "optimizer", "param_groups", group, name, value)
        run(*RESUME, cwd=place)
        (place / "logs/run.txt").rename(place / f"{i}.txt")
    assert figures(place / "0.txt") == figures(place / "1.txt") != []


@pytest.mark.parametrize("keys, value, expected", [
    (["epoch"], -5, "an epoch of -5"), (["training", "best"], math.nan, "a best error of nan"),
    (["training", "log_size"], -1, "a log of -1 bytes"), (["training", "rows"], {"fer2013 train": 1}, "its data changed"),
    (["training", "rows", "fer2013 train"], torch.zeros(2), "rows"), (["training", "folders", 1], 2, "last.pth"),
    (["training", "folders", "help"], "x", "last.pth"), (["settings", 1], 2, "last.pth"),
    (["model", "conv1.weight"], torch.zeros(4, 3, 7, 7, dtype=torch.bits8), "conv1.weight is no plain tensor"),
    (["training", "optimizer", "state"], {0: {}}, "its optimizer is not this network's")])
def test_a_last_pth_of_odd_content_is_refused(keys, value, expected, place):
    change(place, *keys, value)
    log = (place / "logs/run.txt").read_text()
    assert expected in run(*RESUME, cwd=place, status=2).stderr
    assert (place / "logs/run.txt").read_text() == log


@pytest.mark.parametrize("text", ["notes\n" * 9, "[01.01.2026 00:00:00] train.py --epochs 9 --seed 5\n"])
def test_a_file_that_is_not_the_runs_log_is_not_cut(text, place):
    (place / "other").mkdir()
    (place / "other/run.txt").write_text(text)
    change(place, "training", "folders", "logs", "other")
    change(place, "training", "log_size", 3)
    assert "not the log of this run" in run(*RESUME, cwd=place, status=2).stderr
    assert (place / "other/run.txt").read_text() == text


def test_a_run_is_locked_wherever_its_log_is(place):
    pytest.importorskip("fcntl")
    going_on = train.Run.resume(place / "checkpoints/run/last.pth", place / "logs")
    (place / "link").symlink_to("checkpoints/run")
    for file in (RESUME[2], "link/last.pth"):
        done = run("train.py", "--resume", file, "--logs", "elsewhere", cwd=place, status=2)
        assert "another process is still training this run" in done.stderr
    going_on.lock.close()
    run(*RESUME, cwd=place)


def test_without_locks_it_works_all_the_same(place, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "Function not implemented")))
    run(*RESUME, "--cache", "new", cwd=place)
    assert len(list((place / "new").glob("fer2013-*"))) == 1 and not list((place / "new").glob(".*.partial"))


@pytest.mark.parametrize("told", [
    {"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "junk"}, {"RANK": "0", "WORLD_SIZE": "0"},
    {"RANK": "-1", "WORLD_SIZE": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "", "WORLD_SIZE": "1"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "x"},
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "2"}])
def test_what_torchrun_would_not_set_is_refused(told, place, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert "not what torchrun sets" in run("train.py", *SMALL, cwd=place, status=2).stderr


# ---- where results go

JUDGE = ("evaluate.py", "--split", "fer2013", "--data", "data")
WRITING = {"--csv": ("evaluate.py", "a.png"), "--save-predictions": JUDGE, "--plot": ("evaluate.py", "--logs", "logs"),
           "--export": ("evaluate.py",)}


@pytest.mark.parametrize("option", WRITING)
def test_a_result_is_not_written_onto_a_folder_nor_an_input(option, place):
    (place / "folder").mkdir()
    checkpoint = place / "checkpoints/run/best.pth"
    (place / "link").symlink_to(checkpoint)
    for target in ("folder", ".", ""):
        assert "a folder; expected" in run(*WRITING[option], option, target, cwd=place, status=2).stderr
    if option != "--plot":
        before = checkpoint.read_bytes()
        for target in (checkpoint, "link"):
            run(*WRITING[option], "--checkpoint", checkpoint, option, target, cwd=place, status=2)
        assert checkpoint.read_bytes() == before and (place / "link").is_symlink()


def test_a_spreadsheet_is_not_written_onto_its_pictures_nor_other_predictions(place):
    before = (place / "a.png").read_bytes()
    (place / "link.csv").symlink_to("a.png")
    for target in ("a.png", "link.csv"):
        assert "is read by this command" in run("evaluate.py", "a.png", "--csv", target, cwd=place, status=2).stderr
    assert (place / "a.png").read_bytes() == before
    run(*JUDGE, "--save-predictions", "p.csv", cwd=place)
    before = (place / "p.csv").read_bytes()
    done = run(*JUDGE, "--predictions", "p.csv", "--plot", "p.csv", cwd=place, status=2)
    assert "is read by this command" in done.stderr and (place / "p.csv").read_bytes() == before


def test_a_pipe_is_written_into_and_stays(place):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes")
    os.mkfifo(place / "pipe")
    (place / "link").symlink_to("pipe")
    for target in ("pipe", "link"):                     # as for /dev/null and /dev/stdout
        reader = os.open(place / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        run("evaluate.py", "a.png", "--csv", target, cwd=place)
        assert os.read(reader, 10_000).startswith(b"image,age")
        os.close(reader)
    assert (place / "pipe").is_fifo() and (place / "link").is_symlink()


@pytest.mark.parametrize("option", [*WRITING, "--out"])
def test_a_full_disk_leaves_nothing_half(option, place, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(evaluate, "SHIPPED", place / "checkpoints/run/best.pth")
    command = WRITING.get(option, WRITING["--csv"])
    run(*command, option, "whole", cwd=place)                               # fills the cache too
    before = {path.name for path in place.iterdir()}
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))                    # any write fails
    try:
        done = run(*command, option, "half", cwd=place, status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "can't be written" in done.stderr
    assert {path.name for path in place.iterdir()} - before <= {"half"} and not (place / "half").is_file()
    assert not list(place.glob("half/*"))


# ---- streams

def test_stdout_of_few_characters_takes_any_text(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), "cp1252", newline="\n")
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit):
        datasets.script(lambda: print("naïve 笑 caf\udce9.jpg"))
    assert stdout.buffer.getvalue() == b"na\xefve ? caf\xe9.jpg\n"


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_no_error(stream, place, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "a.png", "gone.png", "-"][:4 if stream == "stdin" else 3])
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as ended:
        datasets.script(evaluate.main)
    assert ended.value.code == 1


# ---- pictures

def test_what_is_no_plain_file_is_not_opened(place, monkeypatch):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes")
    os.mkfifo(place / "pipe.jpg")                       # opening it would wait for ever
    with monkeypatch.context() as patch:
        patch.setattr(datasets.Image, "open", Mock(side_effect=AssertionError))
        patch.setattr(datasets, "open", Mock(side_effect=AssertionError), raising=False)
        with pytest.raises(ValueError, match="not a file"):
            datasets.open_picture(place / "pipe.jpg", 16)
        with pytest.raises(datasets.DataError, match="not a file"):
            next(datasets.read_csv(place / "pipe.jpg", ["image"]))
        with pytest.raises(datasets.DataError, match="not a file"):
            evaluate.read_log(place / "pipe.jpg")
    done = run("evaluate.py", "pipe.jpg", "a.png", cwd=place, status=1)
    assert "pipe.jpg: not a readable picture (not a file)" in done.stderr and "a.png: age" in done.stdout


def test_postscript_that_is_called_jpg_is_not_run(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "a.jpg", "EPS")
    with pytest.raises(PIL.UnidentifiedImageError):
        datasets.open_picture(tmp_path / "a.jpg", None)


@pytest.mark.parametrize("value", [
    np.uint16(100 * 2**8), np.int32(100), np.int32(100 * 2**8), np.int32(100 * 2**16), np.float32(100),
    np.float32(100 / 255)], ids=lambda value: f"{value.dtype} {value}")
def test_grey_of_many_bits_is_not_black(value, tmp_path):
    Image.fromarray(np.full((40, 40), value)).save(tmp_path / "a.tif")
    assert np.abs(datasets.load_image(tmp_path / "a.tif", 16) - 100.0).max() < 2


def test_chalearns_table_with_paths_of_another_machine(tmp_path):
    picture(tmp_path / "cvpr2016/age/train/x.png")
    (tmp_path / "cvpr2016/age/train_gt.csv").write_text("image,mean,stdv\nx.png,30,4\n/home/ann/age/x.png,30,4\n")
    faces = datasets.load(tmp_path, ["cvpr2016"], "train", ["age"], 16, tmp_path / ".cache")
    assert len(faces) == 1
    assert {reason: len(names) for reason, names in faces.parts[0].dropped.items()} == {"missing file": 1}


# ---- the cache

def saved(values) -> bytes:
    """What np.save writes."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("pattern, content", [
    ("cvpr2016-age-train-*/decoded.npy", b""), ("cvpr2016-age-train-*/decoded.npy", saved(np.ones(3, bool))),
    ("cvpr2016-age-train-*/decoded.npy", saved(np.ones(2))), ("cvpr2016-age-train-*/images.u8", b""),
    ("fer2013-*/train.npy", b""), ("fer2013-*/train.npy", saved(np.int64([0, 1, 7]))),
    ("fer2013-*/train.npy", saved(np.int64([0, 1, -1]))), ("fer2013-*/train.npy", saved(np.float64([0, 1, 3]))),
    ("fer2013-*/train.npy", saved(np.int64([0, 1]))), ("fer2013-*/train.u8", bytes(48 * 48)),
    ("fer2013-*/train.npy", None), ("cvpr2016-age-train-*/images.u8", None)])
def test_a_damaged_cache_is_told_and_made_anew(pattern, content, tmp_path, base, capsys):
    shutil.copytree(base / "data", tmp_path / "data", ignore=shutil.ignore_patterns(".cache", "sample"))

    def load():
        faces = datasets.load(tmp_path / "data", ["cvpr2016", "fer2013"], "train", datasets.TASKS, 16, tmp_path)
        return np.concatenate([part.pixels[np.arange(len(part.pixels))].ravel() for part in faces.parts]), faces.emotion
    before = load()
    (file,) = tmp_path.glob(pattern)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    capsys.readouterr()
    for ours, theirs in zip(load(), before):
        np.testing.assert_array_equal(ours, theirs)
    assert re.fullmatch(rf"{re.escape(str(file.parent))}: damaged \(.+\); it is made anew\n", capsys.readouterr().err)
