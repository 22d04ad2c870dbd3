"""Metrics, intervals, calibration, logs, predictions, pictures, plots."""
import argparse
import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import evaluate
import model as models
from conftest import ROOT, picture, run
from evaluate import Predictions

# the log in the document that this project implements
SEED_LOG = """\
[25.03.2019 20:56:57] lr : 0.01
[25.03.2019 20:56:57] Train epoch    12:
[25.03.2019 20:56:57]           gender_loss: 0.004286306880591927
[25.03.2019 20:56:57]           age_loss: 4.351883343876301
[25.03.2019 20:56:57]           emotion_loss: 0
[25.03.2019 20:56:57] 

[25.03.2019 20:56:57]           gender_acc: 99.83629397422501
[25.03.2019 20:56:57]           emotion_acc: 0
[25.03.2019 20:59:29] [Valid] age mae: 12.487859796083074
[25.03.2019 20:57:06]           val_gender_loss: 0.7626899842100223
[25.03.2019 20:57:06]           val_age_loss: 4.574302972458863
[25.03.2019 20:57:06]           val_emotion_loss: 0
[25.03.2019 20:57:06] 

[25.03.2019 20:57:06]           val_gender_acc: 87.21448467116502
[25.03.2019 20:57:06]           val_emotion_acc: 0
[25.03.2019 20:57:06] ---------------
"""


def faces(**labels):
    """A table of one part with these labels, each a list."""
    count = len(next(iter(labels.values())))
    rows = [datasets.Face(f"{i}.jpg", **{name: values[i] for name, values in labels.items()})
            for i in range(count)]
    return datasets.Faces.of(datasets.Part(datasets.SOURCES[4], "valid", Path(), rows))


def the_best(work):
    """The best.pth of the only run, and what is in it."""
    (best,) = work.glob("checkpoints/*/best.pth")
    return best, torch.load(best, weights_only=True)


def write_table(file, *rows):
    with open(file, "w", newline="") as table:
        csv.writer(table).writerows(rows)


def read_table(file):
    with open(file, newline="") as table:
        return list(csv.DictReader(table))


# ---- metrics

def score(table, predictions):
    return evaluate.means(evaluate.per_face(table, predictions))


def test_metrics_by_hand():
    table = datasets.join([faces(age=[10, 25, np.nan, 29], age_std=[2, np.nan, 1, 4], gender=[0, 1, 1, -1]),
                           faces(emotion=[0, 0, 6])])
    predictions = Predictions({
        "age": np.array([12.0, 20, 99, 30, 0, 0, 0]), "gender": np.array([0, 0, 1, 1, 0, 0, 0]),
        "emotion": np.array([0, 0, 0, 0, 0, 3, 6])})
    metrics = score(table, predictions)
    assert metrics["age_mae"] == pytest.approx((2 + 5 + 1) / 3)
    decades = evaluate.decades(table)
    assert {decade: np.flatnonzero(rows).tolist() for decade, rows in decades.items()} == {
        "aged 10-19": [0], "aged 20-29": [1, 3]}
    assert metrics["chalearn_error"] == pytest.approx(((1 - np.exp(-0.5)) + (1 - np.exp(-1 / 32))) / 2)
    assert metrics["gender_acc"] == metrics["emotion_acc"] == pytest.approx(200 / 3)
    assert evaluate.confusion_matrix("gender", table, predictions).tolist() == [[1, 0], [1, 1]]
    emotions = evaluate.confusion_matrix("emotion", table, predictions)
    assert emotions[0].tolist() == [1, 0, 0, 1, 0, 0, 0] and emotions.sum() == 3
    text = evaluate.report(table, predictions, None)
    assert f"age mae: {metrics['age_mae']}" in text and "chalearn error" in text
    assert re.search(r"\| angry +\| +50.00 \| .* \| +2 \|", text)
    assert re.search(r"\| disgust +\| +- \| +\| +0 \|", text)


def test_chalearn_error_where_all_guessed_the_same_age():
    metrics = score(faces(age=[20, 20], age_std=[0, 0]), Predictions({"age": np.array([20.0, 21])}))
    assert metrics["chalearn_error"] == 0.5


def test_a_prediction_that_is_no_number_counts_as_infinitely_wrong():
    predictions = Predictions({"age": np.array([np.nan, 21, np.nan])})
    metrics = score(faces(age=[20, 20, np.nan]), predictions)
    assert metrics["age_mae"] == evaluate.mean_error({"val_age_mae": np.inf}) == np.inf


def test_what_was_not_predicted_or_has_no_label_is_not_measured():
    predictions = Predictions({"age": np.array([20.0]), "gender": np.array([1])})
    assert set(score(faces(age=[20], emotion=[3]), predictions)) == {"age_mae"}


def test_predict_sees_every_image_once():
    torch.manual_seed(0)
    network = models.FaceAttributeNet().eval()
    rng = np.random.default_rng(0)
    table = datasets.join([
        replace(faces(age=list(range(70))), images=[rng.integers(0, 255, (70, 16, 16, 3), np.uint8)]),
        replace(faces(gender=[0, 1, 1] * 11), images=[rng.integers(0, 255, (33, 16, 16, 3), np.uint8)])])
    cpu, tasks = torch.device("cpu"), ("age", "gender")
    alone = evaluate.predict(network, table, 16, tasks, cpu)
    assert {task: len(values) for task, values in alone.values.items()} == {"age": 103, "gender": 103}
    second = evaluate.predict(network, table.keep(table["part"] == 1), 16, tasks, cpu)
    torch.testing.assert_close(second.logits["age"], alone.logits["age"][70:], rtol=0, atol=0)
    mirrored = evaluate.predict(network, table, 16, ("age",), cpu, tta=True)
    assert (mirrored.values["age"] != alone.values["age"]).any()


def test_tta_is_the_mean_of_the_probabilities_of_both_images():
    def network(inputs, tasks):                             # sees the left edge alone
        return {"gender": inputs[:, 0, 0, :1] * torch.tensor([[1.0, -1.0]])}
    image = torch.zeros((1, 16, 16, 3), dtype=torch.uint8)
    image[:, :, 8:] = 255
    one, other, both = (evaluate.forward(network, images, 16, ["gender"], tta)["gender"].softmax(1)
                        for images, tta in ((image, False), (image.flip(2), False), (image, True)))
    assert (one - other).abs().max() > 0.1
    torch.testing.assert_close(both, (one + other) / 2)


# ---- intervals and calibration

def test_wilsons_interval():
    # Wilson's, as in Newcombe 1998, table I
    low, high = evaluate.interval(np.repeat([100.0, 0.0], [81, 182]), True)
    assert (low, high) == pytest.approx((25.53, 36.62), abs=0.01)
    assert evaluate.interval(np.zeros(10), True) == pytest.approx((0, 27.75), abs=0.01)


def test_bootstrap_interval_is_near_the_normal_one_and_always_the_same():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = evaluate.interval(values, False)
    assert (low, high) == pytest.approx((values.mean() - 0.196, values.mean() + 0.196), abs=0.03)
    assert evaluate.interval(values, False) == (low, high)


def certain(logits, **labels):
    """Faces of these labels, and predictions of these logits (n, classes) by task."""
    return faces(**labels), Predictions({}, logits={task: torch.as_tensor(values, dtype=torch.float32)
                                                    for task, values in logits.items()})


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_calibration_undoes_what_the_logits_were_multiplied_by(factor):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 7))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(1)          # as often as the softmax says
    table, predictions = certain({"emotion": factor * logits}, emotion=truth)
    found = evaluate.calibrate(table, predictions)
    assert set(found) == {"emotion"} and found["emotion"] == pytest.approx(factor, rel=0.05)
    for temperature, sound in ((1, False), (factor, True)):
        error, low, high = evaluate.calibration_error(predictions.logits["emotion"] / temperature,
                                                      torch.from_numpy(truth))
        assert low < high and (error < 2) == sound and (error > 5) != sound


def test_calibration_error_by_hand():
    logits = torch.tensor([0.9, 0.9, 0.6]).log()[:, None] * torch.tensor([[1.0, 0.0]])
    logits[:, 1] = (1 - logits[:, 0].exp()).log()
    # two predicted with 0.9, of which one is right, and one with 0.6, which is right
    error, *_ = evaluate.calibration_error(logits, torch.tensor([0, 1, 0]))
    assert error == pytest.approx(100 * (2 * (0.9 - 0.5) + (1 - 0.6)) / 3)


def test_calibrated_age_ranges_hold_four_of_five_true_ages():
    rng = np.random.default_rng(0)
    years, middle = np.arange(101), rng.uniform(30, 70, 4000)
    logits = -((years - middle[:, None]) / 3) ** 2 / 2                  # a deviation of 3 years is predicted
    truth = np.round(rng.normal(middle, 6))                             # and one of 6 is true
    table, predictions = certain({"age": logits}, age=truth)
    before = evaluate.in_age_interval(predictions.logits["age"], torch.from_numpy(truth)).mean()
    temperature = evaluate.calibrate(table, predictions)["age"]
    after = evaluate.in_age_interval(predictions.logits["age"] / temperature, torch.from_numpy(truth)).mean()
    assert before < 60 and after == pytest.approx(80, abs=1)
    assert temperature == pytest.approx(4, rel=0.15)                    # in whole years, some too many


def test_calibration_leaves_out_what_has_no_label_or_only_a_range():
    table, predictions = certain({"age": np.zeros((2, 101)), "gender": np.zeros((2, 2))}, age=[24.5, np.nan],
                                 age_low=[20, np.nan], age_high=[30, np.nan])
    assert evaluate.calibrate(table, predictions) == {}
    assert "gender" not in evaluate.calibration_table(table, predictions, {})


def test_a_checkpoints_temperatures_are_shown_exported_and_used(trained, work, tmp_path):
    best, content = the_best(work)
    assert set(content["temperatures"]) == {"age", "gender", "emotion"}
    portrait = picture(tmp_path / "face.png", size=(64, 64))
    probabilities = []
    for temperature in (0.5, 50.0):
        content["temperatures"] = {"age": temperature, "emotion": temperature}
        torch.save(content, tmp_path / "c.pth")
        run("evaluate.py", "--checkpoint", tmp_path / "c.pth", "--export", tmp_path / f"{temperature}.pth",
            cwd=work)
        run("evaluate.py", "--checkpoint", tmp_path / f"{temperature}.pth", portrait, "--csv",
            tmp_path / "faces.csv", cwd=work)
        (row,) = read_table(tmp_path / "faces.csv")
        probabilities.append(row)
    sure, unsure = probabilities
    assert float(sure["emotion_probability"]) > float(unsure["emotion_probability"])
    narrow, wide = (int(row["age_high"]) - int(row["age_low"]) for row in (sure, unsure))
    assert 0 <= narrow < wide
    assert all(sure[name] == unsure[name] for name in ("age", "emotion", "gender", "gender_probability"))
    text = run("evaluate.py", "--checkpoint", tmp_path / "c.pth", "--split", "cvpr2016", "--data", "sample",
               cwd=work).stdout
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
             for line in text.splitlines() if "predicted 80 %" in line or "calibration error" in line}
    figure, within, temperature = cells["true ages in the predicted 80 % (%)"]
    low, high = map(float, within.split(" to "))
    assert low <= float(figure) <= high and temperature == "50.000"
    assert cells["gender calibration error (%)"][-1] == "1.000"


# ---- logs

def test_seed_log_reads_back_and_is_written_to_the_letter(tmp_path):
    (tmp_path / "seed.txt").write_text(SEED_LOG)
    options, (epoch,) = evaluate.read_log(tmp_path / "seed.txt")
    assert options == {} and epoch["epoch"] == 12 and epoch["lr"] == 0.01
    assert epoch["age_loss"] == 4.351883343876301 and epoch["val_age_mae"] == 12.487859796083074
    assert epoch["val_gender_acc"] == 87.21448467116502 and "val_emotion_acc" not in epoch
    stamps = re.findall(r"^\[.*?\] ", SEED_LOG, re.MULTILINE)
    lines = zip(stamps, evaluate.epoch_lines(epoch), strict=True)
    assert "".join(f"{stamp}{line}\n" for stamp, line in lines) == SEED_LOG
    row = r"\| ResNet-18-Age-Gender +\| +12.49 \| +87.21 \| +\| +\| +0.01 \|"
    assert re.search(row, evaluate.results_table(evaluate.read_logs(tmp_path).values()))


def test_log_of_a_run_that_was_killed_and_resumed(tmp_path):
    figures = {"lr": 0.01, "epoch": 1, "emotion_loss": 1.0, "emotion_acc": 40.0, "val_emotion_loss": 1.5}

    def block(accuracy):
        lines = evaluate.epoch_lines({**figures, "val_emotion_acc": accuracy})
        return "".join(f"[01.01.2026 00:00:00] {line}\n" for line in lines)
    once, cut = block(50.0), "\n[01.01.2026 00:00:00] age_loss: 4.3e"
    (tmp_path / "a.txt").write_text(once[:len(once) // 2] + "\n" + block(51.0) + block(52.0) + once[:90] + cut)
    epochs = evaluate.read_log(tmp_path / "a.txt").epochs
    assert [epoch["val_emotion_acc"] for epoch in epochs] == [52.0]


def test_table_shows_the_seeds_rows_and_each_runs_best_epoch(tmp_path):
    def log(name, command, *epochs):
        lines = [command] if command else []
        for i, values in enumerate(epochs, 1):
            lines += evaluate.epoch_lines({"lr": 0.01, "epoch": i, **values})
        (tmp_path / name).write_text("".join(f"[01.01.2026 00:00:00] {line}\n" for line in lines))
    log("1.txt", "train.py --data data --split imdb-wiki --weights 1 1 0 --lr 0.03",
        {"val_age_mae": 6.0, "val_gender_acc": 90.0})
    log("2.txt", "train.py --data data --split cvpr2016 fer2013 --weights 1 0.1 1 --pretrained a/best.pth "
        "--lr 0.01",
        {"val_age_mae": 6.0, "val_gender_acc": 90.0, "val_emotion_acc": 60.0},
        {"val_age_mae": 6.1, "val_gender_acc": 89.0, "val_emotion_acc": 61.0})
    log("3.txt", "train.py --data data --split fer2013 --weights 0 0 1 --lr 0.02",
        {"val_emotion_acc": 60.0}, {"val_emotion_acc": 70.123})
    log("4.txt", "train.py --data data")
    done = run("evaluate.py", "--logs", tmp_path, cwd=tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert rows[0] == ["model", "Age MAE", "Gender Acc (%)", "Emotion Acc (%)", "weight", "initial lr"]
    assert [row[0] for row in rows[2:7]] == [f"ResNet-18-{tasks} (original)" for tasks in (
        "Age-Gender-Emotion", "Age-Gender-Emotion", "Age", "Gender", "Emotion")]
    assert rows[7:] == [
        ["ResNet-18-Age-Gender on imdb-wiki (from scratch)", "6.00", "90.00", "", "1, 1, 0", "0.03"],
        ["ResNet-18-Age-Gender-Emotion on cvpr2016 fer2013", "6.00", "90.00", "60.00", "1, 0.1, 1", "0.01"],
        ["ResNet-18-Emotion on fer2013 (from scratch)", "", "", "70.12", "0, 0, 1", "0.02"]]
    assert "4.txt: left out (no finished epoch)" in done.stderr
    assert "no logs" in run("evaluate.py", "--logs", tmp_path / "nowhere", cwd=tmp_path, status=2).stderr


def test_what_is_no_log_is_left_out_and_named(trained, tmp_path):
    shutil.copy(trained, tmp_path / "a$b_{$.txt")                   # no formula in the plot
    (tmp_path / "latin.txt").write_bytes(b"f\xfcr sp\xe4ter")
    (tmp_path / "utf16.txt").write_bytes(trained.read_text().encode("utf-16"))
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    done = run("evaluate.py", "--logs", tmp_path, "--plot", tmp_path / "p.svg", cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 8 and len(done.stderr.splitlines()) == 4
    for name in ("latin", "utf16", "folder", "gone"):
        assert f"{name}.txt: left out" in done.stderr
    assert (tmp_path / "p.svg").stat().st_size


# ---- on the sample

@pytest.mark.parametrize("split", ["cvpr2016", "fer2013"])
def test_figures_equal_the_logs_to_the_last_digit_and_predictions_score_the_same(trained, work, split):
    assert trained.read_text().count("Train epoch") == 2
    command = ("evaluate.py", "--data", "sample", "--split", split)
    text = run(*command, "--save-predictions", "p.csv", cwd=work).stdout
    epoch = int(re.search(r"best.pth: .*; epoch (\d)", text)[1])
    logged = evaluate.read_log(trained).epochs[epoch - 1]
    shown = {name: float(value) for name, value in re.findall(r"^([\w ]+): ([\d.]+)$", text, re.MULTILINE)}
    names = {"cvpr2016": ("age_mae", "gender_acc", "gender_loss", "age_loss"),
             "fer2013": ("emotion_acc", "emotion_loss")}[split]
    for name in names:
        assert shown[name.replace("age_mae", "age mae")] == logged[f"val_{name}"], name
    scored = run(*command, "--predictions", "p.csv", cwd=work).stdout
    of_both = text[:text.rindex("\n\n") + 1]                # behind it, of a model alone, calibration
    same = [line for line in of_both.splitlines() if "_loss" not in line and "best.pth" not in line]
    assert scored.splitlines() == same
    assert "mean of image and mirror image (--tta)" in run(*command, "--tta", cwd=work).stdout


EMOTIONS = datasets.CLASS_NAMES["emotion"]


def test_predictions_missing_different_unknown_or_senseless(tmp_path, work):
    root = work / "data/sample"
    (part,), _ = datasets.read(root, ["fer2013"], "valid", ["emotion"])
    rows = [[face.file, EMOTIONS[face.emotion]] for face in part.faces]

    def scored(rows, header=("image", "emotion"), status=2):
        write_table(tmp_path / "p.csv", header, *rows)
        return run("evaluate.py", "--data", "sample", "--split", "fer2013",
                   "--predictions", tmp_path / "p.csv", cwd=work, status=status)
    other = {"angry": "anger", "happy": "Happiness", "sad": "sadness", "fear": "fearful"}
    synonyms = [[name, other.get(emotion, emotion)] for name, emotion in rows]
    assert "emotion_acc: 100.0" in scored(synonyms + [rows[7]], status=0).stdout     # twice and alike
    assert "missing: 1 (3)" in scored(rows[:3] + rows[4:]).stderr
    wrong = EMOTIONS[(EMOTIONS.index(rows[7][1]) + 1) % 7]
    assert "7 is there twice, with different values" in scored(rows + [["7", wrong]]).stderr
    assert "no image of this part: 2 (140, x)" in scored(rows + [["140", "sad"], ["x", "sad"]]).stderr
    for odd in ("glad", "7"):
        assert f"line 2: emotion is '{odd}'; expected angry, disgust" in scored([["0", odd]] + rows[1:]).stderr
    assert "expected the columns image and any of age" in scored(rows, ("image", "mood")).stderr
    more = scored([["x.png", *row] for row in rows], ("face", "image", "emotion"), status=0)
    assert "emotion_acc: 100.0" in more.stdout              # other columns are ignored


def test_predictions_of_one_task_need_only_its_images(work, tmp_path):
    truth = read_table(work / "data/sample/cvpr2016/age/valid_gt.csv")
    rows = [(f"age/valid/{row['image']}", float(row["mean"]) + 2) for row in truth]
    write_table(tmp_path / "p.csv", ("image", "age"), *rows)
    text = run("evaluate.py", "--data", "sample", "--split", "cvpr2016", "--predictions", tmp_path / "p.csv",
               cwd=work).stdout
    assert "age mae: 2.0\n" in text and "gender_acc" not in text


@pytest.fixture(scope="module")
def genders(tmp_path_factory):
    """ChaLearn's gender set with 24 + 8 pictures, of which one of valid is also in train."""
    root = tmp_path_factory.mktemp("genders")
    for subset, count in (("train", 24), ("valid", 8)):
        for i in range(count):
            name = f"data/cvpr2016/gender/{subset}/{('female', 'male')[i % 2]}/{i}.png"
            picture(root / name, 100 if i == 0 else i + count)
    return root


def test_unseen_figures_leave_out_what_is_in_train_too(genders, tmp_path):
    names = sorted(f"gender/valid/{gender}/{i}.png" for i in range(8) for gender in [("female", "male")[i % 2]])
    rows = [(name, 1 if "/0." in name else int("/male/" in name)) for name in names]    # the copy is wrong
    write_table(genders / "p.csv", ("image", "gender"), *rows)
    command = ("evaluate.py", "--split", "cvpr2016", "--predictions")
    text = run(*command, "p.csv", cwd=genders).stdout
    assert "1 of the images are in the train part too" in text and "gender_acc: 87.5\n" in text
    assert re.search(r"\| all +\| +87.50 \| .* 8 \|\n\| unseen +\| +100.00 \| .* 7 \|", text)
    shutil.copytree(genders / "data/cvpr2016/gender/valid", tmp_path / "data/cvpr2016/gender/valid")
    text = run(*command, genders / "p.csv", cwd=tmp_path).stdout
    assert "it is unknown which images are in the train part too: " in text and "| unseen" not in text


def test_several_predictions_are_compared_to_the_first_face_by_face(genders):
    names = sorted(f"gender/valid/{gender}/{i}.png" for i in range(8) for gender in [("female", "male")[i % 2]])
    for file, value in (("ours.csv", lambda name: "Man" if "/male/" in name else "Woman"),
                        ("female.csv", lambda name: "female")):
        write_table(genders / file, ("image", "left", "gender"),
                    *((f"/elsewhere/cvpr2016/{name}", 4, value(name)) for name in names))
    text = run("evaluate.py", "--split", "cvpr2016", "--predictions", "ours.csv", "female.csv",
               cwd=genders).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("| ")]
    ours, female = (next(row for row in rows if row[0] == name) for name in ("ours.csv", "female.csv"))
    assert ours[1] == "100.00" and ours[4] == "+0.00"
    assert female[1] == "50.00" and female[4] == "-50.00" and "over the 7 images" in text
    low, high = map(float, female[5].split(" to "))
    assert low < -50 < high < 0


def test_nothing_of_the_train_part_is_decoded(genders, tmp_path, monkeypatch):
    shutil.copytree(genders / "data", tmp_path / "data", ignore=shutil.ignore_patterns(".cache"))
    write_table(tmp_path / "p.csv", ("image", "gender"),
                *((f"gender/valid/{('female', 'male')[i % 2]}/{i}.png", i % 2) for i in range(8)))
    opened, open_picture = [], datasets.open_picture
    monkeypatch.setattr(datasets, "open_picture",
                        lambda file, *side: opened.append(file) or open_picture(file, *side))
    run("evaluate.py", "--split", "cvpr2016", "--predictions", "p.csv", cwd=tmp_path)
    assert len(opened) == 8 and not any("train" in str(file) for file in opened)


def test_predictions_of_a_part_that_lacks_a_file_are_scored(work, trained, tmp_path):
    shutil.copytree(work / "data/sample/cvpr2016", tmp_path / "data/cvpr2016")
    (tmp_path / "data/cvpr2016/age/valid/000003.jpg").unlink()
    (best,) = work.glob("checkpoints/*/best.pth")
    command = ("evaluate.py", "--split", "cvpr2016")
    ours = run(*command, "--checkpoint", best, "--save-predictions", "p.csv", cwd=tmp_path).stdout
    theirs = run(*command, "--predictions", "p.csv", cwd=tmp_path).stdout
    figures = [line for line in ours.splitlines()
               if line.startswith(("age mae", "gender_acc", "| all")) or "dropped" in line]
    assert len(figures) == 4 and set(figures) <= set(theirs.splitlines())
    with open(tmp_path / "p.csv", "a") as table:            # by somebody who has the file
        table.write("age/valid/000003.jpg,50,\n")
    assert figures[1] in run(*command, "--predictions", "p.csv", cwd=tmp_path).stdout


def test_an_output_that_is_there_among_the_data_is_not_replaced(work, trained):
    table = work / "data/sample/fer2013/fer2013.csv"
    before = table.stat()
    command = ("evaluate.py", "--data", "sample", "--split", "fer2013", "--save-predictions", table)
    assert "is among the data" in run(*command, cwd=work, status=2).stderr and table.stat() == before


def test_a_picture_that_is_read_is_not_replaced(tmp_path):
    photo = picture(tmp_path / "a.png")
    before = photo.read_bytes()
    done = run("evaluate.py", photo, "--csv", photo, cwd=tmp_path, status=2)
    assert "expected a name that ends with .csv" in done.stderr and photo.read_bytes() == before


# ---- pictures

def test_pictures(trained, work, tmp_path):
    picture(tmp_path / "faces/a.jpg")
    picture(tmp_path / "faces/deeper/b.png", 1, (50, 30))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    done = run("evaluate.py", tmp_path / "faces", "--csv", tmp_path / "p.csv",
               "--checkpoint", the_best(work)[0], cwd=work)
    expected = r"[ab]\.(jpg|png): age [\d.]+ years \(\d+-\d+\), (female|male) \d+ %, \w+ \d+ %"
    assert len(re.findall(expected, done.stdout)) == 2
    assert "the middle square of each picture is taken as the face" in done.stdout
    assert "trained on drawn faces" in done.stdout
    rows = read_table(tmp_path / "p.csv")
    assert [row["image"] for row in rows] == [f"{tmp_path}/faces/a.jpg", f"{tmp_path}/faces/deeper/b.png"]
    assert ",".join(rows[0]) == ("image,age,age_low,age_high,gender,gender_probability,emotion,"
                                 "emotion_probability,female,male," + ",".join(EMOTIONS))


@pytest.mark.parametrize("encode", [
    lambda text: text.encode(), lambda text: text.encode("utf-8-sig"), lambda text: text.encode("utf-16"),
    lambda text: text.replace("\n", "\r\n").encode(), lambda text: text.replace("\n", "\0").encode()])
def test_names_on_stdin(encode, tmp_path, monkeypatch):
    names = ["a b.png", "\u4e8c.png"]
    monkeypatch.setattr(sys, "stdin", argparse.Namespace(buffer=io.BytesIO(encode("\n".join(names) + "\n"))))
    assert list(map(str, evaluate.picture_files(["-"], None))) == names


def test_folders_of_pictures_of_any_ending(tmp_path):
    for name in ("a.jpg", "album/b.png", "@eaDir/t.jpg", "out/1.png"):
        picture(tmp_path / "faces" / name)
    for name in ("abc123", "x.jpg_large", "y.jpg.1"):
        shutil.copy(tmp_path / "faces/a.jpg", tmp_path / "faces" / name)
    for name in ("notes.txt", "README", "IMG_1.HEIC"):
        (tmp_path / "faces" / name).write_text("no picture")
    (tmp_path / "faces/loop").symlink_to(tmp_path / "faces")
    (tmp_path / "faces/linked").symlink_to(tmp_path / "faces/album")
    found = [file.name for file in evaluate.picture_files([str(tmp_path / "faces")], tmp_path / "faces/out")]
    assert sorted(found) == ["IMG_1.HEIC", "a.jpg", "abc123", "b.png", "x.jpg_large", "y.jpg.1"]


def test_what_cannot_be_read_is_named_and_has_a_row(tmp_path):
    picture(tmp_path / "a.png", size=(64, 64))
    (tmp_path / "caf\udce9.png").write_bytes(b"no picture")
    command = [sys.executable, ROOT / "evaluate.py", "a.png", os.fsencode("caf\udce9.png"), "--csv", "p.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "a.png: age" in done.stdout
    assert ".png: not a readable picture" in done.stderr and "1 of 2 pictures" in done.stderr
    assert (tmp_path / "p.csv").read_bytes().splitlines()[2].startswith(b"caf\xe9.png,,")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_what_was_predicted_is_kept_when_it_is_stopped(stop, tmp_path):
    picture(tmp_path / "faces/0.jpg", size=(900, 900))
    for i in range(1, 3000):
        os.link(tmp_path / "faces/0.jpg", tmp_path / f"faces/{i}.jpg")
    process = subprocess.Popen([sys.executable, ROOT / "evaluate.py", "faces", "--csv", "p.csv"], cwd=tmp_path,
                               stdout=subprocess.PIPE, text=True)
    for _ in range(70):
        process.stdout.readline()
    process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[stop]
    assert 68 < len((tmp_path / "p.csv").read_text().splitlines()) < 3000


def test_a_picture_gets_what_its_copy_in_the_data_set_got(trained, work):
    run("evaluate.py", "--data", "sample", "--split", "cvpr2016", "--save-predictions", "q.csv", cwd=work)
    row = read_table(work / "q.csv")[0]
    done = run("evaluate.py", work / "data/sample/cvpr2016" / row["image"], "--checkpoint", the_best(work)[0],
               cwd=work)
    assert re.search(rf"age {float(row['age']):.1f} years \(\d+-\d+\), {row['gender']}", done.stdout)


def test_out_and_its_absence_predict_alike(trained, work, tmp_path):
    picture(tmp_path / "a.jpg", 0, (1500, 1500))            # of which a JPEG decoder gives fractions
    command = ("evaluate.py", tmp_path / "a.jpg", "--csv")
    run(*command, tmp_path / "plain.csv", cwd=work)
    run(*command, tmp_path / "out.csv", "--out", tmp_path / "out", cwd=work)
    assert (tmp_path / "plain.csv").read_text() == (tmp_path / "out.csv").read_text()


def test_out_writes_annotated_pictures_small_and_large(trained, work, tmp_path):
    picture(tmp_path / "faces/a.jpg", 0, (24, 24))
    picture(tmp_path / "faces/a.png", 0, (1200, 700))
    run("evaluate.py", tmp_path / "faces", "--out", tmp_path / "out", cwd=work)
    small, large = sorted((Image.open(file).size for file in (tmp_path / "out").iterdir()))
    assert min(small) >= 320 and large == (1200, 700)


def test_predictor_takes_files_pictures_and_arrays(tmp_path):
    file = picture(tmp_path / "a.png", size=(96, 96))
    predict = evaluate.Predictor(detect=False)
    answers = [predict(source) for source in (file, str(file), Image.open(file), np.asarray(Image.open(file)))]
    assert answers[0] == answers[1] == answers[2] == answers[3]
    image, exif = Image.open(file), Image.Exif()
    image.putalpha(100)
    exif[0x0112] = 6                                        # lies on its side
    image.save(tmp_path / "b.png", exif=exif)
    assert predict(tmp_path / "b.png") == predict(Image.open(tmp_path / "b.png"))
    (face,) = answers[0]
    assert face.box is None and 0 <= face.age_low <= face.age_high <= 100
    assert sum(face.probabilities["emotion"].values()) == pytest.approx(1)
    assert face.probabilities["gender"][face.gender] == face.gender_probability >= 0.5


# ---- weights for giving on

def test_exported_weights_evaluate_alike_and_hold_nothing_else(trained, work, tmp_path, monkeypatch):
    done = run("evaluate.py", "--export", tmp_path / "own.pth", cwd=work)
    assert "in 24.1 MB" in done.stdout
    content = torch.load(tmp_path / "own.pth", weights_only=True)
    assert set(content) == {"model", "detected", "drawn", "image_size", "decoded_size", "tasks",
                            "temperatures", "mean", "std", "ages", "genders", "emotions"}
    assert (tmp_path / "own.pth").stat().st_size < 25e6
    figures = []
    for checkpoint in (tmp_path / "own.pth", the_best(work)[0]):
        text = run("evaluate.py", "--split", "cvpr2016", "--data", "sample", "--checkpoint", checkpoint,
                   cwd=work).stdout
        figures.append(float(re.search(r"age mae: ([\d.]+)", text)[1]))
    assert figures[0] == pytest.approx(figures[1], abs=0.02)
    # pictures use the weights that ship, though there is a newer run
    picture(tmp_path / "a.jpg")
    monkeypatch.setattr(evaluate, "SHIPPED", tmp_path / "own.pth")
    done = run("evaluate.py", tmp_path / "a.jpg", "--checkpoint", tmp_path / "own.pth", cwd=work)
    assert "a.jpg: age" in done.stdout and "drawn faces" in done.stdout
    done = run("evaluate.py", "--export", tmp_path / "own.pth", cwd=work, status=2)
    assert "own.pth: is there already" in done.stderr
    line = models.load_weights(models.FaceAttributeNet(), tmp_path / "own.pth")
    assert "132 of the model's 132 tensors loaded" in line


def test_weights_that_half_precision_cannot_hold_are_not_written(trained, work, tmp_path):
    _, content = the_best(work)
    content["model"]["conv1.weight"][0] = 1e6
    torch.save(content, tmp_path / "c.pth")
    done = run("evaluate.py", "--checkpoint", tmp_path / "c.pth", "--export", tmp_path / "e.pth", cwd=work,
               status=2)
    assert "conv1.weight holds values" in done.stderr
    assert not (tmp_path / "e.pth").exists()


def test_onnx_gives_the_same_logits(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run("evaluate.py", "--export", "e.onnx", cwd=tmp_path)
    network, content = models.open_checkpoint(evaluate.SHIPPED)
    images = torch.randint(256, (3, 96, 96, 3), dtype=torch.uint8)
    session = runtime.InferenceSession(tmp_path / "e.onnx")
    outputs = session.run(content["tasks"], {"images": images.permute(0, 3, 1, 2).float().numpy()})
    with torch.inference_mode():
        expected = evaluate.forward(network, images, 96, content["tasks"], False)
    for logits, ours in zip(outputs, expected.values()):
        np.testing.assert_allclose(logits, ours, atol=1e-4)


def test_shipped_weights(tmp_path):
    assert evaluate.SHIPPED.stat().st_size < 25e6
    _, content = models.open_checkpoint(evaluate.SHIPPED)
    assert content["tasks"] == list(datasets.TASKS)
    assert set(content["temperatures"]) == set(datasets.TASKS) and content["detected"]
    picture(tmp_path / "a.jpg")
    text = run("evaluate.py", "a.jpg", cwd=tmp_path).stdout
    assert re.search(r"a.jpg: age [\d.]+ years \(\d+-\d+\), (female|male) \d+ %, \w+ \d+ %", text)


# ---- plots

def test_plots(trained, work, tmp_path, monkeypatch):
    emotions = ("evaluate.py", "--data", "sample", "--split", "fer2013")
    logs = ("evaluate.py", "--logs", "logs")
    for i, command in enumerate((("evaluate.py", "--data", "sample", "--split", "cvpr2016"), emotions, logs)):
        run(*command, "--plot", tmp_path / f"{i}.png", cwd=work)
        assert min(Image.open(tmp_path / f"{i}.png").size) > 500
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (emotions, logs):
        done = run(*command, "--plot", tmp_path / "b.png", cwd=work, status=2)
        assert "pip install matplotlib" in done.stderr


# ---- mistakes

@pytest.mark.parametrize("arguments, expected", [
    ([], "is required"), (["--split", "cvpr2016", "x.jpg"], "not allowed with"),
    (["--split", "lfw"], "invalid choice"), (["--split", "fer2013", "--data", "sample", "--checkpoints", "x"], "no run's best.pth"),
    (["--split", "fer2013", "--data", "sample", "--checkpoint", "gone.pth"], "no checkpoint gone.pth"),
    (["--split", "fer2013", "--tta", "--predictions", "p.csv"], "--tta does not go with predictions"),
    (["--split", "fer2013", "--predictions", "p.csv", "--data", "sample"], "p.csv"),
    (["--split", "fer2013", "--save-predictions", "gone/p.csv"], "in a folder that is there"),
    (["--split", "fer2013", "--predictions", "a.csv", "b.csv", "--plot", "p.png"], "--plot is of one file"),
    (["--csv", "a.jpg", "x.jpg"], "a.jpg: expected a name that ends with .csv"),
    (["--logs", "x", "--plot", "p.gif"], "p.gif: expected a name that ends with .png or .svg or .pdf"),
    (["--data", "x"], "is required"),
    (["--split", "fer2013", "--data", "", "--predictions", "p.csv"], "is not there"),
    (["--split", "fer2013", "--detect"], "--detect does not go with split"),
    (["x.jpg", "--plot", "p.png"], "--plot does not go with pictures"),
    ([".", "--out", "."], "--out .: its pictures are read"),
    (["x.jpg", "--subset", "test"], "--subset does not go with pictures"),
    (["--logs", "x", "--checkpoint", "x.pth"], "--checkpoint does not go with logs"),
    (["--export", "gone/p.pth"], "in a folder that is there"),
    (["--export", "p.pth", "--tta"], "--tta does not go with export"),
])
def test_mistakes_get_a_line(arguments, expected, tmp_path, work, monkeypatch):
    monkeypatch.setattr(evaluate, "SHIPPED", tmp_path / "not there")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(work / "data/sample")
    assert expected in run("evaluate.py", *arguments, cwd=tmp_path, status=2).stderr


def test_a_checkpoint_of_other_tasks_is_refused(trained, work, tmp_path):
    _, content = the_best(work)
    torch.save(content | {"tasks": ["age"]}, tmp_path / "c.pth")
    done = run("evaluate.py", "--split", "fer2013", "--data", "sample", "--checkpoint", tmp_path / "c.pth",
               cwd=work, status=2)
    assert "trained for age; fer2013 has no labels of it" in done.stderr


def test_a_reader_that_has_read_enough_is_no_error_a_full_disk_is_one(work):
    reading, writing = os.pipe()
    os.close(reading)
    for stdout, status in (writing, 141), (open("/dev/full", "w"), 2):
        done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--logs", ROOT / "logs"], cwd=work,
                              stdout=stdout, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONUNBUFFERED": ""})
        assert done.returncode == status and done.stderr.count("\n") == (status == 2), done.stderr
    os.close(writing)


def test_help_shows_the_commands(tmp_path):
    for script in ("train.py", "evaluate.py", "datasets.py"):
        text = run(script, "--help", cwd=tmp_path).stdout
        assert f"python {script}" in text and "default" in text
