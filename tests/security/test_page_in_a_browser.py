"""What of messages, names and errors acts in the operator's browser: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.keys import Keys

from tests.integration.helpers import Recorder, running
from tests.web.browser import Page, Server
from tests.web.conftest import chrome, page

__all__ = ["chrome", "page"]  # fixtures

MARKUP = "<img src=x onerror=window.evil=1><script>window.evil=1</script>"
PLACES = [
    "#/",
    "#/channels/orders/messages",
    "#/channels/orders/dead-letters",
    "#/channels/orders.dead-letter/messages",
    "#/channels/<img src=x onerror=window.evil=1>/messages",
    f"#/{MARKUP}",
    "#/channels/javascript:window.evil=1/messages",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose messages are markup in every field that there is, as are the errors."""

    def fail(_: object) -> None:
        raise ValueError(MARKUP)

    directory = tmp_path_factory.mktemp("page")
    with running(directory / "data", name="here") as messenger:
        seen = Recorder()
        messenger.subscribe("orders.dead-letter", "seen", seen)
        messenger.subscribe("orders", "failing", fail, max_retries=0)
        fields = {"correlation_id": MARKUP, "service_name": MARKUP}
        messenger.publish("orders", MARKUP, {MARKUP: MARKUP}, **fields)
        seen.wait(1)
    with Server(directory) as server:
        yield server


@pytest.mark.parametrize("place", PLACES)
def test_markup_is_shown_as_text(page: Page, server: Server, place: str) -> None:
    """It is there to be read, and neither an element nor a script anywhere; nothing was blocked."""
    page.allowed = ["400 .Bad Request.", "404 .Not Found."]  # of names that no channel has
    page.open(server.url, place)
    if place.endswith(("orders/messages", "dead-letters")):
        page.see("onerror=window.evil=1", "main")
        page.press("k", Keys.ENTER)  # the last one, opened
        page.see(MARKUP, "main pre")
    elif "evil=1" in place and "/channels/" in place:
        page.see("is not allowed", "body")
    else:
        page.see("orders", "main")
    assert page.all("main img, main script, main iframe, main a[href^=javascript]") == []
    assert page.run("return window.evil ?? null") is None
    page.leave()
    assert page.complaints == []
