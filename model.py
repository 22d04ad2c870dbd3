"""The network, its input and augmentation, its losses, and checkpoints.

The network is a torchvision ResNet-18 whose final fully connected layer is replaced by three heads: age,
gender, emotion.
"""
import functools
import io
import math
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

from datasets import CLASS_NAMES, MAX_AGE, TASKS, DataError, known, one_line, whole_file  # before torch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

NUM_CLASSES = {"age": MAX_AGE + 1} | {task: len(names) for task, names in CLASS_NAMES.items()}
LAYERS = [2, 2, 2, 2]                   # blocks of each stage: a ResNet-18; [3, 4, 6, 3] is a ResNet-34
HIDDEN = 512                            # width of a head's hidden layer
AGE_MASS = 0.8                          # probability mass of the predicted age interval

# the input, normalised by ImageNet's statistics, which torchvision's weights expect
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)            # ITU-R BT.601, as Pillow's conversion to grey

# augmentation, each range to both sides
TURN = 10                               # degrees
SCALE = 0.15                            # of the size
SHIFT = 0.08                            # of the side
GREY = 0.2                              # of the images
CONTRAST = 0.2                          # of the contrast
BRIGHTNESS = 0.1                        # of white
ERASED = 0.25                           # of the images lose a rectangle
ERASED_SIDE = (0.1, 0.4)                # of the side
DRAWS = 13                              # random numbers that an image gets for it

# losses
AGE_SIGMA = 2                           # years, of the Gaussian that age classes are trained towards
MAX_SIGMA = 6                           # years, of a label that is a guess or a range
AGE_DISTANCE = 0.1                      # weight of the distance in years beside the cross-entropy
AGE_LOSS = 0.5                          # of the sum, whose gradients are more than twice those of the others
SMOOTHING = 0.1                         # of the labels of gender and emotion
# the teachers' part of a loss, and the temperature that softens their predictions
TEACHER_WEIGHT, TEACHER_TEMPERATURE = 0.5, 2


class CheckpointError(DataError):
    """A file that holds no usable weights, in one line."""


# ---- the network ------------------------------------------------------------------------------------------

class FaceAttributeNet(ResNet):
    """ResNet-18 with a head for each of age, gender and emotion: a hidden layer and an output layer.

    Input: (n, 3, h, w) float, normalised. Output: for each task asked for, logits (n, classes).
    """

    def __init__(self):
        super().__init__(BasicBlock, LAYERS)
        width, self.fc = self.fc.in_features, nn.Identity()
        for task, classes in NUM_CLASSES.items():
            head = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
            self.add_module(task, head)

    def forward(self, images: Tensor, tasks: Collection[str] = TASKS) -> dict[str, Tensor]:
        features = super().forward(images)
        return {task: getattr(self, task)(features) for task in tasks}


def expected_age(logits: Tensor) -> Tensor:
    """Age as the expectation over the age classes: (n, 101) logits -> (n,) float32 years."""
    ages = torch.arange(MAX_AGE + 1.0, device=logits.device)
    return logits.float().softmax(1) @ ages


def age_interval(logits: Tensor, mass: float = AGE_MASS) -> tuple[Tensor, Tensor]:
    """The central `mass` of each age distribution, logits (n, 101): its first and its last year,
    (n,) int64 each.
    """
    below = logits.float().softmax(1).cumsum(1)
    low, high = ((below < bound).sum(1) for bound in ((1 - mass) / 2, (1 + mass) / 2))
    return low, high.clamp(max=MAX_AGE)


# ---- its input --------------------------------------------------------------------------------------------

@functools.cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Three channels' values, (1, 3, 1, 1) float32, copied to the device once:
    each copy would wait for the GPU.
    """
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def normalise(images: Tensor, gain: Tensor | float = 1, shift: Tensor | float = 0) -> Tensor:
    """`images` (n, 3, h, w) float in 0..255, times `gain` plus `shift` (in 0..1,
    (n, 1, 1, 1) or a number), normalised.
    """
    mean, std = constant(MEAN, images.device), constant(STD, images.device)
    return torch.addcmul((shift - mean) / std, images, gain / (255 * std))


def to_floats(images: Tensor, size: int, enlarge: bool) -> Tensor:
    """Images (n, h, w, 3) uint8 as (n, 3, h, w) float in 0..255, shrunk to `size`, or enlarged if asked."""
    images = images.permute(0, 3, 1, 2).float()
    side = images.shape[2]
    if side > size or enlarge and side < size:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=side > size)
    return images


def to_grey(images: Tensor) -> Tensor:
    """The luma of images (n, 3, h, w): (n, 1, h, w)."""
    return F.conv2d(images, constant(LUMA, images.device))


def prepare(images: Tensor, size: int, grey: bool = False) -> Tensor:
    """The network's input, as validation and use have it.

    Args: images (n, h, w, 3) uint8; size in pixels; grey, whether colors are taken away.
    Returns: (n, 3, size, size) float32, normalised, channels_last.
    """
    batch = to_floats(images, size, enlarge=True)
    if grey:
        batch = to_grey(batch).expand(-1, 3, -1, -1)
    return normalise(batch).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, size: int, draws: Tensor) -> Tensor:
    """The network's input, as training has it: `prepare` with chance, the batch at once.

    Each image is mirrored or not, turned, scaled and shifted in one bilinear resampling; some turn grey;
    contrast and brightness vary; from some a rectangle is erased. The ranges stand at the top of this file.
    Args: images (n, h, w, 3) uint8; size in pixels; draws (n, DRAWS) float32 in 0..1, on their device.
    Returns: (n, 3, size, size) float32, normalised, channels_last.
    """
    # each (n, 1, 1), to meet the pixels' places across (1, size) and down (size, 1)
    (mirror, turn, scale, right, down, grey, contrast, brightness,
     erase, top, left, height, width) = draws.view(-1, DRAWS, 1, 1).unbind(1)
    grid = sampling_grid(mirror, turn, scale, right, down, size)
    batch = to_floats(images, size, enlarge=False)
    batch = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    batch = batch.contiguous(memory_format=torch.channels_last)
    batch.lerp_(to_grey(batch), (grey < GREY).float().unsqueeze(1))
    gain = 1 + CONTRAST * (2 * contrast - 1)
    shift = (1 - gain) / 2 + BRIGHTNESS * (2 * brightness - 1)         # contrast turns around mid-grey
    batch = normalise(batch, gain.unsqueeze(1), shift.unsqueeze(1))
    hole = inside(top, height, size).transpose(1, 2) & inside(left, width, size) & (erase < ERASED)
    return batch.masked_fill_(hole.unsqueeze(1), 0)


def sampling_grid(mirror: Tensor, turn: Tensor, scale: Tensor, right: Tensor, down: Tensor,
                  size: int) -> Tensor:
    """Where each pixel is taken from, from draws (n, 1, 1): (n, size, size, 2)
    in grid_sample's coordinates -1..1.
    """
    turn, zoom = math.radians(TURN) * (2 * turn - 1), (1 + SCALE) ** (2 * scale - 1)
    cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    centres = 2 * (torch.arange(size, device=turn.device) / size) + 1 / size - 1
    x, y = centres.view(1, -1), centres.view(-1, 1)
    x = torch.where(mirror < 0.5, -x, x)
    across, along = 2 * SHIFT * (2 * right - 1), 2 * SHIFT * (2 * down - 1)
    return torch.stack((x * cos - y * sin + across, x * sin + y * cos + along), 3)


def inside(begin: Tensor, length: Tensor, size: int) -> Tensor:
    """Which of `size` places lie within a stretch of random length and begin, from draws (n, 1, 1):
    (n, 1, size) bool.
    """
    shortest, longest = ERASED_SIDE
    length = shortest + (longest - shortest) * length
    begin = begin * (1 - length)
    places = (torch.arange(size, device=begin.device) / size).view(1, -1)
    return (places >= begin) & (places < begin + length)


# ---- its losses -------------------------------------------------------------------------------------------

def losses(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss of each image and task, 0 where its label is unknown.

    Args: outputs, logits (n, classes) by task; labels (n,) as `Faces.labels` gives them.
    Returns: (n,) float32 by task.
    """
    result = {}
    for task, logits in outputs.items():
        label = labels[task]
        if task == "age":
            loss = age_loss(logits.float(), label.nan_to_num(), labels["age_std"].nan_to_num())
        else:
            loss = F.cross_entropy(logits.float(), label, reduction="none", ignore_index=-1,
                                   label_smoothing=SMOOTHING)
        result[task] = loss.masked_fill(~known(label), 0)
    return result


def age_loss(logits: Tensor, age: Tensor, age_std: Tensor) -> Tensor:
    """Cross-entropy against a Gaussian around the label, and the distance of the expected age to the label.

    DLDL-v2, Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018. The
    Gaussian widens with the label's standard deviation, up to MAX_SIGMA.
    Args: logits (n, 101) float32; age and age_std (n,) years. Returns: (n,) float32.
    """
    sigma = (AGE_SIGMA ** 2 + age_std ** 2).sqrt().clamp(max=MAX_SIGMA).unsqueeze(1)
    ages = torch.arange(MAX_AGE + 1.0, device=logits.device)
    target = (-((ages - age.unsqueeze(1)) / sigma) ** 2 / 2).softmax(1)
    distance = (expected_age(logits) - age).abs()
    return AGE_LOSS * (F.cross_entropy(logits, target, reduction="none") + AGE_DISTANCE * distance)


def soft_targets(logits: Tensor) -> Tensor:
    """A teacher's probabilities as they are learned: logits (n, classes) -> (n, classes) float32."""
    return (logits.float() / TEACHER_TEMPERATURE).softmax(1)


def distilled(of_labels: dict[str, Tensor], outputs: dict[str, Tensor],
              targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses of labels mixed with the distances to the teachers' predictions, which count also where a
    label is unknown.

    Knowledge distillation, Hinton et al. 2015, arXiv:1503.02531: the Kullback-Leibler divergence of the
    softened probabilities, times the squared temperature, which undoes that it makes gradients small.
    Args: of_labels (n,) and outputs, logits (n, classes), by task; targets, `soft_targets` (n, classes) of
        the same images, by task that a teacher predicts. Returns: (n,) float32 by task.
    """
    result = dict(of_labels)
    for task, target in targets.items():
        student = (outputs[task].float() / TEACHER_TEMPERATURE).log_softmax(1)
        divergence = F.kl_div(student, target, reduction="none").sum(1)
        result[task] = ((1 - TEACHER_WEIGHT) * of_labels[task]
                        + TEACHER_WEIGHT * TEACHER_TEMPERATURE ** 2 * divergence)
    return result


# ---- device and precision ---------------------------------------------------------------------------------

def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the GPU, where there is one. Raises DataError.

    cuDNN then computes by deterministic algorithms alone.
    """
    torch.backends.cudnn.deterministic = True
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=chosen).device         # cuda as cuda:0
    except Exception as error:                              # each kind of device has its own
        raise DataError(f"{chosen}: can't be used here ({one_line(error)[:200]}); "
                        "--device cpu goes without") from None


def fast_precision(device: torch.device) -> torch.dtype:
    """What the device computes fastest in training:
    bfloat16 on GPUs from Ampere on and CPUs with AVX512-BF16.

    float16 on older GPUs, whose gradients then need scaling; else float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)    # private, so another torch may lack it
    return torch.bfloat16 if probe is not None and probe() else torch.float32


# ---- checkpoints ------------------------------------------------------------------------------------------

# first bytes of files that are taken for checkpoints
OTHER_FILES = {
    rb"version https://git-lfs": "a Git LFS pointer, not the file itself; git lfs pull brings that",
    rb"\s*<": "a web page (HTML), not a checkpoint; the download went wrong",
    rb"(?s).{5}\0\0\0{": "in the safetensors format; safetensors.torch.load_file reads it, and torch.save "
                          "makes a checkpoint of it",
}


def read_checkpoint(file: Path) -> dict:
    """A checkpoint's content, on the CPU: tensors and plain values only, nothing in it is run.
    Raises CheckpointError.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint {file}")
    with open(file, "rb") as content:
        head = content.read(200)
    for start, kind in OTHER_FILES.items():
        if re.match(start, head):
            raise CheckpointError(f"{file}: {kind}")
    try:
        check_sums(file)
        with torch.serialization.safe_globals(numpy_numbers()):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(f"{file}: refused, since it holds more than tensors and plain values "
                              f"({name[1] if name else 'no checkpoint'})") from None
    except Exception as error:              # torch raises anything on a file that is damaged or another's
        raise CheckpointError(f"{file}: damaged, or not a PyTorch checkpoint "
                              f"({one_line(error)[:200]})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}; expected a dict with a state dict")
    return content


def check_sums(file: Path) -> None:
    """Raise BadZipFile where a checkpoint's checksums are wrong, which torch does not check."""
    damaged = zipfile.ZipFile(file).testzip() if zipfile.is_zipfile(file) else None
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def numpy_numbers() -> list:
    """What NumPy's numbers and arrays are read by; it runs nothing of the file's."""
    makers = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    # NumPy 1's names
    old = [(maker, f"numpy.core.multiarray.{maker.__name__}") for maker in makers]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*makers, *old, np.ndarray, np.dtype, *kinds]


def save_checkpoint(content: dict, file: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    buffer = io.BytesIO()                   # a full disk is then the file's error, not one of torch's
    torch.save(content, buffer)
    with whole_file(file) as output:
        output.write(buffer.getbuffer())


def description() -> dict:
    """What a checkpoint says of its network's input and outputs."""
    classes = {f"{task}s": list(names) for task, names in CLASS_NAMES.items()}
    return {"mean": list(MEAN), "std": list(STD), "ages": NUM_CLASSES["age"], **classes}


def open_checkpoint(file: Path) -> tuple[FaceAttributeNet, dict]:
    """The network of a checkpoint of this project, ready for use on the CPU, and the checkpoint's content.

    That has image_size; decoded_size, of the images that were shrunk to it; tasks; temperatures (see
    evaluate.calibrate); drawn and detected, of the training faces; description().
    Raises: CheckpointError, also where its classes or normalisation are not this code's.
    """
    content = read_checkpoint(file)
    keys = ("model", "image_size", "decoded_size", "tasks", "temperatures", "drawn", "detected",
            *description())
    missing = [key for key in keys if key not in content]
    if missing:
        raise CheckpointError(f"{file}: not a checkpoint of this project, it has no {', '.join(missing)}; "
                              "train.py --pretrained takes others' weights")
    for key, value in description().items():
        if content[key] != value:
            raise CheckpointError(f"{file}: its {key} are {content[key]}; this code's are {value}")
    network = FaceAttributeNet()
    load_state(network, content["model"], file)
    return network.eval(), content


def load_state(network: FaceAttributeNet, state: dict[str, Tensor], file: Path) -> None:
    """Load a state dict of this project. Raises CheckpointError where it is another network's or not finite.
    """
    try:
        network.load_state_dict(state)
    except Exception as error:              # torch raises anything on what is no state dict
        raise CheckpointError(f"{file}: not of this network ({one_line(error)[:300]})") from None
    check_finite(network, file)


def check_finite(network: FaceAttributeNet, file: Path) -> None:
    """Raise CheckpointError where a weight is not a number."""
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{file}: {name} holds values that are no numbers")


# ---- weights of others ------------------------------------------------------------------------------------

# modules of a ResNet-18 that was kept as nn.Sequential(*children), and Age-Gender-Pred's heads -> ours
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
AGE_GENDER_PRED = {"fc1": "age.0", "age_cls_pred": "age.2", "fc2": "gender.0", "gen_cls_pred": "gender.2"}


def load_weights(network: FaceAttributeNet, file: Path) -> str:
    """Load what fits, by name and shape, of this project's or anybody's checkpoint; the rest stays as it is.

    Returns: a line that says how many tensors were loaded, which are new, and how many found no place.
    Raises: CheckpointError, where nothing fits or the file is of a deeper network.
    """
    state = find_state_dict(read_checkpoint(file))
    target = network.state_dict()
    names = match_names(state, target)
    fits = {ours: state[name] for name, ours in names.items() if state[name].shape == target[ours].shape}
    if not any(value.dim() > 1 for value in fits.values()):
        raise CheckpointError(
            f"{file}: none of its {len(state)} tensors fits this ResNet-18 by name and shape")
    rest = [name for name in state if name not in names]
    deeper = [name for name in rest if re.search(r"layer[1-4]\.(\d+\.conv3|[2-9]|\d\d+)\b", name)]
    if deeper:
        raise CheckpointError(f"{file}: of a deeper network, it has {deeper[0]}; expected a ResNet-18")
    network.load_state_dict(fits, strict=False)
    check_finite(network, file)
    line = f"{file}: {len(fits)} of the model's {len(target)} tensors loaded"
    new = dict.fromkeys(name.rpartition(".")[0] for name in target
                        if name not in fits and "num_batches" not in name)
    if new:
        line += f"; new: {', '.join(new)}"
    for name, ours in names.items():
        if ours == "age.2.weight" and ours not in fits:
            line += f" (its age head has {len(state[name])} ages, not {NUM_CLASSES['age']})"
    if rest:
        line += f"; {len(rest)} of the file's {len(state)} tensors found no place: {', '.join(rest[:3])}"
    return line


def find_state_dict(content: dict) -> dict[str, Tensor]:
    """The state dict in a checkpoint: of `content` and the dicts in it, the one with most tensors."""
    levels = [content]
    for level in levels:
        levels += [value for value in level.values()
                   if isinstance(value, dict) and not any(value is other for other in levels)]
    state = max(levels, key=lambda level: sum(isinstance(value, Tensor) for value in level.values()))
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def match_names(names: Collection[str], ours: Collection[str]) -> dict[str, str]:
    """Those of `names` that end like one of `ours` -> that one.

    What stands before is stripped: the prefix that most of the names have, and of the heads also a part of
    it.
    """
    by_prefix = {}
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            module, rest = parts[start], parts[start + 1:]
            prefix = ".".join(parts[:start])
            for kind in ({module: module}, SEQUENTIAL, AGE_GENDER_PRED):
                candidate = ".".join([kind.get(module, ""), *rest])
                if candidate in ours:
                    by_prefix.setdefault(prefix, {})[name] = candidate
    best = max(by_prefix, key=lambda prefix: len(by_prefix[prefix]), default="")
    matched = by_prefix.get(best, {})
    for prefix, pairs in by_prefix.items():
        if best.startswith(prefix):
            heads = {name: target for name, target in pairs.items() if target.startswith(TASKS)}
            matched = {name: target for name, target in heads.items()
                       if target not in matched.values()} | matched
    return matched
