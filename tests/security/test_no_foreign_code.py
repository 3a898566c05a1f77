"""Our own files call nothing that turns data into code, on the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "tuning", "search_spaces", "benchmarks", "docs")

FORBIDDEN_MODULES = frozenset(
    {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
)
FORBIDDEN_CALLS = frozenset(
    {
        *("eval", "exec", "compile", "__import__", "input"),
        *("torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load"),
        *("pandas.read_pickle", "pd.read_pickle", "pandas.eval", "pd.eval"),
        *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
        *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
        *("runpy.run_path", "runpy.run_module", "jinja2.Template"),
    }
)
ONLY_FALSE = frozenset({"shell", "allow_pickle", "trust_remote_code"})
ONLY_TRUE = frozenset({"weights_only", "use_safetensors"})


def offences(tree: ast.AST) -> Iterator[str]:
    """What is forbidden in a file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            for name in names:
                if name.partition(".")[0] in FORBIDDEN_MODULES:
                    yield f"{node.lineno}: import {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS or called.endswith((".read_pickle", ".unsafe_load")):
                yield f"{node.lineno}: {called}"
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                is_wrong = (keyword.arg in ONLY_FALSE and value != "False") or (
                    keyword.arg in ONLY_TRUE and value != "True"
                )
                if is_wrong:
                    yield f"{node.lineno}: {keyword.arg}={value}"
        elif isinstance(node, ast.Dict):
            for key, item in zip(node.keys, node.values, strict=True):
                is_named = isinstance(key, ast.Constant) and key.value in ONLY_FALSE
                if is_named and ast.unparse(item) != "False":
                    yield f"{node.lineno}: {ast.unparse(item)}"


def test_no_file_of_ours_reads_a_pickle_or_runs_a_text() -> None:
    files = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{offence}"
        for path in files
        for offence in offences(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from joblib import load",
            "import dill as d",
            "from marshal import loads",
        ),
        *("torch.load(path)", "np.load(path)", "pandas.read_pickle(p)", "frame.read_pickle(p)"),
        *(
            "yaml.load(text)",
            "yaml.unsafe_load(text)",
            "eval(text)",
            "exec(text)",
            "os.system(text)",
        ),
        "subprocess.run(text, shell=True)",
        "array.read(file, allow_pickle=True)",
        "load(name, trust_remote_code=trusts)",
        "options = {'trust_remote_code': True}",
        "load(name, use_safetensors=None)",
        "load(name, weights_only=False)",
    ],
)
def test_each_of_them_would_be_found(line: str) -> None:
    assert list(offences(ast.parse(line)))
