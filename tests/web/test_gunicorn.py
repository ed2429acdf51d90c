"""keyop in web applications under a real gunicorn with gevent workers."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool

from keyop import Messenger, MessengerClosedError
from keyop.testing import drain
from keyop.web import event_stream
from keyop.web.gunicorn import post_fork, worker_exit
from tests.integration.helpers import records, stored_offset

from .gunicorns import CUT, PATIENCE_S, ROOT, Gunicorn, alive, holder, wait_for

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytest.importorskip("gunicorn", reason="gunicorn is not installed")
pytest.importorskip("flask", reason="Flask is not installed")

APPS = Path(__file__).parent / "apps"
DOCUMENT = ROOT / "docs" / "embedding.md"
JSON = {"Content-Type": "application/json"}
SUBSCRIBE = 'messenger.subscribe("orders", "billing", bill, start="earliest", standby=True)\n'
ORDERS = 2000
CUSTOMERS = 16
CONCURRENCY = 8
IN_ORDER = f'concurrency={CONCURRENCY}, key=lambda order: order.payload["customer"]'
PRELOADED = """
def post_worker_init(worker):
    from plain import bill, messenger
    """


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., Gunicorn]:
    """Starts the Flask application with the configuration that is printed beside it."""
    (tmp_path / "shop.py").write_text((APPS / "shop.py").read_text())
    (tmp_path / "gunicorn.conf.py").write_text((APPS / "shop_conf.py").read_text())
    return lambda *arguments: Gunicorn(tmp_path, *arguments, "shop:app")


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., Gunicorn]:
    """Starts the WSGI application, without a configuration unless it is loaded before the fork."""
    text = (APPS / "plain.py").read_text()

    def start(*arguments: str) -> Gunicorn:
        if "--preload" in arguments:
            (tmp_path / "plain.py").write_text(text.removesuffix(SUBSCRIBE))
            (tmp_path / "gunicorn.conf.py").write_text(PRELOADED + SUBSCRIBE)
        else:
            (tmp_path / "plain.py").write_text(text)
        return Gunicorn(tmp_path, "-k", "gevent", *arguments, "plain:application")

    return start


@pytest.fixture
def messenger(tmp_path: Path) -> Iterator[Messenger]:
    with Messenger(data_dir=tmp_path / "keyop-data") as made:
        yield made


def order(number: int, **more: Any) -> bytes:
    return json.dumps({"id": number, **more}).encode()


def send(server: Gunicorn, number: int, **more: Any) -> int:
    """Send an order until it is answered, under one id; return how many times that took."""
    headers = {**JSON, "Idempotency-Key": f"order-{number}"}
    for attempt in range(1, 100):
        assert server.process.poll() is None, server.log
        try:
            answer = server.request("POST", "/orders", order(number, **more), headers)
        except CUT:
            gevent.sleep(0.05)
            continue
        if answer.status == 200:
            return attempt
        assert answer.status == 503, answer
    raise AssertionError(f"order {number} is never answered; {server.log}")


def send_all(server: Gunicorn, numbers: range) -> None:
    """Send orders, some at once, until all are answered."""
    pool = Pool(16)
    try:
        sent = [pool.spawn(send, server, number) for number in numbers]
        gevent.joinall(sent, raise_error=True, timeout=PATIENCE_S)
        assert all(each.ready() for each in sent), server.log
    finally:
        pool.kill()


def orders(data_dir: Path) -> list[int]:
    return [each["payload"]["id"] for each in records(data_dir, "orders")]


def bills(data_dir: Path) -> list[dict[str, int]]:
    return [each["payload"] for each in records(data_dir, "bills")]


def wait_billed(data_dir: Path, count: int) -> None:
    """Wait until so many orders have their bills, and the position of billing says so."""

    def done() -> bool:
        end = sum(each.stat().st_size for each in (data_dir / "channels/orders").glob("*.jsonl"))
        return stored_offset(data_dir, "orders", "billing") == end and len(bills(data_dir)) >= count

    wait_for(done, f"{count} bills")


def wait_holder(data_dir: Path, without: int | None = None) -> int:
    """Wait until a worker runs billing, another than the one given; return its process id."""

    def found() -> int | None:
        pid = holder(data_dir, "orders", "billing")
        return pid if pid != without else None

    return int(wait_for(found, "a worker to run billing"))


# -- what the document shows


@pytest.mark.parametrize("name", ["shop.py", "shop_conf.py", "plain.py"])
def test_the_document_prints_what_runs_here(name: str) -> None:
    """Each application is a block of the document, to the letter."""
    assert f"```python\n{(APPS / name).read_text()}```\n" in DOCUMENT.read_text("utf-8")


def printed(language: str) -> list[str]:
    """Return the blocks of the document in this language."""
    text = DOCUMENT.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("command", printed("sh"))
def test_the_commands_of_the_document(tmp_path: Path, command: str) -> None:
    """What is typed in there serves, and ends well; so does it with hooks of one's own."""
    program, *arguments = shlex.split(command)
    for name in ("shop.py", "plain.py"):
        (tmp_path / name).write_text((APPS / name).read_text())
    if "shop:app" in arguments:
        (tmp_path / "gunicorn.conf.py").write_text((APPS / "shop_conf.py").read_text())
    else:
        (hooks,) = [each for each in printed("python") if "keyop_hooks" in each]
        (tmp_path / "gunicorn.conf.py").write_text(hooks)
    with Gunicorn(tmp_path, *arguments, program=program) as server:
        server.wait_workers(4)
        send(server, 7)
        wait_billed(tmp_path / "keyop-data", 1)
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert server.log.count("one more") == (0 if "shop:app" in arguments else 4)


def test_the_tests_of_the_document(tmp_path: Path) -> None:
    """They pass under pytest, with the fixture that the package brings."""
    blocks = [each for each in printed("python") if "def test_" in each]
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "keyop.testing", "--rootdir", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


# -- the whole way


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("app", ["shop", "plain"])
def test_subscriptions_run_in_one_worker(
    request: pytest.FixtureRequest, tmp_path: Path, app: str, workers: int, preload: tuple[str, ...]
) -> None:
    """Every worker publishes, one bills; when it is killed, another one goes on.

    Told to end, gunicorn does, well and without complaints.
    """
    data_dir = tmp_path / "keyop-data"
    start = request.getfixturevalue(app)
    with start("-w", str(workers), *preload) as server:
        server.wait_workers(workers)
        send_all(server, range(20))
        first = wait_holder(data_dir)
        wait_billed(data_dir, 20)
        assert {each["by"] for each in bills(data_dir)} == {first}
        os.kill(first, signal.SIGKILL)
        second = wait_holder(data_dir, without=first)
        send_all(server, range(20, 40))
        wait_billed(data_dir, 40)
        assert {each["by"] for each in bills(data_dir)[20:]} == {second}
        server.wait_workers(workers, without={first})
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert not holder(data_dir, "orders", "billing")
    assert sorted(orders(data_dir)) == list(range(40))
    assert sorted(each["order"] for each in bills(data_dir)) == list(range(40))


# -- event streams


class Listener:
    """Follows the bills as a browser does, in a greenlet."""

    def __init__(self, server: Gunicorn, last_event_id: str | None) -> None:
        self.orders: list[int] = []
        self.last_event_id = last_event_id
        self.began = Event()
        self.greenlet = gevent.spawn(self._listen, server)

    def _listen(self, server: Gunicorn) -> None:
        headers = {} if self.last_event_id is None else {"Last-Event-ID": self.last_event_id}
        with server.open("GET", "/bills", headers=headers) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    self.last_event_id = value
                    self.began.set()
                elif name == "data":
                    self.orders.append(json.loads(value)["payload"]["order"])

    def wait(self, orders: list[int]) -> None:
        wait_for(lambda: len(self.orders) >= len(orders), f"{orders}; there are {self.orders}")
        assert self.orders == orders


@contextmanager
def listening(server: Gunicorn, last_event_id: str | None = None) -> Iterator[Listener]:
    listener = Listener(server, last_event_id)
    try:
        assert listener.began.wait(PATIENCE_S), server.log
        yield listener
    finally:
        listener.greenlet.kill()


def test_event_stream(shop: Callable[..., Gunicorn], tmp_path: Path) -> None:
    """It follows live, whichever worker publishes; one that was cut off resumes where it was."""
    data_dir = tmp_path / "keyop-data"
    with shop("-w", "2") as server:
        with listening(server) as listener, listening(server) as other:
            for number in range(5):
                send(server, number)
            listener.wait(list(range(5)))
            other.wait(list(range(5)))
        for number in range(5, 8):
            send(server, number)
        wait_billed(data_dir, 8)
        with listening(server, listener.last_event_id) as resumed:
            resumed.wait([5, 6, 7])
            send(server, 8)
            resumed.wait([5, 6, 7, 8])
            # Told to end, gunicorn does not wait for those who listen.
            assert server.stop() == 0
            resumed.greenlet.get(timeout=PATIENCE_S)
        assert "graceful timeout" not in server.log
        assert "Traceback" not in server.log


def test_event_stream_in_a_browser(
    chrome: Chrome, shop: Callable[..., Gunicorn], tmp_path: Path
) -> None:
    """What the document has for the browser shows bills, also after its worker was killed."""
    (script,) = printed("js")
    with shop("-w", "1") as server:
        (worker,) = server.wait_workers(1)
        send(server, 0)
        wait_billed(tmp_path / "keyop-data", 1)
        chrome.get(f"http://127.0.0.1:{server.port}/keyop/")
        chrome.execute_script(
            "window.seen = []; console.log = (...what) => window.seen.push(what.at(-1));"
            + script.replace("const source", "window.source")
        )

        def shown() -> Any:
            return chrome.execute_script("return window.seen")

        try:
            wait_for(lambda: chrome.execute_script("return source.readyState") == 1, "the stream")
            send(server, 1)
            wait_for(lambda: shown() == [1], "the first bill")
            os.kill(worker, signal.SIGKILL)
            send(server, 2)
            wait_for(lambda: shown() == [1, 2], "the second bill")
        finally:
            chrome.get("about:blank")


# -- ending well


@contextmanager
def slow_request(server: Gunicorn, number: int) -> Iterator[Event]:
    """Send an order of which the last byte comes when the event is set; it is answered well."""
    told, begun = Event(), Event()
    body = order(number)

    def pieces() -> Iterator[bytes]:
        yield body[:-1]
        begun.set()
        told.wait()
        yield body[-1:]

    headers = {**JSON, "Content-Length": str(len(body)), "Idempotency-Key": f"order-{number}"}
    sending = gevent.spawn(server.request, "POST", "/orders", pieces(), headers)
    try:
        assert begun.wait(PATIENCE_S)
        yield told
        answer = sending.get(timeout=PATIENCE_S)
        assert answer.status == 200, answer
    finally:
        sending.kill()


def test_a_worker_that_is_told_to_end(shop: Callable[..., Gunicorn], tmp_path: Path) -> None:
    """Its handler finishes and its position moves over; then it answers what it was asked.

    Streams end at once, so that their browsers go to others.
    """
    data_dir = tmp_path / "keyop-data"
    with shop("-w", "1") as server:
        (worker,) = server.wait_workers(1)
        send(server, 0)
        wait_billed(data_dir, 1)
        with listening(server) as listener, slow_request(server, 1) as told:
            before = stored_offset(data_dir, "orders", "billing")
            send(server, 2, seconds=1.0)
            server.process.send_signal(signal.SIGHUP)  # a new worker first, then SIGTERM
            listener.greenlet.get(timeout=PATIENCE_S)
            assert wait_holder(data_dir, without=worker) in server.wait_workers(2)
            assert stored_offset(data_dir, "orders", "billing") > before
            assert alive(worker)
            told.set()
        wait_billed(data_dir, 3)
        wait_for(lambda: not alive(worker), "the worker to end")
        assert server.stop() == 0
        assert "Traceback" not in server.log
    by = {each["order"]: each["by"] for each in bills(data_dir)}
    assert by[2] == worker
    assert by[1] != worker
    assert sorted(each["order"] for each in bills(data_dir)) == [0, 1, 2]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_a_worker_without_hooks(tmp_path: Path, how: signal.Signals) -> None:
    """A module-level messenger that nobody closes lets its handler finish when the worker ends."""
    text = (APPS / "plain.py").read_text()
    slow = text.replace("    bill = {", "    gevent.sleep(1.5)\n    bill = {")
    (tmp_path / "plain.py").write_text(slow.replace("import json", "import gevent\nimport json"))
    data_dir = tmp_path / "keyop-data"
    with Gunicorn(tmp_path, "-k", "gevent", "plain:application") as server:
        (worker,) = server.wait_workers(1)
        assert wait_holder(data_dir) == worker
        send(server, 0)
        wait_for(lambda: orders(data_dir) == [0], "the order")
        os.kill(worker, how)
        wait_for(lambda: not alive(worker), "the worker to end")
        wait_billed(data_dir, 1)
        assert bills(data_dir) == [{"order": 0, "by": worker}]
        server.wait_workers(1, without={worker})
        assert server.stop() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "options", [(), ("--max-requests", "40", "--max-requests-jitter", "20")], ids=["SIGHUP", "max"]
)
def test_workers_that_are_replaced(
    shop: Callable[..., Gunicorn], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Nothing is lost or billed twice when gunicorn reloads, or a worker has served enough."""
    data_dir = tmp_path / "keyop-data"
    with shop("-w", "2", *options) as server:
        first = server.wait_workers(2)
        send(server, 0, seconds=1.0)
        sending = gevent.spawn(send_all, server, range(1, 200))
        try:
            if not options:
                server.process.send_signal(signal.SIGHUP)
            sending.get()
            server.wait_workers(2, without=first)
        finally:
            sending.kill()
        wait_billed(data_dir, 200)
        assert server.stop() == 0
    assert sorted(orders(data_dir)) == list(range(200))
    assert sorted(each["order"] for each in bills(data_dir)) == list(range(200))


# -- killed


@pytest.mark.parametrize("part", range(5))  # 10,000 orders in all
def test_what_was_answered_is_handled_in_order(
    shop: Callable[..., Gunicorn], tmp_path: Path, part: int
) -> None:
    """Orders while a worker is killed every second, each sent again until it is answered.

    Every customer sends one after the other. All are in the log once and all are billed, both in
    the customer's order. Bills may come again when billing was killed: as many as it had at work.
    """
    data_dir = tmp_path / "keyop-data"
    application = tmp_path / "shop.py"
    text = application.read_text()
    keyed = text.replace("standby=True)", f"standby=True, {IN_ORDER})")
    assert keyed != text
    application.write_text(keyed)
    sent = [list(range(customer, ORDERS, CUSTOMERS)) for customer in range(CUSTOMERS)]

    def send_in_turn(server: Gunicorn, customer: int) -> None:
        for number in sent[customer]:
            send(server, number, customer=customer, seconds=number % 3 / 1000)

    with shop("-w", "4", *(["--preload"] if part % 2 else [])) as server:
        server.wait_workers(4)
        sending = [gevent.spawn(send_in_turn, server, customer) for customer in range(CUSTOMERS)]
        try:
            kills = kill_every_second(server, data_dir, sending)
        finally:
            gevent.killall(sending)
        gevent.joinall(sending, raise_error=True)
        assert kills, "the orders were all answered within a second"
        wait_billed(data_dir, ORDERS)
        assert server.stop() == 0
    assert by_customer(orders(data_dir)) == sent
    billed = [each["order"] for each in bills(data_dir)]
    assert by_customer(dict.fromkeys(billed)) == sent  # the first bill of each
    assert len(billed) - ORDERS <= kills * CONCURRENCY


def kill_every_second(
    server: Gunicorn, data_dir: Path, sending: list[gevent.Greenlet[..., None]]
) -> int:
    """Kill a worker, the one that bills every other time, while there is sending; count them."""
    kills = 0
    deadline = time.monotonic() + PATIENCE_S
    while len(gevent.joinall(sending, timeout=1.0)) < len(sending):
        assert time.monotonic() < deadline, server.log
        pid = holder(data_dir, "orders", "billing") if kills % 2 else None
        pid = pid or next(iter(server.workers), None)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            kills += 1
    return kills


def by_customer(numbers: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(CUSTOMERS)]
    for number in numbers:
        found[number % CUSTOMERS].append(number)
    return found


# -- before the fork


def test_subscribing_before_the_fork(tmp_path: Path) -> None:
    """With --preload, a module that subscribes starts in the master: workers say what to do."""
    (tmp_path / "plain.py").write_text((APPS / "plain.py").read_text())
    with Gunicorn(tmp_path, "-k", "gevent", "--preload", "plain:application") as server:
        (worker,) = server.wait_workers(1)
        answer = server.request("POST", "/", order(1))
        assert answer.status == 500
        said = re.search(r"ForkedError: .*", server.log)
        assert said is not None
        for what in (str(server.process.pid), str(worker), "--preload", "post_worker_init"):
            assert what in said[0]
        assert holder(tmp_path / "keyop-data", "orders", "billing") == server.process.pid
        assert server.stop() == 0


# -- the operator's page


def test_page_below_a_path(shop: Callable[..., Gunicorn]) -> None:
    """The page is there, beside the application, and asks for its token."""
    with shop("-w", "1") as server:
        page = server.request("GET", "/keyop/")
        assert page.status == 200
        assert page.headers["Content-Type"].startswith("text/html")
        assert server.request("GET", "/keyop").headers["Location"] == "/keyop/"
        assert json.loads(server.request("GET", "/keyop/healthz").body)["ready"] is True
        overview = "/keyop/api/v1/overview"
        assert server.request("GET", overview).status == 401
        token = {"Authorization": "Bearer a-secret-of-your-own"}
        assert server.request("GET", overview, headers=token).status == 200
        assert server.request("GET", "/nowhere").status == 404


# -- the hooks, by hand


class FakeWorker:
    """What the hooks ask of a worker."""

    def __init__(self, pid: int, **settings: float) -> None:
        self.pid = pid
        self.alive = True
        self.cfg = SimpleNamespace(**{"graceful_timeout": 30, "timeout": 30, **settings})


FakeWorker.__module__ = "gunicorn.workers.ggevent"


def test_worker_exit_in_the_master(messenger: Messenger) -> None:
    """The master calls it for a worker that has gone: its own messengers go on."""
    worker_exit(None, FakeWorker(os.getpid() + 1))
    messenger.publish("orders", "t", 1)


@pytest.mark.parametrize("timeout", [0, 1, 30])
def test_worker_exit_ends_in_time(messenger: Messenger, timeout: float) -> None:
    """It closes; a handler that does not end is killed, within gunicorn's patience."""
    begun = Event()

    def never_ends(message: Any) -> None:
        begun.set()
        gevent.sleep(PATIENCE_S)

    messenger.subscribe("orders", "billing", never_ends)
    messenger.publish("orders", "t", 1)
    assert begun.wait(PATIENCE_S)
    worker = FakeWorker(os.getpid(), graceful_timeout=1, timeout=timeout)
    with gevent.Timeout(PATIENCE_S / 2):
        worker_exit(None, worker)
    with pytest.raises(MessengerClosedError):
        messenger.publish("orders", "t", 1)


def test_other_workers_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Without gevent, greenlets never run: that is said once, where gunicorn logs."""
    sync = SimpleNamespace(alive=False)
    post_fork(SimpleNamespace(log=logging.getLogger("gunicorn")), sync)
    assert "-k gevent" in caplog.text


def test_stopping_delivery(messenger: Messenger) -> None:
    """Handlers finish, streams end, nothing new begins; publishing goes on."""
    begun, told = Event(), Event()

    def handle(message: Any) -> None:
        begun.set()
        told.wait()
        messenger.publish("bills", "t", message.payload)

    subscription = messenger.subscribe("orders", "billing", handle)
    events = event_stream(messenger, "bills")
    next(events)
    waiting = gevent.spawn(list, events)
    gevent.idle()
    messenger.publish("orders", "t", 1)
    messenger.publish("orders", "t", 2)
    assert begun.wait(PATIENCE_S)
    assert messenger.stop_delivering() is False
    assert waiting.get(timeout=PATIENCE_S) == []
    for refused in (
        lambda: messenger.subscribe("orders", "another", handle),
        lambda: messenger.follow("orders"),
    ):
        with pytest.raises(MessengerClosedError):
            refused()
    told.set()
    assert messenger.stop_delivering(timeout=PATIENCE_S) is True
    messenger.publish("orders", "t", 3)
    assert not subscription.running
    # The first message is done with, and the second comes again.
    data_dir = Path(messenger.config.storage.data_dir)
    seen = []
    with Messenger(data_dir=data_dir) as another:
        another.subscribe("orders", "billing", seen.append)
        drain(another)
    assert [message.payload for message in seen] == [2, 3]
    assert [each["payload"] for each in records(data_dir, "bills")] == [1]


def test_stopping_delivery_from_a_handler(messenger: Messenger) -> None:
    """It does not wait for the handler that calls it."""
    said: list[bool] = []
    subscription = messenger.subscribe(
        "orders", "billing", lambda message: said.append(messenger.stop_delivering(timeout=60))
    )
    messenger.publish("orders", "t", 1)
    assert subscription.join(PATIENCE_S)
    assert said == [False]
