"use strict";
// Text from data sets and runs only ever becomes textContent; nothing here builds markup from it.
const data = JSON.parse(document.getElementById("gallery-data").textContent);
const PER_PAGE = 24;
const find = (name) => document.getElementById(name);
let protocol = 0, page = 0;

for (const radio of document.querySelectorAll("input[name=protocol]"))
  radio.addEventListener("change", () => {
    for (const part of document.querySelectorAll("[data-protocol]")) part.hidden = part.dataset.protocol !== radio.value;
    protocol = data.protocols.indexOf(radio.value);
    if (find("cards")) show();
  });

const theme = find("theme");
const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const nameTheme = () => (theme.textContent = dark() ? "Light" : "Dark");
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
theme.hidden = false;
nameTheme();

addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details:not([open])")) closed.dataset.shut = closed.open = true;
});
addEventListener("afterprint", () => {
  for (const opened of document.querySelectorAll("details[data-shut]")) {
    opened.open = false;
    delete opened.dataset.shut;
  }
});

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

const kind = (verdict) => (verdict === "right" || verdict === "wrong" ? verdict : "unparsed");

function answersOf(question) {
  const run = find("by-run").value;
  const all = Object.keys(question.answers).map(Number).sort((a, b) => a - b);
  return run === "" ? all : all.filter((number) => number === Number(run));
}

function kept(question) {
  const answers = answersOf(question);
  const verdicts = answers.map((run) => kind(question.answers[run].verdicts[protocol]));
  const set = find("by-set").value, type = find("by-type").value, verdict = find("by-verdict").value;
  if (!answers.length || (set !== "" && question.set !== Number(set)) || (type !== "" && question.type !== type)) return false;
  if (verdict === "differ" ? new Set(verdicts).size < 2 : verdict !== "" && !verdicts.includes(verdict)) return false;
  const words = find("by-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = [question.id, question.question, question.gold, question.facts, ...answers.map((run) => question.answers[run].said)];
  return words.every((word) => text.join("\n").toLowerCase().includes(word));
}

function picture(number, question) {
  const jpeg = data.pictures[number];
  if (jpeg === null) return make("div", "", "picture cannot be read");
  const image = make("img");
  image.src = "data:image/jpeg;base64," + jpeg;
  image.alt = "Picture of the question: " + question.question;
  return image;
}

function card(question) {
  const item = make("li"), body = make("article", "card"), words = make("div");
  if (question.pictures.length) {
    const pictures = make("div", "pictures");
    pictures.append(...question.pictures.map((number) => picture(number, question)));
    body.append(pictures);
  } else body.classList.add("plain");
  words.append(make("h3", "", question.question), make("p", "", "Gold: " + question.gold));
  if (question.options.length) words.append(make("p", "note", "Options: " + question.options.join(" · ")));
  words.append(make("p", "note", [data.sets[question.set], question.type, question.facts].filter(Boolean).join(" · ")));
  const list = make("ul");
  for (const run of answersOf(question)) {
    const answer = question.answers[run], verdict = answer.verdicts[protocol], line = make("li");
    const told = make("span", kind(verdict), verdict.replaceAll("_", " "));
    if (kind(verdict) === "unparsed") told.title = "unparsed";
    line.append(make("span", "who", data.runs[run].label), make("span", "", answer.said || "(nothing)"), told);
    list.append(line);
  }
  body.append(words, list);
  item.append(body);
  return item;
}

function show() {
  const found = data.questions.filter(kept), last = Math.max(0, Math.ceil(found.length / PER_PAGE) - 1);
  page = Math.min(page, last);
  find("cards").replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card));
  find("count").textContent = `${found.length} of ${data.questions.length} questions`;
  find("page").textContent = `Page ${page + 1} of ${last + 1}`;
  find("before").disabled = page === 0;
  find("after").disabled = page === last;
}

function turn(pages) {
  page += pages;
  show();
  find("gallery").scrollIntoView();
}

if (find("cards")) {
  for (const name of ["by-set", "by-run", "by-verdict", "by-type", "by-text"])
    find(name).addEventListener("input", () => {
      page = 0;
      show();
    });
  find("before").addEventListener("click", () => turn(-1));
  find("after").addEventListener("click", () => turn(1));
  for (const link of document.querySelectorAll("a[data-run]"))
    link.addEventListener("click", (event) => {
      event.preventDefault();  // going to the anchor by itself would take the focus away again
      find("by-run").value = link.dataset.run;
      find("by-set").value = link.dataset.set;
      for (const name of ["by-verdict", "by-type", "by-text"]) find(name).value = "";
      page = 0;
      show();
      location.hash = "gallery";
      find("gallery").scrollIntoView();
      find("by-run").focus({ preventScroll: true });
    });
  show();
}
