from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import googlenet, resnet18

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.selecting import SelectionSettings
from lightning_ckptkd.selecting.features import Features, extract_features
from lightning_ckptkd.selecting.layers import Layers, find_layers, watch
from lightning_ckptkd.selecting.looking import look
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import MI, Accuracy, ScoringRule
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.multiclass import Multiclass
from lightning_ckptkd.tasks.outputs import get_output
from tests.projects import Project

X = torch.randn(6, 1, 8, 8)
Y = torch.arange(6) % 5


def samples(x: Tensor = X) -> Probe:
    return Probe((Batch(x, Y[: len(x)]),))


def find(module: nn.Module, x: Tensor, layer: str | None = None, **needs: bool) -> Layers:
    """Where F is, by one forward pass."""
    options = {"need_spatial": False, "need_layer": True, **needs}
    return find_layers(module, watch(module, Batch(x, Y)), layer, **options)


def extract(
    module: nn.Module, x: Tensor, layers: Layers, batch_size: int = 6, key: str | int | None = None
) -> Features:
    rows = ProbeRows.of(samples(x), Multiclass(), None, batch_size, 0)
    return extract_features(module, rows, layers, key)


def gives_logits(module: nn.Module, rule: ScoringRule, whole: bool = True, key: str | int | None = None) -> bool:
    settings = SelectionSettings(rule=rule, logits_key=key)
    reading, _ = look(settings, rule, module, samples(), whole=whole)
    return reading.layers.gives_logits


class Wrapped(nn.Module):
    def __init__(self, form: type) -> None:
        super().__init__()
        self.net, self.form = Project(), form

    def forward(self, x: Tensor) -> object:
        logits = self.net(x)
        return {"logits": logits, "aux": x} if self.form is dict else (x, logits)


def test_default_is_the_input_of_the_last_linear_layer_that_runs() -> None:
    project = Project().eval()
    layers = find(project, X, None, need_spatial=True)
    assert layers == Layers("classifier", True, "backbone.5")
    found = extract(project, X, layers, 4)
    torch.testing.assert_close(found.pooled, project.backbone(X).detach())
    torch.testing.assert_close(found.spatial, project.backbone[:6](X).detach())
    torch.testing.assert_close(found.logits, project(X).detach())


def test_layers_that_do_not_run_in_eval_are_not_taken() -> None:
    network = googlenet(weights=None, init_weights=False, num_classes=5, aux_logits=True).eval()
    assert find(network, torch.randn(2, 3, 64, 64), None, need_spatial=False).pooled == "fc"


def test_torchvision() -> None:
    layers = find(resnet18(num_classes=4).eval(), torch.randn(2, 3, 64, 64), None, need_spatial=True)
    assert layers.pooled == "fc"
    assert layers.spatial == "layer4"


def test_a_named_layer_is_pooled_over_positions() -> None:
    project = Project().eval()
    layers = find(project, X, "backbone.0", need_spatial=True)
    found = extract(project, X, layers)
    assert found.spatial is not None
    torch.testing.assert_close(found.pooled, found.spatial.mean((2, 3)))


def test_unknown_layer_lists_the_near_ones() -> None:
    with pytest.raises(ArgumentError, match=r"layer='clasifier': Project has no module of that name.*'classifier'"):
        find(Project(), X, "clasifier", need_spatial=False)


def test_no_linear_layer() -> None:
    """The last convolution is read before, as in networks that segment; where there is none, the user says it."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Upsample(scale_factor=2)).eval()
    layers = find(network, X, None, need_spatial=False)
    assert layers == Layers("2", True, None)
    found = extract(network, X, Layers("2", True, None, False), 4)
    torch.testing.assert_close(found.pooled, network[:2](X).mean((2, 3)).detach())
    no_layer = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(ArgumentError, match=r"no nn.Linear or nn.Conv2d runs .*such as one of \['0', '1'\]"):
        find(no_layer, X, None, need_spatial=False)
    assert find(no_layer, X, "0", need_spatial=False).pooled == "0"


def test_no_feature_map() -> None:
    with pytest.raises(ArgumentError, match=r"layer='classifier'.*needs a feature map"):
        find(Project(), X, "classifier", need_spatial=True)


@pytest.mark.parametrize(("form", "key"), [(dict, "logits"), (tuple, 1)])
def test_logits_in_a_tuple_or_mapping(form: type, key: str | int) -> None:
    network = Wrapped(form).eval()
    layers = find(network, X, None, need_spatial=False)
    found = extract(network, X, layers, key=key)
    torch.testing.assert_close(found.logits, network.net(X).detach())
    if form is tuple:
        with pytest.raises(ArgumentError, match=r"Wrapped returns .*Say which part of it holds them with logits_key"):
            gives_logits(network, Accuracy())
    assert gives_logits(network, Accuracy(), key=key)
    with pytest.raises(ArgumentError, match=r"logits_key='wrong'"):
        gives_logits(network, Accuracy(), key="wrong")


def test_a_module_without_logits() -> None:
    backbone = Project().backbone.eval()
    found = extract(backbone[:3], X, Layers("2", False, None, False))
    assert found.logits is None and found.hits is None


def test_features_of_a_part_are_not_taken_for_logits() -> None:
    project, features_alone = Project().eval(), MI(label_estimator="logistic")
    assert not gives_logits(project.backbone, features_alone, whole=False)
    assert gives_logits(project.backbone, features_alone, whole=True)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert gives_logits(flat, features_alone, whole=False)
    with pytest.raises(ArgumentError, match="label_estimator='head' needs the teacher's logits, and the harvested"):
        gives_logits(project.backbone, MI(), whole=False)


def test_what_is_done_to_a_head_in_place_makes_it_no_head() -> None:
    changed = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(inplace=True)).eval()
    assert not gives_logits(changed, MI(label_estimator="logistic"), whole=False)


def test_a_matrix_that_labels_do_not_index_is_no_logits() -> None:
    few = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    assert not gives_logits(few, MI(label_estimator="logistic"))
    with pytest.raises(ArgumentError, match="Labels run from 0 to 4, but the teacher has 3 classes"):
        gives_logits(few, MI())


def test_logits_of_a_tensor_or_a_named_tuple() -> None:
    pair = namedtuple("pair", ["aux", "logits"])
    logits = torch.randn(2, 3)
    for key in ("logits", 1):
        assert get_output(pair(None, logits), key, "net") is logits
        assert get_output(logits, key, "net") is logits


def test_no_forward_and_odd_shapes() -> None:
    class NoForward(nn.Module):
        pass

    with pytest.raises(ArgumentError, match="NoForward has no forward"):
        find(NoForward(), X, None, need_spatial=False)
    with pytest.raises(ArgumentError, match=r"layer='0' gives the shape \(6,\)"):
        extract(nn.Sequential(nn.Flatten(0)), X[:, 0, 0, 0], Layers("0", False, None))
    with pytest.raises(ArgumentError, match=r"gives tuple of 2 .*; name a layer that gives one tensor"):
        extract(Wrapped(tuple), X, Layers("", False, None), key=1)
    with pytest.raises(ArgumentError, match=r"layer='0' gives the shape \(48, 8\) for 6 samples"):
        extract(nn.Sequential(nn.Flatten(0, 2)), X, Layers("0", False, None, False))


def test_hooks_are_gone_afterwards() -> None:
    project = Project().eval()
    layers = find(project, X, None, need_spatial=True)
    extract(project, X, layers)
    assert not any(module._forward_hooks for module in project.modules())


def test_a_head_that_is_called_by_keyword() -> None:
    class Named(Project):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(input=self.backbone(x))
            return logits

    project, named = Project().eval(), Named().eval()
    named.load_state_dict(project.state_dict())
    found, expected = (extract(network, X, find(network, X)) for network in (named, project))
    assert found.pooled is not None and expected.pooled is not None
    assert torch.equal(found.pooled, expected.pooled)


def test_logits_alone_need_no_linear_layer() -> None:
    network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    layers = find(network, X, None, need_spatial=False, need_layer=False)
    found = extract(network, X, layers, 4)
    assert found.logits is not None and found.pooled is None
    torch.testing.assert_close(found.logits, network(X).detach())


def test_neither_a_layer_nor_logits() -> None:
    with pytest.raises(ArgumentError, match=r"Logits should have the shape \(N, K\), but those of Conv2d have"):
        gives_logits(nn.Conv2d(1, 5, 3), Accuracy())


def test_hits_are_counted_by_sample() -> None:
    project = Project().eval()
    found = extract(project, X, find(project, X), 4)
    assert found.hits is not None and found.hits.tolist() == (project(X).argmax(1) == Y).double().tolist()
