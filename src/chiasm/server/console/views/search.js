// Find pictures in one collection: with words, with a picture, with both.

import { add, count } from "../adding.js";
import { chooseFiles } from "../choose-files.js";
import { CollectionMenu, createCollection } from "../components/collection-menu.js";
import { DropOverlay } from "../components/drop-overlay.js";
import { FilterBar } from "../components/filter-bar.js";
import { Gallery, More } from "../components/gallery.js";
import { Menu } from "../components/menu.js";
import { Icon } from "../components/icons.js";
import { Notice } from "../components/notice.js";
import { SearchBox, searchWith } from "../components/search-box.js";
import { html, useCallback, useEffect, useRef, useState } from "../preact.js";
import { LostPicture, useResults } from "../results.js";
import { go, openCollection, route } from "../route.js";
import { announce, collections, lookAgain, revision } from "../state.js";
import { ItemView } from "./item.js";

export function Search() {
  const { collection } = route.value;
  const first = (collections.value.find(({ items }) => items > 0) ?? collections.value[0])?.name;

  useEffect(() => {
    if (!collection && first) openCollection(first, { replace: true });
  }, [collection, first]);

  // One that was made since, by the command line or in another tab, is looked for once.
  const known = collections.value.find(({ name }) => name === collection);
  useEffect(() => {
    if (collection && !known) lookAgain();
  }, [collection]);

  if (!collections.value.length) return html`<${NoCollections} />`;
  if (!collection) return null;
  return known
    ? html`<${Collection} key=${collection} ...${known} />`
    : html`<${UnknownCollection} name=${collection} />`;
}

function Collection({ name, items }) {
  const { text, image, like, where, item } = route.value;
  const results = useResults({ collection: name, text, image, like, where }, revision.value);
  const [current, setCurrent] = useState(null);
  const { hits, status, ranked } = results;

  useEffect(() => {
    document.title = `${text ? `${text} · ` : ""}${name} · chiasm`;
  }, [text, name]);

  const opened = useRef("");
  useEffect(() => {
    if (opened.current && !item) focusTile(opened.current);
    opened.current = item;
  }, [item]);

  const addFiles = useCallback((files) => add(name, files), [name]);
  const zones = (files) => [
    ...(items > 0 && files === 1 ? [{ icon: "search", title: "Search with it", detail: "Find pictures like this one", onDrop: ([file]) => searchWith(file) }] : []),
    { icon: "plus", title: `Add to ${name}`, detail: "Files and folders" },
  ];
  const empty = items === 0 && !hits.length && status !== "loading";

  return html`<main class="page" id="main">
      <div class="page-head">
        <${CollectionMenu} name=${name} />
        <span class="page-count">${count(items, "picture")}</span>
        <${Menu}
          label="Add pictures"
          buttonClass="button primary"
          align="end"
          entries=${[
            { label: "Choose pictures…", icon: "picture", onChoose: () => chooseFiles({ onChoose: addFiles }) },
            { label: "Choose a folder…", icon: "folder", onChoose: () => chooseFiles({ onChoose: addFiles, folder: true }) },
          ]}
        >
          <${Icon} name="plus" /><span>Add</span>
        <//>
      </div>
      ${!empty &&
      html`<div class="question">
        <${SearchBox} />
        <${FilterBar} keys=${metadataKeys(hits)} />
      </div>`}
      <${Summary} ...${results} filtered=${where.length > 0} total=${items} />
      <${Answer} ...${results} name=${name} empty=${empty} filtered=${where.length > 0} current=${current} onCurrent=${setCurrent} addFiles=${addFiles} />
    </main>
    ${item && html`<${ItemView} collection=${name} id=${item} siblings=${hits} ranked=${ranked} more=${results.more !== null} />`}
    <${DropOverlay} zones=${zones} onFiles=${addFiles} />`;
}

function Summary({ hits, status, ranked, more, timing, filtered, total }) {
  const words = status === "error" ? "" : sentence({ hits, ranked, more, filtered, total });
  useEffect(() => {
    if (status === "ready" && ranked) announce(words);
  }, [status, words, timing]);
  if (!words || !hits.length) return null;
  return html`<p class="summary">
    <span>${words}</span>
    ${timing &&
    html`<span class="timing" title=${`${milliseconds(timing.total_seconds)} until the answer was here`}>
      <span class="wide-only">${milliseconds(timing.embed_seconds)} to embed, ${milliseconds(timing.search_seconds)} to search</span>
      <span class="narrow-only">${milliseconds(timing.embed_seconds + timing.search_seconds)}</span>
    </span>`}
  </p>`;
}

function sentence({ hits, ranked, more, filtered, total }) {
  if (!hits.length) return "No pictures found";
  const order = ranked ? ", best first" : "";
  if (more === null) return `${count(hits.length, "picture")}${order}`;
  return `The first ${hits.length.toLocaleString()}${filtered ? "" : ` of ${total.toLocaleString()}`}${order}`;
}

function milliseconds(seconds) {
  const value = seconds * 1000;
  return `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString()} ms`;
}

function Answer({ hits, status, ranked, more, error, loadMore, retry, name, empty, filtered, current, onCurrent, addFiles }) {
  if (status === "error") return html`<${Failure} error=${error} retry=${retry} />`;
  if (empty) return html`<${EmptyCollection} name=${name} addFiles=${addFiles} />`;
  if (!hits.length && status === "loading") return html`<div class="gallery-waiting" aria-hidden="true"></div>`;
  if (!hits.length) {
    return html`<${Notice} icon="search" title="No picture fits">
      <p>${filtered ? "No picture in this collection meets these filters." : "Try other words, or another picture."}</p>
      ${filtered && html`<button type="button" class="button" onClick=${() => go({ where: [] })}>Remove the filters</button>`}
    <//>`;
  }
  return html`<${Gallery}
      hits=${hits}
      best=${hits[0].score}
      busy=${status === "loading"}
      current=${current}
      onCurrent=${onCurrent}
      label=${ranked ? "Pictures found, best first" : `Pictures in ${name}, newest first`}
    />
    ${more !== null && html`<${More} onReach=${loadMore} busy=${status === "more"} />`}`;
}

function Failure({ error, retry }) {
  const lost = error instanceof LostPicture;
  return html`<${Notice} icon="alert" title=${lost ? "The picture is gone" : "That did not work"} role="alert">
    <p>${error.message}</p>
    ${lost
      ? html`<button type="button" class="button" onClick=${() => go({ image: "" })}>Search without it</button>`
      : html`<button type="button" class="button" onClick=${retry}>Try again</button>`}
  <//>`;
}

function EmptyCollection({ name, addFiles }) {
  return html`<${Notice} icon="picture" title="Nothing here yet">
    <p>Drop pictures or a whole folder anywhere on this page. They stay on this server.</p>
    <button type="button" class="button primary" onClick=${() => chooseFiles({ onChoose: addFiles })}>Choose pictures</button>
    <p class="hint">For thousands of files the command line is faster:<code>chiasm index FOLDER --collection ${name}</code></p>
  <//>`;
}

function NoCollections() {
  return html`<main class="page" id="main">
    <${Notice} icon="folder" title="Start with a collection">
      <p>A collection is a set of pictures that are searched together: a product range, an archive, a holiday.</p>
      <button type="button" class="button primary" onClick=${createCollection}>New collection</button>
      <p class="hint">Or from the command line:<code>chiasm index FOLDER --collection NAME</code></p>
    <//>
  </main>`;
}

function UnknownCollection({ name }) {
  return html`<main class="page" id="main">
    <${Notice} icon="alert" title="There is no such collection" role="alert">
      <p>Nothing here is called ${name}. It may have been deleted or renamed.</p>
      <button type="button" class="button" onClick=${() => openCollection(collections.value[0].name)}>Open ${collections.value[0].name}</button>
    <//>
  </main>`;
}

function metadataKeys(hits) {
  return [...new Set(hits.flatMap(({ item }) => Object.keys(item.metadata)))].sort();
}

function focusTile(id) {
  document.querySelector(`.gallery a[data-id="${CSS.escape(id)}"]`)?.focus();
}
