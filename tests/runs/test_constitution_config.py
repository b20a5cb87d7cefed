"""A constitution from the command line, a file or a folder of one's own: what a run gets, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.cli.main import main
from rlhf_lightning.constitutions.settings import ConstitutionSettings
from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.preflight import check_run, check_sweep
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings

PIPELINE = "pipeline=constitutional"

OWN = """\
name: mine
principles:
  - id: own
    title: Own
    critique_request: What is wrong?
    revision_request: Put it right.
    preference_question: Which is better?
    pointwise_question: Is it right?
    world: {tag: brief}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes files below an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return put


Write = Callable[[str, str], None]


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


def constitution(tree: ConfigTree, *overrides: str) -> ConstitutionSettings:
    settings = check_run(tree, [PIPELINE, "logger=none", *overrides]).settings
    assert settings is not None
    return settings.constitution


def ids(own: ConstitutionSettings) -> list[str]:
    return [one.id for one in own.principles]


def problems(tree: ConfigTree, *overrides: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        check_run(tree, [PIPELINE, "logger=none", *overrides])
    found = caught.value.problems
    assert len({problem.key for problem in found}) == len(found), found
    return {problem.key.removeprefix("constitution."): problem for problem in found}


def test_an_option_has_the_principles_of_those_that_it_extends(tree: ConfigTree) -> None:
    own = constitution(tree, "constitution=hhh")
    assert own.name == "hhh"
    assert own.extends == []
    assert ids(own)[0] == "no_enable_harm"
    assert ids(own)[-1] == "not_preachy"


def test_a_file_is_the_whole_constitution_and_overrides_hold_over_it(tree: ConfigTree, write: Write) -> None:
    write("mine.yaml", "revisions: 4\nmix_helpful: 0.5\n" + OWN)
    own = constitution(tree, "constitution.path=mine.yaml", "constitution.revisions=1")
    assert (own.name, own.path, ids(own)) == ("mine", None, ["own"])
    assert (own.revisions, own.mix_helpful, own.train_on) == (1, 0.5, "all")  # override, file, none


def test_a_file_is_chosen_over_what_an_experiment_chooses(write: Write) -> None:
    write("mine.yaml", OWN)
    write("my/experiment/polite.yaml", "# @package _global_\ndefaults:\n  - override /constitution: polite\n")
    tree = ConfigTree.load(Path("my"))
    assert constitution(tree, "experiment=polite").name == "polite"
    assert constitution(tree, "experiment=polite", "constitution.path=mine.yaml").name == "mine"


def test_files_are_swept(tree: ConfigTree, write: Write) -> None:
    write("one.yaml", OWN.replace("mine", "one"))
    write("two.yaml", "name: two\nextends: [one.yaml, polite]\n")
    checked = check_sweep(tree, [PIPELINE, "logger=none", "constitution.path=one.yaml,two.yaml"])
    found = [job.settings.constitution for job in checked if job.settings is not None]
    assert [(own.name, ids(own)) for own in found] == [("one", ["own"]), ("two", ["own", "courtesy"])]


def test_an_option_of_ones_own(write: Write) -> None:
    """It may leave out what a file may, and names other files relative to itself."""
    write("my/constitution/mine.yaml", "extends: [shared/near.yaml, polite]\n" + OWN)
    write("my/constitution/shared/near.yaml", "extends: [next.yml]\n" + OWN.replace("id: own", "id: near"))
    write("my/constitution/shared/next.yml", OWN.replace("id: own", "id: next"))
    own = constitution(ConfigTree.load(Path("my")), "constitution=mine", "constitution.mixture={concise: 3}")
    assert [(one.id, one.weight) for one in own.principles] == [
        ("next", 1.0),
        ("near", 1.0),
        ("courtesy", 1.0),
        ("no_padding", 3.0),
        ("own", 1.0),
    ]
    assert own.revisions == 2


def test_ones_own_option_stands_before_one_of_the_same_name(write: Write) -> None:
    write("my/constitution/polite.yaml", OWN)
    tree = ConfigTree.load(Path("my"))
    assert ids(constitution(tree, "constitution=polite")) == ["own"]
    assert ids(constitution(tree, "constitution.extends=[polite]")) == ["own"]


def test_what_was_resolved_is_read_back_as_it_is(tree: ConfigTree) -> None:
    settings = check_run(tree, [PIPELINE, "constitution=hhh", "logger=none"]).settings
    assert settings is not None
    assert settings_from(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "mine.yaml does not exist"),
        ("", "mine.yaml is empty"),
        ("# only a comment\n", "mine.yaml is empty"),
        ("a: [\n", "a config file is not valid YAML: expected the node content, but found '<stream end>'"),
        ("name: a\nname: b\n", "a config file is not valid YAML: found duplicate key name"),
        ("- a\n", "mine.yaml holds a list, not the keys of a constitution"),
        ("text", "mine.yaml holds a single value, not the keys of a constitution"),
    ],
)
def test_a_file_that_holds_no_constitution(tree: ConfigTree, write: Write, text: str | None, what: str) -> None:
    if text is not None:
        write("mine.yaml", text)
    else:
        write("other.yaml", OWN)
    found = problems(tree, "constitution.path=mine.yaml")
    assert found.keys() == {"path"}
    assert found["path"].what == what
    assert "mine.yaml" in str(found["path"].source)
    assert found["path"].fix is not None


def test_an_option_named_as_a_path_is_pointed_to(tree: ConfigTree, write: Write) -> None:
    write("other.yaml", OWN)
    assert problems(tree, "constitution.path=hhh")["path"].fix == "did you mean constitution=hhh?"
    assert problems(tree, "constitution.path=[a]")["path"].what.startswith("expects the name of a constitution, or")


def test_a_path_is_asked_for(tree: ConfigTree) -> None:
    found = problems(tree, "constitution=file")
    assert found.keys() == {"path"}
    assert found["path"].fix == "add constitution.path=..."


def test_a_file_and_an_option_are_one_too_many(tree: ConfigTree, write: Write) -> None:
    write("mine.yaml", OWN)
    found = problems(tree, "constitution.path=mine.yaml", "constitution=hhh")
    assert found.keys() == {"path"}
    assert found["path"].source == "constitution.path=mine.yaml"


WRONG = """\
name: mine
revison: 3
revisions: 0
extends: [harmles, gone.yaml, mine.yaml, polite]
mixture: {concise: -1, honst: 1}
principles:
  - id: courtesy
    title: Own
    critique_request: What is wrong with {response_a}?
    revision_request: ''
    preference_question: Which is better?
    weight: 0
    world: {tag: breif}
    fewshots: {critique: [{prompt: a, response: b}]}
    weigth: 1
"""


def test_everything_wrong_is_said_at_once_with_its_line(tree: ConfigTree, write: Write) -> None:
    write("mine.yaml", WRONG)
    found = problems(tree, "constitution.path=mine.yaml")
    assert {key: problem.source for key, problem in found.items()} == {
        "revison": "mine.yaml:2",
        "revisions": "mine.yaml:3",
        "extends.0": "mine.yaml:4",
        "extends.1": "mine.yaml:4",
        "extends.2": "mine.yaml:4",
        "mixture.concise": "mine.yaml:5",
        "mixture.honst": "mine.yaml:5",
        # The principle of `polite` comes first, so this is the second one. What is missing is looked for at its place.
        "principles.1.id": "mine.yaml:7",
        "principles.1.pointwise_question": "mine.yaml:7",
        "principles.1.critique_request": "mine.yaml:9",
        "principles.1.revision_request": "mine.yaml:10",
        "principles.1.weight": "mine.yaml:12",
        "principles.1.world.tag": "mine.yaml:13",
        "principles.1.fewshots.critique.0.critique": "mine.yaml:14",
        "principles.1.weigth": "mine.yaml:15",
    }
    assert found["revison"].fix == "did you mean revisions?"
    assert found["extends.0"].fix == "did you mean harmless?"
    assert found["extends.1"].what == "gone.yaml does not exist"
    assert found["extends.2"].what == "goes in a circle: mine.yaml -> mine.yaml"
    assert found["mixture.honst"].fix == "did you mean honest?"
    assert found["principles.1.id"].what == "there is a principle 'courtesy' already, in conf/constitution/polite.yaml"
    assert found["principles.1.critique_request"].fix == "there are: {prompt}, {response}"
    assert found["principles.1.pointwise_question"].what == "needs a value"
    assert found["principles.1.weight"].what == "expects a number > 0, got 0"
    assert found["principles.1.world.tag"].fix == "did you mean brief?"
    assert found["principles.1.weigth"].fix == "did you mean weight?"


def test_a_principle_needs_a_name_in_the_world_only_where_its_words_are_spoken(tree: ConfigTree, write: Write) -> None:
    write("mine.yaml", OWN.replace("    world: {tag: brief}\n", ""))
    write("prompts.jsonl", "")
    mine = ["constitution.path=mine.yaml", "judge.cot=true"]
    found = problems(tree, *mine)
    assert found.keys() == {"principles.0.world", "judge.cot"}
    assert found["principles.0.world"].source == "mine.yaml:3"
    assert problems(tree, *mine, "judge.phrasing=english").keys() == {"principles.0.world"}  # the reviser's still
    files = ["data=files", "data.prompts=prompts.jsonl", "model=scratch"]
    assert ids(constitution(tree, *mine, *files)) == ["own"]
    assert problems(tree, *mine, *files, "judge.phrasing=world").keys() == {"principles.0.world", "judge.cot"}


def test_the_rest_of_the_config_is_checked_as_well(tree: ConfigTree, write: Write) -> None:
    write("mine.yaml", WRONG)
    assert "ppo.minibatches" in problems(tree, "constitution.path=mine.yaml", "ppo.minibatches=7")


def test_a_wrong_option_of_ones_own_names_its_lines(write: Write) -> None:
    write("my/constitution/mine.yaml", "defaults: [none]\n" + WRONG)
    found = problems(ConfigTree.load(Path("my")), "constitution=mine", "constitution.revisions=2")
    assert found["principles.1.weight"].source == "my/constitution/mine.yaml:13"
    assert found["principles.1.pointwise_question"].source == "my/constitution/mine.yaml:8"
    assert found["extends.0"].source == "my/constitution/mine.yaml:5"
    assert found["mixture.concise"].source == "constitution=mine"
    assert "revisions" not in found


def test_a_wrong_override_is_named(tree: ConfigTree) -> None:
    overrides = ("constitution.extends=[hhh]", "constitution.principles=[{id: own}]")
    found = problems(tree, *overrides)
    assert found.keys() == {f"principles.6.{text}" for text in ("title", "critique_request", "revision_request")} | {
        "principles.6.preference_question",
        "principles.6.pointwise_question",
    }
    assert {problem.source for problem in found.values()} == {overrides[1]}
    assert problems(tree, "constitution.extends=[hh]")["extends.0"].source == "constitution.extends=[hh]"


@pytest.mark.slow
def test_a_run_gets_what_was_checked(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single run is composed by Hydra itself once more, after the check."""
    seen: list[ConstitutionSettings] = []

    def pipeline(settings: RunSettings, _: RunDirectory) -> None:
        seen.append(settings.constitution)

    monkeypatch.setattr("rlhf_lightning.runs.run._run_pipeline", pipeline)
    write("mine.yaml", OWN)
    write("my/constitution/ours.yaml", "extends: [harmless, near.yaml]\n")
    write("my/constitution/near.yaml", OWN)
    here = ["logger=none", PIPELINE]
    assert main(["train", *here, "constitution.path=mine.yaml", "constitution.revisions=1"]) == 0
    assert main(["train", "--config-dir", "my", *here, "constitution=ours", "paths.run_dir=ours"]) == 0
    assert [(own.name, own.revisions, ids(own)) for own in seen] == [
        ("mine", 1, ["own"]),
        ("none", 2, ["no_enable_harm", "point_to_safety", "own"]),
    ]
    config = RunDirectory.open(Path("ours")).config["constitution"]
    assert (config["path"], config["extends"], config["mixture"]) == (None, [], {})
    assert [one["id"] for one in config["principles"]] == ids(seen[1])


@pytest.mark.slow
def test_the_config_is_shown_with_a_path(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.yaml", OWN)
    assert main(["train", "--cfg", "job", PIPELINE, "constitution.path=mine.yaml"]) == 0
    assert "path: mine.yaml" in capsys.readouterr().out
