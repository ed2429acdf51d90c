// The last ten minutes, as the page has seen them or the server tells them.

import { get } from "./api.js";

export const SPAN_S = 600;
const FIELDS = ["messages_per_s", "bytes_per_s", "lag_bytes"];
// Later than so many intervals after the one before, a point does not join it.
const GAP_INTERVALS = 2.5;

export class History {
  points = []; // {time, total, channels: {name: values}}, values in the order of FIELDS
  interval = 2;

  /** Take over what the server knows; where it has nothing, as after its restart, keep one's own. */
  async load() {
    const answer = await get("history");
    this.interval = answer.interval_s;
    const loaded = answer.times.map((time, index) => {
      const at = (series) => FIELDS.map((field) => series[field][index]);
      const channels = Object.create(null); // any name may be a channel's
      for (const [name, series] of Object.entries(answer.channels)) channels[name] = at(series);
      return { time, total: at(answer.total), channels };
    });
    const since = loaded.length ? loaded[0].time : Infinity;
    const kept = this.points.filter((point) => point.time < since);
    this.points = [];
    for (const point of [...kept, ...loaded]) this.add(point);
  }

  /** Add how things are now. */
  append(overview) {
    const channels = Object.create(null);
    for (const row of overview.channels) {
      channels[row.channel] = [row.messages_per_s, row.bytes_per_s, largestLag(row)];
    }
    const { messages_per_s, bytes_per_s, largest_lag_bytes } = overview.totals;
    const total = [messages_per_s, bytes_per_s, largest_lag_bytes];
    this.add({ time: Date.parse(overview.time) / 1000, total, channels });
  }

  add(point) {
    const last = this.points.at(-1);
    if (last && point.time <= last.time) return;
    if (last && point.time - last.time > GAP_INTERVALS * this.interval) {
      this.points.push({ time: last.time + this.interval, total: null, channels: Object.create(null) });
    }
    this.points.push(point);
    while (this.points[0].time < point.time - SPAN_S) this.points.shift();
  }

  /** Return times and values of a field, of one channel or, with null, of all together. */
  series(channel, field) {
    const place = FIELDS.indexOf(field);
    const values = this.points.map((point) => {
      const found = channel === null ? point.total : point.channels[channel];
      return found ? found[place] : null;
    });
    return [this.points.map((point) => point.time), values];
  }
}

/** The largest lag of a channel's subscribers; null where none can be seen. */
export function largestLag(row) {
  return largest(row.subscribers.map((each) => each.lag_bytes));
}

/** The largest of some figures, those that cannot be seen left out. */
export function largest(values) {
  return values.reduce((most, value) => (value === null || value < most ? most : value), null);
}
