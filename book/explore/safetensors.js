// Weights as the Python package writes them: a header in JSON, then plain numbers. Nothing in such a file is run.

import { Tensor } from "./tensor.js";

/** Numbers of 16 bits (IEEE half precision) as numbers of 32. */
function fromHalf(bits) {
  return Float32Array.from(bits, (b) => {
    const [sign, exponent, fraction] = [b & 0x8000 ? -1 : 1, (b >> 10) & 31, b & 1023];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  });
}

const READ = {
  F32: (bytes) => new Float32Array(bytes),
  F16: (bytes) => fromHalf(new Uint16Array(bytes)),
  U8: (bytes) => Float32Array.from(new Uint8Array(bytes)),
};

/** Tensors by name, and what was said about them, from the bytes (ArrayBuffer) of a safetensors file. */
export function parse(bytes) {
  const length = bytes.byteLength < 8 ? Infinity : Number(new DataView(bytes).getBigUint64(0, true));
  if (8 + length > bytes.byteLength) throw new Error("not a safetensors file, or not all of it");
  const { __metadata__: said = {}, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, length)));
  const tensors = {};
  for (const [
    name,
    {
      dtype,
      shape,
      data_offsets: [start, end],
    },
  ] of Object.entries(header)) {
    if (!(dtype in READ))
      throw new Error(`${name} holds ${dtype}; only ${Object.keys(READ).join(" and ")} are read here`);
    tensors[name] = new Tensor(READ[dtype](bytes.slice(8 + length + start, 8 + length + end)), shape);
  }
  return { tensors, about: JSON.parse(said.about ?? "{}") };
}

/** The same from an address. Throws an error that names it if nothing whole is there. */
export async function load(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`no weights at ${address}: ${answer.status}`);
  return parse(await answer.arrayBuffer());
}

/** The tensors whose names begin with `prefix`, named by the rest. */
export function below(tensors, prefix) {
  const found = Object.entries(tensors).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(found.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}
