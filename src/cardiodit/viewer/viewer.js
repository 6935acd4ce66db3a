// Plays volumes side by side on 2D canvases, in sync.

const SPEEDS = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4];
const CAPTION = 40; // pixels under a picture, as in the style
const CAPTION_WIDTH = 240;
const GAP = 8;
const SMALLEST = 120; // pixels; below, the page scrolls
const FUNCTION = 86; // pixels of a volume curve and its numbers, as in the style
const RULES = [1, 2, 5, 10, 20, 50, 100, 200]; // lengths of the scale bar in mm
const LONGEST_RULE = 0.35; // of the picture's width

const most = (name) => Math.max(...contents.volumes.map((volume) => volume[name]));
const frames = most("frames");
const slices = most("slices");
const hasMasks = contents.volumes.some((volume) => volume.labels !== null);
const hasCurves = contents.volumes.some((volume) => volume.function !== null);

const player = new Player(frames, contents.beat ?? UNKNOWN_BEAT, draw);
let shownSlice = Math.floor((slices - 1) / 2);

async function unpack(text) {
  const packed = atob(text);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- The volumes of the ventricles over the beat: the width is the beat, frame t of T lies at t/T

class Curves {
  constructor({ curves, ED, ES, text }) {
    this.frames = curves[0].ml.length;
    this.largest = 1.15 * Math.max(...curves.flatMap(({ ml }) => ml));
    const marks = Object.entries({ ED, ES }).map(([name, frame]) => ({ name, frame, ml: curves[0].ml[frame] }));
    this.area = make("div", "curves");
    this.area.innerHTML = `<svg viewBox="0 0 100 100" preserveAspectRatio="none"><path class="ground" d="M0 100H100"/>
      ${curves.map(({ colour, ml }) => `<path stroke="rgb(${colour.join(" ")})" d="${this.line(ml)}"/>`).join("")}
      ${marks.map(({ frame, ml }) => `<path class="mark" d="M${this.x(frame)} ${this.y(ml)}h0"/>`).join("")}
      <path class="now"/></svg>`;
    this.area.append(...marks.map((mark) => this.label(mark)));
    this.now = this.area.querySelector(".now");
    this.element = make("div", "function");
    this.element.append(this.area, make("p", "", text));
    this.area.addEventListener("pointerdown", (event) => {
      this.area.setPointerCapture(event.pointerId);
      this.seek(event);
    });
    this.area.addEventListener("pointermove", (event) => event.buttons && this.seek(event));
  }

  x(frame) {
    return (100 * frame) / this.frames;
  }

  y(ml) {
    return 100 - (100 * ml) / this.largest;
  }

  // After the last frame the first comes again. Frames that are not labelled are left out.
  line(ml) {
    const points = ml.map((value, frame) => [frame, value]).filter(([, value]) => value !== null);
    if (points.length === ml.length) points.push([ml.length, ml[0]]);
    return "M" + points.map(([frame, value]) => `${this.x(frame)} ${this.y(value)}`).join("L");
  }

  label({ name, frame, ml }) {
    const label = make("span", "", name);
    const [side, share] = frame < this.frames / 2 ? ["left", this.x(frame)] : ["right", 100 - this.x(frame)];
    label.style[side] = `${share}%`;
    label.style.top = `calc(${this.y(ml)}% - ${name === "ED" ? 11 : -3}px)`;
    return label;
  }

  seek({ clientX }) {
    const { left, width } = this.area.getBoundingClientRect();
    const share = Math.min(0.999, Math.max(0, (clientX - left) / width));
    player.stopAt(Math.floor(share * frames));
  }

  draw(frame) {
    this.now.setAttribute("d", `M${this.x(frame)} 0V100`);
  }
}

// ---- One volume

class Panel {
  static async open(volume) {
    const [levels, labels] = await Promise.all([unpack(volume.levels), volume.labels && unpack(volume.labels)]);
    volume.levels = volume.labels = null; // the packed text is no longer needed
    return new Panel(volume, levels, labels);
  }

  constructor(volume, levels, labels) {
    Object.assign(this, { volume, levels, labels });
    this.canvas = document.createElement("canvas");
    this.canvas.width = volume.columns;
    this.canvas.height = volume.rows;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", volume.title);
    this.pen = this.canvas.getContext("2d");
    this.picture = this.pen.createImageData(volume.columns, volume.rows);
    const box = make("div", "picture");
    box.append(this.canvas);
    for (const [edge, letters] of Object.entries(volume.edges ?? {})) box.append(make("span", edge, letters));
    this.rule = make("span", "scale");
    if (volume.isInMm) box.append(this.rule);
    this.curves = volume.function && new Curves(volume.function);
    this.says = make("span", "says");
    const title = make("span", "", volume.title);
    title.title = volume.title;
    const caption = document.createElement("figcaption");
    caption.append(title, this.says);
    this.figure = document.createElement("figure");
    this.figure.append(box, caption);
    if (hasCurves) this.figure.append(this.curves?.element ?? make("div", "function"));
  }

  // Set the size of the picture in pixels per mm.
  resize(scale) {
    const { width, height } = this.volume;
    this.canvas.style.width = `${scale * width}px`;
    this.canvas.style.height = `${scale * height}px`;
    const mm = RULES.findLast((length) => length <= LONGEST_RULE * width) ?? RULES[0];
    this.rule.style.width = `${scale * mm}px`;
    this.rule.textContent = `${mm} mm`;
  }

  // A volume with fewer slices or frames shows the one at the same share of its depth or beat.
  slice() {
    return slices > 1 ? Math.round((shownSlice * (this.volume.slices - 1)) / (slices - 1)) : 0;
  }

  frame() {
    return Math.floor((player.step * this.volume.frames) / frames);
  }

  draw(grey, opacity) {
    const { columns, rows, slices: depth, maskFrames } = this.volume;
    const size = columns * rows;
    const start = (this.frame() * depth + this.slice()) * size;
    const maskStart = ((maskFrames > 1 ? this.frame() : 0) * depth + this.slice()) * size;
    const pixels = this.picture.data;
    for (let i = 0; i < size; i++) {
      const shade = grey[this.levels[start + i]];
      const label = this.labels && opacity > 0 ? this.labels[maskStart + i] : 0;
      for (let c = 0; c < 3; c++) {
        pixels[4 * i + c] = label ? shade + (contents.colours[label][c] - shade) * opacity : shade;
      }
      pixels[4 * i + 3] = 255;
    }
    this.pen.putImageData(this.picture, 0, 0);
    this.curves?.draw(this.frame());
    this.caption();
  }

  caption() {
    const parts = [];
    if (this.volume.slices > 1) parts.push(`slice ${this.slice() + 1}/${this.volume.slices}`);
    const { ED, ES } = this.volume.function ?? {};
    const phase = this.frame() === ED ? " ED" : this.frame() === ES ? " ES" : "";
    if (this.volume.frames > 1) parts.push(`frame ${this.frame() + 1}/${this.volume.frames}${phase}`);
    parts.push(`W ${width(this.volume)} L ${level(this.volume)}`);
    this.says.textContent = parts.join(" · ");
  }
}

// ---- Grey: the sliders count in levels 0 to 255, what is read is in the volume's own unit

function width({ low, high, decimals }) {
  return ((element("window").value / 255) * (high - low)).toFixed(decimals);
}

function level({ low, high, decimals }) {
  return (low + (element("level").value / 255) * (high - low)).toFixed(decimals);
}

function greys() {
  const span = Number(element("window").value);
  const black = element("level").value - span / 2;
  return Uint8ClampedArray.from({ length: 256 }, (_, i) => ((i - black) / span) * 255);
}

// ---- All volumes

const panels = [];

function draw() {
  const grey = greys();
  const opacity = element("mask").checked ? element("opacity").value / 100 : 0;
  for (const panel of panels) panel.draw(grey, opacity);
  describe();
}

function describe() {
  const frame = player.step;
  const time = contents.beat === null ? "" : ` · ${Math.round((1000 * contents.beat * frame) / frames)} ms`;
  describeControl("frame", `${frame + 1} of ${frames}${time}`, frame);
  describeControl("slice", `${shownSlice + 1} of ${slices}`, shownSlice);
  const [first, ...others] = contents.volumes;
  const isShared = others.every((other) => other.low === first.low && other.high === first.high);
  const share = (id) => `${Math.round(element(id).value / 2.55)} %`;
  describeControl("window", isShared ? width(first) : share("window"));
  describeControl("level", isShared ? level(first) : share("level"));
  element("speed-says").textContent = `${player.speed}×`;
  element("play").textContent = player.playing ? "Pause" : "Play";
}

function arrange() {
  const area = element("panels");
  const style = getComputedStyle(area);
  const below = CAPTION + (hasCurves ? FUNCTION : 0);
  const wide = area.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const cell = (columns) => ({
    columns,
    width: Math.max(SMALLEST, (wide - GAP * (columns - 1)) / columns),
    height: Math.max(SMALLEST, (area.clientHeight + GAP) / Math.ceil(panels.length / columns) - GAP - below),
  });
  const scale = ({ width, height }, volume) => Math.min(width / volume.width, height / volume.height);
  const smallest = (box) => Math.min(...contents.volumes.map((volume) => scale(box, volume) * volume.width));
  const boxes = panels.map((_, i) => cell(i + 1));
  const best = boxes.reduce((a, b) => (smallest(b) > smallest(a) ? b : a));
  const widest = Math.max(CAPTION_WIDTH, ...contents.volumes.map((volume) => scale(best, volume) * volume.width));
  area.style.gridTemplateColumns = `repeat(${best.columns}, ${Math.min(best.width, widest)}px)`;
  for (const panel of panels) panel.resize(scale(best, panel.volume));
}

// ---- Controls

const stepFrame = (by) => player.stopAt(player.step + by);

function stepSlice(by) {
  shownSlice = Math.min(slices - 1, Math.max(0, shownSlice + by));
  draw();
}

function stepSpeed(by) {
  const i = SPEEDS.indexOf(player.speed) + by;
  player.speed = SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, i))];
  draw();
}

function toggleMask() {
  element("mask").checked = !element("mask").checked;
  draw();
}

function resetGrey() {
  for (const id of ["window", "level"]) element(id).value = element(id).defaultValue;
  draw();
}

const KEYS = {
  " ": () => player.play(!player.playing),
  ArrowLeft: () => stepFrame(-1),
  ArrowRight: () => stepFrame(1),
  ArrowDown: () => stepSlice(-1),
  ArrowUp: () => stepSlice(1),
  m: toggleMask,
  r: resetGrey,
  "[": () => stepSpeed(-1),
  "-": () => stepSpeed(-1),
  "]": () => stepSpeed(1),
  "+": () => stepSpeed(1),
};

function onKey(event) {
  if ((event.ctrlKey || event.altKey || event.metaKey) && !event.getModifierState("AltGraph")) return;
  const isArrow = event.key.startsWith("Arrow");
  if (isArrow && event.target.matches("input[type=range]")) return; // the slider handles arrow keys
  if (event.key === " " && event.target.matches("button, input[type=checkbox]")) return; // the focused control handles the space key
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function onDrag(event) {
  if (!event.buttons) return;
  element("window").value = Number(element("window").value) + event.movementX / 2;
  element("level").value = Number(element("level").value) + event.movementY / 2;
  draw();
}

function listen() {
  element("play").addEventListener("click", () => player.play(!player.playing));
  element("frame").addEventListener("input", (event) => player.stopAt(Number(event.target.value)));
  element("slice").addEventListener("input", (event) => stepSlice(event.target.value - shownSlice));
  element("slower").addEventListener("click", () => stepSpeed(-1));
  element("faster").addEventListener("click", () => stepSpeed(1));
  element("reset").addEventListener("click", resetGrey);
  for (const id of ["window", "level", "mask", "opacity"]) element(id).addEventListener("input", draw);
  document.addEventListener("keydown", onKey);
  for (const { canvas } of panels) {
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", onDrag);
    canvas.addEventListener("wheel", onWheel, { passive: false });
  }
  new ResizeObserver(arrange).observe(element("panels"));
}

function onWheel(event) {
  event.preventDefault();
  stepSlice(-Math.sign(event.deltaY));
}

function showLegend() {
  for (const [label, name] of Object.entries(contents.legend)) {
    const entry = document.createElement("span");
    const patch = document.createElement("i");
    patch.style.background = `rgb(${contents.colours[label].join(" ")})`;
    entry.append(patch, name);
    element("legend").append(entry);
  }
}

async function start() {
  if (!("DecompressionStream" in window)) throw new Error("this browser is too old; one from 2023 or later is needed");
  for (const volume of contents.volumes) panels.push(await Panel.open(volume));
  element("frame").max = frames - 1;
  element("slice").max = slices - 1;
  element("playing").hidden = frames === 1;
  element("slicing").hidden = slices === 1;
  element("masking").hidden = !hasMasks;
  element("notice").remove();
  element("panels").append(...panels.map((panel) => panel.figure));
  showLegend();
  arrange();
  listen();
  player.playUnlessMotionIsReduced();
}

startPage(start);
