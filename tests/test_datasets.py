"""Readers, images, the cache, copies, batches, the report, and what the scripts share."""
import copy
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from scipy.io import savemat

import datasets
from conftest import ROOT, picture, run
from datasets import DataError, Face, Missing

CPU = torch.device("cpu")


def read(root, dataset, subset="train", tasks=datasets.TASKS):
    return datasets.read(root, [dataset], subset, tasks)[0]


def load(root, dataset, subset="train", tasks=datasets.TASKS, size=16):
    return datasets.load(read(root, dataset, subset, tasks), size, root / ".cache")


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


FER, AGES = "emotion,pixels,Usage\n", "image,mean,stdv\n"
RANGES = "file,age,gender,race,service_test\n"
REPORT = ("datasets.py", "--data", ".", "--image-size", 64)


# ---- layouts: the files of a data set, and the faces of a part

@pytest.mark.parametrize("dataset, subset, pictures, texts, expected", [
    ("fer2013", "valid", [], {"fer2013.csv": FER + row() + "".join(row(i, 9, "PublicTest") for i in (6, 1))},
     [Face("0", emotion=6), Face("1", emotion=1)]),
    ("fer2013", "train", [], {"icml_face_data.csv": "emotion, Usage, pixels, more\n"
                              + ",".join(np.array(row(0).strip().split(","))[[0, 2, 1]]) + ",x\n"},
     [Face("0", emotion=0)]),
    *(("fer2013", subset, ["train/happy/a.jpg", "test/sad/PublicTest_1.png", "test/angry/PrivateTest_1.png"],
       {}, [face]) for subset, face in (("train", Face("train/happy/a.jpg", emotion=3)),
                                        ("valid", Face("test/sad/PublicTest_1.png", emotion=4)),
                                        ("test", Face("test/angry/PrivateTest_1.png", emotion=0)))),
    ("cvpr2016", "train", ["age/train/x.jpg", "age/train/y.jpg"], {
        "age/train_gt.csv": AGES + "x.jpg,31.5,4.25\ntrain/y.jpg,3,1\n"},
     [Face("age/train/x.jpg", 31.5, 4.25), Face("age/train/y.jpg", 3, 1.0)]),
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
        "./train/11.jpg,0-2,Male,Indian,True\n",
        "fairface_label_val.csv": RANGES + "val\\1.jpg,Oct-19,Female,White,False\n"}, faces)
      for subset, faces in (
        ("train", [Face("train/1.jpg", 24.5, 10 / math.sqrt(12), 20, 30, 1, group="Black"),
                   Face("train/2.jpg", 75, 5, 70, math.inf, 0, group="White"),
                   Face("train/3.jpg", 6, 7 / math.sqrt(12), 3, 10, 1, group="White")]),
        ("valid", [Face("./train/11.jpg", 1, 3 / math.sqrt(12), 0, 3, 1, group="Indian")]),
        ("test", [Face("val/1.jpg", 14.5, 10 / math.sqrt(12), 10, 20, 0, group="White")]))),
], ids=lambda value: value if isinstance(value, str) else "")
def test_each_layout_gives_its_faces(dataset, subset, pictures, texts, expected, tmp_path):
    make(tmp_path / dataset, *pictures, **texts)
    (part,) = read(tmp_path, dataset, subset)
    faces = [face._replace(age=float(face.age), pixels="") for face in part.faces]
    assert str(faces) == str([face._replace(age=float(face.age)) for face in expected])     # NaN is not NaN
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
    ("cvpr2016", ["age/train/31/x.jpg"], "valid", "cvpr2016 age's valid part is not there; expected age/valid_gt.csv"),
    ("utkface", ["21_1_1_20170101.jpg"], "valid", "valid part is not there"),
    # neither part of test/ in its place
    ("fer2013", ["Training/happy/a.jpg", "test/sad/PublicTest_1.png", "test/sad/PrivateTest_1.png"], "train",
     "fer2013's train part is not there"),
    ("fairface", ["train/1.jpg"], "test", "fairface's test part is not there; .*fairface_label_val.csv"),
    ("imdb-wiki", [], "train", "imdb-wiki's train part is not there; expected imdb_crop/imdb.mat")])
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
    folder, dataset = make(tmp_path / folder, **{f"{stem}.txt": "BMW, no picture"}), source.split()[0]
    endings = [".png", ".BMP", "", ".jpg_large", ".jpg.1", ".jfif", ".caf\udce9.jpg"]      # not UTF-8
    for i, ending in enumerate(endings):
        picture(tmp_path / "x.png", i).rename(folder / f"{stem}{ending}")
    for system in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        shutil.copytree(folder, folder.parent / system / folder.name)
    faces = load(tmp_path, dataset)
    assert sorted(Path(name).name for name in faces["file"]) == sorted(stem + ending for ending in endings)
    (other,) = faces.parts[0].dropped["not a picture"]
    assert other.endswith(f"{stem}.txt") and len(faces.parts[0].dropped) == 1
    report = run(*REPORT, cwd=tmp_path).stdout
    assert f"{source} train: 8 rows found, 7 used" in report
    if unknown:
        (folder.parent / unknown).mkdir()
        with pytest.raises(DataError, match=f"{unknown}: unknown class folder; expected "):
            load(tmp_path, dataset)


def test_odd_names_of_utkface_are_read_and_the_same_name_twice_is_one_face(tmp_path):
    names = {"61_1_20170109142408075.jpg.chip.jpg": "", "24_0_1_20170116220224657 .jpg.chip.jpg": "",
             "55_0_0_20170116232725357jpg.chip.jpg": "", "101_0_0_20170112213500903.jpg": "age above 100",
             "portrait.jpg": "file without age and gender in its name",
             "26_3_0_20170104.jpg": "file without age and gender in its name",
             "UTKFace/21_1_1_20170101.jpg": "same name in another folder", "21_1_1_20170101.jpg": ""}
    make(tmp_path, *names)
    faces = [face for subset in datasets.SUBSETS for face in datasets.read_utkface(tmp_path, subset)]
    assert {face.file: face.dropped for face in faces} == names


# ---- IMDB-WIKI

def write_mat(root, crop, rows, padded=False):
    """rows: dicts of file and, where they differ from a sound row: taken, gender, name, score or second."""
    def column(key, fallback, dtype=float):
        values = [row.get(key, fallback) for row in rows]
        return np.char.ljust(values, 40) if padded and dtype is object else np.array([values], dtype)
    folder = make(root / f"imdb-wiki/{crop}_crop", **{f"{crop}.mat": ""})
    born = np.datetime64("1960-01-15").astype(int) + 719529
    savemat(folder / f"{crop}.mat", {crop: {
        "dob": column("born", born, np.int32), "photo_taken": column("taken", 1990),
        "full_path": column("file", "", object), "name": column("name", "", object),
        "gender": column("gender", 1.0), "face_score": column("score", 3.0),
        "second_face_score": column("second", np.nan)}})
    return folder


def subset_of(person):
    """Of twenty parts of the names one is valid, one test."""
    return datasets.subset_by_hash(person, 20, {18: "valid", 19: "test"})


def test_imdb_wiki_cleaning_counts_each_reason(tmp_path):
    flaws = [{}, {"gender": np.nan}, {"score": -np.inf}, {"second": 2.0}, {"taken": 1950}, {"taken": 2070},
             {"file": "gone.jpg"}, {"file": "cut.jpg"}]
    rows = [{"file": f"{i:02}.jpg", "name": "The Same Person"} | flaw for i, flaw in enumerate(flaws)]
    folder = make(write_mat(tmp_path, "imdb", rows), *(row["file"] for row in rows))
    (folder / "gone.jpg").unlink()
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:300])
    faces = load(tmp_path, "imdb-wiki", subset_of("the same person"))
    assert list(zip(faces["file"], faces["age"], faces["gender"])) == [
        ("imdb_crop/00.jpg", 30, 1), ("imdb_crop/01.jpg", 30, -1)]
    reasons = dict(zip(("no face", "second face", "age below 0", "age above 100", "missing file",
                        "undecodable file"), ("02", "03", "04", "05", "gone", "cut")))
    assert [line.partition(": ")[2] for line in datasets.left_out(faces)] == [
        f"dropped, {reason}: 1 (imdb_crop/{name}.jpg)" for reason, name in reasons.items()]


def test_age_is_counted_in_whole_years_on_1_july():
    days = [np.datetime64(born).astype(int) + 719529
            for born in ("1960-01-01", "1960-07-01", "1960-07-02", "1960-12-31")]
    ages = [datasets.completed_years(born, 1990) for born in (*days, np.nan, 1e300)]
    np.testing.assert_equal(ages, [30, 30, 29, 29, np.nan, np.nan])


@pytest.mark.parametrize("padded", [False, True])
def test_imdb_wiki_nobody_is_in_two_parts(tmp_path, padded):
    for crop in ("imdb", "wiki"):
        rows = [{"file": f"{i:03}.jpg", "name": f"Person {i % 60}"} for i in range(120)]
        make(write_mat(tmp_path, crop, rows, padded), *(row["file"] for row in rows))
    persons = {subset: {int(file[-7:-4]) % 60 for file in load(tmp_path, "imdb-wiki", subset)["file"]}
               for subset in datasets.SUBSETS}
    assert sum(map(len, persons.values())) == 60 == len(set.union(*persons.values()))
    assert persons["valid"] == {i for i in range(60) if subset_of(f"person {i}") == "valid"} != set()


def test_a_crop_that_lost_all_its_images_is_reported_and_trained_without(tmp_path):
    rows = [dict(file=f"00/{i}.jpg", name="Ann") for i in range(3)]
    write_mat(tmp_path, "imdb", rows)
    make(write_mat(tmp_path, "wiki", rows), *(row["file"] for row in rows))
    faces = load(tmp_path, "imdb-wiki", subset_of("ann"), ["age", "gender"])
    assert [list(part.dropped) for part in faces.parts] == [["missing file"]] and len(faces) == 3
    assert datasets.describe(faces, "imdb-wiki")[0] == "imdb-wiki: 6 rows found, 3 used, 3 dropped"
    (batch,) = datasets.batches(faces, None, 8, 0, (0, 1))
    assert sorted(batch.rows) == [0, 1, 2] and faces.gather(batch.rows, CPU).shape == (3, 16, 16, 3)


# ---- images

RED = Image.new("RGB", (40, 30), (250, 10, 10))
CLEAR = Image.merge("RGBA", [*RED.split(), Image.new("L", RED.size)])


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
    *((f"{value.dtype} {value}.tif", Image.fromarray(np.full((30, 40), value)), (100, 100, 100))
      for value in (np.uint16(100 * 2**8), np.int32(100), np.int32(100 * 2**8), np.int32(100 * 2**16),
                    np.float32(100), np.float32(100 / 255))),
], ids=lambda value: value if isinstance(value, str) else "")
def test_every_kind_of_picture_has_its_colors(tmp_path, name, image, expected):
    file = tmp_path / name
    file.write_bytes(image) if isinstance(image, bytes) else image.save(file)
    crop = datasets.center_crop(datasets.open_picture(file, 16), 16)
    assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8
    assert np.abs(crop.astype(int) - expected).max() < 12


def test_a_picture_is_upright_and_its_middle_square_taken(tmp_path):
    image, exif = Image.new("RGB", (90, 30)), Image.Exif()
    image.paste((255, 255, 255), (30, 0, 60, 30))
    image.paste((255, 0, 0), (30, 0, 60, 15))
    exif[0x0112] = 3                                        # upside down
    image.save(tmp_path / "a.png", exif=exif)
    crop = datasets.center_crop(datasets.open_picture(tmp_path / "a.png"), 16)
    assert (crop[:6, 2:-2] > 250).all() and (crop[-6:, 2:-2, 1] < 5).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_read_and_one_that_lacks_more_refused(tmp_path, progressive):
    file = tmp_path / "a.jpg"
    Image.open(picture(tmp_path / "a.png", 0, (120, 120))).save(file, progressive=progressive)
    content, intact = file.read_bytes(), datasets.open_picture(file)
    file.write_bytes(content[:-2])
    assert datasets.open_picture(file) == intact
    for length in (len(content) * 6 // 10, len(content) - 20):
        file.write_bytes(content[:length])
        with pytest.raises(OSError, match="truncated"):
            datasets.open_picture(file)


def test_a_png_of_a_long_text_and_a_broken_profile_is_read(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    RED.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    odd = chunk(b"iCCP", b"x\0\0broken") + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000))
    (tmp_path / "a.png").write_bytes(content[:33] + odd + content[33:])     # after the header
    assert (np.asarray(datasets.open_picture(tmp_path / "a.png")) == np.asarray(RED)).all()


def test_what_is_huge_or_no_picture_is_refused(tmp_path):
    Image.new("1", (30000, 9000)).save(tmp_path / "huge.png")
    Image.new("L", (20, 20)).save(tmp_path / "a.jpg", "EPS")        # a program in PostScript
    for name, error, expected in (("huge.png", Image.DecompressionBombError, "270000000 pixels"),
                                  ("a.jpg", UnidentifiedImageError, "cannot identify"),
                                  ("", ValueError, "not a file"), ("gone.jpg", OSError, "No such file")):
        with pytest.raises(error, match=expected):
            datasets.open_picture(tmp_path / name, 16)
    picture(tmp_path / "large.jpg", 0, (400, 400))
    assert datasets.open_picture(tmp_path / "large.jpg", 16).size == (50, 50)       # decoded at a fraction


def test_broken_images_are_named_and_left_out(tmp_path):
    folder = gender_set(tmp_path) / "cvpr2016/gender/train/female"
    # of the BigTIFF Pillow seeks a senseless place, of which the disk complains
    make(folder, **{"0.jpg": "", "2.jpg": "II+\0\b\0\0\0" + 7 * "\0" + "\x40" + 50 * "\0"})
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    damaged = picture(folder / "3.png", size=(200, 200))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:9000] + bytes(64) + content[9064:])
    (part,) = read(tmp_path, "cvpr2016", tasks=["gender"])
    before = copy.deepcopy(part)
    for _ in range(2):
        faces = datasets.prepare(part, 16, tmp_path / ".cache")
        counts = {reason: len(names) for reason, names in faces.parts[0].dropped.items()}
        assert len(faces) == 4 and counts == {"undecodable file": 3, "missing file": 1}
        for file, image in zip(faces["file"], faces.gather(np.arange(4), CPU).numpy()):
            opened = datasets.open_picture(tmp_path / "cvpr2016" / file)
            assert (image == datasets.center_crop(opened, 16)).all()       # each face has its own image
        assert (part.faces, part.dropped, part.remarks) == (before.faces, before.dropped, before.remarks)
    make(folder.parent, **{f"{('female', 'male')[i % 2]}/{i}.jpg": "" for i in range(6)})
    with pytest.raises(DataError, match="no usable face.*undecodable file: 7"):
        load(tmp_path, "cvpr2016")


# ---- the cache

def built(root):
    """The names of the whole folders of a data root's cache, and of the others."""
    names = sorted(path.name for path in (root / ".cache").iterdir())
    return [[name for name in names if name.startswith(".") == hidden] for hidden in (False, True)]


def test_second_load_opens_no_image_and_a_changed_one_is_decoded_anew(tmp_path, monkeypatch):
    gender_set(tmp_path)
    opened, original = [], datasets.open_picture
    before = np.array(load(tmp_path, "cvpr2016", tasks=["gender"]).images[0])
    monkeypatch.setattr(datasets, "open_picture",
                        lambda file, *rest: opened.append(file.name) or original(file, *rest))
    assert (load(tmp_path, "cvpr2016", tasks=["gender"]).images[0] == before).all() and not opened
    load(tmp_path, "cvpr2016", tasks=["gender"], size=20)           # has a folder of its own
    picture(tmp_path / "cvpr2016/gender/train/female/0.jpg", 99)
    changed = load(tmp_path, "cvpr2016", tasks=["gender"]).images[0]
    assert len(opened) == 6 + 6 and (changed[0] != before[0]).any() and (changed[1:] == before[1:]).all()
    assert len(built(tmp_path)[0]) == 3
    for rows in ([row(3)], [row(4), row(4, 8)]):                    # a table that changed is read anew
        make(tmp_path / "fer2013", **{"fer2013.csv": FER + "".join(rows)})
        faces = load(tmp_path, "fer2013")
        assert len(faces) == len(faces.images[0]) == len(rows) and faces["emotion"][0] == 2 + len(rows)


# decodes, but the picture 39.jpg only when `count` folders are in the cache
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
faces = datasets.load(parts, 16, root / ".cache")
print(len(faces), faces.images[0].any((1, 2, 3)).all(), int(faces.images[0].sum()))
"""


def test_killed_while_decoding_leaves_nothing_that_is_used_and_two_processes_may_decode_at_once(tmp_path):
    def decoding(count):
        return subprocess.Popen([sys.executable, "-c", DECODE, ROOT, tmp_path, str(count)], text=True,
                                stdout=subprocess.PIPE)
    gender_set(tmp_path, 40)
    process = decoding(2)                       # waits for another one, which never comes
    while not list(tmp_path.glob(".cache/.*/*/images.npy")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert not built(tmp_path)[0]
    both = [decoding(3) for _ in range(2)]      # each waits for the other one; the killed one left a folder
    first, second = (process.communicate(timeout=100)[0] for process in both)
    assert first == second and first.startswith("40 True ") and [each.returncode for each in both] == [0, 0]
    assert list(map(len, built(tmp_path))) == [1, 1]


def test_what_is_no_fault_of_an_image_is_an_error_in_one_line_and_not_remembered(tmp_path, monkeypatch):
    gender_set(tmp_path, 40)
    for error in (PermissionError(13, "Permission denied", "0.jpg"), OSError(24, "Too many open files")):
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "open_picture", Mock(side_effect=error))
            assert error.strerror in run(*REPORT, cwd=tmp_path, status=2).stderr
        assert built(tmp_path) == [[], []]
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))       # a write beyond fails, as on a full disk
    try:
        assert "File too large" in run(*REPORT, cwd=tmp_path, status=2).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert built(tmp_path) == [[], []]
    make(tmp_path, file="")
    assert "file" in run(*REPORT, "--cache", "file/cache", cwd=tmp_path, status=2).stderr
    assert "40 used, 0 dropped" in run(*REPORT, cwd=tmp_path).stdout
    for name in ("images.npy", "states.npy"):
        (file,) = tmp_path.glob(f".cache/*/{name}")
        sound = file.read_bytes()
        file.write_bytes(sound[:-1])
        error = run(*REPORT, cwd=tmp_path, status=2).stderr
        assert f"{file.parent.name}: damaged (" in error and "delete it" in error
        file.write_bytes(sound)


def test_a_file_is_whole_or_left_as_it_was_and_a_link_leads_where_it_led(tmp_path):
    file, link = make(tmp_path, **{"a.csv": "old"}) / "a.csv", tmp_path / "link.csv"
    link.symlink_to(file)
    with pytest.raises(KeyboardInterrupt), datasets.whole_file(link) as output:
        output.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    with pytest.raises(DataError, match="gone/a.csv: can't be written"):
        datasets.write_csv(tmp_path / "gone/a.csv", ["image"], [])
    with datasets.whole_file(link) as output:
        output.write(b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "link.csv"}
    assert file.read_text() == "new" and link.is_symlink()


# ---- copies

def test_copies_are_found_by_their_bytes_and_counted(tmp_path):
    folder = make(gender_set(tmp_path) / "cvpr2016/gender", *(f"valid/male/{i}.png" for i in range(2)))
    for name in ("valid/male/x.jpg", "train/female/y.jpg"):         # whatever its name and class
        shutil.copy(folder / "train/female/2.jpg", folder / name)
    make(tmp_path / "fer2013", **{"fer2013.csv": FER + row(3, 7) + row(3, 8) + row(5, 8, "PublicTest")})
    copied = ["gender/train/female/2.jpg", "gender/train/female/y.jpg"]
    for dataset, copies, left in (("cvpr2016", copied, 5), ("fer2013", ["1"], 1)):
        (train,), (valid,) = (read(tmp_path, dataset, subset) for subset in ("train", "valid"))
        taken = set(datasets.digests(valid).values())
        assert sorted(file for file, digest in datasets.digests(train).items() if digest in taken) == copies
        kept = datasets.load([train], 16, tmp_path / ".cache", others=[valid])
        assert kept.parts[0].dropped == {"picture of valid or test": copies} and not train.dropped
        assert len(kept) == left
        assert len(datasets.load([train], 16, tmp_path / ".cache")) == left + len(copies)
    assert len(list((tmp_path / ".cache").iterdir())) == 2          # one of each part, with its copies
    text = run(*REPORT, cwd=tmp_path).stdout
    assert "pictures: 0 repeat another one, 1 are in train too" in text[text.index("gender valid: "):]
    assert "pictures: 1 repeat another one, 2 are in valid too" in text


# ---- batches

def made(count, dataset="made", **labels):
    """A table of faces with black images."""
    rows = [Face(str(i), **dict(zip(labels, values))) for i, values in enumerate(zip(*labels.values()))]
    source = datasets.Source("made", dataset, datasets.TASKS, None, "")
    faces = datasets.Faces.of(datasets.Part(source, "train", Path(), rows))
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
        assert batch.total == len(batch.rows) == len(faces.labels(batch.rows, CPU)["age"])
        assert batch.draws.shape == (len(batch.rows), 3) and 0 <= batch.draws.min() <= batch.draws.max() < 1
    ages, _, more = shown(faces, *alone)
    assert set(np.bincount(ages)) == {1, 2} and set(more) == {0, 4}     # none without a label
    ranks = [list(datasets.batches(faces, 45, 16, 3, (1, 2), rank, 3)) for rank in range(3)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert all(part.total == batch.total for part in parts)
        assert (batch.rows == np.concatenate([part.rows for part in parts])).all()
        assert torch.equal(batch.draws, torch.cat([part.draws for part in parts]))
    again = list(datasets.batches(faces, 45, 16, 3, (1, 3)))
    assert any(shown(faces, a)[0].tolist() != shown(faces, b)[0].tolist() for a, b in zip(alone, again))


def test_sets_that_share_a_task_are_drawn_together_and_take_turns_however_large():
    age, gender, emotion = made(10, age=range(10)), made(20, gender=[0, 1] * 10), made(9, emotion=[1] * 9)
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


def test_an_epoch_shows_each_image_once_and_every_step_has_its_part():
    faces = datasets.join([made(300, age=[5] * 300), made(60, emotion=[1] * 60)])
    steps = list(datasets.batches(faces, None, 36, 0, (0, 1)))
    assert [list(map(len, shown(faces, batch))) for batch in steps] == [[30, 6]] * 10
    assert [sorted(rows) for rows in shown(faces, *steps)] == [list(range(300)), list(range(60))]


# ---- the report, and what the scripts share

def test_report_on_the_sample(work):
    text = run("datasets.py", "--data", "sample", cwd=work).stdout
    assert "cvpr2016 age train: 400 rows found, 400 used, 0 dropped" in text and "happy" in text
    assert "imdb-wiki: 600 rows found, 588 used, 12 dropped" in text and "fer2013 valid: 140 rows" in text


def test_report_goes_on_after_what_is_wrong_or_has_no_labels(tmp_path):
    make(tmp_path / "data", "cvpr2016/age/train/30/a.jpg", "cvpr2016/age/test/a.jpg", "fairface/train/1.jpg",
         "cvpr2016/gender/train/women/a.jpg", "fer2013/train/happy/a.jpg",
         **{"fairface/fairface_label_train.csv": RANGES + "train/1.jpg,20-29,Male,Black,True\n"})
    done = run("datasets.py", cwd=tmp_path, status=2)
    for text in ("cvpr2016 age's test part is not there", "cvpr2016 age train: 1 rows found, 1 used",
                 "fer2013 train: 1 rows", "fairface train: 1 rows", "group: Black 1"):
        assert text in done.stdout
    assert "women: unknown class folder" in done.stderr


def test_no_data_root_and_a_sample_that_is_not_drawn(tmp_path, monkeypatch):
    assert "no data root data/; the README" in run("datasets.py", cwd=tmp_path, status=2).stderr
    assert "none of imdb-wiki, cvpr2016, fer2013" in run(*REPORT, cwd=tmp_path, status=2).stderr
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no data root data/sample/"):       # `sample` alone is drawn
        datasets.folders("data/sample", None)
    (tmp_path / "data/sample").mkdir(parents=True)          # somebody's faces are not taken for drawn ones
    root, cache = datasets.folders("sample", None)
    assert cache == root / ".cache" and not datasets.is_drawn(root) and not list(root.iterdir())


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)        # those of the host
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 7}, raising=False)
    assert datasets.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")            # not every system has it
    assert datasets.cores() == 64


def ends(main, monkeypatch, *options):
    """What script(main) raises at its end."""
    monkeypatch.setattr(sys, "argv", ["/x/some.py", *options])
    with pytest.raises(BaseException) as end:
        datasets.script(main)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return end.value


@pytest.mark.parametrize("error, status, expected", [
    (DataError("a.csv line 3:\nno age"), 2, "some.py: error: a.csv line 3: no age\n"),
    (OSError(28, "No space left", "a\nb"), 2, "some.py: error: [Errno 28] No space left: "),
    (RuntimeError("of torch\n\nmore"), 2, "some.py: error: RuntimeError: of torch more\n"),
    (KeyboardInterrupt(), 130, ""), (lambda: signal.raise_signal(signal.SIGTERM), 143, "")])
def test_an_error_becomes_one_line_or_with_debug_a_traceback(error, status, expected, monkeypatch, capsys):
    assert ends(Mock(side_effect=error), monkeypatch).code == status
    text = capsys.readouterr().err
    assert text.startswith(expected) and text.count("\n") == bool(expected)
    if status == 2:                                         # Python shows it with its traceback
        assert ends(Mock(side_effect=error), monkeypatch, "--debug") is error
