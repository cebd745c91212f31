// Collapse in the browser: train the smallest I-JEPA here, with and without stop-gradient, and watch.

import { normalise, patchify } from "./patches.js";
import { sheet } from "./pictures.js";
import { Tensor } from "./tensor.js";
import { SIZE } from "./tiny.js";
import { STEPS } from "./train.js";
import { button, curves, legend, make, panel, slider, table } from "./view.js";

const [SIDE, PATCH] = [16, 4]; // pixels
const LOOK = { true: ["#2a8fd4", undefined], false: ["#d55e00", [6, 4]] };
const LOW_STD = 0.1; // as toy_ijepa/diagnostics.py warns

async function crowd() {
  const pictures = await sheet("crowd.png", SIDE);
  const N = SIZE.grid[0] * SIZE.grid[1];
  const found = Tensor.zeros(pictures.length * N, SIZE.inputs);
  pictures.forEach((picture, s) => found.data.set(patchify(normalise(picture), PATCH).data, s * N * SIZE.inputs));
  return found;
}

const WHAT = {
  loss: {
    title: "loss, on a scale of powers of ten",
    across: Math.log10,
    marks: [1e-4, 1e-3, 0.01, 0.1, 1],
    y: [1e-4, 1],
  },
  std: { title: "std of the features over pictures", y: [0, 1] },
  rank: { title: "effective rank of the features", y: [0, 16] },
};

function name({ stop, momentum }) {
  return stop ? `with stop-gradient, momentum ${momentum}` : "without stop-gradient";
}

/** What a finished run says, in a sentence. */
export function verdict(run) {
  const [first, last] = [run.rows[0], run.rows.at(-1)];
  const state =
    last.std < LOW_STD
      ? "collapsed: every picture gets nearly the same features"
      : "features still tell pictures apart";
  return `${name(run)}: loss ${last.loss.toPrecision(2)}, std from ${first.std.toFixed(2)} to ${last.std.toFixed(3)}; ${state}.`;
}

export async function start(element) {
  const runs = {}; // the last run with and without
  let momentum = 0.98;
  let worker = null;
  const panels = Object.fromEntries(
    Object.entries(WHAT).map(([key, { title }]) => [key, panel(title, { aspect: 1.7, wide: true })]),
  );
  const words = make(
    "p",
    { className: "words", role: "status" },
    `${STEPS} steps on a few hundred drawings of 16 x 16 pixels. Press a button.`,
  );
  const names = make("div");
  const numbers = make("div");

  function show() {
    const kept = Object.values(runs);
    const lines = kept.map((run) => ({ name: name(run), colour: LOOK[run.stop][0], dash: LOOK[run.stop][1], run }));
    for (const [key, { title, y, ...how }] of Object.entries(WHAT)) {
      const drawn = lines.map((line) => ({ ...line, values: line.run.rows.map((row) => [row.step, row[key]]) }));
      const last = kept.map((run) => `${name(run)} ${run.rows.at(-1)?.[key].toPrecision(2) ?? "not begun"}`).join("; ");
      panels[key].draw(curves(drawn, { x: [0, STEPS], y, ...how }), `${title}: ${last || "no run yet"}`);
    }
    names.replaceChildren(legend(lines));
    const body = kept
      .filter((run) => run.rows.length)
      .map((run) => {
        const row = run.rows.at(-1);
        return [name(run), `${row.step}`, row.loss.toPrecision(2), row.std.toFixed(3), row.rank.toFixed(1)];
      });
    numbers.replaceChildren(body.length ? table([["run", "step", "loss", "std", "rank"], ...body]) : "");
  }

  function end(text) {
    worker?.terminate();
    worker = null;
    for (const each of [withStop, without]) each.disabled = false;
    halt.disabled = true;
    words.textContent = text;
  }

  async function train(stop) {
    for (const each of [withStop, without]) each.disabled = true;
    halt.disabled = false;
    const run = { stop, momentum, rows: [] };
    runs[stop] = run;
    show();
    words.textContent = `Training ${name(run)} ...`;
    const { data, shape } = await crowd();
    worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    worker.onerror = (event) => end(`The training failed: ${event.message}`);
    worker.onmessage = ({ data: row }) => {
      if (row === "done") return end(`Done, ${verdict(run)}`);
      run.rows.push(row);
      show();
    };
    worker.postMessage({ patches: data, shape, settings: { stop, momentum } });
  }

  const withStop = button("Train with stop-gradient", () => train(true));
  const without = button("Train without", () => train(false));
  const halt = button("Stop", () => end("Stopped."), { disabled: true });
  const follow = slider(
    "target's momentum",
    { min: 0, max: 1, step: 0.005, value: momentum, show: (value) => value.toFixed(3) },
    (value) => (momentum = value),
  );
  element.replaceChildren(
    make("div", { className: "row" }, withStop, without, halt, follow.element),
    make("div", { className: "panels" }, ...Object.values(panels).map((each) => each.element)),
    names,
    words,
    numbers,
  );
  show();
}
