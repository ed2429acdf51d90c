// What needs somebody: warnings on top, and the banner while the server does not answer.

import { channelHash } from "./columns.js";
import { byId, el, put, setText } from "./dom.js";
import * as format from "./format.js";

// So many warnings are shown before one asks for the rest.
const FIRST = 5;
let unfolded = false;

/** Show the warnings, errors first. What was there before stays the same element, said once. */
export function showWarnings(warnings) {
  const list = byId("warnings");
  const order = { error: 0, warning: 1 };
  const sorted = [...warnings].sort((one, other) => order[one.level] - order[other.level]);
  const shown = unfolded ? sorted : sorted.slice(0, FIRST);
  const before = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const items = shown.map((warning) => {
    const said = `${warning.channel ? `${warning.channel}: ` : ""}${warning.text}`;
    // One whose figures move is the same warning, and a place is told from another by its name.
    const key = `${warning.kind} ${warning.channel ?? warning.peer} ${warning.text}`
      .replace(/(?<![\w.-])\d[\d.,]*(?![\w-])/g, "#");
    const item = before.get(key) ?? make(warning, key);
    setText(item.querySelector(".text"), said);
    return item;
  });
  const more = sorted.length - FIRST;
  if (more > 0) items.push(before.get("fold") ?? fold());
  if (items.some((item, index) => item !== list.children[index])
    || items.length !== list.children.length) {
    list.replaceChildren(...items);
  }
  if (more > 0) {
    setText(items.at(-1).firstElementChild, unfolded ? "Show fewer" : `Show ${more} more`);
    items.at(-1).firstElementChild.onclick = () => {
      unfolded = !unfolded;
      showWarnings(warnings);
    };
  }
}

function make(warning, key) {
  const text = warning.channel
    ? el("a", { class: "text", href: channelHash(...place(warning)) })
    : el("span", { class: "text" });
  return el("li", { "data-key": key, "data-level": warning.level },
    el("strong", {}, warning.level === "error" ? "Error" : "Warning"), " ", text);
}

function fold() {
  return el("li", { "data-key": "fold" }, el("button", { type: "button" }));
}

function place({ kind, channel }) {
  if (kind === "dead_letters") return [channel.replace(/\.dead-letter$/, ""), "/dead-letters"];
  return [channel];
}

/** Say since when the server does not answer; null takes that away. */
export function showOutage(outage) {
  const banner = byId("outage");
  document.body.classList.toggle("stale", outage !== null);
  if (outage === null) {
    put(banner);
    return;
  }
  if (!banner.firstElementChild) {
    // The seconds count on, which nobody wants to hear.
    put(banner, el("span"), " ", el("span", { "aria-hidden": "true" }));
  }
  const [what, since] = banner.children;
  setText(what, `${outage.why} What is shown is from ${format.clock(outage.since)},`);
  const seconds = Math.round((Date.now() - outage.since) / 1000);
  setText(since, `${format.duration(seconds)} ago. Trying again.`);
}
