"""Faces: what their labels mean, how data sets lie on disk, how their images are prepared.

    python datasets.py --data data --detect --image-size 96     what is there, used, dropped, and why
    python datasets.py --data sample                            the same for the drawn sample

To add a data set, write a reader and name it in SOURCES. A reader yields a Face for each picture of a part.
`prepare` decodes them once into an array of the cache; `batches` draws training batches from the tables.
"""
import argparse
import contextlib
import csv
import errno
import functools
import hashlib
import importlib
import io
import itertools
import math
import os
import re
import signal
import sys
import tempfile
import threading
import types
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

# OpenMP's threads sleep while they wait, instead of keeping the cores that others need;
# torch reads this as it is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin  # noqa: E402

# the tasks that predict a class, and the names of their classes in the order of their numbers
CLASS_NAMES = {
    "gender": ("female", "male"),
    "emotion": ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
}
CLASS_NUMBERS = {task: {name: number for number, name in enumerate(names)}
                 for task, names in CLASS_NAMES.items()}
TASKS = ("age", *CLASS_NAMES)
MAX_AGE = 100                           # ages are 0..100 years
SUBSETS = ("train", "valid", "test")

EPOCH_IMAGES = 28_710                   # drawn from a larger pool in an epoch; the original recipe's number
IMAGE_SIZE, SAMPLE_SIZE = 224, 64       # default side of images in pixels; of the drawn sample
CACHE_FORMAT = 5                        # counts up when prepared images change, so that no old one is used


class DataError(Exception):
    """A user's mistake, in one line that says what would be right."""


class Missing(DataError):
    """A data set or a part of it that is not on disk."""


# ---- faces, and batches of them ---------------------------------------------------------------------------

class Face(NamedTuple):
    """A picture and its labels, as a reader yields them."""
    file: str                   # relative to the data set's folder; the row's number where `pixels` are given
    age: float = math.nan       # years, NaN unknown
    age_std: float = math.nan   # years, of the guesses or the range behind the age
    age_low: float = math.nan   # where the age is a range: its first year
    age_high: float = math.nan  # and the year after its last
    gender: int = -1            # number in CLASS_NAMES, -1 unknown
    emotion: int = -1
    group: str = ""             # for figures by group, such as FairFace's race
    pixels: str = ""            # 48x48 grey values as text, where the table holds the picture itself
    dropped: str = ""           # why it is not used


DTYPES = {name: {float: np.float32, int: np.int64, str: object}[kind]
          for name, kind in Face.__annotations__.items() if name not in ("pixels", "dropped")}
LABELS = ("age", "age_std", *CLASS_NAMES)


@dataclass
class Part:
    """One part of a data set, as it was read."""
    source: "Source"
    subset: str                                 # one of SUBSETS
    folder: Path                                # what the faces' files are relative to
    faces: list[Face]                           # those that can be used
    dropped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))    # reason -> files
    remarks: dict[str, list[str]] = field(default_factory=dict)     # of faces that are used all the same

    @property
    def name(self) -> str:
        """Such as "cvpr2016 age valid"."""
        return f"{self.source.name} {self.subset}"


@dataclass
class Faces:
    """A table of faces, a row each, and their images.

    `faces["age"]` is a column, (n,): a field of Face; "part", the number of the face's part; "image", the
    number of its image among those of the part.
    """
    parts: list[Part]
    columns: dict[str, np.ndarray]
    # for each part (m, size, size, 3) uint8; on a GPU one tensor of all parts
    images: list[np.ndarray] | torch.Tensor

    @classmethod
    def of(cls, part: Part) -> "Faces":
        """The table of one part, without images."""
        columns = {name: np.array([getattr(face, name) for face in part.faces], dtype)
                   for name, dtype in DTYPES.items()}
        rows = np.arange(len(part.faces))
        # `dropped` is shared with `part`, so that what is dropped later is counted there, too
        return cls([replace(part, faces=[])], columns | {"part": 0 * rows, "image": rows}, [])

    def __len__(self) -> int:
        return len(self.columns["file"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def keep(self, rows: np.ndarray) -> "Faces":
        """The faces of `rows`, (n,) bool or (k,) int."""
        return replace(self, columns={name: values[rows] for name, values in self.columns.items()})

    def known(self, task: str) -> np.ndarray:
        """Where the label of `task` is known: (n,) bool."""
        return known(self[task])

    def labelled(self) -> np.ndarray:
        """Where any label is known: (n,) bool."""
        return np.any([self.known(task) for task in TASKS], axis=0)

    def labels(self, rows: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """The LABELS of `rows` (n,), on the device: (n,) each."""
        return {name: torch.from_numpy(self[name][rows]).to(device, non_blocking=True) for name in LABELS}

    def gather(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """The images of `rows` (n,), on the device: (n, size, size, 3) uint8."""
        wanted, part = self["image"][rows], self["part"][rows]
        if isinstance(self.images, torch.Tensor):
            return self.images[torch.from_numpy(wanted).to(device, non_blocking=True)]
        images = np.empty((len(rows), *self.images[0].shape[1:]), np.uint8)
        for number in np.unique(part):
            images[part == number] = self.images[number][wanted[part == number]]
        images = torch.from_numpy(images)
        images = images.pin_memory() if device.type == "cuda" else images
        return images.to(device, non_blocking=True)

    def to_device(self, device: torch.device) -> "Faces":
        """These faces with their images on a GPU, if they fit into half its free memory; else as they are."""
        size = sum(images.nbytes for images in self.images)
        if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        starts = np.cumsum([0, *map(len, self.images)])
        image = self["image"] + starts[self["part"]]
        stored = torch.cat([torch.from_numpy(np.array(images)).to(device) for images in self.images])
        return replace(self, images=stored, columns=self.columns | {"image": image})


def known(labels: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """Where a label is known, (n,) bool: a class is -1 and an age NaN where it is not."""
    return labels >= 0


def join(tables: list[Faces]) -> Faces:
    """The rows of several tables as one."""
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0].columns}
    starts = np.cumsum([0, *(len(table.parts) for table in tables)])
    columns["part"] = np.concatenate([table["part"] + start for table, start in zip(tables, starts)])
    return Faces(list(itertools.chain(*(table.parts for table in tables))), columns,
                 list(itertools.chain(*(table.images for table in tables))))


class Batch(NamedTuple):
    """One process's part of a training step."""
    rows: np.ndarray            # (n,) int64
    draws: torch.Tensor         # (n, draws) float32 in 0..1, random numbers for `augment`; on the CPU
    total: int                  # images of the step, all processes together


def pools(faces: Faces, samples: int | None = None) -> dict[tuple[int, ...], int]:
    """Groups of parts that share a task, directly or through others -> images an epoch draws of them.

    That is `samples` or, without it, as many as there are, EPOCH_IMAGES at most.
    """
    pooled = []
    for task in TASKS:
        pool = set(np.unique(faces["part"][faces.known(task)]).tolist())
        for other in [other for other in pooled if not pool.isdisjoint(other)]:
            pooled.remove(other)
            pool |= other
        pooled.append(pool)
    sizes = np.bincount(faces["part"][faces.labelled()], minlength=len(faces.parts))
    return {tuple(sorted(pool)): samples or min(int(sizes[list(pool)].sum()), EPOCH_IMAGES)
            for pool in pooled if pool}


def batches(faces: Faces, samples: int | None, batch_size: int, draws: int, seed: tuple[int, int],
            rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """One epoch: what `pools` draws, in steps of `batch_size` images in which every pool has its part.

    In a pool, the data sets take turns, however large they are. What a set has too little of comes again
    and again, in a new order each time, so that its images come up equally often. All random numbers come
    from `seed`, for all processes' images; process `rank` of `world` takes its part of each step. `draws`:
    how many random numbers an image gets.
    """
    rng = np.random.default_rng(seed)
    datasets = np.array([part.source.dataset for part in faces.parts])
    of_face, labelled, drawn = datasets[faces["part"]], faces.labelled(), []
    for pool, total in pools(faces, samples).items():
        names = dict.fromkeys(datasets[number] for number in pool)
        for turn, name in enumerate(names):
            rows = np.flatnonzero(labelled & np.isin(faces["part"], pool) & (of_face == name))
            count = len(range(turn, total, len(names)))
            orders = [rng.permutation(len(rows)) for _ in range(count // len(rows) + 1)]
            drawn.append(rows[np.concatenate(orders)[:count]])
    # each pool spread evenly over the epoch
    places = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in drawn])
    epoch_rows = np.concatenate(drawn)[np.argsort(places, kind="stable")]
    for step in np.array_split(epoch_rows, math.ceil(len(epoch_rows) / batch_size)):
        chance = rng.random((len(step), draws), np.float32)
        mine = slice(len(step) * rank // world, len(step) * (rank + 1) // world)
        yield Batch(step[mine], torch.from_numpy(chance[mine]), len(step))


# ---- from data sets to tables -----------------------------------------------------------------------------

def load(parts: list[Part], size: int, cache: Path, detect: bool = False,
         others: Collection[Part] = ()) -> Faces:
    """The faces of `parts`, prepared, without pictures that are also in `others`.

    Raises DataError where a part has no usable face.
    """
    taken = set().union(*(digests(other).values() for other in others))
    tables = [drop_copies(prepare(part, size, cache, detect), part, taken) for part in parts]
    for part, table in zip(parts, tables):
        if not table.labelled().any():
            reasons = "; ".join(left_out(table)) or "none has a label"
            raise DataError(f"{part.name}: no usable face; {reasons}")
    return join(tables)


def read(root: Path, names: Collection[str], subset: str,
         tasks: Collection[str]) -> tuple[list[Part], list[Missing]]:
    """A part of the data sets called `names`, not prepared, and an error for each source that is not there.

    Raises: DataError, where a source can't be read; Missing, where none is there.
    """
    parts, gaps = [], []
    for name, source in itertools.product(names, SOURCES):
        wanted = set(source.tasks) & set(tasks)
        if source.dataset == name and wanted:
            try:
                parts.append(read_part(root, source, subset, wanted))
            except Missing as gap:
                gaps.append(gap)
    if not parts:
        raise next(iter(gaps), Missing(f"{' '.join(names)} has no {' or '.join(tasks)}"))
    return parts, gaps


def read_part(root: Path, source: "Source", subset: str, tasks: Collection[str]) -> Part:
    """One part of one source, with its labels of `tasks` alone. Raises Missing, DataError."""
    part = Part(source, subset, root / source.dataset, [])
    blank = {task: Face._field_defaults[task] for task in TASKS if task not in tasks}
    for face in source.read(part.folder, subset):
        if face.dropped:
            part.dropped[face.dropped].append(face.file)
        else:
            part.faces.append(face._replace(**blank))
    if not part.faces and not part.dropped:
        layout = source.layout.replace("PART", subset)
        raise Missing(f"{part.folder}: {source.name}'s {subset} part is not there; expected {layout}")
    return part


def digests(part: Part) -> dict[str, bytes]:
    """A hash of each face's picture, by file: of the file's bytes, or of FER2013's pixels.

    Files that can't be read are left out.
    """
    def digest(face: Face) -> tuple[str, bytes] | None:
        try:
            content = face.pixels.encode() or Path(part.folder, face.file).read_bytes()
        except OSError:                                     # `prepare` counts it
            return None
        return face.file, hashlib.blake2b(content, digest_size=16).digest()
    with ThreadPool(cores()) as pool:
        return dict(filter(None, pool.map(digest, part.faces, 64)))


def drop_copies(table: Faces, part: Part, taken: set[bytes]) -> Faces:
    """The `table` of `part` without pictures whose digests are `taken`; they are counted as dropped."""
    if not taken:
        return table
    mine = digests(part)
    copied = np.array([mine.get(file) in taken for file in table["file"]], bool)
    if copied.any():
        table.parts[0].dropped["picture of valid or test"] = table["file"][copied].tolist()
    return table.keep(~copied)


# ---- readers: the faces of one part of a data set, from its folder ----------------------------------------

def read_imdb_wiki(folder: Path, subset: str) -> Iterator[Face]:
    """IMDB-WIKI's crops, either or both, cleaned, split by person."""
    tables = [folder / f"{crop}_crop/{crop}.mat" for crop in ("imdb", "wiki")]
    for table in filter(Path.is_file, tables):
        for born, taken, path, gender, name, score, second in zip(*read_mat(table)):
            path = str(path).strip()
            # a person is known by name, in both crops, or by the number that begins the file's name
            person = "".join(name).strip().casefold() or Path(path).name.split("_")[0]
            if subset_by_hash(person, 20, {18: "valid", 19: "test"}) != subset:
                continue
            age = completed_years(born, taken)
            flaw = first_flaw({
                "no face": not score > -math.inf,
                "second face": second > 0,
                "age unknown": math.isnan(age),
                "age below 0": age < 0,
                f"age above {MAX_AGE}": age > MAX_AGE,
            })
            gender = int(gender) if gender in (0, 1) else -1
            yield Face(f"{table.parent.name}/{path}", age, gender=gender, dropped=flaw)


def first_flaw(flaws: dict[str, bool]) -> str:
    """The first of the flaws that is there, or ""."""
    return next((flaw for flaw, there in flaws.items() if there), "")


MAT_COLUMNS = ("dob", "photo_taken", "full_path", "gender", "name", "face_score", "second_face_score")


@functools.lru_cache(maxsize=2)
def read_mat(file: Path) -> list[np.ndarray]:
    """The MAT_COLUMNS of IMDB-WIKI's .mat, of one row a face. Raises DataError."""
    loadmat = optional("scipy.io", "scipy", f"reading {file}").loadmat
    try:
        # squeezed, a cell of text is a str, which takes a third of the memory of an array
        table = loadmat(file, squeeze_me=True, variable_names=[file.stem])[file.stem][()]
        columns = [np.atleast_1d(table[name]) for name in MAT_COLUMNS]
        if len({column.shape for column in columns}) > 1:
            raise ValueError("its columns are not of one row a face")
    except Exception as error:                              # scipy raises anything on another file
        raise DataError(f"{file}: not IMDB-WIKI's MATLAB file, a struct {file.stem} with the columns "
                        f"{', '.join(MAT_COLUMNS)} ({type(error).__name__}: {error})") from None
    return columns


def completed_years(dob: float, photo_taken: float) -> float:
    """Age on 1 July of the year `photo_taken`, in whole years, as IMDB-WIKI's authors count it; NaN unknown.

    `dob` is MATLAB's serial date number, which counts 366 days more than Python's, whose first is 1.
    """
    try:
        born = date.fromordinal(max(1, int(dob) - 366))
        return int(photo_taken) - born.year - ((born.month, born.day) > (7, 1))
    except (ValueError, OverflowError):                     # no number, or no date
        return math.nan


def subset_by_hash(name: str, buckets: int, subsets: dict[int, str]) -> str:
    """The part that a name's hash falls into, of `buckets` equal ones: that of `subsets`, else train."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=4).digest()
    return subsets.get(int.from_bytes(digest, "big") % buckets, "train")


# ChaLearn's tables of ages: the columns of name, age and its standard deviation, and what a name lacks
AGE_TABLES = {"{}_gt.csv": ("image", "mean", "stdv", ""),
              "gt_avg_{}.csv": ("file_name", "apparent_age_avg", "apparent_age_std", "_face.jpg")}


def read_cvpr_age(folder: Path, subset: str) -> Iterator[Face]:
    """ChaLearn LAP 2016 apparent age, in any of its three layouts."""
    images = entry(folder / "age", subset)
    for table, (*columns, ending) in AGE_TABLES.items():
        file = folder / "age" / table.format(subset)
        if file.is_file():
            for where, row in read_csv(file, columns):
                name, age, std = (row[column] for column in columns)
                # a path of another machine is searched below the part's folder
                name = f"/{name}".rpartition(f"/{images.name}/")[2].lstrip("/")
                yield Face(f"age/{images.name}/{name}{ending}", number(age, 0, MAX_AGE, where, columns[1]),
                           number(std, 0, MAX_AGE, where, columns[2]))
            return
    ages = {f"{age:0{digits}}": age for digits in (1, 2, 3) for age in range(MAX_AGE + 1)}
    yield from class_folders(images, folder, "age", ages)


def read_cvpr_gender(folder: Path, subset: str) -> Iterator[Face]:
    """ChaLearn's gender folders."""
    images = entry(folder / "gender", subset)
    yield from class_folders(images, folder, "gender", CLASS_NUMBERS["gender"])


def read_fer2013(folder: Path, subset: str) -> Iterator[Face]:
    """FER2013 from fer2013.csv, icml_face_data.csv, or class folders."""
    for table in (folder / "fer2013.csv", folder / "icml_face_data.csv"):
        if table.is_file():
            yield from read_fer2013_csv(table, subset)
            return
    valid = entry(folder, "valid", "validation")
    images = entry(folder, subset)
    if subset == "valid":
        images = valid if valid.is_dir() else entry(folder, "test")
    for face in class_folders(images, folder, "emotion", CLASS_NUMBERS["emotion"]):
        # without valid/, Kaggle's folders have both parts in test/
        public = Path(face.file).name.startswith("PublicTest")
        if subset == "train" or valid.is_dir() or public == (subset == "valid"):
            yield face


FER2013_USAGES = {"Training": "train", "PublicTest": "valid", "PrivateTest": "test"}


def read_fer2013_csv(table: Path, subset: str) -> Iterator[Face]:
    """One part of FER2013's CSV; a face's file is its row within the part."""
    count = itertools.count()
    for where, row in read_csv(table, ("emotion", "pixels", "Usage")):
        if choice(row["Usage"], FER2013_USAGES, where, "Usage") == subset:
            emotion = number(row["emotion"], 0, len(CLASS_NAMES["emotion"]) - 1, where, "emotion")
            yield Face(str(next(count)), emotion=int(emotion), pixels=row["pixels"])


UTKFACE_GROUPS = {"0": "White", "1": "Black", "2": "Asian", "3": "Indian", "4": "other"}


def read_utkface(folder: Path, subset: str) -> Iterator[Face]:
    """UTKFace's files in any folder below: age, gender (0 male, 1 female there) and race are in the names.

    The same name twice is one face, since Kaggle's copies hold some pictures twice.
    """
    seen = set()
    for file in files_below(folder, set()):
        stem = file.name.partition(".")[0]
        if subset_by_hash(stem, 10, {9: "test", 8: "valid"}) != subset:
            continue
        label = re.match(r"([0-9]{1,3})_([01])_(?:([0-4])_)?", file.name)
        age, gender, race = label.groups() if label else (0, 0, None)
        flaw = first_flaw({
            "same name in another folder": file.name in seen,
            "not a picture": not is_picture(file),
            "file without age and gender in its name": not label,
            f"age above {MAX_AGE}": int(age) > MAX_AGE,
        })
        yield Face(file.relative_to(folder).as_posix(), int(age), gender=1 - int(gender),
                   group=UTKFACE_GROUPS.get(race, ""), dropped=flaw)
        seen.add(file.name)


# FairFace's range -> its middle, the standard deviation of a uniform one, its first year, the year after
# its last
FAIRFACE_AGES = {f"{low}-{high - 1}": ((low + high - 1) / 2, (high - low) / math.sqrt(12), low, high)
                 for low, high in itertools.pairwise((0, 3, 10, 20, 30, 40, 50, 60, 70))}
FAIRFACE_AGES["more than 70"] = (75, 5, 70, math.inf)
# what a spreadsheet program makes of two of the ranges, which it takes for dates
MANGLED_RANGES = {"03-Sep": "3-9", "3-Sep": "3-9", "09-Mar": "3-9", "9-Mar": "3-9",
                  "Oct-19": "10-19", "19-Oct": "10-19"}


def read_fairface(folder: Path, subset: str) -> Iterator[Face]:
    """FairFace's tables; its test part is its val, and of its train one in twenty is valid."""
    table = folder / f"fairface_label_{'val' if subset == 'test' else 'train'}.csv"
    if not table.is_file():
        return
    for where, row in read_csv(table, ("file", "age", "gender", "race")):
        official = "/".join(row["file"].split("/")[-2:])      # such as train/1.jpg
        held_out = subset_by_hash(official, 20, {19: "valid"})
        if subset not in ("test", held_out):
            continue
        ages = MANGLED_RANGES.get(row["age"], row["age"])
        age = choice(ages, FAIRFACE_AGES, where, "age")
        gender = choice(row["gender"].lower(), CLASS_NUMBERS["gender"], where, "gender")
        yield Face(row["file"], *age, gender=gender, group=row["race"])


class Source(NamedTuple):
    """A set of faces that can be read; a data set may have several."""
    name: str
    dataset: str                            # what --split calls it, and the folder in the data root
    tasks: tuple[str, ...]
    read: Callable[[Path, str], Iterable[Face]]     # of the data set's folder and the part; empty without it
    layout: str                             # what lies in the folder, PART for the name of the part
    grey: bool = False                      # small grey pictures, as FER2013's, in which no face is searched


SOURCES = (
    Source("imdb-wiki", "imdb-wiki", ("age", "gender"), read_imdb_wiki,
           "imdb_crop/imdb.mat or wiki_crop/wiki.mat"),
    Source("cvpr2016 age", "cvpr2016", ("age",), read_cvpr_age,
           "age/PART_gt.csv, age/gt_avg_PART.csv or images in age/PART/<age>/"),
    Source("cvpr2016 gender", "cvpr2016", ("gender",), read_cvpr_gender,
           "images in gender/PART/female/ and male/"),
    Source("fer2013", "fer2013", ("emotion",), read_fer2013,
           "fer2013.csv, icml_face_data.csv or images in PART/<emotion>/", grey=True),
    Source("utkface", "utkface", ("age", "gender"), read_utkface,
           "images called AGE_GENDER_RACE_DATE.jpg"),
    Source("fairface", "fairface", ("age", "gender"), read_fairface,
           "fairface_label_train.csv and, for test, fairface_label_val.csv"),
)
# what --split takes -> the tasks that it has labels for
DATASETS = {}
for source in SOURCES:
    DATASETS[source.dataset] = DATASETS.get(source.dataset, ()) + source.tasks


# ---- what readers share -----------------------------------------------------------------------------------

def read_csv(file: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a table with `columns`: where it stands, such as "x.csv line 7", and its cells by column.

    The table may be separated by comma, semicolon or tab, and have other columns. Backslashes become
    slashes. Raises DataError.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            head = text.readline(100_000)
            text.seek(0)
            rows = csv.reader(text, delimiter=max(",;\t", key=head.count))
            header = [name.strip() for name in next(rows, [])]
            for name in (*columns, *filter(TASKS.__contains__, header)):
                if header.count(name) != 1:
                    raise DataError(f"{file}: {header.count(name)} columns called {name}; "
                                    f"expected the columns {','.join(columns)}")
            for row in filter(None, rows):
                where = f"{file} line {rows.line_num}"
                if len(row) != len(header):
                    raise DataError(f"{where}: {len(row)} fields; expected {len(header)}, as in the header")
                cells = [cell.strip().replace("\\", "/") for cell in row]
                yield where, dict(zip(header, cells))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8 ({error})") from None


def number(text: str, low: float, high: float, where: str, what: str) -> float:
    """`text` as a number within low..high. Raises DataError that names `where` and `what`."""
    decimal = re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", text)
    if not decimal or not low <= float(text) <= high:
        raise DataError(f"{where}: {what} is {text.strip()[:50]!r}; expected a number from {low} to {high}")
    return float(text)


def choice(text: str, choices: dict[str, object], where: str, what: str):
    """What `text` stands for among `choices`. Raises DataError that names `where` and `what`."""
    if text not in choices:
        raise DataError(f"{where}: {what} is {text[:50]!r}; expected {', '.join(choices)}")
    return choices[text]


# what operating systems and programs leave in folders begins so
SYSTEM_FILES = (".", "__MACOSX", "@eaDir", "$RECYCLE", "Thumbs.db", "desktop.ini",
                "lost+found", "System Volume Information")


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in sorted order, without SYSTEM_FILES; nothing where it is none."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not path.name.startswith(SYSTEM_FILES)]


def entry(folder: Path, *names: str) -> Path:
    """The entry of `folder` called one of `names`, in any case; where there is none, what would be right."""
    found = [path for path in entries(folder) if path.name.lower() in names]
    return [*found, folder / names[0]][0]


def files_below(folder: Path, seen: set[str]) -> Iterator[Path]:
    """The files in a folder and all folders in it, in sorted order, without SYSTEM_FILES.

    Links are followed. Folders whose real paths are in `seen` are passed over; searched ones are added.
    """
    if os.path.realpath(folder) in seen:
        return
    seen.add(os.path.realpath(folder))
    for path in entries(folder):
        if path.is_dir():
            yield from files_below(path, seen)
        else:
            yield path


def class_folders(folder: Path, root: Path, task: str, classes: dict[str, int]) -> Iterator[Face]:
    """The pictures in `folder`'s class folders, relative to `root`; other files are counted as dropped.

    Raises DataError for a folder that is none of `classes`, whose names are in lower case.
    """
    for path in filter(Path.is_dir, entries(folder)):
        name = path.name.lower()
        if name not in classes:
            expected = ", ".join(classes)[:80]
            raise DataError(f"{path}: unknown class folder; expected one of {expected}")
        for file in entries(path):
            flaw = "" if is_picture(file) else "not a picture"
            yield Face(file.relative_to(root).as_posix(), dropped=flaw, **{task: classes[name]})


# ---- images -----------------------------------------------------------------------------------------------

Image.init()                            # registers Pillow's formats; only IMAGE_FORMATS are opened
IMAGE_FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"} & Image.OPEN.keys()
IMAGE_FILES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
FIRST_BYTES = re.compile(rb"(?s)\xff\xd8\xff|\x89PNG|RIFF....WEBP|BM....\0{4}|GIF8|II\*\0|MM\0\*")
Image.MAX_IMAGE_PIXELS = 125_000_000    # Pillow refuses pictures of more than twice as many
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2 ** 28   # bytes; sound pixels may follow


def is_picture(file: Path) -> bool:
    """Whether a file is a picture by its ending or, with another one, by its first bytes."""
    if file.suffix.lower() in IMAGE_FILES:
        return True
    if not file.is_file():              # opening a pipe might never end
        return False
    with open(file, "rb") as content:
        return bool(FIRST_BYTES.match(content.read(12)))


def open_picture(file: Path, side: int | None = None) -> Image.Image:
    """A picture upright and in RGB; a JPEG with `side` comes smaller where its sides keep twice that.

    EXIF orientation, palette, grey, alpha (on white), CMYK, 16 and 32 bits are taken care of.
    Raises: ValueError where it is no plain file; whatever Pillow raises on other files.
    """
    if file.exists() and not file.is_file():                # opening a pipe or a device might never end
        raise ValueError("not a file")
    try:
        return decode_picture(file, side)
    except OSError as error:
        if "truncated" not in str(error):
            raise
        # a JPEG that lacks its end marker alone decodes alike whatever bytes follow
        content = file.read_bytes()
        ended, padded = (decode_picture(io.BytesIO(content + filler + b"\xff\xd9"), side)
                         for filler in (b"", b"\xaa" * 64))
        if ended != padded:
            raise
        return ended


def decode_picture(file: Path | BinaryIO, side: int | None) -> Image.Image:
    """`open_picture` for a file that is whole."""
    with Image.open(file, formats=sorted(IMAGE_FORMATS)) as image:
        if side:
            image.draft(None, (2 * side, 2 * side))
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """A picture of any kind that Pillow reads, upright and in RGB."""
    kind = image.format
    image.load()            # a second call, after one that failed, would give the pixels decoded so far
    with contextlib.suppress(Exception):    # broken metadata, on which Pillow raises anything
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":               # 16 or 32 bits, or floats
        image = Image.fromarray(to_8_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # programs that write 32 bits without transparency leave it 0; a PNG's is meant
        if kind == "PNG" or image.getextrema()[3] != (0, 0):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_8_bits(image: Image.Image) -> np.ndarray:
    """Grey values of 16 or 32 bits, or floats, as uint8 (height, width); the largest sets their range."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    ranges = [2 ** 16] if image.mode.startswith("I;16") else [2 ** 8, 2 ** 16, 2 ** 24, 2 ** 32]
    if image.mode == "F" and 0 < values.max() <= 1:
        ranges = [1 + 1e-9]
    white = next((white for white in ranges if values.max() < white), ranges[-1])
    return (values * (256 / white)).clip(0, 255).astype(np.uint8)


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The middle square of a picture, resized: (size, size, 3) uint8."""
    return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


# ---- framing: the same square of a face in training and in use --------------------------------------------

# where the eyes, the nose and the corners of the mouth lie in the square, left ones first, in parts of its
# side: their median over UTKFace's own aligned crops
LANDMARKS = np.array([(0.292, 0.286), (0.683, 0.287), (0.492, 0.516), (0.311, 0.690), (0.659, 0.690)])
# and, the same in all of FER2013's pictures, near the median of those found there
FER2013_LANDMARKS = (LANDMARKS + (0.035, 0.116)) / 1.037
# pixels of the longer side at which a picture is searched, for large faces and for small ones
SEARCHED_SIDES = (256, 1280)
LARGE_FACE = 64                         # pixels in the first search; smaller faces come from the second
SMALLEST_FACE = 16                      # pixels of the picture; smaller faces are not taken
LEAST_CONFIDENCE = 0.85                 # of faces on their side one in ten reaches it, with wrong landmarks
# YuNet by W. Wu, H. Peng and S. Yu (Machine Intelligence Research 20, 2023), MIT license
DETECTOR = Path(__file__).resolve().with_name("checkpoints") / "face_detection_yunet_2026may.onnx"
local = threading.local()


class Detection(NamedTuple):
    """A face in a picture, in its pixels: all that the rest of the project knows of the detector."""
    box: tuple[float, float, float, float]      # left, top, right, bottom
    landmarks: np.ndarray                       # (5, 2) float, across and down, in the order of LANDMARKS
    confidence: float                           # 0..1


def detector():
    """OpenCV's face detector, one for each thread. Raises DataError where it is not installed."""
    if not hasattr(local, "detector"):
        cv2 = optional("cv2", "opencv-python-headless", "--detect")
        cv2.setNumThreads(1)                    # each of our threads has a core
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        local.detector = cv2.FaceDetectorYN.create(str(DETECTOR), "", (0, 0), LEAST_CONFIDENCE)
    return local.detector


def search(picture: Image.Image, side: int) -> list[Detection]:
    """The faces in an RGB picture, searched at the size at which its longer side has `side` pixels."""
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    detector().setInputSize(size)
    _, faces = detector().detect(np.ascontiguousarray(pixels[..., ::-1]))       # blue comes first
    found = []
    for left, top, width, height, *points, confidence in () if faces is None else faces.tolist():
        box = np.array([left, top, left + width, top + height]) / scale
        box = box.clip(0, (*picture.size, *picture.size)).tolist()
        if width / scale >= SMALLEST_FACE:
            found.append(Detection(tuple(box), np.reshape(points, (5, 2)) / scale, confidence))
    return found


def find_faces(picture: Image.Image) -> list[Detection]:
    """The faces in an RGB picture, from left to right. Raises DataError, where there is no detector."""
    small, large = SEARCHED_SIDES
    found = search(picture, small)
    if max(picture.size) > small:
        large = min(large, max(picture.size))
        least = LARGE_FACE * max(picture.size) / small
        found = [face for face in found if face.box[2] - face.box[0] > least]
        found += [face for face in search(picture, large)
                  if not any(contains(other.box, face.landmarks[2]) for other in found)]
    return sorted(found, key=lambda face: face.box)


def contains(box: tuple[float, float, float, float], point: np.ndarray) -> bool:
    """Whether a point lies in a box."""
    left, top, right, bottom = box
    return left <= point[0] <= right and top <= point[1] <= bottom


def main_face(found: list[Detection], size: tuple[int, int]) -> Detection:
    """Of the faces in a picture of `size` (width, height) the main one: large, and near to the middle."""
    def weight(face: Detection) -> float:
        left, top, right, bottom = face.box
        # 0 in the middle, 1 at an edge
        away = math.hypot((left + right) / size[0] - 1, (top + bottom) / size[1] - 1)
        return (right - left) / (1 + away)
    return max(found, key=weight)


def similarity(points: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation, scale and shift that bring `points` (n, 2) nearest to `places` (n, 2), in least squares.

    Umeyama, IEEE PAMI 13 (1991) 376-380; among complex numbers it is a linear regression.
    Returns: matrix (2, 2) and shift (2,), of matrix @ point + shift.
    """
    around, wanted = ((values - values.mean(0)) @ (1, 1j) for values in (points, places))
    turn = np.vdot(around, wanted) / max(np.vdot(around, around).real, 1e-9)
    matrix = np.array([(turn.real, -turn.imag), (turn.imag, turn.real)])
    return matrix, places.mean(0) - matrix @ points.mean(0)


def align(picture: Image.Image, landmarks: np.ndarray, size: int) -> np.ndarray:
    """The square of a face: its `landmarks` (5, 2), in pixels of the RGB picture, come nearest to LANDMARKS.

    Outside the picture its edge is repeated. Returns: (size, size, 3) uint8.
    """
    matrix, shift = similarity(landmarks, LANDMARKS * size)
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
    centers = np.arange(size) + 0.5
    centers = np.stack(np.meshgrid(centers, centers), -1)
    places = ((centers - shift) @ inverse.T - low) / (high - low)       # in parts of the cut's sides
    image = torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None].float()
    grid = torch.from_numpy(places * 2 - 1)[None].float()
    sampled = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    return sampled[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


# ---- preparing: each picture is decoded, aligned and resized once -----------------------------------------

UNDECODABLE, DECODED, NO_FACE = 0, 1, 2     # what became of a picture; without a face its middle is taken


def prepare(part: Part, size: int, cache: Path, detect: bool = False) -> Faces:
    """The faces of a part with images of `size` pixels, from the cache, where they are put on first use.

    Files that are missing or can't be decoded are counted as dropped. With `detect`, each picture's main
    face is found and aligned. Raises DataError.
    """
    part, key = stat_files(part)
    target = cache / f"{part.name.replace(' ', '-')}-{size}{'-detected' if detect else ''}-{key}"
    if not target.is_dir():
        if detect and not part.source.grey:
            detector()                                      # a missing one is an error now
        build_folder(target, functools.partial(decode, part, size, detect))
    try:
        states = np.load(target / "states.npy")
        images = np.load(target / "images.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{target}: damaged ({error}); delete it, it is made anew") from None
    table = replace(Faces.of(part), images=[images])
    for counted, state, reason in ((part.dropped, UNDECODABLE, "undecodable file"),
                                   (part.remarks, NO_FACE, "no face found, the middle square taken")):
        files = table["file"][states == state].tolist()
        counted |= {reason: files} if files else {}
    return table.keep(states != UNDECODABLE)


def stat_files(part: Part) -> tuple[Part, str]:
    """`part` without the files that are missing, and a key of all that the others' images depend on."""
    settings = (CACHE_FORMAT, DETECTOR.name, SEARCHED_SIDES, LARGE_FACE, SMALLEST_FACE, LEAST_CONFIDENCE,
                LANDMARKS.tolist(), FER2013_LANDMARKS.tolist())
    key = hashlib.blake2b(str(settings).encode(), digest_size=8)
    there = replace(part, faces=[], dropped=defaultdict(list, part.dropped), remarks={})
    for face in part.faces:
        about = face.pixels
        try:
            if not about:
                details = os.stat(part.folder / face.file)
                about = f"{face.file} {details.st_size} {details.st_mtime_ns}"
        except (FileNotFoundError, NotADirectoryError, ValueError):
            there.dropped["missing file"].append(face.file)
            continue
        there.faces.append(face)
        key.update(about.encode(errors="surrogateescape"))
    return there, key.hexdigest()


def decode(part: Part, size: int, detect: bool, folder: Path) -> None:
    """Decode a part's pictures into `folder`, on all cores."""
    def crop(face: Face) -> tuple[np.ndarray, int]:
        try:
            return crop_face(part, face, size, detect)
        except Exception as error:          # Pillow may raise any exception on a broken file
            # the machine's fault, not the file's; a broken TIFF is an invalid argument
            code = getattr(error, "errno", None)
            if isinstance(error, MemoryError) or code not in (None, errno.EINVAL):
                raise
            return np.zeros((size, size, 3), np.uint8), UNDECODABLE
    shape = (len(part.faces), size, size, 3)
    states = []
    with open(folder / "images.npy", "wb") as output, ThreadPool(cores()) as pool:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(output, header)
        crops = pool.imap(crop, part.faces, 16)
        for image, state in progress(crops, len(part.faces), f"decoding {part.name}"):
            output.write(image.data)
            states.append(state)
    np.save(folder / "states.npy", np.array(states, np.uint8))


def crop_face(part: Part, face: Face, size: int, detect: bool) -> tuple[np.ndarray, int]:
    """The square of a face, (size, size, 3) uint8, and what became of its picture."""
    if face.pixels:
        image = Image.fromarray(np.array(face.pixels.split(), np.uint8).reshape(48, 48)).convert("RGB")
    else:
        image = open_picture(part.folder / face.file, None if detect else size)
    if not detect:
        return center_crop(image, size), DECODED
    if part.source.grey:
        return align(image, FER2013_LANDMARKS * image.size, size), DECODED
    found = find_faces(image)
    if not found:
        return center_crop(image, size), NO_FACE
    return align(image, main_face(found, image.size).landmarks, size), DECODED


def build_folder(target: Path, build: Callable[[Path], None]) -> None:
    """Make the folder `target` by calling `build` on a temporary one, which then takes its name.

    Where another process was first, its folder stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as temporary:
        folder = Path(temporary, target.name)
        folder.mkdir()
        build(folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise


@contextlib.contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes `file`'s name when it is whole. Raises DataError."""
    target = file.resolve()                 # what a link leads to
    partial = target.with_name(f".{target.name[:60]}.partial")
    try:
        with open(partial, "wb") as output:
            yield output
        partial.replace(target)
    except OSError as error:
        raise DataError(f"{file}: can't be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


# ---- the report -------------------------------------------------------------------------------------------

def describe(faces: Faces, name: str) -> list[str]:
    """Lines on a table: rows found, used, dropped by reason, and how the labels are spread."""
    lost = sum(len(names) for part in faces.parts for names in part.dropped.values())
    lines = [f"{name}: {len(faces) + lost:,} rows found, {len(faces):,} used, {lost:,} dropped"]
    lines += [f"    {line}" for line in left_out(faces)]
    decades = np.sort(faces["age"][faces.known("age")] // 10).astype(int)
    spread = {"group": sorted(faces["group"]), "age": [f"{decade}0s" for decade in decades]}
    for task, names in CLASS_NAMES.items():
        labels = np.sort(faces[task] % (len(names) + 1))    # unknown ones, -1, behind the others
        spread[task] = np.array([*names, "unknown"])[labels].tolist()
    for label, names in spread.items():
        counts = Counter(names)
        if counts.keys() - {"", "unknown"}:
            lines.append(f"    {label}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))
    return lines


def left_out(faces: Faces) -> list[str]:
    """A line for each reason why faces of a part are not used, or used with a remark."""
    return [f"{part.name}: {use}, {reason}: {few(names)}"
            for part in faces.parts
            for use, reasons in (("dropped", part.dropped), ("used", part.remarks))
            for reason, names in reasons.items()]


def few(names: list[str]) -> str:
    """How many names there are, and the first of them."""
    shown = [*names[:3], "..."] if len(names) > 3 else names
    return f"{len(names):,} ({', '.join(shown)})"


def report(root: Path, source: Source, size: int, cache: Path, detect: bool) -> int:
    """Print what is there of a source. Returns how many parts. Raises DataError where one can't be read."""
    parts = []
    for subset in SUBSETS:
        try:
            parts.append(read_part(root, source, subset, TASKS))
        except Missing as gap:
            print(gap)
    tables = [prepare(part, size, cache, detect) for part in parts]
    if tables:
        print(describe(join(tables), source.name)[0])
    pictures = [list(digests(part).values()) for part in parts]
    for table, part, mine in zip(tables, parts, pictures):
        print(*describe(table, part.name), sep="\n")
        copies = [f"{len(mine) - len(set(mine)):,} repeat another one"]
        for other, theirs in zip(parts, map(set, pictures)):
            if other is not part:
                count = sum(digest in theirs for digest in mine)
                copies.append(f"{count:,} are in {other.subset} too")
        print(f"    pictures: {', '.join(copies)}", flush=True)
    return len(parts)


# ---- the drawn sample -------------------------------------------------------------------------------------

SAMPLE_ROOT = Path("data/sample")       # what --data sample names
DRAWN = "drawn"                         # a file of this name in a data root marks its faces as drawn
SAMPLE_FACES = {"train": 400, "valid": 140, "test": 140}


def is_drawn(root: Path) -> bool:
    """Whether the faces of a data root are drawn, so that figures on them mean nothing."""
    return (root / DRAWN).is_file()


SKIN, HAIR, DARK, RED = np.array([236, 190, 160]), np.array([50, 35, 25]), (30, 20, 20), (150, 20, 40)
# what shows an emotion: half the height of the eyes, the brows' slope and height; how the mouth is drawn
EXPRESSIONS = {
    "angry": (7, 7, 52, "line", (44, 94, 84, 94), DARK, 13),
    "disgust": (4, 3, 52, "line", (42, 100, 53, 86, 64, 100, 75, 86, 86, 100), DARK, 7),
    "fear": (11, -6, 46, "rectangle", (42, 82, 86, 104), "white", RED, 4),
    "happy": (5, 0, 52, "chord", (42, 70, 86, 108), 0, 180, RED),
    "sad": (7, -7, 52, "arc", (42, 86, 86, 122), 190, 350, RED, 7),
    "surprise": (10, 0, 46, "ellipse", (52, 79, 76, 111), RED),
    "neutral": (7, 0, 52, "line", (44, 94, 84, 94), DARK, 4),
}


def draw_face(rng: np.random.Generator, age: float, gender: int, emotion: int) -> Image.Image:
    """A simple face, 128x128 RGB, that shows age (grey hair, wrinkles), gender and emotion."""
    ground, skin = rng.uniform(90, 200, 3), SKIN * rng.uniform(0.75, 1.05)
    old = age / MAX_AGE
    hair = HAIR * (1 - old) + 245 * old
    ground, skin, hair = (tuple(map(int, color)) for color in (ground, skin, hair))
    image = Image.new("RGB", (128, 128), ground)
    draw = ImageDraw.Draw(image)
    draw.ellipse((16, 4, 112, 96), hair)
    if gender == 0:
        draw.rectangle((16, 50, 112, 128), hair)
    draw.ellipse((24, 16, 104, 120), skin)
    for i in range(round(old * 8)):                         # a wrinkle for every twelve years or so
        draw.line((42, 24 + 3 * i, 86, 24 + 3 * i), DARK)
    if gender == 1:                                         # a beard around the mouth
        draw.chord((24, 16, 104, 120), 0, 180, (60, 40, 30))
        draw.ellipse((38, 70, 90, 114), skin)
    eyes, slope, brow, mouth, *shape = EXPRESSIONS[CLASS_NAMES["emotion"][emotion]]
    for x, tilt in (46, slope), (82, -slope):
        draw.ellipse((x - 9, 64 - eyes, x + 9, 64 + eyes), "white")
        draw.ellipse((x - 4, 60, x + 4, 68), DARK)
        draw.line((x - 10, brow - tilt, x + 10, brow + tilt), DARK, 5)
    getattr(draw, mouth)(*shape)
    shift = tuple(rng.integers(-4, 5, 2).tolist())
    return image.rotate(0, translate=shift, fillcolor=ground)


def draw_person(rng: np.random.Generator) -> tuple[int, int, int, Image.Image]:
    """Age, gender, emotion and picture of somebody."""
    age, gender = int(rng.integers(1, 96)), int(rng.integers(2))
    emotion = int(rng.integers(len(CLASS_NAMES["emotion"])))
    return age, gender, emotion, draw_face(rng, age, gender, emotion)


def save_jpeg(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def draw_sample(root: Path) -> None:
    """Draw faces into `root` in the official layouts of the data sets, from a fixed seed."""
    rng = np.random.default_rng(0)
    cvpr2016, pixels = root / "cvpr2016", []
    for subset, usage in zip(SUBSETS, FER2013_USAGES):
        ages = []
        for i in range(SAMPLE_FACES[subset]):
            name = f"{i:06}.jpg"
            age, _, _, image = draw_person(rng)
            save_jpeg(image, cvpr2016 / "age" / subset / name)
            ages.append((name, age, 4))
            _, gender, _, image = draw_person(rng)
            folder = cvpr2016 / "gender" / subset / CLASS_NAMES["gender"][gender]
            save_jpeg(image, folder / name)
            _, _, emotion, image = draw_person(rng)
            grey = np.asarray(image.convert("L").resize((48, 48)))
            pixels.append((emotion, " ".join(map(str, grey.ravel())), usage))
        write_csv(cvpr2016 / f"age/{subset}_gt.csv", ("image", "mean", "stdv"), ages)
    (root / "fer2013").mkdir()
    write_csv(root / "fer2013/fer2013.csv", ("emotion", "pixels", "Usage"), pixels)
    draw_imdb(rng, root / "imdb-wiki/imdb_crop")
    (root / DRAWN).touch()


def draw_imdb(rng: np.random.Generator, folder: Path) -> None:
    """One of IMDB-WIKI's crops with its .mat; nothing where scipy is missing."""
    try:
        from scipy.io import savemat
    except ImportError:
        return
    people = []
    for i in range(600):
        age, gender, _, image = draw_person(rng)
        taken = 1990 + i % 30
        path = f"{i % 100:02}/nm{i:07}_rm{i:09}_{taken - age}-1-15_{taken}.jpg"
        save_jpeg(image, folder / path)
        born = np.datetime64(f"{taken - age}-01-15").astype(int) + 719529
        # one in fifty has an unknown gender, one no face
        people.append((born, taken, path, math.nan if i % 50 == 1 else gender, f"Person {i // 2}",
                       -math.inf if i % 50 == 2 else 4, math.nan))
    dtypes = (float, float, object, float, object, float, float)
    columns = [np.array([values], dtype) for values, dtype in zip(zip(*people), dtypes)]
    savemat(folder / "imdb.mat", {"imdb": dict(zip(MAT_COLUMNS, columns))})


# ---- what the scripts share -------------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; a script's docstring is its help."""

    def __init__(self, text: str):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="after an error show where it came from")

    def add_data(self, detect: str) -> None:
        """The options that all scripts have; `detect` is the help of --detect."""
        self.add_argument("--data", default="data", metavar="DIR",
                          help="data root, or `sample`, which is drawn (default: data)")
        self.add_argument("--cache", metavar="DIR",
                          help="folder for prepared images (default: .cache in the data root)")
        self.add_argument("--detect", action="store_true", help=detect)

    def add_image_size(self) -> None:
        """The option for the side of images."""
        self.add_argument("--image-size", type=at_least(16), metavar="PX",
                          help="side in pixels of prepared images, as the network sees them "
                               f"(default: {IMAGE_SIZE}; {SAMPLE_SIZE} for the sample)")

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {one_line(message)[:500]}\n")


def at_least(low: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a finite number of `kind` from `low` on."""
    def parse(text: str) -> float:
        if not low <= kind(text) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is out of range; expected at least {low}")
        return kind(text)
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def folders(data: str, cache: str | None) -> tuple[Path, Path]:
    """The data root and the cache that --data and --cache name; the sample is drawn where it is missing."""
    root = SAMPLE_ROOT if data == "sample" else Path(data)
    if data == "sample" and not root.is_dir():
        build_folder(root, draw_sample)
    if not root.is_dir():
        raise DataError(f"no data root {data}/; the README says what lies in it, "
                        "and --data sample needs no download")
    return root, Path(cache or root / ".cache")


def optional(module: str, packages: str, what: str) -> types.ModuleType:
    """An optional module, imported. Raises DataError that says how to install it."""
    try:
        return importlib.import_module(module)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{what} needs {packages}: pip install {packages} "
                        f"({one_line(error)[:100]})") from None


def write_csv(file: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a table, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    with whole_file(file) as output:
        output.write(text.getvalue().encode(errors="surrogateescape"))


def cores() -> int:
    """How many cores this process may use, which can be fewer than the host has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def one_line(text: object) -> str:
    """`text` as one line."""
    return " ".join(str(text).split())


def progress(items: Iterable, total: int, what: str, unit_scale: int = 1) -> Iterable:
    """`items` with a bar of images per second on stderr, if that is a terminal and tqdm is installed."""
    if not sys.stderr.isatty() or int(os.environ.get("RANK", 0)) > 0:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, total=total, unit=" images", unit_scale=unit_scale, leave=False)


def script(main: Callable[[], int | None]) -> None:
    """Run a script: an error becomes one line on stderr and exit status 2, with --debug a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):            # a name may hold what the terminal can't show
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")     # of libraries, for their developers; python -W default shows them
    with contextlib.suppress(ValueError):   # not in the main thread
        # what was done so far is written, as after Ctrl-C
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status = main()
        sys.stdout.flush()                  # what can't be written, is an error here
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:                 # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        # a mistake is shown once a host, not by each of torchrun's processes
        if not isinstance(error, DataError) or os.environ.get("LOCAL_RANK", "0") == "0":
            kind = "" if isinstance(error, (DataError, OSError)) else f"{type(error).__name__}: "
            print(f"{Path(sys.argv[0]).name}: error: {kind}{one_line(error)}", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_data("find the faces in the pictures first")
    parser.add_image_size()
    args = parser.parse_args()
    root, cache = folders(args.data, args.cache)
    size = args.image_size or (SAMPLE_SIZE if is_drawn(root) else IMAGE_SIZE)
    count, mistakes = 0, []
    for source in SOURCES:
        try:
            count += report(root, source, size, cache, args.detect)
        except DataError as error:          # the other sets are reported, and at the end this
            print(error)
            mistakes.append(error)
    if mistakes:
        raise mistakes[0]
    if not count:
        raise DataError(f"{root}: none of {', '.join(DATASETS)} is there; "
                        "the README says how they lie on disk")


if __name__ == "__main__":
    script(main)
