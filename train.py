"""Train the network: age, gender and emotion together or alone.

    python train.py --data sample --epochs 3                                  try it, no download
    python train.py --split imdb-wiki --weights 1 1 0                         step 1: pretrain
    python train.py --weights 1 1 1 --pretrained checkpoints/RUN/best.pth     step 2: all three
    python train.py --weights 1 0 0 --pretrained checkpoints/RUN/best.pth     steps 3 to 5: one task alone
    python train.py ... --rehearse imdb-wiki                                  go on training on this set
    python train.py ... --teacher STEP1/best.pth STEP5/best.pth               learn what these predict, too
    python train.py --resume checkpoints/RUN/last.pth                         go on with a stopped run
    torchrun --nproc-per-node=4 -- train.py ...                               the same on several GPUs
"""
import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))      # Ctrl-C while the imports take their seconds

import argparse
import collections
import contextlib
import copy
import hashlib
import itertools
import math
import re
import reprlib
import shlex
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

import datasets
import evaluate
import model as models
from datasets import TASKS, DataError, Faces, Share

# the highest learning rate, reached after the warm-up and lowered to 0 along a cosine: from scratch, and of
# pretrained weights (emotion after six epochs at 64 pixels: 61.97 %, with 0.05 61.47 %, one run each); both
# are for steps of BATCH_SIZE images and change in proportion (Goyal et al. 2017, arXiv:1706.02677)
LEARNING_RATE, FINE_TUNING_RATE = 0.05, 0.02
WARM_UP = 1 / 20                        # of the run's steps
BATCH_SIZE = 64                         # images a step
# from scratch, and of pretrained weights (step 1 in 60 epochs: 4.92 years, 92.8 %; in 24, with 64 images a
# step instead of 256: 5.38 years, 91.5 %, one run each)
EPOCHS, FINE_TUNING_EPOCHS = 60, 24
SMALLER_EPOCHS = 0.6                    # of the epochs, the first ones, see smaller images
SMALLER_SIDE = 2 / 3                    # of the image size; 64 instead of 96 pixels halve a CPU's step
MOMENTUM = 0.9                          # Nesterov's
# weight decay, from scratch, and of pretrained weights (step 2 at 96 pixels, after 24 epochs of step 1: 4.61
# years, 94.4 %, 66.8 %; with 0.0025 4.69, 94.3, 65.6, one run each); biases and BatchNorm don't decay
DECAY, FINE_TUNING_DECAY = 1e-3, 5e-4
SAMPLE_IMAGES = 1000                    # an epoch's, of the drawn sample

LONGEST_DECODING = timedelta(hours=12)      # a host waits so long for one that still decodes
CHECK_EVERY = 50                        # steps between looks at the losses, each of which waits for the GPU
# what a resumed run must keep
SETTINGS = ("split", "rehearse", "weights", "pretrained", "image_size", "samples", "epochs", "batch_size",
            "lr", "decay", "seed", "constant", "without_copies", "detect")
NAMED_ANEW = ("data", "cache", "logs", "device", "teacher")     # what a resumed run may find elsewhere
# which checkpoints of earlier versions don't tell
NEWER_SETTINGS = {"constant": False, "without_copies": False, "detect": False}


# ---- the loop ---------------------------------------------------------------------------------------------

class Trainer:
    """The network as it is trained, on the faces that it is trained on."""

    def __init__(self, args: argparse.Namespace, device: torch.device, share: Share = Share()):
        """`args`: this script's, of which weights, samples, batch_size, image_size, epochs, lr, decay,
        constant, seed, compile are used.
        """
        self.args, self.device, self.share = args, device, share
        self.size = size_at(1, args)            # pixels of the images, as the last epoch had them
        self.weights = {task: weight for task, weight in zip(TASKS, args.weights, strict=True) if weight}
        torch.manual_seed(args.seed)
        self.model = models.FaceNet()
        for task in set(TASKS) - set(self.weights):
            getattr(self.model, task).requires_grad_(False)
        self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, args.lr, args.decay)
        self.precision = models.fast_precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.teachers: list[Teacher] = []
        self.targets: dict[str, torch.Tensor] = {}      # what they tell of each face, by task

    def start(self, faces: Faces) -> None:
        """Get ready to train on `faces`."""
        self.faces = datasets.to_device(faces, self.device)
        self.steps = math.ceil(sum(datasets.pools(faces, self.args.samples).values()) / self.args.batch_size)
        self.network = self.model
        if self.args.compile:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            self.network = torch.compile(self.network, dynamic=False, mode=mode)
        if self.share.world > 1:
            gpus = [self.device.index] if self.device.type == "cuda" else None
            # BatchNorm's statistics are not read in training; `share_statistics` brings them together
            self.network = torch.nn.parallel.DistributedDataParallel(self.network, device_ids=gpus,
                                                                     broadcast_buffers=False)
        self.try_largest()

    def try_largest(self) -> None:
        """Compute a step at the size of the last epochs and throw it away, so that a GPU with too little
        memory for it fails before the first one.
        """
        if self.device.type != "cuda" or self.size == self.args.image_size:
            return
        model, count = copy.deepcopy(self.model), math.ceil(self.args.batch_size / self.share.world)
        images = torch.zeros((count, 3, self.args.image_size, self.args.image_size), device=self.device)
        with self.autocast(self.args.image_size):
            outputs = model(images.contiguous(memory_format=torch.channels_last), tuple(self.weights))
        sum(logits.float().sum() for logits in outputs.values()).backward()

    def train_epoch(self, epoch: int) -> dict:
        """One epoch.

        Returns: figures for the log, over all processes: lr, the epoch's highest; {task}_loss; gender_acc,
            emotion_acc in percent.
        Raises: DataError where a loss is no number.
        """
        args, rates = self.args, []
        self.size = size_at(epoch, args)
        # loss, right, known by task
        sums = torch.zeros((len(self.weights), 3), dtype=torch.float64, device=self.device)
        step_losses = torch.zeros(self.steps, device=self.device)
        self.network.train()
        batches = datasets.batches(self.faces, args.samples, args.batch_size, models.DRAWS, args.seed, epoch,
                                   self.share)
        shown = datasets.progress(batches, self.steps, f"epoch {epoch}", args.batch_size, self.share)
        for step, batch in enumerate(shown):
            rates.append(args.lr if args.constant else
                         rate_at((epoch - 1) * self.steps + step, args.epochs * self.steps, args.lr))
            step_losses[step] = self.step(batch, rates[-1], sums)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == self.steps:
                self.check(step_losses, epoch)
        if self.share.world > 1:
            dist.all_reduce(sums)
        figures = {"lr": max(rates)}
        for task, (total, right, known) in zip(self.weights, sums.tolist()):
            figures[f"{task}_loss"] = total / max(known, 1)    # of a few samples, none may have the label
            if task != "age":
                figures[f"{task}_acc"] = 100 * right / max(known, 1)
        return figures

    def ask_teachers(self) -> None:
        """Have the teachers predict every face, once: by task the mean of their soft targets, (n, classes).
        Raises DataError where a prediction is no number.
        """
        known_by = collections.Counter(task for teacher in self.teachers for task in teacher.tasks)
        for teacher in self.teachers:
            with self.autocast(teacher.size):
                told = evaluate.predict(teacher.model.to(self.device), self.faces, teacher.size,
                                        teacher.tasks, self.device, share=self.share, grey=teacher.grey)
            for task, logits in told.logits.items():
                if not torch.isfinite(logits).all():
                    raise DataError(f"--teacher {teacher.file}: its predictions are no numbers")
                targets = models.soft_targets(logits).to(self.device) / known_by[task]
                self.targets[task] = self.targets.get(task, 0) + targets

    def step(self, batch: datasets.Batch, rate: float, sums: torch.Tensor) -> torch.Tensor:
        """One step of the optimizer; the losses of its labels, right answers and known labels
        are added to `sums`. Returns its loss.
        """
        labels = datasets.labels_of(self.faces, batch.rows, self.device)
        outputs = self.forward(batch)
        of_labels = models.losses(outputs, labels)
        losses = models.distilled(of_labels, outputs, self.targets_of(batch.rows))
        # the mean over the whole step's images; times `world`, since DDP takes the mean over processes
        total = sum(weight * losses[task].sum() for task, weight in self.weights.items())
        loss = total / batch.total * self.share.world
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for i, task in enumerate(self.weights):
                sums[i, 0] += of_labels[task].sum()
                if task != "age":
                    sums[i, 1] += (outputs[task].argmax(1) == getattr(labels, task)).sum()
                sums[i, 2] += datasets.known(labels, task).sum()
        return loss.detach()

    def targets_of(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The soft targets of `rows`, by task."""
        if not self.targets:
            return {}
        index = torch.from_numpy(rows).to(self.device, non_blocking=True)
        return {task: targets[index] for task, targets in self.targets.items()}

    def forward(self, batch: datasets.Batch) -> dict[str, torch.Tensor]:
        """The network's outputs for a batch, augmented."""
        images = datasets.gather(self.faces, batch.rows, self.device)
        inputs = models.augment(images, self.size, batch.draws.to(self.device, non_blocking=True))
        with self.autocast(self.size):
            return self.network(inputs, tuple(self.weights))

    def autocast(self, size: int) -> torch.autocast:
        """The context in which images of `size` pixels are computed fast."""
        # of a single pixel, which 16 pixels shrink to, oneDNN's bfloat16 gradients are undefined (torch
        # 2.14)
        enabled = self.precision is not torch.float32 and size > 16
        return torch.autocast(self.device.type, self.precision, enabled=enabled)

    def check(self, step_losses: torch.Tensor, epoch: int) -> None:
        """Raise DataError where a step's loss, in any process, is no number."""
        summed = step_losses.clone()
        if self.share.world > 1:            # so that no process goes on alone
            dist.all_reduce(summed)
        if not torch.isfinite(summed).all():
            wrong = int((~torch.isfinite(summed)).nonzero()[0])
            raise DataError(f"the loss is no number at step {wrong + 1} of {self.steps} in epoch {epoch}; "
                            f"last.pth is that of epoch {epoch - 1}, a lower --lr may help")

    def share_statistics(self) -> None:
        """Give all processes the first one's BatchNorm statistics; each has kept its own."""
        if self.share.world > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)

    def state(self) -> dict:
        """What of the training, beside the model, a resumed run needs."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, content: dict, file: Path) -> None:
        """Take over the state of a checkpoint. Raises CheckpointError where it does not fit this network.

        Only the tensors are the file's: the optimizer's settings are this run's.
        """
        models.load_state(self.model, content["model"], file)
        load_momentum(self.optimizer, content["training"]["optimizer"].get("state"), file)
        load_scale(self.scaler, content["training"].get("scaler"))


def train(run: "Run", trainer: Trainer, valid: Faces, rows: dict[str, int]) -> None:
    """The epochs that the run still lacks, each judged, logged and saved."""
    tasks = list(trainer.weights)
    for epoch in range(run.epoch + 1, trainer.args.epochs + 1):
        run.epoch = epoch
        figures = trainer.train_epoch(epoch)
        trainer.share_statistics()
        predictions = evaluate.predict(trainer.model, valid, trainer.size, tasks, trainer.device,
                                       share=trainer.share)
        metrics = evaluate.score(valid, predictions)
        check_losses(metrics, epoch)
        figures |= {name if name == "age_mae" else f"val_{name}": value for name, value in metrics.items()}
        for line in evaluate.epoch_lines({"epoch": epoch, **figures}):
            run.log(line)
        error = evaluate.mean_error(metrics)
        better, run.best = error < run.best, min(error, run.best)
        temperatures = evaluate.calibrate(valid, predictions) if trainer.share.rank == 0 else {}
        content = content_of(trainer, epoch, metrics, temperatures)
        run.save(content, training_of(trainer, rows), better)


def check_losses(metrics: dict, epoch: int) -> None:
    """Raise DataError where a loss on the valid part is no number, since the epoch's last step broke the
    weights.
    """
    if wrong := [task for task in TASKS if not math.isfinite(metrics.get(f"{task}_loss", 0))]:
        raise DataError(f"after epoch {epoch} the {wrong[0]} loss on the valid part is no number; "
                        f"last.pth is that of epoch {epoch - 1}, a lower --lr may help")


def rate_at(step: int, steps: int, highest: float) -> float:
    """The learning rate of a step, of `steps` from 0 on: a linear warm-up, then a cosine to 0."""
    warm = max(1, int(steps * WARM_UP))
    return highest * min((step + 1) / warm,
                         (1 + math.cos(math.pi * max(0, step + 1 - warm) / (steps + 1 - warm))) / 2)


def size_at(epoch: int, args: argparse.Namespace) -> int:
    """The side in pixels of an epoch's images, epochs counted from 1 on: smaller at first, which costs less.

    A network works well only at the size that it was trained at last: one of 64 pixels fell from 56 to 41 %
    of emotions at 96. So each epoch is judged at its own size.
    """
    if args.constant or epoch > int(SMALLER_EPOCHS * args.epochs):
        return args.image_size
    return max(16, round(SMALLER_SIDE * args.image_size / 16) * 16)


def make_optimizer(model: models.FaceNet, rate: float, decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weights decay, biases and BatchNorm's parameters don't."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() > 1], "weight_decay": decay},
              {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, rate, momentum=MOMENTUM, nesterov=True, fused=True)
    # of a first step that GradScaler skips, fused SGD keeps uninitialised momentum
    for parameter in trained:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


# ---- teachers ---------------------------------------------------------------------------------------------

class Teacher(NamedTuple):
    """A trained network whose predictions are learned."""
    file: str
    digest: str                             # of the file's bytes
    model: models.FaceNet
    size: int                               # pixels of its images
    tasks: list[str]                        # which it teaches
    grey: bool                              # it sees the faces without their colours


def open_teachers(args: argparse.Namespace) -> list[Teacher]:
    """The networks that --teacher names. Raises DataError where one does not fit the run.

    A task whose sets are all grey, as emotion's is, is taught from grey faces: a network that knows such a
    task and others is there twice.
    """
    coloured = {task for source in datasets.SOURCES if not source.grey for task in source.tasks}
    teachers = []
    for file in args.teacher:
        model, content = models.open_checkpoint(Path(file))
        tasks = [task for task in trained_tasks(args) if task in content["tasks"]]
        if not tasks:
            raise DataError(
                f"--teacher {file}: trained for {' and '.join(content['tasks'])} alone, whose weights are 0")
        if (content.get("detected") is True) != args.detect:
            raise DataError(f"--teacher {file}: trained {'without' if args.detect else 'with'} --detect, "
                            "on faces that are framed otherwise than this run's")
        if content.get("drawn") is True and not args.drawn:
            raise DataError(f"--teacher {file}: trained on drawn faces, so it knows nothing of photos")
        digest = hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
        for grey in (False, True):
            if taught := [task for task in tasks if (task not in coloured) == grey]:
                teachers.append(Teacher(file, digest, model, content["image_size"], taught, grey))
    return teachers


def digests_of(teachers: list[Teacher]) -> list[str]:
    """What tells whether teachers are the same, wherever their files lie."""
    return [teacher.digest for teacher in teachers]


# ---- a run on disk ----------------------------------------------------------------------------------------

class Run:
    """A run on disk: its folder with last.pth and best.pth, its log,
    and a lock that keeps other processes out.

    Each process has a Run, but only the first one's has a folder and writes.
    """

    def __init__(self, folder: Path | None = None, log: Path | None = None):
        self.folder, self.log_file, self.lines, self.lock = folder, log, None, None
        self.best, self.epoch = math.inf, 0     # the least mean error so far; the epoch in progress

    def begin(self, args: argparse.Namespace) -> None:
        """Make the run's folder and log, named for now;
        a run of the same second gets a number behind its name.

        Raises: DataError, where they can't be made.
        """
        name = f"{datetime.now():%Y%m%d-%H%M%S}_{'+'.join(args.split)}_{'-'.join(as_text(args.weights))}"
        try:
            for folder in (args.logs, args.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            for again in itertools.count(1):
                self.folder = args.checkpoints / (name + f"-{again}" * (again > 1))
                self.log_file = args.logs / f"{self.folder.name}.txt"
                if self.log_file.exists():
                    continue
                with contextlib.suppress(FileExistsError):  # another process was as quick
                    self.folder.mkdir()
                    self.claim()
                    self.lines = open(self.log_file, "x", encoding="utf-8", errors="backslashreplace")
                    return
        except OSError as error:
            raise DataError(f"{error.filename}: can't be written ({error.strerror}); "
                            "--logs and --checkpoints name other folders") from None

    @classmethod
    def resume(cls, file: Path, logs: Path) -> "Run":
        """The run of a last.pth, locked against other processes. Raises DataError."""
        folder = file.parent
        run = cls(folder, logs / f"{folder.resolve().name}.txt")
        run.claim()
        return run

    def claim(self) -> None:
        """Keep other processes out of the run, where the file system has locks.
        Raises DataError where one is in it.
        """
        try:
            self.lock = open(self.folder / ".lock", "w")
            datasets.locked(self.lock, wait=False)
        except BlockingIOError:
            raise DataError(
                f"{self.folder}: another process is still training this run; stop it first") from None
        except OSError as error:
            raise DataError(f"{self.folder}: can't be written ({error.strerror})") from None

    def open_log(self, content: dict) -> None:
        """Open a resumed run's log, cut back to what it was when the checkpoint was saved. Raises DataError.
        """
        size = content["training"]["log_size"]
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            if self.log_file.exists():
                self.check_log(content["settings"])
            self.lines = open(self.log_file, "a", encoding="utf-8", errors="backslashreplace")
            if self.log_file.stat().st_size > size:
                os.truncate(self.log_file, size)
        except OSError as error:
            raise DataError(
                f"{self.log_file}: can't be written ({error.strerror}); --logs names another folder"
            ) from None

    def check_log(self, settings: dict) -> None:
        """Raise DataError where the log does not begin as this run's, so that no other file is cut."""
        with open(self.log_file, encoding="utf-8", errors="replace") as lines:
            # the first line may be "resumed after ..."
            head = [lines.readline(100_000).rstrip("\n") for _ in range(2)]
        texts = [stamped[1] for line in head if (stamped := evaluate.STAMPED.fullmatch(line))]
        command = next((text for text in texts if text.startswith("train.py ")), "")
        options = evaluate.parse_command(command)
        if any(comparable(options.get(name, [])) != comparable(as_text(settings[name]))
               for name in ("split", "weights", "epochs", "seed")):
            raise DataError(
                f"{self.log_file}: not the log of this run; move it away, or name another folder by --logs")

    def log(self, text: str) -> None:
        """Write a line with the time to the log and the terminal. Raises DataError."""
        if self.folder is None:
            return
        line = f"[{datetime.now():%d.%m.%Y %H:%M:%S}] {text}"
        try:
            print(line, file=self.lines, flush=True)
        except OSError as error:
            raise DataError(
                f"{self.log_file}: can't be written ({error.strerror}); then {self.how_to_go_on()}"
            ) from None
        print(line, flush=True)

    def how_to_go_on(self) -> str:
        """What a user types to go on with the run."""
        return f"go on with: python train.py --resume {shlex.quote(str(self.folder / 'last.pth'))}"

    def save(self, content: dict, training: dict, better: bool) -> None:
        """Save the run as it is after an epoch: last.pth, with what going on needs, and best.pth,
        if it is the best so far.
        """
        if self.folder is None:
            return
        try:
            if better:
                models.write_checkpoint(content, self.folder / "best.pth")
            training = {**training, "best": self.best, "log_size": self.log_file.stat().st_size}
            models.write_checkpoint({**content, "training": training}, self.folder / "last.pth")
        except DataError as error:
            advice = f"; {self.how_to_go_on()}" if (self.folder / "last.pth").exists() else ""
            raise DataError(f"{error}{advice}") from None

    def is_finished(self, epochs: int) -> bool:
        """Whether last.pth is of the last epoch."""
        last = self.folder and models.read_checkpoint(self.folder / "last.pth")
        return last is not None and last["epoch"] == epochs


def settings_of(args: argparse.Namespace) -> dict:
    """What a resumed run must keep."""
    return {name: getattr(args, name) for name in SETTINGS}


def count_rows(tables: tuple[Faces, Faces]) -> dict[str, int]:
    """How many faces of each part there are, by name."""
    return {part.name: int((table.part == number).sum())
            for table in tables for number, part in enumerate(table.parts)}


def content_of(trainer: Trainer, epoch: int, metrics: dict, temperatures: dict[str, float]) -> dict:
    """What a checkpoint tells: the model, and all that using it needs."""
    args = trainer.args
    figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return {
        "model": trainer.model.state_dict(), "tasks": list(trainer.weights), "image_size": trainer.size,
        "decoded_size": args.image_size, **models.description(), "temperatures": temperatures,
        "drawn": args.drawn, "detected": args.detect, "epoch": epoch, "metrics": figures,
        "settings": settings_of(args)
    }


def training_of(trainer: Trainer, rows: dict[str, int]) -> dict:
    """What last.pth holds beyond best.pth, for --resume."""
    args = trainer.args
    folders = {"data": args.data, "cache": args.cache and str(args.cache), "logs": str(args.logs),
               "device": args.device, "teacher": args.teacher}
    return {**trainer.state(), "rows": rows, "folders": folders, "teachers": digests_of(trainer.teachers)}


def log_settings(run: Run, trainer: Trainer, tables: tuple[Faces, Faces], notes: list[str]) -> None:
    """Write what the run is: its command line, machine, sets, what is left out,
    and `notes` on how it begins.
    """
    args = trainer.args
    command = as_arguments({"data": args.data, **settings_of(args), "teacher": args.teacher})
    run.log(datasets.one_line(shlex.join(["train.py", *command])))
    device, world = trainer.device, trainer.share.world
    kind = (f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu"
            else torch.cuda.get_device_name(device))
    precision = str(trainer.precision).removeprefix("torch.")
    run.log(f"torch {torch.__version__}, {kind}, {precision}, {world} process{'es' * (world > 1)}")
    sizes = [size_at(epoch, args) for epoch in range(1, args.epochs + 1)]
    smaller = f"{sizes[0]} pixels up to epoch {sizes.count(sizes[0])}, then " * (sizes[0] != sizes[-1])
    run.log(f"images of {smaller}{sizes[-1]} pixels; weight decay {args.decay:g}")
    if args.drawn:
        run.log(evaluate.DRAWN_NOTE)
    for table in tables:
        for number, part in enumerate(table.parts):
            rows = table.only(number)
            for line in [datasets.describe(rows, part.name)[0], *datasets.left_out(rows)]:
                run.log(datasets.one_line(line))
    for note in notes:
        run.log(datasets.one_line(note))


def prepare_run(resumed: dict | None, trainer: Trainer) -> tuple[Run, list[str]]:
    """A run, resumed or yet to begin, its model with what the command line names, and lines for the log on
    that.

    All that can be wrong with it is told here, before anything is decoded. Raises DataError.
    """
    args, first = trainer.args, trainer.share.rank == 0
    trainer.teachers = open_teachers(args)
    teaching = [f"{teacher.file}: teaches {' and '.join(teacher.tasks)}" + ", from grey faces" * teacher.grey
                for teacher in trainer.teachers]
    if resumed:
        if not models.same_plain(resumed["training"].get("teachers", []), digests_of(trainer.teachers)):
            raise DataError("--teacher: other files than those that the run began with; name those, or none "
                            "if it had none")
        run = Run.resume(args.resume, args.logs) if first else Run()
        again = models.read_checkpoint(args.resume)
        if again["epoch"] != resumed["epoch"]:
            raise DataError(f"{args.resume}: another process was still training this run; start again")
        trainer.load_state(resumed, args.resume)
        run.best, run.epoch = resumed["training"]["best"], resumed["epoch"]
        notes = [f"resumed after epoch {run.epoch}", *teaching]
        if not NEWER_SETTINGS.keys() <= again["settings"].keys():
            notes.append("begun by an earlier version; from here on, the age loss widens with the label's "
                         "spread, and images are smaller at first")
        return run, notes
    if args.pretrained is None:
        return Run(), teaching
    return Run(), [models.load_weights(trainer.model, args.pretrained), *teaching]


def start_run(run: Run, resumed: dict | None, trainer: Trainer, tables: tuple[Faces, Faces],
              rows: dict[str, int], notes: list[str]) -> None:
    """Begin the run on disk, or go on with it, and log what it is.

    A new run is saved at once, so that a folder that can't be written is found out now.
    """
    if trainer.share.rank > 0:
        return
    if resumed:
        run.open_log(resumed)
    else:
        run.begin(trainer.args)
    log_settings(run, trainer, tables, notes)
    if not resumed:
        run.save(content_of(trainer, 0, {}, {}), training_of(trainer, rows), False)


def load_momentum(optimizer: torch.optim.SGD, state: object, file: Path) -> None:
    """Give the optimizer the momentum in `state`, a file's. Raises CheckpointError where it does not fit."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(state, dict) or state and state.keys() != set(range(len(parameters))):
        raise models.CheckpointError(f"{file}: its optimizer is not this network's")
    for i, parameter in enumerate(parameters if state else []):
        buffer = state[i].get("momentum_buffer") if isinstance(state[i], dict) else None
        models.check_tensor(buffer, parameter, f"{file}: momentum {i}")
        optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)


def load_scale(scaler: torch.amp.GradScaler, state: object) -> None:
    """Give the scaler the scale in `state`, a file's, where that is sound and used."""
    state = state if isinstance(state, dict) else {}
    scale, growth = state.get("scale"), state.get("_growth_tracker")
    sound = type(scale) is float and 0 < scale < math.inf and type(growth) is int
    if scaler.is_enabled() and sound:
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": growth})


# ---- the command line -------------------------------------------------------------------------------------

def make_parser() -> datasets.Parser:
    """The options of this script."""
    parser = datasets.Parser(__doc__)
    parser.add_argument("--split", nargs="+", choices=datasets.SPLITS, default=["cvpr2016", "fer2013"],
                        help="what to train on (default: cvpr2016 fer2013)")
    parser.add_argument(
        "--rehearse", nargs="+", choices=datasets.SPLITS, default=[],
        help="train on these too, but don't judge by them: against forgetting what pretraining taught")
    parser.add_argument(
        "--weights", nargs=len(TASKS), type=datasets.in_range(float, 0), default=[1.0, 1.0, 1.0],
        metavar=("AGE", "GENDER", "EMOTION"),
        help="weights of the losses; a task of weight 0 is left out, its data are not read (default: 1 1 1)")
    parser.add_argument("--pretrained", metavar="FILE",
                        help="weights to begin with, this project's or anybody's; what fits is loaded")
    parser.add_argument(
        "--teacher", nargs="+", default=[], metavar="FILE",
        help="checkpoints of this project whose predictions are learned beside the labels, and where a face "
        "has none; several for the same task are averaged")
    parser.add_argument("--resume", type=Path, metavar="FILE",
                        help="last.pth of a run to go on with, under its settings")
    parser.add_data()
    parser.add_image_size()
    parser.add_detect("find the faces in the sets' pictures first, and frame all alike")
    parser.add_argument(
        "--samples", type=datasets.in_range(int, 1, 10_000_000), metavar="N",
        help="images an epoch draws of sets that share a task; a smaller set is repeated (default: as many "
        f"as there are, {datasets.EPOCH_IMAGES} at most; {SAMPLE_IMAGES} for the sample)")
    parser.add_argument("--epochs", type=datasets.in_range(int, 1, 100_000), metavar="N",
                        help=f"default: {EPOCHS}; {FINE_TUNING_EPOCHS} with --pretrained")
    parser.add_argument("--batch-size", type=datasets.in_range(int, 2, 1_000_000), metavar="N",
                        default=BATCH_SIZE,
                        help=f"images a step, over all tasks and processes (default: {BATCH_SIZE})")
    parser.add_argument(
        "--lr", type=datasets.in_range(float, 1e-12), metavar="RATE",
        help="highest learning rate, reached after a warm-up and lowered to 0 along a cosine, or --constant "
        f"(default: {LEARNING_RATE}, or {FINE_TUNING_RATE} with --pretrained, "
        f"times --batch-size / {BATCH_SIZE})")
    parser.add_argument(
        "--decay", type=datasets.in_range(float, 0), metavar="DECAY",
        help="weight decay (L2), which biases and BatchNorm's parameters don't have "
        f"(default: {DECAY}; {FINE_TUNING_DECAY} with --pretrained)")
    parser.add_argument("--constant", action="store_true",
                        help="keep the learning rate and the images' size, as the original recipe does "
                        "(default: the rate falls, and images are smaller in the first "
                        f"{100 * SMALLER_EPOCHS:.0f} %% of the epochs)")
    parser.add_argument("--seed", type=datasets.in_range(int, 0, 2 ** 63 - 1), default=0, metavar="N",
                        help="same seed, same log on the CPU (default: 0)")
    parser.add_argument(
        "--without-copies", action="store_true",
        help="leave out of training the pictures that are, pixel by pixel, also in valid or test")
    parser.add_argument("--device", metavar="NAME",
                        help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument(
        "--compile", action="store_true",
        help="torch.compile the network; slow to start, worth it for long runs; needs a C compiler and "
        "Python's headers")
    parser.add_argument("--logs", type=Path, default="logs", metavar="DIR",
                        help="where the log goes (default: logs)")
    parser.add_argument("--checkpoints", type=Path, default="checkpoints", metavar="DIR",
                        help="where RUN/last.pth and best.pth go (default: checkpoints)")
    return parser


def parse_arguments() -> tuple[argparse.Namespace, dict | None]:
    """The settings and, with --resume, the checkpoint's content, whose settings then are the defaults.
    Raises DataError.
    """
    parser = make_parser()
    args, resumed = parser.parse_args(), None
    if args.resume is not None:
        resumed = read_resumed(args.resume)
        settings = {**resumed["training"]["folders"], **resumed["settings"]}
        args = parser.parse_args(as_arguments(settings) + sys.argv[1:])         # what is said again, wins
        if other := [name for name in SETTINGS if getattr(args, name) != settings[name]]:
            name, value = other[0], getattr(args, other[0])
            raise DataError(f"--{name.replace('_', '-')} is {value}, the run's is {settings[name]}; "
                            "leave it out to go on with the run, or begin a new one with --pretrained")
        if resumed["epoch"] >= args.epochs:
            raise DataError(
                f"{args.resume}: the run is finished, at epoch {resumed['epoch']} of {args.epochs}")
    args.split, args.rehearse = list(dict.fromkeys(args.split)), list(dict.fromkeys(args.rehearse))
    if twice := [split for split in args.rehearse if split in args.split]:
        parser.error(f"--rehearse {twice[0]}: --split has it already")
    if not any(args.weights):
        parser.error("--weights: all are 0; expected at least one above 0, such as 1 0 0 for age alone")
    check_labels(args)
    if args.detect:
        datasets.detector()
    for folder in (args.logs,) if resumed else (args.logs, args.checkpoints):
        datasets.check_folder(folder)
    args.root, args.cache_folder = datasets.folders(args)
    args.drawn = datasets.is_drawn(args.root)
    args.image_size = datasets.image_size(args.image_size, args.root)
    tuned = args.pretrained is not None
    args.epochs = args.epochs or (FINE_TUNING_EPOCHS if tuned else EPOCHS)
    rate = (FINE_TUNING_RATE if tuned else LEARNING_RATE) * args.batch_size / BATCH_SIZE
    args.lr = args.lr or float(f"{rate:.3g}")               # 0.3, not 0.30000000000000004
    if args.decay is None:
        args.decay = FINE_TUNING_DECAY if tuned else DECAY
    args.samples = args.samples or (SAMPLE_IMAGES if args.drawn and not resumed else None)
    return args, resumed


def check_labels(args: argparse.Namespace) -> None:
    """Raise DataError where the splits don't have what the weights ask for."""
    tasks = trained_tasks(args)
    for task in tasks:
        if not any(task in datasets.SPLITS[split] for split in args.split):
            raise DataError(
                f"--split {' '.join(args.split)} has no labels for {task}, whose weight is not 0")
    for split in args.rehearse:
        if not set(tasks) & set(datasets.SPLITS[split]):
            raise DataError(
                f"--rehearse {split} has labels for {' and '.join(datasets.SPLITS[split])} alone, "
                "whose weights are 0")


def trained_tasks(args: argparse.Namespace) -> list[str]:
    """The tasks whose weight is not 0."""
    return [task for task, weight in zip(TASKS, args.weights) if weight]


def read_resumed(file: Path) -> dict:
    """The content of a run's last.pth, all of its settings there and plain. Raises CheckpointError."""
    content = models.read_checkpoint(file)
    training = content.get("training")
    if not isinstance(training, dict):
        raise models.CheckpointError(
            f"{file}: has no training state to go on from; expected a run's last.pth")
    expected = ((content, {"model": dict, "epoch": int, "settings": dict}),
                (training,
                 {"optimizer": dict, "best": float, "rows": dict, "folders": dict, "log_size": int}))
    lacking = [name for part, kinds in expected for name, kind in kinds.items()
               if not isinstance(part.get(name), kind) or isinstance(part.get(name), bool)]
    if not lacking:
        newer = {**NEWER_SETTINGS, "decay": saved_decay(training["optimizer"])}
        content["settings"] = {**newer, **content["settings"]}
        lacking = [name for name in SETTINGS if name not in content["settings"]]
    if lacking:
        raise models.CheckpointError(f"{file}: has no {', '.join(lacking)}; expected a run's last.pth")
    if math.isnan(training["best"]):        # an earlier version took an epoch without figures for the best
        training["best"] = math.inf
    if type(content["settings"]["epochs"]) is not int:
        raise models.CheckpointError(f"{file}: has no epochs; expected a run's last.pth")
    if not all(type(name) is str and type(count) is int for name, count in training["rows"].items()):
        raise models.CheckpointError(f"{file}: has no rows; expected a run's last.pth")
    for name, value in {**training["folders"], **content["settings"]}.items():
        if name not in (*NAMED_ANEW, *SETTINGS):
            raise models.CheckpointError(f"{file}: tells --{name}, which a run does not have")
        plain = (int, float, bool, type(None))
        if not all(type(each) in plain or type(each) is str and not each.startswith("-")
                   for each in (value if isinstance(value, list) else [value])):
            raise models.CheckpointError(
                f"{file}: its {reprlib.repr(name)} is {reprlib.repr(value)}; expected a run's last.pth")
    if content["epoch"] < 0 or training["log_size"] < 0:
        raise models.CheckpointError(
            f"{file}: an epoch of {content['epoch']}, a best error of {training['best']}, a log of "
            f"{training['log_size']} bytes; expected a run's last.pth")
    return content


def saved_decay(optimizer: dict) -> float | None:
    """The weight decay in an optimizer's state; runs that began before --decay have it there alone."""
    groups = optimizer.get("param_groups")
    group = groups[0] if isinstance(groups, list) and groups else None
    decay = group.get("weight_decay") if isinstance(group, dict) else None
    return decay if type(decay) is float and 0 <= decay < math.inf else None


def as_text(value: object) -> list[str]:
    """A setting's value as the command line's words."""
    values = value if isinstance(value, list) else [value]
    return [f"{each:g}" if isinstance(each, float) and each == float(f"{each:g}") else str(each)
            for each in values]


def comparable(words: list[str]) -> list[str]:
    """Words of a command line, numbers to six digits, as earlier versions wrote them."""
    numbers = map(datasets.parse_number, words)
    return [word if math.isnan(number) else f"{number:g}" for word, number in zip(words, numbers)]


def as_arguments(settings: dict) -> list[str]:
    """Settings as the command line that gives them, without those that are None, False or an empty list."""
    words = []
    for name, value in settings.items():
        if value is not None and value is not False and value != []:
            words += [f"--{name.replace('_', '-')}", *(as_text(value) if value is not True else [])]
    return words


def processes() -> Share:
    """Which of torchrun's processes this is. Raises DataError where the environment does not say it soundly.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    told = {name: os.environ[name] for name in names if name in os.environ}
    if not told:
        return Share()
    needed = ("RANK", "WORLD_SIZE") + ("MASTER_ADDR", "MASTER_PORT") * (told.get("WORLD_SIZE") != "1")
    lacking = [name for name in needed if name not in os.environ]
    if lacking or not all(re.fullmatch("[0-9]{1,6}", value) for value in told.values()) \
            or not int(told["RANK"]) < int(told["WORLD_SIZE"]) \
            or not int(told.get("LOCAL_RANK", 0)) < int(told.get("LOCAL_WORLD_SIZE", told["WORLD_SIZE"])):
        given = " ".join(f"{name}={value}" for name, value in told.items())
        without = f" without {', '.join(lacking)}" * bool(lacking)
        raise DataError(f"{given}{without}: not what torchrun sets; "
                        "start several processes with torchrun, or unset these")
    return Share(int(told["RANK"]), int(told["WORLD_SIZE"]))


def choose_device(args: argparse.Namespace, share: Share) -> torch.device:
    """The process's device; under torchrun, each has a GPU of its own where there are any. Raises DataError,
    also where --compile would fail on it.
    """
    device = args.device
    if share.world > 1 and (device or "cuda").startswith("cuda") and torch.cuda.is_available():
        count = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if count > torch.cuda.device_count():
            raise DataError(f"--nproc-per-node={count}: this host has {torch.cuda.device_count()} GPU(s); "
                            "expected a process each, or --device cpu")
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = models.pick_device(device)
    models.compute_alike()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if args.compile:
        check_compiler(device)
    return device


def join_processes(trainer: Trainer, rows: dict[str, int], epoch: int) -> None:
    """Wait for the other processes.

    Raises: ConnectionError where they can't be reached; DataError where one has other faces, settings or
        epochs behind it, or alone scales its gradients: their steps would not match.
    """
    own = {"faces": rows, "epoch": epoch, "scaled gradients": trainer.scaler.is_enabled(),
           "teachers": digests_of(trainer.teachers),
           **settings_of(trainer.args), "pretrained": None}     # which may lie elsewhere on each host
    backend = "nccl" if trainer.device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=LONGEST_DECODING)
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(f"the other processes can't be reached: {error}") from None
    told = [None] * trainer.share.world
    dist.all_gather_object(told, own)
    for other in told:
        for name, value in own.items():
            if other[name] != value:
                raise DataError(f"the processes differ in their {name}, {value} and {other[name]}; start "
                                "all with the same command, data, last.pth and kind of GPU")


def check_compiler(device: torch.device) -> None:
    """Raise DataError where torch.compile does not work, which it tells only as it is used."""
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(8, device=device))
    except Exception as error:                              # each of its parts has its own
        raise DataError("--compile: does not work here, it needs a C compiler and Python's headers "
                        f"({datasets.one_line(error)[:100]})") from None


def load_faces(args: argparse.Namespace, share: Share) -> tuple[Faces, Faces]:
    """What is trained on and what is judged by; what is rehearsed is for training alone. Raises DataError.
    """
    tasks = trained_tasks(args)
    faces, valid = (datasets.load(args.root, splits, subset, tasks, args.image_size, args.cache_folder,
                                  args.detect)
                    for splits, subset in ((args.split + args.rehearse, "train"), (args.split, "valid")))
    if args.without_copies:
        faces = datasets.without_copies(faces, [valid, *load_held_out(args, tasks)])
    for part, subset in ((faces, "train"), (valid, "valid")):
        for task in tasks:
            if not part.known(task).any():
                raise DataError(
                    f"--split {' '.join(args.split)}: no face of known {task} in its {subset} part")
    total = sum(datasets.pools(faces, args.samples).values())
    if total // math.ceil(total / args.batch_size) < 2 * share.world:           # of the smallest step
        raise DataError(f"--batch-size and the images of an epoch: at least 2 for each of "
                        f"{share.world} process{'es' * (share.world > 1)} are needed")
    return faces, valid


def load_held_out(args: argparse.Namespace, tasks: list[str]) -> list[Faces]:
    """The test parts of all splits and the valid parts of the rehearsed ones, as far as they are on disk."""
    tables = []
    parts = [(split, "test") for split in args.split + args.rehearse]
    for split, subset in parts + [(split, "valid") for split in args.rehearse]:
        if not set(tasks) & set(datasets.SPLITS[split]):
            continue
        with contextlib.suppress(datasets.Missing):
            table, _ = datasets.read(args.root, [split], subset, tasks, args.cache_folder)
            tables.append(datasets.decode(table, args.image_size, args.cache_folder, args.detect))
    return tables


def main() -> int | None:
    share = processes()
    args, resumed = parse_arguments()
    device = choose_device(args, share)
    trainer = Trainer(args, device, share)
    run, notes = prepare_run(resumed, trainer)
    tables = faces, valid = load_faces(args, share)
    rows = count_rows(tables)
    if resumed and rows != resumed["training"]["rows"]:
        raise DataError(f"{args.data}: its data changed since the run began, "
                        f"from {reprlib.repr(resumed['training']['rows'])} to {rows} faces")
    if share.world > 1:    # only now: while one process decodes, the others wait for the cache
        join_processes(trainer, rows, run.epoch)
    trainer.start(faces)
    valid = datasets.to_device(valid, device)
    start_run(run, resumed, trainer, tables, rows, notes)
    try:
        trainer.ask_teachers()
        train(run, trainer, valid, rows)
    except KeyboardInterrupt:
        if share.rank > 0:
            return 130
        if not run.is_finished(args.epochs):
            run.log(f"stopped in epoch {run.epoch}; {run.how_to_go_on()}")
            return 130
    if share.world > 1:
        dist.destroy_process_group()
    if share.rank == 0:
        best = run.folder / "best.pth"
        run.log(f"the best epoch is in {best}" if best.exists() else "no epoch had figures that are numbers")
    return None


if __name__ == "__main__":
    datasets.script(main, models.CheckpointError)
