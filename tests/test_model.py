"""The network, its losses, and loading weights of anybody's."""
import math
import pickle

import pytest
import torch
import torchvision

import datasets
import model as models
from model import CheckpointError, FaceNet, load_weights


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FaceNet()


def labels(age=(), gender=(), emotion=()):
    return datasets.Labels(torch.tensor(age), torch.tensor(gender), torch.tensor(emotion))


def test_three_heads_and_only_those_asked_for(network):
    images = torch.zeros(2, 3, 64, 64)
    assert {task: logits.shape for task, logits in network(images).items()} == {"age": (2, 101), "gender": (2, 2), "emotion": (2, 7)}
    assert list(network(images, ("gender",))) == ["gender"]


def test_fused_network_is_the_same_function(network):
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)))      # statistics of its own
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    fused = models.fuse(network)
    assert network.training and not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    network.eval()
    for ours, theirs in zip(network(images).values(), fused(images).values()):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_expected_age():
    logits = torch.full((2, 101), -100.0)
    logits[0, 30] = 0
    logits[1, [20, 40]] = 0
    torch.testing.assert_close(models.expected_age(logits), torch.tensor([30.0, 30.0]))


def test_losses_are_of_logits_and_count_only_known_labels():
    logits = {"age": torch.zeros(3, 101), "gender": torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 0.0]]), "emotion": torch.zeros(3, 7)}
    result = models.losses(logits, labels([50.0, math.nan, 20.0], [-1, 0, 1], [6, -1, -1]))
    # no knowledge: ln 101 and, where the expectation is 50 years, a tenth of the distance; of both the half
    torch.testing.assert_close(result["age"], torch.tensor([math.log(101), 0, math.log(101) + 3.0]) / 2, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(result["gender"], torch.tensor([0, 0.05 * 20, math.log(2)]), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(result["emotion"], torch.tensor([math.log(7), 0, 0]), atol=1e-4, rtol=1e-5)


def test_an_unknown_label_gives_no_gradient(network):
    logits = {task: torch.randn(2, classes, requires_grad=True) for task, classes in models.CLASSES.items()}
    sum(loss.sum() for loss in models.losses(logits, labels([math.nan, 3.0], [-1, 1], [-1, 2])).values()).backward()
    for values in logits.values():
        assert (values.grad[0] == 0).all() and (values.grad[1] != 0).any()


# ---- weights

def test_torchvision_weights_with_and_without_prefix(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    for prefix in ("", "module.", "module.resNet.", "backbone."):
        torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "a.pth")
        network = FaceNet()
        line = load_weights(network, tmp_path / "a.pth")
        assert torch.equal(network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
        assert torch.equal(network.bn1.running_mean, state["bn1.running_mean"])
        assert "120 of the model's 132 tensors loaded; new: age.0, age.2, gender.0, gender.2, emotion.0, emotion.2" in line


def test_weights_among_other_tensors_of_a_checkpoint(tmp_path):
    theirs = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    theirs(torch.zeros(1, 3, 64, 64)).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "best_acc1": torch.tensor(69.8), "arch": "resnet18", "state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    assert "120 of the model's 132 tensors loaded" in load_weights(FaceNet(), tmp_path / "a.pth")


@pytest.mark.parametrize("ages", [101, 70])
def test_age_gender_pred(tmp_path, ages):
    state = {f"resNet.{name}": value for name, value in torchvision.models.resnet18().state_dict().items()}
    for name, out in (("fc1", 512), ("age_cls_pred", ages), ("fc2", 512), ("gen_cls_pred", 2)):
        state |= {f"{name}.weight": torch.randn(out, 512), f"{name}.bias": torch.randn(out)}
    torch.save({"epoch": 3, "state_dic": state, "optimizer": {"state": {}}}, tmp_path / "res18_cls70.pth")
    network = FaceNet()
    line = load_weights(network, tmp_path / "res18_cls70.pth")
    assert torch.equal(network.gender[2].weight, state["gen_cls_pred.weight"]) and torch.equal(network.age[0].weight, state["fc1.weight"])
    if ages == 101:
        assert torch.equal(network.age[2].bias, state["age_cls_pred.bias"]) and line.endswith("128 of the model's 132 tensors loaded; new: emotion.0, emotion.2")
    else:
        assert "126 of the model's 132" in line and line.endswith("new: age.2, emotion.0, emotion.2 (its age head tells 70 ages, not 101)")


def test_half_precision_weights_of_our_own(tmp_path, network):
    torch.save({"model": {name: value.half() for name, value in network.state_dict().items()}}, tmp_path / "a.pth")
    other = FaceNet()
    assert load_weights(other, tmp_path / "a.pth").endswith("132 of the model's 132 tensors loaded")
    torch.testing.assert_close(other.age[2].weight, network.age[2].weight, atol=1e-3, rtol=1e-3)


class Evil:
    def __reduce__(self):
        return (open, ("evil.txt", "w"))


def test_weights_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(FaceNet().state_dict(), "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("weights")
    torch.save({"model": Evil()}, "evil.pth")
    (tmp_path / "evil2.pth").write_bytes(pickle.dumps(Evil()))
    torch.save([1, 2], "list.pth")
    torch.save({"epoch": 3}, "none.pth")
    torch.save({"conv1.weight": torch.zeros(2, 2), "features.0.weight": torch.zeros(64, 3, 11, 11)}, "other.pth")
    torch.save({"conv1.weight": torch.full((64, 3, 7, 7), math.nan)}, "nan.pth")
    for name, expected in (("missing", "no checkpoint"), ("truncated", "truncated"), ("empty", "truncated"), ("text", "refused"), ("evil", "refused"),
                           ("evil2", "refused"), ("list", "expected a dict"), ("none", "none of its 0 tensors"), ("other", "none of its 2 tensors"),
                           ("nan", "no numbers")):
        with pytest.raises(CheckpointError, match=expected):
            load_weights(FaceNet(), f"{name}.pth")
    assert not (tmp_path / "evil.txt").exists()
