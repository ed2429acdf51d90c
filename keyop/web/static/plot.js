// One figure over the last ten minutes, drawn with uPlot.

import { el, setText } from "./dom.js";
import { clock } from "./format.js";
import { SPAN_S } from "./history.js";

const LEAST_S = 120;
const HEIGHT = 150;
const SPARK = { width: 110, height: 22 };
// Steps of an axis of bytes: powers of two, so that its labels are round.
const BYTE_STEPS = Array.from({ length: 51 }, (_, power) => 2 ** power);

/** A plot with axes and a heading, which has the newest value or that under the pointer. */
export class Plot {
  #uplot;
  #value = el("span", { class: "value" });
  #area = el("div", { class: "area", "aria-hidden": "true" });
  #resized;
  #format;

  constructor(title, format, { inBytes = false } = {}) {
    this.#format = format;
    this.element = el("figure", { class: "plot" },
      el("figcaption", {}, el("span", {}, title), this.#value), this.#area);
    const axis = {
      stroke: () => colour("--quiet"),
      grid: { stroke: () => colour("--rule"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const times = {
      ...axis, space: 70, size: 24,
      values: (_, splits) => splits.map((time) => clock(new Date(time * 1000)).slice(0, 5)),
      incrs: [60, 120, 300],
    };
    const values = {
      ...axis, space: 32, size: 74, values: (_, splits) => splits.map(format),
      ...(inBytes ? { incrs: BYTE_STEPS } : {}),
    };
    this.#uplot = new uPlot({
      ...options(400, HEIGHT, () => this.now),
      axes: [times, values],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      hooks: { setCursor: [() => this.#say()] },
    }, [[], []], this.#area);
    this.#resized = new ResizeObserver(() => {
      const width = this.#area.clientWidth;
      if (width && width !== this.#uplot.width) this.#uplot.setSize({ width, height: HEIGHT });
    });
    this.#resized.observe(this.#area);
  }

  update([times, values], now) {
    this.now = now;
    this.#uplot.setData([times, values]);
    this.#say();
  }

  #say() {
    const [times, values] = this.#uplot?.data ?? [[], []];
    const place = this.#uplot?.cursor.idx ?? null;
    if (place !== null && times[place]) {
      const when = clock(new Date(times[place] * 1000));
      setText(this.#value, `${when}  ${this.#format(values[place])}`);
    } else {
      setText(this.#value, this.#format(values.at(-1)));
    }
  }

  close() {
    this.#resized.disconnect();
    this.#uplot.destroy();
  }
}

/** A plot in a row of a table; nothing is drawn before it is seen. */
export class Spark {
  #uplot = null;
  #watch;
  #latest = null;
  #seen = false;

  constructor() {
    this.element = el("div", { class: "spark", "aria-hidden": "true" });
    this.#watch = new IntersectionObserver((entries) => {
      this.#seen = entries.at(-1).isIntersecting;
      if (this.#seen) this.#draw();
    });
    this.#watch.observe(this.element);
  }

  /** `series` returns times and values; it is called when they are drawn. */
  update(series, now) {
    this.now = now;
    this.#latest = series;
    if (this.#seen) this.#draw();
  }

  #draw() {
    if (this.#latest === null) return;
    this.#uplot ??= new uPlot({
      ...options(SPARK.width, SPARK.height, () => this.now),
      axes: [{ show: false }, { show: false }],
      cursor: { show: false },
      padding: [2, 0, 1, 0],
    }, [[], []], this.element);
    this.#uplot.setData(this.#latest());
  }

  close() {
    this.#watch.disconnect();
    this.#uplot?.destroy();
  }
}

function options(width, height, now) {
  return {
    width, height,
    legend: { show: false },
    scales: {
      x: { time: true, range: (plot) => [start(plot.data[0][0] ?? Infinity, now()), now()] },
      y: { range: (_, least, most) => [0, most > 0 ? most * 1.1 : 1] },
    },
    series: [{}, { stroke: () => colour("--line"), width: 1.5, points: { show: false } }],
  };
}

// While little is known, that little fills the plot.
function start(first, now) {
  return Math.max(now - SPAN_S, Math.min(first, now - LEAST_S));
}

const colours = new Map();

// A canvas knows nothing of light and dark; an element's computed colour does.
function colour(name) {
  if (!colours.has(name)) {
    document.body.style.setProperty("color", `var(${name})`);
    colours.set(name, getComputedStyle(document.body).color);
    document.body.style.removeProperty("color");
  }
  return colours.get(name);
}

/** Look the colours up again: the theme has changed. */
export function forgetColours() {
  colours.clear();
}
