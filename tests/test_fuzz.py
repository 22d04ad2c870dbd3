"""Random damage to all that the scripts read: they end with 0, 1, or 2 and a line, and write nothing half.

    python tests/test_fuzz.py SEED COUNT [KIND]     more of it, by hand; what fails is kept and told
"""
import collections
import contextlib
import copy
import csv
import faulthandler
import importlib
import io
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock

from conftest import picture    # first, since it tells where the scripts are

import datasets  # noqa: I001
import evaluate
import model as models
import train

SEED, COUNT = int(os.environ.get("FUZZ_SEED", 0)), int(os.environ.get("FUZZ_COUNT", 40))    # inputs a kind
LONGEST = 60                            # seconds that an input may take
SMALL = ["--image-size", "32", "--samples", "4", "--batch-size", "4", "--epochs", "1"]


class Tiny(models.FaceNet):
    """FaceNet of 4 to 8 channels instead of 64 to 512: the same names, a thousandth of the bytes."""

    def __init__(self):
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes = nn.BatchNorm2d, 4
        self.dilation = self.groups = 1
        self.base_width = 64
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        for i, (width, stride) in enumerate(((4, 1), (4, 2), (4, 2), (8, 2)), 1):
            self.add_module(f"layer{i}", self._make_layer(BasicBlock, width, 2, stride))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Identity()
        for task, classes in models.CLASSES.items():
            self.add_module(task, nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes)))


# ---- one input, and what must hold of it

class Hangs(BaseException):
    """No Exception, since the scripts catch those of Pillow and torch."""


def ended(script: str, arguments: list, place: Path) -> tuple[int, str]:
    """A script's exit status and all that it wrote to stderr, with what libraries wrote there."""
    module = importlib.import_module(script.removesuffix(".py"))

    def hangs(*_):
        raise Hangs(f"longer than {LONGEST} s")
    kept = os.dup(2)
    with tempfile.TemporaryFile() as errors, pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "FaceNet", Tiny)
        patch.setattr(evaluate, "SHIPPED", place / "tiny.pth")
        patch.setattr(train, "EPOCHS", 2)
        patch.setattr(train, "EMOTION_EPOCHS", 2)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setattr(sys, "stdin", io.StringIO("a.png\n\nx\n"))
        patch.chdir(place)
        os.dup2(errors.fileno(), 2)
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(LONGEST)
        try:
            with (open(errors.fileno(), "w", errors="backslashreplace", closefd=False) as stderr,
                  contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO())):
                datasets.script(module.main, models.CheckpointError)
        except SystemExit as exit:
            status = exit.code or 0
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            os.dup2(kept, 2)
            os.close(kept)
        errors.seek(0)
        return status, errors.read().decode(errors="replace")


def contents(place: Path) -> dict[Path, bytes]:
    """What is in the files of a folder."""
    return {file: file.read_bytes() for file in place.rglob("*") if file.is_file() and ".cache" not in file.parts}


def check(script: str, arguments: list, place: Path) -> int:
    """Run a script in `place` and assert what holds for any input. Returns its exit status."""
    before = contents(place)
    status, errors = ended(script, arguments, place)
    assert status in (0, 1, 2), status
    assert "Traceback" not in errors, errors
    if status == 2:
        *notes, last = errors.splitlines() or [""]
        assert last.startswith(f"{script}: error: ") and len(last) < 3000, errors[-5000:]
        assert len(set(notes)) == len(notes), errors[-5000:]
        # a report on several logs or pictures names those that are left out before it fails
        assert all(note.endswith((", left out", "; it is made anew")) or "not a readable picture (" in note
                   for note in notes), errors[-5000:]
    assert not list(place.rglob(".*.partial")), "a partial file is left"
    for file, content in contents(place).items():
        if before.get(file) != content:
            check_whole(file)
    return status


def check_whole(file: Path) -> None:
    """Assert that a file which a script wrote is whole."""
    content = file.read_bytes()
    if content.startswith(b"PK"):
        models.read_checkpoint(file)
    elif content.startswith(b"\x89PNG"):
        Image.open(file).load()
    elif content.startswith(b"image,"):
        header, *rows = csv.reader(content.decode(errors="surrogateescape").splitlines(True))
        assert rows and {len(row) for row in rows} == {len(header)}, f"{file} is not whole"
    elif content.startswith(b"["):
        lines = content.decode().splitlines()
        assert all(evaluate.STAMPED.fullmatch(line) for line in lines if line), f"{file} has lines without a time"
    else:
        assert content or file.name == "drawn" or file.name.endswith(".lock"), f"{file} is empty"


# ---- what is damaged: made once

def make_base(base: Path) -> Path:
    """A folder with tiny sets, a checkpoint, a run's last.pth and its log, and a picture."""
    cvpr = base / "data/cvpr2016"
    for part in ("train", "valid"):
        for i in range(2):
            picture(cvpr / f"age/{part}/{i}.png", i, (18, 16))
            picture(cvpr / f"gender/{part}/{datasets.GENDERS[i]}/{i}.png", i, (18, 16))
        (cvpr / f"age/{part}_gt.csv").write_text("image,mean,stdv\n0.png,31.5,4.25\n1.png,60,0\n")
    rows = [f"{i % 7},{' '.join([str(i * 20)] * 2304)},{usage}" for i, usage in enumerate(
        ("Training", "Training", "PublicTest", "Training", "PublicTest", "PrivateTest"))]
    (base / "data/fer2013").mkdir()
    (base / "data/fer2013/fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows, ""]))
    rows = ["file,age,gender,race,service_test"]
    for subset, count in (("train", 2), ("valid", 1)):
        for name in in_subset((f"{20 + i}_{i % 2}_{i % 5}_2017{i:013}.jpg.chip.jpg" for i in itertools.count()), 10, subset, count):
            picture(base / "data/utkface" / name)
        for name in in_subset((f"train/{i}.jpg" for i in itertools.count(1)), 20, subset, count):
            picture(base / "data/fairface" / name)
            rows.append(f"{name},{('3-9', '20-29', 'more than 70')[len(rows) % 3]},{('Male', 'Female')[len(rows) % 2]},East Asian,True")
    (base / "data/fairface/fairface_label_train.csv").write_text("\n".join([*rows, ""]))
    (base / "data/sample").symlink_to(base / "data")
    picture(base / "a.png", 3)
    assert ended("train.py", SMALL, base) == (0, "")
    (run,) = (base / "checkpoints").iterdir()
    content = torch.load(run / "last.pth", weights_only=True)
    content["settings"]["epochs"] = 2                       # so that the run is not finished
    torch.save(content, base / "last.pth")
    shutil.copy(run / "best.pth", base / "tiny.pth")
    log = (base / f"logs/{run.name}.txt").read_text()
    (base / "log.txt").write_text(log.replace("--epochs 1 ", "--epochs 2 "))
    shutil.rmtree(base / "checkpoints")
    shutil.rmtree(base / "logs")
    assert ended("evaluate.py", ["--export", "own.pth"], base) == (0, "")
    theirs = {f"resNet.{name}": value for name, value in content["model"].items() if "layer" in name}
    theirs |= {"age_cls_pred.weight": torch.zeros(70, 8), "gen_cls_pred.weight": torch.zeros(2, 8)}
    torch.save({"state_dic": theirs, "epoch": 3}, base / "theirs.pth")
    return base


def in_subset(names: Iterator[str], buckets: int, subset: str, count: int) -> list[str]:
    """The first of `names` whose hash puts them into a subset, of UTKFace (10 buckets) or FairFace (20)."""
    parts = {buckets - 1: "test" if buckets == 10 else "valid", buckets - 2: "valid" if buckets == 10 else "train"}
    fitting = (name for name in names
               if datasets.subset_by_hash(name.partition(".")[0] if buckets == 10 else name, buckets, parts) == subset)
    return list(itertools.islice(fitting, count))


# ---- damage to anything

ODD_BYTES = (b"\0", b"\xff" * 9, b"\0" * 50, b"\n", b"\r", b'"', b",", b";", b"\t", b"\xef\xbb\xbf", b"\xe9", b"9" * 30)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, lost, doubled, put in, or without their end."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 30, 1000))
        kind = rng.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at:at + length]
        elif kind == 2:
            data[at:at] = data[at:at + length]
        elif kind == 3:
            data[at:at] = rng.choice(ODD_BYTES)
        elif kind == 4:
            odd = rng.choice(ODD_BYTES)
            data[at:at + len(odd)] = odd
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


ODD_TEXTS = ("", " ", "x", "nan", "inf", "-inf", "-1", "-0", "0", "1e999", "1e-320", "1e300", "0x1", "1_0", "٣", "3.5", "101",
             "1.0", "a\0b", '"', '"a', 'a"', "'", "a\nb", "a,b", "a;b\tc", "\ufeff", "é" * 300, "../" * 40 + "etc/passwd",
             "/etc/passwd", "a" * 140_000, "9" * 400, "=1+1", "\u2028", "%s", "{0}", "--", "--lr", "--weights a")


def odd_table(rng: random.Random, text: str) -> bytes:
    """A table with odd cells, other separators, lines that came twice or went; or odd bytes."""
    if rng.random() < 0.3:
        return damaged(rng, text.encode())
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        kind = rng.randrange(6)
        if kind == 0:
            rows.insert(rng.randrange(len(rows) + 1), row)
        elif kind == 1 and len(rows) > 1:
            rows.remove(row)
        elif kind == 2:
            rng.shuffle(row)
        elif kind == 3:
            row.append(rng.choice(ODD_TEXTS))
        else:
            row[rng.randrange(len(row))] = rng.choice(ODD_TEXTS)
    separator, end = rng.choice(",,,;\t|"), rng.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    return end.join(separator.join(row) for row in rows).encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16")))


# ---- odd checkpoints

def odd_values() -> list:
    """Values of all kinds for what a checkpoint holds."""
    itself, deep, shared, listed = {}, {}, {}, []
    itself["a"] = itself
    listed.append(listed)
    for _ in range(150):
        deep = {"a": [deep]}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    return [None, True, 0, 1, -5, 2**70, 0.0, -1.5, float("nan"), float("inf"), "", "x", "a\nb", "x" * 3000, "--help", "-1",
            "/dev/null", b"bytes", 1j, [], [None], [1, [2]], [[]], ["age"], ["age", "age"], (), (1, 2), {1, 2}, {}, {1: 2},
            {"": 0}, {"help": "x"}, itself, deep, shared, listed, collections.OrderedDict(a=1), torch.float32,
            torch.Size([2]), np.float64(2), np.zeros(3), np.array(["a"]), [torch.zeros(2)] * 3, [np.zeros(2)] * 3,
            torch.zeros(()), torch.zeros(0), torch.ones(2, 3), torch.arange(3), torch.tensor(True), torch.zeros(2, dtype=torch.complex64),
            torch.zeros(3, 3).to_sparse(), torch.zeros(3, 3).to_sparse_csr(), torch.zeros(2, device="meta"),
            torch.zeros(()).expand(10**5, 10**5), torch.tensor(float("nan")), nn.Parameter(torch.zeros(2))]


def odd_tensor(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, or nearly, that is odd in another way."""
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint16, torch.uint64, torch.bool, torch.complex64,
              torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2, torch.bits8, torch.quint8)
    kinds = (lambda: value.to(rng.choice(dtypes)), lambda: torch.empty(value.shape, dtype=rng.choice(dtypes)),
             lambda: value.to_sparse(), lambda: value.to("meta"), lambda: value * float("nan"), lambda: value.float() * 1e38 * 1e5,
             lambda: value.float() * 1e30, lambda: value[None], lambda: value.flatten(), lambda: value.expand(3, *value.shape),
             lambda: torch.zeros(()).expand(value.shape), lambda: value.mT.contiguous().mT, lambda: value[:1], lambda: value[:0],
             lambda: torch.nested.nested_tensor([value, value]), lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
             lambda: value.clone().requires_grad_(), lambda: value.to_mkldnn(), lambda: torch.zeros(()), lambda: -value.abs())
    return rng.choice(kinds)()


def with_odd_value(rng: random.Random, content: dict) -> dict:
    """A checkpoint's content in which something, at any depth, is odd, renamed, added or left out."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if "model" in keys and rng.random() < 0.6:
                keys.remove("model")                        # most of a checkpoint, and soon refused
            if not keys:
                break
            key = rng.choice(keys)
            value = place[key]
            if isinstance(value, (dict, list)) and rng.random() < 0.8:
                place = value
                continue
            kind = rng.randrange(8)
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, dict):
                place[rng.choice(("x", "", 1, None, (1, 2), "a\nb", "layer1.2.conv1.weight", f"module.{key}"))] = place.pop(key)
            elif kind == 2 and isinstance(place, dict):
                place[rng.choice(("x", 1, "help", "logs", "resume", "margin", "state_dict"))] = rng.choice(odd_values())
            elif isinstance(value, torch.Tensor) and kind < 6:
                with contextlib.suppress(RuntimeError, NotImplementedError, TypeError, IndexError):
                    place[key] = odd_tensor(rng, value)
            else:
                place[key] = rng.choice(odd_values())
            break
    return content


def saved(content: object, zipped: bool) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def repacked(rng: random.Random, data: bytes) -> bytes:
    """A checkpoint's zip archive with a damaged member, whose checksum is right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        wrong = rng.choice((names[0], names[0], rng.choice(names)))     # the first is data.pkl
        for name in names:
            content = old.read(name)
            new.writestr(name, damaged(rng, content) if name == wrong else content)
    return file.getvalue()


# ---- the kinds of inputs: each makes its files in `place` and returns the script and its arguments

def checkpoint(rng: random.Random, place: Path, base: Path) -> tuple[str, list]:
    """A damaged or odd checkpoint, by each of the ways that one is read."""
    name = rng.choice(("last.pth", "last.pth", "tiny.pth", "own.pth", "theirs.pth"))
    data = (base / name).read_bytes()
    kind = rng.randrange(6)
    if kind == 0:
        data = damaged(rng, data)
    elif kind == 1:
        data = repacked(rng, data)
    elif kind == 2:
        data = damaged(rng, saved(torch.load(io.BytesIO(data), weights_only=True), zipped=False))
    else:
        content = with_odd_value(rng, torch.load(io.BytesIO(data), weights_only=True))
        if rng.random() < 0.1:
            content = rng.choice([content.get("model"), *odd_values()])
        with contextlib.suppress(RuntimeError, NotImplementedError, RecursionError):    # torch can't save all
            data = saved(content, rng.random() < 0.8)
    (place / "run").mkdir()
    (place / "run/last.pth").write_bytes(data)
    (place / "logs").mkdir()
    shutil.copy(base / "log.txt", place / "logs/run.txt")
    if name == "last.pth":
        return "train.py", ["--resume", "run/last.pth", "--logs", "logs"]
    if name == "theirs.pth":
        return "train.py", [*SMALL, "--pretrained", "run/last.pth"]
    return rng.choice((
        ("train.py", [*SMALL, "--pretrained", "run/last.pth"]),
        ("evaluate.py", ["a.png", "--checkpoint", "run/last.pth", "--csv", "p.csv"]),
        ("evaluate.py", ["--export", "e.pth", "--checkpoint", "run/last.pth"]),
        ("evaluate.py", ["--split", "fer2013", "--checkpoint", "run/last.pth", "--save-predictions", "p.csv"])))


def table(rng: random.Random, place: Path, base: Path) -> tuple[str, list]:
    """A damaged table of a set, or of predictions; odd names of UTKFace's pictures."""
    own_data(place, base)
    split = rng.choice(("predictions", "cvpr2016", "fer2013", "fairface", "utkface"))
    if split == "predictions":
        for name in ("q.csv", "r.csv"):
            rows = [f"{i},{rng.choice(datasets.EMOTIONS)},{rng.randrange(100)}" for i in range(2)]
            text = "\n".join(["image,emotion,age", *rows])
            (place / name).write_bytes(odd_table(rng, text) if rng.random() < 0.7 else text.encode())
        return "evaluate.py", ["--split", "fer2013", "--predictions", *rng.choice((["q.csv"], ["q.csv", "r.csv"]))]
    if split == "utkface":
        for file in sorted((place / "data/utkface").iterdir()):
            odd = rng.choice(("{}", "{}", "101_{}", "-1_{}", "5_2_{}", "5_1_9_{}", "x{}", "{}.png", "é{}.jpg", "1_1_1_1\udce9{}", "a\n{}"))
            with contextlib.suppress(OSError):
                file.rename(file.with_name(odd.format(file.name)))
    else:
        file = place / "data" / {"cvpr2016": "cvpr2016/age/valid_gt.csv", "fer2013": "fer2013/fer2013.csv",
                                 "fairface": "fairface/fairface_label_train.csv"}[split]
        file.write_bytes(odd_table(rng, file.read_text()))
        if rng.random() < 0.1:
            file.rename(file.with_name(rng.choice(("icml_face_data.csv", "gt_avg_valid.csv", "fairface_label_val.csv"))))
    weights = ["0", "0", "1"] if split == "fer2013" else ["1", "1", "0"]
    return rng.choice((
        ("datasets.py", ["--image-size", "16"]), ("train.py", [*SMALL, "--split", split, "--weights", *weights]),
        ("evaluate.py", ["--split", split, "--save-predictions", "p.csv"])))


def own_data(place: Path, base: Path) -> None:
    """A copy of the tiny sets in place of the link to them."""
    (place / "data").unlink()
    shutil.copytree(base / "data", place / "data", symlinks=True)


FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".avif": "AVIF",
           ".mpo.jpg": "MPO", ".jp2": "JPEG2000", ".ppm": "PPM", ".eps.jpg": "EPS", ".sgi.gif": "SGI"}


def odd_picture(rng: random.Random) -> tuple[str, bytes]:
    """The ending of a picture's name and what is in it: any mode and format, mostly damaged."""
    size = rng.choice(((20, 24), (20, 24), (1, 1), (1, 900), (900, 1), (3, 2)))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (size[1], size[0], 3), np.uint8)
    mode = rng.choice(("RGB", "RGB", "1", "L", "LA", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F", "LAB", "HSV"))
    suffix = rng.choice([*FORMATS, ".jpg", ".png", ".tif"])
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 6, 8, 0, 99))
    options = rng.choice(({}, {"exif": exif}, {"exif": b"Exif\0\0MM\0*" + rng.randbytes(40)}, {"compression": "tiff_lzw"},
                          {"compression": "jpeg"}, {"compression": "group4"}, {"compression": "tiff_deflate"}, {"progressive": True},
                          {"lossless": True}, {"transparency": 0}, {"transparency": b"\0\x80"}, {"save_all": True},
                          {"icc_profile": rng.randbytes(200)}))
    image, file = Image.fromarray(noise), io.BytesIO()
    try:
        image = image.convert("L").convert(mode) if mode[0] in "IF" else image.convert(mode)
        image.save(file, FORMATS[suffix], **options)
    except Exception:                                       # not every mode fits every format
        file = io.BytesIO()
        image.convert("RGB").save(file, FORMATS[suffix])
    data = file.getvalue()
    return suffix, damaged(rng, data) if rng.random() < 0.8 else data


def photo(rng: random.Random, place: Path, base: Path) -> tuple[str, list]:
    """Damaged and odd pictures, of one's own or of a set."""
    if rng.random() < 0.3:
        own_data(place, base)
        folder = place / "data/cvpr2016/gender/valid/female"
    else:
        folder = place / "faces"
        folder.mkdir()
    for i in range(2):
        suffix, data = odd_picture(rng)
        (folder / f"{i}{suffix}").write_bytes(data)
    if folder.name == "female":
        return rng.choice((("datasets.py", ["--image-size", "16"]), ("evaluate.py", ["--split", "cvpr2016", "--save-predictions", "p.csv"])))
    return "evaluate.py", ["faces", "--csv", "p.csv", *rng.choice(([], ["--tta"], ["--out", "out"]))]


def log(rng: random.Random, place: Path, base: Path) -> tuple[str, list]:
    """Damaged logs; with odd numbers and words too."""
    (place / "logs").mkdir()
    for i in range(rng.choice((1, 2))):
        text = (base / "log.txt").read_text()
        lines = text.splitlines(True)
        lines += lines[-14:] * rng.randrange(2)
        for _ in range(rng.choice((1, 3, 10))):
            at = rng.randrange(len(lines))
            kind = rng.randrange(6)
            if kind == 0:
                del lines[at]
            elif kind == 1:
                lines.insert(at, rng.choice(lines))
            else:
                words = lines[at].split(" ")
                words[rng.randrange(len(words))] = rng.choice(ODD_TEXTS)
                lines[at] = " ".join(words).rstrip("\n") + "\n"
            lines = lines or ["\n"]
        data = "".join(lines).encode()
        (place / f"logs/{i}.txt").write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)
    return "evaluate.py", ["--logs", "logs", *(["--plot", "p.png"] if rng.random() < 0.05 else [])]


COMMANDS = (                            # options with their values
    ("train.py", "--image-size 32", "--samples 4", "--batch-size 4", "--epochs 1"),
    ("train.py", "--image-size 32", "--samples 4", "--batch-size 4", "--epochs 1", "--weights 1 0 0", "--split cvpr2016"),
    ("train.py", "--image-size 32", "--samples 4", "--epochs 1", "--pretrained tiny.pth"),
    ("train.py", "--resume run/last.pth", "--logs logs"), ("evaluate.py", "a.png", "--csv p.csv"),
    ("evaluate.py", "a.png -", "--out out", "--tta"), ("evaluate.py", "--split fer2013", "--save-predictions p.csv"),
    ("evaluate.py", "--split cvpr2016", "--predictions q.csv"), ("evaluate.py", "--logs logs"),
    ("evaluate.py", "--export e.pth", "--margin 0.3"), ("datasets.py", "--image-size 16"))
NUMBERS = ("0", "1", "2", "3", "-1", "0.5", "16", "40", "nan", "inf", "1e999", "1e-320", "1e300", "1_0", "0x10", "9" * 25, "", "x", " 2 ")
NAMES = ("", " ", "-", "--", "x", "0", "é", "\udce9", "a" * 300, "a\nb", "a.png", "p.csv", "q.csv", "tiny.pth", "run/last.pth",
         "run", "logs", "logs/run.txt", "data", "sample", "out", "new/p.csv", "fer2013", "cpu", "cpu:1", "cuda", "cuda:99", "meta",
         "fifo.png", "dangling.png", "loop.png", "empty.png", "linked", "e.pth", "p.pdf", "p.what", "/dev/null", "/dev/full", "~", "%s")


def command(rng: random.Random, place: Path, base: Path) -> tuple[str, list]:
    """A command line that is right but for some words."""
    for folder in ("run", "logs", "out"):
        (place / folder).mkdir()
    shutil.copy(base / "last.pth", place / "run/last.pth")
    shutil.copy(base / "log.txt", place / "logs/run.txt")
    (place / "q.csv").write_text("image,age\nage/valid/0.png,30\nage/valid/1.png,40\n")
    os.mkfifo(place / "fifo.png")
    (place / "empty.png").touch()
    for name, target in (("dangling.png", "nowhere"), ("loop.png", "loop.png"), ("linked", "out")):
        (place / name).symlink_to(target)
    script, *options = rng.choice(COMMANDS)
    parser = {"train.py": train.make_parser, "evaluate.py": evaluate.make_parser}.get(script, datasets_parser)()
    actions = {action.option_strings[0]: action for action in parser._actions if action.option_strings
               and action.option_strings[0] not in ("-h", "--compile", "--detect")}
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, kind = rng.randrange(len(options)), rng.randrange(6)
        name = (options[at] if isinstance(options[at], list) else options[at].split(" "))[0]
        if kind == 0 and len(options) > 1:
            del options[at]
            continue
        if kind > 2 or name not in actions:
            name, at = rng.choice(list(actions)), len(options)
        action = actions[name]
        known = action.choices if action.choices and rng.random() < 0.8 else NUMBERS if "number" in str(action.type) else NAMES
        if name in ("--csv", "--plot", "--save-predictions", "--export"):
            known = [word for word in known if word != "fifo.png"]      # writing into a pipe waits for its reader
        count = {None: 1, 0: 0, "+": rng.choice((1, 2, 3))}.get(action.nargs, action.nargs)
        count = count if rng.random() < 0.95 else rng.randrange(4)
        options[at:at + 1] = [[name, *rng.choices(list(known), k=count)]]
    words = [word for option in options for word in (option if isinstance(option, list) else option.split(" "))]
    return script, words


def datasets_parser() -> datasets.Parser:
    """The options of datasets.py, as its main has them."""
    parser = datasets.Parser("")
    parser.add_data()
    parser.add_image_size()
    return parser


KINDS = {kind.__name__: kind for kind in (checkpoint, table, photo, log, command)}


def try_one(kind: str, seed: int, number: int, place: Path, base: Path) -> tuple[int, tuple]:
    """Make an input and check what holds. Returns exit status and command."""
    rng = random.Random(f"{kind} {seed} {number}")
    (place / "data").symlink_to(base / "data")
    for name in ("a.png", "tiny.pth"):
        shutil.copy(base / name, place)
    script, arguments = KINDS[kind](rng, place, base)
    try:
        return check(script, arguments, place), (script, arguments)
    except BaseException as error:
        error.add_note(f"{kind}, seed {seed}, input {number}: {script} {arguments} in {place}")
        raise


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    pytest.importorskip("fcntl")                            # for alarms and pipes, as Windows has none
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("kind", KINDS)
def test_any_input_ends_in_0_1_or_a_line_and_2(kind, base, tmp_path):
    for number in range(COUNT):
        place = tmp_path / str(number)
        place.mkdir()
        try_one(kind, SEED, number, place, base)
        shutil.rmtree(place)


def by_hand(seed: int, count: int, kinds: list[str]) -> None:
    """`count` inputs of the kinds in turn; tells each failure and keeps its folder."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(10**6)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz{seed}-"))
    base, statuses, failed = make_base(folder / "base"), collections.Counter(), 0
    for number in range(count):
        kind = kinds[number % len(kinds)]
        place = folder / f"{kind}{number}"
        place.mkdir()
        started = time.monotonic()
        (folder / "now").write_text(f"{kind} {seed} {number}")
        try:
            status, told = try_one(kind, seed, number, place, base)
            statuses[kind, status] += 1
            if time.monotonic() - started > 3:
                print(f"{time.monotonic() - started:.1f} s: {kind} {seed} {number} {told}", flush=True)
        except KeyboardInterrupt:
            raise
        except BaseException:
            failed += 1
            print(traceback.format_exc(limit=-6), "=" * 80, sep="\n", flush=True)
            continue
        shutil.rmtree(place)
    print(f"seed {seed}: {failed} of {count} failed; {dict(sorted(statuses.items()))}; {folder}")


if __name__ == "__main__":
    by_hand(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(KINDS))
