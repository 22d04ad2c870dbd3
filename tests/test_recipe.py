"""What a whole run would hide: the recipe's numbers; and odd files, places to write to, and streams."""
import argparse
import errno
import io
import math
import os
import re
import shutil
import sys
import threading
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
    """A working folder with tiny sets, a picture, and a tiny network's run, stopped after epoch 1 of 2."""
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
        "weights": [1, 1, 1], "samples": None, "batch_size": 4, "epochs": 1, "lr": 0.1, "decay": 1e-3,
        "constant": False, "seed": 0, "image_size": 32, "compile": False} | others)


# ---- the recipe

def test_steps_are_nesterovs_and_only_weights_of_layers_decay():
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    optimizer = train.make_optimizer(network, 0.1, 0.01)
    values = {name: [1.0, 0.0] for name, _ in network.named_parameters()}     # and its velocity
    for parameter in network.parameters():
        parameter.data.fill_(1)
    for _ in range(3):
        for name, parameter in network.named_parameters():
            parameter.grad = torch.ones_like(parameter)
            value, velocity = values[name]
            gradient = 1 + 0.01 * value * (name == "0.weight")
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


def test_a_run_of_an_earlier_version_goes_on_and_says_what_changes(place):
    content = torch.load(place / "checkpoints/run/last.pth", weights_only=True)
    for name in (*train.NEWER_SETTINGS, "decay"):
        del content["settings"][name]
    content["training"]["optimizer"]["param_groups"][0]["weight_decay"] = 0.0025
    torch.save(content, place / "checkpoints/run/last.pth")
    text = run(*RESUME, cwd=place).stdout
    assert "begun by an earlier version; from here on" in text and "Train epoch     2:" in text
    assert "images of 16 pixels up to epoch 1, then 32 pixels; weight decay 0.0025\n" in text


def test_images_are_smaller_at_first_and_the_rate_falls_unless_both_are_kept(place):
    ten, kept = settings(epochs=10, image_size=96), settings(epochs=10, image_size=96, constant=True)
    assert [train.size_at(epoch, ten) for epoch in range(1, 11)] == [64] * 6 + [96] * 4
    assert [train.size_at(epoch, kept) for epoch in range(1, 11)] == [96] * 10
    assert train.size_at(1, settings(image_size=96)) == 96                  # of a single epoch
    assert train.size_at(1, settings(epochs=9, image_size=16)) == 16
    run("train.py", *SMALL, "--split", "cvpr2016", "--weights", 1, 0, 0, "--epochs", 2, "--constant",
        "--lr", 0.01, "--logs", "new", "--checkpoints", "new", cwd=place)
    (log,) = place.glob("new/*.txt")
    assert re.findall(r"\] lr : (.*)", log.read_text()) == ["0.01", "0.01"]


def test_a_checkpoint_of_smaller_images_is_judged_as_its_log_says(place, monkeypatch):
    errors = iter((1.0, 2.0))                                               # the first epoch is the best
    monkeypatch.setattr(evaluate, "mean_error", lambda metrics: next(errors))
    run("train.py", *SMALL, "--split", "cvpr2016", "--weights", 1, 0, 0, "--epochs", 2,
        "--logs", "new", "--checkpoints", "new", cwd=place)
    (best,), (log,) = place.glob("new/*/best.pth"), place.glob("new/*.txt")
    content = torch.load(best, weights_only=True)
    assert (content["epoch"], content["image_size"], content["decoded_size"]) == (1, 16, 32)
    told = run("evaluate.py", "--split", "cvpr2016", "--checkpoint", best, cwd=place).stdout
    first, second = re.findall(r"\[Valid\] age mae: (.*)", log.read_text())
    assert f"age mae: {first}\n" in told and first != second


# ---- the best epoch

@pytest.mark.parametrize("errors, best", [
    ([9, 8, math.nan, 8.5], 2), ([math.nan, 9, 7], 3), ([9, 9, math.inf], 1), ([math.nan], None)])
def test_best_is_the_first_epoch_of_the_least_error_in_runs_and_table(errors, best, place, monkeypatch):
    told = iter(errors)
    monkeypatch.setattr(evaluate, "score", lambda *_: {"age_mae": float(next(told))})
    run("train.py", *SMALL, "--split", "cvpr2016", "--weights", 1, 0, 0, "--epochs", len(errors),
        "--logs", "new", "--checkpoints", "new", cwd=place)
    (last,) = place.glob("new/*/last.pth")
    assert torch.load(last, weights_only=True)["epoch"] == len(errors)
    kept = [torch.load(file, weights_only=True)["epoch"] for file in place.glob("new/*/best.pth")]
    assert kept == [best] * (best is not None)
    (log,) = place.glob("new/*.txt")
    assert ("best.pth" in log.read_text()) == (best is not None)
    if best:
        row = run("evaluate.py", "--logs", "new", cwd=place).stdout.splitlines()[-1]
        assert row.split("|")[2].strip() == f"{errors[best - 1]:.2f}"


@pytest.mark.parametrize("least, best", [(1e-9, 1), (1e9, 2), (math.nan, 2)])
def test_a_resumed_run_keeps_its_best_unless_it_is_worse_or_no_number(least, best, place):
    change(place, "training", "best", least)
    run(*RESUME, cwd=place)
    assert torch.load(place / "checkpoints/run/best.pth", weights_only=True)["epoch"] == best
    kept = torch.load(place / "checkpoints/run/last.pth", weights_only=True)["training"]["best"]
    assert (kept == least) == (best == 1)


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
    for scaler in ({}, None, [1], torch.ones(2), {"scale": math.nan, "_growth_tracker": 5},
                   {"scale": 0.0, "_growth_tracker": 5}, {"scale": torch.ones(2), "_growth_tracker": 5},
                   {"scale": 8.0, "_growth_tracker": None}):
        content["training"]["scaler"] = scaler                              # left as it was
        after.load_state(content, Path("last.pth"))
        assert after.scaler.get_scale() == 128


@pytest.mark.parametrize("odd", [
    lambda buffer: None, lambda buffer: buffer[:1], lambda buffer: buffer.to_sparse(),
    lambda buffer: buffer * math.nan, lambda buffer: buffer.to(torch.complex64), lambda buffer: "x"])
def test_an_odd_momentum_is_refused(odd, place):
    file = place / "checkpoints/run/last.pth"
    buffer = torch.load(file, weights_only=True)["training"]["optimizer"]["state"][3]["momentum_buffer"]
    change(place, "training", "optimizer", "state", 3, "momentum_buffer", odd(buffer))
    assert "last.pth: momentum 3 " in run(*RESUME, cwd=place, status=2).stderr


def test_the_optimizers_settings_are_the_codes_not_the_files(place, base):
    run(*RESUME, cwd=place)
    expected = figures(place / "logs/run.txt")
    shutil.copy(base / "last.pth", place / "checkpoints/run/last.pth")
    for group in range(2):
        for name, value in (("maximize", True), ("momentum", 0.1), ("nesterov", False), ("weight_decay", 9)):
            change(place, "training", "optimizer", "param_groups", group, name, value)
    run(*RESUME, cwd=place)
    assert figures(place / "logs/run.txt") == expected != []


@pytest.mark.parametrize("keys, value, expected", [
    (["epoch"], -5, "an epoch of -5"), (["training", "log_size"], -1, "a log of -1 bytes"),
    (["training", "rows"], {"fer2013 train": 1}, "its data changed"),
    (["training", "rows", "fer2013 train"], torch.zeros(2), "rows"),
    (["training", "folders", 1], 2, "last.pth"), (["training", "folders", "help"], "x", "last.pth"),
    (["settings", 1], 2, "last.pth"),
    (["model", "conv1.weight"], torch.zeros(4, 3, 7, 7, dtype=torch.bits8), "conv1.weight is no plain"),
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
    {"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "junk"},
    {"RANK": "0", "WORLD_SIZE": "0"}, {"RANK": "-1", "WORLD_SIZE": "1"},
    {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "", "WORLD_SIZE": "1"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "y"},
    {"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "2"}])
def test_what_torchrun_would_not_set_is_refused(told, place, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert "not what torchrun sets" in run("train.py", *SMALL, cwd=place, status=2).stderr


@pytest.mark.parametrize("key, value", [
    ("mean", [torch.zeros(2)] * 3), ("std", [np.zeros(2)] * 3), ("ages", torch.tensor(101)),
    ("emotions", "angry"), ("tasks", [[]]), ("image_size", torch.tensor(32)), ("image_size", True),
    ("model", None)])
def test_a_checkpoint_of_odd_content_is_refused(key, value, place):
    content = torch.load(place / "checkpoints/run/best.pth", weights_only=True)
    torch.save(content | {key: value}, place / "odd.pth")
    assert "odd.pth: " in run("evaluate.py", "a.png", "--checkpoint", "odd.pth", cwd=place, status=2).stderr


def test_others_weights_of_odd_shapes_and_names_are_passed_over(place):
    state = torch.load(place / "checkpoints/run/best.pth", weights_only=True)["model"]
    state |= {"age_cls_pred.weight": torch.tensor(1.0), "a\n---------------": torch.ones(2)}
    del state["age.2.weight"]
    torch.save(state, place / "theirs.pth")
    run("train.py", *SMALL, "--pretrained", "theirs.pth", "--logs", "new", cwd=place)
    (log,) = place.glob("new/*.txt")
    lines = log.read_text().splitlines()
    assert any("131 of the model's 132 tensors loaded" in line for line in lines)
    assert all(evaluate.STAMPED.fullmatch(line) for line in lines if line)


def test_a_line_break_in_a_files_name_is_none_in_the_log(place):
    (place / "data/cvpr2016/gender/train/male/a\nb.txt").write_text("")
    run("train.py", *SMALL, "--split", "cvpr2016", "--weights", 0, 1, 0, "--logs", "new", cwd=place)
    (log,) = place.glob("new/*.txt")
    lines = log.read_text().splitlines()
    assert any("a b.txt" in line for line in lines)
    assert all(evaluate.STAMPED.fullmatch(line) for line in lines if line)


def test_16_pixels_are_trained_in_float32(monkeypatch):
    monkeypatch.setattr(models, "FaceNet", Tiny)
    monkeypatch.setattr(models, "fast_precision", lambda device: torch.bfloat16)
    trainer = train.Trainer(settings(), torch.device("cpu"))
    for size in (16, 17):
        with trainer.autocast(size):
            assert torch.is_autocast_enabled("cpu") == (size > 16)


def test_logs_that_are_left_out_are_told_once_and_huge_figures_are_not_drawn(place):
    log = place / "logs/run.txt"
    log.with_name("empty.txt").write_text("")
    log.write_text(re.sub("age mae: .*", "age mae: 1e308", log.read_text()))
    done = run("evaluate.py", "--logs", "logs", "--plot", "a.png", cwd=place)
    assert done.stderr == "logs/empty.txt: no finished epoch, left out\n"


# ---- where results go

JUDGE = ("evaluate.py", "--split", "fer2013", "--data", "data")
WRITING = {"--csv": ("evaluate.py", "a.png"), "--save-predictions": JUDGE,
           "--plot": ("evaluate.py", "--logs", "logs"), "--export": ("evaluate.py",)}


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
        done = run("evaluate.py", "a.png", "--csv", target, cwd=place, status=2)
        assert "is read by this command" in done.stderr
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
    reading, writing = os.pipe()                        # which has no name, as of `--csv /dev/stdout | less`
    run("evaluate.py", "a.png", "--csv", f"/dev/fd/{writing}", cwd=place)
    os.close(writing)
    assert os.read(reading, 10_000).startswith(b"image,age")
    os.close(reading)
    with open(place / "o.txt", "w") as file:
        done = run("evaluate.py", "a.png", "--csv", f"/dev/fd/{file.fileno()}", cwd=place, status=2)
    assert "goes into a file; name that file" in done.stderr


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
    names = ["a.png", "gone.png", *["-"] * (stream == "stdin")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *names])
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as ended:
        datasets.script(evaluate.main)
    assert ended.value.code == 1


# ---- pictures

def test_what_is_no_plain_file_is_not_opened(place):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes")
    os.mkfifo(place / "pipe.jpg")

    def write():                                        # so that a script that opens it need not wait
        while True:
            open(place / "pipe.jpg", "wb").close()
    threading.Thread(target=write, daemon=True).start()
    done = run("evaluate.py", "pipe.jpg", "a.png", cwd=place, status=1)
    assert "pipe.jpg: not a readable picture (not a file)" in done.stderr and "a.png: age" in done.stdout
    for read in (lambda file: next(datasets.read_csv(file, ["image"])), evaluate.read_log):
        with pytest.raises(datasets.DataError, match="not a file"):
            read(place / "pipe.jpg")


def test_postscript_that_is_called_jpg_is_not_run(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "a.jpg", "EPS")
    with pytest.raises(PIL.UnidentifiedImageError):
        datasets.open_picture(tmp_path / "a.jpg", None)


@pytest.mark.parametrize("value", [
    np.uint16(100 * 2**8), np.int32(100), np.int32(100 * 2**8), np.int32(100 * 2**16), np.float32(100),
    np.float32(100 / 255)], ids=lambda value: f"{value.dtype} {value}")
def test_grey_of_many_bits_is_not_black(value, tmp_path):
    Image.fromarray(np.full((40, 40), value)).save(tmp_path / "a.tif")
    assert np.abs(np.asarray(datasets.open_picture(tmp_path / "a.tif", 16)) - 100.0).max() < 2


def test_chalearns_table_with_paths_of_another_machine(tmp_path):
    picture(tmp_path / "cvpr2016/age/train/x.png")
    (tmp_path / "cvpr2016/age/train_gt.csv").write_text(
        "image,mean,stdv\nx.png,30,4\n/home/ann/age/x.png,30,4\n")
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
    ("cvpr2016-age-train-*/states.npy", b""), ("cvpr2016-age-train-*/images.u8", b""),
    ("cvpr2016-age-train-*/states.npy", saved(np.uint8([1, 1, 0]))),
    ("cvpr2016-age-train-*/states.npy", saved(np.uint8([1, 9]))),
    ("fer2013-*/train.npy", b""), ("fer2013-*/train.npy", saved(np.int64([0, 1, 7]))),
    ("fer2013-*/train.npy", saved(np.int64([0, 1, -1]))),
    ("fer2013-*/train.npy", saved(np.float64([0, 1, 3]))), ("fer2013-*/train.npy", saved(np.int64([0, 1]))),
    ("fer2013-*/train.u8", bytes(48 * 48)),
    ("fer2013-*/train.npy", None), ("cvpr2016-age-train-*/images.u8", None)])
def test_a_damaged_cache_is_told_and_made_anew(pattern, content, tmp_path, base, capsys):
    shutil.copytree(base / "data", tmp_path / "data", ignore=shutil.ignore_patterns(".cache", "sample"))

    def load(splits=("cvpr2016", "fer2013")):
        faces = datasets.load(tmp_path / "data", splits, "train", datasets.TASKS, 16, tmp_path)
        pixels = (part.pixels[np.arange(len(part.pixels))] for part in faces.parts)
        return [faces.emotion, *pixels]
    before = load()
    (file,) = tmp_path.glob(pattern)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    capsys.readouterr()
    for ours, theirs in zip(load(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file.parent}: damaged (") and line.endswith("); it is made anew")
