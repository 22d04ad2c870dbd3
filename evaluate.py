"""Evaluate a network or predictions on a data set, read logs, or predict the faces in pictures and videos.

    python evaluate.py --split cvpr2016                                     newest run's best epoch, valid
    python evaluate.py --split fer2013 --subset test --checkpoint C --tta   mirrored images averaged
    python evaluate.py --split cvpr2016 --predictions other.csv             another model's predictions
    python evaluate.py --logs logs/                                         the results table
    python evaluate.py photo.jpg clip.mp4 faces/ --detect                   age, gender, emotion of each face
"""
import argparse
import bisect
import contextlib
import inspect
import itertools
import math
import os
import re
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from json import dumps
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import datasets  # before torch, since it sets how OpenMP's threads wait
from datasets import CLASS_NAMES, MAX_AGE, TASKS, DataError, Detection, Faces, Part, one_line

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou

import model as models

BATCH = 64      # images at a time, always: figures of a log and of this script agree to the last digit
SHIPPED = Path(__file__).resolve().with_name("checkpoints") / "resnet18-age-gender-emotion.pth"


# ---- predicting -------------------------------------------------------------------------------------------

@dataclass
class Predictions:
    """What was predicted for each face of a table, by task; a task that was not predicted is absent."""
    values: dict[str, np.ndarray]                               # (n,) float years; (n,) int classes
    logits: dict[str, Tensor] = field(default_factory=dict)     # (n, classes) float32, of a network


@torch.inference_mode()
def predict(network: models.FaceAttributeNet, faces: Faces, size: int, tasks: Collection[str],
            device: torch.device, tta: bool = False, grey: bool = False) -> Predictions:
    """Predict every face, with `grey` without its colors. The network is in evaluation mode from then on."""
    network.eval()
    # a batch never spans two parts, so that it is the same whichever parts are evaluated together
    parts = [np.flatnonzero(faces["part"] == part) for part in range(len(faces.parts))]
    batches = [rows[i:i + BATCH] for rows in parts for i in range(0, len(rows), BATCH)]
    outputs = [forward(network, faces.gather(rows, device), size, tasks, tta, grey)
               for rows in datasets.progress(batches, len(batches), "evaluating", BATCH)]
    logits = {task: torch.cat([output[task] for output in outputs]).cpu() for task in tasks}
    values = {task: of_task.argmax(1).numpy() for task, of_task in logits.items()}
    if "age" in logits:
        values["age"] = models.expected_age(logits["age"]).double().numpy()
    return Predictions(values, logits)


def forward(network: models.FaceAttributeNet, images: Tensor, size: int, tasks: Collection[str],
            tta: bool, grey: bool = False) -> dict[str, Tensor]:
    """Logits (n, classes) float32 by task, of images (n, h, w, 3) uint8.

    With `tta`, the logarithm of the mean probabilities of image and mirror image.
    """
    inputs = models.network_input(images, size, grey)
    outputs = network(inputs, tasks)
    if tta:
        mirrored = network(inputs.flip(3), tasks)
        for task, logits in outputs.items():
            both = torch.stack([logits.float(), mirrored[task].float()])
            outputs[task] = both.log_softmax(2).logsumexp(0) - math.log(2)
    return {task: logits.float() for task, logits in outputs.items()}


# ---- metrics ----------------------------------------------------------------------------------------------

# the figures of the tables, and their titles there
FIGURES = {
    "age_mae": "age MAE (years)",
    "chalearn_error": "ChaLearn's error",
    "age_in_range": "age in range (%)",
    **{f"{task}_acc": f"{task} acc (%)" for task in CLASS_NAMES},
}
# the figures that the best epoch is chosen by, under their names in an epoch
METRICS = {"age": "val_age_mae"} | {task: f"val_{task}_acc" for task in CLASS_NAMES}
# the original recipe's errors in its run of all three tasks: years, and percent
ORIGINAL_ERRORS = {"age": 12.23, "gender": 100 - 86.63, "emotion": 100 - 52.91}


def per_face(faces: Faces, predictions: Predictions) -> dict[str, np.ndarray]:
    """What each face adds to each figure, (n,) float64, NaN where its label is unknown.

    age_mae: years; where labels are ranges, to the range's middle.
    chalearn_error: ChaLearn LAP's 1 - exp(-(x - mean)^2 / (2 std^2)), of labels with a std.
    age_in_range, TASK_acc: 100 or 0 percent. TASK_loss: of a network's predictions.
    A figure that no face adds to is absent.
    """
    labels = faces.labels(np.arange(len(faces)), torch.device("cpu"))
    losses = models.losses(predictions.logits, labels)
    result = {}
    for task, guess in predictions.values.items():
        if task == "age":
            figures = age_figures(faces, guess)
        else:
            figures = {f"{task}_acc": 100.0 * (guess == faces[task])}
        if task in losses:
            figures[f"{task}_loss"] = losses[task].double().numpy()
        for name, values in figures.items():
            result[name] = np.where(faces.known(task), values, math.nan)
    return {name: values for name, values in result.items() if not np.isnan(values).all()}


def age_figures(faces: Faces, guess: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of age of `per_face`, of guesses (n,) in years."""
    # a NaN prediction counts as an infinite error
    error = np.nan_to_num(np.abs(guess - faces["age"].astype(np.float64)), nan=math.inf)
    # where all guessed the same age, only that age is right
    std = np.maximum(faces["age_std"].astype(np.float64), 1e-6)
    chalearn = 1 - np.exp(-(error / std) ** 2 / 2)
    low, high = faces["age_low"], faces["age_high"]
    in_range = 100.0 * ((guess >= low) & (guess < high))
    ranged = ~np.isnan(low)             # no spread of guesses, which ChaLearn's error needs
    return {"age_mae": error,
            "chalearn_error": np.where(ranged, math.nan, chalearn),
            "age_in_range": np.where(ranged, in_range, math.nan)}


def means(figures: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each figure of `per_face`."""
    return {name: float(np.nanmean(values)) for name, values in figures.items()}


def mean_error(figures: dict[str, float]) -> float:
    """The mean of an epoch's errors in parts of the original recipe's; a run's best epoch has the least."""
    errors = []
    for task, name in METRICS.items():
        if name in figures:
            error = figures[name] if task == "age" else 100 - figures[name]
            errors.append(error / ORIGINAL_ERRORS.get(task, 50))        # 50 % of a task that it had not
    return float(np.mean(errors))


def decades(faces: Faces) -> dict[str, np.ndarray]:
    """Which faces are of each decade of true ages, such as "aged 20-29": (n,) bool."""
    numbers = faces["age"] // 10
    return {f"aged {10 * number:.0f}-{10 * number + 9:.0f}": numbers == number
            for number in np.unique(numbers[faces.known("age")])}


def confusion_matrix(task: str, faces: Faces, predictions: Predictions) -> np.ndarray:
    """How many faces of each true class (rows) were predicted as each class: (classes, classes) int."""
    classes = len(CLASS_NAMES[task])
    pairs = classes * faces[task] + predictions.values[task]
    counts = np.bincount(pairs[faces.known(task)], minlength=classes ** 2)
    return counts.reshape(classes, classes)


# ---- intervals --------------------------------------------------------------------------------------------

def interval(values: np.ndarray, percent: bool) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` (n,) float, n > 0.

    Of percentages (each value 0 or 100) Wilson's, JASA 22 (1927) 209-212; else by bootstrap.
    """
    count, mean = len(values), values.mean()
    if not percent:
        return bootstrap(count, lambda rows: values[rows].mean())
    z, mean = 1.959964, mean / 100
    centre = mean + z ** 2 / (2 * count)
    half = z * math.sqrt(mean * (1 - mean) / count + z ** 2 / (4 * count ** 2))
    scale = 100 / (1 + z ** 2 / count)
    return max(0.0, scale * (centre - half)), min(100.0, scale * (centre + half))


def bootstrap(count: int, statistic) -> tuple[float, float]:
    """The 95 % interval of `statistic` of rows (n,) int, by 1,000 samples drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(count, size=count)) for _ in range(1000)]
    return tuple(np.percentile(values, (2.5, 97.5)).tolist())


# ---- calibration: whether probabilities are as often right as they say ------------------------------------

TEMPERATURES = torch.logspace(-2, 2, 135, 2).tolist()   # those tried: from 1/4 to 4, in steps of 2 %
BINS = 15                               # of the expected calibration error


def calibrate(faces: Faces, predictions: Predictions) -> dict[str, float]:
    """The temperature of each task that has labels: logits divided by it give calibrated probabilities.

    Of classes that of the least cross-entropy (Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017); of age the first at which AGE_MASS of the true ages lie in the predicted intervals.
    """
    return {task: fit_temperature(task, *pair) for task, *pair in with_labels(faces, predictions)}


def fit_temperature(task: str, logits: Tensor, truth: Tensor) -> float:
    """The temperature of logits (n, classes) with labels (n,)."""
    if task == "age":                                       # intervals widen with the temperature
        return TEMPERATURES[bisect.bisect_left(
            TEMPERATURES[:-1], 100 * models.AGE_MASS,
            key=lambda t: in_age_interval(logits / t, truth).mean())]
    return min(TEMPERATURES, key=lambda t: F.cross_entropy(logits / t, truth).item())


def with_labels(faces: Faces, predictions: Predictions) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For each task the logits (k, classes) and labels (k,) of faces of known label, if there are some.

    Ages that are ranges are left out.
    """
    for task, logits in predictions.logits.items():
        rows = faces.known(task)
        if task == "age":
            rows &= np.isnan(faces["age_low"])
        if rows.any():
            yield task, logits[rows], torch.from_numpy(faces[task][rows])


def in_age_interval(logits: Tensor, ages: Tensor) -> np.ndarray:
    """Whether `ages` (n,) years, rounded, lie in the intervals of logits (n, 101): (n,) 100 or 0 percent."""
    low, high = models.age_interval(logits)
    return 100 * ((ages >= low - 0.5) & (ages <= high + 0.5)).double().numpy()


def calibration_error(logits: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """The expected calibration error of logits (n, classes) with labels (n,), percent; its 95 % interval.

    The faces are put into bins by the predicted class's probability; the error is the mean over the faces
    of the distance between their bin's mean probability and accuracy (Guo et al., ICML 2017).
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    gaps = ((predicted == truth).double() - confidence).numpy()
    bins = np.minimum((confidence.numpy() * BINS).astype(int), BINS - 1)

    def error(rows: np.ndarray) -> float:
        return 100 * np.abs(np.bincount(bins[rows], gaps[rows])).sum() / len(rows)
    return error(np.arange(len(gaps))), *bootstrap(len(gaps), error)


def calibration_table(faces: Faces, predictions: Predictions, temperatures: dict[str, float]) -> str:
    """How well probabilities and age intervals hold, after division by the temperatures."""
    rows = []
    for task, logits, truth in with_labels(faces, predictions):
        temperature = temperatures.get(task, 1)
        if task == "age":
            title = f"true ages in the predicted {100 * models.AGE_MASS:.0f} % (%)"
            inside = in_age_interval(logits / temperature, truth)
            cells = as_text(inside.mean(), *interval(inside, percent=True))
        else:
            title = f"{task} calibration error (%)"
            cells = as_text(*calibration_error(logits / temperature, truth))
        rows.append([title, *cells, f"{temperature:.3f}"])
    return table(["", "calibrated", "95 %", "temperature"], rows)


# ---- tables -----------------------------------------------------------------------------------------------

def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is aligned in a terminal too; all columns but the first to the right."""
    first, *others = [max(map(len, column)) for column in zip(header, *rows)]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    lines = []
    for name, *cells in [header, *rows]:
        lines.append(" | ".join([name.ljust(first), *map(str.rjust, cells, others)]))
    head, *body = [f"| {line} |" for line in lines]
    return "\n".join([head, f"|{rule}|", *body])


def as_text(mean: float, low: float, high: float, sign: str = "") -> list[str]:
    """A figure and its interval as a table's two cells."""
    return [f"{mean:{sign}.2f}", f"{low:{sign}.2f} to {high:{sign}.2f}"]


def figure_table(corner: str, rows: dict[str, dict[str, np.ndarray]]) -> str:
    """The means of values (n,), NaN unknown, with their intervals: row -> column -> values.

    Columns named (%) are of percentages; those that end with "difference" are signed.
    """
    columns = next(iter(rows.values()))
    lines = [[title] for title in rows]
    for line, row in zip(lines, rows.values()):
        for column, values in row.items():
            sign = "+" if column.endswith("difference") else ""
            line += with_interval(values[~np.isnan(values)], column.endswith("(%)"), sign)
    return table([corner, *(name for column in columns for name in (column, "95 %", "faces"))], lines)


def with_interval(values: np.ndarray, percent: bool, sign: str = "") -> list[str]:
    """The mean of `values` (n,), its 95 % interval and n, as text."""
    if not len(values):
        return ["-", "", "0"]
    return [*as_text(values.mean(), *interval(values, percent), sign), f"{len(values):,}"]


# metrics that reports call by other names
REPORTED = {"age_mae": "age mae", "chalearn_error": "chalearn error", "age_in_range": "age in range"}


def report(faces: Faces, predictions: Predictions, seen: np.ndarray | None = None) -> str:
    """All figures as text: in full precision under the logs' names, then in tables with intervals.

    The tables are by true class; and over all faces, those not `seen` (n,) bool in training, and by age and
    group.
    """
    figures = per_face(faces, predictions)
    lines = [f"{REPORTED.get(name, name)}: {value}" for name, value in means(figures).items()]
    if "age_in_range" in figures:
        lines.append("(these labels are ranges of ages: the age mae is the distance to the range's middle)")
    for task in CLASS_NAMES:
        if f"{task}_acc" in figures:
            lines += ["", confusion_table(task, confusion_matrix(task, faces, predictions))]
    rows = {"all": np.full(len(faces), True)} | ({} if seen is None else {"unseen": ~seen}) | decades(faces)
    rows |= {group: faces["group"] == group for group in sorted(set(faces["group"]) - {""})}
    shown = {title: figures[name] for name, title in FIGURES.items() if name in figures}
    lines += ["", figure_table("faces", {
        name: {title: values[chosen] for title, values in shown.items()} for name, chosen in rows.items()})]
    return "\n".join(lines)


def confusion_table(task: str, matrix: np.ndarray) -> str:
    """A row for each true class, with its recall."""
    names, rows = CLASS_NAMES[task], []
    for name, counts, right in zip(names, matrix, matrix.diagonal()):
        recall = with_interval(np.repeat([100.0, 0.0], [right, counts.sum() - right]), True)
        rows.append([name, *recall, *map(str, counts)])
    return table([f"true {task}", "recall (%)", "95 %", "faces", *(f"as {name}" for name in names)], rows)


def comparison_table(faces: Faces, compared: dict[str, Predictions], chosen=slice(None)) -> str:
    """A row for each of `compared`: the FIGURES of the `chosen` faces, and differences to the first row."""
    measured = {title: per_face(faces, predictions) for title, predictions in compared.items()}
    names = [name for name in FIGURES if any(name in figures for figures in measured.values())]
    first, unknown = next(iter(measured.values())), np.full(len(faces), math.nan)
    rows = {title: {} for title in measured}
    for name, (title, figures) in itertools.product(names, measured.items()):
        values = figures.get(name, unknown)
        difference = values - first.get(name, unknown)
        rows[title] |= {FIGURES[name]: values[chosen], f"{FIGURES[name]} difference": difference[chosen]}
    return figure_table("predictions", rows)


# ---- logs: written and read here --------------------------------------------------------------------------

LOG_TASKS = (TASKS[1], TASKS[0], *TASKS[2:])            # in a log's order: gender before age
DRAWN_NOTE = "the sample's faces are drawn: its figures mean nothing"
FIGURE = re.compile(r"(lr|\[Valid\] age mae|\w+_loss|\w+_acc) ?: *(\d+(\.\d+)?(e[-+]\d+)?)")
OPTION = re.compile(r" --([a-z-]+)((?: (?!--)\S+)*)")


def epoch_lines(figures: dict) -> list[str]:
    """An epoch as the log has it, without the times; an absent figure, of a task of weight 0, is `0`."""
    def lines(prefix: str, kind: str, tasks: Collection[str]) -> list[str]:
        names = [f"{prefix}{task}_{kind}" for task in tasks]
        return [f"{'':10}{name}: {figures.get(name, 0)}" for name in names]
    return [f"lr : {figures['lr']}",
            f"Train epoch {figures['epoch']:5d}:",
            *lines("", "loss", LOG_TASKS), "\n",
            *lines("", "acc", CLASS_NAMES),
            f"[Valid] age mae: {figures.get('val_age_mae', 0)}",
            *lines("val_", "loss", LOG_TASKS), "\n",
            *lines("val_", "acc", CLASS_NAMES),
            "-" * 15]


class Log(NamedTuple):
    """What a run's log holds."""
    options: dict[str, list[str]]       # of train.py's command line; "drawn" where the faces were drawn
    epochs: list[dict]                  # their figures, under the names that `epoch_lines` takes


def read_log(file: Path) -> Log:
    """A run's log, or the original recipe's excerpt. An epoch that was logged twice counts as logged last.

    Raises: DataError where no epoch is finished; OSError, ValueError.
    """
    options, epochs, figures = {}, {}, {}
    for line in file.read_text(encoding="utf-8").splitlines():
        line = line[len("[25.03.2019 20:56:57] "):].strip()
        if line.startswith("train.py "):
            options = {name: values.split() for name, values in OPTION.findall(line)}
        elif line == DRAWN_NOTE:
            options["drawn"] = []
        elif line.startswith("Train epoch "):
            figures["epoch"] = int(line.strip(":").split()[-1])
        elif figure := FIGURE.fullmatch(line):
            if figure[2] != "0":                            # of a task of weight 0
                figures[figure[1].replace("[Valid] age mae", "val_age_mae")] = float(figure[2])
        elif line.startswith("-----"):
            if "epoch" in figures and figures.keys() & METRICS.values():        # a finished epoch
                epochs[figures["epoch"]] = figures
            figures = {}
    if not epochs:
        raise DataError("no finished epoch")
    return Log(options, list(epochs.values()))


def read_logs(folder: Path) -> dict[Path, Log]:
    """The logs in a folder, oldest first, or one file; those that can't be read are named on stderr."""
    logs = {}
    for file in [folder] if folder.is_file() else sorted(folder.glob("*.txt")):
        try:
            logs[file] = read_log(file)
        except (DataError, OSError, ValueError) as error:
            print(f"{file}: left out ({one_line(error)[:200]})", file=sys.stderr)
    if not logs:
        raise DataError(f"{folder}: no logs (*.txt) there")
    return logs


# options of a run that its row names
REMARKS = {"teacher": "with teachers", "heads": "heads alone", "constant": "constant rate and size",
           "without-copies": "without copies", "drawn": "drawn sample"}
# the original recipe's own table: figures, weights, rate
ORIGINAL_ROWS = [
    ({"age": 12.95, "gender": 84.15, "emotion": 48.20}, "1, 0.1, 1", "0.01"),
    ({"age": 12.23, "gender": 86.63, "emotion": 52.91}, "1, 1, 1", "0.01"),
    ({"age": 12.30}, "", ""),
    ({"gender": 88.12}, "", ""),
    ({"emotion": 55.56}, "", ""),
]


def results_table(logs: Iterable[Log]) -> str:
    """The original recipe's table, and a row for the best epoch of each log."""
    titles = [f"{task.capitalize()} Acc (%)" for task in CLASS_NAMES]
    rows = [results_row(figures, " (original)", *rest) for figures, *rest in ORIGINAL_ROWS]
    rows += map(row_of_log, logs)
    return table(["model", "Age MAE", *titles, "weight", "initial lr"], rows)


def results_row(figures: dict[str, float], remark: str, weights: str, rate: str) -> list[str]:
    """A row of the results table, of figures by task."""
    name = "-".join(["ResNet-18", *map(str.capitalize, figures)])
    cells = [f"{figures[task]:.2f}" if task in figures else "" for task in TASKS]
    return [name + remark, *cells, weights, rate]


def row_of_log(log: Log) -> list[str]:
    """A run's row in the results table: its best epoch, and on which data sets it was evaluated."""
    options, epochs = log
    best = min(epochs, key=mean_error)
    by_task = {task: best[name] for task, name in METRICS.items() if name in best}
    words = [word for option, word in REMARKS.items() if option in options]
    if options and "pretrained" not in options:
        words.insert(0, "from scratch")
    if "rehearse" in options:
        words.insert(0, f"rehearsing {' '.join(options['rehearse'])}")
    used = [name for name in options.get("split", []) if by_task.keys() & datasets.DATASETS.get(name, [])]
    remark = f" on {' '.join(used)}" if used else ""
    remark += f" ({', '.join(words)})" if words else ""
    rate = options.get("lr", [str(epochs[0].get("lr", ""))])
    return results_row(by_task, remark, ", ".join(options.get("weights", [])), *rate)


def show_logs(logs: Path, plot: Path | None = None) -> None:
    """Print the results table of the logs in a folder, and plot them."""
    runs = read_logs(logs)
    print(results_table(runs.values()))
    if plot:
        plot_logs(plot, {file.stem: log.epochs for file, log in runs.items()})


# ---- a data set -------------------------------------------------------------------------------------------

def evaluate_network(split: str, data: str, cache: str | None = None, subset: str = "valid",
                     checkpoint: Path | None = None, checkpoints: Path | None = None, tta: bool = False,
                     save_predictions: Path | None = None, plot: Path | None = None,
                     device: str | None = None) -> None:
    """Print the metrics of a checkpoint on a part of a data set."""
    root, cache = datasets.folders(data, cache)
    predictor = Predictor(chosen_checkpoint(checkpoint, checkpoints), device, detect=False, tta=tta)
    predictor.introduce(datasets.is_drawn(root))
    content = predictor.content
    tasks = [task for task in datasets.DATASETS[split] if task in content["tasks"]]
    if not tasks:
        raise DataError(f"{predictor.file}: trained for {', '.join(content['tasks'])}; "
                        f"{split} has no labels of it; --checkpoint names another")
    parts, gaps = datasets.read(root, [split], subset, tasks)
    faces = datasets.load(parts, content["decoded_size"], cache, content["detected"])
    predictions = predict(predictor.network, faces, predictor.size, tasks, predictor.device, tta)
    if save_predictions:
        write_predictions(save_predictions, faces, predictions)
    print(*gaps, *faces_used(faces), sep="\n")
    print(report(faces, predictions, seen_in_training(root, parts, faces, tasks)))
    print("", calibration_table(faces, predictions, predictor.temperatures), sep="\n")
    if plot:
        plot_part(plot, f"{split} {subset}, {predictor.file}", faces, predictions)


def evaluate_predictions(split: str, predictions: list[Path], data: str, cache: str | None = None,
                         subset: str = "valid", plot: Path | None = None) -> None:
    """Print the metrics of predictions in files on a part of a data set; several are compared."""
    if plot and len(predictions) > 1:
        raise DataError("--plot is of one file of --predictions")
    root, cache = datasets.folders(data, cache)
    tasks = datasets.DATASETS[split]
    parts, gaps = datasets.read(root, [split], subset, tasks)
    # to leave out files that can't be decoded, as a network has to; the size does not matter
    tables = [datasets.prepare(part, 64, cache) for part in parts]
    if not any(map(len, tables)):           # without any image on disk, the labels are enough
        tables = [Faces.of(part) for part in parts]
    faces = datasets.join(tables)
    compared = {str(file): read_predictions(file, faces) for file in predictions}
    print(*gaps, *faces_used(faces), sep="\n")
    seen = seen_in_training(root, parts, faces, tasks)
    if len(compared) > 1:
        print("over all images; differences are to the first row, image by image")
        print(comparison_table(faces, compared))
        if seen is not None and seen.any():
            print(f"\nover the {(~seen).sum():,} images that are not in the train part")
            print(comparison_table(faces, compared, ~seen))
        return
    (title, only), = compared.items()
    print(report(faces, only, seen))
    if plot:
        plot_part(plot, f"{split} {subset}, {title}", faces, only)


def faces_used(faces: Faces) -> list[str]:
    """Lines on how many images of each part are used, and on what is left out."""
    counts = np.bincount(faces["part"], minlength=len(faces.parts))
    lines = [f"{part.name}: {count:,} images" for part, count in zip(faces.parts, counts)]
    return lines + datasets.left_out(faces)


def seen_in_training(root: Path, parts: list[Part], faces: Faces,
                     tasks: Collection[str]) -> np.ndarray | None:
    """Which faces' pictures are also in the data set's train part: (n,) bool; None where that is unknown."""
    if parts[0].subset == "train":
        return None
    try:
        train = [datasets.read_part(root, part.source, "train", tasks) for part in parts]
        taken = set().union(*(datasets.digests(part).values() for part in train))
        mine = [datasets.digests(part) for part in parts]
        if not taken or not any(mine):
            raise DataError("the images are not on disk")
    except DataError as error:
        print("it is unknown which images are in the train part too:", error)
        return None
    seen = [mine[part].get(file) in taken for part, file in zip(faces["part"], faces["file"])]
    print(f"{sum(seen):,} of the images are in the train part too; "
          "unseen are those that are not in this data set's train part")
    return np.array(seen, bool)


def write_predictions(file: Path, faces: Faces, predictions: Predictions) -> None:
    """Write predictions as `read_predictions` reads them."""
    columns = [values if task == "age" else np.array(CLASS_NAMES[task])[values]
               for task, values in predictions.values.items()]
    datasets.write_csv(file, ["image", *predictions.values], zip(faces["file"], *columns))


SYNONYMS = {"woman": "female", "f": "female", "man": "male", "m": "male", "anger": "angry",
            "disgusted": "disgust", "fearful": "fear", "happiness": "happy", "sadness": "sad",
            "surprised": "surprise"}


def read_predictions(file: Path, faces: Faces) -> Predictions:
    """Anybody's predictions: a CSV with `image` and any of age (years), gender, emotion (names or numbers).

    An image needs a prediction where its label is known. Raises DataError that names rows.
    """
    dropped = [names for part in faces.parts for names in part.dropped.values()]
    images = set(faces["file"]).union(*dropped)
    measured = [task for task in TASKS if faces.known(task).any()]
    rows, tasks = {}, []
    for where, cells in datasets.read_csv(file, ["image"]):
        tasks = [task for task in measured if task in cells]
        name = image_named(cells["image"], images)
        row = {task: parse_prediction(cells[task], task, where) for task in tasks if cells[task].strip()}
        if rows.setdefault(name, row) != row:
            raise DataError(f"{where}: {name} is there twice, with different values")
    if not tasks:
        raise DataError(f"{file}: no predictions; expected the columns image and any of {', '.join(TASKS)}")
    strangers = sorted(rows.keys() - images)
    if strangers:
        raise DataError(f"{file}: no image of this part: {datasets.few(strangers)}")
    values = {}
    for task in tasks:
        column = np.array([rows.get(name, {}).get(task, math.nan) for name in faces["file"]])
        missing = faces["file"][faces.known(task) & np.isnan(column)].tolist()
        if missing:
            raise DataError(f"{file}: missing: {datasets.few(missing)}")
        values[task] = column if task == "age" else np.nan_to_num(column).astype(np.int64)
    return Predictions(values)


def image_named(path: str, images: Collection[str]) -> str:
    """The end of `path` that is one of `images`; `path` where there is none."""
    steps = path.split("/")
    ends = ["/".join(steps[i:]) for i in range(len(steps))]
    return next((end for end in ends if end in images), path)


def parse_prediction(text: str, task: str, where: str) -> float:
    """A cell: years, or a class's name or number. Raises DataError."""
    if task == "age":
        return datasets.number(text, -1000, 1000, where, task)
    classes = datasets.CLASS_NUMBERS[task]
    classes = classes | {str(number): number for number in classes.values()}
    word = text.strip().lower()
    word = SYNONYMS.get(word, word)
    return datasets.choice(word, classes, where, task)


def chosen_checkpoint(checkpoint: Path | None, checkpoints: Path | None) -> Path:
    """The checkpoint that is named, else the best.pth written last, else the weights that ship."""
    folder = checkpoints or Path("checkpoints")
    found = sorted(folder.glob("*/best.pth"), key=lambda file: file.stat().st_mtime)
    if checkpoints and not found and not checkpoint:
        raise DataError(f"no run's best.pth in {folder}/; train one, or name one by --checkpoint")
    return checkpoint or [SHIPPED, *found][-1]


def write_export(export: Path, checkpoint: Path | None = None, checkpoints: Path | None = None) -> None:
    """Write a checkpoint's network in half precision with what using it needs, or as FILE.onnx."""
    if export.exists():
        raise DataError(f"{export}: is there already; name another file")
    file = chosen_checkpoint(checkpoint, checkpoints)
    network, content = models.open_checkpoint(file)
    if export.suffix.lower() == ".onnx":
        export_onnx(export, network, content)
    else:
        tensors = network.half().state_dict()
        models.load_state(network, tensors, file)           # refused where a weight is too large
        keys = ("image_size", "decoded_size", "tasks", "temperatures", "drawn", "detected")
        kept = {key: content[key] for key in (*keys, *models.description())}
        models.save_checkpoint({"model": tensors, **kept}, export)
    print(f"{export}: {file} in {export.stat().st_size / 1e6:.1f} MB")


def export_onnx(export: Path, network: models.FaceAttributeNet, content: dict) -> None:
    """Write a network that takes `images`, aligned RGB faces (n, 3, size, size) float32 in 0..255, and
    returns the logits (n, classes) of each task.
    """
    datasets.optional("onnxscript", "onnx onnxscript", "--export to ONNX")

    class Exported(torch.nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [*network(models.normalise(images), content["tasks"]).values()]
    size = content["image_size"]
    images = torch.zeros(2, 3, size, size)
    models.normalise(images)        # keeps its constants, which must not be those of the export's tracing
    program = torch.onnx.export(
        Exported().eval(), (images,), input_names=["images"], output_names=content["tasks"],
        dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False)
    with datasets.whole_file(export) as output:
        output.write(program.model_proto.SerializeToString())


# ---- videos -----------------------------------------------------------------------------------------------

VIDEO_FILES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".3gp", ".mpg", ".mpeg", ".wmv", ".mts")
SMOOTHED = 1        # seconds over which a face's logits are averaged, so that its prediction does not flicker
SAME_FACE = 0.3     # least overlap of a face's boxes in two frames


class Picture(NamedTuple):
    """A picture's file, or a frame of a video or a camera."""
    file: Path
    time: float | None = None           # seconds from a video's first frame on
    rate: float | None = None           # frames a second
    pixels: np.ndarray | None = None    # (h, w, 3) uint8, RGB

    def __str__(self) -> str:
        return str(self.file) if self.time is None else f"{self.file} {self.time:.2f} s"


def with_frames(files: Iterable[Path]) -> Iterator[Picture]:
    """`files` with videos replaced by their frames; a video that can't be read stays as it is."""
    for file in files:
        frames = read_video(file) if file.suffix.lower() in VIDEO_FILES else iter(())
        yield next(frames, Picture(file))
        yield from frames


def read_video(source: Path | int) -> Iterator[Picture]:
    """The frames of a video, or of the camera of a number. Raises DataError where that can't be opened."""
    cv2 = datasets.optional("cv2", "opencv-python-headless", "a video")
    live = isinstance(source, int)
    # as bytes, since OpenCV 5.0 crashes on a text that is not UTF-8
    video = cv2.VideoCapture(source if live else os.fsencode(source))
    name = Path(f"camera {source}") if live else source
    rate, count = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
    rate = rate if rate > 0 else 25
    for number in itertools.count():
        success, pixels = video.read()
        if not success:
            break
        # a file's frames may be unequally long; some kinds of files don't say when each is shown
        now = time.monotonic() if live else video.get(cv2.CAP_PROP_POS_MSEC) / 1000 or number / rate
        if number == 0:
            begin = now
        yield Picture(name, now - begin, rate, np.ascontiguousarray(pixels[..., ::-1]))
    if live and not number:
        raise DataError(f"camera {source}: can't be opened, or gives no picture")
    if 0 < number < count:
        print(f"{name}: ends after {number} of {count:.0f} frames", file=sys.stderr)


def follow(tracks: dict[int, list[tuple]], frame: Picture, found: list[tuple]) -> list[tuple]:
    """The faces of a frame with their mean logits of the last second and their numbers.

    A face keeps its number from frame to frame by the overlap of its boxes. `tracks`: for each number, the
    times, boxes and logits of the last second.
    """
    if frame.time == 0:                                     # another video
        tracks.clear()
    for track in tracks.values():                           # an empty one keeps its number
        track[:] = [entry for entry in track if frame.time - entry[0] <= SMOOTHED]
    boxes = [detection.box if detection else (0, 0, 1, 1) for detection, _ in found]
    last = [track[-1][1] if track else (0, 0, 0, 0) for track in tracks.values()]
    overlaps = box_iou(*(torch.tensor(each).float().view(-1, 4) for each in (boxes, last)))
    numbers = {}
    while overlaps.numel() and overlaps.max() >= SAME_FACE:
        i, j = divmod(overlaps.argmax().item(), len(tracks))
        numbers[i] = j + 1
        overlaps[i] = overlaps[:, j] = 0
    numbered = []
    for i, (detection, logits) in enumerate(found):
        number = numbers.get(i, len(tracks) + 1)
        track = tracks.setdefault(number, [])
        track.append((frame.time, boxes[i], logits))
        mean = {task: torch.stack([entry[2][task] for entry in track]).mean(0) for task in logits}
        numbered.append((detection, mean, number))
    return numbered


# ---- pictures ---------------------------------------------------------------------------------------------

# A face in a picture; what is not known is None.
# number: the face's in a video; box: left, top, right, bottom in pixels; confidence: 0..1, the detector's;
# age and its interval: years; probabilities: task -> class -> 0..1; each task's class and its probability
FACE_FIELDS = ["number", "box", "confidence", "age", "age_low", "age_high", "probabilities",
               *(name for task in CLASS_NAMES for name in (task, f"{task}_probability"))]
FacePrediction = namedtuple("FacePrediction", FACE_FIELDS, defaults=[None] * len(FACE_FIELDS))


class Predictor:
    """Predicts the faces in pictures: Predictor()("photo.jpg") -> [FacePrediction, ...], left to right.

    A picture is a file, a PIL image, or an RGB array (h, w, 3) uint8. Without `detect` the middle square is
    the face; with `tta` image and mirror image are averaged.
    """

    def __init__(self, checkpoint: Path | str = SHIPPED, device: str | None = None, detect: bool = True,
                 tta: bool = False):
        self.device = models.pick_device(device)
        self.network, self.content = models.open_checkpoint(checkpoint)
        self.network.to(self.device, memory_format=torch.channels_last)
        self.file, self.detect, self.tta = checkpoint, detect, tta
        self.size, self.temperatures = self.content["image_size"], self.content["temperatures"]
        if detect:
            datasets.detector()                     # a missing one is an error now

    def __call__(self, picture) -> list[FacePrediction]:
        return [self.describe(*face) for face in self.logits(self.find(picture))]

    def introduce(self, drawn: bool = False, file=None) -> None:
        """Print what the checkpoint is; `drawn`, whether the faces that it will see are drawn."""
        about = f"{self.file}: {self.size} px; trained for {', '.join(self.content['tasks'])}"
        if "epoch" in self.content:
            about += f"; epoch {self.content['epoch']}"
        if self.tta:
            about += "; mean of image and mirror image (--tta)"
        print(about, file=file)
        if self.content["drawn"] and not drawn:
            print("trained on drawn faces: its predictions for photos mean nothing; "
                  "--checkpoint names another", file=file)

    def find(self, picture) -> list[tuple[Detection | None, np.ndarray]]:
        """The faces in a picture and their squares, (size, size, 3) uint8."""
        if isinstance(picture, (str, os.PathLike)):
            image = datasets.open_picture(Path(picture), None if self.detect else self.size)
        else:
            image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            image = datasets.upright(image)
        if not self.detect:
            return [(None, datasets.center_crop(image, self.size))]
        return [(face, datasets.align(image, face.landmarks, self.size))
                for face in datasets.find_faces(image)]

    @torch.inference_mode()
    def logits(self, found: list[tuple[Detection | None, np.ndarray]]) -> list[tuple]:
        """Of the faces that `find` found each detection and its logits, (1, classes) by task; in batches."""
        faces = []
        for start in range(0, len(found), BATCH):
            detections, squares = zip(*found[start:start + BATCH])
            images = torch.from_numpy(np.stack(squares)).to(self.device)
            outputs = forward(self.network, images, self.size, self.content["tasks"], self.tta)
            outputs = {task: logits.cpu() for task, logits in outputs.items()}
            for i, face in enumerate(detections):
                faces.append((face, {task: logits[i:i + 1] for task, logits in outputs.items()}))
        return faces

    def describe(self, face: Detection | None, outputs: dict[str, Tensor],
                 number: int | None = None) -> FacePrediction:
        """One face's prediction, of its logits (1, classes) by task."""
        values = {"number": number, "probabilities": {}}
        if face:
            values |= {"box": tuple(map(round, face.box)), "confidence": float(face.confidence)}
        for task, logits in outputs.items():
            calibrated = logits / self.temperatures.get(task, 1)
            if task == "age":
                values["age"] = models.expected_age(logits).item()
                values["age_low"], values["age_high"] = map(int, models.age_interval(calibrated))
            else:
                classes = dict(zip(CLASS_NAMES[task], calibrated.softmax(1)[0].tolist()))
                values["probabilities"][task] = classes
                values[task] = max(classes, key=classes.get)
                values[f"{task}_probability"] = max(classes.values())
        return FacePrediction(**values)

    def process(self, pictures: Iterable[Picture], chunk: int = BATCH) -> Iterator[tuple]:
        """Each picture, its faces as `logits` gives them and, where it can't be read, why.

        The pictures of a chunk are read and searched on all cores.
        """
        def attempt(picture: Picture) -> tuple[list, str]:
            try:
                return self.find(picture.file if picture.pixels is None else picture.pixels), ""
            except Exception as error:                  # Pillow raises anything on a broken file
                reason = one_line(error)[:200] or type(error).__name__
                return [], f"not a readable picture ({reason})"
        pictures = iter(pictures)
        with ThreadPool(datasets.cores()) as pool:
            while taken := list(itertools.islice(pictures, chunk)):
                answers = pool.map(attempt, taken, 1)
                faces = iter(self.logits([face for found, _ in answers for face in found]))
                for picture, (found, error) in zip(taken, answers):
                    yield picture, list(itertools.islice(faces, len(found))), error


def predict_pictures(pictures: Collection[str] = (), camera: str | None = None, checkpoint: Path = SHIPPED,
                     device: str | None = None, detect: bool = False, tta: bool = False,
                     json: bool = False, csv: Path | None = None, out: Path | None = None) -> int:
    """Print a line for each face; name pictures that can't be read on stderr. Returns the exit status."""
    if camera and out:
        raise DataError("--out does not go with --camera")
    if out and any(os.path.realpath(out) == os.path.realpath(name) for name in pictures):
        raise DataError(f"--out {out}: its pictures are read; name another folder")
    predictor = Predictor(checkpoint, device, detect, tta)
    about = sys.stderr if json else sys.stdout
    predictor.introduce(file=about)
    if not detect:
        print("the middle square of each picture is taken as the face; "
              "--detect finds the faces in a photo", file=about)
    elif not predictor.content["detected"]:
        print("trained on the data sets' crops, which --detect matches only nearly", file=about)
    source = read_video(int(camera)) if camera else with_frames(picture_files(pictures, out))
    rows, tracks, video, count, unreadable = [], {}, None, 0, 0
    try:
        for picture, found, error in predictor.process(source, 1 if camera else BATCH):
            count += 1
            if picture.time is not None:
                found = follow(tracks, picture, found)
            faces = [predictor.describe(*face) for face in found]
            of_picture = [row_of(picture, face) for face in faces] or [row_of(picture)]
            if csv:
                rows += of_picture
            if error:
                unreadable += 1
                print(f"{picture}: {error}", file=sys.stderr)
                continue
            if json:
                print(*map(dumps, of_picture), sep="\n", flush=True)
            else:
                show_faces(picture, faces)
            if out and picture.time is not None:
                video = write_frame(out, count, picture, faces, video)
            elif out:
                write_annotated(out, count, picture.file, faces)
    finally:                                            # when interrupted, what there is
        if video:
            video.release()
        if rows:
            header = dict.fromkeys(name for row in rows for name in row)
            datasets.write_csv(csv, header, ([row.get(name) for name in header] for row in rows))
    if not count:
        raise DataError(f"no pictures ({', '.join(datasets.IMAGE_FILES)}) in {', '.join(pictures)}")
    if unreadable:
        print(f"{unreadable} of {count} pictures could not be read", file=sys.stderr)
    return min(unreadable, 1)


def show_faces(picture: Picture, faces: list[FacePrediction]) -> None:
    """Print a line for each face in a picture."""
    if not faces:
        print(f"{picture}: no face found")
    for face in faces:
        number = f" face {face.number}" if face.number else ""
        place = " at {},{}-{},{}".format(*face.box) if face.box else ""
        print(f"{picture}{number}{place}: {in_words(face)}", flush=True)


# pictures that can't be read here; found in a folder, they are named
UNREADABLE = (".heic", ".heif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".svg")


def picture_files(names: Iterable[str], out: Path | None) -> Iterator[Path]:
    """The files among `names`, the pictures in folders among them, and for `-` the names on stdin."""
    for name in names:
        if name == "-":
            yield from picture_files(names_on_stdin(), out)
        elif os.path.isdir(name):
            for file in datasets.files_below(Path(name), {os.path.realpath(out)} if out else set()):
                if file.suffix.lower() in UNREADABLE + VIDEO_FILES or datasets.is_picture(file):
                    yield file
        else:
            yield Path(name)


def names_on_stdin() -> list[str]:
    """Names separated by NUL or by lines, in UTF-8 or UTF-16."""
    content = sys.stdin.buffer.read()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = content.decode(encoding, errors="surrogateescape")
    return list(filter(None, re.split("\0" if "\0" in text else "[\r\n]+", text)))


def in_words(face: FacePrediction) -> str:
    """Such as "age 26.3 years (17-35), female 85 %, happy 93 %"."""
    words = []
    if face.age is not None:
        words.append(f"age {face.age:.1f} years ({face.age_low}-{face.age_high})")
    for classes in face.probabilities.values():
        best = max(classes, key=classes.get)
        words.append(f"{best} {100 * classes[best]:.0f} %")
    return ", ".join(words)


def row_of(picture: Picture, face: FacePrediction | None = None) -> dict[str, object]:
    """A face's row in the spreadsheet and in JSON; without a face the picture's name alone."""
    row = {"image": str(picture.file), "time": picture.time}
    if face:
        row |= dict(zip(("left", "top", "right", "bottom"), face.box or ()))
        row |= face._asdict()
        for classes in face.probabilities.values():
            row |= classes
    return {name: round(value, 1 if name == "age" else 3) if isinstance(value, float) else value
            for name, value in row.items() if value is not None and name not in ("box", "probabilities")}


DARK, YELLOW = (20, 20, 20), (255, 220, 0)


def write_annotated(folder: Path, count: int, file: Path, faces: list[FacePrediction]) -> None:
    """Write a picture with its faces' boxes and what is predicted."""
    with datasets.whole_file(folder / f"{count:05}_{file.name[-60:]}.png") as output:
        annotate(datasets.open_picture(file), faces).save(output, "PNG")


def write_frame(folder: Path, count: int, frame: Picture, faces: list[FacePrediction], video):
    """Write a frame likewise to `video`, or to a new one where it is a first frame. Returns the video."""
    image = annotate(Image.fromarray(frame.pixels), faces)
    if frame.time == 0:
        if video:
            video.release()
        cv2 = sys.modules["cv2"]
        target = folder / f"{count:05}_{frame.file.stem[-60:]}.mp4"
        video = cv2.VideoWriter(os.fsencode(target), cv2.VideoWriter.fourcc(*"mp4v"), frame.rate, image.size)
        if not video.isOpened():
            raise DataError(f"{target}: can't be written")
    video.write(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    return video


def annotate(image: Image.Image, faces: list[FacePrediction]) -> Image.Image:
    """A picture with its faces' boxes, and texts below them or, where there is no room, at its edge."""
    enlarged = max(1, math.ceil(320 / max(image.size)))         # until text on it can be read
    image = image.resize((image.width * enlarged, image.height * enlarged))
    draw = ImageDraw.Draw(image)
    size = max(12, min(image.size) // 24)
    font = ImageFont.load_default(size)
    for face in faces:
        text = in_words(face).replace(", ", "\n")
        *_, width, height = map(math.ceil, draw.multiline_textbbox((0, 0), text, font))
        left, top = 0, image.height
        if face.box:
            box = [side * enlarged for side in face.box]
            draw.rectangle(box, outline=YELLOW, width=max(2, size // 8))
            left, _, _, top = box
        left = max(0, min(left, image.width - width))
        top = max(0, min(top, image.height - height))
        draw.rectangle((left, top, left + width, top + height), DARK)
        draw.multiline_text((left, top), text, YELLOW, font)
    return image


# ---- plots ------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def page(file: Path, title: str, panels: int) -> Iterator[np.ndarray]:
    """The panels of a figure, three in a row, which is then written to `file`."""
    figures = datasets.optional("matplotlib.figure", "matplotlib", "--plot")
    rows = math.ceil(panels / 3)
    with figures.mpl.rc_context({"text.parse_math": False}):        # a name may hold $
        figure = figures.Figure((16.5, 5 * rows), layout="constrained", dpi=120)
        figure.suptitle(title)
        axes = figure.subplots(rows, 3, squeeze=False).ravel()
        for ax in axes[panels:]:
            ax.set_axis_off()
        yield axes
        with datasets.whole_file(file) as output:
            figure.savefig(output, format=file.suffix[1:])


def plot_part(file: Path, title: str, faces: Faces, predictions: Predictions) -> None:
    """Predicted against true ages, MAE by decade, confusion matrices, as far as they were predicted."""
    figures = per_face(faces, predictions)
    metrics = means(figures)
    tasks = [task for task in CLASS_NAMES if f"{task}_acc" in metrics]
    ages = 2 if "age_mae" in metrics else 0
    with page(file, title, ages + len(tasks)) as axes:
        if ages:
            scatter, bars = axes[:2]
            scatter.scatter(faces["age"], predictions.values["age"], s=6, alpha=0.3, linewidths=0)
            scatter.plot([0, MAX_AGE], [0, MAX_AGE], color="black", linewidth=1)
            scatter.set(xlabel="true age (years)", ylabel="predicted age (years)", aspect="equal",
                        title=f"age: MAE {metrics['age_mae']:.2f} years")
            errors = {name.removeprefix("aged "): figures["age_mae"][chosen]
                      for name, chosen in decades(faces).items()}
            drawn = bars.bar([*errors], [of_decade.mean() for of_decade in errors.values()])
            bars.bar_label(drawn, [f"{len(of_decade):,}" for of_decade in errors.values()], fontsize=8)
            bars.set(xlabel="true age (years)", ylabel="MAE (years)",
                     title="age: MAE by decade, number of faces above")
        for ax, task in zip(axes[ages:], tasks):
            names, matrix = CLASS_NAMES[task], confusion_matrix(task, faces, predictions)
            percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
            ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
            for (i, j), value in np.ndenumerate(percent):
                color = "white" if value > 55 else "black"
                ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=color)
            ax.set_xticks(range(len(names)), names, rotation=45)
            ax.set_yticks(range(len(names)), names)
            ax.set(xlabel="predicted", ylabel="true",
                   title=f"{task}: accuracy {metrics[f'{task}_acc']:.2f} %, rows in %")


def plot_logs(file: Path, runs: dict[str, list[dict]]) -> None:
    """Each run's losses and metrics over its epochs: a color a run, training dashed, valid solid."""
    panels = {f"{task} loss": {f"{task}_loss": "--", f"val_{task}_loss": "-"} for task in TASKS}
    panels["age MAE (years)"] = {"val_age_mae": "-"}
    for task in CLASS_NAMES:
        panels[f"{task} accuracy (%)"] = {f"{task}_acc": "--", f"val_{task}_acc": "-"}
    with page(file, "training dashed, valid solid", len(panels)) as axes:
        for ax, (title, styles) in zip(axes, panels.items()):
            ax.set(xlabel="epoch", title=title)
            curves = itertools.product(enumerate(runs.items()), styles.items())
            for (i, (run, epochs)), (name, style) in curves:
                values = np.array([figures.get(name, math.nan) for figures in epochs])
                values[abs(values) > 1e9] = math.nan
                numbers = [figures["epoch"] for figures in epochs]
                ax.plot(numbers, values, style, color=f"C{i % 10}", marker=".",
                        label=run if style == "-" else "_")     # legends leave out names with _
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(),
                              loc="outside lower center", ncols=2, fontsize=8)


# ---- the command line -------------------------------------------------------------------------------------

def make_parser() -> datasets.Parser:
    """The options of this script."""
    parser = datasets.Parser(__doc__)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("pictures", nargs="*", default=[], metavar="PICTURE",
                      help="images, videos and folders of them; - reads names from stdin")
    work.add_argument("--split", choices=datasets.DATASETS, help="the data set to evaluate on")
    work.add_argument("--camera", choices=list("0123456789"), metavar="N",
                      help="predict the faces that the camera of this number sees")
    work.add_argument("--logs", type=Path, metavar="DIR", help="print the results table of the logs there")
    work.add_argument("--export", type=output_file(".pth", ".onnx"), metavar="FILE",
                      help="write the checkpoint's weights in half precision (.pth), or the network for "
                           "ONNX Runtime (.onnx)")
    add = parser.add_argument
    add("--subset", choices=datasets.SUBSETS, help="its part (default: valid)")
    add("--checkpoint", type=Path, metavar="FILE",
        help="the network (default: with --split and --export the newest best.pth, "
             "else the one that ships)")
    add("--checkpoints", type=Path, metavar="DIR", help="where runs save (default: checkpoints)")
    add("--tta", action="store_true", help="average the predictions for an image and its mirror image")
    add("--predictions", type=Path, nargs="+", metavar="FILE.csv",
        help="evaluate these predictions; several are compared to the first")
    add("--save-predictions", type=output_file(".csv"), metavar="FILE.csv",
        help="write the predictions for the data set")
    add("--json", action="store_true", help="print a JSON object for each face instead of a sentence")
    add("--csv", type=output_file(".csv"), metavar="FILE.csv", help="write what is predicted for the pictures")
    add("--out", type=Path, metavar="DIR", help="write each picture there with its predictions drawn on it")
    add("--plot", type=output_file(".png", ".svg", ".pdf"), metavar="FILE.png",
        help="with --split or --logs: plot (needs matplotlib)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_data("find the faces in the pictures, and align them as in training")
    return parser


def output_file(*endings: str) -> Callable[[str], Path]:
    """An argparse type: a file that can be written, with one of `endings`, so that no photo is replaced."""
    def parse(name: str) -> Path:
        file = Path(name)
        if file.suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"{file}: expected a name that ends with {' or '.join(endings)}")
        if file.exists() and not file.is_file() or not os.access(file.parent, os.W_OK | os.X_OK):
            raise argparse.ArgumentTypeError(f"{file}: expected the name of a file, in a folder that is there "
                                             "and can be written")
        return file
    return parse


# what does the work of an option; its parameters are the options that go with it
WORKS = {"predictions": evaluate_predictions, "split": evaluate_network, "logs": show_logs,
         "export": write_export, "camera": predict_pictures, "pictures": predict_pictures}


def main() -> int | None:
    parser = make_parser()
    given = {name: value for name, value in vars(parser.parse_args()).items() if value or value == ""}
    work = next(name for name in WORKS if name in given)
    parameters = inspect.signature(WORKS[work]).parameters
    for name in sorted(given.keys() - parameters - {"data", "cache", "debug"}):
        parser.error(f"--{name.replace('_', '-')} does not go with {work}; see --help")
    data = datasets.SAMPLE_ROOT if given["data"] == "sample" else given["data"]
    for name in given.keys() & {"save_predictions", "csv", "plot"}:
        file = given[name]
        if file.exists() and file.resolve().is_relative_to(os.path.realpath(data)):
            parser.error(f"{file}: is among the data; name another file")
    if "plot" in given:
        datasets.optional("matplotlib.figure", "matplotlib", "--plot")
    if "out" in given:
        given["out"].mkdir(parents=True, exist_ok=True)
    return WORKS[work](**{name: value for name, value in given.items() if name in parameters})


if __name__ == "__main__":
    datasets.script(main)
