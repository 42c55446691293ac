// Questions and their answers, one after the other. The server keeps nothing of it: each request
// carries all that was said before.

import { api } from "./api.js";
import { requestFields } from "./chat-settings.js";
import { dataUrl, putBack } from "./draft.js";
import { computed, signal } from "./preact.js";
import { announce } from "./state.js";

// { key, question, pictures, status, answer, model, json, finish, usage, error }
// status: "asked" until the first words, "answering", then "done", "stopped" or "failed"
export const turns = signal([]);

const UNDER_WAY = ["asked", "answering"];

export const busy = computed(() => UNDER_WAY.includes(turns.value.at(-1)?.status));

let controller = new AbortController();
let sequence = 0;

export function ask({ question, pictures }) {
  const turn = { key: (sequence += 1), question, pictures };
  turns.value = [...turns.value, turn];
  return answer(turn);
}

// The last question once more, with the settings of now.
export function retry() {
  return answer(turns.value.at(-1));
}

// Hanging up is all it takes: the server stops when nobody listens.
export function stop() {
  controller.abort();
}

// The last question back into the field, to be changed.
export function rewrite() {
  putBack(turns.value.at(-1));
  turns.value = turns.value.slice(0, -1);
}

export function startAnew() {
  stop();
  for (const { pictures } of turns.value) pictures.forEach(({ url }) => URL.revokeObjectURL(url));
  turns.value = [];
}

// What has no answer was not said: a conversation goes in turns.
export function isPart({ status, answer: words }) {
  return (status === "done" || status === "stopped") && words !== "";
}

async function answer({ key }) {
  const mine = (controller = new AbortController());
  const change = (changes) => {
    turns.value = turns.value.map((turn) => (turn.key === key ? { ...turn, ...changes } : turn));
  };
  change({ status: "asked", answer: "", model: null, json: false, finish: null, usage: null, error: null });
  let words = "";
  try {
    const fields = requestFields();
    change({ model: fields.model, json: Boolean(fields.response_format) });
    const messages = await toMessages(key);
    for await (const { choices, usage } of api.chat({ ...fields, messages }, { signal: mine.signal })) {
      const [{ delta, finish_reason: finish } = {}] = choices;
      if (delta?.content) change({ status: "answering", answer: (words += delta.content) });
      if (finish) change({ finish });
      if (usage) change({ usage });
    }
    change({ status: "done" });
    announce(words ? `The answer: ${words}` : "The answer is empty.");
  } catch (error) {
    if (error.name === "AbortError") {
      change({ status: "stopped" });
      announce("Stopped.");
    } else {
      change({ status: "failed", error: error.message }); // an alert: heard without our help
    }
  }
}

async function toMessages(last) {
  const messages = [];
  for (const turn of turns.value) {
    if (turn.key !== last && !isPart(turn)) continue;
    messages.push({ role: "user", content: await content(turn) });
    if (turn.key === last) return messages;
    messages.push({ role: "assistant", content: turn.answer });
  }
  return messages;
}

async function content({ question, pictures }) {
  if (!pictures.length) return question;
  const urls = await Promise.all(pictures.map(dataUrl));
  return [
    ...urls.map((url) => ({ type: "image_url", image_url: { url } })),
    { type: "text", text: question },
  ];
}
