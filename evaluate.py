"""Evaluate a network or predictions on a data set, read logs, or predict the faces in pictures.

    python evaluate.py --split cvpr2016                                     newest run's best epoch, valid
    python evaluate.py --split fer2013 --subset test --checkpoint C --tta   mirrored images averaged
    python evaluate.py --split cvpr2016 --predictions other.csv             another model's predictions
    python evaluate.py --logs logs/                                         the results table
    python evaluate.py photo.jpg faces/ --detect                            age, gender, emotion of each face
"""
import argparse
import bisect
import codecs
import contextlib
import itertools
import math
import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets  # before torch, since it sets how OpenMP's threads wait
from datasets import CLASS_NAMES, MAX_AGE, TASKS, DataError, Detection, Faces, Part, one_line

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps

import model as models

BATCH = 64      # images at a time, always: figures of a log and of this script agree to the last digit
SHIPPED = Path(__file__).resolve().with_name("checkpoints") / "resnet18-age-gender-emotion.pth"
# years, percent: the errors of the seed's 1 1 1 run; of any other task, half
SEED_ERRORS = {"age": 12.23, "gender": 100 - 86.63, "emotion": 100 - 52.91}
OTHER_ERROR = 50


# ---- predicting -------------------------------------------------------------------------------------------

@dataclass
class Predictions:
    """What was predicted for each face of a table, by task; a task that was not predicted is absent."""
    values: dict[str, np.ndarray]       # (n,) float years; (n,) int classes, as in CLASS_NAMES
    loss: dict[str, np.ndarray] = field(default_factory=dict)       # (n,) float, 0 where unknown
    logits: dict[str, torch.Tensor] = field(default_factory=dict)   # (n, classes) float32


def forward(network: models.FaceAttributeNet, images: torch.Tensor, size: int, tasks: Collection[str],
            tta: bool, grey: bool = False) -> dict[str, torch.Tensor]:
    """Logits (n, classes) float32 by task, of images (n, h, w, 3) uint8; with `tta`, the logarithm of the
    mean probabilities of image and mirror image.
    """
    inputs = models.prepare(images, size, grey)
    outputs = network(inputs, tasks)
    if tta:
        mirrored = network(inputs.flip(3), tasks)
        for task, logits in outputs.items():
            both = torch.stack([logits.float(), mirrored[task].float()])
            outputs[task] = both.log_softmax(2).logsumexp(0) - math.log(2)
    return {task: logits.float() for task, logits in outputs.items()}


@torch.inference_mode()
def predict(network: models.FaceAttributeNet, faces: Faces, size: int, tasks: Collection[str],
            device: torch.device, tta: bool = False, rank: int = 0, world: int = 1,
            grey: bool = False) -> Predictions:
    """Predict every face once, with `grey` without its colors. Process `rank` of `world` takes its part of
    the batches, and all get all results.
    """
    training = network.training
    network.eval()
    values, loss = ({task: torch.zeros(len(faces), device=device) for task in tasks} for _ in range(2))
    logits = {task: torch.zeros(len(faces), models.NUM_CLASSES[task], device=device) for task in tasks}
    # a batch never spans two parts, so that it is the same whichever parts are evaluated together
    ends = np.flatnonzero(np.diff(faces["part"])) + 1
    spans = [rows[i:i + BATCH] for rows in np.split(np.arange(len(faces)), ends)
             for i in range(0, len(rows), BATCH)]
    mine = spans[rank::world]
    for rows in datasets.progress(mine, len(mine), "evaluating", BATCH):
        outputs = forward(network, faces.gather(rows, device), size, tasks, tta, grey)
        losses = models.losses(outputs, faces.labels(rows, device))
        places = slice(rows[0], rows[-1] + 1)
        for task in tasks:
            best = models.expected_age if task == "age" else lambda logits: logits.argmax(1).float()
            values[task][places] = best(outputs[task])
            loss[task][places] = losses[task]
            logits[task][places] = outputs[task]
    network.train(training)
    if world > 1:
        for results in (*values.values(), *loss.values(), *logits.values()):
            dist.all_reduce(results)
    values, loss, logits = ({task: of[task].cpu() for task in tasks} for of in (values, loss, logits))
    kinds = {"age": np.float64} | dict.fromkeys(CLASS_NAMES, np.int64)
    return Predictions({task: values[task].numpy().astype(kinds[task]) for task in tasks},
                       {task: loss[task].numpy().astype(np.float64) for task in tasks}, logits)


# ---- metrics ----------------------------------------------------------------------------------------------

# the figures that are means over faces, and their titles; PERCENT are proportions of faces
FIGURES = {"age_mae": "age MAE (years)", "chalearn_error": "ChaLearn's error",
           "age_in_range": "age in range (%)"} | {f"{task}_acc": f"{task} acc (%)" for task in CLASS_NAMES}
PERCENT = {"age_in_range", *(f"{task}_acc" for task in CLASS_NAMES)}


def score(faces: Faces, predictions: Predictions) -> dict:
    """Metrics of predictions, over all faces whose label is known, as far as there are any.

    Returns:
        age_mae: years; where labels are ranges, of the distance to the range's middle.
        chalearn_error: ChaLearn LAP's mean of 1 - exp(-(x - mean)^2 / (2 std^2)), where std is known.
        age_in_range: percent of predictions within the label's range, where it is one.
        errors_by_decade: {decade: (faces,) years}.
        TASK_acc: percent. TASK_confusion: (classes, classes) int, rows the true class.
        TASK_loss: means, if the predictions are a network's.
    """
    metrics = {name: (100 if name in PERCENT else 1) * float(values[~np.isnan(values)].mean())
               for name, values in per_face(faces, predictions).items()}
    for task in filter(lambda task: faces.known(task).any(), predictions.values):
        rows = faces.known(task)
        truth, guess = faces[task][rows], predictions.values[task][rows]
        if task in predictions.loss:
            metrics[f"{task}_loss"] = float(predictions.loss[task][rows].mean())
        if task == "age":
            errors, decades = np.abs(guess - truth.astype(np.float64)), (truth // 10).astype(int) * 10
            metrics["errors_by_decade"] = {int(d): errors[decades == d] for d in np.unique(decades)}
        else:
            classes = len(CLASS_NAMES[task])
            pairs = np.bincount(truth * classes + guess, minlength=classes ** 2)
            metrics[f"{task}_confusion"] = pairs.reshape(classes, classes)
    return metrics


def per_face(faces: Faces, predictions: Predictions) -> dict[str, np.ndarray]:
    """What each face adds to the FIGURES: (n,) float64, NaN where its label is unknown. A figure that no
    face adds to is absent.
    """
    result = {}
    if "age" in predictions.values:
        guess, ranged = predictions.values["age"], ~np.isnan(faces["age_low"])
        error = np.abs(guess - faces["age"].astype(np.float64))
        error[faces.known("age") & np.isnan(guess)] = np.inf        # the label is known all the same
        # where all guessed the same age, only that age is right
        std = np.maximum(faces["age_std"].astype(np.float64), 1e-6)
        chalearn = 1 - np.exp(-(error / std) ** 2 / 2)
        inside = (guess >= faces["age_low"]) & (guess < faces["age_high"])
        # a range is not what many guessed
        result = {"age_mae": error, "chalearn_error": np.where(ranged, np.nan, chalearn),
                  "age_in_range": np.where(ranged, inside, np.nan)}
    for task in CLASS_NAMES.keys() & predictions.values.keys():
        right = predictions.values[task] == faces[task]
        result[f"{task}_acc"] = np.where(faces.known(task), right, np.nan)
    return {name: result[name] for name in FIGURES if not np.isnan(result.get(name, np.nan)).all()}


def mean_error(metrics: dict) -> float:
    """The mean of age MAE / 12.23 years, gender error / 13.37 %, emotion error / 47.09 %, of those that were
    measured; a run's best epoch has the least. Infinite where a metric is no number.
    """
    errors = {"age": metrics.get("age_mae")}
    errors |= {task: 100 - metrics.get(f"{task}_acc", math.nan) for task in CLASS_NAMES}
    measured = [task for task in TASKS if f"{task}_mae" in metrics or f"{task}_acc" in metrics]
    mean = np.mean([errors[task] / SEED_ERRORS.get(task, OTHER_ERROR) for task in measured] or math.inf)
    return float(np.nan_to_num(mean, nan=math.inf, posinf=math.inf))


# ---- intervals --------------------------------------------------------------------------------------------

def interval(values: np.ndarray, percent: bool) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` (n,) float, n > 0: of a proportion (each value 0 or 1)
    Wilson's, JASA 22 (1927) 209-212; else by bootstrap.
    """
    count, mean = len(values), values.mean()
    if not percent:
        return bootstrap(count, lambda rows: values[rows].mean())
    z = 1.959964
    centre = mean + z ** 2 / (2 * count)
    half = z * math.sqrt(mean * (1 - mean) / count + z ** 2 / (4 * count ** 2))
    scale = 1 + z ** 2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


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


def fit_temperature(task: str, logits: torch.Tensor, truth: torch.Tensor) -> float:
    """The temperature of logits (n, classes) with labels (n,)."""
    if task != "age":
        return min(TEMPERATURES, key=lambda t: F.cross_entropy(logits / t, truth).item())
    place = bisect.bisect_left(TEMPERATURES, models.AGE_MASS,       # intervals widen with the temperature
                               key=lambda t: in_age_interval(logits / t, truth).mean())
    return TEMPERATURES[min(place, len(TEMPERATURES) - 1)]


def with_labels(faces: Faces, predictions: Predictions) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """For each task that has some: the logits (k, classes) and labels (k,) of the faces of known label whose
    logits are numbers; of ages, those that are no ranges.
    """
    for task, logits in predictions.logits.items():
        rows = faces.known(task) & logits.isfinite().all(1).numpy()
        if task == "age":
            rows &= np.isnan(faces["age_low"])
        if rows.any():
            yield task, logits[rows], torch.from_numpy(faces[task][rows])


def in_age_interval(logits: torch.Tensor, ages: torch.Tensor) -> np.ndarray:
    """Which of `ages` (n,) years lie, rounded, in the interval of logits (n, 101): (n,) float64, 0 or 1."""
    low, high = models.age_interval(logits)
    return ((ages >= low - 0.5) & (ages <= high + 0.5)).double().numpy()


def calibration_error(logits: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, float]:
    """The expected calibration error, 0..1, of logits (n, classes) with labels (n,), and its 95 % interval.

    The faces are put into bins by the predicted class's probability; the error is the mean over the faces
    of the distance between their bin's mean probability and accuracy (Guo et al., ICML 2017).
    """
    confidence, predicted = (values.numpy() for values in logits.double().softmax(1).max(1))
    gaps = (predicted == truth.numpy()) - confidence
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)

    def error(rows: np.ndarray) -> float:
        return np.abs(np.bincount(bins[rows], gaps[rows])).sum() / len(rows)
    return error(np.arange(len(gaps))), *bootstrap(len(gaps), error)


def calibration_table(faces: Faces, predictions: Predictions, temperatures: dict[str, float]) -> str:
    """How well the probabilities and age intervals hold, before and after division by `temperatures`."""
    rows = []
    for task, logits, truth in with_labels(faces, predictions):
        temperature = temperatures.get(task, 1)
        if task == "age":
            row = [f"true ages in the predicted {100 * models.AGE_MASS:.0f} % (%)"]
            for values in (logits, logits / temperature):
                row += with_interval(in_age_interval(values, truth), True)[:2]
        else:
            row = [f"{task} calibration error (%)"]
            for values in (logits, logits / temperature):
                error, low, high = 100 * np.array(calibration_error(values, truth))
                row += [f"{error:.2f}", f"{low:.2f} to {high:.2f}"]
        rows.append([*row, f"{temperature:.3f}"])
    return table(["", "before", "95 %", "calibrated", "95 %", "temperature"], rows)


# ---- tables -----------------------------------------------------------------------------------------------

def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is aligned in a terminal too; all columns but the first to the right."""
    first, *others = [max(map(len, column)) for column in zip(header, *rows)]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    lines = [" | ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in [header, *rows]]
    head, *body = [f"| {line} |" for line in lines]
    return "\n".join([head, f"|{rule}|", *body])


def with_interval(values: np.ndarray, percent: bool, sign: str = "") -> list[str]:
    """The mean of `values` (n,), its 95 % interval and n, as text."""
    if not len(values):
        return ["-", "", "0"]
    scale = 100 if percent else 1
    numbers = (values.mean(), *interval(values, percent))
    mean, low, high = (f"{scale * number:{sign}.2f}" for number in numbers)
    return [mean, f"{low} to {high}", f"{len(values):,}"]


def figure_table(corner: str, rows: dict[str, list[tuple[str, np.ndarray]]]) -> str:
    """The means of values (n,), NaN unknown, with their intervals: row -> (column, values) of each cell."""
    lines = []
    for row, cells in rows.items():
        lines.append([row])
        for column, values in cells:
            percent = row.endswith("(%)") or column.endswith("(%)")
            sign = "+" if column == "difference" else ""
            lines[-1] += with_interval(values[~np.isnan(values)], percent, sign)
    columns = [column for column, _ in next(iter(rows.values()))]
    header = [name for column in columns for name in (column, "95 %", "faces")]
    return table([corner, *header], lines)


def report(faces: Faces, predictions: Predictions, seen: np.ndarray | None = None) -> str:
    """All figures as text: those that logs have under the logs' names, in full precision; then tables with
    intervals, by decade, by class, over all faces and those not `seen` (n,) bool in training, and by group.
    """
    metrics, figures = score(faces, predictions), per_face(faces, predictions)
    names = {name: name.replace("age_", "age ").replace("_error", " error") for name in FIGURES}
    names |= {f"{task}_loss": f"{task}_loss" for task in LOG_TASKS}
    lines = [f"{shown}: {metrics[name]}" for name, shown in names.items() if name in metrics]
    if "age_in_range" in metrics:
        lines.append("(these labels are ranges of ages: the age mae is the distance to the range's middle)")
    if "age_mae" in metrics:
        decades = {f"{decade}-{decade + 9}": [("MAE (years)", errors)]
                   for decade, errors in metrics["errors_by_decade"].items()}
        lines += ["", figure_table("age", decades)]
    for task in filter(lambda task: f"{task}_confusion" in metrics, CLASS_NAMES):
        lines += ["", confusion_table(task, metrics[f"{task}_confusion"])]
    columns = {"all": np.full(len(faces), True)} | ({} if seen is None else {"unseen": ~seen})
    rows = {FIGURES[name]: [(column, values[rows]) for column, rows in columns.items()]
            for name, values in figures.items()}
    lines += ["", figure_table("", rows)]
    groups = {group: faces["group"] == group for group in sorted(set(faces["group"]) - {""})}
    if groups:
        rows = {group: [(FIGURES[name], values[rows]) for name, values in figures.items()]
                for group, rows in groups.items()}
        lines += ["", figure_table("group", rows)]
    return "\n".join(lines)


def confusion_table(task: str, matrix: np.ndarray) -> str:
    """A row for each true class, with its recall."""
    names, rows = CLASS_NAMES[task], []
    for name, counts, right in zip(names, matrix, matrix.diagonal()):
        recall = with_interval(np.repeat([1.0, 0.0], [right, counts.sum() - right]), True)
        rows.append([name, *recall, *map(str, counts)])
    return table([f"true {task}", "recall (%)", "95 %", "faces", *(f"as {name}" for name in names)], rows)


def comparison_table(faces: Faces, compared: dict[str, Predictions], rows: np.ndarray) -> str:
    """A row for each of `compared`: the FIGURES over `rows` (n,) bool with their intervals, and the
    difference to the first one, face by face.
    """
    measured = {title: per_face(faces, predictions) for title, predictions in compared.items()}
    first, unknown, lines = next(iter(measured.values())), np.full(len(faces), np.nan), {}
    figures = [name for name in FIGURES if any(name in values for values in measured.values())]
    for title, values in measured.items():
        lines[title] = []
        for name in figures:
            mine, base = values.get(name, unknown)[rows], first.get(name, unknown)[rows]
            difference = (mine - base) * (100 if name in PERCENT else 1)
            lines[title] += [(FIGURES[name], mine), ("difference", difference)]
    return figure_table("predictions", lines)


# ---- logs: written and read here --------------------------------------------------------------------------

FIRST_TASK, *OTHER_TASKS = CLASS_NAMES
LOG_TASKS = (FIRST_TASK, "age", *OTHER_TASKS)           # in a log's order
METRICS = {"age": "age_mae"} | {task: f"val_{task}_acc" for task in CLASS_NAMES}        # names in a log
DRAWN_NOTE = "the sample's faces are drawn: its figures mean nothing"
STAMPED = re.compile(r"\[\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d\] (.*)")
FIGURE = re.compile(r"(lr|\[Valid\] age mae|\w+_loss|\w+_acc) ?: *([-+.\deinfa]{1,40})")


def epoch_lines(figures: dict) -> list[str]:
    """An epoch as the log has it, without the times. A figure that is absent is of a task of weight 0: `0`.
    """
    def lines(names: list[str]) -> list[str]:
        return [f"{'':10}{name}: {figures.get(name, 0)}" for name in names]
    losses, accuracies = [f"{task}_loss" for task in LOG_TASKS], [f"{task}_acc" for task in CLASS_NAMES]
    valid_losses, valid_accuracies = ([f"val_{name}" for name in names] for names in (losses, accuracies))
    return [f"lr : {figures['lr']}", f"Train epoch {figures['epoch']:5d}:",
            *lines(losses), "\n", *lines(accuracies), f"[Valid] age mae: {figures.get('age_mae', 0)}",
            *lines(valid_losses), "\n", *lines(valid_accuracies), "-" * 15]


class Log(NamedTuple):
    """What a run's log holds."""
    options: dict[str, list[str]]       # of train.py's command line; empty where there is none
    epochs: list[dict]                  # their figures, under the names that `epoch_lines` takes
    drawn: bool                         # its faces were drawn


def read_log(file: Path) -> Log:
    """A run's log, or the seed's excerpt. An epoch that was logged twice, since the run was resumed, counts
    as logged last. Raises DataError, OSError, ValueError.
    """
    if not file.is_file():
        raise DataError("not a file")
    options, epochs, figures, drawn = {}, {}, {}, False
    for line in file.read_text(encoding="utf-8").splitlines():
        stamped = STAMPED.fullmatch(line)
        text = stamped[1].strip() if stamped else ""
        drawn |= text == DRAWN_NOTE
        if text.startswith("train.py "):
            options = parse_command(text)
        elif text.startswith("Train epoch "):
            figures["epoch"] = int(text.strip(":").split()[-1])
        elif figure := FIGURE.fullmatch(text):
            figures[figure[1].replace("[Valid] age mae", "age_mae")] = float(figure[2])
        elif text.startswith("-----"):
            if all(METRICS[task] in figures for task in SEED_ERRORS):       # a finished epoch
                epochs[figures.get("epoch")] = figures
            figures = {}
    if not epochs:
        raise DataError("no finished epoch")
    return Log(options, list(epochs.values()), drawn)


def parse_command(command: str) -> dict[str, list[str]]:
    """A command line as option -> its values."""
    options = {"": []}
    for word in shlex.split(command):
        if word.startswith("--"):
            options[word[2:]] = []
        else:
            options[next(reversed(options))].append(word)
    return options


def read_logs(folder: Path) -> dict[Path, Log]:
    """The logs in a folder, oldest first, or one file; those that can't be read are named on stderr."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*.txt"))
    logs = {}
    for file in files:
        try:
            logs[file] = read_log(file)
        except (DataError, OSError, ValueError) as error:
            print(f"{file}: left out ({one_line(error)[:200]})", file=sys.stderr)
    if not logs:
        raise DataError(f"{folder}: no logs (*.txt) there")
    return logs


SEED_ROWS = [       # the table of the document that this project implements
    ["ResNet-18-Age-Gender-Emotion (seed)", "12.95", "84.15", "48.20", "1, 0.1, 1", "0.01"],
    ["ResNet-18-Age-Gender-Emotion (seed)", "12.23", "86.63", "52.91", "1, 1, 1", "0.01"],
    ["ResNet-18-Age (seed)", "12.30", "", "", "", ""],
    ["ResNet-18-Gender (seed)", "", "88.12", "", "", ""],
    ["ResNet-18-Emotion (seed)", "", "", "55.56", "", ""],
]


def results_table(logs: Iterable[Log]) -> str:
    """The seed's table, and a row for the best epoch of each log."""
    titles = [f"{task.capitalize()} Acc (%)" for task in CLASS_NAMES]
    return table(["model", "Age MAE", *titles, "weight", "initial lr"],
                 SEED_ROWS + [results_row(log) for log in logs])


def results_row(log: Log) -> list[str]:
    """A run's row in the results table: its best epoch, and on which data sets it was evaluated."""
    options, epochs = log.options, log.epochs
    tasks = [task for task in TASKS if any(figures.get(METRICS[task]) for figures in epochs)]
    names = {METRICS[task]: METRICS[task].removeprefix("val_") for task in tasks}
    errors = [mean_error({names[key]: figures[key] for key in names}) for figures in epochs]
    best = epochs[int(np.argmin(errors))]
    remarks = [remark for remark, found in {
        f"rehearsing {' '.join(options.get('rehearse', []))}": "rehearse" in options,
        "from scratch": options and "pretrained" not in options,
        "with teachers": "teacher" in options,
        "constant rate and size": "constant" in options,
        "without copies": "without-copies" in options,
        "drawn sample": log.drawn}.items() if found]
    name = "-".join(["ResNet-18", *map(str.capitalize, tasks)])
    used = [split for split in options.get("split", []) if set(tasks) & set(datasets.DATASETS.get(split, []))]
    name += f" on {' '.join(used)}" if used else ""
    name += f" ({', '.join(remarks)})" if remarks else ""
    figures = [f"{best[METRICS[task]]:.2f}" if task in tasks else "" for task in TASKS]
    rate = options.get("lr", [f"{epochs[0].get('lr', '')}"])[0]
    return [name, *figures, ", ".join(options.get("weights", [])), rate]


def show_logs(args: argparse.Namespace) -> None:
    """Print the results table of the logs in --logs, and plot them."""
    logs = read_logs(args.logs)
    print(results_table(logs.values()))
    if args.plot:
        plot_logs(args.plot, {file.stem: log.epochs for file, log in logs.items()})


# ---- a data set -------------------------------------------------------------------------------------------

def evaluate_dataset(args: argparse.Namespace) -> None:
    """Print the metrics of a checkpoint, or of predictions in files, on a part of a data set."""
    root, cache = datasets.folders(args)
    tasks = datasets.DATASETS[args.split]
    if not args.predictions:
        predictor = Predictor(chosen_checkpoint(args), args.device, detect=False, tta=args.tta)
        predictor.introduce(datasets.is_drawn(root))
        tasks = predictor.trained_for(tasks)
    parts, gaps = datasets.read(root, [args.split], args.subset, tasks)
    if args.predictions:
        tables = [datasets.prepare(part, 64, cache) for part in parts]
        # without any image on disk, the labels are enough
        faces = datasets.join(tables if any(map(len, tables)) else [Faces.of(part) for part in parts])
        compared = {str(file): read_predictions(file, faces) for file in args.predictions}
    else:
        content, device = predictor.content, predictor.device
        faces = datasets.load(parts, tasks, content["decoded_size"], cache, content["detected"])
        predictions = predict(predictor.network, faces, predictor.size, tasks, device, args.tta)
        compared = {str(predictor.file): predictions}
    print(*gaps, *datasets.left_out(faces), counts_line(args, faces), sep="\n", flush=True)
    title, predictions = next(iter(compared.items()))
    if args.save_predictions:
        save_predictions(args.save_predictions, faces, predictions)
    seen = seen_in_training(args, root, parts, faces, tasks)
    if len(compared) > 1:
        print("over all images; differences are to the first row, image by image")
        print(comparison_table(faces, compared, np.ones(len(faces), bool)))
        if seen is not None and seen.any():
            print(f"\nover the {(~seen).sum():,} images that are not in the train part")
            print(comparison_table(faces, compared, ~seen))
        return
    print(report(faces, predictions, seen))
    if predictions.logits:
        print("", calibration_table(faces, predictions, predictor.temperatures), sep="\n")
    if args.plot:
        plot_part(args.plot, f"{args.split} {args.subset}, {title}", faces, predictions)


def counts_line(args: argparse.Namespace, faces: Faces) -> str:
    """How many images of which sets are evaluated."""
    names = [part.source.name.removeprefix(args.split) for part in faces.parts]
    counts = np.bincount(faces["part"], minlength=len(names))
    shown = [f"{name} {count:,} images".strip() for name, count in zip(names, counts)]
    return f"{args.split} {args.subset}: {', '.join(shown)}"


def seen_in_training(args: argparse.Namespace, root: Path, parts: list[Part], faces: Faces,
                     tasks: Collection[str]) -> np.ndarray | None:
    """Which faces are also in the data set's train part, as files: (n,) bool; None where that is unknown."""
    if args.subset == "train":
        return None
    try:
        train = [datasets.read_part(root, part.source, "train", tasks) for part in parts]
        mine, others = [[datasets.digests(part) for part in group] for group in (parts, train)]
        if not all(mine + others):
            raise datasets.Missing("the images are not on disk")
    except DataError as error:
        print(f"it is unknown which images are in the train part too: {error}")
        return None
    taken = set().union(*(digests.values() for digests in others))
    seen = [mine[part].get(file) in taken for part, file in zip(faces["part"], faces["file"])]
    print(f"{sum(seen):,} of the images are in the train part too; "
          "unseen are those that are not in this data set's train part")
    return np.array(seen, bool)


def save_predictions(file: Path, faces: Faces, predictions: Predictions) -> None:
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
    rows, tasks = {}, []
    for where, cells in datasets.read_csv(file, ["image"]):
        tasks = [task for task in TASKS if task in cells]
        # of a longer path the end that is an image's name
        steps = cells["image"].split("/")
        ends = ["/".join(steps[i:]) for i in range(len(steps))]
        name = next(filter(images.__contains__, ends), ends[0])
        row = {task: parse_prediction(cells[task], task, where) for task in tasks if cells[task].strip()}
        if rows.setdefault(name, row) != row:
            raise DataError(f"{where}: {name} is there twice, with different values")
    if not tasks:
        raise DataError(f"{file}: no predictions; expected the columns image and any of {', '.join(TASKS)}")
    values, missing = {}, []
    for task in tasks:
        values[task] = np.array([rows.get(name, {}).get(task, math.nan) for name in faces["file"]])
        missing += faces["file"][faces.known(task) & np.isnan(values[task])].tolist()
    problems = {"no image of this part": sorted(rows.keys() - images), "missing": missing}
    for problem, names in problems.items():
        if names:
            raise DataError(f"{file}: {problem}: {datasets.few(names)}")
    for task in values.keys() & CLASS_NAMES.keys():
        values[task] = np.nan_to_num(values[task]).astype(np.int64)
    return Predictions(values)


def parse_prediction(text: str, task: str, where: str) -> float:
    """A cell: years, or a class's name or number. Raises DataError."""
    if task == "age":
        return datasets.number(text, -1000, 1000, where, task)
    word = text.strip().lower()
    classes = datasets.numbered(task)
    classes |= {str(number): number for number in classes.values()}
    word = SYNONYMS.get(word, word)
    if word not in classes:
        raise DataError(f"{where}: {task} is {text[:50]!r}; expected {', '.join(classes)}")
    return classes[word]


def chosen_checkpoint(args: argparse.Namespace) -> Path:
    """The checkpoint that is named, else the best.pth written last, else the weights that ship."""
    folder = args.checkpoints or Path("checkpoints")
    found = sorted(folder.glob("*/best.pth"), key=lambda file: file.stat().st_mtime)
    if args.checkpoints and not found:
        raise DataError(f"no run's best.pth in {folder}/; train one, or name one by --checkpoint")
    return args.checkpoint or [SHIPPED, *found][-1]


def export(args: argparse.Namespace) -> None:
    """Write a checkpoint's network in half precision with what using it needs, and nothing else."""
    file = chosen_checkpoint(args)
    network, content = models.open_checkpoint(file)
    tensors = {name: value.half() if value.is_floating_point() else value
               for name, value in network.state_dict().items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise DataError(f"{file}: {name} holds values too large for half precision")
    keys = ("image_size", "decoded_size", "tasks", "temperatures", "drawn", "detected")
    kept = {key: content[key] for key in (*keys, *models.description())}
    models.save_checkpoint({"model": tensors, **kept}, args.export)
    print(f"{args.export}: {file} in {args.export.stat().st_size / 1e6:.1f} MB")


# ---- pictures ---------------------------------------------------------------------------------------------

class FacePrediction(NamedTuple):
    """A face in a picture; what the network was not trained for is None."""
    box: tuple[int, int, int, int] | None       # left, top, right, bottom, in the picture's pixels
    confidence: float | None                    # 0..1, of the detector
    age: float | None                           # years
    age_low: int | None                         # years, first and last of the interval
    age_high: int | None
    gender: str | None
    gender_probability: float | None
    emotion: str | None
    emotion_probability: float | None
    probabilities: dict[str, dict[str, float]]  # task -> class -> probability


class Predictor:
    """Predicts the faces in pictures: Predictor()("photo.jpg") -> [FacePrediction, ...], left to right.

    A picture is a file, a PIL image, or an array (h, w, 3) uint8. Without `detect` the middle square is the
    face; with `tta` image and mirror image are averaged.
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
        return self.predict(self.find(picture))

    def introduce(self, drawn: bool = False) -> None:
        """Print what the checkpoint is; `drawn`, whether the faces that it will see are drawn."""
        content = self.content
        epoch = f"; epoch {content['epoch']}" if "epoch" in content else ""
        print(f"{self.file}: {self.size} px, trained for {', '.join(content['tasks'])}{epoch}",
              *["detected faces"] * content["detected"],
              *["mean of image and mirror image (--tta)"] * self.tta, sep="; ")
        if content["drawn"] and not drawn:
            print("trained on drawn faces: its predictions for photos mean nothing; "
                  "--checkpoint names another")

    def trained_for(self, tasks: Collection[str]) -> list[str]:
        """Those of `tasks` that the network was trained for. Raises DataError without any."""
        trained = [task for task in tasks if task in self.content["tasks"]]
        if not trained:
            raise DataError(f"{self.file}: trained for {', '.join(self.content['tasks'])}; the data set has "
                            f"labels of {', '.join(tasks)}; --checkpoint names another")
        return trained

    def find(self, picture) -> list[tuple[Detection | None, np.ndarray]]:
        """The faces in a picture and their squares, (size, size, 3) uint8."""
        scale = 1
        if isinstance(picture, (str, os.PathLike)):
            side = datasets.LARGE_SIDE if self.detect else self.size
            image, scale = open_scaled(Path(picture), side)
        else:
            image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            image = image.convert("RGB")
        if not self.detect:
            return [(None, datasets.center_crop(image, self.size))]
        found = datasets.find_faces(image)
        squares = [datasets.align(image, face.landmarks, self.size) for face in found]
        boxes = [tuple(round(scale * side) for side in face.box) for face in found]
        return [(face._replace(box=box), square) for face, box, square in zip(found, boxes, squares)]

    @torch.inference_mode()
    def predict(self, found: list[tuple[Detection | None, np.ndarray]]) -> list[FacePrediction]:
        """Predict the faces that `find` found, in batches."""
        faces = []
        for start in range(0, len(found), BATCH):
            detections, squares = zip(*found[start:start + BATCH])
            images = torch.from_numpy(np.stack(squares)).to(self.device)
            outputs = forward(self.network, images, self.size, self.content["tasks"], self.tta)
            outputs = {task: logits.cpu().split(1) for task, logits in outputs.items()}
            for i, detection in enumerate(detections):
                faces.append(self.describe(detection, {task: outputs[task][i] for task in outputs}))
        return faces

    def describe(self, face: Detection | None, outputs: dict[str, torch.Tensor]) -> FacePrediction:
        """One face's prediction, of its logits (1, classes) by task."""
        values = dict.fromkeys(FacePrediction._fields) | {"probabilities": {}}
        if face:
            values |= {"box": face.box, "confidence": float(face.confidence)}
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
        return FacePrediction(*(values[name] for name in FacePrediction._fields))

    def predict_files(self, files: Iterable[Path]) -> Iterator[tuple[Path, list[FacePrediction], str]]:
        """Each file, its faces and, where it can't be read, why. All cores read ahead of the network."""
        def attempt(file: Path) -> tuple[Path, list, str]:
            try:
                return file, self.find(file), ""
            except Exception as error:                  # Pillow raises anything on a broken file
                reason = one_line(error)[:200] or type(error).__name__
                return file, [], f"not a readable picture ({reason})"
        pool, files = ThreadPoolExecutor(datasets.cores()), iter(files)
        following = [pool.submit(attempt, file) for file in itertools.islice(files, BATCH)]
        try:
            while following:
                chunk = following
                following = [pool.submit(attempt, file) for file in itertools.islice(files, BATCH)]
                chunk = [future.result() for future in chunk]
                faces = iter(self.predict([face for _, found, _ in chunk for face in found]))
                for file, found, error in chunk:
                    yield file, list(itertools.islice(faces, len(found))), error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def open_scaled(file: Path, side: int) -> tuple[Image.Image, float]:
    """A picture as `datasets.open_picture` gives it, and the file's pixels in one of its pixels."""
    image = datasets.open_picture(file, side)
    with Image.open(file) as original:
        return image, max(original.size) / max(image.size)


def predict_pictures(args: argparse.Namespace) -> int:
    """Print a line for each face; pictures that can't be read are named on stderr. Returns the exit status.
    """
    predictor = Predictor(args.checkpoint or SHIPPED, args.device, args.detect, args.tta)
    predictor.introduce()
    if not args.detect:
        print("the middle square of each picture is taken as the face; --detect finds the faces in a photo")
    elif not predictor.content["detected"]:
        print("trained on the data sets' crops, which --detect matches only nearly")
    rows, count, unreadable = [], 0, 0
    try:
        for file, faces, error in predictor.predict_files(pictures(args.pictures, args.out)):
            count += 1
            rows += [{"image": file} | cells(face) for face in faces] or [{"image": file}]
            if error:
                unreadable += 1
                print(f"{file}: {error}", file=sys.stderr)
                continue
            show_faces(file, faces)
            if args.out:
                save_annotated(file, faces, args.out / f"{count:05}_{file.name[-120:]}.png")
    finally:                                            # when interrupted, what there is
        if args.csv and rows:
            header = dict.fromkeys(name for row in rows for name in row)
            datasets.write_csv(args.csv, header, ([row.get(name) for name in header] for row in rows))
    if not count:
        raise DataError(f"no pictures ({', '.join(datasets.IMAGE_FILES)}) in {', '.join(args.pictures)}")
    if unreadable:
        print(f"{unreadable} of {count} pictures could not be read", file=sys.stderr)
    return min(unreadable, 1)


def show_faces(file: Path, faces: list[FacePrediction]) -> None:
    """Print a line for each face in a picture."""
    if not faces:
        print(f"{file}: no face found")
    for face in faces:
        place = " at {},{}-{},{}".format(*face.box) if face.box else ""
        print(f"{file}{place}: {in_words(face)}", flush=True)


# pictures that can't be read here; found in a folder, they are named
OTHER_PICTURES = set(".heic .heif .jxl .jp2 .dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .psd .svg .tga .ppm "
                     ".pgm .pcx .ico .eps .exr .hdr".split())


def pictures(names: Iterable[str], out: Path | None) -> Iterator[Path]:
    """The files among `names`, the pictures in folders among them, and for `-` the names on stdin."""
    for name in names:
        if name == "-":
            yield from pictures(names_on_stdin(), out)
        elif os.path.isdir(name):
            yield from (file for file in datasets.files_below(Path(name), out)
                        if file.suffix.lower() in OTHER_PICTURES or datasets.is_picture(file))
        else:
            yield Path(name)


def names_on_stdin() -> list[str]:
    """Names separated by NUL or by lines, in UTF-8 or UTF-16."""
    content = sys.stdin.buffer.read()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    else:
        text = content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
    return list(filter(None, re.split("\0" if "\0" in text else "[\r\n]+", text)))


def in_words(face: FacePrediction) -> str:
    """Such as "age 26.3 years (17-35), female 85 %, happy 93 %"."""
    words = [f"{max(classes, key=classes.get)} {100 * max(classes.values()):.0f} %"
             for classes in face.probabilities.values()]
    if face.age is not None:
        words.insert(0, f"age {face.age:.1f} years ({face.age_low}-{face.age_high})")
    return ", ".join(words)


def cells(face: FacePrediction) -> dict[str, object]:
    """A face's columns in a table: age in tenths of years, other fractions in thousandths."""
    row = dict(zip(("left", "top", "right", "bottom"), face.box or ())) | face._asdict()
    for classes in face.probabilities.values():
        row |= classes if len(classes) > 2 else {}      # of two, the likelier is enough
    digits = dict.fromkeys(row, 3) | {"age": 1}
    return {name: f"{value:.{digits[name]}f}" if isinstance(value, float) else value
            for name, value in row.items() if value is not None and name not in ("box", "probabilities")}


DARK, YELLOW = (20, 20, 20), (255, 220, 0)


def save_annotated(file: Path, faces: list[FacePrediction], target: Path) -> None:
    """Write the picture in `file` with its faces' boxes and predictions, light on a dark ground."""
    image, scale = open_scaled(file, datasets.LARGE_SIDE)
    enlarged = max(1, math.ceil(320 / max(image.size)))         # until text on it can be read
    image = image.resize((image.width * enlarged, image.height * enlarged))
    size = max(12, min(image.size) // 24)
    font, pad = ImageFont.load_default(size), size // 3
    for face in faces:
        text = in_words(face).replace(", ", "\n")
        *_, right, bottom = ImageDraw.Draw(image).multiline_textbbox((pad, pad), text, font)
        width, height = math.ceil(right) + pad, math.ceil(bottom) + pad
        place = (0, image.height)
        if face.box:
            box = [round(side * enlarged / scale) for side in face.box]
            ImageDraw.Draw(image).rectangle(box, outline=YELLOW, width=max(2, size // 8))
            place = label_place(box, (width, height), image.size)
        else:                                           # below the picture
            image = ImageOps.expand(image, (0, 0, max(0, width - image.width), height), DARK)
        label = Image.new("RGB", (width, height), DARK)
        ImageDraw.Draw(label).multiline_text((pad, pad), text, YELLOW, font)
        image.paste(label, place)
    with datasets.whole_file(target) as output:
        image.save(output, "PNG")


def label_place(box: list[int], label: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of a face's `label` (width, height) in a picture of `size`: below the face's `box` or,
    where no room is left, above.
    """
    left, top, _, bottom = box
    below = bottom + 1 + label[1] <= size[1]
    return max(0, min(left, size[0] - label[0])), bottom + 1 if below else max(0, top - label[1])


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
            figure.savefig(output, format=file.suffix[1:].lower() or "png")


def plot_part(file: Path, title: str, faces: Faces, predictions: Predictions) -> None:
    """Age against its label, MAE by decade, confusion matrices, as far as they were predicted."""
    metrics = score(faces, predictions)
    tasks = [task for task in CLASS_NAMES if f"{task}_confusion" in metrics]
    ages = 2 * ("age_mae" in metrics)
    with page(file, title, ages + len(tasks)) as axes:
        if ages:
            plot_ages(axes, faces["age"], predictions.values["age"], metrics)
        for ax, task in zip(axes[ages:], tasks):
            plot_confusion(ax, task, metrics)


def plot_ages(axes, truth: np.ndarray, guess: np.ndarray, metrics: dict) -> None:
    """Two panels: predicted against true ages (n,) in years; MAE by decade."""
    axes[0].scatter(truth, guess, s=6, alpha=0.3, linewidths=0)
    axes[0].plot([0, MAX_AGE], [0, MAX_AGE], color="black", linewidth=1)
    axes[0].set(xlabel="true age (years)", ylabel="predicted age (years)", aspect="equal",
                title=f"age: MAE {metrics['age_mae']:.2f} years")
    decades = metrics["errors_by_decade"]
    bars = axes[1].bar([*map(str, decades)], [errors.mean() for errors in decades.values()])
    axes[1].bar_label(bars, [f"{len(errors):,}" for errors in decades.values()], fontsize=8)
    axes[1].set(xlabel="true age, decade from (years)", ylabel="MAE (years)",
                title="age: MAE by decade, number of faces above")


def plot_confusion(ax, task: str, metrics: dict) -> None:
    """A panel of a confusion matrix, each row in percent."""
    matrix, names = metrics[f"{task}_confusion"], CLASS_NAMES[task]
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(percent):
        color = "white" if value > 55 else "black"
        ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=color)
    ax.set(xticks=range(len(names)), yticks=range(len(names)), yticklabels=names,
           xlabel="predicted", ylabel="true",
           title=f"{task}: accuracy {metrics[f'{task}_acc']:.2f} %, rows in %")
    ax.set_xticklabels(names, rotation=45)


def plot_logs(file: Path, runs: dict[str, list[dict]]) -> None:
    """Each run's losses and metrics over its epochs: a color a run, training dashed, valid solid."""
    names = [*(f"{task}_loss" for task in TASKS), *(METRICS[task].removeprefix("val_") for task in TASKS)]
    with page(file, "training dashed, valid solid", len(names)) as axes:
        for ax, name in zip(axes, names):
            styles = {name: "--", f"val_{name}": "-"} if name != "age_mae" else {name: "-"}
            for (i, (run, epochs)), key in itertools.product(enumerate(runs.items()), styles):
                values = np.array([figures.get(key, 0) for figures in epochs])
                values[(values == 0) | (abs(values) > 1e9)] = np.nan        # 0 is of a task of weight 0
                numbers = [figures.get("epoch", 0) for figures in epochs]
                ax.plot(numbers, values, styles[key], color=f"C{i % 10}", marker=".", label=run)
            ax.set(xlabel="epoch", title=name.replace("_", " "))
        lines = dict(zip(*reversed(axes[0].get_legend_handles_labels())))
        axes[0].figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2, fontsize=8)


# ---- the command line -------------------------------------------------------------------------------------

# the kinds of work, and the options that each takes
OPTIONS = {
    "split": {"subset", "checkpoint", "checkpoints", "tta", "predictions", "save_predictions", "plot",
              "device"},
    "logs": {"plot"},
    "export": {"checkpoint", "checkpoints"},
    "pictures": {"checkpoint", "tta", "csv", "detect", "out", "device"},
}


def make_parser() -> datasets.Parser:
    """The options of this script."""
    parser = datasets.Parser(__doc__)
    add = parser.add_argument
    add("pictures", nargs="*", default=[], metavar="PICTURE",
        help="image files and folders of them; - reads names from stdin")
    add("--split", choices=datasets.DATASETS, help="the data set to evaluate on")
    add("--subset", choices=datasets.SUBSETS, default="valid", help="its part (default: valid)")
    add("--checkpoint", type=Path, metavar="FILE",
        help="the network (default: with --split the newest best.pth, else the one that ships)")
    add("--checkpoints", type=Path, metavar="DIR", help="where runs save (default: checkpoints)")
    add("--tta", action="store_true", help="average the predictions for an image and its mirror image")
    add("--predictions", type=Path, nargs="+", default=[], metavar="FILE.csv",
        help="evaluate these predictions; several are compared to the first")
    add("--save-predictions", type=Path, metavar="FILE.csv", help="write the predictions for the data set")
    add("--csv", type=Path, metavar="FILE.csv", help="write what is predicted for the pictures")
    add("--export", type=Path, metavar="FILE.pth", help="write the checkpoint's weights in half precision")
    add("--out", type=Path, metavar="DIR", help="write each picture there with its predictions drawn on it")
    add("--logs", type=Path, metavar="DIR", help="print the results table of the logs there")
    add("--plot", type=Path, metavar="FILE.png", help="with --split or --logs: plot (needs matplotlib)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_data("find the faces in the pictures, and align them as in training")
    return parser


def check_options(parser: datasets.Parser, args: argparse.Namespace) -> None:
    """End with a line where options don't go together, or an output is a file that is read."""
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    works = [work for work in OPTIONS if work in given]
    if len(works) != 1:
        parser.error("expected one of --split, --logs, --export, or pictures; see --help")
    for name in sorted(given - OPTIONS[works[0]] - {works[0], "data", "cache", "debug"}):
        fitting = [f"--{work}" for work in OPTIONS if name in OPTIONS[work]]
        fitting = " or ".join(fitting).replace("--pictures", "pictures")
        parser.error(f"--{name.replace('_', '-')} goes with {fitting}")
    if args.predictions and given & {"tta", "save_predictions", "checkpoint", "checkpoints", "device"}:
        parser.error("--predictions goes with no network: "
                     "no --checkpoint, --checkpoints, --tta, --save-predictions, --device")
    if len(args.predictions) > 1 and args.plot:
        parser.error("--plot goes with one file of --predictions")
    data = datasets.SAMPLE_ROOT if args.data == "sample" else Path(args.data)
    inputs = [data, args.checkpoint or data, *args.predictions, *filter(os.path.isfile, args.pictures)]
    inputs = [Path(name).resolve() for name in inputs]
    for file in filter(None, (args.save_predictions, args.csv, args.plot, args.export)):
        if file.is_dir() or not file.parent.is_dir():
            parser.error(f"{file}: expected the name of a file, in a folder that is there")
        if file.exists() and (file == args.export or any(map(file.resolve().is_relative_to, inputs))):
            parser.error(f"{file}: is there already, and may be needed; name another")


def main() -> int | None:
    parser = make_parser()
    args = parser.parse_args()
    check_options(parser, args)
    if args.plot:
        datasets.optional("matplotlib.figure", "matplotlib", "--plot")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    works = {"logs": show_logs, "export": export, "pictures": predict_pictures, "split": evaluate_dataset}
    return next(run for name, run in works.items() if getattr(args, name))(args)


if __name__ == "__main__":
    datasets.script(main)
