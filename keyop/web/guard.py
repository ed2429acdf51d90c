"""Who may see the page, and who may change anything.

Without a token only this machine may, and only under a name of this machine: a page of somebody
else's whose name was made to lead here (DNS rebinding) is refused, and so is what a proxy on this
machine says that it passes on. With one, it is sent as ``Authorization: Bearer``, or as the cookie
that logging in gives.
"""

from __future__ import annotations

import hmac
import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import quote, urlsplit

from keyop.web.http import HTTPError, Request, Response

# With one of these, somebody else asks than who is connected. What they say is not believed.
_OF_PROXIES = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")
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
        # The browser keeps this, which is worth nothing elsewhere. Ports of one host share their
        # cookies, so another instance's has another name.
        self._cookie = _digest(token, "keyop page")
        self._cookie_name = "keyop-" + _digest(token, "keyop page, name")[:8]

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
        elif not (_is_local(request) and _host_is_local(request)):
            raise HTTPError(
                403, "without web.token only this machine may look, as localhost and directly"
            )

    def admits(self, request: Request) -> bool:
        """Tell whether :meth:`check` would admit the request."""
        try:
            self.check(request)
        except HTTPError:
            return False
        return True

    def _presents_token(self, request: Request) -> bool:
        scheme, _, value = request.header("Authorization").partition(" ")
        if scheme.lower() == "bearer":
            return _equal(value.strip(), self._token)
        # By hand: what is wrong with other people's cookies is not this one's fault.
        cookies = (each.strip().partition("=") for each in request.header("Cookie").split(";"))
        return any(
            name == self._cookie_name and _equal(value, self._cookie) for name, _, value in cookies
        )

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

    def _set_cookie(self, request: Request, value: str, max_age_s: int) -> Response:
        path = quote(request.environ.get("SCRIPT_NAME", ""), encoding="latin-1") or "/"
        cookie = (
            f"{self._cookie_name}={value}; Path={path}; Max-Age={max_age_s}; "
            "HttpOnly; SameSite=Strict"
        )
        if request.environ.get("wsgi.url_scheme") == "https":
            cookie += "; Secure"
        return Response(status=204, headers={"Set-Cookie": cookie})


def _digest(token: str, purpose: str) -> str:
    return hmac.new(token.encode("utf-8", "surrogatepass"), purpose.encode(), "sha256").hexdigest()


def _equal(one: str, other: str) -> bool:
    """Compare in a time that tells nothing but the length."""
    return hmac.compare_digest(
        one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass")
    )


def _check_same_origin(request: Request) -> None:
    """Refuse what another page makes a browser send.

    Browsers say so in one way or the other, which no page can prevent; programs say nothing.
    Where both are there, the newer one counts: a proxy that passes on may change the host.
    """
    site, origin = request.header("Sec-Fetch-Site"), request.header("Origin")
    if site:
        is_own = site in ("same-origin", "none")
    else:
        is_own = not origin or _host_of(origin) == request.header("Host").lower() != ""
    if not is_own:
        raise HTTPError(403, "changes are taken from this page alone, not from another origin")


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_local(request: Request) -> bool:
    """Tell whether a program of this machine asks, for itself.

    Through a Unix socket it is a proxy, as a rule, and nobody knows for whom it asks.
    """
    if any(request.header(name) for name in _OF_PROXIES):
        return False
    try:
        address = ip_address(request.environ.get("REMOTE_ADDR", "").partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _host_is_local(request: Request) -> bool:
    found = _HOST.fullmatch(request.header("Host").lower())
    if found is None:
        return False
    host = found["ipv6"] or found["name"]
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
