from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import googlenet, resnet18

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.selecting.features import Layers, extract_features, find_layers
from lightning_ckptkd.tasks.legacy import get_logits
from tests.projects import Project

X = torch.randn(6, 1, 8, 8)


class Wrapped(nn.Module):
    def __init__(self, form: type) -> None:
        super().__init__()
        self.net, self.form = Project(), form

    def forward(self, x: Tensor) -> object:
        logits = self.net(x)
        return {"logits": logits, "aux": x} if self.form is dict else (x, logits)


def test_default_is_the_input_of_the_last_linear_layer_that_runs() -> None:
    project = Project().eval()
    layers = find_layers(project, X, None, need_spatial=True)
    assert layers == Layers("classifier", True, "backbone.5")
    found = extract_features(project, X, layers, batch_size=4, logits_key=None)
    torch.testing.assert_close(found.pooled, project.backbone(X).detach())
    torch.testing.assert_close(found.spatial, project.backbone[:6](X).detach())
    torch.testing.assert_close(found.logits, project(X).detach())


def test_layers_that_do_not_run_in_eval_are_not_taken() -> None:
    network = googlenet(weights=None, init_weights=False, num_classes=5, aux_logits=True).eval()
    assert find_layers(network, torch.randn(2, 3, 64, 64), None, need_spatial=False).pooled == "fc"


def test_torchvision() -> None:
    layers = find_layers(resnet18(num_classes=4).eval(), torch.randn(2, 3, 64, 64), None, need_spatial=True)
    assert layers.pooled == "fc"
    assert layers.spatial == "layer4"


def test_a_named_layer_is_pooled_over_positions() -> None:
    project = Project().eval()
    layers = find_layers(project, X, "backbone.0", need_spatial=True)
    found = extract_features(project, X, layers, batch_size=6, logits_key=None)
    assert found.spatial is not None
    torch.testing.assert_close(found.pooled, found.spatial.mean((2, 3)))


def test_unknown_layer_lists_the_near_ones() -> None:
    with pytest.raises(ArgumentError, match=r"layer='clasifier': Project has no module of that name.*'classifier'"):
        find_layers(Project(), X, "clasifier", need_spatial=False)


def test_no_linear_layer() -> None:
    with pytest.raises(ArgumentError, match=r"no nn.Linear runs in Sequential.*such as one of \['0', '1'\]"):
        find_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), X, None, need_spatial=False)


def test_no_feature_map() -> None:
    with pytest.raises(ArgumentError, match=r"layer='classifier'.*needs a feature map"):
        find_layers(Project(), X, "classifier", need_spatial=True)


@pytest.mark.parametrize(("form", "key"), [(dict, "logits"), (tuple, 1)])
def test_logits_in_a_tuple_or_mapping(form: type, key: str | int) -> None:
    network = Wrapped(form).eval()
    layers = find_layers(network, X, None, need_spatial=False)
    found = extract_features(network, X, layers, batch_size=6, logits_key=key)
    torch.testing.assert_close(found.logits, network.net(X).detach())
    with pytest.raises(ArgumentError, match=r"Wrapped returns .*Say which part of it holds them with logits_key"):
        extract_features(network, X, layers, batch_size=6, logits_key=None)
    with pytest.raises(ArgumentError, match=r"logits_key='wrong'"):
        extract_features(network, X, layers, batch_size=6, logits_key="wrong")


def test_a_module_without_logits() -> None:
    backbone = Project().backbone.eval()
    found = extract_features(backbone[:3], X, Layers("2", False, None, False), batch_size=6, logits_key=None)
    assert found.logits is None


def test_features_of_a_part_are_not_taken_for_logits() -> None:
    project = Project().eval()
    assert not find_layers(project.backbone, X, None, need_spatial=False, whole=False).gives_logits
    assert find_layers(project.backbone, X, None, need_spatial=False, whole=True).gives_logits
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert find_layers(flat, X, None, need_spatial=False, whole=False).gives_logits


def test_logits_of_a_tensor_or_a_named_tuple() -> None:
    pair = namedtuple("pair", ["aux", "logits"])
    logits = torch.randn(2, 3)
    for key in ("logits", 1):
        assert get_logits(pair(None, logits), key, "net") is logits
        assert get_logits(logits, key, "net") is logits


def test_no_forward_and_odd_shapes() -> None:
    class NoForward(nn.Module):
        pass

    with pytest.raises(ArgumentError, match="NoForward has no forward"):
        find_layers(NoForward(), X, None, need_spatial=False)
    with pytest.raises(ArgumentError, match=r"layer='0' gives the shape \(6,\)"):
        extract_features(
            nn.Sequential(nn.Flatten(0)), X[:, 0, 0, 0], Layers("0", False, None), batch_size=6, logits_key=None
        )
    with pytest.raises(ArgumentError, match="gives tuple of 2; name a layer that gives one tensor"):
        extract_features(Wrapped(tuple), X, Layers("", False, None), batch_size=6, logits_key=1)


def test_hooks_are_gone_afterwards() -> None:
    project = Project().eval()
    layers = find_layers(project, X, None, need_spatial=True)
    extract_features(project, X, layers, batch_size=6, logits_key=None)
    assert not any(module._forward_hooks for module in project.modules())


def test_logits_alone_need_no_linear_layer() -> None:
    network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    layers = find_layers(network, X, None, need_spatial=False, need_layer=False)
    found = extract_features(network, X, layers, batch_size=4, logits_key=None)
    assert found.logits is not None and torch.equal(found.pooled, found.logits)
    torch.testing.assert_close(found.logits, network(X).detach())


def test_neither_a_layer_nor_logits() -> None:
    network = nn.Conv2d(1, 5, 3)
    layers = find_layers(network, X, None, need_spatial=False, need_layer=False)
    with pytest.raises(ArgumentError, match=r"Conv2d gives no logits, shape \(N, K\), to take for F"):
        extract_features(network, X, layers, batch_size=4, logits_key=None)
