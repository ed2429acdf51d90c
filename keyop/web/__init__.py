"""keyop in web applications, and keyop's own page.

``event_stream`` lets a browser follow a channel, ``app`` is the operator's page as a WSGI
application, ``keyop.web.gunicorn`` has hooks for gunicorn.
"""

from typing import TYPE_CHECKING, Any

from keyop.web.events import event_stream

if TYPE_CHECKING:
    from keyop.web.application import app

__all__ = ["app", "event_stream"]


def __getattr__(name: str) -> Any:
    """Load the page when it is first asked for: most web applications have their own."""
    if name == "app":
        from keyop.web.application import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
