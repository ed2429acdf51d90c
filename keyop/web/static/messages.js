// The messages of a channel: from any place, some of them, or as they come.

import { channelPath, getRecords } from "./api.js";
import { ChannelView } from "./channel.js";
import { channelHash } from "./columns.js";
import { el, put, setText } from "./dom.js";
import * as format from "./format.js";
import { block, opener, preview, whole } from "./record.js";
import { Table } from "./table.js";

const LIMIT = 100;
const FOLLOW_MS = 700;
// So many of those that were followed stay.
const KEPT = 500;

export class Messages extends ChannelView {
  #parameters = new URLSearchParams();
  #messages = [];
  #page = null;
  #previous = null; // older messages are before that
  #asking = null;
  #timer = 0;
  #form = filterForm();
  #follow = el("button", {
    type: "button", "aria-pressed": "false", "aria-keyshortcuts": "f",
    click: () => this.#toggleFollow(),
  }, "Follow");
  #older = this.#button("Older", () => this.#go("before", this.#previous));
  #newer = this.#button("Newer", () => this.#go("from", this.#page?.next));
  #status = el("p", { class: "quiet", role: "status" });
  #table = new Table({
    caption: "Messages",
    columns: [
      { label: "Offset", className: "number offset", make: opener, fill(cell, row) {
        setText(cell.firstElementChild, String(row.offset));
        setText(cell.lastElementChild, format.moment(row.record?.ts).slice(11, 19));
      } },
      { label: "Time", className: "wide time", text: (row) => format.moment(row.record?.ts) },
      { label: "Type", className: "wide type", text: (row) => row.record?.payload_type ?? "" },
      { label: "Payload", className: "preview", fill(cell, row) {
        cell.dataset.level = row.record ? "" : "error";
        setText(cell, row.record ? preview(row.record) : `damaged: ${row.damage}`);
      } },
    ],
    key: (row) => String(row.offset),
    open: (row, table) => table.toggle(row, () => this.#detail(row)),
  });

  constructor(live, channel) {
    super(live, channel, "Messages");
    this.back = channelHash(channel);
    const press = (button) => () => button.disabled || button.click();
    this.keys = [
      ...this.keys,
      { key: "f", text: "follow: messages as they come", run: () => this.#toggleFollow() },
      { key: "[", text: "older messages", run: press(this.#older) },
      { key: "]", text: "newer messages", run: press(this.#newer) },
    ];
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#go("from", asPosition(this.#form.elements.from.value));
    });
    const ends = ["Earliest", "Latest"].map((text) =>
      this.#button(text, () => this.#go("from", text.toLowerCase())));
    this.body.append(this.#form,
      el("div", { class: "bar tools" },
        el("menu", {}, ends[0], this.#older, this.#newer, ends[1], this.#follow), this.#status),
      this.#table.element);
  }

  #button(text, click) {
    return el("button", { type: "button", click }, text);
  }

  /** Read what the address says. */
  show(parameters) {
    this.#parameters = parameters;
    this.#messages = [];
    this.#page = null;
    const fields = this.#form.elements;
    fields.from.value = parameters.get("before") ? "" : parameters.get("from") ?? "latest";
    fields.text.value = parameters.get("text") ?? "";
    fields.where.value = parameters.getAll("where").map(quoted).join(" ");
    this.#follow.setAttribute("aria-pressed", String(this.#following));
    this.#read();
  }

  get #following() {
    return this.#parameters.has("follow");
  }

  get #filters() {
    const where = words(this.#form.elements.where.value);
    return [["text", this.#form.elements.text.value], ...where.map((each) => ["where", each])];
  }

  #go(name, value, more = []) {
    if (value === undefined || value === null) return;
    const hash = channelHash(this.channel, "/messages", [[name, value], ...this.#filters, ...more]);
    if (hash === location.hash) this.show(this.#parameters);
    else location.hash = hash;
  }

  #toggleFollow() {
    if (!this.#following) this.#go("from", "latest", [["follow", "1"]]);
    else this.#go("from", this.#messages[0]?.offset ?? "latest");
  }

  async #read(next = null) {
    clearTimeout(this.#timer);
    if (document.hidden && next !== null) { // nobody sees what would be followed
      this.#timer = setTimeout(() => this.#read(next), FOLLOW_MS);
      return;
    }
    const asking = (this.#asking = Symbol("asked"));
    if (next === null) setText(this.#status, "Reading …");
    const before = this.#parameters.get("before");
    const place = before === null ? ["from", this.#parameters.get("from") ?? "latest"]
      : ["before", before];
    const filters = ["text", "where"].flatMap((name) =>
      this.#parameters.getAll(name).map((value) => [name, value]));
    try {
      const page = await getRecords(channelPath(this.channel, "messages"),
        [next === null ? place : ["from", next], ["limit", LIMIT], ...filters]);
      if (asking !== this.#asking) return;
      this.#take(page, next !== null, filters.length > 0);
    } catch (error) {
      if (asking !== this.#asking) return;
      setText(this.#status, error.message);
      this.#status.dataset.level = "error";
      if (error.status === 401 || !(this.#following && error.isOutage)) return;
      this.#timer = setTimeout(() => this.#read(next), FOLLOW_MS * 3);
    }
  }

  #take(page, isMore, isFiltered) {
    this.#page = page;
    this.#status.dataset.level = "";
    let passedOver = "";
    if (isMore && page.more && !isFiltered) {
      // They come faster than one can read: go on with the newest.
      passedOver = " They come faster than they are shown.";
      this.#parameters.set("from", "latest");
      this.#timer = setTimeout(() => this.#read(), FOLLOW_MS);
    } else {
      this.#messages = isMore ? [...this.#messages, ...page.messages].slice(-KEPT) : page.messages;
      if (this.#following) {
        const wait = isFiltered && page.more ? 0 : FOLLOW_MS;
        this.#timer = setTimeout(() => this.#read(page.next), wait);
      }
    }
    const isAtEnd = !isMore || this.#isAtEnd();
    this.#table.update(this.#messages, page.more ? "None so far." : "None.");
    if (this.#following && isAtEnd) window.scrollTo(0, document.body.scrollHeight);
    const first = this.#messages[0]?.offset ?? page.start;
    this.#previous = isMore ? (first > page.start ? first : null) : page.previous;
    this.#older.disabled = this.#previous === null;
    this.#newer.disabled = this.#following || page.next >= page.end;
    setText(this.#status, this.#summary(page) + passedOver);
  }

  #isAtEnd() {
    return window.innerHeight + window.scrollY > document.body.scrollHeight - 80;
  }

  #summary({ start, end, more }) {
    const shown = `${format.count(this.#messages.length)} messages.`;
    if (this.#following) return `Following. ${shown}`;
    const log = `The log goes from ${format.count(start)} to ${format.count(end)}.`;
    const isBack = this.#parameters.has("before")
      || (this.#parameters.get("from") ?? "latest") === "latest";
    const partial = more && this.#messages.length < LIMIT
      ? ` There may be more: ${isBack ? "Older" : "Newer"} goes on searching.` : "";
    return `${shown} ${log}${partial}`;
  }

  #detail(row) {
    const here = channelHash(this.channel, "/messages", [["from", row.offset]]);
    const size = `${format.count(row.next - row.offset)} bytes`;
    const head = el("p", { class: "quiet" }, `${size}, `, el("a", { href: here }, "from here on"));
    if (row.record) return el("div", {}, head, whole(row.record));
    const why = el("p", { "data-level": "error" }, `Damaged: ${row.damage}`);
    return el("div", {}, head, why, block(row.raw ?? ""));
  }

  close() {
    this.#asking = null;
    clearTimeout(this.#timer);
    this.#table.close();
  }
}

function filterForm() {
  const field = (label, name, placeholder, more = {}) =>
    el("label", {}, label, el("input", {
      name, placeholder, autocomplete: "off", spellcheck: "false", ...more,
    }));
  return el("form", { class: "filters", role: "search" },
    field("From", "from", "latest, offset, -10m, 14:30"),
    field("Text", "text", "anywhere in the record", { "data-filter": true, "aria-keyshortcuts": "/" }),
    field("Where", "where", "customer.id=7 origin=shop"),
    el("button", {}, "Read"));
}

// Conditions stand apart by spaces; one with spaces in it stands in quotes.
function words(text) {
  return (text.match(/"(?:[^"\\]|\\.)*"|\S+/g) ?? []).map((word) =>
    (/^".*"$/.test(word) ? word.slice(1, -1).replace(/\\(.)/g, "$1") : word));
}

function quoted(condition) {
  return /[\s"]/.test(condition) ? `"${condition.replace(/["\\]/g, "\\$&")}"` : condition;
}

// The server knows no times of the reader's own zone.
function asPosition(text) {
  const wanted = text.trim();
  const day = new Date();
  const [, hours, minutes, seconds] = wanted.match(/^(\d\d?):(\d\d)(?::(\d\d))?$/) ?? [];
  if (hours !== undefined) {
    day.setHours(hours, minutes, seconds ?? 0, 0);
    return day.toISOString();
  }
  if (/^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?$/.test(wanted)) {
    const date = new Date(wanted.length === 10 ? `${wanted}T00:00` : wanted.replace(" ", "T"));
    return Number.isNaN(date.getTime()) ? wanted : date.toISOString();
  }
  return wanted || "latest";
}
