// The paper's masks by the rules of toy_ijepa/masking.py, for one picture.
//
// Shape legend:  h,w grid (patches)  N = h*w patches  M target blocks  T patches of a target block  K context patches

const MAX_TRIES = 100;

/** A generator of numbers in [0, 1) that gives the same ones for the same seed. Source: mulberry32, public domain. */
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const uniform = ([low, high], random) => low + (high - low) * random();
const between = (value, low, high) => Math.min(Math.max(value, low), high);

/** Rows and columns of a block that covers `scale` of the grid with height/width = `aspect`, at least 1x1. */
export function blockSize([h, w], scale, aspect) {
  const rows = Math.round(Math.sqrt(scale * h * w * aspect));
  const columns = Math.round(Math.sqrt((scale * h * w) / aspect));
  return [between(rows, 1, h), between(columns, 1, w)];
}

/** Patch numbers of a block of `size` with its top-left corner at this row and column. */
export function fill([top, left], [, w], [rows, columns]) {
  const found = [];
  for (let i = top; i < top + rows; i++) for (let j = left; j < left + columns; j++) found.push(i * w + j);
  return found;
}

/** A block of `size` somewhere, evenly over every place where it fits. */
function place(grid, size, random) {
  return fill(
    [0, 1].map((axis) => Math.floor(random() * (grid[axis] - size[axis] + 1))),
    grid,
    size,
  );
}

/** The patches of `block` that belong to none of `targets`, in raster order: what the encoder may see. */
export function rest(block, targets) {
  const hidden = new Set(targets.flat());
  return block.filter((n) => !hidden.has(n));
}

/** `targets` blocks to predict, and a large block minus the targets as context: { targets: M lists, context: K numbers }. */
export function multiblock(grid, options = {}, random = Math.random) {
  const defaults = { targets: 4, targetScale: [0.15, 0.2], targetAspect: [0.75, 1.5], contextScale: [0.85, 1] };
  const { targets, targetScale, targetAspect, contextScale } = { ...defaults, ...options };
  const [h, w] = grid;
  const size = blockSize(grid, uniform(targetScale, random), uniform(targetAspect, random));
  const side = Math.sqrt(uniform(contextScale, random));
  const outer = [Math.max(Math.round(h * side), 1), Math.max(Math.round(w * side), 1)];
  const least = options.minContext ?? Math.max(Math.floor((h * w) / 16), 1);
  for (let tries = 0; tries < MAX_TRIES; tries++) {
    const blocks = Array.from({ length: targets }, () => place(grid, size, random));
    const context = rest(place(grid, outer, random), blocks);
    if (context.length >= least) return { targets: blocks, context, size, outer };
  }
  throw new Error(`${targets} targets of ${size.join("x")} patches leave fewer than ${least} context patches`);
}

/** Scattered patches as one target "block", the others as context: the paper's "random" ablation (table 6). */
export function randomPatches([h, w], scale, random = Math.random) {
  const N = h * w;
  const hidden = Math.round(N * uniform(scale, random));
  if (hidden < 1 || hidden >= N) throw new Error(`hiding ${hidden} of ${N} patches leaves no target or no context`);
  const order = Array.from({ length: N }, (_, n) => [random(), n])
    .sort(([a], [b]) => a - b)
    .map(([, n]) => n);
  return { targets: [order.slice(0, hidden)], context: order.slice(hidden) };
}
