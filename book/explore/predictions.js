// The forms "Predict first" of the chapters: the widget of the notebooks, with this browser's memory behind it.
// What is committed stays on this device, unless its reader saves it as a file.

import { compare, csv } from "./guesses.js";
import { Model } from "./model.js";
import form from "./predict.js";

const HEAD = ["who", "chapter", "question", "said", "answer", "outcome"]; // as toy_ijepa/widgets/predict.py
const place = (name) => `ijepa-predictions-${name}`;

/** What was committed earlier on this device; nothing where it may not be read (private windows). */
function remembered(name, count) {
  try {
    const said = JSON.parse(localStorage.getItem(place(name)) ?? "[]");
    return Array.from({ length: count }, (_, n) => (typeof said[n] === "string" ? said[n] : ""));
  } catch {
    return Array(count).fill("");
  }
}

function remember(name, said) {
  try {
    localStorage.setItem(place(name), JSON.stringify(said));
  } catch {
    // The form still works; it only forgets when the page is left.
  }
}

/** What the form says of a question once its answer has been reached: the answer, and how far the reader was. */
function outcome(question, said) {
  if (said === "") return "";
  if (question.kind === "words") return question.reason;
  return `It is ${question.found}${question.unit ?? ""}. ${compare(question, said)}`;
}

function save(who, name, questions, said) {
  const rows = questions.map((q, n) => [who, name, q.label, said[n], q.found, compare(q, said[n])]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv([HEAD, ...rows])], { type: "text/csv" }));
  link.download = `predictions-${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function button(text, answer) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", answer);
  return made;
}

/** Make the form of an element with data-ask, and let the answers further down say how its reader did. */
export function revive(element) {
  const name = element.dataset.ask;
  const questions = JSON.parse(element.querySelector("script").textContent);
  const answers = document.querySelector(`.answers[data-chapter="${name}"]`);
  const blank = questions.map(() => "");
  const model = new Model({ questions, answers: remembered(name, questions.length), outcomes: blank });
  element.replaceChildren();
  form.render({ model, el: element });

  let reached = false;
  const told = [...(answers?.querySelectorAll(".told") ?? [])];
  const show = () => {
    const said = model.get("answers");
    told.forEach((line, n) => (line.textContent = compare(questions[n], said[n])));
    if (reached) model.put({ outcomes: questions.map((question, n) => outcome(question, said[n])) });
  };
  model.on("change:answers", () => {
    remember(name, model.get("answers"));
    show();
  });
  if (answers) {
    const watch = new IntersectionObserver(([entry]) => {
      if (!entry.isIntersecting) return;
      watch.disconnect();
      reached = true;
      show();
    });
    watch.observe(answers);
  }
  show();

  const row = document.createElement("p");
  row.className = "keep";
  const who = document.createElement("input");
  who.type = "text";
  who.placeholder = "name (optional)";
  who.setAttribute("aria-label", "Your name in the file, if you like");
  row.append(
    "What you commit stays in this browser. For a teacher who asks: ",
    who,
    " ",
    button("Save as CSV", () => save(who.value.trim(), name, questions, model.get("answers"))),
    " ",
    button("Forget", () => {
      remember(name, blank);
      location.reload();
    }),
  );
  element.append(row);
}
