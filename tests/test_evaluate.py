"""Metrics, logs, the table, predictions."""
import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

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
    count = len(next(iter(labels.values())))
    return datasets.new_faces(Path(), [f"{i}.jpg" for i in range(count)], **labels)


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

def test_metrics_by_hand():
    table = datasets.join([faces(age=[10, 25, np.nan, 29], spread=[2, np.nan, 1, 4], gender=[0, 1, 1, -1]),
                           faces(emotion=[0, 0, 6])])
    metrics = evaluate.score(table, Predictions({
        "age": np.array([12.0, 20, 99, 30, 0, 0, 0]), "gender": np.array([0, 0, 1, 1, 0, 0, 0]),
        "emotion": np.array([0, 0, 0, 0, 0, 3, 6])}))
    assert metrics["age_mae"] == pytest.approx((2 + 5 + 1) / 3)
    assert {decade: errors.tolist() for decade, errors in metrics["errors_by_decade"].items()} == {
        10: [2.0], 20: [5.0, 1.0]}
    assert metrics["chalearn_error"] == pytest.approx(((1 - np.exp(-0.5)) + (1 - np.exp(-1 / 32))) / 2)
    assert metrics["gender_acc"] == metrics["emotion_acc"] == pytest.approx(200 / 3)
    assert metrics["gender_confusion"].tolist() == [[1, 0], [1, 1]]
    assert metrics["emotion_confusion"][0].tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert metrics["emotion_confusion"].sum() == 3
    text = evaluate.report(metrics)
    assert f"age mae: {metrics['age_mae']}" in text and "chalearn error" in text
    assert re.search(r"\| angry +\| +2 \| +50.0 \|", text) and re.search(r"\| disgust +\| +0 \| +- \|", text)


def test_chalearn_error_where_all_guessed_the_same_age():
    metrics = evaluate.score(faces(age=[20, 20], spread=[0, 0]), Predictions({"age": np.array([20.0, 21])}))
    assert metrics["chalearn_error"] == 0.5


def test_a_prediction_that_is_no_number_counts_as_infinitely_wrong():
    predictions = Predictions({"age": np.array([np.nan, 21, np.nan])})
    metrics = evaluate.score(faces(age=[20, 20, np.nan]), predictions)
    assert metrics["age_mae"] == evaluate.mean_error(metrics) == np.inf


def test_what_was_not_predicted_or_has_no_label_is_not_measured():
    predictions = Predictions({"age": np.array([20.0]), "gender": np.array([1])})
    assert set(evaluate.score(faces(age=[20], emotion=[3]), predictions)) == {"age_mae", "errors_by_decade"}


def test_predict_sees_every_image_once_whatever_the_number_of_processes(monkeypatch):
    torch.manual_seed(0)
    network = models.FaceNet().eval()
    rng = np.random.default_rng(0)
    table = datasets.join([faces(age=np.arange(70) % 50), faces(gender=np.arange(33) % 2)])
    for part, count in zip(table.parts, (70, 33)):
        part.pixels = rng.integers(0, 255, (count, 16, 16, 3), np.uint8)
    cpu = torch.device("cpu")
    whole = evaluate.predict(network, table, 16, ("age", "gender"), cpu)
    assert {task: len(values) for task, values in whole.values.items()} == {"age": 103, "gender": 103}
    sums = []
    monkeypatch.setattr(evaluate.dist, "all_reduce", lambda results: sums.append(results.clone()))
    for rank in range(2):
        evaluate.predict(network, table, 16, ("age", "gender"), cpu, share=datasets.Share(rank, 2))
    results, logits = [sums[0], sums[3]], [sums[1], sums[4]]        # of each process; its gender logits too
    ages, genders = (sum(results)[:, place, 0].numpy() for place in (0, 1))
    assert ((results[0][:, 0, 0] == 0) != (results[1][:, 0, 0] == 0)).all()
    torch.testing.assert_close(sum(logits), whole.logits["age"], rtol=0, atol=0)
    np.testing.assert_array_equal(ages, whole.values["age"])
    np.testing.assert_array_equal(genders, whole.values["gender"])
    mirrored = evaluate.predict(network, table, 16, ("age",), cpu, tta=True)
    assert (mirrored.values["age"] != whole.values["age"]).any()


# ---- calibration

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
        assert low < high and (error < 0.02) == sound and (error > 0.05) != sound


def test_calibration_error_by_hand():
    logits = torch.tensor([0.9, 0.9, 0.6]).log()[:, None] * torch.tensor([[1.0, 0.0]])
    logits[:, 1] = (1 - logits[:, 0].exp()).log()
    # two told with 0.9, of which one is right, and one with 0.6, which is right
    error, *_ = evaluate.calibration_error(logits, torch.tensor([0, 1, 0]))
    assert error == pytest.approx((2 * (0.9 - 0.5) + (1 - 0.6)) / 3)


def test_calibrated_age_ranges_hold_four_of_five_true_ages():
    rng = np.random.default_rng(0)
    years, middle = np.arange(101), rng.uniform(30, 70, 4000)
    logits = -((years - middle[:, None]) / 3) ** 2 / 2                  # a deviation of 3 years is told
    truth = np.round(rng.normal(middle, 6))                             # and one of 6 is true
    table, predictions = certain({"age": logits}, age=truth)
    before = evaluate.in_age_range(predictions.logits["age"], torch.from_numpy(truth)).mean()
    temperature = evaluate.calibrate(table, predictions)["age"]
    after = evaluate.in_age_range(predictions.logits["age"] / temperature, torch.from_numpy(truth)).mean()
    assert before < 0.6 and after == pytest.approx(0.8, abs=0.01)
    assert temperature == pytest.approx(4, rel=0.15)                    # whole years are told, some too many


def test_calibration_leaves_out_what_has_no_label_or_only_a_range():
    table, predictions = certain({"age": np.zeros((2, 101)), "gender": np.zeros((2, 2))}, age=[24.5, np.nan],
                                 low=[20, np.nan], high=[30, np.nan])
    assert evaluate.calibrate(table, predictions) == {}
    assert evaluate.calibration_table(table, predictions, {}) == ""


def test_calibration_leaves_out_logits_that_are_no_numbers():
    table, predictions = certain({"age": np.full((2, 101), np.nan), "gender": [[np.nan, 0], [0, 1]]},
                                 age=[24, 25], gender=[0, 1])
    assert set(evaluate.calibrate(table, predictions)) == {"gender"}
    assert "gender" in evaluate.calibration_table(table, predictions, {"age": 1.0, "gender": 1.0})


def test_a_checkpoints_temperatures_are_told_exported_and_used(trained, work, tmp_path):
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
    told = run("evaluate.py", "--checkpoint", tmp_path / "c.pth", "--split", "cvpr2016", "--data", "sample",
               cwd=work).stdout
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
             for line in told.splitlines() if "predicted 80 %" in line or "calibration error" in line}
    before, _, after, within, temperature = cells["true ages in the predicted 80 % (%)"]
    low, high = map(float, within.split(" to "))
    assert before != after and low <= float(after) <= high and temperature == "50.000"
    assert cells["gender calibration error (%)"][2:] == ["-", "", "-"]


@pytest.mark.parametrize("temperatures", [[1.0], {"age": 0.0}, {"age": float("nan")}, {"hair": 1.0},
                                          {"age": torch.ones(2)}])
def test_odd_temperatures_are_refused(temperatures, trained, work, tmp_path):
    content = {**the_best(work)[1], "temperatures": temperatures}
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(models.CheckpointError, match="its temperatures are"):
        models.open_checkpoint(tmp_path / "c.pth")


# ---- logs

def test_seed_log_reads_back_and_is_written_to_the_letter(tmp_path):
    (tmp_path / "seed.txt").write_text(SEED_LOG)
    command, (epoch,), _ = evaluate.read_log(tmp_path / "seed.txt")
    assert command == "" and epoch["epoch"] == 12 and epoch["lr"] == 0.01
    assert epoch["age_loss"] == 4.351883343876301 and epoch["age_mae"] == 12.487859796083074
    assert epoch["val_gender_acc"] == 87.21448467116502 and epoch["val_emotion_acc"] == 0
    measured = {name: value for name, value in epoch.items() if value}
    stamps = re.findall(r"^\[.*?\] ", SEED_LOG, re.MULTILINE)
    lines = zip(stamps, evaluate.epoch_lines(measured), strict=True)
    assert "".join(f"{stamp}{line}\n" for stamp, line in lines) == SEED_LOG
    row = r"\| ResNet-18-Age-Gender +\| +12.49 \| +87.21 \| +\| +\| +0.01 \|"
    assert re.search(row, evaluate.results_table(evaluate.read_logs(tmp_path)))


def test_log_of_a_run_that_was_killed_and_resumed(tmp_path):
    figures = {"lr": 0.01, "epoch": 1, "emotion_loss": 1.0, "emotion_acc": 40.0, "val_emotion_loss": 1.5}

    def block(accuracy):
        lines = evaluate.epoch_lines({**figures, "val_emotion_acc": accuracy})
        return "".join(f"[01.01.2026 00:00:00] {line}\n" for line in lines)
    once = block(50.0)
    (tmp_path / "a.txt").write_text(once[:len(once) // 2] + "\n" + block(51.0) + block(52.0) + once[:90])
    epochs = evaluate.read_log(tmp_path / "a.txt").epochs
    assert [epoch["val_emotion_acc"] for epoch in epochs] == [52.0]


def test_table_shows_the_seeds_rows_and_each_runs_best_epoch(tmp_path):
    def log(name, command, *epochs):
        lines = [command] if command else []
        for i, values in enumerate(epochs, 1):
            lines += evaluate.epoch_lines({"lr": 0.01, "epoch": i, **values})
        (tmp_path / name).write_text("".join(f"[01.01.2026 00:00:00] {line}\n" for line in lines))
    log("1.txt", "train.py --data data --split imdb-wiki --weights 1 1 0 --lr 0.03",
        {"age_mae": 6.0, "val_gender_acc": 90.0})
    log("2.txt", "train.py --data data --split cvpr2016 fer2013 --weights 1 0.1 1 --pretrained a/best.pth "
        "--lr 0.01",
        {"age_mae": 6.0, "val_gender_acc": 90.0, "val_emotion_acc": 60.0},
        {"age_mae": 6.1, "val_gender_acc": 89.0, "val_emotion_acc": 61.0})
    log("3.txt", "train.py --data sample --split fer2013 --weights 0 0 1 --lr 0.02",
        {"val_emotion_acc": 60.0}, {"val_emotion_acc": 70.123})
    log("4.txt", "train.py --data data")
    done = run("evaluate.py", "--logs", tmp_path, cwd=tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert rows[0] == ["model", "Age MAE", "Gender Acc (%)", "Emotion Acc (%)", "weight", "initial lr"]
    assert [row[0] for row in rows[2:7]] == [f"ResNet-18-{tasks} (seed)" for tasks in (
        "Age-Gender-Emotion", "Age-Gender-Emotion", "Age", "Gender", "Emotion")]
    assert rows[7:] == [
        ["ResNet-18-Age-Gender on imdb-wiki (from scratch)", "6.00", "90.00", "", "1, 1, 0", "0.03"],
        ["ResNet-18-Age-Gender-Emotion on cvpr2016 fer2013", "6.00", "90.00", "60.00", "1, 0.1, 1", "0.01"],
        ["ResNet-18-Emotion on fer2013 (from scratch, drawn sample)", "", "", "70.12", "0, 0, 1", "0.02"]]
    assert "4.txt: no finished epoch" in done.stderr
    assert "no logs" in run("evaluate.py", "--logs", tmp_path / "nowhere", cwd=tmp_path, status=2).stderr


# ---- on the sample

@pytest.mark.parametrize("split", ["cvpr2016", "fer2013"])
def test_figures_equal_the_logs_to_the_last_digit_and_predictions_score_the_same(trained, work, split):
    assert trained.read_text().count("Train epoch") == 2
    judge = ("evaluate.py", "--data", "sample", "--split", split)
    text = run(*judge, "--save-predictions", "p.csv", cwd=work).stdout
    epoch = int(re.search(r"best.pth: .*; epoch (\d)", text)[1])
    logged = evaluate.read_log(trained)[1][epoch - 1]
    shown = {name: float(value) for name, value in re.findall(r"^([\w ]+): ([\d.]+)$", text, re.MULTILINE)}
    names = {"cvpr2016": ("age_mae", "gender_acc", "gender_loss", "age_loss"),
             "fer2013": ("emotion_acc", "emotion_loss")}[split]
    for name in names:
        logged_as = name if name == "age_mae" else f"val_{name}"
        assert shown[name.replace("age_mae", "age mae")] == logged[logged_as], name
    scored = run(*judge, "--predictions", "p.csv", cwd=work).stdout
    of_both = text[:text.rindex("\n\n") + 1]                # behind it, of a model alone, calibration
    same = [line for line in of_both.splitlines() if "_loss" not in line and "best.pth" not in line]
    assert scored.splitlines() == same
    assert "mean of image and mirror image (--tta)" in run(*judge, "--tta", cwd=work).stdout


def test_predictions_missing_doubled_unknown_or_senseless(tmp_path, work):
    root = work / "data/sample"
    table = datasets.load(root, ["fer2013"], "valid", ["emotion"], 48, root / ".cache")
    rows = [[str(i), name] for i, name in enumerate(np.array(datasets.EMOTIONS)[table.emotion])]

    def scored(rows, header=("image", "emotion"), status=2):
        write_table(tmp_path / "p.csv", header, *rows)
        return run("evaluate.py", "--data", "sample", "--split", "fer2013",
                   "--predictions", tmp_path / "p.csv", cwd=work, status=status)
    assert "emotion_acc: 100.0" in scored(rows, status=0).stdout
    assert "1 missing: 3" in scored(rows[:3] + rows[4:]).stderr
    assert "1 doubled: 7" in scored(rows + [rows[7]]).stderr
    assert "2 no image of this split: 140, x" in scored(rows + [["140", "sad"], ["x", "sad"]]).stderr
    assert "line 2: emotion is 'glad'" in scored([["0", "glad"]] + rows[1:]).stderr
    assert "line 2: emotion is '7'" in scored([["0", "7"]] + rows[1:]).stderr
    assert "no column age, gender or emotion" in scored(rows, ("image", "mood")).stderr
    twice = scored([["x.png", *row] for row in rows], ("image", "image", "emotion"))
    assert "unknown or doubled column image" in twice.stderr
    more = scored([["x.png", *row] for row in rows], ("face", "image", "emotion"), status=0)
    assert "emotion_acc: 100.0" in more.stdout              # other columns are passed over


def test_predictions_of_one_task_need_only_its_images(work, tmp_path):
    truth = read_table(work / "data/sample/cvpr2016/age/valid_gt.csv")
    rows = [(f"age/valid/{row['image']}", float(row["mean"]) + 2) for row in truth]
    write_table(tmp_path / "p.csv", ("image", "age"), *rows)
    text = run("evaluate.py", "--data", "sample", "--split", "cvpr2016", "--predictions", tmp_path / "p.csv",
               cwd=work).stdout
    assert "age mae: 2.0\n" in text and "gender_acc" not in text


# ---- pictures

def test_pictures(trained, work, tmp_path):
    picture(tmp_path / "faces/a.jpg")
    picture(tmp_path / "faces/deeper/b.png", 1, (50, 30))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    done = run("evaluate.py", tmp_path / "faces", "--csv", tmp_path / "p.csv", cwd=work)
    told = r"[ab]\.(jpg|png): age [\d.]+ years \(\d+-\d+\), (female|male) \d+ %, \w+ \d+ %"
    assert len(re.findall(told, done.stdout)) == 2
    assert "the middle square of each picture is taken as the face" in done.stdout
    assert "trained on drawn faces" in done.stdout
    rows = read_table(tmp_path / "p.csv")
    assert [row["image"] for row in rows] == [f"{tmp_path}/faces/a.jpg", f"{tmp_path}/faces/deeper/b.png"]
    assert ",".join(rows[0]) == ("image,age,age_low,age_high,gender,gender_probability,emotion,"
                                 "emotion_probability," + ",".join(datasets.EMOTIONS))
    names = f"{tmp_path}/broken.jpg\n{tmp_path}/faces/a.jpg\n"
    done = run("evaluate.py", "-", cwd=work, status=1, input=names)
    assert "broken.jpg: not a readable picture" in done.stderr and "1 of 2 pictures" in done.stderr
    assert "a.jpg: age" in done.stdout


def test_pictures_until_the_disk_is_full(trained, work, tmp_path, monkeypatch):
    for i in range(3):
        picture(tmp_path / f"faces/{i}.png", i)
    monkeypatch.setattr(evaluate, "annotate", Mock(side_effect=[
        Image.new("RGB", (9, 9)), OSError(28, "No space left on device")]))
    done = run("evaluate.py", tmp_path / "faces", "--csv", tmp_path / "p.csv", "--out", tmp_path / "out",
               cwd=work, status=2)
    assert "No space left" in done.stderr
    assert len(read_table(tmp_path / "p.csv")) == 2


def test_a_picture_whose_name_is_not_utf8(trained, work, tmp_path):
    picture(tmp_path / "caf.png").rename(tmp_path / "caf\udce9.png")
    command = [sys.executable, ROOT / "evaluate.py", "-", "--csv", tmp_path / "p.csv"]
    done = subprocess.run(command, cwd=work, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"},
                          input=os.fsencode(tmp_path) + b"/caf\xe9.png\n")
    assert done.returncode == 0, done.stderr
    assert b"caf\xe9.png: age" in done.stdout and b"caf\xe9.png," in (tmp_path / "p.csv").read_bytes()


def test_a_picture_gets_what_its_copy_in_the_split_got(trained, work):
    run("evaluate.py", "--data", "sample", "--split", "cvpr2016", "--save-predictions", "q.csv", cwd=work)
    row = read_table(work / "q.csv")[0]
    done = run("evaluate.py", work / "data/sample/cvpr2016" / row["image"], cwd=work)
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
    assert min(small) >= 320 and large[0] == 1200 and large[1] > 700


# ---- weights for giving on

def test_exported_weights_judge_alike_and_hold_nothing_else(trained, work, tmp_path, monkeypatch):
    done = run("evaluate.py", "--export", tmp_path / "own.pth", cwd=work)
    assert "own.pth: 24.1 MB" in done.stdout
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
    # they serve where there is no run of one's own, and to begin a run with
    picture(tmp_path / "a.jpg")
    monkeypatch.setattr(evaluate, "SHIPPED", tmp_path / "own.pth")
    done = run("evaluate.py", "a.jpg", cwd=tmp_path)
    for told in ("no run of your own in checkpoints/: these are the weights that come with the project",
                 "a.jpg: age", "drawn faces"):              # it was trained on the sample, and still says so
        assert told in done.stdout
    done = run("evaluate.py", "a.jpg", "--checkpoints", "gone", cwd=tmp_path, status=2)
    assert "no run's best.pth in gone/" in done.stderr
    done = run("evaluate.py", "--export", tmp_path / "own.pth", cwd=work, status=2)
    assert "own.pth is there already" in done.stderr
    line = models.load_weights(models.FaceNet(), tmp_path / "own.pth")
    assert "132 of the model's 132 tensors loaded" in line


def test_weights_that_half_precision_cannot_hold_are_not_written(trained, work, tmp_path):
    _, content = the_best(work)
    content["model"]["conv1.weight"][0] = 1e6
    torch.save(content, tmp_path / "c.pth")
    done = run("evaluate.py", "--checkpoint", tmp_path / "c.pth", "--export", tmp_path / "e.pth", cwd=work,
               status=2)
    assert "conv1.weight holds values" in done.stderr
    assert not (tmp_path / "e.pth").exists()


def test_shipped_weights(tmp_path):
    assert evaluate.SHIPPED.stat().st_size < 25e6
    _, content = models.open_checkpoint(evaluate.SHIPPED)
    assert content["tasks"] == list(datasets.TASKS)
    assert set(content["temperatures"]) == set(datasets.TASKS) and content["detected"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (log,) = re.findall(r"The log of the weights is `(\S+)`", readme)
    assert len(evaluate.read_log(ROOT / log).epochs) > 1
    picture(tmp_path / "a.jpg")
    text = run("evaluate.py", "a.jpg", cwd=tmp_path).stdout
    assert re.search(r"a.jpg: age [\d.]+ years \(\d+-\d+\), (female|male) \d+ %, \w+ \d+ %", text)


# ---- plots

def test_plots(trained, work, tmp_path, monkeypatch):
    judge = ("evaluate.py", "--data", "sample", "--split", "fer2013")
    logs = ("evaluate.py", "--logs", "logs")
    for i, command in enumerate((("evaluate.py", "--data", "sample", "--split", "cvpr2016"), judge, logs)):
        run(*command, "--plot", tmp_path / f"{i}.png", cwd=work)
        assert min(Image.open(tmp_path / f"{i}.png").size) > 500
    unlike = tmp_path / "a.what"
    assert "what is no kind of plot" in run(*logs, "--plot", unlike, cwd=work, status=2).stderr
    judge += ("--save-predictions", tmp_path / "p.csv")
    assert "what is no kind of plot" in run(*judge, "--plot", unlike, cwd=work, status=2).stderr
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (judge, logs):
        done = run(*command, "--plot", tmp_path / "b.png", cwd=work, status=2)
        assert "pip install matplotlib" in done.stderr


# ---- mistakes

@pytest.mark.parametrize("arguments, expected", [
    ([], "expected one of"), (["--split", "cvpr2016", "x.jpg"], "expected one of"),
    (["--split", "lfw"], "invalid choice"), (["--split", "fer2013"], "no run's best.pth"),
    (["--split", "fer2013", "--checkpoint", "gone.pth"], "no checkpoint gone.pth"),
    (["--split", "fer2013", "--tta", "--predictions", "p.csv"], "--predictions goes with"),
    (["--split", "fer2013", "--predictions", "p.csv", "--data", "sample"], "no file p.csv"),
    (["--split", "fer2013", "--save-predictions", "gone/p.csv"], "its folder is not there"),
    (["--data", "x"], "expected one of"),
    (["--split", "fer2013", "--detect"], "--detect goes with pictures"),
    (["x.jpg", "--plot", "p.png"], "--plot goes with --split or --logs"),
    (["x.jpg", "--subset", "test"], "--subset goes with --split"),
    (["--logs", "x", "--checkpoint", "x.pth"], "--checkpoint goes with"),
    (["--export", "gone/p.pth"], "its folder is not there"),
    (["--export", "p.pth", "--tta"], "--tta goes with"),
])
def test_mistakes_get_a_line(arguments, expected, tmp_path, work, monkeypatch):
    monkeypatch.setattr(evaluate, "SHIPPED", tmp_path / "not there")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(work / "data/sample")
    assert expected in run("evaluate.py", *arguments, cwd=tmp_path, status=2).stderr


def test_checkpoints_that_cannot_be_judged(tmp_path, trained, work):
    _, content = the_best(work)
    for change, expected in (({"emotions": content["emotions"][::-1]}, "its emotions are"),
                             ({"image_size": 10**9}, "an image size of"),
                             ({"decoded_size": "64"}, "decoded at '64'"),
                             ({"decoded_size": 0}, "decoded at 0"),
                             ({"model": {"x": torch.zeros(1)}}, "not this network's"),
                             ({"tasks": []}, "for tasks"), ({"tasks": [["age"]]}, "for tasks")):
        torch.save(content | change, tmp_path / "c.pth")
        with pytest.raises(models.CheckpointError, match=expected):
            models.open_checkpoint(tmp_path / "c.pth")
    torch.save(models.FaceNet().state_dict(), tmp_path / "c.pth")
    with pytest.raises(models.CheckpointError, match="not a checkpoint of this project.*--pretrained"):
        models.open_checkpoint(tmp_path / "c.pth")
    judge = ("evaluate.py", "--split", "fer2013", "--data", "sample", "--checkpoint", tmp_path / "c.pth")
    for change, expected in (({"tasks": ["age"]}, "trained for age"),):
        torch.save(content | change, tmp_path / "c.pth")
        assert expected in run(*judge, cwd=work, status=2).stderr


def test_a_reader_that_has_read_enough_is_no_error(work):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--logs", ROOT / "logs"], cwd=work,
                          stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 141 and not done.stderr


def test_help_shows_the_commands(tmp_path):
    for script in ("train.py", "evaluate.py", "datasets.py"):
        text = run(script, "--help", cwd=tmp_path).stdout
        assert f"python {script}" in text and "default" in text
