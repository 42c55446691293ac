// Every call to the server. Answers are the API's own objects; failures are `ApiError`s whose
// message is a sentence for a person.

import { serverSentEvents } from "./server-sent-events.js";

export class ApiError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }

  get unreachable() {
    return this.status === 0;
  }
}

const UNREACHABLE = "The server does not answer. Is it still running?";
const BROKEN_OFF = "The server broke off in the middle of the answer. Is it still running?";

export const api = {
  ready: () => call("GET", "/readyz"),
  // The key goes into a cookie that this page cannot read, and that pictures are asked for with.
  beginSession: (key) => call("POST", "/v1/session", { body: {}, key }),
  collections: async () => (await call("GET", "/v1/collections")).data,
  createCollection: (name) => call("POST", "/v1/collections", { body: { name } }),
  deleteCollection: (name) => call("DELETE", collectionPath(name)),

  search: (collection, query, options) =>
    call("POST", `${collectionPath(collection)}/search`, { body: query, ...options }),
  items: (collection, { limit, after, filter, order }, options) => {
    const values = new URLSearchParams({ limit, order });
    if (after) values.set("after", after);
    if (filter) values.set("filter", JSON.stringify(filter));
    return call("GET", `${collectionPath(collection)}/items?${values}`, options);
  },

  item: (collection, id, options) => call("GET", itemPath(collection, id), options),
  updateItem: (collection, id, changes) =>
    call("PATCH", itemPath(collection, id), { body: changes }),
  deleteItem: (collection, id) => call("DELETE", itemPath(collection, id)),
  thumbnailUrl: (collection, id) => `${itemPath(collection, id)}/thumbnail`,

  models: async () => (await call("GET", "/v1/models")).data,
  plan: (body, options) => call("POST", "/v1/plan", { body, ...options }),
  chat,

  addFile,
};

function collectionPath(name) {
  return `/v1/collections/${encodeURIComponent(name)}`;
}

function itemPath(collection, id) {
  return `${collectionPath(collection)}/items/${encodeURIComponent(id)}`;
}

async function call(method, path, options) {
  const response = await send(method, path, options);
  return answer(response.status, await response.text());
}

// The chunks of a streamed answer, as they come. Aborting `signal` hangs up, and the server stops.
async function* chat(body, { signal } = {}) {
  const wanted = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await send("POST", "/v1/chat/completions", { body: wanted, signal });
  if (!response.ok) answer(response.status, await response.text());
  try {
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code });
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(BROKEN_OFF);
  }
  throw new ApiError(BROKEN_OFF);
}

async function send(method, path, { body, signal, key } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, {
      method,
      signal,
      headers,
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(UNREACHABLE);
  }
}

// One file a request, so that each has its own progress and its own result. `fetch` cannot
// report what it has sent; XMLHttpRequest can.
function addFile(collection, file, { name, onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("files", file, name);
    const request = new XMLHttpRequest();
    request.open("POST", `${collectionPath(collection)}/items`);
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onerror = () => reject(new ApiError(UNREACHABLE));
    request.onabort = () => reject(new DOMException("Stopped.", "AbortError"));
    request.onload = () => {
      try {
        resolve(answer(request.status, request.responseText).data[0]);
      } catch (error) {
        reject(error);
      }
    };
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}

function answer(status, text) {
  let content = null;
  try {
    content = text ? JSON.parse(text) : null;
  } catch {
    // A proxy's HTML page, say; the status still tells.
  }
  if (status >= 200 && status < 300) return content;
  const { message, code } = content?.error ?? {};
  throw new ApiError(message || `The server answered with status ${status}.`, { status, code });
}
