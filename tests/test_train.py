"""Training for real on the drawn sample: learning, logs, resuming, several processes, mistakes."""
import argparse
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
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
from conftest import ROOT, WITH_GPUS, figures, picture, run

SMALL = ("--data", "sample", "--image-size", 16, "--samples", 64, "--batch-size", 32)
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
    options, epochs = evaluate.read_log(trained)
    assert options["split"] == ["cvpr2016", "fer2013"] and options["weights"] == ["1", "1", "1"]
    last = epochs[-1]
    # chance: 24 years, 50 %, 14 %
    assert last["val_age_mae"] < 12 and last["val_gender_acc"] > 75 and last["val_emotion_acc"] > 40
    assert epochs[0]["lr"] == 0.05 > epochs[1]["lr"]
    assert "drawn" in options and "its figures mean nothing" in trained.read_text()


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
    whole = evaluate.read_log(the_log(place)).epochs
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
    resumed_best = torch.load(last.with_name("best.pth"), weights_only=True)["model"]
    assert all(torch.equal(value, whole_best[name]) for name, value in resumed_best.items())
    assert evaluate.read_log(the_log(place)).epochs == whole and len(whole) == 3
    assert "resumed after epoch" in the_log(place).read_text()


def test_resuming_appends_to_the_log_and_an_epoch_that_is_there_twice_counts_as_logged_last(place):
    run("train.py", *SMALL, "--epochs", 1, cwd=place)
    last = lengthened(place)
    # as if the run had been killed after an epoch's figures, before its checkpoint
    text = the_log(place).read_text().replace("Train epoch     1:", "Train epoch     2:")
    with open(the_log(place), "a") as log:
        log.write(text[text.index("lr :") - 22:])
    run("train.py", "--resume", last, cwd=place)
    first, second = evaluate.read_log(the_log(place)).epochs
    assert (first["epoch"], second["epoch"]) == (1, 2) and first["val_age_mae"] != second["val_age_mae"]
    assert the_log(place).read_text().count("Train epoch     2:") == 2


def test_same_seed_same_log(place):
    for seed in (5, 5, 6):
        run("train.py", *SMALL, "--weights", 0, 0, 1, "--epochs", 1, "--seed", seed, "--logs", seed,
            cwd=place)
    first, second = map(figures, sorted((place / "5").glob("*.txt")))
    assert first == second != figures(next((place / "6").glob("*.txt")))


@pytest.mark.parametrize("arguments, expected", [
    (["--epochs", 3], "--epochs: a resumed run keeps its settings"),
    (["--weights", 1, 0, 0], "--weights: a resumed run keeps"), ([], "the run is finished")])
def test_resume_with_other_settings_or_at_its_end(trained, work, arguments, expected):
    last, _ = the_last(work)
    assert expected in run("train.py", "--resume", last, *arguments, cwd=work, status=2).stderr


def change(place, *keys_and_value):
    """Put something else into last.pth: keys, one in the other, and the value."""
    last, content = the_last(place)
    part = content
    *keys, key, value = keys_and_value
    for each in keys:
        part = part[each]
    part[key] = value
    torch.save(content, last)


@pytest.mark.parametrize("keys, value, expected", [
    (["training"], None, "error: "), (["model", "conv1.weight"], torch.zeros(3), "not of this network"),
    (["settings"], {}, "error: "),
    (["training", "optimizer", "state", 3, "momentum_buffer"], torch.zeros(1), "momentum is of")])
def test_a_last_pth_of_odd_content_is_refused(keys, value, expected, trained, work, place):
    shutil.copytree(work / "logs", place / "logs")
    shutil.copytree(work / "checkpoints", place / "checkpoints")
    change(place, "settings", "epochs", 3)
    change(place, *keys, value)
    last, _ = the_last(place)
    assert expected in run("train.py", "--resume", last, cwd=place, status=2).stderr
    best = last.with_name("best.pth")
    assert "no training state" in run("train.py", "--resume", best, cwd=place, status=2).stderr


@pytest.mark.parametrize("least, best", [(1e-9, 1), (1e9, 2)])
def test_a_resumed_run_keeps_its_best_unless_it_is_worse(least, best, place):
    run("train.py", *SMALL, "--epochs", 1, cwd=place)
    last = lengthened(place)
    change(place, "training", "best", least)
    run("train.py", "--resume", last, cwd=place)
    assert torch.load(last.with_name("best.pth"), weights_only=True)["epoch"] == best


def test_a_task_of_weight_0_reads_nothing_and_logs_0(work, tmp_path):
    shutil.copytree(work / "data/sample/fer2013", tmp_path / "data/fer2013")
    run("train.py", "--weights", 0, 0, 0.5, "--image-size", 32, "--samples", 64, "--epochs", 1, cwd=tmp_path)
    lines = figures(the_log(tmp_path))
    for name in ("gender_loss", "age_loss", "gender_acc"):
        assert f"          {name}: 0" in lines and f"          val_{name}: 0" in lines
    assert "[Valid] age mae: 0" in lines
    done = run("train.py", "--weights", 1, 0, 1, "--epochs", 1, cwd=tmp_path, status=2)
    assert "cvpr2016 age's train part is not there" in done.stderr


class Constant(torch.nn.Module):
    """The same logits for every image."""

    def __init__(self):
        super().__init__()
        for task, classes in models.NUM_CLASSES.items():
            self.register_parameter(task, torch.nn.Parameter(torch.zeros(classes)))

    def forward(self, images, tasks):
        return {task: getattr(self, task).expand(len(images), -1) for task in tasks}


def table(count, images=None, **labels):
    """Faces of one part that all have these labels."""
    faces = [datasets.Face("face", **labels)] * count
    part = datasets.Part(datasets.SOURCES[3], "train", Path(), faces)
    images = np.zeros((count, 4, 4, 3), np.uint8) if images is None else images
    return replace(datasets.Faces.of(part), images=[images])


SETTINGS = {"weights": [0, 1, 0.5], "samples": None, "batch_size": 64, "epochs": 1, "lr": 3.0, "decay": 0.0,
            "constant": False, "heads": False, "seed": 0, "image_size": 16, "compile": False}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_a_step_follows_the_mean_over_its_images_of_the_weighted_losses(world, taught, monkeypatch):
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(train.dist, name, lambda *_: None)
    monkeypatch.setattr(train, "DistributedDataParallel", lambda network, **_: network)
    monkeypatch.setattr(models, "FaceAttributeNet", Constant)
    tables = [table(6, gender=1), table(24, emotion=3)]
    targets = torch.rand((30, 7), generator=torch.Generator().manual_seed(0)).softmax(1)
    networks = []
    for rank in range(world):
        trainer = train.Trainer(argparse.Namespace(**SETTINGS), torch.device("cpu"), rank, world)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 1.0)
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
    assert "at least 2" in run(*alone, "--image-size", 32, cwd=tmp_path, status=2).stderr
    for part, count in (("train", 3), ("valid", 1)):        # in steps of 2 and 1
        for i in range(count):
            Image.new("L", (48, 48)).save(tmp_path / f"data/fer2013/{part}/happy/{i}.png")
    assert "at least 2" in run(*alone, "--image-size", 32, "--batch-size", 2, cwd=tmp_path, status=2).stderr


def test_runs_of_the_same_second_get_a_number(place, monkeypatch):
    monkeypatch.setattr(train, "datetime", Mock(now=lambda: datetime(2026, 1, 1)))
    for _ in range(2):
        run("train.py", *SMALL, "--split", "fer2013", "--weights", 0, 0, 1, "--epochs", 1, cwd=place)
    names = ["20260101-000000_fer2013_0-0-1", "20260101-000000_fer2013_0-0-1-2"]
    assert sorted(path.name for path in (place / "checkpoints").iterdir()) == names
    assert sorted(path.stem for path in (place / "logs").iterdir()) == names


@pytest.mark.parametrize("arguments, epochs, rate, decay", [
    ([], 60, 0.05, 1e-3), (["--batch-size", "256"], 60, 0.2, 1e-3),
    (["--pretrained", "best.pth", "--batch-size", "256"], 24, 0.08, 5e-4),
    (["--epochs", "3", "--lr", "0.1", "--decay", "0", "--batch-size", "256"], 3, 0.1, 0)])
def test_defaults_follow_pretrained_weights_and_the_batch_size(arguments, epochs, rate, decay, place,
                                                               monkeypatch):
    monkeypatch.chdir(place)
    args = train.make_parser().parse_args(["--data", "sample", *arguments])
    train.complete(args)
    assert (args.epochs, args.lr, args.decay) == (epochs, rate, decay)


def test_pretraining_and_fine_tuning(place):
    run("train.py", *SMALL, "--split", "imdb-wiki", "--weights", 1, 1, 0, "--epochs", 1, cwd=place)
    (best,) = place.glob("checkpoints/*imdb-wiki_1-1-0/best.pth")
    run("train.py", *SMALL, "--weights", 1, 0.1, 1, "--pretrained", best, "--epochs", 1, cwd=place)
    (log,) = place.glob("logs/*_cvpr2016+fer2013_1-0.1-1.txt")
    assert f"{best}: 132 of the model's 132 tensors loaded" in log.read_text()
    table = run("evaluate.py", "--logs", "logs", cwd=place).stdout
    assert "ResNet-18-Age-Gender on imdb-wiki (from scratch, drawn sample)" in table and "1, 0.1, 1" in table


def test_the_heads_alone_are_trained_on_the_mean_features_of_others(trained, work, place):
    old, new = the_last(work)[0], place / "new.pth"
    torch.save({"model": models.FaceAttributeNet().state_dict()}, new)
    for rate, heads in (0, set()), (0.05, {"age", "emotion"}):
        run("train.py", *SMALL, "--weights", 1, 0, 1, "--heads", "--pretrained", old, new, "--epochs", 1,
            "--lr", rate, "--checkpoints", rate, cwd=place)
        files = old, new, *place.glob(f"{rate}/*/last.pth")
        first, second, after = (torch.load(file, weights_only=True)["model"] for file in files)
        changed = {name.split(".")[0] for name, _ in models.FaceAttributeNet().named_parameters()
                   if not torch.equal(after[name], (first[name] + second[name]) / 2)}
        assert changed == heads and after["bn1.num_batches_tracked"] != first["bn1.num_batches_tracked"]
    best = the_last(work)[0].with_name("best.pth")
    run("train.py", *SMALL, "--weights", 1, 0, 0, "--heads", "--pretrained", best, "--image-size", 32,
        "--epochs", 1, "--checkpoints", "age", "--logs", "age", cwd=place)
    before, after = (torch.load(file, weights_only=True) for file in (best, *place.glob("age/*/last.pth")))
    kept = [(content["tasks"], content["temperatures"]["gender"]) for content in (before, after)]
    assert kept[0] == kept[1] and before["temperatures"]["age"] != after["temperatures"]["age"]
    # emotions in another order are other heads
    torch.save({**before, "emotions": before["emotions"][::-1]}, place / "other.pth")
    trainer = argparse.Namespace(tasks=["age"], kept={}, args=argparse.Namespace(detect=False, image_size=32))
    torch.save({**before, "image_size": 48}, place / "larger.pth")
    for files, heads in (([best, place / "other.pth"], "none"), ([place / "larger.pth", best], "none"),
                         ([best, place / "larger.pth"], "gender, emotion")):
        assert train.Trainer.keep_heads(trainer, files) == f"kept heads: {heads}"
    refused = run("train.py", *SMALL, "--heads", cwd=place, status=2)
    assert "--heads: expected --pretrained" in refused.stderr


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
    last, _ = the_last(place)
    run("train.py", "--resume", last, cwd=place)
    assert figures(the_log(place))[-len(whole) // 2:] == whole[-len(whole) // 2:]
    assert f"{teacher}: teaches age and gender and emotion" in the_log(place).read_text()
    assert "with teachers" in run("evaluate.py", "--logs", "logs", cwd=place).stdout


@pytest.mark.parametrize("changed, arguments, expected", [
    ({"tasks": ["age", "gender"]}, ["--weights", 0, 0, 1], "have weight 0"),
    ({"detected": True}, [], "framed otherwise"), ({"mean": [0, 0, 0]}, [], "has the mean"),
    ({"model": {}}, [], "not of this network")])
def test_a_teacher_that_does_not_fit_is_refused(changed, arguments, expected, trained, work, place):
    content = torch.load(the_last(work)[0].with_name("best.pth"), weights_only=True)
    torch.save({**content, **changed}, place / "teacher.pth")
    done = run("train.py", *SMALL, *arguments, "--teacher", "teacher.pth", cwd=place, status=2)
    assert expected in done.stderr
    assert not (place / "checkpoints").exists()


def test_teachers_of_a_task_are_averaged_and_colors_are_kept_from_emotions():
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    trainer = train.Trainer(argparse.Namespace(**SETTINGS), torch.device("cpu"))
    trainer.precision, trainer.faces = torch.float32, table(3, images)
    first, second = models.FaceAttributeNet(), models.FaceAttributeNet()
    targets = train.ask_teachers(trainer, [(first, 32, ["age", "emotion"]), (second, 16, ["age"])])

    def alone(model, size, task, grey):
        inputs = models.network_input(torch.from_numpy(images), size, grey)
        with torch.no_grad():
            return models.soft_targets(model.eval()(inputs, [task])[task])
    age = (alone(first, 32, "age", False) + alone(second, 16, "age", False)) / 2
    assert targets.keys() == {"age", "emotion"}
    torch.testing.assert_close(targets["age"], age)
    torch.testing.assert_close(targets["emotion"], alone(first, 32, "emotion", True))


def test_rehearsed_sets_are_trained_on_but_not_validated_on(place):
    run("train.py", *SMALL, "--rehearse", "imdb-wiki", "--epochs", 1, cwd=place)
    text = the_log(place).read_text()
    run("train.py", "--resume", lengthened(place), cwd=place)
    assert len(evaluate.read_log(the_log(place)).epochs) == 2
    assert " --rehearse imdb-wiki " in text and "imdb-wiki train: " in text and "cvpr2016 age valid" in text
    assert "imdb-wiki valid" not in text
    table = run("evaluate.py", "--logs", "logs", cwd=place).stdout
    name = "ResNet-18-Age-Gender-Emotion on cvpr2016 fer2013"
    assert f"{name} (rehearsing imdb-wiki, from scratch, drawn sample)" in table


def test_two_processes_train_as_one_and_validate_every_image_once(place):
    run("train.py", *SMALL, "--epochs", 2, cwd=place)
    (one,) = evaluate.read_log(the_log(place)).epochs[1:]
    shutil.rmtree(place / "logs")
    run("train.py", *SMALL, "--epochs", 2, "--device", "cpu", "--logs", "logs", cwd=place, launcher=TORCHRUN)
    (two,) = evaluate.read_log(the_log(place)).epochs[1:]
    assert "2 process(es)" in the_log(place).read_text()
    assert len(list((place / "checkpoints").iterdir())) == 2 and one["lr"] == two["lr"]
    # near, since each process's BatchNorm sees half of the images
    for name in ("age_loss", "gender_loss", "emotion_loss"):
        assert two[name] == pytest.approx(one[name], rel=0.5), name
    # what two processes logged is what one process measures on all images
    last = max(place.glob("checkpoints/*/last.pth"), key=lambda path: path.stat().st_mtime)
    model, content = models.open_checkpoint(last)
    root, decoded, tasks = place / "data/sample", content["decoded_size"], content["tasks"]
    parts, _ = datasets.read(root, ["cvpr2016", "fer2013"], "valid", tasks)
    faces = datasets.load(parts, decoded, root / ".cache")
    predictions = evaluate.predict(model, faces, content["image_size"], tasks, torch.device("cpu"))
    metrics = evaluate.means(evaluate.per_face(faces, predictions))
    assert metrics["age_mae"] == pytest.approx(two["val_age_mae"], rel=1e-6)
    assert metrics["emotion_acc"] == two["val_emotion_acc"]


def test_a_killed_process_ends_the_run_and_leaves_a_whole_checkpoint(trained, work, place):
    teacher = the_last(work)[0].with_name("best.pth")
    process = begun(place, *TORCHRUN, ROOT / "train.py", *SMALL, "--epochs", 5, "--device", "cpu",
                    "--weights", 0, 0, 1, "--teacher", teacher, until="-" * 15)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    subprocess.run(["kill", "-KILL", children.split()[-1]], check=True)
    process.communicate(timeout=60)
    assert process.returncode != 0
    last, content = the_last(place)
    assert content["epoch"] < 5
    run("train.py", "--resume", last, cwd=place)            # one process goes on where two were
    assert the_last(place)[1]["epoch"] == 5


def test_a_run_that_goes_on_is_not_resumed_beside_it(trained, work):
    fcntl = pytest.importorskip("fcntl")
    text = trained.read_text()
    last, content = the_last(work)
    content["settings"]["epochs"] = 3
    longer = last.with_name("longer.pth")
    torch.save(content, longer)
    with open(trained, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("train.py", "--resume", longer, cwd=work, status=2)
    assert "another process is training this run" in done.stderr
    done = run("train.py", "--resume", longer, cwd=work.parent, status=2)       # where no log is
    assert f"No such file or directory: 'logs/{trained.name}'" in done.stderr
    longer.unlink()
    assert trained.read_text() == text


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_last(place):
    done = run("train.py", *SMALL, "--weights", 1, 0, 0, "--lr", "1e30", "--epochs", 2, cwd=place, status=2)
    assert re.search(r"epoch [12]: a loss is no number; last.pth is that of epoch [01]", done.stderr)
    _, content = the_last(place)
    assert all(torch.isfinite(value.float()).all() for value in content["model"].values())


def test_weights_that_the_last_step_broke_are_not_saved(place, monkeypatch):
    monkeypatch.setattr(evaluate, "means", lambda _: {"age_mae": 1.0, "age_loss": float("nan")})
    done = run("train.py", *SMALL, "--weights", 1, 0, 0, "--epochs", 1, cwd=place, status=2)
    assert "epoch 1: a loss is no number; last.pth is that of epoch 0" in done.stderr
    assert the_last(place)[1]["epoch"] == 0


def test_ctrl_c_shows_how_to_resume(place):
    process = begun(place, sys.executable, ROOT / "train.py", *SMALL, "--epochs", 50, until="Train epoch")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and not errors
    expected = r"stopped in epoch \d+; go on with: python train.py --resume checkpoints/.*/last.pth$"
    assert re.search(expected, output.strip())


@pytest.mark.parametrize("arguments, expected", [
    (["--weights", 0, 0, 0], "all are 0"), (["--weights", 1, 1], "3 arguments"),
    (["--weights", -1, 1, 1], "out of range"), (["--weights", "nan", 1, 1], "out of range"),
    (["--weights", "a", 1, 1], "invalid weight"),
    (["--epochs", 0], "out of range"), (["--image-size", 8], "out of range"), (["--lr", -1], "out of range"),
    (["--split", "lfw"], "invalid choice"), (["--split", "imdb-wiki"], "no labels for emotion"),
    (["--split", "fer2013", "--weights", 1, 0, 0], "no labels for age"),
    (["--weights", 0, 0, 1, "--rehearse", "imdb-wiki"], "the weights of its tasks are 0"),
    (["--data", "nowhere"], "no data root nowhere/"),
    (["--pretrained", "gone.pth"], "no checkpoint gone.pth"),
    (["--resume", "gone.pth"], "no checkpoint gone.pth"),
    (["--teacher", "gone.pth"], "no checkpoint gone.pth"),
    (["--teacher", "file"], "file: damaged"),
    (["--device", "tpu9"], "tpu9: can't be used here"), (["--logs", "file/logs"], "file"),
    (["--checkpoints", "file/checkpoints"], "file"),
])
def test_mistakes_get_a_line_before_training(arguments, expected, place):
    (place / "file").write_text("")
    assert expected in run("train.py", *SMALL, *arguments, cwd=place, status=2).stderr
    assert not list(place.glob("checkpoints/*/*"))


def test_training_without_copies(tmp_path):
    for subset, count in (("train", 12), ("valid", 4)):
        for i in range(count):
            name = f"data/cvpr2016/gender/{subset}/{('female', 'male')[i % 2]}/{i}.png"
            picture(tmp_path / name, 100 if i == 0 else i + count, (32, 32))
    (tmp_path / "data/cvpr2016/gender/train/male/caf\udce9.png").touch()        # not UTF-8
    run("train.py", "--split", "cvpr2016", "--weights", 0, 1, 0, "--without-copies", "--image-size", 32,
        "--epochs", 1, "--batch-size", 4, cwd=tmp_path)
    text = the_log(tmp_path).read_text()
    assert "cvpr2016 gender train: 11 images" in text
    assert "dropped, undecodable file: 1 (gender/train/male/caf\\udce9.png)" in text
    assert "cvpr2016 gender train: dropped, picture of valid or test: 1 (gender/train/female/0.png)" in text


def test_a_set_without_usable_faces_is_named(tmp_path):
    for subset in ("train", "valid"):
        for file in (f"gender/{subset}/male/1.png", f"age/{subset}/31/1.png", f"age/{subset}/32/1.png"):
            picture(tmp_path / "bare/cvpr2016" / file)
        (tmp_path / f"bare/cvpr2016/gender/{subset}/male/1.png").write_text("version https://git-lfs")
    done = run("train.py", "--data", "bare", "--split", "cvpr2016", "--weights", 1, 1, 0, "--image-size", 32,
               cwd=tmp_path, status=2)
    assert "cvpr2016 gender train: no usable face; " in done.stderr


def test_later_epochs_open_no_picture(place, monkeypatch):
    run("train.py", *SMALL, "--epochs", 1, cwd=place)
    monkeypatch.setattr(datasets.Image, "open", None)
    run("train.py", *SMALL, "--epochs", 2, cwd=place)


def test_momentum_begins_at_0_also_after_a_first_step_that_was_skipped():
    model = models.FaceAttributeNet()
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
    args = argparse.Namespace(lr=0.1, constant=False)
    rates = [train.rate_at(step, 200, args) for step in range(200)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == rates[9] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-4


# ---- the recipe

def test_steps_are_nesterovs_and_only_weights_of_layers_decay():
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
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


def test_the_heads_of_tasks_of_weight_0_are_frozen():
    trainer = train.Trainer(argparse.Namespace(**SETTINGS | {"weights": [0, 0.5, 0]}), torch.device("cpu"))
    frozen = {name.split(".")[0] for name, parameter in trainer.model.named_parameters()
              if not parameter.requires_grad}
    assert frozen == {"age", "emotion"}
    trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(trained) == sum(parameter.requires_grad for parameter in trainer.model.parameters())


def test_images_are_smaller_at_first_unless_constant():
    def sizes(**settings):
        args = argparse.Namespace(**SETTINGS | settings)
        return [train.size_at(epoch, args) for epoch in range(1, args.epochs + 1)]
    assert sizes(epochs=10, image_size=96) == [64] * 6 + [96] * 4
    assert sizes(epochs=10, image_size=96, constant=True) == [96] * 10
    assert sizes(epochs=10, image_size=96, heads=True) == [96] * 10
    assert sizes(image_size=96) == [96] and sizes(epochs=9) == [16] * 9


def test_a_checkpoint_of_smaller_images_is_evaluated_as_its_log_says(place, monkeypatch):
    errors = iter((1.0, 2.0))                                               # the first epoch is the best
    monkeypatch.setattr(evaluate, "mean_error", lambda metrics: next(errors))
    run("train.py", *SMALL, "--image-size", 32, "--split", "cvpr2016", "--weights", 1, 0, 0, "--epochs", 2,
        cwd=place)
    (best,) = place.glob("checkpoints/*/best.pth")
    content = torch.load(best, weights_only=True)
    assert (content["epoch"], content["image_size"], content["decoded_size"]) == (1, 16, 32)
    done = run("evaluate.py", "--data", "sample", "--split", "cvpr2016", "--checkpoint", best, cwd=place)
    first, second = re.findall(r"\[Valid\] age mae: (.*)", the_log(place).read_text())
    assert f"age mae: {first}\n" in done.stdout and first != second


def test_statistics_are_those_of_an_epochs_batches():
    trainer = train.Trainer(argparse.Namespace(**SETTINGS), torch.device("cpu"))
    trainer.start(table(100, np.random.default_rng(0).integers(0, 255, (100, 16, 16, 3), np.uint8), gender=1))
    trainer.model.bn1.running_mean.fill_(math.nan)
    trainer.estimate_statistics()
    means = [trainer.model.conv1(trainer.inputs(batch)).mean((0, 2, 3)) for batch in trainer.batches(0)]
    torch.testing.assert_close(trainer.model.bn1.running_mean, sum(means) / len(means))


def test_the_scaler_of_float16_goes_on_where_it_was():
    before, after = (train.Trainer(argparse.Namespace(**SETTINGS), torch.device("cpu")) for _ in range(2))
    for trainer in (before, after):
        trainer.scaler = torch.amp.GradScaler("cpu")
    before.scaler.load_state_dict(before.scaler.state_dict() | {"scale": 128.0, "_growth_tracker": 5})
    after.load(before.content(1, {}, {}), Path("last.pth"))
    assert after.scaler.state_dict() == before.scaler.state_dict()


def test_16_pixels_are_trained_in_float32(monkeypatch):
    monkeypatch.setattr(models, "fast_precision", lambda device: torch.bfloat16)
    trainer = train.Trainer(argparse.Namespace(**SETTINGS), torch.device("cpu"))
    for size in (16, 17):
        with trainer.autocast(size):
            assert torch.is_autocast_enabled("cpu") == (size > 16)


@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("options", [(), ("--device", "cuda:0", "--compile")])
def test_cuda_trains_and_evaluates_alike(place, options):
    run("train.py", *SMALL, "--epochs", 2, *options, cwd=place, env=WITH_GPUS)
    assert "CPU" not in the_log(place).read_text()
    text = run("evaluate.py", "--data", "sample", "--split", "fer2013", cwd=place, env=WITH_GPUS).stdout
    logged = evaluate.read_log(the_log(place)).epochs[int(re.search(r"epoch (\d)", text)[1]) - 1]
    assert f"emotion_acc: {logged['val_emotion_acc']}" in text
