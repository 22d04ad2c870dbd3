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
import collections
import contextlib
import itertools
import math
import os
import shlex
from argparse import Namespace
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import datasets  # before torch: it says how OpenMP's threads wait
from datasets import TASKS, DataError, Faces, Part

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import evaluate
import model as models

# Defaults from scratch and with --pretrained. `lr` is the highest of a run, for steps of BATCH_SIZE images;
# it grows with them (arXiv:1706.02677). `decay` is of weights (L2). Measured, in one run each:
#     epochs 60: age 4.92 years, gender 92.8 %      epochs 24, in smaller steps: 5.38, 91.5
#     lr 0.02: emotion 61.97 %                      lr 0.05: 61.47
#     decay 5e-4: 4.61 years, 94.4 %, 66.8 %        decay 2.5e-3: 4.69, 94.3, 65.6
FROM_SCRATCH = {"epochs": 60, "lr": 0.05, "decay": 1e-3}
FINE_TUNING = {"epochs": 24, "lr": 0.02, "decay": 5e-4}
BATCH_SIZE = 64         # images a step
MOMENTUM = 0.9          # Nesterov's
WARM_UP = 1 / 20        # of the run's steps
SMALLER_EPOCHS = 0.6    # of the epochs, the first ones, are of smaller images
SMALLER_SIDE = 2 / 3    # of the image size; 64 instead of 96 pixels halve a CPU's step
SAMPLE_IMAGES = 1000    # an epoch's, of the drawn sample

LONGEST_DECODING = timedelta(hours=12)      # processes wait at most so long for one that decodes
# settings that may change when a run is resumed
CHANGEABLE = ("data", "cache", "device", "compile")
# teachers see a face in grey for a task that only grey sets have
COLORED = {task for source in datasets.SOURCES if not source.grey for task in source.tasks}


# ---- the loop ---------------------------------------------------------------------------------------------

def train(run: "Run", trainer: "Trainer", valid: Faces) -> None:
    """Train the remaining epochs. Raises DataError where a loss is no number."""
    for epoch in range(run.epoch + 1, trainer.args.epochs + 1):
        run.epoch = epoch
        figures = trainer.train_epoch(epoch)
        predictions = evaluate.predict(trainer.model, valid, trainer.size, trainer.tasks, trainer.device)
        metrics = evaluate.means(evaluate.per_face(valid, predictions))
        figures |= {f"val_{name}": value for name, value in metrics.items()} | {"epoch": epoch}
        if not math.isfinite(sum(figures.values())):
            raise DataError(f"epoch {epoch}: a loss is no number; last.pth is that of "
                            f"epoch {epoch - 1}, a lower --lr may help")
        run.log(*evaluate.epoch_lines(figures))
        temperatures = evaluate.calibrate(valid, predictions)
        content = trainer.content(epoch, metrics, temperatures)
        run.save(content, evaluate.mean_error(figures))


class Trainer:
    """The network in training, its optimizer, and the faces that it is trained on."""

    def __init__(self, args: Namespace, device: torch.device, rank: int = 0, world: int = 1):
        self.args, self.device = args, device
        self.rank, self.world = rank, world     # of torchrun's processes
        self.size = size_at(1, args)            # pixels of the current epoch's images
        self.weights = dict(zip(TASKS, args.weights))
        self.tasks = trained_tasks(args)
        self.targets = {}                       # of teachers, by task: (faces, classes)
        self.kept = {}                          # of heads that --heads leaves as they are: temperature by task
        torch.manual_seed(args.seed)
        self.model = models.FaceAttributeNet()
        for name, module in self.model.named_children():
            backbone = name not in TASKS and not args.heads
            module.requires_grad_(backbone or name in self.tasks)
        self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, args.lr, args.decay)
        self.precision = models.fast_precision(device)
        scaled = self.precision is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def start(self, faces: Faces) -> None:
        """Get ready to train on `faces`. Raises DataError where they are too few."""
        self.faces = faces.to_device(self.device)
        images = sum(datasets.pools(faces, self.args.samples).values())
        self.steps = math.ceil(images / self.args.batch_size)
        if images // self.steps < 2 * self.world:           # of the smallest step
            raise DataError("a step needs at least 2 images for each process; "
                            "expected a larger --batch-size, or more images an epoch")
        network = self.model
        if self.args.compile:
            mode = {"cuda": "reduce-overhead"}.get(self.device.type)
            network = torch.compile(network, dynamic=False, mode=mode)
        if self.world > 1:
            # BatchNorm's running statistics: those of rank 0, which saves, are enough
            network = DistributedDataParallel(network, broadcast_buffers=False)
        self.network = network

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One epoch. Returns lr, the highest; {task}_loss; {task}_acc in percent."""
        args, total = self.args, self.args.epochs * self.steps
        self.size = size_at(epoch, args)
        steps = range((epoch - 1) * self.steps, epoch * self.steps)
        rates = [rate_at(step, total, args) for step in steps]
        # by task: loss, correct predictions, known labels
        sums = torch.zeros((len(self.tasks), 3), dtype=torch.float64, device=self.device)
        self.network.train(not args.heads)      # BatchNorm's statistics are the backbone's
        for batch, rate in zip(self.batches(epoch), rates):
            self.step(batch, rate, sums)
        if self.world > 1:
            dist.all_reduce(sums)
        figures = {"lr": max(rates)}
        for task, (loss, correct, known) in zip(self.tasks, sums.tolist()):
            known = max(known, 1)               # of a few samples, none may have the label
            figures[f"{task}_loss"] = loss / known
            figures[f"{task}_acc"] = 100 * correct / known
        return figures

    def batches(self, epoch: int) -> Iterable[datasets.Batch]:
        """This process's part of an epoch's steps."""
        args = self.args
        batches = datasets.batches(self.faces, args.samples, args.batch_size, models.DRAWS,
                                   (args.seed, epoch), self.rank, self.world)
        return datasets.progress(batches, self.steps, f"epoch {epoch}", args.batch_size)

    def estimate_statistics(self) -> None:
        """BatchNorm's statistics anew, over an epoch's images: of averaged weights they are not the average.

        Izmailov et al., UAI 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
        """
        torch.optim.swa_utils.update_bn(map(self.inputs, self.batches(0)), self.model)

    def step(self, batch: datasets.Batch, rate: float, sums: torch.Tensor) -> None:
        """One step of the optimizer, which adds losses, correct predictions and labels to `sums`."""
        outputs = self.forward(batch)
        labels = self.faces.labels(batch.rows, self.device)
        of_labels = models.losses(outputs, labels)
        rows = torch.from_numpy(batch.rows).to(self.device, non_blocking=True)
        targets = {task: each[rows] for task, each in self.targets.items()}
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
        inputs = self.inputs(batch)
        with self.autocast(self.size):
            return self.network(inputs, tuple(self.tasks))

    def inputs(self, batch: datasets.Batch) -> torch.Tensor:
        """The network's input of a batch, augmented."""
        images = self.faces.gather(batch.rows, self.device)
        draws = batch.draws.to(self.device, non_blocking=True)
        return models.augment(images, self.size, draws)

    def autocast(self, size: int) -> torch.autocast:
        """The context in which images of `size` pixels are computed in the fast precision."""
        # 16 pixels shrink to one, of which oneDNN's bfloat16 gradients are undefined (torch 2.14)
        fast = size > 16 and self.precision is not torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=fast)

    def content(self, epoch: int, metrics: dict, temperatures: dict[str, float]) -> dict:
        """A last.pth's content: the model, what using it needs, and what training on needs."""
        training = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        tasks = [task for task in TASKS if task in self.tasks or task in self.kept]
        return {
            "model": self.model.state_dict(), **models.description(),
            "tasks": tasks, "temperatures": {**self.kept, **temperatures},
            "image_size": self.size, "decoded_size": self.args.image_size,
            "epoch": epoch, "metrics": metrics, "training": training,
        }

    def keep_heads(self, files: list[Path]) -> str:
        """Keep the other heads that all files have, if images are framed alike, and as large as the first's.

        Returns a line on it.
        """
        contents = list(map(models.read_checkpoint, files))
        ours = {**models.description(), "detected": self.args.detect}
        alike = all(ours.items() <= content.items() for content in contents)
        if alike and contents[0]["image_size"] == self.args.image_size:
            others = set(TASKS).difference(self.tasks).intersection(*(each["tasks"] for each in contents))
            self.kept = {task: contents[0]["temperatures"].get(task, 1) for task in TASKS if task in others}
        return f"kept heads: {', '.join(self.kept) or 'none'}"

    def load(self, content: dict, file: Path) -> None:
        """Restore the training of a last.pth. Raises CheckpointError where it does not fit."""
        models.load_state(self.model, content["model"], file)
        self.kept = content["temperatures"]
        if content["training"]["scaler"]:               # not so of another device
            self.scaler.load_state_dict(content["training"]["scaler"])
        self.optimizer.load_state_dict(content["training"]["optimizer"])
        for parameter, state in self.optimizer.state.items():
            if state["momentum_buffer"].shape != parameter.shape:       # fused SGD would write outside of it
                raise models.CheckpointError(f"{file}: its momentum is of another network")


def rate_at(step: int, steps: int, args: Namespace) -> float:
    """The learning rate of a step, from step 0 on: a linear warm-up, then a cosine to 0."""
    if args.constant:
        return args.lr
    warm = max(1, int(steps * WARM_UP))
    progress = max(0, step + 1 - warm) / (steps + 1 - warm)
    return args.lr * min((step + 1) / warm, (1 + math.cos(math.pi * progress)) / 2)


def size_at(epoch: int, args: Namespace) -> int:
    """The side in pixels of an epoch's images, from epoch 1 on: smaller at first, which costs less.

    An epoch is validated at its size: a network of 64 pixels fell from 56 to 41 % of emotions at 96.
    """
    if args.constant or args.heads or epoch > int(SMALLER_EPOCHS * args.epochs):
        return args.image_size
    return max(16, round(SMALLER_SIDE * args.image_size / 16) * 16)


def make_optimizer(model: torch.nn.Module, rate: float, decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weights decay, biases and BatchNorm's parameters don't."""
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trained if p.dim() > 1]
    others = [p for p in trained if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, rate, momentum=MOMENTUM, nesterov=True, fused=True)
    # where GradScaler skips the first step, fused SGD would leave its momentum uninitialised
    for parameter in trained:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def trained_tasks(args: Namespace) -> list[str]:
    """The tasks whose weight is not 0."""
    return [task for task, weight in zip(TASKS, args.weights) if weight]


# ---- teachers ---------------------------------------------------------------------------------------------

def open_teachers(args: Namespace) -> list[tuple[torch.nn.Module, int, list[str]]]:
    """The network, image size and tasks of each --teacher. Raises DataError where it does not fit."""
    teachers = []
    for file in args.teacher:
        network, content = models.open_checkpoint(Path(file))
        tasks = [task for task in trained_tasks(args) if task in content["tasks"]]
        if not tasks:
            raise DataError(f"--teacher {file}: its tasks {content['tasks']} have weight 0")
        if content["detected"] != args.detect:
            raise DataError(f"--teacher {file}: its faces are framed otherwise; "
                            "--detect must be given for both or for none")
        teachers.append((network, content["image_size"], tasks))
    return teachers


def ask_teachers(trainer: Trainer, teachers: list) -> dict[str, torch.Tensor]:
    """The mean of the teachers' soft targets for each face, by task: (faces, classes)."""
    targets = collections.defaultdict(list)
    for network, size, tasks in teachers:
        network.to(trainer.device)
        for colored, asked in itertools.groupby(tasks, COLORED.__contains__):
            with trainer.autocast(size):
                predictions = evaluate.predict(network, trainer.faces, size, list(asked), trainer.device,
                                               grey=not colored)
            for task, logits in predictions.logits.items():
                targets[task].append(models.soft_targets(logits))
    return {task: (sum(each) / len(each)).to(trainer.device) for task, each in targets.items()}


# ---- a run on disk ----------------------------------------------------------------------------------------

class Run:
    """A run on disk: its log, and its folder with last.pth and best.pth. Rank 0 alone writes."""

    def __init__(self, rank: int = 0):
        self.rank, self.folder = rank, Path()
        self.epoch, self.best = 0, math.inf     # in progress; the least mean error so far
        self.about = {}                         # what checkpoints hold besides the trainer's content

    def begin(self, args: Namespace) -> None:
        """Make the folder and the log, named for now; runs of the same second get a number."""
        weights = "-".join(map(str, args.weights))
        name = f"{datetime.now():%Y%m%d-%H%M%S}_{'+'.join(args.split)}_{weights}"
        Path(args.logs).mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            self.folder = Path(args.checkpoints, name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(parents=True)
                self.open_log(args.logs, "x")
                return

    def open_log(self, folder: str, mode: str) -> None:
        """Open the log; it is locked, since one process at a time may train a run."""
        file = Path(folder, f"{self.folder.resolve().name}.txt")
        self.lines = open(file, mode, encoding="utf-8", errors="backslashreplace")
        self.lines.seek(0, os.SEEK_END)
        try:
            import fcntl
            fcntl.flock(self.lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{file}: another process is training this run; stop it first") from None
        except (ImportError, OSError):      # Windows, or a file system without locks
            pass

    def log(self, *lines: str) -> None:
        """Write lines with the time to the log and the terminal."""
        if self.rank == 0:
            now = f"[{datetime.now():%d.%m.%Y %H:%M:%S}]"
            text = "".join(f"{now} {line}\n" for line in lines)
            print(text, end="", file=self.lines, flush=True)
            print(text, end="", flush=True)

    def save(self, content: dict, error: float = math.inf) -> None:
        """Save last.pth; and best.pth, without the training, where `error` is the least so far."""
        better, self.best = error < self.best, min(error, self.best)
        if self.rank > 0:
            return
        training = {**content.pop("training"), "best": self.best}
        content |= self.about
        if better:
            models.save_checkpoint(content, self.folder / "best.pth")
        models.save_checkpoint({**content, "training": training}, self.folder / "last.pth")


def settings_lines(trainer: Trainer, settings: dict) -> list[str]:
    """The run's command line, its machine, and its images' sizes."""
    words = ["train.py"]
    for name, value in settings.items():
        values = list(map(str, value if isinstance(value, list) else [value]))
        if values not in ([], ["None"], ["False"]):
            words += [f"--{name.replace('_', '-')}", *values]
    machine = f"CPU, {torch.get_num_threads()} threads"
    if trainer.device.type == "cuda":
        machine = torch.cuda.get_device_name(trainer.device)
    precision = str(trainer.precision).removeprefix("torch.")
    return [shlex.join(word for word in words if word != "True"),       # flags have no value
            f"torch {torch.__version__}, {machine}, {precision}, {trainer.world} process(es)",
            f"images of {trainer.size} pixels at first, {trainer.args.image_size} at last"]


# ---- the faces, and the processes -------------------------------------------------------------------------

def read_parts(args: Namespace, root: Path) -> tuple[list[Part], list[Part], list[Part]]:
    """The parts for training and for validation, and those whose pictures are left out of training.

    They are not decoded. Raises DataError.
    """
    tasks, names = trained_tasks(args), dict.fromkeys(args.split + args.rehearse)
    train, gaps = datasets.read(root, names, "train", tasks)
    valid, more = datasets.read(root, dict.fromkeys(args.split), "valid", tasks)
    if gaps or more:
        raise (gaps + more)[0]
    held_out = []
    for subset in ("valid", "test") if args.without_copies else ():
        with contextlib.suppress(datasets.Missing):
            parts, _ = datasets.read(root, names, subset, tasks)
            held_out += parts
    return train, valid, held_out


def load_faces(args: Namespace, cache: Path, world: int, parts: list[Part],
               held_out: list[Part]) -> Faces:
    """`datasets.load`, in which the first process of each host decodes, and the others read its cache."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank > 0:
        dist.barrier()
    faces = datasets.load(parts, args.image_size, cache, args.detect, held_out)
    if world > 1 and local_rank == 0:
        dist.barrier()
    return faces


def join_processes(name: str | None, world: int) -> torch.device:
    """This process's device; torchrun's processes have a GPU each, where there are GPUs."""
    if world > 1 and name in (None, "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = models.pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        backend = {"cuda": "nccl"}.get(device.type, "gloo")
        dist.init_process_group(backend, timeout=LONGEST_DECODING)
    return device


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
           help="train on these too, but don't validate on them: against forgetting")
    option("--weights", nargs=len(TASKS), type=weight, default=[1] * len(TASKS), metavar=TASKS,
           help="weights of the losses; a task of weight 0 reads no data (default: 1)")
    option("--pretrained", nargs="+", help="weights to begin with, or to begin with the mean of; "
           "what fits is loaded")
    option("--heads", action="store_true",
           help="train the heads alone, on the features of --pretrained: few images are enough")
    option("--teacher", nargs="+", default=[],
           help="checkpoints whose predictions are learned beside the labels")
    option("--resume", type=Path, help="last.pth of a run to go on with")
    option("--samples", type=count,
           help="images an epoch draws of sets that share a task; a smaller set is repeated "
           f"(default: all, at most {datasets.EPOCH_IMAGES}; {SAMPLE_IMAGES} for the sample)")
    option("--epochs", type=count, help=defaults["epochs"])
    option("--batch-size", type=datasets.at_least(2), default=BATCH_SIZE,
           help=f"images a step, over all tasks and processes (default: {BATCH_SIZE})")
    option("--lr", type=number,
           help=f"highest learning rate, for steps of {BATCH_SIZE} images {defaults['lr']}")
    option("--decay", type=number, help=f"weight decay (L2) {defaults['decay']}")
    option("--constant", action="store_true", help="keep the learning rate and the images' size")
    option("--seed", type=datasets.at_least(0), default=0, help="default: 0")
    option("--without-copies", action="store_true", help="no training on pictures of valid and test")
    option("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    option("--compile", action="store_true", help="torch.compile the network; slow to start")
    option("--logs", default="logs", help="folder for RUN.txt (default: logs)")
    option("--checkpoints", default="checkpoints", help="folder for RUN/ (default: checkpoints)")
    return parser


def weight(text: str) -> int | float:
    """A number from 0 on, 1.0 as 1."""
    number = datasets.at_least(0, float)(text)
    return int(number) if number.is_integer() else number


def complete(args: Namespace) -> None:
    """Check the settings and fill in defaults. Raises DataError."""
    tasks = set(trained_tasks(args))
    if not tasks:
        raise DataError("--weights: all are 0; expected one above 0, such as 1 0 0 for age alone")
    if args.heads and not args.pretrained:
        raise DataError("--heads: expected --pretrained, whose layers below the heads stay as they are")
    unlabelled = tasks.difference(*map(datasets.DATASETS.get, args.split))
    if unlabelled:
        raise DataError(f"--split {' '.join(args.split)}: no labels for {', '.join(sorted(unlabelled))}")
    for name in args.rehearse:
        if tasks.isdisjoint(datasets.DATASETS[name]):
            raise DataError(f"--rehearse {name}: the weights of its tasks are 0")
    recipe = FINE_TUNING if args.pretrained else FROM_SCRATCH
    rate = recipe["lr"] * args.batch_size / BATCH_SIZE
    defaults = {**recipe, "lr": float(f"{rate:.3g}"), "image_size": datasets.IMAGE_SIZE}
    root, _ = datasets.folders(args.data, args.cache)
    if datasets.is_drawn(root):
        defaults |= {"image_size": datasets.SAMPLE_SIZE, "samples": SAMPLE_IMAGES}
    given = {name: value for name, value in vars(args).items() if value is not None}
    vars(args).update(defaults | given)


def read_settings(run: Run) -> tuple[Namespace, dict]:
    """The command line's settings, or a resumed run's with its last.pth's content. Raises DataError."""
    parser = make_parser()
    args = parser.parse_args()
    if not args.resume:
        complete(args)
        return args, {}
    saved = models.read_checkpoint(args.resume)
    if "training" not in saved:
        raise DataError(f"{args.resume}: no training state; expected a run's last.pth")
    run.folder, run.epoch = args.resume.parent, saved["epoch"]
    run.best = saved["training"]["best"]
    args = parser.parse_args(namespace=Namespace(**saved["settings"]))
    for name in saved["settings"].keys() - set(CHANGEABLE):
        if getattr(args, name) != saved["settings"][name]:
            option = name.replace("_", "-")
            raise DataError(f"--{option}: a resumed run keeps its settings; only "
                            f"--{', --'.join(CHANGEABLE)} may change")
    if run.epoch >= args.epochs:
        raise DataError(f"{args.resume}: the run is finished, at epoch {run.epoch}")
    return args, saved


def set_up(run: Run) -> tuple[Trainer, Faces]:
    """The trainer, ready for the next epoch, and the faces for validation."""
    args, saved = read_settings(run)
    root, cache = datasets.folders(args.data, args.cache)
    settings = dict(vars(args))
    del settings["resume"], settings["debug"]
    drawn = datasets.is_drawn(root)
    run.about = {"settings": settings, "drawn": drawn, "detected": args.detect}
    world = int(os.environ.get("WORLD_SIZE", 1))
    trainer = Trainer(args, join_processes(args.device, world), run.rank, world)
    teachers = open_teachers(args)
    train, valid, held_out = read_parts(args, root)
    notes = [f"{file}: teaches {' and '.join(tasks)}"
             for file, (_, _, tasks) in zip(args.teacher, teachers)]
    if drawn:
        notes.append(evaluate.DRAWN_NOTE)
    if saved:
        trainer.load(saved, args.resume)
        notes.append(f"resumed after epoch {run.epoch}")
    elif args.pretrained:
        files = list(map(Path, args.pretrained))
        notes += models.load_mean(trainer.model, files)
        if args.heads:
            notes.append(trainer.keep_heads(files))
    if run.rank == 0:
        run.open_log(args.logs, "r+") if saved else run.begin(args)
    run.log(*settings_lines(trainer, settings), *notes)
    faces = load_faces(args, cache, world, train, held_out)
    valid = load_faces(args, cache, world, valid, [])
    run.log(*evaluate.faces_used(faces), *evaluate.faces_used(valid))
    trainer.start(faces)
    trainer.targets = ask_teachers(trainer, teachers)
    if not saved:
        if args.heads and len(args.pretrained) > 1:
            trainer.estimate_statistics()
        run.save(trainer.content(0, {}, {}))
    return trainer, valid.to_device(trainer.device)


def main() -> int | None:
    run = Run(int(os.environ.get("RANK", 0)))
    trainer, valid = set_up(run)
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
