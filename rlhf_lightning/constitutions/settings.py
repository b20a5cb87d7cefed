"""A constitution: the principles for critiques, revisions and judgments, and their sampling."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.sections import Count, Name, NonNegative, Positive, Section

Question = Annotated[str, Field(min_length=1)]


class WorldTerm(Section):
    """Wording of a principle in the courtesy world.

    Attributes:
        tag: the trait of `worlds.courtesy.TRAITS` that it asks for.
    """

    tag: Name


class CritiqueExample(Section):
    """A response and a good critique of it; some responses have no flaw."""

    prompt: Question
    response: Question
    critique: Question


class RevisionExample(CritiqueExample):
    """A response, its critique, and a good revision, which keeps the parts without flaws."""

    revision: Question


class JudgeExample(Section):
    """Two responses, of which one follows the principle better: yes and no to the pointwise question."""

    prompt: Question
    better: Question
    worse: Question


class FewShots(Section):
    """Examples for models that were not tuned to follow instructions."""

    critique: list[CritiqueExample]
    revision: list[RevisionExample]
    judge: list[JudgeExample]


class Principle(Section):
    """One rule of conduct.

    Attributes:
        critique_request: asks for what is wrong with the last response.
        revision_request: asks for a better response.
        preference_question: asks which of two responses is the better one.
        pointwise_question: asks whether one response follows the principle; yes means that it does.
        weight: how often it is drawn, and how much it counts, relative to the others.
        tags: free labels.
        applies_to: the kinds of prompts that it concerns; None: all.
        world: its wording in the courtesy world; None if it has none there.
    """

    id: Name
    title: Question
    critique_request: Question
    revision_request: Question
    preference_question: Question
    pointwise_question: Question
    weight: Positive
    tags: list[Name]
    applies_to: Annotated[list[Name], Field(min_length=1)] | None
    world: WorldTerm | None
    fewshots: FewShots


class PrincipleSampling(Section):
    """Sampling of the principles for a critique or a label.

    Attributes:
        mode: `weighted`: one, drawn by weight. `uniform`: one, equally likely. `round_robin`: one, in turn. `all`:
            every one, in turn.
        per: drawn anew for each `step` of a chain, or once for the whole `chain`.
    """

    mode: Literal["weighted", "uniform", "all", "round_robin"]
    per: Literal["step", "chain"]


class ConstitutionSettings(Section):
    """A constitution.

    In checked settings, `principles` holds all principles: `path`, `extends` and `mixture` have been resolved
    (`runs.constitution`) and are empty.

    Attributes:
        path: a file that holds it.
        extends: constitutions whose principles come first, by name or path.
        mixture: constitutions, by name or path, with the share of the whole weight that their principles get.
        revisions: number of critique-revision steps (with sampling `all`: of rounds).
        critique: revise after a critique; else directly.
        train_on: `all` revisions of a chain, or the `last` one.
        mix_helpful: samples on helpful prompts per revision, in the fine-tuning data.
    """

    name: Name
    version: Count
    path: Name | None
    extends: list[Name]
    mixture: dict[Name, Positive]
    sampling: PrincipleSampling
    revisions: Count
    critique: bool
    train_on: Literal["all", "last"]
    mix_helpful: NonNegative
    principles: list[Principle]
