"""The operator's page as a WSGI application: keyop's own listener serves it, or any program."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any

from keyop.errors import (
    ForkedError,
    InvalidChannelNameError,
    KeyopError,
    MessengerClosedError,
    PublishTimeoutError,
    ReservedChannelNameError,
    WrongThreadError,
)
from keyop.web.api import Api
from keyop.web.guard import Guard
from keyop.web.host import Host
from keyop.web.http import (
    Environ,
    HTTPError,
    Request,
    Response,
    StartResponse,
    error_response,
    json_response,
    printable,
)
from keyop.web.observer import Observer

logger = logging.getLogger(__name__)

_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_STATIC = re.compile(r"/(?:static/)?([A-Za-z0-9][A-Za-z0-9_.-]*\.(html|css|js|svg))")
_CHANNEL = re.compile(r"/api/v1/channels/([^/]+)/(messages|events|dead-letters)")
_LETTERS = re.compile(r"/api/v1/channels/([^/]+)/dead-letters/(requeue|purge)")

_UNUSABLE = (MessengerClosedError, ForkedError, WrongThreadError, PublishTimeoutError)

Answer = Callable[[Request], Response]


def app(messenger: Host, token: str | None = None, *, trusting: bool = False) -> Application:
    """Return the page, ``/healthz``, ``/metrics`` and the JSON behind them, for one messenger.

    Constructing it starts nothing; the first request does. It ends with the messenger. All its
    addresses are relative, so it may be mounted below any path.

    Args:
        token: what a client must present; None takes ``web.token`` of the configuration. An
            empty one admits requests from this machine alone.
        trusting: requests have been admitted before they come here, so no token is asked for.
    """
    if token is None:
        token = messenger.config.web.token
    return Application(messenger, Guard(token, trusting))


class Application:
    """A WSGI application; see :func:`app`."""

    def __init__(self, messenger: Host, guard: Guard) -> None:
        self._messenger = messenger
        self._guard = guard
        self._observer = Observer(messenger)
        self._api = Api(messenger, self._observer)
        self._metrics: Any = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = Request(environ)
        try:
            response = self._answer(request)
        except HTTPError as error:
            response = error_response(error)
        except (InvalidChannelNameError, ReservedChannelNameError) as error:
            response = error_response(HTTPError(400, str(error)))
        except _UNUSABLE as error:
            response = error_response(HTTPError(503, str(error)))
        except KeyopError as error:
            # What was to be changed is not as the client thought, or it cannot be looked at.
            status = 409 if request.method == "POST" else 503
            response = error_response(HTTPError(status, str(error)))
        # A fault of keyop's own must not end the connection without a word.
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            response = error_response(HTTPError(500, "this failed; the log says why"))
        return response.send(start_response, request.method == "HEAD")

    def _answer(self, request: Request) -> Response:
        if request.path == "/healthz":
            return self._looked(request, self._health)
        if not request.path:  # relative addresses would lead elsewhere
            return self._looked(request, self._redirect)
        if request.path == "/":
            return self._looked(request, lambda _: _static("index.html", "html"))
        if (found := _STATIC.fullmatch(request.path)) is not None:
            name, extension = found.groups()
            return self._looked(request, lambda _: _static(name, extension))
        if request.path == "/api/v1/login":
            return self._changed(request, self._guard.log_in)
        if request.path == "/api/v1/logout":
            return self._changed(request, self._guard.log_out)
        self._guard.check(request)
        return self._guarded(request)

    def _guarded(self, request: Request) -> Response:
        api = self._api
        path = request.path
        if path == "/metrics":
            return self._looked(request, self._expose)
        if path == "/api/v1/overview":
            return self._looked(request, api.overview)
        if path == "/api/v1/history":
            return self._looked(request, api.history)
        if (found := _CHANNEL.fullmatch(path)) is not None:
            channel, what = found.groups()
            look = {
                "messages": api.messages,
                "events": api.events,
                "dead-letters": api.dead_letters,
            }[what]
            return self._looked(request, lambda request: look(request, channel))
        if (found := _LETTERS.fullmatch(path)) is not None:
            channel, what = found.groups()
            change = {"requeue": api.requeue, "purge": api.purge}[what]
            return self._changed(request, lambda request: change(request, channel))
        raise HTTPError(404, f"there is nothing at {path!r}")

    @staticmethod
    def _looked(request: Request, answer: Answer) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise HTTPError(405, "this can only be looked at", Allow="GET, HEAD")
        return answer(request)

    @staticmethod
    def _changed(request: Request, answer: Answer) -> Response:
        if request.method != "POST":
            raise HTTPError(405, "this is done with POST", Allow="POST")
        return answer(request)

    def _health(self, request: Request) -> Response:
        """Answer whether this process lives, and whether it can do its work."""
        messenger, why = self._messenger, ""
        try:
            failed = [] if messenger.closing else self._observer.stats().channels
            names = [each.channel for each in failed if each.failed]
            if names:
                why = f"logs have failed: {', '.join(names)}"
        except KeyopError as error:
            why = str(error)
        if messenger.closing:
            why = "the messenger is closed"
        if not why:
            return json_response({"live": True, "ready": True})
        answer: dict[str, Any] = {"live": True, "ready": False}
        if self._guard.admits(request):  # others need not know more
            answer["why"] = printable(why)
        return Response(json_response(answer).body, status=503)

    def _expose(self, request: Request) -> Response:
        if self._metrics is None:
            try:
                from keyop.web.metrics import Metrics
            except ImportError:
                raise HTTPError(
                    501, "metrics need the package prometheus-client: pip install 'keyop[web]'"
                ) from None
            self._metrics = Metrics(self._observer.sample, self._observer.stats)
        body, content_type = self._metrics.expose(request.header("Accept"))
        return Response(body, content_type)

    @staticmethod
    def _redirect(request: Request) -> Response:
        location = request.environ.get("SCRIPT_NAME", "") + "/"
        return Response(status=308, headers={"Location": location})


def _static(name: str, extension: str) -> Response:
    try:
        body = (files("keyop.web") / "static" / name).read_bytes()
    except OSError:
        raise HTTPError(404, f"there is no file {name!r}") from None
    return Response(body, _CONTENT_TYPES[extension])
