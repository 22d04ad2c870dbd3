"""Readers, decoding and its cache, batches."""
import math
import multiprocessing
import os
import resource
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
from conftest import ROOT, picture, run
from datasets import DataError, Missing


def fer_csv(root, rows, name="fer2013.csv", header="emotion,pixels,Usage"):
    (root / "fer2013").mkdir(parents=True, exist_ok=True)
    (root / "fer2013" / name).write_text("\n".join([header, *rows]) + "\n")


def fer_row(emotion=3, value=7, usage="Training", pixels=48 * 48):
    return f"{emotion},{' '.join([str(value)] * pixels)},{usage}"


def load(root, split, subset="train", tasks=datasets.TASKS, size=16):
    return datasets.load(root, split, subset, tasks, size, root / ".cache")


# ---- FER2013

def test_fer2013_csv(tmp_path):
    fer_csv(tmp_path, [fer_row(3, 7), fer_row(6, 250, "PublicTest"), fer_row(0, 0), fer_row(1, 9, "PrivateTest")])
    (train,), (valid,), (test,) = (load(tmp_path, "fer2013", subset) for subset in datasets.SUBSETS)
    assert train.emotion.tolist() == [3, 0] and valid.emotion.tolist() == [6] and test.emotion.tolist() == [1]
    assert train.pixels.shape == (2, 48, 48, 1) and train.pixels.dtype == np.uint8
    assert (train.pixels[0] == 7).all() and (train.pixels[1] == 0).all() and (valid.pixels == 250).all()
    assert train.files.tolist() == ["0", "1"]


def test_fer2013_challenge_release_with_spaces_in_its_header(tmp_path):
    row = fer_row().split(",")
    fer_csv(tmp_path, [f"{row[0]},{row[2]},{row[1]}"], "icml_face_data.csv", "emotion, Usage, pixels")
    assert load(tmp_path, "fer2013")[0].emotion.tolist() == [3]


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
    assert not [path for path in (tmp_path / ".cache").iterdir() if not path.name.startswith(".")]


def test_fer2013_binary_file(tmp_path):
    fer_csv(tmp_path, [])
    (tmp_path / "fer2013/fer2013.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="not a CSV"):
        load(tmp_path, "fer2013")


def test_fer2013_folders(tmp_path):
    picture(tmp_path / "fer2013/train/happy/a.jpg")
    picture(tmp_path / "fer2013/test/sad/PublicTest_1.png", 1)
    picture(tmp_path / "fer2013/test/angry/PrivateTest_1.png", 2)
    (train,), (valid,), (test,) = (load(tmp_path, "fer2013", subset) for subset in datasets.SUBSETS)
    assert (train.emotion.tolist(), valid.emotion.tolist(), test.emotion.tolist()) == ([3], [4], [0])
    assert train.pixels.shape == (1, 48, 48, 1)
    picture(tmp_path / "fer2013/train/bored/a.jpg")
    with pytest.raises(DataError, match="bored: unknown class folder"):
        load(tmp_path, "fer2013")
    (tmp_path / "fer2013/train").rename(tmp_path / "fer2013/Training")
    with pytest.raises(datasets.Missing, match="FER2013's train part is not there"):       # not PublicTest in its place
        load(tmp_path, "fer2013")


# ---- ChaLearn CVPR 2016

def test_cvpr_age_in_its_three_layouts(tmp_path):
    chalearn, appa, folders = (tmp_path / name for name in "abc")
    picture(chalearn / "cvpr2016/age/train/x.jpg")
    (chalearn / "cvpr2016/age/train_gt.csv").write_text("image,mean,stdv\nx.jpg,31.5,4.25\n")
    picture(appa / "cvpr2016/age/train/x.jpg_face.jpg")
    (appa / "cvpr2016/age/gt_avg_train.csv").write_text("file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\nx.jpg,38,31.5,4.25,30\n")
    picture(folders / "cvpr2016/age/TRAIN/31/x.jpg")
    for root, age, stdv in ((chalearn, 31.5, 4.25), (appa, 31.5, 4.25), (folders, 31, np.nan)):
        (faces,) = load(root, "cvpr2016", tasks=["age"])
        assert faces.age.tolist() == [age]
        np.testing.assert_equal(faces.stdv, np.float32([stdv]))
        assert faces.gender.tolist() == [-1] and faces.emotion.tolist() == [-1]
    with pytest.raises(Missing):
        load(chalearn, "cvpr2016", "valid", ["age"])
    picture(folders / "cvpr2016/age/TRAIN/101/x.jpg")
    with pytest.raises(DataError, match="an age from 0 to 100"):
        load(folders, "cvpr2016", tasks=["age"])


@pytest.mark.parametrize("text, expected", [
    ("image,mean\nx.jpg,3\n", "no column stdv"), ("image,mean,stdv,z\nx.jpg,3,1,1\n", "unknown or doubled column z"),
    ("image,mean,stdv\nx.jpg,old,1\n", "line 2: mean is 'old'"), ("image,mean,stdv\nx.jpg,130,1\n", "line 2: mean is '130'"),
    ("image,mean,stdv\nx.jpg,30,-1\n", "line 2: stdv"), ("image,mean,stdv\n", "no rows"), ("", "empty file")])
def test_cvpr_age_csv_mistakes(tmp_path, text, expected):
    picture(tmp_path / "cvpr2016/age/train/x.jpg")
    (tmp_path / "cvpr2016/age/train_gt.csv").write_text(text)
    with pytest.raises(DataError, match=expected):
        load(tmp_path, "cvpr2016", tasks=["age"])


def test_cvpr_gender_0_is_female_1_is_male(tmp_path):
    picture(tmp_path / "cvpr2016/gender/train/female/a.jpg")
    picture(tmp_path / "cvpr2016/gender/train/male/b.jpg", 1)
    (faces,) = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert dict(zip(faces.files.tolist(), faces.gender.tolist())) == {"gender/train/female/a.jpg": 0, "gender/train/male/b.jpg": 1}


# ---- IMDB-WIKI

def write_mat(root, crop, rows):
    """rows: dicts with file, and where they differ from a fine row: born, taken, gender, name, score, second."""
    def column(key, fallback, dtype=float):
        return np.array([[row.get(key, fallback) for row in rows]], dtype)
    born = [[np.datetime64(row.get("born", "1960-01-15")).astype(int) + 719529 for row in rows]]
    folder = root / f"imdb-wiki/{crop}_crop"
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / f"{crop}.mat", {crop: {
        "dob": np.array(born, np.int32), "photo_taken": column("taken", 1990), "gender": column("gender", 1.0), "full_path": column("file", "", object),
        "name": column("name", "", object), "face_score": column("score", 3.0), "second_face_score": column("second", np.nan)}})


def test_imdb_wiki_cleaning_counts_each_reason(tmp_path):
    flaws = [{}, {"gender": np.nan}, {"score": -np.inf}, {"second": 2.0}, {"taken": 1950}, {"taken": 2070}, {"file": "gone.jpg"}, {"file": "cut.jpg"}]
    rows = [{"file": f"{i:02}.jpg", "name": "The Same Person"} | flaw for i, flaw in enumerate(flaws)]
    write_mat(tmp_path, "imdb", rows)
    for i, row in enumerate(rows):
        if row["file"] != "gone.jpg":
            picture(tmp_path / "imdb-wiki/imdb_crop" / row["file"], i)
    cut = tmp_path / "imdb-wiki/imdb_crop/cut.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (faces,) = load(tmp_path, "imdb-wiki", datasets.subset_of("the same person"))
    assert faces.files.tolist() == ["imdb_crop/00.jpg", "imdb_crop/01.jpg"]
    assert faces.age.tolist() == [30, 30] and faces.gender.tolist() == [1, -1]
    assert {reason: len(names) for reason, names in faces.dropped.items()} == dict.fromkeys(
        ("no face", "second face", "age below 0", "age above 100", "missing file", "undecodable file"), 1)
    assert datasets.unreadable(faces)[1].endswith("cut.jpg")


@pytest.mark.parametrize("born, taken, age", [("1960-07-01", 1990, 30), ("1960-07-02", 1990, 29), ("1960-01-01", 1990, 30), ("1960-12-31", 1990, 29)])
def test_age_is_counted_in_whole_years_on_1_july(born, taken, age):
    dob = np.datetime64(born).astype(int) + 719529.0
    assert datasets.completed_years(np.array([dob, np.nan]), np.array([taken, taken])).tolist()[0] == age


def test_imdb_wiki_nobody_is_in_two_subsets(tmp_path):
    for crop in ("imdb", "wiki"):
        rows = [{"file": f"{i:03}.jpg", "name": f"Person {i % 60}"} for i in range(120)]
        write_mat(tmp_path, crop, rows)
        for i in range(120):
            picture(tmp_path / f"imdb-wiki/{crop}_crop/{i:03}.jpg", i, (8, 8))
    persons = {subset: {int(file[-7:-4]) % 60 for faces in load(tmp_path, "imdb-wiki", subset, size=16) for file in faces.files}
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
    images = {"rgb.png": red, "palette.png": red.convert("P"), "cmyk.jpg": red.convert("CMYK"), "alpha.png": red.convert("RGBA"), "grey.png": red.convert("L"),
              "deep.png": Image.fromarray(np.full((30, 40), 200 * 256, np.uint16))}
    for name, image in images.items():
        image.save(tmp_path / name)
        pixels = datasets.load_image(tmp_path / name, 16)
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
        expected = {"grey.png": (82, 82, 82), "deep.png": (200, 200, 200)}.get(name, (250, 10, 10))
        assert np.abs(pixels.astype(int) - expected).max() < 12, name
    assert datasets.load_image(tmp_path / "rgb.png", 16, grey=True).shape == (16, 16, 1)


def test_load_image_is_upright_and_takes_the_middle_square(tmp_path):
    image = Image.new("RGB", (90, 30))
    image.paste((255, 255, 255), (30, 0, 60, 30))
    image.paste((255, 0, 0), (30, 0, 60, 15))
    exif = Image.Exif()
    exif[0x0112] = 3                                        # upside down
    image.save(tmp_path / "a.png", exif=exif)
    pixels = datasets.load_image(tmp_path / "a.png", 16)
    assert (pixels[:6, 2:-2] > 250).all() and (pixels[-6:, 2:-2, 1] < 5).all()


def test_load_image_refuses_a_huge_picture(tmp_path):
    Image.new("1", (30000, 4000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="30000x4000 is too large"):
        datasets.load_image(tmp_path / "huge.png", 16)


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
    (faces,) = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert len(faces) == len(faces.pixels) == 4
    assert [len(faces.dropped[reason]) for reason in ("undecodable file", "missing file")] == [2, 1]
    for file in (tmp_path / "cvpr2016").rglob("*.jpg"):
        if not file.is_symlink():
            file.write_bytes(b"")
    with pytest.raises(DataError, match="no usable face for gender.*6 undecodable file"):
        load(tmp_path, "cvpr2016", tasks=["gender"])


def test_what_is_no_fault_of_an_image_is_told_and_not_remembered(tmp_path, monkeypatch):
    gender_set(tmp_path)
    file = tmp_path / "cvpr2016/gender/train/female/0.jpg"
    for error, expected in ((PermissionError(13, "Permission denied", str(file)), "0.jpg: can't be read .Permission denied.$"), (OSError(24, "Too many open files"), "Too many open files")):
        with monkeypatch.context() as patch:
            patch.setattr(datasets, "open_picture", Mock(side_effect=error))
            with pytest.raises(DataError, match=expected):
                load(tmp_path, "cvpr2016", tasks=["gender"])
    (faces,) = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert not faces.dropped


def test_a_file_name_that_is_not_utf8(tmp_path):
    with pytest.raises(DataError, match=r"not UTF-8, '.*caf\\udce9.jpg'; rename it"):
        datasets.make_faces("cvpr2016 age train", tmp_path, ["a.jpg", "caf\udce9.jpg"])


def test_a_set_that_lost_all_its_images_is_told_and_trained_without(tmp_path):
    for crop in ("imdb", "wiki"):
        write_mat(tmp_path, crop, [dict(file=f"00/{i}.jpg", name="Ann") for i in range(3)])
    for i in range(3):
        picture(tmp_path / f"imdb-wiki/wiki_crop/00/{i}.jpg", i)
    subset = datasets.subset_of("Ann")
    imdb, wiki = sets = load(tmp_path, "imdb-wiki", subset, ["age", "gender"])
    assert datasets.describe(imdb)[0].endswith("3 rows found, 0 used, 3 dropped") and len(wiki) == 3
    (batch,) = datasets.batches(sets, None, 8, 0, 1)
    images = [datasets.gather(pixels, rows, torch.device("cpu")) for pixels, rows in zip(datasets.to_device(sets, torch.device("cpu")), batch.rows)]
    assert datasets.augment(images, 16, batch.draws).shape == (3, 3, 16, 16)


# ---- the cache

def test_second_load_opens_no_image_and_a_changed_one_is_decoded_anew(tmp_path, monkeypatch):
    gender_set(tmp_path)
    before = load(tmp_path, "cvpr2016", tasks=["gender"])[0].pixels.copy()
    opened = []
    original = datasets.load_image
    monkeypatch.setattr(datasets, "load_image", lambda file, *rest: opened.append(file.name) or original(file, *rest))
    assert (load(tmp_path, "cvpr2016", tasks=["gender"])[0].pixels == before).all() and not opened
    picture(tmp_path / "cvpr2016/gender/train/female/0.jpg", 99)
    (changed,) = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert len(opened) == 6 and (changed.pixels[0] != before[0]).any() and (changed.pixels[1:] == before[1:]).all()
    assert len([path for path in (tmp_path / ".cache").iterdir() if not path.name.startswith(".")]) == 1


def test_csv_that_changed_is_read_anew(tmp_path):
    fer_csv(tmp_path, [fer_row(3)])
    assert load(tmp_path, "fer2013")[0].emotion.tolist() == [3]
    fer_csv(tmp_path, [fer_row(4), fer_row(5)])
    assert load(tmp_path, "fer2013")[0].emotion.tolist() == [4, 5]


def test_killed_while_decoding_leaves_nothing_that_is_used(tmp_path):
    gender_set(tmp_path, 40)
    code = ("import sys, time; sys.path.insert(0, sys.argv[1]); import datasets; from pathlib import Path; original = datasets.load_image\n"
            "def slow(*a):\n    time.sleep(0.2); return original(*a)\n"
            "datasets.load_image = slow; root = Path(sys.argv[2]); datasets.load(root, 'cvpr2016', 'train', ['gender'], 16, root / '.cache')")
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path)])
    while not list(tmp_path.glob(".cache/.*.partial/*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not [path for path in (tmp_path / ".cache").iterdir() if not path.name.startswith(".")]
    (faces,) = load(tmp_path, "cvpr2016", tasks=["gender"])
    assert len(faces.pixels) == 40 and faces.pixels.reshape(40, -1).any(1).all()


def build_slowly(args):
    target, built = args

    def build(folder):
        time.sleep(0.3)
        (folder / "done").write_text("x")
        built.append(os.getpid())
    datasets.build_once(target, build)
    return (target / "done").read_text()


def test_two_runs_at_once_decode_once(tmp_path):
    with multiprocessing.get_context("fork").Manager() as manager:
        built = manager.list()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map(build_slowly, [(tmp_path / "cache/set", built)] * 3) == ["x"] * 3
        assert len(built) == 1


def test_cache_that_cannot_be_written_or_is_damaged(tmp_path):
    gender_set(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--cache DIR"):
        datasets.load(tmp_path, "cvpr2016", "train", ["gender"], 16, tmp_path / "file/cache")
    (faces,) = load(tmp_path, "cvpr2016", tasks=["gender"])
    (images,) = tmp_path.glob(".cache/*/images.u8")
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged.*delete the folder"):
        load(tmp_path, "cvpr2016", tasks=["gender"])


def test_full_disk_while_decoding(tmp_path):
    gender_set(tmp_path, 40)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))      # a write beyond fails, as on a full disk
    done = run("datasets.py", "--data", tmp_path, "--image-size", 64, cwd=tmp_path, status=2, preexec_fn=limit)
    assert "--cache DIR" in done.stderr
    assert not list(tmp_path.glob(".cache/cvpr*"))
    run("datasets.py", "--data", tmp_path, "--image-size", 64, cwd=tmp_path)


# ---- batches

def made(count, **labels):
    faces = datasets.make_faces("made train", None, [str(i) for i in range(count)], **labels)
    faces.pixels = np.zeros((count, 4, 4, 3), np.uint8)
    return faces


def test_batches_are_balanced_even_and_the_same_for_any_number_of_processes():
    sets = [made(30, age=range(30)), made(7, gender=[0, 1] * 3 + [0]), made(5, gender=[1, -1, -1, -1, 0])]
    whole = list(datasets.batches(sets, 45, 16, seed=1, epoch=2))
    assert sum(len(rows) for batch in whole for rows in batch.rows) == 90
    for batch in whole:
        assert abs(len(batch.rows[0]) - len(batch.rows[1]) - len(batch.rows[2])) <= 1
        assert batch.total == len(batch.draws) == len(batch.labels.age) == sum(map(len, batch.rows))
    shown = np.bincount(np.concatenate([batch.rows[0] for batch in whole]), minlength=30)
    assert set(shown) == {1, 2}
    assert set(np.concatenate([batch.rows[2] for batch in whole])) == {0, 4}        # rows without a label are not drawn
    parts = [list(datasets.batches(sets, 45, 16, seed=1, epoch=2, rank=rank, world=3)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts):
        assert all(share.total == batch.total for share in shares)
        for i in range(3):
            assert sorted(batch.rows[i]) == sorted(np.concatenate([share.rows[i] for share in shares]))
        assert torch.equal(batch.draws, torch.cat([share.draws for share in shares]))
    again = list(datasets.batches(sets, 45, 16, seed=1, epoch=3))
    assert any((a.rows[0].tolist() != b.rows[0].tolist()) for a, b in zip(whole, again))


def test_sets_that_share_a_task_are_drawn_together_and_their_splits_take_turns_however_large():
    age, gender = made(10, age=range(10)), made(20, gender=[0, 1] * 10)
    emotion, large = made(9, emotion=[1] * 9), made(1000, age=[5] * 1000, gender=[0, -1] * 500)
    large.folder = Path("elsewhere")
    assert datasets.pools([large]) == {(0,): 1000}
    assert datasets.pools([age, gender, emotion]) == {(0,): 10, (1,): 20, (2,): 9}
    sets = [age, gender, emotion, large]
    assert datasets.pools(sets) == {(0, 1, 3): 1030, (2,): 9}
    assert datasets.pools(sets, 80) == {(0, 1, 3): 80, (2,): 80}
    assert datasets.pools([made(datasets.MOST + 1, age=[5] * (datasets.MOST + 1))]) == {(0,): datasets.MOST}
    whole = list(datasets.batches(sets, 120, 60, seed=0, epoch=1))
    shown = [np.concatenate([batch.rows[i] for batch in whole]) for i in range(4)]
    assert [len(rows) for rows in shown] == [20, 40, 120, 60]
    assert set(np.bincount(shown[0])) == set(np.bincount(shown[1])) == {2}
    for batch in whole:
        assert len(batch.rows[0]) + len(batch.rows[1]) == len(batch.rows[3]) == 15 and len(batch.rows[2]) == 30


def test_an_epoch_shows_each_image_once_unless_told_otherwise_and_every_step_has_its_share():
    sets = [made(300, age=[5] * 300), made(60, emotion=[1] * 60)]
    whole = list(datasets.batches(sets, None, 36, seed=0, epoch=1))
    assert len(whole) == 10
    for batch in whole:
        assert [len(rows) for rows in batch.rows] == [30, 6]
    for i in range(2):
        assert sorted(np.concatenate([batch.rows[i] for batch in whole])) == list(range(len(sets[i])))


def test_augment_turns_scales_shifts_mirrors_as_affine_grid_does_and_erases_what_was_drawn():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (5, 64, 64, 3), dtype=torch.uint8, generator=generator)
    draws = torch.full((5, datasets.DRAWS), 0.5)
    draws[:, :5] = torch.rand((5, 5), generator=generator)
    turn, zoom = (2 * draws[:, 1] - 1) * math.pi / 18, 1.15 ** (2 * draws[:, 2] - 1)
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    theta = torch.stack((flip * turn.cos() * zoom, -turn.sin() * zoom, 0.16 * (2 * draws[:, 3] - 1),
                         flip * turn.sin() * zoom, turn.cos() * zoom, 0.16 * (2 * draws[:, 4] - 1)), 1).view(5, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, [5, 3, 64, 64], align_corners=False)
    moved = torch.nn.functional.grid_sample(images.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(datasets.augment([images], 64, draws), datasets.normalise(moved), atol=1e-3, rtol=0)
    # grey: all channels alike; a hole: a tenth of the side high and a quarter wide, in the middle
    still = torch.full((5, datasets.DRAWS), 0.5)
    still[:, 5] = 0
    grey = datasets.augment([images], 64, still) * torch.tensor(datasets.STD).view(3, 1, 1) + torch.tensor(datasets.MEAN).view(3, 1, 1)
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-4, rtol=0)
    still[:, 8], still[:, 11] = 0, 0
    hole = (datasets.augment([images], 64, still) == 0).all(1)[0]
    rows, columns = hole.any(1).nonzero().ravel(), hole.any(0).nonzero().ravel()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (29, 35, 24, 39)      # 64 times 0.45 to 0.55, and 0.375 to 0.625


def test_augment_without_chance_is_prepare():
    rng = np.random.default_rng(0)
    colour, grey = (torch.from_numpy(rng.integers(0, 255, shape, np.uint8)) for shape in ((2, 64, 64, 3), (3, 48, 48, 1)))
    draws = torch.full((5, datasets.DRAWS), 0.5)
    batch = datasets.augment([colour, grey], 64, draws)
    expected = torch.cat([datasets.prepare(colour, 64), datasets.prepare(grey, 64)])
    assert batch.shape == (5, 3, 64, 64) and batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch, expected, atol=1e-3, rtol=0)
    mirrored = datasets.augment([colour, grey], 64, torch.cat([torch.zeros(5, 1), draws[:, 1:]], 1))
    torch.testing.assert_close(mirrored, expected.flip(3), atol=1e-3, rtol=0)
    varied = datasets.augment([colour, grey], 64, torch.rand(5, datasets.DRAWS, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(varied).all() and (varied - expected).abs().mean() > 0.1


def test_prepare_normalises_as_torchvision_does():
    image = torch.randint(0, 255, (1, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(datasets.MEAN).view(3, 1, 1), torch.tensor(datasets.STD).view(3, 1, 1)
    torch.testing.assert_close(datasets.prepare(image, 16)[0], (image[0].permute(2, 0, 1) / 255 - mean) / std, atol=1e-5, rtol=1e-5)


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
    assert "cvpr2016 age train: 1 rows found, 1 used" in done.stdout and "fer2013 train: 1 rows found, 1 used" in done.stdout
    assert "women: unknown class folder" in done.stderr


def test_no_data_root(tmp_path):
    assert "no data root" in run("datasets.py", "--data", "nowhere", cwd=tmp_path, status=2).stderr
    (tmp_path / "empty").mkdir()
    assert "none of imdb-wiki, cvpr2016, fer2013" in run("datasets.py", "--data", "empty", cwd=tmp_path, status=2).stderr
