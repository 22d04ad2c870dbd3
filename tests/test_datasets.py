"""Readers, images, the cache, copies, batches, the report, and what the scripts share."""
import argparse
import copy
import csv
import io
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, PngImagePlugin
from scipy.io import savemat

import datasets
import model as models
from conftest import ROOT, picture, run
from datasets import DataError, Face, Missing

CPU = torch.device("cpu")


def read(root, dataset, subset="train", tasks=datasets.TASKS):
    return datasets.read(root, [dataset], subset, tasks)[0]


def load(root, dataset, subset="train", tasks=datasets.TASKS, size=16):
    return datasets.load(read(root, dataset, subset, tasks), tasks, size, root / ".cache")


def dropped(faces, part=0):
    """How many of a part's rows were dropped, by reason."""
    return {reason: len(names) for reason, names in faces.parts[part].dropped.items()}


def make(folder, *files, **texts):
    """Different pictures called `files` in a folder, and text files."""
    for i, name in enumerate(files):
        picture(folder / name, i)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def gender_set(root, count=6):
    make(root / "cvpr2016/gender/train", *(f"{('female', 'male')[i % 2]}/{i}.jpg" for i in range(count)))
    return root


def row(emotion=3, value=7, usage="Training", pixels=48 * 48):
    return f"{emotion},{' '.join([str(value)] * pixels)},{usage}\n"


FER = "emotion,pixels,Usage\n"
AGES = "image,mean,stdv\n"
RANGES = "file,age,gender,race,service_test\n"


# ---- layouts: the files of a data set, and the faces of a part

@pytest.mark.parametrize("dataset, subset, pictures, texts, expected", [
    ("fer2013", "valid", [], {"fer2013.csv": FER + row() + row(6, 250, "PublicTest") + row(1, 9, "PublicTest")},
     [Face("0", emotion=6), Face("1", emotion=1)]),
    ("fer2013", "train", [], {"icml_face_data.csv": "emotion, Usage, pixels, more\n"
                              + ",".join(np.array(row(0).strip().split(","))[[0, 2, 1]]) + ",x\n"},
     [Face("0", emotion=0)]),
    *(("fer2013", subset, ["train/happy/a.jpg", "test/sad/PublicTest_1.png", "test/angry/PrivateTest_1.png"],
       {}, [face]) for subset, face in (("train", Face("train/happy/a.jpg", emotion=3)),
                                        ("valid", Face("test/sad/PublicTest_1.png", emotion=4)),
                                        ("test", Face("test/angry/PrivateTest_1.png", emotion=0)))),
    ("cvpr2016", "train", ["age/train/x.jpg"], {"age/train_gt.csv": AGES + "x.jpg,31.5,4.25\n"},
     [Face("age/train/x.jpg", 31.5, 4.25)]),
    ("cvpr2016", "test", ["age/test/x.jpg_face.jpg"], {
        "age/gt_avg_test.csv": "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n"
                               "x.jpg,38,31.5,4.25,30\n"}, [Face("age/test/x.jpg_face.jpg", 31.5, 4.25)]),
    # of another machine, by a spreadsheet program
    ("cvpr2016", "train", ["age/train/a/x.jpg"], {
        "age/train_gt.csv": "\ufeffimage;mean;stdv;z\nC:\\age\\train\\a\\x.jpg;31.5;4.25;1\n"},
     [Face("age/train/a/x.jpg", 31.5, 4.25)]),
    ("cvpr2016", "valid", ["age/VALID/031/x.jpg"], {}, [Face("age/VALID/031/x.jpg", 31)]),
    ("cvpr2016", "train", ["gender/train/female/a.jpg", "gender/train/male/b.jpg"], {},
     [Face("gender/train/female/a.jpg", gender=0), Face("gender/train/male/b.jpg", gender=1)]),
    # in UTKFace's names 0 is male, 1 female
    ("utkface", "train", ["21_1_1_20170101.jpg.chip.jpg", "crop_part1/22_0_2_20170102.jpg",
                          "UTKFace/part2/23_1_3_20170103.jpg.chip.jpg", "27_1_2_20170127.jpg.chip.jpg"], {},
     [Face("21_1_1_20170101.jpg.chip.jpg", 21, gender=0, group="Black"),
      Face("UTKFace/part2/23_1_3_20170103.jpg.chip.jpg", 23, gender=0, group="Indian"),
      Face("crop_part1/22_0_2_20170102.jpg", 22, gender=1, group="Asian")]),
    *(("fairface", subset, ["train/1.jpg", "train/2.jpg", "train/3.jpg", "train/11.jpg", "val/1.jpg"], {
        "fairface_label_train.csv": RANGES + "train/1.jpg,20-29,Male,Black,True\n"
        "train\\2.jpg,more than 70,Female,White,True\ntrain/3.jpg,03-Sep,Male,White,True\n"
        "train/11.jpg,0-2,Male,Indian,True\n",
        "fairface_label_val.csv": RANGES + "val\\1.jpg,Oct-19,Female,White,False\n"}, faces)
      for subset, faces in (
        ("train", [Face("train/1.jpg", 24.5, 10 / math.sqrt(12), 20, 30, 1, group="Black"),
                   Face("train/2.jpg", 75, 5, 70, math.inf, 0, group="White"),
                   Face("train/3.jpg", 6, 7 / math.sqrt(12), 3, 10, 1, group="White",
                        remark="age 03-Sep, of a spreadsheet program, read as a range")]),
        ("valid", [Face("train/11.jpg", 1, 3 / math.sqrt(12), 0, 3, 1, group="Indian")]),
        ("test", [Face("val/1.jpg", 14.5, 10 / math.sqrt(12), 10, 20, 0, group="White",
                       remark="age Oct-19, of a spreadsheet program, read as a range")]))),
], ids=lambda value: value if isinstance(value, str) else "")
def test_each_layout_gives_its_faces(dataset, subset, pictures, texts, expected, tmp_path):
    make(tmp_path / dataset, *pictures, **texts)
    (part,) = read(tmp_path, dataset, subset)
    # as text, since NaN is not equal to NaN
    assert [str(face._replace(pixels="", age=float(face.age))) for face in part.faces] == [
        str(face._replace(age=float(face.age))) for face in expected]
    faces = load(tmp_path, dataset, subset)
    assert len(faces) == len(expected) and not faces.parts[0].dropped
    assert faces.gather(np.arange(len(faces)), CPU).shape == (len(faces), 16, 16, 3)


def test_pixels_of_fer2013_and_those_that_are_none(tmp_path):
    odd = [row(pixels=2303), row(value="x"), row(value=256), row(value=-1), row(value="nan")]
    make(tmp_path / "fer2013", **{"fer2013.csv": FER + row() + "".join(odd) + row(value=250)})
    faces = load(tmp_path, "fer2013")
    assert faces.parts[0].dropped == {"undecodable file": ["1", "2", "3", "4", "5"]}
    images = faces.gather(np.arange(len(faces)), CPU)
    assert faces["file"].tolist() == ["0", "6"] and images.dtype == torch.uint8
    assert (images[0] == 7).all() and (images[1] == 250).all()


@pytest.mark.parametrize("dataset, pictures, subset, expected", [
    ("cvpr2016", ["age/train/31/x.jpg"], "valid", "the age set's valid part is not there"),
    ("utkface", ["21_1_1_20170101.jpg"], "valid", "valid part is not there"),
    # neither part of test/ in its place
    ("fer2013", ["Training/happy/a.jpg", "test/sad/PublicTest_1.png", "test/sad/PrivateTest_1.png"], "train",
     "FER2013's train part is not there"),
    ("fairface", ["train/1.jpg"], "test", "fairface_label_val.csv: FairFace's test part is not there"),
    ("imdb-wiki", [], "train", "IMDB-WIKI is not there")])
def test_a_part_that_is_missing_is_named(dataset, pictures, subset, expected, tmp_path):
    make(tmp_path / dataset, *pictures)
    with pytest.raises(Missing, match=expected):
        read(tmp_path, dataset, subset)


@pytest.mark.parametrize("file, text, expected", [
    ("fer2013/fer2013.csv", "emotion,pixels\n3,1", "0 columns called Usage; expected the columns emotion,"),
    ("fer2013/fer2013.csv", "emotion,pixels,Usage,Usage\n", "2 columns called Usage"),
    ("fer2013/fer2013.csv", FER + row(7), "line 2: emotion is '7'; expected a number from 0 to 6"),
    ("fer2013/fer2013.csv", FER + row() + row("happy"), "line 3: emotion is 'happy'"),
    ("fer2013/fer2013.csv", FER + row(usage="Testing"), "line 2: Usage is 'Testing'; expected Training, "),
    ("fer2013/fer2013.csv", FER + "3,1 2 3\n", "line 2: 2 fields; expected 3"),
    ("fer2013/fer2013.csv", FER, "fer2013's train part is not there"),
    ("fer2013/fer2013.csv", "", "0 columns called emotion"),
    ("fer2013/fer2013.csv", "\udcff\udcfe\0" * 9, "not a CSV file"),
    ("cvpr2016/age/train_gt.csv", "image,mean\nx.jpg,3\n", "0 columns called stdv"),
    ("cvpr2016/age/train_gt.csv", AGES + "x.jpg,old,1\n", "line 2: mean is 'old'"),
    ("cvpr2016/age/train_gt.csv", AGES + "x.jpg,130,1\n", "line 2: mean is '130'"),
    ("cvpr2016/age/train_gt.csv", AGES + "x.jpg,30,-1\n", "line 2: stdv is '-1'"),
    ("fairface/fairface_label_train.csv", RANGES + "train/1.jpg,old,Male,White,1\n", "line 2: age is 'old'"),
    ("fairface/fairface_label_train.csv", RANGES + "train/1.jpg,29-20,Male,White,1\n", "age is '29-20'"),
    ("fairface/fairface_label_train.csv", RANGES + "train/1.jpg,20-29,M,White,1\n", "gender is '[mM]'"),
    ("imdb-wiki/imdb_crop/imdb.mat", "", "not IMDB-WIKI's MATLAB file"),
    ("imdb-wiki/imdb_crop/imdb.mat", "not a mat file" * 99, "not IMDB-WIKI's MATLAB file"),
])
def test_mistakes_name_the_file_and_the_row(file, text, expected, tmp_path):
    make(tmp_path, **{file: ""})
    (tmp_path / file).write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=f"{file.rpartition('/')[0]}.*{expected}"):
        load(tmp_path, file.split("/")[0])
    assert not (tmp_path / ".cache").exists()


# ---- what class folders and UTKFace's folders hold

@pytest.mark.parametrize("source, folder, unknown, stem", [
    ("cvpr2016 age", "cvpr2016/age/train/31", "101", "a"),
    ("cvpr2016 gender", "cvpr2016/gender/train/male", "other", "a"),
    ("fer2013", "fer2013/train/happy", "bored", "a"), ("utkface", "utkface/part1", "", "21_1_1_20170101")])
def test_pictures_are_known_by_ending_or_first_bytes_and_systems_folders_are_passed_over(
        source, folder, unknown, stem, tmp_path):
    folder, dataset = make(tmp_path / folder, **{f"{stem}.txt": "no picture"}), source.split()[0]
    endings = [".png", ".BMP", "", ".jpg_large", ".jpg.1", ".jfif", ".caf\udce9.jpg"]      # not UTF-8
    for i, ending in enumerate(endings):
        picture(tmp_path / "x.png", i).rename(folder / f"{stem}{ending}")
    for system in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        shutil.copytree(folder, folder.parent / system / folder.name)
    faces = load(tmp_path, dataset)
    assert sorted(Path(name).name for name in faces["file"]) == sorted(stem + ending for ending in endings)
    assert dropped(faces) == {"not a picture": 1}
    line = datasets.left_out(faces)[0]
    assert line.startswith(f"{source} train: left out, not a picture: 1 (") and line.endswith(f"{stem}.txt)")
    report = run("datasets.py", "--data", ".", "--image-size", 16, cwd=tmp_path).stdout
    assert f"{source} train: 8 rows found, 7 used" in report
    (folder.parent / unknown).mkdir(exist_ok=True)
    if unknown:
        with pytest.raises(DataError, match=f"{unknown}: unknown class folder; expected "):
            load(tmp_path, dataset)


def test_odd_names_of_utkface_are_counted_and_the_same_name_twice_is_one_face(tmp_path):
    odd = "odd name, which has age and gender all the same"
    names = {"61_1_20170109142408075.jpg.chip.jpg": odd, "24_0_1_20170116220224657 .jpg.chip.jpg": odd,
             "55_0_0_20170116232725357jpg.chip.jpg": odd, "101_0_0_20170112213500903.jpg": "age above 100",
             "portrait.jpg": "file without age and gender in its name",
             "26_3_0_20170104.jpg": "file without age and gender in its name",
             "UTKFace/21_1_1_20170101.jpg": "same name in another folder", "21_1_1_20170101.jpg": ""}
    make(tmp_path, *names)
    faces = [face for subset in datasets.SUBSETS for face in datasets.read_utkface(tmp_path, subset)]
    assert {face.file: face.dropped or face.remark for face in faces} == names
    assert [bool(face.remark) for face in faces if face.dropped] == [False] * 4


# ---- IMDB-WIKI

def write_mat(root, crop, rows, text=object):
    """rows: dicts of file and, where they differ from a sound row: born, taken, gender, name, score or
    second. With `text` str, texts lie padded by blanks.
    """
    def column(key, fallback, dtype=float):
        return np.array([[row.get(key, fallback) for row in rows]], dtype)
    born = [[np.datetime64(row.get("born", "1960-01-15")).astype(int) + 719529 for row in rows]]
    folder = root / f"imdb-wiki/{crop}_crop"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "dob": np.array(born, np.int32), "photo_taken": column("taken", 1990),
        "full_path": column("file", "", text), "name": column("name", "", text),
        "gender": column("gender", 1.0), "face_score": column("score", 3.0),
        "second_face_score": column("second", np.nan)}
    if text is str:
        columns |= {name: np.char.ljust(columns[name][0], 40) for name in ("full_path", "name")}
    savemat(folder / f"{crop}.mat", {crop: columns})


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
    assert faces["file"].tolist() == ["imdb_crop/00.jpg", "imdb_crop/01.jpg"]
    assert faces["age"].tolist() == [30, 30] and faces["gender"].tolist() == [1, -1]
    assert dropped(faces) == dict.fromkeys(
        ("no face", "second face", "age below 0", "age above 100", "missing file", "undecodable file"), 1)
    lines = datasets.left_out(faces)
    assert len(lines) == 6 and lines[0].endswith("left out, no face: 1 (imdb_crop/02.jpg)")
    assert lines[-1].endswith("left out, undecodable file: 1 (imdb_crop/cut.jpg)")


@pytest.mark.parametrize("born, taken, age", [
    ("1960-07-01", 1990, 30), ("1960-07-02", 1990, 29), ("1960-01-01", 1990, 30), ("1960-12-31", 1990, 29)])
def test_age_is_counted_in_whole_years_on_1_july(born, taken, age):
    dob = np.datetime64(born).astype(int) + 719529.0
    ages = datasets.completed_years(np.array([dob, np.nan, 1e300]), np.array([taken, taken, taken]))
    np.testing.assert_equal(ages, [age, np.nan, np.nan])


@pytest.mark.parametrize("text", [object, str])
def test_imdb_wiki_nobody_is_in_two_subsets(tmp_path, text):
    for crop in ("imdb", "wiki"):
        rows = [{"file": f"{i:03}.jpg", "name": f"Person {i % 60}"} for i in range(120)]
        write_mat(tmp_path, crop, rows, text)
        for i in range(120):
            picture(tmp_path / f"imdb-wiki/{crop}_crop/{i:03}.jpg", i, (8, 8))
    persons = {subset: {int(file[-7:-4]) % 60 for file in load(tmp_path, "imdb-wiki", subset)["file"]}
               for subset in datasets.SUBSETS}
    assert sum(map(len, persons.values())) == 60 == len(set.union(*persons.values()))
    assert persons["valid"] == {i for i in range(60) if subset_of(f"person {i}") == "valid"} != set()


def test_a_set_that_lost_all_its_images_is_reported_and_trained_without(tmp_path):
    for crop in ("imdb", "wiki"):
        write_mat(tmp_path, crop, [dict(file=f"00/{i}.jpg", name="Ann") for i in range(3)])
    for i in range(3):
        picture(tmp_path / f"imdb-wiki/wiki_crop/00/{i}.jpg", i)
    faces = load(tmp_path, "imdb-wiki", subset_of("ann"), ["age", "gender"])
    assert len(faces) == 3 and dropped(faces, 0) == {"missing file": 3} and not dropped(faces, 1)
    imdb, _ = read(tmp_path, "imdb-wiki", subset_of("ann"))
    lines = datasets.describe(datasets.prepare(imdb, 16, tmp_path / ".cache"), "imdb")
    assert lines[0].endswith("3 rows found, 0 used, 3 dropped")
    (batch,) = datasets.batches(faces, None, 8, models.DRAWS, (0, 1))
    images = faces.to_device(CPU).gather(batch.rows, CPU)
    assert models.augment(images, 16, batch.draws).shape == (3, 3, 16, 16)


# ---- images

RED = Image.new("RGB", (40, 30), (250, 10, 10))
CLEAR = Image.merge("RGBA", [*RED.split(), Image.new("L", RED.size)])


def noise(side):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8))


def bmp(image):
    """A BMP of 32 bits with a mask for alpha, as Windows' clipboard has it."""
    pixels = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")
    head = struct.pack("<IiiHHIIiiII", 108, *image.size, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    masks = struct.pack("<IIII", 0xff0000, 0xff00, 0xff, 0xff000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + head + masks + pixels


@pytest.mark.parametrize("name, image, expected", [
    ("rgb.png", RED, (250, 10, 10)), ("palette.png", RED.convert("P"), (250, 10, 10)),
    ("cmyk.jpg", RED.convert("CMYK"), (250, 10, 10)), ("opaque.png", RED.convert("RGBA"), (250, 10, 10)),
    ("grey.png", RED.convert("L"), (82, 82, 82)),
    ("clear.png", CLEAR, (255, 255, 255)),                  # on white
    # alpha that is 0 everywhere is of a program that knows none
    ("clear.bmp", bmp(CLEAR), (250, 10, 10)), ("clear.tif", CLEAR, (250, 10, 10)),
    *((f"{value.dtype} {value}.tif", Image.fromarray(np.full((30, 40), value)), (100, 100, 100)) for value in (
        np.uint16(100 * 2**8), np.int32(100), np.int32(100 * 2**8), np.int32(100 * 2**16),
        np.float32(100), np.float32(100 / 255))),
], ids=lambda value: value if isinstance(value, str) else "")
def test_every_kind_of_picture_has_its_colors(tmp_path, name, image, expected):
    file = tmp_path / name
    file.write_bytes(image) if isinstance(image, bytes) else image.save(file)
    crop = datasets.center_crop(datasets.open_picture(file, 16), 16)
    assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8
    assert np.abs(crop.astype(int) - expected).max() < 12


def test_a_picture_is_upright_and_its_middle_square_taken(tmp_path):
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (30, 0, 60, 30))
    image.paste((255, 0, 0), (30, 0, 60, 15))
    exif = Image.Exif()
    exif[0x0112] = 3                                        # upside down
    image.save(tmp_path / "a.png", exif=exif)
    crop = datasets.center_crop(datasets.open_picture(tmp_path / "a.png"), 16)
    assert (crop[:6, 2:-2] > 250).all() and (crop[-6:, 2:-2, 1] < 5).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_read_and_one_that_lacks_more_refused(tmp_path, progressive):
    def part(name, content):
        (tmp_path / name).write_bytes(content)
        return datasets.open_picture(tmp_path / name)
    stream = io.BytesIO()
    noise(120).save(stream, "JPEG", progressive=progressive)
    content = stream.getvalue()
    assert part("whole.jpg", content) == part("less2.jpg", content[:-2])
    for length in (len(content) * 6 // 10, len(content) - 20):
        with pytest.raises(OSError, match="truncated"):
            part("less.jpg", content[:length])


def test_a_png_of_a_long_text_and_a_broken_profile_is_read(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 3_000_000, zip=True)
    RED.save(tmp_path / "a.png", pnginfo=text, icc_profile=b"no profile" * 20)
    assert datasets.open_picture(tmp_path / "a.png") == RED


def test_a_huge_picture_is_refused_unless_a_fraction_of_it_can_be_decoded(tmp_path, monkeypatch):
    Image.new("1", (30000, 4000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="30000x4000 is too large a picture"):
        datasets.open_picture(tmp_path / "huge.png", 16)
    noise(400).save(tmp_path / "large.jpg")
    monkeypatch.setattr(datasets, "LARGEST_PICTURE", 20_000)
    assert datasets.open_picture(tmp_path / "large.jpg", 16).size == (50, 50)
    with pytest.raises(ValueError, match="400x400 is too large"):
        datasets.open_picture(tmp_path / "large.jpg", 200)


def test_what_is_no_picture_is_not_opened(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "a.jpg", "EPS")        # PostScript is a program
    for file, error, expected in ((tmp_path / "a.jpg", PIL.UnidentifiedImageError, "cannot identify"),
                                  (tmp_path, ValueError, "not a file"),
                                  (tmp_path / "gone.jpg", ValueError, "no such file")):
        with pytest.raises(error, match=expected):
            datasets.open_picture(file)


def test_broken_images_are_named_and_left_out(tmp_path):
    gender_set(tmp_path)
    folder = tmp_path / "cvpr2016/gender/train/female"
    (folder / "0.jpg").write_bytes(b"")
    (folder / "2.jpg").write_text("no image")
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    faces = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert len(faces) == 4 and dropped(faces) == {"undecodable file": 2, "missing file": 1}
    images = faces.gather(np.arange(4), CPU).numpy()
    for file, image in zip(faces["file"], images):          # each face has its own image
        expected = datasets.open_picture(tmp_path / "cvpr2016" / file)
        assert (image == datasets.center_crop(expected, 16)).all()
    for file in (tmp_path / "cvpr2016").rglob("*.jpg"):
        if not file.is_symlink():
            file.write_bytes(b"")
    with pytest.raises(DataError, match="no usable face for gender.*6 undecodable file"):
        load(tmp_path, "cvpr2016", tasks=["gender"])


# ---- the cache

def built(root):
    """What in a data root's cache is whole, and what else is there."""
    names = [path.name for path in (root / ".cache").iterdir()]
    return ([name for name in names if not name.startswith(".")],
            [name for name in names if name.startswith(".")])


def test_what_is_no_fault_of_an_image_is_raised_and_not_remembered(tmp_path, monkeypatch):
    gender_set(tmp_path)
    for error in (PermissionError(13, "Permission denied", "0.jpg"), OSError(24, "Too many open files")):
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "open_picture", Mock(side_effect=error))
            with pytest.raises(OSError, match=error.strerror):
                load(tmp_path, "cvpr2016", tasks=["gender"])
        assert built(tmp_path) == ([], [])
    assert not dropped(load(tmp_path, "cvpr2016", tasks=["gender"]))


def test_second_load_opens_no_image_and_a_changed_one_is_decoded_anew(tmp_path, monkeypatch):
    gender_set(tmp_path)
    opened, original = [], datasets.open_picture
    before = np.array(load(tmp_path, "cvpr2016", tasks=["gender"]).images[0])
    old = built(tmp_path)[0]
    monkeypatch.setattr(datasets, "open_picture",
                        lambda file, *rest: opened.append(file.name) or original(file, *rest))
    assert (load(tmp_path, "cvpr2016", tasks=["gender"]).images[0] == before).all() and not opened
    load(tmp_path, "cvpr2016", tasks=["gender"], size=20)
    assert len(opened) == 6 and set(old) < set(built(tmp_path)[0])          # each size has a folder of its own
    picture(tmp_path / "cvpr2016/gender/train/female/0.jpg", 99)
    changed = load(tmp_path, "cvpr2016", tasks=["gender"]).images[0]
    assert len(opened) == 12 and (changed[0] != before[0]).any() and (changed[1:] == before[1:]).all()
    names, others = built(tmp_path)
    assert len(names) == 2 and not set(old) & set(names) and not others


def test_a_table_that_changed_is_read_anew(tmp_path):
    fer_csv(tmp_path, fer_row(3))
    assert load(tmp_path, "fer2013")["emotion"].tolist() == [3]
    fer_csv(tmp_path, fer_row(4), fer_row(5, 8))
    faces = load(tmp_path, "fer2013")
    assert faces["emotion"].tolist() == [4, 5] and faces.images[0][:, 0, 0, 0].tolist() == [7, 8]


def test_preparing_leaves_the_part_as_it_was(tmp_path):
    gender_set(tmp_path)
    (tmp_path / "cvpr2016/gender/train/female/0.jpg").write_bytes(b"")
    (part,) = read(tmp_path, "cvpr2016", tasks=["gender"])
    before = copy.deepcopy(part)
    first, second = (datasets.prepare(part, 16, tmp_path / ".cache") for _ in range(2))
    assert (part.faces, part.dropped, part.remarks) == (before.faces, before.dropped, before.remarks)
    assert first["image"].tolist() == second["image"].tolist() and dropped(first) == dropped(second)


# decodes, and waits before the picture 39.jpg until as many processes as `count` decode
DECODE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import datasets
original, root, count = datasets.open_picture, Path(sys.argv[2]), int(sys.argv[3])
def slow(file, side):
    while file.name == "39.jpg" and len(list((root / ".cache").iterdir())) < count:
        time.sleep(0.01)
    return original(file, side)
datasets.open_picture = slow
parts, _ = datasets.read(root, ["cvpr2016"], "train", ["gender"])
faces = datasets.load(parts, ["gender"], 16, root / ".cache")
print(len(faces), faces.images[0].any((1, 2, 3)).all(), int(faces.images[0].sum()))
"""


def decoding(root, count):
    return subprocess.Popen([sys.executable, "-c", DECODE, ROOT, root, str(count)], text=True,
                            stdout=subprocess.PIPE)


def test_two_processes_that_decode_at_once_both_end_well(tmp_path):
    gender_set(tmp_path, 40)
    both = [decoding(tmp_path, 2) for _ in range(2)]
    first, second = (process.communicate(timeout=100)[0] for process in both)
    assert first == second and first.startswith("40 True ") and [each.returncode for each in both] == [0, 0]
    names, others = built(tmp_path)
    assert len(names) == 1 and not others


def test_killed_while_decoding_leaves_nothing_that_is_used(tmp_path):
    gender_set(tmp_path, 40)
    process = decoding(tmp_path, 2)                         # waits for another, which never comes
    while not list(tmp_path.glob(".cache/.*/images.npy")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not built(tmp_path)[0]
    faces = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert len(faces) == 40 and faces.images[0].any((1, 2, 3)).all()


def test_a_cache_that_cannot_be_written_or_is_damaged_is_named(tmp_path):
    gender_set(tmp_path)
    write(tmp_path / "file", "")
    report = ("datasets.py", "--data", ".", "--image-size", 16)
    done = run(*report, "--cache", "file/cache", cwd=tmp_path, status=2)
    assert "file/cache" in done.stderr or "'file'" in done.stderr
    run(*report, cwd=tmp_path)
    for name in ("images.npy", "states.npy"):
        (file,) = tmp_path.glob(f".cache/*/{name}")
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        error = run(*report, cwd=tmp_path, status=2).stderr
        assert f"{file.parent.name}: damaged (" in error and "delete it" in error
        file.write_bytes(whole)
    run(*report, cwd=tmp_path)


def test_a_full_disk_while_decoding_leaves_nothing_half(tmp_path):
    resource = pytest.importorskip("resource")
    gender_set(tmp_path, 40)
    report = ("datasets.py", "--data", ".", "--image-size", 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))       # a write beyond fails
    try:
        done = run(*report, cwd=tmp_path, status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in done.stderr and built(tmp_path) == ([], [])
    run(*report, cwd=tmp_path)


def test_a_file_is_whole_or_left_as_it_was_and_a_link_leads_where_it_led(tmp_path):
    file, link = write(tmp_path / "a.csv", "old"), tmp_path / "link.csv"
    link.symlink_to(file)
    with pytest.raises(KeyboardInterrupt), datasets.whole_file(link) as output:
        output.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    with pytest.raises(DataError, match="gone/a.csv: can't be written"), \
            datasets.whole_file(tmp_path / "gone/a.csv"):
        pass
    with datasets.whole_file(link) as output:
        output.write(b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "link.csv"}
    assert file.read_text() == "new" and link.is_symlink()


# ---- copies

def test_copies_are_found_by_their_bytes_and_counted(tmp_path):
    gender_set(tmp_path)
    folder = tmp_path / "cvpr2016/gender"
    (folder / "valid/male").mkdir(parents=True)
    shutil.copy(folder / "train/female/2.jpg", folder / "valid/male/x.jpg")     # whatever its name and class
    shutil.copy(folder / "train/female/2.jpg", folder / "train/female/y.jpg")
    picture(folder / "valid/male/z.jpg", 99)
    fer_csv(tmp_path, fer_row(3, 7), fer_row(3, 8), fer_row(5, 8, "PublicTest"))
    for dataset, copies, left in (
            ("cvpr2016", {"gender/train/female/2.jpg", "gender/train/female/y.jpg"}, 5),
            ("fer2013", {"1"}, 1)):
        (train,), (valid,) = (read(tmp_path, dataset, subset) for subset in ("train", "valid"))
        taken = set(datasets.digests(valid).values())
        assert {file for file, digest in datasets.digests(train).items() if digest in taken} == copies
        kept = datasets.drop_copies(train, [valid])
        assert kept.dropped == {"picture of valid or test": sorted(copies)} and not train.dropped
        assert len(datasets.prepare(kept, 16, tmp_path / ".cache")) == left
        assert datasets.drop_copies(train, []).faces == train.faces
    text = run("datasets.py", "--data", ".", "--image-size", 16, cwd=tmp_path).stdout
    valid = text[text.index("cvpr2016 gender valid: "):]
    assert "pictures: 0 repeat another one, 1 are in train too" in valid
    assert "pictures: 1 repeat another one, 2 are in valid too" in text


# ---- batches

def made(count, dataset="made", **labels):
    """A table of faces with black images."""
    source = datasets.Source("made", dataset, datasets.TASKS, None)
    rows = [dict(zip(labels, values)) for values in zip(*labels.values())] or [{}] * count
    part = datasets.Part(source, "train", Path(), [Face(str(i), **row) for i, row in enumerate(rows)])
    faces = datasets.Faces.of(part)
    faces.images.append(np.zeros((count, 4, 4, 3), np.uint8))
    return faces


def shown(faces, *batches):
    """What the batches show of each part: rows, numbered within the part."""
    rows = np.concatenate([batch.rows for batch in batches])
    return [faces["image"][rows[faces["part"][rows] == number]] for number in range(len(faces.parts))]


def test_batches_are_balanced_even_and_the_same_for_any_number_of_processes():
    faces = datasets.join([made(30, age=range(30)), made(7, gender=[0, 1] * 3 + [0]),
                           made(5, gender=[1, -1, -1, -1, 0])])
    alone = list(datasets.batches(faces, 45, 16, 3, (1, 2)))
    assert sum(len(batch.rows) for batch in alone) == 90
    for batch in alone:
        ages, genders, more = map(len, shown(faces, batch))
        assert abs(ages - genders - more) <= 1
        labels = faces.labels(batch.rows, CPU)
        assert batch.total == len(batch.draws) == len(labels["age"]) == len(batch.rows)
        assert batch.draws.shape[1] == 3 and 0 <= batch.draws.min() and batch.draws.max() < 1
    ages, _, more = shown(faces, *alone)
    assert set(np.bincount(ages, minlength=30)) == {1, 2}
    assert set(more) == {0, 4}                              # rows without a label are not drawn
    ranks = [list(datasets.batches(faces, 45, 16, 3, (1, 2), rank, 3)) for rank in range(3)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert all(part.total == batch.total for part in parts)
        assert (batch.rows == np.concatenate([part.rows for part in parts])).all()
        assert torch.equal(batch.draws, torch.cat([part.draws for part in parts]))
    again = list(datasets.batches(faces, 45, 16, 3, (1, 3)))
    assert any(shown(faces, a)[0].tolist() != shown(faces, b)[0].tolist() for a, b in zip(alone, again))


def test_sets_that_share_a_task_are_drawn_together_and_take_turns_however_large():
    age, gender = made(10, age=range(10)), made(20, gender=[0, 1] * 10)
    emotion = made(9, emotion=[1] * 9)
    large = made(1000, "elsewhere", age=[5] * 1000, gender=[0, -1] * 500)
    assert datasets.pools(large) == {(0,): 1000}
    assert datasets.pools(datasets.join([age, gender, emotion])) == {(0,): 10, (1,): 20, (2,): 9}
    faces = datasets.join([age, gender, emotion, large])
    assert datasets.pools(faces) == {(0, 1, 3): 1030, (2,): 9}
    assert datasets.pools(faces, 80) == {(0, 1, 3): 80, (2,): 80}
    count = datasets.EPOCH_IMAGES + 1
    assert datasets.pools(made(count, age=[5] * count)) == {(0,): datasets.EPOCH_IMAGES}
    steps = list(datasets.batches(faces, 120, 60, 0, (0, 1)))
    rows = shown(faces, *steps)
    assert [len(each) for each in rows] == [20, 40, 120, 60]
    assert set(np.bincount(rows[0])) == set(np.bincount(rows[1])) == {2}
    for batch in steps:
        ages, genders, emotions, elsewhere = map(len, shown(faces, batch))
        assert ages + genders == elsewhere == 15 and emotions == 30


def test_an_epoch_shows_each_image_once_unless_set_otherwise_and_every_step_has_its_part():
    faces = datasets.join([made(300, age=[5] * 300), made(60, emotion=[1] * 60)])
    steps = list(datasets.batches(faces, None, 36, 0, (0, 1)))
    assert len(steps) == 10
    for batch in steps:
        assert [len(rows) for rows in shown(faces, batch)] == [30, 6]
    for rows, count in zip(shown(faces, *steps), (300, 60)):
        assert sorted(rows) == list(range(count))


# ---- the report, and what the scripts share

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
    fairface(tmp_path / "data", [(name, "20-29", "Male", "Black") for name in fair_names("train", 2)])
    done = run("datasets.py", cwd=tmp_path, status=2)
    assert "the age set's test part is not there" in done.stdout
    for part in ("cvpr2016 age train: 1", "fer2013 train: 1", "fairface train: 2"):
        assert f"{part} rows found, {part[-1]} used" in done.stdout
    assert "group: Black 2" in done.stdout and "women: unknown class folder" in done.stderr


def test_no_data_root_and_a_sample_that_is_not_drawn(tmp_path, monkeypatch):
    assert "no data root" in run("datasets.py", "--data", "nowhere", cwd=tmp_path, status=2).stderr
    (tmp_path / "empty").mkdir()
    done = run("datasets.py", "--data", "empty", cwd=tmp_path, status=2)
    assert "none of imdb-wiki, cvpr2016, fer2013" in done.stderr
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no data root data/sample/"):       # it is drawn where asked for by name
        datasets.folders(argparse.Namespace(data="data/sample", cache=None))
    (tmp_path / "data/sample").mkdir(parents=True)          # somebody's own faces are not taken for drawn ones
    root, cache = datasets.folders(argparse.Namespace(data="sample", cache=None))
    assert not datasets.is_drawn(root) and not list(root.iterdir()) and cache == root / ".cache"


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinities here")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        assert datasets.cores() == 1
    finally:
        os.sched_setaffinity(0, usable)
    assert datasets.cores() == len(usable)


def ended(main, monkeypatch, *options):
    """The exit status of script(main)."""
    monkeypatch.setattr(sys, "argv", ["/x/some.py", *options])
    try:
        with pytest.raises(SystemExit) as end:
            datasets.script(main)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return end.value.code


@pytest.mark.parametrize("error, status, expected", [
    (DataError("a.csv line 3:\nno age"), 2, "some.py: error: a.csv line 3: no age\n"),
    (OSError(28, "No space left on device", "a\nb"), 2, "some.py: error: [Errno 28] No space left on device"),
    (RuntimeError("of torch\n\nmore"), 2, "some.py: error: RuntimeError: of torch more\n"),
    (KeyboardInterrupt(), 130, "")])
def test_any_error_becomes_one_line_and_debug_shows_where_it_came_from(error, status, expected, monkeypatch,
                                                                       capsys):
    main = Mock(side_effect=error)
    assert ended(main, monkeypatch) == status
    text = capsys.readouterr().err
    assert text.startswith(expected) and text.count("\n") == bool(expected)
    if status == 2:
        with pytest.raises(type(error)):                    # which Python shows with its traceback
            monkeypatch.setattr(sys, "argv", ["some.py", "--debug"])
            datasets.script(main)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_sigterm_ends_a_script_as_ctrl_c_does(monkeypatch):
    done = []

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            done.append("written")
    assert ended(main, monkeypatch) == 143 and done == ["written"]
