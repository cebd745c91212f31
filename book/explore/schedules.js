// Schedule explorer: plan a run, then count wrongly and see what becomes of its schedules.

import { Plan } from "./plan.js";
import { choice, curves, legend, make, panel, slider, soon, table } from "./view.js";

const POINTS = 200;
const [AS_SET, RIGHT] = ["#2a8fd4", "#d55e00"];
const COUNTING = [
  ["steps", "steps done / steps"],
  ["batches", "batches done / steps (bug)"],
  ["length", "steps done / batches (bug)"],
];
const WHAT = {
  lr: ["learning rate", (plan, step) => plan.lrAt(step)],
  decay: ["weight decay", (plan, step) => plan.decayAt(step)],
  momentum: ["EMA momentum m", (plan, step) => plan.momentumAt(step)],
  memory: ["EMA memory 1/(1-m), steps", (plan, step) => plan.memoryAt(step)],
};

const short = (value) => {
  if (!Number.isFinite(value)) return "for ever";
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
};

function lines(plan, at) {
  const sampled = (run) =>
    Array.from({ length: POINTS + 1 }, (_, i) => Math.round((i * (run.steps - 1)) / POINTS)).map((step) => [
      step,
      at(run, step),
    ]);
  const found = [{ values: sampled(plan), colour: AS_SET, name: "as set" }];
  if (plan.counting !== "steps" && plan.accumulation > 1) {
    const right = new Plan({ ...plan, counting: "steps" });
    found.push({ values: sampled(right), colour: RIGHT, dash: [6, 4], name: "counted rightly" });
  }
  return found;
}

/** The axis of a quantity: from 0, or for the momentum from its lowest; the memory in powers of ten. */
function axis(name, values) {
  const finite = values.filter(Number.isFinite);
  const [least, most] = [Math.min(...finite), Math.max(...finite)];
  if (name === "memory") {
    const high = 10 ** Math.ceil(Math.log10(Math.max(most, 10)));
    const marks = [];
    for (let mark = 1; mark <= high; mark *= 10) marks.push(mark);
    return {
      y: [1, high],
      marks,
      across: Math.log10,
      show: (mark) => (mark < 1e4 ? `${mark}` : mark.toExponential(0).replace("+", "")),
    };
  }
  if (name === "momentum") return { y: [Math.min(least, 0.999), 1], show: (mark) => `${+mark.toPrecision(6)}` };
  return { y: [0, most || 1], show: (mark) => `${+mark.toPrecision(3)}` };
}

export async function start(element) {
  const dials = { ...new Plan() };
  const panels = Object.fromEntries(
    Object.entries(WHAT).map(([name, [title]]) => [name, panel(title, { aspect: 2, wide: true })]),
  );
  const words = make("p", { className: "words", role: "status" });
  const names = make("div");
  const numbers = make("div");
  const refresh = soon(() => {
    const plan = new Plan(dials);
    const last = plan.steps - 1;
    let drawn = [];
    for (const [name, [title, at]] of Object.entries(WHAT)) {
      drawn = lines(plan, at);
      const { y, ...how } = axis(
        name,
        drawn.flatMap(({ values }) => values.map(([, value]) => value)),
      );
      panels[name].draw(
        curves(drawn, { x: [0, last], y, ...how }),
        `${title}: ${short(at(plan, 0))} at the start, ${short(at(plan, last))} at the end`,
      );
    }
    names.replaceChildren(legend(drawn));
    const body = Object.values(WHAT).map(([title, at]) => [title, short(at(plan, 0)), short(at(plan, last))]);
    numbers.replaceChildren(table([["", "at the start", "at the end"], ...body]));
    const idle = plan.idle
      ? ` The schedule is over early: the last ${plan.idle} steps train with learning rate 0.`
      : "";
    const never =
      plan.counting === "length" && plan.accumulation > 1
        ? ` The run ends at ${(100 * plan.progress(last)).toFixed(0)} % of its schedule: the rate never comes down to 0.`
        : "";
    words.textContent = plan.verdict() + idle + never;
  });
  const dial = (text, name, options, place = null) => {
    const value = place === null ? dials[name] : dials[name][place];
    return slider(text, { ...options, value }, (found) => {
      if (place === null) dials[name] = found;
      else dials[name] = dials[name].map((old, n) => (n === place ? found : old));
      refresh();
    }).element;
  };
  const pick = (text, name, options) =>
    choice(text, options, dials[name], (value) => ((dials[name] = value), refresh())).element;
  const power = slider(
    "peak learning rate",
    { min: -5, max: -1, step: 0.05, value: Math.log10(dials.lr), show: (value) => (10 ** value).toExponential(1) },
    (value) => ((dials.lr = 10 ** value), refresh()),
  );
  const fine = { min: 0.9, max: 1, step: 0.0005, show: (value) => value.toFixed(4) };
  element.replaceChildren(
    make(
      "div",
      { className: "row" },
      dial("optimiser steps", "steps", { min: 100, max: 20000, step: 100 }),
      dial("batches a step", "accumulation", { min: 1, max: 16 }),
      pick("progress is", "counting", COUNTING),
      pick("momentum's way", "shape", [
        ["linear", "linear"],
        ["cosine", "cosine"],
      ]),
      dial("warm-up share", "warmup", { min: 0, max: 0.95, step: 0.01, show: (value) => value.toFixed(2) }),
      power.element,
      dial("weight decay, start", "decay", { min: 0, max: 1, step: 0.01, show: (value) => value.toFixed(2) }, 0),
      dial("weight decay, end", "decay", { min: 0, max: 1, step: 0.01, show: (value) => value.toFixed(2) }, 1),
      dial("momentum, start", "momentum", fine, 0),
      dial("momentum, end", "momentum", fine, 1),
    ),
    make("div", { className: "panels" }, ...Object.values(panels).map((each) => each.element)),
    names,
    words,
    numbers,
  );
  refresh();
}
