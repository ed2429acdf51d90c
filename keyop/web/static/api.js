// Asking the server. All addresses are relative, so the page works under any prefix.

const TIMEOUT_MS = 15000;
let askForToken = () => {};

/** What the server refused, or, with status 0, that it did not answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether there was nobody to answer, rather than an answer that one does not like. */
  get isOutage() {
    return this.status === 0 || this.status >= 500;
  }
}

/** Have a function called whenever the server asks for the token. */
export function whenUnauthorized(callback) {
  askForToken = callback;
}

/** Ask for something; `parameters` is a list of pairs, of which empty ones are left out. */
export function get(path, parameters = [], reviver = undefined) {
  const query = new URLSearchParams(
    parameters.filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return request(`api/v1/${path}${query.size ? `?${query}` : ""}`, {}, reviver);
}

/** As `get`, for records: their numbers keep all their digits, where the browser can do that. */
export function getRecords(path, parameters) {
  return get(path, parameters, asWritten);
}

function asWritten(key, value, context) {
  const changed = typeof value === "number" && context && String(value) !== context.source;
  return changed && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

export function post(path, body = {}) {
  return request(`api/v1/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

export function channelPath(channel, rest) {
  return `channels/${encodeURIComponent(channel)}/${rest}`;
}

async function request(url, options, reviver) {
  let response;
  let text;
  try {
    response = await fetch(url, {
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
      ...options,
    });
    text = await response.text();
  } catch (error) {
    const why = error.name === "TimeoutError" ? "it took too long" : "it cannot be reached";
    throw new ApiError(0, `The server does not answer: ${why}.`);
  }
  if (response.ok) {
    try {
      return text ? JSON.parse(text, reviver) : null;
    } catch {
      throw new ApiError(0, "The server's answer is not JSON.");
    }
  }
  const error = new ApiError(response.status, problem(text, response));
  if (error.status === 401 && !url.endsWith("/login")) askForToken();
  throw error;
}

function problem(text, response) {
  try {
    return JSON.parse(text).error ?? response.statusText;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}
