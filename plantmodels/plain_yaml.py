"""Parses YAML of plain values safely, even if a stranger wrote it.

PyYAML's C parser ends the process on brackets that are nested 100,000 deep, and a few lines of merge keys (`<<`) over
aliases take any amount of memory. Depth, aliases and keys are therefore checked on the events, before values are made.

>>> parse_plain_yaml(b"flavors: {plantmodels: {bundle: data/bundle}}")
{'flavors': {'plantmodels': {'bundle': 'data/bundle'}}}
"""

from collections import Counter
from typing import Any, Final

import yaml

from plantmodels.foreign_text import quote_error

_MAX_DEPTH: Final = 50
_MERGE: Final = "<<"
_YAML_ERRORS: Final = (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What PyYAML raises for malformed YAML, and for a value that does not fit its tag, as in `!!timestamp x`."""

_OPENING: Final = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING: Final = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Makes only plain values, and refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, times in names.items():
            if times > 1:
                raise yaml.YAMLError(f"key {name!r:.60} is repeated")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def parse_plain_yaml(content: bytes, *, aliases: bool = False) -> Any:
    """Return the value of YAML text.

    Args:
        content: the text.
        aliases: whether YAML aliases are accepted.

    Raises:
        ValueError: the YAML is malformed, nested too deeply, or holds a repeated key, a merge key, an unaccepted alias
            or a tag that is not plain.
    """
    try:
        _check_events(content, aliases)
        return yaml.load(content, _Loader)
    except _YAML_ERRORS as error:
        raise ValueError(quote_error(error)) from error


def _check_events(content: bytes, aliases: bool) -> None:
    depth = 0
    for event in yaml.parse(content, _Loader):
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise yaml.YAMLError(f"the alias *{event.anchor:.60} is refused")
        if isinstance(event, yaml.ScalarEvent) and event.value == _MERGE:
            raise yaml.YAMLError("the merge key << is refused")
