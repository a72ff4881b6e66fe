"""The console script's short ways give what the whole command line gives.

After a change of options that is meant, `python -m tests.commands.test_run` writes commands/parsers.json anew.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

import lightning_ckptkd
from lightning_ckptkd import MISelector, SnapshotStore
from lightning_ckptkd.commands import light, run, told_at_once
from lightning_ckptkd.commands.cli import CkptKDCLI, main
from lightning_ckptkd.commands.completion import SHELLS, Described
from lightning_ckptkd.snapshots import Selection

REMEDY = "Was the change of options meant? Then run `python -m tests.commands.test_run`."
WITHOUT_LIGHTNING = """
import sys
sys.modules.update(dict.fromkeys(("lightning", "pytorch_lightning", "torchmetrics", "torchvision")))  # not importable
import lightning_ckptkd.selecting, lightning_ckptkd.tasks
from lightning_ckptkd.commands.run import run
for words in {commands!r}:
    sys.argv[1:] = words
    run()
assert "torch" in sys.modules
"""
WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("lightning", "torch")))
from lightning_ckptkd.commands.run import run
sys.argv[1:] = {words!r}
run()
"""


def real_parser() -> Described:
    """What the parsers say that LightningCLI makes."""
    found: list[Described] = []

    class Seen(Exception):  # noqa: N818
        pass

    def see(self: CkptKDCLI, *_: object) -> None:
        found.append(Described.of(self.parser))
        raise Seen

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Seen):
        patch.setattr(CkptKDCLI, "parse_arguments", see)
        main(["fit"])
    return found[0]


@pytest.fixture(scope="module")
def real() -> Described:
    return real_parser()


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_record_is_of_the_parsers(real: Described) -> None:
    document = json.loads(told_at_once.RECORD.read_text())
    if document["made_with"] != told_at_once.makers():
        assert told_at_once.read_record() is None
        return
    assert document["parser"] == asdict(real), REMEDY
    assert {"fit", "select", "export"} <= document["parser"]["commands"].keys()


def test_help_and_completion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], real: Described
) -> None:
    """The texts are the real parsers', at any width of the terminal."""
    monkeypatch.setattr(told_at_once, "read_record", lambda: real)  # also where other versions are installed
    for columns in ("60", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        assert told_at_once.told_at_once(["--help"], {}) == printed(["--help"], capsys)
    for shell in SHELLS:
        assert told_at_once.told_at_once(["--print_completion", shell], {}) == printed(
            [f"--print_completion={shell}"], capsys
        )


def test_who_else_is_asked() -> None:
    """Words, variables and versions of which only the real parsers know."""
    told = told_at_once.told_at_once
    for words in ([], ["fit", "--help"], ["--help", "fit"], ["--print_completion", "fish"], ["--print_completion"]):
        assert told(words, {}) is None, words
    assert told(["--help"], {"CKPTKD_PRINT_COMPLETION": "bash"}) is None
    for words in (
        [],
        ["fit"],
        ["harvest", "x", "--config", "y"],
        ["harvest", "x", "--files"],
        ["export", "x", "y.onnx"],
        ["export", "x", "y.pt", "--student", "Net"],
        ["select", "x"],
        ["select", "x", "--rule=mi"],
        ["select", "x", "--rule=half", "--task=multiclass"],
        ["select", "x", "--rule=half", "--seed=one"],
        ["select", "--rule=half"],
        ["select", "x", "--rule=half", "--help"],
    ):
        assert not light.run_light(words, {}), words
    assert not light.run_light(["harvest", "x"], {"CKPTKD_HARVEST__FILES": "[a]"})


def test_another_version_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told_at_once, "makers", lambda: {"lightning": "0", "jsonargparse": "0"})
    assert told_at_once.read_record() is None and told_at_once.told_at_once(["--help"], {}) is None


def test_without_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that need no Trainer run where Lightning can't be imported, and leave what they leave with it."""
    for name in ("light", "whole"):
        for epoch in range(3):
            weights = torch.nn.Linear(3, 2, bias=False).weight.detach() if name == "light" else None
            path = tmp_path / name / "ckpt" / f"epoch={epoch}.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            if weights is None:
                path.write_bytes((tmp_path / "light" / "ckpt" / path.name).read_bytes())
            else:
                torch.save({"state_dict": {"student.weight": weights}, "epoch": epoch, "global_step": epoch + 1}, path)
    commands = [
        ["harvest", "ckpt"],
        ["select", "snapshots", "--rule", "spaced", "--num_teachers=2", "--seed=3"],
        ["export", "ckpt/epoch=2.ckpt", "student.safetensors"],
    ]
    code = WITHOUT_LIGHTNING.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "light", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 snapshots chosen by rule 'spaced'" in done.stdout
    monkeypatch.chdir(tmp_path / "whole")
    for words in commands:
        main(words)
    for file in ("snapshots/harvest.yaml", "snapshots/select.yaml", "student.safetensors"):
        assert (tmp_path / "light" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    one, two = (Selection.read(SnapshotStore.open(tmp_path / name / "snapshots")) for name in ("light", "whole"))
    assert one.settings == two.settings and [c.rank for c in one.candidates] == [c.rank for c in two.candidates]
    assert len(one.chosen) == len(two.chosen) == 2
    assert main(["select", "--config", "snapshots/select.yaml"]).chosen == two.chosen


def test_help_without_torch() -> None:
    for words in (["--help"], ["--print_completion", "bash"]):
        code = WITHOUT_TORCH.format(words=words)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if told_at_once.read_record() is not None:
            assert done.returncode == 0 and "harvest" in done.stdout, done.stderr


def test_options_by_place_are_the_selectors() -> None:
    parser = light.make_place_parser()
    defaults = yaml.safe_load(parser.dump(parser.get_defaults()))
    signature = inspect.signature(MISelector).parameters
    shared = {name: default for name, default in defaults.items() if name in signature and name != "rule"}
    assert shared == {name: signature[name].default for name in shared} and "seed" in shared


def test_errors_are_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for words in (["harvest", str(tmp_path / "none")], ["select", str(tmp_path), "--rule=half"]):
        monkeypatch.setattr(sys, "argv", ["ckptkd", *words])
        with pytest.raises(SystemExit, match=r"^ckptkd: error: "):
            run.run()


def test_the_root_gives_its_names_when_they_are_asked_for() -> None:
    for name in lightning_ckptkd.__all__:
        assert getattr(lightning_ckptkd, name).__name__ == name
    assert set(lightning_ckptkd.__all__) <= set(dir(lightning_ckptkd))
    assert lightning_ckptkd.losses.KDLoss.__name__ == "KDLoss"
    with pytest.raises(AttributeError, match="'lightning_ckptkd' has no attribute 'MISelektor'"):
        _ = lightning_ckptkd.MISelektor


def main_record() -> None:
    document = {"made_with": told_at_once.makers(), "parser": asdict(real_parser())}
    told_at_once.RECORD.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main_record()
