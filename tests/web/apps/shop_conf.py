# gunicorn.conf.py
from gevent import monkey

monkey.patch_all()  # before anything else is imported, also with preload_app

from keyop.web.gunicorn import post_fork, worker_exit  # noqa: E402, F401

worker_class = "gevent"
workers = 4
graceful_timeout = 30


def post_worker_init(worker):
    from shop import subscribe

    subscribe()
