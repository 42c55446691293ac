// One picture, large: what is known about it, what looks like it, and what can be done with it.

import { api } from "../api.js";
import { confirm } from "../components/ask.js";
import { Thumbnail, ratio } from "../components/gallery.js";
import { Icon } from "../components/icons.js";
import { ItemEditor, ItemWords } from "../components/item-words.js";
import { Notice } from "../components/notice.js";
import { Score } from "../components/score.js";
import { dateOf, fileOf, nameOf, sizeOf } from "../item.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../preact.js";
import { closeItem, follow, go, href } from "../route.js";
import { announce, contentsChanged } from "../state.js";

const NEIGHBOURS = 12;

// siblings: the hits of the gallery behind, for the arrow keys and the score of the question;
// more: whether it goes on after them.
export function ItemView({ collection, id, siblings, ranked, more }) {
  const dialog = useRef(null);
  const heading = useRef(null);
  const [item, setItem] = useState(null);
  const [error, setError] = useState(null);
  const [editing, setEditing] = useState(false);
  const at = siblings.findIndex((hit) => hit.id === id);

  useLayoutEffect(() => {
    dialog.current.showModal();
  }, []);

  useEffect(() => {
    const controller = new AbortController();
    const known = siblings.find((hit) => hit.id === id)?.item;
    setItem(known ?? null);
    setError(null);
    setEditing(false);
    dialog.current.scrollTop = 0;
    api.item(collection, id, { signal: controller.signal }).then(setItem, (failure) => {
      if (failure.name !== "AbortError") setError(failure);
    });
    return () => controller.abort();
  }, [collection, id]);

  useEffect(() => {
    if (item) heading.current?.focus();
  }, [item?.id]);

  const step = (by) => at >= 0 && siblings[at + by] && go({ item: siblings[at + by].id }, { replace: true });
  const onKeyDown = (event) => {
    if (event.target.closest("input, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  };

  const remove = async () => {
    const sure = await confirm({
      title: "Delete this picture?",
      text: "It is removed from the collection with its text and metadata. The file it came from stays where it is.",
      action: "Delete picture",
      danger: true,
    });
    if (!sure) return;
    try {
      await api.deleteItem(collection, id);
    } catch (failure) {
      setError(failure);
      return;
    }
    closeItem();
    announce("Picture deleted.");
    await contentsChanged();
  };

  const cancel = (event) => {
    event.preventDefault();
    if (editing) setEditing(false);
    else closeItem();
  };

  return html`<dialog class="item" ref=${dialog} aria-labelledby="item-name" onCancel=${cancel} onKeyDown=${onKeyDown} onClick=${(event) => event.target === dialog.current && closeItem()}>
    <div class="item-frame">
      <header class="item-head">
        <h2 id="item-name" ref=${heading} tabindex="-1">${item ? fileOf(item) : "Picture"}</h2>
        ${at >= 0 &&
        html`<span class="item-place">${at + 1} of ${siblings.length}${more ? "+" : ""}</span>
          <button type="button" class="button quiet round" aria-label="Previous picture" disabled=${at === 0} onClick=${() => step(-1)}><${Icon} name="left" /></button>
          <button type="button" class="button quiet round" aria-label="Next picture" disabled=${at === siblings.length - 1} onClick=${() => step(1)}><${Icon} name="right" /></button>`}
        <button type="button" class="button quiet round" aria-label="Close" onClick=${closeItem}><${Icon} name="close" /></button>
      </header>
      ${error && html`<${Notice} icon="alert" title="That did not work" role="alert"><p>${error.message}</p><//>`}
      ${item &&
      html`<div class="item-body">
        <${Picture} key=${item.id} item=${item} />
        <div class="item-side">
          ${editing
            ? html`<${ItemEditor}
                item=${item}
                save=${async (changes) => {
                  setItem(await api.updateItem(collection, id, changes));
                  setEditing(false);
                  announce("Saved.");
                  await contentsChanged();
                }}
                cancel=${() => setEditing(false)}
              />`
            : html`<${ItemWords} item=${item} edit=${() => setEditing(true)} />`}
          <${Facts} item=${item} score=${ranked && at >= 0 ? siblings[at].score : null} best=${siblings[0]?.score} />
          <div class="item-actions">
            <button type="button" class="button small" onClick=${() => go({ like: id, text: "", image: "", item: "" })}><${Icon} name="similar" /><span>More like this</span></button>
            <a class="button small" href=${item.image_url} target="_blank" rel="noopener"><${Icon} name="open" /><span>Full size</span></a>
            <button type="button" class="button small danger-quiet" onClick=${remove}><${Icon} name="trash" /><span>Delete</span></button>
          </div>
        </div>
        <${Neighbours} key=${`${item.id}-neighbours`} collection=${collection} id=${item.id} />
      </div>`}
    </div>
  </dialog>`;
}

function Picture({ item }) {
  const [failed, setFailed] = useState(false);
  return html`<div class="item-picture">
    ${failed
      ? html`<p role="alert">The picture could not be loaded.</p>`
      : html`<img
          src=${item.image_url}
          alt=${nameOf(item)}
          width=${item.width}
          height=${item.height}
          style=${{ backgroundImage: `url("${item.thumbnail_url}")` }}
          onError=${() => setFailed(true)}
        />`}
  </div>`;
}

function Facts({ item, score, best }) {
  return html`<dl class="facts">
    ${score !== null && html`<div><dt>Score</dt><dd><${Score} value=${score} best=${best} /></dd></div>`}
    <div><dt>Size</dt><dd>${sizeOf(item)}</dd></div>
    ${item.source && html`<div><dt>Source</dt><dd class="breakable">${item.source}</dd></div>`}
    <div><dt>Added</dt><dd><time datetime=${item.added_at}>${dateOf(item)}</time></dd></div>
    ${item.duplicate_of &&
    html`<div>
      <dt>Near duplicate</dt>
      <dd><a href=${href({ item: item.duplicate_of })} onClick=${(event) => follow(event, { item: item.duplicate_of })}>of this picture</a></dd>
    </div>`}
    <div><dt>Digest</dt><dd class="digest" title="Of the decoded pixels">${item.digest}</dd></div>
    <div><dt>Id</dt><dd class="digest">${item.id}</dd></div>
  </dl>`;
}

function Neighbours({ collection, id }) {
  const [hits, setHits] = useState(null);
  const [error, setError] = useState(null);

  useEffect(() => {
    const controller = new AbortController();
    api.search(collection, { item: id, limit: NEIGHBOURS + 1 }, { signal: controller.signal }).then(
      ({ data }) => setHits(data.filter((hit) => hit.id !== id).slice(0, NEIGHBOURS)),
      (failure) => failure.name !== "AbortError" && setError(failure),
    );
    return () => controller.abort();
  }, [collection, id]);

  return html`<section class="neighbours" aria-label="Neighbours" aria-busy=${String(!hits && !error)}>
    <h3>Neighbours</h3>
    ${error && html`<p role="alert">${error.message}</p>`}
    ${hits?.length === 0 && html`<p>There is no other picture in this collection.</p>`}
    <ul>
      ${hits?.map(
        (hit) => html`<li key=${hit.id} style=${{ "--ratio": ratio(hit.item) }}>
          <a href=${href({ item: hit.id })} onClick=${(event) => follow(event, { item: hit.id })}>
            <${Thumbnail} item=${hit.item} />
            <span class="visually-hidden">${nameOf(hit.item)}</span>
            <${Score} value=${hit.score} best=${1} />
          </a>
        </li>`,
      )}
    </ul>
  </section>`;
}
