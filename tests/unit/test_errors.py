"""The tree of exceptions, which callers catch by."""

from __future__ import annotations

import inspect

import pytest

import keyop.errors
from keyop.errors import (
    ConfigError,
    KeyopError,
    MessengerClosedError,
    ProtocolError,
    PublishTimeoutError,
    RetryLater,
)

# Each error and what else it is, as the documented surface has it.
TREE = {
    "ConfigError": (ValueError,),
    "InvalidChannelNameError": (ValueError,),
    "ReservedChannelNameError": (keyop.errors.InvalidChannelNameError,),
    "InvalidSubscriberIdError": (ValueError,),
    "PayloadTypeAlreadyRegisteredError": (),
    "PayloadError": (),
    "RecordTooLargeError": (),
    "MessengerClosedError": (),
    "ForkedError": (),
    "WrongThreadError": (RuntimeError,),
    "SubscriberInUseError": (),
    "PublishTimeoutError": (TimeoutError,),
    "StorageError": (),
    "LogFailedError": (keyop.errors.StorageError,),
    "OffsetError": (keyop.errors.StorageError,),
    "CorruptRecordError": (keyop.errors.StorageError,),
    "ProtocolError": (),
    "HandshakeRejectedError": (),
    "ConnectionLostError": (),
    "EphemeralClosedError": (),
}


def test_nothing_is_missing_from_the_tree() -> None:
    """Every error of the module is in the table above and has an end in Error."""
    made = {
        name
        for name, value in vars(keyop.errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert made == {*TREE, "KeyopError", "RetryLater"}


@pytest.mark.parametrize("name", TREE)
def test_every_error_can_be_caught_as_what_it_is(name: str) -> None:
    """All are KeyopErrors; some are a built-in error too, or a kind of another."""
    error = getattr(keyop.errors, name)
    assert issubclass(error, (KeyopError, *TREE[name]))
    assert issubclass(error, KeyopError)
    for kind in TREE[name]:
        assert issubclass(error, kind)


def test_the_docstring_draws_every_error() -> None:
    """The tree that people read has all of them."""
    for name in TREE:
        assert name in (keyop.errors.__doc__ or "")


def test_retry_later_is_no_failure() -> None:
    """Catching KeyopError in a handler does not swallow it."""
    assert not issubclass(RetryLater, KeyopError)
    assert RetryLater().delay_s is None
    assert RetryLater(0).delay_s == 0


@pytest.mark.parametrize("error", [MessengerClosedError, PublishTimeoutError])
def test_written_says_what_is_in_the_log(error: type[PublishTimeoutError]) -> None:
    """It is False unless said otherwise, and a number for a batch."""
    assert error("text").written is False
    assert error("text", True).written is True
    assert error("text", 3).written == 3
    assert str(error("text", 3)) == "text"


def test_one_problem_is_one_line() -> None:
    """A single problem, given as text or in a list, reads as one sentence."""
    assert (
        str(ConfigError("a: wrong")) == str(ConfigError(["a: wrong"])) == "configuration: a: wrong"
    )
    assert ConfigError("a: wrong").problems == ["a: wrong"]


def test_every_problem_is_listed() -> None:
    """Several problems come at once, each on a line, with where they were found."""
    error = ConfigError(["a: wrong", "b: wrong"], "app.yaml")
    assert str(error) == "app.yaml: 2 problems\n  a: wrong\n  b: wrong"
    assert (error.problems, error.source) == (["a: wrong", "b: wrong"], "app.yaml")


def test_a_protocol_error_carries_the_close_code() -> None:
    """Without one, it is 1002, protocol error."""
    assert ProtocolError("x").code == 1002
    assert ProtocolError("x", 1009).code == 1009
