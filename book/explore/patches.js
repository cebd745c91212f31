// A picture to tokens and back: normalise, patchify, fixed 2-d sine-cosine positions, as toy_ijepa/patches.py.
//
// Shape legend:  C channels  H,W pixels  P patch side (pixels)  h,w grid (patches)  N = h*w tokens  D width

import { Tensor, linear } from "./tensor.js";

/** Bytes (C, H, W) -> numbers around 0 with std about 1, as the toy was trained. */
export function normalise(picture) {
  return new Tensor(
    Float32Array.from(picture.data, (value) => value / 63.75 - 2),
    picture.shape,
  );
}

/** What a canvas holds (ImageData, red green blue alpha, pixel by pixel) -> bytes (3, H, W). */
export function fromCanvas({ data, width, height }) {
  const picture = Tensor.zeros(3, height, width);
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let c = 0; c < 3; c++) picture.data[c * height * width + pixel] = data[4 * pixel + c];
  }
  return picture;
}

/** Cut a picture (C, H, W) into flat patches (N, C*P*P), row by row: token n = i*w + j is row i, column j. */
export function patchify(picture, P) {
  const [C, H, W] = picture.shape;
  if (H % P || W % P) throw new Error(`a picture of ${H}x${W} px is not a whole number of ${P} px patches`);
  const [h, w] = [H / P, W / P];
  const found = Tensor.zeros(h * w, C * P * P);
  let next = 0;
  for (let i = 0; i < h; i++) {
    for (let j = 0; j < w; j++) {
      for (let c = 0; c < C; c++) {
        for (let y = i * P; y < (i + 1) * P; y++) {
          for (let x = j * P; x < (j + 1) * P; x++) found.data[next++] = picture.data[(c * H + y) * W + x];
        }
      }
    }
  }
  return found;
}

/** Fixed position codes (N, D): the first half of the channels says the column, the second the row. */
export function sincos2d([h, w], D) {
  const found = Tensor.zeros(h * w, D);
  const quarter = D / 4;
  for (let n = 0; n < h * w; n++) {
    [n % w, Math.floor(n / w)].forEach((position, half) => {
      for (let k = 0; k < quarter; k++) {
        const angle = position / 10000 ** (k / quarter);
        found.data[n * D + 2 * half * quarter + k] = Math.sin(angle);
        found.data[n * D + (2 * half + 1) * quarter + k] = Math.cos(angle);
      }
    });
  }
  return found;
}

/** Patches through one linear layer: a normalised picture (C, H, W) -> (N, D). */
export class PatchEmbed {
  constructor(weights, P) {
    this.weights = weights;
    this.patch = P;
  }

  forward(picture) {
    return linear(patchify(picture, this.patch), this.weights["proj.weight"], this.weights["proj.bias"]);
  }
}
