// How things are, asked for again and again. An outage is a state like any other, and ends by itself.

import { get } from "./api.js";
import { History } from "./history.js";

const INTERVAL_MS = 2000;

export class Live extends EventTarget {
  overview = null;
  outage = null; // {since: Date, why}
  history = new History();
  #incomplete = true; // something may have happened since the last point
  #answered = null; // the server's time then, and when that was by this page's own clock
  #asking = null; // an answer to an earlier question does not count
  #timer = 0;

  start() {
    document.addEventListener("visibilitychange", () => this.refresh());
    this.refresh();
  }

  /** Ask now. In a page that nobody sees, nothing is asked. */
  async refresh() {
    clearTimeout(this.#timer);
    if (document.hidden) {
      this.#incomplete = true;
      return;
    }
    const asked = (this.#asking = Symbol("asked"));
    try {
      const overview = await get("overview");
      if (this.#incomplete) await this.history.load();
      if (asked !== this.#asking) return;
      this.#incomplete = false;
      this.#answered = { clock: Date.parse(overview.time) / 1000, at: performance.now() };
      this.overview = overview;
      this.outage = null;
      this.history.append(overview);
    } catch (error) {
      if (asked !== this.#asking) return;
      this.#incomplete = true;
      if (error.status === 401) return; // who logs in asks again
      this.outage = { since: this.outage?.since ?? this.#lastAnswer(), why: error.message };
    }
    this.dispatchEvent(new Event("update"));
    this.#timer = setTimeout(() => this.refresh(), INTERVAL_MS);
  }

  #lastAnswer() {
    if (this.#answered === null) return new Date();
    return new Date(Date.now() - (performance.now() - this.#answered.at));
  }

  /** The server's time in Unix seconds, going on while it does not answer. */
  get now() {
    if (this.#answered === null) return Date.now() / 1000;
    return this.#answered.clock + (performance.now() - this.#answered.at) / 1000;
  }

  /** The row of a channel; undefined if there is none. */
  channel(name) {
    return this.overview?.channels.find((row) => row.channel === name);
  }
}
