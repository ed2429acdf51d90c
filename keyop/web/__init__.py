"""keyop in web applications, and keyop's own page.

``event_stream`` lets a browser follow a channel, ``app`` is the operator's page as a WSGI
application, ``keyop.web.gunicorn`` has hooks for gunicorn.
"""

from keyop.web.events import event_stream

__all__ = ["event_stream"]
