// One channel: its heading with the ways to its parts, and the first of them, its figures.

import { channelHash, figures, subscriberTable } from "./columns.js";
import { el, setText } from "./dom.js";
import * as format from "./format.js";
import { Plot } from "./plot.js";

/** What the parts of a channel have in common: heading, tabs, keys to go between them. */
export class ChannelView {
  constructor(live, channel, part) {
    this.live = live;
    this.channel = channel;
    this.title = channel;
    this.back = "#/";
    this.failed = channel.replace(/\.dead-letter$/, "");
    this.#tabs = [
      ["Figures", channelHash(channel), "1"],
      ["Messages", channelHash(channel, "/messages"), "2"],
      ["Dead letters", channelHash(this.failed, "/dead-letters"), "3"],
    ];
    this.keys = this.#tabs.map(([text, hash, key]) => ({
      key, text: text.toLowerCase(), run: () => (location.hash = hash),
    }));
    const links = this.#tabs.map(([text, href, key]) => el("a", {
      href, "aria-keyshortcuts": key, ...(text === part ? { "aria-current": "page" } : {}),
    }, text));
    this.#deadLetters = links.at(-1);
    this.body = el("div");
    this.element = el("div", {},
      el("div", { class: "bar title" },
        el("h1", {}, el("a", { href: "#/" }, "Channels"), " / ", channel),
        el("nav", { "aria-label": "Channel" }, ...links)),
      this.body);
  }

  #tabs;
  #deadLetters;

  update() {
    const waiting = this.live.channel(this.failed)?.dead_letters;
    setText(this.#deadLetters, waiting ? `Dead letters ${format.count(waiting)}` : "Dead letters");
  }

  close() {}
}

/** Rate, lag and subscribers of a channel. */
export class Figures extends ChannelView {
  #plots = [
    ["messages_per_s", new Plot("Messages", format.perSecond)],
    ["bytes_per_s", new Plot("Bytes", format.bytesPerSecond, { inBytes: true })],
    ["lag_bytes", new Plot("Largest lag", format.bytes, { inBytes: true })],
  ];
  #subscribers = subscriberTable({ withChannel: false });
  #problem = el("p", { class: "problem", role: "alert" });

  constructor(live, channel) {
    super(live, channel, "Figures");
    const [list, show] = figures([
      "Messages", "Bytes", "Published here", "Retries", "Dead letters", "On disk", "Segments",
      "First offset", "End offset",
    ]);
    this.showFigures = show;
    this.body.append(this.#problem, list,
      el("div", { class: "plots" }, ...this.#plots.map(([, plot]) => plot.element)),
      el("section", {}, el("h2", {}, "Subscribers"), this.#subscribers.element));
  }

  update() {
    super.update();
    const { overview, history, now } = this.live;
    for (const [field, plot] of this.#plots) plot.update(history.series(this.channel, field), now);
    if (overview === null) return;
    const row = this.live.channel(this.channel);
    setText(this.#problem, row ? row.failed ?? "" : "There is no such channel.");
    this.showFigures([
      format.perSecond(row?.messages_per_s), format.bytesPerSecond(row?.bytes_per_s),
      format.count(row?.published), format.count(row?.retries), format.count(row?.dead_letters),
      format.bytes(row?.disk_bytes), format.count(row?.segments), format.count(row?.start),
      format.count(row?.end),
    ]);
    this.#subscribers.update(
      (row?.subscribers ?? []).map((each) => ({ ...each, channel: this.channel })));
  }

  close() {
    for (const [, plot] of this.#plots) plot.close();
    this.#subscribers.close();
  }
}
