"""What is wrong with a config is said before anything is loaded: all of it, in plain words, with where it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.errors import ConfigError, Problem, RunDirectoryError
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.environment_checks import check_run_directory
from rlhf_lightning.runs.overrides import as_hydra_reads
from rlhf_lightning.runs.preflight import check_run, check_sweep


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


EXPERIMENTS = {
    "loop": "# @package _global_\nname: ${nowhere.x}\nnotes: ${oc.env:SURELY_NOT_SET}\nsft:\n  epochs: ${sft.epochs}\n",
    "values": "# @package _global_\nsft:\n  lerning_rate: 1\n  epochs: two\nppo:\n  minibatches: 3\nzzz: 1\n",
    "broken": "# @package _global_\nkl: [1\nsft: 2\n",
    "lost": "# about it\n# @package _global_\nsft:\n  epochs: 1\n",
    "absent": "# @package _global_\ndefaults:\n  - override /kl: nope\n",
    "many": "# @package _global_\nhydra:\n  mode: MULTIRUN\n",
}
"""Of a user's own, each with a mistake."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_options: Callable[[Path, Mapping[str, str]], None]) -> Path:
    """A folder with a folder `mine` of those experiments."""
    folder = tmp_path_factory.mktemp("folder")
    write_options(folder / "mine" / "experiment", EXPERIMENTS)
    return folder


@pytest.fixture
def mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigTree:
    """The config folder with `mine`, here in the working directory."""
    monkeypatch.chdir(folder)
    return ConfigTree.load(Path("mine"))


def problems(tree: ConfigTree, *overrides: str) -> dict[str, Problem]:
    """The problems by key; empty where there are none."""
    try:
        check_run(tree, overrides)
    except ConfigError as error:
        found = error.problems
    else:
        return {}
    assert len({problem.key for problem in found}) == len(found), found
    return {problem.key: problem for problem in found}


def sweep_problems(tree: ConfigTree, *overrides: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        check_sweep(tree, overrides)
    return list(caught.value.problems)


def only(found: dict[str, Problem]) -> Problem:
    assert len(found) == 1, found
    return next(iter(found.values()))


def test_every_model_goes_with_every_data(tree: ConfigTree) -> None:
    """Apart from the courtesy model, which knows no other world's words."""
    needed = {"hh_rlhf": ["data.path=/"], "hub": ["data.name=a/b"], "files": ["data.prompts=/"], "courtesy": []}
    assert set(needed) == set(tree.options("data"))
    for data, values in needed.items():
        assert problems(tree, f"data={data}", "model=scratch", *values) == {}
    for model in tree.options("model"):
        given = ["model.name_or_path=a/b"] if model == "hub" else []
        found = problems(tree, "data=files", "data.prompts=/", f"model={model}", *given)
        assert set(found) == ({"model"} if model == "courtesy" else set())


def test_the_defaults_have_no_problem(tree: ConfigTree) -> None:
    settings = check_run(tree, []).settings
    assert settings is not None
    assert settings.pipeline.name == "rlhf"


@pytest.mark.parametrize(
    "pipeline",
    ["rlhf", "sft", "reward_model", "constitutional", "constitutional_sl", "rlaif", "judge_calibration"],
)
def test_shipped_pipelines_that_need_no_artifact_have_no_problem(tree: ConfigTree, pipeline: str) -> None:
    assert problems(tree, f"pipeline={pipeline}") == {}


def test_shipped_experiments_and_debug_have_no_problem(tree: ConfigTree, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").touch()
    assert problems(tree, "debug=tiny") == {}
    assert problems(tree, "experiment=hh_rlhf_scratch", f"data.path={tmp_path / 'pairs.jsonl'}") == {}


def test_all_problems_are_reported_at_once(tree: ConfigTree) -> None:
    found = problems(
        tree,
        "kl.coeff=1",  # unknown key
        "modle=gpt2",  # unknown group
        "reward=lerned",  # unknown option
        "ppo.clip_range=wide",  # wrong type
        "sft.epochs=0",  # out of range
        "rollout.batch_size=100",  # contradicts ppo.minibatches and ppo.micro_batch_size
        "reward_model.backbone_from=./nowhere",  # absent
        "optimizer._target_=os.system",  # not trusted
    )
    assert set(found) == {
        "kl.coeff",
        "modle",
        "reward",
        "ppo.clip_range",
        "sft.epochs",
        "ppo.micro_batch_size",
        "reward_model.backbone_from",
        "optimizer._target_",
    }
    assert found["ppo.clip_range"].source == "ppo.clip_range=wide"
    assert found["ppo.micro_batch_size"].source == "rollout.batch_size=100"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("kl.coeff=1", "kl.coef"),
        ("+kl.coeff=1", "kl.coef"),
        ("++kl.coeff=1", "kl.coef"),
        ("ppo.coef=0.1", "kl.coef"),  # the same last name in another section
        ("learning_rate=0.1", "sft.learning_rate"),
        ("modle=gpt2", "model=gpt2"),
        ("modle.dtype=float32", "model.dtype"),
        ("sft.epochs.x=1", "sft.epochs"),
        ("rollout.max_new_token=9", "rollout.max_new_tokens"),
    ],
)
def test_an_unknown_key_is_answered_with_real_ones(tree: ConfigTree, override: str, meant: str) -> None:
    problem = only(problems(tree, override))
    assert problem.what.startswith("there is no such key")
    assert problem.source == override
    assert problem.fix is not None
    assert meant in problem.fix
    assert "+" not in problem.fix


def test_a_name_like_no_other_is_answered_with_the_groups(tree: ConfigTree) -> None:
    fix = only(problems(tree, "zzz=1")).fix
    assert fix is not None
    assert "data, model, peft, optimizer, constitution, judge" in fix


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("kl=fixd", "kl=fixed"),
        ("kl=gae", "advantage=gae"),
        ("stage@sft=sf", "stage@sft=sft"),
        ("trainer=gpus", "trainer=gpu"),
    ],
)
def test_an_unknown_option_is_answered_with_real_ones(tree: ConfigTree, override: str, meant: str) -> None:
    problem = only(problems(tree, override))
    assert problem.what.startswith("has no option")
    assert problem.fix is not None
    assert meant in problem.fix


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("kl.coef=abc", "expects a number >= 0, got 'abc'"),
        ("kl.coef=-1", "expects a number >= 0, got -1"),
        ("kl.coef=nan", "expects a number >= 0, got nan"),
        ("kl.coef=null", "expects a number >= 0, got null"),
        ("sft.epochs=2.5", "expects a whole number >= 1, got 2.5"),
        ("data.annotator.flip_rate=0.7", "expects a number >= 0 and <= 0.5, got 0.7"),
        ("ppo.missing_eos_penalty=much", "expects a number, or null, got 'much'"),
        ("trainer.deterministic=1", "expects true or false, got 1"),
        ("model.dtype=float33", "expects one of float32, bfloat16, float16, got 'float33'"),
        ("evaluate.policies=[]", "expects a list that is not empty, got []"),
        ("tags=x", "expects a list, got 'x'"),
        ("sft=3", "is a section, not a single value; got 3"),
        ("optimizer={a: 1}", ""),
    ],
)
def test_wrong_values_are_told_what_is_expected(tree: ConfigTree, override: str, what: str) -> None:
    found = problems(tree, override)
    if not what:
        assert found == {}
        return
    problem = only(found)
    assert problem.what == what
    assert problem.source == override


def test_an_item_of_a_list_is_named(tree: ConfigTree) -> None:
    found = problems(tree, "pipeline.stages=[sft,pppo]")
    fix = "did you mean ppo?; +stage@pppo=STAGE makes one for a second run of a stage"
    assert found["pipeline.stages.1"].fix == fix


def test_no_word_of_the_checking_library_shows(tree: ConfigTree) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(
            tree, ["kl.coef=abc", "data=hh_rlhf", "kl.knd=x", "trainer.devices=0", "model=hub", "sft=1", "tags=1"]
        )
    text = caught.value.render().lower()
    for word in ("input should", "union_tag", "pydantic", "type=", "discriminator", "extra inputs", "valid dictionary"):
        assert word not in text


def test_a_key_of_another_option_names_the_option(tree: ConfigTree) -> None:
    problem = only(problems(tree, "kl=none", "kl.coef=0.1"))
    assert problem.what == "belongs to kl=fixed or kl=adaptive, and kl=none is chosen"
    found = problems(tree, "data=hub", "data.name=x", "model=scratch", "data.annotator.flip_rate=0.1")
    assert found["data.annotator"].what == "belongs to data=courtesy, and data=hub is chosen"
    assert found["data.annotator"].source == "data.annotator.flip_rate=0.1"


def test_a_kind_is_chosen_with_its_option(tree: ConfigTree) -> None:
    assert only(problems(tree, "kl.kind=none")).fix == "choose one: kl=..."


def test_missing_values_name_the_choice_that_needs_them(tree: ConfigTree) -> None:
    found = problems(tree, "model=hub", "sft.batch_size=33", "rollout.max_new_tokens=x")
    assert found["model.name_or_path"] == Problem(
        "model.name_or_path", "needs a value", "model=hub", "add model.name_or_path=..."
    )
    assert set(found) == {"model.name_or_path", "sft.batch_size", "rollout.max_new_tokens"}


def test_a_mistake_does_not_bring_false_ones_with_it(tree: ConfigTree) -> None:
    # 128 (the default that stands in for the wrong value) has no divisor 3, but the user never chose 128.
    assert set(problems(tree, "rollout.batch_size=x", "ppo.minibatches=3")) == {"rollout.batch_size"}


def test_contradictions_inside_a_section_name_the_override(tree: ConfigTree) -> None:
    problem = only(problems(tree, "sft.micro_batch_size=5"))
    assert problem.what == "batch_size 32 must be a multiple of micro_batch_size 5"
    assert problem.source == "sft.micro_batch_size=5"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["judge.clamp=[0.6,0.9]"], "clamp [0.6, 0.9] must hold 0.5, as [0.4, 0.6] does"),
        (["judge.clamp=[0.9,0.1]"], "clamp [0.9, 0.1] must hold 0.5, as [0.4, 0.6] does"),
        (["judge.votes=3"], "votes differ only by their reasoning: set cot=true, or votes=1"),
        (["judge.abstain_on_disagreement=true"], "compares two orders, and mode=pointwise has none"),
        (["judge.mode=pairwise", "judge.swap=false", "judge.abstain_on_disagreement=true"], "orders: set swap=true"),
        (["reward_model.mix_ratio=0.5"], "mix_from and mix_ratio go together: give both"),
        (["reward_model.mix_from=critique_revision"], "mix_from and mix_ratio go together: give both"),
    ],
)
def test_contradictions_of_feedback_name_an_override(tree: ConfigTree, overrides: list[str], said: str) -> None:
    problem = only(problems(tree, "pipeline=constitutional", *overrides))
    assert said in problem.what
    assert problem.source in overrides


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["trainer.precision=16-mixed"], "trainer.precision", "16-mixed needs a GPU"),
        (
            ["ppo.critic=reward_model", "reward=classifier", "reward.name_or_path=DIR", "reward.positive_label=good"],
            "ppo.critic",
            "another scale than reward=classifier",
        ),
        (
            ["reward.running_normalization=true"],
            "reward.running_normalization",
            "running_normalization and standardize_on_reference exclude each other",
        ),
        (["ppo.critic_warmup=75"], "ppo.critic_warmup", "leaves none of 75 iterations"),
    ],
)
def test_options_that_do_not_go_together(tree: ConfigTree, overrides: list[str], key: str, said: str) -> None:
    found = problems(tree, *overrides)
    assert said in found[key].what


@pytest.mark.parametrize(
    "override", ["ppo.clip_range=0.1", "kl=none", "kl.coef=1", "advantage.gae_lambda=0.9", "stage@ppo=ppo"]
)
def test_an_override_that_no_stage_reads_is_refused(tree: ConfigTree, override: str) -> None:
    problem = only(problems(tree, "pipeline=sft", override))
    assert problem.what == "has no effect: pipeline 'sft' has no ppo stage"
    assert problem.source == override


def test_an_override_that_any_running_stage_reads_is_accepted(tree: ConfigTree) -> None:
    # The comparisons are drawn with the rollouts' sampling, in as many rows at once, but not in PPO's batches.
    drawn = ["pipeline=reward_model", "rollout.temperature=0.7", "rollout.chunk_size=64", "rollout.max_new_tokens=20"]
    assert problems(tree, *drawn) == {}
    assert set(problems(tree, *drawn, "rollout.batch_size=256")) == {"rollout.batch_size"}
    assert set(problems(tree, "pipeline=sft", "rollout.max_new_tokens=20")) == {"rollout.max_new_tokens"}


@pytest.mark.parametrize("override", ["constitution=hhh", "constitution.sampling.mode=all", "judge.label=hard"])
def test_what_only_a_judge_reads_is_refused_where_none_is_asked(tree: ConfigTree, override: str) -> None:
    problem = only(problems(tree, override))
    assert problem.what.startswith("has no effect: pipeline 'rlhf' has no ai_feedback or")
    assert "evaluate" not in problem.what, "it has that stage"
    assert problem.source == override
    # The evaluation asks the judge where it is told to, and the other pipelines do so at other stages.
    assert problems(tree, override, "evaluate.satisfaction=16") == {}
    assert problems(tree, override, "pipeline=judge_calibration") == {}


@pytest.mark.parametrize(
    ("pipeline", "override"),
    [
        ("rlhf", "critique_revision.prompts=10"),
        ("rlhf", "revision_sft.epochs=2"),
        ("rlhf", "ai_feedback.responses=2"),
        ("constitutional_sl", "ai_feedback.responses=2"),
        ("constitutional_sl", "judge_calibration.pairs=50"),
        ("constitutional_sl", "judge.label=hard"),
        ("rlaif", "constitution.revisions=1"),
        ("rlaif", "critique_revision.prompts=10"),
        ("constitutional", "comparisons.prompts=10"),
        ("judge_calibration", "callbacks.gold_monitor=false"),
    ],
)
def test_a_key_of_constitutional_ai_is_refused_where_no_stage_reads_it(
    tree: ConfigTree, pipeline: str, override: str
) -> None:
    assert only(problems(tree, f"pipeline={pipeline}", override)).what.startswith("has no effect: pipeline")


def test_what_a_file_sets_may_be_without_effect(tree: ConfigTree) -> None:
    assert problems(tree, "debug=tiny", "pipeline=sft") == {}


@pytest.mark.parametrize("override", ["a=[1", "b", "notes=a)", "ppo.policy_from=~/x"])
def test_overrides_that_cannot_be_read(tree: ConfigTree, override: str) -> None:
    assert only(problems(tree, override)).fix


def test_several_values_need_a_sweep(tree: ConfigTree) -> None:
    found = problems(tree, "kl.coef=1,2", "seed=range(1,3)", "sft.epochs=0")
    assert set(found) == {"kl.coef", "seed", "sft.epochs"}
    assert found["kl.coef"].fix == "add -m, or write [a,b] for a list"


def test_a_group_is_chosen_once(tree: ConfigTree) -> None:
    assert only(problems(tree, "kl=none", "kl=fixed")).what == "is chosen twice"


def test_deletions(tree: ConfigTree) -> None:
    assert problems(tree, "~optimizer.weight_decay") == {}
    assert only(problems(tree, "~kl.coef")).source == "~kl.coef"
    assert only(problems(tree, "~logger")).what == "the whole section is missing"
    assert only(problems(tree, "~optimizer.nothing")).what == "there is nothing to delete"


def test_named_files_must_exist(tree: ConfigTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").touch()
    choices = ["data=files", "model=scratch"]
    assert only(problems(tree, *choices)).what == "names no file"
    assert problems(tree, *choices, "data.preferences=there.jsonl") == {}
    found = problems(tree, *choices, "data.preferences=there.jsonl", "data.prompts=gone.jsonl")
    assert only(found).what == "gone.jsonl does not exist"
    assert str(tmp_path) in str(only(found).fix)


@pytest.mark.parametrize(
    "key", ["critique_revision.prompts_from", "critique_revision.helpful_prompts_from", "judge_calibration.data"]
)
def test_files_of_feedback_must_exist(
    tree: ConfigTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").touch()
    assert problems(tree, "pipeline=constitutional", f"{key}=there.jsonl") == {}
    assert problems(tree, "pipeline=constitutional", f"{key}=gone.jsonl")[key].what == "gone.jsonl does not exist"


def test_a_judge_s_files_must_exist(tree: ConfigTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judge = ("pipeline=constitutional", "judge=hub", "judge.phrasing=english")
    assert problems(tree, *judge, "judge.name_or_path=owner/name") == {}
    found = problems(tree, *judge, "judge.name_or_path=./gone", "judge.chat_template=gone.jinja")
    assert {key: problem.what for key, problem in found.items()} == {
        "judge.name_or_path": "./gone does not exist",
        "judge.chat_template": "gone.jinja does not exist",
    }


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("./x", True),
        ("/x/y", True),
        ("a/b/c", True),
        ("here/x", True),
        ("gpt2", False),
        ("openai-community/gpt2", False),
    ],
)
def test_only_what_must_be_a_path_is_looked_for(
    tree: ConfigTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_path: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    found = problems(tree, f"sft.policy_from={name}")
    assert bool(found) == is_path


def test_interpolations_that_fail_are_all_named(mine: ConfigTree) -> None:
    found = problems(mine, "experiment=loop")
    assert {key: problem.source for key, problem in found.items()} == {
        "name": "mine/experiment/loop.yaml:2",
        "notes": "mine/experiment/loop.yaml:3",
        "sft.epochs": "mine/experiment/loop.yaml:5",
    }


def test_mistakes_in_a_file_are_reported_with_its_line(mine: ConfigTree) -> None:
    found = problems(mine, "experiment=values")
    assert {key: problem.source for key, problem in found.items()} == {
        "sft.lerning_rate": "mine/experiment/values.yaml:3",
        "sft.epochs": "mine/experiment/values.yaml:4",
        "ppo.minibatches": "mine/experiment/values.yaml:6",
        "zzz": "mine/experiment/values.yaml:7",
    }


def test_broken_yaml_is_reported_with_its_line(mine: ConfigTree) -> None:
    problem = only(problems(mine, "experiment=broken"))
    assert problem.source is not None
    assert problem.source.startswith("mine/experiment/broken.yaml:")
    assert "not valid YAML" in problem.what


def test_a_file_that_forgot_its_package_line_is_told_so(mine: ConfigTree) -> None:
    assert only(problems(mine, "experiment=lost")).fix == "begin its file with the line: # @package _global_"


def test_a_default_that_does_not_exist_is_reported(mine: ConfigTree) -> None:
    assert "kl/nope" in only(problems(mine, "experiment=absent")).what


def test_a_file_cannot_ask_for_a_sweep(mine: ConfigTree) -> None:
    problem = only(problems(mine, "experiment=many"))
    assert (problem.source, problem.fix) == ("mine/experiment/many.yaml:3", "drop it and add -m")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("hydra.job.chdir=true", "hydra.job.chdir"),
        ("+hydra.callbacks.mine.key=1", "hydra.callbacks"),
        ("+hydra.job.env_set.A=b", "hydra.job.env_set"),
    ],
)
def test_what_hydra_would_do_to_a_job_of_its_own_is_refused(tree: ConfigTree, override: str, key: str) -> None:
    assert set(problems(tree, override)) == {key}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["kl=none", "seed=3"],
        ["debug=tiny", "kl.coef=0.3", "tags=[a,b]", "+optimizer.amsgrad=true", "~optimizer.weight_decay"],
        ["logger={project: mine}", "evaluate.policies=[sft]", "name='a, b'"],
    ],
)
def test_what_is_checked_is_what_hydra_composes(tree: ConfigTree, overrides: list[str]) -> None:
    checked = check_run(tree, overrides).settings
    texts = as_hydra_reads(tree, tree.parse(overrides))
    plain: Any = OmegaConf.to_container(tree.compose(tuple(texts)), resolve=False)
    assert checked is not None
    placed = {"paths", "cache", "hydra"}
    assert checked.model_dump(exclude=placed) == {key: plain[key] for key in plain if key not in placed}


def test_a_sweep_is_checked_job_by_job(tree: ConfigTree) -> None:
    found = sweep_problems(tree, "kl=none,fixed", "kl.coef=0.1", "seed=1,2")
    assert [problem.key for problem in found] == ["kl.coef"]
    assert found[0].source == "kl.coef=0.1, job 0: kl=none kl.coef=0.1 seed=1; job 1: kl=none kl.coef=0.1 seed=2"


def test_a_swept_value_that_is_wrong_needs_no_list_of_jobs(tree: ConfigTree) -> None:
    found = sweep_problems(tree, "kl.coef=0.1,abc", "seed=range(1,4)", "sft.epochs=0")
    assert {(problem.key, problem.source) for problem in found} == {
        ("kl.coef", "kl.coef=abc"),
        ("sft.epochs", "sft.epochs=0"),
    }


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("seed=1,2,3", [1, 2, 3]),
        ("seed=range(1,7,2)", [1, 3, 5]),
        ("seed=choice(4,5)", [4, 5]),
        ("seed=sort(3,1,2)", [1, 2, 3]),
    ],
)
def test_every_kind_of_sweep_is_expanded(tree: ConfigTree, override: str, values: list[int]) -> None:
    assert [job.settings.seed for job in check_sweep(tree, [override]) if job.settings] == values


def test_options_are_swept_by_pattern(tree: ConfigTree) -> None:
    kinds = [job.settings.kl.kind for job in check_sweep(tree, ["kl=glob(*)"]) if job.settings]
    assert kinds == ["adaptive", "fixed", "none"]


def test_sweeps_that_cannot_be_run(tree: ConfigTree) -> None:
    assert "interval" in sweep_problems(tree, "kl.coef=interval(0,1)")[0].what
    assert "no job" in sweep_problems(tree, "seed=range(1,1)")[0].what
    assert "cannot be swept" in sweep_problems(tree, "hydra.job.chdir=true,false")[0].what


@pytest.mark.parametrize("key", ["critique_revision.kinds", "critique_revision.helpful_kinds", "ai_feedback.kinds"])
def test_kinds_that_the_world_does_not_have_are_found_before_a_run(tree: ConfigTree, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_run(tree, ["pipeline=constitutional", f"{key}=[harm,nonsense]"])
    (problem,) = refused.value.problems
    assert problem.key == key
    assert "no prompts of the kind nonsense" in problem.what
    assert "harm, edge" in str(problem.fix)


def test_jobs_that_choose_the_same_options_are_composed_once(tree: ConfigTree) -> None:
    before = ConfigTree.compose.cache_info().misses
    assert len(check_sweep(tree, ["kl=none,fixed", "seed=range(1,11)"])) == 20
    assert ConfigTree.compose.cache_info().misses - before <= 3  # what they share, and the two options


def test_the_run_directory_is_known_before_the_run(tree: ConfigTree) -> None:
    assert check_run(tree, ["paths.run_dir=there"]).directories.run == Path("there")
    assert check_run(tree, ["paths.outputs=there"]).directories.run.is_relative_to("there/runs")
    assert check_run(tree, ["hydra.run.dir=there"]).directories.run == Path("there")
    assert check_sweep(tree, ["paths.sweep_dir=there"])[0].directories.sweep == Path("there")


def test_a_run_directory_must_be_free_and_writable(tmp_path: Path) -> None:
    check_run_directory(tmp_path / "new" / "deep")
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="file is in the way"):
        check_run_directory(tmp_path / "file" / "run")
    (tmp_path / "old").mkdir()
    check_run_directory(tmp_path / "old")
    (tmp_path / "old" / "config.yaml").touch()
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        check_run_directory(tmp_path / "old")
