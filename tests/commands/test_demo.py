from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lightning_ckptkd.commands import demo


def test_the_demo_on_short_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()
    for path in (Path(__file__).parents[2] / "configs" / "digits").iterdir():
        document = yaml.safe_load(path.read_text())
        document["trainer"]["max_epochs"] = 2
        (configs / path.name).write_text(yaml.safe_dump(document))
    monkeypatch.setattr(sys, "argv", ["demo", "--configs", str(configs), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(demo, "_SEEDS", (0,))
    monkeypatch.setattr(demo, "_CASES", {"40% of labels wrong": 0.4})
    demo.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (?:the teacher itself|student).* \| +(\d+\.\d) \(.*\) \|$", printed, re.M)
    (worth,) = re.findall(r"^- 40% of labels wrong, seed 0: (.+\.)$", printed, re.M)
    written = [Path(path) for path in re.findall(r"^Written: (.+?), ", printed, re.M)]
    assert len(written) == 7
    assert all(path.is_file() for path in written)
    (numbers,) = (json.loads(path.read_text()) for path in written if path.name == "students.json")
    ((trial,),) = numbers.values()
    assert [f"{100 * accuracy:.1f}" for accuracy in trial["accuracies"].values()] == rows
    assert list(trial["accuracies"]) == ["teacher", "alone", "last", "selected"]
    assert len(trial["snapshots"]) == 2
    assert trial["snapshots"][-1] == pytest.approx(trial["accuracies"]["teacher"])  # the same weights and images
    assert trial["chosen"] == [0, 1]
    assert trial["worth"] == worth
    runs = sorted((tmp_path / "out").glob("run_0/wrong_0.4/seed_0/*/config.yaml"))
    assert len(runs) == 4
    for run in runs:
        assert yaml.safe_load(run.read_text())["data"]["init_args"]["wrong_labels"] == 0.4
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.verify()


def test_the_demo_away_from_its_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit):
        demo.main()
    assert "no fit.yaml in 'configs/digits'. Run the demo in the root of a clone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing was begun"
