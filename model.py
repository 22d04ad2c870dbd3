"""The network, its input, its losses, and checkpoints.

The network is a torchvision ResNet-18 whose final fully connected layer is replaced by three heads: age,
gender, emotion.
"""
import copy
import functools
import io
import math
import pickle
import re
import reprlib
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, ResNet

from datasets import (CLASS_NAMES, EMOTIONS, GENDERS, OLDEST, TASKS, DataError, Labels, few, known, one_line,
                      whole_file)

CLASSES = {"age": OLDEST + 1, **{task: len(names) for task, names in CLASS_NAMES.items()}}  # an age a class
HIDDEN = 512                            # width of a head's hidden layer
AGE_SHARE = 0.8                         # of its age distribution, that a face's range of ages holds

# the input, normalised by ImageNet's statistics, which torchvision's own weights expect
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
WIDEST_SIGMA = 6                        # years, of a label that is a guess or a range
AGE_DISTANCE = 0.1                      # weight of the distance in years beside the cross-entropy
AGE_LOSS = 0.5                          # of the sum, whose gradients are more than twice those of the others
SMOOTHING = 0.1                         # of the labels of gender and emotion
# the share of a loss that is the distance to teachers' predictions, and the temperature that softens them
# (emotion alone, 24 epochs at 96 pixels: 68.4 % with steps of 64 images; untaught, with 256, 67.5 %; one run
# each)
TEACHER_SHARE, TEACHER_TEMPERATURE = 0.5, 2


class CheckpointError(DataError):
    """A file that holds no usable weights, told in one line."""


# ---- the network ------------------------------------------------------------------------------------------

class FaceNet(ResNet):
    """ResNet-18 with a head for each of age, gender and emotion: a hidden layer and an output layer.

    Input: (n, 3, h, w) float, normalised. Output: for each task asked for, logits (n, classes).
    """

    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Identity()
        for task, classes in CLASSES.items():
            head = nn.Sequential(nn.Linear(512, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
            self.add_module(task, head)

    def forward(self, images: Tensor, tasks: Collection[str] = TASKS) -> dict[str, Tensor]:
        features = super().forward(images)
        return {task: getattr(self, task)(features) for task in tasks}


def expected_age(logits: Tensor) -> Tensor:
    """Age as the expectation over the age classes: (n, 101) logits -> (n,) float32 years."""
    ages = torch.arange(CLASSES["age"], dtype=torch.float32, device=logits.device)
    return logits.float().softmax(1) @ ages


def age_range(logits: Tensor, share: float = AGE_SHARE) -> tuple[Tensor, Tensor]:
    """The central `share` of each age distribution, logits (n, 101): its first and its last year,
    (n,) int64 each.
    """
    below = logits.float().softmax(1).cumsum(1)
    low, high = ((below < bound).sum(1) for bound in ((1 - share) / 2, (1 + share) / 2))
    return low, high.clamp(max=CLASSES["age"] - 1)


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


def as_floats(images: Tensor, size: int, enlarge: bool) -> Tensor:
    """Images (n, h, w, channels) uint8 as (n, channels, h, w) float in 0..255, shrunk to `size`,
    or enlarged if asked.
    """
    images = images.permute(0, 3, 1, 2).float()
    if images.shape[2] > size or enlarge and images.shape[2] < size:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=images.shape[2] > size)
    return images


def prepare(images: list[Tensor], size: int, grey: bool = False) -> Tensor:
    """The network's input, as validation and use have it.

    Args: images, groups (n_i, h, w, 3 or 1) uint8, each of one size; size in pixels; grey, whether colours
        are taken away.
    Returns: (n, 3, size, size) float32, normalised, channels_last.
    """
    batch = torch.cat([as_floats(group, size, enlarge=True).expand(-1, 3, -1, -1) for group in images])
    if grey:
        batch = (batch * constant(LUMA, batch.device)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    return normalise(batch).contiguous(memory_format=torch.channels_last)


def augment(images: list[Tensor], size: int, draws: Tensor) -> Tensor:
    """The network's input, as training has it: `prepare` with chance, the whole batch at once.

    Each image is mirrored or not, turned, scaled and shifted in one bilinear resampling; some turn grey;
    contrast and brightness vary; from some a rectangle is erased. The ranges stand at the top of this file.

    Args: images, groups (n_i, h, w, 3 or 1) uint8, each of one size; size in pixels;
        draws (n, DRAWS) float32 in 0..1, on the images' device.
    Returns: (n, 3, size, size) float32, normalised, channels_last.
    """
    # each (n, 1, 1), to meet the pixels' places across (1, size) and down (size, 1)
    (mirror, turn, scale, right, down, grey, contrast, brightness,
     erase, top, left, height, width) = draws.view(-1, DRAWS, 1, 1).unbind(1)
    grid = sampling_grid(mirror, turn, scale, right, down, size)
    batch = torch.empty((len(draws), 3, size, size), device=draws.device, memory_format=torch.channels_last)
    counts = [len(group) for group in images]
    turned_grey = (grey < GREY).float().unsqueeze(1).split(counts)
    for group, out, places, greyed in zip(images, batch.split(counts), grid.split(counts), turned_grey):
        shrunk = as_floats(group, size, enlarge=False)
        out.copy_(F.grid_sample(shrunk, places, padding_mode="border", align_corners=False))
        if group.shape[3] == 3:
            out.lerp_(F.conv2d(out, constant(LUMA, out.device)), greyed)
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

def losses(outputs: dict[str, Tensor], labels: Labels) -> dict[str, Tensor]:
    """The loss of each image and task, 0 where its label is unknown.

    Args: outputs, logits (n, classes) by task; labels of the same images, on the same device.
    Returns: (n,) float32 by task.
    """
    result = {}
    for task, logits in outputs.items():
        label = getattr(labels, task)
        if task == "age":
            loss = age_loss(logits.float(), label.nan_to_num(), labels.spread.nan_to_num())
            result[task] = loss.masked_fill(~known(labels, task), 0)
        else:
            result[task] = F.cross_entropy(logits.float(), label, reduction="none", ignore_index=-1,
                                           label_smoothing=SMOOTHING)
    return result


def soft_targets(logits: Tensor) -> Tensor:
    """A teacher's probabilities as they are learned: logits (n, classes) -> (n, classes) float32."""
    return (logits.float() / TEACHER_TEMPERATURE).softmax(1)


def distilled(of_labels: dict[str, Tensor], outputs: dict[str, Tensor],
              targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses of labels mixed with the distances to a teacher's predictions, which are learned also where
    the label is unknown.

    Knowledge distillation, Hinton et al. 2015, arXiv:1503.02531: the Kullback-Leibler divergence of the
    softened probabilities, times the squared temperature, which undoes that it makes gradients small. Age's
    distance counts whole, where its label's loss is halved (AGE_LOSS).
    Args: of_labels (n,) and outputs, logits (n, classes), by task; targets, `soft_targets` (n, classes) of
        the same images by task, for those tasks that a teacher knows.
    Returns: (n,) float32 by task.
    """
    result = dict(of_labels)
    for task, target in targets.items():
        own = (outputs[task].float() / TEACHER_TEMPERATURE).log_softmax(1)
        distance = TEACHER_TEMPERATURE ** 2 * F.kl_div(own, target, reduction="none").sum(1)
        result[task] = (1 - TEACHER_SHARE) * of_labels[task] + TEACHER_SHARE * distance
    return result


def age_loss(logits: Tensor, age: Tensor, spread: Tensor) -> Tensor:
    """Cross-entropy against a Gaussian around the label, and the distance of the expected age to the label.

    DLDL-v2, Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018. The
    Gaussian widens with the label's own spread, up to WIDEST_SIGMA.
    Args: logits (n, 101) float32; age and its spread (n,) years. Returns: (n,) float32.
    """
    sigma = (AGE_SIGMA ** 2 + spread ** 2).sqrt().clamp(max=WIDEST_SIGMA).unsqueeze(1)
    ages = torch.arange(CLASSES["age"], dtype=torch.float32, device=logits.device)
    target = (-((ages - age.unsqueeze(1)) / sigma) ** 2 / 2).softmax(1)
    distance = (expected_age(logits) - age).abs()
    return AGE_LOSS * (F.cross_entropy(logits, target, reduction="none") + AGE_DISTANCE * distance)


# ---- device, precision, speed -----------------------------------------------------------------------------

def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the GPU, where there is one. Raises DataError."""
    try:
        chosen = name if name is not None else "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.zeros(1, device=chosen).device       # cuda as cuda:0
    except Exception as error:                              # each kind of device has its own
        raise DataError(f"--device {name}: not usable here ({one_line(error)[:100]})") from None
    if device.type not in ("cpu", "cuda"):
        raise DataError(f"--device {name}: expected cpu, cuda or cuda:N")
    return device


def compute_alike() -> None:
    """Let cuDNN use deterministic algorithms only, so that what is computed again comes out alike."""
    torch.backends.cudnn.deterministic = True


def fast_precision(device: torch.device) -> torch.dtype:
    """What the device computes fastest in training:
    bfloat16 on GPUs from Ampere on and CPUs with AVX512-BF16.

    float16 on older GPUs, whose gradients then need scaling; else float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)    # private, so another torch may lack it
    return torch.bfloat16 if probe is not None and probe() else torch.float32


def fuse(model: FaceNet) -> FaceNet:
    """A copy for evaluation, each BatchNorm folded into the convolution before it:
    the same function, faster.
    """
    model = copy.deepcopy(model).eval()

    def fold(module: nn.Module, convolution: str, norm: str) -> None:
        setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
    fold(model, "conv1", "bn1")
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            fold(block, "conv1", "bn1")
            fold(block, "conv2", "bn2")
            if block.downsample is not None:
                fold(block.downsample, "0", "1")
    return model


# ---- checkpoints ------------------------------------------------------------------------------------------

def read_checkpoint(file: str | Path) -> dict:
    """A checkpoint's content, on the CPU: tensors and plain values only, nothing in it is run.
    Raises CheckpointError.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint {file}")
    check_kind(file)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(numpy_numbers()):
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        met = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"{file}: refused, since it is no checkpoint or holds more than tensors and plain values"
            f"{f' ({met[1]})' if met else ''}, which would have to be run to be read") from None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror or one_line(error)})") from None
    except Exception as error:    # torch raises anything on a file that is truncated or none of its own
        raise CheckpointError(
            f"{file}: truncated, or not a PyTorch checkpoint ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}; expected a dict with a state dict")
    return content


def numpy_numbers() -> list:
    """What NumPy's numbers and arrays are read by; it runs nothing of the file's."""
    number, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    # NumPy 1's
    old_names = [(function, f"numpy.core.multiarray.{function.__name__}") for function in (number, array)]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [number, array, *old_names, np.ndarray, np.dtype, *kinds]


def check_kind(file: Path) -> None:
    """Raise CheckpointError where a file is of a known kind that is no checkpoint,
    is damaged, or can't be read.
    """
    try:
        with open(file, "rb") as content:
            head = content.read(200)
        if head.startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{file}: a Git LFS pointer, not the file itself; git lfs pull brings that")
        if head.lstrip()[:1] == b"<":
            raise CheckpointError(f"{file}: a web page (HTML), not a checkpoint; the download went wrong")
        if head[5:9] == b"\0\0\0{":
            raise CheckpointError(
                f"{file}: in the safetensors format; safetensors.torch.load_file reads it, "
                "torch.save writes a checkpoint of it")
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any("/code/" in name or name.endswith("constants.pkl") for name in names):
                raise CheckpointError(
                    f"{file}: a TorchScript program, not a checkpoint; expected its state dict")
            if not any(name.endswith("data.pkl") for name in names):
                raise CheckpointError(f"{file}: a zip archive, not a checkpoint; unpack it first")
            if damaged := archive.testzip():
                raise CheckpointError(f"{file}: damaged, the checksum of {damaged} is wrong")
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror or one_line(error)})") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: truncated or damaged ({one_line(error)[:100]})") from None


def write_checkpoint(content: dict, file: Path) -> None:
    """Write a checkpoint, whole or not at all. Raises DataError."""
    buffer = io.BytesIO()    # torch tells a full disk by anything, and a file object by what happened
    torch.save(content, buffer)
    with whole_file(file) as output:
        output.write(buffer.getbuffer())


def description() -> dict:
    """What a checkpoint of this code tells besides its tensors:
    how images are prepared and what the outputs mean.
    """
    return {"mean": list(MEAN), "std": list(STD), "ages": CLASSES["age"], "genders": list(GENDERS),
            "emotions": list(EMOTIONS)}


def open_checkpoint(file: Path) -> tuple[FaceNet, dict]:
    """The model of a checkpoint of this project, and the whole content, which tells image_size, decoded_size
    (of the images that were shrunk to it), tasks, temperatures (see evaluate.calibrate) and description().

    Raises: CheckpointError, also where its classes or normalisation are not this code's.
    """
    content = read_checkpoint(file)
    if lacking := [key for key in ("model", "image_size", "tasks", *description()) if key not in content]:
        raise CheckpointError(f"{file}: not a checkpoint of this project, it has no {', '.join(lacking)}; "
                              "train.py --pretrained takes others' weights")
    for key, value in description().items():
        if not same_plain(content[key], value):
            raise CheckpointError(
                f"{file}: its {key} are {reprlib.repr(content[key])}; this code's are {value}")
    size, tasks = content["image_size"], content["tasks"]
    decoded = content.setdefault("decoded_size", size)
    if not (all(type(side) is int and 16 <= side <= 1024 for side in (size, decoded))
            and isinstance(tasks, list) and tasks
            and all(isinstance(task, str) and task in TASKS for task in tasks)):
        raise CheckpointError(
            f"{file}: an image size of {reprlib.repr(size)}, decoded at {reprlib.repr(decoded)}, for tasks "
            f"{reprlib.repr(tasks)}; expected 16 to 1024 pixels for some of {', '.join(TASKS)}")
    temperatures = content.setdefault("temperatures", {})       # which earlier versions don't tell
    if not (isinstance(temperatures, dict) and all(
            task in TASKS and type(value) in (int, float) and 0.01 <= value <= 100
            for task, value in temperatures.items())):
        raise CheckpointError(f"{file}: its temperatures are {reprlib.repr(temperatures)}; "
                              "expected a number from 0.01 to 100 for each task")
    model = FaceNet()
    load_state(model, content["model"], file)
    return model, content


def same_plain(value: object, expected: int | list) -> bool:
    """Whether a value of a file is `expected`, a plain one; a tensor, which equals nothing plainly, is not.
    """
    if isinstance(expected, list):
        return (isinstance(value, list) and len(value) == len(expected)
                and all(same_plain(own, other) for own, other in zip(value, expected)))
    return type(value) is type(expected) and value == expected


def load_state(model: FaceNet, state: object, file: Path) -> None:
    """Load this project's own state dict, all of it.
    Raises CheckpointError where it is not this network's, or not sound.
    """
    expected = model.state_dict()
    if not isinstance(state, dict) or state.keys() != expected.keys():
        raise CheckpointError(f"{file}: its tensors are not this network's")
    for name, value in state.items():
        check_tensor(value, expected[name], f"{file}: {name}")
    model.load_state_dict(state)


def check_tensor(value: object, expected: Tensor, where: str) -> None:
    """Raise CheckpointError, beginning with `where`, if `value` can't stand in `expected`'s place."""
    if not is_plain(value):
        raise CheckpointError(f"{where} is no plain tensor")
    if value.shape != expected.shape:
        raise CheckpointError(f"{where} is of shape {reprlib.repr(list(value.shape))}, which is not this "
                              f"network's; expected {list(expected.shape)}")
    if not torch.isfinite(value.float()).all():
        raise CheckpointError(f"{where} holds values that are no numbers")


def is_plain(value: object) -> bool:
    """Whether `value` is a dense tensor of real numbers on the CPU."""
    return (isinstance(value, Tensor) and value.dtype in PLAIN_TYPES and value.layout is torch.strided
            and value.device.type == "cpu" and not value.is_nested)


PLAIN_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8,
               torch.int16, torch.int32, torch.int64, torch.bool)


def state_dict_in(content: dict) -> dict[str, object]:
    """The state dict in a checkpoint: of `content` and the dicts in it,
    the first that holds the most tensors.
    """
    waiting, seen, best = [content], set(), {}
    while waiting:    # no recursion: what is deep, shared or contains itself ends all the same
        level = waiting.pop(0)
        if id(level) in seen:
            continue
        seen.add(id(level))
        own = {str(name): value for name, value in level.items() if isinstance(value, Tensor)}
        best = own if len(own) > len(best) else best
        waiting += [value for value in level.values() if isinstance(value, dict)]
    return best


# what stands for this network's modules where somebody kept a ResNet-18 as nn.Sequential(*children)
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Age-Gender-Pred's heads
AGE_GENDER_PRED = {"fc1": "age.0", "age_cls_pred": "age.2", "fc2": "gender.0", "gen_cls_pred": "gender.2"}


def our_names(names: Collection[str], own: Collection[str]) -> dict[str, str]:
    """Those of `names` that end like one of the model's `own` names -> that name.

    What stands before is stripped: the prefix that most of the names have,
    and of the heads also a part of it.
    """
    longest = max(name.count(".") for name in own)
    by_prefix = {}
    for name in names:
        dots = [-1, *(i for i, character in enumerate(name) if character == ".")]
        for dot in dots[-longest - 1:]:
            prefix, (module, *rest) = name[:dot + 1], name[dot + 1:].split(".", 1)
            for kind in ({}, SEQUENTIAL, AGE_GENDER_PRED):
                ours = ".".join([kind.get(module, module), *rest])
                if ours in own and (not kind or module in kind):
                    by_prefix.setdefault(prefix, {})[name] = ours
    best = max(by_prefix, key=lambda prefix: len(by_prefix[prefix]), default="")
    found = dict(by_prefix.get(best, {}))
    for prefix, pairs in by_prefix.items():
        if best.startswith(prefix):
            heads = {name: ours for name, ours in pairs.items() if ours.startswith(TASKS)}
            found |= {name: ours for name, ours in heads.items() if ours not in found.values()}
    return found


def load_weights(model: FaceNet, file: str | Path) -> str:
    """Load what fits, by name and shape, of this project's or anybody's checkpoint;
    the rest of the model stays as it is.

    Returns: a line that says how many tensors were loaded, which are new, and how many of the file found no
        place.
    Raises: CheckpointError, where nothing fits or the file is of a deeper network.
    """
    state = state_dict_in(read_checkpoint(file))
    own = model.state_dict()
    named = our_names(state, own)
    fits = {ours: state[name] for name, ours in named.items()
            if is_plain(state[name]) and own[ours].shape == state[name].shape}
    if not any(value.dim() > 1 for value in fits.values()):
        raise CheckpointError(
            f"{file}: none of its {len(state)} tensors fits this ResNet-18 by name and shape")
    homeless = [name for name in state if name not in named]
    if deeper := [name for name in homeless if re.search(r"layer[1-4]\.(\d+\.conv3|[2-9]|\d\d+)\b", name)]:
        raise CheckpointError(f"{file}: of a deeper network, it has {deeper[0]}; expected a ResNet-18")
    for name, value in fits.items():
        check_tensor(value, own[name], f"{file}: {name}")
    model.load_state_dict(fits, strict=False)
    line = f"{file}: {len(fits)} of the model's {len(own)} tensors loaded"
    new = dict.fromkeys(name.rpartition(".")[0] for name in own
                        if name not in fits and "num_batches" not in name)
    if new:
        line += f"; new: {', '.join(new)}"
    heads = [state[name] for name, ours in named.items()
             if ours == "age.2.weight" and ours not in fits and state[name].dim()]
    if heads:
        line += f" (its age head tells {len(heads[0])} ages, not {CLASSES['age']})"
    if homeless:
        line += f"; {len(homeless)} of the file's {len(state)} tensors found no place: {few(homeless)}"
    return line
