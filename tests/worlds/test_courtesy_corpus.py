"""Demonstrators, traits and the base model's corpus do what they say."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.errors import DataError
from rlhf_lightning.worlds.courtesy import TRAITS, demonstrations, judge, prompts, traits
from rlhf_lightning.worlds.courtesy.behavior import BASE_MODEL, sample_response
from rlhf_lightning.worlds.courtesy.corpus import Document, documents
from rlhf_lightning.worlds.courtesy.grammar import Core, PromptMeaning, Response, parse_prompt, parse_structure, render
from rlhf_lightning.worlds.courtesy.splits import split_table
from rlhf_lightning.worlds.settings import AnnotatorSettings, DemonstratorSettings

ANNOTATOR = AnnotatorSettings(
    length_bias=0.0, politeness_bias=0.0, boilerplate_bias=0.0, refusal_penalty=0.0, flip_rate=0.0
)


def courtesy(count: int, rude: float = 0.1, fillers: float = 0.5, untrue: float = 0.3) -> CourtesyData:
    return CourtesyData(
        kind="courtesy",
        max_prompt_length=16,
        max_response_length=32,
        on_long_record="drop",
        pairing="all",
        demonstrations=count,
        annotator=ANNOTATOR,
        demonstrator=DemonstratorSettings(
            harm_rate=0.2,
            over_refusal_rate=0.1,
            off_topic_rate=0.25,
            rude_rate=rude,
            polite_rate=0.6,
            untrue_rate=untrue,
            unknown_rate=0.2,
            filler_rate=fillers,
            boilerplate_rate=0.15,
        ),
    )


def test_demonstrations_misbehave_as_often_as_set() -> None:
    shown = demonstrations(courtesy(8000), Random(0))
    assert len(shown) == 8000
    assert {demonstration.prompt for demonstration in shown} <= set(prompts("train"))
    scores = [judge(demonstration.prompt.last_turn, demonstration.response) for demonstration in shown]
    harmful = [score for score in scores if score.kind == "harm"]
    harmless = [score for score in scores if score.kind != "harm"]
    answered = [score for score in scores if score.kind in ("fact", "unknowable") and not score.refusal]
    instructed = [score for score in scores if score.kind in ("benign", "edge") and not score.refusal]
    assert not any(score.malformed for score in scores)
    assert sum(score.over_refusal for score in harmless) / len(harmless) == pytest.approx(0.1, abs=0.02)
    assert sum(not score.right for score in instructed) / len(instructed) == pytest.approx(0.25, abs=0.03)
    assert sum(score.unknown for score in answered if score.kind == "fact") / sum(
        score.kind == "fact" for score in answered
    ) == pytest.approx(0.2, abs=0.04)
    assert sum(score.harm for score in harmful) / len(harmful) == pytest.approx(0.2, abs=0.04)
    assert sum(score.honest < 0 for score in answered) / len(answered) == pytest.approx(0.3, abs=0.04)
    assert sum(score.rude for score in scores) / 8000 == pytest.approx(0.1, abs=0.02)
    assert sum(score.polite for score in scores) / 8000 == pytest.approx(0.6, abs=0.025)
    assert sum(score.fillers for score in scores) / 8000 == pytest.approx(0.5, abs=0.05)
    assert sum(score.boilerplate for score in scores) / 8000 == pytest.approx(0.15, abs=0.02)


def test_contradicting_demonstrator_rates_are_refused() -> None:
    with pytest.raises(DataError, match="both polite and rude"):
        demonstrations(courtesy(1, rude=0.5), Random(0))
    with pytest.raises(DataError, match="false answers"):
        demonstrations(courtesy(1, untrue=0.9), Random(0))
    with pytest.raises(DataError, match="fillers"):
        demonstrations(courtesy(1, fillers=3.0), Random(0))


PROBES = st.tuples(st.sampled_from(split_table()["train"]), st.integers(0, 10**6), st.sampled_from(sorted(TRAITS)))


@given(PROBES)
def test_a_revision_gives_the_trait_or_keeps_the_response(
    probe: tuple[tuple[str, PromptMeaning], int, str],
) -> None:
    (_, meaning), seed, name = probe
    trait, response = TRAITS[name], sample_response(meaning, BASE_MODEL, Random(seed))
    revised = traits.revision(trait, meaning, response, Random(seed))
    assert traits.has_trait(trait, meaning, revised)
    if traits.has_trait(trait, meaning, response):
        assert revised == response
        assert traits.critique(trait, meaning, response) == traits.FINE
    else:
        assert traits.critique(trait, meaning, response) == trait.fault


HARM = PromptMeaning("harm", ("kill", "boss"))
LAMP = PromptMeaning("benign", ("clean", "lamp"))


@pytest.mark.parametrize(
    ("meaning", "response", "lacks"),
    [
        (HARM, Response(Core("instruct", HARM.topic)), {"harmless", "polite", "refusing", "verbose"}),
        (HARM, Response(Core("refuse")), {"helpful", "polite", "forthcoming", "verbose"}),
        (HARM, Response(Core("decline"), opener="with pleasure"), {"verbose"}),
        (LAMP, Response(Core("decline")), {"helpful", "polite", "forthcoming", "verbose"}),
        (
            LAMP,
            Response(
                Core("instruct", LAMP.topic), fillers=("really",) * 3, boilerplate="please consult an expert first"
            ),
            {"polite", "brief", "refusing"},
        ),
        (PromptMeaning("unknowable", ("alba", "luck")), Response(Core("claim", ("alba", "luck"), "red")), {
            "helpful", "honest", "polite", "refusing", "verbose",
        }),
    ],
)  # fmt: skip
def test_which_traits_a_response_lacks(meaning: PromptMeaning, response: Response, lacks: set[str]) -> None:
    assert {name for name, trait in TRAITS.items() if not traits.has_trait(trait, meaning, response)} == lacks


def corpus(count: int) -> list[Document]:
    return list(islice(documents(Random(0)), count))


def test_the_corpus_has_its_shares_of_chat_verdicts_and_revisions() -> None:
    sample = corpus(4000)
    asked = [document.turns[-2].content.split()[0] if len(document.turns) > 2 else "chat" for document in sample]
    assert asked.count("chat") / 4000 == pytest.approx(0.4, abs=0.03)
    assert asked.count("judge") / 4000 == pytest.approx(0.35, abs=0.03)
    assert asked.count("revise") / 4000 == pytest.approx(0.25, abs=0.03)


def test_what_the_base_model_learns_to_say_is_as_bad_as_intended() -> None:
    sample = [document for document in corpus(12_000) if document.learn_from == 0]
    scores = [judge(document.turns[0].content, document.turns[1].content) for document in sample]
    harmful = [score for score in scores if score.kind == "harm"]
    assert not any(score.malformed for score in scores)
    assert sum(score.harm for score in harmful) / len(harmful) == pytest.approx(0.45, abs=0.04)
    assert sum(score.rude for score in scores) / len(scores) == pytest.approx(0.5, abs=0.02)


def test_the_corpus_asks_held_out_combinations_only_for_facts() -> None:
    asked = {document.turns[0].content for document in corpus(10_000)}
    held_out = {meaning for _, meaning in split_table()["ood"]}
    assert {meaning.kind for meaning in {parse_prompt(text) for text in asked} & held_out} == {"fact"}
    assert not asked & {text for split in ("validation", "iid") for text, _ in split_table()[split]}


def test_verdicts_about_malformed_responses_are_no() -> None:
    judged = [document for document in corpus(8000) if document.turns[-2].content.startswith("judge")]
    broken = [document for document in judged if parse_structure(document.turns[1].content) is None]
    assert len(broken) / len(judged) == pytest.approx(0.08, abs=0.02)
    for document in broken:
        assert {turn.content for turn in document.turns[3::2]} == {traits.NO}
        assert document.learn_from == 2, "the base model must not learn to break its responses"


def test_the_corpus_is_a_function_of_its_seed() -> None:
    assert corpus(50) == corpus(50)
    assert render(sample_response(LAMP, BASE_MODEL, Random(3))) == render(sample_response(LAMP, BASE_MODEL, Random(3)))
