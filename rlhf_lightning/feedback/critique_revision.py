"""Critique and revision by principle: the supervised half of Constitutional AI (arXiv 2212.08073, section 3).

A response to a prompt is criticized by a principle and revised; the revision takes the response's place; and so on.
Every text is kept. What is drawn for a chain depends on its number and the seed, and not on the chains beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_lightning.constitutions.rendering import Phrasing, applicable, as_turns, sample_principles
from rlhf_lightning.constitutions.settings import ConstitutionSettings, Principle
from rlhf_lightning.data.formats import parse_prompt, to_fields
from rlhf_lightning.feedback.local_models import Generation, TextGenerator
from rlhf_lightning.records import Demonstration, Message, Preference, Prompt

DRAWS_PER_CHAIN = 4096
"""Numbers of draws that are a chain's own: one for its response, two for each step."""


@dataclass(frozen=True, slots=True)
class Step:
    """One revision.

    Attributes:
        principle: its id.
        critique: None where the constitution revises at once.
        finished: whether the revision was ended by the model itself.
    """

    principle: str
    critique: str | None
    revision: str
    finished: bool


@dataclass(slots=True)
class Chain:
    """A response and its revisions.

    Attributes:
        number: of the chain in its stage.
        kind: of the prompt; None if unknown.
        finished: whether the first response was ended by the model itself.
    """

    number: int
    prompt: Prompt
    kind: str | None
    response: str
    finished: bool
    steps: list[Step] = field(default_factory=list)

    @property
    def last(self) -> str:
        """The last revision; the first response where there is none."""
        return self.steps[-1].revision if self.steps else self.response

    def to_row(self) -> dict[str, Any]:
        """As `chains.jsonl` has it."""
        return {
            "number": self.number,
            **to_fields(self.prompt),
            "kind": self.kind,
            "response": self.response,
            "finished": self.finished,
            "steps": [asdict(step) for step in self.steps],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Chain:
        """Inverse of `to_row`."""
        return cls(
            number=row["number"],
            prompt=parse_prompt(row, "chains.jsonl"),
            kind=row["kind"],
            response=row["response"],
            finished=row["finished"],
            steps=[Step(**step) for step in row["steps"]],
        )


class ChainWriter:
    """Writes chains, many at a time.

    Args:
        policy: gives the first responses.
        reviser: writes critiques and revisions.
        constitution: whose principles it goes by.
        phrasing: how they are asked.
        seed: decides which principles are drawn.
    """

    def __init__(
        self,
        policy: TextGenerator,
        reviser: TextGenerator,
        constitution: ConstitutionSettings,
        phrasing: Phrasing,
        seed: int,
    ) -> None:
        self.policy = policy
        self.reviser = reviser
        self.constitution = constitution
        self.phrasing = phrasing
        self.seed = seed

    def write(self, numbers: Sequence[int], prompts: Sequence[Prompt], kinds: Sequence[str | None]) -> list[Chain]:
        """A chain for each prompt."""
        # The prompt as it is: what is trained on the revisions will be asked the same way.
        responses = self.policy.generate(
            [prompt.text for prompt in prompts], [number * DRAWS_PER_CHAIN for number in numbers]
        )
        chains = [
            Chain(number, prompt, kind, response.text, response.finished)
            for number, prompt, kind, response in zip(numbers, prompts, kinds, responses, strict=True)
        ]
        plans = [self._plan(chain) for chain in chains]
        for step in range(max(map(len, plans), default=0)):
            going_on = [(chain, plan[step]) for chain, plan in zip(chains, plans, strict=True) if step < len(plan)]
            self._revise(going_on, step)
        return chains

    def _plan(self, chain: Chain) -> list[Principle]:
        """The principles of a chain's steps."""
        fitting = applicable(self.constitution.principles, chain.kind)
        if not fitting:
            return []
        rounds = range(self.constitution.revisions)
        sampling = self.constitution.sampling
        return [
            one
            for step in rounds
            for one in sample_principles(fitting, sampling, chain=chain.number, step=step, seed=self.seed)
        ]

    def _revise(self, going_on: Sequence[tuple[Chain, Principle]], step: int) -> None:
        dialogues = [(*as_turns(chain.prompt), Message("assistant", chain.last)) for chain, _ in going_on]
        first_draws = [chain.number * DRAWS_PER_CHAIN + 1 + 2 * step for chain, _ in going_on]
        critiques: list[Generation | None] = [None] * len(going_on)
        if self.constitution.critique:
            requests = [
                self.phrasing.critique(principle, dialogue)
                for (_, principle), dialogue in zip(going_on, dialogues, strict=True)
            ]
            critiques = list(self.reviser.generate(requests, first_draws))
        requests = [
            self.phrasing.revision(principle, dialogue, critique.text if critique is not None else None)
            for (_, principle), dialogue, critique in zip(going_on, dialogues, critiques, strict=True)
        ]
        revisions = self.reviser.generate(requests, [draw + 1 for draw in first_draws])
        for (chain, principle), critique, revision in zip(going_on, critiques, revisions, strict=True):
            words = critique.text if critique is not None else None
            chain.steps.append(Step(principle.id, words, revision.text, revision.finished))


def to_imitate(chain: Chain, train_on: str) -> list[Demonstration]:
    """The revisions of a chain that are trained on: `all`, or the `last`; a chain without any gives its response.

    What was cut off or is empty is left out: a policy must not learn to stop there.
    """
    if not chain.steps:
        said = [(chain.response, chain.finished)]
    else:
        steps = chain.steps if train_on == "all" else chain.steps[-1:]
        said = [(step.revision, step.finished) for step in steps]
    return [Demonstration(chain.prompt, text) for text, finished in said if finished and text.strip()]


def revision_over_response(chain: Chain) -> Preference | None:
    """The last revision preferred to the first response, a comparison without a judge; None if they are equal."""
    if not chain.steps or chain.last == chain.response or not chain.steps[-1].finished or not chain.last.strip():
        return None
    return Preference(chain.prompt, chosen=chain.last, rejected=chain.response)
