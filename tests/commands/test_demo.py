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
    demo.main()
    printed = capsys.readouterr().out
    rows = re.findall(
        r"^\| (the teacher itself|student).* \| +(\d+\.\d) \| .* \| +(\d+) \| +\d+\.\d \|$", printed, re.M
    )
    assert [epochs for _, _, epochs in rows] == ["2", "0", "2", "2"]
    assert all(0 < float(accuracy) <= 100 for _, accuracy, _ in rows)
    written = [Path(path) for path in re.findall(r"^Written: (.+?), ", printed, re.M)]
    assert len(written) == 7
    assert all(path.is_file() for path in written)
    (numbers,) = (json.loads(path.read_text()) for path in written if path.name == "students.json")
    assert [f"{100 * found[0]['accuracy']:.1f}" for found in numbers.values()] == [accuracy for _, accuracy, _ in rows]
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.verify()
