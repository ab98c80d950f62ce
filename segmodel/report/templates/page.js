"use strict";
// Tables that sort by a click on a header and filter as one types. Without this script they are plain tables.
const FIRST = 100; // rows that are shown until one asks for all
const collator = new Intl.Collator("en", { numeric: true });

function cellValue(row, column, numeric) {
  const text = row.cells[column].textContent.trim();
  if (!numeric) return text;
  const value = parseFloat(text.replaceAll(",", "").replace("−", "-"));
  return Number.isNaN(value) ? null : value;
}

function compare(a, b) {
  return typeof a === "number" ? a - b : collator.compare(a, b);
}

function setUp(box) {
  const table = box.querySelector("table"), body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const place = new Map(rows.map((row, index) => [row, index]));
  const headers = Array.from(table.tHead.rows[0].cells);
  const order = rows.slice();
  let limit = FIRST, printing = false;

  const bar = document.createElement("div");
  bar.className = "bar";
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "Filter " + box.dataset.what;
  search.setAttribute("aria-label", search.placeholder);
  const count = document.createElement("output");
  const all = document.createElement("button");
  all.type = "button";
  bar.append(search, count, all);
  if (rows.length > 5) box.prepend(bar);

  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = order.filter((row) => words.every((word) => texts[place.get(row)].includes(word)));
    const found = matching.length, shown = Math.min(found, printing ? Infinity : limit);
    body.replaceChildren(...matching.slice(0, shown)); // others stay out of the page: it remains fast
    const total = printing ? rows.length : found; // paper does not show what was typed
    const part = shown < total ? shown.toLocaleString("en") + " of " : "";
    count.textContent = part + total.toLocaleString("en") + " " + box.dataset.what;
    bar.classList.toggle("part", shown < rows.length);
    all.hidden = found <= limit;
    all.textContent = "Show all";
  }

  function sort(header, column) {
    const numeric = header.classList.contains("number");
    const first = numeric ? "descending" : "ascending";
    const last = numeric ? "ascending" : "descending";
    const direction = header.getAttribute("aria-sort") === first ? last : first;
    for (const other of headers) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const values = new Map(rows.map((row) => [row, cellValue(row, column, numeric)]));
    order.sort((a, b) => {
      const left = values.get(a), right = values.get(b);
      if (left === null || right === null) return (left === null) - (right === null); // unknown ones last
      return sign * compare(left, right) || place.get(a) - place.get(b);
    });
    show();
  }

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(header, column));
  });
  search.addEventListener("input", show);
  all.addEventListener("click", () => { limit = Infinity; show(); });
  window.addEventListener("beforeprint", () => { printing = true; show(); });
  window.addEventListener("afterprint", () => { printing = false; show(); });
  show();
}

// A click on a slice, or Enter, shows it large; another one, small.
function enlarge(frame) {
  const turn = () => {
    const large = frame.parentElement.classList.toggle("large");
    frame.setAttribute("aria-pressed", String(large));
  };
  frame.tabIndex = 0;
  frame.setAttribute("role", "button");
  frame.setAttribute("aria-pressed", "false");
  frame.addEventListener("click", turn);
  frame.addEventListener("keydown", (event) => { if (event.key === "Enter") turn(); });
}

document.querySelectorAll(".table").forEach(setUp);
document.querySelectorAll(".slice .frame").forEach(enlarge);
