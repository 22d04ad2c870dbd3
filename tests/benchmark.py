"""How near training and evaluation come to the bare network, and how far they are from what people use instead.

    python tests/benchmark.py                                    at 64 pixels, some minutes
    python tests/benchmark.py --image-size 224 --steps 6         --device cuda, where there is one

Prints one table and writes nothing else. Speeds are medians over rounds in which what is compared takes turns; ratios are of one run.
"""
import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402
import evaluate  # noqa: E402
import model as models  # noqa: E402
import train  # noqa: E402

ROUNDS = 5


def seconds(work, device: torch.device) -> float:
    """How long `work()` takes, with all that it has left to the GPU."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def compare(device: torch.device, **works) -> dict[str, list[float]]:
    """Images per second of each work (images, callable), round by round, after a round that does not count."""
    speeds = {name: [] for name in works}
    for round_ in range(ROUNDS + 1):
        for name, (images, work) in works.items():
            taken = seconds(work, device)
            if round_:
                speeds[name].append(images / taken)
    return speeds


def ratio(above: list[float], below: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(above, below)):.3f}"


def speed(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} images/s"


def load(args: argparse.Namespace, root: Path) -> list[datasets.Faces]:
    """The sample's train parts of all three tasks, decoded."""
    return [faces for split in ("cvpr2016", "fer2013")
            for faces in datasets.load(root, split, "train", datasets.TASKS, args.image_size, root / ".cache")]


def training(args: argparse.Namespace, device: torch.device, root: Path) -> list[list[str]]:
    """Rows on training: the bare step, train.py's own loop, and ImageFolder with per-image transforms."""
    sets = load(args, root)
    half = train.half_precision(device)

    def network() -> tuple:
        torch.manual_seed(0)
        model = models.FaceNet().to(device, memory_format=torch.channels_last).train()
        return model, train.make_optimizer(model, 0.001)

    def step(model, optimizer, images, labels) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            outputs = model(images)
        loss = sum(values.mean() for values in models.losses(outputs, labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bare, ours, theirs = network(), network(), network()
    batch = next(datasets.batches(sets, args.batch_size, args.batch_size, 0, 1))
    labels = datasets.Labels(*(values.to(device) for values in batch.labels))
    images = datasets.augment([datasets.gather(faces.pixels, rows, device) for faces, rows in zip(sets, batch.rows)], args.image_size, batch.draws.to(device))
    pixels = datasets.to_device(sets, device)
    settings = argparse.Namespace(weights=[1.0, 1.0, 1.0], samples=args.batch_size * args.steps // 3, batch_size=args.batch_size,
                                  image_size=args.image_size, epochs=10 ** 6, lr=0.001, seed=0)
    shown = settings.samples * 3
    usual = transforms.Compose([transforms.Resize((args.image_size, args.image_size)), transforms.RandomCrop(args.image_size, args.image_size // 8),
                                transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(datasets.MEAN, datasets.STD)])
    folder = ImageFolder(root / "cvpr2016/gender/train", usual)
    loader = DataLoader(torch.utils.data.Subset(folder, [i % len(folder) for i in range(args.batch_size * args.steps)]), args.batch_size,
                        shuffle=True, num_workers=os.cpu_count(), persistent_workers=True, pin_memory=device.type == "cuda")

    def people() -> None:
        for batch, genders in loader:
            batch = batch.to(device, memory_format=torch.channels_last, non_blocking=True)
            unknown = torch.full((len(batch),), -1, device=device)
            step(*theirs, batch, datasets.Labels(torch.full((len(batch),), torch.nan, device=device), genders.to(device), unknown))
    speeds = compare(device, limit=(args.batch_size * args.steps, lambda: [step(*bare, images, labels) for _ in range(args.steps)]),
                     project=(shown, lambda: train.train_epoch(*ours, sets, pixels, settings, device, 1, 0, 1)),
                     people=(args.batch_size * args.steps, people))
    return [["training, the limit: the bare step on one batch", speed(speeds["limit"]), ""],
            ["training, this project", speed(speeds["project"]), f"{ratio(speeds['project'], speeds['limit'])} of the limit"],
            ["training, ImageFolder, PIL transforms, DataLoader", speed(speeds["people"]), f"this project is {ratio(speeds['project'], speeds['people'])} times as fast"]]


def evaluation(args: argparse.Namespace, device: torch.device, root: Path) -> list[list[str]]:
    """Rows on evaluation: the bare forward pass and evaluate.py's own loop."""
    sets = 2 * load(args, root)         # some thousands of images, as a valid part has
    model = models.FaceNet().to(device)
    network = models.fuse(model).to(memory_format=torch.channels_last)
    plain = model.eval().to(memory_format=torch.channels_last)
    images = datasets.prepare(datasets.gather(sets[0].pixels, np.arange(evaluate.BATCH) % len(sets[0]), device), args.image_size)
    total = sum(map(len, sets))
    times = max(1, args.steps // 2)

    def forward(of: torch.nn.Module) -> None:
        with torch.inference_mode():
            for _ in range(times):
                of(images)
    speeds = compare(device, plain=(times * evaluate.BATCH, lambda: forward(plain)), limit=(times * evaluate.BATCH, lambda: forward(network)),
                     project=(total, lambda: evaluate.predict(model, sets, args.image_size, datasets.TASKS, device)))
    return [["evaluation, the limit: the bare forward pass", speed(speeds["limit"]), f"{ratio(speeds['limit'], speeds['plain'])} of BatchNorm not folded"],
            ["evaluation, this project", speed(speeds["project"]), f"{ratio(speeds['project'], speeds['limit'])} of the limit"]]


def python(code: str, *arguments) -> list[float]:
    """The numbers that a Python process prints on stderr which runs `code`, and behind them its peak memory in GB."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
def tell(number): print(number, file=sys.stderr)
{code}
try:        # not ru_maxrss, which begins with the memory of this process's parent
    peak = int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) * 1024 / 1e9
except OSError:
    peak = float('nan')
tell(peak)
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise datasets.DataError(f"a measured process failed: {done.stderr.strip().splitlines()[-1]}")
    return list(map(float, done.stderr.split()))


def starting(args: argparse.Namespace, root: Path, scratch: Path) -> list[list[str]]:
    """Rows on the first epoch, which decodes, against a later one, on the way to the first step, and on memory."""
    code = """
import torch, torchvision
begin = time.time()
import train
step = torch.optim.SGD.step
def first_step(*arguments, **options):
    torch.optim.SGD.step = step
    tell(time.time() - begin)
    return step(*arguments, **options)
torch.optim.SGD.step = first_step
sys.argv = ['train.py', *sys.argv[1:]]
train.main()
"""
    settings = ("--data", root, "--image-size", args.image_size, "--samples", 2 * args.batch_size, "--batch-size", args.batch_size, "--epochs", 1,
                "--cache", scratch / "cold", "--logs", scratch / "logs", "--checkpoints", scratch / "runs",
                *(("--device", args.device) if args.device else ()))
    first, _ = python(code, *settings)
    later, memory = python(code, *settings)
    return [["from command to first step, images not yet decoded", f"{first:.1f} s", "above import torch, torchvision"],
            ["from command to first step, images decoded", f"{later:.1f} s", "above import torch, torchvision"],
            ["peak memory of a training process", f"{memory:.2f} GB", ""]]


def labels(args: argparse.Namespace, scratch: Path) -> list[list[str]]:
    """A row on reading the labels of a made IMDB-WIKI of its true size."""
    from scipy.io import savemat

    def cells(values) -> np.ndarray:
        table = np.empty((1, args.rows), dtype=object)
        table[0, :] = values
        return table
    folder = scratch / "imdb-wiki/imdb_crop"
    folder.mkdir(parents=True)
    rng, boxes = np.random.default_rng(0), np.empty(args.rows, dtype=object)
    for i in range(args.rows):
        boxes[i] = np.array([[1.0, 1.0, 200.0, 200.0]])
    people = [f"Person Number {i % 20284}" for i in range(args.rows)]
    savemat(folder / "imdb.mat", {"imdb": {
        "dob": rng.integers(693962, 728294, (1, args.rows), np.int32), "photo_taken": rng.integers(1985, 2015, (1, args.rows)).astype(np.uint16),
        "full_path": cells([f"{i % 100:02}/nm{i % 20284:07}_rm{31 * i:09}_1950-1-15_1990.jpg" for i in range(args.rows)]),
        "gender": np.ones((1, args.rows)), "name": cells(people), "face_location": boxes.reshape(1, -1),
        "face_score": np.full((1, args.rows), 3.0), "second_face_score": np.full((1, args.rows), np.nan)}})
    code = """
import datasets
from pathlib import Path
begin = time.time()
for subset in datasets.SUBSETS:
    datasets.read_imdb_wiki(Path(sys.argv[1]), subset)
tell(time.time() - begin)
"""
    (taken, memory), (imports,) = python(code, scratch), python("import datasets, scipy.io")
    return [[f"labels of {args.rows:,} rows of IMDB-WIKI, read and split", f"{taken:.1f} s", f"peak memory {memory:.2f} GB, {imports:.2f} of it PyTorch"]]


def flat_memory(args: argparse.Namespace, device: torch.device, scratch: Path) -> list[list[str]]:
    """A row on memory over batches of a set of 523,051 images, a file of holes; where /proc tells."""
    def own() -> float:
        return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[1]) * 1024 / 1e6
    if not Path("/proc/self/status").is_file():
        return []
    count, shape = 523051, (args.image_size, args.image_size, 3)
    with open(scratch / "sparse.u8", "wb") as output:
        output.truncate(count * int(np.prod(shape)))
    faces = datasets.make_faces("made train", "made", scratch, [str(i) for i in range(count)], age=np.arange(count) % 100)
    faces.pixels = datasets.open_images(scratch / "sparse.u8", shape, count)
    at = {}
    for i, batch in enumerate(datasets.batches([faces], 400 * args.batch_size, args.batch_size, 0, 1)):
        datasets.gather(np.asarray(faces.pixels), batch.rows[0], device)
        if i in (50, 399):
            at[i] = own()
    return [[f"memory from batch 50 to 400, of {count:,} images in {faces.pixels.nbytes / 1e9:.0f} GB on disk", f"{at[399] - at[50]:+.1f} MB", ""]]


def main() -> None:
    parser = datasets.Parser(__doc__)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--image-size", type=datasets.in_range(int, 16, 1024), default=64, metavar="PX", help="default: 64")
    parser.add_argument("--batch-size", type=datasets.in_range(int, 3), default=64, metavar="N", help="default: 64")
    parser.add_argument("--steps", type=datasets.in_range(int, 1), default=15, metavar="N", help="training steps a round, of six rounds (default: 15)")
    parser.add_argument("--rows", type=datasets.in_range(int, 0), default=523051, metavar="N", help="rows of the made IMDB-WIKI, 0 for none (default: 523051)")
    args = parser.parse_args()
    device = evaluate.pick_device(args.device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{kind}; torch {torch.__version__}; {'bfloat16' if train.half_precision(device) else 'float32'} training; "
          f"{args.image_size} px; batches of {args.batch_size}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        datasets.build_once(scratch / "sample", datasets.draw_sample)
        rows = training(args, device, scratch / "sample") + evaluation(args, device, scratch / "sample") + starting(args, scratch / "sample", scratch)
        rows += labels(args, scratch) if args.rows else []
        rows += flat_memory(args, device, scratch)
    print(evaluate.table(["", "measured", "ratio, remarks"], rows))


if __name__ == "__main__":
    datasets.script(main, models.CheckpointError)
