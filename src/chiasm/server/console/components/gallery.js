// Pictures in justified rows. Tab enters once, arrow keys walk, Enter opens.

import { html, useEffect, useRef } from "../preact.js";
import { follow, href } from "../route.js";
import { nameOf } from "../item.js";
import { Score } from "./score.js";

// Very wide and very tall pictures are letterboxed rather than given a whole row or a sliver.
const NARROWEST = 0.62;
const WIDEST = 3;

export function Gallery({ hits, best, busy, current, onCurrent, label }) {
  const list = useRef(null);
  const focusable = hits.some((hit) => hit.id === current) ? current : hits[0]?.id;

  const onKeyDown = (event) => {
    const links = [...list.current.querySelectorAll("a")];
    const at = links.indexOf(document.activeElement);
    const to = destination(event.key, links, at);
    if (!to) return;
    event.preventDefault();
    to.focus();
    to.scrollIntoView({ block: "nearest" });
  };

  return html`<ul class="gallery" ref=${list} aria-label=${label} aria-busy=${String(busy)} onKeyDown=${onKeyDown}>
    ${hits.map(
      ({ id, score, item }) => html`<li key=${id} style=${{ "--ratio": ratio(item) }}>
        <a
          href=${href({ item: id })}
          data-id=${id}
          tabindex=${id === focusable ? 0 : -1}
          onClick=${(event) => follow(event, { item: id })}
          onFocus=${() => onCurrent(id)}
        >
          <${Thumbnail} item=${item} />
          <span class="tile-name">${nameOf(item)}</span>
          ${score !== null && html`<${Score} value=${score} best=${best} />`}
        </a>
      </li>`,
    )}
  </ul>`;
}

export function ratio({ width, height }) {
  return Math.min(WIDEST, Math.max(NARROWEST, width / height)).toFixed(3);
}

export function Thumbnail({ item }) {
  return html`<span class="tile-picture">
    <img src=${item.thumbnail_url} alt="" width=${item.width} height=${item.height} loading="lazy" decoding="async" />
  </span>`;
}

function destination(key, links, at) {
  switch (key) {
    case "ArrowRight":
      return links[at + 1];
    case "ArrowLeft":
      return links[at - 1];
    case "Home":
      return links[0];
    case "End":
      return links.at(-1);
    case "ArrowDown":
      return nearest(links[at], links.slice(at + 1), 1);
    case "ArrowUp":
      return nearest(links[at], links.slice(0, Math.max(at, 0)).reverse(), -1) ?? searchField();
    default:
      return null;
  }
}

function searchField() {
  return document.querySelector("input[type=search]");
}

// The picture of the next row whose middle is closest. `others` are in reading order away from
// `from`, so the first one below (or above) it starts that row.
function nearest(from, others, direction) {
  const here = box(from);
  const row = others.find((link) => (box(link).top - here.top) * direction > here.height / 2);
  if (!row) return null;
  const top = box(row).top;
  const distance = (link) => Math.abs(middle(link) - middle(from));
  return others
    .filter((link) => Math.abs(box(link).top - top) < here.height / 2)
    .reduce((closest, link) => (distance(link) < distance(closest) ? link : closest));
}

function box(link) {
  return link.getBoundingClientRect();
}

function middle(link) {
  const { left, right } = box(link);
  return (left + right) / 2;
}

// Calls `onReach` whenever the end of the gallery comes near; also a button, for those who
// do not scroll.
export function More({ onReach, busy }) {
  const button = useRef(null);
  useEffect(() => {
    const observer = new IntersectionObserver(([entry]) => entry.isIntersecting && onReach(), {
      rootMargin: "600px",
    });
    observer.observe(button.current);
    return () => observer.disconnect();
  }, [onReach]);
  return html`<div class="more">
    <button type="button" ref=${button} class="button" disabled=${busy} onClick=${onReach}>
      ${busy ? "Loading…" : "Show more"}
    </button>
  </div>`;
}
