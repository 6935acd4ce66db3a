// Plays the pictures, sorts and searches the table. A module: strict by itself, and nothing in it is global.

const UNKNOWN_BEAT = 1; // seconds a cycle, where the frame time is unknown

const element = (id) => document.getElementById(id);
const contents = JSON.parse(element("contents").textContent);

// ---- Playing: all volumes are at the same share of their beat and of their depth

const most = (name) => Math.max(1, ...contents.volumes.map((volume) => volume[name].length));
const steps = { frame: most("frames"), slice: most("slices") };
const moving = steps.frame > 1 ? "frame" : "slice"; // a volume that does not beat is leafed through
const view = { playing: false, next: 0, frame: 0, slice: Math.floor((steps.slice - 1) / 2) };
const players = [];

async function open(volume, number) {
  const canvas = element(`canvas-${number}`);
  canvas.width = volume.columns;
  canvas.height = volume.rows;
  canvas.style.aspectRatio = volume.aspect;
  const picture = new Image();
  picture.src = volume.picture;
  volume.picture = null;
  await picture.decode();
  const place = canvas.parentElement.querySelector(".place");
  return { volume, picture, place, pen: canvas.getContext("2d", { alpha: false }) };
}

function shown(volume) {
  const frame = Math.floor((Math.floor(view.frame) * volume.frames.length) / steps.frame);
  const share = steps.slice > 1 ? Math.floor(view.slice) / (steps.slice - 1) : 0;
  return { frame, slice: Math.round(share * (volume.slices.length - 1)) };
}

function drawOne({ volume, picture, place, pen }) {
  const { columns, rows, across, slices, frames, depth, length } = volume;
  const { frame, slice } = shown(volume);
  const tile = frame * slices.length + slice;
  const [x, y] = [(tile % across) * columns, Math.floor(tile / across) * rows];
  pen.drawImage(picture, x, y, columns, rows, 0, 0, columns, rows);
  const parts = [];
  if (depth > 1) parts.push(`slice ${slices[slice]}/${depth}`);
  if (length > 1) parts.push(`frame ${frames[frame]}/${length}`);
  place.textContent = parts.join(" · ");
}

function draw() {
  players.forEach(drawOne);
  for (const name of ["frame", "slice"]) {
    const text = `${Math.floor(view[name]) + 1} of ${steps[name]}`;
    element(name).value = Math.floor(view[name]);
    element(name).setAttribute("aria-valuetext", text);
    element(`${name}-says`).textContent = text;
  }
  element("play").textContent = view.playing ? "Pause" : "Play";
}

function play(playing) {
  view.playing = playing && steps[moving] > 1;
  cancelAnimationFrame(view.next);
  if (view.playing) view.next = requestAnimationFrame(advanceFrom(performance.now()));
  draw();
}

function advanceFrom(before) {
  return (now) => {
    if (!view.playing) return;
    const step = Math.floor(view[moving]);
    const beat = moving === "frame" ? (contents.seconds ?? UNKNOWN_BEAT) : steps.slice / 12;
    view[moving] = (view[moving] + (Math.max(0, now - before) / 1000 / beat) * steps[moving]) % steps[moving];
    if (Math.floor(view[moving]) !== step) draw();
    view.next = requestAnimationFrame(advanceFrom(now));
  };
}

function control(name) {
  const slider = element(name);
  slider.max = steps[name] - 1;
  slider.parentElement.hidden = steps[name] === 1;
  slider.addEventListener("input", () => {
    view[name] = Number(slider.value);
    if (name === moving) view.playing = false;
    draw();
  });
}

async function startPlaying() {
  if (!contents.volumes.length) return;
  players.push(...(await Promise.all(contents.volumes.map(open))));
  ["frame", "slice"].forEach(control);
  element("play").hidden = steps[moving] === 1;
  element("play").addEventListener("click", () => play(!view.playing));
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  // Nothing is drawn while nobody looks.
  new IntersectionObserver(([entry]) => {
    if (!view.playing) return;
    cancelAnimationFrame(view.next);
    if (entry.isIntersecting) view.next = requestAnimationFrame(advanceFrom(performance.now()));
  }).observe(element("players"));
}

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

// ---- On paper every method and note is open

function openOnPaper() {
  const folded = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => (opened = [...folded()]).forEach((each) => (each.open = true)));
  addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
}

startTable();
openOnPaper();
startPlaying()
  .then(() => (document.body.dataset.ready = "yes"))
  .catch((error) => {
    element("notice").textContent = `The volumes cannot be shown: ${error.message}.`;
    throw error;
  });
