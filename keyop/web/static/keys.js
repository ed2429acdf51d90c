// The keyboard. What a view can do it lists as {key, text, run}; the rest holds everywhere.

import { byId, el, put } from "./dom.js";

let view = { keys: [] };

const EVERYWHERE = [
  { key: "/", text: "filter", run: () => focusFilter() },
  { key: "j", text: "next row", run: () => step(1) },
  { key: "k", text: "row before", run: () => step(-1) },
  { key: "Enter", text: "open the row, or close it" },
  { key: "Escape", text: "back: leave a field, close a dialog, go up", run: () => goUp() },
  { key: "t", text: "theme: auto, light, dark", run: () => byId("theme").click() },
  { key: "?", text: "these keys", run: () => showKeys() },
];

/** Listen. */
export function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) {
      return;
    }
    const field = event.target.closest("input, select, textarea");
    if (field && field.type !== "checkbox" && field.type !== "radio") {
      if (event.key === "Escape") field.blur();
      return;
    }
    if (event.key === "Enter") {
      if (event.target.matches("tr[data-row]")) event.target.dispatchEvent(new Event("open"));
      return;
    }
    const found = [...view.keys, ...EVERYWHERE].find((each) => each.key === event.key);
    if (found) {
      event.preventDefault();
      found.run();
    }
  });
  byId("help-button").addEventListener("click", showKeys);
}

/** From now on, the keys of this view count. */
export function useKeys(shown) {
  view = shown;
}

export function showKeys() {
  const lines = [...view.keys, ...EVERYWHERE].flatMap(({ key, text }) => [
    el("dt", {}, el("kbd", {}, key === "Escape" ? "Esc" : key)), el("dd", {}, text),
  ]);
  put(byId("help").querySelector("dl"), ...lines);
  byId("help").showModal();
}

function focusFilter() {
  const field = byId("main").querySelector("[data-filter]");
  field?.focus();
  field?.select();
}

function step(by) {
  const rows = [...byId("main").querySelectorAll("tr[data-row]")].filter(isShown);
  const place = rows.indexOf(document.activeElement?.closest("tr[data-row]"));
  const next = place < 0 ? (by > 0 ? 0 : rows.length - 1) : place + by;
  const row = rows[Math.max(0, Math.min(rows.length - 1, next))];
  row?.focus({ preventScroll: true });
  row?.scrollIntoView({ block: "nearest" });
}

function isShown(element) {
  return element.offsetParent !== null;
}

function goUp() {
  if (view.back) location.hash = view.back;
  else document.activeElement?.blur();
}
