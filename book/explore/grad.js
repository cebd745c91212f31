// The operations of the smallest I-JEPA with their backward passes, written out. Each gives [value, back]: `back` takes
// the gradient of the loss by the value, adds the gradients by the weights, and gives that by the input.
//
// Shape legend:  n rows (tokens of all pictures, one picture after the other)  D columns  E columns of another width
//                A heads  d = D/A width of a head

import { Tensor, erf, softmax } from "./tensor.js";

/** Numbers that are learned, and the gradient of the loss by each. */
export class Weight extends Tensor {
  constructor(data, shape) {
    super(data, shape);
    this.grad = new Float32Array(data.length);
  }
}

/** x (n, D) times weight (E, D) transposed, plus bias (E): (n, E). */
export function linear(x, weight, bias) {
  const [[n, D], E] = [x.shape, weight.shape[0]];
  const value = Tensor.zeros(n, E);
  for (let i = 0; i < n; i++) {
    for (let e = 0; e < E; e++) {
      let sum = bias.data[e];
      for (let d = 0; d < D; d++) sum += x.data[i * D + d] * weight.data[e * D + d];
      value.data[i * E + e] = sum;
    }
  }
  const back = (by) => {
    const found = Tensor.zeros(n, D);
    for (let i = 0; i < n; i++) {
      for (let e = 0; e < E; e++) {
        const g = by.data[i * E + e];
        if (g === 0) continue;
        bias.grad[e] += g;
        for (let d = 0; d < D; d++) {
          found.data[i * D + d] += g * weight.data[e * D + d];
          weight.grad[e * D + d] += g * x.data[i * D + d];
        }
      }
    }
    return found;
  };
  return [value, back];
}

/** Each row moved to mean 0 and std 1; then scaled and shifted, if weight and bias (D) are given. */
export function layerNorm(x, weight = null, bias = null, eps = 1e-6) {
  const [n, D] = x.shape;
  const [normal, value, scale] = [Tensor.zeros(n, D), Tensor.zeros(n, D), new Float32Array(n)];
  for (let i = 0; i < n; i++) {
    const row = x.row(i);
    const mean = row.reduce((a, b) => a + b, 0) / D;
    const variance = row.reduce((sum, each) => sum + (each - mean) ** 2, 0) / D;
    scale[i] = 1 / Math.sqrt(variance + eps);
    for (let d = 0; d < D; d++) {
      const each = (row[d] - mean) * scale[i];
      normal.data[i * D + d] = each;
      value.data[i * D + d] = weight ? each * weight.data[d] + bias.data[d] : each;
    }
  }
  const back = (by) => {
    const found = Tensor.zeros(n, D);
    for (let i = 0; i < n; i++) {
      let [mean, along] = [0, 0]; // of the gradient, and of the gradient times the value
      for (let d = 0; d < D; d++) {
        const k = i * D + d;
        const g = by.data[k] * (weight ? weight.data[d] : 1);
        mean += g / D;
        along += (g * normal.data[k]) / D;
        if (!weight) continue;
        weight.grad[d] += by.data[k] * normal.data[k];
        bias.grad[d] += by.data[k];
      }
      for (let d = 0; d < D; d++) {
        const k = i * D + d;
        const g = by.data[k] * (weight ? weight.data[d] : 1);
        found.data[k] = scale[i] * (g - mean - normal.data[k] * along);
      }
    }
    return found;
  };
  return [value, back];
}

/** x times the share of a normal distribution that lies below x. */
export function gelu(x) {
  const below = x.data.map((each) => 0.5 * (1 + erf(each / Math.SQRT2)));
  const value = new Tensor(
    x.data.map((each, k) => each * below[k]),
    x.shape,
  );
  const slope = (each, k) => below[k] + (each * Math.exp(-0.5 * each * each)) / Math.sqrt(2 * Math.PI);
  return [
    value,
    (by) =>
      new Tensor(
        by.data.map((g, k) => g * slope(x.data[k], k)),
        x.shape,
      ),
  ];
}

/** Queries, keys and values side by side (n, 3*D) -> (n, D); a token attends to those of its own picture alone.
 *  `lengths` says how many rows each picture has. */
export function attention(qkv, heads, lengths) {
  const [n, width] = qkv.shape;
  const [D, d] = [width / 3, width / 3 / heads];
  const [value, maps, root] = [Tensor.zeros(n, D), [], Math.sqrt(d)];
  const dot = (a, at, b, from) => {
    let sum = 0;
    for (let k = 0; k < d; k++) sum += a[at + k] * b[from + k];
    return sum;
  };
  const add = (into, at, factor, b, from) => {
    for (let k = 0; k < d; k++) into[at + k] += factor * b[from + k];
  };
  const sequences = lengths.map((length, b) => [lengths.slice(0, b).reduce((x, y) => x + y, 0), length]);
  for (const [first, length] of sequences) {
    for (let a = 0; a < heads; a++) {
      const map = Tensor.zeros(length, length);
      maps.push(map);
      for (let i = 0; i < length; i++) {
        const row = map.row(i);
        const query = (first + i) * width + a * d;
        for (let j = 0; j < length; j++)
          row[j] = dot(qkv.data, query, qkv.data, (first + j) * width + D + a * d) / root;
        softmax(row);
        for (let j = 0; j < length; j++)
          add(value.data, (first + i) * D + a * d, row[j], qkv.data, (first + j) * width + 2 * D + a * d);
      }
    }
  }
  const back = (by) => {
    const found = Tensor.zeros(n, width);
    let next = 0;
    for (const [first, length] of sequences) {
      for (let a = 0; a < heads; a++) {
        const map = maps[next++];
        for (let i = 0; i < length; i++) {
          const [row, out, query] = [map.row(i), (first + i) * D + a * d, (first + i) * width + a * d];
          const share = Array.from(row, (_, j) => dot(by.data, out, qkv.data, (first + j) * width + 2 * D + a * d));
          const mean = share.reduce((sum, each, j) => sum + each * row[j], 0);
          for (let j = 0; j < length; j++) {
            const key = (first + j) * width + D + a * d;
            add(found.data, key + D, row[j], by.data, out); // by the value
            const g = (row[j] * (share[j] - mean)) / root; // by the product of query and key
            add(found.data, query, g, qkv.data, key);
            add(found.data, key, g, qkv.data, query);
          }
        }
      }
    }
    return found;
  };
  return [value, back];
}

/** The rows `index` of a matrix; a row may be asked for more than once. */
export function pick(x, index) {
  const back = (by) => {
    const found = Tensor.zeros(...x.shape);
    index.forEach((from, to) => {
      const [row, g] = [found.row(from), by.row(to)];
      for (let d = 0; d < row.length; d++) row[d] += g[d];
    });
    return found;
  };
  return [x.rows(index), back];
}

/** Mean smooth-L1 distance (beta 1) of two matrices: [loss, gradient by the first]; by the second it is the opposite. */
export function smoothL1(predicted, truth) {
  let loss = 0;
  const count = predicted.data.length;
  const by = new Tensor(
    predicted.data.map((each, k) => {
      const off = each - truth.data[k];
      loss += (Math.abs(off) < 1 ? 0.5 * off * off : Math.abs(off) - 0.5) / count;
      return Math.min(Math.max(off, -1), 1) / count;
    }),
    predicted.shape,
  );
  return [loss, by];
}
