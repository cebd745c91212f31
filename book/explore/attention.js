// Attention explorer: pick a patch, see what every head of a layer looks at from there.
//
// Shape legend:  N = h*w patches  A heads

import canvas from "./canvas.js";
import { Model } from "./model.js";
import { normalise } from "./patches.js";
import { chooser, droppable, offered } from "./pictures.js";
import { MEGABYTES, shipped } from "./shipped.js";
import { COLOURS, bitmap, heat, make, panel, slider, soon, table } from "./view.js";

const GRID = [8, 8];
const N = GRID[0] * GRID[1];
const LAYERS = 4;
const TOP = 3; // patches named in the table

/** exp(entropy) of a distribution: over how many patches it spreads, 1 to N. */
export function spread(row) {
  return Math.exp(-row.reduce((sum, p) => sum + (p > 0 ? p * Math.log(p) : 0), 0));
}

/** The picked patch's row of every head and, last, of their mean: A + 1 lists of N numbers. */
export function rows(maps, picked) {
  const found = maps.map((map) => Array.from(map.row(picked)));
  const mean = found[0].map((_, n) => found.reduce((sum, row) => sum + row[n], 0) / found.length);
  return [...found, mean];
}

/** The largest weights of a row, in words. */
function named(row) {
  const order = row.map((_, n) => n).sort((a, b) => row[b] - row[a]);
  return order
    .slice(0, TOP)
    .map((n) => `(${Math.floor(n / GRID[1])}, ${n % GRID[1]}): ${(100 * row[n]).toFixed(1)} %`)
    .join(", ");
}

export async function start(element) {
  const items = await offered();
  let item = items[0];
  let layer = 0;
  let begun = false;
  let kept = {}; // the maps of one picture and layer
  const picker = new Model({
    mode: "pick",
    grid: GRID,
    picked: [4, 4],
    blocks: [],
    colours: [COLOURS[0]],
    veil: [],
    image: "",
    label: "Picture: pick the patch whose attention is shown",
  });
  const words = make(
    "p",
    { className: "words", role: "status" },
    `Pick a patch: the model (about ${MEGABYTES} MB) is fetched then.`,
  );
  const figures = make("div", { className: "panels four" });
  const numbers = make("div");
  let panels = [];
  const problem = (text) => {
    words.textContent = text;
    words.classList.add("problem");
  };

  async function show() {
    if (!begun) return;
    const asked = [item, layer];
    words.classList.remove("problem");
    if (kept.item !== item || kept.layer !== layer) {
      words.textContent = "Fetching the model ...";
      const model = await shipped(item.kind);
      if (asked[0] !== item || asked[1] !== layer) return;
      kept = { item, layer, maps: model.target.attention(normalise(item.picture), layer) };
    }
    const [row, column] = picker.get("picked");
    const all = rows(kept.maps, row * GRID[1] + column);
    const names = all.map((_, a) => (a < all.length - 1 ? `head ${a}` : "mean of heads"));
    if (panels.length !== all.length) {
      panels = names.map((name) => panel(name));
      figures.replaceChildren(...panels.map((each) => each.element));
    }
    const top = 100 * Math.max(...all.flat());
    all.forEach((values, a) => {
      const share = values.map((value) => 100 * value);
      const show = (value) => value.toFixed(top < 10 ? 1 : 0);
      panels[a].draw(
        heat(share, GRID, 0, top, show),
        `${names[a]}: where it attends to; the table names the largest weights`,
      );
      panels[a].say(`${names[a]}, % (0 to ${top.toFixed(0)})`);
    });
    const head = ["", "spreads over", "looks most at (row, column)"];
    numbers.replaceChildren(
      table([head, ...all.map((row, a) => [names[a], `${spread(row).toFixed(1)} patches`, named(row)])]),
    );
    words.textContent = `Layer ${layer} of 0-${LAYERS - 1}, asked by row ${row}, column ${column}. Even attention would spread over ${N} patches.`;
  }
  const refresh = soon(() => show().catch((error) => problem(error.message)));
  const play = () => ((begun = true), refresh());
  const choose = (chosen) => {
    item = chosen;
    picker.put({ image: bitmap(chosen.picture).toDataURL() });
    refresh();
  };
  const pick = chooser(items, choose, problem);
  const depth = slider("layer", { min: 0, max: LAYERS - 1, value: 0 }, (value) => ((layer = value), play()));
  picker.on("change:picked", play);
  const holder = make("div");
  element.replaceChildren(
    make("div", { className: "row" }, pick.row, pick.file, depth.element),
    make("div", { className: "panels" }, holder, figures),
    words,
    numbers,
  );
  canvas.render({ model: picker, el: holder });
  droppable(element, pick.take);
  choose(item);
}
