"use strict";
// Sorting of tables, folding for print and links, light and dark. Without scripts the page reads
// as well: tables stay as they were written.

function order(cell) {
  const text = cell.dataset.order;
  if (text === undefined) return null;
  const number = Number(text);
  return text === "" || Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  // The first click on numbers shows the largest first: that is what one looks for.
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numbers = rows.some((row) => typeof order(row.cells[column]) === "number");
  const was = head.getAttribute("aria-sort");
  const down = was === null ? numbers : was === "ascending";
  rows.sort((one, other) => {
    const a = order(one.cells[column]);
    const b = order(other.cells[column]);
    if (a === null || b === null) return (a === null) - (b === null);
    return down ? compare(b, a) : compare(a, b);
  });
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
}

for (const head of document.querySelectorAll("table.sortable thead tr:last-child th")) {
  head.addEventListener("click", () => sortBy(head));
}

function reveal() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let node = target; node; node = node.parentElement) {
    if (node.tagName === "DETAILS") node.open = true;
  }
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.model:not([open])")];
  for (const part of opened) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of opened) part.open = false;
});

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
