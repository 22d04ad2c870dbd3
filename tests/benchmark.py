"""How near training and evaluation come to the bare network, and how far they are from what people use.

    python tests/benchmark.py                                    at 64 pixels, some minutes
    python tests/benchmark.py --image-size 224 --steps 3         --device cuda, where there is one

Prints a line when it is measured, then all as a table, and leaves nothing behind. Speeds are medians over
rounds in which what is compared takes turns; a ratio is the median of the rounds' ratios. Faces are drawn,
with JPEG files of 200 pixels; what they show does not change what a step costs.
"""
import argparse
import contextlib
import importlib.util
import io
import itertools
import math
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402
import evaluate  # noqa: E402
import model as models  # noqa: E402
import train  # noqa: E402

ROUNDS = 5                              # that count, after one that does not
STARTS = 3                              # of a process, too slow to be done more often
CORES = datasets.cores()


# ---- measuring

def seconds(work: Callable, device: torch.device) -> float:
    """How long `work()` takes, with all that it has left to the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def compare(device: torch.device, **works: tuple[int, Callable]) -> dict[str, list[float]]:
    """Images per second, round by round, of each work (images, start), of which start() gets ready and
    returns what is timed.
    """
    speeds = {name: [] for name in works}
    for i in range(ROUNDS + 1):
        for name, (images, start) in works.items():
            taken = seconds(start(), device)
            if i:
                speeds[name].append(images / taken)
    return speeds


def speed(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} images/s"


def ratio(above: list[float], below: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(above, below)):.3f}"


def row(what: str, measured: str, remark: str = "") -> list[str]:
    """A row of the table, which is printed at once."""
    print(f"{what}: {measured}", *[f"({remark})"] * bool(remark), flush=True)
    return [what, measured, remark]


def rows_of(what: str, speeds: dict[str, list[float]], limit: str) -> list[list[str]]:
    """Two rows: the speed of the limit, and that of this project in parts of it."""
    return [row(f"{what}, the limit: {limit}", speed(speeds["limit"])),
            row(f"{what}, this project", speed(speeds["project"]),
                f"{ratio(speeds['project'], speeds['limit'])} of the limit")]


# ---- what is measured

def draw(root: Path) -> None:
    """The drawn sample, its JPEG files enlarged to 200 pixels, about what face crops come in."""
    datasets.draw_sample(root)
    for file in root.rglob("*.jpg"):
        with Image.open(file) as image:
            image.resize((200, 200), Image.Resampling.BICUBIC).save(file, quality=90)


def load(args: argparse.Namespace, root: Path, cache: Path) -> datasets.Faces:
    """The sample's train parts of all three tasks, prepared."""
    parts, _ = datasets.read(root, ("cvpr2016", "fer2013"), "train", datasets.TASKS)
    return datasets.load(parts, args.image_size, cache)


def training(args: argparse.Namespace, device: torch.device, root: Path) -> list[list[str]]:
    """Rows on training: the bare step, train.py's own loop, ImageFolder with per-image transforms."""
    count = args.batch_size * args.steps
    # three pools have `samples` images each
    settings = argparse.Namespace(weights=[1.0, 1.0, 1.0], samples=count // 3, batch_size=args.batch_size,
                                  image_size=args.image_size, epochs=1, lr=0.001, decay=0.0,
                                  constant=True, heads=False, seed=0, compile=False)
    trainer = train.Trainer(settings, device)
    faces = load(args, root, root / ".cache")
    trainer.start(faces)

    def project() -> None:
        trainer.train_epoch(1)

    def network() -> tuple:
        model = models.FaceAttributeNet().to(device, memory_format=torch.channels_last).train()
        return model, train.make_optimizer(model, 0.001, 0.0)

    def step(model: models.FaceAttributeNet, optimizer: torch.optim.Optimizer, images: torch.Tensor,
             labels: dict[str, torch.Tensor]) -> None:
        with torch.autocast(device.type, trainer.precision, enabled=trainer.precision is not torch.float32):
            outputs = model(images)
        loss = sum(values.mean() for values in models.losses(outputs, labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bare, theirs = network(), network()
    batch = next(datasets.batches(faces, args.batch_size, args.batch_size, models.DRAWS, (0, 1)))
    labels = faces.labels(batch.rows, device)
    images = trainer.faces.gather(batch.rows, device)
    images = models.augment(images, args.image_size, batch.draws.to(device))

    def limit() -> None:
        for _ in range(args.steps):
            step(*bare, images, labels)
    usual = transforms.Compose([transforms.Resize((args.image_size, args.image_size)),
                                transforms.RandomCrop(args.image_size, args.image_size // 8),
                                transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                transforms.Normalize(models.MEAN, models.STD)])
    folder = ImageFolder(root / "cvpr2016/gender/train", usual)
    loader = DataLoader(Subset(folder, [i % len(folder) for i in range(count)]), args.batch_size,
                        shuffle=True, num_workers=CORES, persistent_workers=True,
                        pin_memory=device.type == "cuda")

    def people() -> Callable:
        batches = iter(loader)
        # off the clock, since a real epoch is longer: in their favour by one batch
        first = next(batches)

        def run() -> None:
            for images, genders in itertools.chain([first], batches):
                images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                genders = genders.to(device, non_blocking=True)
                unknown = torch.full_like(genders, -1)
                years = unknown * torch.nan
                step(*theirs, images,
                     {"age": years, "age_std": years, "gender": genders, "emotion": unknown})
        return run
    shown = 3 * settings.samples
    speeds = compare(device, limit=(count, lambda: limit), project=(shown, lambda: project),
                     people=(count, people))
    return [*rows_of("training", speeds, "the bare step on one batch"),
            row("training, ImageFolder, PIL transforms, DataLoader", speed(speeds["people"]),
                f"this project is {ratio(speeds['project'], speeds['people'])} times as fast")]


def evaluation(args: argparse.Namespace, device: torch.device, root: Path) -> list[list[str]]:
    """Rows on evaluation: the bare forward pass and evaluate.py's own loop."""
    faces = load(args, root, root / ".cache")
    # full batches, as a real valid part has them
    count = math.ceil(args.steps / 3) * evaluate.BATCH
    rows = [np.flatnonzero(faces["part"] == number) for number in range(len(faces.parts))]
    faces = faces.keep(np.concatenate([np.sort(np.resize(some, count)) for some in rows]))
    total = len(faces)
    network = models.FaceAttributeNet().to(device, memory_format=torch.channels_last).eval()
    images = models.network_input(faces.gather(np.arange(evaluate.BATCH), device), args.image_size)

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(total // evaluate.BATCH):
            network(images)

    def project() -> None:
        evaluate.predict(network, faces, args.image_size, datasets.TASKS, device)
    speeds = compare(device, limit=(total, lambda: forward), project=(total, lambda: project))
    return rows_of("evaluation", speeds, "the bare forward pass")


def pictures(args: argparse.Namespace, device: torch.device, root: Path,
             scratch: Path) -> list[list[str]]:
    """Rows on pictures of one's own, as they come and with --detect: evaluate.py against the work
    that must be done, each kind alone on all cores, one after the other.
    """
    crops = sorted(root.glob("cvpr2016/gender/train/*/*.jpg"))
    photo = scratch / "photo.jpg"
    with Image.open(ROOT / "checkpoints/resnet18-age-gender-emotion-photo.png") as annotated:
        # a face, without its label
        annotated.convert("RGB").crop((60, 20, 270, 170)).resize((640, 480)).save(photo, quality=90)
    network = models.FaceAttributeNet().to(device, memory_format=torch.channels_last).eval()
    checkpoint = scratch / "c.pth"
    models.save_checkpoint(
        {"model": network.state_dict(), "image_size": args.image_size, "decoded_size": args.image_size,
         "tasks": list(datasets.TASKS), "temperatures": {}, "drawn": True, "detected": True,
         **models.description()}, checkpoint)

    def compared(files: list[Path], detect: bool, part: Callable[[Path], object], forward: bool) -> dict:
        predictor = evaluate.Predictor(checkpoint, str(device), detect)

        def project() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                for file, faces, _ in predictor.process(map(evaluate.Picture, files)):
                    evaluate.show_faces(file, [predictor.describe(*face) for face in faces])

        @torch.inference_mode()
        def limit() -> None:
            with ThreadPoolExecutor(CORES) as pool:
                list(pool.map(part, files))
            for _ in range(len(files) // evaluate.BATCH if forward else 0):
                network(images)
        images = torch.zeros((evaluate.BATCH, 3, args.image_size, args.image_size), device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        return compare(device, limit=(len(files), lambda: limit), project=(len(files), lambda: project))

    def decode(file: Path) -> np.ndarray:
        return datasets.center_crop(datasets.open_picture(file, args.image_size), args.image_size)

    def search(file: Path) -> list[datasets.Detection]:
        return datasets.find_faces(datasets.open_picture(file))
    repeated = list(itertools.islice(itertools.cycle(crops), 6 * evaluate.BATCH))
    crops_alone = compared(repeated, False, decode, True)
    rows = rows_of("pictures", crops_alone, "decoding, then the bare forward pass")
    if importlib.util.find_spec("cv2"):
        found = compared([photo] * evaluate.BATCH, True, search, False)
        rows += rows_of("a photo of 640x480", found, "the detector alone")
    return rows


def starting(args: argparse.Namespace, root: Path, scratch: Path) -> list[list[str]]:
    """A row on the way from the command to the first step, images decoded."""
    code = f"""
import sys, time
begin = time.time()
sys.path.insert(0, {str(ROOT)!r})
import torch, torchvision
imported = time.time()
import train
def first_step(*arguments, **options):
    print('measured', time.time() - begin, imported - begin, file=sys.stderr)
    sys.exit()
torch.optim.SGD.step = first_step
sys.argv[0] = 'train.py'
train.main()
"""
    command = [sys.executable, "-c", code, "--data", root, "--logs", scratch / "logs", "--checkpoints",
               scratch / "runs", "--image-size", args.image_size, "--epochs", 1,
               "--batch-size", args.batch_size, *(("--device", args.device) if args.device else ())]
    steps, above = [], []
    for _ in range(STARTS + 1):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        step, imported = map(float, done.stderr.rpartition("measured ")[2].split())
        steps.append(step)
        above.append(step - imported)
    # the first one decodes the valid parts, which were not needed so far
    return [row("from command to first step, images decoded", f"{statistics.median(steps[1:]):.2f} s",
                f"{statistics.median(above[1:]):.2f} s above import torch, torchvision")]


def main() -> None:
    parser = datasets.Parser(__doc__)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--image-size", type=datasets.at_least(16), default=64, metavar="PX",
                        help="default: 64")
    parser.add_argument("--batch-size", type=datasets.at_least(3), default=64, metavar="N",
                        help="default: 64")
    parser.add_argument("--steps", type=datasets.at_least(1), default=20, metavar="N",
                        help=f"training steps a round, of {ROUNDS + 1} rounds (default: 20)")
    args = parser.parse_args()
    device = models.pick_device(args.device)
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    torch.manual_seed(0)
    precision = str(models.fast_precision(device)).removeprefix("torch.")
    print(f"{CORES} CPU cores ({platform.machine()}){gpu}; torch {torch.__version__}, {precision} training; "
          f"{args.image_size} px, batches of {args.batch_size}; {shlex.join(['python', *sys.argv])}\n",
          flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        sample = scratch / "sample"
        draw(sample)
        rows = training(args, device, sample) + evaluation(args, device, sample)
        rows += pictures(args, device, sample, scratch) + starting(args, sample, scratch)
    print()
    print(evaluate.table(["", "measured", "ratio, remarks"], rows))


if __name__ == "__main__":
    datasets.script(main)
