"""The CUDA path on a machine without a GPU: in fake tensors, which know shapes, types and devices and hold
no values.

A tensor that stays on the CPU by mistake raises there. The backward pass needs a real GPU.
"""
import argparse
from dataclasses import replace

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
    """Ten faces with age and gender, six with an emotion."""
    def table(source, labels):
        rows = [datasets.Face(str(i), **each) for i, each in enumerate(labels)]
        part = datasets.Part(datasets.SOURCES[source], "train", None, rows)
        return replace(datasets.Faces.of(part), images=[np.zeros((len(rows), 64, 64, 3), np.uint8)])
    return datasets.join([table(4, [{"age": i, "gender": i % 2} for i in range(10)]),
                          table(3, [{"emotion": i} for i in range(6)])])


def trainer_on(gpu, faces, monkeypatch, precision):
    monkeypatch.setattr(models, "fast_precision", lambda device: precision)
    monkeypatch.setattr(train, "make_optimizer", lambda *arguments: None)
    args = argparse.Namespace(weights=[1, 1, 1], samples=None, batch_size=16, image_size=64, epochs=1,
                              lr=0.1, decay=0.0, constant=False, heads=False, seed=0, compile=False)
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
    assert isinstance(trainer.faces.images, torch.Tensor) == bool(free)
    (batch,) = datasets.batches(faces, None, 16, models.DRAWS, (0, 1))
    outputs = trainer.forward(batch)
    assert {task: (logits.shape, logits.dtype, logits.device) for task, logits in outputs.items()} == {
        task: ((16, classes), precision, gpu) for task, classes in models.NUM_CLASSES.items()}
    for loss in models.losses(outputs, faces.labels(batch.rows, gpu)).values():
        assert (loss.shape, loss.dtype, loss.device) == ((16,), torch.float32, gpu)


@pytest.fixture(scope="module")
def network():
    """The network as it is evaluated, made before there are fake tensors."""
    return models.FaceAttributeNet().eval()


@pytest.mark.parametrize("tta", [False, True])
def test_evaluation(network, gpu, faces, tta):
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = torch.empty(tensor.shape, device=gpu)
    rows = np.arange(16)
    images = faces.gather(rows, gpu)
    outputs = evaluate.forward(network, images, 64, datasets.TASKS, tta)
    losses = models.losses(outputs, faces.labels(rows, gpu))
    for task, logits in outputs.items():
        assert (logits.shape, logits.dtype, logits.device) == ((16, models.NUM_CLASSES[task]), torch.float32,
                                                               gpu)
        assert losses[task].device == gpu
    assert models.expected_age(outputs["age"]).device == gpu


def test_a_tensor_left_on_the_cpu_is_noticed(gpu):
    with torch.device(gpu):
        network = models.FaceAttributeNet().eval()
    with pytest.raises(Exception, match="device"):
        network(torch.zeros(1, 3, 64, 64, device="cpu"))
