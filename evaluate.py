"""Judge a model on a split, score anybody's predictions, read the logs, or predict on pictures of one's own.

    python evaluate.py --split cvpr2016                                     newest run's best epoch, valid
    python evaluate.py --split fer2013 --subset test --checkpoint C --tta   mirrored images averaged
    python evaluate.py --split cvpr2016 --predictions other.csv             another model's predictions
    python evaluate.py --logs logs/                                         the results table
    python evaluate.py photo.jpg faces/ --detect                            age, gender, emotion of each face
"""
import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))      # Ctrl-C while the imports take their seconds

import argparse
import bisect
import csv
import functools
import io
import math
import queue
import re
import shlex
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageDraw, ImageFont

import datasets
import model as models
from datasets import CLASS_NAMES, EMOTIONS, OLDEST, TASKS, DataError, Faces, Share, one_line

BATCH = 64    # images at a time, always: figures of a log and of this script agree to the last digit
TOGETHER = 16                           # pictures that wait for each other: fewer at a time cost more each
SHIPPED = Path(__file__).resolve().with_name("checkpoints") / "resnet18-age-gender-emotion.pth"
COPY_SIZE = 64                          # pixels at which copies are looked for, where no model has a size
# years, percent; the seed's 1 1 1 run
SEED_ERRORS = {"age": 12.23, "gender": 100 - 86.63, "emotion": 100 - 52.91}


# ---- predicting -------------------------------------------------------------------------------------------

@dataclass
class Predictions:
    """What was predicted for each face of a table, by task; a task that was not predicted is absent."""
    values: dict[str, np.ndarray]       # (n,) float years; (n,) int classes, as in CLASS_NAMES
    loss: dict[str, np.ndarray] = field(default_factory=dict)    # (n,) float, 0 where the label is unknown
    logits: dict[str, torch.Tensor] = field(default_factory=dict)       # (n, classes) float32, if a model's


def logits_of(network: models.FaceNet, images: list[torch.Tensor], size: int, tasks: Collection[str],
              tta: bool, grey: bool = False) -> dict[str, torch.Tensor]:
    """Logits (n, classes) float32 by task, of groups of images as `models.prepare` takes them.

    With `tta`, the logarithm of the mean probabilities of image and mirror image.
    """
    inputs = models.prepare(images, size, grey)
    outputs = {task: logits.float() for task, logits in network(inputs, tasks).items()}
    if tta:
        mirrored = network(inputs.flip(3), tasks)
        outputs = {
            task: torch.logaddexp(logits.log_softmax(1), mirrored[task].float().log_softmax(1)) - math.log(2)
            for task, logits in outputs.items()
        }
    return outputs


@torch.inference_mode()
def predict(model: models.FaceNet, faces: Faces, size: int, tasks: Collection[str], device: torch.device,
            tta: bool = False, share: Share = Share(), grey: bool = False) -> Predictions:
    """Predict every face once, with `grey` without its colours. Of several processes each takes its share of
    the batches, and all get all results.
    """
    network = models.fuse(model).to(memory_format=torch.channels_last)
    # prediction, loss
    results = torch.zeros((len(faces), len(TASKS), 2), dtype=torch.float64, device=device)
    kept = {task: torch.zeros((len(faces), models.CLASSES[task]), device=device) for task in tasks}
    # a batch never spans two parts, so that it is the same whichever parts are judged together
    spans = [rows[start:start + BATCH] for number in range(len(faces.parts))
             for rows in [np.flatnonzero(faces.part == number)] for start in range(0, len(rows), BATCH)]
    own = spans[share.rank::share.world]
    for rows in datasets.progress(own, len(own), "evaluating", BATCH, share):
        images = datasets.gather(faces, rows, device)
        labels = datasets.labels_of(faces, rows, device)
        outputs = logits_of(network, images, size, tasks, tta, grey)
        losses = models.losses(outputs, labels)
        places = slice(int(rows[0]), int(rows[-1]) + 1)
        for task, logits in outputs.items():
            column = TASKS.index(task)
            results[places, column, 0] = models.expected_age(logits) if task == "age" else logits.argmax(1)
            results[places, column, 1] = losses[task]
            kept[task][places] = logits
    if share.world > 1:
        for values in (results, *kept.values()):
            dist.all_reduce(values)
    results = results.cpu().numpy()
    values = {task: results[:, TASKS.index(task), 0] for task in tasks}
    values |= {task: values[task].astype(np.int64) for task in CLASS_NAMES if task in values}
    return Predictions(values, {task: results[:, TASKS.index(task), 1] for task in tasks},
                       {task: logits.cpu() for task, logits in kept.items()})


# ---- metrics ----------------------------------------------------------------------------------------------

def score(faces: Faces, predictions: Predictions) -> dict:
    """Metrics of predictions, over all faces of known label. A task that was not predicted,
    or has no label, is left out.

    Returns, as far as there is something to measure:
        age_mae: years; where labels are ranges, of the distance to the range's middle.
        chalearn_error: ChaLearn LAP's mean of 1 - exp(-(x - mean)^2 / (2 stdv^2)), where stdv is known.
        age_in_range: percent of predictions within the label's range, where it is one.
        errors_by_decade: {decade: (faces,) years}.
        gender_acc, emotion_acc: percent.
        gender_confusion, emotion_confusion: (classes, classes) int, rows the true class, columns the
            predicted one.
        age_loss, gender_loss, emotion_loss: means, if the predictions are a model's.
    """
    metrics = {name: SCALE[name] * float(values[~np.isnan(values)].mean())
               for name, values in per_face(faces, predictions).items()}
    for task, values in predictions.values.items():
        rows = faces.known(task)
        if not rows.any():
            continue
        truth, guess = getattr(faces, task)[rows], values[rows]
        if task in predictions.loss:
            metrics[f"{task}_loss"] = float(predictions.loss[task][rows].mean())
        if task == "age":
            error, decade = np.abs(guess - truth.astype(np.float64)), (truth // 10).astype(int) * 10
            errors = {int(d): error[decade == d] for d in np.unique(decade)}
            metrics["errors_by_decade"] = errors
        else:
            classes = len(CLASS_NAMES[task])
            pairs = np.bincount(truth * classes + guess, minlength=classes ** 2)
            metrics[f"{task}_confusion"] = pairs.reshape(classes, classes)
    return metrics


# figures that are means over faces: their names, and what the mean is multiplied by
SCALE = {"age_mae": 1, "chalearn_error": 1, "age_in_range": 100, "gender_acc": 100, "emotion_acc": 100}
SHARES = [name for name, scale in SCALE.items() if scale == 100]


def per_face(faces: Faces, predictions: Predictions) -> dict[str, np.ndarray]:
    """What each face adds to the figures of SCALE: (n,) float64 by figure, NaN where its label is unknown.

    A figure that no face adds to is absent.
    """
    result = {}
    if "age" in predictions.values:
        guess, spread = predictions.values["age"], faces.spread.astype(np.float64)
        result["age_mae"] = np.abs(guess - faces.age.astype(np.float64))
        result["age_mae"][faces.known("age") & np.isnan(guess)] = np.inf    # the label is known all the same
        narrowest = 1e-6                # where all guessed the same age, only that age is right
        result["chalearn_error"] = 1 - np.exp(-(result["age_mae"] / np.maximum(spread, narrowest)) ** 2 / 2)
        inside = ((guess >= faces.low) & (guess < faces.high)).astype(np.float64)
        ranged = ~np.isnan(faces.low)
        result["age_in_range"] = np.where(ranged, inside, np.nan)
        result["chalearn_error"][ranged] = np.nan           # a range is not what many guessed
    for task in CLASS_NAMES:
        if task in predictions.values:
            right = (predictions.values[task] == getattr(faces, task)).astype(np.float64)
            result[f"{task}_acc"] = np.where(faces.known(task), right, np.nan)
    return {name: values for name, values in result.items() if not np.isnan(values).all()}


def interval(values: np.ndarray, share: bool) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` (n,) float, n > 0.

    Of a share (each value 0 or 1) Wilson's, JASA 22 (1927) 209-212; else the percentiles of 1,000 bootstrap
    means, drawn from a fixed seed.
    """
    count, mean = len(values), values.mean()
    if share:
        z = 1.959964
        centre = mean + z ** 2 / (2 * count)
        half = z * math.sqrt(mean * (1 - mean) / count + z ** 2 / (4 * count ** 2))
        return max(0.0, (centre - half) / (1 + z**2 / count)), min(1.0, (centre + half) / (1 + z**2 / count))
    rng = np.random.default_rng(0)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(1000)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def mean_error(metrics: dict) -> float:
    """The mean of age MAE / 12.23 years, gender error / 13.37 %, emotion error / 47.09 %,
    of the tasks that were measured.

    A run's best epoch is the one where it is the least. Infinite where a metric is no number.
    """
    errors = {"age": metrics.get("age_mae"),
              **{task: 100 - metrics[f"{task}_acc"] for task in CLASS_NAMES if f"{task}_acc" in metrics}}
    mean = float(np.mean([error / SEED_ERRORS[task] for task, error in errors.items() if error is not None]))
    return mean if math.isfinite(mean) else math.inf


# ---- calibration: whether probabilities are as often right as they say ------------------------------------

TEMPERATURES = torch.logspace(-2, 2, 135, 2).tolist()   # those tried: from 1/4 to 4, in steps of 2 %
BINS = 15                               # of the expected calibration error


def calibrate(faces: Faces, predictions: Predictions) -> dict[str, float]:
    """The temperature of each task: its logits, divided by it, tell probabilities that hold for `faces`.

    Of gender and emotion that of the least cross-entropy (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017); of age that at which AGE_SHARE of the true ages lie in the told ranges, or nearly.
    A task without labels to measure by is left out.
    """
    found = {}
    for task, logits, truth in with_labels(faces, predictions):
        def error(temperature: float) -> float:
            return torch.nn.functional.cross_entropy(logits / temperature, truth).item()

        def covered(temperature: float) -> float:
            return in_age_range(logits / temperature, truth).mean()
        if task == "age":               # ranges widen with the temperature
            place = bisect.bisect_left(TEMPERATURES, models.AGE_SHARE, key=covered)
            nearest = TEMPERATURES[max(0, place - 1):place + 1]
            found[task] = min(nearest, key=lambda temperature: abs(covered(temperature) - models.AGE_SHARE))
        else:
            found[task] = min(TEMPERATURES, key=error)
    return found


def with_labels(faces: Faces, predictions: Predictions) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """For each task that has some: the logits (k, classes) and labels (k,) of the faces of known label whose
    logits are numbers; of ages, those that are not told as a range.
    """
    for task, logits in predictions.logits.items():
        known = faces.known(task) & logits.isfinite().all(1).numpy()
        if task == "age":
            known &= np.isnan(faces.low)
        if known.any():
            yield task, logits[known], torch.from_numpy(getattr(faces, task)[known])


def in_age_range(logits: torch.Tensor, ages: torch.Tensor) -> np.ndarray:
    """Which of `ages` (n,) years lie, rounded, in the central AGE_SHARE of their distribution, logits
    (n, 101): (n,) float64, 0 or 1.
    """
    low, high = models.age_range(logits)
    return ((ages >= low - 0.5) & (ages <= high + 0.5)).double().numpy()


def calibration_error(logits: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, float]:
    """The expected calibration error, 0..1, of logits (n, classes) and true classes (n,), and its 95 %
    interval, of 1,000 bootstrap samples.

    The faces are put into bins by the probability of the class that is told; the mean over the faces of the
    distance between their bin's mean probability and its share of right answers (Guo et al., ICML 2017).
    """
    confidence, told = (values.numpy() for values in logits.double().softmax(1).max(1))
    gaps = (told == truth.numpy()) - confidence
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)

    def error(rows: np.ndarray) -> float:
        return np.abs(np.bincount(bins[rows], gaps[rows])).sum() / len(rows)
    rng, count = np.random.default_rng(0), len(gaps)
    low, high = np.percentile([error(rng.integers(count, size=count)) for _ in range(1000)], (2.5, 97.5))
    return error(np.arange(count)), low, high


def calibration_table(faces: Faces, predictions: Predictions, temperatures: dict[str, float]) -> str:
    """How well the probabilities and age ranges hold, as the network gives them
    and divided by their `temperatures`; '' where there is nothing to measure by.
    """
    def measured(task: str, logits: torch.Tensor, truth: torch.Tensor) -> tuple[str, str]:
        if task == "age":
            return with_interval(in_age_range(logits, truth), True)
        error, low, high = (f"{100 * value:.2f}" for value in calibration_error(logits, truth))
        return error, f"{low} to {high}"
    rows = []
    for task, logits, truth in with_labels(faces, predictions):
        name, own = f"{task} calibration error (%)", temperatures.get(task)
        if task == "age":
            name = f"true ages in the predicted {100 * models.AGE_SHARE:.0f} % (%)"
        calibrated = (*measured(task, logits / own, truth), f"{own:.3f}") if own else ("-", "", "-")
        rows.append([name, *measured(task, logits, truth), *calibrated])
    return table(["", "before", "95 %", "calibrated", "95 %", "temperature"], rows) if rows else ""


# ---- tables and reports -----------------------------------------------------------------------------------

def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is aligned in a terminal too; all columns but the first to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [cell.rjust(width) if i else cell.ljust(width)
                  for i, (cell, width) in enumerate(zip(cells, widths))]
        return f"| {' | '.join(padded)} |"
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def report(metrics: dict) -> str:
    """All of `score`'s metrics as text; the figures that logs have too under the logs' names, in full
    precision.
    """
    names = {"age mae": "age_mae", "chalearn error": "chalearn_error", "age in range": "age_in_range"}
    for name in ("gender_acc", "emotion_acc", "gender_loss", "age_loss", "emotion_loss"):
        names[name] = name
    lines = [f"{shown}: {metrics[name]}" for shown, name in names.items() if name in metrics]
    if "age_in_range" in metrics:
        lines.append("(these ages are told as ranges: the age mae is the distance to the range's middle)")
    if "errors_by_decade" in metrics:
        rows = [[f"{decade}-{decade + 9}" if decade < OLDEST else f"{decade}", f"{len(errors):,}",
                 *with_interval(errors, False)] for decade, errors in metrics["errors_by_decade"].items()]
        lines += ["", table(["age", "faces", "MAE (years)", "95 %"], rows)]
    for task, classes in CLASS_NAMES.items():
        if (matrix := metrics.get(f"{task}_confusion")) is not None:
            rows = []
            for i, (name, row) in enumerate(zip(classes, matrix)):
                right = np.repeat([1.0, 0.0], [row[i], row.sum() - row[i]])
                rows.append([name, f"{row.sum():,}", *with_interval(right, True, 1), *map(str, row)])
            header = [f"true {task}", "faces", "recall (%)", "95 %", *(f"as {name}" for name in classes)]
            lines += ["", table(header, rows)]
    return "\n".join(lines)


def with_interval(values: np.ndarray, share: bool, digits: int = 2) -> tuple[str, str]:
    """The mean of `values` (n,) and its 95 % interval as text; of a share in percent."""
    if not len(values):
        return "-", ""
    scale = 100 if share else 1
    low, high = interval(values, share)
    return f"{scale * values.mean():.{digits}f}", f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"


FIGURE_NAMES = {
    "age_mae": "age MAE (years)", "chalearn_error": "ChaLearn's error", "age_in_range": "age in range (%)",
    "gender_acc": "gender acc (%)", "emotion_acc": "emotion acc (%)"
}


def interval_table(faces: Faces, predictions: Predictions, seen: np.ndarray | None) -> str:
    """The figures of SCALE with their intervals,
    over all faces and over those not `seen` (n,) bool in training.
    """
    rows = []
    for name, values in per_face(faces, predictions).items():
        row, known = [FIGURE_NAMES[name]], ~np.isnan(values)
        for chosen in (known, known & ~seen) if seen is not None else (known,):
            row += [*with_interval(values[chosen], name in SHARES), f"{chosen.sum():,}"]
        rows.append(row)
    header = ["", "all", "95 %", "faces"] + ["unseen", "95 %", "faces"] * (seen is not None)
    return table(header, rows)


def group_table(faces: Faces, predictions: Predictions) -> str:
    """The figures of SCALE by group, with their intervals."""
    figures, rows = per_face(faces, predictions), []
    for group in np.unique(faces.group[faces.group != ""]):
        row = [str(group), f"{(faces.group == group).sum():,}"]
        for name, values in figures.items():
            row += with_interval(values[(faces.group == group) & ~np.isnan(values)], name in SHARES)
        rows.append(row)
    return table(["group", "faces", *(cell for name in figures for cell in (FIGURE_NAMES[name], "95 %"))],
                 rows)


def comparison_table(faces: Faces, rivals: dict[str, Predictions], rows: np.ndarray) -> str:
    """A row for each of `rivals`: the figures of SCALE over `rows` (n,) bool, with their intervals, and the
    difference to the first one, face by face, with its interval.
    """
    measured = {name: per_face(faces, predictions) for name, predictions in rivals.items()}
    first = next(iter(measured.values()))
    figures = [figure for figure in SCALE if any(figure in values for values in measured.values())]
    cells = []
    for name, values in measured.items():
        cells.append([name])
        for figure in figures:
            known = rows & ~np.isnan(values.get(figure, np.full(len(faces), np.nan)))
            cells[-1] += with_interval(values[figure][known], figure in SHARES) if known.any() else ("", "")
            if values is first or figure not in first or not known.any():
                cells[-1] += ("", "")
            else:
                difference = SCALE[figure] * (values[figure] - first[figure])[known]
                low, high = interval(difference, False)
                cells[-1] += (f"{difference.mean():+.2f}", f"{low:+.2f} to {high:+.2f}")
    columns = [cell for figure in figures for cell in (FIGURE_NAMES[figure], "95 %", "difference", "95 %")]
    return table(["predictions", *columns], cells)


# ---- logs: written and read here --------------------------------------------------------------------------

def epoch_lines(figures: dict) -> list[str]:
    """An epoch as the log has it, without the times. A figure that is absent is of a task of weight 0: `0`.
    """
    def losses(prefix: str) -> list[str]:
        return [f"{'':10}{prefix}{task}_loss: {figures.get(f'{prefix}{task}_loss', 0)}"
                for task in ("gender", "age", "emotion")]

    def accuracies(prefix: str) -> list[str]:
        return [f"{'':10}{prefix}{task}_acc: {figures.get(f'{prefix}{task}_acc', 0)}"
                for task in ("gender", "emotion")]
    return [f"lr : {figures['lr']}", f"Train epoch {figures['epoch']:5d}:",
            *losses(""), "\n", *accuracies(""), f"[Valid] age mae: {figures.get('age_mae', 0)}",
            *losses("val_"), "\n", *accuracies("val_"), "-" * 15]


STAMPED = re.compile(r"\[\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d\] (.*)")
EPOCH = re.compile(r"Train epoch +(\d{1,9}):")
FIGURE = re.compile(
    r"(lr|\[Valid\] age mae|(?:val_)?(?:gender|age|emotion)_(?:loss|acc)) ?: *([-+.\deinfa]{1,40})")


class Log(NamedTuple):
    """What a run's log tells."""
    command: str                        # train.py's command line, '' where there is none
    epochs: list[dict]                  # their figures, under the names that `epoch_lines` takes
    drawn: bool                         # its faces were drawn


DRAWN_NOTE = "the sample's faces are drawn: its figures mean nothing"


def read_log(file: Path) -> Log:
    """A run's log.

    Reads any log in this format, the seed's own excerpt included. An epoch that is told twice, since the run
    was resumed, counts as told last; one without validation is left out. Raises DataError.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise DataError(f"{file}: not a file")
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error})") from None
    command, epochs, figures, drawn = "", {}, {}, False
    for line in lines:
        stamped = STAMPED.fullmatch(line)
        text = stamped[1].strip() if stamped else ""
        if text.startswith("train.py "):
            command = text
        drawn |= text == DRAWN_NOTE
        if text.startswith("lr :"):
            figures = {}
        if epoch := EPOCH.fullmatch(text):
            figures["epoch"] = int(epoch[1])
        elif figure := FIGURE.fullmatch(text):
            try:
                figures[{"[Valid] age mae": "age_mae"}.get(figure[1], figure[1])] = float(figure[2])
            except ValueError:
                raise DataError(f"{file}: {text!r} has no number") from None
        elif text.startswith("-----"):
            if {"age_mae", "val_gender_acc", "val_emotion_acc"} <= figures.keys():
                epochs[figures.get("epoch")] = figures
            figures = {}
    return Log(command, list(epochs.values()), drawn)


def read_logs(folder: Path) -> dict[Path, Log]:
    """`read_log` of each log in a folder, oldest first, or of one file;
    what is no log or empty is told on stderr.

    Raises: DataError where there is none.
    """
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else [folder] if folder.is_file() else []
    if not files:
        raise DataError(f"{folder}: no logs (*.txt) there")
    logs = {}
    for file in files:
        try:
            log = read_log(file)
            if not log.epochs:
                raise DataError(f"{file}: no finished epoch")
            logs[file] = log
        except DataError as error:
            print(f"{error}, left out", file=sys.stderr)
    return logs


SEED_ROWS = [       # the table of the document that this project implements
    ["ResNet-18-Age-Gender-Emotion (seed)", "12.95", "84.15", "48.20", "1, 0.1, 1", "0.01"],
    ["ResNet-18-Age-Gender-Emotion (seed)", "12.23", "86.63", "52.91", "1, 1, 1", "0.01"],
    ["ResNet-18-Age (seed)", "12.30", "", "", "", ""],
    ["ResNet-18-Gender (seed)", "", "88.12", "", "", ""],
    ["ResNet-18-Emotion (seed)", "", "", "55.56", "", ""],
]
METRICS = {"age": "age_mae", "gender": "val_gender_acc", "emotion": "val_emotion_acc"}    # names in a log


def results_table(logs: dict[Path, Log]) -> str:
    """The seed's table and under it a row for each of `logs` (see `read_logs`):
    its best epoch, by `mean_error`.
    """
    rows = [results_row(log) for log in logs.values()]
    return table(["model", "Age MAE", "Gender Acc (%)", "Emotion Acc (%)", "weight", "initial lr"],
                 SEED_ROWS + rows)


def results_row(log: Log) -> list[str]:
    """A run's row in the results table: behind its name, on which sets it was judged."""
    options, epochs = parse_command(log.command), log.epochs
    tasks = [task for task in TASKS if any(figures[METRICS[task]] for figures in epochs)]

    def error(figures: dict) -> float:
        return mean_error({METRICS[task].removeprefix("val_"): figures[METRICS[task]] for task in tasks})
    best = min(epochs, key=error) if tasks else epochs[0]
    judged = [split for split in options.get("split", [])
              if set(datasets.SPLITS.get(split, tasks)) & set(tasks)]
    remarks = []
    if "rehearse" in options:
        remarks.append(f"rehearsing {' '.join(options['rehearse'])}")
    if log.command and "pretrained" not in options:
        remarks.append("from scratch")
    if "teacher" in options:
        remarks.append("with teachers")
    if "constant" in options:
        remarks.append("constant rate and size")
    if "without-copies" in options:
        remarks.append("without copies")
    if log.drawn or options.get("data") == ["sample"]:
        remarks.append("drawn sample")
    name = "-".join(["ResNet-18", *(task.capitalize() for task in tasks)])
    if judged:
        name += f" on {' '.join(judged)}"
    if remarks:
        name += f" ({', '.join(remarks)})"
    figures = [f"{best[METRICS[task]]:.2f}" if task in tasks else "" for task in TASKS]
    rate = options.get("lr") or [str(epochs[0].get("lr", ""))]
    return [name, *figures, ", ".join(options.get("weights", [])), rate[0]]


def parse_command(command: str) -> dict[str, list[str]]:
    """A log's command line as option -> its values."""
    try:
        words = shlex.split(command)
    except ValueError:                  # a quote without its end, of a version that wrote none
        words = command.split()
    options, values = {}, []
    for word in words:
        if word.startswith("--"):
            options[word[2:]] = values = []
        else:
            values.append(word)
    return options


def show_logs(args: argparse.Namespace) -> None:
    """Print the results table of the logs in --logs, and plot them."""
    logs = read_logs(args.logs)
    print(results_table(logs))
    if args.plot:
        plot_logs(args.plot, logs)


# ---- judging a split --------------------------------------------------------------------------------------

def judge(args: argparse.Namespace) -> None:
    """Print the metrics of a model, or of the predictions in files, on a part of a split."""
    root, cache = datasets.folders(args)
    tasks = list(datasets.SPLITS[args.split])
    if args.predictions:
        size, detect, title = COPY_SIZE, False, str(args.predictions[0])
        faces = read_part(args, root, cache, tasks)
        decoded = datasets.decode(faces, size, cache)
        # without the images, their labels are scored all the same
        faces = decoded if len(decoded) else faces
        for line in datasets.left_out(faces):
            print(line)
        rivals = {str(file): read_predictions(file, faces) for file in args.predictions}
        predictions = next(iter(rivals.values()))
    else:
        opened, rivals = open_model(args, tasks, datasets.is_drawn(root)), {}
        size, tasks, title, detect = opened.decoded, opened.tasks, opened.file, opened.detected
        faces = datasets.decode(read_part(args, root, cache, tasks), size, cache, detect)
        datasets.check_usable(faces, tasks)
        for line in datasets.left_out(faces):
            print(line)
        predictions = predict(opened.model, faces, opened.size, tasks, opened.device, args.tta)
    print_counts(args, faces)
    if args.save_predictions:
        save_predictions(args.save_predictions, faces, predictions)
    decode = functools.partial(datasets.decode, size=size, cache=cache, detect=detect)
    if len(rivals) > 1:
        return compare(args, faces, rivals, tasks, decode)
    metrics = score(faces, predictions)
    print(report(metrics), flush=True)
    if args.plot:
        plot_split(args.plot, f"{args.split} {args.subset}, {title}", faces, predictions, metrics)
    print("", interval_table(faces, predictions, seen_in_training(args, faces, tasks, decode)),
          sep="\n")
    if not rivals and (calibrated := calibration_table(faces, predictions, opened.temperatures)):
        print("", calibrated, sep="\n")
    if (faces.group != "").any():
        print("", group_table(faces, predictions), sep="\n")


def print_counts(args: argparse.Namespace, faces: Faces) -> None:
    """Print how many faces of which sets are judged."""
    counts = np.bincount(faces.part, minlength=len(faces.parts))
    names = [part.source.removeprefix(args.split).strip() for part in faces.parts]
    told = [f"{name} {count:,} images".strip() for name, count in zip(names, counts)]
    print(f"{args.split} {args.subset}: {', '.join(told)}")


def compare(args: argparse.Namespace, faces: Faces, rivals: dict[str, Predictions], tasks: Collection[str],
            decode: Callable[[Faces], Faces]) -> None:
    """Print the predictions in several files side by side, over all faces and over the unseen ones."""
    print("over all images; differences are to the first row, image by image")
    print(comparison_table(faces, rivals, np.ones(len(faces), dtype=bool)), flush=True)
    seen = seen_in_training(args, faces, tasks, decode)
    if seen is not None and seen.any():
        print(f"\nover the {(~seen).sum():,} images that are not in the train part")
        print(comparison_table(faces, rivals, ~seen))


def seen_in_training(args: argparse.Namespace, faces: Faces, tasks: Collection[str],
                     decode: Callable[[Faces], Faces]) -> np.ndarray | None:
    """Which faces are, pixel by pixel, also in the split's train part, (n,) bool;
    None where that can't be told.
    """
    if args.subset == "train":
        return None
    try:
        if any(part.pixels is None for part in faces.parts):
            raise datasets.Missing("its images are not on disk")
        root, cache = datasets.folders(args)
        train, gaps = datasets.read(root, [args.split], "train", tasks, cache)
        if gaps:
            raise gaps[0]
        train = decode(train)
    except DataError as error:
        print(f"which images are in the train part too can't be told: {error}")
        return None
    seen = np.isin(datasets.hashes(faces), datasets.hashes(train))
    print(f"\n{seen.sum():,} of the images are, pixel by pixel, in the train part too; "
          "unseen are those that are not in this split's train part")
    return seen


def read_part(args: argparse.Namespace, root: Path, cache: Path, tasks: Collection[str]) -> Faces:
    """The faces of --split and --subset, not decoded; a set of it that is not there is told.
    Raises DataError.
    """
    faces, gaps = datasets.read(root, [args.split], args.subset, tasks, cache)
    for gap in gaps:
        print(gap)
    return faces


def save_predictions(file: Path, faces: Faces, predictions: Predictions) -> None:
    """Write predictions as `read_predictions` reads them. Raises DataError."""
    columns = [values.tolist() if task == "age" else [CLASS_NAMES[task][value] for value in values]
               for task, values in predictions.values.items()]
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows(zip(faces.file.tolist(), *columns))
    write_csv(file, ["image", *predictions.values], rows.getvalue())


def write_csv(file: Path, header: list[str], rows: str) -> None:
    """Write a CSV, whole or not at all: names of columns, and rows as csv.writer has them. Raises DataError.
    """
    with datasets.whole_file(file) as output:
        output.write(f"{','.join(header)}\r\n{rows}".encode(errors="surrogateescape"))


def read_predictions(file: Path, faces: Faces) -> Predictions:
    """Anybody's predictions for `faces`: a CSV with `image` and any of age (years),
    gender and emotion (names or numbers).

    An image needs a prediction where its label is known. Other columns are passed over, and so are images
    that were dropped. Raises DataError that names rows missing, doubled, unknown or unusable.
    """
    place = {name: row for row, name in enumerate(faces.file.tolist())}
    dropped = {name for part in faces.parts for names in part.dropped.values() for name in names.tolist()}
    images = place.keys() | dropped
    values, seen, unknown, doubled = {}, set(), [], []
    for line, row in datasets.read_csv(file, ["image"], None):
        if not values:
            values = {task: np.full(len(faces), np.nan) for task in TASKS if task in row}
            if not values:
                raise DataError(f"{file}: no column age, gender or emotion; expected image and any of these")
        name = known_name(row["image"].strip(), images)
        doubled += [name] * (name in seen)
        unknown += [name] * (name not in images)
        seen.add(name)
        for task in values:
            if name in place and row[task].strip():
                values[task][place[name]] = parse_prediction(row[task], task, f"{file} line {line}")
    missing = [name for task, column in values.items()
               for name in faces.file[faces.known(task) & np.isnan(column)].tolist()]
    missing = missing if values else faces.file.tolist()
    for what, names in (("no image of this split", unknown), ("doubled", doubled), ("missing", missing)):
        if names:
            raise DataError(f"{file}: {len(names):,} {what}: {datasets.few(names)}")
    return Predictions({task: column if task == "age" else np.nan_to_num(column).astype(np.int64)
                        for task, column in values.items()})


def known_name(name: str, known: Collection[str]) -> str:
    """The end of a path that is one of the `known` names, as spreadsheets of pictures have it; else `name`.
    """
    parts = name.replace("\\", "/").split("/")[-50:]
    return next((end for i in range(len(parts)) if (end := "/".join(parts[i:])) in known), name)


def parse_prediction(text: str, task: str, where: str) -> float:
    """A cell of a predictions table: years, or the number of a class. Raises DataError."""
    text = text.strip().lower()
    if task == "age":
        return datasets.number(text, -1000, 1000, where, task)
    names = CLASS_NAMES[task]
    if text in names:
        return names.index(text)
    value = datasets.number(text, 0, len(names) - 1, where, task)
    if not value.is_integer():
        raise DataError(f"{where}: {task} is {text!r}; expected one of {', '.join(names)}, or its number")
    return value


# ---- checkpoints to judge and to give on ------------------------------------------------------------------

@dataclass
class Opened:
    """A checkpoint's model, ready for use, and what it tells of itself."""
    model: models.FaceNet
    file: Path
    size: int                           # pixels of its images
    decoded: int                        # pixels at which a set's images are decoded, then shrunk to `size`
    tasks: list[str]                    # those asked for that it was trained for
    device: torch.device
    detected: bool                      # its training faces were found by --detect
    temperatures: dict[str, float]      # that its logits are divided by for probabilities, by task


def open_model(args: argparse.Namespace, tasks: Collection[str], drawn: bool) -> Opened:
    """The model that --checkpoint names, or the newest one, for some of `tasks`.

    `drawn`: whether the faces it will see are drawn. Raises DataError.
    """
    device = models.pick_device(args.device)
    models.compute_alike()
    file = newest_checkpoint(args.checkpoints) if args.checkpoint is None else args.checkpoint
    model, content = models.open_checkpoint(file)
    trained, detected = content["tasks"], content.get("detected") is True
    if not (chosen := [task for task in tasks if task in trained]):
        raise DataError(f"{file}: trained for {', '.join(trained)}; {args.split} tells {', '.join(tasks)}; "
                        "--checkpoint names another")
    epoch = f"; epoch {content['epoch']}" if type(content.get("epoch")) is int else ""
    print(f"{file}: {content['image_size']} px, trained for {', '.join(trained)}{epoch}" +
          "; detected faces" * detected + "; mean of image and mirror image (--tta)" * args.tta)
    if content.get("drawn") is True and not drawn:
        print("trained on drawn faces: what it tells of photos means nothing; --checkpoint names another")
    return Opened(model.to(device), file, content["image_size"], content["decoded_size"], chosen, device,
                  detected, content["temperatures"])


def newest_checkpoint(folder: Path | None) -> Path:
    """The best.pth that was written last; without one, if no folder is named, the project's own weights.
    Raises DataError.
    """
    searched = Path("checkpoints") if folder is None else folder
    if found := sorted(searched.glob("*/best.pth"), key=lambda file: file.stat().st_mtime):
        return found[-1]
    if folder is not None or not SHIPPED.is_file():
        raise DataError(f"no run's best.pth in {searched}/; train one, or name one by --checkpoint")
    print("no run of your own in checkpoints/: these are the weights that come with the project")
    return SHIPPED


def export(args: argparse.Namespace) -> None:
    """Write a checkpoint's network in half precision with what using it needs, and nothing else.
    Raises CheckpointError.
    """
    file = newest_checkpoint(args.checkpoints) if args.checkpoint is None else args.checkpoint
    model, content = models.open_checkpoint(file)
    tensors = {name: value.half() if value.is_floating_point() else value
               for name, value in model.state_dict().items()}
    if wrong := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
        raise models.CheckpointError(
            f"{args.export}: not written, {wrong[0]} holds values that half precision can't")
    names = ("image_size", "decoded_size", "tasks", "temperatures", *models.description())
    kept = {key: content[key] for key in names}
    told = {key: content.get(key) is True for key in ("drawn", "detected")}
    models.write_checkpoint({"model": tensors, **kept, **told}, args.export)
    print(f"{args.export}: {args.export.stat().st_size / 1e6:.1f} MB")


# ---- pictures of one's own --------------------------------------------------------------------------------

class Looked(NamedTuple):
    """What a picture showed."""
    file: Path
    found: list[datasets.Found | None] = []     # its faces; one None where the middle square is taken
    crops: list[np.ndarray] = []        # each face's square, (size, size, 3) uint8
    image: Image.Image | None = None    # if it is to be annotated
    scale: float = 1    # the file's pixels in one of the image's, which may come at a fraction
    error: str = ""                     # why it could not be read


@torch.inference_mode()
def predict_pictures(args: argparse.Namespace) -> int:
    """Print a line for each face; pictures that can't be read are named on stderr.
    Returns the exit status: 1 if any.
    """
    opened = open_model(args, TASKS, False)
    if args.detect:
        datasets.detector()                             # tells a missing detector before anything is written
    print(framing_note(args.detect, opened.detected), end="")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    network = models.fuse(opened.model).to(memory_format=torch.channels_last)
    header, sheet = csv_header(opened.tasks, args.detect), io.StringIO(newline="")
    rows, count, unreadable = csv.writer(sheet), 0, 0
    try:
        for looked, outputs in predicted(network, opened, args):
            count += 1
            unreadable += bool(looked.error)
            told = [in_words(face, opened.temperatures) for face in outputs]
            cells = tell(looked, told, len(header))
            if args.csv:
                rows.writerows(cells)
            if looked.image:
                faces = [(found and found.box, words) for found, (_, words) in zip(looked.found, told)]
                save_picture(annotate(looked.image, faces),
                             args.out / annotated_name(count - unreadable, looked.file))
    finally:                                            # when stopped too, what there is
        if sheet.tell():
            write_csv(args.csv, header, sheet.getvalue())
    if unreadable:
        print(f"{unreadable} of {count} pictures could not be read", file=sys.stderr)
    elif not count:
        raise DataError(f"no pictures ({', '.join(datasets.IMAGE_FILES)}) in {', '.join(args.pictures)}")
    return 1 if unreadable else 0


def framing_note(detect: bool, trained_so: bool) -> str:
    """A line where the pictures are framed otherwise than the faces that the network was trained on."""
    if detect:
        return "" if trained_so else "trained on the sets' own crops; --detect frames faces nearly so\n"
    return "the middle square of each picture is taken as the face; --detect finds the faces in a photo\n"


def predicted(network: models.FaceNet, opened: Opened,
              args: argparse.Namespace) -> Iterator[tuple[Looked, list[dict[str, torch.Tensor]]]]:
    """The pictures in order, each with its faces' logits (classes,) by task.

    They are read, and their faces found, on all cores; faces are predicted by batches of what is ready, so
    that from a pipe a picture does not wait for others.
    """
    for batch in looked_at(args, opened.size):
        crops = [torch.from_numpy(crop) for looked in batch for crop in looked.crops]
        outputs = []
        for start in range(0, len(crops), BATCH):
            images = torch.stack(crops[start:start + BATCH]).to(opened.device)
            logits = logits_of(network, [images], opened.size, opened.tasks, args.tta)
            logits = {task: values.cpu() for task, values in logits.items()}
            outputs += [{task: values[i] for task, values in logits.items()} for i in range(len(images))]
        for looked in batch:
            yield looked, outputs[:len(looked.crops)]
            outputs = outputs[len(looked.crops):]


def looked_at(args: argparse.Namespace, size: int) -> Iterator[list[Looked]]:
    """What the pictures showed, in order, as many at a time as are ready, up to BATCH, but TOGETHER
    at least; of names from a pipe, one is enough. With --out, which holds whole pictures, TOGETHER at most.
    """
    most = TOGETHER if args.out else BATCH
    waiting, end = queue.Queue(most), object()
    least = 1 if "-" in args.pictures else TOGETHER

    def feed(pool: ThreadPoolExecutor) -> None:
        try:
            for file in pictures(args.pictures, args.out):
                waiting.put(pool.submit(look, file, size, args.detect, bool(args.out)))
            waiting.put(end)
        except BaseException as error:                  # raised again where it is read
            waiting.put(error)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        threading.Thread(target=feed, args=(pool,), daemon=True).start()
        try:
            following = waiting.get()
            while following is not end:
                if isinstance(following, BaseException):
                    raise following
                batch, following = [following.result()], None
                while following is None and len(batch) < most:
                    if len(batch) >= least and waiting.empty():
                        break
                    following = waiting.get()
                    if isinstance(following, Future) and (len(batch) < least or following.done()):
                        batch.append(following.result())
                        following = None
                yield batch
                following = following or waiting.get()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def look(file: Path, size: int, detect: bool, keep: bool) -> Looked:
    """Read a picture and cut its faces out. Raises DataError, where there is no detector."""
    try:
        if not detect:
            crop = datasets.face_crop(datasets.open_picture(file, size), size)
            kept = datasets.open_picture(file, datasets.LARGE_SIDE) if keep else None
            return Looked(file, [None], [crop], kept)
        image = datasets.open_picture(file, datasets.LARGE_SIDE)
        kept = image if keep else None
        found = datasets.find_faces(image)
        crops = [datasets.align(image, face.points, size) for face in found]
        return Looked(file, found, crops, kept, datasets.longest_side(file) / max(image.size))
    except DataError:
        raise
    except Exception as error:                          # Pillow raises anything on a broken file
        return Looked(file, error=one_line(error)[:200] or type(error).__name__)


def csv_header(tasks: Collection[str], detect: bool) -> list[str]:
    """The columns of the spreadsheet of pictures."""
    header = ["image", *(["left", "top", "right", "bottom", "confidence"] if detect else [])]
    for task in tasks:
        header += ["age", "age_low", "age_high"] if task == "age" else [task, f"{task}_probability"]
    return header + list(EMOTIONS) * ("emotion" in tasks)


def tell(looked: Looked, told: list[tuple[list[str], str]], columns: int) -> list[list[str]]:
    """Print what a picture showed, a line for each face, `told` as `in_words` has it. Returns its rows in
    the spreadsheet of so many `columns`; one, if it shows none.
    """
    if looked.error:
        print(f"{looked.file}: not a readable picture ({looked.error})", file=sys.stderr)
    elif not told:
        print(f"{looked.file}: no face found")
    rows = []
    for found, (cells, words) in zip(looked.found, told):
        box = [round(looked.scale * side) for side in found.box] if found else []
        place = " at {},{}-{},{}".format(*box) if found else ""
        print(f"{looked.file}{place}: {words}", flush=True)
        rows.append([str(looked.file), *box, *([f"{found.confidence:.3f}"] if found else []), *cells])
    return rows or [[str(looked.file), *[""] * (columns - 1)]]


def pictures(names: Iterable[str], out: Path | None) -> Iterator[Path]:
    """The files among `names`, the image files in folders among them,
    and for `-` the names on standard input.

    Linked folders are followed, each folder is looked at once, and `out` is passed over.
    """
    for name in names:
        if name == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from pictures((line for line in lines if line not in ("", "-")), out)
        elif os.path.isdir(name):
            yield from pictures_below(Path(name), out)
        else:
            yield Path(name)


def pictures_below(folder: Path, out: Path | None) -> Iterator[Path]:
    """The image files in `folder` and the folders in it, in sorted order, as `pictures` has them."""
    seen = {os.path.realpath(out)} if out else set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place, file) for file in sorted(files)
                    if Path(file).suffix.lower() in datasets.IMAGE_FILES + datasets.OTHER_IMAGE_FILES)


def in_words(outputs: dict[str, torch.Tensor], temperatures: dict[str, float]) -> tuple[list[str], str]:
    """What a photo's line says: one face's logits (classes,) by task as cells
    of the spreadsheet, and as a line.
    """
    cells, words, emotions = [], [], []
    for task, logits in outputs.items():
        calibrated = logits.float() / temperatures.get(task, 1)
        probabilities = calibrated.softmax(0)
        if task == "age":
            age = models.expected_age(logits[None]).item()
            low, high = (bound.item() for bound in models.age_range(calibrated[None]))
            cells += [f"{age:.1f}", f"{low}", f"{high}"]
            words.append(f"age {age:.1f} years ({low}-{high})")
        else:
            probability, best = probabilities.max(0)
            cells += [CLASS_NAMES[task][best], f"{probability:.3f}"]
            words.append(f"{CLASS_NAMES[task][best]} {100 * probability:.0f} %")
        if task == "emotion":
            emotions = [f"{probability:.3f}" for probability in probabilities.tolist()]
    return cells + emotions, ", ".join(words)


def annotate(image: Image.Image, faces: list[tuple[tuple | None, str]]) -> Image.Image:
    """A copy of the picture with each face's box, if it has one, and what was predicted,
    light on a dark ground.
    """
    # small pictures are enlarged until text on them can be read
    scale = max(1, math.ceil(320 / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale))
    size = max(12, min(image.size) // 24)
    font, pad = ImageFont.load_default(size), size // 3
    taken = [tuple(side * scale for side in box) for box, _ in faces if box]
    for box, text in faces:
        lines = "\n".join(text.split(", "))
        left, top, right, bottom = ImageDraw.Draw(image).multiline_textbbox((0, 0), lines, font)
        label = right - left + 2 * pad, bottom - top + 2 * pad
        if box is None:                                         # below the picture
            place = (0, image.height)
            wider = Image.new("RGB", (max(image.width, label[0]), image.height + label[1]), DARK)
            wider.paste(image)
            image = wider
        else:
            box = tuple(side * scale for side in box)
            place = label_place(box, label, taken, image.size)
            taken.append((*place, place[0] + label[0], place[1] + label[1]))
        draw = ImageDraw.Draw(image)
        if box:
            draw.rectangle(box, outline=DARK, width=max(4, size // 4))
            draw.rectangle(box, outline=YELLOW, width=max(2, size // 8))
        draw.rectangle((*place, place[0] + label[0], place[1] + label[1]), fill=DARK)
        draw.multiline_text((place[0] + pad - left, place[1] + pad - top), lines, WHITE, font)
    return image


DARK, YELLOW, WHITE = (20, 20, 20), (255, 220, 0), (255, 255, 255)


def label_place(box: tuple, label: tuple[int, int], taken: list[tuple],
                size: tuple[int, int]) -> tuple[int, int]:
    """Where the `label` (width, height) of a face's `box` goes in a picture of `size`: below, above, right
    or left of it, where it covers least of what is `taken` (left, top, right, bottom). Returns its left and
    top.
    """
    left, top, right, bottom = box
    places = [(left, bottom + 1), (left, top - label[1] - 1), (right + 1, top), (left - label[0] - 1, top)]
    places = [(min(max(x, 0), max(0, size[0] - label[0])), min(max(y, 0), max(0, size[1] - label[1])))
              for x, y in places]

    def covered(place: tuple[int, int]) -> float:
        area = 0
        for begin_x, begin_y, end_x, end_y in taken:
            width = min(place[0] + label[0], end_x) - max(place[0], begin_x)
            height = min(place[1] + label[1], end_y) - max(place[1], begin_y)
            area += max(0, width) * max(0, height)
        return area
    return min(places, key=covered)


def annotated_name(number: int, file: Path) -> str:
    """The name of a picture's annotated copy: numbered, since names may come twice,
    and no longer than a name may be.
    """
    end = os.fsencode(file.name)[-200:].decode(errors="replace")
    return f"{number:05}_{end}.png"


def save_picture(image: Image.Image, file: Path) -> None:
    """Write a PNG, whole or not at all. Raises DataError."""
    with datasets.whole_file(file) as output:
        image.save(output, "PNG")


# ---- plots ------------------------------------------------------------------------------------------------

def new_figure(panels: int, title: str):
    """An empty page of `panels` panels, three in a row, without a window. Raises DataError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("--plot needs matplotlib: pip install matplotlib") from None
    rows, columns = math.ceil(panels / 3), min(panels, 3)
    figure = Figure(figsize=(5.5 * columns, 5 * rows), layout="constrained", dpi=120)
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[panels:]:
        ax.set_axis_off()
    return figure, axes


def plot_kind(file: Path) -> str:
    """The format of a plot, by the file's ending, png without one. Raises DataError."""
    kinds = new_figure(1, "")[0].canvas.get_supported_filetypes()
    kind = file.suffix[1:].lower() or "png"
    if kind not in kinds:
        raise DataError(f"{file}: {kind} is no kind of plot; expected {', '.join(sorted(kinds))}")
    return kind


def save_figure(figure, file: Path) -> None:
    """Write a figure, whole or not at all. Raises DataError."""
    with datasets.whole_file(file) as output:
        figure.savefig(output, format=plot_kind(file))


def plot_split(file: Path, title: str, faces: Faces, predictions: Predictions, metrics: dict) -> None:
    """One page on a split, as far as it was predicted: age against its label, MAE by decade,
    confusion matrices.
    """
    panels = 2 * ("age_mae" in metrics) + sum(f"{task}_confusion" in metrics for task in CLASS_NAMES)
    figure, axes = new_figure(max(panels, 1), title)
    axes = iter(axes)
    if "age_mae" in metrics:
        rows = faces.known("age")
        plot_ages(next(axes), faces.age[rows], predictions.values["age"][rows], metrics["age_mae"])
        plot_decades(next(axes), metrics["errors_by_decade"])
    for task in CLASS_NAMES:
        if f"{task}_confusion" in metrics:
            plot_confusion(next(axes), task, metrics[f"{task}_confusion"], metrics[f"{task}_acc"])
    save_figure(figure, file)


def plot_ages(ax, truth: np.ndarray, guess: np.ndarray, mae: float) -> None:
    """A panel of predicted against true ages."""
    ax.scatter(truth, guess, s=6, alpha=0.3, linewidths=0)
    ax.plot([0, OLDEST], [0, OLDEST], color="black", linewidth=1, label="predicted = true")
    ax.set(xlabel="true age (years)", ylabel="predicted age (years)", title=f"age: MAE {mae:.2f} years",
           aspect="equal")
    ax.legend(loc="upper left")


def plot_decades(ax, decades: dict[int, np.ndarray]) -> None:
    """A panel of the MAE by decade, of each decade's errors (n,) in years."""
    ax.bar([str(decade) for decade in decades], [errors.mean() for errors in decades.values()])
    for i, errors in enumerate(decades.values()):
        ax.annotate(f"{len(errors):,}", (i, errors.mean()), ha="center", va="bottom", fontsize=8)
    ax.set(xlabel="true age, decade from (years)", ylabel="MAE (years)",
           title="age: MAE by decade, number of faces above")


def plot_confusion(ax, task: str, matrix: np.ndarray, accuracy: float) -> None:
    """A panel of a confusion matrix, each row in percent."""
    names = CLASS_NAMES[task]
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for i, j in np.ndindex(shares.shape):
        ax.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center",
                color="white" if shares[i, j] > 55 else "black")
    ax.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted", ylabel="true",
           title=f"{task}: accuracy {accuracy:.2f} %, rows in %")
    ax.set_xticklabels(names, rotation=45)
    ax.set_yticklabels(names)


LARGEST_FIGURE = 1e9                    # a log's larger ones are not drawn


def plot_logs(file: Path, logs: dict[Path, Log]) -> None:
    """Losses and metrics over the epochs of each of `logs` (see `read_logs`): a colour a run,
    training dashed, valid solid. Raises DataError.
    """
    runs = {file.stem: log.epochs for file, log in logs.items()}
    titles = {f"{task}_loss": f"{task} loss" for task in TASKS}
    titles |= {"age_mae": "age MAE (years)", "gender_acc": "gender accuracy (%)",
               "emotion_acc": "emotion accuracy (%)"}
    measured = {name.removeprefix("val_") for epochs in runs.values() for figures in epochs
                for name, value in figures.items() if value}
    shown = [name for name in titles if name in measured]
    if not shown:
        raise DataError(f"{file}: not drawn, there is no finished epoch")
    figure, axes = new_figure(len(shown), "training dashed, valid solid")
    for ax, name in zip(axes, shown):
        for i, (run, epochs) in enumerate(runs.items()):
            for key, style in ((name, "-" if name == "age_mae" else "--"), (f"val_{name}", "-")):
                points = [(figures.get("epoch", place), figures[key])
                          for place, figures in enumerate(epochs, 1)
                          if figures.get(key) and abs(figures[key]) < LARGEST_FIGURE]
                if points:
                    ax.plot(*zip(*points), style, color=f"C{i % 10}", marker=".",
                            label=run if style == "-" else None)
        ax.set(xlabel="epoch", title=titles[name])
        ax.xaxis.get_major_locator().set_params(integer=True)
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8)
    save_figure(figure, file)


# ---- the command line -------------------------------------------------------------------------------------

def make_parser() -> datasets.Parser:
    """The options of this script."""
    parser = datasets.Parser(__doc__)
    parser.add_argument("pictures", nargs="*", default=[], metavar="PICTURE",
                        help="image files and folders of them, each a face crop; - reads names from stdin")
    parser.add_argument("--split", choices=datasets.SPLITS, help="the split to judge on")
    parser.add_argument("--subset", choices=datasets.SUBSETS, default="valid",
                        help="its part (default: valid)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="the model (default: the best.pth under --checkpoints that was written last, or the weights "
        "that come with the project)")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR",
                        help="where runs save (default: checkpoints)")
    parser.add_argument("--tta", action="store_true",
                        help="average the predictions for each image and its mirror image")
    parser.add_argument(
        "--predictions", type=Path, nargs="+", default=[], metavar="FILE.csv",
        help="score these predictions instead of a model's; several are compared to the first")
    parser.add_argument("--save-predictions", type=Path, metavar="FILE.csv",
                        help="write the model's predictions for the split")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv",
                        help="write what is predicted for the pictures")
    parser.add_detect("find the faces in the pictures first, and frame them as in training")
    parser.add_argument("--export", type=Path, metavar="FILE.pth",
                        help="write the checkpoint's weights in half precision, to share them")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="write each picture there with what was predicted drawn on it")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="print the results table of the logs there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png",
                        help="with --split or --logs: plot the figures (needs matplotlib)")
    parser.add_argument("--device", metavar="NAME",
                        help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_data()
    return parser


# what each kind of work takes, beside --data and --cache
OPTIONS = {
    "split": {"subset", "checkpoint", "checkpoints", "tta", "predictions", "save_predictions", "plot",
              "device"},
    "logs": {"plot"},
    "export": {"checkpoint", "checkpoints"},
    "pictures": {"checkpoint", "checkpoints", "tta", "csv", "detect", "out", "device"},
}


def check_options(parser: datasets.Parser, args: argparse.Namespace) -> None:
    """End with a line where options don't go together."""
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    works = [work for work in OPTIONS if work in given]
    if len(works) != 1:
        parser.error("expected one of --split, --logs, --export, or pictures; see --help")
    for name in sorted(given - {*works, *OPTIONS[works[0]], "data", "cache"}):
        fitting = (work if work == "pictures" else f"--{work}" for work in OPTIONS if name in OPTIONS[work])
        parser.error(f"--{name.replace('_', '-')} goes with {' or '.join(fitting)}")
    if args.predictions and given & {"tta", "save_predictions", "checkpoint", "checkpoints", "device"}:
        parser.error("--predictions goes with no model: "
                     "no --checkpoint, --checkpoints, --tta, --save-predictions, --device")
    if len(args.predictions) > 1 and args.plot:
        parser.error("--plot goes with one file of --predictions")


def check_outputs(args: argparse.Namespace) -> None:
    """Raise DataError where a file that is asked for can't be written,
    or is one that is read; before any work.
    """
    inputs = [Path(name) for name in (args.checkpoint, *args.predictions, *args.pictures) if name]
    root = datasets.data_root(args)
    for file in args.predictions:
        if not file.is_file():
            raise DataError(f"no file {file}")
    for file in (args.save_predictions, args.csv, args.plot, args.export):
        if file is None:
            continue
        if not file.name or file.is_dir():
            raise DataError(f"{file}: a folder; expected the name of a file to write")
        folder = Path(os.path.realpath(file)).parent
        if str(file.absolute().parent) in ("/dev", "/dev/fd") and file.is_file():       # as > and >> make it
            raise DataError(f"{file}: goes into a file; name that file")
        if not (datasets.is_stream(file) or folder.is_dir() and os.access(folder, os.W_OK)):
            raise DataError(f"{file}: its folder is not there or can't be written")
        if file.exists() and args.split and file.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{file}: is there already, among the data; name another")
        if file.exists() and any(other.exists() and file.samefile(other) for other in inputs):
            raise DataError(f"{file}: is read by this command, and would be replaced; name another")
    if args.export and args.export.exists():
        raise DataError(f"{args.export} is there already")
    if args.out:
        datasets.check_folder(args.out)
    if args.plot:
        plot_kind(args.plot)


def main() -> int | None:
    parser = make_parser()
    args = parser.parse_args()
    check_options(parser, args)
    check_outputs(args)
    if args.logs:
        return show_logs(args)
    if args.export:
        return export(args)
    if args.pictures:
        return predict_pictures(args)
    return judge(args)


if __name__ == "__main__":
    datasets.script(main, models.CheckpointError)
