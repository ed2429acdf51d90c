"""Who waits for a channel to grow."""

from __future__ import annotations

from gevent.event import Event

from keyop.storage.readers import Readers


def test_wakes_everybody() -> None:
    """All readers look; one that has left does not."""
    readers, events = Readers(), [Event() for _ in range(3)]
    readers.events.update(events)
    readers.events.discard(events[2])
    readers.wake()
    assert [event.is_set() for event in events] == [True, True, False]


def test_nobody_waits() -> None:
    """Waking nobody is fine."""
    Readers().wake()
