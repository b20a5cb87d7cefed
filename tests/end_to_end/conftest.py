"""A few small runs that the tests of this folder read, and go on from."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import once as once_for_all
import pytest
from reads import gold_scores, recording
from tiny_runs import ADAPTED, CONSTITUTIONAL, TINY, logged, placed, train
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.run_directory import RunDirectory

VOCABULARY = 50
"""Tokens of the models that `make_policy` makes."""

Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="package", autouse=True)
def no_wandb_account() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Fills a directory for all test processes, in whichever asks first."""
    return functools.partial(once_for_all.once, tmp_path_factory)


@pytest.fixture(scope="session")
def world(once: Once) -> Path:
    """A working directory in which `rlhf train` was typed once.

    `reads.json` beside `outputs` says which keys each stage read, here and in the runs below.
    """

    def build(directory: Path) -> None:
        with contextlib.chdir(directory), recording() as reads:
            assert main(["train", *TINY]) == 0
        (directory / "reads.json").write_text(json.dumps(reads()))

    return once("world", build)


@pytest.fixture(scope="session")
def tiny(world: Path) -> RunDirectory:
    """That run."""
    return RunDirectory.open((world / "outputs" / "latest").resolve())


@pytest.fixture
def filled(world: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes directories for outputs, with a cache that has all stages of `tiny`."""

    def fill(name: str) -> Path:
        shutil.copytree(world / "outputs" / "cache", tmp_path / name / "cache", copy_function=os.link)
        return tmp_path / name

    return fill


@pytest.fixture(scope="session")
def adapted(once: Once) -> Callable[[str], RunDirectory]:
    """The whole pipeline with an adapter of that kind; the one with LoRA is logged to Weights & Biases."""

    def build(kind: str, directory: Path) -> None:
        overrides = (*TINY, *ADAPTED[kind])
        with recording() as reads:
            train(*(logged(*overrides) if kind == "lora" else overrides), *placed(directory))
        (directory / "reads.json").write_text(json.dumps(reads()))

    def run(kind: str) -> RunDirectory:
        return RunDirectory.open(once(kind, functools.partial(build, kind)) / "run")

    return run


@pytest.fixture(scope="session")
def constitutional(once: Once) -> RunDirectory:
    """The pipeline of Constitutional AI; `scored.json` beside it says which stages computed the gold reward."""

    def build(directory: Path) -> None:
        with recording() as reads, gold_scores() as scored:
            train(*CONSTITUTIONAL, "evaluate.satisfaction=4", *placed(directory))
        (directory / "reads.json").write_text(json.dumps(reads()))
        (directory / "scored.json").write_text(json.dumps(scored))

    return RunDirectory.open(once("constitutional", build) / "run")


@pytest.fixture
def jobs_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a sweep need no process of their own."""

    def call(command: list[str], *_: object) -> int:
        assert command[1:4] == ["-m", "rlhf_lightning", "run-job"]
        return main(command[3:])

    monkeypatch.setattr("rlhf_lightning.runs.sweep_jobs.run_process", call)


@pytest.fixture(scope="session")
def tiny_gpt2(make_policy: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a GPT-2 of two layers that, like the real one, has no pad token; it reads 64 positions.

    Its tokens are `w0`, `<eos>`, `<unk>`, `w3`, ... `w49`, with those ids. All but `<eos>` are shown in its text, so
    that what it said can be encoded again.
    """
    directory = tmp_path_factory.mktemp("gpt2")
    make_policy("gpt2").save_pretrained(directory)
    tokens = ["w0", "<eos>", "<unk>", *(f"w{index}" for index in range(3, VOCABULARY))]
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(directory)
    return directory
