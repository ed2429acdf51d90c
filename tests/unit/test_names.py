"""The one validator of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyop.errors import (
    InvalidChannelNameError,
    InvalidSubscriberIdError,
    ReservedChannelNameError,
)
from keyop.names import (
    check_channel,
    check_publish_channel,
    check_subscriber_id,
    dead_letter_channel,
    instance_name_fault,
    is_dead_letter,
)

GOOD = ["a", "0", "-", "_", "...", ".a", "a.", "a.b-c_D9", "CON", ".lock", "a.jsonl"]
BAD = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "../a",
    "a\\b",
    "a b",
    "a\n",
    "\na",
    "a\0",
    "é",
    "ａ",
    "٣",
    "a:b",
    "a*",
    "%2e",
    "\ud800",
]
NOT_TEXT: list[Any] = [None, 5, b"a", ["a"], {}, True]


def check_instance(name: object) -> object:
    fault = instance_name_fault(name)
    if fault is not None:
        raise LookupError(fault)
    return name


CHECKS: list[tuple[Callable[[object], object], type[Exception]]] = [
    (check_channel, InvalidChannelNameError),
    (check_publish_channel, InvalidChannelNameError),
    (check_subscriber_id, InvalidSubscriberIdError),
    (check_instance, LookupError),
]
each_check = pytest.mark.parametrize(("check", "error"), CHECKS)


@each_check
@pytest.mark.parametrize("name", GOOD)
def test_good_names(check: Callable[[object], object], error: type[Exception], name: str) -> None:
    """Letters, digits, dot, dash and underscore are allowed anywhere, and come back as given."""
    assert check(name) == name


@each_check
@pytest.mark.parametrize("name", BAD)
def test_bad_names(check: Callable[[object], object], error: type[Exception], name: str) -> None:
    """Nothing else is, and neither are the directories' own names."""
    if check is check_instance and name == "a:b":
        pytest.skip("an instance name may hold a colon")
    with pytest.raises(error):
        check(name)


@each_check
@pytest.mark.parametrize("name", NOT_TEXT)
def test_what_is_not_text(
    check: Callable[[object], object], error: type[Exception], name: object
) -> None:
    """Another type, hashable or not, is the same error, naming the type."""
    with pytest.raises(error, match=type(name).__name__):
        check(name)


def test_an_instance_name_may_hold_a_colon() -> None:
    """Unlike channels and ids."""
    assert instance_name_fault("host:8080") is None


@pytest.mark.parametrize(
    ("check", "longest"),
    [
        (check_channel, 243),
        (check_publish_channel, 243),
        (check_subscriber_id, 237),
        (check_instance, 237),
    ],
)
def test_the_longest_name(check: Callable[[object], object], longest: int) -> None:
    """The longest file name made from it still fits; one character more does not."""
    assert check("x" * longest) == "x" * longest
    with pytest.raises((ValueError, LookupError), match=str(longest)):
        check("x" * (longest + 1))


def test_the_longest_file_names_fit() -> None:
    """255 bytes is what a file system takes."""
    assert len(dead_letter_channel("x" * 243)) == 255
    assert len(f"fedout-{'x' * 237}.offset.tmp") == 255


def test_the_dead_letters_of_the_longest_channel_can_be_read() -> None:
    """A dead-letter channel may be as long as the file system allows, and no longer."""
    name = dead_letter_channel("x" * 243)
    assert check_channel(name) == name
    with pytest.raises(InvalidChannelNameError):
        check_channel("x" + name)


def test_an_endless_name_makes_a_short_error() -> None:
    """The text of an error is bounded."""
    with pytest.raises(InvalidChannelNameError) as caught:
        check_channel("x" * 10**6)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("channel", ["orders.dead-letter", ".dead-letter"])
def test_dead_letter_channels_are_reserved(channel: str) -> None:
    """They can be read and not published to."""
    assert is_dead_letter(channel)
    assert check_channel(channel) == channel
    with pytest.raises(ReservedChannelNameError):
        check_publish_channel(channel)


def test_only_the_suffix_makes_a_dead_letter_channel() -> None:
    """A name that merely holds the word is an ordinary one."""
    assert not is_dead_letter("a.dead-letter.b")
    assert check_publish_channel("a.dead-letter.b") == "a.dead-letter.b"


@pytest.mark.parametrize("subscriber_id", ["fed-", "fed-hub", "fedout-", "fedout-hub"])
def test_ids_of_peers_are_reserved(subscriber_id: str) -> None:
    """A local subscriber may not take the position of a peer."""
    with pytest.raises(InvalidSubscriberIdError, match="reserved"):
        check_subscriber_id(subscriber_id)


@pytest.mark.parametrize("subscriber_id", ["fed", "fedex", "Fed-x", "fedouts-x"])
def test_other_ids_that_begin_alike(subscriber_id: str) -> None:
    """Only the two prefixes are reserved."""
    assert check_subscriber_id(subscriber_id) == subscriber_id


@settings(max_examples=100)
@given(st.text(max_size=300))
def test_no_name_leaves_its_directory(name: str) -> None:
    """Whatever text is given, an accepted one is a plain file name."""
    for check, error in CHECKS:
        try:
            check(name)
        except error:
            continue
        assert "/" not in name
        assert "\0" not in name
        assert name not in ("", ".", "..")
        assert name.isascii()
        assert len(name) <= 255
