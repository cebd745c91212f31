// Numbers with a shape, and the few operations that a transformer is made of. One picture at a time: no batch axis.
//
// Shape legend:  n rows (tokens)  D columns (features)  E columns of another width

/** Numbers in rows of equal length: `data` (Float32Array), `shape` as torch writes it. */
export class Tensor {
  constructor(data, shape) {
    const size = shape.reduce((a, b) => a * b, 1);
    if (data.length !== size) throw new Error(`${data.length} numbers do not fill the shape ${shape}`);
    this.data = data;
    this.shape = shape;
  }

  static zeros(...shape) {
    return new Tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), shape);
  }

  /** Row number `index` of a matrix: a view, not a copy. */
  row(index) {
    const D = this.shape[1];
    return this.data.subarray(index * D, (index + 1) * D);
  }

  /** The rows `index` of a matrix (n, D), in that order: a copy. */
  rows(index) {
    const found = Tensor.zeros(index.length, this.shape[1]);
    index.forEach((from, to) => found.row(to).set(this.row(from)));
    return found;
  }
}

/** a + b, number by number, for equal shapes. */
export function add(a, b) {
  const found = new Tensor(Float32Array.from(a.data), a.shape);
  for (let i = 0; i < found.data.length; i++) found.data[i] += b.data[i];
  return found;
}

/** One matrix below the other: (n, D) and (m, D) -> (n + m, D). */
export function stack(a, b) {
  const found = Tensor.zeros(a.shape[0] + b.shape[0], a.shape[1]);
  found.data.set(a.data);
  found.data.set(b.data, a.data.length);
  return found;
}

/** x (n, D) times weight (E, D) transposed, plus bias (E): (n, E), as torch.nn.Linear. */
export function linear(x, weight, bias) {
  const [n, D] = x.shape;
  const E = weight.shape[0];
  const found = Tensor.zeros(n, E);
  for (let i = 0; i < n; i++) {
    const row = x.row(i);
    for (let e = 0; e < E; e++) {
      const from = e * D;
      let sum = 0;
      for (let d = 0; d < D; d++) sum += row[d] * weight.data[from + d];
      found.data[i * E + e] = sum + bias.data[e];
    }
  }
  return found;
}

/** Each row of x (n, D) moved to mean 0 and std 1; then scaled and shifted, if weight and bias (D) are given. */
export function layerNorm(x, weight, bias, eps = 1e-6) {
  const [n, D] = x.shape;
  const found = Tensor.zeros(n, D);
  for (let i = 0; i < n; i++) {
    const row = x.row(i);
    let mean = 0;
    for (const value of row) mean += value;
    mean /= D;
    let variance = 0;
    for (const value of row) variance += (value - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / D + eps);
    for (let d = 0; d < D; d++) {
      const value = (row[d] - mean) * scale;
      found.data[i * D + d] = weight ? value * weight.data[d] + bias.data[d] : value;
    }
  }
  return found;
}

/** exp(x) over the sum of exp(x), in place, for one row: a distribution. */
export function softmax(row) {
  let largest = -Infinity;
  for (const value of row) largest = Math.max(largest, value);
  let sum = 0;
  for (let i = 0; i < row.length; i++) sum += row[i] = Math.exp(row[i] - largest);
  for (let i = 0; i < row.length; i++) row[i] /= sum;
  return row;
}

/** x times the share of a normal distribution that lies below x, number by number. */
export function gelu(x) {
  return new Tensor(
    x.data.map((value) => 0.5 * value * (1 + erf(value / Math.SQRT2))),
    x.shape,
  );
}

/** The error function, to 1.5e-7. Source: Abramowitz & Stegun 1964, formula 7.1.26. */
export function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}
