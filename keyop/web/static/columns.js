// The tables of subscribers and peers, which more than one view shows.

import { el, put, setText } from "./dom.js";
import * as format from "./format.js";
import { Table } from "./table.js";

/** Return the address of a place of this page. */
export function channelHash(channel, rest = "", parameters = []) {
  const query = new URLSearchParams(
    parameters.filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return `#/channels/${encodeURIComponent(channel)}${rest}${query.size ? `?${query}` : ""}`;
}

/** A cell with a link, and for narrow screens what its hidden neighbours say. */
export function linkColumn(label, text, href, below = null, more = {}) {
  return {
    label,
    className: "name",
    compare: text,
    make(cell, item) {
      put(cell, el("a", { href: href(item) }, text(item)), el("span", { class: "narrow quiet" }));
    },
    fill(cell, item) {
      if (below) setText(cell.lastElementChild, below(item));
    },
    ...more,
  };
}

/** As that, without a link. */
function textColumn(label, text, below) {
  return {
    label,
    className: "name",
    compare: text,
    make: (cell) => put(cell, el("span"), el("span", { class: "narrow quiet" })),
    fill(cell, item) {
      setText(cell.firstElementChild, text(item));
      setText(cell.lastElementChild, below(item));
    },
  };
}

/** A figure; `value` is what it is sorted by. */
export function number(label, value, text, className = "") {
  return {
    label, className: `number ${className}`.trim(), compare: value, text: (row) => text(value(row)),
  };
}

/** Subscribers; rows are the API's, with `channel`. */
export function subscriberTable({ withChannel }) {
  const id = (row) => row.subscriber_id;
  const below = (row) => [
    ...(withChannel ? [row.channel] : []), row.kind, ...(row.running ? [] : ["not running"]),
  ].join(", ");
  return new Table({
    caption: "Subscribers",
    columns: [
      textColumn("Subscriber", id, below),
      ...(withChannel ? [linkColumn("Channel", (row) => row.channel,
        (row) => channelHash(row.channel), null, { className: "name wide" })] : []),
      { label: "Kind", className: "wide", text: (row) => row.kind, compare: (row) => row.kind },
      { label: "State", className: "wide", text: (row) => (row.running ? "running" : "not running"),
        compare: (row) => String(row.running) },
      number("Lag", (row) => row.lag_bytes, format.bytes),
      { ...number("Messages", (row) => row.lag_messages, format.count),
        text: (row) => (row.lag_estimated ? "≈ " : "") + format.count(row.lag_messages) },
      number("Oldest", (row) => row.oldest_pending_s, format.duration),
      number("Reads", (row) => row.read_bytes_per_s, format.bytesPerSecond, "wide"),
      number("Offset", (row) => row.offset, format.count, "wide"),
    ],
    key: (row) => `${row.channel}/${row.subscriber_id}`,
    open: (row) => (location.hash = channelHash(row.channel)),
    sort: { label: "Lag" },
    empty: "Nobody subscribes.",
  });
}

// A client may be away; a hub that is not there is missed.
const LEVELS = { refused: "error", connecting: "warning" };

/** Peers and hubs. */
export function peerTable() {
  const state = (row) => row.state;
  return new Table({
    caption: "Peers and hubs",
    columns: [
      textColumn("Peer", (row) => row.name, (row) => row.kind),
      { label: "Kind", className: "wide", text: (row) => row.kind, compare: (row) => row.kind },
      { label: "State", compare: state, fill(cell, row) {
        setText(cell, row.state);
        cell.dataset.level = LEVELS[row.state] ?? "";
        cell.title = row.detail ?? "";
      } },
      { label: "Since", className: "wide", text: (row) => format.moment(row.since).slice(0, 19) },
      number("Backlog", (row) => row.backlog_bytes, format.bytes),
      number("Round trip", (row) => row.round_trip_s, format.latency, "wide"),
      number("Sent", (row) => row.sent, format.count, "wide"),
      number("Received", (row) => row.received, format.count, "wide"),
      number("Reconnects", (row) => row.reconnects, format.count, "wide"),
      number("Failures", (row) => row.failures, format.count, "wide"),
      number("Dropped", (row) => row.dropped_bytes, format.bytes, "wide"),
      number("Undeliverable", (row) => row.undeliverable, format.count, "wide"),
      { label: "Detail", className: "wide detail-text", text: (row) =>
        [row.address, row.detail].filter(Boolean).join(": ") },
    ],
    key: (row) => `${row.kind}/${row.name}/${row.address}`, // visitors may share a name
    sort: { label: "Peer" },
    empty: "No peers and no hubs.",
  });
}

/** Figures as a list of terms; returns [element, update], the latter given the values in order. */
export function figures(labels) {
  const values = labels.map(() => el("dd"));
  const element = el("dl", { class: "figures" },
    ...labels.map((label, index) => el("div", {}, el("dt", {}, label), values[index])));
  return [element, (texts) => texts.forEach((text, index) => setText(values[index], text))];
}
