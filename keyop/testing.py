"""For the tests of programs that use keyop: a pytest fixture and ``drain``.

The package registers itself with pytest, so ``def test_x(messenger)`` is all that is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import gevent

if TYPE_CHECKING:
    from pathlib import Path

    from keyop.messenger import Messenger

_LOOK_EVERY_S = 0.002


if find_spec("pytest") is not None:  # programs that only drain need none
    import pytest

    @pytest.fixture
    def messenger(tmp_path: Path) -> Iterator[Messenger]:
        """A real messenger on a temporary directory, closed when the test ends."""
        # Imported when it is used: the plugin is loaded in every test run of its environment.
        from keyop.messenger import Messenger

        with Messenger(data_dir=tmp_path / "keyop") as made:
            yield made


def drain(messenger: Messenger, timeout: float = 5) -> None:
    """Wait until every subscription of this messenger has handled all there is.

    Raises:
        TimeoutError: some have not after ``timeout`` seconds; the error names them.
    """
    deadline = time.monotonic() + timeout
    while behind := [each for each in messenger.subscriptions() if each.active and each.lag_bytes]:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"after {timeout:g} s not drained: "
                + ", ".join(f"{each!r}, {each.lag_bytes} bytes behind" for each in behind)
            )
        gevent.sleep(_LOOK_EVERY_S)
