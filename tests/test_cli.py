"""The commands that start no processes; runs on processes are tested in tests/launchers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner, Result

from p2p_dml import __version__, cli
from p2p_dml.errors import ConfigError

RUN: Mapping[str, object] = {"peers": 4, "rounds": 2, "strategy": "dpsgd", "links": "ring"}
PNG = b"\x89PNG\r\n\x1a\n"


def _call(*arguments: str) -> Result:
    """Run a command here; its errors are raised, not swallowed."""
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"}, catch_exceptions=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished simulation, made by the command."""
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "run.toml").write_text(tomli_w.dumps(RUN), encoding="utf-8")
    result = _call("simulate", str(folder / "run.toml"), "--out", str(folder / "out"), "--quiet")
    assert result.exit_code == 0
    return folder / "out"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("", ["run", "simulate", "sweep", "peer", "topology", "report", "export", "data"]),
        ("run", ["--resume", "--set", "--out", "--quiet"]),
        ("simulate", ["--resume", "--set", "--out", "--quiet"]),
        ("sweep", ["--set", "--out", "--jobs", "--only", "--reports", "--dry-run", "--quiet"]),
        ("peer", ["--me", "--set", "--out"]),
        ("topology", ["show"]),
        ("topology show", ["--peers", "--ticks", "--seed", "--mixing", "--set", "--out"]),
        ("report", ["--out"]),
        ("export", ["--peer", "--round", "--out"]),
        ("", ["keys", "launch", "doctor", "up", "directory"]),
        ("keys", ["new", "show"]),
        ("", ["bench"]),
        ("bench rounds", ["--peers", "--topology", "--params", "--rounds", "--transport"]),
        ("bench rounds", ["--dtype", "--repeat", "--limits", "--set", "--out", "--quiet"]),
        ("launch", ["--set", "--out", "--quiet"]),
        (
            "up",
            [
                "--peers",
                "--hosts-file",
                "--set",
                "--out",
                "--resume",
                "--build",
                "--image",
                "--write",
                "--quiet",
            ],
        ),
        ("directory", ["--listen", "--relay", "--set"]),
        ("data", ["list", "fetch"]),
        ("data fetch", ["--to"]),
    ],
)
def test_help_names_everything(command: str, names: list[str]) -> None:
    result = _call(*command.split(), "--help")
    assert result.exit_code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert all(name in plain for name in names)


def test_version() -> None:
    assert _call("--version").output.strip() == __version__


def test_quiet_prints_the_result_alone(run: Path, tmp_path: Path) -> None:
    loud, quiet = (
        _call("simulate", str(run.parent / "run.toml"), "--out", str(tmp_path / name), *flags)
        for name, flags in (("loud", []), ("quiet", ["--quiet"]))
    )
    assert loud.exit_code == quiet.exit_code == 0
    assert "accuracy" in quiet.output.splitlines()[0]
    assert re.sub(r"\s", "", quiet.output).endswith("quiet/report.html")
    assert len(loud.output.splitlines()) > len(quiet.output.splitlines())


def test_overrides_reach_the_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    override = ("--set", "rounds=3", "--set", "links=complete", "--set", "strategy=allreduce")
    _call("simulate", str(run.parent / "run.toml"), "--out", str(out), "--quiet", *override)
    text = (out / "run.toml").read_text(encoding="utf-8")
    assert "rounds = 3" in text
    assert 'kind = "complete"' in text
    assert 'name = "allreduce"' in text


def test_a_run_is_resumed_in_its_own_folder_as_it_was_computed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = str(run.parent / "run.toml")
    _call("simulate", file, "--out", str(out), "--quiet", "--lockstep")
    result = _call("simulate", "--resume", str(out), "--set", "rounds=3")
    assert result.exit_code == 0
    assert "resumed after round 2 of 3" in result.output
    assert "as one batch" not in result.output
    assert "3 of 3 rounds" in result.output


@pytest.mark.parametrize("command", ["run", "simulate"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "expected a run file, or --resume and the folder of a run to go on with, found none"),
        (("{file}", "--resume", "{run}"), "found both"),
        (("--resume", "{run}", "--out", "new"), "--out new: a resumed run goes on in its own"),
        (("--resume", "nowhere"), "--resume nowhere: not a run folder"),
    ],
)
def test_what_to_run_is_said_once(
    run: Path, command: str, arguments: tuple[str, ...], says: str
) -> None:
    given = [each.format(run=run, file=run.parent / "run.toml") for each in arguments]
    with pytest.raises(ConfigError, match=says):
        _call(command, *given)


def test_report_on_one_run_is_made_again(run: Path) -> None:
    before = (run / "summary.json").read_text(encoding="utf-8")
    (run / "summary.json").unlink()
    (run / "report.html").unlink()
    result = _call("report", str(run))
    assert result.exit_code == 0
    assert (run / "summary.json").read_text(encoding="utf-8") == before
    assert (run / "report.html").exists()


def test_report_on_two_runs_compares_them(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    result = _call("report", str(run), str(run), "--out", str(out))
    assert result.exit_code == 0
    assert (out / "compare.html").exists()
    assert str(out) in result.output.replace("\n", "")


def test_report_on_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        _call("report", str(tmp_path))


FIVE_RING = 'kind = "edges"\npeers = 5\nedges = [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]\n'


@pytest.mark.parametrize(
    ("what", "options", "shown"),
    [
        # Gaps: 1 - (1 + 2 cos 45°) / 3; 1/2; 1; 1 - (1 + 2 cos 72°) / 3.
        ("ring", ["--peers", "8"], ["2.00 (2 – 2)", "symmetric", "0.195"]),
        ("exponential", ["--peers", "8"], ["3.00 (3 – 3)", "directed", "0.500"]),
        (
            "erdos_renyi",
            ["--peers", "8", "--set", "density=1.0"],
            ["7.00 (7 – 7)", "symmetric", "1.00"],
        ),
        ("five.toml", [], ["2.00 (2 – 2)", "symmetric", "0.461"]),
    ],
    ids=["kind", "directed kind", "kind with a parameter", "file"],
)
def test_topology_show_draws_and_measures(
    tmp_path: Path, what: str, options: list[str], shown: list[str]
) -> None:
    (tmp_path / "five.toml").write_text(FIVE_RING, encoding="utf-8")
    target = str(tmp_path / what) if what.endswith(".toml") else what
    picture = tmp_path / "picture.png"
    result = _call("topology", "show", target, *options, "--ticks", "4", "--out", str(picture))
    assert result.exit_code == 0
    assert all(text in result.output for text in shown)
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize("peers", ["0", "-3"])
def test_topology_show_of_nobody(peers: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    result = _call("topology", "show", "ring", "--peers", peers, "--out", str(picture))
    assert result.exit_code == 2
    assert "--peers" in result.output
    assert not picture.exists()


def test_topology_show_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rign"):
        _call("topology", "show", "rign", "--out", str(tmp_path / "picture.png"))


def test_data_list_says_where_each_set_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("P2P_DML_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = _call("data", "list")
    assert result.exit_code == 0
    rows = {name: line for line in result.output.splitlines() for name in line.split()[1:2]}
    assert rows.keys() >= {"digits", "mnist", "fashion_mnist", "cifar10", "shakespeare"}
    assert "not found" in rows["mnist"]
    assert "not found" not in rows["digits"]


def test_data_fetch_of_an_unknown_set() -> None:
    with pytest.raises(ConfigError, match=r"'mnits'.*did you mean 'mnist'"):
        _call("data", "fetch", "mnits")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("transport.hots=1", ["transport.hots", "unknown key", "'host'"]),
        ("peers=0", ["peers", "greater than or equal to 1", "0"]),
        ("strategy.degree=2", ["strategy.degree", "unknown key"]),
        ("mixing=metropolis2", ["mixing", "'metropolis'"]),
        ("train.momentun=1", ["train.momentun", "'momentum'"]),
        ('links={file="gone.toml"}', ["gone.toml"]),
        ('links={kind="exponential"}', ["mixing", "symmetric links"]),
        ('strategy="allreduce"', ["'allreduce'", "complete graph", 'links = "complete"']),
        ("model=nowhere:network", ["model", "no module", "'nowhere'"]),
        ("rounds", ["--set rounds", "key=value"]),
    ],
)
def test_every_mistake_is_named(run: Path, tmp_path: Path, override: str, says: list[str]) -> None:
    out = tmp_path / "out"
    file = str(run.parent / "run.toml")
    with pytest.raises(ConfigError) as caught:
        _call("simulate", file, "--set", override, "--out", str(out), "--quiet")
    assert all(text in str(caught.value) for text in says)
    assert not out.exists()
