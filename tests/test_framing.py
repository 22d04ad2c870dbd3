"""Framing: faces found and aligned, the same in training, evaluation and use."""
import csv
import itertools
import json
import math
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import evaluate
import model as models
from conftest import ROOT, picture, run
from datasets import LANDMARKS, Detection


def turned(points, scale=3, shift=(40, 70)):        # by about 25 degrees
    return scale * points @ np.array([[0.9, 0.19 ** 0.5], [-0.19 ** 0.5, 0.9]]) + shift


def spot(point, width, *size):
    """A light spot at a point (across, down) of a dark picture of `size` (height, width)."""
    down, across = np.indices(size) + 0.5
    light = 255 * np.exp(-((across - point[0]) ** 2 + (down - point[1]) ** 2) / width ** 2 / 2)
    return Image.fromarray(light.astype(np.uint8)).convert("RGB")


def center(square):
    light = square[..., 0] / square[..., 0].sum()           # where it is, in parts of the square's side
    down, across = (np.indices(light.shape) + 0.5) / len(light)
    return (across * light).sum(), (down * light).sum()


def test_similarity_is_undone_exactly_and_never_mirrors():
    matrix, shift = datasets.similarity(turned(LANDMARKS), LANDMARKS)
    np.testing.assert_allclose(turned(LANDMARKS) @ matrix.T + shift, LANDMARKS, atol=1e-12)
    assert np.linalg.det(datasets.similarity(LANDMARKS * (-1, 1), LANDMARKS)[0]) > 0


@pytest.mark.parametrize("side", [32, 90, 400])
def test_align_brings_the_landmarks_to_their_places(side):
    points = turned(LANDMARKS, side, (120, 60))
    for point, place in zip(points, LANDMARKS):
        square = datasets.align(spot(point, side / 20, 600, 700), points, 64)
        assert math.dist(center(square), place) < 0.02


def test_align_repeats_the_edge_outside_the_picture():
    picture = Image.fromarray(np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 80, 0).repeat(3, 2))
    square = datasets.align(picture, LANDMARKS * 60 + (-30, 10), 60)
    assert (square[:, :29] == 0).all() and abs(int(square[5, 50, 0]) - 20) <= 1


def test_fer2013_is_aligned_so_that_its_median_landmarks_come_to_their_places():
    median = np.array([(.315, .388), (.690, .383), (.503, .596), (.352, .789), (.659, .784)])   # as detected
    for point, place in zip(48 * median, LANDMARKS):
        square = datasets.align(spot(point, 2.4, 48, 48), 48 * datasets.FER2013_LANDMARKS, 32)
        assert square.shape == (32, 32, 3) and math.dist(center(square), place) < 0.03


def test_main_face_is_large_and_near_the_middle():
    boxes = (0, 0, 44, 44), (95, 45, 105, 55), (80, 40, 120, 80)
    assert datasets.main_face([Detection(box, LANDMARKS, 1.0) for box in boxes], (200, 120)).box == boxes[2]


# ---- in training

def finder(monkeypatch, *boxes):
    """A search that finds faces at `boxes` in each picture whose first pixel is red."""
    def search(picture, side):
        return [Detection(box, LANDMARKS * (box[2] - box[0]) + box[:2], 0.99) for box in boxes
                if picture.getpixel((0, 0))[0] > 250]
    monkeypatch.setattr(datasets, "search", search)


FACE = datasets.draw_face(np.random.default_rng(0), 30, 1, 3)


def photo(path, faces=True):
    """A picture with two faces, or with none, in which the finder above finds none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (240, 160), (40, 90, 40))
    for corner, side in (((80, 40), 64), ((2, 2), 32)) if faces else ():
        picture.paste(FACE.resize((side, side)), corner)
    picture.putpixel((0, 0), (255, 0, 0) if faces else (0, 0, 0))
    picture.save(path)


def test_photos_give_their_main_faces_and_those_without_are_counted(tmp_path, monkeypatch):
    finder(monkeypatch, (80, 40, 144, 104), (2, 2, 34, 34))
    for faces in (True, False):
        photo(tmp_path / f"cvpr2016/gender/train/male/{faces}.png", faces)
    (part,), _ = datasets.read(tmp_path, ["cvpr2016"], "train", ["gender"])
    faces, plain = (datasets.prepare(part, 32, tmp_path / ".cache", detect) for detect in (True, False))
    assert [*faces.parts[0].remarks.values()] == [["gender/train/male/False.png"]]
    middle, found = faces.images[0].astype(int)
    assert np.abs(found - FACE.resize((32, 32))).mean() < 8 and (middle[1:, :, 1] == 90).all()
    assert np.abs(plain.images[0][1] - found).mean() > 20 and not plain.parts[0].remarks


def test_a_checkpoint_knows_its_framing_and_evaluation_follows_it(work, tmp_path, monkeypatch):
    finder(monkeypatch)
    data = "--data", work / "data/sample"
    run("train.py", *data, "--image-size", 32, "--samples", 64, "--epochs", 1, "--detect", cwd=tmp_path)
    run("evaluate.py", "--export", "e.pth", cwd=tmp_path)
    for file in (*tmp_path.glob("checkpoints/*/best.pth"), tmp_path / "e.pth"):
        assert torch.load(file, weights_only=True)["detected"] is True
    (log,) = (tmp_path / "logs").glob("*.txt")
    assert "age train: used, no face found, the middle square taken: 400" in log.read_text()
    assert "fer2013 train: used" not in log.read_text()         # FER2013's pictures are not searched
    text = run("evaluate.py", *data, "--split", "fer2013", cwd=tmp_path).stdout
    (epoch,) = evaluate.read_log(log).epochs
    assert f"emotion_acc: {epoch['val_emotion_acc']}\n" in text


def test_without_a_detector_the_rest_works_and_a_line_says_what_to_install(work, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(datasets, "local", types.SimpleNamespace())
    photo(tmp_path / "a.png")
    (tmp_path / "p.csv").write_text("of an earlier run")
    data = "--data", work / "data/sample"
    for command in (("evaluate.py", "a.png", "--csv", "p.csv"), ("datasets.py", *data), ("train.py", *data)):
        error = run(*command, "--detect", cwd=tmp_path, status=2).stderr
        assert "pip install opencv-python-headless" in error
    assert (tmp_path / "p.csv").read_text() == "of an earlier run"
    run("evaluate.py", "a.png", cwd=tmp_path)               # without --detect


# ---- in use

def test_pictures_come_in_order_with_their_boxes_and_all_are_in_the_spreadsheet(tmp_path, monkeypatch):
    finder(monkeypatch, (80, 40, 144, 104), (2, 2, 34, 34))
    names = [f"faces/{i:03}.png" for i in range(70)]
    for i, name in enumerate(names):
        photo(tmp_path / name, faces=i % 3 > 0)
    (tmp_path / "faces/070.png").write_bytes(b"no picture")
    done = run("evaluate.py", "faces", "--detect", "--csv", "p.csv", cwd=tmp_path, status=1)
    expected = ([f"{name} at 2,2-34,34", f"{name} at 80,40-144,104"] if i % 3 else [name] for i, name in
                enumerate(names))
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "faces/" in line] == sum(expected, [])
    assert "faces/070.png: not a readable picture" in done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(rows[0])[:6] == ["image", "left", "top", "right", "bottom", "confidence"]
    *_, emotions = datasets.CLASS_NAMES.values()
    assert tuple(rows[0])[-7:] == emotions and len(rows) == 70 + 46 + 1
    assert rows[-1]["image"] == "faces/070.png" and rows[-1]["age"] == rows[0]["age"] == ""
    assert (rows[1]["left"], rows[1]["confidence"]) == ("2", "0.99")
    assert float(rows[1]["age_low"]) <= float(rows[1]["age"]) <= float(rows[1]["age_high"])
    assert sum(float(rows[1][name]) for name in emotions) == pytest.approx(1, abs=0.005)


def test_age_interval_is_the_central_part_of_the_distribution():
    logits = torch.full((2, 101), -50.0)
    logits[0, 20:30] = logits[1, 91:] = 0                   # ten years alike
    for mass, years in ((0.7, [[21, 92], [28, 99]]), (0.98, [[20, 91], [29, 100]])):
        assert torch.stack(models.age_interval(logits, mass)).tolist() == years


def test_the_detector_finds_a_photos_faces_tilted_and_large_and_none_in_noise(tmp_path):
    file = ROOT / "checkpoints/resnet18-age-gender-emotion-photo.png"
    face = datasets.open_picture(file).crop((60, 20, 270, 170))
    large = Image.new("RGB", (2000, 1500), (120, 130, 140))
    for corner in itertools.product(range(0, 2000, 500), range(0, 1500, 500)):
        large.paste(face.resize((147, 105)), corner)
    assert len(datasets.find_faces(large)) == 12
    assert len(datasets.find_faces(face.rotate(25, expand=True, fillcolor=(120, 130, 140)))) == 1
    (found,) = datasets.find_faces(face)                    # and in its square a face from edge to edge
    (again,) = datasets.find_faces(Image.fromarray(datasets.align(face, found.landmarks, 128)))
    assert np.abs(again.landmarks / 128 - LANDMARKS).max() < 0.06
    assert len(datasets.find_faces(face.resize((2100, 1500)))) == 1
    assert datasets.find_faces(Image.open(picture(tmp_path / "noise.png", 0, (320, 240)))) == []


# ---- videos

def frames(count):
    """Frames in which one face moves to the right, and from the fifth on there is another."""
    portrait = datasets.open_picture(ROOT / "checkpoints/portrait.jpg")
    for i in range(count):
        frame = Image.new("RGB", (640, 360), (120, 130, 140))
        frame.paste(portrait, (10 * i, 20))
        if i >= 5:
            frame.paste(portrait.resize((240, 240)), (400, 80))
        yield np.asarray(frame)[..., ::-1].copy()


def write_video(file):
    video = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 5, (640, 360))
    for frame in frames(10):
        video.write(frame)
    video.release()


def test_a_face_keeps_its_number_in_a_video_which_comes_out_annotated(tmp_path):
    write_video(tmp_path / "clips.mp4")
    (tmp_path / "clips.mp4").rename(tmp_path / "clips\udce9.mp4")       # not UTF-8
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    done = run("evaluate.py", "clips\udce9.mp4", "broken.mp4", "--detect", "--csv", "p.csv", "--out", "out",
               cwd=tmp_path, status=1)
    assert "clips\udce9.mp4 1.00 s face 2 at " in done.stdout and "broken.mp4: not a readable" in done.stderr
    *rows, broken = csv.DictReader((tmp_path / "p.csv").open(errors="surrogateescape"))
    assert [row["number"] for row in rows] == ["1"] * 5 + ["1", "2"] * 5
    assert [float(row["time"]) for row in rows[:4]] == [0, 0.2, 0.4, 0.6] and broken["time"] == ""
    annotated = evaluate.read_video(tmp_path / "out/00001_clips\udce9.mp4")
    assert [frame.pixels.shape for frame in annotated] == [(360, 640, 3)] * 10


def test_a_camera_is_answered_frame_by_frame_in_json(tmp_path, monkeypatch):
    camera = types.SimpleNamespace(get=lambda key: 0, isOpened=lambda: True)
    left = frames(3)
    camera.read = lambda: (True, frame) if (frame := next(left, None)) is not None else (False, None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: camera if source == 0 else None)
    done = run("evaluate.py", "--camera", "0", "--detect", "--json", cwd=tmp_path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["image"], row["number"], row["gender"]) for row in rows] == [("camera 0", 1, "female")] * 3
    done = run("evaluate.py", "--camera", "0", cwd=tmp_path, status=2)      # no frame is left
    assert "camera 0: can't be opened, or gives no picture" in done.stderr


def test_predictions_are_averaged_over_a_second():
    def found(age):
        return [(Detection((0, 0, 9, 9), LANDMARKS, 1.0), {"age": torch.full((1, 101), age)})]
    tracks = {}
    for time, age, mean in (0, 1.0, 1), (0.5, 2.0, 1.5), (1, 6.0, 3), (1.5, 1.0, 3), (9, 5.0, 5):
        (_, logits, number), = evaluate.follow(tracks, evaluate.Picture(None, time, 2, None), found(age))
        assert logits["age"][0, 0] == pytest.approx(mean) and number == (2 if time == 9 else 1)
