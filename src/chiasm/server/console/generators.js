// The models here that answer questions; and while there is none, why.

import { api } from "./api.js";
import { signal } from "./preact.js";

const RETRY_MILLISECONDS = 2000;

// null until the first answer. { id, context, vision, … } each.
export const generators = signal(null);

// Why nothing answers here, in the server's own words: { code, message }, or null.
export const absence = signal(null);

// Looks until there is one, or until nobody wants to know any more.
export async function awaitGenerators(wanted) {
  while (!wanted.aborted) {
    try {
      const models = await api.models();
      generators.value = models.filter(({ kind }) => kind === "chat");
      if (generators.value.length) {
        absence.value = null;
        return;
      }
      // A server that was told to answer nothing has to be started anew: it is asked why once.
      if (absence.value?.code !== NONE) absence.value = await reason();
    } catch (error) {
      absence.value = error;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MILLISECONDS));
  }
}

export const NONE = "model_not_found";

// The list of models does not say what is missing; a question does, even one without words.
async function reason() {
  try {
    for await (const _ of api.chat({ messages: [] })) break;
  } catch (error) {
    if (error.status !== 400) return error;
  }
  return null; // it has come meanwhile, and found the question empty
}
