// How the playground's questions are to be answered. What a person types is sent as it is: the
// server knows what is allowed, and says so.

import { generators } from "./generators.js";
import { signal } from "./preact.js";

const KEY = "chiasm.playground";

const EXAMPLE_SCHEMA = `{
  "type": "object",
  "properties": {
    "name": { "type": "string" },
    "count": { "type": "integer" }
  },
  "required": ["name", "count"],
  "additionalProperties": false
}`;

export const DEFAULTS = {
  model: "", // the first one served
  maxTokens: "256",
  temperature: "0",
  seed: "",
  format: "text", // or "json_object", "json_schema"
  schema: EXAMPLE_SCHEMA,
};

export const settings = signal(remembered());

export function change(changes) {
  settings.value = { ...settings.value, ...changes };
  try {
    localStorage.setItem(KEY, JSON.stringify(settings.value));
  } catch {
    // Storage is full or forbidden: they last as long as the page.
  }
}

function remembered() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return DEFAULTS;
  }
}

// The model that is asked: the chosen one, if it is still served.
export function model() {
  const served = generators.value ?? [];
  return served.find(({ id }) => id === settings.value.model) ?? served[0];
}

// The fields of a request. Throws an Error whose message is a sentence.
export function requestFields() {
  const { maxTokens, temperature, seed, format, schema } = settings.value;
  const fields = { model: model()?.id };
  if (maxTokens !== "") fields.max_tokens = Number(maxTokens);
  if (temperature !== "") fields.temperature = Number(temperature);
  if (seed !== "") fields.seed = Number(seed);
  if (format === "json_object") fields.response_format = { type: format };
  if (format === "json_schema") {
    fields.response_format = { type: format, json_schema: { name: "answer", schema: parseSchema(schema) } };
  }
  return fields;
}

export function parseSchema(text) {
  let schema = null;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema in the settings is not valid JSON: ${error.message}.`);
  }
  if (typeof schema !== "object" || schema === null || Array.isArray(schema)) {
    throw new Error("The schema in the settings must be a JSON object.");
  }
  return schema;
}

// In a line, for the button that opens them.
export function settingsInWords() {
  const { maxTokens, temperature, seed, format } = settings.value;
  const words = [maxTokens === "" ? "any length" : `up to ${maxTokens} tokens`];
  if (Number(temperature) > 0) words.push(`temperature ${temperature}`);
  if (seed !== "") words.push(`seed ${seed}`);
  if (format !== "text") words.push(format === "json_object" ? "JSON" : "JSON schema");
  return words.join(" · ");
}
