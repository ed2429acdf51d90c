// The dead letters of a channel: what failed and why; sending again, putting away.

import { channelPath, getRecords, post } from "./api.js";
import { ChannelView } from "./channel.js";
import { channelHash } from "./columns.js";
import { confirm, notify } from "./dialogs.js";
import { el, put, setText } from "./dom.js";
import * as format from "./format.js";
import { block, opener, whole } from "./record.js";
import { Table } from "./table.js";

const LIMIT = 100;
// How many reasons of refusal are told.
const REASONS = 5;

export class Letters extends ChannelView {
  #page = { count: 0, letters: [], more: false };
  #chosen = new Set();
  #after = "";
  #asking = null;
  #status = el("p", { class: "quiet", role: "status" });
  #everything = el("input", {
    type: "checkbox", "aria-label": "Choose all that are shown", click: () => this.#chooseShown(),
  });
  #requeue = this.#button("Requeue", "r", () => this.#ask("requeue"));
  #purge = this.#button("Purge", "p", () => this.#ask("purge"));
  #requeueAll = this.#button("Requeue all", "", () => this.#ask("requeue", true));
  #purgeAll = this.#button("Purge all", "", () => this.#ask("purge", true));
  #next = this.#button("Next", "", () => this.#goOn());
  #table = new Table({
    caption: "Dead letters",
    columns: [
      { label: "Failed", className: "time", make: opener, fill(cell, row) {
        setText(cell.firstElementChild, format.moment(row.time).slice(0, 19));
        setText(cell.lastElementChild, [row.subscriber, firstLine(row.error)].filter(Boolean).join(": "));
      } },
      { label: "Chosen", className: "choice", make: (cell, row) => put(cell, this.#box(row)),
        fill: (cell, row) => (cell.firstElementChild.checked = this.#chosen.has(row.id)) },
      { label: "Subscriber", className: "wide name", text: (row) => row.subscriber ?? "–" },
      { label: "Retries", className: "wide number", text: (row) => format.count(row.retries) },
      { label: "Error", className: "wide preview", text: (row) => firstLine(row.error) },
      { label: "Type", className: "wide type", text: (row) => row.original?.payload_type ?? "–" },
    ],
    key: (row) => row.id,
    open: (row, table) => table.toggle(row, () => this.#detail(row)),
    empty: "No dead letters. What a handler gives up on comes here.",
  });

  constructor(live, channel) {
    super(live, channel, "Dead letters");
    this.back = channelHash(channel);
    this.keys = [
      ...this.keys,
      { key: "x", text: "choose the row, or not", run: () => this.#choose(this.#table.focused) },
      { key: "r", text: "requeue what is chosen, or the row", run: () => this.#ask("requeue") },
      { key: "p", text: "purge what is chosen, or the row", run: () => this.#ask("purge") },
    ];
    this.body.append(
      el("div", { class: "bar tools" },
        el("menu", {}, el("label", {}, this.#everything, " Choose all shown"),
          this.#requeue, this.#purge, this.#requeueAll, this.#purgeAll, this.#next),
        this.#status),
      this.#table.element);
  }

  #button(text, key, click) {
    const keys = key ? { "aria-keyshortcuts": key } : {};
    return el("button", { type: "button", click, ...keys }, text);
  }

  #box(row) {
    return el("input", {
      type: "checkbox", "aria-label": `Choose ${row.id}`, click: () => this.#choose(row),
    });
  }

  show(parameters) {
    this.#after = parameters.get("after") ?? "";
    this.#read();
  }

  update() {
    super.update();
    const row = this.live.channel(this.channel);
    // More have come, or somebody else has done something about them.
    if (row && row.dead_letters !== null && this.#asking === null && row.dead_letters !== this.#page.count) this.#read();
  }

  async #read() {
    const asking = (this.#asking = Symbol("asked"));
    try {
      const page = await getRecords(channelPath(this.channel, "dead-letters"),
        [["limit", LIMIT], ["after", this.#after]]);
      if (asking !== this.#asking) return;
      if (page.count && !page.letters.length && this.#after) {
        this.#after = ""; // the one after which they were to come is done with
        this.#read();
        return;
      }
      this.#page = page;
      const shown = new Set(page.letters.map((letter) => letter.id));
      for (const id of this.#chosen) if (!shown.has(id)) this.#chosen.delete(id);
      this.#status.dataset.level = "";
      this.#render();
    } catch (error) {
      if (asking !== this.#asking) return;
      setText(this.#status, error.message);
      this.#status.dataset.level = "error";
    }
    this.#asking = null;
  }

  #render() {
    const { letters, count, more } = this.#page;
    this.#table.update(letters);
    const chosen = this.#chosen.size;
    for (const [button, word] of [[this.#requeue, "Requeue"], [this.#purge, "Purge"]]) {
      button.disabled = chosen === 0;
      setText(button, chosen ? `${word} ${format.count(chosen)}` : word);
    }
    for (const button of [this.#requeueAll, this.#purgeAll]) button.disabled = count === 0;
    this.#next.hidden = !more;
    this.#everything.checked = chosen > 0 && chosen === letters.length;
    this.#everything.indeterminate = chosen > 0 && chosen < letters.length;
    const shown = letters.length === count ? "" : `, ${format.count(letters.length)} shown`;
    setText(this.#status, `${format.count(count)} waiting${shown}.`);
  }

  #choose(row) {
    if (row === null) return;
    if (!this.#chosen.delete(row.id)) this.#chosen.add(row.id);
    this.#render();
  }

  #chooseShown() {
    if (this.#chosen.size === this.#page.letters.length) this.#chosen.clear();
    else for (const letter of this.#page.letters) this.#chosen.add(letter.id);
    this.#render();
  }

  #goOn() {
    const last = this.#page.letters.at(-1);
    if (last) location.hash = channelHash(this.channel, "/dead-letters", [["after", last.id]]);
  }

  /** Ask, and do it: to all, to the chosen ones, or to the one in whose row one is. */
  async #ask(what, all = false) {
    const focused = this.#table.focused;
    const chosen = this.#chosen.size || all ? this.#page.letters.filter((each) =>
      all || this.#chosen.has(each.id)) : [focused].filter(Boolean);
    const number = all ? this.#page.count : chosen.length;
    if (number === 0) return;
    const ids = chosen.map((letter) => letter.id);
    const answer = await confirm(what === "requeue" ? this.#requeueQuestion(number, chosen, all)
      : purgeQuestion(this.channel, number));
    if (answer === null) return;
    try {
      const body = { ...(all ? { all: true } : { ids }),
        ...(what === "requeue" ? { to: answer } : {}) };
      const result = await post(channelPath(this.channel, `dead-letters/${what}`), body);
      notify(what === "requeue" ? requeued(result) : `${letters(result.purged)} purged.`,
        { lasting: Boolean(result.refused?.length) });
      this.#chosen.clear();
    } catch (error) {
      notify(error.message, { lasting: true });
    }
    await this.#read();
    this.live.refresh();
  }

  #requeueQuestion(number, chosen, all) {
    const names = [...new Set(chosen.map((letter) => letter.subscriber ?? "every subscriber"))];
    const who = names.length === 1 && !(all && this.#page.more) ? names[0]
      : "the subscriber that gave up on it";
    return {
      title: `Requeue ${letters(number)} of ${this.channel}?`,
      lines: ["Each message is appended to the channel once more, with its id, and handled anew. "
        + "Its dead letter leaves this list."],
      choices: [
        { value: "subscriber", text: `To ${who} only` },
        { value: "channel", text: `To every subscriber of ${this.channel}` },
      ],
      action: `Requeue ${format.count(number)}`,
    };
  }

  #detail(letter) {
    const error = [el("h3", {}, "Error"), block(letter.error)];
    const facts = `${letter.id}, given up ${letter.subscriber ? `by ${letter.subscriber} ` : ""}`
      + `after ${letter.retries} retries`;
    const failed = letter.original ? whole(letter.original) : block(letter.raw ?? "");
    const what = letter.original ? "Message" : "What failed is no message; its bytes in base64";
    return el("div", {}, el("p", { class: "quiet" }, facts), ...error, el("h3", {}, what), failed);
  }

  close() {
    this.#asking = Symbol("closed");
    this.#table.close();
  }
}

function purgeQuestion(channel, number) {
  return {
    title: `Purge ${letters(number)} of ${channel}?`,
    lines: [
      "They leave this list and cannot be requeued any more. Nothing is sent.",
      "Their records stay in the dead-letter channel until retention deletes them.",
    ],
    action: `Purge ${format.count(number)}`,
  };
}

function requeued({ sent, refused }) {
  const parts = [`${letters(sent)} requeued.`];
  if (refused.length) parts.push(`${format.count(refused.length)} refused:`);
  for (const each of refused.slice(0, REASONS)) parts.push(`${each.id}: ${each.reason}.`);
  if (refused.length > REASONS) parts.push("…");
  return parts.join(" ");
}

function firstLine(text) {
  return text.split("\n", 1)[0];
}

function letters(number) {
  return `${format.count(number)} dead letter${number === 1 ? "" : "s"}`;
}
