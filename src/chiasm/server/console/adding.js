// Files on their way into a collection: a queue with a few requests at a time, one file each.

import { api } from "./api.js";
import { batch, computed, signal } from "./preact.js";
import { announce, contentsChanged } from "./state.js";

const AT_ONCE = 3;
const STATUSES = ["waiting", "sending", "added", "updated", "duplicate", "near_duplicate", "failed", "stopped"];
const REFRESH_EVERY = 12; // files; so that a long queue shows in the gallery as it goes

// { key, name, collection, file, status, progress, id, of, reason }
// status: "waiting", then "sending", then one of the others
export const files = signal([]);

export const tally = computed(() => {
  const counts = Object.fromEntries(STATUSES.map((status) => [status, 0]));
  for (const { status } of files.value) counts[status] += 1;
  const left = counts.waiting + counts.sending;
  return { ...counts, total: files.value.length, left, done: files.value.length - left };
});

let controller = new AbortController();
let sequence = 0;
let running = 0;

export function add(collection, chosen) {
  const entries = chosen.map((file) => ({
    key: (sequence += 1),
    name: file.webkitRelativePath || file.path || file.name,
    collection,
    file,
    status: "waiting",
    progress: 0,
  }));
  files.value = [...files.value, ...entries];
  announce(`Adding ${count(entries.length, "file")} to ${collection}.`);
  while (running < AT_ONCE && tally.value.waiting > 0) work();
}

export function stop() {
  controller.abort();
  controller = new AbortController();
  files.value = files.value.map((entry) =>
    entry.status === "waiting" ? { ...entry, status: "stopped" } : entry,
  );
}

export function clear() {
  files.value = files.value.filter(({ status }) => status === "waiting" || status === "sending");
}

export function retryFailed() {
  const again = files.value.filter(({ status }) => status === "failed" || status === "stopped");
  files.value = files.value.filter((entry) => !again.includes(entry));
  for (const [collection, entries] of Map.groupBy(again, (entry) => entry.collection)) {
    add(collection, entries.map((entry) => entry.file));
  }
}

async function work() {
  running += 1;
  for (let next = take(); next; next = take()) {
    await send(next);
    if (tally.value.done % REFRESH_EVERY === 0) refresh();
  }
  running -= 1;
  if (running === 0) {
    refresh();
    announce(summary(tally.value));
  }
}

function take() {
  const next = files.value.find(({ status }) => status === "waiting");
  if (next) change(next.key, { status: "sending" });
  return next;
}

async function send({ key, collection, file, name }) {
  try {
    const { status, id, of, error } = await api.addFile(collection, file, {
      name,
      signal: controller.signal,
      onProgress: (progress) => change(key, { progress }),
    });
    change(key, { status, id, of, reason: error && withoutName(error.message, name), progress: 1 });
  } catch (error) {
    if (error.name === "AbortError") change(key, { status: "stopped" });
    else change(key, { status: "failed", reason: error.message });
  }
}

function change(key, changes) {
  batch(() => {
    files.value = files.value.map((entry) => (entry.key === key ? { ...entry, ...changes } : entry));
  });
}

// The server's sentence names the file; beside the file's name that is once too often.
function withoutName(message, name) {
  if (!message.startsWith(`${name}: `)) return message;
  const rest = message.slice(name.length + 2);
  return rest.charAt(0).toUpperCase() + rest.slice(1);
}

function refresh() {
  contentsChanged().catch(() => {}); // the next thing a person does will say what is wrong
}

export function summary({ added, updated, near_duplicate, duplicate, failed, stopped }) {
  const parts = [];
  if (added + near_duplicate) parts.push(`${added + near_duplicate} added`);
  if (updated) parts.push(`${updated} updated`);
  if (duplicate) parts.push(`${duplicate} already there`);
  if (failed) parts.push(`${failed} failed`);
  if (stopped) parts.push(`${stopped} stopped`);
  return parts.join(", ") || "Nothing to add";
}

export function count(number, noun) {
  return `${number.toLocaleString()} ${noun}${number === 1 ? "" : "s"}`;
}
