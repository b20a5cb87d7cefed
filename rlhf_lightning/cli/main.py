"""The `rlhf` command: finds the subcommand, runs it, and turns an error into a panel and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_lightning import __version__
from rlhf_lightning.errors import RlhfError

Command = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Subcommand:
    """A subcommand: what it is for, and how to get at it without importing the others."""

    load: Callable[[], Command]
    summary: str
    hidden: bool = False


def _train() -> Command:
    from rlhf_lightning.cli.train import main

    return main


def _score() -> Command:
    from rlhf_lightning.cli.score import main

    return main


def _doctor() -> Command:
    from rlhf_lightning.cli.doctor import main

    return main


def _compare() -> Command:
    from rlhf_lightning.cli.compare import main

    return main


def _export() -> Command:
    from rlhf_lightning.cli.export import main

    return main


def _rerun() -> Command:
    from rlhf_lightning.cli.rerun import main

    return main


def _cache() -> Command:
    from rlhf_lightning.cli.cache import main

    return main


def _sweep() -> Command:
    from rlhf_lightning.cli.sweep import main

    return main


def _constitution() -> Command:
    from rlhf_lightning.cli.constitution import main

    return main


def _completion() -> Command:
    from rlhf_lightning.cli.completion import main

    return main


def _run_job() -> Command:
    from rlhf_lightning.cli.run_job import main

    return main


SUBCOMMANDS = {
    "train": Subcommand(_train, "run a pipeline (-m: a sweep of pipelines)"),
    "sweep": Subcommand(_sweep, "a sweep that was stopped: go on with it; or one that runs: how it stands"),
    "score": Subcommand(_score, "what a reward model or classifier says of texts"),
    "doctor": Subcommand(_doctor, "is a run healthy? likely causes, and what to change"),
    "compare": Subcommand(_compare, "runs and sweeps beside each other: seeds averaged, best first"),
    "export": Subcommand(_export, "a model of a run as a Hugging Face directory with a model card"),
    "rerun": Subcommand(_rerun, "a finished run again, and whether it comes to the same figures"),
    "cache": Subcommand(_cache, "finished stages that later runs reuse: list, show, prune"),
    "constitution": Subcommand(
        _constitution, "constitutions: which there are, their principles, what models are asked"
    ),
    "completion": Subcommand(_completion, "tab completion for bash, zsh or fish"),
    "run-job": Subcommand(_run_job, "a job of a sweep, or one of a run's processes", hidden=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `rlhf` with these arguments (those of the process by default) and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"rlhf_lightning {__version__}\n")
        return 0
    if name not in SUBCOMMANDS:
        return _unknown(name)
    try:
        return SUBCOMMANDS[name].load()(rest)
    except RlhfError as error:
        from rlhf_lightning.cli.console import show_error

        show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    except BrokenPipeError:  # `rlhf train --cfg job | head`
        sys.stderr.close()
        return 141


def overview() -> str:
    """The text of `rlhf --help`."""
    shown = {name: subcommand for name, subcommand in SUBCOMMANDS.items() if not subcommand.hidden}
    width = max(len(name) for name in shown)
    commands = "\n".join(f"  {name:<{width}}  {subcommand.summary}" for name, subcommand in shown.items())
    return f"""\
rlhf {__version__}: align language models with human and AI feedback

usage: rlhf COMMAND [...]

commands:
{commands}

  rlhf COMMAND --help   what a command takes
  rlhf --version

begin with:
  rlhf train                            the embedded world: SFT, reward model, PPO, evaluation, in minutes on a CPU
  rlhf train debug=tiny                 the same in seconds, to see that everything runs
  rlhf train pipeline=constitutional constitution=hhh    Constitutional AI: feedback from a model, by principles
  rlhf train -m kl.coef=0.02,0.2 seed=1,2
  rlhf sweep resume outputs/latest      the jobs of the newest sweep that did not finish
  rlhf constitution show hhh            its principles, and what models are asked under them
  rlhf doctor outputs/latest            is the newest run healthy?
  rlhf compare outputs/latest           the newest sweep: which settings are best, and by how much?
  rlhf export outputs/latest            the newest run's model, to give away
  eval "$(rlhf completion bash)"        tab completion for groups, options and keys
"""


def _unknown(name: str) -> int:
    import difflib

    shown = [command for command, subcommand in SUBCOMMANDS.items() if not subcommand.hidden]
    close = difflib.get_close_matches(name, shown, n=1)
    if close:
        hint = f"did you mean rlhf {close[0]}?"
    elif "=" in name:
        hint = f"did you mean rlhf train {name}?"
    else:
        hint = f"there are: {', '.join(shown)}"
    sys.stderr.write(f"rlhf: {name!r} is no command; {hint}\n")
    return 2
