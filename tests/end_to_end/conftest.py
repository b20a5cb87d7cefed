"""One small run of the whole pipeline that the tests of this folder read, and go on from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import SMALL
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.experiment.run_directory import RunDirectory

VOCABULARY = 50
"""Tokens of the models that `make_policy` makes."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which `rlhf train` was typed once, with a step size at which the policy moves.

    In a process of its own: the first test that asks for it may have patched this one.
    """
    directory = tmp_path_factory.mktemp("world")
    command = [
        sys.executable,
        "-m",
        "rlhf_lightning",
        "train",
        *SMALL,
        "ppo.learning_rate=1e-3",
        "callbacks.plots=true",
    ]
    subprocess.run(command, cwd=directory, check=True)
    return directory


@pytest.fixture(scope="session")
def tiny(world: Path) -> RunDirectory:
    """That run."""
    return RunDirectory.open((world / "outputs" / "latest").resolve())


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
