"""Random damage to all that the scripts read: they end with 0, 1, or 2 and a line, and write nothing half.

    python tests/test_fuzz.py SEED COUNT [KIND ...]     more of it, by hand; what fails is told and kept
"""
import collections
import contextlib
import csv
import faulthandler
import importlib
import io
import itertools
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock

from conftest import picture    # before the scripts, since it tells where they are

import datasets  # noqa: I001
import evaluate
import model as models
import train

SEED, COUNT = int(os.environ.get("FUZZ_SEED", 0)), int(os.environ.get("FUZZ_COUNT", 40))    # inputs a kind
LONGEST = 60                            # seconds that an input may take, on a busy machine
SMALL = ("--image-size", "32", "--samples", "4", "--batch-size", "4", "--epochs", "1")


class Tiny(models.FaceNet):
    """FaceNet with 4 to 8 channels instead of 64 to 512: the same names, a thousandth of the bytes."""

    def __init__(self):
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes, self.base_width = nn.BatchNorm2d, 4, 64
        self.dilation = self.groups = 1
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        for i, (width, stride) in enumerate(((4, 1), (4, 2), (4, 2), (8, 2)), 1):
            self.add_module(f"layer{i}", self._make_layer(BasicBlock, width, 2, stride))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Identity()
        for task, classes in models.CLASSES.items():
            self.add_module(task, nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes)))


# ---- what must hold of any input --------------------------------------------------------------------------

class Hangs(BaseException):
    """No Exception, since the scripts catch what Pillow and torch raise."""


@contextlib.contextmanager
def time_limit(seconds: int):
    """Raise Hangs after `seconds`."""
    def stop(*_):
        raise Hangs(f"longer than {seconds} s")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ended(script: str, arguments: Iterable[str], place: Path) -> tuple[int, str]:
    """A script's exit status in `place`, with a tiny network, and what it wrote to stderr."""
    module, errors = importlib.import_module(script.removesuffix(".py")), io.StringIO()
    with (pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()),
          contextlib.redirect_stderr(errors), time_limit(LONGEST)):
        patch.chdir(place)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setattr(sys, "stdin", io.StringIO("a.png\n\nx\n"))
        patch.setattr(models, "FaceNet", Tiny)
        patch.setattr(datasets, "detector", lambda: None)
        patch.setattr(datasets, "find_faces", odd_faces)
        patch.setattr(evaluate, "SHIPPED", place / "tiny.pth")
        patch.setattr(train, "EPOCHS", 2)
        patch.setattr(train, "FINE_TUNING_EPOCHS", 2)
        with pytest.raises(SystemExit) as exit:
            datasets.script(module.main, models.CheckpointError)
    return exit.value.code or 0, errors.getvalue()


def odd_faces(picture: Image.Image) -> list[datasets.Found]:
    """Faces somewhere in a picture, none, one or several, in place of those that a detector finds."""
    rng, found = np.random.default_rng(picture.size), []
    for _ in range(rng.integers(4)):
        left, right = np.sort(rng.integers(0, picture.width + 1, 2)).tolist()
        top, bottom = np.sort(rng.integers(0, picture.height + 1, 2)).tolist()
        points = np.array([left, top]) + rng.uniform(-0.5, 1.5, (5, 2)) * [right - left, bottom - top]
        found.append(datasets.Found((left, top, right, bottom), points, 0.95))
    return found


def contents(place: Path) -> dict[Path, bytes]:
    """What is in the files of a folder, its caches aside."""
    return {file: file.read_bytes() for file in place.rglob("*")
            if file.is_file() and ".cache" not in file.parts}


def check(script: str, arguments: Iterable[str], place: Path) -> int:
    """Run a script in `place` and assert what holds for any input. Returns its exit status."""
    before = contents(place)
    status, errors = ended(script, arguments, place)
    assert status in (0, 1, 2) and "Traceback" not in errors, f"{status} {errors}"
    if status == 2:
        *notes, last = errors.splitlines() or [""]
        assert last.startswith(f"{script}: error: "), errors[:2000]
        assert len(last) < 2000, f"a line of {len(last)} characters: {last[:200]}"
        assert len(set(notes)) == len(notes), errors[:2000]
        for note in notes:              # before it, what of several logs, pictures or caches is left out
            assert re.search("left out$|made anew$|not a readable picture", note), errors[:2000]
    assert not list(place.rglob(".*.partial")), "a partial file is left"
    for file, content in contents(place).items():
        if before.get(file) != content:
            check_whole(file, content)
    return status


def check_whole(file: Path, content: bytes) -> None:
    """Assert that a file which a script wrote is whole."""
    if content.startswith(b"PK"):
        models.read_checkpoint(file)
    elif content.startswith(b"\x89PNG"):
        Image.open(file).load()
    elif content.startswith(b"image,"):
        header, *rows = csv.reader(content.decode(errors="surrogateescape").splitlines(True))
        assert rows and {len(row) for row in rows} == {len(header)}, f"{file} is not whole"
    elif content.startswith(b"["):
        lines = filter(None, content.decode().splitlines())
        odd = [line for line in lines if not evaluate.STAMPED.fullmatch(line)]
        assert not odd, f"{file} has lines without a time: {odd[:2]}"
    else:
        assert content or file.name == "drawn" or file.name.endswith(".lock"), f"{file} is empty"


# ---- what is damaged: made once ---------------------------------------------------------------------------

def make_base(base: Path) -> Path:
    """A folder with tiny sets, checkpoints, a run's last.pth and its log, and a picture."""
    make_sets(base / "data")
    picture(base / "a.png", 3)
    assert ended("train.py", SMALL, base) == (0, "")
    (run,) = (base / "checkpoints").iterdir()
    shutil.copy(run / "best.pth", base / "tiny.pth")
    content = torch.load(run / "last.pth", weights_only=True)
    content["settings"]["epochs"] = 2                       # so that the run is not finished
    torch.save(content, base / "last.pth")
    log = (base / f"logs/{run.name}.txt").read_text()
    (base / "log.txt").write_text(log.replace("--epochs 1 ", "--epochs 2 "))
    shutil.rmtree(base / "checkpoints")
    shutil.rmtree(base / "logs")
    assert ended("evaluate.py", ("--export", "own.pth"), base) == (0, "")
    theirs = {f"resNet.{name}": value for name, value in content["model"].items() if "layer" in name}
    theirs |= {"age_cls_pred.weight": torch.zeros(70, 8), "gen_cls_pred.weight": torch.zeros(2, 8)}
    torch.save({"state_dic": theirs, "epoch": 3}, base / "theirs.pth")
    return base


# three of the train part, by their hashes, and one of the valid part
UTKFACE = [f"{name}.jpg.chip.jpg" for name in
           ("21_1_1_20170101", "22_0_2_20170102", "23_1_3_20170103", "27_1_2_20170127")]
FAIRFACE = ["train/1.jpg", "train/2.jpg", "train/3.jpg", "train/11.jpg"]


def make_sets(root: Path) -> None:
    """Each set with a few pictures in its train and its valid part."""
    for part in ("train", "valid"):
        for i in range(2):
            picture(root / f"cvpr2016/age/{part}/{i}.png", i, (18, 16))
            picture(root / f"cvpr2016/gender/{part}/{datasets.GENDERS[i]}/{i}.png", i, (18, 16))
        table = "image,mean,stdv\n0.png,31.5,4.25\n1.png,60,0\n"
        (root / f"cvpr2016/age/{part}_gt.csv").write_text(table)
    usages = ("Training", "Training", "PublicTest", "Training", "PublicTest", "PrivateTest")
    rows = [f"{i % 7},{' '.join([str(i * 20)] * 2304)},{usage}" for i, usage in enumerate(usages)]
    (root / "fer2013").mkdir()
    (root / "fer2013/fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows, ""]))
    rows = ["file,age,gender,race,service_test"]
    for i in range(4):
        picture(root / "utkface" / UTKFACE[i], i)
        picture(root / "fairface" / FAIRFACE[i], i)
        age, gender = ("3-9", "20-29", "more than 70")[i % 3], ("Male", "Female")[i % 2]
        rows.append(f"{FAIRFACE[i]},{age},{gender},Black,True")
    (root / "fairface/fairface_label_train.csv").write_text("\n".join([*rows, ""]))
    (root / "sample").symlink_to(root)                      # --data sample, which need not be drawn then
    (root / "drawn").touch()


# ---- damage to anything -----------------------------------------------------------------------------------

ODD_BYTES = (b"\0", b"\xff" * 9, b"\0" * 50, b"\n", b"\r", b'"', b",", b";", b"\t", b"\xef\xbb\xbf", b"\xe9",
             b"9" * 30)
ODD_TEXTS = ("", " ", "x", "nan", "inf", "-inf", "-1", "-0", "0", "1e999", "1e-320", "1e300", "0x1", "1_0",
             "٣", "3.5", "101", "9" * 400, "a\0b", '"', '"a', 'a"', "'", "a\nb", "a,b", "a;b\tc", "\ufeff",
             "é" * 300, "/etc/passwd", "../" * 40, "a" * 140_000, "\u2028", "%s", "{0}", "--", "--lr",
             "--weights a")


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes of which some are flipped, lost, doubled or put in, or the end is lost."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 30, 1000))
        odd = rng.choice(ODD_BYTES)
        kind = rng.choice(("cut", "lose", "double", "insert", "replace", "flip", "flip", "flip"))
        if kind == "cut":
            del data[at:]
        elif kind == "lose":
            del data[at:at + length]
        elif kind == "double":
            data[at:at] = data[at:at + length]
        elif kind == "insert":
            data[at:at] = odd
        elif kind == "replace":
            data[at:at + len(odd)] = odd
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def odd_table(rng: random.Random, text: str) -> bytes:
    """A table with odd cells, another separator, rows that came twice, went or are longer; or odd bytes."""
    if rng.random() < 0.3:
        return damaged(rng, text.encode())
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        row, kind = rng.choice(rows), rng.randrange(6)
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
    text = end.join(separator.join(row) for row in rows)
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16")))


# ---- odd checkpoints --------------------------------------------------------------------------------------

def odd_values() -> list:
    """Values of all kinds."""
    itself, listed, deep, shared = {}, [], {}, {}
    itself["a"] = itself
    listed.append(listed)
    for _ in range(150):
        deep = {"a": [deep]}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    return [
        None, True, 0, 1, -5, 2**70, 0.0, -1.5, math.nan, math.inf, "", "x", "a\nb", "x" * 1000, "--help",
        "-1", b"bytes", 1j, [], [None], [1, [2]], [[]], ["age"], ["age", "age"], (), (1, 2), {1, 2}, {},
        {1: 2}, {"": 0}, {"help": "x"}, itself, listed, deep, shared, collections.OrderedDict(a=1),
        torch.float32, torch.Size([2]), np.float64(2), np.zeros(3), np.array(["a"]), [torch.zeros(2)] * 3,
        [np.zeros(2)] * 3, torch.zeros(()), torch.zeros(0), torch.ones(2, 3), torch.arange(3),
        torch.tensor(True), torch.zeros(2, dtype=torch.complex64), torch.zeros(3, 3).to_sparse(),
        torch.zeros(3, 3).to_sparse_csr(), torch.zeros(2, device="meta"),
        torch.zeros(()).expand(10**5, 10**5), torch.tensor(math.nan), nn.Parameter(torch.zeros(2))]


def odd_tensor(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    """A tensor that is odd in place of `value`; raises what torch raises where there is none of a kind."""
    names = ("float64", "float16", "bfloat16", "int8", "uint16", "uint64", "bool", "complex64", "bits8",
             "quint8", "float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2")
    dtype = getattr(torch, rng.choice(names), torch.float32)    # an older torch lacks some
    kinds = (
        lambda: value.to(dtype), lambda: torch.empty(value.shape, dtype=dtype), lambda: value.to("meta"),
        lambda: value.to_sparse(), lambda: value.to_mkldnn(), lambda: torch.nested.nested_tensor([value]),
        lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8), lambda: value * math.nan,
        lambda: value.float() * 1e38, lambda: -value.abs(), lambda: torch.zeros(()), lambda: value[None],
        lambda: value[:1], lambda: value.flatten(), lambda: value.expand(3, *value.shape),
        lambda: torch.zeros(()).expand(value.shape), lambda: value.mT.contiguous().mT,
        lambda: value.clone().requires_grad_())
    return rng.choice(kinds)()


def make_odd(rng: random.Random, content: dict) -> None:
    """Make something in a checkpoint's content odd, at any depth: another value, name, or none."""
    part = content
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        if "model" in keys and rng.random() < 0.6:
            keys.remove("model")                            # most of what is there, and soon refused
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(part[key], (dict, list)) or rng.random() < 0.2:
            break
        part = part[key]
    kind = rng.randrange(8)
    if kind == 0:
        del part[key]
    elif kind == 1 and isinstance(part, dict):
        name = rng.choice(("x", "", 1, None, (1, 2), "a\nb", "layer1.2.conv1.weight", f"module.{key}"))
        part[name] = part.pop(key)
    elif kind == 2 and isinstance(part, dict):
        name = rng.choice(("x", 1, "help", "logs", "resume", "margin", "state_dict"))
        part[name] = rng.choice(odd_values())
    elif kind < 6 and isinstance(part[key], torch.Tensor):
        with contextlib.suppress(RuntimeError, NotImplementedError, TypeError, IndexError):
            part[key] = odd_tensor(rng, part[key])
    else:
        part[key] = rng.choice(odd_values())


def odd_checkpoint(rng: random.Random, data: bytes) -> bytes:
    """A checkpoint of odd content, or damaged; within its zip archive too, with checksums that are right."""
    kind = rng.choice(("bytes", "zip", "old format", "content", "content", "content"))
    if kind == "bytes":
        return damaged(rng, data)
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
            names = old.namelist()
            odd = rng.choice((names[0], names[0], rng.choice(names)))       # the first is data.pkl
            for name in names:
                new.writestr(name, damaged(rng, old.read(name)) if name == odd else old.read(name))
        return file.getvalue()
    content = torch.load(io.BytesIO(data), weights_only=True)
    if kind == "old format":
        torch.save(content, file, _use_new_zipfile_serialization=False)
        return damaged(rng, file.getvalue())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        make_odd(rng, content)
    content = rng.choice([content] * 500 + [content.get("model"), *odd_values()])
    with contextlib.suppress(RuntimeError, NotImplementedError, RecursionError):    # torch can't save all
        torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.8)
        return file.getvalue()
    return data


# ---- the kinds of inputs: each makes its files in `place` and returns the script and its arguments --------

def checkpoint(rng: random.Random, place: Path, base: Path) -> tuple[str, tuple]:
    """An odd checkpoint, by each of the ways that one is read."""
    name = rng.choice(("last.pth", "last.pth", "tiny.pth", "own.pth", "theirs.pth"))
    (place / "run").mkdir()
    (place / "logs").mkdir()
    (place / "run/last.pth").write_bytes(odd_checkpoint(rng, (base / name).read_bytes()))
    shutil.copy(base / "log.txt", place / "logs/run.txt")
    if name == "last.pth":
        return "train.py", ("--resume", "run/last.pth")
    if name == "theirs.pth":
        return "train.py", (*SMALL, "--pretrained", "run/last.pth")
    script, *options = rng.choice((
        ("train.py", *SMALL, "--pretrained"), ("train.py", *SMALL, "--teacher"),
        ("evaluate.py", "a.png", "--csv", "p.csv", "--checkpoint"),
        ("evaluate.py", "--export", "e.pth", "--checkpoint"),
        ("evaluate.py", "--split", "fer2013", "--save-predictions", "p.csv", "--checkpoint")))
    return script, (*options, "run/last.pth")


def own_sets(place: Path, base: Path) -> None:
    """A copy of the tiny sets in place of the link to them."""
    (place / "data").unlink()
    shutil.copytree(base / "data", place / "data", symlinks=True)


TABLES = {"cvpr2016": "cvpr2016/age/valid_gt.csv", "fer2013": "fer2013/fer2013.csv",
          "fairface": "fairface/fairface_label_train.csv"}


def table(rng: random.Random, place: Path, base: Path) -> tuple[str, tuple]:
    """An odd table of a set, or odd predictions."""
    own_sets(place, base)
    if rng.random() < 0.25:
        for name in ("p.csv", "q.csv"):
            rows = [f"{i},{rng.choice(datasets.EMOTIONS)},{rng.randrange(100)}" for i in range(2)]
            (place / name).write_bytes(odd_table(rng, "\n".join(["image,emotion,age", *rows])))
        files = rng.choice((("p.csv",), ("p.csv", "q.csv")))
        return "evaluate.py", ("--split", "fer2013", "--predictions", *files)
    split = rng.choice(list(TABLES))
    file = place / "data" / TABLES[split]
    file.write_bytes(odd_table(rng, file.read_text()))
    if rng.random() < 0.1:
        names = ("icml_face_data.csv", "gt_avg_valid.csv", "fairface_label_val.csv")
        file.rename(file.with_name(rng.choice(names)))
    return sets_read(rng, split)


def sets_read(rng: random.Random, split: str) -> tuple[str, tuple]:
    """A command that reads a split."""
    weights = ("0", "0", "1") if split == "fer2013" else ("1", "1", "0")
    return rng.choice((
        ("datasets.py", ("--image-size", "16")),
        ("train.py", (*SMALL, "--split", split, "--weights", *weights, *rng.choice(((), ("--detect",))))),
        ("evaluate.py", ("--split", split, "--save-predictions", "p.csv"))))


FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
           ".avif": "AVIF", ".mpo.jpg": "MPO", ".jp2": "JPEG2000", ".ppm": "PPM", ".eps.jpg": "EPS",
           ".sgi.gif": "SGI"}
MODES = ("RGB", "RGB", "1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F", "LAB",
         "HSV")
NAMES_OF_UTKFACE = ("101_{}", "-1_{}", "5_2_{}", "5_1_9_{}", "x{}", "{}.png", "é{}.jpg", "1_1_1_1\udce9{}",
                    "a\n{}")


def odd_picture(rng: random.Random) -> tuple[str, bytes]:
    """The ending of a picture's name and what is in it: any mode and format, mostly damaged."""
    size = rng.choice(((20, 24), (20, 24), (1, 1), (1, 900), (900, 1), (3, 2)))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (size[1], size[0], 3), np.uint8)
    suffix, mode = rng.choice([*FORMATS, ".jpg", ".png", ".tif"]), rng.choice(MODES)
    exif = Image.Exif()
    exif[0x0112] = rng.choice((3, 6, 8, 0, 99))             # orientation
    options = rng.choice((
        {}, {"exif": exif}, {"exif": b"Exif\0\0MM\0*" + rng.randbytes(40)}, {"compression": "tiff_lzw"},
        {"compression": "jpeg"}, {"compression": "tiff_deflate"}, {"progressive": True}, {"lossless": True},
        {"transparency": 0}, {"transparency": b"\0\x80"}, {"save_all": True},
        {"icc_profile": rng.randbytes(200)}))
    image, file = Image.fromarray(noise), io.BytesIO()
    try:
        image = image.convert("L").convert(mode) if mode[0] in "IF" else image.convert(mode)
        image.save(file, FORMATS[suffix], **options)
    except Exception:                                       # not every mode and option fits every format
        file = io.BytesIO()
        Image.fromarray(noise).save(file, FORMATS[suffix])
    return suffix, damaged(rng, file.getvalue()) if rng.random() < 0.8 else file.getvalue()


def photo(rng: random.Random, place: Path, base: Path) -> tuple[str, tuple]:
    """Odd pictures, of one's own or of a set; odd names of UTKFace's."""
    pictures = [odd_picture(rng) for _ in range(2)]
    if rng.random() < 0.7:
        (place / "faces").mkdir()
        for i, (suffix, content) in enumerate(pictures):
            (place / f"faces/{i}{suffix}").write_bytes(content)
        return "evaluate.py", ("faces", "--csv", "p.csv", *rng.choice(((), ("--tta",), ("--out", "out"))),
                               *rng.choice(((), ("--detect",))))
    own_sets(place, base)
    for i, (suffix, content) in enumerate(pictures):
        (place / f"data/cvpr2016/gender/valid/female/{i}{suffix}").write_bytes(content)
    file = rng.choice(sorted((place / "data/utkface").iterdir()))
    file.rename(file.with_name(rng.choice(NAMES_OF_UTKFACE).format(file.name)))
    return sets_read(rng, rng.choice(("cvpr2016", "utkface")))


def log(rng: random.Random, place: Path, base: Path) -> tuple[str, tuple]:
    """Logs with odd words and numbers, lines that came twice or went, or odd bytes."""
    (place / "logs").mkdir()
    for i in range(rng.choice((1, 2))):
        lines = (base / "log.txt").read_text().splitlines()
        lines += lines[-14:] * rng.randrange(2)
        for _ in range(rng.choice((1, 3, 10))):
            at, kind = rng.randrange(len(lines)), rng.randrange(6)
            if kind == 0:
                lines[at:at + 1] = [] if len(lines) > 1 else [""]
            elif kind == 1:
                lines.insert(at, rng.choice(lines))
            else:
                words = lines[at].split(" ")
                words[rng.randrange(len(words))] = rng.choice(ODD_TEXTS)
                lines[at] = " ".join(words)
        content = "\n".join([*lines, ""]).encode()
        (place / f"logs/{i}.txt").write_bytes(damaged(rng, content) if rng.random() < 0.3 else content)
    return "evaluate.py", ("--logs", "logs", *(("--plot", "p.png") if rng.random() < 0.05 else ()))


COMMANDS = (                            # options with their values
    ("train.py", "--image-size 32", "--samples 4", "--batch-size 4", "--epochs 1"),
    ("train.py", "--image-size 32", "--samples 4", "--epochs 1", "--weights 1 0 0", "--split cvpr2016"),
    ("train.py", "--image-size 32", "--samples 4", "--epochs 1", "--pretrained tiny.pth"),
    ("train.py", "--image-size 32", "--samples 4", "--epochs 1", "--teacher tiny.pth run/last.pth"),
    ("train.py", "--resume run/last.pth"), ("evaluate.py", "a.png", "--csv p.csv"),
    ("evaluate.py", "a.png -", "--out out", "--tta"),
    ("evaluate.py", "--split fer2013", "--save-predictions p.csv"),
    ("evaluate.py", "--split cvpr2016", "--predictions q.csv"), ("evaluate.py", "--logs logs"),
    ("evaluate.py", "--export e.pth", "--margin 0.3"), ("datasets.py", "--image-size 16"))
NUMBERS = ("0", "1", "2", "3", "-1", "0.5", "16", "40", "nan", "inf", "1e999", "1e-320", "1e300", "1_0",
           "0x10", "9" * 25, "", "x", " 2 ")
NAMES = ("", " ", "-", "--", "x", "0", "é", "\udce9", "a" * 300, "a\nb", "a.png", "p.csv", "q.csv",
         "tiny.pth", "run/last.pth", "run", "logs", "logs/run.txt", "data", "sample", "out", "new/p.csv",
         "fer2013", "cpu", "cpu:1", "cuda", "cuda:99", "meta", "pipe.png", "dangling.png", "loop.png",
         "empty.png", "linked", "e.pth", "p.pdf", "p.what", "/dev/null", "/dev/full", "~", "%s")


def options_of(script: str) -> dict:
    """The options of a script by name, without those that take long or show the help."""
    if script == "datasets.py":
        parser = datasets.Parser("")
        parser.add_data()
        parser.add_image_size()
    else:
        parser = {"train.py": train, "evaluate.py": evaluate}[script].make_parser()
    named = {action.option_strings[-1]: action for action in parser._actions if action.option_strings}
    slow = ("--compile", "--help")
    return {name: action for name, action in named.items() if name not in slow}


def command(rng: random.Random, place: Path, base: Path) -> tuple[str, tuple]:
    """A command line that is right but for some options."""
    for folder in ("run", "logs", "out"):
        (place / folder).mkdir()
    shutil.copy(base / "last.pth", place / "run/last.pth")
    shutil.copy(base / "log.txt", place / "logs/run.txt")
    (place / "q.csv").write_text("image,age\nage/valid/0.png,30\nage/valid/1.png,40\n")
    (place / "empty.png").touch()
    os.mkfifo(place / "pipe.png")
    for name, target in (("dangling.png", "nowhere"), ("loop.png", "loop.png"), ("linked", "out")):
        (place / name).symlink_to(target)
    script, *options = rng.choice(COMMANDS)
    options, known = [option.split(" ") for option in options], options_of(script)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, kind = rng.randrange(len(options)), rng.choice(("lose", "change", "change", "add", "add", "add"))
        if kind == "lose" and len(options) > 1:
            del options[at]
            continue
        if kind != "change" or options[at][0] not in known:
            options.append([rng.choice(list(known))])
            at = -1
        name, action = options[at][0], known[options[at][0]]
        words = NUMBERS if "number" in str(action.type) else NAMES
        if name in ("--csv", "--plot", "--save-predictions", "--export"):
            words = [word for word in words if word != "pipe.png"]      # one that writes waits for a reader
        words = list(action.choices) if action.choices and rng.random() < 0.8 else words
        count = {None: 1, "+": rng.choice((1, 2, 3))}.get(action.nargs, action.nargs)
        options[at] = [name, *rng.choices(words, k=count if rng.random() < 0.95 else rng.randrange(4))]
    return script, tuple(itertools.chain(*options))


KINDS = {kind.__name__: kind for kind in (checkpoint, table, photo, log, command)}


# ---- running them -----------------------------------------------------------------------------------------

def try_one(kind: str, seed: int, number: int, place: Path, base: Path) -> int:
    """Make an input in a new folder and check what holds. Returns the exit status."""
    rng = random.Random(f"{kind} {seed} {number}")
    place.mkdir()
    (place / "data").symlink_to(base / "data")
    for name in ("a.png", "tiny.pth"):
        shutil.copy(base / name, place)
    script, arguments = KINDS[kind](rng, place, base)
    try:
        status = check(script, arguments, place)
    except BaseException as error:
        error.add_note(f"{kind}, seed {seed}, input {number}: {script} {arguments} in {place}")
        raise
    shutil.rmtree(place)
    return status


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    pytest.importorskip("fcntl")                            # Windows has no alarms and no named pipes
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.filterwarnings("ignore")                       # of Pillow, where odd pictures are made
@pytest.mark.parametrize("kind", KINDS)
def test_any_input_ends_in_0_or_1_or_in_2_and_a_line(kind, base, tmp_path):
    for number in range(COUNT):
        try_one(kind, SEED, number, tmp_path / str(number), base)


def by_hand(seed: int, count: int, kinds: list[str]) -> None:
    """Try `count` inputs, of the kinds in turn; tell each failure and keep its folder."""
    faulthandler.enable()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz{seed}-"))
    base, statuses = make_base(folder / "base"), collections.Counter()
    for number, kind in zip(range(count), itertools.cycle(kinds)):
        try:
            statuses[kind, try_one(kind, seed, number, folder / f"{kind}{number}", base)] += 1
        except (Exception, Hangs):
            statuses[kind, "failed"] += 1
            print(traceback.format_exc(limit=-6), flush=True)
    print(f"seed {seed}, {count} inputs in {folder}: {dict(statuses)}")


if __name__ == "__main__":
    by_hand(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(KINDS))
