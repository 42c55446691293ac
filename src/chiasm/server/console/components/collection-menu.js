// The collection's name as the page's heading, and the menu that changes it.

import { count } from "../adding.js";
import { api } from "../api.js";
import { html } from "../preact.js";
import { openCollection } from "../route.js";
import { announce, collections, refreshCollections } from "../state.js";
import { ask, confirm } from "./ask.js";
import { Icon } from "./icons.js";
import { Menu } from "./menu.js";

export function CollectionMenu({ name }) {
  const entries = collections.value.map((collection) => ({
    label: collection.name,
    detail: collection.items.toLocaleString(),
    checked: collection.name === name,
    onChoose: () => openCollection(collection.name),
  }));
  if (entries.length) entries.push(null);
  entries.push({ label: "New collection…", icon: "plus", onChoose: createCollection });
  if (collections.value.some((collection) => collection.name === name)) {
    entries.push({
      label: `Delete ${name}…`,
      icon: "trash",
      danger: true,
      onChoose: () => deleteCollection(name),
    });
  }
  return html`<h1 class="collection">
    <${Menu} label=${`Collection: ${name}`} buttonClass="collection-button" entries=${entries}>
      <span>${name}</span><${Icon} name="down" />
    <//>
  </h1>`;
}

export async function createCollection() {
  const created = await ask({
    title: "New collection",
    text: "A collection is a set of pictures that are searched together.",
    label: "Name",
    action: "Create",
    submit: api.createCollection,
  });
  if (!created) return;
  await refreshCollections();
  openCollection(created.name);
  announce(`Collection ${created.name} created.`);
}

async function deleteCollection(name) {
  const { items } = collections.value.find((collection) => collection.name === name);
  const sure = await confirm({
    title: `Delete ${name}?`,
    text: items
      ? `${count(items, "picture")}, with their texts and metadata, will be removed from chiasm. The files they came from stay where they are. This cannot be undone.`
      : "It is empty. This cannot be undone.",
    action: "Delete collection",
    danger: true,
  });
  if (!sure) return;
  try {
    await api.deleteCollection(name);
    announce(`Collection ${name} deleted.`);
  } catch (error) {
    await confirm({ title: "It was not deleted", text: error.message, action: "Close" });
  }
  await refreshCollections();
  openCollection(collections.value[0]?.name ?? "");
}
