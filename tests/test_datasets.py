"""Readers, decoding and its cache, batches."""
import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import datasets
import model as models
from conftest import ROOT, picture, run
from datasets import DataError, Missing

CPU = torch.device("cpu")


def fer_csv(root, rows, name="fer2013.csv", header="emotion,pixels,Usage"):
    (root / "fer2013").mkdir(parents=True, exist_ok=True)
    (root / "fer2013" / name).write_text("\n".join([header, *rows]) + "\n")


def fer_row(emotion=3, value=7, usage="Training", pixels=48 * 48):
    return f"{emotion},{' '.join([str(value)] * pixels)},{usage}"


def load(root, split, subset="train", tasks=datasets.TASKS, size=16):
    return datasets.load(root, [split], subset, tasks, size, root / ".cache")


def pixels(faces, part=0):
    """All pixels of a part, as an array."""
    stored = faces.parts[part].pixels
    return stored[np.arange(len(stored))]


def dropped(faces, part=0):
    """How many of a part's rows were dropped, by reason."""
    return {reason: len(names) for reason, names in faces.parts[part].dropped.items()}


# ---- FER2013

def test_fer2013_csv(tmp_path):
    fer_csv(tmp_path, [fer_row(3, 7), fer_row(6, 250, "PublicTest"), fer_row(0, 0),
                       fer_row(1, 9, "PrivateTest")])
    train, valid, test = (load(tmp_path, "fer2013", subset) for subset in datasets.SUBSETS)
    assert [faces.emotion.tolist() for faces in (train, valid, test)] == [[3, 0], [6], [1]]
    assert pixels(train).shape == (2, 48, 48, 1) and pixels(train).dtype == np.uint8
    assert (pixels(train)[0] == 7).all() and (pixels(train)[1] == 0).all() and (pixels(valid) == 250).all()
    assert train.file.tolist() == ["0", "1"]


def test_fer2013_challenge_release_with_spaces_in_its_header(tmp_path):
    row = fer_row().split(",")
    fer_csv(tmp_path, [f"{row[0]},{row[2]},{row[1]}"], "icml_face_data.csv", "emotion, Usage, pixels")
    assert load(tmp_path, "fer2013").emotion.tolist() == [3]


@pytest.mark.parametrize("rows, header, expected", [
    ([fer_row()], "emotion,pixels", "Usage"),
    ([fer_row()], "emotion,pixels,Usage,more", "more"),
    ([fer_row(), fer_row(pixels=2303)], None, "line 3: 2303 pixels; expected 2304"),
    ([fer_row(value=256)], None, "line 2: a pixel of 256"),
    ([fer_row(value=-1)], None, "line 2: a pixel of -1"),
    ([fer_row(value="x")], None, "line 2: a pixel is not a number"),
    ([fer_row(emotion=7)], None, "line 2: emotion is '7'"),
    ([fer_row(emotion="happy")], None, "line 2: emotion is 'happy'"),
    ([fer_row(usage="Testing")], None, "Usage is 'Testing'"),
    (["3,1 2 3"], None, "line 2: 2 fields"),
    ([], None, "no rows"),
    ([], "", "empty file"),
])
def test_fer2013_csv_mistakes_name_the_row(tmp_path, rows, header, expected):
    fer_csv(tmp_path, rows, header="emotion,pixels,Usage" if header is None else header)
    with pytest.raises(DataError, match=expected):
        load(tmp_path, "fer2013")
    assert not built(tmp_path)


def test_fer2013_binary_file(tmp_path):
    fer_csv(tmp_path, [])
    (tmp_path / "fer2013/fer2013.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="not a CSV"):
        load(tmp_path, "fer2013")


def test_fer2013_folders(tmp_path):
    picture(tmp_path / "fer2013/train/happy/a.jpg")
    picture(tmp_path / "fer2013/test/sad/PublicTest_1.png", 1)
    picture(tmp_path / "fer2013/test/angry/PrivateTest_1.png", 2)
    train, valid, test = (load(tmp_path, "fer2013", subset) for subset in datasets.SUBSETS)
    assert (train.emotion.tolist(), valid.emotion.tolist(), test.emotion.tolist()) == ([3], [4], [0])
    assert pixels(train).shape == (1, 48, 48, 1)
    picture(tmp_path / "fer2013/train/bored/a.jpg")
    with pytest.raises(DataError, match="bored: unknown class folder"):
        load(tmp_path, "fer2013")
    (tmp_path / "fer2013/train").rename(tmp_path / "fer2013/Training")
    with pytest.raises(Missing, match="FER2013's train part is not there"):     # not PublicTest in its place
        load(tmp_path, "fer2013")


# ---- ChaLearn CVPR 2016

def test_cvpr_age_in_its_three_layouts(tmp_path):
    chalearn, appa, folders = (tmp_path / name for name in "abc")
    picture(chalearn / "cvpr2016/age/train/x.jpg")
    (chalearn / "cvpr2016/age/train_gt.csv").write_text("image,mean,stdv\nx.jpg,31.5,4.25\n")
    picture(appa / "cvpr2016/age/train/x.jpg_face.jpg")
    (appa / "cvpr2016/age/gt_avg_train.csv").write_text(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\nx.jpg,38,31.5,4.25,30\n")
    picture(folders / "cvpr2016/age/TRAIN/31/x.jpg")
    for root, age, spread in ((chalearn, 31.5, 4.25), (appa, 31.5, 4.25), (folders, 31, np.nan)):
        faces = load(root, "cvpr2016", tasks=["age"])
        assert faces.age.tolist() == [age]
        np.testing.assert_equal(faces.spread, np.float32([spread]))
        assert faces.gender.tolist() == [-1] and faces.emotion.tolist() == [-1]
    with pytest.raises(Missing):
        load(chalearn, "cvpr2016", "valid", ["age"])
    picture(folders / "cvpr2016/age/TRAIN/101/x.jpg")
    with pytest.raises(DataError, match="an age from 0 to 100"):
        load(folders, "cvpr2016", tasks=["age"])


def test_what_is_no_picture_in_a_class_folder_is_counted(tmp_path):
    picture(tmp_path / "cvpr2016/age/train/31/x.jpg")
    (tmp_path / "cvpr2016/age/train/31/notes.txt").write_text("")
    faces = load(tmp_path, "cvpr2016", tasks=["age"])
    assert len(faces) == 1 and dropped(faces) == {"of a kind that is not read": 1}
    assert datasets.left_out(faces) == [
        "cvpr2016 age train: left out, of a kind that is not read (1): age/train/31/notes.txt"]


@pytest.mark.parametrize("text, expected", [
    ("image,mean\nx.jpg,3\n", "no column stdv"),
    ("image,mean,stdv,z\nx.jpg,3,1,1\n", "unknown or doubled column z"),
    ("image,mean,stdv\nx.jpg,old,1\n", "line 2: mean is 'old'"),
    ("image,mean,stdv\nx.jpg,130,1\n", "line 2: mean is '130'"),
    ("image,mean,stdv\nx.jpg,30,-1\n", "line 2: stdv"),
    ("image,mean,stdv\n", "no rows"),
    ("", "empty file"),
])
def test_cvpr_age_csv_mistakes(tmp_path, text, expected):
    picture(tmp_path / "cvpr2016/age/train/x.jpg")
    (tmp_path / "cvpr2016/age/train_gt.csv").write_text(text)
    with pytest.raises(DataError, match=expected):
        load(tmp_path, "cvpr2016", tasks=["age"])


def test_cvpr_gender_0_is_female_1_is_male(tmp_path):
    picture(tmp_path / "cvpr2016/gender/train/female/a.jpg")
    picture(tmp_path / "cvpr2016/gender/train/male/b.jpg", 1)
    faces = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert dict(zip(faces.file.tolist(), faces.gender.tolist())) == {
        "gender/train/female/a.jpg": 0, "gender/train/male/b.jpg": 1}


# ---- IMDB-WIKI

def write_mat(root, crop, rows):
    """rows: dicts with file and, where they differ from a fine row: born, taken, gender, name, score or
    second.
    """
    def column(key, fallback, dtype=float):
        return np.array([[row.get(key, fallback) for row in rows]], dtype)
    born = [[np.datetime64(row.get("born", "1960-01-15")).astype(int) + 719529 for row in rows]]
    folder = root / f"imdb-wiki/{crop}_crop"
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / f"{crop}.mat", {crop: {
        "dob": np.array(born, np.int32), "photo_taken": column("taken", 1990),
        "full_path": column("file", "", object), "name": column("name", "", object),
        "gender": column("gender", 1.0), "face_score": column("score", 3.0),
        "second_face_score": column("second", np.nan)}})


def subset_of(person):
    """Of twenty parts of the names one is valid, one test."""
    return datasets.subset_by_hash(person, 20, {18: "valid", 19: "test"})


def test_imdb_wiki_cleaning_counts_each_reason(tmp_path):
    flaws = [{}, {"gender": np.nan}, {"score": -np.inf}, {"second": 2.0}, {"taken": 1950}, {"taken": 2070},
             {"file": "gone.jpg"}, {"file": "cut.jpg"}]
    rows = [{"file": f"{i:02}.jpg", "name": "The Same Person"} | flaw for i, flaw in enumerate(flaws)]
    write_mat(tmp_path, "imdb", rows)
    for i, row in enumerate(rows):
        if row["file"] != "gone.jpg":
            picture(tmp_path / "imdb-wiki/imdb_crop" / row["file"], i)
    cut = tmp_path / "imdb-wiki/imdb_crop/cut.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    faces = load(tmp_path, "imdb-wiki", subset_of("the same person"))
    assert faces.file.tolist() == ["imdb_crop/00.jpg", "imdb_crop/01.jpg"]
    assert faces.age.tolist() == [30, 30] and faces.gender.tolist() == [1, -1]
    assert dropped(faces) == dict.fromkeys(
        ("no face", "second face", "age below 0", "age above 100", "missing file", "undecodable file"), 1)
    told = datasets.left_out(faces)
    assert len(told) == 6 and told[0].endswith("left out, no face (1): imdb_crop/02.jpg")
    assert told[-1].endswith("left out, undecodable file (1): imdb_crop/cut.jpg")


@pytest.mark.parametrize("born, taken, age", [
    ("1960-07-01", 1990, 30), ("1960-07-02", 1990, 29), ("1960-01-01", 1990, 30), ("1960-12-31", 1990, 29)])
def test_age_is_counted_in_whole_years_on_1_july(born, taken, age):
    dob = np.datetime64(born).astype(int) + 719529.0
    assert datasets.completed_years(np.array([dob, np.nan]), np.array([taken, taken])).tolist()[0] == age


def test_imdb_wiki_nobody_is_in_two_subsets(tmp_path):
    for crop in ("imdb", "wiki"):
        rows = [{"file": f"{i:03}.jpg", "name": f"Person {i % 60}"} for i in range(120)]
        write_mat(tmp_path, crop, rows)
        for i in range(120):
            picture(tmp_path / f"imdb-wiki/{crop}_crop/{i:03}.jpg", i, (8, 8))
    persons = {subset: {int(file[-7:-4]) % 60 for file in load(tmp_path, "imdb-wiki", subset).file}
               for subset in datasets.SUBSETS}
    assert sum(map(len, persons.values())) == 60 == len(set.union(*persons.values()))
    assert all(persons.values())


def test_imdb_wiki_mat_that_is_none(tmp_path):
    (tmp_path / "imdb-wiki/imdb_crop").mkdir(parents=True)
    for content in (b"", b"not a mat file" * 100):
        (tmp_path / "imdb-wiki/imdb_crop/imdb.mat").write_bytes(content)
        with pytest.raises(DataError, match="not IMDB-WIKI's MATLAB file"):
            load(tmp_path, "imdb-wiki")
    savemat(tmp_path / "imdb-wiki/imdb_crop/imdb.mat", {"imdb": {"dob": np.zeros((1, 3))}})
    with pytest.raises(DataError, match="not IMDB-WIKI's MATLAB file"):
        load(tmp_path, "imdb-wiki")


# ---- images

def test_load_image_takes_every_kind(tmp_path):
    red = Image.new("RGB", (40, 30), (250, 10, 10))
    images = {"rgb.png": red, "palette.png": red.convert("P"), "cmyk.jpg": red.convert("CMYK"),
              "alpha.png": red.convert("RGBA"), "grey.png": red.convert("L"),
              "deep.png": Image.fromarray(np.full((30, 40), 200 * 256, np.uint16))}
    for name, image in images.items():
        image.save(tmp_path / name)
        crop = datasets.load_image(tmp_path / name, 16, False, False)[0]
        assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8
        expected = {"grey.png": (82, 82, 82), "deep.png": (200, 200, 200)}.get(name, (250, 10, 10))
        assert np.abs(crop.astype(int) - expected).max() < 12, name
    assert datasets.load_image(tmp_path / "rgb.png", 16, True, False)[0].shape == (16, 16, 1)


def test_load_image_is_upright_and_takes_the_middle_square(tmp_path):
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (30, 0, 60, 30))
    image.paste((255, 0, 0), (30, 0, 60, 15))
    exif = Image.Exif()
    exif[0x0112] = 3                                        # upside down
    image.save(tmp_path / "a.png", exif=exif)
    crop = datasets.load_image(tmp_path / "a.png", 16, False, False)[0]
    assert (crop[:6, 2:-2] > 250).all() and (crop[-6:, 2:-2, 1] < 5).all()


def test_load_image_refuses_a_huge_picture(tmp_path):
    Image.new("1", (30000, 4000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="30000x4000 is too large"):
        datasets.load_image(tmp_path / "huge.png", 16, False, False)[0]


def gender_set(root, count=6):
    for i in range(count):
        picture(root / f"cvpr2016/gender/train/{datasets.GENDERS[i % 2]}/{i}.jpg", i)
    return root


def test_broken_images_are_named_and_left_out(tmp_path):
    gender_set(tmp_path)
    folder = tmp_path / "cvpr2016/gender/train/female"
    (folder / "0.jpg").write_bytes(b"")
    (folder / "2.jpg").write_text("no image")
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    faces = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert len(faces) == len(pixels(faces)) == 4
    assert dropped(faces) == {"undecodable file": 2, "missing file": 1}
    for file in (tmp_path / "cvpr2016").rglob("*.jpg"):
        if not file.is_symlink():
            file.write_bytes(b"")
    with pytest.raises(DataError, match="no usable face for gender.*6 undecodable file"):
        load(tmp_path, "cvpr2016", tasks=["gender"])


def test_what_is_no_fault_of_an_image_is_told_and_not_remembered(tmp_path, monkeypatch):
    gender_set(tmp_path)
    file = tmp_path / "cvpr2016/gender/train/female/0.jpg"
    for error, expected in (
            (OSError(13, "Permission denied", str(file)), "0.jpg: can't be read .Permission denied.$"),
            (OSError(24, "Too many open files"), "Too many open files")):
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "open_picture", Mock(side_effect=error))
            with pytest.raises(DataError, match=expected):
                load(tmp_path, "cvpr2016", tasks=["gender"])
    assert not dropped(load(tmp_path, "cvpr2016", tasks=["gender"]))


def test_a_file_name_that_is_not_utf8(tmp_path):
    with pytest.raises(DataError, match=r"not UTF-8, '.*caf\\udce9.jpg'; rename it"):
        datasets.new_faces(tmp_path, ["a.jpg", "caf\udce9.jpg"])


def test_a_set_that_lost_all_its_images_is_told_and_trained_without(tmp_path):
    for crop in ("imdb", "wiki"):
        write_mat(tmp_path, crop, [dict(file=f"00/{i}.jpg", name="Ann") for i in range(3)])
    for i in range(3):
        picture(tmp_path / f"imdb-wiki/wiki_crop/00/{i}.jpg", i)
    faces = load(tmp_path, "imdb-wiki", subset_of("Ann"), ["age", "gender"])
    imdb, wiki = faces.only(0), faces.only(1)
    assert datasets.describe(imdb, "imdb")[0].endswith("3 rows found, 0 used, 3 dropped") and len(wiki) == 3
    (batch,) = datasets.batches(faces, None, 8, models.DRAWS, 0, 1)
    images = datasets.gather(datasets.to_device(faces, CPU), batch.rows, CPU)
    assert models.augment(images, 16, batch.draws).shape == (3, 3, 16, 16)


def test_the_sample_is_drawn_where_it_is_asked_for_by_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = argparse.Namespace(data="data/sample", cache=None)
    with pytest.raises(DataError, match="no data root data/sample/"):
        datasets.folders(named)
    (tmp_path / "data/sample").mkdir(parents=True)      # somebody's own faces are not taken for drawn ones
    datasets.folders(named)
    with pytest.raises(DataError, match="has no file 'drawn'.*--data data/sample"):
        datasets.folders(argparse.Namespace(data="sample", cache=None))
    assert not datasets.is_drawn(tmp_path / "data/sample")


def test_decoding_leaves_its_table_as_it_was(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    table = datasets.new_faces(tmp_path, ["0.png", "1.png", "2.png"], age=[1, 2, 3]).keep(np.array([1, 2]))
    first, second = (datasets.decode(table, 16, tmp_path / ".cache") for _ in range(2))
    assert table.parts[0].pixels is None
    assert first.image.tolist() == second.image.tolist() == [0, 1]
    assert (pixels(first) == pixels(second)).all()


# ---- the cache

def built(root):
    """What in a data root's cache is whole."""
    return [path for path in (root / ".cache").iterdir() if not path.name.startswith(".")]


def test_second_load_opens_no_image_and_a_changed_one_is_decoded_anew(tmp_path, monkeypatch):
    gender_set(tmp_path)
    before = pixels(load(tmp_path, "cvpr2016", tasks=["gender"]))
    opened = []
    original = datasets.load_image
    monkeypatch.setattr(datasets, "load_image",
                        lambda file, *rest: opened.append(file.name) or original(file, *rest))
    assert (pixels(load(tmp_path, "cvpr2016", tasks=["gender"])) == before).all() and not opened
    picture(tmp_path / "cvpr2016/gender/train/female/0.jpg", 99)
    changed = pixels(load(tmp_path, "cvpr2016", tasks=["gender"]))
    assert len(opened) == 6 and (changed[0] != before[0]).any() and (changed[1:] == before[1:]).all()
    assert len(built(tmp_path)) == 1


def test_csv_that_changed_is_read_anew(tmp_path):
    fer_csv(tmp_path, [fer_row(3)])
    assert load(tmp_path, "fer2013").emotion.tolist() == [3]
    fer_csv(tmp_path, [fer_row(4), fer_row(5)])
    assert load(tmp_path, "fer2013").emotion.tolist() == [4, 5]


def test_killed_while_decoding_leaves_nothing_that_is_used(tmp_path):
    gender_set(tmp_path, 40)
    code = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import datasets
original, root = datasets.load_image, Path(sys.argv[2])
datasets.load_image = lambda *arguments: time.sleep(0.2) or original(*arguments)
datasets.load(root, ['cvpr2016'], 'train', ['gender'], 16, root / '.cache')
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path)])
    while not list(tmp_path.glob(".cache/.*.partial/*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not built(tmp_path)
    faces = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert len(pixels(faces)) == 40 and pixels(faces).reshape(40, -1).any(1).all()


def build_slowly(args):
    target, builders = args

    def build(folder):
        time.sleep(0.3)
        (folder / "done").write_text("x")
        builders.append(os.getpid())
    datasets.build_once(target, build)
    return (target / "done").read_text()


def test_two_runs_at_once_decode_once(tmp_path):
    with multiprocessing.get_context("fork").Manager() as manager:
        builders = manager.list()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map(build_slowly, [(tmp_path / "cache/set", builders)] * 3) == ["x"] * 3
        assert len(builders) == 1


def test_cache_that_cannot_be_written(tmp_path):
    gender_set(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--cache DIR"):
        datasets.load(tmp_path, ["cvpr2016"], "train", ["gender"], 16, tmp_path / "file/cache")


def test_cache_that_is_damaged_is_told_and_made_anew(tmp_path, capsys):
    gender_set(tmp_path)
    before = pixels(load(tmp_path, "cvpr2016", tasks=["gender"]))
    for name in ("images.u8", "states.npy"):
        (file,) = tmp_path.glob(f".cache/*/{name}")
        file.write_bytes(file.read_bytes()[:-1])
        assert (pixels(load(tmp_path, "cvpr2016", tasks=["gender"])) == before).all()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{file.parent}: damaged (") and line.endswith("); it is made anew")
    load(tmp_path, "cvpr2016", tasks=["gender"])
    assert not capsys.readouterr().err


def test_cache_that_is_cut_short_while_it_is_used(tmp_path):
    faces = load(gender_set(tmp_path), "cvpr2016", tasks=["gender"])
    (images,) = tmp_path.glob(".cache/*/images.u8")
    os.truncate(images, 16 * 16 * 3)
    assert len(faces.parts[0].pixels[np.array([0])]) == 1
    with pytest.raises(DataError, match="images.u8: was cut short"):
        pixels(faces)


def test_full_disk_while_decoding(tmp_path):
    resource = pytest.importorskip("resource")
    gender_set(tmp_path, 40)

    def limit():                                            # a write beyond fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    report = ("datasets.py", "--data", tmp_path, "--image-size", 64)
    assert "--cache DIR" in run(*report, cwd=tmp_path, status=2, preexec_fn=limit).stderr
    assert not list(tmp_path.glob(".cache/cvpr*"))
    run(*report, cwd=tmp_path)


def test_a_file_is_whole_or_left_as_it_was_and_a_link_leads_where_it_led(tmp_path):
    file, link = tmp_path / "a.csv", tmp_path / "link.csv"
    file.write_text("old")
    link.symlink_to(file)
    with pytest.raises(KeyboardInterrupt), datasets.whole_file(link) as output:
        output.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    with datasets.whole_file(link) as output:
        output.write(b"new")
    assert file.read_text() == "new" and link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "link.csv"}


# ---- batches

def made(count, split="made", **labels):
    faces = datasets.new_faces(Path(), [str(i) for i in range(count)], **labels)
    faces.parts = [datasets.Part(Path(), split=split, pixels=np.zeros((count, 4, 4, 3), np.uint8))]
    return faces


def shown(faces, *batches):
    """What the batches show of each part: rows, numbered within the part."""
    rows = np.concatenate([batch.rows for batch in batches])
    return [faces.image[rows[faces.part[rows] == number]] for number in range(len(faces.parts))]


def test_batches_are_balanced_even_and_the_same_for_any_number_of_processes():
    faces = datasets.join([made(30, age=range(30)), made(7, gender=[0, 1] * 3 + [0]),
                           made(5, gender=[1, -1, -1, -1, 0])])
    whole = list(datasets.batches(faces, 45, 16, 3, seed=1, epoch=2))
    assert sum(len(batch.rows) for batch in whole) == 90
    for batch in whole:
        ages, genders, more = map(len, shown(faces, batch))
        assert abs(ages - genders - more) <= 1
        labels = datasets.labels_of(faces, batch.rows, CPU)
        assert batch.total == len(batch.draws) == len(labels.age) == len(batch.rows)
        assert batch.draws.shape[1] == 3 and (np.diff(faces.part[batch.rows]) >= 0).all()
    ages, _, more = shown(faces, *whole)
    assert set(np.bincount(ages, minlength=30)) == {1, 2}
    assert set(more) == {0, 4}                              # rows without a label are not drawn
    parts = [list(datasets.batches(faces, 45, 16, 3, seed=1, epoch=2, share=datasets.Share(rank, 3)))
             for rank in range(3)]
    for batch, *shares in zip(whole, *parts):
        assert all(share.total == batch.total for share in shares)
        assert sorted(batch.rows) == sorted(np.concatenate([share.rows for share in shares]))
        assert torch.equal(batch.draws, torch.cat([share.draws for share in shares]))
    again = list(datasets.batches(faces, 45, 16, 3, seed=1, epoch=3))
    assert any(shown(faces, a)[0].tolist() != shown(faces, b)[0].tolist() for a, b in zip(whole, again))


def test_sets_that_share_a_task_are_drawn_together_and_their_splits_take_turns_however_large():
    age, gender = made(10, age=range(10)), made(20, gender=[0, 1] * 10)
    emotion = made(9, emotion=[1] * 9)
    large = made(1000, split="elsewhere", age=[5] * 1000, gender=[0, -1] * 500)
    assert datasets.pools(large) == {(0,): 1000}
    assert datasets.pools(datasets.join([age, gender, emotion])) == {(0,): 10, (1,): 20, (2,): 9}
    faces = datasets.join([age, gender, emotion, large])
    assert datasets.pools(faces) == {(0, 1, 3): 1030, (2,): 9}
    assert datasets.pools(faces, 80) == {(0, 1, 3): 80, (2,): 80}
    count = datasets.EPOCH_IMAGES + 1
    assert datasets.pools(made(count, age=[5] * count)) == {(0,): datasets.EPOCH_IMAGES}
    whole = list(datasets.batches(faces, 120, 60, 0, seed=0, epoch=1))
    rows = shown(faces, *whole)
    assert [len(each) for each in rows] == [20, 40, 120, 60]
    assert set(np.bincount(rows[0])) == set(np.bincount(rows[1])) == {2}
    for batch in whole:
        ages, genders, emotions, elsewhere = map(len, shown(faces, batch))
        assert ages + genders == elsewhere == 15 and emotions == 30


def test_an_epoch_shows_each_image_once_unless_told_otherwise_and_every_step_has_its_share():
    faces = datasets.join([made(300, age=[5] * 300), made(60, emotion=[1] * 60)])
    whole = list(datasets.batches(faces, None, 36, 0, seed=0, epoch=1))
    assert len(whole) == 10
    for batch in whole:
        assert [len(rows) for rows in shown(faces, batch)] == [30, 6]
    for rows, count in zip(shown(faces, *whole), (300, 60)):
        assert sorted(rows) == list(range(count))


# ---- the report

def test_report_on_the_sample(work):
    text = run("datasets.py", "--data", "sample", cwd=work).stdout
    assert "cvpr2016 age train: 400 rows found, 400 used, 0 dropped" in text
    assert "imdb-wiki: 600 rows found, 576 used, 24 dropped" in text
    assert "fer2013 valid: 140 rows found" in text and "happy" in text


def test_report_goes_on_after_what_is_wrong_or_has_no_labels(tmp_path):
    picture(tmp_path / "data/cvpr2016/age/train/30/a.jpg")
    picture(tmp_path / "data/cvpr2016/age/test/a.jpg")
    picture(tmp_path / "data/cvpr2016/gender/train/women/a.jpg")
    picture(tmp_path / "data/fer2013/train/happy/a.jpg")
    done = run("datasets.py", cwd=tmp_path, status=2)
    assert "the age set's test part is not there" in done.stdout
    for part in ("cvpr2016 age train", "fer2013 train"):
        assert f"{part}: 1 rows found, 1 used" in done.stdout
    assert "women: unknown class folder" in done.stderr


def test_no_data_root(tmp_path):
    assert "no data root" in run("datasets.py", "--data", "nowhere", cwd=tmp_path, status=2).stderr
    (tmp_path / "empty").mkdir()
    done = run("datasets.py", "--data", "empty", cwd=tmp_path, status=2)
    assert "none of imdb-wiki, cvpr2016, fer2013" in done.stderr
