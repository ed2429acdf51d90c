"""``keyop config``: is a configuration file right?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import click

from keyop.cli.common import common_options, is_verbose, json_option
from keyop.cli.output import print_json, print_line
from keyop.config import Config
from keyop.errors import ConfigError


@click.group("config")
@common_options
def command() -> None:
    """Work with configuration files.

    \b
    Example:
      keyop config check conf/hub.yaml
    """


@command.command("check")
@click.argument("file", type=click.Path())
@json_option
@common_options
def check(file: str, as_json: bool) -> int:
    """Read FILE and report everything that is wrong with it, all at once.

    Nothing that the file names is opened or created, but for the certificate that names the
    instance. With -v, or --json, the values in effect are printed, secrets left out. The exit
    status is 0 if a messenger can be made of it, else 1.

    \b
    Examples:
      keyop config check conf/hub.yaml
      keyop config check -v conf/hub.yaml
    """
    try:
        config = Config.load(file)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"file": file, "ok": False, "problems": error.problems})
        return 1
    values = dict(effective(config))
    values["name"] = config.instance_name()
    if as_json:
        print_json({"file": file, "ok": True, "problems": [], "values": values})
        return 0
    print_line(f"{file}: all right")
    if is_verbose():
        for key, value in values.items():
            print_line(f"  {key}: {json.dumps(value, ensure_ascii=False)}")
    return 0


def effective(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a configuration with their values, without secrets."""
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from effective(value, f"{key}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for index, each in enumerate(value):
                yield from effective(each, f"{key}[{index}].")
        elif field.repr:
            yield key, list(value) if isinstance(value, tuple) else value
        else:  # a secret
            yield key, "(set)" if value else ""
