// Building the page. Whatever comes from outside enters it here, as text in which nothing hides.

// Controls, format characters (those that turn the direction of text among them), separators that
// break lines, and halves of surrogate pairs.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** Return text with every character that would not be seen written as an escape. */
export function visible(text, keep = "") {
  return String(text).replace(HIDDEN, (character) =>
    keep.includes(character) ? character : escaped(character));
}

function escaped(character) {
  const code = character.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
}

/**
 * Make an element. Properties that are functions listen to the event of that name; strings among
 * the children become text nodes.
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, visible(value));
  }
  put(element, ...children);
  return element;
}

/** Replace what an element holds. */
export function put(element, ...children) {
  element.replaceChildren(
    ...children.filter((child) => child !== null && child !== false)
      .map((child) => (child instanceof Node ? child : visible(child))));
}

/** Set an element's text, and leave it alone where that is its text already. */
export function setText(element, text) {
  const wanted = visible(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Return the element with that id. */
export function byId(id) {
  return document.getElementById(id);
}
