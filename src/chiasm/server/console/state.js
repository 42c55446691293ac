// What more than one part of the page looks at: the server's health, the collections, what a
// screen reader should hear. What is on the screen is in route.js, what is being added in
// adding.js.

import { api } from "./api.js";
import { signal } from "./preact.js";

// "starting" until the server says it is ready, then "ready"; "unreachable" when nothing answers;
// "locked" while it asks for a key.
export const server = signal({ state: "connecting", message: "" });

// null until the first answer.
export const collections = signal(null);

// Counts changes to a collection's contents: a gallery that depends on it loads again.
export const revision = signal(0);

export const announcement = signal("");

export function announce(text) {
  announcement.value = text;
}

const RETRY_MILLISECONDS = 1000;

export async function connect() {
  for (;;) {
    try {
      await api.ready();
      collections.value = await api.collections();
      server.value = { state: "ready", message: "" };
      document.addEventListener("visibilitychange", () => document.hidden || lookAgain());
      return;
    } catch (error) {
      if (error.status === 401) {
        server.value = { state: "locked", message: error.message };
        return; // until a key is put in
      }
      const starting = error.code === "not_ready";
      const state = error.unreachable ? "unreachable" : starting ? "starting" : "failed";
      server.value = { state, message: error.message };
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MILLISECONDS));
  }
}

export async function refreshCollections() {
  collections.value = await api.collections();
}

// Collections also change elsewhere. Failing is no news here: what a person does next will tell.
export function lookAgain() {
  refreshCollections().catch(() => {});
}

export function contentsChanged() {
  revision.value += 1;
  return refreshCollections();
}
