"""The network, its input and augmentation, its losses, and checkpoints."""
import copy
import functools
import io
import math
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

from datasets import CLASS_NAMES, MAX_AGE, TASKS  # before torch
from datasets import DataError, known, one_line, whole_file

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

NUM_CLASSES = {"age": MAX_AGE + 1}
NUM_CLASSES |= {task: len(names) for task, names in CLASS_NAMES.items()}
LAYERS = [2, 2, 2, 2]           # blocks of each stage; [3, 4, 6, 3] is a ResNet-34
HIDDEN = 512        # width of a head's hidden layer
AGE_MASS = 0.8      # probability mass of the predicted age interval

# the input, normalised by ImageNet's statistics, which torchvision's weights expect
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)    # ITU-R BT.601, as Pillow's conversion to grey

# augmentation; TURN, SCALE, SHIFT, CONTRAST and BRIGHTNESS are ranges to both sides
TURN = 10           # degrees
SCALE = 0.15        # of the size
SHIFT = 0.08        # of the side
GREY = 0.2          # of the images
CONTRAST = 0.2      # of the contrast
BRIGHTNESS = 0.1    # of white
ERASED = 0.25       # of the images lose a rectangle
ERASED_SIDE = (0.1, 0.4)        # of the side
DRAWS = 13          # random numbers that an image gets for it

# losses
AGE_SIGMA = 2       # years, of the Gaussian that age classes are trained towards
MAX_SIGMA = 6       # years, of a label that is a guess or a range
AGE_DISTANCE = 0.1  # weight of the distance in years beside the cross-entropy
AGE_LOSS = 0.5      # of the sum, whose gradients are larger than the others'
SMOOTHING = 0.1     # of the labels of gender and emotion
TEACHER_WEIGHT = 0.5            # the teachers' part of a loss
TEMPERATURE = 2     # softens the teachers' predictions

Tensors = dict[str, Tensor]     # by task, or by name


class CheckpointError(DataError):
    """A file that holds no usable weights, in one line."""


# ---- the network ------------------------------------------------------------------------------------------

class FaceAttributeNet(ResNet):
    """torchvision's ResNet-18 with a head for each task.

    Input: (n, 3, h, w) float, normalised. Output: for each task asked for, logits (n, classes).
    """

    def __init__(self):
        super().__init__(BasicBlock, LAYERS)
        width = self.fc.in_features
        self.fc = nn.Identity()
        for task, classes in NUM_CLASSES.items():
            hidden, output = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, classes)
            self.add_module(task, nn.Sequential(hidden, nn.ReLU(), output))

    def forward(self, images: Tensor, tasks: Collection[str] = TASKS) -> Tensors:
        features = super().forward(images)
        return {task: getattr(self, task)(features) for task in tasks}


def expected_age(logits: Tensor) -> Tensor:
    """The expectation over the age classes: logits (n, 101) -> (n,) float32 years."""
    ages = torch.arange(MAX_AGE + 1.0, device=logits.device)
    return logits.float().softmax(1) @ ages


def age_interval(logits: Tensor, mass: float = AGE_MASS) -> tuple[Tensor, Tensor]:
    """First and last year, (n,) int64, of the central `mass` of ages with logits (n, 101)."""
    below = logits.float().softmax(1).cumsum(1)
    low = (below < (1 - mass) / 2).sum(1)
    high = (below < (1 + mass) / 2).sum(1)
    return low, high.clamp(max=MAX_AGE)


# ---- its input, device and precision ----------------------------------------------------------------------

def network_input(images: Tensor, size: int, grey: bool = False) -> Tensor:
    """The network's input, as validation and use have it; with `grey`, without colors.

    Images (n, h, w, 3) uint8 -> (n, 3, size, size) float32, normalised, channels_last.
    """
    batch = resize(images, size)
    if grey:
        luma = F.conv2d(batch, constant(LUMA, batch.device))
        batch = luma.expand(-1, 3, -1, -1)
    return normalise(batch).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, size: int, draws: Tensor) -> Tensor:
    """The network's input, as training has it: `network_input` with chance, the batch at once.

    Each image is mirrored or not, turned, scaled and shifted in one bilinear resampling; some turn grey;
    contrast and brightness vary; some lose a rectangle. draws: (n, DRAWS) float32 in 0..1.
    """
    mirror, turn, scale, right, down = draws[:, :5].unbind(1)
    # each (n, 1, 1, 1), to meet the images
    (grey, contrast, brightness,
     erase, top, left, height, width) = draws[:, 5:, None, None, None].unbind(1)
    flip = torch.where(mirror < 0.5, -1, 1)
    turn = math.radians(TURN) * (2 * turn - 1)
    zoom = (1 + SCALE) ** (2 * scale - 1)
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    across, along = 2 * SHIFT * (2 * right - 1), 2 * SHIFT * (2 * down - 1)
    matrix = torch.stack((flip * cos, -sin, across, flip * sin, cos, along), 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(images), 3, size, size], align_corners=False)
    batch = resize(images, min(size, images.shape[1]))      # `grid_sample` enlarges
    batch = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    batch = batch.contiguous(memory_format=torch.channels_last)
    luma = F.conv2d(batch, constant(LUMA, batch.device))
    batch.lerp_(luma, (grey < GREY).float())
    gain = 1 + CONTRAST * (2 * contrast - 1)
    # contrast turns around mid-grey
    shift = (1 - gain) / 2 + BRIGHTNESS * (2 * brightness - 1)
    batch = normalise(batch, gain, shift)
    places = torch.arange(size, device=draws.device) / size
    hole = inside(places.view(-1, 1), top, height) & inside(places, left, width) & (erase < ERASED)
    return batch.masked_fill_(hole, 0)


def inside(places: Tensor, begin: Tensor, length: Tensor) -> Tensor:
    """Which places in 0..1 are in a stretch that has its begin and length by chance."""
    shortest, longest = ERASED_SIDE
    length = shortest + (longest - shortest) * length
    begin = begin * (1 - length)
    return (places >= begin) & (places < begin + length)


def resize(images: Tensor, size: int) -> Tensor:
    """Images (n, h, w, 3) uint8 as (n, 3, size, size) float in 0..255."""
    images = images.permute(0, 3, 1, 2).float()
    side = images.shape[2]
    if side == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=side > size)


def normalise(images: Tensor, gain: Tensor | float = 1, shift: Tensor | float = 0) -> Tensor:
    """Images (n, 3, h, w) in 0..255, times `gain`, plus `shift` in parts of white, normalised."""
    mean, std = constant(MEAN, images.device), constant(STD, images.device)
    return torch.addcmul((shift - mean) / std, images, gain / (255 * std))


@functools.cache        # a copy to the GPU would wait for it
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel: (1, 3, 1, 1) float32."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the GPU, where there is one. Raises DataError."""
    torch.backends.cudnn.deterministic = True
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except Exception as error:          # each kind of device has its own
        raise DataError(f"{name}: can't be used here ({one_line(error)[:200]}); "
                        "--device cpu goes without") from None


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs from Ampere on and CPUs with AMX, float16 on older GPUs, else float32.

    On a CPU that has AVX512-BF16 without AMX, a step in bfloat16 took 1.1 to 1.3 times as long.
    """
    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float16
    # private, so another torch may lack it
    probe = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.bfloat16 if probe() else torch.float32


# ---- its losses -------------------------------------------------------------------------------------------

def losses(outputs: Tensors, labels: Tensors) -> Tensors:
    """The loss of each image, (n,) float32 by task, 0 where its label is unknown.

    outputs: logits (n, classes) by task; labels: (n,), as `Faces.labels` gives them.
    """
    result = {}
    for task, logits in outputs.items():
        label = labels[task]
        if task == "age":
            loss = age_loss(logits.float(), label, labels["age_std"])
        else:
            loss = F.cross_entropy(logits.float(), label, reduction="none",
                                   ignore_index=-1, label_smoothing=SMOOTHING)
        result[task] = loss.masked_fill(~known(label), 0)
    return result


def age_loss(logits: Tensor, age: Tensor, age_std: Tensor) -> Tensor:
    """Cross-entropy against a Gaussian around the label, and the expected age's distance to it.

    DLDL-v2, Gao et al., IJCAI 2018, "Age Estimation Using Expectation of Label Distribution Learning";
    a label's standard deviation widens the Gaussian. Logits (n, 101), years (n,) -> (n,) float32.
    Another order of the terms changes figures in the last digits.
    """
    age, age_std = age.nan_to_num(), age_std.nan_to_num()
    sigma = (AGE_SIGMA ** 2 + age_std ** 2).sqrt().clamp(max=MAX_SIGMA)
    ages = torch.arange(MAX_AGE + 1.0, device=logits.device)
    steps = (ages - age.unsqueeze(1)) / sigma.unsqueeze(1)
    target = (-steps ** 2 / 2).softmax(1)
    distance = (expected_age(logits) - age).abs()
    entropy = F.cross_entropy(logits, target, reduction="none")
    return AGE_LOSS * (entropy + AGE_DISTANCE * distance)


def soft_targets(logits: Tensor) -> Tensor:
    """A teacher's probabilities as they are learned, (n, classes) float32."""
    return (logits.float() / TEMPERATURE).softmax(1)


def distilled(of_labels: Tensors, outputs: Tensors, targets: Tensors) -> Tensors:
    """The losses of labels (n,) mixed with the distances to the teachers' `soft_targets` (n, classes).

    Knowledge distillation, Hinton et al. 2015, arXiv:1503.02531: the Kullback-Leibler divergence of the
    softened probabilities, times the squared temperature, which restores the size of the gradients.
    """
    result = dict(of_labels)
    for task, target in targets.items():
        student = (outputs[task].float() / TEMPERATURE).log_softmax(1)
        divergence = F.kl_div(student, target, reduction="none").sum(1)
        result[task] = ((1 - TEACHER_WEIGHT) * of_labels[task]
                        + TEACHER_WEIGHT * TEMPERATURE ** 2 * divergence)
    return result


# ---- checkpoints ------------------------------------------------------------------------------------------

# first bytes of files that are taken for checkpoints
OTHER_FILES = {
    rb"version https://git-lfs": "a Git LFS pointer; git lfs pull brings the file itself",
    rb"\s*<": "a web page (HTML), not a checkpoint; the download went wrong",
    rb"(?s).{5}\0\0\0{": "in the safetensors format; its load_file and torch.save make a checkpoint",
}
# what NumPy's numbers and arrays are read by, also under NumPy 1's names; it runs nothing of the file's
SCALAR, ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
NUMPY = [SCALAR, (SCALAR, "numpy.core.multiarray.scalar"), np.dtype]
NUMPY += [ARRAY, (ARRAY, "numpy.core.multiarray._reconstruct"), np.ndarray]
NUMPY += [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]


def description() -> dict:
    """What a checkpoint says of its network's input and outputs."""
    classes = {f"{task}s": list(names) for task, names in CLASS_NAMES.items()}
    return {"mean": list(MEAN), "std": list(STD), "ages": NUM_CLASSES["age"], **classes}


def save_checkpoint(content: dict, file: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    with whole_file(file) as output:
        buffer = io.BytesIO()               # on a file, torch hides a full disk and Ctrl-C behind its own error
        torch.save(content, buffer)
        output.write(buffer.getbuffer())


def open_checkpoint(file: Path) -> tuple[FaceAttributeNet, dict]:
    """The network of a checkpoint of this project, ready for use on the CPU, and the content.

    The content has image_size; decoded_size, of the images that were shrunk to it; tasks; temperatures
    (see evaluate.calibrate); drawn and detected, of the training faces; `description`.
    Raises CheckpointError.
    """
    content = read_checkpoint(file)
    for key, ours in description().items():
        if content.get(key) != ours:
            theirs = f"{key} {content.get(key)}"
            raise CheckpointError(f"{file}: has the {theirs}; this project's is {ours}; "
                                  "train.py --pretrained takes others' weights")
    network = FaceAttributeNet()
    load_state(network, content["model"], file)
    return network.eval(), content


def read_checkpoint(file: Path) -> dict:
    """The content, on the CPU: tensors and plain values; nothing is run. Raises CheckpointError."""
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint {file}")
    with open(file, "rb") as content:
        head = content.read(200)
    for start, kind in OTHER_FILES.items():
        if re.match(start, head):
            raise CheckpointError(f"{file}: {kind}")
    try:
        if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
            raise zipfile.BadZipFile("a checksum is wrong")     # torch checks none
        with torch.serialization.safe_globals(NUMPY):
            return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:              # torch raises anything on another file
        refused = re.findall(r"GLOBAL [\w.]+", str(error))
        reason = ", ".join(refused) or one_line(error)[:200]
        raise CheckpointError(f"{file}: damaged, or more than tensors and plain values "
                              f"({reason})") from None


def load_state(network: nn.Module, state: Tensors, file: Path, strict: bool = True) -> None:
    """Load a state dict. Raises CheckpointError where it does not fit or a value is no number."""
    try:
        network.load_state_dict(state, strict)
    except Exception as error:              # torch raises anything on what is no state dict
        raise CheckpointError(f"{file}: not of this network ({one_line(error)[:300]})") from None
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(f"{file}: {name} holds values that are no numbers")


# the first block of a ResNet, or of its nn.Sequential(*children), after what stands before all names
FIRST_BLOCK = re.compile(r"(.*\b|)(layer1|4)\.0\.conv1\.weight")
# modules as nn.Sequential and Age-Gender-Pred call them -> ours
MODULES = {
    "0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4",
    "fc1": "age.0", "age_cls_pred": "age.2", "fc2": "gender.0", "gen_cls_pred": "gender.2",
}


def load_weights(network: FaceAttributeNet, file: Path) -> str:
    """Load what fits, by name and shape, of anybody's checkpoint; the rest stays as it is.

    Returns a line that says how many tensors were loaded, which are new, which found no place.
    Raises CheckpointError where nothing fits or the file is of a deeper network.
    """
    state = find_state_dict(read_checkpoint(file))
    names = our_names(state)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    fits = {ours: state[name] for name, ours in names.items()
            if state[name].shape == shapes.get(ours)}
    if not any(value.dim() > 1 for value in fits.values()):
        raise CheckpointError(f"{file}: none of its {len(state)} tensors fits this ResNet-18")
    deeper = f"layer1.{LAYERS[0]}"
    if f"{deeper}.conv1.weight" in names.values():
        raise CheckpointError(f"{file}: of a deeper network, it has {deeper}; expected a ResNet-18")
    load_state(network, fits, file, strict=False)
    line = f"{file}: {len(fits)} of the model's {len(shapes)} tensors loaded"
    new = [name.rpartition(".")[0] for name, _ in network.named_parameters() if name not in fits]
    if new:
        line += f"; new: {', '.join(dict.fromkeys(new))}"
    rest = [f"{name} {list(value.shape)}" for name, value in state.items() if names.get(name) not in fits]
    if rest:
        line += f"; {len(rest)} of the file's {len(state)} found no place: {', '.join(rest[:4])}"
    return line


def load_mean(network: FaceAttributeNet, files: list[Path]) -> list[str]:
    """Load the mean of the weights of files, of runs that began alike. Returns a line for each file.

    Wortsman et al., ICML 2022, "Model soups: averaging weights of multiple fine-tuned models".
    A tensor that finds no place counts as in the file before.
    """
    lines, states = [], []
    for file in files:
        lines.append(load_weights(network, file))
        states.append(copy.deepcopy(network.state_dict()))
    for name, value in network.state_dict().items():
        value.copy_(sum(state[name] for state in states) / len(states))
    return lines


def find_state_dict(content: dict) -> Tensors:
    """The tensors of `content` or of a dict in it, whichever has most."""
    inner = [find_state_dict(value) for value in content.values() if isinstance(value, dict)]
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return max([tensors, *inner], key=len)


def our_names(names: Collection[str]) -> dict[str, str]:
    """The names of a ResNet's tensors -> their names here. Names without its prefix are left out."""
    short = {name: name.replace("resNet.", "") for name in names}       # Age-Gender-Pred's backbone
    blocks = filter(None, map(FIRST_BLOCK.fullmatch, short.values()))
    prefix = next((block[1] for block in blocks), "")
    ours = {}
    for name, text in short.items():
        if text.startswith(prefix):
            module, dot, rest = text.removeprefix(prefix).partition(".")
            ours[name] = MODULES.get(module, module) + dot + rest
    return ours
