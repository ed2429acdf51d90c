"""What was recorded of v0.11.0: its framing, its control messages, its conversations."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("KEYOP_GOLDEN") or ROOT.parent / "shared" / "golden")

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the recorded v0.11.0 data is not there (set KEYOP_GOLDEN)"
)


def lines(name: str) -> list[dict[str, Any]]:
    """Return the objects of a recorded file; none where the recordings are not there."""
    path = GOLDEN / name
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def cases(
    name: str, wanted: Callable[[dict[str, Any]], bool] = lambda case: True
) -> pytest.MarkDecorator:
    """Run a test with each object of a recorded file; skipped once where there is none."""
    found = [case for case in lines(name) if wanted(case)]
    skip = pytest.mark.skip(reason="the recorded v0.11.0 data is not there (set KEYOP_GOLDEN)")
    return pytest.mark.parametrize(
        "case",
        found or [pytest.param({}, marks=skip)],
        ids=lambda case: str(case.get("case") or case.get("hex") or case.get("json") or "")[:30],
    )


class Frame(NamedTuple):
    """One frame of a conversation, unmasked."""

    from_client: bool
    fin: bool
    opcode: int
    payload: bytes


CONVERSATIONS = sorted(path.name for path in (GOLDEN / "wire").glob("*.jsonl"))
each_conversation = pytest.mark.parametrize(
    "conversation",
    CONVERSATIONS
    or [pytest.param("", marks=pytest.mark.skip(reason="the recorded v0.11.0 data is not there"))],
)


def frames(conversation: str) -> list[Frame]:
    """Return the frames of a recorded conversation, in the order in which they were seen."""
    return [
        Frame(
            item["dir"] == "c2s",
            item["fin"],
            item["opcode"],
            base64.b64decode(item["payload_b64"]),
        )
        for item in lines(f"wire/{conversation}")
        if item["kind"] == "frame"
    ]
