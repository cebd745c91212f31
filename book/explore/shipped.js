// The shipped models with their galleries: fetched when play begins, once.

import { IJEPA } from "./jepa.js";
import { load } from "./safetensors.js";

const HERE = new URL("../weights/", import.meta.url);
const NAMES = { drawing: "shapes", photograph: "cifar10" };
export const MEGABYTES = 2; // of a model; a gallery has a quarter of that
const found = {};

/** What `get` fetches, once for each name; tried again after a failure. */
function once(name, get) {
  found[name] ??= get().catch((error) => {
    delete found[name];
    throw error;
  });
  return found[name];
}

async function model(name) {
  const sizes = fetch(new URL("sizes.json", import.meta.url)).then((answer) => answer.json());
  const [dials, weights] = await Promise.all([sizes, load(new URL(`ijepa-${name}.safetensors`, HERE))]);
  return new IJEPA(weights, dials);
}

/** The model for pictures of a kind, "drawing" or "photograph". */
export function shipped(kind) {
  return once(`model ${kind}`, () => model(NAMES[kind]));
}

/** Real patches of such pictures: { features, pixels, mean }, features of length 1 around the mean. */
export function gallery(kind) {
  const address = new URL(`gallery-${NAMES[kind]}.safetensors`, HERE);
  return once(`gallery ${kind}`, () => load(address).then(({ tensors }) => tensors));
}
