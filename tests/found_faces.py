"""Whether faces that --detect finds in photos are predicted as well as a data set's crops.

    python tests/found_faces.py --data data --checkpoint checkpoints/RUN/best.pth

Takes some of UTKFace's valid faces as they come, tight, pasted into a larger picture, there tilted by 25
degrees or on their side, and small. Prints in how many a face is found, and a table of the figures: the
differences to the data set's crops, face by face.
"""
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402
import evaluate  # noqa: E402
import model as models  # noqa: E402

TASKS = ("age", "gender")


def pasted(face: Image.Image, tilt: float = 0, side: int = 160, size: tuple = (640, 480)) -> Image.Image:
    """A face of `side` pixels on a plain picture of `size`, turned by `tilt` degrees."""
    picture, face = Image.new("RGB", size, (120, 130, 140)), face.resize((side, side))
    mask = Image.new("L", face.size, 255).rotate(tilt, expand=True)
    picture.paste(face.rotate(tilt, Image.Resampling.BICUBIC, expand=True), (200, 120), mask)
    return picture


def main() -> None:
    parser = datasets.Parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE",
                        help="a model that was trained with --detect")
    parser.add_argument("--faces", type=datasets.at_least(1), default=400, metavar="N",
                        help="default: 400")
    parser.add_data("as it is, since faces are always searched here")
    args = parser.parse_args()
    root, _ = datasets.folders(args.data, args.cache)
    model, content = models.open_checkpoint(args.checkpoint)
    size = content["image_size"]
    (part,), _ = datasets.read(root, ["utkface"], "valid", TASKS)
    rows = np.random.default_rng(1).permutation(len(part.faces))[:args.faces]
    part.faces = [part.faces[row] for row in sorted(rows)]
    faces = datasets.Faces.of(part)
    pictures = [datasets.open_picture(part.folder / face.file) for face in part.faces]

    def predicted(crops: list[np.ndarray]) -> evaluate.Predictions:
        table = replace(faces, images=[np.stack(crops)])
        return evaluate.predict(model, table, size, TASKS, torch.device("cpu"))

    def found(name: str, change: Callable[[Image.Image], Image.Image]) -> evaluate.Predictions:
        crops, count, more = [], 0, 0
        for picture in map(change, pictures):
            boxes = datasets.find_faces(picture)
            count, more = count + bool(boxes), more + max(0, len(boxes) - 1)
            crops.append(datasets.align(picture, datasets.main_face(boxes, picture.size).landmarks, size)
                         if boxes else datasets.center_crop(picture, size))
        print(f"{name}: a face found in {count} of {len(pictures)} pictures, and {more} further boxes")
        return predicted(crops)
    center = [datasets.center_crop(picture, size) for picture in pictures]
    results = {"the data set's crops": predicted(center)}
    for name, change in (("tight", lambda face: face), ("pasted", pasted),
                         ("tilted", lambda face: pasted(face, 25)),
                         ("on its side", lambda face: pasted(face, 90)),
                         ("small", lambda face: pasted(face, side=50, size=(1280, 960)))):
        results[name] = found(name, change)
    print(evaluate.comparison_table(faces, results))


if __name__ == "__main__":
    datasets.script(main)
