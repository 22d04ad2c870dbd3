"""Figures to be trusted: sets that anybody can download, copies across parts, intervals, comparisons."""
import csv
import math
import shutil

import numpy as np
import pytest

import datasets
import evaluate
from conftest import run
from datasets import DataError, Missing
from evaluate import Predictions


def draw(path, age=30, gender=1, seed=0):
    """A drawn face at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.draw_face(np.random.default_rng(seed), age, gender, 3).resize((48, 48)).save(path)


def read(root, split, subset="train", tasks=("age", "gender")):
    return datasets.read(root, [split], subset, tasks, root / ".cache")[0]


def utk_name(subset, age=30, gender=0, race=1, after=0):
    """A name of UTKFace's that falls into `subset`, the first one behind the number `after`."""
    names = (f"{age}_{gender}_{race}_{number}.jpg.chip.jpg" for number in range(after, after + 1000))
    return next(name for name in names if datasets.subset_by_hash(
        name.partition(".")[0], 10, {9: "test", 8: "valid"}) == subset)


# ---- UTKFace and FairFace

def test_utkface_tells_age_gender_and_group_by_its_names(tmp_path):
    name = utk_name("train", age=26, gender=1, race=3)
    draw(tmp_path / "utkface" / name)
    draw(tmp_path / "utkface/part2" / utk_name("train", age=5, gender=0, race=0))
    faces = read(tmp_path, "utkface")
    assert faces.age.tolist() == [26, 5] and faces.gender.tolist() == [0, 1]    # theirs: 0 male, 1 female
    assert faces.group.tolist() == ["Indian", "White"] and faces.file[0] == name
    with pytest.raises(Missing, match="valid part"):
        read(tmp_path, "utkface", "valid")


@pytest.mark.parametrize("name, known", [
    ("61_1_20170109142408075.jpg.chip.jpg", True), ("24_0_1_20170116220224657 .jpg.chip.jpg", True),
    ("55_0_0_20170116232725357jpg.chip.jpg", True), ("101_0_0_20170112213500903.jpg.chip.jpg", False),
    ("portrait.jpg", False), ("26_3_0_20170104.jpg", False)])
def test_odd_names_of_utkface_are_counted(tmp_path, name, known):
    draw(tmp_path / "utkface" / name)
    for after in (0, 1000, 2000):
        for subset in datasets.SUBSETS:
            draw(tmp_path / "utkface" / utk_name(subset, after=after))
    faces = datasets.join([read(tmp_path, "utkface", subset) for subset in datasets.SUBSETS])
    assert len(faces) == 9 + known
    counted = [part.odd if known else part.dropped for part in faces.parts]
    assert [names.tolist() for part in counted for names in part.values()] == [[name]]


def fairface(root, rows, subset="train"):
    """FairFace's table of (file, age, gender, race), and a picture for each."""
    folder = root / "fairface"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"fairface_label_{subset}.csv", "w", newline="") as table:
        csv.writer(table).writerows([("file", "age", "gender", "race", "service_test"),
                                     *((*row, True) for row in rows)])
    for i, row in enumerate(rows):
        draw(folder / row[0], seed=i)


def fair_names(subset, count):
    """The first names of FairFace's train images that fall into `subset`."""
    names = (f"train/{i}.jpg" for i in range(1, 1000))
    return [name for name in names if datasets.subset_by_hash(name, 20, {19: "valid"}) == subset][:count]


def test_fairface_tells_ages_as_ranges(tmp_path):
    ages = ["0-2", "20-29", "more than 70", "03-Sep", "Oct-19"]
    fairface(tmp_path, [(name, age, "Male", "Black") for name, age in zip(fair_names("train", 5), ages)])
    faces = read(tmp_path, "fairface")
    assert faces.age.tolist() == [1, 24.5, 75, 6, 14.5]
    np.testing.assert_allclose(faces.spread,
                               np.array([3, 10, 5 * math.sqrt(12), 7, 10]) / math.sqrt(12), rtol=1e-6)
    assert faces.low.tolist() == [0, 20, 70, 3, 10] and faces.high.tolist() == [3, 30, math.inf, 10, 20]
    assert faces.gender.tolist() == [1] * 5 and set(faces.group) == {"Black"}
    # mangled by a spreadsheet program
    assert sorted(len(names) for names in faces.parts[0].odd.values()) == [1, 1]
    fairface(tmp_path, [("val/1.jpg", "3-9", "Female", "White")], "val")
    assert read(tmp_path, "fairface", "test").file.tolist() == ["val/1.jpg"]


@pytest.mark.parametrize("row, expected", [
    (("old", "Male", "White"), "age is 'old'"), (("29-20", "Male", "White"), "age is '29-20'"),
    (("20-29", "M", "White"), "gender is 'M'")])
def test_fairface_mistakes_name_the_row(tmp_path, row, expected):
    fairface(tmp_path, [("train/1.jpg", *row)])
    with pytest.raises(DataError, match=f"line 2: {expected}"):
        read(tmp_path, "fairface")


def test_an_age_within_its_range_is_right():
    faces = datasets.new_faces(None, ["a", "b", "c", "d"], age=[24.5, 24.5, 75, 30],
                               spread=[2.9, 2.9, 5, np.nan], low=[20, 20, 70,
                                                                  np.nan], high=[30, 30, math.inf, np.nan])
    metrics = evaluate.score(faces, Predictions({"age": np.array([29.9, 30.0, 99.0, 30.0])}))
    assert metrics["age_in_range"] == pytest.approx(200 / 3) and "chalearn_error" not in metrics
    assert "the distance to the range's middle" in evaluate.report(metrics)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Small UTKFace and FairFace sets; of each one's valid part one picture is also in train."""
    root = tmp_path_factory.mktemp("trust")
    for subset, count in (("train", 24), ("valid", 8)):
        for i in range(count):
            name = utk_name(subset, age=10 + 3 * i, gender=i % 2, after=1000 * i)
            draw(root / "data/utkface" / name, 10 + 3 * i, 1 - i % 2,
                 seed=i if subset == "train" else 100 + i)
    train, valid = (sorted(read(root / "data", "utkface", subset).file.tolist())
                    for subset in ("train", "valid"))
    shutil.copy(root / "data/utkface" / train[0], root / "data/utkface" / valid[0])
    rows = [(name, ("20-29", "more than 70")[i % 2], ("Male", "Female")[i % 2], ("Black", "White")[i % 2])
            for subset, count in (("train", 16), ("valid", 6))
            for i, name in enumerate(fair_names(subset, count))]
    fairface(root / "data", rows)
    train, valid = (root / "data/fairface" / fair_names(subset, 1)[0] for subset in ("train", "valid"))
    shutil.copy(valid, train)
    return root


SMALL = ("--weights", 1, 1, 0, "--image-size", 32, "--batch-size", 16, "--epochs", 1)


def test_both_train_resume_and_judge(place):
    run("train.py", "--split", "utkface", "--rehearse", "fairface", *SMALL, cwd=place)
    (best,) = place.glob("checkpoints/*_utkface_1-1-0/best.pth")
    text = run("evaluate.py", "--split", "fairface", "--checkpoint", best, cwd=place).stdout
    assert "fairface valid: 6 images" in text and "age in range: " in text
    assert "| Black |" in text and "| White |" in text                      # figures by group
    assert "on utkface (rehearsing fairface, from scratch)" in run("evaluate.py", "--logs", "logs",
                                                                   cwd=place).stdout
    assert "the run is finished" in run("train.py", "--resume", best.with_name("last.pth"), cwd=place,
                                        status=2).stderr


# ---- copies

def test_report_counts_copies_within_and_across_parts(place):
    text = run("datasets.py", "--image-size", 32, cwd=place).stdout
    valid = text[text.index("utkface valid: "):]
    assert "pixel by pixel: 0 repeat another one, 1 are in train too" in valid
    assert "group: Black" in text


def test_unseen_figures_leave_out_what_is_in_train_too(place, tmp_path):
    faces = read(place / "data", "utkface", "valid")
    with open(place / "p.csv", "w", newline="") as table:           # right but for the copy's gender
        csv.writer(table).writerows([("image", "age", "gender", "mood"), *(
            (name, age, 1 - gender if i == 0 else gender, "x")
            for i, (name, age, gender) in enumerate(sorted(zip(faces.file, faces.age, faces.gender))))])
    text = run("evaluate.py", "--split", "utkface", "--predictions", "p.csv", cwd=place).stdout
    assert "1 of the images are, pixel by pixel, in the train part too" in text
    assert "gender_acc: 87.5\n" in text
    row = next(line for line in text.splitlines() if line.startswith("| gender acc"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert (cells[1], cells[3], cells[4], cells[6]) == ("87.50", "8", "100.00", "7")
    shutil.copytree(place / "data/utkface", tmp_path / "data/utkface")
    for name in read(place / "data", "utkface", "train").file.tolist():
        (tmp_path / "data/utkface" / name).unlink()
    text = run("evaluate.py", "--split", "utkface", "--predictions", place / "p.csv", cwd=tmp_path).stdout
    assert "which images are in the train part too can't be told: " in text and "unseen" not in text


def test_training_without_copies(place):
    run("train.py", "--split", "utkface", "--rehearse", "fairface", "--without-copies", *SMALL,
        "--logs", "apart", cwd=place)
    (log,) = (place / "apart").glob("*.txt")
    text = log.read_text()
    assert "utkface train: 24 rows found, 23 used, 1 dropped" in text and " --without-copies" in text
    assert "fairface train: 16 rows found, 15 used, 1 dropped" in text
    table = run("evaluate.py", "--logs", "apart", cwd=place).stdout
    assert "(rehearsing fairface, from scratch, without copies)" in table


def test_copies_are_looked_for_where_the_trained_tasks_have_labels(work, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(work / "data/sample")
    run("train.py", "--data", "sample", "--weights", 0, 0, 1, "--without-copies", "--samples", 40,
        "--image-size", 32, "--batch-size", 20, "--epochs", 1,
        cwd=tmp_path)  # ChaLearn's sets have no emotion
    (last,) = tmp_path.glob("checkpoints/*/last.pth")
    assert "the run is finished" in run("train.py", "--resume", last, cwd=tmp_path, status=2).stderr


def test_figures_are_told_whatever_is_wrong_with_the_train_part(work, trained, tmp_path):
    for part in ("age", "gender"):
        shutil.copytree(work / "data/sample/cvpr2016" / part / "valid",
                        tmp_path / "data/cvpr2016" / part / "valid")
    shutil.copy(work / "data/sample/cvpr2016/age/valid_gt.csv", tmp_path / "data/cvpr2016/age")
    (best,) = work.glob("checkpoints/*/best.pth")
    judge = ("evaluate.py", "--split", "cvpr2016", "--checkpoint", best, "--save-predictions", "p.csv")
    (tmp_path / "data/cvpr2016/age/train_gt.csv").write_text("image,mean,stdv\nx.jpg,old,1\n")
    text = run(*judge, cwd=tmp_path).stdout
    assert "age mae: " in text
    assert "can't be told: data/cvpr2016/age/train_gt.csv line 2: mean is 'old'" in text
    (tmp_path / "data/cvpr2016/age/train_gt.csv").unlink()    # now a part of the train part is absent
    shutil.copytree(work / "data/sample/cvpr2016/gender/train", tmp_path / "data/cvpr2016/gender/train")
    assert "can't be told: no data/cvpr2016/age/train_gt.csv" in run(*judge, cwd=tmp_path).stdout


def test_predictions_of_a_split_that_lacks_a_file_are_scored(work, trained, tmp_path):
    shutil.copytree(work / "data/sample/cvpr2016", tmp_path / "data/cvpr2016")
    (tmp_path / "data/cvpr2016/age/valid/000003.jpg").unlink()
    (best,) = work.glob("checkpoints/*/best.pth")
    command = ("evaluate.py", "--split", "cvpr2016")
    ours = run(*command, "--checkpoint", best, "--save-predictions", "p.csv", cwd=tmp_path).stdout
    theirs = run(*command, "--predictions", "p.csv", cwd=tmp_path).stdout
    figures = [line for line in ours.splitlines()
               if line.startswith(("age mae", "gender_acc", "| gender acc")) or "left out" in line]
    assert len(figures) == 4 and set(figures) <= set(theirs.splitlines())
    with open(tmp_path / "p.csv", "a") as table:            # by somebody who has the file
        table.write("age/valid/000003.jpg,50,\n")
    assert figures[1] in run(*command, "--predictions", "p.csv", cwd=tmp_path).stdout


def test_an_output_that_is_there_among_the_data_is_not_replaced(work, trained):
    table = work / "data/sample/fer2013/fer2013.csv"
    before = table.stat()
    command = ("evaluate.py", "--data", "sample", "--split", "fer2013", "--save-predictions", table)
    assert "among the data" in run(*command, cwd=work, status=2).stderr and table.stat() == before


# ---- how sure, and compared

def test_wilsons_interval():
    # Wilson's, as in Newcombe 1998, table I
    low, high = evaluate.interval(np.repeat([1.0, 0.0], [81, 182]), True)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert evaluate.interval(np.zeros(10), True) == pytest.approx((0, 0.2775), abs=1e-4)


def test_bootstrap_interval_is_near_the_normal_one_and_always_the_same():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = evaluate.interval(values, False)
    assert (low, high) == pytest.approx((values.mean() - 0.196, values.mean() + 0.196), abs=0.03)
    assert evaluate.interval(values, False) == (low, high)


def test_several_predictions_are_compared_to_the_first_face_by_face(place):
    faces = read(place / "data", "utkface", "valid")
    names, ages = faces.file.tolist(), faces.age.tolist()
    for file, error, gender in (("ours.csv", 1, faces.gender.tolist()), ("female.csv", 3, [0] * len(names))):
        with open(place / file, "w", newline="") as table:
            csv.writer(table).writerows([("image", "left", "age", "gender"), *(
                (f"/elsewhere/data/utkface/{name}", 4, age + error, value)         # as --csv writes it
                for name, age, value in zip(names, ages, gender))])
    text = run("evaluate.py", "--split", "utkface", "--predictions", "ours.csv", "female.csv",
               cwd=place).stdout
    rows = [[cell.strip()
             for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| ")]
    ours, female = (next(row for row in rows if row[0] == name) for name in ("ours.csv", "female.csv"))
    assert ours[1] == "1.00" and ours[3] == "" and ours[5] == "100.00"
    assert female[1:5] == ["3.00", "3.00 to 3.00", "+2.00", "+2.00 to +2.00"]
    share = 100 * np.mean(faces.gender == 0)
    assert float(female[5]) == pytest.approx(share, abs=0.01) and float(female[7]) == pytest.approx(
        share - 100, abs=0.01)
    low, high = map(float, female[8].split(" to "))
    assert low < share - 100 < high < 0
    assert "not in the train part" in text
