// Brings a page to life: forms of predictions, and explorables where they come near the window.

import { revive } from "./predictions.js";

/** Start what an element names in data-explore; errors are said in the page, not only in the console. */
async function start(element) {
  try {
    const { start } = await import(`./${element.dataset.explore}.js`);
    await start(element);
  } catch (error) {
    element.textContent = `This did not start: ${error.message}`;
    throw error;
  }
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      start(target);
    }
  },
  { rootMargin: "400px" },
);
for (const element of document.querySelectorAll("[data-explore]")) near.observe(element);
for (const element of document.querySelectorAll("[data-ask]")) revive(element);
// What is wider than the page scrolls by itself: by keyboard too, if it can have the focus.
for (const box of document.querySelectorAll("article pre, .table-wrapper, .math-wrapper")) {
  if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
}
