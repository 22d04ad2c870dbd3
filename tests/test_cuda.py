"""The CUDA path on a machine without a GPU: in fake tensors, which know shapes, types and devices and hold
no values.

A tensor that stays on the CPU by mistake raises there. The backward pass needs a real GPU.
"""
import argparse

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import datasets
import evaluate
import model as models
import train


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device in fake tensors; what is pinned for a real one is left as it is."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *arguments: True)
    models.constant.cache_clear()    # a fake constant must not outlive the test, nor a real one enter it
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda:0")
    models.constant.cache_clear()


@pytest.fixture
def faces():
    """Ten faces in colour with age and gender, six grey ones with an emotion."""
    colour = datasets.new_faces(None, [str(i) for i in range(10)], age=range(10), gender=[0, 1] * 5)
    grey = datasets.new_faces(None, [str(i) for i in range(6)], emotion=range(6))
    colour.parts[0].pixels, grey.parts[0].pixels = np.zeros((10, 64, 64, 3), np.uint8), np.zeros(
        (6, 48, 48, 1), np.uint8)
    return datasets.join([colour, grey])


def trainer_on(gpu, faces, monkeypatch, precision):
    monkeypatch.setattr(models, "fast_precision", lambda device: precision)
    monkeypatch.setattr(train, "make_optimizer", lambda *arguments: None)
    args = argparse.Namespace(weights=[1, 1, 1], samples=None, batch_size=16, image_size=64, epochs=1,
                              lr=0.1, decay=0.0, constant=False, seed=0, compile=False)
    # it is there already
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *arguments, **options: module)
    with torch.device(gpu):
        trainer = train.Trainer(args, gpu)
    trainer.start(faces)
    return trainer


@pytest.mark.parametrize("precision, free", [(torch.bfloat16, 10 ** 9), (torch.float16, 0)])
def test_a_training_step_up_to_its_loss(gpu, faces, monkeypatch, precision, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 ** 9))
    trainer = trainer_on(gpu, faces, monkeypatch, precision)
    assert all(isinstance(part.pixels, torch.Tensor) == bool(free) for part in trainer.faces.parts)
    (batch,) = datasets.batches(faces, None, 16, models.DRAWS, 0, 1)
    outputs = trainer.forward(batch)
    assert {task: (logits.shape, logits.dtype, logits.device) for task, logits in outputs.items()} == {
        task: ((16, classes), precision, gpu) for task, classes in models.CLASSES.items()}
    for loss in models.losses(outputs, datasets.labels_of(faces, batch.rows, gpu)).values():
        assert (loss.shape, loss.dtype, loss.device) == ((16,), torch.float32, gpu)


@pytest.fixture(scope="module")
def network():
    """The network as it is evaluated, folded before there are fake tensors, which can't be copied."""
    return models.fuse(models.FaceNet())


@pytest.mark.parametrize("tta", [False, True])
def test_evaluation(network, gpu, faces, tta):
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.empty(parameter.shape, device=gpu)
    rows = np.arange(16)
    images = datasets.gather(faces, rows, gpu)
    outputs = evaluate.logits_of(network, images, 64, datasets.TASKS, tta)
    losses = models.losses(outputs, datasets.labels_of(faces, rows, gpu))
    for task, logits in outputs.items():
        assert (logits.shape, logits.dtype, logits.device) == ((16, models.CLASSES[task]), torch.float32,
                                                               gpu)
        assert losses[task].device == gpu
    assert models.expected_age(outputs["age"]).device == gpu


def test_a_tensor_left_on_the_cpu_is_noticed(gpu):
    with torch.device(gpu):
        network = models.FaceNet().eval()
    with pytest.raises(Exception, match="device"):
        network(torch.zeros(1, 3, 64, 64, device="cpu"))
