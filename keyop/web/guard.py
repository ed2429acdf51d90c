"""Who may see the page, and who may change anything.

Without a token only this machine may, and only under a name of this machine: a page of somebody
else's whose name was made to lead here (DNS rebinding) is refused. With one, it is sent as
``Authorization: Bearer``, or as the cookie that logging in gives.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from keyop.web.http import HTTPError, Request, Response

_COOKIE = "keyop"
_MAX_AGE_S = 7 * 24 * 3600


class Guard:
    """Decides about requests.

    Args:
        token: what a client must present; empty admits this machine alone.
        trusting: somebody else has decided already; only changes are checked.
    """

    def __init__(self, token: str, trusting: bool = False) -> None:
        self._token = token
        self._trusting = trusting
        # The browser keeps this, which is worth nothing elsewhere.
        self._cookie = hmac.new(token.encode(), b"keyop page", "sha256").hexdigest()

    def check(self, request: Request) -> None:
        """Admit the request.

        Raises:
            HTTPError: 401 where a token is missing or wrong; 403 where none would help.
        """
        if request.method not in ("GET", "HEAD"):
            _check_same_origin(request)
        if self._trusting:
            return
        if self._token:
            if not self._presents_token(request):
                raise HTTPError(
                    401,
                    "a token is needed: send it as Authorization: Bearer, or log in",
                    WWW_Authenticate="Bearer",
                )
        elif not (_is_local(request.environ.get("REMOTE_ADDR", "")) and _host_is_local(request)):
            raise HTTPError(403, "without web.token only this machine may look, as localhost")

    def _presents_token(self, request: Request) -> bool:
        scheme, _, value = request.header("Authorization").partition(" ")
        if scheme.lower() == "bearer":
            return _equal(value.strip(), self._token)
        try:
            cookie = SimpleCookie(request.header("Cookie")).get(_COOKIE)
        except CookieError:
            return False
        return cookie is not None and _equal(cookie.value, self._cookie)

    def log_in(self, request: Request) -> Response:
        """Give a cookie to who knows the token.

        Raises:
            HTTPError: 401, the token is wrong; 403, the request comes from another page.
        """
        _check_same_origin(request)
        token = request.json().get("token")
        if not isinstance(token, str) or not (self._token and _equal(token, self._token)):
            raise HTTPError(401, "that is not the token")
        return self._set_cookie(request, self._cookie, _MAX_AGE_S)

    def log_out(self, request: Request) -> Response:
        """Take the cookie back."""
        _check_same_origin(request)
        return self._set_cookie(request, "", 0)

    @staticmethod
    def _set_cookie(request: Request, value: str, max_age_s: int) -> Response:
        path = request.environ.get("SCRIPT_NAME", "") or "/"
        cookie = f"{_COOKIE}={value}; Path={path}; Max-Age={max_age_s}; HttpOnly; SameSite=Strict"
        if request.environ.get("wsgi.url_scheme") == "https":
            cookie += "; Secure"
        return Response(status=204, headers={"Set-Cookie": cookie})


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _check_same_origin(request: Request) -> None:
    """Refuse what another page makes a browser send; programs send no Origin."""
    origin = request.header("Origin")
    site = request.header("Sec-Fetch-Site")
    if site not in ("", "same-origin", "none") or (
        origin and urlsplit(origin).netloc != request.header("Host")
    ):
        raise HTTPError(403, "changes are taken from this page alone, not from another origin")


def _is_local(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == ""  # a Unix socket


def _host_is_local(request: Request) -> bool:
    try:
        host = urlsplit("//" + request.header("Host")).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
