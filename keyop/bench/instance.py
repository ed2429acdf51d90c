"""The processes of the federation's figures: instances that do what their stdin says."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import gevent
import orjson
from gevent import socket
from gevent.os import tp_read

from keyop.bench.local import PAYLOAD_TYPE, payload
from keyop.config import Config
from keyop.envelope import Message
from keyop.messenger import Messenger
from keyop.storage.segment import list_segments

_LOOK_S = 0.002


class Instance:
    """One instance, and what it can be told to do."""

    def __init__(self, config: Config) -> None:
        self.messenger = Messenger(config)
        self.told: socket.socket

    def start(self) -> dict[str, Any]:
        """Begin; tell where the hub listens."""
        self.messenger.start()
        return {"address": self.messenger.hub_addr, "pid": os.getpid()}

    def connected(self) -> dict[str, Any]:
        """Wait until every hub is connected."""
        federation = self.messenger._federation
        assert federation is not None
        while not all(client.condition.value == "connected" for client in federation.clients):
            gevent.sleep(_LOOK_S)
        return {}

    def publish(self, channel: str, count: int) -> dict[str, Any]:
        """Publish one after the other; tell how long that took."""
        payloads = [payload(number) for number in range(1000)]
        send = self.messenger.publish
        begun = time.time()
        for number in range(count):
            send(channel, PAYLOAD_TYPE, payloads[number % 1000])
        return {"begun": begun, "ended": time.time()}

    def await_bytes(self, channel: str, lines: int) -> dict[str, Any]:
        """Wait until a channel has so many lines; tell when that was."""
        directory = f"{self.messenger.config.storage.data_dir}/channels/{channel}"
        counted = position = 0
        path = ""
        while True:
            try:
                for segment in list_segments(self.messenger._fs, directory):
                    path = f"{directory}/{segment.start:020d}.jsonl"
                    break
            except FileNotFoundError:
                pass
            if path:
                with open(path, "rb") as file:
                    file.seek(position)
                    while data := file.read(1 << 20):
                        counted += data.count(b"\n")
                        position += len(data)
                if counted >= lines:
                    return {"ended": os.stat(path).st_mtime}
            # Seldom: looking takes time from what is measured, and the file tells when it was.
            gevent.sleep(0.05)

    def listen(self) -> dict[str, Any]:
        """Open a socket on which others tell when they have handled a message."""
        self.told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.told.bind(("127.0.0.1", 0))
        return {"port": self.told.getsockname()[1]}

    def handle(self, channel: str, port: int) -> dict[str, Any]:
        """Tell that socket when each message was handled, in nanoseconds."""
        telling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        telling.connect(("127.0.0.1", port))

        def tell(message: Message) -> None:
            telling.send(b"%d" % time.time_ns())

        self.messenger.subscribe(channel, "bench", tell, start="latest")
        return {}

    def one_by_one(self, channel: str, count: int) -> dict[str, Any]:
        """Publish when the one before was handled elsewhere; tell how long each took, in ns."""
        taken = []
        made = payload(0)
        for _ in range(count):
            begun = time.time_ns()
            self.messenger.publish(channel, PAYLOAD_TYPE, made)
            taken.append(int(self.told.recv(64)) - begun)
        return {"taken": taken}

    def usage(self) -> dict[str, Any]:
        """Tell what this process holds and has used."""
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[1])
        return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "cpu": time.process_time()}

    def close(self) -> dict[str, Any]:
        """End."""
        self.messenger.close()
        return {}


def main() -> None:
    """Do what stdin says until it ends."""
    config = Config.from_dict(orjson.loads(sys.argv[1]))
    instance = Instance(config)
    pending = b""
    while data := tp_read(0, 1 << 16):
        pending += data
        *lines, pending = pending.split(b"\n")
        for line in lines:
            name, *args = orjson.loads(line)
            answer = getattr(instance, name)(*args)
            os.write(1, orjson.dumps(answer) + b"\n")
    instance.close()


if __name__ == "__main__":
    main()
