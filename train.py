"""Train the network: age, gender and emotion together or alone.

    python train.py --data sample --epochs 3                                  try it, no download
    python train.py --split imdb-wiki --weights 1 1 0                         step 1: pretrain
    python train.py --weights 1 1 1 --pretrained checkpoints/RUN/best.pth     step 2: all three
    python train.py --weights 1 0 0 --pretrained checkpoints/RUN/best.pth     steps 3 to 5: one task alone
    python train.py ... --rehearse imdb-wiki                                  go on training on this set
    python train.py ... --teacher STEP1/best.pth STEP5/best.pth               learn their predictions, too
    python train.py --resume checkpoints/RUN/last.pth                         go on with a stopped run
    torchrun --nproc-per-node=4 -- train.py ...                               the same on several GPUs
"""
import argparse
import collections
import contextlib
import itertools
import math
import os
import shlex
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import datasets  # before torch: it says how OpenMP's threads wait
from datasets import TASKS, DataError, Faces, Part

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import evaluate
import model as models

# Defaults from scratch and with --pretrained, and what was measured (one run each). Epochs: step 1 in 60 4.92
# years, 92.8 %; in 24, of 64 images a step instead of 256, 5.38, 91.5 %. lr, the highest, is for steps of
# BATCH_SIZE images, in proportion to them (arXiv:1706.02677): emotion after six epochs 61.97 %, with 0.05
# 61.47 %. decay is of weights (L2): step 2 4.61 years, 94.4 %, 66.8 %; with 0.0025 4.69, 94.3, 65.6.
FROM_SCRATCH = {"epochs": 60, "lr": 0.05, "decay": 1e-3}
FINE_TUNING = {"epochs": 24, "lr": 0.02, "decay": 5e-4}
BATCH_SIZE = 64         # images a step
MOMENTUM = 0.9          # Nesterov's
WARM_UP = 1 / 20        # of the run's steps
SMALLER_EPOCHS = 0.6    # of the epochs, the first ones, see smaller images
SMALLER_SIDE = 2 / 3    # of the image size; 64 instead of 96 pixels halve a CPU's step
SAMPLE_IMAGES = 1000    # an epoch's, of the drawn sample

LONGEST_DECODING = timedelta(hours=12)      # for which processes wait for one that decodes
PLACES = ("data", "cache", "device")        # settings that may differ between hosts, and on resuming


# ---- the loop ---------------------------------------------------------------------------------------------

def train(run: "Run", trainer: "Trainer", valid: Faces) -> None:
    """The epochs that the run still lacks. Raises DataError where a loss is no number."""
    for epoch in range(run.epoch + 1, trainer.args.epochs + 1):
        run.epoch = epoch
        figures = trainer.train_epoch(epoch)
        predictions = evaluate.predict(trainer.model, valid, trainer.size, trainer.tasks, trainer.device,
                                       rank=trainer.rank, world=trainer.world)
        metrics = evaluate.score(valid, predictions)
        validated = {f"val_{name}".replace("val_age_mae", "age_mae"): metrics[name] for name in metrics}
        figures = {"epoch": epoch, **figures, **validated}
        if not math.isfinite(sum(figures.values())):
            raise DataError(f"epoch {epoch}: a loss is no number; last.pth is that of epoch {epoch - 1}, "
                            "a lower --lr may help")
        run.log(*evaluate.epoch_lines(figures))
        content = trainer.content(epoch, metrics, evaluate.calibrate(valid, predictions))
        run.save(content, evaluate.mean_error(metrics))


class Trainer:
    """The network in training, its optimizer, and the faces that it is trained on."""

    def __init__(self, args: argparse.Namespace, device: torch.device, rank: int = 0, world: int = 1):
        """`args` are the command line's; this is process `rank` of `world`."""
        self.args, self.device, self.rank, self.world = args, device, rank, world
        self.size = size_at(1, args)            # pixels of the last epoch's images
        self.weights = dict(zip(TASKS, args.weights))
        self.tasks = trained_tasks(args)
        self.targets = {}                       # of teachers, by task: (faces, classes)
        torch.manual_seed(args.seed)
        self.model = models.FaceAttributeNet()
        for task in TASKS:
            getattr(self.model, task).requires_grad_(task in self.tasks)
        self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, args.lr, args.decay)
        self.precision = models.fast_precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)

    def start(self, faces: Faces) -> None:
        """Get ready to train on `faces`."""
        self.faces = faces.to_device(self.device)
        images = sum(datasets.pools(faces, self.args.samples).values())
        self.steps = math.ceil(images / self.args.batch_size)
        self.network = self.model
        if self.args.compile:
            mode = {"cuda": "reduce-overhead"}.get(self.device.type)
            self.network = torch.compile(self.network, dynamic=False, mode=mode)
        if self.world > 1:
            # `train_epoch` broadcasts BatchNorm's running statistics at its end; no step reads them
            self.network = DistributedDataParallel(self.network, broadcast_buffers=False)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One epoch. Returns, over all processes, lr, the highest; {task}_loss; {task}_acc in percent."""
        args, first = self.args, (epoch - 1) * self.steps
        self.size = size_at(epoch, args)
        rates = [rate_at(first + step, args.epochs * self.steps, args) for step in range(self.steps)]
        batches = datasets.batches(self.faces, args.samples, args.batch_size, models.DRAWS,
                                   (args.seed, epoch), self.rank, self.world)
        shown = datasets.progress(batches, self.steps, f"epoch {epoch}", args.batch_size)
        # by task: loss, correct predictions, known labels
        sums = torch.zeros((len(self.tasks), 3), dtype=torch.float64, device=self.device)
        self.network.train()
        for batch, rate in zip(shown, rates):
            self.step(batch, rate, sums)
        if self.world > 1:
            dist.all_reduce(sums)
            for buffer in self.model.buffers():     # BatchNorm's running statistics, rank 0's
                dist.broadcast(buffer, 0)
        figures = {"lr": max(rates)}
        for task, (loss, correct, known) in zip(self.tasks, sums.tolist()):
            known = max(known, 1)               # of a few samples, none may have the label
            figures |= {f"{task}_loss": loss / known, f"{task}_acc": 100 * correct / known}
        return figures

    def step(self, batch: datasets.Batch, rate: float, sums: torch.Tensor) -> None:
        """One step of the optimizer; its losses, correct predictions and known labels are added to `sums`."""
        outputs = self.forward(batch)
        labels = self.faces.labels(batch.rows, self.device)
        of_labels = models.losses(outputs, labels)
        rows = torch.from_numpy(batch.rows).to(self.device, non_blocking=True)
        targets = {task: values[rows] for task, values in self.targets.items()}
        losses = models.distilled(of_labels, outputs, targets)
        total = sum(self.weights[task] * losses[task].sum() for task in self.tasks)
        # the mean over the step's images; DDP takes the mean over processes, hence times `world`
        loss = total / batch.total * self.world
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for i, task in enumerate(self.tasks):
            sums[i, 0] += of_labels[task].detach().sum()
            sums[i, 1] += (outputs[task].argmax(1) == labels[task]).sum()
            sums[i, 2] += datasets.known(labels[task]).sum()

    def forward(self, batch: datasets.Batch) -> dict[str, torch.Tensor]:
        """The network's outputs for a batch, augmented."""
        images = self.faces.gather(batch.rows, self.device)
        draws = batch.draws.to(self.device, non_blocking=True)
        inputs = models.augment(images, self.size, draws)
        with self.autocast(self.size):
            return self.network(inputs, tuple(self.tasks))

    def autocast(self, size: int) -> torch.autocast:
        """The context in which images of `size` pixels are computed in the fast precision."""
        # 16 pixels shrink to one, of which oneDNN's bfloat16 gradients are undefined (torch 2.14)
        fast = size > 16 and self.precision is not torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=fast)

    def content(self, epoch: int, metrics: dict, temperatures: dict[str, float]) -> dict:
        """A last.pth's content: the model, what using it needs, and what training on needs."""
        training = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return {"model": self.model.state_dict(), "tasks": self.tasks, "image_size": self.size,
                "decoded_size": self.args.image_size, **models.description(), "temperatures": temperatures,
                "epoch": epoch, "metrics": metrics, "training": training}

    def load(self, content: dict, file: Path) -> None:
        """Restore the training of a last.pth. Raises CheckpointError where the file does not fit."""
        models.load_state(self.model, content["model"], file)
        saved = content["training"]
        groups = self.optimizer.param_groups
        for i, parameter in enumerate(itertools.chain(*(group["params"] for group in groups))):
            momentum = saved["optimizer"]["state"][i]["momentum_buffer"]
            if momentum.shape != parameter.shape:
                raise models.CheckpointError(f"{file}: its momentum {i} is of another network")
            self.optimizer.state[parameter]["momentum_buffer"].copy_(momentum)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])


def rate_at(step: int, steps: int, args: argparse.Namespace) -> float:
    """The learning rate of a step, of `steps` from 0 on: a linear warm-up, then a cosine to 0."""
    if args.constant:
        return args.lr
    warm = max(1, int(steps * WARM_UP))
    progress = max(0, step + 1 - warm) / (steps + 1 - warm)
    return args.lr * min((step + 1) / warm, (1 + math.cos(math.pi * progress)) / 2)


def size_at(epoch: int, args: argparse.Namespace) -> int:
    """The side in pixels of an epoch's images, epochs counted from 1 on: smaller at first, which costs less.

    A network works well only at the size that it was trained at last: one of 64 pixels fell from 56 to 41 %
    of emotions at 96. So each epoch is validated at its size.
    """
    if args.constant or epoch > int(SMALLER_EPOCHS * args.epochs):
        return args.image_size
    return max(16, round(SMALLER_SIDE * args.image_size / 16) * 16)


def make_optimizer(model: torch.nn.Module, rate: float, decay: float) -> torch.optim.SGD:
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

# a line for the log; the network and its image size; the tasks that it teaches, and whether from grey faces
Teacher = collections.namedtuple("Teacher", ("note", "model", "size", "tasks", "grey"))


def open_teachers(args: argparse.Namespace) -> list[Teacher]:
    """The networks that --teacher names. Raises DataError where one does not fit the run."""
    # a task whose sources are all grey, as emotion's are, is taught from grey faces
    colored = {task for source in datasets.SOURCES if not source.grey for task in source.tasks}
    teachers = []
    for file in args.teacher:
        model, content = models.open_checkpoint(Path(file))
        tasks = set(trained_tasks(args)) & set(content["tasks"])
        if not tasks:
            raise DataError(f"--teacher {file}: its tasks {content['tasks']} have weight 0")
        if content["detected"] != args.detect:
            raise DataError(f"--teacher {file}: trained on faces that are framed otherwise; --detect must be "
                            "given for both or for none")
        for how, taught in ("", tasks & colored), (", from grey faces", tasks - colored):
            if taught:
                note = f"{file}: teaches {' and '.join(sorted(taught))}{how}"
                teachers.append(Teacher(note, model, content["image_size"], sorted(taught), bool(how)))
    return teachers


def ask_teachers(trainer: Trainer, teachers: list[Teacher]) -> dict[str, torch.Tensor]:
    """The mean of the teachers' soft targets for each face, by task: (faces, classes)."""
    targets = collections.defaultdict(list)
    for teacher in teachers:
        model = teacher.model.to(trainer.device)
        with trainer.autocast(teacher.size):
            predictions = evaluate.predict(
                model, trainer.faces, teacher.size, teacher.tasks, trainer.device,
                rank=trainer.rank, world=trainer.world, grey=teacher.grey)
        for task, logits in predictions.logits.items():
            targets[task].append(models.soft_targets(logits))
    return {task: (sum(each) / len(each)).to(trainer.device) for task, each in targets.items()}


# ---- a run on disk ----------------------------------------------------------------------------------------

class Run:
    """A run on disk: its log, and its folder with last.pth and best.pth. Rank 0 alone writes."""

    def __init__(self, rank: int = 0):
        self.rank, self.folder = rank, Path()
        self.epoch, self.best = 0, math.inf     # the epoch in progress; the least mean error so far
        self.about, self.rows = {}, {}          # for its checkpoints; each part's number of faces

    def begin(self, args: argparse.Namespace) -> None:
        """Make the folder and the log, named for now; runs of the same second get a number."""
        weights = "-".join(as_words(args.weights))
        name = f"{datetime.now():%Y%m%d-%H%M%S}_{'+'.join(args.split)}_{weights}"
        Path(args.logs).mkdir(parents=True, exist_ok=True)
        for number in itertools.chain([""], map("-{}".format, itertools.count(2))):
            self.folder = Path(args.checkpoints, name + number)
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(parents=True)
                self.open(Path(args.logs, f"{name}{number}.txt"), "x")
                return

    def reopen(self, file: Path, logs: str) -> dict:
        """Take up the run of a last.pth. Returns its content. Raises DataError."""
        self.folder = file.parent
        log = Path(logs, f"{self.folder.resolve().name}.txt")
        if self.rank == 0:
            if not log.is_file():
                raise DataError(f"{log}: not there; expected the run's log, start where the run began")
            self.open(log, "a")
        content = read_saved(file)              # locked, so that it is the last one
        self.epoch, self.best = content["epoch"], content["training"]["best"]
        return content

    def open(self, log: Path, mode: str) -> None:
        """Open the log, and keep other processes off the run where the file system has locks."""
        self.lines = open(log, mode, encoding="utf-8")
        try:
            import fcntl
            self.lock = open(self.folder / ".lock", "w")
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self.folder}: another process is training this run; stop it first") from None
        except (ImportError, OSError):
            pass

    def log(self, *lines: str) -> None:
        """Write lines with the time to the log and the terminal."""
        if self.rank == 0:
            now = f"[{datetime.now():%d.%m.%Y %H:%M:%S}]"
            text = "".join(f"{now} {line}\n" for line in lines)
            print(text, end="", file=self.lines, flush=True)
            print(text, end="", flush=True)

    def log_faces(self, *tables: Faces) -> None:
        """Count the faces of each part; log that, and what is left out."""
        for faces in tables:
            for number, part in enumerate(faces.parts):
                rows = replace(faces.keep(faces["part"] == number), parts=[part])
                self.rows[part.name] = len(rows)
                self.log(datasets.describe(rows, part.name)[0])
                self.log(*datasets.left_out(rows))

    def save(self, content: dict, error: float = math.inf) -> None:
        """Save last.pth, and without its training state best.pth where `error` is the least so far."""
        better, self.best = error < self.best, min(error, self.best)
        if self.rank > 0:
            return
        training = {**content.pop("training"), "best": self.best, "rows": self.rows}
        content |= self.about
        if better:
            models.save_checkpoint(content, self.folder / "best.pth")
        models.save_checkpoint({**content, "training": training}, self.folder / "last.pth")


def read_saved(file: Path) -> dict:
    """The content of a run's last.pth. Raises CheckpointError."""
    content = models.read_checkpoint(file)
    if "training" not in content:
        raise models.CheckpointError(f"{file}: has no training state; expected a run's last.pth")
    return content


def settings_lines(trainer: Trainer, settings: dict) -> list[str]:
    """The run's command line, its machine, and its images' sizes."""
    args, device = trainer.args, trainer.device
    words = ["train.py"]
    for name, value in settings.items():
        if str(value) not in ("None", "False", "[]"):
            words += [f"--{name.replace('_', '-')}", *as_words(value)]
    kind = f"CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    precision = str(trainer.precision).removeprefix("torch.")
    sizes = f"{args.image_size} pixels"
    if size_at(1, args) != args.image_size:
        last = int(SMALLER_EPOCHS * args.epochs)
        sizes = f"{size_at(1, args)} pixels up to epoch {last}, then {sizes}"
    return [shlex.join(words),
            f"torch {torch.__version__}, {kind}, {precision}, {trainer.world} process(es)",
            f"images of {sizes}; weight decay {args.decay:g}"]


def as_words(value: object) -> list[str]:
    """A setting as it is typed: 1, not 1.0; nothing behind a flag."""
    if isinstance(value, list):
        return sum(map(as_words, value), [])
    if isinstance(value, float):
        return [str(value).removesuffix(".0")]
    return [] if value is True else [str(value)]


# ---- the faces, and the processes -------------------------------------------------------------------------

def trained_tasks(args: argparse.Namespace) -> list[str]:
    """The tasks whose weight is not 0."""
    return [task for task, weight in zip(TASKS, args.weights) if weight]


def read_parts(args: argparse.Namespace) -> tuple[list[Part], list[Part]]:
    """The parts for training and for validation, not decoded. Raises DataError where one is not there."""
    root, _ = datasets.folders(args.data, args.cache)
    tasks, names = trained_tasks(args), args.split + args.rehearse
    train, gaps = datasets.read(root, names, "train", tasks)
    valid, more = datasets.read(root, args.split, "valid", tasks)
    for gap in gaps + more:
        raise gap
    if args.without_copies:
        held_out = []
        for subset in ("valid", "test"):
            with contextlib.suppress(datasets.Missing):
                held_out += datasets.read(root, names, subset, tasks)[0]
        train = [datasets.drop_copies(part, held_out) for part in train]
    return train, valid


def load_faces(args: argparse.Namespace, parts: tuple[list[Part], list[Part]], world: int) -> list[Faces]:
    """The faces of both `parts`. Raises DataError, also where they are too few.

    The first process of each host decodes, the others wait and read its cache.
    """
    _, cache = datasets.folders(args.data, args.cache)
    tasks = trained_tasks(args)
    waits = int(os.environ.get("LOCAL_RANK", 0)) > 0
    if waits:
        dist.barrier()
    tables = [datasets.load(each, tasks, args.image_size, cache, args.detect) for each in parts]
    if world > 1 and not waits:
        dist.barrier()
    for task, (faces, subset) in itertools.product(tasks, zip(tables, ("train", "valid"))):
        if not faces.known(task).any():
            raise DataError(f"--split {' '.join(args.split)}: no known {task} in its {subset} part")
    images = sum(datasets.pools(tables[0], args.samples).values())
    if images // math.ceil(images / args.batch_size) < 2 * world:           # of the smallest step
        raise DataError(f"a step needs at least 2 images for each of {world} process(es); expected a larger "
                        "--batch-size, or more images an epoch")
    return tables


def join_processes(args: argparse.Namespace, world: int) -> torch.device:
    """This process's device; torchrun's processes have a GPU each, where there are GPUs. Raises DataError."""
    device = models.pick_device(args.device)
    if world == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = {"cuda": "nccl"}.get(device.type, "gloo")
    dist.init_process_group(backend, timeout=LONGEST_DECODING)
    return device


def check_alike(ours: dict, world: int) -> None:
    """Raise DataError where another process has other values: their steps would not match."""
    gathered = [ours] * world
    if world > 1:
        dist.all_gather_object(gathered, ours)
    for theirs, name in itertools.product(gathered, ours):
        if theirs[name] != ours[name]:
            raise DataError(f"the processes differ in {name}: {ours[name]} and {theirs[name]}; start all "
                            "with the same command and data")


# ---- the command line -------------------------------------------------------------------------------------

def make_parser() -> datasets.Parser:
    """The options of this script."""
    parser = datasets.Parser(__doc__)
    parser.add_data("find the faces in the pictures first, and align them")
    parser.add_image_size()
    count, number = datasets.at_least(1), datasets.at_least(0, float)
    defaults = {name: f"(default: {value}; {FINE_TUNING[name]} with --pretrained)"
                for name, value in FROM_SCRATCH.items()}
    option = parser.add_argument
    option("--split", nargs="+", choices=datasets.DATASETS, default=["cvpr2016", "fer2013"],
           help="data sets to train on (default: cvpr2016 fer2013)")
    option("--rehearse", nargs="+", choices=datasets.DATASETS, default=[],
           help="train on these too, but don't validate on them: against forgetting the pretraining")
    option("--weights", nargs=len(TASKS), type=number, default=[1.0] * len(TASKS), metavar=TASKS,
           help="weights of the losses; a task of weight 0 is left out, its data are not read (default: 1)")
    option("--pretrained", metavar="FILE", help="weights to begin with, anybody's; what fits is loaded")
    option("--teacher", nargs="+", default=[], metavar="FILE",
           help="checkpoints whose predictions are learned beside the labels, averaged for each task")
    option("--resume", type=Path, metavar="FILE", help="last.pth of a run to go on with, under its settings")
    option("--samples", type=count, metavar="N",
           help="images an epoch draws of sets that share a task; a smaller set is repeated "
           f"(default: all, at most {datasets.EPOCH_IMAGES}; {SAMPLE_IMAGES} for the sample)")
    option("--epochs", type=count, metavar="N", help=defaults["epochs"])
    option("--batch-size", type=datasets.at_least(2), default=BATCH_SIZE, metavar="N",
           help=f"images a step, over all tasks and processes (default: {BATCH_SIZE})")
    option("--lr", type=datasets.at_least(1e-12, float), metavar="RATE",
           help=f"highest learning rate, for steps of {BATCH_SIZE} images {defaults['lr']}")
    option("--decay", type=number, metavar="DECAY", help=f"weight decay (L2) {defaults['decay']}")
    option("--constant", action="store_true", help="keep the learning rate and the images' size")
    option("--seed", type=datasets.at_least(0), default=0, metavar="N", help="default: 0")
    option("--without-copies", action="store_true", help="don't train on pictures of valid and test")
    option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    option("--compile", action="store_true", help="torch.compile the network; slow to start")
    option("--logs", default="logs", metavar="DIR", help="for RUN.txt (default: logs)")
    option("--checkpoints", default="checkpoints", metavar="DIR", help="for RUN/ (default: checkpoints)")
    return parser


def complete(args: argparse.Namespace) -> dict:
    """Check the settings and fill in defaults. Returns them as checkpoints keep them. Raises DataError."""
    args.split, args.rehearse = list(dict.fromkeys(args.split)), list(dict.fromkeys(args.rehearse))
    tasks = set(trained_tasks(args))
    if not tasks:
        raise DataError("--weights: all are 0; expected one above 0, such as 1 0 0 for age alone")
    for task in tasks.difference(*(datasets.DATASETS[name] for name in args.split)):
        raise DataError(f"--split {' '.join(args.split)}: no labels for {task}, whose weight is not 0")
    for name in args.rehearse:
        if name in args.split or tasks.isdisjoint(datasets.DATASETS[name]):
            raise DataError(f"--rehearse {name}: --split has it already, or the weights of its tasks are 0")
    recipe = dict(FINE_TUNING if args.pretrained else FROM_SCRATCH)
    rate = recipe["lr"] * args.batch_size / BATCH_SIZE
    recipe |= {"lr": float(f"{rate:.3g}"), "image_size": datasets.IMAGE_SIZE}
    if datasets.is_drawn(datasets.folders(args.data, args.cache)[0]):
        recipe |= {"image_size": datasets.SAMPLE_SIZE, "samples": SAMPLE_IMAGES}
    given = {name: value for name, value in vars(args).items() if value is not None}
    vars(args).update(recipe | given)
    return {**vars(args), "cache": args.cache and str(args.cache)}


def resumed(args: argparse.Namespace, settings: dict) -> argparse.Namespace:
    """A resumed run's `settings`, with what the command line may change of them. Raises DataError."""
    given = {word.partition("=")[0].removeprefix("--") for word in sys.argv[1:] if word.startswith("--")}
    given -= {"resume", "debug"}
    for name in given.difference(PLACES, ["compile"]):
        raise DataError(f"--{name}: a resumed run keeps its settings; "
                        "expected --data, --cache, --device alone")
    args = argparse.Namespace(**settings | {name: getattr(args, name) for name in given})
    args.cache = args.cache and Path(args.cache)
    return args


def prepare(run: Run, args: argparse.Namespace, file: Path | None) -> tuple[Trainer, Faces]:
    """The trainer, ready for the first epoch or the next one of `file`, and the faces for validation."""
    rank, world = run.rank, int(os.environ.get("WORLD_SIZE", 1))
    saved = read_saved(file) if file else None
    if saved:
        args = resumed(args, saved["settings"])
        if saved["epoch"] >= args.epochs:
            raise DataError(f"{file}: the run is finished, at epoch {saved['epoch']}")
        saved = run.reopen(file, args.logs)
    settings = complete(args)
    root, _ = datasets.folders(args.data, args.cache)
    run.about = {"settings": settings, "drawn": datasets.is_drawn(root), "detected": args.detect}
    trainer = Trainer(args, join_processes(args, world), rank, world)
    teachers = open_teachers(args)
    notes = [teacher.note for teacher in teachers]
    parts = read_parts(args)
    if saved:
        trainer.load(saved, file)
        notes.insert(0, f"resumed after epoch {run.epoch}")
    elif args.pretrained:
        notes.insert(0, models.load_weights(trainer.model, Path(args.pretrained)))
    if rank == 0 and not saved:
        run.begin(args)
    run.log(*settings_lines(trainer, settings), *[evaluate.DRAWN_NOTE][:run.about["drawn"]])
    faces, valid = load_faces(args, parts, world)
    run.log_faces(faces, valid)
    run.log(*notes)
    check_alike({**settings, **dict.fromkeys(PLACES), "epoch": run.epoch, "faces": run.rows,
                 "precision": trainer.precision}, world)
    if saved and saved["training"]["rows"] != run.rows:
        raise DataError(f"{args.data}: its data changed since the run began, from "
                        f"{saved['training']['rows']} to {run.rows} faces")
    trainer.start(faces)
    trainer.targets = ask_teachers(trainer, teachers)
    if not saved:
        run.save(trainer.content(0, {}, {}))
    return trainer, valid.to_device(trainer.device)


def main() -> int | None:
    args, run = make_parser().parse_args(), Run(int(os.environ.get("RANK", 0)))
    file = args.resume
    del args.resume, args.debug
    trainer, valid = prepare(run, args, file)
    try:
        train(run, trainer, valid)
    except KeyboardInterrupt:
        last = shlex.quote(str(run.folder / "last.pth"))
        run.log(f"stopped in epoch {run.epoch}; go on with: python train.py --resume {last}")
        return 130
    if dist.is_initialized():
        dist.destroy_process_group()
    run.log(f"the best epoch is in {run.folder / 'best.pth'}")


if __name__ == "__main__":
    datasets.script(main)
