"""Reads YAML that people wrote: keys that are given twice are mistakes, and its size is bounded."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

MOST_MERGED = 10_000  # keys of a mapping, those that merge keys (<<) bring along included


def load_yaml(content: str | bytes) -> Any:
    """The value of YAML, as plain Python values.

    Raises yaml.YAMLError for what is no YAML, for a key that a mapping gives twice, and for a mapping that
    merge keys make larger than `MOST_MERGED`: nested, they would multiply.
    """
    return yaml.load(content, _Loader)


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    message = f"the key {key.value!r} is given twice"
                    raise ConstructorError(None, None, message, key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_MERGED:
            message = f"merge keys (<<) make a mapping of more than {MOST_MERGED:,} keys"
            raise ConstructorError(None, None, message, node.start_mark)
