"""YAML as data alone: plain values, no key twice in a mapping and, where a file needs none, no aliases."""

from dataclasses import dataclass
from typing import Any

import yaml


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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the loader itself refuses it
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                self.duplicates.append(
                    Duplicate(key=key, written=key_node.value, mark=key_node.start_mark)
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load(text: str | bytes, *, allows_aliases: bool) -> tuple[Any, tuple[Duplicate, ...]]:
    """Read one YAML document.

    Args:
        text: The document; bytes are UTF-8, or UTF-16 with a byte order mark.
        allows_aliases: Whether ``*name`` may stand for what ``&name`` marks. Nested aliases let a small file
            unfold into gigabytes.

    Returns:
        What the document says, and the keys that stand twice, for the caller to refuse.

    Raises:
        yaml.YAMLError: If it is not YAML, holds more than plain values, or has an alias that is not allowed.
    """
    loader = _Loader(text, allows_aliases=allows_aliases)
    try:
        return loader.get_single_data(), tuple(loader.duplicates)
    finally:
        loader.dispose()
