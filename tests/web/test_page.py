"""The operator's page, as a browser shows it and a reader uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.keys import Keys

from .browser import PHONE, WIDE, Page, Server, wait_for
from .server import EXACT, FAILING, ORDERS

DEAD_LETTERS = "#/channels/orders/dead-letters"
MESSAGES = "#/channels/orders/messages"
HEIGHT_ALL = 2000


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which nothing happens, for tests that only look.

    The page is below a path, and asking for anything above it fails the test.
    """
    with Server(tmp_path_factory.mktemp("quiet"), prefix="/ops/keyop") as server:
        yield server


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server under load."""
    with Server(tmp_path_factory.mktemp("busy"), "--load") as server:
        yield server


@pytest.fixture
def serve(page: Page, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the test's own, to change what is there."""
    with ExitStack() as servers:

        def start(*options: str) -> Server:
            return servers.enter_context(Server(tmp_path, *options))

        yield start
        page.leave()


def offset_of(key: str) -> int:
    return int(key)


# -- at a glance


def test_shows_how_things_are(page: Page, quiet: Server) -> None:
    page.open(quiet.url)
    page.see("orders")
    page.see("billing")
    assert page.rows("Channels") == ["orders"]
    assert page.rows("Subscribers") == ["orders/billing"]
    assert page.text("#state") == "live"
    wait_for(lambda: len(page.all("main canvas")) == 4, "two plots, and two in the row")
    page.see(f"{len(FAILING)}", "#warnings")
    assert page.one("#warnings a").get_attribute("href").endswith(DEAD_LETTERS)
    page.resize((WIDE[0], HEIGHT_ALL))
    page.shoot("quiet-light")
    page.prefer("dark")
    page.shoot("quiet-dark")


def test_numbers_and_plots_move_under_load(page: Page, busy: Server) -> None:
    page.open(busy.url)
    picture = "return document.querySelector('figure canvas')?.toDataURL()"
    wait_for(lambda: "metrics" in page.rows("Channels"), "the channel under load")
    cells = "tr[data-row=metrics] td.number"
    wait_for(lambda: page.text(cells) not in ("", "–", "0/s"), "a rate")
    before = page.run(picture)
    wait_for(lambda: page.run(picture) != before, "the plot to move")
    page.open(busy.url, "#/channels/metrics")
    page.see("End offset")
    end = ".figures div:last-child dd"
    first = wait_for(lambda: page.text(end).strip("–"), "an offset")
    wait_for(lambda: page.text(end) != first, "the offset to grow")
    page.shoot("load-channel")
    page.open(busy.url)
    wait_for(lambda: "metrics" in page.rows("Channels"), "the channel under load")
    page.shoot("load-light")
    page.one("#theme").click()
    page.one("#theme").click()
    assert page.text("#theme") == "Theme: dark"
    page.shoot("load-dark")
    page.resize(PHONE)
    page.shoot("load-phone-dark")


def test_shows_who_is_connected_and_who_is_missing(page: Page, busy: Server) -> None:
    page.open(busy.url)
    page.see("central", "#warnings")
    wait_for(lambda: len(page.rows("Peers and hubs")) == 2, "a visitor and a hub")
    hub, visitor = page.rows("Peers and hubs")
    assert hub.startswith("hub/central/")
    assert visitor.startswith("ephemeral/visitor/")
    page.see("connected", f"tr[data-row='{visitor}']")


def test_filters_and_sorts_tables(page: Page, busy: Server) -> None:
    page.open(busy.url)
    wait_for(lambda: page.rows("Channels") == ["metrics", "orders"], "both channels")
    page.button("Channel").click()
    wait_for(lambda: page.rows("Channels") == ["orders", "metrics"], "the other order")
    page.press("/", "metr")
    page.has_rows("Channels", 1)
    page.write("[data-filter]", "nothing")
    page.see("None has that in its name.")


# -- messages


def test_reads_from_any_place(page: Page, quiet: Server) -> None:
    page.open(quiet.url, MESSAGES)
    latest = page.has_rows("Messages", 100)
    page.button("Older").click()
    wait_for(lambda: latest[0] not in page.rows("Messages"), "older messages")
    assert offset_of(page.has_rows("Messages", 100)[-1]) < offset_of(latest[0])
    page.button("Newer").click()
    wait_for(lambda: page.rows("Messages") == latest, "the newer ones again")
    page.button("Earliest").click()
    wait_for(lambda: page.rows("Messages")[:1] == ["0"], "the first message")
    second = page.rows("Messages")[1]
    page.write("[name=from]", second + Keys.ENTER)
    wait_for(lambda: page.rows("Messages")[:1] == [second], "those from an offset on")
    page.write("[name=from]", "-1h" + Keys.ENTER)
    wait_for(lambda: page.rows("Messages")[:1] == ["0"], "those of the last hour")
    page.write("[name=from]", "whenever" + Keys.ENTER)
    wait_for(lambda: page.text("main [role=status][data-level=error]"), "what is wrong")
    page.allowed.append("400")


def test_filters_messages(page: Page, quiet: Server) -> None:
    page.open(quiet.url, MESSAGES)
    page.has_rows("Messages", 100)
    page.write("[name=from]", "earliest")
    page.write("[name=where]", '"customer.name=customer 3"' + Keys.ENTER)
    page.has_rows("Messages", len(range(3, ORDERS, 7)))
    page.driver.refresh()  # the address says it all
    page.has_rows("Messages", len(range(3, ORDERS, 7)))
    page.write("[name=where]", '"customer.name=customer 5" fails=true')
    page.one("[name=where]").send_keys(Keys.ENTER)
    page.has_rows("Messages", len([each for each in FAILING if each % 7 == 5]))
    page.write("[name=where]", "")
    page.write("[name=text]", "onerror" + Keys.ENTER)
    page.has_rows("Messages", 1)


def test_shows_records_as_they_are_and_nothing_of_them_acts(page: Page, quiet: Server) -> None:
    page.open(quiet.url, MESSAGES)
    page.has_rows("Messages", 100)
    page.press("k", Keys.ENTER)  # the last one
    page.see(str(EXACT), "main pre")
    record = page.text("main pre")
    assert "<img src=x onerror=alert(1)> \\u202egnp.exe \\u0007" in record
    for hidden in "\u202e\u0007":
        assert hidden not in page.text("body")
    assert page.all("main img") == []
    page.shoot("message")
    page.press(Keys.ENTER)
    wait_for(lambda: not page.all("main pre"), "it to close")


def test_follows(page: Page, busy: Server) -> None:
    page.open(busy.url, "#/channels/metrics/messages")
    wait_for(lambda: page.rows("Messages"), "messages")
    page.press("f")
    page.see("Following")
    last = page.rows("Messages")[-1]
    wait_for(
        lambda: offset_of(page.rows("Messages")[-1]) > offset_of(last) and page.rows("Messages"),
        "newer messages",
    )
    page.shoot("follow")
    page.press("f")
    wait_for(lambda: "Following" not in page.text("main"), "the end of following")
    wait_for(lambda: page.one("[aria-pressed]").get_attribute("aria-pressed") == "false", "that")


# -- dead letters


def test_requeues_and_purges_after_asking(page: Page, serve: Callable[..., Server]) -> None:
    own = serve()
    page.open(own.url, DEAD_LETTERS)
    letters = page.has_rows("Dead letters", len(FAILING))
    page.press("j", Keys.ENTER)
    page.see("no such customer", "main pre")
    page.shoot("dead-letter")
    page.press("x", "j", "x")
    page.button("Requeue 2").click()
    page.see("Requeue 2 dead letters of orders?", "dialog[open]")
    page.see("To billing only", "dialog[open]")
    page.shoot("requeue")
    page.answer("Cancel")
    assert page.rows("Dead letters") == letters
    page.press("r")
    # Who is quick asks again before the browser has told of the first answer.
    again = "document.querySelector('dialog[open] button').click();"
    again += "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'r', bubbles: true}))"
    page.run(again)
    page.answer("Requeue 2")
    page.see("2 dead letters requeued", "#notice")
    assert page.has_rows("Dead letters", len(FAILING) - 2) == letters[2:]
    page.press("j", "p")
    page.see("Purge 1 dead letter of orders?", "dialog[open]")
    page.answer("Purge 1")
    page.see("1 dead letter purged", "#notice")
    assert page.has_rows("Dead letters", len(FAILING) - 3) == letters[3:]
    page.button("Requeue all").click()
    page.one("dialog[open] input[value=channel]").click()
    page.answer("Requeue 1")
    page.see("No dead letters")
    page.open(own.url, "#/channels/orders")
    page.see("End offset")
    # Three of them were handled anew, and that went well.
    wait_for(lambda: page.text("#warnings") == "", "no warnings")


# -- outage, login


def test_says_that_the_server_is_gone_and_comes_back(
    page: Page, serve: Callable[..., Server]
) -> None:
    own = serve()
    page.allowed.append("ERR_CONNECTION_|ERR_EMPTY_RESPONSE")
    page.open(own.url)
    page.see("orders")
    own.stop()
    page.see("does not answer", "#outage")
    page.see("What is shown is from", "#outage")
    assert page.text("#state") == "no answer"
    assert page.driver.title.startswith("no answer")
    assert page.rows("Channels") == ["orders"]
    page.shoot("outage-light")
    page.prefer("dark")
    page.shoot("outage-dark")
    own.start()
    wait_for(lambda: page.text("#outage") == "", "the end of the outage")
    assert page.text("#state") == "live"


def test_asks_for_the_token(page: Page, serve: Callable[..., Server]) -> None:
    page.allowed.append("401")
    page.open(serve("--token", "an open secret").url)
    page.see("Token", "dialog[open]")
    assert page.rows("Channels") == []
    page.write("[name=token]", "a guess" + Keys.ENTER)
    page.see("that is not the token", "#login .problem")
    page.shoot("login")
    page.write("[name=token]", "an open secret" + Keys.ENTER)
    page.see("orders")
    assert page.all("dialog[open]") == []
    page.driver.refresh()
    page.see("orders")
    page.button("Log out").click()
    page.see("Token", "dialog[open]")
    assert page.rows("Channels") == []


# -- with the keyboard, on a phone


def test_obeys_the_keyboard(page: Page, quiet: Server) -> None:
    page.open(quiet.url)
    page.see("orders")
    page.press("?")
    page.see("filter", "dialog[open]")
    page.shoot("keys")
    page.press(Keys.ESCAPE)
    wait_for(lambda: not page.all("dialog[open]"), "the keys to go")
    page.press("j")
    assert page.focused_row() == "orders"
    page.press("j")
    assert page.focused_row() == "orders/billing"
    page.press("k", Keys.ENTER)
    page.see("End offset")
    page.press("2")
    page.has_rows("Messages", 100)
    page.press("/", "customer 1", Keys.ESCAPE, "3")
    letters = page.has_rows("Dead letters", len(FAILING))
    page.press("j")
    assert page.focused_row() == letters[0]
    page.press("r")
    page.see("Requeue 1", "dialog[open]")
    page.press(Keys.ESCAPE, Keys.ESCAPE)
    page.see("End offset")
    page.press(Keys.ESCAPE)
    wait_for(lambda: page.rows("Channels"), "the overview")


def test_keeps_the_focus_while_figures_change(page: Page, busy: Server) -> None:
    page.open(busy.url)
    wait_for(lambda: "orders" in page.rows("Channels"), "channels")
    page.press("j", "j")
    focused = page.focused_row()
    assert focused is not None
    before = page.text("#main tr[data-row=metrics]")
    wait_for(lambda: page.text("#main tr[data-row=metrics]") != before, "other figures")
    assert page.focused_row() == focused


@pytest.mark.parametrize("place", ["#/", "#/channels/orders", MESSAGES, DEAD_LETTERS])
def test_fits_on_a_phone(page: Page, quiet: Server, place: str) -> None:
    page.resize(PHONE)
    page.open(quiet.url, place)
    wait_for(lambda: page.all("tr[data-row]"), "rows")
    if place in (MESSAGES, DEAD_LETTERS):
        page.press("k", Keys.ENTER)
        wait_for(lambda: page.all("main pre"), "what is in a row")
    width = page.run("return document.documentElement.scrollWidth")
    assert width <= PHONE[0]
    beyond = "return [...document.querySelectorAll('main *, header *')].filter((each) => "
    beyond += "each.getClientRects().length && !each.closest('pre, .u-wrap, .hidden') && "
    beyond += "each.getBoundingClientRect().right > arguments[0] + 1).map((each) => each.outerHTML)"
    assert page.run(beyond, PHONE[0]) == []
    page.shoot("phone-" + (place.rpartition("/")[2] or "overview"))


# -- for those who do not see it


@pytest.mark.parametrize("place", ["#/", "#/channels/orders", MESSAGES, DEAD_LETTERS])
def test_everything_has_a_name(page: Page, quiet: Server, place: str) -> None:
    page.open(quiet.url, place)
    wait_for(lambda: page.all("tr[data-row]"), "rows")
    assert page.all("th:not([scope]), table:not(:has(> caption))") == []
    # One row is like the other.
    for control in page.all(":is(button, input, a):not(tr ~ tr *)"):
        assert not control.is_displayed() or control.accessible_name, control.get_attribute("id")
    for region in ("#warnings[aria-live]", "#outage[role=alert]", "#notice[role=status]"):
        assert page.all(region)


# -- its parts


def test_what_would_not_be_seen_is_escaped(page: Page, quiet: Server) -> None:
    page.open(quiet.url)
    script = """
        const [done] = [...arguments].slice(-1);
        import("./static/dom.js").then(({ visible }) => done([
            visible("a\\u0000\\u202e\\u2066\\u200b\\u{e0041}\\ud800 é ✓\\n"),
            visible("a\\nb", "\\n"),
        ]))"""
    escaped, kept = page.driver.execute_async_script(script)
    assert escaped == "a\\u0000\\u202e\\u2066\\u200b\\u{e0041}\\ud800 é ✓\\u000a"
    assert kept == "a\nb"


def test_plots_have_a_gap_where_nothing_was_seen(page: Page, quiet: Server) -> None:
    page.open(quiet.url)
    script = """
        const [done] = [...arguments].slice(-1);
        import("./static/history.js").then(({ History }) => {
            const history = new History();
            for (const time of [100, 102, 104, 130, 132]) {
                history.add({ time, total: [time, 0, 0], channels: {} });
            }
            done(history.series(null, "messages_per_s"));
        })"""
    times, values = page.driver.execute_async_script(script)
    assert times == [100, 102, 104, 106, 130, 132]
    assert values == [100, 102, 104, None, 130, 132]


def test_a_warning_is_said_once_and_many_are_folded(page: Page, quiet: Server) -> None:
    page.open(quiet.url)
    page.see("orders", "#warnings")
    script = """
        const [done] = [...arguments].slice(-1);
        import("./static/warnings.js").then(({ showWarnings }) => {
            const list = document.getElementById("warnings");
            const some = (number, lag) => Array.from({ length: number }, (_, index) => ({
                kind: "lag", level: index ? "warning" : "error", channel: `c${index}`,
                text: `billing is ${lag} bytes behind` }));
            showWarnings(some(8, 1000));
            const first = list.firstElementChild;
            showWarnings(some(8, 2000));
            const same = first === list.firstElementChild && first.textContent;
            const folded = list.children.length;
            list.querySelector("button").click();
            done([same, folded, list.children.length]);
        })"""
    said, folded, unfolded = page.driver.execute_async_script(script)
    assert said == "Error c0: billing is 2000 bytes behind"
    assert (folded, unfolded) == (6, 9)


def test_a_row_that_moves_keeps_the_focus(page: Page, quiet: Server) -> None:
    page.open(quiet.url)
    script = """
        const [done] = [...arguments].slice(-1);
        import("./static/table.js").then(({ Table }) => {
            const lag = { label: "Lag", className: "number", compare: (row) => row.lag,
                text: (row) => String(row.lag) };
            const key = (row) => row.name;
            const table = new Table({ caption: "", columns: [lag], key, sort: { label: "Lag" } });
            document.body.append(table.element);
            table.update([{ name: "a", lag: 3 }, { name: "b", lag: 2 }, { name: "c", lag: null }]);
            const order = () => [...table.element.querySelectorAll("[data-row]")]
                .map((row) => row.dataset.row).join("");
            const before = order();
            table.element.querySelector("[data-row=b]").focus();
            table.update([{ name: "a", lag: 3 }, { name: "b", lag: 4 }, { name: "c", lag: null }]);
            done([before, order(), document.activeElement.dataset.row]);
        })"""
    assert page.driver.execute_async_script(script) == ["abc", "bac", "b"]
