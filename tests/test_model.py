"""The network, its input, its losses, and loading weights of anybody's."""
import math
import pickle
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision

import datasets
import model as models
from model import CheckpointError, FaceAttributeNet, load_weights


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FaceAttributeNet()


def labels(age=(), gender=(), emotion=()):
    return {"age": torch.tensor(age), "age_std": torch.full((len(age),), math.nan),
            "gender": torch.tensor(gender), "emotion": torch.tensor(emotion)}


# ---- the network

def test_three_heads_and_only_those_asked_for(network):
    images = torch.zeros(2, 3, 64, 64)
    assert {task: logits.shape for task, logits in network(images).items()} == {
        "age": (2, 101), "gender": (2, 2), "emotion": (2, 7)}
    assert list(network(images, ("gender",))) == ["gender"]


def test_expected_age():
    logits = torch.full((2, 101), -100.0)
    logits[0, 30] = 0
    logits[1, [20, 40]] = 0
    torch.testing.assert_close(models.expected_age(logits), torch.tensor([30.0, 30.0]))


# ---- its input

def channels(values):
    return torch.tensor(values).view(3, 1, 1)


def test_augment_turns_scales_shifts_mirrors_as_affine_grid_does_and_erases_what_was_drawn():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (5, 64, 64, 3), dtype=torch.uint8, generator=generator)
    draws = torch.full((5, models.DRAWS), 0.5)
    draws[:, :5] = torch.rand((5, 5), generator=generator)
    turn, zoom = (2 * draws[:, 1] - 1) * math.pi / 18, 1.15 ** (2 * draws[:, 2] - 1)
    flip = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    theta = torch.stack((flip * turn.cos() * zoom, -turn.sin() * zoom, 0.16 * (2 * draws[:, 3] - 1),
                         flip * turn.sin() * zoom, turn.cos() * zoom, 0.16 * (2 * draws[:, 4] - 1)), 1)
    grid = torch.nn.functional.affine_grid(theta.view(5, 2, 3), [5, 3, 64, 64], align_corners=False)
    moved = torch.nn.functional.grid_sample(images.permute(0, 3, 1, 2).float(), grid, padding_mode="border",
                                            align_corners=False)
    augmented = models.augment(images, 64, draws)
    torch.testing.assert_close(augmented, models.normalise(moved), atol=1e-3, rtol=0)
    # grey: all channels alike; a hole: a tenth of the side high and a quarter wide, in the middle
    still = torch.full((5, models.DRAWS), 0.5)
    still[:, 5] = 0
    grey = models.augment(images, 64, still) * channels(models.STD) + channels(models.MEAN)
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-4, rtol=0)
    still[:, 8], still[:, 11] = 0, 0
    hole = (models.augment(images, 64, still) == 0).all(1)[0]
    rows, columns = hole.any(1).nonzero().ravel(), hole.any(0).nonzero().ravel()
    # 64 times 0.45 to 0.55, and 0.375 to 0.625
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (29, 35, 24, 39)


def test_augment_without_chance_is_prepare():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 255, (5, 64, 64, 3), np.uint8))
    draws = torch.full((5, models.DRAWS), 0.5)
    batch = models.augment(images, 64, draws)
    expected = models.network_input(images, 64)
    for inputs in (batch, expected):
        assert inputs.shape == (5, 3, 64, 64) and inputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch, expected, atol=1e-3, rtol=0)
    mirrored = models.augment(images, 64, torch.cat([torch.zeros(5, 1), draws[:, 1:]], 1))
    torch.testing.assert_close(mirrored, expected.flip(3), atol=1e-3, rtol=0)
    chance = torch.rand(5, models.DRAWS, generator=torch.Generator().manual_seed(0))
    varied = models.augment(images, 64, chance)
    assert torch.isfinite(varied).all() and (varied - expected).abs().mean() > 0.1


def test_prepare_normalises_as_torchvision_does():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 255, (1, 16, 16, 3), dtype=torch.uint8, generator=generator)
    expected = (image[0].permute(2, 0, 1) / 255 - channels(models.MEAN)) / channels(models.STD)
    torch.testing.assert_close(models.network_input(image, 16)[0], expected, atol=1e-5, rtol=1e-5)
    luma = (image.float() * channels(models.LUMA).view(3)).sum(3, keepdim=True)
    grey = (luma.permute(0, 3, 1, 2) / 255 - channels(models.MEAN)) / channels(models.STD)
    torch.testing.assert_close(models.network_input(image, 16, grey=True), grey, atol=1e-5, rtol=1e-5)


# ---- its losses

def test_losses_are_of_logits_and_count_only_known_labels():
    logits = {"age": torch.zeros(3, 101), "gender": torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 0.0]]),
              "emotion": torch.zeros(3, 7)}
    result = models.losses(logits, labels([50.0, math.nan, 20.0], [-1, 0, 1], [6, -1, -1]))
    # no knowledge: ln 101 and, where the expectation is 50 years, a tenth of the distance; of both the half
    for task, expected in (("age", [math.log(101) / 2, 0, (math.log(101) + 3.0) / 2]),
                           ("gender", [0, 0.05 * 20, math.log(2)]), ("emotion", [math.log(7), 0, 0])):
        torch.testing.assert_close(result[task], torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_an_unknown_label_gives_no_gradient():
    logits = {task: torch.randn(2, classes, requires_grad=True) for task, classes in models.NUM_CLASSES.items()}
    losses = models.losses(logits, labels([math.nan, 3.0], [-1, 1], [-1, 2]))
    sum(loss.sum() for loss in losses.values()).backward()
    for values in logits.values():
        assert (values.grad[0] == 0).all() and (values.grad[1] != 0).any()


def test_teachers_predictions_have_half_of_a_loss_also_where_the_label_is_unknown():
    outputs = {task: torch.zeros(2, classes, requires_grad=True) for task, classes in models.NUM_CLASSES.items()}
    known = models.losses(outputs, labels([math.nan] * 2, [-1, 1], [-1, 3]))
    told = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    learned = models.distilled(known, outputs, {"emotion": models.soft_targets(told)})
    assert learned["gender"] is known["gender"] and learned.keys() == known.keys()
    # the Kullback-Leibler divergence from even chances, at a temperature of 2, times its square
    distance = 4 * (math.log(7) + (models.soft_targets(told) * (told / 2).log_softmax(1)).sum(1))
    torch.testing.assert_close(learned["emotion"], 0.5 * known["emotion"] + 0.5 * distance)
    learned["emotion"].sum().backward()
    label = torch.stack([torch.zeros(7), 1 / 7 - (torch.eye(7)[3] * 0.9 + 0.1 / 7)])
    torch.testing.assert_close(outputs["emotion"].grad,
                               0.5 * label + 0.5 * 2 * (1 / 7 - models.soft_targets(told)))


# ---- weights

def test_torchvision_weights_with_and_without_prefix(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    for prefix in ("", "module.", "module.resNet.", "backbone."):
        torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "a.pth")
        network = FaceAttributeNet()
        line = load_weights(network, tmp_path / "a.pth")
        assert torch.equal(network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
        assert torch.equal(network.bn1.running_mean, state["bn1.running_mean"])
        assert ("120 of the model's 132 tensors loaded; "
                "new: age.0, age.2, gender.0, gender.2, emotion.0, emotion.2; "
                f"2 of the file's 122 found no place: {prefix}fc.weight [1000, 512], {prefix}fc.bias [1000]") in line


def test_weights_among_other_tensors_of_a_checkpoint(tmp_path):
    theirs = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    theirs(torch.zeros(1, 3, 64, 64)).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "best_acc1": torch.tensor(69.8), "arch": "resnet18",
                "state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    assert "120 of the model's 132 tensors loaded" in load_weights(FaceAttributeNet(), tmp_path / "a.pth")


@pytest.mark.parametrize("ages, expected", [
    (101, "128 of the model's 132 tensors loaded; new: emotion.0, emotion.2; 2 of the file's 130"),
    (70, "126 of the model's 132 tensors loaded; new: age.2, emotion.0, emotion.2; 4 of the file's 130")])
def test_age_gender_pred(tmp_path, ages, expected):
    state = {f"resNet.{name}": value for name, value in torchvision.models.resnet18().state_dict().items()}
    for name, out in (("fc1", 512), ("age_cls_pred", ages), ("fc2", 512), ("gen_cls_pred", 2)):
        state |= {f"{name}.weight": torch.randn(out, 512), f"{name}.bias": torch.randn(out)}
    torch.save({"epoch": 3, "state_dic": state, "optimizer": {"state": {}}}, tmp_path / "res18_cls70.pth")
    network = FaceAttributeNet()
    line = load_weights(network, tmp_path / "res18_cls70.pth")
    assert torch.equal(network.gender[2].weight, state["gen_cls_pred.weight"])
    assert torch.equal(network.age[0].weight, state["fc1.weight"])
    assert (ages == 101) == torch.equal(network.age[2].bias, state["age_cls_pred.bias"])
    found = f"{expected} found no place: resNet.fc.weight [1000, 512], resNet.fc.bias [1000]"
    assert found in line and ("age_cls_pred.weight [70, 512]" in line) == (ages == 70)


def test_half_precision_weights_of_our_own(tmp_path, network):
    halves = {name: value.half() for name, value in network.state_dict().items()}
    torch.save({"model": halves}, tmp_path / "a.pth")
    other = FaceAttributeNet()
    assert load_weights(other, tmp_path / "a.pth").endswith("132 of the model's 132 tensors loaded")
    torch.testing.assert_close(other.age[2].weight, network.age[2].weight, atol=1e-3, rtol=1e-3)


class Evil:
    def __reduce__(self):
        return (open, ("evil.txt", "w"))


def test_weights_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(FaceAttributeNet().state_dict(), "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("weights")
    torch.save({"model": Evil()}, "evil.pth")
    (tmp_path / "evil2.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"epoch": 3}, "none.pth")
    torch.save({"conv1.weight": torch.zeros(2, 2), "features.0.weight": torch.zeros(64, 3, 11, 11)},
               "other.pth")
    torch.save({"conv1.weight": torch.full((64, 3, 7, 7), math.nan)}, "nan.pth")
    for name, expected in (("missing", "no checkpoint"), ("truncated", "damaged"), ("empty", "damaged"),
                           ("text", "damaged"), ("evil", "more than tensors and plain values .GLOBAL"),
                           ("evil2", "more than tensors"), ("none", "none of its 0 tensors"),
                           ("other", "none of its 2 tensors"), ("nan", "no numbers")):
        with pytest.raises(CheckpointError, match=expected):
            load_weights(FaceAttributeNet(), f"{name}.pth")
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize("sequential", [False, True])
def test_weights_of_a_deeper_network_are_refused(sequential, tmp_path):
    theirs = torchvision.models.resnet34()
    state = (torch.nn.Sequential(*theirs.children()) if sequential else theirs).state_dict()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="of a deeper network, it has layer1.2"):
        load_weights(FaceAttributeNet(), tmp_path / "a.pth")


@pytest.mark.parametrize("content, expected", [
    (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    (b"\n<!DOCTYPE html>", "a web page"),
    (b"\x10\0\0\0\0\0\0\0{\"a\": 1}", "in the safetensors format"),
    (b"PK\x03\x04", "damaged, or more than tensors")])
def test_files_that_are_taken_for_checkpoints_are_named(content, expected, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.pth: {expected}"):
        load_weights(FaceAttributeNet(), tmp_path / "a.pth")


def test_a_flipped_bit_is_noticed(tmp_path):
    torch.save(FaceAttributeNet().state_dict(), tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[len(content) // 2] ^= 64
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(FaceAttributeNet(), tmp_path / "a.pth")


@pytest.mark.parametrize("prefix, sequential", [
    ("encoder_q.", False), ("backbone.body.", False), ("model.0.", False), ("features.", True)])
def test_prefixes_and_sequential_networks(prefix, sequential, tmp_path):
    theirs = torchvision.models.resnet18()
    state = (torch.nn.Sequential(*theirs.children()) if sequential else theirs).state_dict()
    torch.save({"net": {prefix + name: value for name, value in state.items()},
                "best": np.float64(71), "curve": np.zeros(2)},
               tmp_path / "a.pth")
    network = FaceAttributeNet()
    assert "120 of the model's 132 tensors loaded" in load_weights(network, tmp_path / "a.pth")
    assert torch.equal(network.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


# ---- checkpoints

def checkpoint(network, **changed):
    return {"model": network.state_dict(), "image_size": 64, "decoded_size": 96, "tasks": ["age"],
            "temperatures": {"age": 0.7}, "drawn": False, "detected": True, **models.description(), **changed}


def test_a_checkpoint_is_opened_ready_for_use(tmp_path, network):
    models.save_checkpoint(checkpoint(network), tmp_path / "a.pth")
    opened, content = models.open_checkpoint(tmp_path / "a.pth")
    assert not opened.training and (content["image_size"], content["decoded_size"]) == (64, 96)
    assert torch.equal(opened.age[2].weight, network.age[2].weight)


@pytest.mark.parametrize("changed, expected", [
    ({"genders": ["male", "female"]}, r"has the genders \['male', 'female'\]"),
    ({"model": {}}, "not of this network"), ({"model": 3}, "not of this network"),
    ({"model": {"conv1.weight": torch.zeros(3)}}, "not of this network")])
def test_a_checkpoint_of_another_network_is_refused(changed, expected, tmp_path, network):
    models.save_checkpoint(checkpoint(network, **changed), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=expected):
        models.open_checkpoint(tmp_path / "a.pth")
    torch.save({"model": network.state_dict()}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="has the mean None; .* --pretrained takes others'"):
        models.open_checkpoint(tmp_path / "b.pth")


def test_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    models.save_checkpoint({"epoch": 1}, tmp_path / "last.pth")
    monkeypatch.setattr(torch, "save", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(datasets.DataError, match="last.pth: can't be written .No space left"):
        models.save_checkpoint({"epoch": 2}, tmp_path / "last.pth")
    assert torch.load(tmp_path / "last.pth", weights_only=True) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(datasets.DataError, match="cuda:7: can't be used here.*--device cpu"):
        models.pick_device("cuda:7")
