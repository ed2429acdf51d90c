"""A hub in a process of its own, how it is reached, and what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keyop.keygen import ensure_development_certificates
from keyop.transport.contexts import SERVER_AUTH, Credentials
from keyop.transport.tls import TLSSocket

from .children import Child

HUB = "hub"


class HubChild:
    """Runs from the first moment to the end of the ``with`` block.

    Args:
        peers: names that have a certificate and are allowed.
        hub: more keys of the section ``hub``.
    """

    def __init__(self, directory: Path, peers: Iterable[str], **hub: Any) -> None:
        peers = list(peers)
        self.data_dir = directory / "data"
        self._files = ensure_development_certificates(str(directory / "certs"), [HUB, *peers])
        settings = {
            "name": HUB,
            "storage": {"data_dir": str(self.data_dir)},
            "tls": self.tls(HUB),
            "hub": {
                "enabled": True,
                "listen_addr": "127.0.0.1:0",
                "allowed_peers": [{"name": name} for name in peers],
                **hub,
            },
        }
        self.child = Child("instance", directory, settings=settings)
        try:
            self.child.wait_spoken()
        except BaseException:
            self.child.kill()
            raise
        self.address = self.child.new_lines()[0].split()[1]

    def tls(self, name: str) -> dict[str, str]:
        """Return the TLS files of an instance, as in a configuration."""
        own = self._files.instances[name]
        return {"cert": own.cert, "key": own.key, "ca": self._files.ca.cert}

    def securing(self, name: str) -> Any:
        """Return what puts TLS around a socket that is connected to the hub."""
        return securing(self.tls(name))

    def memory(self) -> int:
        """Return how many bytes it holds."""
        return self._status("VmRSS")

    def forget_peak(self) -> int:
        """Let ``peak`` begin anew; return how many bytes it holds."""
        Path(f"/proc/{self.child.process.pid}/clear_refs").write_text("5")
        return self.memory()

    def peak(self) -> int:
        """Return the most bytes that it has held."""
        return self._status("VmHWM")

    def _status(self, field: str) -> int:
        status = Path(f"/proc/{self.child.process.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) << 10

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.child.process.pid}/fd"))

    def audit(self) -> str:
        """Return the audit log as it is now."""
        path = self.data_dir / "audit" / "audit.jsonl"
        return path.read_text() if path.exists() else ""

    def __enter__(self) -> HubChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()


def securing(tls: dict[str, str]) -> Any:
    """Return what puts TLS around a connected socket, with the files of a client."""
    context = Credentials.load(**tls).context(SERVER_AUTH)

    def secure(plain: Any) -> TLSSocket:
        secured = TLSSocket(context, plain, server_side=False)
        secured.handshake()
        return secured

    return secure
