// Everything at a glance: channels, subscribers, peers.

import { channelHash, figures, linkColumn, number, peerTable, subscriberTable } from "./columns.js";
import { el, put, setText } from "./dom.js";
import * as format from "./format.js";
import { largest, largestLag } from "./history.js";
import { Plot, Spark } from "./plot.js";
import { Table } from "./table.js";

const DEAD_LETTER = ".dead-letter";

export class Overview {
  title = "Overview";
  keys = [];
  #live;
  #filter = el("input", {
    type: "search", "data-filter": true, placeholder: "Filter by name", "aria-label": "Filter by name",
    "aria-keyshortcuts": "/", autocomplete: "off", spellcheck: "false", input: () => this.update(),
  });
  #rate = new Plot("Messages", format.perSecond);
  #lag = new Plot("Largest lag", format.bytes, { inBytes: true });
  #channels = channelTable(() => this.#live);
  #subscribers = subscriberTable({ withChannel: true });
  #peers = peerTable();
  #headings = ["Channels", "Subscribers", "Peers and hubs"].map((text) =>
    el("h2", {}, text, " ", el("span", { class: "quiet" })));

  constructor(live) {
    this.#live = live;
    const [list, update] = figures([
      "Messages", "Bytes", "Largest lag", "Oldest waiting", "Dead letters", "Channels",
      "Subscribers running", "Logs", "Disk free", "Publish p50 / p99", "Consume p50 / p99",
      "Handler p50 / p99",
    ]);
    this.showFigures = update;
    const [channels, subscribers, peers] = this.#headings;
    this.element = el("div", {},
      el("h1", { class: "hidden" }, "Overview"),
      list,
      el("div", { class: "plots" }, this.#rate.element, this.#lag.element),
      el("section", {}, el("div", { class: "bar" }, channels, this.#filter), this.#channels.element),
      el("section", {}, subscribers, this.#subscribers.element),
      el("section", {}, peers, this.#peers.element));
  }

  update() {
    const { overview, history, now } = this.#live;
    this.#rate.update(history.series(null, "messages_per_s"), now);
    this.#lag.update(history.series(null, "lag_bytes"), now);
    if (overview === null) return;
    const { totals, latency, disk } = overview;
    const percentiles = ({ p50, p99 }) => `${format.latency(p50)} / ${format.latency(p99)}`;
    this.showFigures([
      format.perSecond(totals.messages_per_s), format.bytesPerSecond(totals.bytes_per_s),
      format.bytes(totals.largest_lag_bytes), format.duration(totals.oldest_pending_s),
      format.count(totals.dead_letters), format.count(totals.channels),
      `${format.count(totals.running)} of ${format.count(totals.subscribers)}`,
      format.bytes(totals.disk_bytes),
      `${format.bytes(disk?.free_bytes)} of ${format.bytes(disk?.total_bytes)}`,
      percentiles(latency.publish), percentiles(latency.consume), percentiles(latency.handler),
    ]);
    const wanted = this.#filter.value.trim().toLowerCase();
    const fits = (...names) => names.some((name) => name.toLowerCase().includes(wanted));
    // Dead letters are counted with the channel in which they failed; their own channel is shown
    // where somebody reads it, or where it is asked for.
    const channels = overview.channels.filter((row) => fits(row.channel)
      && (wanted || !row.channel.endsWith(DEAD_LETTER) || row.subscribers.length));
    const subscribers = overview.channels.flatMap((row) =>
      row.subscribers.map((each) => ({ ...each, channel: row.channel })))
      .filter((row) => fits(row.channel, row.subscriber_id));
    const peers = overview.peers.filter((row) => fits(row.name));
    const empty = wanted ? "None has that in its name." : undefined;
    this.#channels.update(channels, empty);
    this.#subscribers.update(subscribers, empty);
    this.#peers.update(peers, empty);
    const others = wanted ? 0 : overview.channels.length - channels.length;
    const more = others ? `, and ${format.count(others)} of dead letters` : "";
    const texts = [channels, subscribers, peers].map((rows) => format.count(rows.length));
    [texts[0] + more, texts[1], texts[2]].forEach((text, index) =>
      setText(this.#headings[index].lastElementChild, text));
  }

  close() {
    for (const each of [this.#rate, this.#lag, this.#channels, this.#subscribers, this.#peers]) {
      each.close();
    }
  }
}

function channelTable(live) {
  const running = (row) => row.subscribers.filter((each) => each.running).length;
  const oldest = (row) => largest(row.subscribers.map((each) => each.oldest_pending_s));
  const spark = (label, field) => ({
    label,
    className: "wide",
    make(cell) {
      cell.spark = new Spark();
      cell.append(cell.spark.element);
    },
    fill(cell, row) {
      cell.spark.update(() => live().history.series(row.channel, field), live().now);
    },
  });
  return new Table({
    caption: "Channels",
    columns: [
      linkColumn("Channel", (row) => row.channel, (row) => channelHash(row.channel),
        (row) => `${format.bytesPerSecond(row.bytes_per_s)}, ${running(row)} of `
          + `${row.subscribers.length} running`),
      number("Messages", (row) => row.messages_per_s, format.perSecond),
      spark("Trend", "messages_per_s"),
      number("Bytes", (row) => row.bytes_per_s, format.bytesPerSecond, "wide"),
      number("Lag", largestLag, format.bytes),
      spark("Lag trend", "lag_bytes"),
      number("Oldest", oldest, format.duration, "wide"),
      { ...number("Running", running, format.count, "wide"),
        text: (row) => `${running(row)} of ${row.subscribers.length}` },
      { ...number("Dead", (row) => row.dead_letters, format.count), fill(cell, row) {
        const text = format.count(row.dead_letters);
        if (!row.dead_letters) setText(cell, text);
        else if (cell.textContent !== text) put(cell, el("a", { href: deadLetters(row) }, text));
        cell.dataset.level = row.dead_letters ? "warning" : "";
      } },
      number("Disk", (row) => row.disk_bytes, format.bytes, "wide"),
    ],
    key: (row) => row.channel,
    open: (row) => (location.hash = channelHash(row.channel)),
    sort: { label: "Channel" },
    empty: "There are no channels yet. One comes into being when somebody publishes or subscribes.",
  });
}

function deadLetters(row) {
  return channelHash(row.channel.replace(/\.dead-letter$/, ""), "/dead-letters");
}
