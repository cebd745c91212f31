// Mask explorer: one draw of the paper's masks, and how often each patch is what over a thousand.
//
// Shape legend:  h,w grid (patches)  N = h*w patches  M target blocks

import { multiblock, randomPatches, seeded } from "./masking.js";
import { COLOURS, button, choice, heat, make, panel, slider, soon } from "./view.js";

const DRAWS = 1000;
const [CONTEXT, UNUSED] = ["#0072b2", "#bbbbbb"];
const STRATEGIES = {
  multiblock: { words: "multi-block (the paper's)", targets: 4, targetScale: [0.15, 0.2], contextScale: [0.85, 1] },
  complement: { words: "everything else is context", targets: 4, targetScale: [0.15, 0.2], contextScale: [1, 1] },
  single: { words: "one large block", targets: 1, targetScale: [0.5, 0.6], contextScale: [1, 1] },
  random: { words: "single random patches", targets: 1, targetScale: [0.6, 0.6], contextScale: [1, 1] },
};

function drawn(strategy, grid, options, random) {
  return strategy === "random" ? randomPatches(grid, options.targetScale, random) : multiblock(grid, options, random);
}

/** How often (%) each patch is target, context and neither over `draws` masks: three lists of N numbers. */
export function usage(strategy, grid, options, draws = DRAWS, seed = 0) {
  const [target, context] = [new Float32Array(grid[0] * grid[1]), new Float32Array(grid[0] * grid[1])];
  const random = seeded(seed);
  for (let draw = 0; draw < draws; draw++) {
    const mask = drawn(strategy, grid, options, random);
    for (const n of new Set(mask.targets.flat())) target[n] += 100 / draws;
    for (const n of mask.context) context[n] += 100 / draws;
  }
  return { target, context, neither: target.map((share, n) => 100 - share - context[n]) };
}

/** Draws the mask: c for context, numbers for targets, nothing for neither. */
function map(mask, [h, w]) {
  return (g, width, height) => {
    const [x, y] = [width / w, height / h];
    g.textAlign = "center";
    g.textBaseline = "middle";
    g.font = `${Math.round(x * 0.45)}px sans-serif`;
    const what = Array(h * w).fill([UNUSED, ""]);
    for (const n of mask.context) what[n] = [CONTEXT, "c"];
    mask.targets.forEach((block, m) => block.forEach((n) => (what[n] = [COLOURS[m % COLOURS.length], `${m + 1}`])));
    what.forEach(([colour, text], n) => {
      const [left, top] = [(n % w) * x, Math.floor(n / w) * y];
      g.fillStyle = colour;
      g.fillRect(left, top, x - 1, y - 1);
      g.fillStyle = colour === CONTEXT ? "#fff" : "#000";
      g.fillText(text, left + x / 2, top + y / 2);
    });
  };
}

export async function start(element) {
  const dials = { strategy: "multiblock", side: 14, seed: 0, targetAspect: [0.75, 1.5], ...STRATEGIES.multiblock };
  const words = make("p", { className: "words", role: "status" });
  const panels = {
    mask: panel("one draw: c context, numbers targets"),
    target: panel(`target, % of ${DRAWS.toLocaleString("en")} draws`),
    context: panel("context, %"),
    neither: panel("neither, %"),
  };
  const refresh = soon(() => {
    const grid = [dials.side, dials.side];
    try {
      const mask = drawn(dials.strategy, grid, dials, seeded(dials.seed));
      const shares = usage(dials.strategy, grid, dials);
      const N = dials.side ** 2;
      const hidden = new Set(mask.targets.flat()).size;
      panels.mask.draw(map(mask, grid), `Mask with ${mask.context.length} context and ${hidden} target patches`);
      for (const name of ["target", "context", "neither"]) {
        const [low, high] = [Math.min(...shares[name]), Math.max(...shares[name])];
        const alt = `Map of how often each patch is ${name}: from ${low.toFixed(0)} to ${high.toFixed(0)} %`;
        panels[name].draw(
          heat(shares[name], grid, 0, 100, (value) => value.toFixed(0)),
          alt,
        );
        panels[name].say(`${name}, ${low.toFixed(0)} to ${high.toFixed(0)} % of ${DRAWS.toLocaleString("en")} draws`);
      }
      const mean = shares.context.reduce((a, b) => a + b, 0) / N;
      words.classList.remove("problem");
      words.textContent =
        `This draw: ${mask.context.length} context + ${hidden} target + ${N - mask.context.length - hidden} unused of ${N} patches. ` +
        `Over ${DRAWS.toLocaleString("en")} draws the context encoder sees ${mean.toFixed(0)} % of a picture on average.`;
    } catch (error) {
      words.classList.add("problem");
      words.textContent = `${error.message}. Use fewer or smaller targets.`;
    }
  });
  const percent = (value) => `${Math.round(100 * value)} %`;
  const ends = (text, name, min, max, show) => {
    const pair = [0, 1].map((end) =>
      slider(
        `${text}, ${end ? "at most" : "at least"}`,
        { min, max, step: 0.01, value: dials[name][end], show },
        (value) => {
          dials[name] = end ? [Math.min(dials[name][0], value), value] : [value, Math.max(dials[name][1], value)];
          follow();
          refresh();
        },
      ),
    );
    return { pair, name };
  };
  const targets = slider(
    "target blocks",
    { min: 1, max: 8, value: 4 },
    (value) => ((dials.targets = value), refresh()),
  );
  const ranges = [
    ends("target scale", "targetScale", 0.05, 0.9, percent),
    ends("target height/width", "targetAspect", 0.25, 4, (value) => value.toFixed(2)),
    ends("context scale", "contextScale", 0.05, 1, percent),
  ];
  const say = (input, value) => {
    if (+input.value === value) return;
    input.value = value;
    input.dispatchEvent(new Event("input"));
  };
  function follow() {
    for (const { pair, name } of ranges) pair.forEach(({ input }, end) => say(input, dials[name][end]));
    say(targets.input, dials.targets);
    for (const input of [targets.input, ...ranges[1].pair.map((each) => each.input)])
      input.disabled = dials.strategy === "random";
  }
  const strategy = choice(
    "strategy",
    Object.entries(STRATEGIES).map(([name, { words }]) => [name, words]),
    "multiblock",
    (value) => {
      const { targets, targetScale, contextScale } = STRATEGIES[value];
      Object.assign(dials, { strategy: value, targets, targetScale, contextScale });
      follow();
      refresh();
    },
  );
  const side = choice(
    "grid",
    [
      [8, "8 x 8 (the toy)"],
      [14, "14 x 14 (ViT-B/16 at 224 px)"],
    ],
    14,
    (value) => ((dials.side = +value), refresh()),
  );
  const again = button("Draw another", () => ((dials.seed += 1), refresh()));
  element.replaceChildren(
    make("div", { className: "row" }, strategy.element, side.element, again),
    make(
      "div",
      { className: "row" },
      targets.element,
      ...ranges.flatMap(({ pair }) => pair.map((each) => each.element)),
    ),
    make("div", { className: "panels quarters" }, ...Object.values(panels).map((each) => each.element)),
    words,
  );
  refresh();
}
