// Hide and imagine: paint blocks on a picture; what the model predicts there is shown as the nearest real patches.
//
// Shape legend:  N = h*w patches  T hidden patches  P patch side (pixels)  C channels

import canvas from "./canvas.js";
import { centred, errors, nearest } from "./jepa.js";
import { Model } from "./model.js";
import { normalise } from "./patches.js";
import { SIDE, chooser, droppable, grey, offered } from "./pictures.js";
import { MEGABYTES, gallery, shipped } from "./shipped.js";
import { Tensor } from "./tensor.js";
import { COLOURS, button, heat, make, panel, pixels, soon } from "./view.js";

const GRID = [8, 8];
const PATCH = 4;

/** Patch numbers that lie in at least one block [top, left, rows, columns], in raster order. */
export function covered(blocks, [h, w] = GRID) {
  const inside = (n, [top, left, rows, columns]) => {
    const [i, j] = [Math.floor(n / w), n % w];
    return i >= top && i < top + rows && j >= left && j < left + columns;
  };
  return Array.from({ length: h * w }, (_, n) => n).filter((n) => blocks.some((block) => inside(n, block)));
}

/** A picture with the patches `places` replaced: `of(t)` gives the bytes (C*P*P) of the t-th, null for grey. */
export function patched(picture, places, of) {
  const found = new Tensor(Float32Array.from(picture.data), picture.shape);
  const [C, H, W] = picture.shape;
  places.forEach((n, t) => {
    const bytes = of(t);
    const [top, left] = [Math.floor(n / (W / PATCH)) * PATCH, (n % (W / PATCH)) * PATCH];
    for (let c = 0, k = 0; c < C; c++) {
      for (let y = 0; y < PATCH; y++) {
        for (let x = 0; x < PATCH; x++, k++) found.data[(c * H + top + y) * W + left + x] = bytes ? bytes[k] : 128;
      }
    }
  });
  return found;
}

/** What the model says of the hidden places: { picture with imagined patches, error: N numbers, NaN where it sees }. */
export function imagine(model, shelf, picture, truth, hidden) {
  const N = GRID[0] * GRID[1];
  const seen = Array.from({ length: N }, (_, n) => n).filter((n) => !hidden.includes(n));
  const predicted = model.predict(normalise(picture), seen, hidden);
  const found = nearest(centred(predicted, shelf.mean), shelf.features);
  const error = new Float32Array(N).fill(NaN);
  errors(predicted, truth.rows(hidden)).forEach((value, t) => (error[hidden[t]] = value));
  return { picture: patched(picture, hidden, (t) => shelf.pixels.row(found[t])), error };
}

/** The square that was cut out of the reader's picture, on the whole of it. */
function original({ whole, left, top, square }) {
  return (g, width, height) => {
    const scale = Math.min(width / whole.width, height / whole.height);
    const [x, y] = [(width - whole.width * scale) / 2, (height - whole.height * scale) / 2];
    g.clearRect(0, 0, width, height);
    g.drawImage(whole, x, y, whole.width * scale, whole.height * scale);
    for (const [thick, colour] of [
      [6, "#fff"],
      [3, COLOURS[0]],
    ]) {
      g.lineWidth = thick;
      g.strokeStyle = colour;
      g.strokeRect(x + left * scale + 2, y + top * scale + 2, square * scale - 4, square * scale - 4);
    }
  };
}

function summary(hidden, error) {
  const values = hidden.map((n) => error[n]);
  const worst = hidden[values.indexOf(Math.max(...values))];
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return (
    `${hidden.length} of ${GRID[0] * GRID[1]} patches hidden. Mean error ${mean.toFixed(3)} (smooth L1 between features), ` +
    `largest ${Math.max(...values).toFixed(3)} at row ${Math.floor(worst / GRID[1])}, column ${worst % GRID[1]}.`
  );
}

export async function start(element) {
  const items = await offered();
  let item = items[0];
  let drawn = null; // the block that is being drawn
  let truth = null; // features of the whole picture, of `of`
  const painter = new Model({
    mode: "paint",
    grid: GRID,
    picked: [0, 0],
    blocks: [],
    colours: COLOURS,
    veil: [],
    image: "",
    label: "Picture: paint the patches that the model shall not see",
  });
  const words = make("p", { className: "words", role: "status" });
  const panels = {
    seen: panel("what the encoder sees"),
    imagined: panel("imagined: the nearest real patches"),
    error: panel("error a patch"),
    original: panel("your picture; the square is used"),
  };
  panels.original.element.hidden = true;
  const problem = (text) => {
    words.textContent = text;
    words.classList.add("problem");
  };

  async function show() {
    const hidden = covered(drawn ? [...painter.get("blocks"), drawn] : painter.get("blocks"));
    words.classList.remove("problem");
    panels.seen.draw(
      pixels(patched(item.picture, hidden, () => null)),
      `The picture with ${hidden.length} patches grey`,
    );
    if (!hidden.length || hidden.length === GRID[0] * GRID[1]) {
      const why = hidden.length
        ? "Everything is hidden: remove a block, the model needs something to see."
        : "Hide a block: drag on the picture.";
      panels.imagined.draw(pixels(hidden.length ? grey() : item.picture), "Nothing to imagine yet");
      panels.error.draw((g, width, height) => g.clearRect(0, 0, width, height), "No errors yet");
      words.textContent = why;
      return;
    }
    const asked = item;
    if (truth?.of !== asked) words.textContent = `Fetching the model (about ${MEGABYTES} MB) ...`;
    const [model, shelf] = await Promise.all([shipped(asked.kind), gallery(asked.kind)]);
    if (asked !== item) return; // another picture was chosen while this one's model came
    if (truth?.of !== asked) truth = { of: asked, features: model.targets(normalise(asked.picture)) };
    const { picture, error } = imagine(model, shelf, asked.picture, truth.features, hidden);
    const top = Math.max(...hidden.map((n) => error[n]));
    panels.imagined.draw(pixels(picture), "The picture with the imagined patches in the hidden places");
    panels.error.draw(
      heat(error, GRID, 0, top, (value) => value.toFixed(2).replace("0.", ".")),
      "Error of each hidden patch; the text names the largest",
    );
    panels.error.say(`error a patch, 0 to ${top.toFixed(2)}`);
    words.textContent = summary(hidden, error);
  }
  const refresh = soon(() => show().catch((error) => problem(`${error.message}. Paint again to try again.`)));

  const choose = (chosen) => {
    item = chosen;
    painter.put({ image: pictureUrl(chosen.picture) });
    panels.original.element.hidden = !chosen.original;
    if (chosen.original) panels.original.draw(original(chosen.original), "Your picture, with the square that is used");
    refresh();
  };
  const pick = chooser(items, choose, problem);
  const holder = make("div");
  holder.addEventListener("doing", ({ detail }) => {
    drawn = detail.span;
    refresh();
  });
  painter.on("change:blocks", refresh);
  const blocks = (next) => {
    drawn = null;
    painter.put({ blocks: next });
  };
  element.replaceChildren(
    make("div", { className: "row" }, pick.row, pick.file),
    make(
      "div",
      { className: "panels" },
      holder,
      make("div", { className: "panels four" }, ...Object.values(panels).map((each) => each.element)),
    ),
    make(
      "div",
      { className: "row" },
      button("Remove last block", () => blocks(painter.get("blocks").slice(0, -1))),
      button("Clear", () => blocks([])),
    ),
    words,
  );
  canvas.render({ model: painter, el: holder });
  droppable(element, pick.take);
  choose(item);
}

function pictureUrl(picture) {
  const canvas = make("canvas", { width: SIDE, height: SIDE });
  pixels(picture)(canvas.getContext("2d"), SIDE, SIDE);
  return canvas.toDataURL();
}
