// Numbers that tell learning from collapse, as toy_ijepa/diagnostics.py. A falling loss tells nothing.
//
// Shape legend:  S samples  D width

import { Tensor } from "./tensor.js";

/** Means over the N tokens of each picture: (S*N, D) -> (S, D). */
export function pooled(tokens, N) {
  const D = tokens.shape[1];
  const found = Tensor.zeros(tokens.shape[0] / N, D);
  for (let i = 0; i < tokens.shape[0]; i++)
    tokens.row(i).forEach((value, d) => (found.data[Math.floor(i / N) * D + d] += value / N));
  return found;
}

/** x (S, D) without its mean row, in double precision. */
function centred(x) {
  const [S, D] = x.shape;
  const mean = Array.from({ length: D }, (_, d) =>
    x.data.reduce((sum, value, k) => (k % D === d ? sum + value / S : sum), 0),
  );
  return Float64Array.from(x.data, (value, k) => value - mean[k % D]);
}

/** Mean over channels of the std over samples (S, D): 0 when all samples look the same. */
export function featureStd(x) {
  const [S, D] = x.shape;
  const square = new Float64Array(D);
  centred(x).forEach((value, k) => (square[k % D] += value ** 2 / (S - 1)));
  return square.reduce((sum, value) => sum + Math.sqrt(value) / D, 0);
}

/** Eigenvalues of a symmetric matrix (D*D numbers), by Jacobi's rotations. */
export function eigenvalues(matrix, D) {
  const m = Float64Array.from(matrix);
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < D; p++) for (let q = p + 1; q < D; q++) off += m[p * D + q] ** 2;
    if (off < 1e-22) break;
    for (let p = 0; p < D; p++) {
      for (let q = p + 1; q < D; q++) {
        if (Math.abs(m[p * D + q]) < 1e-18) continue;
        const turn = (m[q * D + q] - m[p * D + p]) / (2 * m[p * D + q]);
        const t = (turn >= 0 ? 1 : -1) / (Math.abs(turn) + Math.sqrt(turn * turn + 1));
        const [c, s] = [1 / Math.sqrt(t * t + 1), t / Math.sqrt(t * t + 1)];
        for (let k = 0; k < D; k++)
          [m[k * D + p], m[k * D + q]] = [c * m[k * D + p] - s * m[k * D + q], s * m[k * D + p] + c * m[k * D + q]];
        for (let k = 0; k < D; k++)
          [m[p * D + k], m[q * D + k]] = [c * m[p * D + k] - s * m[q * D + k], s * m[p * D + k] + c * m[q * D + k]];
      }
    }
  }
  return Array.from({ length: D }, (_, d) => m[d * D + d]);
}

/** exp(entropy) of the covariance's spectrum of features (S, D): the number of directions that carry variance. */
export function effectiveRank(x) {
  const [S, D] = x.shape;
  const rows = centred(x);
  const product = new Float64Array(D * D);
  for (let s = 0; s < S; s++)
    for (let i = 0; i < D; i++) for (let j = 0; j < D; j++) product[i * D + j] += rows[s * D + i] * rows[s * D + j];
  const all = product.reduce((sum, value, k) => (k % (D + 1) === 0 ? sum + value : sum), 0);
  if (all <= 1e-12) return 1;
  const values = eigenvalues(
    product.map((value) => value / all),
    D,
  ).map((value) => Math.max(value, 0));
  return Math.exp(-values.reduce((sum, p) => sum + (p > 0 ? p * Math.log(p) : 0), 0));
}
