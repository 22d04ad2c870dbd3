"""What the scripts here share: the images that other projects' models predict, and the CSV that they write.

The valid parts as `evaluate.py` has them. FER2013's and FairFace's are defined in datasets.read_fer2013 and
datasets.read_fairface, UTKFace's in datasets.read_utkface; they are told again here since those functions
need torch, which few of the peers' environments have. FER2013 is read from its CSV only.

Only the standard library is needed. `python parts.py [data]` prints the parts as JSON, for parts.mjs: Node
has no BLAKE2b of four bytes.
"""
import argparse
import base64
import csv
import hashlib
import json
import re
import sys
from pathlib import Path

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
IMAGE_FILES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
SIDE = 48                               # of FER2013's pictures


def arguments(text):
    """The data root and the output folder, from the command line; `text` is the script's help."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default="data", help="data root (default: data)")
    parser.add_argument("out", nargs="?", type=Path, default="predictions",
                        help="folder for the CSVs (default: predictions/)")
    args = parser.parse_args()
    return args.data, args.out


def read_csv(file):
    with open(file, newline="", encoding="utf-8-sig") as text:
        for row in csv.DictReader(text):
            yield {name.strip(): value.strip() for name, value in row.items()}


def bucket(name, buckets):
    """As in datasets.subset_by_hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") % buckets


def fer2013(data):
    """PublicTest: the row's number within it, its 48x48 grey pixels as bytes."""
    table = data / "fer2013/fer2013.csv"
    table = table if table.is_file() else data / "fer2013/icml_face_data.csv"
    rows = (row for row in read_csv(table) if row["Usage"] == "PublicTest")
    return [(str(i), bytes(map(int, row["pixels"].split()))) for i, row in enumerate(rows)]


def utkface(data):
    """The file's path below utkface/, the file."""
    folder = data / "utkface"
    images = []
    parts = [place for place in folder.iterdir() if place.name.lower() in ("part1", "part2", "part3")]
    for place in (folder, *sorted(parts)):
        for file in sorted(place.iterdir()):
            told = re.match(r"([0-9]{1,3})_[01]_", file.name)
            if (file.suffix.lower() in IMAGE_FILES and bucket(file.name.partition(".")[0], 10) == 8
                    and told and int(told[1]) <= 100):
                images.append((file.relative_to(folder).as_posix(), file))
    return images


def fairface(data):
    """One in twenty of the train images: train/N.jpg, the file."""
    names = [row["file"] for row in read_csv(data / "fairface/fairface_label_train.csv")]
    return [(name, data / "fairface" / name) for name in names if bucket(name, 20) == 19]


SETS = {"fer2013": fer2013, "utkface": utkface, "fairface": fairface}


def read(data, names=SETS):
    """Yield (name, images) of each of the sets that is there."""
    for name in names:
        if (data / name).is_dir():
            yield name, SETS[name](data)
        else:
            print(f"{data / name}: not there, left out", file=sys.stderr)


def write(out, peer, name, rows):
    """Write rows (dicts of image and what was predicted) to {peer}-{name}.csv in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{peer}-{name}.csv"
    with open(file, "w", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{file}: {len(rows)} images")


if __name__ == "__main__":
    data, _ = arguments(__doc__)
    print(json.dumps({
        name: [(image, base64.b64encode(source).decode() if name == "fer2013" else str(source))
               for image, source in images]
        for name, images in read(data)}))
