"""Who may import whom, on the syntax tree; and what the quick verbs and the light modules really load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import import_graph
import pytest
from import_graph import circles, imports, misplaced, top_files, upward_imports, ways_to
from layers import LAYERS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "tuning", "search_spaces")
DRAWINGS = (
    "canvas",
    "curves",
    "guideline",
    "history",
    "importances",
    "pair",
    "parallel",
    "slices",
    "steps",
    "timeline",
    "tradeoff",
)

DOORS: Mapping[str, frozenset[str]] = {
    "ray": frozenset(
        f"tuning/{n}.py"
        for n in (
            "apart",
            "trainable",
            "packing",
            "bridge",
            "plan",
            "sweep",
            "cluster/launcher_file",
            "cluster/spot",
            "cluster/spreading",
            "every_node",
            "shared_folder",
            "handing_out",
            "nodes",
            "notice",
            "storage/nodes",
        )
    ),
    "optuna": frozenset(
        f"tuning/{n}.py"
        for n in (
            *("copies", "database", "importance", "ledger", "ledger_copy", "outage"),
            *("samplers", "pruning", "proposals", "study_check"),
        )
    ),
    "optuna_dashboard": frozenset({"tuning/dashboard.py"}),
    "sqlalchemy": frozenset(
        f"tuning/{n}.py" for n in ("database", "lease", "ledger_copy", "outage")
    ),
    "psycopg": frozenset(),
    "tensorboardX": frozenset({"tuning/tensorboard.py"}),
    "pyarrow.fs": frozenset({"tuning/storage/store.py"}),
    "sqlite3": frozenset({"tuning/database.py", "tuning/records.py"}),
    "plotly": frozenset(f"tuning/plots/drawing/{n}.py" for n in DRAWINGS),
    "matplotlib": frozenset(f"tuning/plots/drawing/{n}.py" for n in DRAWINGS),
    "deepspeed": frozenset({"core/training/engine.py", "core/training/ranks.py"}),
    "torch.distributed": frozenset({"core/training/ranks.py"}),
    "torch.multiprocessing": frozenset({"core/launch.py"}),
    "torch._C": frozenset({"core/training/ranks.py"}),
    "bitsandbytes": frozenset({"core/model/quantised.py"}),
    "peft": frozenset({"core/model/hosting.py", "core/training/adapter.py"}),
    "transformers": frozenset(
        {
            f"core/model/{n}.py"
            for n in (
                *("architecture", "attention", "columns", "gguf"),
                *("layers", "loading", "stepwise", "tokenizer"),
            )
        }
        | {"core/training/adapter.py"}
    ),
    "datasets": frozenset({"core/data/sources.py"}),
    "grpc": frozenset({"tuning/admission.py"}),
    "pickle": frozenset(),
    "marshal": frozenset(),
    "cloudpickle": frozenset(),
    "dill": frozenset(),
    "joblib": frozenset(),
    "shelve": frozenset(),
}


FRAMEWORKS = ("torch", "transformers", "deepspeed", "peft", "safetensors.torch")

LIGHT = (
    "core/config/__init__.py",
    "core/errors.py",
    "core/measuring/extent.py",
    "core/measuring/reporting.py",
    "core/measuring/selection.py",
    "core/model/source.py",
    "core/seeding.py",
    "core/store/durable.py",
    "core/store/locks.py",
    "core/store/place.py",
    "core/store/refusal.py",
    "core/store/texts.py",
    "core/store/upkeep.py",
    "core/training/shared_work.py",
)
"""Files that nothing heavy may stand behind: the quick verbs and the readers of a run stand on them."""

MOST_FILES_ON_TOP = 12
"""Files of ``core`` itself: whatever has a family is in a package."""


@dataclass(frozen=True)
class Source:
    """A Python file of ours, parsed."""

    name: str
    tree: ast.Module

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Every call, with the dotted name of what is called."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node


TEXTS: Mapping[str, str] = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
SOURCES: Sequence[Source] = [Source(name, ast.parse(text)) for name, text in TEXTS.items()]
GRAPH = import_graph.import_graph(TEXTS)


def importers(module: str) -> set[str]:
    return import_graph.importers(TEXTS, module)


def of(package: str) -> list[Source]:
    return [s for s in SOURCES if s.name.startswith(f"{package}/")]


def test_the_sources_are_found() -> None:
    names = {s.name for s in SOURCES}
    assert {"core/worker.py", "core/losses/forget.py", "tuning/cli/__init__.py"} <= names


@pytest.mark.parametrize("module", DOORS)
def test_a_framework_is_imported_in_its_door_only(module: str) -> None:
    assert importers(module) <= DOORS[module]


@pytest.mark.parametrize("module", ["ray", "optuna", "tuning", "search_spaces"])
def test_core_does_not_know_that_it_is_tuned(module: str) -> None:
    assert not {name for name in importers(module) if name.startswith("core/")}


def test_there_is_no_circle_of_files() -> None:
    assert circles(GRAPH) == set()


def test_every_file_has_one_layer() -> None:
    assert misplaced(TEXTS, LAYERS) == []


def test_no_import_points_upwards() -> None:
    assert upward_imports(GRAPH, LAYERS) == []


def test_what_is_imported_by_a_string_is_imported_by_the_front_door() -> None:
    """The graph cannot see it; there it is a public name of ``tuning`` that is looked up late."""
    by_string = {"import_module", "importlib.import_module", "__import__"}
    places = {source.name for source in SOURCES for name, _ in source.calls() if name in by_string}
    assert places <= {"tuning/__init__.py"}


def test_few_files_lie_on_top_of_core() -> None:
    files = [p.relative_to(ROOT).as_posix() for p in (ROOT / "core").rglob("*") if p.is_file()]
    on_top = top_files(files, "core")
    assert len(on_top) <= MOST_FILES_ON_TOP, sorted(on_top)


def test_nothing_heavy_stands_behind_the_light_files() -> None:
    assert ways_to(TEXTS, LIGHT, FRAMEWORKS) == []


IMPORTED = """
import importlib, json, sys
names, frameworks = json.loads(sys.argv[1])
for name in names:
    importlib.import_module(name)
print(json.dumps(sorted(set(frameworks) & set(sys.modules))))
"""


def loaded_by(files: Sequence[str]) -> list[str]:
    """Frameworks that a new Python has loaded after importing files of ours."""
    names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
    run = [sys.executable, "-c", IMPORTED, json.dumps([names, FRAMEWORKS])]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout)
    return loaded


def test_the_light_files_really_load_nothing_heavy() -> None:
    assert loaded_by(LIGHT) == []


def test_a_heavy_file_is_caught_when_it_is_really_loaded() -> None:
    assert "torch" in loaded_by(["core/fila.py"])


def test_search_spaces_hold_no_code_but_their_docstring() -> None:
    for source in of("search_spaces"):
        assert all(isinstance(n, ast.Expr) for n in source.tree.body), source.name


def test_results_and_reports_import_no_framework_of_training() -> None:
    readers = {
        f"tuning/{n}.py"
        for n in (
            "records",
            "ranking",
            "run",
            "results",
            "views",
            "samples",
            "export",
            "wording",
        )
    } | {source.name for package in ("plots", "report") for source in of(f"tuning/{package}")}
    for module in ("ray", "optuna", "torch", "transformers", "deepspeed", "peft"):
        assert not importers(module) & readers


def test_nothing_loads_pickles_or_foreign_code() -> None:
    for source in SOURCES:
        for name, call in source.calls():
            place = f"{source.name}:{call.lineno}"
            assert name not in {"torch.load", "pickle.loads", "eval", "exec"}, place
            assert not (name.endswith("numpy.load") or name == "np.load"), place
            for keyword in call.keywords:
                if keyword.arg in ("trust_remote_code", "allow_pickle"):
                    assert ast.unparse(keyword.value) == "False", place


def test_trust_remote_code_is_never_switched_on_by_a_mapping() -> None:
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if key is not None and ast.unparse(key) == "'trust_remote_code'":
                        assert ast.unparse(value) == "False", f"{source.name}:{node.lineno}"


def test_yaml_is_read_by_a_safe_loader() -> None:
    safe = {"yaml.safe_load", "yaml.safe_dump"}
    for source in SOURCES:
        subclasses = {
            node.name
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(base).endswith("SafeLoader") for base in node.bases)
        } | {"yaml.SafeLoader", "yaml.CSafeLoader"}
        for name, call in source.calls():
            if not name.startswith("yaml.") or not name.endswith(("load", "load_all", "dump")):
                continue
            loaders = {ast.unparse(k.value) for k in call.keywords if k.arg == "Loader"}
            assert name in safe or (loaders and loaders <= subclasses), (
                f"{source.name}:{call.lineno}"
            )


EDGES = {"core/errors.py", "tuning/trainable.py", "tuning/packing.py", "tuning/cli/__init__.py"}


def test_a_handler_of_every_exception_stands_at_the_edge_and_raises_again() -> None:
    """Trainables record a failure; ``foreign`` says in a user's words what another's code said."""
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "" if node.type is None else ast.unparse(node.type)
            if caught in ("", "Exception", "BaseException"):
                place = f"{source.name}:{node.lineno}"
                assert source.name in EDGES, place
                assert any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node)), (
                    place
                )


def test_only_the_command_line_prints() -> None:
    printing = {source.name for source in SOURCES for name, _ in source.calls() if name == "print"}
    assert printing <= {"tuning/cli/application.py", "tuning/dry_run.py"}


def test_importing_does_nothing() -> None:
    """At the top of a module stand definitions; Optuna's log level in its door is the exception."""
    for source in SOURCES:
        for node in source.tree.body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                assert source.name == "tuning/proposals.py", f"{source.name}:{node.lineno}"


def test_no_module_is_named_like_one_that_is_imported() -> None:
    imported = {i.name.partition(".")[0] for t in TEXTS.values() for i in imports(t)} - set(
        PACKAGES
    )
    own = {Path(s.name).stem for s in SOURCES} - {"__init__"}
    assert not own & (imported | set(sys.stdlib_module_names))


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "base", "registry", "misc"}
    assert not {Path(s.name).stem for s in SOURCES} & drawers


def test_there_is_no_relative_import() -> None:
    for source in SOURCES:
        for node in ast.walk(source.tree):
            assert not (isinstance(node, ast.ImportFrom) and node.level), source.name


LOADED = """
import sys
from tuning.cli import main
sys.argv = ["unlearn-tune", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "ray", "optuna", "transformers", "deepspeed", "peft", "datasets", "pandas", "plotly", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--help"], id="help"),
        pytest.param(["sweep", "--help"], id="sweep-help"),
        pytest.param(["validate", "search_spaces/demo.yaml"], id="validate"),
    ],
)
def test_quick_verbs_load_no_framework(arguments: list[str]) -> None:
    run = [sys.executable, "-c", LOADED, *arguments]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
