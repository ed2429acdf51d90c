"""All that is fuzzed, and what helps to do it well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from . import words
from .words import Words

Feed = Callable[[bytes], None]


class Target(NamedTuple):
    """Something that takes bytes from outside.

    Attributes:
        where: the module here and the function. It takes the bytes; or a directory of its own,
            and is a context that gives what takes the bytes.
        max_bytes: longer inputs reach nothing more.
        words: what inputs are made of.
        covers: modules and packages whose coverage guides.
        needs_directory: which of the two the function is.
        mend_with: the module and the function for :meth:`mend`.
    """

    where: str
    max_bytes: int
    words: Words
    covers: tuple[str, ...]
    needs_directory: bool = False
    mend_with: str = ""

    def mend(self, data: bytes) -> bytes:
        """Return damaged bytes with what nobody gets right by chance: checksums, lengths."""
        mended: bytes = _find(self.mend_with)(data) if self.mend_with else data
        return mended

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Feed]:
        """Give what takes the bytes, on a directory of its own that is there and empty.

        It returns, whatever the bytes are, unless something is wrong.
        """
        function = _find(self.where)
        if not self.needs_directory:
            yield function
            return
        with function(directory) as feed:
            yield feed


def _find(where: str) -> Any:
    # When it is needed: some take a second, and a fuzzer has to see what is loaded.
    module, _, name = where.partition(".")
    return getattr(import_module(f"{__package__}.{module}"), name)


_FRAMING = ("keyop.transport", "geventwebsocket")
_RECORDS = ("keyop.decode", "keyop.envelope", "keyop.rawjson", "keyop.salvage", "keyop.timestamps")
_ADMISSION = (*_RECORDS, "keyop.federation.admission", "keyop.names", "keyop.look.records")
_LOOKING = (*_RECORDS, "keyop.web", "keyop.look", "keyop.deadletters", "keyop.deadletter_view")
_CHANGING = ("keyop.requeue", "keyop.done")

TARGETS = {
    "frames": Target("frames.frames", 4096, words.FRAMES, _FRAMING),
    "handshake": Target("wire.handshake", 4096, words.HELLOS, ("keyop.wire", "keyop.names")),
    "batch": Target(
        "wire.batch", 4096, words.RECORDS, ("keyop.wire", *_ADMISSION), False, "wire.mended"
    ),
    "record": Target("records.records", 4096, words.RECORDS, _ADMISSION, False, "records.mended"),
    "offset": Target(
        "offsets.offsets",
        64,
        words.OFFSETS,
        ("keyop.storage", "keyop.checking"),
        True,
    ),
    "segment": Target(
        "segments.segments",
        4096,
        words.RECORDS,
        (*_RECORDS, "keyop.storage", "keyop.delivery", "keyop.deadletter", "keyop.look.records"),
        True,
        "records.mended",
    ),
    "config": Target(
        "configs.configs",
        1200,
        words.YAML,
        (
            *("keyop.config", "keyop.config_yaml", "keyop.config_rules", "keyop.config_schema"),
            *("keyop.config_federation", "keyop.names", "yaml"),
        ),
        True,
    ),
    "upgrade": Target(
        "upgrades.upgrades",
        20_000,
        words.HTTP,
        (*_FRAMING, "gevent.pywsgi", "http.client", "email.feedparser", "email.message"),
        True,
    ),
    "link": Target(
        "links.links",
        4096,
        words.RECORDS,
        (*_FRAMING, *_ADMISSION, "keyop.wire", "keyop.federation"),
        True,
        "links.mended",
    ),
    "page": Target("pages.pages", 4096, words.PAGE, (*_LOOKING, *_CHANGING, "urllib.parse"), True),
    "letters": Target(
        "pages.letters", 3000, words.RECORDS, (*_LOOKING, *_CHANGING), True, "records.mended"
    ),
}
