// I-JEPA put together, for playing: context encoder, target encoder, predictor, as toy_ijepa/{predictor,jepa}.py.
//
// Shape legend:  N = h*w patches  K context patches  T target patches, of all blocks  D encoder width  E predictor width

import { Encoder, blocksOf } from "./encoder.js";
import { sincos2d } from "./patches.js";
import { below } from "./safetensors.js";
import { Tensor, add, layerNorm, linear, stack } from "./tensor.js";

/** Context (K, D) at the places `context` and the places `targets` (T numbers) -> predicted features (T, D). */
export class Predictor {
  constructor(weights, { grid, heads }) {
    this.weights = weights;
    this.posEmbed = sincos2d(grid, weights["embed.weight"].shape[0]);
    this.blocks = blocksOf(weights, heads);
  }

  /** All targets in one sequence: what the toy was trained with (mode "joint"). */
  forward(features, context, targets) {
    const seen = add(
      linear(features, this.weights["embed.weight"], this.weights["embed.bias"]),
      this.posEmbed.rows(context),
    );
    const asked = this.posEmbed.rows(targets);
    const token = this.weights.mask_token.data;
    for (let t = 0; t < targets.length; t++) asked.row(t).forEach((_, e, row) => (row[e] += token[e]));
    let x = stack(seen, asked);
    for (const block of this.blocks) x = block.forward(x);
    x = x.rows(targets.map((_, t) => context.length + t)); // only the answers
    x = layerNorm(x, this.weights["norm.weight"], this.weights["norm.bias"]);
    return linear(x, this.weights["proj.weight"], this.weights["proj.bias"]);
  }
}

/** A whole model, from what `safetensors.load` gives for a file of `toy_ijepa.recipe.save_model`. */
export class IJEPA {
  constructor({ tensors, about }, sizes) {
    const { image_size: side, patch, size } = about.dial;
    const dial = sizes[size];
    const grid = [side / patch, side / patch];
    const options = { grid, patch, heads: dial.heads };
    this.encoder = new Encoder(below(tensors, "encoder."), options);
    this.target = new Encoder(below(tensors, "target."), options);
    this.predictor = new Predictor(below(tensors, "predictor."), { grid, heads: dial.predictor_heads });
  }

  /** What has to be predicted: the features (N, D) of a whole normalised picture, each at mean 0 and std 1. */
  targets(picture) {
    return layerNorm(this.target.forward(picture), null, null, 1e-5);
  }

  /** The features (T, D) that the predictor answers for the places `targets`, seeing only the patches `context`. */
  predict(picture, context, targets) {
    return this.predictor.forward(this.encoder.forward(picture, context), context, targets);
  }
}

/** Mean smooth-L1 distance (beta 1) of predicted to true features (T, D): one number a token. */
export function errors(predicted, truth) {
  const [T, D] = predicted.shape;
  const found = new Float32Array(T);
  for (let t = 0; t < T; t++) {
    const [p, q] = [predicted.row(t), truth.row(t)];
    for (let d = 0; d < D; d++) {
      const off = Math.abs(p[d] - q[d]);
      found[t] += (off < 1 ? 0.5 * off * off : off - 0.5) / D;
    }
  }
  return found;
}

/** Of each query (T, D) the row of `shelf` (G, D) with the largest product: T numbers. */
export function nearest(query, shelf) {
  const [T, D] = query.shape;
  const G = shelf.shape[0];
  const found = new Int32Array(T);
  for (let t = 0; t < T; t++) {
    const row = query.row(t);
    let best = -Infinity;
    for (let g = 0; g < G; g++) {
      let sum = 0;
      for (let d = 0; d < D; d++) sum += row[d] * shelf.data[g * D + d];
      if (sum > best) [best, found[t]] = [sum, g];
    }
  }
  return found;
}

/** Rows moved by -mean (D) and brought to length 1: features as the gallery compares them. */
export function centred(features, mean) {
  const found = new Tensor(Float32Array.from(features.data), features.shape);
  for (let t = 0; t < features.shape[0]; t++) {
    const row = found.row(t);
    let square = 0;
    for (let d = 0; d < row.length; d++) square += (row[d] -= mean.data[d]) ** 2;
    const length = Math.max(Math.sqrt(square), 1e-12);
    for (let d = 0; d < row.length; d++) row[d] /= length;
  }
  return found;
}
