// Files dragged over the window: a zone for each thing that can be done with them.

import { looksLikePicture } from "../choose-files.js";
import { html, useEffect, useRef, useState } from "../preact.js";
import { Icon } from "./icons.js";

// zones(number of files): { icon, title, detail, onDrop?(files) }, from the first to the last; what
// is dropped anywhere else, folders walked through, goes to `onFiles`.
export function DropOverlay({ zones, onFiles }) {
  const [dragged, setDragged] = useState(null);
  const depth = useRef(0); // dragenter and dragleave come for every element that is crossed

  useEffect(() => {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    const enter = (event) => {
      if (!hasFiles(event) || document.querySelector("dialog[open]")) return;
      depth.current += 1;
      setDragged(event.dataTransfer.items.length);
    };
    const leave = (event) => {
      if (!hasFiles(event)) return;
      depth.current = Math.max(0, depth.current - 1);
      if (depth.current === 0) setDragged(null);
    };
    // A file dropped where nobody wants it would replace the page.
    const over = (event) => hasFiles(event) && event.preventDefault();
    const drop = (event) => {
      depth.current = 0;
      setDragged(null);
      if (!hasFiles(event) || event.defaultPrevented) return;
      event.preventDefault();
      if (document.querySelector("dialog[open]")) return;
      filesOf(event.dataTransfer).then((files) => files.length && onFiles(files));
    };
    const listeners = { dragenter: enter, dragleave: leave, dragover: over, drop };
    for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) document.removeEventListener(name, listener);
    };
  }, [onFiles]);

  if (dragged === null) return null;
  return html`<div class="drop-overlay">
    ${zones(dragged).map((zone) => html`<${Zone} key=${zone.title} ...${zone} />`)}
  </div>`;
}

function Zone({ icon, title, detail, onDrop }) {
  const [over, setOver] = useState(false);
  const drop = (event) => {
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    if (files.length) onDrop(files);
  };
  return html`<div
    class=${`drop-zone ${over ? "over" : ""}`}
    onDragEnter=${() => setOver(true)}
    onDragLeave=${() => setOver(false)}
    onDrop=${onDrop && drop}
  >
    <span class="notice-icon"><${Icon} name=${icon} /></span>
    <strong>${title}</strong>
    <span>${detail}</span>
  </div>`;
}

// Everything dropped, folders walked through.
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = await Promise.all(entries.map((entry) => walk(entry, false)));
  return found.flat();
}

async function walk(entry, inFolder) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    if (inFolder && !looksLikePicture(file)) return [];
    file.path = entry.fullPath.replace(/^\//, "");
    return [file];
  }
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    // a reader gives at most a hundred entries at a time
    const children = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!children.length) return files;
    for (const child of children) files.push(...(await walk(child, true)));
  }
}
