// A table whose rows stay the same elements while their figures change, so that focus stays too.

import { el, put, setText } from "./dom.js";

/**
 * Columns are {label, text(row), className?, title?(row), compare?(row), make?(cell, row),
 * fill?(cell, row)}: `make` is called once for a cell, `fill` or `text` whenever there are new
 * figures. One with `compare` can be sorted by, numbers from the largest, text from A.
 */
export class Table {
  #columns;
  #key;
  #open;
  #sorted;
  #empty;
  #rows = new Map();
  #data = [];
  #heads = [];
  #body = el("tbody");
  #nothing = el("p", { class: "quiet empty" });

  constructor({ caption, columns, key, open = null, sort = null, empty = "None." }) {
    this.#columns = columns;
    this.#key = key;
    this.#open = open;
    this.#sorted = sort;
    this.#empty = empty;
    this.#heads = columns.map((column) => this.#head(column));
    this.table = el("table", {}, el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, ...this.#heads)), this.#body);
    this.table.hidden = true; // until there is something to show
    this.element = el("div", {}, this.table, this.#nothing);
    this.#mark();
  }

  #head(column) {
    const head = el("th", { scope: "col", class: column.className ?? "" });
    if (column.compare) {
      put(head, el("button", { type: "button", click: () => this.#sortBy(column) }, column.label));
    } else {
      put(head, column.label);
    }
    return head;
  }

  #sortBy(column) {
    const again = this.#sorted?.label === column.label;
    this.#sorted = { label: column.label, turned: again ? !this.#sorted.turned : false };
    this.#mark();
    this.update(this.#data);
  }

  #mark() {
    this.#columns.forEach((column, index) => {
      if (column.label !== this.#sorted?.label) {
        this.#heads[index].removeAttribute("aria-sort");
      } else {
        const down = isFigure(column) !== Boolean(this.#sorted.turned);
        this.#heads[index].setAttribute("aria-sort", down ? "descending" : "ascending");
      }
    });
  }

  update(data, empty = this.#empty) {
    this.#data = data;
    const before = this.#rows;
    this.#rows = new Map();
    for (const item of this.#inOrder(data)) {
      const key = this.#key(item);
      const row = before.get(key) ?? this.#make(key);
      before.delete(key);
      row.item = item;
      row.cells.forEach((cell, index) => fill(this.#columns[index], cell, item));
      this.#rows.set(key, row);
    }
    for (const row of before.values()) {
      row.detail?.remove();
      row.element.remove();
      for (const cell of row.cells) cell.spark?.close();
    }
    this.#place();
    this.table.hidden = data.length === 0;
    setText(this.#nothing, data.length ? "" : empty);
  }

  #inOrder(data) {
    const column = this.#columns.find((each) => each.label === this.#sorted?.label);
    if (!column) return data;
    const sign = (isFigure(column) ? -1 : 1) * (this.#sorted.turned ? -1 : 1);
    return [...data].sort((one, other) => {
      const [left, right] = [column.compare(one), column.compare(other)];
      if (left === right) return this.#key(one) < this.#key(other) ? -1 : 1;
      if (left === null || right === null) return left === null ? 1 : -1;
      return left < right ? -sign : sign;
    });
  }

  #make(key) {
    const cells = this.#columns.map((column, index) =>
      el(index === 0 ? "th" : "td",
        { class: column.className ?? "", ...(index === 0 ? { scope: "row" } : {}) }));
    const element = el("tr", { "data-row": key, tabindex: "-1" }, ...cells);
    const row = { element, cells, item: null, detail: null };
    element.addEventListener("open", () => this.#open?.(row.item, this));
    return row;
  }

  #place() {
    const focused = document.activeElement;
    let next = this.#body.firstElementChild;
    for (const row of this.#rows.values()) {
      for (const element of [row.element, row.detail]) {
        if (element === null) continue;
        if (element === next) next = next.nextElementSibling;
        else this.#body.insertBefore(element, next);
      }
    }
    // Who is moved loses the focus.
    if (focused !== document.activeElement && this.#body.contains(focused)) {
      focused.focus({ preventScroll: true });
    }
  }

  /** Show something below a row, or take it away; tell whether it is shown now. */
  toggle(item, make) {
    const row = this.#rows.get(this.#key(item));
    if (row.detail) {
      row.detail.remove();
      row.detail = null;
    } else {
      const cell = el("td", { colspan: this.#columns.length }, make());
      row.detail = el("tr", { class: "detail" }, cell);
      row.element.after(row.detail);
      row.detail.scrollIntoView({ block: "nearest" });
    }
    const shown = row.detail !== null;
    row.element.querySelector("[aria-expanded]")?.setAttribute("aria-expanded", String(shown));
    return shown;
  }

  /** The item of the row that has the focus, or null. */
  get focused() {
    const element = document.activeElement?.closest("tr[data-row]");
    for (const row of this.#rows.values()) if (row.element === element) return row.item;
    return null;
  }

  close() {
    this.update([]);
  }
}

function isFigure(column) {
  return (column.className ?? "").split(" ").includes("number");
}

function fill(column, cell, item) {
  if (column.make && !cell.made) {
    cell.made = true;
    column.make(cell, item);
  }
  if (column.fill) column.fill(cell, item);
  else if (column.text) setText(cell, column.text(item));
}
