// Shared by the pages that play volumes. It and the page's own script form one module, so that nothing is global.

const UNKNOWN_BEAT = 1; // seconds per cycle if the frame time is unknown

const element = (id) => document.getElementById(id);
const contents = JSON.parse(element("contents").textContent);

// Runs through a cycle of `steps` steps in `seconds`, and calls `draw` at each new step.
class Player {
  constructor(steps, seconds, draw) {
    Object.assign(this, { steps, seconds, draw, position: 0, speed: 1, playing: false, request: 0 });
  }

  get step() {
    return Math.floor(this.position);
  }

  play(playing) {
    this.playing = playing && this.steps > 1;
    this.schedule(this.playing);
    this.draw();
  }

  playUnlessMotionIsReduced() {
    this.play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  }

  // Request the next animation frame, or cancel the pending one.
  schedule(running) {
    cancelAnimationFrame(this.request);
    if (running) this.request = requestAnimationFrame(this.advanceFrom(performance.now()));
  }

  advanceFrom(before) {
    return (now) => {
      if (!this.playing) return;
      const step = this.step;
      const cycles = (Math.max(0, now - before) / 1000 / this.seconds) * this.speed;
      this.position = (this.position + cycles * this.steps) % this.steps;
      if (this.step !== step) this.draw();
      this.request = requestAnimationFrame(this.advanceFrom(now));
    };
  }

  // Stop at a step.
  stopAt(step) {
    this.playing = false;
    this.position = (step + this.steps) % this.steps;
    this.draw();
  }
}

// Show a control's value as text, also for screen readers.
function describeControl(id, text, value = null) {
  if (value !== null) element(id).value = value;
  element(id).setAttribute("aria-valuetext", text);
  element(`${id}-says`).textContent = text;
}

function startPage(start) {
  start()
    .then(() => (document.body.dataset.ready = "yes"))
    .catch((error) => {
      element("notice").textContent = `The volumes cannot be shown: ${error.message}.`;
      throw error;
    });
}
