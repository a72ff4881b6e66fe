"""Figures in the docs are those of the files under benchmarks/results."""

from __future__ import annotations

import json
import re
from inspect import signature
from pathlib import Path

import pytest

from benchmarks.distillation import peers, whole_way
from benchmarks.reliability.experiments import make_table
from benchmarks.students import information_plane, rules, soup_harvest, tables, wrong_labels
from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector, StudentProxy, TeacherCache
from lightning_ckptkd.commands import demo
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.tasks.infer import TASKS, make_task
from lightning_ckptkd.teachers import FeatureMatching, Mixup

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
RELIABILITY = (REPOSITORY / "docs" / "reliability.md").read_text()


def test_the_demo() -> None:
    found = json.loads((RESULTS / "demo.json").read_text())
    trials = {case: [demo.Trial(**trial) for trial in of_seeds] for case, of_seeds in found.items()}
    start = (REPOSITORY / "docs" / "index.md").read_text()
    readme = (REPOSITORY / "README.md").read_text()
    assert demo.format_trials(trials) in start and demo.format_worths(trials) in start
    assert demo.format_trials(trials) in readme
    assert all(f"*{of_seeds[0].worth}*" in readme for of_seeds in trials.values())


def test_what_works_with_what() -> None:
    text = (REPOSITORY / "docs" / "reference.md").read_text().split("## What works with what\n")[1].split("\n## ")[0]
    rows = [row.split("|")[1:-1] for row in text.splitlines() if row.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == list(TASKS)
    assert all(len(row) == 7 for row in rows)
    words = {"acc": "accuracy", "miou": "mean IoU", "f1": "F1", "rmse": "RMSE", "r2": "R²", "perplexity": "perplexity"}
    for row in rows:
        task = make_task(row[0].strip(" `"))
        assert task is not None
        metrics = task.metrics(3, 3)
        assert {name for name, word in words.items() if word in row[5]} == set(metrics), row[0]


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    pages = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    pages += sorted((REPOSITORY / "docs").glob("*.md"))
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", page.read_text()))
        if "://" not in link
    ]
    assert len(links) > 50
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in slugs(target), f"{page.name}: {link}"


@pytest.mark.parametrize(
    "kind",
    [CheckpointHarvester, MISelector, MI, StudentProxy, DistillationModule, Mixup, TeacherCache, FeatureMatching],
)
def test_each_option_is_in_a_table(kind: type) -> None:
    text = (REPOSITORY / "docs" / "reference.md").read_text().split("## What each option does\n")[1]
    table = re.split(rf"^`{kind.__name__}`.*\n", text, maxsplit=1, flags=re.MULTILINE)[1].lstrip().split("\n\n")[0]
    told = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    options = [name for name, option in signature(kind).parameters.items() if option.kind != option.VAR_KEYWORD]
    assert not set(options) - told


def test_the_experiments_table() -> None:
    assert make_table(json.loads((RESULTS / "reliability.json").read_text())) in RELIABILITY


def test_the_mutations() -> None:
    result = json.loads((RESULTS / "mutations.json").read_text())
    assert f"{result['noticed']} of {result['mutations']} were noticed" in RELIABILITY
    assert result["not_noticed"] == []


def test_the_first_epoch_of_live_teachers() -> None:
    text = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert json.loads((RESULTS / "warm.json").read_text())["table"] in text


def test_what_a_harvest_costs() -> None:
    assert json.loads((RESULTS / "harvest.json").read_text())["table"] in RELIABILITY


def test_the_estimators() -> None:
    text = (REPOSITORY / "docs" / "estimators.md").read_text()
    tables = json.loads((RESULTS / "estimators.json").read_text())["tables"]
    assert len(tables) == 4
    assert all(f"## {name}\n" in text and table in text for name, table in tables.items())


def test_the_selection_on_real_data() -> None:
    text = (REPOSITORY / "docs" / "selection.md").read_text()
    outcomes = [rules.Outcome(**outcome) for outcome in json.loads((RESULTS / "rules.json").read_text())]
    assert rules.correlations(outcomes) in text and rules.regrets(outcomes) in text
    planes = sorted((RESULTS / "planes").glob("*.json"))
    assert planes
    for plane in planes:
        assert information_plane.table(json.loads(plane.read_text())["snapshots"]) in text
        assert f"images/plane_{plane.stem}.png" in text


def test_the_papers_tables() -> None:
    text = (REPOSITORY / "docs" / "results.md").read_text()
    found = sorted((RESULTS / "tables").glob("*.json"))
    assert found
    for path in found:
        results = json.loads(path.read_text())
        assert f"## {results['title']}\n" in text
        assert f"images/table_{path.stem}.png" in text
        assert tables.table(results) in text and tables.course(results) in text
    assert tables.summary(tables.read_results()) in text
    assert tables.summary(tables.read_results(wrong_labels=True)) in text


def test_the_study_of_wrong_labels() -> None:
    text = (REPOSITORY / "docs" / "results.md").read_text()
    found = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "wrong_labels").glob("*.json")}
    documents = {name: found[name] for name in wrong_labels.TASKS if name in found}
    assert set(found) == set(documents) != set()
    assert wrong_labels.table(documents) in text and wrong_labels.foretold(documents) in text
    harvests = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "soup_harvest").glob("*.json")}
    assert soup_harvest.table({name: harvests[name] for name in wrong_labels.TASKS if name in harvests}) in text


def test_the_whole_way() -> None:
    text = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    found = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "whole_way").glob("*.json")}
    documents = {name: found[name] for name in wrong_labels.TASKS if name in found}
    assert whole_way.table(documents) in text and "images/whole_way.png" in text
    assert all(len(runs) == 3 for document in documents.values() for runs in document["runs"].values())


def test_the_commands_start() -> None:
    results = json.loads((RESULTS / "start.json").read_text())
    assert results["table"] in (REPOSITORY / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("name", ["epochs", "proxy", "soups"])
def test_what_else_was_measured(name: str) -> None:
    table = json.loads((RESULTS / f"{name}.json").read_text())["table"]
    assert table in (REPOSITORY / "docs" / "benchmarks.md").read_text()


def test_what_teachers_cost_a_student() -> None:
    text = (REPOSITORY / "docs" / "distillation.md").read_text()
    results = json.loads((RESULTS / "distillation.json").read_text())
    parts = [part for part in results if part != "students"]
    assert set(parts) >= {"uncached", "epoch", "fill", "memory", "accuracy", "views"}
    assert all(found["table"] in text for part in parts for found in results[part].values())
    assert json.loads((RESULTS / "half_precision.json").read_text())["table"] in text


def test_what_a_selection_costs() -> None:
    table = json.loads((RESULTS / "selection.json").read_text())["table"]
    assert table in (REPOSITORY / "docs" / "selection.md").read_text()


def test_speed_beside_the_others() -> None:
    """Between the markers stands what the file says, and nothing where nothing was measured."""
    text = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    shown = text.split("<!-- measured -->\n")[1].split("\n<!-- end -->")[0]
    results = RESULTS / "peers.json"
    assert shown == (peers.make_section(json.loads(results.read_text())) if results.exists() else "Not measured yet.")


def test_each_core_folder_says_why() -> None:
    folders = [path for path in (REPOSITORY / "lightning_ckptkd").iterdir() if (path / "__init__.py").exists()]
    core = [path for path in folders if path.name != "zoo"]
    assert len(core) >= 8
    for path in core:
        assert len((path / "README.md").read_text().splitlines()) <= 20
