"""Projects as users have them: a module of their own in the current folder, run by ``ckptkd`` or their own CLI."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_ckptkd import ArgumentError, SnapshotStore
from lightning_ckptkd.commands.cli import known_warnings_ignored, main
from lightning_ckptkd.commands.run import run
from lightning_ckptkd.selecting.by_hand import SavedConfig, command_by_hand
from lightning_ckptkd.snapshots import Selection

MODULE = """
from pathlib import Path

import torch
from jsonargparse.typing import Path_fr
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, width: int, activation: nn.Module, lr: float = 1.0):
        super().__init__()
        self.pixels, self.meta = nn.Linear(8, width), nn.Linear(2, width)
        self.activation, self.head, self.lr = activation, nn.Linear(width, 3), lr

    def forward(self, pixels, meta):
        return self.head(self.activation(self.pixels(pixels) + self.meta(meta)))

    def training_step(self, batch):
        pixels, meta, target = batch
        return nn.functional.cross_entropy(self(pixels, meta), target, ignore_index=255)

    def validation_step(self, batch):
        self.log("loss", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Data(LightningDataModule):
    def __init__(self, table: Path_fr, samples: int = 120):
        super().__init__()
        self.table, self.samples = table, samples

    def setup(self, stage):
        draw = torch.Generator().manual_seed(len(Path(self.table.absolute).read_text()))
        pixels, meta = torch.randn(self.samples, 8, generator=draw), torch.randn(self.samples, 2, generator=draw)
        target = (pixels[:, :3] + meta[:, :1]).argmax(1)
        target[::10] = 255
        self.data = TensorDataset(3 * pixels + 5, meta, target)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        pixels, *others = batch
        return [(pixels - 5) / 3, *others]

    def train_dataloader(self):
        return DataLoader(self.data, 40)

    def val_dataloader(self):
        return DataLoader(self.data, 40)


def unpack(batch):
    return (batch[0], batch[1]), batch[2]


def wrong(batch):
    return (batch[0], batch[1].flip(0)), batch[2]


def view(batch):
    return batch.inputs[0][:, :2]


def loss(student, teachers, targets):
    return (student - teachers.mean(0)).square().mean()


class OneEpoch(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True
"""
OWN = """
from lightning.pytorch.cli import LightningCLI
from own_model import Data, Net

LightningCLI(Net, Data)
"""
ACTIVATION = {"class_path": "torch.nn.Tanh"}
MODEL = {"width": 6, "activation": "parts/activation.yaml"}
BATCH = ["--input_keys=[0, 1]", "--target_key=2", "--ignore_index=255"]
ACCURACY = "--rule=accuracy"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module, its own CLI and configs in subfolders, trained by that CLI."""
    root = tmp_path_factory.mktemp("project")
    (root / "own_model.py").write_text(MODULE)
    (root / "own.py").write_text(OWN)
    parts = root / "settings" / "parts"
    parts.mkdir(parents=True)
    (parts / "table.csv").write_text("1,2,3\n")
    (parts / "activation.yaml").write_text(yaml.safe_dump(ACTIVATION))
    (parts / "model.yaml").write_text(
        yaml.safe_dump({"class_path": "own_model.Net", "init_args": {**MODEL, "activation": "activation.yaml"}})
    )
    harvester = {"class_path": "lightning_ckptkd.CheckpointHarvester", "init_args": {"dirpath": str(root / "harvest")}}
    trainer: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "callbacks": [harvester]}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    data = {"table": "parts/table.csv"}
    by_class = {"class_path": "own_model.Data", "init_args": data}
    for name, document in {
        "own": {"trainer": trainer, "model": MODEL, "data": data},
        "relative": {"trainer": trainer, "model": "parts/model.yaml", "data": by_class},
    }.items():
        (root / "settings" / f"{name}.yaml").write_text(yaml.safe_dump(document))
    words = ["fit", "--config", "settings/own.yaml"]
    subprocess.run([sys.executable, "own.py", *words], cwd=root, check=True, timeout=120, capture_output=True)
    return root


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    return project


def accuracies(selection: Selection) -> list[float | None]:
    return [candidate.accuracy for candidate in selection.candidates]


def truth(root: Path, harvest: Path | None = None) -> list[float]:
    """Each snapshot's accuracy, computed by the project alone."""
    import own_model
    import torch
    from jsonargparse.typing import Path_fr

    data = own_model.Data(Path_fr(str(root / "settings/parts/table.csv")))
    data.setup("fit")
    pixels, meta, target = data.data.tensors
    net, store, found = own_model.Net(6, torch.nn.Tanh()), SnapshotStore.open(harvest or root / "harvest"), []
    for snapshot in store.snapshots:
        net.load_state_dict(store.load(snapshot))
        right = net((pixels - 5) / 3, meta).argmax(1) == target
        found.append(right[target != 255].float().mean().item())
    return found


def test_the_config_of_a_users_own_cli(here: Path) -> None:
    words = ["select", "harvest", "--fit_config=settings/own.yaml", ACCURACY, *BATCH, "--num_teachers=1"]
    with pytest.raises(ArgumentError, match=r"has no class_path for model and data.*own_model\.Net") as caught:
        main(words)
    message = str(caught.value)
    assert len(message) < 400
    assert "`--model my_module.Model`" in message and "`--data my_module.Data`" in message
    with pytest.raises(ArgumentError, match=r"no class_path for data, .*Add `--data my_module\.Data`, the"):
        main([*words, "--model=own_model.Net"])
    named = main([*words, "--model", "own_model.Net", "--data=own_model.Data"])
    assert accuracies(named) == pytest.approx(truth(here))
    again = main(["select", "--config=harvest/select.yaml"])
    assert (again.candidates, again.chosen) == (named.candidates, named.chosen)
    assert main([*words, "--rule=half"]).rule == "half", "needs neither"


def test_files_beside_a_fit_config(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["select", str(here / "harvest"), f"--fit_config={here / 'settings/relative.yaml'}", ACCURACY, *BATCH]
    away = ["--trainer.callbacks=null", f"--trainer.default_root_dir={tmp_path}"]
    fitted = main(["fit", "--config=settings/relative.yaml", "--trainer.max_epochs=1", *away])
    assert type(fitted.model.activation).__name__ == "Tanh"
    monkeypatch.chdir(tmp_path)
    assert accuracies(main(words)) == pytest.approx(truth(here))
    (tmp_path / "select.yaml").write_text(yaml.safe_dump({"model": None, "data": None, "num_teachers": 1}))
    from_config = main([*words, "--config=select.yaml"])
    assert accuracies(from_config) == pytest.approx(truth(here)) and len(from_config.chosen) == 1
    (tmp_path / "alias.py").write_text("from own_model import Data as Same\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    other = main([*words, "--data=alias.Same", "--data.samples=60"])
    assert other.probe["size"] == 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=own_model.Nett", "--data=own_model.Data"], r"own_model has no such class\. Near ones: 'Net'"),
        (["--model=own_modle.Net", "--data=own_model.Data"], r"own_modle can't be imported: No module named"),
        (["--model=Net", "--data=own_model.Data"], r"'Net' without its module\. Give both: module\.Net"),
        (
            ["--model=torch.nn.Tanh", "--data=own_model.Data"],
            r"has model\.activation, which torch\.nn\.Tanh does not take",
        ),
    ],
)
def test_classes_that_do_not_go_with_a_config(here: Path, words: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        main(["select", "harvest", "--fit_config=settings/own.yaml", ACCURACY, *BATCH, *words])


def test_the_console_script_finds_classes_in_the_current_folder(project: Path) -> None:
    script = Path(sys.executable).with_name("ckptkd")
    words = ["--fit_config=settings/relative.yaml", ACCURACY, "--unpack_batch=own_model.unpack"]
    done = subprocess.run(
        [script, "select", "harvest", *words, "--ignore_index=255"], cwd=project, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((project / "harvest/selection.json").read_text())["rule"] == "accuracy"


def test_a_command_that_makes_nothing_looks_for_no_classes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ["elsewhere"]
    for command, found in (("export", False), ("harvest", False), ("select", True)):
        monkeypatch.setattr(sys, "path", list(before))
        monkeypatch.setattr(sys, "argv", ["ckptkd", command])
        with pytest.raises(SystemExit, match="ckptkd: error: "):
            run()
        assert (str(here) in sys.path) == found


def test_task_options_of_select(here: Path, tmp_path: Path) -> None:
    words = ["select", "harvest", "--fit_config=settings/relative.yaml", ACCURACY]
    with pytest.raises(ArgumentError, match="input_keys"):
        main(words)
    by_function = main([*words, "--unpack_batch=own_model.unpack", "--ignore_index=255", "--task=multiclass"])
    assert accuracies(by_function) == pytest.approx(truth(here))
    other = main([*words, "--unpack_batch=own_model.wrong", "--ignore_index=255"])
    assert accuracies(other) != pytest.approx(truth(here)), "it is this function that unpacks"
    document = {"input_keys": [0, 1], "target_key": 2, "ignore_index": 255, "task": "multiclass"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(document))
    assert accuracies(main([*words, f"--config={tmp_path / 'task.yaml'}"])) == pytest.approx(truth(here))
    own = {"class_path": "lightning_ckptkd.tasks.multiclass.Multiclass", "init_args": {"ignore_index": 255}}
    by_class = main([*words, *BATCH, f"--task={json.dumps(own)}"])
    assert accuracies(by_class) == pytest.approx(truth(here))
    with pytest.raises(ArgumentError, match="task"):
        main([*words, *BATCH, "--task=multiklass"])


def test_task_options_of_distill(here: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    net = {"class_path": "own_model.Net", "init_args": {"width": 6, "activation": ACTIVATION}}
    module = {"student": net, "teacher": net, "snapshots": "harvest", "choice": "full"}
    options = {"input_keys": [0, 1], "target_key": 2, "ignore_index": 255, "task": "multiclass"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, **quiet}
    document: dict[str, Any] = {
        "trainer": trainer,
        "model": {"init_args": {**module, **options}},
        "data": {"class_path": "own_model.Data", "init_args": {"table": str(here / "settings/parts/table.csv")}},
    }
    config = tmp_path / "distill.yaml"
    config.write_text(yaml.safe_dump(document))

    def loss(*words: str) -> float:
        place = f"--trainer.default_root_dir={tmp_path_factory.mktemp('run')}"
        cli = main(["distill", f"--config={config}", "--seed_everything=1", place, *words])
        return float(cli.trainer.callback_metrics["train_loss"])

    from_yaml = loss()
    document["model"] = {"init_args": module}
    config.write_text(yaml.safe_dump(document))
    words = [f"--model.{word.removeprefix('--')}" for word in (*BATCH, "--task=multiclass")]
    from_function = loss("--model.unpack_batch=own_model.unpack", "--model.ignore_index=255")
    assert from_yaml == loss(*words) == from_function
    with pytest.raises(ArgumentError, match="input_keys"):
        loss()
    assert loss(*words, "--model.kd_loss=own_model.loss") != from_yaml


def test_a_view_of_the_inputs_by_its_class_path(here: Path, tmp_path: Path) -> None:
    words = ["select", "harvest", "--fit_config=settings/relative.yaml", *BATCH]

    def information(*more: str) -> list[float | None]:
        return [candidate.input_information for candidate in main([*words, *more]).candidates]

    with_pixels = information("--rule=MI")
    viewed = information("--rule=MI", "--rule.input_view=own_model.view")
    assert viewed != with_pixels and None not in viewed
    rule = {"class_path": "MI", "init_args": {"input_view": "own_model.view"}}
    (tmp_path / "view.yaml").write_text(yaml.safe_dump({"rule": rule}))
    assert information(f"--config={tmp_path / 'view.yaml'}") == viewed
    again = main(["select", "--config=harvest/select.yaml"])
    assert again.settings["rule"]["input_view"] == "own_model.view"


def said_by_hand(patch: pytest.MonkeyPatch, root: Path, *words: str) -> list[str]:
    """A fit of the project's own CLI at whose end the selection goes wrong; the command that the warning names."""
    from own_model import Data, Net

    callbacks = [
        f"--trainer.callbacks+={kind}"
        for kind in ("own_model.OneEpoch", "lightning_ckptkd.CheckpointHarvester", "lightning_ckptkd.MISelector")
    ]
    harvest = ["--trainer.callbacks.dirpath", str(root / "harvest")]
    options = ["--trainer.callbacks.num_teachers=2", "--trainer.callbacks.unpack_batch=own_model.unpack"]
    options += ["--trainer.callbacks.ignore_index=255", "--trainer.callbacks.ensemble=spaced"]
    words = ("fit", "--config=settings/own.yaml", f"--trainer.default_root_dir={root}", *words)
    args = [*words, "--trainer.callbacks=null", *callbacks[:2], *harvest, callbacks[2], *options]
    with known_warnings_ignored(), pytest.warns(UserWarning, match="num_teachers=2, but .*Select by hand") as told:
        patch.setattr(sys, "argv", ["own.py", *args])
        LightningCLI(Net, Data)
    (message,) = [str(warning.message) for warning in told if "Select by hand" in str(warning.message)]
    return shlex.split(message.partition("Select by hand: `")[2].partition("`")[0])


def test_what_the_warning_of_a_users_own_cli_says_runs(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = here / "settings/parts/table.csv"
    said = said_by_hand(monkeypatch, tmp_path, f"--data.table={table}")
    classes = ["--model", "own_model.Net", "--data", "own_model.Data"]
    assert said[1:9] == ["select", str(tmp_path / "harvest"), "--fit_config", str(tmp_path / "config.yaml"), *classes]
    (chosen,) = main(said[1:]).candidates
    (right,) = truth(here, tmp_path / "harvest")
    assert chosen.accuracy == pytest.approx(right)
    # the configuration that is saved keeps a path as it was, relative to the folder of another one
    by_position = said_by_hand(monkeypatch, tmp_path / "other")
    assert by_position == ["ckptkd", "select", str(tmp_path / "other/harvest"), "--rule", "spaced"]
    assert main(by_position[1:]).chosen
    import own_model
    from torch import nn

    monkeypatch.chdir(tmp_path)
    net, config = own_model.Net(6, nn.Tanh()), SavedConfig("config.yaml", frozenset())
    from_elsewhere = command_by_hand("harvest", {}, net, None, config, runs=True)
    assert from_elsewhere.startswith(f"`PYTHONPATH={here} ckptkd select harvest --fit_config config.yaml --model own_")
