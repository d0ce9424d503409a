"use strict";

// Tables: a click on a column's head sorts by it, a second click turns the order. Numbers sort by their value
// (data-sort), largest first; text by the alphabet; cells with neither come last, both ways.

function cellKey(row, column) {
  const cell = row.children[column];
  const number = cell.getAttribute("data-sort");
  return number === null ? cell.textContent.trim() : Number(number);
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b, "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function sortRows(rows, column, descending) {
  const keyed = rows.map((row, place) => ({ row, place, key: cellKey(row, column) }));
  keyed.sort((a, b) => {
    if ((a.key === "") !== (b.key === "")) return a.key === "" ? 1 : -1;
    const order = compareKeys(a.key, b.key);
    return (descending ? -order : order) || a.place - b.place;
  });
  return keyed.map((entry) => entry.row);
}

function sortTable(table, column) {
  const heads = [...table.querySelectorAll("th")];
  const body = table.querySelector("tbody");
  const rows = [...body.children];
  const before = heads[column].getAttribute("aria-sort");
  const numeric = rows.some((row) => typeof cellKey(row, column) === "number");
  const descending = before === null ? numeric : before === "ascending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  for (const row of sortRows(rows, column, descending)) body.appendChild(row);
}

// Tooltips: at the pointer, or under a bar that has the focus.

function showTip(tip, text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.max(4, Math.min(x + 12, window.innerWidth - box.width - 4));
  const below = y + 16 + box.height < window.innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? y + 16 : Math.max(4, y - box.height - 8)}px`;
}

for (const table of document.querySelectorAll("table")) {
  [...table.querySelectorAll("button")].forEach((button, column) => {
    button.addEventListener("click", () => sortTable(table, column));
  });
}

for (const bar of document.querySelectorAll(".bar")) {
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  bar.addEventListener("pointermove", (event) => {
    showTip(tip, bar.getAttribute("data-tip"), event.clientX, event.clientY);
  });
  bar.addEventListener("focus", () => {
    const box = bar.getBoundingClientRect();
    showTip(tip, bar.getAttribute("data-tip"), box.left, box.top + 24);
  });
  for (const name of ["pointerleave", "blur"]) bar.addEventListener(name, hide);
}

// Maps of many cells are one stop of the tab key; arrow keys move within.

for (const map of document.querySelectorAll(".heat")) {
  const rows = [...map.querySelector("tbody").children].map((row) => [...row.querySelectorAll("td")]);
  rows.forEach((cells, row) => cells.forEach((cell, column) => {
    cell.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
      const next = (rows[row + down] || [])[column + right];
      if ((!down && !right) || !next) return;
      event.preventDefault();
      cell.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }));
}
