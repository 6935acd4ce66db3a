// Sorts and searches the table of volumes.

// ---- The table of volumes

const body = document.querySelector(".volumes tbody");
const rows = [...body.rows];
const heads = [...document.querySelectorAll(".volumes thead th")];
const cells = (column) => rows.map((row) => row.cells[column].textContent);
const numberOf = (text) => Number(text.replace("−", "-").replace("∞", "Infinity") || NaN);

function order(column, direction) {
  const texts = cells(column);
  const numbers = texts.map(numberOf);
  const isMissing = (i) => texts[i] === "–";
  const areNumbers = texts.every((_, i) => isMissing(i) || !Number.isNaN(numbers[i]));
  const byText = (a, b) => texts[a].localeCompare(texts[b], "en", { numeric: true });
  const compare = (a, b) => (areNumbers ? numbers[a] - numbers[b] : byText(a, b));
  const places = rows.map((_, i) => i);
  return places.sort((a, b) => isMissing(a) - isMissing(b) || direction * compare(a, b) || a - b);
}

function sortBy(column) {
  const isUp = heads[column].getAttribute("aria-sort") !== "ascending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", isUp ? "ascending" : "descending");
  body.append(...order(column, isUp ? 1 : -1).map((i) => rows[i]));
}

function filter() {
  const words = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = [0, 1, 3].map((i) => row.cells[i].textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    count += !row.hidden;
  }
  element("filter-says").textContent = `${count} of ${rows.length}`;
}

function startTable() {
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sortBy(column)));
  element("filter").addEventListener("input", filter);
  filter();
}

// ---- All methods and notes are open on paper

function openOnPaper() {
  const folded = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => (opened = [...folded()]).forEach((each) => (each.open = true)));
  addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
}

startTable();
openOnPaper();
startPage(startPlaying);
