// What is asked of the reader: to confirm, and to log in.

import { post } from "./api.js";
import { byId, el, put, setText } from "./dom.js";

/**
 * Ask before something is done; the default is not to.
 *
 * `title` is the question, `lines` say what will happen, `action` is the button's word. `choices`
 * are {value, text}, the first one preset. Returns the choice, or null.
 */
export function confirm({ title, lines, action, choices = [{ value: "yes", text: "" }] }) {
  const options = choices.map(({ value, text }, index) =>
    el("label", { class: "choice" },
      el("input", { type: "radio", name: "choice", value, checked: index === 0 }), text));
  // A new one each time: the last one may have been closed and not have told so yet.
  const dialog = el("dialog", { "aria-labelledby": "confirm-title" },
    el("form", { method: "dialog" },
      el("h2", { id: "confirm-title" }, title),
      ...lines.map((line) => el("p", {}, line)), ...(choices.length > 1 ? options : []),
      el("menu", {},
        el("button", { value: "", autofocus: true }, "Cancel"),
        el("button", { value: "yes" }, action))));
  byId("main").after(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const chosen = dialog.querySelector("input:checked")?.value ?? choices[0].value;
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? chosen : null);
    });
  });
}

/** Ask for the token until it is right; `done` is called then. */
export function askToken(done) {
  const dialog = byId("login");
  if (dialog.open) return;
  const form = dialog.querySelector("form");
  const problem = dialog.querySelector(".problem");
  form.onsubmit = async (event) => {
    event.preventDefault();
    setText(problem, "");
    try {
      await post("login", { token: form.elements.token.value });
    } catch (error) {
      setText(problem, error.message);
      form.elements.token.select();
      return;
    }
    form.reset();
    dialog.close();
    done();
  };
  // There is nothing behind it to go back to.
  dialog.oncancel = (event) => event.preventDefault();
  dialog.showModal();
}

let clearing = 0;

/** Say how something went, where a screen reader notices. */
export function notify(text, { lasting = false } = {}) {
  const notice = byId("notice");
  put(notice, text, " ", el("button", { type: "button", click: () => put(notice) }, "Dismiss"));
  clearTimeout(clearing);
  if (!lasting) clearing = setTimeout(() => put(notice), 10000);
}
