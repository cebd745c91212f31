// A picture in patches: pick one, move a block, paint blocks; by pointer and by keyboard. What the traits mean is
// said in canvas.py, which joins draw.js (geometry and drawing) and this file into one module.

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const HELP = {
  pick: "Click a patch, or move with the arrow keys.",
  move: "Drag the block, or move it with the arrow keys; shift and arrows change its size.",
  paint:
    "Drag to hide a block. By keyboard: arrows move, space begins and ends a block, Escape gives it up, " +
    "Delete removes the block under the cursor.",
};

/** The elements, and a canvas that knows its size in patches and in device pixels. */
function build(model, el) {
  const box = document.createElement("div");
  const canvas = document.createElement("canvas");
  const status = document.createElement("p");
  const help = document.createElement("p");
  box.className = "ijepa-box";
  canvas.className = "ijepa-canvas";
  status.className = "ijepa-status";
  help.className = "ijepa-help";
  help.id = `ijepa-help-${Math.random().toString(36).slice(2)}`;
  help.textContent = HELP[model.get("mode")];
  status.setAttribute("aria-live", "polite");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", model.get("label"));
  canvas.setAttribute("aria-describedby", help.id);
  // JupyterLab's own shortcuts (arrows change the cell, d d deletes it) stay out while the canvas has the focus.
  canvas.dataset.lmSuppressShortcuts = "true";
  // A finger that drags a block must not scroll the page; one that only picks may.
  canvas.style.touchAction = model.get("mode") === "pick" ? "manipulation" : "none";
  box.append(canvas, status, help);
  el.append(box);
  return { canvas, status };
}

/** What pointer and keys do in each mode. `tell` announces, `set` changes a trait and sends it to Python. */
function actions(model, doing, set, tell) {
  const grid = () => model.get("grid");
  const block = () => model.get("blocks")[0] ?? [0, 0, 1, 1];
  const fit = ([top, left, rows, columns]) => {
    const [h, w] = grid();
    const size = [clamp(rows, 1, h), clamp(columns, 1, w)];
    return [clamp(top, 0, h - size[0]), clamp(left, 0, w - size[1]), ...size];
  };
  const pick = (place) => {
    set("picked", place);
    tell(`Patch at row ${place[0]}, column ${place[1]}`);
  };
  const move = (wanted) => {
    const next = fit(wanted);
    set("blocks", [next]);
    tell(`Block of ${names(next)}`);
  };
  const add = (next) => {
    doing.span = doing.anchor = null;
    const blocks = [...model.get("blocks"), next];
    set("blocks", blocks);
    tell(`Hidden: ${names(next)}; ${blocks.length} in all`);
  };
  const remove = () => {
    const blocks = model.get("blocks");
    const last = blocks.findLastIndex((each) => inside(each, doing.cursor));
    if (last < 0) return tell("No block under the cursor");
    set("blocks", blocks.filter((_, m) => m !== last));
    tell(`Removed: ${names(blocks[last])}; ${blocks.length - 1} left`);
  };
  const stretch = (place) => {
    doing.cursor = place;
    if (doing.anchor) doing.span = between(doing.anchor, place);
    tell(doing.span ? `Block of ${names(doing.span)}` : `Cursor at row ${place[0]}, column ${place[1]}`);
  };
  const step = ([row, column], [down, right]) => {
    const [h, w] = grid();
    return [clamp(row + down, 0, h - 1), clamp(column + right, 0, w - 1)];
  };
  return {
    pick: {
      down: pick,
      drag: pick,
      up() {},
      key({ key }) {
        if (ARROWS[key]) pick(step(model.get("picked"), ARROWS[key]));
        else if (key === " " || key === "Enter") pick([...model.get("picked")]);
        else return false;
      },
    },
    move: {
      down(place) {
        const [top, left, rows, columns] = block();
        const held = inside(block(), place);
        doing.grip = held ? [place[0] - top, place[1] - left] : [rows >> 1, columns >> 1];
        if (!held) this.drag(place);
      },
      drag(place) {
        move([place[0] - doing.grip[0], place[1] - doing.grip[1], ...block().slice(2)]);
      },
      up() {},
      key({ key, shiftKey }) {
        const [top, left, rows, columns] = block();
        if (ARROWS[key]) {
          const [down, right] = ARROWS[key];
          const [h, w] = grid();
          // A block that grows keeps its corner, so it stops at the edge of the picture.
          if (shiftKey) move([top, left, clamp(rows + down, 1, h - top), clamp(columns + right, 1, w - left)]);
          else move([top + down, left + right, rows, columns]);
        } else if (key === " " || key === "Enter") tell(`Block of ${names(block())}`);
        else return false;
      },
    },
    paint: {
      down(place) {
        doing.anchor = place;
        stretch(place);
      },
      drag: stretch,
      up() {
        if (doing.span) add(doing.span);
      },
      key({ key }) {
        if (ARROWS[key]) stretch(step(doing.cursor, ARROWS[key]));
        else if (key === " " || key === "Enter") {
          if (doing.span) add(doing.span);
          else {
            doing.anchor = doing.cursor;
            stretch(doing.cursor);
          }
        } else if (key === "Delete" || key === "Backspace") remove();
        else if (key === "Escape" && doing.anchor) {
          doing.span = doing.anchor = null;
          tell("Given up");
        } else return false;
      },
    },
  };
}

function render({ model, el }) {
  const { canvas, status } = build(model, el);
  const picture = new Image();
  const doing = { cursor: [...model.get("picked")], anchor: null, span: null, grip: null, pointer: null, at: "" };
  const draw = () => paint(canvas, picture, model, doing);
  const tell = (words) => (status.textContent = words);
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const does = actions(model, doing, set, tell);
  const action = () => does[model.get("mode")];
  const place = (event) => {
    const [h, w] = model.get("grid");
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * h);
    const column = Math.floor(((event.clientX - box.left) / box.width) * w);
    return [clamp(row, 0, h - 1), clamp(column, 0, w - 1)];
  };

  const listen = {
    pointerdown(event) {
      if (event.button !== 0 || doing.pointer !== null) return;
      doing.pointer = event.pointerId;
      doing.at = `${place(event)}`;
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      action().down(place(event));
      event.preventDefault();
    },
    pointermove(event) {
      // Only the step into another patch is news; Python would draw every pixel of the way otherwise.
      if (event.pointerId !== doing.pointer || doing.at === `${place(event)}`) return;
      doing.at = `${place(event)}`;
      action().drag(place(event));
    },
    pointerup(event) {
      if (event.pointerId !== doing.pointer) return;
      doing.pointer = null;
      action().up();
    },
    pointercancel(event) {
      if (event.pointerId === doing.pointer) doing.pointer = doing.span = doing.anchor = null;
    },
    keydown(event) {
      // Combinations belong to the browser and to JupyterLab (shift + Enter runs the cell).
      if (event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && !ARROWS[event.key])) return;
      if (action().key(event) === false) return;
      event.preventDefault();
      event.stopPropagation();
    },
    focus() {},
    blur() {},
  };
  for (const [name, answer] of Object.entries(listen)) {
    canvas.addEventListener(name, (event) => {
      answer(event);
      draw();
      // For pages that answer on the way (book/explore); Python hears of a block when it is done.
      el.dispatchEvent(new CustomEvent("doing", { detail: doing }));
    });
  }

  const load = () => (picture.src = model.get("image"));
  picture.onload = draw;
  model.on("change:image", load);
  for (const name of ["grid", "picked", "blocks", "colours", "veil"]) model.on(`change:${name}`, draw);
  // The size in device pixels changes with the window, with its zoom (a resize too) and when the cell is first shown.
  const watch = new ResizeObserver(draw);
  watch.observe(canvas);
  window.addEventListener("resize", draw);
  load();
  draw();
  return () => {
    watch.disconnect();
    window.removeEventListener("resize", draw);
    model.off("change:image", load);
    for (const name of ["grid", "picked", "blocks", "colours", "veil"]) model.off(`change:${name}`, draw);
  };
}

export default { render };
