// What the Plan page knows: a picture or a size, words, the rows that the server answered, the one
// that is looked at, and how many tokens its picture may take. Only sizes and words are sent.

import { api } from "./api.js";
import { signal } from "./preact.js";

const PAUSE_MILLISECONDS = 180; // while somebody types or drags

// picture: { name, url, width, height }; without `url` there is a size alone, without anything null.
export const picture = signal(null);
export const prompt = signal("What is in this picture?");
export const everyLevel = signal(false);
export const rows = signal(null);
export const error = signal("");
export const chosen = signal(""); // `key` of a row
export const budget = signal(null); // tokens; null is no bound
export const fitted = signal(null); // the chosen row within the budget

export function key({ model, detail }) {
  return `${model} ${detail}`;
}

export function chosenRow() {
  return rows.value?.find((row) => key(row) === chosen.value) ?? rows.value?.find(({ refusal }) => !refusal);
}

// Opens a file that the browser can show; its size is the picture's own, turned upright.
export async function choose(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    error.value = `${file.name || "The picture"} is in no format that this browser shows. Type its size instead.`;
    return;
  }
  if (picture.value?.url) URL.revokeObjectURL(picture.value.url);
  show({ name: file.name || "pasted picture", url, width: image.naturalWidth, height: image.naturalHeight });
}

export function size(width, height) {
  if (picture.value?.url) URL.revokeObjectURL(picture.value.url);
  show({ name: "", url: "", width, height });
}

function show(shown) {
  error.value = "";
  budget.value = fitted.value = null;
  picture.value = shown;
  plan();
}

export function write(text) {
  prompt.value = text;
  plan();
}

export function levels(every) {
  everyLevel.value = every;
  plan();
}

export function look(row) {
  chosen.value = key(row);
  budget.value = fitted.value = null;
}

export function allow(tokens) {
  budget.value = tokens;
  fit();
}

const plan = paused(async (signal) => {
  const { width, height } = picture.value;
  const body = { pictures: [{ width, height }], prompt: prompt.value };
  if (!everyLevel.value) body.details = ["auto"];
  rows.value = (await api.plan(body, { signal })).data;
  error.value = "";
  if (budget.value !== null) fit();
});

const fit = paused(async (signal) => {
  const { width, height } = picture.value;
  const { model, detail } = chosenRow();
  const asked = { pictures: [{ width, height }], prompt: prompt.value, models: [model], details: [detail] };
  const { data } = await api.plan({ ...asked, fit: { tokens: budget.value } }, { signal });
  fitted.value = data.find((row) => key(row) === key({ model, detail })) ?? data[0];
});

// The last call counts: after a pause, and what was asked before it is given up.
function paused(work) {
  let timer = 0;
  let controller = new AbortController();
  return () => {
    clearTimeout(timer);
    controller.abort();
    controller = new AbortController();
    const { signal } = controller;
    timer = setTimeout(async () => {
      try {
        await work(signal);
      } catch (failure) {
        if (failure.name !== "AbortError") error.value = failure.message;
      }
    }, PAUSE_MILLISECONDS);
  };
}
