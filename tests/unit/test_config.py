"""The configuration: what is accepted, what it becomes, and how it is refused."""

from __future__ import annotations

import dataclasses
import datetime
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyop import config_yaml
from keyop.config import (
    AllowedPeer,
    ClientConfig,
    ClientHub,
    Config,
    FederationConfig,
    HubConfig,
    StorageConfig,
    SubscribersConfig,
    TLSConfig,
    WebConfig,
    split_address,
)
from keyop.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"

DEFAULTS = {
    "name": "",
    "storage.data_dir": "required",
    "storage.sync_policy": "periodic",
    "storage.sync_interval_ms": 200,
    "storage.offset_flush_interval_ms": 0,
    "storage.compaction_threshold_mb": 256,
    "storage.max_segment_bytes": None,
    "storage.max_record_bytes": 10485760,
    "storage.max_subscriber_lag_mb": 512,
    "storage.max_files": 0,
    "storage.retention": 0,
    "subscribers.max_retries": 5,
    "subscribers.retry_backoff_base_ms": 100,
    "subscribers.retry_backoff_max_ms": 5000,
    "hub.enabled": False,
    "hub.listen_addr": "",
    "hub.allowed_peers": (),
    "hub.deny_by_default": False,
    "hub.max_pending": 128,
    "hub.max_connections": 4096,
    "hub.max_channels_per_peer": 1024,
    "hub.fed_client_offset_ttl": 168 * 3600,
    "client.enabled": False,
    "client.hubs": (),
    "tls.cert": "",
    "tls.key": "",
    "tls.ca": "",
    "tls.crl": "",
    "tls.min_version": "1.3",
    "tls.expiry_warn_days": 30,
    "federation.reconnect_base_ms": 500,
    "federation.reconnect_max_ms": 60000,
    "federation.reconnect_jitter": 0.2,
    "federation.send_buffer_messages": 10000,
    "federation.max_batch_bytes": 65536,
    "federation.window_batches": 8,
    "dedup.seen_id_lru_size": 100000,
    "audit.max_size_mb": 100,
    "audit.max_files": 10,
    "web.listen_addr": "",
    "web.token": "",
}


def leaves(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def nested(key: str, value: Any) -> dict[str, Any]:
    """A mapping with one dotted key, and the one key that is required."""
    section, _, name = key.rpartition(".")
    tree: dict[str, Any] = {"storage": {"data_dir": "d"}}
    (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree


def config_with(key: str, value: Any) -> Any:
    return dict(leaves(Config.from_dict(nested(key, value))))[key]


def problems_of(tree: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(tree)
    return caught.value.problems


def problem_with(key: str, value: Any) -> str:
    problems = problems_of(nested(key, value))
    assert len(problems) == 1, problems
    return problems[0]


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """A function that writes a configuration file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "keyop.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def file_problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    assert caught.value.source == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.problems


class TestDefaults:
    def test_every_documented_key_has_its_documented_default(self) -> None:
        """With only the data directory given, every other key has the documented default."""
        config = Config(storage=StorageConfig(data_dir="required"))
        assert dict(leaves(config)) == DEFAULTS

    def test_peers_and_hubs_have_empty_lists_by_default(self) -> None:
        """An allowed peer and a hub to dial need a name and an address, nothing else."""
        peer, hub = AllowedPeer(name="p"), ClientHub(addr="h:1")
        assert (peer.subscribe, peer.publish) == ((), ())
        assert (hub.name, hub.subscribe, hub.publish) == ("", (), ())

    @pytest.mark.parametrize("key", [key for key in DEFAULTS if key != "storage.data_dir"])
    def test_null_is_the_default(self, key: str) -> None:
        """A key with null in the file, or None in Python, has its default."""
        assert config_with(key, None) == DEFAULTS[key]

    def test_null_sections_are_defaults(self) -> None:
        """A section of which only the heading is left has all its defaults."""
        config = Config.from_dict({"storage": {"data_dir": "required"}, "hub": None, "tls": None})
        assert dict(leaves(config)) == DEFAULTS

    @pytest.mark.parametrize("make", [Config, StorageConfig, lambda: Config.from_dict({})])
    def test_the_data_directory_is_required(self, make: Any) -> None:
        """Without a data directory there is no configuration, however it is made."""
        with pytest.raises(ConfigError, match=r"storage\.data_dir: '' is not allowed"):
            make()

    def test_a_blank_data_directory_is_none(self) -> None:
        """Blanks do not name a directory."""
        assert "storage.data_dir: '  ' is not allowed" in problem_with("storage.data_dir", "  ")


class TestZero:
    @pytest.mark.parametrize(
        "key",
        [
            "storage.sync_interval_ms",
            "storage.offset_flush_interval_ms",
            "storage.max_subscriber_lag_mb",
            "storage.max_files",
            "storage.retention",
            "subscribers.max_retries",
            "hub.fed_client_offset_ttl",
            "tls.expiry_warn_days",
            "federation.reconnect_base_ms",
            "federation.reconnect_max_ms",
            "federation.reconnect_jitter",
            "federation.send_buffer_messages",
            "federation.max_batch_bytes",
            "dedup.seen_id_lru_size",
            "audit.max_size_mb",
            "audit.max_files",
        ],
    )
    def test_zero_stays_zero(self, key: str, written: Any) -> None:
        """A 0 that was written is obeyed, never replaced by a default."""
        section, name = key.split(".")
        data_dir = "" if section == "storage" else "storage: {data_dir: d}\n"
        storage = ", data_dir: d" if section == "storage" else ""
        loaded = Config.load(written(f"{data_dir}{section}: {{{name}: 0{storage}}}"))
        assert dict(leaves(loaded))[key] == 0
        assert config_with(key, 0) == 0

    def test_no_backoff_at_all_is_possible(self) -> None:
        """Retries without any wait need both bounds at 0."""
        part = SubscribersConfig(retry_backoff_base_ms=0, retry_backoff_max_ms=0)
        assert (part.retry_backoff_base_ms, part.retry_backoff_max_ms) == (0, 0)

    def test_a_segment_size_of_zero_is_refused(self) -> None:
        """It would put every record into a file of its own; the message says what to write."""
        problem = problem_with("storage.compaction_threshold_mb", 0)
        assert "0 is not allowed" in problem
        assert "storage.max_segment_bytes" in problem

    def test_a_segment_size_of_zero_is_unused_beside_one_in_bytes(self) -> None:
        """max_segment_bytes overrides the threshold, whatever it is."""
        storage = StorageConfig("d", compaction_threshold_mb=0, max_segment_bytes=4096)
        assert storage.segment_bytes == 4096


class TestValues:
    @pytest.mark.parametrize(
        ("written_as", "seconds"),
        [
            ("30m", 1800),
            ("168h", 604800),
            ("7d", 604800),
            ("1h30m", 5400),
            ("1d12h", 129600),
            ("1.5h", 5400),
            (".5s", 0.5),
            ("500ms", 0.5),
            ("250us", 0.00025),
            ("250µs", 0.00025),
            ("250μs", 0.00025),
            ("1000ns", 0.000001),
            (" 5s ", 5),
            ("0", 0),
            ("0s", 0),
            (90, 90),
            (1.5, 1.5),
        ],
    )
    def test_durations_become_seconds(self, written_as: Any, seconds: float) -> None:
        """A duration is a number of seconds, or numbers with units added up."""
        value = config_with("storage.retention", written_as)
        assert value == pytest.approx(seconds)
        assert isinstance(value, float)

    @pytest.mark.parametrize(
        "value",
        [
            "30",
            "1 week",
            "-5m",
            "",
            "h",
            -1,
            True,
            1e300,
            10**400,
            float("nan"),
            [],
            "9" * 400 + "h",
        ],
    )
    def test_other_durations_are_refused(self, value: Any) -> None:
        """A number in quotes needs a unit; nothing is negative, endless or not a number."""
        assert "is not allowed; use seconds, or a duration such as" in problem_with(
            "hub.fed_client_offset_ttl", value
        )

    @pytest.mark.parametrize("value", [-1, 1.0, True, "200", [200], 10**12 + 1])
    def test_counts_are_whole_numbers(self, value: Any) -> None:
        """A truth value, a fraction and a text are no numbers; nor is anything out of bounds."""
        problem = problem_with("storage.sync_interval_ms", value)
        assert problem == (
            f"storage.sync_interval_ms: {value!r} is not allowed; "
            "use a whole number from 0 to 1000000000000"
        )

    @pytest.mark.parametrize(
        ("key", "low", "high"),
        [
            ("storage.max_segment_bytes", 1, 10**12),
            ("storage.max_record_bytes", 64, 2**30),
            ("storage.compaction_threshold_mb", 1, 10**9),
            ("hub.max_pending", 1, 10**12),
            ("federation.window_batches", 1, 1024),
        ],
    )
    def test_bounds_are_allowed_and_what_is_beyond_is_not(
        self, key: str, low: int, high: int
    ) -> None:
        """Sizes and counts that nothing could work with are refused at the bound."""
        assert config_with(key, low) == low
        assert config_with(key, high) == high
        assert f"{key}: {low - 1} is not allowed" in problem_with(key, low - 1)
        assert f"{key}: {high + 1} is not allowed" in problem_with(key, high + 1)

    @pytest.mark.parametrize("value", [0, 1, 0.5])
    def test_jitter_is_a_share(self, value: float) -> None:
        """A jitter from 0 to 1 is taken as a float."""
        assert FederationConfig(reconnect_jitter=value).reconnect_jitter == value

    @pytest.mark.parametrize("value", [-0.1, 1.1, True, "0.2", float("nan")])
    def test_other_jitters_are_refused(self, value: Any) -> None:
        """A jitter outside 0 to 1 is no share."""
        assert "use a number from 0 to 1" in problem_with("federation.reconnect_jitter", value)

    @pytest.mark.parametrize("value", [1, "true", "yes"])
    def test_switches_are_true_or_false(self, value: Any) -> None:
        """Nothing but a truth value switches something on."""
        assert "use true or false" in problem_with("hub.deny_by_default", value)

    @pytest.mark.parametrize("policy", ["none", "periodic", "always"])
    def test_sync_policies(self, policy: str) -> None:
        """The three policies are known."""
        assert config_with("storage.sync_policy", policy) == policy

    @pytest.mark.parametrize("policy", ["Always", "", False, 3])
    def test_other_sync_policies_are_refused(self, policy: Any) -> None:
        """A policy is one of three words."""
        assert problem_with("storage.sync_policy", policy) == (
            f"storage.sync_policy: {policy!r} is not allowed; use one of none, periodic, always"
        )

    @pytest.mark.parametrize("value", ["1.2", "1.3", 1.2, 1.3])
    def test_the_tls_version_may_be_a_number(self, value: Any) -> None:
        """YAML makes a number of an unquoted version; it counts as it is written."""
        assert config_with("tls.min_version", value) == str(value)

    @pytest.mark.parametrize("value", ["1.1", 1.0, 1, "TLS1.3"])
    def test_other_tls_versions_are_refused(self, value: Any) -> None:
        """Older versions of TLS are not spoken."""
        assert "use one of 1.2, 1.3" in problem_with("tls.min_version", value)

    def test_paths_are_kept_as_written(self, tmp_path: Path) -> None:
        """A path stays relative, and a path object becomes text."""
        assert config_with("storage.data_dir", "../data") == "../data"
        assert config_with("storage.data_dir", tmp_path) == str(tmp_path)

    @pytest.mark.parametrize("value", [b"/data", 5, "a\0b", [""]])
    def test_other_paths_are_refused(self, value: Any) -> None:
        """A path is text that a file system can take."""
        assert "use a path" in problem_with("storage.data_dir", value)

    def test_lists_become_tuples(self) -> None:
        """Lists of channels and of peers are tuples, so that nobody changes them."""
        config = Config.from_dict(
            {
                "storage": {"data_dir": "d"},
                "hub": {"allowed_peers": [{"name": "p", "subscribe": ["a", "b"]}]},
            }
        )
        assert config.hub.allowed_peers == (AllowedPeer(name="p", subscribe=("a", "b")),)

    def test_segment_size(self) -> None:
        """Segments have the threshold's MiB, unless a number of bytes overrides it."""
        assert StorageConfig("d").segment_bytes == 256 * 2**20
        assert StorageConfig("d", compaction_threshold_mb=1).segment_bytes == 2**20
        assert StorageConfig("d", max_segment_bytes=5000).segment_bytes == 5000


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "split"),
        [
            ("hub-1.example.org:7740", ("hub-1.example.org", 7740)),
            ("0.0.0.0:0", ("0.0.0.0", 0)),
            (":65535", ("", 65535)),
            ("[::1]:7740", ("::1", 7740)),
        ],
    )
    def test_an_address_is_host_and_port(self, address: str, split: tuple[str, int]) -> None:
        """Brackets belong to the writing of an IPv6 address, not to the host."""
        assert split_address(address) == split
        assert config_with("hub.listen_addr", address) == address

    @pytest.mark.parametrize(
        "address",
        [
            "7740",
            "host",
            "host:",
            "host:65536",
            "host:x",
            "::1:7740",
            "[x]:1",
            "a b:1",
            "[]:1",
            7740,
        ],
    )
    def test_other_addresses_are_refused(self, address: Any) -> None:
        """An address without a port, with a bad one, or with a bare IPv6 host is none."""
        problem = problem_with("hub.listen_addr", address)
        assert f"hub.listen_addr: {address!r} is not allowed; use host:port" in problem

    def test_dialling_needs_a_host(self) -> None:
        """Listening can leave the host out; connecting cannot."""
        problem = problem_with("client.hubs", [{"addr": ":7740"}])
        assert "client.hubs[0].addr: ':7740' is not allowed" in problem

    def test_the_name_for_offset_files(self) -> None:
        """A hub's offset files carry its name, else its address without brackets."""
        assert ClientHub(addr="[::1]:7740").offset_name == "::1:7740"
        assert ClientHub(addr="h:7740", name="hub").offset_name == "hub"
        assert ClientHub().offset_name == ""

    def test_an_address_that_makes_no_file_name_needs_a_name(self) -> None:
        """Without a name, the address goes into file names and must fit there."""
        assert "or set the hub's name beside it" in problem_with(
            "client.hubs", [{"addr": "[fe80::1%eth0]:7740"}]
        )
        assert ClientHub(addr="[fe80::1%eth0]:7740", name="hub").offset_name == "hub"


class TestNames:
    @pytest.mark.parametrize("name", ["billing-host", "host:7741", "a.b_c", "x" * 237])
    def test_instance_names(self, name: str) -> None:
        """An instance name may hold a colon and up to 237 characters."""
        assert config_with("name", name) == name

    @pytest.mark.parametrize("name", ["a b", "..", "../x", "x" * 238, "ü", 5, "a\n"])
    def test_bad_instance_names_are_refused(self, name: Any) -> None:
        """What would not do as part of a file name is no instance name."""
        assert "use 1 to 237 of A-Z" in problem_with("name", name)

    def test_names_in_lists_are_checked_with_their_index(self) -> None:
        """A problem inside a list says which item it is in."""
        problems = problems_of(
            {
                "storage": {"data_dir": "d"},
                "hub": {
                    "allowed_peers": [{"name": "ok"}, {"name": "a/b", "publish": ["x", "../y"]}]
                },
                "client": {"hubs": [{"addr": "h:1", "name": "h h", "subscribe": ["a b"]}]},
            }
        )
        assert [problem.split(": ")[0] for problem in problems] == [
            "hub.allowed_peers[1].name",
            "hub.allowed_peers[1].publish[1]",
            "client.hubs[0].name",
            "client.hubs[0].subscribe[0]",
        ]

    def test_dead_letter_channels_can_be_exchanged(self) -> None:
        """A peer may subscribe to dead letters, and a client may send them when it says so."""
        assert ClientHub(addr="h:1", publish=("orders.dead-letter",)).publish

    def test_an_allowed_peer_needs_a_name(self) -> None:
        """Without a name nobody can be let in."""
        assert "hub.allowed_peers[1].name: '' is not allowed" in problem_with(
            "hub.allowed_peers", [{"name": "a"}, {"subscribe": ["x"]}]
        )
        with pytest.raises(ConfigError, match=r"hub\.allowed_peers\[\]\.name"):
            AllowedPeer()

    def test_nobody_is_listed_twice(self) -> None:
        """Two entries for one peer contradict each other; two for one hub share its position."""
        assert (
            "hub.allowed_peers[2].name: 'a' is taken by hub.allowed_peers[0].name"
            in problem_with("hub.allowed_peers", [{"name": "a"}, {"name": "b"}, {"name": "a"}])
        )
        assert "client.hubs[1].name: 'h:1' is taken by client.hubs[0].addr" in problem_with(
            "client.hubs", [{"addr": "h:1"}, {"addr": "h:2", "name": "h:1"}]
        )


class TestConflicts:
    def test_an_enabled_hub_needs_an_address(self) -> None:
        """Enabling the hub without saying where to listen is a problem; preparing it is not."""
        assert "hub.listen_addr: '' is not allowed while hub.enabled is true" in problem_with(
            "hub.enabled", True
        )
        assert HubConfig(listen_addr=":1").listen_addr == ":1"

    def test_an_enabled_client_needs_addresses(self) -> None:
        """Hubs without an address may stand there as long as the client is off."""
        assert ClientConfig(hubs=(ClientHub(),)).hubs == (ClientHub(),)
        with pytest.raises(ConfigError, match=r"client\.hubs\[1\]\.addr: '' is not allowed while"):
            ClientConfig(enabled=True, hubs=(ClientHub(addr="h:1"), ClientHub()))

    @pytest.mark.parametrize(
        ("files", "missing"), [({"cert": "c"}, "key"), ({"key": "k"}, "cert"), ({"crl": "r"}, "ca")]
    )
    def test_tls_files_that_go_together(self, files: dict[str, str], missing: str) -> None:
        """A certificate and its key go together, and a revocation list goes with its CA."""
        with pytest.raises(ConfigError, match=rf"tls\.{missing}: '' is not allowed while"):
            TLSConfig.from_dict(files)

    @pytest.mark.parametrize("role", ["hub", "client"])
    def test_federation_takes_all_tls_files_or_none(self, role: str) -> None:
        """An instance that connects names certificate, key and CA, or nothing."""
        address = {"listen_addr": ":1"} if role == "hub" else {}
        tree = {"storage": {"data_dir": "d"}, role: {"enabled": True, **address}}
        assert not Config.from_dict(tree).tls.configured
        problems = problems_of({**tree, "tls": {"ca": "a"}})
        assert [problem.split(":")[0] for problem in problems] == ["tls.cert", "tls.key"]
        assert f"while {role}.enabled is true" in problems[0]
        problems = problems_of({**tree, "tls": {"cert": "c", "key": "k"}})
        assert [problem.split(":")[0] for problem in problems] == ["tls.ca"]
        tls = Config.from_dict({**tree, "tls": {"cert": "c", "key": "k", "ca": "a"}}).tls
        assert tls.configured

    def test_one_missing_file_is_one_problem(self) -> None:
        """Hub and client together report a missing CA once."""
        problems = problems_of(
            {
                "storage": {"data_dir": "d"},
                "hub": {"enabled": True, "listen_addr": ":1"},
                "client": {"enabled": True},
                "tls": {"cert": "c", "key": "k"},
            }
        )
        assert len(problems) == 1

    def test_tls_files_alone_are_no_federation(self) -> None:
        """With hub and client off, a certificate only gives the name."""
        assert config_with("tls.ca", "ca.crt") == "ca.crt"

    def test_the_longest_backoff_is_not_below_the_first(self) -> None:
        """The message names the other bound and its value."""
        assert problem_with("subscribers.retry_backoff_base_ms", 6000) == (
            "subscribers.retry_backoff_max_ms: 5000 is not allowed; use at least "
            "subscribers.retry_backoff_base_ms, which is 6000"
        )

    @pytest.mark.parametrize("address", [":80", "0.0.0.0:80", "example.org:80", "[::]:80"])
    def test_a_public_page_needs_a_token(self, address: str) -> None:
        """Where others than this machine can connect, they must know a token."""
        problem = problem_with("web.listen_addr", address)
        assert problem.startswith("web.token: '' is not allowed while web.listen_addr is")
        assert WebConfig(listen_addr=address, token="t").listen_addr == address

    @pytest.mark.parametrize("address", ["127.0.0.1:80", "127.9.9.9:0", "[::1]:80", "localhost:80"])
    def test_a_page_on_loopback_needs_no_token(self, address: str) -> None:
        """On loopback the machine's users are trusted."""
        assert WebConfig(listen_addr=address).token == ""

    def test_values_that_are_wrong_themselves_make_no_conflicts(self) -> None:
        """Nothing is said about how values fit together while one of them is no value."""
        problems = problems_of(
            {
                "storage": {"data_dir": 5},
                "hub": {"enabled": True, "listen_addr": "nowhere", "allowed_peers": [7]},
                "subscribers": {"retry_backoff_base_ms": 6000, "retry_backoff_max_ms": "5"},
                "tls": "none",
            }
        )
        assert [problem.split(": ")[0] for problem in problems] == [
            "storage.data_dir",
            "subscribers.retry_backoff_max_ms",
            "hub.listen_addr",
            "hub.allowed_peers[0]",
            "tls",
        ]


class TestProblems:
    def test_all_problems_are_reported_at_once(self) -> None:
        """One error lists every problem, with key, value and what is allowed."""
        with pytest.raises(ConfigError) as caught:
            Config.from_dict(
                {
                    "storage": {"sync_policy": "often", "max_segment_bytes": 0},
                    "hub": {"max_pending": 0},
                },
                source="app.cfg",
            )
        assert str(caught.value).splitlines() == [
            "app.cfg: 4 problems",
            "  storage.sync_policy: 'often' is not allowed; use one of none, periodic, always",
            "  storage.max_segment_bytes: 0 is not allowed; "
            "use a whole number from 1 to 1000000000000",
            "  storage.data_dir: '' is not allowed; name a directory",
            "  hub.max_pending: 0 is not allowed; use a whole number from 1 to 1000000000000",
        ]

    def test_direct_construction_is_checked_alike(self) -> None:
        """The dataclasses refuse what a file may not say, all problems at once."""
        with pytest.raises(ConfigError) as caught:
            StorageConfig(data_dir="d", sync_interval_ms=-1, max_files=True)
        assert [problem.split(": ")[0] for problem in caught.value.problems] == [
            "storage.sync_interval_ms",
            "storage.max_files",
        ]
        with pytest.raises(ConfigError) as caught:
            Config(name="a b")
        assert [problem.split(": ")[0] for problem in caught.value.problems] == [
            "name",
            "storage.data_dir",
        ]

    def test_direct_construction_converts_alike(self) -> None:
        """Durations and lists given to a dataclass become seconds and tuples."""
        hub: Any = HubConfig
        part = hub(fed_client_offset_ttl="1h", allowed_peers=[{"name": "p", "publish": ["a"]}])
        assert part == HubConfig(
            fed_client_offset_ttl=3600.0, allowed_peers=(AllowedPeer("p", (), ("a",)),)
        )

    def test_a_changed_copy_is_checked(self) -> None:
        """dataclasses.replace makes a checked copy; the original cannot be changed."""
        config = Config(storage=StorageConfig("d"))
        renamed = dataclasses.replace(config, name="other")
        assert (config.name, renamed.name, renamed.storage) == ("", "other", config.storage)
        with pytest.raises(ConfigError):
            dataclasses.replace(config, name="a b")
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.name = "x"  # type: ignore[misc]  # what is tried is that it fails

    def test_an_unknown_key_names_the_nearest(self) -> None:
        """A slip of the pen is pointed out in every section and list."""
        problems = problems_of(
            {
                "storage": {"data_dir": "d", "sync_polcy": "always"},
                "hubs": {},
                "client": {"hubs": [{"address": "h:1"}]},
            }
        )
        assert problems == [
            "hubs: unknown key; did you mean hub?",
            "storage.sync_polcy: unknown key; did you mean sync_policy?",
            "client.hubs[0].address: unknown key; did you mean addr?",
        ]

    def test_an_unknown_key_like_no_other_lists_the_known(self) -> None:
        """Where nothing is near, every known key is named."""
        assert problem_with("dedup.zzz", 1) == (
            "dedup.zzz: unknown key; known are seen_id_lru_size"
        )
        assert problems_of({"storage": {"data_dir": "d", 5: 5}})[0].startswith("storage.5: unknown")

    @pytest.mark.parametrize(
        ("key", "value", "problem"),
        [
            ("hub", [], "hub: a value of type list is not allowed; use a mapping of keys"),
            ("hub", "on", "hub: a value of type str is not allowed; use a mapping of keys"),
            ("hub.allowed_peers", "p", "hub.allowed_peers: 'p' is not allowed; use a list"),
            ("hub.allowed_peers", {"name": "p"}, "hub.allowed_peers: {'name': 'p'} is not allowed"),
            ("hub.allowed_peers", ["p"], "hub.allowed_peers[0]: a value of type str"),
        ],
    )
    def test_wrong_shapes(self, key: str, value: Any, problem: str) -> None:
        """A section is a mapping and a list is a list."""
        assert problem in problem_with(key, value)

    def test_a_configuration_is_a_mapping(self) -> None:
        """Anything but a mapping is one clear problem."""
        wrong: Any = ["storage"]
        assert problems_of(wrong) == ["a value of type list is not allowed; use a mapping of keys"]

    def test_long_values_are_shortened(self) -> None:
        """A value of any size makes a short message."""
        assert len(problem_with("storage.sync_policy", "x" * 10**6)) < 200

    def test_one_part_can_be_read_alone(self) -> None:
        """A part reads a mapping of its own keys, with the same problems as in a file."""
        assert TLSConfig.from_dict({"ca": "ca.crt"}) == TLSConfig(ca="ca.crt")
        with pytest.raises(ConfigError, match=r"^tls: tls\.sert: unknown key; did you mean cert"):
            TLSConfig.from_dict({"sert": "x"}, source="tls")


class TestSecrets:
    def test_the_token_is_not_in_the_repr(self) -> None:
        """A configuration that is logged does not give its token away."""
        config = Config(storage=StorageConfig("d"), web=WebConfig(token="s3cret"))
        assert config.web.token == "s3cret"
        assert "s3cret" not in repr(config)

    @pytest.mark.parametrize(
        "web",
        [{"token": "s3cret\n"}, {"token": ["s3cret"]}, {"tokn": "s3cret"}, "s3cret", ["s3cret"]],
    )
    def test_no_problem_shows_the_token(self, web: Any) -> None:
        """A token that is refused, misspelt or misplaced is not repeated."""
        assert "s3cret" not in "".join(problems_of({"storage": {"data_dir": "d"}, "web": web}))

    @pytest.mark.parametrize(
        "token",
        [
            "*s3cret",
            "!s3cret",
            "!s3cret!x y",
            "&s3cret",
            "s3cret: s3cret",
            "@s3cret",
            "'s3cret",
            "{s3cret",
        ],
    )
    def test_no_syntax_error_shows_the_token(self, token: str, written: Any) -> None:
        """A token that breaks the YAML is not repeated either."""
        path = written(f"storage: {{data_dir: d}}\nweb:\n  listen_addr: ':1'\n  token: {token}\n")
        assert "s3cret" not in "".join(file_problems(path))


class TestFile:
    def test_the_examples_load(self) -> None:
        """Every example in conf/ loads, and together they show every key."""
        seen = set()
        for path in sorted(CONF.glob("*.yaml")):
            config = Config.load(path)
            assert config.storage.data_dir.startswith("./keyop-data")
            text = path.read_text()
            seen |= {key for key in DEFAULTS if f"{key.rpartition('.')[2]}:" in text}
        assert seen == set(DEFAULTS)
        assert [path.stem for path in sorted(CONF.glob("*.yaml"))] == [
            "client",
            "hub",
            "local",
            "relay",
        ]

    def test_the_local_example_shows_the_defaults(self) -> None:
        """What the local example sets, but for the name and the directory, is the default."""
        local = Config.load(CONF / "local.yaml")
        storage = dataclasses.replace(local.storage, data_dir="d")
        assert dataclasses.replace(local, name="", storage=storage) == Config(
            storage=StorageConfig("d")
        )

    def test_a_file_of_the_former_version_loads(self, written: Any) -> None:
        """Keys, Go's durations, anchors, merges and unquoted words of v0.11.0 are understood."""
        config = Config.load(
            written(
                """\
name: host-1:7740
storage: {data_dir: /var/keyop, compaction_threshold_mb: 64, sync_policy: always}
hub:
  enabled: yes
  listen_addr: 0.0.0.0:7740
  fed_client_offset_ttl: 336h0m0s
  allowed_peers:
    - &peer
      name: 7741
      subscribe: &words [on, no, 2024, 1.50, 0x10, 0x_, 2024-01-01, "null"]
    - <<: *peer
      name: 1:30
    - name: d
      <<: [{publish: [a]}, {publish: [b], subscribe: *words}]
tls: {cert: c, key: k, ca: a, min_version: 1.3}
federation: {send_buffer_messages: 10_000, reconnect_jitter: 0.25}
"""
            )
        )
        words = ("on", "no", "2024", "1.50", "0x10", "0x_", "2024-01-01", "null")
        assert config.name == "host-1:7740"
        assert config.storage.segment_bytes == 64 * 2**20
        assert config.hub == HubConfig(
            enabled=True,
            listen_addr="0.0.0.0:7740",
            fed_client_offset_ttl=14 * 86400.0,
            allowed_peers=(
                AllowedPeer("7741", words),
                AllowedPeer("1:30", words),
                AllowedPeer("d", words, ("a",)),
            ),
        )
        assert config.tls == TLSConfig("c", "k", "a", min_version="1.3")
        assert config.federation == FederationConfig(reconnect_jitter=0.25)

    def test_values_of_a_file_are_shown_as_written(self, written: Any) -> None:
        """A problem shows an unquoted value as it stands, and a quoted one in quotes."""
        path = written("storage: {data_dir: d, sync_interval_ms: -0x1, max_files: '1'}\nhub: on")
        assert file_problems(path) == [
            "storage.sync_interval_ms: -0x1 is not allowed; "
            "use a whole number from 0 to 1000000000000",
            "storage.max_files: '1' is not allowed; use a whole number from 0 to 1000000000000",
            "hub: a value of type bool is not allowed; use a mapping of keys",
        ]

    def test_a_key_given_twice_is_a_problem(self, written: Any) -> None:
        """Both lines are named, along with every other problem."""
        path = written(
            "storage:\n  data_dir: a\n  data_dir: b\n  max_files: x\n"
            "client:\n  hubs:\n    - {addr: 'h:1', name: a, name: b}\nstorage: {}\n"
        )
        assert file_problems(path) == [
            "storage.data_dir: given twice, on lines 2 and 3",
            "client.hubs[0].name: given twice, on lines 7 and 7",
            "storage: given twice, on lines 1 and 8",
            "storage.max_files: 'x' is not allowed; use a whole number from 0 to 1000000000000",
        ]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("", "the file is empty; storage.data_dir is needed at least"),
            ("# nothing\n", "the file is empty; storage.data_dir is needed at least"),
            ("~", "the file is empty; storage.data_dir is needed at least"),
            ("- storage", "the file holds a list, not a mapping of sections"),
            ("storage", "the file holds a single value, not a mapping of sections"),
            ("a: 1\nb: [", "line 2, column 5: while parsing a flow node, expected the node"),
            ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
            ("a: {b", "line 1, column 6: while parsing a flow mapping, expected ',' or '}'"),
            ("a: 1\n\tb: 2", "line 2, column 1: while scanning for the next token, found charac"),
            ("a: 1\nb: \x07", "line 2, column 4: special characters are not allowed"),
            ("\x00", "line 1, column 1: special characters are not allowed"),
            ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document in the stream"),
            ("a: *x", "line 1, column 4: found undefined alias 'x'"),
            ("a: !!python/name:os.system x", "line 1, column 4: tags are not supported"),
            ("a: !!binary aGk=", "line 1, column 4: tags are not supported"),
            ("a: !!set {b}", "line 1, column 4: tags are not supported"),
            ("a: !!omap [b: 1]", "line 1, column 4: tags are not supported"),
            ("[a]: 1", "line 1, column 1: a key is a word, not a list or a mapping"),
            ("<<: 5", "line 1, column 5: '<<' takes a mapping or a list of mappings"),
            (b"a: \xff", "not UTF-8 text: invalid start byte at byte 3"),
        ],
    )
    def test_what_is_no_configuration(
        self, content: str | bytes, problem: str, written: Any
    ) -> None:
        """A file that is not one YAML mapping is one clear problem, with its place."""
        problems = file_problems(written(content))
        assert len(problems) == 1
        assert problems[0].startswith(problem)

    @pytest.mark.parametrize("value", ["!!int ''", "!!int x", "!!bool x", "!!float x"])
    def test_a_tag_that_the_value_does_not_fit(self, value: str, written: Any) -> None:
        """A value that only claims to be a number is refused by its key like any other text."""
        path = written(f"storage: {{data_dir: d, max_files: {value}}}")
        assert "use a whole number" in file_problems(path)[0]

    def test_a_byte_order_mark_is_ignored(self, written: Any) -> None:
        """Editors that write one do no harm."""
        assert Config.load(written(b"\xef\xbb\xbfstorage: {data_dir: d}")).storage.data_dir == "d"

    @pytest.mark.parametrize(
        ("name", "problem"),
        [("missing.yaml", "No such file"), (".", "Is a directory"), ("a\0b", "null byte")],
    )
    def test_a_file_that_cannot_be_read(self, name: str, problem: str, tmp_path: Path) -> None:
        """The system's reason is given."""
        with pytest.raises(ConfigError, match=f"cannot be read: .*{problem}"):
            Config.load(f"{tmp_path}/{name}")

    def test_a_file_that_is_too_large(self, written: Any, monkeypatch: Any) -> None:
        """A mebibyte is taken, not a byte more."""
        assert config_yaml.MAX_FILE_BYTES == 2**20
        monkeypatch.setattr(config_yaml, "MAX_FILE_BYTES", 1000)
        text = "storage: {data_dir: d}\n#"
        assert Config.load(written(text.ljust(1000, "x")))
        assert file_problems(written(text.ljust(1001, "x"))) == ["larger than 1000 bytes"]

    @pytest.mark.parametrize(
        ("first", "further"),
        [
            ("a: &b0 [x]\n", "a{0}: &b{0} [*b{1}, *b{1}]\n"),
            ("a: &b0 {x: 1}\n", "a{0}: &b{0} {{<<: [*b{1}, *b{1}]}}\n"),
        ],
        ids=["aliases", "merges"],
    )
    def test_a_file_that_multiplies(self, first: str, further: str, written: Any) -> None:
        """Aliases and merges are counted as if written out, and stopped."""
        bomb = first + "".join(further.format(i, i - 1) for i in range(1, 30))
        (problem,) = file_problems(written(bomb))
        assert problem.endswith("more than 50000 values, aliases expanded")

    def test_a_file_that_holds_too_much(self, written: Any, monkeypatch: Any) -> None:
        """A file of small values is stopped while it is parsed."""
        monkeypatch.setattr(config_yaml, "MAX_NODES", 1000)
        (problem,) = file_problems(written("a: [" + "x," * 1000 + "]"))
        assert problem == "line 1, column 4: more than 1000 values, aliases expanded"

    @pytest.mark.parametrize("content", ["a: " + "[" * 10_000, "a: &x [*x]", "&x {<<: *x}"])
    def test_a_file_that_is_too_deep(self, content: str, written: Any) -> None:
        """Nesting without end, or of an alias in itself, is stopped."""
        (problem,) = file_problems(written(content))
        assert problem.endswith("nested more than 32 deep")


def certificate(*names: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    start = datetime.datetime(2024, 1, 1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


class TestInstanceName:
    @pytest.fixture(autouse=True)
    def host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "host.example")

    def named(self, cert: Path | str, name: str = "") -> str:
        tls = TLSConfig(cert=str(cert), key="unused.key")
        return Config(name=name, storage=StorageConfig("d"), tls=tls).instance_name()

    def test_the_written_name_wins(self, written: Any) -> None:
        """A name in the configuration is the instance name."""
        assert self.named(written(certificate("from-cert")), name="mine") == "mine"

    def test_the_certificate_gives_the_name(self, written: Any) -> None:
        """Without a name, it is the certificate's common name."""
        assert self.named(written(certificate("host-1:7740"))) == "host-1:7740"

    @pytest.mark.parametrize(
        "content",
        [b"", b"no certificate", certificate(), certificate("a", "b"), certificate("a b")],
    )
    def test_a_certificate_without_one_valid_name_is_passed_over(
        self, content: bytes, written: Any
    ) -> None:
        """What is no certificate, or names nobody or two, leaves the host name."""
        assert self.named(written(content)) == "host.example"

    def test_a_missing_certificate_is_passed_over(self, tmp_path: Path) -> None:
        """A certificate that cannot be read leaves the host name."""
        assert self.named(tmp_path / "missing.crt") == "host.example"

    @pytest.mark.parametrize(
        ("host", "name"),
        [("my host_1", "my-host_1"), ("hôst", "h-st"), ("x" * 300, "x" * 237), ("", "localhost")],
    )
    def test_the_host_name_is_made_to_fit(
        self, host: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What an instance name may not hold becomes a dash; no host name is localhost."""
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        assert Config(storage=StorageConfig("d")).instance_name() == name

    def test_constructing_touches_nothing(self, tmp_path: Path, monkeypatch: Any) -> None:
        """Making a configuration opens no file, creates no directory and asks no system."""

        def forbidden(*_: Any, **__: Any) -> Any:
            raise AssertionError("a side effect")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("builtins.open", forbidden)
        monkeypatch.setattr(socket, "gethostname", forbidden)
        config = Config.from_dict(
            {
                "storage": {"data_dir": "data"},
                "hub": {"enabled": True, "listen_addr": ":1"},
                "tls": {"cert": "c", "key": "k", "ca": "a", "crl": "r"},
            }
        )
        assert config.name == ""
        assert list(tmp_path.iterdir()) == []
