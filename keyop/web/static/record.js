// A record, or what is none, as one reads it.

import { el, put, visible } from "./dom.js";

const PREVIEW = 300;
// More text than this makes a browser slow; the rest is shown when asked for.
const SHOWN = 100000;

/** One line of the payload. */
export function preview(record) {
  return visible(JSON.stringify(record.payload ?? null).slice(0, PREVIEW));
}

/** All of a record, laid out. */
export function whole(record) {
  return block(JSON.stringify(record, null, 2));
}

/** Text as it is, its lines kept. */
export function block(text) {
  const element = el("pre", { tabindex: "0" });
  const show = (end) => {
    element.replaceChildren(visible(text.slice(0, end), "\n"));
    if (end < text.length) {
      const more = `Show ${(text.length - end).toLocaleString("en")} more characters`;
      element.append(el("button", { type: "button", click: () => show(text.length) }, more));
    }
  };
  show(SHOWN);
  return element;
}

/** A button with the first word of a row, which opens and closes what is below it. */
export function opener(cell) {
  const open = () => cell.closest("tr").dispatchEvent(new Event("open"));
  const button = el("button", {
    type: "button", class: "opener", "aria-expanded": "false", click: open,
  });
  put(cell, button, el("span", { class: "narrow quiet" }));
  return button;
}
