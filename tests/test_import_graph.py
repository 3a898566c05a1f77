"""The tests of the architecture can fail: on invented files the same functions report what is planted."""

from __future__ import annotations

import pytest
from import_graph import (
    circles,
    file_of,
    import_graph,
    importers,
    imports,
    loading_graph,
    misplaced,
    shortest_way,
    top_files,
    upward_imports,
    ways_to,
)

SOUND = {
    "core/__init__.py": "",
    "core/errors.py": "import math\n",
    "core/losses/__init__.py": "from core.losses.forget import ascent\n",
    "core/losses/forget.py": "from core.errors import ConfigError\n",
    "core/worker.py": "from core import errors\nfrom core.losses import ascent\n",
    "tuning/sweep.py": "import core.worker\n",
}
LAYERS = {
    "ground": ("core/__init__.py", "core/errors.py"),
    "losses": ("core/losses/*.py",),
    "trial": ("core/worker.py",),
    "sweep": ("tuning/sweep.py",),
}


def test_sound_files_are_reported_sound() -> None:
    assert circles(import_graph(SOUND)) == set()
    assert misplaced(SOUND, LAYERS) == []
    assert upward_imports(import_graph(SOUND), LAYERS) == []
    assert ways_to(SOUND, SOUND, ["torch"]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("import a.b", [("a.b", False)], id="module"),
        pytest.param("from a.b import c as d, e", [("a.b.c", False), ("a.b.e", False)], id="from"),
        pytest.param("def f():\n    import a", [("a", True)], id="in-a-function"),
        pytest.param("async def f():\n    import a", [("a", True)], id="in-a-coroutine"),
        pytest.param("class C:\n    import a", [("a", False)], id="in-a-class"),
        pytest.param("class C:\n  def f(self):\n    import a", [("a", True)], id="in-a-method"),
        pytest.param("try:\n    import a\nexcept OSError:\n    b", [("a", False)], id="in-a-try"),
        pytest.param("if TYPE_CHECKING:\n    import a", [], id="for-types-only"),
        pytest.param("if typing.TYPE_CHECKING:\n    import a", [], id="for-types-only-dotted"),
        pytest.param(
            "if TYPE_CHECKING:\n    import a\nelse:\n    import b", [("b", False)], id="or"
        ),
        pytest.param("if READY:\n    import a", [("a", False)], id="under-a-condition"),
    ],
)
def test_imports_of_a_text(text: str, expected: list[tuple[str, bool]]) -> None:
    assert [(i.name, i.is_deferred) for i in imports(text)] == expected


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param("core.errors", "core/errors.py", id="module"),
        pytest.param("core.errors.ConfigError", "core/errors.py", id="something-of-a-module"),
        pytest.param("core.losses", "core/losses/__init__.py", id="package"),
        pytest.param("core.losses.ascent", "core/losses/__init__.py", id="something-of-a-package"),
        pytest.param("core.losses.forget", "core/losses/forget.py", id="module-of-a-package"),
        pytest.param("core", "core/__init__.py", id="top"),
        pytest.param("torch.nn", None, id="foreign"),
    ],
)
def test_a_name_is_found_in_its_file(name: str, file: str | None) -> None:
    assert file_of(name, SOUND.keys()) == file


def test_a_package_counts_where_it_is_imported_by_name_only() -> None:
    graph = import_graph({**SOUND, "core/a.py": "from core.losses.forget import ascent\n"})
    assert graph["core/a.py"] == {"core/losses/forget.py"}
    assert graph["core/worker.py"] == {"core/errors.py", "core/losses/__init__.py"}
    assert graph["tuning/sweep.py"] == {"core/worker.py"}


def test_loading_a_file_runs_its_packages_but_not_its_late_imports() -> None:
    late = {**SOUND, "core/losses/forget.py": "def f():\n    from core.errors import UserError\n"}
    graph = loading_graph(late)
    assert graph["core/losses/forget.py"] == {"core/losses/__init__.py", "core/__init__.py"}
    assert graph["core/__init__.py"] == frozenset()


def test_a_planted_circle_is_named() -> None:
    planted = {**SOUND, "core/errors.py": "from core.worker import run_trial\n"}
    assert circles(import_graph(planted)) == {
        ("core/errors.py", "core/worker.py"),
        ("core/errors.py", "core/worker.py", "core/losses/__init__.py", "core/losses/forget.py"),
    }


def test_a_circle_through_a_function_is_a_circle() -> None:
    planted = {
        "core/a.py": "from core.b import f\n",
        "core/b.py": "from core.c import f\n",
        "core/c.py": "def f():\n    import core.a\n",
        "core/d.py": "import core.a\n",
    }
    assert circles(import_graph(planted)) == {("core/a.py", "core/b.py", "core/c.py")}


def test_a_file_that_imports_itself_is_a_circle() -> None:
    assert circles(import_graph({"core/a.py": "import core.a\n"})) == {("core/a.py",)}


def test_types_alone_make_no_circle() -> None:
    planted = {
        "core/a.py": "from core.b import B\n",
        "core/b.py": "if TYPE_CHECKING:\n    from core.a import A\n",
    }
    assert circles(import_graph(planted)) == set()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("from core.worker import run_trial\n", id="at-the-top"),
        pytest.param("def f():\n    from core.worker import run_trial\n", id="in-a-function"),
        pytest.param("if True:\n    import core.worker\n", id="under-a-condition"),
    ],
)
def test_a_planted_upward_import_is_named(text: str) -> None:
    planted = {**SOUND, "core/losses/forget.py": text}
    assert upward_imports(import_graph(planted), LAYERS) == [
        "core/losses/forget.py (losses) imports core/worker.py (trial), which lies higher"
    ]


def test_core_that_imports_tuning_points_upwards() -> None:
    planted = {**SOUND, "core/worker.py": "def f():\n    from tuning import sweep\n"}
    assert upward_imports(import_graph(planted), LAYERS) == [
        "core/worker.py (trial) imports tuning/sweep.py (sweep), which lies higher"
    ]


def test_a_new_file_cannot_slip_by() -> None:
    planted = {**SOUND, "core/drawer.py": "", "core/losses/deep/__init__.py": ""}
    assert misplaced(planted, LAYERS) == [
        "core/drawer.py is in no layer",
        "core/losses/deep/__init__.py is in no layer",
    ]


def test_a_file_in_two_layers_is_named() -> None:
    twice = {**LAYERS, "again": ("core/losses/forget.py",)}
    assert misplaced(SOUND, twice) == ["core/losses/forget.py is in several layers: losses, again"]


def test_a_layer_of_files_that_are_gone_is_named() -> None:
    gone = {**LAYERS, "sweep": ("tuning/sweep.py", "tuning/bridge.py")}
    assert misplaced(SOUND, gone) == ["tuning/bridge.py in the layer 'sweep' is no file"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("import ray\n", id="module"),
        pytest.param("from ray.tune import Tuner\n", id="something-of-it"),
        pytest.param("def f():\n    from ray import tune\n", id="in-a-function"),
    ],
)
def test_a_broken_door_is_named(text: str) -> None:
    planted = {**SOUND, "core/worker.py": text, "core/errors.py": "import rays\n"}
    assert importers(planted, "ray") == {"core/worker.py"}


def test_torch_behind_two_hops_is_found() -> None:
    planted = {**SOUND, "core/errors.py": "from torch import nn\n"}
    assert ways_to(planted, ["core/losses/forget.py", "core/worker.py"], ["torch", "peft"]) == [
        "core/losses/forget.py -> core/errors.py -> torch",
        "core/worker.py -> core/errors.py -> torch",
    ]
    assert ways_to(planted, ["core/losses/__init__.py"], ["torch"]) == [
        "core/losses/__init__.py -> core/losses/forget.py -> core/errors.py -> torch"
    ]


def test_torch_in_a_package_above_is_found() -> None:
    planted = {**SOUND, "core/__init__.py": "import torch\n"}
    assert ways_to(planted, ["core/errors.py"], ["torch"]) == [
        "core/errors.py -> core/__init__.py -> torch"
    ]


def test_torch_in_a_function_is_not_loaded() -> None:
    late = {**SOUND, "core/errors.py": "def f():\n    import torch\n"}
    assert ways_to(late, SOUND, ["torch"]) == []


def test_a_way_that_does_not_exist_is_empty() -> None:
    assert shortest_way(import_graph(SOUND), "core/errors.py", "core/worker.py") == ()


def test_files_on_top_are_those_of_no_package_within() -> None:
    files = [*SOUND, "core/py.typed"]
    assert top_files(files, "core") == {
        "core/__init__.py",
        "core/errors.py",
        "core/worker.py",
        "core/py.typed",
    }
