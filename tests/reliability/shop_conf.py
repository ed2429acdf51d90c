"""gunicorn's configuration for ``shop``; with ``KEYOP_HOOKS`` in the environment, keyop's hooks."""

import os
from typing import Any

from gevent import monkey

monkey.patch_all()

if os.environ.get("KEYOP_HOOKS"):
    from keyop.web.gunicorn import post_fork, worker_exit  # noqa: F401

worker_class = "gevent"
preload_app = bool(os.environ.get("KEYOP_PRELOAD"))
graceful_timeout = 30


def post_worker_init(worker: Any) -> None:
    """Start the subscribers in each worker."""
    from tests.reliability.shop import subscribe

    subscribe()
