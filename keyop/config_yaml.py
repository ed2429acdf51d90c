"""Reading a YAML file into plain data: bounded, safe, and without guessing what a word means."""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from keyop.config_rules import Plain
from keyop.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_NULL, _MERGE = _TAG + "null", _TAG + "merge"
_GUESSED = {_TAG + "bool", _TAG + "int", _TAG + "float"}
# What YAML 1.1 has further guesses for (dates, "=") is text here, like what it calls a string.
_TEXT = {_TAG + "str", _TAG + "timestamp", _TAG + "value", _MERGE}

# What is no character by itself, and no file's name, and cannot be printed.
_HALF = re.compile("[\ud800-\udfff]")
# The parser quotes what it stumbles over, and that may be a secret. Single characters and the
# parser's own words for tokens, such as '<scalar>', may be shown.
_QUOTED = re.compile(r"""(['"]).*?\1""")


class _Loader(yaml.SafeLoader):
    """Composes nodes, not more of them and not deeper than a configuration can need."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if parent is not None:
            _check_bounds(self._nodes, self._depth, parent.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _check_bounds(nodes: int, depth: int, mark: yaml.Mark) -> None:
    if nodes > MAX_NODES:
        raise _refusal(f"more than {MAX_NODES} values, aliases expanded", mark)
    if depth > MAX_DEPTH:
        raise _refusal(f"nested more than {MAX_DEPTH} deep", mark)


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _check_text(text: str, node: yaml.Node) -> None:
    if not text.isascii() and _HALF.search(text):
        raise _refusal("half a surrogate pair is no character", node.start_mark)


class _Expansion:
    """Turns composed nodes into dicts, lists and scalars, counting what aliases multiply."""

    def __init__(self, loader: _Loader) -> None:
        self.duplicates: list[str] = []
        self._loader = loader
        self._nodes = 0

    def expand(self, node: yaml.Node, key: str = "", depth: int = 1) -> Any:
        # An alias is the same node again: shared while composed, paid for here, and one that
        # contains itself ends at the depth.
        self._nodes += 1
        _check_bounds(self._nodes, depth, node.start_mark)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = enumerate(node.value)
            return [self.expand(item, f"{key}[{i}]", depth + 1) for i, item in items]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise _refusal("tags are not supported", node.start_mark)

    def _mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for name_node, value_node in node.value:
            if name_node.tag == _MERGE:
                is_list = isinstance(value_node, yaml.SequenceNode)
                merged += value_node.value if is_list else [value_node]
                continue
            if not isinstance(name_node, yaml.ScalarNode):
                raise _refusal("a key is a word, not a list or a mapping", name_node.start_mark)
            name, line = name_node.value, name_node.start_mark.line + 1
            dotted = f"{key}.{name}" if key else name
            _check_text(name, name_node)
            if name in out:
                self.duplicates.append(f"{dotted}: given twice, on lines {lines[name]} and {line}")
                continue
            out[name], lines[name] = self.expand(value_node, dotted, depth + 1), line
        for other in merged:
            inherited = self.expand(other, key, depth + 1)
            if not isinstance(inherited, dict):
                raise _refusal("'<<' takes a mapping or a list of mappings", other.start_mark)
            for name, value in inherited.items():
                out.setdefault(name, value)
        return out

    def _scalar(self, node: yaml.ScalarNode) -> str | None:
        text: str = node.value
        _check_text(text, node)
        if node.tag == _NULL:
            return None
        if node.tag in _GUESSED:
            # "1:30" is a number of base 60 to YAML 1.1, and text to everybody else.
            if ":" in text:
                return text
            try:
                return Plain(text, _Loader.yaml_constructors[node.tag](self._loader, node))
            except (ValueError, LookupError):  # "0x_", or a tag that the text does not fit
                return text
        if node.tag in _TEXT:
            return text
        raise _refusal("tags are not supported", node.start_mark)


def read_yaml(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str]]:
    """Read a file that holds one YAML mapping.

    Anchors, aliases and merge keys work; tags beyond YAML's own scalars do not. ``null`` is
    None, and a scalar that YAML takes for a number or a truth value is a :class:`Plain`.

    Returns:
        The mapping, and a problem for each key that is given twice in one mapping (the first
        one counts).

    Raises:
        ConfigError: the file cannot be read, exceeds 1 MiB, is not UTF-8, is empty, is not
            YAML (with line and column), holds more than 50,000 values with aliases expanded
            or is nested more than 32 deep, or is not a mapping.
    """
    source = os.fsdecode(path)
    text = _read_text(path, source)
    try:
        loader = _Loader(text)
        expansion = _Expansion(loader)
        node = loader.get_single_node()
        data = None if node is None else expansion.expand(node)
    except yaml.YAMLError as error:
        raise ConfigError(_describe(error, text), source) from None
    except (ValueError, OverflowError) as error:  # a character or a number that Python has none for
        raise ConfigError(f"not YAML: {error}", source) from None
    if data is None:
        raise ConfigError("the file is empty; storage.data_dir is needed at least", source)
    if not isinstance(data, dict):
        kind = "list" if isinstance(data, list) else "single value"
        raise ConfigError(f"the file holds a {kind}, not a mapping of sections", source)
    return data, expansion.duplicates


def _read_text(path: str | os.PathLike[str], source: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source) from error
    except ValueError as error:  # a NUL byte in the path
        raise ConfigError(f"cannot be read: {error}", source) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"larger than {MAX_FILE_BYTES} bytes", source)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error.reason} at byte {error.start}", source) from None


def _describe(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        line, column = error.problem_mark.line, error.problem_mark.column
        problem = ", ".join(filter(None, (error.context, error.problem)))
    else:  # the reader's, for a character that YAML forbids: it knows a position only
        before = text[: getattr(error, "position", 0)]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        problem = str(getattr(error, "reason", error))
    return f"line {line + 1}, column {column + 1}: {_QUOTED.sub(_harmless, problem)}"


def _harmless(quoted: re.Match[str]) -> str:
    text = quoted[0]
    return text if len(text) == 3 or text[1] == "<" else "…"
