// A button that opens a menu: arrow keys move, Enter chooses, Esc and a click elsewhere close.

import { html, useId, useLayoutEffect, useRef, useState } from "../preact.js";
import { Icon } from "./icons.js";

// entries: { label, detail?, icon?, checked?, danger?, onChoose } or null for a line between.
export function Menu({ label, buttonClass = "button", align = "start", children, entries }) {
  const [open, setOpen] = useState(false);
  const root = useRef(null);
  const button = useRef(null);
  const id = useId();

  const items = () => [...root.current.querySelectorAll("[role^=menuitem]")];
  const close = ({ refocus = true } = {}) => {
    setOpen(false);
    if (refocus) button.current.focus();
  };

  useLayoutEffect(() => {
    if (!open) return undefined;
    const list = items();
    (list.find((item) => item.ariaChecked === "true") ?? list[0])?.focus();
    const outside = (event) => root.current.contains(event.target) || setOpen(false);
    document.addEventListener("pointerdown", outside);
    return () => document.removeEventListener("pointerdown", outside);
  }, [open]);

  const onKeyDown = (event) => {
    if (!open) {
      if (event.key !== "ArrowDown") return;
      event.preventDefault();
      setOpen(true);
      return;
    }
    const list = items();
    const at = list.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      list.at(to % list.length).focus();
    } else if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      close();
    } else if (event.key === "Tab") {
      close({ refocus: false });
    }
  };

  return html`<div class="menu" ref=${root} onKeyDown=${onKeyDown}>
    <button type="button" ref=${button} class=${buttonClass} aria-label=${label} aria-haspopup="menu" aria-expanded=${String(open)} aria-controls=${open ? id : undefined} onClick=${() => setOpen(!open)}>
      ${children}
    </button>
    ${open &&
    html`<div class=${`menu-list ${align}`} id=${id} role="menu" aria-label=${label}>
      ${entries.map((entry) =>
        entry
          ? html`<${MenuItem} ...${entry} close=${close} />`
          : html`<div role="separator"></div>`,
      )}
    </div>`}
  </div>`;
}

function MenuItem({ label, detail, icon, checked, danger, onChoose, close }) {
  const choose = () => {
    close();
    onChoose();
  };
  return html`<button
    type="button"
    tabindex="-1"
    class=${danger ? "danger" : ""}
    role=${checked === undefined ? "menuitem" : "menuitemradio"}
    aria-checked=${checked === undefined ? undefined : String(checked)}
    onClick=${choose}
  >
    ${icon && html`<${Icon} name=${icon} />`}
    <span class="menu-label">${label}</span>
    ${detail !== undefined && html`<span class="menu-detail">${detail}</span>`}
  </button>`;
}
