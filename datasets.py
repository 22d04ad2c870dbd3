"""Where faces come from: readers of IMDB-WIKI, ChaLearn CVPR 2016 and FER2013, a cache of decoded images, batches.

    python datasets.py --data data        what is there, what of it is used, what is dropped and why
    python datasets.py --data sample      the same for the drawn sample, which needs no download

Labels: age in years (float32, NaN unknown), gender 0 female, 1 male, -1 unknown, emotion 0..6 as in EMOTIONS, -1 unknown.
Images: uint8, height x width x channels; decoded once, resized once, and kept in a memory map under CACHE.
"""
import argparse
import csv
import errno
import functools
import hashlib
import io
import math
import mmap
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps

TASKS = ("age", "gender", "emotion")
GENDERS = ("female", "male")
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
OLDEST = 100                                                # ages are 0..100 years
SPLITS = {"imdb-wiki": ("age", "gender"), "cvpr2016": ("age", "gender"), "fer2013": ("emotion",)}
SUBSETS = ("train", "valid", "test")
IMAGE_FILES = (".jpg", ".jpeg", ".png")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # of ImageNet, which torchvision's own weights expect
TEXT = np.dtypes.StringDType()                              # a quarter of the memory of fixed-width text
CACHE_FORMAT = 1                                            # counts up when decoded images change, so that no old one is used

LUMA = (0.299, 0.587, 0.114)                                # ITU-R BT.601, as Pillow's conversion to grey
MOST_PIXELS = 90_000_000                                    # a larger picture is refused unread
warnings.simplefilter("ignore", Image.DecompressionBombWarning)      # Pillow's own word on it


class DataError(Exception):
    """A user's mistake, told in one line that says what would be right."""


class Missing(DataError):
    """A set or a subset that is not on disk."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; a script's docstring is its help."""

    def __init__(self, text: str):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def in_range(kind: type, low: float, high: float = math.inf):
    """An argparse type: a finite `kind` from `low` to `high`."""
    def parse(text: str):
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(f"{text} is out of range; expected {low} to {high}" if high < math.inf else f"{text} is out of range; expected at least {low}")
        return value
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def script(main: Callable[[], int | None], *mistakes: type[Exception]) -> None:
    """Run a script: a DataError, an OSError or one of `mistakes` becomes one line on stderr and exit status 2."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")    # file names that are not UTF-8 pass through as they are
    try:
        status = main()
        sys.stdout.flush()                                  # here a closed pipe can still be caught
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:                                 # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (DataError, OSError, *mistakes) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, (OSError, torch.OutOfMemoryError)):    # a mistake is told once a host, not by each process
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def progress(items: Iterable, total: int, what: str, unit_scale: int = 1) -> Iterable:
    """`items` with a bar of images per second on stderr, if that is a terminal and tqdm is installed."""
    if not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, total=total, unit=" images", unit_scale=unit_scale, leave=False)


# ---- sets of faces ---------------------------------------------------------------------------------------------------

@dataclass
class Faces:
    """Faces of one set and subset, as many rows in each array; `decode` adds their pixels."""
    name: str                                   # e.g. "cvpr2016 age valid"
    folder: Path                                # what `files` are relative to: the split's folder
    files: np.ndarray                           # (n,) str, or FER2013's row numbers within the subset
    age: np.ndarray                             # (n,) float32 years, NaN unknown
    stdv: np.ndarray                            # (n,) float32 years, of the guesses that `age` is the mean of, NaN unknown
    gender: np.ndarray                          # (n,) int64, -1 unknown
    emotion: np.ndarray                         # (n,) int64, -1 unknown
    dropped: dict[str, np.ndarray] = field(default_factory=dict)        # reason -> names of the rows it took away
    pixels: np.ndarray | None = None            # (n, height, width, 3 or 1) uint8

    def __len__(self) -> int:
        return len(self.files)

    def keep(self, rows: np.ndarray, reason: str | None = None) -> "Faces":
        """The faces where `rows` (bool, n) holds; the others are counted under `reason`, if one is given."""
        dropped = dict(self.dropped)
        if reason and not rows.all():
            dropped[reason] = self.files[~rows]
        arrays = {name: getattr(self, name)[rows] for name in ("files", "age", "stdv", "gender", "emotion")}
        return replace(self, dropped=dropped, **arrays)


def make_faces(name: str, folder: Path, files: Sequence[str] | np.ndarray, age=None, stdv=None, gender=None, emotion=None) -> Faces:
    """A Faces in which the labels that are not given are unknown."""
    try:
        files = np.asarray(files, TEXT)
    except UnicodeEncodeError:
        raise DataError(f"{folder}: a file's name is not UTF-8, {next(name for name in files if not name.isprintable())!a}; rename it") from None

    def column(values, unknown, dtype):
        return np.full(len(files), unknown, dtype) if values is None else np.asarray(values, dtype)
    return Faces(name, folder, files, column(age, np.nan, np.float32), column(stdv, np.nan, np.float32),
                 column(gender, -1, np.int64), column(emotion, -1, np.int64))


def read_csv(file: Path, columns: Collection[str], ignored: Collection[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row by column name); the header must hold `columns`, and no other but `ignored`. Raises DataError."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            rows = csv.reader(text)
            header = [name.strip() for name in next(rows, [])]
            expected = f"expected the columns {','.join(columns)}"
            if not header:
                raise DataError(f"{file}: empty file; {expected}")
            if lacking := [name for name in columns if name not in header]:
                raise DataError(f"{file}: no column {', '.join(lacking)}; {expected}")
            if unknown := [name for name in header if name not in columns and name not in ignored or header.count(name) > 1]:
                raise DataError(f"{file}: unknown or doubled column {', '.join(dict.fromkeys(unknown))}; {expected}")
            for row in rows:
                if row and len(row) != len(header):
                    raise DataError(f"{file} line {rows.line_num}: {len(row)} fields; expected {len(header)}, as in the header")
                if row:
                    yield rows.line_num, dict(zip(header, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8 ({error})") from None


def number(text: str, low: float, high: float, where: str, what: str) -> float:
    """`text` as a number within low..high. Raises DataError that names `where` and `what`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise DataError(f"{where}: {what} is {text.strip()!r}; expected a number from {low} to {high}")
    return value


def child(folder: Path, name: str) -> Path:
    """The entry of `folder` called `name`, in any case; `folder / name` where there is none."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else ()
    return next((entry for entry in entries if entry.name.lower() == name), folder / name)


def class_folders(folder: Path, root: Path, class_of: Callable[[str], int | None], expected: str) -> tuple[list[str], list[int]]:
    """Images of `folder`'s class folders, relative to `root` and in sorted order, with their classes. Raises DataError."""
    files, classes = [], []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        if (label := class_of(entry.name.lower())) is None:
            raise DataError(f"{entry}: unknown class folder; expected {expected}")
        for file in sorted(entry.iterdir()):
            if file.suffix.lower() in IMAGE_FILES:
                files.append(file.relative_to(root).as_posix())
                classes.append(label)
    return files, classes


def read_cvpr_age(root: Path, subset: str) -> Faces:
    """ChaLearn LAP 2016 apparent age, in any of its three layouts. Raises Missing, DataError."""
    split, folder = root / "cvpr2016", root / "cvpr2016/age"
    files, means, stdvs = [], [], []
    images = child(folder, subset)
    for table, image, mean, stdv, ignored, ending in (
            (f"{subset}_gt.csv", "image", "mean", "stdv", (), ""),
            (f"gt_avg_{subset}.csv", "file_name", "apparent_age_avg", "apparent_age_std", ("num_ratings", "real_age"), "_face.jpg")):
        if not (folder / table).is_file():
            continue
        for line, row in read_csv(folder / table, (image, mean, stdv), ignored):
            where = f"{folder / table} line {line}"
            means.append(number(row[mean], 0, OLDEST, where, mean))
            stdvs.append(number(row[stdv], 0, OLDEST, where, stdv))
            files.append((images / (row[image].strip() + ending)).relative_to(split).as_posix())
        if not files:
            raise DataError(f"{folder / table}: no rows under its header")
        break
    else:
        if images.is_dir():
            files, means = class_folders(images, split, lambda name: int(name) if name.isdecimal() and int(name) <= OLDEST else None,
                                         f"an age from 0 to {OLDEST}, or {subset}_gt.csv beside {images.name}/")
        if not files:
            raise Missing(f"no {folder / subset}_gt.csv, gt_avg_{subset}.csv or images in {subset}/<age>/: the age set's {subset} part is not there")
        stdvs = None
    return make_faces(f"cvpr2016 age {subset}", split, files, age=means, stdv=stdvs)


def read_cvpr_gender(root: Path, subset: str) -> Faces:
    """ChaLearn's gender folders, {subset}/{female,male}/. Raises Missing, DataError."""
    split = root / "cvpr2016"
    folder, files = child(split / "gender", subset), []
    if folder.is_dir():
        files, genders = class_folders(folder, split, {name: i for i, name in enumerate(GENDERS)}.get, "female or male")
    if not files:
        raise Missing(f"no images in {folder}/female/ and male/: the gender set's {subset} part is not there")
    return make_faces(f"cvpr2016 gender {subset}", split, files, gender=genders)


def read_fer2013(root: Path, subset: str, cache: Path) -> Faces:
    """FER2013 from fer2013.csv, icml_face_data.csv, or folders of images. Raises Missing, DataError."""
    folder = root / "fer2013"
    name = f"fer2013 {subset}"
    for table in (folder / "fer2013.csv", folder / "icml_face_data.csv"):
        if table.is_file():
            stat = table.stat()
            parsed = cached(cache, folder, "fer2013", f"{table.name} {stat.st_size} {stat.st_mtime_ns}", functools.partial(parse_fer2013, table))
            emotion = np.load(parsed / f"{subset}.npy")
            pixels = open_images(parsed / f"{subset}.u8", (48, 48, 1), len(emotion))
            if not len(emotion):
                raise Missing(f"{table}: no rows of {subset}")
            return replace(make_faces(name, folder, [str(row) for row in range(len(emotion))], emotion=emotion), pixels=pixels)
    # Kaggle's folders have PublicTest and PrivateTest in test/, told apart by the files' names; others have a valid/
    own = next((path for alias in ({"valid": ("valid", "validation")}.get(subset, (subset,)))
                if (path := child(folder, alias)).is_dir()), None)
    source, files = own or child(folder, "test" if subset == "valid" else subset), []
    if source.is_dir():
        files, emotion = class_folders(source, folder, {name: i for i, name in enumerate(EMOTIONS)}.get, "one of " + ", ".join(EMOTIONS))
    if not files:
        raise Missing(f"no {folder}/fer2013.csv, icml_face_data.csv or images in {subset}/<emotion>/: FER2013's {subset} part is not there")
    faces = make_faces(name, folder, files, emotion=emotion)
    public = np.array([Path(file).name.startswith("PublicTest") for file in files], dtype=bool)
    if own is None:
        if not public.any():
            raise Missing(f"no {folder}/valid/ and no file named PublicTest* in {source}: FER2013's valid part is not there")
        return faces.keep(public)
    return faces.keep(~public) if subset == "test" else faces


def parse_fer2013(table: Path, folder: Path) -> None:
    """FER2013's CSV as, for each subset, raw uint8 pixels and int64 emotions in `folder`. Raises DataError."""
    usages = {"Training": "train", "PublicTest": "valid", "PrivateTest": "test"}
    emotions = {subset: [] for subset in SUBSETS}
    outputs = {subset: open(folder / f"{subset}.u8", "wb") for subset in SUBSETS}
    try:
        for line, row in read_csv(table, ("emotion", "pixels", "Usage")):
            where = f"{table} line {line}"
            emotion = number(row["emotion"], 0, len(EMOTIONS) - 1, where, "emotion")
            if not emotion.is_integer():
                raise DataError(f"{where}: emotion is {row['emotion']!r}; expected a whole number")
            if (subset := usages.get(row["Usage"].strip())) is None:
                raise DataError(f"{where}: Usage is {row['Usage']!r}; expected {', '.join(usages)}")
            with warnings.catch_warnings():
                warnings.simplefilter("error")              # text that is no number is only a warning otherwise
                try:
                    pixels = np.fromstring(row["pixels"], np.int64, sep=" ")
                except (ValueError, DeprecationWarning):
                    raise DataError(f"{where}: a pixel is not a number; expected 0 to 255") from None
            if pixels.size != 48 * 48:
                raise DataError(f"{where}: {pixels.size} pixels; expected {48 * 48}")
            if pixels.min() < 0 or pixels.max() > 255:
                raise DataError(f"{where}: a pixel of {pixels.min() if pixels.min() < 0 else pixels.max()}; expected 0 to 255")
            outputs[subset].write(pixels.astype(np.uint8).tobytes())
            emotions[subset].append(int(emotion))
    finally:
        for output in outputs.values():
            output.close()
    if not any(emotions.values()):
        raise DataError(f"{table}: no rows under its header")
    for subset, values in emotions.items():
        np.save(folder / f"{subset}.npy", np.array(values, np.int64))


@functools.lru_cache(maxsize=2)
def read_mat(file: Path, mtime_ns: int) -> dict[str, np.ndarray]:
    """IMDB-WIKI's .mat as arrays of one row a face: files, subset, age, gender, face_score, second_face_score. Raises DataError."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{file}: reading it needs scipy: pip install scipy") from None
    try:
        # squeezed, a cell of text is a str, which takes a third of the memory of an array
        table = loadmat(file, squeeze_me=True, variable_names=[file.stem])[file.stem][()]
        columns = {name: np.atleast_1d(table[name]) for name in
                   ("dob", "photo_taken", "full_path", "gender", "name", "face_score", "second_face_score")}
        if len({len(values) for values in columns.values()}) != 1:
            raise ValueError("its columns differ in length")
        dob, taken, gender, score, second = (columns[name].astype(float) for name in
                                             ("dob", "photo_taken", "gender", "face_score", "second_face_score"))
        files = np.array([f"{file.parent.name}/{path}" for path in columns["full_path"]], TEXT)
    except Exception as error:                              # scipy raises anything on a file that is none
        raise DataError(f"{file}: not IMDB-WIKI's MATLAB file, a struct {file.stem!r} with its columns "
                        f"({type(error).__name__}: {' '.join(str(error).split())})") from None
    # a person is known by name, in both crops; where that is missing, by the number that begins the file's name
    del table                                               # the boxes in it are most of its memory
    names = (name.strip().casefold() if isinstance(name, str) else "" for name in columns["name"])
    persons = [name or path.rpartition("/")[2].split("_")[0] for name, path in zip(names, columns["full_path"])]
    subsets = {person: subset_of(person) for person in set(persons)}
    return {"files": files, "subset": np.array([subsets[person] for person in persons]), "age": completed_years(dob, taken), "gender": np.where(np.isin(gender, (0, 1)), gender, -1),
            "face_score": score, "second_face_score": second}


def completed_years(dob: np.ndarray, photo_taken: np.ndarray) -> np.ndarray:
    """Age on 1 July of the year `photo_taken`, in whole years, as IMDB-WIKI's authors count it; NaN where that can't be told.

    `dob` (n,) is MATLAB's serial date number: days since the year 0, 719529 on 1 January 1970.
    """
    known = np.isfinite(dob) & np.isfinite(photo_taken) & (np.abs(dob) < 1e7)
    birth = np.where(known, dob, 0).astype(np.int64) - 719529
    days = birth.astype("datetime64[D]")
    year = days.astype("datetime64[Y]").astype(np.int64) + 1970
    month = days.astype("datetime64[M]").astype(np.int64) % 12 + 1
    first_of_month = days == days.astype("datetime64[M]").astype("datetime64[D]")
    after_july_1 = (month > 7) | ((month == 7) & ~first_of_month)
    return np.where(known, photo_taken - year - after_july_1, np.nan).astype(np.float32)


def subset_of(person: str) -> str:
    """The subset that a person's every image is in: 90 % train, 5 % valid, 5 % test, by a hash of the name."""
    bucket = int.from_bytes(hashlib.blake2b(person.encode(), digest_size=4).digest(), "big") % 20
    return {18: "valid", 19: "test"}.get(bucket, "train")


def read_imdb_wiki(root: Path, subset: str) -> list[Faces]:
    """IMDB-WIKI's crops, cleaned, split by person; either crop may be absent. Raises Missing, DataError."""
    split, sets = root / "imdb-wiki", []
    for crop in ("imdb", "wiki"):
        file = split / f"{crop}_crop/{crop}.mat"
        if not file.is_file():
            continue
        table = read_mat(file, file.stat().st_mtime_ns)
        mine = table["subset"] == subset
        score, second = table["face_score"][mine], table["second_face_score"][mine]
        faces = make_faces(f"imdb-wiki {crop}_crop {subset}", split,
                           table["files"][mine], age=table["age"][mine], gender=table["gender"][mine])
        rules = (("no face", score > -np.inf), ("second face", ~(second > 0)), ("age unknown", ~np.isnan(faces.age)),
                 ("age below 0", faces.age >= 0), (f"age above {OLDEST}", faces.age <= OLDEST))
        left = np.ones(len(faces), dtype=bool)
        for reason, fine in rules:
            if (left & ~fine).any():
                faces.dropped[reason] = faces.files[left & ~fine]
            left &= fine
        sets.append(faces.keep(left))
    if not sets:
        raise Missing(f"no {split}/imdb_crop/imdb.mat or wiki_crop/wiki.mat: IMDB-WIKI is not there"
                      + (" (the sample was drawn without scipy: pip install scipy, and delete the sample)" if root.name == "sample" else ""))
    return sets


def load(root: Path, split: str, subset: str, tasks: Collection[str], size: int, cache: Path) -> list[Faces]:
    """The sets of a split that serve `tasks`, decoded.

    Args: root, the data root; split, a key of SPLITS; subset, one of SUBSETS; size, of decoded images in pixels (FER2013's
        stay 48x48x1); cache, the folder for decoded images.
    Raises: Missing, where a set that a task needs is not there; DataError, where one can't be used.
    """
    sets = []
    if split == "imdb-wiki":
        sets += read_imdb_wiki(root, subset)
    if split == "cvpr2016" and "age" in tasks:
        sets.append(read_cvpr_age(root, subset))
    if split == "cvpr2016" and "gender" in tasks:
        sets.append(read_cvpr_gender(root, subset))
    if split == "fer2013":
        sets.append(read_fer2013(root, subset, cache))
    sets = [only_tasks(faces if faces.pixels is not None else decode(faces, size, cache), tasks) for faces in sets]
    if not any(len(labelled(faces)) for faces in sets):
        reasons = ", ".join(f"{len(names)} {reason}, such as {names[0]}" for faces in sets for reason, names in faces.dropped.items())
        raise DataError(f"{sets[0].folder}: no usable face for {' and '.join(tasks)} in its {subset} part ({reasons or 'no images'})")
    return sets


def only_tasks(faces: Faces, tasks: Collection[str]) -> Faces:
    """`faces` with the labels of other tasks made unknown."""
    unknown = {"age": np.nan, "gender": -1, "emotion": -1}
    return replace(faces, **{task: np.full_like(getattr(faces, task), unknown[task]) for task in TASKS if task not in tasks})


def labelled(faces: Faces) -> np.ndarray:
    """Numbers of the rows that have a label, int64."""
    return np.flatnonzero(sum(known(faces, task) for task in TASKS))


def known(labels: "Faces | Labels", task: str):
    """Where the label of `task` is known: (n,) bool, of the labels' own kind, array or tensor."""
    values = getattr(labels, task)
    return values == values if task == "age" else values >= 0


# ---- images and their cache ------------------------------------------------------------------------------------------

def open_picture(file: Path, side: int | None) -> Image.Image:
    """A picture upright and in RGB; a JPEG whose sides are all over twice `side`, if given, may come at a fraction of its size.

    EXIF orientation, palette, grey, alpha (on white), CMYK and 16 bits are taken care of.
    Raises: ValueError where it has over 90 megapixels; whatever Pillow raises on what is not an image, or is truncated.
    """
    with Image.open(file) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} is too large a picture; expected at most {MOST_PIXELS // 10 ** 6} megapixels")
        if side:
            image.draft(None, (2 * side, 2 * side))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))    # 16-bit grey
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def face_crop(image: Image.Image, size: int) -> np.ndarray:
    """A face as the network is trained and used on: the middle square of an RGB picture, resized, (size, size, 3) uint8."""
    return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def load_image(file: Path, size: int, grey: bool = False) -> np.ndarray:
    """`face_crop` of `open_picture`, which see: (size, size, 3) uint8, or (size, size, 1) where grey."""
    crop = face_crop(open_picture(file, size), size)
    return np.asarray(Image.fromarray(crop).convert("L")).reshape(size, size, 1) if grey else crop


def decode(faces: Faces, size: int, cache: Path) -> Faces:
    """`faces` with pixels of `size`, decoded on first use; files that are missing or don't decode are dropped. Raises DataError."""
    grey = faces.name.startswith("fer2013")
    size = 48 if grey else size
    digest = hashlib.blake2b(f"{size} {grey}".encode())
    there = np.zeros(len(faces), dtype=bool)
    folder = os.fspath(faces.folder)
    for i, file in enumerate(faces.files.tolist()):
        try:
            stat = os.stat(f"{folder}/{file}")
        except (OSError, ValueError):
            continue
        there[i] = True
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    faces = faces.keep(there, "missing file")

    def build(target: Path) -> None:
        def read(file: str) -> np.ndarray | None:
            try:
                return load_image(faces.folder / file, size, grey)
            except Exception as error:                      # Pillow raises anything on a broken file, which is named below
                if isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EACCES):
                    raise                                   # no fault of what is in the file
                return None
        fine = np.zeros(len(faces), dtype=bool)
        files, chunk = faces.files.tolist(), 1024           # chunks bound what waits to be written
        with open(target / "images.u8", "wb") as output, ThreadPool(os.cpu_count()) as pool:
            images = (image for start in range(0, len(files), chunk) for image in pool.map(read, files[start:start + chunk], 16))
            for i, image in enumerate(progress(images, len(files), f"decoding {faces.name}")):
                if image is not None:
                    fine[i] = True
                    output.write(image.data)
        np.save(target / "fine.npy", fine)

    target = cached(cache, faces.folder, f"{faces.name.replace(' ', '-')}-{size}", digest.hexdigest(), build)
    fine = np.load(target / "fine.npy")
    faces = faces.keep(fine, "undecodable file")
    return replace(faces, pixels=open_images(target / "images.u8", (size, size, 1 if grey else 3), len(faces)))


def open_images(file: Path, shape: tuple[int, int, int], count: int) -> np.ndarray:
    """A read-only memory map of `count` uint8 images of `shape`. Raises DataError where the file is of another length."""
    if file.stat().st_size != count * math.prod(shape):
        raise DataError(f"{file}: damaged, its length is not that of {count} images; delete the folder {file.parent}")
    if not count:
        return np.zeros((0, *shape), np.uint8)
    with open(file, "rb") as images:
        mapped = mmap.mmap(images.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) > 4e9 and math.prod(shape) < 2 ** 16 and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)                    # of small images that may not stay in memory, read no more than those drawn
    return np.frombuffer(mapped, np.uint8).reshape(count, *shape)


def cached(cache: Path, source: Path, name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder of `cache` that holds what `build` made of `source`; a changed `key` makes it anew and removes the old one."""
    def short(text: str) -> str:
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    prefix = f"{name}-{short(str(source.resolve()))}"
    target = cache / f"{prefix}-{short(f'{CACHE_FORMAT} {key}')}"

    def build_and_clear(partial: Path) -> None:
        build(partial)
        for old in cache.glob(f"{prefix}-*"):
            shutil.rmtree(old, ignore_errors=True)
    try:
        build_once(target, build_and_clear)
    except OSError as error:
        if error.filename and Path(error.filename).is_relative_to(source):
            raise DataError(f"{error.filename}: can't be read ({error.strerror})") from None
        raise DataError(f"{error.filename or cache}: {error.strerror}; decoded images are kept in {cache}, "
                        "name a writable folder with more room by --cache DIR") from None
    return target


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Make the folder `target` by calling `build` on it, once, whole or not at all, however many processes ask or are killed."""
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        try:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)                # others wait for the first; a killed process lets go
        except ImportError:
            pass                                            # Windows has no flock: two processes may both build, the last one stays
        if target.is_dir():
            return
        partial = target.parent / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)          # of a process that was killed
        partial.mkdir()
        try:
            build(partial)
            for file in partial.iterdir():
                if file.is_file():
                    with open(file, "rb") as written:
                        os.fsync(written.fileno())
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


# ---- batches ---------------------------------------------------------------------------------------------------------

class Labels(NamedTuple):
    """Labels of a batch, on the device."""
    age: torch.Tensor           # (n,) float32 years, NaN unknown
    gender: torch.Tensor        # (n,) int64, -1 unknown
    emotion: torch.Tensor       # (n,) int64, -1 unknown


class Batch(NamedTuple):
    """One process's part of a training step's images."""
    rows: list[np.ndarray]      # for each set, the numbers of its rows, (n_i,) int64
    labels: Labels              # of those rows, set after set; on the CPU
    draws: torch.Tensor         # (n, DRAWS) float32 in 0..1, what `augment` makes of each image; on the CPU
    total: int                  # images of the whole step, all processes together


DRAWS = 13
MOST = 28710         # images an epoch draws of what is larger, as many as FER2013 has


def labels_of(sets: list[Faces], rows: list[np.ndarray]) -> Labels:
    """The labels of `rows` of each set, one set after the other, on the CPU."""
    return Labels(*(torch.from_numpy(np.concatenate([getattr(faces, task)[chosen] for faces, chosen in zip(sets, rows)])) for task in TASKS))


def pools(sets: list[Faces], samples: int | None = None) -> dict[tuple[int, ...], int]:
    """What is drawn together: the numbers of sets that share a task, directly or through others -> how many of their rows an epoch draws.

    That is `samples` or, without it, as many as there are, MOST at most.
    """
    joined = []
    for task in TASKS:
        if serving := {i for i, faces in enumerate(sets) if known(faces, task).any()}:
            apart = [pool for pool in joined if pool.isdisjoint(serving)]
            joined = apart + [serving.union(*(pool for pool in joined if pool not in apart))]
    return {tuple(sorted(pool)): samples or min(sum(len(labelled(sets[i])) for i in pool), MOST) for pool in joined}


def batches(sets: list[Faces], samples: int | None, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """One epoch: what `pools` draws, in steps of `batch_size` images in which every pool has its share.

    In a pool, the splits take turns, however large they are. What a split has too little of is shown again and again, in a new order
    each time, so that its images come up equally often.
    All chance comes from `seed` and `epoch`, drawn for the whole step; process `rank` of `world` takes its slice.
    """
    rng = np.random.default_rng((seed, epoch))
    drawn = []
    for pool, total in pools(sets, samples).items():
        splits = {}
        for i in pool:
            chosen = labelled(sets[i])
            splits.setdefault(sets[i].folder, []).append(np.stack([np.full(len(chosen), i), chosen], 1))
        for turn, rows in enumerate(map(np.concatenate, splits.values())):
            share = len(range(turn, total, len(splits)))
            orders = [rng.permutation(len(rows)) for _ in range(share // len(rows) + 1)]
            drawn.append(rows[np.concatenate(orders)[:share]])
    places = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in drawn])      # each spread evenly over the epoch
    epoch_rows = np.concatenate(drawn)[np.argsort(places, kind="stable")]                      # (n, 2): set, row
    for step in np.array_split(epoch_rows, math.ceil(len(epoch_rows) / batch_size)):       # none much smaller than the others
        draws = rng.random((len(step), DRAWS), np.float32)
        mine = slice(len(step) * rank // world, len(step) * (rank + 1) // world)
        part = step[mine]
        rows = [part[part[:, 0] == i, 1] for i in range(len(sets))]
        yield Batch(rows, labels_of(sets, rows), torch.from_numpy(draws[mine]), len(step))


def to_device(sets: list[Faces], device: torch.device) -> list[np.ndarray | torch.Tensor]:
    """Each set's pixels as `gather` takes them: on a GPU if all fit into half its free memory, or left on disk."""
    if device.type != "cuda" or sum(faces.pixels.nbytes for faces in sets) > torch.cuda.mem_get_info(device)[0] / 2:
        return [np.asarray(faces.pixels) for faces in sets]
    copies = []
    for faces in sets:
        copies.append(torch.empty(faces.pixels.shape, dtype=torch.uint8, device=device))
        for start in range(0, len(faces), 4096):            # bounds what is held twice in memory
            copies[-1][start:start + 4096] = torch.from_numpy(np.array(faces.pixels[start:start + 4096]))
    return copies


def gather(pixels: np.ndarray | torch.Tensor, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Images `rows` of one set, on the device: (n, height, width, channels) uint8."""
    if isinstance(pixels, torch.Tensor):
        return pixels[torch.from_numpy(rows).to(device, non_blocking=True)]
    images = torch.from_numpy(pixels[rows])
    return (images.pin_memory() if device.type == "cuda" else images).to(device, non_blocking=True)


@functools.cache
def constant(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    """Three channels' values, (1, 3, 1, 1) float32, copied to the device once: each copy would wait for the GPU."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def normalise(images: torch.Tensor, gain: torch.Tensor | float = 1, shift: torch.Tensor | float = 0) -> torch.Tensor:
    """`images` (n, 3, h, w) float in 0..255, times `gain` plus `shift` (in 0..1, each (n, 1, 1, 1) or a number), normalised."""
    mean, std = constant(MEAN, images.device), constant(STD, images.device)
    return torch.addcmul((shift - mean) / std, images, gain / (255 * std))


def prepare(images: torch.Tensor, size: int) -> torch.Tensor:
    """The network's input, as validation and use have it.

    Args: images (n, h, w, 3 or 1) uint8; size in pixels.
    Returns: (n, 3, size, size) float32, normalised, channels_last.
    """
    images = images.permute(0, 3, 1, 2).float()
    if images.shape[2] != size:
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=images.shape[2] > size)
    return normalise(images.expand(-1, 3, -1, -1)).contiguous(memory_format=torch.channels_last)


def augment(images: list[torch.Tensor], size: int, draws: torch.Tensor) -> torch.Tensor:
    """The network's input, as training has it: `prepare` with chance, the whole batch at once.

    Each image is mirrored or not, turned by up to 10 degrees, scaled by up to 15 %, shifted by up to 8 %, in one bilinear
    resampling; one in five turns grey; contrast varies by 20 %, brightness by 0.1; from one in four a rectangle is erased.

    Args: images, for each set (n_i, h, w, 3 or 1) uint8; size in pixels; draws (n, DRAWS) float32 in 0..1, on the images' device.
    Returns: (n, 3, size, size) float32, normalised, channels_last.
    """
    # each draw (n, 1, 1), next to the pixels' places (1, size) across and (size, 1) down, in parts of the side
    mirror, turn, scale, right, down, grey, contrast, brightness, erase, top, left, height, width = draws.view(-1, DRAWS, 1, 1).unbind(1)
    places = torch.arange(size, device=draws.device) / size
    across, along = places.view(1, -1), places.view(-1, 1)

    turn, zoom = math.radians(10) * (2 * turn - 1), 1.15 ** (2 * scale - 1)
    cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    x, y = 2 * across + 1 / size - 1, 2 * along + 1 / size - 1         # grid_sample's coordinates, -1..1
    x = torch.where(mirror < 0.5, -x, x)
    grid = torch.stack((x * cos - y * sin + 0.16 * (2 * right - 1), x * sin + y * cos + 0.16 * (2 * down - 1)), 3)
    batch = torch.empty((len(draws), 3, size, size), device=draws.device, memory_format=torch.channels_last)
    counts = [len(part) for part in images]
    for part, out, its_grid, greyed in zip(images, batch.split(counts), grid.split(counts), (grey < 0.2).float().unsqueeze(1).split(counts)):
        out.copy_(F.grid_sample(part.permute(0, 3, 1, 2).float(), its_grid, padding_mode="border", align_corners=False))
        if part.shape[3] == 3:
            out.lerp_(F.conv2d(out, constant(LUMA, out.device)), greyed)

    gain = 1 + 0.2 * (2 * contrast - 1)
    shift = (1 - gain) / 2 + 0.1 * (2 * brightness - 1)               # contrast turns around mid-grey
    batch = normalise(batch, gain.unsqueeze(1), shift.unsqueeze(1))

    def within(places: torch.Tensor, begin: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        length = 0.1 + 0.3 * length
        begin = begin * (1 - length)
        return (places >= begin) & (places < begin + length)
    hole = within(along, top, height) & within(across, left, width) & (erase < 0.25)
    return batch.masked_fill_(hole.unsqueeze(1), 0)


# ---- the drawn sample ------------------------------------------------------------------------------------------------

def data_root(name: str) -> Path:
    """The data root `name`; `sample` is data/sample, drawn where it is not there yet. Raises DataError."""
    root = Path("data/sample") if name == "sample" else Path(name)
    if name == "sample":
        try:
            build_once(root, draw_sample)
        except OSError as error:
            raise DataError(f"{error.filename or root}: can't draw the sample ({error.strerror})") from None
    if not root.is_dir():
        raise DataError(f"no data root {root}/; the README says what lies in it, and --data sample needs no download")
    return root


def draw_face(rng: np.random.Generator, age: float, gender: int, emotion: int) -> Image.Image:
    """A simple face, 128x128 RGB: hair greys and wrinkles grow with age, women have long hair, mouth and brows show emotion."""
    def colour(*rgb: float) -> tuple[int, ...]:
        return tuple(int(np.clip(value, 0, 255)) for value in rgb)

    def line(*points: tuple[float, float], width: int = 3) -> None:
        draw.line([(x + dx, y + dy) for x, y in points], fill=dark, width=width)

    def oval(x: float, y: float, rx: float, ry: float, fill=None) -> None:
        draw.ellipse((x + dx - rx, y + dy - ry, x + dx + rx, y + dy + ry), fill=fill)
    image = Image.new("RGB", (128, 128), colour(*rng.uniform(90, 200, 3)))
    draw = ImageDraw.Draw(image)
    dx, dy = rng.uniform(-4, 4, 2)
    dark, red = (30, 20, 20), (150, 20, 40)
    skin = colour(*(np.array([236, 190, 160]) * rng.uniform(0.75, 1.05)))
    old = age / OLDEST
    hair = colour(*(np.array([50, 35, 25]) * (1 - old) + np.array([245, 245, 245]) * old))
    oval(64, 50, 48, 46, hair)
    if gender == 0:
        draw.rectangle((16 + dx, 50 + dy, 112 + dx, 128), fill=hair)
    oval(64, 68, 40, 52, skin)
    for i in range(round(old * 8)):                         # a wrinkle for every twelve years or so
        line((42, 24 + 3 * i), (86, 24 + 3 * i), width=1)
    if gender == 1:                                         # a beard around the mouth
        draw.chord((24 + dx, 16 + dy, 104 + dx, 120 + dy), 0, 180, fill=(60, 40, 30))
        oval(64, 92, 26, 22, skin)
    wide = {2: 11, 5: 10, 1: 4, 3: 5}.get(emotion, 7)       # fear and surprise open the eyes
    for x in (46, 82):
        oval(x, 64, 9, wide, "white")
        oval(x, 64, 4, 4, dark)
    slope, brow = {0: 7, 1: 3, 2: -6, 4: -7}.get(emotion, 0), 46 if emotion in (2, 5) else 52
    line((36, brow - slope), (56, brow + slope), width=5)
    line((72, brow + slope), (92, brow - slope), width=5)
    if emotion == 3:                                        # happy: a laugh
        draw.chord((42 + dx, 70 + dy, 86 + dx, 108 + dy), 0, 180, fill=red)
    elif emotion == 4:                                      # sad: corners down
        draw.arc((42 + dx, 86 + dy, 86 + dx, 122 + dy), 190, 350, fill=red, width=7)
    elif emotion == 5:                                      # surprise: round
        oval(64, 95, 12, 16, red)
    elif emotion == 2:                                      # fear: teeth
        draw.rectangle((42 + dx, 82 + dy, 86 + dx, 104 + dy), fill="white", outline=red, width=4)
    elif emotion == 1:                                      # disgust: wavy
        line((42, 100), (53, 86), (64, 100), (75, 86), (86, 100), width=7)
    else:                                                   # angry: broad and dark; neutral: a thin line
        line((44, 94), (84, 94), width=13 if emotion == 0 else 4)
    return image


def draw_sample(root: Path) -> None:
    """Draw faces into `root` in the official layouts of the three data sets, a fixed seed deciding; their labels are visible."""
    rng = np.random.default_rng(0)

    def person() -> tuple[int, int, int, Image.Image]:
        age, gender, emotion = int(rng.integers(1, 96)), int(rng.integers(2)), int(rng.integers(len(EMOTIONS)))
        return age, gender, emotion, draw_face(rng, age, gender, emotion)

    def save(image: Image.Image, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    sizes = {"train": 400, "valid": 140, "test": 140}
    for subset, count in sizes.items():
        folder = root / "cvpr2016/age"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{subset}_gt.csv", "w", newline="") as table:
            rows = csv.writer(table)
            rows.writerow(("image", "mean", "stdv"))
            for i in range(count):
                age, _, _, image = person()
                save(image, folder / subset / f"{i:06}.jpg")
                rows.writerow((f"{i:06}.jpg", float(age), 4.0))
        for i in range(count):
            _, gender, _, image = person()
            save(image, root / "cvpr2016/gender" / subset / GENDERS[gender] / f"{i:06}.jpg")
    (root / "fer2013").mkdir()
    with open(root / "fer2013/fer2013.csv", "w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("emotion", "pixels", "Usage"))
        for usage, count in zip(("Training", "PublicTest", "PrivateTest"), sizes.values()):
            for _ in range(count):
                _, _, emotion, image = person()
                pixels = np.asarray(image.convert("L").resize((48, 48)))
                rows.writerow((emotion, " ".join(map(str, pixels.ravel())), usage))
    try:
        from scipy.io import savemat
    except ImportError:
        return                                              # the sample is then without IMDB-WIKI, which needs scipy to be read too
    for crop, count in (("imdb", 400), ("wiki", 200)):
        folder, people = root / f"imdb-wiki/{crop}_crop", []
        for i in range(count):
            age, gender, _, image = person()
            taken = 1990 + i % 30
            path = f"{i % 100:02}/nm{i:07}_rm{i:09}_{taken - age}-1-15_{taken}.jpg"
            save(image, folder / path)
            born = np.datetime64(f"{taken - age:04}-01-15").astype(int) + 719529
            # a few of the flaws of the original: no face, two faces, gender unknown
            people.append((born, taken, path, np.nan if i % 50 == 1 else gender, f"Person {i // 2}",
                           -np.inf if i % 50 == 2 else 4.0, 3.0 if i % 50 == 3 else np.nan))
        table = {}
        for name, values in zip(("dob", "photo_taken", "full_path", "gender", "name", "face_score", "second_face_score"), zip(*people)):
            table[name] = np.array([values], dtype=object if isinstance(values[0], str) else float)
        savemat(folder / f"{crop}.mat", {crop: table})


# ---- the report ------------------------------------------------------------------------------------------------------

def merge(parts: list[Faces], name: str) -> Faces:
    """The rows of several sets as one, without their pixels."""
    arrays = {key: np.concatenate([getattr(faces, key) for faces in parts]) for key in ("files", "age", "stdv", "gender", "emotion")}
    reasons = dict.fromkeys(reason for faces in parts for reason in faces.dropped)
    dropped = {reason: np.concatenate([faces.dropped[reason] for faces in parts if reason in faces.dropped]) for reason in reasons}
    return replace(parts[0], name=name, dropped=dropped, pixels=None, **arrays)


def describe(faces: Faces) -> list[str]:
    """Lines on one decoded set: rows found, used, dropped by reason, and how the labels are spread."""
    gone = sum(len(names) for names in faces.dropped.values())
    lines = [f"{faces.name}: {len(faces) + gone:,} rows found, {len(faces):,} used, {gone:,} dropped"]
    lines += [f"    dropped, {reason}: {len(names):,}" for reason, names in faces.dropped.items()]
    ages = faces.age[known(faces, "age")]
    if len(ages):
        decades = np.bincount((ages // 10).astype(int))
        lines.append(f"    age: mean {ages.mean():.1f} years; " + ", ".join(f"{10 * i}s {n:,}" for i, n in enumerate(decades) if n))
    for task, names in (("gender", GENDERS), ("emotion", EMOTIONS)):
        values = getattr(faces, task)
        if known(faces, task).any():
            counts = [f"{name} {(values == i).sum():,}" for i, name in enumerate(names)]
            unknown = (values < 0).sum()
            lines.append(f"    {task}: " + ", ".join(counts + [f"unknown {unknown:,}"] * bool(unknown)))
    return lines


def unreadable(faces: Faces) -> list[str]:
    """A line for each reason that names the files which are missing or don't decode."""
    return [f"{faces.name}: left out as {reason} ({len(names):,}): {', '.join(names)}"
            for reason, names in faces.dropped.items() if reason.endswith(" file")]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--data", default="data", metavar="DIR", help="data root, or `sample` (default: data)")
    parser.add_argument("--image-size", type=in_range(int, 16, 1024), metavar="PX", help="size at which images are decoded and kept (default: 224; 64 for the sample)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for decoded images (default: .cache in the data root)")
    args = parser.parse_args()
    root = data_root(args.data)
    size = args.image_size or (64 if args.data == "sample" else 224)
    found, broken = False, []
    for split, tasks in SPLITS.items():
        parts = []
        for task in ([(task,) for task in tasks] if split == "cvpr2016" else [tasks]):
            for subset in SUBSETS:
                try:
                    parts += load(root, split, subset, task, size, args.cache or root / ".cache")
                except DataError as gap:
                    print(gap)
                    if not isinstance(gap, Missing):        # the rest is told, and at the end that this is wrong
                        broken.append(gap)
                        break
        if not parts:
            continue
        found = True
        sets = dict.fromkeys(faces.name.rpartition(" ")[0] for faces in parts)
        wholes = {name: [faces for faces in parts if faces.name.startswith(name)] for name in (split, *sets)}
        for name, subsets in wholes.items():
            if len(subsets) > 1:
                print(*describe(merge(subsets, name)), sep="\n")
        for faces in parts:
            print(*describe(faces), *unreadable(faces), sep="\n")
    if broken:
        raise broken[0]
    if not found:
        raise DataError(f"{root}: none of {', '.join(SPLITS)} is there; the README says how they lie on disk")


if __name__ == "__main__":
    script(main)
