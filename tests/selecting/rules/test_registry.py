from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import lightning_ckptkd
from lightning_ckptkd import ArgumentError, MISelector
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.commands.rule_words import refuse_moved_options, spell_out_rule
from lightning_ckptkd.selecting.rules import MI, RULES, Half, make_rule, moved_options

PACKAGE = Path(lightning_ckptkd.__file__).parent
MODEL = ["--model", "tests.projects.Project", "--data", "tests.projects.DigitsData"]


def test_short_names() -> None:
    assert set(RULES) == {"mi", "mcmi", "accuracy", "loss", "full", "half", "spaced"}
    for name, kind in RULES.items():
        assert type(make_rule(name)) is kind and make_rule(name).name == name
    assert isinstance(MISelector(rule="half").settings.rule, Half)
    with pytest.raises(ArgumentError, match=r"rule='haf' is unknown. Near names: 'half'"):
        make_rule("haf")


def test_no_rule_is_told_apart_by_name_elsewhere() -> None:
    """No comparison with a rule's name or class in any other room; ``spaced`` is a kind of ensemble, too."""
    names = {*RULES, *(kind.__name__ for kind in RULES.values())}
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE / "selecting" / "rules":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                words = {word.value for word in ast.walk(node) if isinstance(word, ast.Constant)}
                of_sets = any(isinstance(word, ast.Attribute) and word.attr == "ensemble" for word in ast.walk(node))
                assert of_sets or not words & names, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {word.id for word in ast.walk(node) if isinstance(word, ast.Name)}
                assert not asked & names, f"{path.name}:{node.lineno}"


def remedies(message: str) -> tuple[str, str, list[str]]:
    """What an error says to write in Python, YAML and on the command line."""
    python = re.search(r"rule=(MI\(.*?\)) in Python \(from (\S+) import MI\)", message)
    in_yaml = re.search(r"in Python \(.*?\), (rule: \{.*\}\}) in YAML", message)
    words = re.search(r"in YAML, (--rule .*) on the command line", message)
    assert python and in_yaml and words
    return python[1], in_yaml[1], words[1].split()


@pytest.mark.parametrize("name", ["normalisation", "layer", "given_label", "input_weight", "label_floor"])
def test_an_option_that_moved_says_where_it_went_and_that_works(name: str, harvest: Path, tmp_path: Path) -> None:
    values = {
        "normalisation": "max",
        "layer": "backbone.7",
        "given_label": True,
        "input_weight": 2.5,
        "label_floor": 0.5,
    }
    value = values[name]
    messages = []
    with pytest.raises(ArgumentError, match=f"^{name} is an option of the rule now: rule=MI") as error:
        MISelector(**{name: value})
    messages.append(str(error.value))
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump({"snapshots": str(harvest), "rule": "mi", name: value}))
    word = yaml.safe_dump(value).split("\n")[0]
    for words in (
        [str(harvest), *MODEL, f"--{name}={word}"],
        [str(harvest), *MODEL, f"--{name}", word],
        ["-c", str(old)],
    ):
        with pytest.raises(ArgumentError, match=f"^{name} is an option of the rule now: rule=MI") as error:
            main(["select", *words])
        messages.append(str(error.value))
    fit = tmp_path / "fit.yaml"
    selector = {"class_path": "lightning_ckptkd.MISelector", "init_args": {"num_teachers": 1, name: value}}
    fit.write_text(yaml.safe_dump({"trainer": {"callbacks": [selector]}}))
    with pytest.raises(ArgumentError, match=f"^{name} is an option of the rule now: rule=MI") as error:
        main(["fit", "--config", str(fit)])
    messages.append(str(error.value))
    assert len(set(messages)) == 1, messages

    python, in_yaml, line = remedies(messages[0])
    assert MISelector(rule=eval(python, {"MI": MI})).settings.rule.options()[name] == value
    new = tmp_path / "new.yaml"
    new.write_text(f"snapshots: {harvest}\nmodel: tests.projects.Project\ndata: tests.projects.DigitsData\n{in_yaml}\n")
    for words in (["--config", str(new)], [str(harvest), *MODEL, *line]):
        assert main(["select", *words]).settings["rule"][name] == value


def test_several_options_at_once() -> None:
    with pytest.raises(
        ArgumentError,
        match=r"normalisation, layer are options of the rule now: rule=MI\(normalisation='max', layer=None",
    ):
        MISelector(normalisation="max", layer=None)


def test_variables_that_moved() -> None:
    with pytest.raises(ArgumentError, match=r"label_floor is an option of the rule now: rule=MI\(label_floor=0.5\)"):
        refuse_moved_options(["select", "DIR"], {"CKPTKD_SELECT__LABEL_FLOOR": "0.5"})
    refuse_moved_options(["fit"], {"CKPTKD_SELECT__LABEL_FLOOR": "0.5"})


def test_options_of_the_same_name_elsewhere_are_left_alone(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    model = {"class_path": "lightning_ckptkd.DistillationModule", "init_args": {"temperature": 3.0}}
    config.write_text(yaml.safe_dump({"model": model}))
    refuse_moved_options(["distill", "--config", str(config), "--model.temperature=4"], {})
    refuse_moved_options(["fit", "--config", "nowhere.yaml"], {})
    assert "temperature" in moved_options()


def test_short_names_with_options(harvest: Path, tmp_path: Path) -> None:
    for words in (["--rule", "mi", "--rule.normalisation=max"], ["--rule.normalisation=max"]):
        rule = main(["select", str(harvest), *MODEL, *words]).settings["rule"]
        assert (rule["name"], rule["normalisation"]) == ("mi", "max")
    config = tmp_path / "config.yaml"
    config.write_text("rule: mi\n")
    assert spell_out_rule(["select", "-c", str(config), "--rule.layer=x"], {})[-2:] == ["--rule=MI", "--rule.layer=x"]
    own = ["select", "--rule=my.Rule", "--rule.option", "3"]
    assert spell_out_rule(own, {}) == own
