"""Judge a model on a split, score anybody's predictions, read the logs, or predict on pictures of one's own.

    python evaluate.py --split cvpr2016                                     newest run's best checkpoint, on its valid part
    python evaluate.py --split fer2013 --subset test --checkpoint C --tta   mirrored images averaged
    python evaluate.py --split cvpr2016 --predictions other.csv             another model's predictions, same metrics
    python evaluate.py --logs logs/                                         the results table
    python evaluate.py photo.jpg faces/ --detect                            age, gender and emotion of each face
"""
import argparse
import csv
import math
import os
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageDraw, ImageFont

import datasets
import model as models
from datasets import EMOTIONS, GENDERS, TASKS, DataError, Faces

BATCH = 64                                  # images at a time, in training's validation as here: the figures agree to the last digit
CLASS_NAMES = {"gender": GENDERS, "emotion": EMOTIONS}
SHIPPED = Path(__file__).resolve().with_name("checkpoints") / "resnet18-age-gender-emotion.pth"
MARGIN = 0.4                                # IMDB-WIKI's crops have 40 % of the face's side on each side of it


# ---- predicting ------------------------------------------------------------------------------------------------------

def logits_of(network: models.FaceNet, images: torch.Tensor, size: int, tasks: Collection[str], tta: bool) -> dict[str, torch.Tensor]:
    """Logits (n, classes) float32 by task, of images (n, h, w, 3 or 1) uint8; tta: of the mean probabilities of image and mirror image."""
    inputs = datasets.prepare(images, size)
    outputs = {task: logits.float() for task, logits in network(inputs, tasks).items()}
    if tta:
        mirrored = network(inputs.flip(3), tasks)
        outputs = {task: ((logits.softmax(1) + mirrored[task].float().softmax(1)) / 2).log() for task, logits in outputs.items()}
    return outputs


@dataclass
class Predictions:
    """What was predicted for the rows of one set; a task that was not asked for is absent."""
    age: np.ndarray | None = None           # (n,) years
    gender: np.ndarray | None = None        # (n,) int, as in GENDERS
    emotion: np.ndarray | None = None       # (n,) int, as in EMOTIONS
    loss: dict[str, np.ndarray] = field(default_factory=dict)      # (n,) by task, 0 where the label is unknown


@torch.inference_mode()
def predict(model: models.FaceNet, sets: list[Faces], size: int, tasks: Collection[str], device: torch.device,
            tta: bool = False, rank: int = 0, world: int = 1) -> list[Predictions]:
    """Predict every face of `sets` once. Of several processes each takes every `world`th batch, and all get all results."""
    network = models.fuse(model).to(memory_format=torch.channels_last)
    total = sum(map(len, sets))
    # age; its loss; gender; its loss; emotion; its loss
    results = torch.zeros((total, 2 * len(TASKS)), dtype=torch.float64, device=device)
    spans = [(i, start) for i, faces in enumerate(sets) for start in range(0, len(faces), BATCH)]
    offsets = np.cumsum([0, *map(len, sets)])
    for i, start in datasets.progress(spans[rank::world], len(spans[rank::world]), "evaluating", BATCH):
        rows = np.arange(start, min(start + BATCH, len(sets[i])))
        images = datasets.gather(sets[i].pixels, rows, device)
        labels = datasets.Labels(*(values.to(device, non_blocking=True) for values in datasets.labels_of([sets[i]], [rows])))
        outputs = logits_of(network, images, size, tasks, tta)
        losses = models.losses(outputs, labels)
        place = results[offsets[i] + start:offsets[i] + start + len(rows)]
        for task, logits in outputs.items():
            column = 2 * TASKS.index(task)
            place[:, column] = models.expected_age(logits) if task == "age" else logits.argmax(1)
            place[:, column + 1] = losses[task]
    if world > 1:
        dist.all_reduce(results)
    results = results.cpu().numpy()
    predictions = []
    for begin, end in zip(offsets, offsets[1:]):
        values = {task: results[begin:end, 2 * TASKS.index(task)] for task in tasks}
        values |= {task: values[task].astype(np.int64) for task in CLASS_NAMES if task in values}
        predictions.append(Predictions(**values, loss={task: results[begin:end, 2 * TASKS.index(task) + 1] for task in tasks}))
    return predictions


# ---- metrics ---------------------------------------------------------------------------------------------------------

def score(sets: list[Faces], predictions: list[Predictions]) -> dict:
    """Metrics of predictions, over all rows of known label. A task that was not predicted, or has no label, is left out.

    Returns, as far as there is something to measure:
        age_mae: years. chalearn_error: ChaLearn LAP's mean of 1 - exp(-(x - mean)^2 / (2 stdv^2)), where stdv is known.
        mae_by_decade: {decade: (faces, years)}. gender_acc, emotion_acc: percent.
        gender_confusion, emotion_confusion: (classes, classes) int, rows the true class, columns the predicted one.
        age_loss, gender_loss, emotion_loss: means, if the predictions are a model's.
    """
    metrics = {}
    for task in TASKS:
        pairs = [(faces, guess) for faces, guess in zip(sets, predictions) if getattr(guess, task) is not None]
        if not pairs:
            continue
        known = [datasets.known(faces, task) for faces, _ in pairs]
        truth = np.concatenate([getattr(faces, task)[rows] for (faces, _), rows in zip(pairs, known)])
        guess = np.concatenate([getattr(guess, task)[rows] for (_, guess), rows in zip(pairs, known)])
        if not len(truth):
            continue
        if all(task in guess.loss for _, guess in pairs):
            metrics[f"{task}_loss"] = float(np.concatenate([guess.loss[task][rows] for (_, guess), rows in zip(pairs, known)]).mean())
        if task == "age":
            error = np.abs(guess - truth.astype(np.float64))
            metrics["age_mae"] = float(error.mean())
            decade = (truth // 10).astype(int) * 10
            metrics["mae_by_decade"] = {int(d): (int((decade == d).sum()), float(error[decade == d].mean())) for d in np.unique(decade)}
            stdv = np.concatenate([faces.stdv[rows] for (faces, _), rows in zip(pairs, known)]).astype(np.float64)
            given = ~np.isnan(stdv)
            if given.any():
                spread = np.maximum(stdv[given], 1e-6)          # where all guessed the same age, only that age is right
                metrics["chalearn_error"] = float((1 - np.exp(-(error[given] / spread) ** 2 / 2)).mean())
        else:
            classes = len(CLASS_NAMES[task])
            metrics[f"{task}_acc"] = float(100 * (guess == truth).mean())
            metrics[f"{task}_confusion"] = np.bincount(truth * classes + guess, minlength=classes ** 2).reshape(classes, classes)
    return metrics


def evaluate(model: models.FaceNet, sets: list[Faces], size: int, tasks: Collection[str], device: torch.device, **options) -> dict:
    """`score` of `predict`: the one path by which training validates and this script judges."""
    return score(sets, predict(model, sets, size, tasks, device, **options))


# A run's best epoch is the one whose errors, each in units of the seed's three-task run, are the least on average.
SEED_ERRORS = {"age": 12.23, "gender": 100 - 86.63, "emotion": 100 - 52.91}        # years, percent, percent


def mean_error(metrics: dict) -> float:
    """The mean of age MAE / 12.23 years, gender error / 13.37 %, emotion error / 47.09 %, of the tasks that were measured."""
    errors = {"age": metrics.get("age_mae"), **{task: 100 - metrics[f"{task}_acc"] for task in CLASS_NAMES if f"{task}_acc" in metrics}}
    return float(np.mean([error / SEED_ERRORS[task] for task, error in errors.items() if error is not None]))


# ---- tables ----------------------------------------------------------------------------------------------------------

def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is aligned in a terminal too; all columns but the first to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths))) + " |"
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def report(metrics: dict) -> str:
    """All of `score`'s metrics as text; the figures that logs have too under the logs' names, in full precision."""
    lines = []
    if "age_mae" in metrics:
        lines.append(f"age mae: {metrics['age_mae']}")
    if "chalearn_error" in metrics:
        lines.append(f"chalearn error: {metrics['chalearn_error']}")
    lines += [f"{name}: {metrics[name]}" for task in CLASS_NAMES if (name := f"{task}_acc") in metrics]
    lines += [f"{name}: {metrics[name]}" for task in ("gender", "age", "emotion") if (name := f"{task}_loss") in metrics]
    if "mae_by_decade" in metrics:
        rows = [[f"{decade}-{decade + 9}" if decade < datasets.OLDEST else f"{decade}", f"{count:,}", f"{years:.2f}"]
                for decade, (count, years) in metrics["mae_by_decade"].items()]
        lines += ["", table(["age", "faces", "MAE (years)"], rows)]
    for task, names in CLASS_NAMES.items():
        if (matrix := metrics.get(f"{task}_confusion")) is not None:
            rows = [[name, f"{row.sum():,}", f"{100 * row[i] / row.sum():.1f}" if row.sum() else "-", *map(str, row)]
                    for i, (name, row) in enumerate(zip(names, matrix))]
            lines += ["", table([f"true {task}", "faces", "recall (%)", *(f"as {name}" for name in names)], rows)]
    return "\n".join(lines)


# ---- logs: written and read here -------------------------------------------------------------------------------------

def epoch_lines(figures: dict) -> list[str]:
    """An epoch as the log has it, without the times. A figure that `figures` lacks is of a task of weight 0: `0`."""
    def losses(prefix: str) -> list[str]:
        return [f"{'':10}{prefix}{task}_loss: {figures.get(f'{prefix}{task}_loss', 0)}" for task in ("gender", "age", "emotion")]

    def accuracies(prefix: str) -> list[str]:
        return [f"{'':10}{prefix}{task}_acc: {figures.get(f'{prefix}{task}_acc', 0)}" for task in ("gender", "emotion")]
    return [f"lr : {figures['lr']}", f"Train epoch {figures['epoch']:5d}:", *losses(""), "\n", *accuracies(""),
            f"[Valid] age mae: {figures.get('age_mae', 0)}", *losses("val_"), "\n", *accuracies("val_"), "-" * 15]


def read_log(file: Path) -> tuple[str, list[dict]]:
    """A run's command line ('' where there is none) and its epochs' figures, under the names that `epoch_lines` takes.

    Reads any log in this format, the seed's own excerpt included. An epoch that is told twice, since the run was resumed, counts
    as told last; one without validation is left out. Raises DataError.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable text file ({error})") from None
    command, epochs, figures = "", {}, {}
    for line in lines:
        stamped = re.fullmatch(r"\[\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d\] (.*)", line)
        text = stamped[1].strip() if stamped else ""
        if text.startswith("train.py "):
            command = text
        if text.startswith("lr :"):
            figures = {}
        if epoch := re.fullmatch(r"Train epoch +(\d+):", text):
            figures["epoch"] = int(epoch[1])
        elif figure := re.fullmatch(r"(lr|\[Valid\] age mae|(?:val_)?(?:gender|age|emotion)_(?:loss|acc)) ?: *([-+.\deinfa]+)", text):
            try:
                figures[{"[Valid] age mae": "age_mae"}.get(figure[1], figure[1])] = float(figure[2])
            except ValueError:
                raise DataError(f"{file}: {text!r} has no number") from None
        elif text.startswith("-----"):
            if {"age_mae", "val_gender_acc", "val_emotion_acc"} <= figures.keys():
                epochs[figures.get("epoch")] = figures
            figures = {}
    return command, list(epochs.values())


SEED_ROWS = [       # the table of the document that this project implements
    ["ResNet-18-Age-Gender-Emotion (seed)", "12.95", "84.15", "48.20", "1, 0.1, 1", "0.01"],
    ["ResNet-18-Age-Gender-Emotion (seed)", "12.23", "86.63", "52.91", "1, 1, 1", "0.01"],
    ["ResNet-18-Age (seed)", "12.30", "", "", "", ""],
    ["ResNet-18-Gender (seed)", "", "88.12", "", "", ""],
    ["ResNet-18-Emotion (seed)", "", "", "55.56", "", ""],
]


def log_files(folder: Path) -> list[Path]:
    """The logs in a folder, oldest first; a file is itself. Raises DataError where there is none."""
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else [folder] if folder.is_file() else []
    if not files:
        raise DataError(f"{folder}: no logs (*.txt) there")
    return files


def results_table(folder: Path) -> str:
    """The seed's table and under it a row for each log in `folder`: its best epoch, by `mean_error`. Raises DataError."""
    rows = []
    for file in log_files(folder):
        command, epochs = read_log(file)
        if not epochs:
            print(f"{file}: no finished epoch, left out", file=sys.stderr)
            continue

        def option(name: str) -> str:
            found = re.search(rf" --{name} (.*?)(?= --|$)", command)
            return found[1] if found else ""
        names = {"age": "age_mae", "gender": "val_gender_acc", "emotion": "val_emotion_acc"}
        tasks = [task for task in TASKS if any(figures[names[task]] for figures in epochs)]
        best = min(epochs, key=lambda figures: mean_error({names[task].removeprefix("val_"): figures[names[task]] for task in tasks}))
        name = "-".join(["ResNet-18", *(task.capitalize() for task in tasks)])
        pretraining = "imdb-wiki" in option("split")
        where = [option("split")] * pretraining + [f"rehearsing {option('rehearse')}"] * bool(option("rehearse"))
        where += ["from scratch"] * (bool(command) and not pretraining and not option("pretrained"))
        where += ["drawn sample"] * (option("data") == "sample")
        rows.append([name + (f" ({', '.join(where)})" if where else ""), *(f"{best[names[task]]:.2f}" if task in tasks else "" for task in TASKS),
                     ", ".join(option("weights").split()), option("lr") or str(epochs[0].get("lr", ""))])
    return table(["model", "Age MAE", "Gender Acc (%)", "Emotion Acc (%)", "weight", "initial lr"], SEED_ROWS + rows)


# ---- plots -----------------------------------------------------------------------------------------------------------

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


def save_figure(figure, file: Path) -> None:
    """Write a figure, whole or not at all. Raises DataError."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        figure.savefig(partial, format=file.suffix.removeprefix(".") or "png")
        partial.replace(file)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{file}: can't be written ({error})") from None


def plot_split(file: Path, title: str, sets: list[Faces], predictions: list[Predictions], metrics: dict) -> None:
    """One page on a split, as far as it was predicted: age against its label, MAE by decade, confusion of gender and emotion."""
    panels = 2 * ("age_mae" in metrics) + sum(f"{task}_confusion" in metrics for task in CLASS_NAMES)
    figure, axes = new_figure(panels, title)
    axes = iter(axes)
    if "age_mae" in metrics:
        pairs = [(faces.age[rows], guess.age[rows]) for faces, guess in zip(sets, predictions) if guess.age is not None
                 for rows in [datasets.known(faces, "age")]]
        ax = next(axes)
        ax.scatter(*map(np.concatenate, zip(*pairs)), s=6, alpha=0.3, linewidths=0)
        ax.plot([0, datasets.OLDEST], [0, datasets.OLDEST], color="black", linewidth=1, label="predicted = true")
        ax.set(xlabel="true age (years)", ylabel="predicted age (years)", title=f"age: MAE {metrics['age_mae']:.2f} years", aspect="equal")
        ax.legend(loc="upper left")
        ax = next(axes)
        decades = metrics["mae_by_decade"]
        ax.bar([str(decade) for decade in decades], [years for _, years in decades.values()])
        for i, (count, years) in enumerate(decades.values()):
            ax.annotate(f"{count:,}", (i, years), ha="center", va="bottom", fontsize=8)
        ax.set(xlabel="true age, decade from (years)", ylabel="MAE (years)", title="age: MAE by decade, number of faces above")
    for task, names in CLASS_NAMES.items():
        if (matrix := metrics.get(f"{task}_confusion")) is None:
            continue
        ax = next(axes)
        shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for i, j in np.ndindex(shares.shape):
            ax.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color="white" if shares[i, j] > 55 else "black")
        ax.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted", ylabel="true",
               title=f"{task}: accuracy {metrics[f'{task}_acc']:.2f} %, rows in %")
        ax.set_xticklabels(names, rotation=45)
        ax.set_yticklabels(names)
    save_figure(figure, file)


def plot_logs(file: Path, folder: Path) -> None:
    """Losses and metrics over epochs of each log in `folder`: a colour a run, training dashed, valid solid. Raises DataError."""
    runs = {log.stem: epochs for log in log_files(folder) if (epochs := read_log(log)[1])}
    names = {f"{task}_loss": f"{task} loss" for task in TASKS} | {"age_mae": "age MAE (years)", "gender_acc": "gender accuracy (%)",
                                                                  "emotion_acc": "emotion accuracy (%)"}
    shown = [name for name in names if any(figures.get(key) for epochs in runs.values() for figures in epochs for key in (name, f"val_{name}"))]
    if not shown:
        raise DataError(f"{folder}: no finished epoch in its logs")
    figure, axes = new_figure(len(shown), "training dashed, valid solid")
    for ax, name in zip(axes, shown):
        for i, (run, epochs) in enumerate(runs.items()):
            for key, style in ((name, "-" if name == "age_mae" else "--"), (f"val_{name}", "-")):
                points = [(figures.get("epoch", at), figures[key]) for at, figures in enumerate(epochs, 1) if figures.get(key)]
                if points:
                    ax.plot(*zip(*points), style, color=f"C{i % 10}", marker=".", label=run if style == "-" else None)
        ax.set(xlabel="epoch", title=names[name])
        ax.xaxis.get_major_locator().set_params(integer=True)
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8)
    save_figure(figure, file)


# ---- predictions as CSV ----------------------------------------------------------------------------------------------

def save_predictions(file: Path, sets: list[Faces], predictions: list[Predictions]) -> None:
    """Write predictions as `read_predictions` reads them. Raises DataError."""
    tasks = [task for task in TASKS if getattr(predictions[0], task) is not None]
    rows = []
    for faces, guess in zip(sets, predictions):
        columns = [getattr(guess, task).tolist() for task in tasks]
        columns = [values if task == "age" else [CLASS_NAMES[task][value] for value in values] for task, values in zip(tasks, columns)]
        rows += zip(faces.files.tolist(), *columns)
    write_csv(file, ["image", *tasks], rows)


def write_csv(file: Path, header: list[str], rows: list) -> None:
    """Write a CSV, whole or not at all. Raises DataError."""
    partial = file.with_name(file.name + ".partial")
    try:
        with open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as output:
            csv.writer(output).writerows([header, *rows])
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{file}: can't be written ({error.strerror})") from None


def read_predictions(file: Path, sets: list[Faces]) -> list[Predictions]:
    """Anybody's predictions for `sets`: a CSV with `image` and any of age (years), gender and emotion (names or numbers).

    An image needs a prediction where its label is known. Raises DataError that names rows missing, doubled, unknown or unusable.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            header = [name.strip() for name in next(csv.reader(text), [])]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable CSV file ({error})") from None
    tasks = [task for task in TASKS if task in header]
    if not tasks:
        raise DataError(f"{file}: no column age, gender or emotion; expected image and any of these")
    place = {name: (i, row) for i, faces in enumerate(sets) for row, name in enumerate(faces.files.tolist())}
    values = [{task: np.full(len(faces), np.nan) for task in tasks} for faces in sets]
    seen, unknown, doubled = set(), [], []
    for line, row in datasets.read_csv(file, ["image", *tasks]):
        name = row["image"].strip()
        if name in seen:
            doubled.append(name)
        seen.add(name)
        if name not in place:
            unknown.append(name)
            continue
        i, at = place[name]
        for task in tasks:
            text, where = row[task].strip().lower(), f"{file} line {line}"
            if not text:
                continue
            if task == "age":
                values[i][task][at] = datasets.number(text, -1000, 1000, where, task)
            elif text in CLASS_NAMES[task]:
                values[i][task][at] = CLASS_NAMES[task].index(text)
            else:
                value = datasets.number(text, 0, len(CLASS_NAMES[task]) - 1, where, task)
                if not value.is_integer():
                    raise DataError(f"{where}: {task} is {text!r}; expected one of {', '.join(CLASS_NAMES[task])}, or its number")
                values[i][task][at] = value
    missing = [name for faces, columns in zip(sets, values) for task in tasks
               for name in faces.files[datasets.known(faces, task) & np.isnan(columns[task])].tolist()]
    for what, names in (("no image of this split", unknown), ("doubled", doubled), ("missing", missing)):
        if names:
            raise DataError(f"{file}: {len(names):,} {what}: {', '.join(names[:10])}{', ...' * (len(names) > 10)}")
    return [Predictions(**{task: column if task == "age" else np.nan_to_num(column).astype(np.int64) for task, column in columns.items()})
            for columns in values]


# ---- checkpoints and pictures ----------------------------------------------------------------------------------------

def newest_checkpoint(folder: Path | None) -> Path:
    """The best.pth that was written last; where no folder is named and checkpoints/ has none, the project's own weights. Raises DataError."""
    if found := sorted((folder or Path("checkpoints")).glob("*/best.pth"), key=lambda file: file.stat().st_mtime):
        return found[-1]
    if folder or not SHIPPED.is_file():
        raise DataError(f"no run's best.pth in {folder or 'checkpoints'}/; train one, or name one by --checkpoint")
    print("no run of your own in checkpoints/: these are the weights that come with the project")
    return SHIPPED


def description() -> dict:
    """What a checkpoint of this code tells besides its tensors: how images are prepared and what the outputs mean."""
    return {"mean": list(datasets.MEAN), "std": list(datasets.STD), "ages": models.CLASSES["age"],
            "genders": list(GENDERS), "emotions": list(EMOTIONS)}


def open_checkpoint(file: Path) -> tuple[models.FaceNet, int, list[str], dict]:
    """The model of a checkpoint of this project, its image size, the tasks it was trained for, and the whole content.

    Raises: CheckpointError, also where its classes or normalisation are not this code's.
    """
    content = models.read_checkpoint(file)
    lacking = [key for key in ("model", "image_size", "tasks", *description()) if key not in content]
    if lacking:
        raise models.CheckpointError(f"{file}: not a checkpoint of this project, it tells no {', '.join(lacking)}; train.py --pretrained takes others' weights")
    for key, value in description().items():
        if content[key] != value:
            raise models.CheckpointError(f"{file}: its {key} are {content[key]}; this code's are {value}")
    size, tasks, margin = content["image_size"], content["tasks"], content.get("margin", MARGIN)
    if not isinstance(size, int) or not 16 <= size <= 1024 or not isinstance(tasks, list) or not tasks or any(task not in TASKS for task in tasks):
        raise models.CheckpointError(f"{file}: an image size of {size!r} for tasks {tasks!r}; expected 16 to 1024 pixels for some of {', '.join(TASKS)}")
    if type(margin) not in (int, float) or not 0 <= margin <= 2:
        raise models.CheckpointError(f"{file}: a margin of {margin!r} around faces; expected 0 to 2 times the face")
    model = models.FaceNet()
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise models.CheckpointError(f"{file}: its tensors are not this network's ({' '.join(str(error).split())[:200]})") from None
    return model, size, tasks, content


def export(content: dict, margin: float, file: Path) -> None:
    """Write a checkpoint's network in half precision with what using it needs, and nothing else. Raises CheckpointError."""
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in content["model"].items()}
    if wrong := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
        raise models.CheckpointError(f"{file}: not written, {wrong[0]} holds values that half precision can't")
    models.write_checkpoint({"model": tensors, "margin": margin, "drawn": content.get("drawn") is True, **{key: content[key] for key in ("image_size", "tasks", *description())}}, file)


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the GPU, where there is one. Raises DataError."""
    try:
        device = torch.zeros(1, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device     # cuda as cuda:0
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from None
    if device.type not in ("cpu", "cuda"):
        raise DataError(f"--device {name}: expected cpu, cuda or cuda:N")
    torch.backends.cudnn.deterministic = True       # no algorithm picked by timing: judging repeats the log's figures
    return device


def pictures(names: list[str]) -> Iterator[Path]:
    """The files among `names`, the image files in folders among them, and for `-` the names on standard input."""
    for name in names:
        if name == "-":
            yield from pictures([line for line in map(str.rstrip, sys.stdin) if line and line != "-"])
        elif Path(name).is_dir():
            yield from (file for file in sorted(Path(name).rglob("*")) if file.suffix.lower() in datasets.IMAGE_FILES)
        else:
            yield Path(name)


def find_faces(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) in pixels of the frontal faces in an RGB picture, from left to right. Raises DataError."""
    try:
        import cv2
        cascade = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, "haarcascade_frontalface_default.xml"))
    except (ImportError, AttributeError):
        raise DataError("--detect needs OpenCV 4 with its cascades: pip install 'opencv-python-headless<5'") from None
    grey = np.asarray(image.convert("L"))
    smallest = max(24, min(image.size) // 20)
    found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=6, minSize=(smallest, smallest))
    return sorted((int(x), int(y), int(x + w), int(y + h)) for x, y, w, h in found)


def widen(box: tuple[int, int, int, int], image: Image.Image, margin: float) -> Image.Image:
    """The crop around a detected face, with `margin` times its side on each side; the picture's edge is repeated outside it."""
    margin = round(margin * (box[2] - box[0]))
    left, top, right, bottom = box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin
    columns, rows = np.arange(left, right).clip(0, image.width - 1), np.arange(top, bottom).clip(0, image.height - 1)
    return Image.fromarray(np.asarray(image)[rows][:, columns])


def annotate(image: Image.Image, faces: list[tuple[tuple | None, str]]) -> Image.Image:
    """A copy of the picture with each face's box, if it has one, and what was predicted, light on a dark ground."""
    scale = max(1, math.ceil(320 / max(image.size)))            # small pictures are enlarged until text on them can be read
    image = image.resize((image.width * scale, image.height * scale))
    size = max(12, min(image.size) // 24)
    font = ImageFont.load_default(size)
    for box, text in faces:
        lines = "\n".join(text.split(", "))
        draw = ImageDraw.Draw(image)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), lines, font)
        width, height, pad = right - left, bottom - top, size // 3
        if box is None:                                         # below the picture
            wider = Image.new("RGB", (max(image.width, width + 2 * pad), image.height + height + 2 * pad), (20, 20, 20))
            wider.paste(image)
            x, y = pad, image.height + pad
            image, draw = wider, ImageDraw.Draw(wider)
        else:
            box = [side * scale for side in box]
            draw.rectangle(box, outline=(20, 20, 20), width=max(4, size // 4))
            draw.rectangle(box, outline=(255, 220, 0), width=max(2, size // 8))
            x = min(max(box[0], 0), max(0, image.width - width - 2 * pad)) + pad
            y = min(box[3], max(0, image.height - height - 2 * pad)) + pad
        draw.rectangle((x - pad, y - pad, x + width + pad, y + height + pad), fill=(20, 20, 20))
        draw.multiline_text((x - left, y - top), lines, (255, 255, 255), font)
    return image


def in_words(outputs: dict[str, torch.Tensor]) -> tuple[list[str], str]:
    """One face's logits (1, classes) by task as cells of the spreadsheet, and as a line."""
    cells, words = [], []
    for task, logits in outputs.items():
        if task == "age":
            cells.append(f"{models.expected_age(logits).item():.1f}")
            words.append(f"age {cells[-1]} years")
        else:
            probability, best = logits.softmax(1)[0].max(0)
            cells += [CLASS_NAMES[task][best], f"{probability:.3f}"]
            words.append(f"{cells[-2]} {100 * probability:.0f} %")
    return cells, ", ".join(words)


@torch.inference_mode()
def predict_pictures(model: models.FaceNet, size: int, tasks: list[str], device: torch.device, margin: float, args: argparse.Namespace) -> int:
    """Print a line for each face; pictures that can't be read are named on stderr. Returns the exit status: 1 if there were any."""
    network = models.fuse(model).to(memory_format=torch.channels_last)
    rows, read, unreadable = [], 0, 0
    try:
        for file in pictures(args.pictures):
            try:
                image = datasets.open_picture(file, None if args.detect else size)
            except Exception as error:                          # Pillow raises anything on a broken file
                unreadable += 1
                print(f"{file}: not a readable picture ({' '.join(str(error).split())})", file=sys.stderr)
                continue
            boxes = find_faces(image) if args.detect else [None]
            read += 1
            if not boxes:
                print(f"{file}: no face found")
            faces = []
            for box in boxes:
                crop = datasets.face_crop(image if box is None else widen(box, image, margin), size)
                cells, words = in_words(logits_of(network, torch.from_numpy(crop[None]).to(device), size, tasks, args.tta))
                rows.append([str(file), *(box or ()), *cells])
                faces.append((box, words))
                print(f"{file}{' at {},{}-{},{}'.format(*box) if box else ''}: {words}", flush=True)
            if args.out:
                whole = image if args.detect else datasets.open_picture(file, None)
                annotate(whole, faces).save(args.out / f"{read:05}_{file.name}.png")       # numbered: names may come twice in several folders
    finally:                                                    # when stopped too, what there is
        if args.csv and read + unreadable:
            columns = [name for task in tasks for name in ([task] if task == "age" else [task, f"{task}_probability"])]
            write_csv(args.csv, ["image", *(["left", "top", "right", "bottom"] if args.detect else []), *columns], rows)
    if unreadable:
        print(f"{unreadable} of {unreadable + read} pictures could not be read", file=sys.stderr)
    elif not read:
        raise DataError(f"no pictures ({', '.join(datasets.IMAGE_FILES)}) in {', '.join(args.pictures)}")
    return 1 if unreadable else 0


def main() -> int | None:
    parser = datasets.Parser(__doc__)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="image files and folders of them, each a face crop; - reads names from stdin")
    parser.add_argument("--split", choices=datasets.SPLITS, help="the split to judge on")
    parser.add_argument("--subset", choices=datasets.SUBSETS, default="valid", help="its part (default: valid)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the model (default: the best.pth under --checkpoints that was written last, or the weights that come with the project)")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="where runs save (default: checkpoints)")
    parser.add_argument("--tta", action="store_true", help="average the predictions for each image and its mirror image")
    parser.add_argument("--predictions", type=Path, metavar="FILE.csv", help="score these predictions instead of a model's")
    parser.add_argument("--save-predictions", type=Path, metavar="FILE.csv", help="write the model's predictions for the split")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write what is predicted for the pictures")
    parser.add_argument("--detect", action="store_true", help="find the faces in the pictures first (needs OpenCV)")
    parser.add_argument("--margin", type=datasets.in_range(float, 0, 2), metavar="PART",
                        help=f"with --detect and --export: what the crops have on each side of a face, in its sides (default: what the checkpoint was exported with, or {MARGIN})")
    parser.add_argument("--export", type=Path, metavar="FILE.pth", help="write the checkpoint's weights in half precision, for giving on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write each picture there with what was predicted drawn on it")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="print the results table of the logs there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="with --split or --logs: plot the figures (needs matplotlib)")
    parser.add_argument("--data", default="data", metavar="DIR", help="data root, or `sample` (default: data)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for decoded images (default: .cache in the data root)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    args = parser.parse_args()
    if (args.split is not None) + (args.logs is not None) + (args.export is not None) + bool(args.pictures) != 1:
        parser.error("expected one of --split, --logs, --export, or pictures; see --help")
    if args.predictions and (not args.split or args.tta or args.save_predictions or args.checkpoint):
        parser.error("--predictions goes with --split, and with no model: no --checkpoint, --tta, --save-predictions")
    if not args.pictures and (args.csv or args.out or args.detect):
        parser.error("--csv, --out and --detect go with pictures")
    if not args.split and args.save_predictions or (args.pictures or args.export) and args.plot:
        parser.error("--save-predictions goes with --split, --plot with --split or --logs")
    if args.export and (args.tta or args.export.exists()):
        parser.error(f"{args.export} is there already" if args.export.exists() else "--tta goes with --split or pictures")
    if args.margin is not None and not args.detect and not args.export:
        parser.error("--margin goes with --detect or --export")
    if args.logs:
        print(results_table(args.logs))
        if args.plot:
            plot_logs(args.plot, args.logs)
        return None
    for file in (args.save_predictions, args.csv, args.plot, args.export):
        if file and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            parser.error(f"{file}: its folder is not there or can't be written")
    if args.plot and (kind := args.plot.suffix[1:].lower() or "png") not in (kinds := new_figure(1, "")[0].canvas.get_supported_filetypes()):
        parser.error(f"{args.plot}: {kind} is no kind of plot; expected {', '.join(sorted(kinds))}")
    if args.predictions and not args.predictions.is_file():
        parser.error(f"no file {args.predictions}")
    tasks = list(datasets.SPLITS[args.split]) if args.split else list(TASKS)
    if not args.predictions:
        device = pick_device(args.device)
        checkpoint = args.checkpoint or newest_checkpoint(args.checkpoints)
        model, size, trained, content = open_checkpoint(checkpoint)
        model.to(device)
        if not (tasks := [task for task in tasks if task in trained]):
            raise DataError(f"{checkpoint}: trained for {', '.join(trained)}; {args.split} tells {', '.join(datasets.SPLITS[args.split])}; --checkpoint names another")
        print(f"{checkpoint}: {size} px, trained for {', '.join(trained)}"
              + (f"; epoch {content['epoch']}" if type(content.get("epoch")) is int else "") + ("; mean of image and mirror image (--tta)" if args.tta else ""))
        margin = content.get("margin", MARGIN) if args.margin is None else args.margin
    if args.export:
        export(content, margin, args.export)
        print(f"{args.export}: {args.export.stat().st_size / 1e6:.1f} MB, for crops with {100 * margin:g} % of the face on each side")
        return None
    if not args.predictions and content.get("drawn") is True and args.data != "sample":
        print("trained on drawn faces: what it tells of photos means nothing; --checkpoint names another")
    if args.pictures:
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
        if not args.detect:
            print("the whole picture is taken as the face's crop; --detect finds the faces in a photo")
        return predict_pictures(model, size, tasks, device, margin, args)

    root = datasets.data_root(args.data)
    sets, gaps = [], []
    for task in tasks if args.split == "cvpr2016" else [None]:          # of CVPR 2016, one of the two sets may be absent
        try:
            sets += datasets.load(root, args.split, args.subset, tasks if task is None else [task],
                                  48 if args.predictions else size, args.cache or root / ".cache")
        except datasets.Missing as gap:
            gaps.append(gap)
    if not sets:
        raise gaps[0]
    for gap in gaps:
        print(gap)
    for line in (line for faces in sets for line in datasets.unreadable(faces)):
        print(line)
    print(f"{args.split} {args.subset}: " + ", ".join(f"{faces.name.removeprefix(args.split).strip()} {len(faces):,} images" for faces in sets))
    predictions = read_predictions(args.predictions, sets) if args.predictions else predict(model, sets, size, tasks, device, args.tta)
    metrics = score(sets, predictions)
    print(report(metrics))
    if args.save_predictions:
        save_predictions(args.save_predictions, sets, predictions)
    if args.plot:
        plot_split(args.plot, f"{args.split} {args.subset}, {args.predictions or checkpoint}", sets, predictions, metrics)
    return None


if __name__ == "__main__":
    datasets.script(main, models.CheckpointError, torch.OutOfMemoryError)
