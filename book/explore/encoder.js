// The encoder: a pre-norm Vision Transformer without class token that can be asked to see only some patches, as
// toy_ijepa/encoder.py. The weights are those that the Python package writes, by the same names.
//
// Shape legend:  N = h*w tokens  K kept tokens  D width  A heads  d = D/A width of a head

import { PatchEmbed, sincos2d } from "./patches.js";
import { below } from "./safetensors.js";
import { Tensor, add, gelu, layerNorm, linear, softmax } from "./tensor.js";

/** Multi-head self-attention, every token to every token: (N, D) -> (N, D). */
export class Attention {
  constructor(weights, heads) {
    this.weights = weights;
    this.heads = heads;
  }

  /** Who attends to whom in head `a`, given queries, keys and values side by side (N, 3*D): (N, N), rows sum to 1. */
  map(qkv, a) {
    const [N, width] = qkv.shape;
    const [D, d] = [width / 3, width / 3 / this.heads];
    const found = Tensor.zeros(N, N);
    for (let i = 0; i < N; i++) {
      const [query, row] = [i * width + a * d, found.row(i)];
      for (let j = 0; j < N; j++) {
        const key = j * width + D + a * d;
        let sum = 0;
        for (let k = 0; k < d; k++) sum += qkv.data[query + k] * qkv.data[key + k];
        row[j] = sum / Math.sqrt(d);
      }
      softmax(row);
    }
    return found;
  }

  qkv(x) {
    return linear(x, this.weights["qkv.weight"], this.weights["qkv.bias"]);
  }

  forward(x) {
    const [N, D] = x.shape;
    const [qkv, d] = [this.qkv(x), D / this.heads];
    const mixed = Tensor.zeros(N, D);
    for (let a = 0; a < this.heads; a++) {
      const map = this.map(qkv, a);
      for (let i = 0; i < N; i++) {
        for (let j = 0; j < N; j++) {
          const [share, value] = [map.data[i * N + j], j * 3 * D + 2 * D + a * d];
          for (let k = 0; k < d; k++) mixed.data[i * D + a * d + k] += share * qkv.data[value + k];
        }
      }
    }
    return linear(mixed, this.weights["proj.weight"], this.weights["proj.bias"]);
  }
}

/** x + attention(norm(x)), then x + mlp(norm(x)): (N, D) -> (N, D). */
export class Block {
  constructor(weights, heads) {
    this.weights = weights;
    this.attn = new Attention(below(weights, "attn."), heads);
  }

  norm(number, x) {
    return layerNorm(x, this.weights[`norm${number}.weight`], this.weights[`norm${number}.bias`]);
  }

  mlp(x) {
    const hidden = gelu(linear(x, this.weights["mlp.fc1.weight"], this.weights["mlp.fc1.bias"]));
    return linear(hidden, this.weights["mlp.fc2.weight"], this.weights["mlp.fc2.bias"]);
  }

  forward(x) {
    x = add(x, this.attn.forward(this.norm(1, x)));
    return add(x, this.mlp(this.norm(2, x)));
  }
}

/** The blocks of a network by number, from its tensors by name. */
export function blocksOf(weights, heads) {
  const found = [];
  while (`blocks.${found.length}.norm1.weight` in weights) {
    found.push(new Block(below(weights, `blocks.${found.length}.`), heads));
  }
  return found;
}

/** A normalised picture (C, H, W) -> tokens (N, D), or (K, D) of the patches `keep` (K numbers). */
export class Encoder {
  constructor(weights, { grid, patch, heads }) {
    this.weights = weights;
    this.grid = grid;
    this.patch = patch;
    this.patchEmbed = new PatchEmbed(below(weights, "patch_embed."), patch);
    this.width = weights["patch_embed.proj.weight"].shape[0];
    this.posEmbed = sincos2d(grid, this.width);
    this.blocks = blocksOf(weights, heads);
  }

  embed(picture, keep = null) {
    const x = add(this.patchEmbed.forward(picture), this.posEmbed);
    // The patches that are not kept leave here, before any token has seen another: nothing hidden can leak.
    return keep === null ? x : x.rows(keep);
  }

  forward(picture, keep = null) {
    let x = this.embed(picture, keep);
    for (const block of this.blocks) x = block.forward(x);
    return layerNorm(x, this.weights["norm.weight"], this.weights["norm.bias"]);
  }

  /** Who attends to whom in the block of number `depth`: one (N, N) a head. */
  attention(picture, depth) {
    let x = this.embed(picture);
    for (const block of this.blocks.slice(0, depth)) x = block.forward(x);
    const { attn } = this.blocks[depth];
    const qkv = attn.qkv(this.blocks[depth].norm(1, x));
    return Array.from({ length: attn.heads }, (_, a) => attn.map(qkv, a));
  }
}
