"""The network, a torchvision ResNet-18 whose final fully connected layer is replaced by three heads; its losses; checkpoints."""
import copy
import os
import pickle
import re
import signal
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, ResNet

CLASSES = {"age": 101, "gender": 2, "emotion": 7}       # ages 0..100 years, a class each


class CheckpointError(Exception):
    """A file that holds no usable weights, told in one line."""


class FaceNet(ResNet):
    """ResNet-18 with a head for each of age, gender and emotion: a hidden layer of 512 and an output layer.

    Input: (n, 3, h, w) float, normalised. Output: for each task asked for, logits (n, classes).
    """

    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Identity()
        for task, classes in CLASSES.items():
            self.add_module(task, nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)))

    def forward(self, images: Tensor, tasks: Collection[str] = tuple(CLASSES)) -> dict[str, Tensor]:
        features = super().forward(images)
        return {task: getattr(self, task)(features) for task in tasks}


def fuse(model: FaceNet) -> FaceNet:
    """A copy for evaluation, each BatchNorm folded into the convolution before it: the same function, faster."""
    model = copy.deepcopy(model).eval()

    def fold(module: nn.Module, convolution: str, norm: str) -> None:
        setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
    fold(model, "conv1", "bn1")
    for block in (block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer):
        fold(block, "conv1", "bn1")
        fold(block, "conv2", "bn2")
        if block.downsample is not None:
            fold(block.downsample, "0", "1")
    return model


def expected_age(logits: Tensor) -> Tensor:
    """Age as the expectation over the age classes: (n, 101) logits -> (n,) float32 years."""
    return logits.float().softmax(1) @ torch.arange(CLASSES["age"], dtype=torch.float32, device=logits.device)


def losses(outputs: dict[str, Tensor], labels) -> dict[str, Tensor]:
    """The loss of each image and task, 0 where its label is unknown.

    Age: cross-entropy against a Gaussian of 2 years around the label, plus a tenth of the distance in years between the
    expected age and the label (DLDL-v2, Gao et al., IJCAI 2018), halved, since its gradients are more than twice those of
    the others. Gender and emotion: cross-entropy, labels smoothed by 0.1.

    Args: outputs, logits (n, classes) by task; labels with age (n,) float, NaN unknown, gender and emotion (n,) int64, -1 unknown.
    Returns: (n,) float32 by task.
    """
    result = {}
    for task, logits in outputs.items():
        logits = logits.float()
        if task == "age":
            unknown = labels.age.isnan()
            age = labels.age.masked_fill(unknown, 0)
            classes = torch.arange(CLASSES["age"], dtype=torch.float32, device=logits.device)
            target = (-((classes - age.unsqueeze(1)) / 2) ** 2 / 2).softmax(1)
            loss = F.cross_entropy(logits, target, reduction="none") + 0.1 * (expected_age(logits) - age).abs()
            result[task] = (loss / 2).masked_fill(unknown, 0)
        else:
            result[task] = F.cross_entropy(logits, getattr(labels, task), reduction="none", ignore_index=-1, label_smoothing=0.1)
    return result


def read_checkpoint(file: str | Path) -> dict:
    """A checkpoint's content, on the CPU: tensors and plain values only, nothing in it is run. Raises CheckpointError."""
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{file}: refused, since it is no checkpoint or holds more than tensors and plain values, "
                              "which would have to be run to be read") from None
    except Exception as error:                          # torch raises anything on a file that is truncated or none of its own
        raise CheckpointError(f"{file}: truncated, or not a PyTorch checkpoint ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}; expected a dict with a state dict")
    return content


def write_checkpoint(content: dict, file: Path) -> None:
    """Write a checkpoint beside `file` and rename it over, so that a whole one is there at any instant. Raises CheckpointError."""
    partial = file.with_name(file.name + ".partial")
    interrupts = []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupts.append(None))      # Ctrl-C waits for the file to be whole
    try:
        with open(partial, "wb") as output:
            torch.save(content, output)
            output.flush()
            os.fsync(output.fileno())
        partial.replace(file)
    except (OSError, RuntimeError) as error:                # torch tells of a full disk by a RuntimeError
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{file}: can't be written ({' '.join(str(error).split())}); what was there is left as it was") from None
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        raise KeyboardInterrupt


def state_dict_in(content: dict) -> dict[str, Tensor]:
    """The state dict in a checkpoint: of `content` and the dicts in it, to any depth, the first that holds the most tensors."""
    own = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return max((own, *(state_dict_in(value) for value in content.values() if isinstance(value, dict))), key=len)


def load_weights(model: FaceNet, file: str | Path) -> str:
    """Load what fits, by name and shape, of this project's or anybody's checkpoint; the rest of the model stays as it is.

    Prefixes such as `module.`, `resNet.` and `backbone.` are stripped, Age-Gender-Pred's head names are translated.
    Returns: a line that says how many tensors were loaded and which are new. Raises: CheckpointError.
    """
    state = {}
    for name, value in state_dict_in(read_checkpoint(file)).items():
        name = re.sub(r"^((module|model|net|network|resnet|backbone|encoder|_orig_mod)\.)+", "", str(name), flags=re.IGNORECASE)
        for theirs, ours in (("fc1.", "age.0."), ("age_cls_pred.", "age.2."), ("fc2.", "gender.0."), ("gen_cls_pred.", "gender.2.")):
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        state[name] = value
    own = model.state_dict()
    fits = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not any(value.dim() > 1 for value in fits.values()):
        raise CheckpointError(f"{file}: none of its {len(state)} tensors fits this ResNet-18 by name and shape")
    if broken := [name for name, value in fits.items() if not torch.isfinite(value.float()).all()]:
        raise CheckpointError(f"{file}: {broken[0]} holds values that are no numbers")
    model.load_state_dict(fits, strict=False)
    line = f"{file}: {len(fits)} of the model's {len(own)} tensors loaded"
    new = dict.fromkeys(re.sub(r"\.(weight|bias|running_\w+|num_batches_tracked)$", "", name) for name in own if name not in fits)
    if new:
        line += f"; new: {', '.join(new)}"
    if (age := state.get("age.2.weight")) is not None and "age.2.weight" not in fits:
        line += f" (its age head tells {len(age)} ages, not {CLASSES['age']})"
    return line
