// Pictures to play with: drawings and photographs that lie beside the page, and the reader's own, which stays here.

import { fromCanvas } from "./patches.js";
import { Tensor } from "./tensor.js";
import { bitmap, make } from "./view.js";

export const SIDE = 32; // pixels, as the toy was trained
const HERE = new URL("../pictures/", import.meta.url);
export const PHOTOGRAPHS = ["flower", "pagoda"];

/** What a drawable shows, in the square of `side` pixels: bytes (3, side, side). */
function bytes(drawable, side, from = null) {
  const canvas = make("canvas", { width: side, height: side });
  const g = canvas.getContext("2d", { willReadFrequently: true });
  g.fillStyle = "#fff"; // below what is transparent
  g.fillRect(0, 0, side, side);
  if (from) g.drawImage(drawable, ...from, side, side, 0, 0, side, side);
  else g.drawImage(drawable, 0, 0, side, side);
  return fromCanvas(g.getImageData(0, 0, side, side));
}

/** The pictures of a sheet, one beside and below the other. */
export async function sheet(name, side = SIDE) {
  const image = new Image();
  image.src = new URL(name, HERE);
  await image.decode();
  const found = [];
  for (let top = 0; top < image.naturalHeight; top += side) {
    for (let left = 0; left < image.naturalWidth; left += side) found.push(bytes(image, side, [left, top]));
  }
  return found;
}

/** All that is offered: { name, kind, picture }, kind "drawing" or "photograph". */
export async function offered() {
  const [drawn, taken] = await Promise.all([sheet("drawings.png"), sheet("photographs.png")]);
  return [
    ...taken.map((picture, n) => ({ name: PHOTOGRAPHS[n], kind: "photograph", picture })),
    ...drawn.map((picture, n) => ({ name: `drawing ${n + 1}`, kind: "drawing", picture })),
  ];
}

/** A file of the reader's: its middle square, made small; and the whole as it was, to show beside it. */
export async function own(file) {
  let whole;
  try {
    whole = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not a picture that this browser can read; try a JPEG or PNG file`);
  }
  const square = Math.min(whole.width, whole.height);
  const [left, top] = [(whole.width - square) / 2, (whole.height - square) / 2];
  // Smaller in halves: one large step would skip most of the pixels.
  let side = square;
  let [now, from] = [whole, [left, top, square, square]];
  while (side > SIDE) {
    side = Math.max(SIDE, Math.ceil(side / 2));
    const next = make("canvas", { width: side, height: side });
    const g = next.getContext("2d");
    g.imageSmoothingQuality = "high";
    g.drawImage(now, ...from, 0, 0, side, side);
    [now, from] = [next, [0, 0, side, side]];
  }
  return { name: file.name, kind: "photograph", picture: bytes(now, SIDE), original: { whole, left, top, square } };
}

/** Buttons with the pictures on them, and one for the reader's own; `answer` hears which was chosen. */
export function chooser(items, answer, fail) {
  const row = make("div", { className: "pictures", role: "group", ariaLabel: "Pictures" });
  const press = (pressed) => {
    for (const each of row.querySelectorAll("button")) each.setAttribute("aria-pressed", `${each === pressed}`);
  };
  for (const item of items) {
    const small = bitmap(item.picture);
    const one = make("button", { type: "button", title: item.name, ariaLabel: item.name }, small);
    one.addEventListener("click", () => {
      press(one);
      answer(item);
    });
    row.append(one);
  }
  press(row.querySelector("button"));
  const take = async (file) => {
    try {
      answer(await own(file));
      press(null);
    } catch (error) {
      fail(error.message);
    }
  };
  const input = make("input", { type: "file", accept: "image/*" });
  input.addEventListener("change", () => input.files.length && take(input.files[0]));
  return { row, file: make("label", { className: "file" }, "Your own picture ", input), take };
}

/** Files may be dropped on the element. */
export function droppable(element, take) {
  const over = (event) => {
    if (![...event.dataTransfer.items].some((item) => item.kind === "file")) return;
    event.preventDefault();
    element.classList.add("dropping");
  };
  element.addEventListener("dragenter", over);
  element.addEventListener("dragover", over);
  element.addEventListener("dragleave", () => element.classList.remove("dropping"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("dropping");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

/** Bytes (3, H, W), all grey. */
export function grey(side = SIDE) {
  return new Tensor(new Float32Array(3 * side * side).fill(128), [3, side, side]);
}
