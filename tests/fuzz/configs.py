"""What is in a configuration file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from keyop import Config
from keyop.config_rules import split_address
from keyop.errors import ConfigError
from keyop.names import check_channel, instance_name_fault

from .checks import insist, is_printable

# An unknown key is shown as it was written, so an error is about as long as the file.
_MOST_SHOWN = 20


@contextmanager
def configs(directory: Path) -> Iterator[Callable[[bytes], None]]:
    """Give what takes contents of a YAML file: a configuration, or one error with all faults."""
    path = directory / "keyop.yaml"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        try:
            config = Config.load(path)
        except ConfigError as error:
            insist(error.problems, "an error without a problem")
            insist(str(error).startswith(str(path)), error)
            insist(is_printable(str(error)), "what is said cannot be printed")
            insist(len(str(error)) < 100_000 + _MOST_SHOWN * len(data), "too much is said")
        else:
            _check(config)
        assert os.listdir(directory) == [path.name]

    yield feed


def _check(config: Config) -> None:
    """What was read must be usable, and the same when it is given as a mapping."""
    assert Config.from_dict(dataclasses.asdict(config)) == config
    names = [config.name, *(each.name for each in config.hub.allowed_peers)]
    names += [each.name for each in config.client.hubs]
    assert all(instance_name_fault(each) is None for each in names if each)
    for part in (*config.hub.allowed_peers, *config.client.hubs):
        for channel in (*part.subscribe, *part.publish):
            check_channel(channel)
    for address in (config.hub.listen_addr, config.web.listen_addr):
        if address:
            split_address(address)
    tls = config.tls
    for path in (config.storage.data_dir, tls.cert, tls.key, tls.ca, tls.crl):
        insist(is_printable(path), "no file has such a name")
    assert "token=" not in repr(config.web)
    assert is_printable(repr(config))
