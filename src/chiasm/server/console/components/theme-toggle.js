// Light or dark. Choosing what the system has means following the system again.

import { html, useEffect, useState } from "../preact.js";
import { Icon } from "./icons.js";

const KEY = "chiasm.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

function current() {
  return document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
}

function choose(theme) {
  const followsSystem = theme === (system.matches ? "dark" : "light");
  if (followsSystem) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    if (followsSystem) localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // Storage is forbidden: the choice lasts as long as the page.
  }
}

export function ThemeToggle() {
  const [theme, setTheme] = useState(current());
  useEffect(() => {
    const update = () => setTheme(current());
    system.addEventListener("change", update);
    return () => system.removeEventListener("change", update);
  }, []);
  const other = theme === "dark" ? "light" : "dark";
  const toggle = () => {
    choose(other);
    setTheme(other);
  };
  return html`<button type="button" class="button quiet round" onClick=${toggle} aria-label=${`Use the ${other} theme`} title=${`Use the ${other} theme`}>
    <${Icon} name=${theme === "dark" ? "sun" : "moon"} />
  </button>`;
}
