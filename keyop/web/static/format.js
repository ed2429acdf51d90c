// Figures for people. What cannot be seen, null, is a dash.

const NONE = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const NUMBER = new Intl.NumberFormat("en");
const ONE_DECIMAL = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export function count(value) {
  return value === null || value === undefined ? NONE : NUMBER.format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  let size = value;
  let unit = 0;
  while (size >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit && size < 100 ? size.toFixed(1) : Math.round(size)} ${UNITS[unit]}`;
}

export function bytesPerSecond(value) {
  return value === null || value === undefined ? NONE : `${bytes(value)}/s`;
}

export function perSecond(value) {
  if (value === null || value === undefined) return NONE;
  return `${value < 100 ? ONE_DECIMAL.format(value) : NUMBER.format(Math.round(value))}/s`;
}

/** A latency: µs, ms or s. */
export function latency(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
  return duration(seconds);
}

/** How long something takes or took, in its two largest units. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 10) return `${ONE_DECIMAL.format(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** The time of day where the reader is. */
export function clock(date) {
  return two(date.getHours(), date.getMinutes(), date.getSeconds());
}

/** Date and time where the reader is, from RFC 3339; text that is no time is returned as it is. */
export function moment(text) {
  const date = new Date(text ?? NaN);
  if (Number.isNaN(date.getTime())) return text || NONE;
  const day = [date.getFullYear(), ...[date.getMonth() + 1, date.getDate()].map(pad)].join("-");
  return `${day} ${clock(date)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

function two(...numbers) {
  return numbers.map(pad).join(":");
}

function pad(number) {
  return String(number).padStart(2, "0");
}
