"""Train the network: age, gender and emotion together or alone.

    python train.py --data sample --epochs 3                                  try it, no download
    python train.py --split imdb-wiki --weights 1 1 0                         step 1: pretrain age and gender
    python train.py --weights 1 1 1 --pretrained checkpoints/RUN/best.pth     step 2: all three tasks (also 1 0.1 1)
    python train.py --weights 1 0 0 --pretrained checkpoints/RUN/best.pth     steps 3 to 5: age; 0 1 0 gender; 0 0 1 emotion
    python train.py ... --rehearse imdb-wiki                                  go on showing what was pretrained on, against forgetting
    python train.py --resume checkpoints/RUN/last.pth                         go on with a run that was stopped
    torchrun --nproc-per-node=4 -- train.py ...                               the same on several GPUs
"""
import argparse
import itertools
import math
import os
import sys
from datetime import datetime
from pathlib import Path

import torch
import torch.distributed as dist

import datasets
import evaluate
import model as models
from datasets import TASKS, DataError

SETTINGS = ("split", "rehearse", "weights", "pretrained", "image_size", "samples", "epochs", "batch_size", "lr", "seed")     # what a resumed run must keep
CHECK_EVERY = 50                        # steps between looks at the losses, each of which waits for the GPU


def as_arguments(settings: dict) -> list[str]:
    """Settings as the command line that gives them, without those that are None or an empty list."""
    return [text for name, value in settings.items() if value not in (None, [])
            for text in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value]))]


def parse_arguments() -> tuple[argparse.Namespace, dict | None]:
    """The command line's settings and, with --resume, the checkpoint's content, whose settings are then the defaults."""
    parser = datasets.Parser(__doc__)
    parser.add_argument("--split", nargs="+", choices=datasets.SPLITS, default=["cvpr2016", "fer2013"], help="what to train on (default: cvpr2016 fer2013)")
    parser.add_argument("--rehearse", nargs="+", choices=datasets.SPLITS, default=[],
                        help="train on these too, but don't judge by them: against forgetting what pretraining taught")
    parser.add_argument("--weights", nargs=3, type=datasets.in_range(float, 0), default=[1.0, 1.0, 1.0], metavar=("AGE", "GENDER", "EMOTION"),
                        help="weights of the losses; a task of weight 0 is left out, its data are not read (default: 1 1 1)")
    parser.add_argument("--pretrained", metavar="FILE", help="weights to begin with, this project's or anybody's; what fits is loaded")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="last.pth of a run to go on with, under its settings")
    parser.add_argument("--data", default="data", metavar="DIR", help="data root, or `sample`, which is drawn (default: data)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for decoded images (default: .cache in the data root)")
    parser.add_argument("--image-size", type=datasets.in_range(int, 16, 1024), metavar="PX", help="side of the network's input in pixels (default: 224; 64 for the sample)")
    parser.add_argument("--samples", type=datasets.in_range(int, 1), metavar="N", help="images an epoch draws of sets that share a task, of few repeatedly (default: as many as there are, 28710 at most; 1000 for the sample)")
    parser.add_argument("--epochs", type=datasets.in_range(int, 1), metavar="N", help="default: 36 where emotion is trained, 24 without")
    parser.add_argument("--batch-size", type=datasets.in_range(int, 2), default=64, metavar="N", help="images a step, over all tasks and processes (default: 64)")
    parser.add_argument("--lr", type=datasets.in_range(float, 1e-12), default=0.05, metavar="RATE", help="highest learning rate, reached after a warm-up and lowered to 0 along a cosine (default: 0.05)")
    parser.add_argument("--seed", type=datasets.in_range(int, 0), default=0, metavar="N", help="same seed, same log (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network; slow to start, worth it for long runs; needs a C compiler and Python's headers")
    parser.add_argument("--logs", type=Path, default="logs", metavar="DIR", help="where the log goes (default: logs)")
    parser.add_argument("--checkpoints", type=Path, default="checkpoints", metavar="DIR", help="where RUN/last.pth and best.pth go (default: checkpoints)")
    args, content = parser.parse_args(), None
    if args.resume:
        content = models.read_checkpoint(args.resume)
        training = content.get("training")
        if not isinstance(training, dict):
            raise models.CheckpointError(f"{args.resume}: has no training state to go on from; expected a run's last.pth")
        lacking = [name for part, kinds in ((content, {"model": dict, "epoch": int, "settings": dict}),
                                            (training, {"optimizer": dict, "best": float, "rows": dict, "folders": dict, "log_size": int}))
                   for name, kind in kinds.items() if not isinstance(part.get(name), kind)]
        settings = content.get("settings")
        if lacking := lacking or [name for name in SETTINGS if name not in settings]:
            raise models.CheckpointError(f"{args.resume}: tells no {', '.join(lacking)}; expected a run's last.pth")
        args = parser.parse_args(as_arguments({**training["folders"], **settings}) + sys.argv[1:])      # of two, the later counts
        if other := [name for name in SETTINGS if getattr(args, name) != settings[name]]:
            raise DataError(f"--{other[0].replace('_', '-')} is {getattr(args, other[0])}, the run's is {settings[other[0]]}; "
                            "leave it out to go on with the run, or begin a new one with --pretrained")
    sample = args.data == "sample"
    args.image_size = args.image_size or (64 if sample else 224)
    args.samples = args.samples or (1000 if sample else None)
    args.epochs = args.epochs or (36 if args.weights[TASKS.index("emotion")] else 24)     # alone, emotion gains 0.8 points by the last twelve
    args.split = list(dict.fromkeys(args.split))
    args.rehearse = list(dict.fromkeys(args.rehearse))
    if twice := [split for split in args.rehearse if split in args.split]:
        parser.error(f"--rehearse {twice[0]}: --split has it already")
    if not any(args.weights):
        parser.error("--weights: all are 0; expected at least one above 0, such as 1 0 0 for age alone")
    return args, content


class Log:
    """Timestamped lines, flushed one by one, to a file and to the terminal; of several processes only the first writes.

    A resumed run's log is cut back to the `size` in bytes that it had when the checkpoint was saved. Raises DataError where
    another process is still writing it.
    """

    def __init__(self, file: Path | None, size: int | None = None):
        self.file = open(file, "a", encoding="utf-8") if file else None
        try:
            import fcntl
            if self.file:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)       # let go when the process ends, however it does
        except BlockingIOError:
            raise DataError(f"{file}: another process is still training this run; stop it first") from None
        except (ImportError, OSError):
            pass                        # Windows and some network file systems have no such locks
        if file and size is not None and file.stat().st_size > size:
            os.truncate(file, size)

    def __call__(self, text: str) -> None:
        if self.file:
            line = f"[{datetime.now():%d.%m.%Y %H:%M:%S}] {text}"
            for output in (self.file, sys.stdout):
                print(line, file=output, flush=True)


def start_run(name: str, logs: Path, checkpoints: Path) -> tuple[Path, Path]:
    """A new run's checkpoint folder and log file; a run of the same second gets a number behind its name. Raises DataError."""
    run = name
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for again in itertools.count(2):
            folder, log = checkpoints / run, logs / f"{run}.txt"
            if not folder.exists() and not log.exists():
                folder.mkdir(parents=True)
                log.touch()
                return folder, log
            run = f"{name}-{again}"
    except OSError as error:
        raise DataError(f"{error.filename}: can't be written ({error.strerror}); --logs and --checkpoints name other folders") from None


def rate_at(step: int, steps: int, highest: float) -> float:
    """The learning rate of a step, of `steps` from 0 on: a linear warm-up over the first twentieth, then a cosine to 0."""
    warm = max(1, steps // 20)
    return highest * min((step + 1) / warm, (1 + math.cos(math.pi * max(0, step + 1 - warm) / (steps + 1 - warm))) / 2)


def make_optimizer(model: models.FaceNet, rate: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weights decay, biases and BatchNorm's parameters don't."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() > 1], "weight_decay": 1e-3}, {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, fused=True)


def half_precision(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 at speed: GPUs from Ampere on, CPUs with AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)       # private, so another torch may lack it
    return device.type == "cpu" and probe is not None and probe()


def train_epoch(network: torch.nn.Module, optimizer: torch.optim.Optimizer, sets: list[datasets.Faces], pixels: list, args: argparse.Namespace,
                device: torch.device, epoch: int, rank: int, world: int) -> dict:
    """One epoch of training.

    Args: network, the model as it is trained (compiled, distributed); sets, the faces, and pixels, `to_device` of them.
    Returns: figures for the log, over all processes: lr, the epoch's highest; {task}_loss; gender_acc, emotion_acc in percent.
    Raises: DataError where a loss is no number.
    """
    weights = {task: weight for task, weight in zip(TASKS, args.weights) if weight}
    steps = math.ceil(sum(datasets.pools(sets, args.samples).values()) / args.batch_size)
    rates = [rate_at((epoch - 1) * steps + step, args.epochs * steps, args.lr) for step in range(steps)]
    sums = torch.zeros((len(weights), 3), dtype=torch.float64, device=device)      # of losses, right answers and known labels, by task
    seen = torch.zeros(steps, device=device)                # each step's loss
    network.train()
    batches = datasets.batches(sets, args.samples, args.batch_size, args.seed, epoch, rank, world)
    for step, batch in enumerate(datasets.progress(batches, steps, f"epoch {epoch}", args.batch_size)):
        images = [datasets.gather(data, rows, device) for data, rows in zip(pixels, batch.rows)]
        labels = datasets.Labels(*(values.to(device, non_blocking=True) for values in batch.labels))
        inputs = datasets.augment(images, args.image_size, batch.draws.to(device, non_blocking=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=half_precision(device)):
            outputs = network(inputs, tuple(weights))
        losses = models.losses(outputs, labels)
        # the mean over the whole step's images; times `world`, since DDP takes the mean over processes
        loss = sum(weight * losses[task].sum() for task, weight in weights.items()) / batch.total * world
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            seen[step] = loss
            for i, task in enumerate(weights):
                sums[i, 0] += losses[task].sum()
                if task != "age":
                    sums[i, 1] += (outputs[task].argmax(1) == getattr(labels, task)).sum()
                sums[i, 2] += datasets.known(labels, task).sum()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            summed = seen.clone()
            if world > 1:               # so that no process goes on alone
                dist.all_reduce(summed)
            if not torch.isfinite(summed).all():
                wrong = int((~torch.isfinite(summed)).nonzero()[0])
                raise DataError(f"the loss is no number at step {wrong + 1} of {steps} in epoch {epoch}; last.pth is that of epoch {epoch - 1}, a lower --lr may help")
    if world > 1:
        dist.all_reduce(sums)
    figures = {"lr": max(rates)}
    for task, (total, right, known) in zip(weights, sums.tolist()):
        figures[f"{task}_loss"] = total / max(known, 1)         # of a few samples, none may have the label
        if task != "age":
            figures[f"{task}_acc"] = 100 * right / max(known, 1)
    return figures


def load_sets(args: argparse.Namespace, tasks: list[str], subset: str) -> list[datasets.Faces]:
    """The sets of the chosen splits that serve `tasks`; what is rehearsed is for training alone. Raises DataError where one is not there."""
    root = datasets.data_root(args.data)
    sets = []
    for split in args.split + args.rehearse * (subset == "train"):
        if own := [task for task in tasks if task in datasets.SPLITS[split]]:
            sets += datasets.load(root, split, subset, own, args.image_size, args.cache or root / ".cache")
    return sets


def main() -> int | None:
    args, resumed = parse_arguments()
    tasks = [task for task, weight in zip(TASKS, args.weights) if weight]
    if unserved := [task for task in tasks if not any(task in datasets.SPLITS[split] for split in args.split)]:
        raise DataError(f"--split {' '.join(args.split)} has no labels for {unserved[0]}, whose weight is not 0")
    if useless := [split for split in args.rehearse if not set(tasks) & set(datasets.SPLITS[split])]:
        raise DataError(f"--rehearse {useless[0]} has labels for {' and '.join(datasets.SPLITS[useless[0]])} alone, whose weights are 0")
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local = os.environ.get("LOCAL_RANK") if (args.device or "cuda").startswith("cuda") and torch.cuda.is_available() else None
    if local and (here := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > torch.cuda.device_count():
        raise DataError(f"--nproc-per-node={here}: this host has {torch.cuda.device_count()} GPU(s); expected a process each, or --device cpu")
    device = evaluate.pick_device(f"cuda:{local}" if local else args.device)

    torch.manual_seed(args.seed)
    model = models.FaceNet()
    begun = models.load_weights(model, args.pretrained) if args.pretrained and not resumed else None
    sets, valid = load_sets(args, tasks, "train"), load_sets(args, tasks, "valid")
    for part, of in ((sets, "train"), (valid, "valid")):
        for task in tasks:
            if not any(datasets.known(faces, task).any() for faces in part):
                raise DataError(f"--split {' '.join(args.split)}: no face of known {task} in its {of} part")
    total = sum(datasets.pools(sets, args.samples).values())
    if total // math.ceil(total / args.batch_size) < 2 * world:         # of the smallest step
        raise DataError(f"--batch-size and the images of an epoch: at least 2 for each of {world} process{'es' * (world > 1)} are needed")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:                       # only now: while one process decodes, the others wait for the cache, however long
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    model.to(device, memory_format=torch.channels_last)
    for task in set(TASKS) - set(tasks):
        getattr(model, task).requires_grad_(False)
    optimizer = make_optimizer(model, args.lr)
    best, first = math.inf, 1
    rows = {faces.name: len(faces) for faces in (*sets, *valid)}
    if resumed:
        training = resumed["training"]
        if rows != training["rows"]:
            raise DataError(f"{args.data}: its data changed since the run began, from {training['rows']} to {rows} faces")
        try:
            model.load_state_dict(resumed["model"])
            optimizer.load_state_dict(training["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise models.CheckpointError(f"{args.resume}: not this network's ({' '.join(str(error).split())[:200]})") from None
        best, first = training["best"], resumed["epoch"] + 1
        if first > args.epochs:
            raise DataError(f"{args.resume}: the run is finished, at epoch {args.epochs} of {args.epochs}")

    weights = [f"{weight:g}" for weight in args.weights]
    folder = log_file = None
    if rank == 0:
        if resumed:
            folder = args.resume.parent
            log_file = args.logs / f"{folder.resolve().name}.txt"
            args.logs.mkdir(parents=True, exist_ok=True)
        else:
            folder, log_file = start_run(f"{datetime.now():%Y%m%d-%H%M%S}_{'+'.join(args.split)}_{'-'.join(weights)}", args.logs, args.checkpoints)
    log = Log(log_file, resumed["training"]["log_size"] if resumed else None)
    settings = {name: getattr(args, name) for name in SETTINGS}
    shown = {"data": args.data, **settings, "weights": weights}
    if resumed:
        log(f"resumed after epoch {first - 1}")
    log(" ".join(("train.py", *as_arguments(shown))))
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    log(f"torch {torch.__version__}, {kind}, {'bfloat16' if half_precision(device) else 'float32'}, {world} process{'es' * (world > 1)}")
    if args.data == "sample":
        log("the sample's faces are drawn: its figures mean nothing")
    for faces in (*sets, *valid):
        log(datasets.describe(faces)[0])
        for line in datasets.unreadable(faces):
            log(line)
    if begun:
        log(begun)

    network = torch.compile(model, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None) if args.compile else model
    if world > 1:
        network = torch.nn.parallel.DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    def keep(epoch: int, metrics: dict, better: bool) -> None:
        """Save the run as it is after an epoch: last.pth and, if it is the best so far, best.pth."""
        figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
        content = {"model": model.state_dict(), "image_size": args.image_size, "tasks": tasks, **evaluate.description(),
                   "drawn": args.data == "sample", "epoch": epoch, "metrics": figures, "settings": settings}
        if better:
            models.write_checkpoint(content, folder / "best.pth")
        folders = {"data": args.data, "cache": args.cache and str(args.cache), "logs": str(args.logs), "device": args.device}
        training = {"optimizer": optimizer.state_dict(), "best": best, "rows": rows, "folders": folders, "log_size": log_file.stat().st_size}
        models.write_checkpoint({**content, "training": training}, folder / "last.pth")
    if rank == 0 and not resumed:
        keep(0, {}, False)              # shows that it can be written, and is there if the first epoch fails
    pixels = datasets.to_device(sets, device)
    try:
        for epoch in range(first, args.epochs + 1):
            figures = train_epoch(network, optimizer, sets, pixels, args, device, epoch, rank, world)
            if world > 1:               # each process has kept its own BatchNorm statistics; the first one's count
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)
            metrics = evaluate.evaluate(model, valid, args.image_size, tasks, device, rank=rank, world=world)
            if rank > 0:
                continue
            figures |= {name if name == "age_mae" else f"val_{name}": value for name, value in metrics.items()}
            for line in evaluate.epoch_lines({"epoch": epoch, **figures}):
                log(line)
            error = evaluate.mean_error(metrics)
            better, best = error < best, min(error, best)
            keep(epoch, metrics, better)
    except KeyboardInterrupt:
        log(f"stopped in epoch {epoch}; go on with: python train.py --resume {folder / 'last.pth' if folder else ''}")
        return 130
    if world > 1:
        dist.destroy_process_group()
    if rank == 0:
        log(f"the best epoch is in {folder / 'best.pth'}")
    return None


if __name__ == "__main__":
    datasets.script(main, models.CheckpointError, torch.OutOfMemoryError)
