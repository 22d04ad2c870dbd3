"""Training for real on the drawn sample: learning, logs, resuming, several processes, mistakes."""
import argparse
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import evaluate
import model as models
import train
from conftest import ROOT, WITH_GPUS, figures, run

SMALL = ("--data", "sample", "--image-size", 32, "--samples", 100, "--batch-size", 32)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--")


@pytest.fixture
def place(work, tmp_path):
    """A fresh working folder with the sample in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(work / "data/sample")
    return tmp_path


def the_log(place):
    (log,) = (place / "logs").glob("*.txt")
    return log


def the_last(place):
    """The last.pth of the only run, and what is in it."""
    (last,) = place.glob("checkpoints/*/last.pth")
    return last, torch.load(last, weights_only=True)


def lengthened(place):
    """The last.pth of a finished run of one epoch, after which the run is one of two."""
    last, content = the_last(place)
    content["settings"]["epochs"] = 2
    torch.save(content, last)
    the_log(place).write_text(the_log(place).read_text().replace("--epochs 1 ", "--epochs 2 "))
    return last


def begun(place, *arguments, until):
    """A run in a process of its own, whose log has `until` in it."""
    process = subprocess.Popen(list(map(str, arguments)), cwd=place, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    while not list(place.glob("logs/*.txt")) or until not in the_log(place).read_text():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_two_epochs_learn_all_three_tasks(trained):
    command, epochs, drawn = evaluate.read_log(trained)
    assert command.startswith("train.py --data sample --split cvpr2016 fer2013 --weights 1 1 1 ")
    last = epochs[-1]
    # chance: 24 years, 50 %, 14 %
    assert last["age_mae"] < 12 and last["val_gender_acc"] > 75 and last["val_emotion_acc"] > 40
    assert epochs[0]["lr"] == 0.05 > epochs[1]["lr"]
    assert drawn and "its figures mean nothing" in trained.read_text()


def test_log_has_the_documented_lines(trained):
    stamp = r"\[\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d\] "
    number = r"\d+\.\d+(e-\d+)?"

    def losses_and_accuracies(prefix):
        return [*(f" {{10}}{prefix}{task}_loss: {number}" for task in ("gender", "age", "emotion")), "\n",
                *(f" {{10}}{prefix}{task}_acc: {number}" for task in ("gender", "emotion"))]
    block = "".join(f"{stamp}{line}\n" for line in (
        f"lr : {number}", r"Train epoch     \d:", *losses_and_accuracies(""),
        rf"\[Valid\] age mae: {number}", *losses_and_accuracies("val_"), "-" * 15))
    assert len(re.findall(block, trained.read_text())) == 2
    assert re.fullmatch(r"\d{8}-\d{6}_cvpr2016\+fer2013_1-1-1\.txt", trained.name)


def test_killed_in_mid_epoch_and_resumed_equals_a_run_never_stopped(place):
    run("train.py", *SMALL, "--epochs", 3, cwd=place)
    whole = figures(the_log(place))
    (best,) = place.glob("checkpoints/*/best.pth")
    whole_best = torch.load(best, weights_only=True)["model"]
    shutil.rmtree(place / "logs")
    shutil.rmtree(place / "checkpoints")
    process = begun(place, sys.executable, ROOT / "train.py", *SMALL, "--epochs", 3, until="-" * 15)
    time.sleep(0.3)                                         # some steps into the second epoch
    process.kill()
    process.communicate()
    last, content = the_last(place)
    assert content["epoch"] < 3
    run("train.py", "--resume", last, cwd=place)
    log = the_log(place)
    resumed_best = torch.load(last.with_name("best.pth"), weights_only=True)["model"]
    assert all(torch.equal(value, whole_best[name]) for name, value in resumed_best.items())
    assert figures(log) == whole and len(evaluate.read_log(log)[1]) == 3
    assert "resumed after epoch" in log.read_text()


def test_resuming_cuts_the_log_back_to_the_checkpoint(place):
    run("train.py", *SMALL, "--epochs", 1, cwd=place)
    last = lengthened(place)
    # as if the run had been killed after an epoch's figures, before its checkpoint
    with open(the_log(place), "a") as log:
        log.write(the_log(place).read_text())
    run("train.py", "--resume", last, cwd=place)
    assert [figures["epoch"] for figures in evaluate.read_log(the_log(place))[1]] == [1, 2]
    assert the_log(place).read_text().count("Train epoch") == 2


def test_same_seed_same_log(place):
    for seed in (5, 5, 6):
        run("train.py", *SMALL, "--weights", 0, 0, 1, "--epochs", 1, "--seed", seed, "--logs", seed,
            cwd=place)
    first, second = map(figures, sorted((place / "5").glob("*.txt")))
    assert first == second != figures(next((place / "6").glob("*.txt")))


@pytest.mark.parametrize("arguments, expected", [
    (["--epochs", 3], "--epochs is 3, the run's is 2"), (["--weights", 1, 0, 0], "--weights is"),
    ([], "the run is finished")])
def test_resume_with_other_settings_or_at_its_end(trained, work, arguments, expected):
    last, _ = the_last(work)
    assert expected in run("train.py", "--resume", last, *arguments, cwd=work, status=2).stderr


def test_resume_without_state(trained, work):
    best = the_last(work)[0].with_name("best.pth")
    assert "no training state" in run("train.py", "--resume", best, cwd=work, status=2).stderr


@pytest.mark.parametrize("part, name, value, expected", [
    (None, "settings", [1], "has no settings"), ("settings", "lr", "fast", "--lr"),
    ("settings", "image_size", [64, 64], "64"), ("training", "rows", None, "has no rows"),
    ("training", "folders", {"lags": "logs"}, "--lags"), ("settings", "seed", None, "--seed")])
def test_resume_from_a_checkpoint_of_odd_content(trained, work, tmp_path, part, name, value, expected):
    _, content = the_last(work)
    (content[part] if part else content)[name] = value
    torch.save(content, tmp_path / "last.pth")
    assert expected in run("train.py", "--resume", tmp_path / "last.pth", cwd=work, status=2).stderr


def test_a_task_of_weight_0_reads_nothing_and_logs_0(work, tmp_path):
    shutil.copytree(work / "data/sample/fer2013", tmp_path / "data/fer2013")
    run("train.py", "--weights", 0, 0, 0.5, "--image-size", 32, "--samples", 64, "--epochs", 1, cwd=tmp_path)
    lines = figures(the_log(tmp_path))
    for name in ("gender_loss", "age_loss", "gender_acc"):
        assert f"          {name}: 0" in lines and f"          val_{name}: 0" in lines
    assert "[Valid] age mae: 0" in lines
    done = run("train.py", "--weights", 1, 0, 1, "--epochs", 1, cwd=tmp_path, status=2)
    assert "cvpr2016/age" in done.stderr


class Constant(torch.nn.Module):
    """The same logits for every image."""

    def __init__(self):
        super().__init__()
        for task, classes in models.CLASSES.items():
            self.register_parameter(task, torch.nn.Parameter(torch.zeros(classes)))

    def forward(self, images, tasks):
        return {task: getattr(self, task).expand(len(images), -1) for task in tasks}


SETTINGS = {"weights": [0, 1, 0.5], "samples": None, "batch_size": 64, "epochs": 1, "lr": 3.0, "decay": 0.0,
            "constant": False, "seed": 0, "image_size": 16, "compile": False}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_a_step_follows_the_mean_over_its_images_of_the_weighted_losses(world, taught, monkeypatch):
    monkeypatch.setattr(train.dist, "all_reduce", lambda sums: None)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda network, **_: network)
    monkeypatch.setattr(models, "FaceNet", Constant)
    tables = []
    for count, labels in ((6, {"gender": [1] * 6}), (24, {"emotion": [3] * 24})):
        tables.append(datasets.new_faces(Path(), ["face"] * count, **labels))
        tables[-1].parts[0].pixels = np.zeros((count, 4, 4, 3), np.uint8)
    targets = torch.rand((30, 7), generator=torch.Generator().manual_seed(0)).softmax(1)
    networks = []
    for rank in range(world):
        args, share = argparse.Namespace(**SETTINGS), datasets.Share(rank, world)
        trainer = train.Trainer(args, torch.device("cpu"), share)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
        trainer.start(datasets.join(tables))
        trainer.targets = {"emotion": targets} if taught else {}
        figures = trainer.train_epoch(1)
        assert figures["gender_loss"] == pytest.approx(math.log(2))
        assert figures["emotion_loss"] == pytest.approx(math.log(7))
        networks.append(trainer.model)
    # of cross-entropy's gradient where nothing is known yet, 1/classes - label (smoothed by 0.1), each task
    # gets its images' part; what is taught, at a temperature of 2, is of all images
    emotion = 24 / 30 * (1 / 7 - (torch.eye(7)[3] * 0.9 + 0.1 / 7))
    if taught:
        emotion = 0.5 * emotion + 0.5 * 2 * (1 / 7 - targets.mean(0))
    expected = {"age": torch.zeros(101), "gender": -3.0 * 6 / 30 * (0.5 - torch.tensor([0.05, 0.95])),
                "emotion": -3.0 * 0.5 * emotion}
    for task, values in expected.items():                   # DDP takes the mean over processes
        mean = sum(getattr(network, task).detach() for network in networks) / world
        torch.testing.assert_close(mean, values)


def test_a_single_image_is_too_few(tmp_path):
    for part in ("train", "valid"):
        (tmp_path / f"data/fer2013/{part}/happy").mkdir(parents=True)
        Image.new("L", (48, 48)).save(tmp_path / f"data/fer2013/{part}/happy/1.png")
    alone = ("train.py", "--weights", 0, 0, 1)
    assert "at least 2 for each of 1 process are needed" in run(*alone, cwd=tmp_path, status=2).stderr
    for part, count in (("train", 3), ("valid", 1)):
        for i in range(count):
            Image.new("L", (48, 48)).save(tmp_path / f"data/fer2013/{part}/happy/{i}.png")
    done = run(*alone, "--batch-size", 2, cwd=tmp_path, status=2)       # steps of 2 and 1
    assert "at least 2" in done.stderr
    assert not (tmp_path / "logs").exists()


def test_runs_of_the_same_second_get_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "datetime", Mock(now=lambda: datetime(2026, 1, 1)))
    args = argparse.Namespace(split=["fer2013"], weights=[0.0, 0.0, 1.0], logs=tmp_path / "logs",
                              checkpoints=tmp_path / "checkpoints")
    runs = [train.Run() for _ in range(3)]
    for each in runs:
        each.begin(args)
    names = [f"20260101-000000_fer2013_0-0-1{number}" for number in ("", "-2", "-3")]
    assert [each.folder.name for each in runs] == [each.log_file.stem for each in runs] == names


@pytest.mark.parametrize("arguments, epochs, rate, decay", [
    ([], 60, 0.05, 1e-3), (["--batch-size", "256"], 60, 0.2, 1e-3),
    (["--pretrained", "best.pth"], 24, 0.02, 5e-4),
    (["--pretrained", "best.pth", "--batch-size", "256"], 24, 0.08, 5e-4),
    (["--epochs", "3", "--lr", "0.1", "--decay", "0", "--batch-size", "256"], 3, 0.1, 0),
    (["--pretrained", "best.pth", "--lr", "0.1"], 24, 0.1, 5e-4)])
def test_defaults_follow_pretrained_weights_and_the_batch_size(arguments, epochs, rate, decay, place,
                                                               monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    args, _ = train.parse_arguments()
    assert (args.epochs, args.lr, args.decay) == (epochs, rate, decay)


def test_pretraining_and_fine_tuning(place):
    run("train.py", *SMALL, "--split", "imdb-wiki", "--weights", 1, 1, 0, "--epochs", 1, cwd=place)
    (best,) = place.glob("checkpoints/*imdb-wiki_1-1-0/best.pth")
    run("train.py", *SMALL, "--weights", 1, 0.1, 1, "--pretrained", best, "--epochs", 1, cwd=place)
    (log,) = place.glob("logs/*_cvpr2016+fer2013_1-0.1-1.txt")
    assert f"{best}: 132 of the model's 132 tensors loaded" in log.read_text()
    table = run("evaluate.py", "--logs", "logs", cwd=place).stdout
    assert "ResNet-18-Age-Gender on imdb-wiki (from scratch, drawn sample)" in table and "1, 0.1, 1" in table


def test_teachers_are_learned_from_also_in_a_resumed_run(trained, work, place, monkeypatch):
    teacher = the_last(work)[0].with_name("best.pth")
    begin = ("train.py", *SMALL, "--epochs", 2, "--teacher", teacher)
    run(*begin, "--logs", "whole", cwd=place)
    whole = figures(next((place / "whole").glob("*.txt")))
    shutil.rmtree(place / "checkpoints")
    train_epoch = train.Trainer.train_epoch

    def stopped(trainer, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(trainer, epoch)
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_epoch", stopped)
        run(*begin, cwd=place, status=130)
    shutil.copy(teacher, place / "moved.pth")
    last, _ = the_last(place)
    done = run("train.py", "--resume", last, "--teacher", last, cwd=place, status=2)
    assert "other files than those that the run began with" in done.stderr
    run("train.py", "--resume", last, "--teacher", "moved.pth", cwd=place)
    assert figures(the_log(place)) == whole
    assert "moved.pth: teaches emotion, from grey faces" in the_log(place).read_text()
    assert "with teachers" in run("evaluate.py", "--logs", "logs", cwd=place).stdout


@pytest.mark.parametrize("changed, arguments, expected", [
    ({"tasks": ["age", "gender"]}, ["--weights", 0, 0, 1], "trained for age and gender alone"),
    ({"detected": True}, [], "trained with --detect"), ({"mean": [0, 0, 0]}, [], "its mean are"),
    ({"model": {}}, [], "its tensors are not this network's")])
def test_a_teacher_that_does_not_fit_is_told(changed, arguments, expected, trained, work, place):
    content = torch.load(the_last(work)[0].with_name("best.pth"), weights_only=True)
    torch.save({**content, **changed}, place / "teacher.pth")
    done = run("train.py", *SMALL, *arguments, "--teacher", "teacher.pth", cwd=place, status=2)
    assert expected in done.stderr
    assert not (place / "checkpoints").exists()


def test_teachers_that_know_a_task_are_averaged_and_colours_are_kept_from_emotions():
    faces = datasets.new_faces(Path(), ["face"] * 3)
    faces.parts[0].pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    trainer = train.Trainer(argparse.Namespace(**SETTINGS), torch.device("cpu"))
    trainer.precision, trainer.faces = torch.float32, faces
    first, second = models.FaceNet(), models.FaceNet()
    trainer.teachers = [train.Teacher("a", "", first, 32, ["age"], False),
                        train.Teacher("a", "", first, 32, ["emotion"], True),
                        train.Teacher("b", "", second, 16, ["age"], False)]
    trainer.ask_teachers()

    def alone(model, size, task, grey):
        images = [torch.from_numpy(faces.parts[0].pixels)]
        with torch.no_grad():
            return models.soft_targets(model.eval()(models.prepare(images, size, grey), [task])[task])
    age = (alone(first, 32, "age", False) + alone(second, 16, "age", False)) / 2
    targets = trainer.targets_of(np.array([2, 0]))
    assert targets.keys() == {"age", "emotion"}
    torch.testing.assert_close(targets["age"], age[[2, 0]])
    torch.testing.assert_close(targets["emotion"], alone(first, 32, "emotion", True)[[2, 0]])
    second.age[2].bias.data[:] = math.nan
    with pytest.raises(datasets.DataError, match="--teacher b: its predictions are no numbers"):
        trainer.ask_teachers()


def test_rehearsed_sets_are_trained_on_but_not_judged_by(place):
    run("train.py", *SMALL, "--rehearse", "imdb-wiki", "--epochs", 1, cwd=place)
    text = the_log(place).read_text()
    last = lengthened(place)
    run("train.py", "--resume", last, cwd=place)
    assert len(evaluate.read_log(the_log(place))[1]) == 2
    assert " --rehearse imdb-wiki " in text
    assert "imdb-wiki imdb_crop train: " in text and "cvpr2016 age valid" in text
    assert "imdb-wiki imdb_crop valid" not in text
    table = run("evaluate.py", "--logs", "logs", cwd=place).stdout
    name = "ResNet-18-Age-Gender-Emotion on cvpr2016 fer2013"
    assert f"{name} (rehearsing imdb-wiki, from scratch, drawn sample)" in table


def test_two_processes_train_as_one_and_validate_every_image_once(place):
    run("train.py", *SMALL, "--epochs", 2, cwd=place)
    (one,) = evaluate.read_log(the_log(place))[1][1:]
    shutil.rmtree(place / "logs")
    run("train.py", *SMALL, "--epochs", 2, "--device", "cpu", "--logs", "logs", cwd=place, launcher=TORCHRUN)
    (two,) = evaluate.read_log(the_log(place))[1][1:]
    assert "2 processes" in the_log(place).read_text()
    assert len(list((place / "checkpoints").iterdir())) == 2
    assert one["lr"] == two["lr"]
    # near, since each process's BatchNorm sees half of the images
    for name in ("age_loss", "gender_loss", "emotion_loss"):
        assert two[name] == pytest.approx(one[name], rel=0.5), name
    # what two processes logged is what one process measures on all images
    last = max(place.glob("checkpoints/*/last.pth"), key=lambda path: path.stat().st_mtime)
    model, content = models.open_checkpoint(last)
    root, decoded, tasks = place / "data/sample", content["decoded_size"], content["tasks"]
    faces = datasets.load(root, ["cvpr2016", "fer2013"], "valid", tasks, decoded, root / ".cache")
    predictions = evaluate.predict(model, faces, content["image_size"], tasks, torch.device("cpu"))
    metrics = evaluate.score(faces, predictions)
    assert metrics["age_mae"] == pytest.approx(two["age_mae"], rel=1e-6)
    assert metrics["emotion_acc"] == two["val_emotion_acc"]


def test_a_killed_process_ends_the_run_and_leaves_a_whole_checkpoint(trained, work, place):
    teacher = the_last(work)[0].with_name("best.pth")
    process = begun(place, *TORCHRUN, ROOT / "train.py", *SMALL, "--epochs", 9, "--device", "cpu",
                    "--teacher", teacher, until="-" * 15)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    subprocess.run(["kill", "-KILL", children.split()[-1]], check=True)
    process.communicate(timeout=60)
    assert process.returncode != 0
    last, content = the_last(place)
    assert content["epoch"] < 9
    run("train.py", "--resume", last, cwd=place)            # one process goes on where two were
    assert the_last(place)[1]["epoch"] == 9


def test_a_run_that_goes_on_is_not_resumed_beside_it(trained, work):
    fcntl = pytest.importorskip("fcntl")
    text = trained.read_text()
    last, content = the_last(work)
    content["settings"]["epochs"] = 3
    longer = last.with_name("longer.pth")
    torch.save(content, longer)
    with open(last.with_name(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("train.py", "--resume", longer, cwd=work, status=2)
    assert "another process is still training this run" in done.stderr
    longer.unlink()
    assert trained.read_text() == text


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_last(place):
    done = run("train.py", *SMALL, "--weights", 1, 0, 0, "--lr", "1e30", "--epochs", 2, cwd=place, status=2)
    told = r"the loss is no number at step \d+ of 4 in epoch [12]; last.pth is that of epoch [01]"
    assert re.search(told, done.stderr)
    _, content = the_last(place)
    assert all(torch.isfinite(value.float()).all() for value in content["model"].values())


def test_weights_that_the_last_step_broke_are_not_saved(place, monkeypatch):
    monkeypatch.setattr(evaluate, "score", lambda *_: {"age_mae": 1.0, "age_loss": float("nan")})
    done = run("train.py", *SMALL, "--weights", 1, 0, 0, "--epochs", 1, cwd=place, status=2)
    told = "after epoch 1 the age loss on the valid part is no number; last.pth is that of epoch 0"
    assert told in done.stderr
    assert the_last(place)[1]["epoch"] == 0


def test_compile_without_a_compiler_is_told_before_anything_is_written(place):
    environment = {**os.environ, "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(place / "kernels")}
    done = run("train.py", *SMALL, "--compile", "--device", "cpu", cwd=place, status=2, env=environment)
    assert "--compile: does not work here" in done.stderr and not (place / "checkpoints").exists()


@pytest.mark.parametrize("name, rows, epoch, lr, scaled, teacher", [
    (None, 10, 3, 0.1, False, "a"), ("faces", 9, 3, 0.1, False, "a"), ("epoch", 10, 4, 0.1, False, "a"),
    ("lr", 10, 3, 0.2, False, "a"), ("scaled gradients", 10, 3, 0.1, True, "a"),
    ("teachers", 10, 3, 0.1, False, "b")])
def test_hosts_that_differ_are_refused(name, rows, epoch, lr, scaled, teacher, monkeypatch):
    monkeypatch.setattr(train.dist, "init_process_group", lambda *_, **__: None)
    first = []

    def gather(told, own):
        first.append(own)
        told[:] = [first[0], own]
    monkeypatch.setattr(train.dist, "all_gather_object", gather)

    def join(rows, epoch, lr, scaled, teacher):
        settings = {name: None for name in train.SETTINGS} | {"lr": lr, "pretrained": f"{lr}.pth"}
        trainer = argparse.Namespace(args=argparse.Namespace(**settings),
                                     scaler=Mock(is_enabled=lambda: scaled), device=torch.device("cpu"),
                                     share=datasets.Share(0, 2), teachers=[Mock(digest=teacher)])
        train.join_processes(trainer, {"set train": rows}, epoch)
    join(10, 3, 0.1, False, "a")
    with pytest.raises(datasets.DataError, match=f"differ in their {name}, ") if name else nullcontext():
        join(rows, epoch, lr, scaled, teacher)


def test_other_processes_that_are_not_there_are_told(place, monkeypatch):
    monkeypatch.setattr(train, "LONGEST_DECODING", timedelta(seconds=1))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    done = run("train.py", *SMALL, cwd=place, status=2)
    assert "the other processes can't be reached" in done.stderr and not (place / "logs").exists()


def test_ctrl_c_tells_how_to_resume(place):
    process = begun(place, sys.executable, ROOT / "train.py", *SMALL, "--epochs", 50, until="Train epoch")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and not errors
    told = r"stopped in epoch \d+; go on with: python train.py --resume checkpoints/.*/last.pth$"
    assert re.search(told, output.strip())


@pytest.mark.parametrize("arguments, expected", [
    (["--weights", 0, 0, 0], "all are 0"), (["--weights", 1, 1], "3 arguments"),
    (["--weights", -1, 1, 1], "out of range"), (["--weights", "nan", 1, 1], "out of range"),
    (["--weights", "inf", 1, 1], "out of range"), (["--weights", "a", 1, 1], "invalid number"),
    (["--epochs", 0], "out of range"), (["--image-size", 8], "out of range"), (["--lr", 0], "out of range"),
    (["--split", "lfw"], "invalid choice"), (["--split", "imdb-wiki"], "no labels for emotion"),
    (["--split", "fer2013", "--weights", 1, 0, 0], "no labels for age"),
    (["--weights", 0, 0, 1, "--rehearse", "imdb-wiki"], "alone, whose weights are 0"),
    (["--rehearse", "fer2013"], "--split has it already"), (["--data", "nowhere"], "no data root nowhere/"),
    (["--pretrained", "gone.pth"], "no checkpoint gone.pth"),
    (["--resume", "gone.pth"], "no checkpoint gone.pth"),
    (["--teacher", "gone.pth"], "no checkpoint gone.pth"),
    (["--teacher", "file"], "file: truncated, or not a PyTorch checkpoint"),
    (["--device", "tpu9"], "--device tpu9"), (["--logs", "file/logs"], "file"),
    (["--checkpoints", "file/checkpoints"], "file"),
])
def test_mistakes_get_a_line_before_training(arguments, expected, place):
    (place / "file").write_text("")
    assert expected in run("train.py", *SMALL, *arguments, cwd=place, status=2).stderr
    assert not list(place.glob("checkpoints/*/*"))


def test_a_set_that_a_task_needs_is_missing(place, tmp_path):
    (tmp_path / "bare").mkdir()
    done = run("train.py", "--data", "bare", cwd=tmp_path, status=2)
    assert "the age set's train part is not there" in done.stderr


def test_later_epochs_open_no_picture(place, monkeypatch):
    run("train.py", *SMALL, "--epochs", 1, cwd=place)
    for file in (place / "data/sample").resolve().rglob("*.jpg"):
        assert file.exists()
    monkeypatch.setattr(datasets, "load_image", None)
    monkeypatch.setattr(datasets.Image, "open", None)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, SMALL), "--epochs", "2"])
    assert train.main() is None


def test_momentum_begins_at_0_also_after_a_first_step_that_was_skipped():
    model = models.FaceNet()
    optimizer = train.make_optimizer(model, 0.1, 0)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())      # as GradScaler says it
    before = model.conv1.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert torch.equal(model.conv1.weight, before)


def test_learning_rate_warms_up_and_falls_to_0():
    rates = [train.rate_at(step, 200, 0.1) for step in range(200)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == rates[9] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-4


@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("options", [(), ("--device", "cuda:0", "--compile")])
def test_cuda_trains_and_judges_alike(place, options):
    run("train.py", *SMALL, "--epochs", 2, *options, cwd=place, env=WITH_GPUS)
    assert "CPU" not in the_log(place).read_text()
    text = run("evaluate.py", "--data", "sample", "--split", "fer2013", cwd=place, env=WITH_GPUS).stdout
    logged = evaluate.read_log(the_log(place))[1][int(re.search(r"epoch (\d)", text)[1]) - 1]
    assert f"emotion_acc: {logged['val_emotion_acc']}" in text
