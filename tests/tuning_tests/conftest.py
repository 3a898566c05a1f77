"""A run folder with a real ledger and hand-made probes (every way in which a trial can end); the command line."""

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command, Done, WriteSpec, invoked
from postgres import Postgres
from scripted_runs import NOTES, TrialScript, write_run
from served_study import Opened

from core.store.place import CACHE_VARIABLE
from tuning.config import SweepSpec
from tuning.database import Place, new_place, single_connections, study_id
from tuning.lease import Lease
from tuning.ledger import Ledger, Server
from tuning.outage import Outages
from tuning.run import Run, load_run

RunBuilder = Callable[..., Run]


@pytest.fixture
def build_run(tmp_path: Path) -> RunBuilder:
    """Build a run folder below ``tmp_path``: ``build_run(scripts=..., changes=..., notes=...)``."""

    def build(name: str = "built", **arguments: Any) -> Run:
        return write_run(tmp_path / "runs" / name, **arguments)

    return build


@pytest.fixture
def sample_notes() -> Mapping[str, Any]:
    """What the driver of the sample recorded."""
    return NOTES


@pytest.fixture
def trial_script() -> type[TrialScript]:
    """The class that says how a trial goes."""
    return TrialScript


@pytest.fixture(scope="session")
def _sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "sample").path


@pytest.fixture
def sample_run(_sample_folder: Path, tmp_path: Path) -> Run:
    """A run with nine trials (see ``SCRIPTS``), each test's own copy."""
    copy = tmp_path / "runs" / "sample"
    shutil.copytree(_sample_folder, copy)
    return load_run(copy)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two empty folders, for two studies."""
    both = tmp_path / "one", tmp_path / "two"
    for folder in both:
        folder.mkdir()
    return both


@pytest.fixture
def tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``unlearn-tune`` through its entry point, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> Done:
        return invoked(monkeypatch, capsys, *arguments)

    return command


@pytest.fixture
def tiny_sweep(tiny_model: Path, tiny_data: Mapping[str, Path]) -> dict[str, Any]:
    """A sweep over the tiny model; valid."""
    why = {"why": "it matters"}
    return {
        "schema": 1,
        "name": "tiny",
        "model": {"source": str(tiny_model)},
        "data": {role: {"source": str(path)} for role, path in tiny_data.items()}
        | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl"},
        "space": {
            "optimizer.learning_rate": {"float": {"low": 1e-4, "high": 1e-2, "log": True}} | why,
            "adapter.rank": {"categorical": [2, 4]} | why,
        },
        "start_from": [{"source": "a paper", "values": {"adapter.rank": 4}}],
        "budget": {"trials": 3, "max_steps": 4},
        "engine": {"dtype": "fp32", "device": "cpu"},
    }


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, in the folder ``cache`` beside its files."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def write_spec(tmp_path: Path) -> WriteSpec:
    """Write a file into ``specs``, beside its data."""

    def file(content: Mapping[str, Any]) -> Path:
        path = tmp_path / "specs" / "file.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
        return path

    return file


@pytest.fixture
def place(postgres: Postgres) -> Iterator[Place]:
    """An empty database; a connection that a test leaves open fails that test, not a later one."""
    found = new_place(postgres.url(postgres.database()), "x")
    assert found is not None
    yield found
    gc.collect()


@pytest.fixture
def opened(place: Place) -> Iterator[Opened]:
    """Opens ledgers at the place, under a lease, as a driver does."""
    with ExitStack() as open_ledgers:

        def open_one(run_dir: Path, spec: SweepSpec, at: Place = place, **outages: Any) -> Ledger:
            engine = single_connections(at)
            lease = Lease(engine, study_id(engine, at), where=str(run_dir))
            lease.take(takeover=True)
            met = Outages(where=str(run_dir), database=at.shown, **outages)
            server = Server(place=at, outages=met)
            ledger = Ledger(run_dir, spec, create=False, lease=lease, server=server)
            return open_ledgers.enter_context(closing(ledger))

        yield open_one
