// A training of the smallest I-JEPA, step by step: the loss, and what the features are worth meanwhile.

import { effectiveRank, featureStd, pooled } from "./health.js";
import { multiblock, seeded } from "./masking.js";
import { AdamW, SIZE, TinyIJEPA, initial } from "./tiny.js";
import { Tensor } from "./tensor.js";

export const STEPS = 240;
export const WATCHED = 96; // pictures kept apart, on which std and rank are measured
const [BATCH, LR, WARMUP, EVERY] = [32, 3e-3, 0.1, 8];

/** Patches (S*N, inputs) of S pictures -> rows { step, loss, std, rank }, one every EVERY steps, until STEPS are done. */
export function* training(patches, { stop = true, momentum = 0.98, seed = 0, steps = STEPS } = {}) {
  const N = SIZE.grid[0] * SIZE.grid[1];
  const size = N * SIZE.inputs; // numbers of a picture
  const count = patches.data.length / size - WATCHED;
  const random = seeded(seed);
  const weights = initial(SIZE, random);
  const model = new TinyIJEPA(weights, SIZE, { stop });
  const optimiser = new AdamW(weights, { lr: LR });
  const watched = new Tensor(patches.data.slice(count * size), [WATCHED * N, SIZE.inputs]);
  for (let step = 0; step <= steps; step++) {
    const batch = Tensor.zeros(BATCH * N, SIZE.inputs);
    const masks = [];
    for (let b = 0; b < BATCH; b++) {
      const which = Math.floor(random() * count);
      batch.data.set(patches.data.subarray(which * size, (which + 1) * size), b * size);
      masks.push(multiblock(SIZE.grid, {}, random));
    }
    const loss = model.loss(batch, masks);
    if (step % EVERY === 0) {
      const features = pooled(model.features(watched), N);
      yield { step, loss, std: featureStd(features), rank: effectiveRank(features) };
    }
    optimiser.step(Math.min(1, (step + 1) / (WARMUP * steps)));
    model.follow(momentum);
  }
}
