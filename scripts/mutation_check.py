"""Plants known mistakes of PPO implementations in copies of the package, and shows which conformance test catches each.

    python scripts/mutation_check.py                                  # all of them, about 5 minutes on 2 cores
    python scripts/mutation_check.py --only entropy_sign wrong_lambda # some of them

Each mutation is made to a copy of its own, in which `pytest tests/conformance -x` must fail; in a copy without one it
must pass. The exit code is 1 unless all of this is so. A mutation whose text does not stand exactly once in its file is
an error: the package has changed, and the mutation has to follow.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "rlhf_lightning",
    "conf",
    "tests/conftest.py",
    "tests/fits.py",
    "tests/tuned.py",
    "tests/conformance",
    "pyproject.toml",
)
FASTEST_FIRST = (
    "test_objectives_by_hand.py",
    "test_properties.py",
    "test_padding.py",
    "test_ppo_by_loops.py",
    "test_equivalences.py",
    "test_no_dead_keys.py",
)
TIMEOUT = 900
"""Seconds that one run of the suite may take."""


@dataclass(frozen=True)
class Mutation:
    """A mistake.

    Attributes:
        what: in words.
        file: in the package.
        text: what stands there exactly once.
        instead: the mistake.
    """

    what: str
    file: str
    text: str
    instead: str

    def plant(self, package: Path) -> None:
        """Put the mistake into a copy of the package.

        Raises:
            ValueError: the text does not stand there exactly once.
        """
        path = package / self.file
        source = path.read_text(encoding="utf-8")
        if source.count(self.text) != 1:
            raise ValueError(f"{self.what}: its text stands {source.count(self.text)} times in {self.file}, not once")
        path.write_text(source.replace(self.text, self.instead), encoding="utf-8")


MUTATIONS = {
    "score_on_pad": Mutation(
        "the score lands on the pad after EOS",
        "objectives/rewards.py",
        "last = mask.sum(dim=1) - 1",
        "last = mask.sum(dim=1).clamp(max=mask.shape[1] - 1)",
    ),
    "unmasked_kl": Mutation(
        "the KL of pads is paid for",
        "objectives/rewards.py",
        "rewards = torch.where(mask, -kl_coef * kl, torch.zeros_like(kl))",
        "rewards = -kl_coef * kl",
    ),
    "whitening_ignores_mask": Mutation(
        "whitening counts pads",
        "objectives/masked_stats.py",
        "whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + eps)",
        "whitened = (values - values.mean()) * torch.rsqrt(values.var() + eps)",
    ),
    "whitened_returns": Mutation(
        "returns are made of whitened advantages",
        "rollouts/collector.py",
        "            advantages = masked_whiten(advantages, mask)\n",
        "            advantages = masked_whiten(advantages, mask)\n"
        "            returns = torch.where(mask, advantages + rollout.values, advantages)\n",
    ),
    "missing_temperature": Mutation(
        "log-probs without the temperature",
        "objectives/logprobs.py",
        "scaled = logits.float() / temperature",
        "scaled = logits.float()",
    ),
    "dropout_on": Mutation(
        "dropout stays on",
        "models/loading.py",
        "    for module in model.modules():\n        if isinstance(module, nn.Dropout):",
        "    return model.train()\n    for module in model.modules():\n        if isinstance(module, nn.Dropout):",
    ),
    "reference_trains": Mutation(
        "the reference is the policy, and trains",
        "models/reference.py",
        "        return cls(copy.deepcopy(policy))\n",
        "        reference = cls(policy)\n        policy.requires_grad_(True)\n        return reference\n",
    ),
    "value_clip_side": Mutation(
        "the value loss is the smaller of the two",
        "objectives/ppo.py",
        "loss=0.5 * torch.maximum(unclipped, clipped)",
        "loss=0.5 * torch.minimum(unclipped, clipped)",
    ),
    "entropy_sign": Mutation(
        "the entropy bonus is a penalty",
        "algorithms/ppo.py",
        "losses = losses - settings.entropy_coef * outputs.entropies",
        "losses = losses + settings.entropy_coef * outputs.entropies",
    ),
    "mean_of_means": Mutation(
        "a step's loss is the mean of its micro-batches' means",
        "algorithms/ppo.py",
        "masked_sum(losses, mask) / batch.step_weight * self.trainer.accumulate_grad_batches",
        "masked_mean(losses, mask)",
    ),
    "wrong_lambda": Mutation(
        "advantages decay by lambda without gamma",
        "objectives/advantages.py",
        "float(gamma * lam)",
        "float(lam)",
    ),
    "positions_count_pads": Mutation(
        "position ids count left pads",
        "models/positions.py",
        "(attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)",
        "torch.arange(attention_mask.shape[1], device=attention_mask.device).expand_as(attention_mask)",
    ),
    "policy_clip_side": Mutation(
        "the policy loss is the smaller of the two",
        "objectives/ppo.py",
        "loss=torch.maximum(unclipped, clipped)",
        "loss=torch.minimum(unclipped, clipped)",
    ),
    "controller_unclipped": Mutation(
        "the adaptive controller does not clip its error",
        "objectives/kl.py",
        "error = min(max(kl / target - 1.0, -LARGEST_STEP), LARGEST_STEP)",
        "error = kl / target - 1.0",
    ),
    "k3_sign": Mutation(
        "k3 with the wrong sign of its difference",
        "objectives/kl.py",
        "return difference.exp() - 1.0 - difference",
        "return difference.exp() - 1.0 + difference",
    ),
    "kl_loss_without_ratio": Mutation(
        "the KL in the loss has no gradient through the ratio",
        "objectives/kl.py",
        'weight = ratio.detach() if estimator == "k2" else ratio',
        "weight = ratio.detach()",
    ),
    "kl_paid_twice": Mutation(
        "a KL penalty in the loss is paid in the reward as well",
        "rollouts/kl_controller.py",
        'self.in_reward = settings.apply_to == "reward"',
        "self.in_reward = True",
    ),
    "warm_up_trains_policy": Mutation(
        "the policy trains during the critic's warm-up",
        "algorithms/ppo.py",
        "return self.current_epoch < self.settings.critic_warmup",
        "return False",
    ),
    "penalty_added": Mutation(
        "the penalty for a missing EOS is added to the score",
        "objectives/rewards.py",
        "torch.where(finished, scores, torch.full_like(scores, penalty))",
        "torch.where(finished, scores, scores + penalty)",
    ),
    "bootstrap_past_the_end": Mutation(
        "the value of a pad counts as the value after the end",
        "objectives/advantages.py",
        "    values = torch.where(mask, values.float(), zero)\n",
        "    values = values.float()\n",
    ),
    "stale_rollouts": Mutation(
        "all iterations learn from the first rollouts",
        "rollouts/buffer.py",
        "        self._rollout = rollout\n",
        "        self._rollout = self._rollout or rollout\n",
    ),
    "one_permutation": Mutation(
        "every epoch has the same order",
        "rollouts/buffer.py",
        'f"{self.seed}:{self._iteration}:{epoch}"',
        'f"{self.seed}:{self._iteration}"',
    ),
    "rewards_centred": Mutation(
        "whitened rewards lose their mean",
        "rollouts/collector.py",
        "masked_whiten(rollout.rewards, mask, shift_mean=False)",
        "masked_whiten(rollout.rewards, mask)",
    ),
    "value_one_token_late": Mutation(
        "values are read after their token",
        "models/actor_critic.py",
        "return logits[:, :-1], entering[0][:, :-1]",
        "return logits[:, :-1], entering[0][:, 1:]",
    ),
    "score_at_last_column": Mutation(
        "the reward model is read at the last column, pad or not",
        "rewards/classifier.py",
        "head(hidden[rows, last_real_positions(attention_mask)])",
        "head(hidden[rows, -1])",
    ),
    "draws_by_chunk": Mutation(
        "draws are numbered within their chunk",
        "rollouts/sampler.py",
        "yield self.sample(prompts[chunk], draws[chunk])",
        "yield self.sample(prompts[chunk], range(len(prompts[chunk])))",
    ),
    "reference_at_temperature_1": Mutation(
        "the reference is asked at temperature 1",
        "rollouts/collector.py",
        "token_logprobs(logits, samples.replies, self.temperature)",
        "token_logprobs(logits, samples.replies, 1.0)",
    ),
    "sampler_without_temperature": Mutation(
        "replies are sampled without the temperature",
        "rollouts/keyed_sampling.py",
        "scaled = scores.float() / self.temperature",
        "scaled = scores.float()",
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What the suite says of a copy.

    Attributes:
        caught_by: the first test that failed; None if all passed.
        broken: why there is no verdict, the end of pytest's output.
    """

    caught_by: str | None
    broken: str | None
    seconds: float


def examine(mutation: Mutation | None) -> Verdict:
    """Run the suite in a copy with the mutation, or without any."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder)
        make_copy(copy)
        if mutation is not None:
            mutation.plant(copy / "rlhf_lightning")
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        require_import_from(copy, environment)
        known = [f"tests/conformance/{name}" for name in FASTEST_FIRST]
        others = [str(path.relative_to(copy)) for path in sorted(copy.glob("tests/conformance/test_*.py"))]
        files = [*known, *(path for path in others if path not in known)]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    seconds = time.perf_counter() - started
    if done.returncode == 0:
        return Verdict(None, None, seconds)
    failed = re.search(r"^(?:FAILED|ERROR) tests/conformance/(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return Verdict(failed[1], None, seconds)
    return Verdict(None, (done.stdout + done.stderr)[-2000:], seconds)


def make_copy(copy: Path) -> None:
    """What the suite needs, apart from the source tree."""
    for name in COPIED:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def require_import_from(copy: Path, environment: dict[str, str]) -> None:
    """A mutation that is not imported would be missed by any suite."""
    command = [sys.executable, "-c", "import rlhf_lightning; print(rlhf_lightning.__file__)"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True)
    if not Path(done.stdout.strip()).is_relative_to(copy):
        raise RuntimeError(f"the tests would import {done.stdout.strip()}, not the copy in {copy}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MUTATIONS, default=list(MUTATIONS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="copies examined at a time")
    arguments = parser.parse_args(argv)
    chosen: dict[str, Mutation | None] = {"none": None} | {name: MUTATIONS[name] for name in arguments.only}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = track(pool.map(examine, chosen.values()), "Copies", len(chosen), console=Console(stderr=True))
        verdicts = dict(zip(chosen, found, strict=True))
    report = Table("mutation", "what")
    report.add_column("caught by", overflow="fold")
    report.add_column("s", justify="right")
    for name, verdict in verdicts.items():
        catcher = verdict.caught_by or ("the suite did not run" if verdict.broken else "-")
        what = mutation.what if (mutation := chosen[name]) else "the package as it is"
        report.add_row(name, what, escape(catcher), f"{verdict.seconds:.0f}")
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(report)
    for name, verdict in verdicts.items():
        if verdict.broken:
            console.print(f"{name}:\n{verdict.broken}", markup=False)
    unmutated = verdicts.pop("none")
    passes = unmutated.caught_by is None and unmutated.broken is None
    caught = sum(verdict.caught_by is not None for verdict in verdicts.values())
    console.print(
        f"{caught} of {len(verdicts)} mutations caught; without one the suite {'passes' if passes else 'fails'}."
    )
    return 0 if passes and caught == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
