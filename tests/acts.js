// What tests do with a page, in a browser or in V8 with dom.js.
function column(table, number) {
  return [...document.querySelectorAll("table")[table].querySelector("tbody").children]
    .map((row) => row.children[number].textContent.trim());
}

function click(table, number) {
  const found = document.querySelectorAll("table")[table].querySelectorAll("button")[number];
  found.click();
  return [...document.querySelectorAll("table")[table].querySelectorAll("th")].map((head) => head.getAttribute("aria-sort"));
}

function press(element, key) {
  if (element.dispatch) element.dispatch("keydown", { key, preventDefault() {} });
  else element.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
}
