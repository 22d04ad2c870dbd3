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
    outputs = {task: logits.float() for task, logits in network(inputs, tasks).items()}
    if not tta:
        return outputs
    mirrored = network(inputs.flip(3), tasks)
    both = {task: (logits, mirrored[task].float()) for task, logits in outputs.items()}
    return {task: torch.logaddexp(a.log_softmax(1), b.log_softmax(1)) - math.log(2)
            for task, (a, b) in both.items()}


@torch.inference_mode()
def predict(network: models.FaceAttributeNet, faces: Faces, size: int, tasks: Collection[str],
            device: torch.device, tta: bool = False, rank: int = 0, world: int = 1,
            grey: bool = False) -> Predictions:
    """Predict every face once, with `grey` without its colours. Process `rank` of `world` takes its part of
    the batches, and all get all results.
    """
    training = network.training
    network.eval()
    values, loss = (torch.zeros((len(tasks), len(faces)), dtype=torch.float64, device=device) for _ in "12")
    kept = {task: torch.zeros((len(faces), models.NUM_CLASSES[task]), device=device) for task in tasks}
    # a batch never spans two parts, so that it is the same whichever parts are evaluated together
    parts = [np.flatnonzero(faces["part"] == number) for number in range(len(faces.parts))]
    spans = [rows[i:i + BATCH] for rows in parts for i in range(0, len(rows), BATCH)]
    mine = spans[rank::world]
    for rows in datasets.progress(mine, len(mine), "evaluating", BATCH):
        outputs = forward(network, faces.gather(rows, device), size, tasks, tta, grey)
        losses = models.losses(outputs, faces.labels(rows, device))
        places = torch.from_numpy(rows).to(device)
        for i, task in enumerate(tasks):
            logits = outputs[task]
            values[i, places] = (models.expected_age(logits) if task == "age" else logits.argmax(1)).double()
            loss[i, places] = losses[task].double()
            kept[task][places] = logits
    for results in (values, loss, *kept.values()) if world > 1 else ():
        dist.all_reduce(results)
    network.train(training)
    kinds = {task: np.float64 if task == "age" else np.int64 for task in tasks}
    return Predictions({task: row.astype(kinds[task]) for task, row in zip(tasks, values.cpu().numpy())},
                       dict(zip(tasks, loss.cpu().numpy())),
                       {task: logits.cpu() for task, logits in kept.items()})


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
    errors = {task: 100 - metrics[f"{task}_acc"] for task in CLASS_NAMES if f"{task}_acc" in metrics}
    if "age_mae" in metrics:
        errors = {"age": metrics["age_mae"]} | errors
    ratios = [error / SEED_ERRORS.get(task, OTHER_ERROR) for task, error in errors.items()]
    mean = float(np.mean(ratios or math.inf))
    return mean if math.isfinite(mean) else math.inf


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
    """The temperature of each task that has labels: logits divided by it give calibrated probabilities."""
    return {task: fit_temperature(task, logits, truth)
            for task, logits, truth in with_labels(faces, predictions)}


def fit_temperature(task: str, logits: torch.Tensor, truth: torch.Tensor) -> float:
    """The temperature of logits (n, classes) with labels (n,).

    Of classes that of the least cross-entropy (Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017); of age that at which AGE_MASS of the true ages lie in the predicted intervals, or nearly.
    """
    if task != "age":
        return min(TEMPERATURES, key=lambda t: F.cross_entropy(logits / t, truth).item())

    def covered(temperature: float) -> float:
        return in_age_interval(logits / temperature, truth).mean()
    place = bisect.bisect_left(TEMPERATURES, models.AGE_MASS, key=covered)      # intervals widen with it
    nearest = TEMPERATURES[max(0, place - 1):place + 1]
    return min(nearest, key=lambda t: abs(covered(t) - models.AGE_MASS))


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


def calibration_cells(task: str, logits: torch.Tensor, truth: torch.Tensor) -> tuple[str, str]:
    """How well probabilities, or age intervals, hold, and its 95 % interval, both in percent."""
    if task == "age":
        return with_interval(in_age_interval(logits, truth), True)
    error, low, high = (f"{100 * value:.2f}" for value in calibration_error(logits, truth))
    return error, f"{low} to {high}"


def calibration_table(faces: Faces, predictions: Predictions, temperatures: dict[str, float]) -> str:
    """How well the probabilities and age intervals hold, before and after division by `temperatures`."""
    names = {task: f"{task} calibration error (%)" for task in CLASS_NAMES}
    names["age"] = f"true ages in the predicted {100 * models.AGE_MASS:.0f} % (%)"
    rows = []
    for task, logits, truth in with_labels(faces, predictions):
        rows.append([names[task], *calibration_cells(task, logits, truth), "-", "", "-"])
        if task in temperatures:
            after = calibration_cells(task, logits / temperatures[task], truth)
            rows[-1][3:] = [*after, f"{temperatures[task]:.3f}"]
    return table(["", "before", "95 %", "calibrated", "95 %", "temperature"], rows)


# ---- tables -----------------------------------------------------------------------------------------------

def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is aligned in a terminal too; all columns but the first to the right."""
    first, *others = [max(map(len, column)) for column in zip(header, *rows)]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    lines = [" | ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in [header, *rows]]
    head, *body = [f"| {line} |" for line in lines]
    return "\n".join([head, f"|{rule}|", *body])


def with_interval(values: np.ndarray, percent: bool, digits: int = 2) -> tuple[str, str]:
    """The mean of `values` (n,) that are numbers, and its 95 % interval, as text."""
    values = values[~np.isnan(values)]
    if not len(values):
        return "-", ""
    scale = 100 if percent else 1
    mean, low, high = (f"{scale * v:.{digits}f}" for v in (values.mean(), *interval(values, percent)))
    return mean, f"{low} to {high}"


def report(metrics: dict) -> str:
    """`score`'s metrics as text; those that logs have too under the logs' names, in full precision."""
    names = {name: name.replace("age_", "age ").replace("_error", " error") for name in FIGURES}
    names |= {f"{task}_loss": f"{task}_loss" for task in LOG_TASKS}
    lines = [f"{shown}: {metrics[name]}" for name, shown in names.items() if name in metrics]
    if "age_in_range" in metrics:
        lines.append("(these labels are ranges of ages: the age mae is the distance to the range's middle)")
    rows = [[f"{decade}-{decade + 9}" if decade < MAX_AGE else f"{decade}", f"{len(errors):,}",
             *with_interval(errors, False)] for decade, errors in metrics.get("errors_by_decade", {}).items()]
    if rows:
        lines += ["", table(["age", "faces", "MAE (years)", "95 %"], rows)]
    for task in filter(lambda task: f"{task}_confusion" in metrics, CLASS_NAMES):
        header = [f"true {task}", "faces", "recall (%)", "95 %", *(f"as {name}" for name in CLASS_NAMES[task])]
        rows = []
        for i, row in enumerate(metrics[f"{task}_confusion"]):
            right = np.repeat([1.0, 0.0], [row[i], row.sum() - row[i]])
            recall = with_interval(right, True, digits=1)
            rows.append([CLASS_NAMES[task][i], f"{row.sum():,}", *recall, *map(str, row)])
        lines += ["", table(header, rows)]
    return "\n".join(lines)


def interval_table(faces: Faces, predictions: Predictions, seen: np.ndarray | None) -> str:
    """The FIGURES with their intervals, over all faces and over those not `seen` (n,) bool in training."""
    columns = {"all": np.ones(len(faces), bool)} | ({} if seen is None else {"unseen": ~seen})
    rows = []
    for name, values in per_face(faces, predictions).items():
        rows.append([FIGURES[name]])
        for chosen in columns.values():
            count = (chosen & ~np.isnan(values)).sum()
            rows[-1] += [*with_interval(values[chosen], name in PERCENT), f"{count:,}"]
    return table(["", *(cell for name in columns for cell in (name, "95 %", "faces"))], rows)


def group_table(faces: Faces, predictions: Predictions) -> str:
    """The FIGURES by group, with their intervals."""
    figures, rows = per_face(faces, predictions), []
    for group in sorted(set(faces["group"]) - {""}):
        chosen = faces["group"] == group
        rows.append([group, f"{chosen.sum():,}"])
        for name, values in figures.items():
            rows[-1] += with_interval(values[chosen], name in PERCENT)
    return table(["group", "faces", *(cell for name in figures for cell in (FIGURES[name], "95 %"))], rows)


def comparison_table(faces: Faces, compared: dict[str, Predictions], rows: np.ndarray) -> str:
    """A row for each of `compared`: the FIGURES over `rows` (n,) bool with their intervals, and the
    difference to the first one, face by face, with its interval.
    """
    measured = {name: per_face(faces, predictions) for name, predictions in compared.items()}
    first = next(iter(measured))
    figures = [name for name in FIGURES if any(name in values for values in measured.values())]
    unknown, lines = np.full(len(faces), np.nan), []
    for row, values in measured.items():
        lines.append([row])
        for name in figures:
            mine, base = values.get(name, unknown)[rows], measured[first].get(name, unknown)[rows]
            lines[-1] += with_interval(mine, name in PERCENT)
            differences = (mine - base)[~np.isnan(mine - base)] * (100 if name in PERCENT else 1)
            if row == first or not len(differences):
                lines[-1] += ["", ""]
                continue
            low, high = interval(differences, False)
            lines[-1] += [f"{differences.mean():+.2f}", f"{low:+.2f} to {high:+.2f}"]
    columns = [cell for name in figures for cell in (FIGURES[name], "95 %", "difference", "95 %")]
    return table(["predictions", *columns], lines)


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
    options, values = {}, []
    for word in shlex.split(command):
        if word.startswith("--"):
            options[word[2:]] = values = []
        else:
            values.append(word)
    return options


def read_logs(folder: Path) -> dict[Path, Log]:
    """The logs in a folder, oldest first, or one file; those that can't be read are named on stderr."""
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else [folder]
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
REMARKS = {"teacher": "with teachers", "constant": "constant rate and size",
           "without-copies": "without copies"}


def results_table(logs: Iterable[Log]) -> str:
    """The seed's table, and a row for the best epoch of each log."""
    titles = [f"{task.capitalize()} Acc (%)" for task in CLASS_NAMES]
    header = ["model", "Age MAE", *titles, "weight", "initial lr"]
    # a task that the seed has not is empty in its rows
    more = [""] * (len(TASKS) - len(SEED_ERRORS))
    seed = [[*row[:4], *more, *row[4:]] for row in SEED_ROWS]
    return table(header, seed + [results_row(log) for log in logs])


def results_row(log: Log) -> list[str]:
    """A run's row in the results table: its best epoch, and on which data sets it was evaluated."""
    options, epochs = log.options, log.epochs
    tasks = [task for task in TASKS if any(figures.get(METRICS[task]) for figures in epochs)]

    def error(figures: dict) -> float:
        return mean_error({METRICS[task].removeprefix("val_"): figures[METRICS[task]] for task in tasks})
    best = min(epochs, key=error)
    used = [name for name in options.get("split", []) if set(datasets.DATASETS.get(name, ())) & set(tasks)]
    remarks = [f"rehearsing {' '.join(names)}" for names in [options.get("rehearse")] if names]
    if options and "pretrained" not in options:
        remarks.append("from scratch")
    remarks += [remark for option, remark in REMARKS.items() if option in options]
    if log.drawn or options.get("data") == ["sample"]:
        remarks.append("drawn sample")
    name = "-".join(["ResNet-18", *(task.capitalize() for task in tasks)])
    name += f" on {' '.join(used)}" if used else ""
    name += f" ({', '.join(remarks)})" if remarks else ""
    figures = [f"{best[METRICS[task]]:.2f}" if task in tasks else "" for task in TASKS]
    rate = options.get("lr") or [str(epochs[0].get("lr", ""))]
    return [name, *figures, ", ".join(options.get("weights", [])), rate[0]]


def show_logs(args: argparse.Namespace) -> None:
    """Print the results table of the logs in --logs, and plot them."""
    logs = read_logs(args.logs)
    print(results_table(logs.values()))
    if args.plot:
        plot_logs(args.plot, {file.stem: log.epochs for file, log in logs.items()})


# ---- a data set -------------------------------------------------------------------------------------------

def evaluate_dataset(args: argparse.Namespace) -> None:
    """Print the metrics of a checkpoint, or of the predictions in files, on a part of a data set."""
    root, cache = datasets.folders(args)
    tasks, files = list(datasets.DATASETS[args.split]), args.predictions
    if not files:
        files = [chosen_checkpoint(args)]
        predictor = Predictor(files[0], args.device, detect=False, tta=args.tta)
        predictor.introduce(files[0], datasets.is_drawn(root))
        tasks = [task for task in tasks if task in predictor.tasks]
        if not tasks:
            raise DataError(f"{files[0]}: trained for {', '.join(predictor.tasks)}, "
                            f"which {args.split} has no labels of; --checkpoint names another")
    parts, gaps = datasets.read(root, [args.split], args.subset, tasks)
    print("".join(f"{gap}\n" for gap in gaps), end="")
    faces = load_labels(parts, cache) if args.predictions else predictor.load(parts, tasks, cache)
    print("".join(f"{line}\n" for line in datasets.left_out(faces)), end="")
    if args.predictions:
        compared = {str(file): read_predictions(file, faces) for file in files}
    else:
        compared = {str(files[0]): predict(predictor.network, faces, predictor.size, tasks,
                                           predictor.device, args.tta)}
    counts = np.bincount(faces["part"], minlength=len(parts))
    names = [part.source.name.removeprefix(args.split).strip() for part in parts]
    shown = [f"{name} {count:,} images".strip() for name, count in zip(names, counts)]
    print(f"{args.split} {args.subset}: {', '.join(shown)}")
    if args.save_predictions:
        save_predictions(args.save_predictions, faces, compared[str(files[0])])
    if len(files) > 1:
        show_comparison(args, root, parts, faces, compared)
        return
    show_metrics(args, root, parts, faces, *compared.items())
    if not args.predictions:
        print("", calibration_table(faces, compared[str(files[0])], predictor.temperatures), sep="\n")
