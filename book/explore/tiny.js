// The smallest I-JEPA, made to be trained in a page: the names and parts of toy_ijepa, widths that JavaScript can bear.
//
// Shape legend:  B pictures  N = h*w patches  K context patches  T target patches  D width  E predictor width

import { Weight, attention, gelu, layerNorm, linear, pick, smoothL1 } from "./grad.js";
import { sincos2d } from "./patches.js";
import { Tensor, add, stack } from "./tensor.js";

export const SIZE = {
  grid: [4, 4],
  inputs: 48,
  width: 32,
  depth: 2,
  heads: 2,
  predictorWidth: 32,
  predictorDepth: 1,
  predictorHeads: 2,
};

const opposite = (x) =>
  new Tensor(
    x.data.map((each) => -each),
    x.shape,
  );

/** Xavier uniform for matrices, zeros for biases, ones for norms, by the names of the Python package. */
export function initial(size, random) {
  const found = {};
  const norm = (name, width) => {
    found[`${name}.weight`] = new Weight(new Float32Array(width).fill(1), [width]);
    found[`${name}.bias`] = new Weight(new Float32Array(width), [width]);
  };
  const matrix = (name, inputs, outputs, smaller = 1) => {
    const edge = Math.sqrt(6 / (inputs + outputs)) / smaller;
    const data = Float32Array.from({ length: inputs * outputs }, () => edge * (2 * random() - 1));
    found[`${name}.weight`] = new Weight(data, [outputs, inputs]);
    found[`${name}.bias`] = new Weight(new Float32Array(outputs), [outputs]);
  };
  const block = (name, width, smaller) => {
    norm(`${name}.norm1`, width);
    matrix(`${name}.attn.qkv`, width, 3 * width);
    matrix(`${name}.attn.proj`, width, width, smaller);
    norm(`${name}.norm2`, width);
    matrix(`${name}.mlp.fc1`, width, 4 * width);
    matrix(`${name}.mlp.fc2`, 4 * width, width, smaller);
  };
  const { inputs, width: D, depth, predictorWidth: E, predictorDepth } = size;
  matrix("encoder.patch_embed.proj", inputs, D);
  for (let i = 0; i < depth; i++) block(`encoder.blocks.${i}`, D, Math.sqrt(2 * (i + 1)));
  norm("encoder.norm", D);
  matrix("predictor.embed", D, E);
  found["predictor.mask_token"] = new Weight(
    Float32Array.from({ length: E }, () => 0.04 * (random() - 0.5)),
    [1, 1, E],
  );
  for (let i = 0; i < predictorDepth; i++) block(`predictor.blocks.${i}`, E, 1);
  norm("predictor.norm", E);
  matrix("predictor.proj", E, D);
  return found;
}

/** The transformer blocks below `name`, and the norm after them: [value, back]. */
function stackOf(weights, name, heads, x, lengths) {
  const backs = [];
  const through = ([value, back]) => (backs.push(back), value);
  const part = (...path) => [weights[[...path, "weight"].join(".")], weights[[...path, "bias"].join(".")]];
  /** x + f(x): the gradient goes both ways. */
  const residual = (x, f) => {
    const from = backs.length;
    const value = f(x);
    const inner = backs.splice(from);
    backs.push((by) =>
      add(
        by,
        inner.reduceRight((g, back) => back(g), by),
      ),
    );
    return add(x, value);
  };
  for (let i = 0; `${name}.blocks.${i}.norm1.weight` in weights; i++) {
    const at = `${name}.blocks.${i}`;
    x = residual(x, (y) => {
      y = through(layerNorm(y, ...part(at, "norm1")));
      y = through(attention(through(linear(y, ...part(at, "attn.qkv"))), heads, lengths));
      return through(linear(y, ...part(at, "attn.proj")));
    });
    x = residual(x, (y) => {
      y = through(linear(through(layerNorm(y, ...part(at, "norm2"))), ...part(at, "mlp.fc1")));
      return through(linear(through(gelu(y)), ...part(at, "mlp.fc2")));
    });
  }
  x = through(layerNorm(x, ...part(name, "norm")));
  return [x, (by) => backs.reduceRight((g, back) => back(g), by)];
}

/** Context encoder, target encoder, predictor. `stop`: whether the gradient stops at the targets; without it there is
 *  one encoder, and both sides of the loss learn (as `NoStop` in toy_ijepa/ablation.py). */
export class TinyIJEPA {
  constructor(weights, size = SIZE, { stop = true } = {}) {
    this.weights = weights;
    this.size = size;
    this.stop = stop;
    this.posEmbed = sincos2d(size.grid, size.width);
    this.predictorPos = sincos2d(size.grid, size.predictorWidth);
    const encoder = Object.entries(weights).filter(([name]) => name.startsWith("encoder."));
    this.target = stop
      ? Object.fromEntries(encoder.map(([name, w]) => [name, new Weight(Float32Array.from(w.data), w.shape)]))
      : weights;
  }

  /** Patches of B pictures below each other (B*N, inputs) -> features of the rows `keep`: [value, back]. */
  encode(weights, patches, keep, lengths) {
    const N = this.posEmbed.shape[0];
    const [seen] = pick(patches, keep);
    const [tokens, backIn] = linear(
      seen,
      weights["encoder.patch_embed.proj.weight"],
      weights["encoder.patch_embed.proj.bias"],
    );
    const [value, back] = stackOf(
      weights,
      "encoder",
      this.size.heads,
      add(tokens, this.posEmbed.rows(keep.map((row) => row % N))),
      lengths,
    );
    return [value, (by) => backIn(back(by))];
  }

  /** Features (B*N, D) of whole pictures from the target encoder, as they are probed. */
  features(patches) {
    const N = this.posEmbed.shape[0];
    const B = patches.shape[0] / N;
    return this.encode(
      this.target,
      patches,
      Array.from({ length: B * N }, (_, row) => row),
      Array(B).fill(N),
    )[0];
  }

  /** The loss on B pictures (B*N, inputs) with a mask each ({ context, targets }), its gradients added to the weights. */
  loss(patches, masks) {
    const N = this.posEmbed.shape[0];
    const asked = masks.map(({ targets }) => targets.flat());
    const rowsOf = (lists) => lists.flatMap((list, b) => list.map((n) => b * N + n));
    const [whole, backTarget] = this.encode(
      this.target,
      patches,
      rowsOf(masks.map(() => [...Array(N).keys()])),
      Array(masks.length).fill(N),
    );
    const [normal, backNorm] = layerNorm(whole, null, null, 1e-5);
    const [truth, backPick] = pick(normal, rowsOf(asked));
    const seen = masks.map(({ context }) => context);
    const [context, backContext] = this.encode(
      this.weights,
      patches,
      rowsOf(seen),
      seen.map((list) => list.length),
    );
    const [predicted, backPredictor] = this.predict(context, seen, asked);
    const [loss, by] = smoothL1(predicted, truth);
    backContext(backPredictor(by));
    if (!this.stop) backTarget(backNorm(backPick(opposite(by))));
    return loss;
  }

  /** Context rows and the places of context and targets -> predictions for the targets: [value, back]. */
  predict(context, seen, asked) {
    const { weights, predictorPos } = this;
    const [embedded, backEmbed] = linear(context, weights["predictor.embed.weight"], weights["predictor.embed.bias"]);
    const token = weights["predictor.mask_token"];
    const known = add(embedded, predictorPos.rows(seen.flat()));
    const hidden = predictorPos.rows(asked.flat());
    for (let t = 0; t < hidden.shape[0]; t++) hidden.row(t).forEach((_, e, row) => (row[e] += token.data[e]));
    // Each picture's context, then its questions: one sequence.
    const [K, T] = [known.shape[0], hidden.shape[0]];
    const order = [];
    const answers = [];
    let [k, t] = [0, 0];
    seen.forEach((list, b) => {
      list.forEach(() => order.push(k++));
      asked[b].forEach(() => (answers.push(order.length), order.push(K + t++)));
    });
    const [mixed, backOrder] = pick(stack(known, hidden), order);
    const lengths = seen.map((list, b) => list.length + asked[b].length);
    const [x, backStack] = stackOf(weights, "predictor", this.size.predictorHeads, mixed, lengths);
    const [said, backAnswers] = pick(x, answers);
    const [value, backOut] = linear(said, weights["predictor.proj.weight"], weights["predictor.proj.bias"]);
    const back = (by) => {
      const both = backOrder(backStack(backAnswers(backOut(by))));
      for (let row = K; row < K + T; row++) both.row(row).forEach((g, e) => (token.grad[e] += g));
      return backEmbed(both.rows([...Array(K).keys()]));
    };
    return [value, back];
  }

  /** Move the target a little towards the encoder, in place: t <- m*t + (1-m)*o. */
  follow(momentum) {
    if (!this.stop) return;
    for (const [name, { data }] of Object.entries(this.target)) {
      const online = this.weights[name].data;
      for (let k = 0; k < data.length; k++) data[k] = momentum * data[k] + (1 - momentum) * online[k];
    }
  }
}

/** AdamW. Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2. */
export class AdamW {
  constructor(weights, { lr = 3e-3, betas = [0.9, 0.95], decay = 0.04, eps = 1e-8 } = {}) {
    Object.assign(this, { weights: Object.values(weights), lr, betas, decay, eps, steps: 0 });
    this.moments = this.weights.map(({ data }) => [new Float32Array(data.length), new Float32Array(data.length)]);
  }

  /** One step at `share` of the learning rate; the gradients are used up. Biases, norms and the token do not decay. */
  step(share = 1) {
    this.steps += 1;
    const [one, two] = this.betas.map((beta) => 1 - beta ** this.steps);
    this.weights.forEach(({ data, grad, shape }, w) => {
      const [first, second] = this.moments[w];
      const kept = shape.length === 2 ? 1 - share * this.lr * this.decay : 1;
      for (let k = 0; k < data.length; k++) {
        first[k] += (1 - this.betas[0]) * (grad[k] - first[k]);
        second[k] += (1 - this.betas[1]) * (grad[k] ** 2 - second[k]);
        data[k] = data[k] * kept - (share * this.lr * first[k]) / one / (Math.sqrt(second[k] / two) + this.eps);
      }
      grad.fill(0);
    });
  }
}
