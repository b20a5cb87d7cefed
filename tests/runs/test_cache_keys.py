"""Two configs give a stage the same key exactly when the stage must leave the same.

What decides what is written down here once more, by hand and key for key, and compared with the keys of random pairs of
configs. A new key of the schema without a line here fails.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rlhf_lightning.data.sources import open_source
from rlhf_lightning.runs.code_identity import code_of
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.identity import StageKeys
from rlhf_lightning.runs.input_identity import path_identity
from rlhf_lightning.runs.machine import installed
from rlhf_lightning.runs.preflight import check_run
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.readers import leaves
from rlhf_lightning.stages.run_settings import RunSettings

Config = dict[str, Any]

S, C, R, P, E = "sft", "comparisons", "reward_model", "ppo", "evaluate"
K, V, J, F = "critique_revision", "revision_sft", "judge_calibration", "ai_feedback"
SECTIONS = (S, K, V, C, J, F, R, P, E)
FIRST_HALF: dict[str, tuple[str, ...]] = {S: (), K: (S,), V: (S, K), C: (S,), J: (), F: (S, K, V, J)}
"""A stage has a key in every pipeline, whether it runs there or not."""

BELOW = {**FIRST_HALF, R: (S, C), P: (S, C, R), E: (S, C, R, P)}
"""The stages that lie below a stage in the pipeline rlhf."""

BELOW_CONSTITUTIONAL = {**FIRST_HALF, R: (S, K, V, J, F), P: (S, K, V, J, F, R), E: (S, K, V, J, F, R, P)}
"""The same in the pipeline constitutional, whose reward model learns from a judge."""

NOTHING: frozenset[str] = frozenset()
TRAINING = frozenset({S, V, R, P})
JUDGED = frozenset({J, F})
"""Evaluation asks the judge only where `evaluate.satisfaction` says so."""

BY_PRINCIPLE = frozenset({K, J, F})

PRINCIPLE: Config = {
    "id": "kind",
    "title": "Be kind",
    "critique_request": "What is unkind?",
    "revision_request": "Say it kindly.",
    "preference_question": "Which is kinder?",
    "pointwise_question": "Is it kind?",
    "weight": 1.0,
    "tags": [],
    "applies_to": None,
    "world": {"tag": "polite"},
    "fewshots": {"critique": [], "revision": [], "judge": []},
}

IN_THE_WORLD: dict[str, tuple[Any, frozenset[str]]] = {
    "seed": (2, frozenset({S, K, V, C, J, F, R, P})),
    "name": ("x", NOTHING),
    "notes": ("x", NOTHING),
    "tags": (["x"], NOTHING),
    "allow_targets": (["x"], NOTHING),
    "resume": ("auto", NOTHING),
    "pipeline.name": ("x", NOTHING),
    "data.max_prompt_length": (16, frozenset({S, V, C, F, R, P, E})),
    "data.max_response_length": (16, frozenset({S, V, R})),
    "data.on_long_record": ("drop", frozenset({S, V, C, F, R, P, E})),
    "data.demonstrations": (40, frozenset({S})),
    **{f"data.annotator.{name}_bias": (0.5, frozenset({C})) for name in ("length", "politeness", "boilerplate")},
    "data.annotator.refusal_penalty": (0.5, frozenset({C})),
    "data.annotator.flip_rate": (0.25, frozenset({C})),
    **{
        f"data.demonstrator.{name}_rate": (0.75, frozenset({S}))
        for name in (
            *("harm", "over_refusal", "off_topic", "rude", "polite", "untrue", "unknown", "filler", "boilerplate"),
        )
    },
    "model.dtype": ("bfloat16", frozenset({S, K, V, C, J, F, R, P, E})),
    "model.gradient_checkpointing": (True, NOTHING),
    "model.share_backbone": (False, frozenset({P})),
    "optimizer._target_": ("torch.optim.SGD", TRAINING),
    "optimizer.betas": ([0.8, 0.9], TRAINING),
    "optimizer.eps": (1e-8, TRAINING),
    "optimizer.weight_decay": (0.1, TRAINING),
    "constitution.name": ("x", BY_PRINCIPLE),
    "constitution.version": (2, BY_PRINCIPLE),
    "constitution.sampling.mode": ("round_robin", BY_PRINCIPLE),
    "constitution.sampling.per": ("chain", BY_PRINCIPLE),
    "constitution.revisions": (3, frozenset({K})),
    "constitution.critique": (False, frozenset({K})),
    "constitution.train_on": ("last", frozenset({K})),
    "constitution.mix_helpful": (0.5, frozenset({K})),
    "constitution.principles": ([PRINCIPLE], BY_PRINCIPLE),
    "judge.mode": ("pairwise", JUDGED),
    "judge.principles": ("one", JUDGED),
    "judge.phrasing": ("english", JUDGED),
    "judge.fewshots": ("always", JUDGED),
    "judge.swap": (False, JUDGED),
    "judge.label": ("hard", JUDGED),
    "judge.clamp": ([0.4, 0.6], JUDGED),
    "judge.abstain_margin": (0.1, JUDGED),
    "judge.min_option_mass": (0.25, JUDGED),
    "judge.temperature": (2.0, JUDGED),
    "judge.cot": (True, JUDGED),
    "judge.max_reasoning_tokens": (64, JUDGED),
    "judge.batch_size": (8, NOTHING),
    "sft.epochs": (2, frozenset({S})),
    "sft.max_steps": (5, frozenset({S})),
    "sft.batch_size": (64, frozenset({S})),
    "sft.micro_batch_size": (4, NOTHING),
    "sft.learning_rate": (1e-5, frozenset({S})),
    "sft.warmup_fraction": (0.5, frozenset({S})),
    "sft.max_grad_norm": (2.0, frozenset({S})),
    "sft.held_out_fraction": (0.25, frozenset({S})),
    "critique_revision.prompts": (30, frozenset({K})),
    "critique_revision.kinds": (["harm"], frozenset({K})),
    "critique_revision.last_turn_only": (True, frozenset({K})),
    "critique_revision.helpful_kinds": (None, frozenset({K})),
    "critique_revision.fewshots": ("never", frozenset({K})),
    "critique_revision.batch_size": (8, NOTHING),
    "critique_revision.temperature": (0.5, frozenset({K})),
    "critique_revision.max_new_tokens": (16, frozenset({K})),
    "critique_revision.held_out_fraction": (0.25, frozenset({K})),
    "revision_sft.epochs": (2, frozenset({V})),
    "revision_sft.max_steps": (5, frozenset({V})),
    "revision_sft.batch_size": (64, frozenset({V})),
    "revision_sft.micro_batch_size": (4, NOTHING),
    "revision_sft.learning_rate": (1e-5, frozenset({V})),
    "revision_sft.warmup_fraction": (0.5, frozenset({V})),
    "revision_sft.max_grad_norm": (2.0, frozenset({V})),
    "revision_sft.held_out_fraction": (0.25, frozenset({V})),
    "comparisons.prompts": (30, frozenset({C})),
    "comparisons.responses": (3, frozenset({C})),
    "comparisons.held_out_fraction": (0.25, frozenset({C})),
    "judge_calibration.pairs": (30, frozenset({J})),
    "judge_calibration.bootstrap_samples": (200, frozenset({J})),
    "ai_feedback.on_failed_calibration": ("refuse", frozenset({F})),
    "ai_feedback.prompts": (30, frozenset({F})),
    "ai_feedback.responses": (4, frozenset({F})),
    "ai_feedback.kinds": (["harm"], frozenset({F})),
    "ai_feedback.batch_size": (8, NOTHING),
    "ai_feedback.held_out_fraction": (0.25, frozenset({F})),
    "reward_model.epochs": (2, frozenset({R})),
    "reward_model.max_steps": (5, frozenset({R})),
    "reward_model.batch_size": (16, frozenset({R})),
    "reward_model.micro_batch_size": (4, NOTHING),
    "reward_model.learning_rate": (1e-5, frozenset({R})),
    "reward_model.warmup_fraction": (0.5, frozenset({R})),
    "reward_model.max_grad_norm": (2.0, frozenset({R})),
    "reward_model.head": ("classifier", frozenset({R})),
    "data.pairing": ("adjacent", frozenset({C, R})),
    "reward_model.margin_coef": (0.5, frozenset({R})),
    "reward_model.reward_centering_coef": (0.5, frozenset({R})),
    "ppo.critic": ("separate", frozenset({P})),
    "ppo.iterations": (3, frozenset({P})),
    "ppo.epochs": (3, frozenset({P})),
    "ppo.minibatches": (4, frozenset({P})),
    "ppo.micro_batch_size": (2, NOTHING),
    "ppo.learning_rate": (1e-5, frozenset({P})),
    "ppo.critic_learning_rate": (1e-5, frozenset({P})),
    "ppo.lr_schedule": ("constant", frozenset({P})),
    "ppo.clip_range": (0.1, frozenset({P})),
    "ppo.value_clip_range": (0.1, frozenset({P})),
    "ppo.value_coef": (0.5, frozenset({P})),
    "ppo.entropy_coef": (0.5, frozenset({P})),
    "ppo.missing_eos_penalty": (None, frozenset({P})),
    "ppo.max_grad_norm": (2.0, frozenset({P})),
    "ppo.target_kl": (0.5, frozenset({P})),
    "ppo.kl_budget": (5.0, frozenset({P})),
    "ppo.critic_warmup": (1, frozenset({P})),
    "evaluate.splits": (["iid"], frozenset({E})),
    "evaluate.prompts": (4, frozenset({E})),
    "measurement.batch_size": (4, NOTHING),
    "evaluate.temperature": (0.5, frozenset({E})),
    "measurement.bootstrap_samples": (200, frozenset({R, E})),
    "evaluate.sample_table": (2, frozenset({E})),
    "measurement.seed": (3, frozenset({R, E})),
    "rollout.batch_size": (32, frozenset({P})),
    "rollout.chunk_size": (4, NOTHING),
    "rollout.max_new_tokens": (16, frozenset({C, F, P, E})),
    "rollout.temperature": (0.5, frozenset({C, F, P})),
    "kl.estimator": ("k3", frozenset({P})),
    "kl.apply_to": ("loss", frozenset({P})),
    "kl.coef": (0.5, frozenset({P})),
    "reference.kind": ("frozen_copy", frozenset({P})),
    "advantage.gamma": (0.5, frozenset({P})),
    "advantage.gae_lambda": (0.5, frozenset({P})),
    "advantage.whiten": (False, frozenset({P})),
    "advantage.whiten_rewards": (True, frozenset({P})),
    "reward.standardize_on_reference": (32, frozenset({P})),
    "reward.scale": (2.0, frozenset({P})),
    "reward.clip": (1.0, frozenset({P})),
    "reward.length_penalty": (0.5, frozenset({P})),
    "trainer.strategy": ("ddp", TRAINING),
    "trainer.devices": (2, TRAINING),
    "trainer.nodes": (3, TRAINING),
    "trainer.precision": ("bf16-mixed", TRAINING),
    "trainer.deterministic": (False, TRAINING),
    "trainer.threads": (1, NOTHING),
    "callbacks.progress_bar": (False, NOTHING),
    "callbacks.sample_log_every": (1, frozenset({P})),
    "callbacks.sample_log_size": (1, frozenset({P})),
    "callbacks.gold_monitor": (False, frozenset({P})),
    "callbacks.plots": (True, frozenset({J})),
    "callbacks.self_checks": (False, NOTHING),
    "callbacks.save_every": (2, NOTHING),
    "callbacks.save_every_steps": (2, NOTHING),
    "callbacks.keep_last": (2, NOTHING),
    "callbacks.extra": ([{"_target_": "pytorch_lightning.callbacks.Timer"}], TRAINING),
    "cache.mode": ("refresh", NOTHING),
    "cache.directory": ("elsewhere", NOTHING),
    "paths.outputs": ("elsewhere", NOTHING),
    "paths.run_dir": ("elsewhere", NOTHING),
    "paths.sweep_dir": ("elsewhere", NOTHING),
}
"""Key -> another value, and the stages that read it and leave something else for it."""

ELSEWHERE = {
    *("pipeline.stages", "evaluate.policies", "evaluate.reference_from", "evaluate.reward_from"),
    *("sft.policy_from", "comparisons.policy_from", "reward_model.backbone_from", "reward_model.comparisons_from"),
    *("ppo.policy_from", "ppo.reward_from", "reward.running_normalization", "trainer.accelerator"),
    *("sft.demonstrations_from", "critique_revision.policy_from", "critique_revision.reviser_from"),
    *("critique_revision.prompts_from", "critique_revision.helpful_prompts_from"),
    *("revision_sft.policy_from", "revision_sft.demonstrations_from", "judge_calibration.data"),
    *("ai_feedback.policy_from", "ai_feedback.calibration_from", "judge.model_from"),
    *("reward_model.mix_from", "reward_model.mix_ratio", "evaluate.satisfaction"),
    *("judge.votes", "judge.abstain_on_disagreement", "plugins"),
    *("constitution.path", "constitution.extends", "constitution.mixture"),  # empty once the principles are there
}
"""Names of inputs, and what cannot be turned alone: tests of their own see to them."""

OF_NO_STAGE = ("sweep.", "launcher.", "logger.")
"""Sections that say how runs are started and where their figures go."""

KINDS = {"data.kind", "model.kind", "peft.kind", "judge.kind", "kl.kind", "advantage.kind", "reward.kind"}
"""Which option of a group is chosen: tests of their own see to them."""

RECORDED: dict[str, tuple[Any, frozenset[str]]] = {
    "seed": (2, frozenset({S, K, V, J, F, R, P})),
    "data.max_prompt_length": (16, frozenset({S, V, F, R, P, E})),
    "data.max_response_length": (16, frozenset({S, V, R})),
    "data.on_long_record": ("drop", frozenset({S, V, F, R, P, E})),
    "data.on_bad_record": ("skip", frozenset({S, K, C, J, F, P, E})),
    "data.held_out_fraction": (0.5, frozenset({S, K, C, J, F, P, E})),
    "data.max_records": (2, frozenset({S, K, C, J, F, P, E})),
    "comparisons.prompts": (30, NOTHING),
    "comparisons.responses": (3, NOTHING),
    "critique_revision.prompts": (30, frozenset({K})),
    "judge_calibration.pairs": (30, frozenset({J})),
    "rollout.max_new_tokens": (16, frozenset({F, P, E})),
    "rollout.temperature": (0.5, frozenset({F, P})),
    "data.pairing": ("adjacent", frozenset({C, J, R})),
    "kl.coef": (0.5, frozenset({P})),
    "sft.epochs": (2, frozenset({S})),
}
"""The same of recorded data, whose comparisons are there already, for keys where that makes a difference."""

BELOW_RECORDED = {**BELOW, C: ()}

CONSTITUTIONAL = ("pipeline=constitutional", "constitution=hhh")


def wired(settings: RunSettings) -> Config:
    """A config whose pipeline leaves out the stages of Constitutional AI, with their inputs as they are there."""
    config = settings.model_dump(mode="json")
    config["revision_sft"]["demonstrations_from"], config["ai_feedback"]["policy_from"] = K, V
    return config


class World(NamedTuple):
    """A config, and the stages that lie below a stage in its pipeline."""

    config: Config
    below: Mapping[str, tuple[str, ...]]
    keys: Mapping[str, str]


@pytest.fixture(scope="module", autouse=True)
def code_is_read_once() -> Iterator[None]:
    """It is the same in all of these tests (`test_cache_code` sees to it), and most of the time that a key takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_lightning.runs.identity.code_of", functools.cache(code_of))
        yield


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


@pytest.fixture(scope="module")
def plain(tree: ConfigTree) -> Config:
    """The smallest config of the embedded world."""
    settings = check_run(tree, ["debug=tiny", "logger=none"]).settings
    assert settings is not None
    return wired(settings)


@pytest.fixture(scope="module")
def constitutional(tree: ConfigTree) -> Config:
    """The smallest config of Constitutional AI."""
    settings = check_run(tree, ["debug=tiny", "logger=none", *CONSTITUTIONAL]).settings
    assert settings is not None
    return settings.model_dump(mode="json")


@pytest.fixture(scope="module", params=["rlhf", "constitutional"])
def world(request: pytest.FixtureRequest, plain: Config, constitutional: Config) -> World:
    """Configs of the embedded world."""
    if request.param == "rlhf":
        return World(plain, BELOW, keys(settings_from(plain)))
    # Rollouts are watched in both, so that a key has the same other value in both.
    watched = {**constitutional, "callbacks": {**constitutional["callbacks"], "gold_monitor": True}}
    return World(watched, BELOW_CONSTITUTIONAL, keys(settings_from(watched)))


@pytest.fixture(scope="module")
def told(tree: ConfigTree) -> Callable[..., RunSettings]:
    """The settings that overrides come to."""

    @functools.cache
    def compose(*overrides: str) -> RunSettings:
        settings = check_run(tree, ["debug=tiny", "logger=none", *overrides]).settings
        assert settings is not None
        return settings

    return compose


def changed(config: Config, values: Mapping[str, Any]) -> RunSettings:
    config = copy.deepcopy(config)
    for key, value in values.items():
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        assert name in place, key
        place[name] = value
    return settings_from(config)


def keys(settings: RunSettings, device: str = "cpu") -> dict[str, str]:
    found = StageKeys(settings, device, lambda: open_source(settings.data, settings.seed))
    return {stage: found.of(stage) for stage in SECTIONS}


def no_records() -> Any:
    pytest.fail("no data is read")


def differing(one: RunSettings, other: RunSettings) -> set[str]:
    """The stages whose keys are not the same."""
    before, after = keys(one), keys(other)
    return {stage for stage in SECTIONS if before[stage] != after[stage]}


def affected(table: Mapping[str, Any], turned: set[str], below: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The stages that read one of the keys, or build on a stage that does."""
    directly = {stage for key in turned for stage in table[key][1]}
    return {stage for stage in SECTIONS if directly & {stage, *below[stage]}}


def test_no_key_is_forgotten(plain: Config) -> None:
    found = {key for key, _ in leaves(plain) if not key.startswith(OF_NO_STAGE) and not key.endswith(".stage")}
    assert found == {*IN_THE_WORLD, *ELSEWHERE, *KINDS}


@pytest.mark.parametrize("key", IN_THE_WORLD)
def test_a_key_counts_for_the_stages_that_read_it_and_for_no_other(key: str, world: World) -> None:
    value, _ = IN_THE_WORLD[key]
    after = keys(changed(world.config, {key: value}))
    turned = {stage for stage in SECTIONS if after[stage] != world.keys[stage]}
    assert turned == affected(IN_THE_WORLD, {key}, world.below)


@hypothesis_settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_two_configs_give_the_same_key_exactly_when_the_stage_must_leave_the_same(
    world: World, data: st.DataObject
) -> None:
    turned = st.sets(st.sampled_from(sorted(IN_THE_WORLD)), max_size=4)
    # A batch that is no multiple of its micro-batch is refused; so is a warm-up that is all of a run.
    one, other = data.draw(turned), data.draw(turned)
    configs = [changed(world.config, {key: IN_THE_WORLD[key][0] for key in sorted(keys)}) for keys in (one, other)]
    assert differing(*configs) == affected(IN_THE_WORLD, one ^ other, world.below)


@pytest.fixture
def recorded(told: Callable[..., RunSettings], tmp_path: Path) -> Config:
    rows = [{"prompt": f"q{row}", "chosen": f"good {row}", "rejected": f"bad {row}"} for row in range(8)]
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = told("data=files", f"data.preferences={path}", "model=scratch", "model.vocab_size=300")
    return wired(settings)


def test_of_recorded_data_nothing_is_sampled_and_ranked(recorded: Config, tmp_path: Path) -> None:
    # With a base model that is not made of the data: what a tokenizer was trained on is in every key.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    shared = {name: recorded["model"][name] for name in ("dtype", "gradient_checkpointing", "share_backbone")}
    hub = {"kind": "hub", "name_or_path": str(tmp_path / "model"), "revision": None, "trust_remote_code": False}
    config = {**recorded, "model": {**shared, **hub, "chat_template": None}}
    for key, (value, _) in RECORDED.items():
        turned = differing(settings_from(config), changed(config, {key: value}))
        assert turned == affected(RECORDED, {key}, BELOW_RECORDED), key


def test_data_counts_by_its_content_and_not_by_its_path(recorded: Config, tmp_path: Path) -> None:
    path = Path(recorded["data"]["preferences"])
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(path.read_bytes())
    assert not differing(settings_from(recorded), changed(recorded, {"data.preferences": str(moved)}))
    moved.write_text(moved.read_text().replace("good 3", "good 4"))
    assert differing(settings_from(recorded), changed(recorded, {"data.preferences": str(moved)})) == set(SECTIONS)


def test_a_model_from_scratch_is_made_of_its_shape_the_text_and_the_seed(recorded: Config) -> None:
    for key, value in (("model.layers", 2), ("model.vocab_size", 310), ("model.hidden_size", 64), ("seed", 2)):
        assert S in differing(settings_from(recorded), changed(recorded, {key: value})), key


def test_a_hub_dataset_counts_by_its_records(recorded: Config) -> None:
    path = Path(recorded["data"]["preferences"])
    as_file = {**recorded["data"], "kind": "hub", "name": str(path), "config": None, "split": "train"}
    kept = (
        "max_prompt_length",
        "max_response_length",
        "on_long_record",
        "pairing",
        "on_bad_record",
        "held_out_fraction",
    )
    names = (*kept, "max_records", "kind", "name", "config", "split")
    config = {**recorded, "data": {**{name: as_file[name] for name in names}, "record": "preference"}}
    before = keys(settings_from(config))
    path.write_text(path.read_text().replace("bad 3", "bad 4"))
    after = keys(settings_from(config))
    assert all(before[stage] != after[stage] for stage in SECTIONS)


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["kl=adaptive"], {P, E}),
        (["kl=none"], {P, E}),
        (["peft=lora"], {S, K, V, C, F, R, P, E}),
        (["reward.standardize_on_reference=null", "reward.running_normalization=true"], {P, E}),
        (["evaluate.policies=[ppo]"], {E}),
        (["evaluate.reward_from=null"], {E}),
        (["evaluate.reference_from=base"], {E}),
        (["comparisons.policy_from=base"], {C, R, P, E}),
        (["sft.policy_from=DIR"], {S, K, C, F, R, P, E}),
        (["sft.demonstrations_from=DIR"], {S, K, C, F, R, P, E}),
        (["reward_model.mix_from=comparisons", "reward_model.mix_ratio=0.5"], {R, P, E}),
        (["evaluate.satisfaction=16"], {E}),
        (["reward_model.backbone_from=base"], {R, P, E}),
        (["ppo.policy_from=base"], {P, E}),
        (["reward=ensemble", "reward.models=[reward_model,reward_model]"], {P, E}),
    ],
    ids=lambda words: " ".join(sorted(words)),
)
def test_an_option_or_an_input_counts_from_its_stage_on(
    told: Callable[..., RunSettings], tmp_path: Path, overrides: list[str], stages: set[str]
) -> None:
    assert differing(told(), told(*(word.replace("DIR", str(tmp_path)) for word in overrides))) == stages


FROM_K, FROM_V, FROM_F = {K, V, F, R, P, E}, {V, F, R, P, E}, {F, R, P, E}


@pytest.mark.parametrize(
    ("before", "overrides", "stages"),
    [
        ([], ["critique_revision.policy_from=base"], FROM_K),
        ([], ["critique_revision.reviser_from=base"], FROM_K),
        ([], ["revision_sft.policy_from=sft"], FROM_V),
        ([], ["revision_sft.demonstrations_from=data"], FROM_V),
        ([], ["revision_sft.demonstrations_from=DIR"], FROM_V),
        ([], ["ai_feedback.policy_from=base"], FROM_F),
        ([], ["ai_feedback.calibration_from=null"], FROM_F),
        ([], ["judge.model_from=sft"], {J} | FROM_F),
        ([], ["judge=hub", "judge.name_or_path=DIR"], {J} | FROM_F),
        (["judge.cot=true", "judge.phrasing=english"], ["judge.votes=3"], {J} | FROM_F),
        (["judge.mode=pairwise"], ["judge.abstain_on_disagreement=true"], {J} | FROM_F),
        ([], ["reward_model.comparisons_from=critique_revision"], {R, P, E}),
        ([], ["reward_model.mix_from=critique_revision", "reward_model.mix_ratio=0.5"], {R, P, E}),
        (["reward_model.mix_from=DIR", "reward_model.mix_ratio=0.5"], ["reward_model.mix_ratio=1.0"], {R, P, E}),
        (["evaluate.satisfaction=16"], ["evaluate.satisfaction=17"], {E}),
        (["evaluate.satisfaction=16"], ["judge.label=hard"], {J} | FROM_F),
    ],
    ids=lambda words: " ".join(sorted(words)) or "as shipped",
)
def test_an_input_of_constitutional_ai_counts_from_its_stage_on(
    told: Callable[..., RunSettings], tmp_path: Path, before: list[str], overrides: list[str], stages: set[str]
) -> None:
    one, other = (
        told(*CONSTITUTIONAL, *(word.replace("DIR", str(tmp_path)) for word in words))
        for words in (before, [*before, *overrides])
    )
    assert differing(one, other) == stages


@pytest.mark.parametrize(("satisfaction", "counts"), [(16, True), (None, False)])
def test_the_judge_counts_for_evaluation_where_it_is_asked_there(
    constitutional: Config, satisfaction: int | None, counts: bool
) -> None:
    def read(**turned: Any) -> dict[str, Any]:
        values = {key.replace("__", "."): value for key, value in turned.items()}
        settings = changed(constitutional, {"evaluate.satisfaction": satisfaction, **values})
        found = StageKeys(settings, "cpu", no_records).identity("evaluate")
        return {**found.settings, "judge.model_from": found.inputs.get("judge.model_from")}

    assert (read() != read(judge__label="hard")) == counts
    assert (read() != read(judge__model_from="sft")) == counts
    assert (read() != read(constitution__principles=[PRINCIPLE])) == counts


def test_what_only_comes_after_a_stage_makes_nothing_before_it_again(constitutional: Config) -> None:
    later = {key: stages for key, (_, stages) in IN_THE_WORLD.items() if key.startswith(("kl.", "ppo."))}
    assert {"kl.coef", "ppo.clip_range", "ppo.iterations"} <= later.keys()
    for key in later:
        turned = differing(settings_from(constitutional), changed(constitutional, {key: IN_THE_WORLD[key][0]}))
        assert turned <= {P, E}, key


def test_no_key_of_the_judge_makes_critiques_again(constitutional: Config) -> None:
    keys_of_the_judge = [key for key in IN_THE_WORLD if key.startswith("judge.")]
    assert len(keys_of_the_judge) > 12
    for key in keys_of_the_judge:
        turned = differing(settings_from(constitutional), changed(constitutional, {key: IN_THE_WORLD[key][0]}))
        assert turned == (set() if key == "judge.batch_size" else {J} | FROM_F), key


CRITIQUE = {"prompt": "p", "response": "r", "critique": "c"}


@pytest.mark.parametrize(
    ("field", "value", "stages"),
    [
        ("preference_question", "Which?", {J} | FROM_F),
        ("pointwise_question", "Is it?", {J} | FROM_F),
        ("fewshots.judge", [{"prompt": "p", "better": "b", "worse": "w"}], {J} | FROM_F),
        ("critique_request", "What?", FROM_K),
        ("revision_request", "Again.", FROM_K),
        ("fewshots.critique", [CRITIQUE], FROM_K),
        ("fewshots.revision", [{**CRITIQUE, "revision": "v"}], FROM_K),
        ("id", "other", {J} | FROM_K),
        ("weight", 3.0, {J} | FROM_K),
        ("applies_to", ["harm"], {J} | FROM_K),
        ("world", {"tag": "verbose"}, {J} | FROM_K),
        ("title", "Other", set()),
        ("tags", ["other"], set()),
    ],
)
def test_a_principle_counts_where_its_words_are_read(
    constitutional: Config, field: str, value: Any, stages: set[str]
) -> None:
    other = copy.deepcopy(constitutional)
    *sections, name = field.split(".")
    place = other["constitution"]["principles"][1]
    for section in sections:
        place = place[section]
    assert place[name] != value
    place[name] = value
    assert differing(settings_from(constitutional), settings_from(other)) == stages


def test_every_field_of_a_principle_is_turned(constitutional: Config) -> None:
    marks: Any = test_a_principle_counts_where_its_words_are_read
    (turned,) = (mark.args[1] for mark in marks.pytestmark if mark.name == "parametrize")
    fields = {key for key, _ in leaves({**PRINCIPLE, "world": "of one name"})}
    assert {field for field, _, _ in turned} == fields
    assert {key.split(".")[0] for key in fields} == constitutional["constitution"]["principles"][0].keys()


@pytest.mark.parametrize("key", ["critique_revision.prompts_from", "critique_revision.helpful_prompts_from"])
def test_a_file_of_prompts_counts_by_its_content(constitutional: Config, tmp_path: Path, key: str) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path in (one, two):
        path.write_text('{"prompt": "how?"}\n')
    with_one, with_two = (changed(constitutional, {key: str(path)}) for path in (one, two))
    assert differing(settings_from(constitutional), with_one) == FROM_K
    assert not differing(with_one, with_two)
    two.write_text('{"prompt": "why?"}\n')
    assert differing(with_one, with_two) == FROM_K


def test_comparisons_to_calibrate_on_count_by_their_content(constitutional: Config, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path in (one, two):
        path.write_text('{"prompt": "how?", "chosen": "so", "rejected": "no"}\n')
    with_one, with_two = (changed(constitutional, {"judge_calibration.data": str(path)}) for path in (one, two))
    assert differing(settings_from(constitutional), with_one) == {J} | FROM_F
    assert not differing(with_one, with_two)
    two.write_text('{"prompt": "how?", "chosen": "no", "rejected": "so"}\n')
    assert differing(with_one, with_two) == {J} | FROM_F


def test_the_judgments_that_ship_with_the_world_count(
    constitutional: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_from(constitutional)
    before = keys(settings)
    (tmp_path / "calibration.jsonl").write_text("{}\n")
    monkeypatch.setattr("rlhf_lightning.worlds.courtesy.recorded.recorded_path", lambda: tmp_path / "calibration.jsonl")
    after = keys(settings)
    assert {stage for stage in SECTIONS if before[stage] != after[stage]} == {J} | FROM_F


def test_the_policy_that_is_revised_is_the_same_under_every_constitution(
    tree: ConfigTree, told: Callable[..., RunSettings]
) -> None:
    names = [name for name in tree.options("constitution") if name not in ("file", "none")]
    assert len(names) > 7
    found = {name: keys(told("pipeline=constitutional", f"constitution.extends=[{name}]")) for name in names}
    assert len({each[S] for each in found.values()}) == 1
    assert len({each[K] for each in found.values()}) == len({each[J] for each in found.values()}) == len(names)


def test_a_constitution_counts_by_its_principles_and_not_by_where_they_came_from(
    told: Callable[..., RunSettings], tmp_path: Path
) -> None:
    path = tmp_path / "hhh.yaml"
    path.write_text("name: hhh\nextends: [hhh]\n")
    from_a_file = told("pipeline=constitutional", f"constitution.path={path}")
    assert not differing(told(*CONSTITUTIONAL), from_a_file)


def test_whether_the_trunk_is_reused_concerns_ppo_alone(told: Callable[..., RunSettings]) -> None:
    assert differing(told("peft=top_layers"), told("peft=top_layers", "peft.reuse_trunk=false")) == {P, E}


def test_a_stage_has_the_same_key_in_every_pipeline(told: Callable[..., RunSettings]) -> None:
    assert keys(told())[S] == keys(told("pipeline=sft"))[S]


def test_the_kind_of_device_counts_where_something_is_computed(told: Callable[..., RunSettings]) -> None:
    on_cpu, on_gpu = keys(told(), "cpu"), keys(told(), "cuda")
    assert all(on_cpu[stage] != on_gpu[stage] for stage in SECTIONS)


def test_an_artifact_from_elsewhere_counts_by_its_content(told: Callable[..., RunSettings], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    paths = [f"ppo.policy_from={tmp_path / name}" for name in ("one", "two")]
    one, two = (told(path) for path in paths)
    assert not differing(one, two)
    (tmp_path / "two" / "config.json").write_text('{"changed": true}')
    assert differing(one, two) == {P, E}


def test_an_adapter_from_elsewhere_counts_with_its_base(told: Callable[..., RunSettings], tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    for directory in (adapter, base):
        directory.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (base / "config.json").write_text("{}")
    settings = told(f"ppo.policy_from={adapter}")
    before = keys(settings)
    (base / "config.json").write_text('{"changed": true}')
    assert keys(settings)[P] != before[P]


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base_counts_by_its_content(
    told: Callable[..., RunSettings], tmp_path: Path, config: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    found = StageKeys(told(f"ppo.policy_from={tmp_path}"), "cpu", lambda: pytest.fail("no data is read"))
    assert found.identity("ppo").inputs["ppo.policy_from"] == [path_identity(tmp_path)]


def test_code_that_the_config_names_counts(
    told: Callable[..., RunSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_callbacks.py").write_text("class Watching: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = told("callbacks.extra=[{_target_: own_callbacks.Watching}]", "allow_targets=[own_callbacks]")
    before = keys(settings)
    (tmp_path / "own_callbacks.py").write_text("class Watching: threshold = 2\n")
    after = keys(settings)
    assert {stage for stage in SECTIONS if before[stage] != after[stage]} == {S, K, V, C, F, R, P, E}


@pytest.mark.parametrize("target", ["own_callbacks.Watching.made", "own_callbacks.gone.Watching", "nowhere.Watching"])
def test_a_name_that_is_no_module_does_not_disturb(
    told: Callable[..., RunSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    (tmp_path / "own_callbacks.py").write_text("class Watching: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    extra = [f"callbacks.extra=[{{_target_: {target}}}]", "allow_targets=[own_callbacks,nowhere]"]
    code = StageKeys(told(*extra), "cpu", lambda: pytest.fail("no data is read")).identity("sft").code
    ours = {"rlhf_lightning", "rlhf_lightning.stages.sft"}
    assert set(code) - ours == ({"own_callbacks"} if target.startswith("own") else set())


def test_the_base_model_of_the_world_counts(
    told: Callable[..., RunSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = told()
    before = keys(settings)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("rlhf_lightning.runs.input_identity.asset_path", lambda: tmp_path)
    assert keys(settings)[S] != before[S]


def test_versions_of_what_computes_count(told: Callable[..., RunSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(told())
    versions = installed()
    for package, counts in (("torch", True), ("jinja2", True), ("pyarrow", True), ("wandb", False)):
        changed = {**versions, package: "9.9"}
        monkeypatch.setattr("rlhf_lightning.runs.identity.installed", lambda changed=changed: changed)
        after = keys(told())
        assert {before[stage] != after[stage] for stage in SECTIONS} == {counts}, package
