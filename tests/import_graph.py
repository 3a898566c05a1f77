"""Who imports whom among source files, read from their syntax trees.

Pure functions of texts by file name (``core/errors.py``), so that the tests of the architecture can be shown
to fail on invented files. What is imported by a string is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

Sources = Mapping[str, str]
"""Text of each file."""
Graph = Mapping[str, frozenset[str]]
"""What each file imports."""
Layers = Mapping[str, tuple[str, ...]]
"""Files of each layer, the lowest layer first: names, or patterns in which ``*`` is any name of one folder."""

_TYPES_ONLY = {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """A name that a file imports at run time.

    Attributes:
        name: Dotted, with what is taken from the module.
        is_deferred: Whether it stands in a function, so that importing the file does not run it.
    """

    name: str
    is_deferred: bool


@cache
def imports(text: str) -> tuple[Import, ...]:
    """What a file imports, at any depth; not what only a type checker reads."""
    return tuple(_imports(ast.parse(text), is_deferred=False))


def _imports(node: ast.AST, *, is_deferred: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(name=alias.name, is_deferred=is_deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.module and node.level == 0:
            for alias in node.names:
                yield Import(name=f"{node.module}.{alias.name}", is_deferred=is_deferred)
    else:
        children: Iterable[ast.AST] = ast.iter_child_nodes(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) in _TYPES_ONLY:
            children = node.orelse
        inside = is_deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in children:
            yield from _imports(child, is_deferred=inside)


def importers(sources: Sources, module: str) -> set[str]:
    """Files that import a module, or something of it."""
    return {file for file, text in sources.items() if _takes(imports(text), module)}


def _takes(found: Iterable[Import], module: str) -> bool:
    return any(i.name == module or i.name.startswith(f"{module}.") for i in found)


def file_of(name: str, files: Collection[str]) -> str | None:
    """The file that an imported name means: ``a.b.c`` is the module of that name, else something of ``a.b``."""
    module = name.replace(".", "/")
    owner = module.rpartition("/")[0]
    for place in (module, owner):
        for candidate in (f"{place}.py", f"{place}/__init__.py"):
            if candidate in files:
                return candidate
    return None


def import_graph(sources: Sources) -> Graph:
    """What each file imports of the others, late imports included.

    The ``__init__`` of a package counts where something is taken from the package itself.
    """
    return {
        file: frozenset(_files(imports(text), sources.keys())) for file, text in sources.items()
    }


def loading_graph(sources: Sources) -> Graph:
    """What Python runs for each file before the file itself: what it imports at its top, and its packages."""
    return {
        file: frozenset(
            {
                *_files((i for i in imports(text) if not i.is_deferred), sources.keys()),
                *(
                    str(folder / "__init__.py")
                    for folder in PurePosixPath(file).parents
                    if str(folder / "__init__.py") in sources
                ),
            }
            - {file}
        )
        for file, text in sources.items()
    }


def _files(found: Iterable[Import], files: Collection[str]) -> Iterator[str]:
    for imported in found:
        file = file_of(imported.name, files)
        if file is not None:
            yield file


def shortest_way(graph: Graph, start: str, goal: str) -> tuple[str, ...]:
    """Files from ``start`` along imports to ``goal``, at least one import long; empty if there is no way."""
    ways: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    for way in ways:  # grows while it is read: the nearest first
        for following in sorted(graph.get(way[-1], frozenset()) - seen):
            if following == goal:
                return (*way, goal)
            seen.add(following)
            ways.append((*way, following))
    return ()


def circles(graph: Graph) -> set[tuple[str, ...]]:
    """The shortest circle through each file that lies on one; each begins at its first name."""
    found = set()
    for file in graph:
        circle = shortest_way(graph, file, file)[:-1]
        if circle:
            first = circle.index(min(circle))
            found.add(circle[first:] + circle[:first])
    return found


def misplaced(files: Iterable[str], layers: Layers) -> list[str]:
    """What is wrong with a table of layers: files in none or in several, and entries that mean no file."""
    files = list(files)
    found = []
    for file in files:
        homes = _homes(file, layers)
        if not homes:
            found.append(f"{file} is in no layer")
        elif len(homes) > 1:
            found.append(f"{file} is in several layers: {', '.join(homes)}")
    for layer, patterns in layers.items():
        for pattern in patterns:
            if not any(PurePosixPath(file).match(pattern) for file in files):
                found.append(f"{pattern} in the layer {layer!r} is no file")
    return found


def upward_imports(graph: Graph, layers: Layers) -> list[str]:
    """Imports of a file that lies in a higher layer than the importing one."""
    order = list(layers)
    height = {file: order.index(home) for file in graph for home in _homes(file, layers)[:1]}
    return [
        f"{file} ({order[height[file]]}) imports {imported} ({order[height[imported]]}), which lies higher"
        for file in sorted(height)
        for imported in sorted(graph[file] & height.keys())
        if height[imported] > height[file]
    ]


def _homes(file: str, layers: Layers) -> list[str]:
    return [
        layer
        for layer, patterns in layers.items()
        if any(PurePosixPath(file).match(pattern) for pattern in patterns)
    ]


def ways_to(sources: Sources, files: Iterable[str], modules: Iterable[str]) -> list[str]:
    """How importing a file ends in importing a foreign module: for each of both, the shortest way."""
    graph = loading_graph(sources)
    found = []
    for module in modules:
        with_module = {
            file: graph[file] | {module}
            if _takes((i for i in imports(text) if not i.is_deferred), module)
            else graph[file]
            for file, text in sources.items()
        }
        ways = (shortest_way(with_module, file, module) for file in files)
        found += [" -> ".join(way) for way in ways if way]
    return found


def top_files(files: Iterable[str], package: str) -> set[str]:
    """Files that lie in a package itself, not in a package within it."""
    return {file for file in files if str(PurePosixPath(file).parent) == package}
