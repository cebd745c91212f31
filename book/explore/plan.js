// Learning rate, weight decay and momentum as functions of how much of a run is done, as toy_ijepa/schedules.py, and a
// whole run planned with them, as toy_ijepa/widgets/schedule.py. `step` counts optimiser steps, from 0.

const within = (progress) => Math.min(Math.max(progress, 0), 1);

/** From start to end in a straight line. */
export const linear = (progress, start, end) => start + (end - start) * within(progress);

/** From start to end along half a cosine. Source: Loshchilov & Hutter 2017, arXiv:1608.03983, section 3. */
export const cosine = (progress, start, end) => end + (start - end) * 0.5 * (1 + Math.cos(Math.PI * within(progress)));

/** From 0 to peak during the first `warmup` share of the run, then along a cosine to 0. */
export function warmupCosine(progress, peak, warmup) {
  if (progress < warmup) return linear(progress / warmup, 0, peak);
  return cosine((progress - warmup) / (1 - warmup), peak, 0);
}

export const SHAPES = { linear, cosine };

/** A run of `steps` optimiser steps, each on `accumulation` batches; `counting` says what progress is made of. */
export class Plan {
  constructor(options = {}) {
    const defaults = {
      steps: 1000,
      warmup: 0.1,
      lr: 3e-3,
      decay: [0.04, 0.4],
      momentum: [0.996, 1],
      shape: "linear",
      accumulation: 1,
      counting: "steps",
    };
    Object.assign(this, defaults, options);
  }

  /** What the schedules are told at a step; above 1 when they are over. */
  progress(step) {
    const done = this.counting === "batches" ? step * this.accumulation : step;
    const length = this.counting === "length" ? this.steps * this.accumulation : this.steps;
    return done / length;
  }

  lrAt(step) {
    return warmupCosine(this.progress(step), this.lr, this.warmup);
  }

  decayAt(step) {
    return cosine(this.progress(step), ...this.decay);
  }

  momentumAt(step) {
    return SHAPES[this.shape](this.progress(step), ...this.momentum);
  }

  /** Over about how many steps the target encoder averages: 1/(1-m), infinite for m = 1. */
  memoryAt(step) {
    const m = this.momentumAt(step);
    return m >= 1 ? Infinity : 1 / (1 - m);
  }

  /** Weight of its random start in the target encoder at the end: the product of all momenta. */
  get shareLeft() {
    let product = 1;
    for (let step = 0; step < this.steps; step++) product *= this.momentumAt(step);
    return product;
  }

  /** Steps that come after the schedule's end: they train with learning rate 0. */
  get idle() {
    let found = 0;
    for (let step = 0; step < this.steps; step++) found += this.progress(step) >= 1;
    return found;
  }

  /** What the target encoder is made of at the end. */
  verdict() {
    const percent = this.shareLeft < 0.001 ? "less than 0.1" : `${+(100 * this.shareLeft).toPrecision(2)}`;
    const share = `${percent} % of the target encoder is still its random start when the run ends`;
    if (this.shareLeft > 0.5)
      return `A trap: ${share}, so that is what the predictor learns. Start with a lower momentum or run longer.`;
    return `${share}${this.shareLeft > 0.05 ? ": more than a trace." : ": forgotten."}`;
  }
}
