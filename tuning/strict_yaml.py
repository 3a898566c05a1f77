"""YAML as data alone: plain values, no key twice in a mapping and, where a file needs none, no aliases."""

from dataclasses import dataclass
from typing import Any

import yaml

from core import errors

MOST_VALUES = 1 << 20
"""Values that a document may have with all aliases written out; nested ones unfold into gigabytes."""

_UNFIT = (ValueError, OverflowError, KeyError, AttributeError, TypeError, IndexError)
"""What PyYAML's constructors raise of a value that its tag does not fit, such as ``!!bool maybe``."""
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A key that stands again in a mapping; YAML itself would keep the last in silence.

    Attributes:
        key: The key as a value.
        written: The key as it is written.
        mark: Where it stands again.
    """

    key: Any
    written: str
    mark: yaml.Mark

    @property
    def line(self) -> int:
        """Line of the file, from 1."""
        return int(self.mark.line) + 1


class _Loader(yaml.SafeLoader):
    """A safe loader that notes duplicate keys and refuses aliases where they are not allowed."""

    def __init__(self, text: str | bytes, *, allows_aliases: bool) -> None:
        super().__init__(text)
        self._allows_aliases = allows_aliases
        self.duplicates: list[Duplicate] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if not self._allows_aliases and self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not allowed", mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """The mapping as it is written: what ``<<`` merges into it is no second key."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the loader itself refuses it
            is_merge = key_node.tag == _MERGE
            key = key_node.value if is_merge else self.construct_object(key_node, deep=True)
            if (is_merge, key) in seen:
                self.duplicates.append(
                    Duplicate(key=key, written=key_node.value, mark=key_node.start_mark)
                )
            seen.add((is_merge, key))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; one that its own type cannot hold, such as the 30th of February, is refused."""
        try:
            return super().construct_object(node, deep=deep)
        except _UNFIT as err:
            raise yaml.constructor.ConstructorError(
                None, None, f"a value cannot be read: {errors.in_a_line(err)}", node.start_mark
            ) from err


def load(text: str | bytes, *, allows_aliases: bool) -> tuple[Any, tuple[Duplicate, ...]]:
    """Read one YAML document.

    Args:
        text: The document; bytes are UTF-8, or UTF-16 with a byte order mark.
        allows_aliases: Whether ``*name`` may stand for what ``&name`` marks, and ``<<: *name`` may merge it.

    Returns:
        What the document says, and the keys that stand twice, for the caller to refuse. A key beside ``<<`` wins
        over the merged one, and is not twice.

    Raises:
        yaml.YAMLError: If it is not YAML, holds more than plain values, is nested too deeply, or has an alias that
            is not allowed, contains itself, or makes it too large.
    """
    loader = _Loader(text, allows_aliases=allows_aliases)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, ()
        _refuse_unfolding(node)
        return loader.construct_document(node), tuple(loader.duplicates)
    except RecursionError as err:
        raise yaml.YAMLError("it is nested too deeply") from err
    finally:
        loader.dispose()


def in_a_line(err: yaml.YAMLError) -> str:
    """Where a document is no YAML and why, in a line."""
    if not isinstance(err, yaml.MarkedYAMLError) or err.problem_mark is None:
        return " ".join(str(err).split())
    context = f" {err.context}" if err.context else ""
    mark = err.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {err.problem}{context}"


def _refuse_unfolding(root: yaml.Node) -> None:
    """Refuse aliases that contain themselves, or that are too much when written out."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            raise yaml.composer.ComposerError(
                None, None, "an alias (*name) stands in what it names", node.start_mark
            )
        if known is not None:
            return known
        sizes[id(node)] = 0  # being counted
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        found = 1 + sum(map(size, inner))
        if found > MOST_VALUES:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"aliases (*name) make it more than {MOST_VALUES} values",
                node.start_mark,
            )
        sizes[id(node)] = found
        return found

    size(root)
