// What is on the screen lives in the address: `#/search/<collection>?q=…&where=…&item=…`.
// So a link can be sent, a reload changes nothing, and the back button works.

import { effect, signal } from "./preact.js";

const EMPTY = { page: "search", collection: "", text: "", image: "", like: "", where: [], item: "" };

export const route = signal(parse(location.hash));

// Where each page was left: its link in the header leads back there.
const left = new Map();
effect(() => left.set(route.value.page, route.value));

window.addEventListener("popstate", () => (route.value = parse(location.hash)));

function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [page, collection] = path.split("/").map(decode);
  const values = new URLSearchParams(query);
  return {
    ...EMPTY,
    page: page || "search",
    collection: collection ?? "",
    text: values.get("q") ?? "",
    image: values.get("image") ?? "",
    like: values.get("like") ?? "",
    where: values.getAll("where"),
    item: values.get("item") ?? "",
  };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a lone % typed by hand
  }
}

// The address of this screen with some of it changed.
export function href(changes) {
  return addressOf({ ...route.value, ...changes });
}

export function pageHref(page) {
  return addressOf({ ...(left.get(page) ?? { ...EMPTY, page }), item: "" });
}

function addressOf(to) {
  const values = new URLSearchParams();
  if (to.text) values.set("q", to.text);
  if (to.image) values.set("image", to.image);
  if (to.like) values.set("like", to.like);
  for (const condition of to.where) values.append("where", condition);
  if (to.item) values.set("item", to.item);
  const query = values.toString();
  const collection = to.collection && `/${encodeURIComponent(to.collection)}`;
  return `#/${to.page}${collection}${query ? `?${query}` : ""}`;
}

// `depth` counts the items opened one from another, so that closing returns to the gallery in
// one step and the back button does not walk through them again.
export function go(changes, { replace = false } = {}) {
  const to = href(changes);
  if (to === location.hash) return;
  const depth = changes.item ? (history.state?.depth ?? 0) + (replace ? 0 : 1) : 0;
  history[replace ? "replaceState" : "pushState"]({ depth }, "", to);
  route.value = parse(to);
}

export function closeItem() {
  const depth = history.state?.depth ?? 0;
  if (depth > 0) history.go(-depth);
  else go({ item: "" }, { replace: true });
}

// A new collection is a new question: nothing of the old one applies to it.
export function openCollection(collection, options) {
  go({ ...EMPTY, collection }, options);
}

// For links: a plain click stays in the page; with a modifier the browser does as it always does.
export function follow(event, changes) {
  if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(changes);
}
