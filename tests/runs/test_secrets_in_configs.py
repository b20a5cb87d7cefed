"""A key in a config is refused, and whatever is said of it does not repeat it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.cli.main import main
from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.feedback.settings import OpenAiJudge
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.preflight import check_run, check_sweep
from rlhf_lightning.tracking.redaction import REDACTED, redact, redact_override

SERVER = ("judge=openai", "judge.base_url=http://localhost:1/v1", "judge.model=m")


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


def refused(tree: ConfigTree, *overrides: str, check: Callable[..., object] = check_run) -> tuple[Problem, ...]:
    """The problems of a pipeline with a judge, none of which quotes what is secret."""
    with pytest.raises(ConfigError) as caught:
        check(tree, ["pipeline=constitutional", *overrides])
    assert "hush" not in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize(
    "override",
    [
        "judge.api_key=sk-hush",
        "+judge.api_key=sk-hush",
        "++judge.openai_key='sk-hush'",
        "judge.token=hush",
        "judge.password=hush",
        "judge.api_key=1234",
        "judge.api_key={a:hush}",
        "judge.api_key=[hush]",
        "judge={api_key:hush}",
    ],
)
@pytest.mark.parametrize("chosen", [(), SERVER])
def test_a_key_on_the_command_line(tree: ConfigTree, override: str, chosen: tuple[str, ...]) -> None:
    (problem,) = refused(tree, *chosen, override)
    assert "keys never stand in a config" in problem.what
    assert problem.fix == "set judge.api_key_env=NAME, and export NAME in the shell"
    assert REDACTED in str(problem.source)
    assert "1234" not in problem.render()


def test_a_key_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine" / "judge" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults: [openai]\nbase_url: http://localhost:1/v1\nmodel: m\napi_key: sk-hush\n")
    (problem,) = refused(ConfigTree.load(Path("mine")), "judge=own")
    assert "keys never stand in a config" in problem.what
    assert problem.source == "judge=own"


def test_a_key_in_place_of_a_variable_s_name(tree: ConfigTree) -> None:
    for key in ("sk-hush", "gsk_hush123", "[hush]", "{a:hush}"):
        (problem,) = refused(tree, *SERVER, f"judge.api_key_env={key}")
        assert problem.key == "judge.api_key_env"
        assert problem.source == f"judge.api_key_env={REDACTED}"
    (problem,) = refused(tree, "judge.api_key_env=gsk_hush123")  # of another judge
    assert "belongs to judge=openai" in problem.what


def test_a_key_in_the_address(tree: ConfigTree) -> None:
    for address in ("https://me:hush@host/v1", "https://hush@host/v1", "'https://host/v1?api-key=hush'"):
        (problem,) = refused(tree, "judge=openai", "judge.model=m", f"judge.base_url={address}")
        assert problem.key == "judge.base_url"
        assert "no user, password or query" in problem.what
    for address in ("localhost:8000/v1", "ftp://host/v1", "http://"):
        (problem,) = refused(tree, "judge=openai", "judge.model=m", f"judge.base_url={address}")
        assert "must be an address such as" in problem.what


def test_a_key_that_hydra_cannot_read(tree: ConfigTree) -> None:
    (problem,) = refused(tree, "judge.api_key=sk-hush(x")
    assert problem.key == f"judge.api_key={REDACTED}"
    assert problem.what == "cannot be read as an override"


def test_a_key_for_a_pipeline_without_a_judge(tree: ConfigTree) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(tree, [*SERVER, "judge.api_key=sk-hush"])
    assert "keys never stand in a config" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_key_in_a_sweep(tree: ConfigTree) -> None:
    refused(tree, "judge.api_key=hush,hush2")
    refused(tree, "judge.api_key=hush,hush2", "kl.coef=0.1,0.2", check=check_sweep)
    refused(tree, "judge.api_key=hush", "kl.coef=0.1,nonsense", check=check_sweep)
    problems = refused(tree, "judge.token=hush,null", "kl.coef=0.1,-1", check=check_sweep)
    assert {problem.key for problem in problems} == {"judge.token", "kl.coef"}


def test_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["-m", "kl.coef=0.1,0.2"]):
        assert main(["train", "judge.api_key=sk-hush", *more]) == 2
        said = capsys.readouterr()
        assert "judge.api_key_env=NAME" in said.err
        assert "hush" not in said.out + said.err
    assert not list(tmp_path.rglob("*"))


def test_a_key_that_is_not_in_the_environment(tree: ConfigTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is missed before anything runs, by the pipelines that ask the judge."""
    chosen = (*SERVER, "judge.api_key_env=TINY_KEY")
    monkeypatch.setenv("TINY_KEY", "hush")
    settings = check_run(tree, [*chosen, "pipeline=constitutional"]).settings
    assert settings is not None
    assert isinstance(settings.judge, OpenAiJudge)
    assert "hush" not in settings.model_dump_json()
    for value in ("", " "):
        monkeypatch.setenv("TINY_KEY", value)
        (problem,) = refused(tree, *chosen)
        assert (problem.key, problem.source) == ("judge.api_key_env", "judge.api_key_env=TINY_KEY")
        assert "TINY_KEY is not set" in problem.what


def test_a_variable_s_name_is_no_secret() -> None:
    assert redact({"api_key_env": "TINY_KEY"}) == {"api_key_env": "TINY_KEY"}
    assert redact({"api_key_env": "sk-hush"}) == {"api_key_env": REDACTED}
    assert redact({"api_key": "TINY_KEY"}) == {"api_key": REDACTED}


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("judge.api_key=hush", f"judge.api_key={REDACTED}"),
        ("judge={model:m,api_key:hush}", f"judge={REDACTED}"),
        ("judge={model:m}", "judge={model:m}"),
        ("a.url=http://h/x?token=hush&n=3", f"a.url=http://h/x?token={REDACTED}&n=3"),
        ("a.url=http://h/x?tokens=3", "a.url=http://h/x?tokens=3"),
        ("rollout.max_new_tokens=3", "rollout.max_new_tokens=3"),
        ("rollout.max_new_token=3", "rollout.max_new_token=3"),
    ],
)
def test_overrides_are_shown_without_secrets(override: str, shown: str) -> None:
    assert redact_override(override) == shown
