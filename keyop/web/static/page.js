// The page: which view is shown, and what stands around it.

import { post, whenUnauthorized } from "./api.js";
import { Figures } from "./channel.js";
import { askToken, notify } from "./dialogs.js";
import { byId, put, setText, visible } from "./dom.js";
import * as format from "./format.js";
import { startKeys, useKeys } from "./keys.js";
import { Letters } from "./letters.js";
import { Live } from "./live.js";
import { Messages } from "./messages.js";
import { Overview } from "./overview.js";
import { startTheme } from "./theme.js";
import { showOutage, showWarnings } from "./warnings.js";

const PARTS = new Map([["", Figures], ["messages", Messages], ["dead-letters", Letters]]);
const live = new Live();
let view = null;
let place = null;

function route() {
  const [path, query = ""] = location.hash.slice(1).split("?");
  const [, root = "", channel = "", part = ""] = path.split("/");
  if (path !== place) {
    const before = place;
    view?.close();
    place = path;
    const Part = root === "channels" && channel ? PARTS.get(part) : null;
    view = Part ? new Part(live, decoded(channel)) : new Overview(live);
    put(byId("main"), view.element);
    useKeys(view);
    window.scrollTo(0, 0);
    // A screen reader goes on reading where the new view begins.
    if (before !== null) byId("main").focus({ preventScroll: true });
  }
  view.show?.(new URLSearchParams(query));
  update();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function update() {
  view.update();
  const { overview, outage } = live;
  showOutage(outage);
  const title = `${view.title} – ${overview?.instance ?? "keyop"}`;
  document.title = visible(outage ? `no answer: ${title}` : title);
  const state = byId("state");
  setText(state, outage ? "no answer" : overview ? "live" : "loading");
  state.dataset.level = outage ? "error" : overview ? "good" : "";
  if (overview === null) return;
  showWarnings(overview.warnings);
  setText(byId("instance"), overview.instance);
  const running = format.duration((Date.parse(overview.time) - Date.parse(overview.started)) / 1000);
  setText(byId("about"), `${overview.version}, up ${running}, ${overview.data_dir}`);
}

function logIn() {
  askToken(() => {
    byId("logout").hidden = false;
    remember("keyop-logged-in", "1");
    place = null;
    route();
    live.refresh();
  });
}

async function logOut() {
  try {
    await post("logout");
    remember("keyop-logged-in", null);
    location.reload();
  } catch (error) {
    notify(error.message);
  }
}

// Storage may be forbidden; nothing depends on it.
function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch { /* then it is not remembered */ }
}

function remembered(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

startTheme(remembered, remember, () => update());
startKeys();
whenUnauthorized(logIn);
byId("logout").hidden = !remembered("keyop-logged-in");
byId("logout").addEventListener("click", logOut);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which view is shown
  byId("main").focus();
});
window.addEventListener("hashchange", route);
live.addEventListener("update", update);
route();
live.start();
