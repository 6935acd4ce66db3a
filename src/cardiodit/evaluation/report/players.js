// Plays volumes beside each other: all show the same share of their beat and of their depth.

const LEAFING = 12; // slices per second, if volumes do not beat

const most = (name) => Math.max(1, ...contents.volumes.map((volume) => volume[name].length));
const steps = { frame: most("frames"), slice: most("slices") };
const moving = steps.frame > 1 ? "frame" : "slice"; // volumes that do not beat play through their slices
const still = { frame: 0, slice: Math.floor((steps.slice - 1) / 2) };
const seconds = moving === "frame" ? (contents.seconds ?? UNKNOWN_BEAT) : steps.slice / LEAFING;
const player = new Player(steps[moving], seconds, draw);
const at = (name) => (name === moving ? player.step : still[name]);
const pictures = [];

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

function drawOne({ volume, picture, place, pen }) {
  const { columns, rows, across, slices, frames, depth, length } = volume;
  const frame = Math.floor((at("frame") * frames.length) / steps.frame);
  const slice = Math.round((at("slice") / Math.max(1, steps.slice - 1)) * (slices.length - 1));
  const tile = frame * slices.length + slice;
  const [x, y] = [(tile % across) * columns, Math.floor(tile / across) * rows];
  pen.drawImage(picture, x, y, columns, rows, 0, 0, columns, rows);
  const parts = [];
  if (depth > 1) parts.push(`slice ${slices[slice]}/${depth}`);
  if (length > 1) parts.push(`frame ${frames[frame]}/${length}`);
  place.textContent = parts.join(" · ");
}

function draw() {
  pictures.forEach(drawOne);
  for (const name of ["frame", "slice"]) describeControl(name, `${at(name) + 1} of ${steps[name]}`, at(name));
  element("play").textContent = player.playing ? "Pause" : "Play";
}

function control(name) {
  const slider = element(name);
  slider.max = steps[name] - 1;
  slider.parentElement.hidden = steps[name] === 1;
  slider.addEventListener("input", () => {
    const step = Number(slider.value);
    if (name === moving) return player.stopAt(step);
    still[name] = step;
    draw();
  });
}

async function startPlaying() {
  if (!contents.volumes.length) return;
  pictures.push(...(await Promise.all(contents.volumes.map(open))));
  ["frame", "slice"].forEach(control);
  element("play").hidden = steps[moving] === 1;
  element("play").addEventListener("click", () => player.play(!player.playing));
  player.playUnlessMotionIsReduced();
  // Do not draw while the players are out of view.
  new IntersectionObserver(([entry]) => {
    if (player.playing) player.schedule(entry.isIntersecting);
  }).observe(element("players"));
}
