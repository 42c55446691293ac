// The shell: header, the page that the address names, and what lies above every page.

import { AddingTray } from "./components/adding-tray.js";
import { AskDialog } from "./components/ask.js";
import { ThemeToggle } from "./components/theme-toggle.js";
import { html, render } from "./preact.js";
import { pageHref, route } from "./route.js";
import { announcement, connect, server } from "./state.js";
import { tally } from "./adding.js";
import { Locked } from "./views/locked.js";
import { Plan } from "./views/plan.js";
import { Playground } from "./views/playground.js";
import { Search } from "./views/search.js";
import { Starting } from "./views/starting.js";

// A page is a line here: its name in the address, its word in the header, its view.
const PAGES = [
  { name: "search", label: "Search", view: Search },
  { name: "playground", label: "Playground", view: Playground },
  { name: "plan", label: "Plan", view: Plan },
];

function App() {
  const page = PAGES.find(({ name }) => name === route.value.page) ?? PAGES[0];
  return html`
    <a class="skip" href="#main" onClick=${skipToMain}>Skip to the content</a>
    <header class="shell-head">
      <a class="brand" href="#/" aria-label="chiasm, start page">
        <img src="logo.svg" alt="" width="28" height="28" /><span>chiasm</span>
      </a>
      <nav aria-label="Pages">
        ${PAGES.map(({ name, label }) => html`<a key=${name} href=${pageHref(name)} aria-current=${name === page.name ? "page" : undefined}>${label}</a>`)}
      </nav>
      <${ThemeToggle} />
    </header>
    <${Main} page=${page} />
    <${AddingTray} />
    <${AskDialog} />
    <div class="visually-hidden" role="status" aria-live="polite">${announcement}</div>
  `;
}

function Main({ page }) {
  if (server.value.state === "ready") return html`<${page.view} />`;
  return server.value.state === "locked" ? html`<${Locked} />` : html`<${Starting} ...${server.value} />`;
}

function skipToMain(event) {
  event.preventDefault(); // the address belongs to the route
  const main = document.getElementById("main");
  main?.setAttribute("tabindex", "-1");
  main?.focus();
}

window.addEventListener("beforeunload", (event) => {
  if (tally.value.left) event.preventDefault();
});

render(html`<${App} />`, document.getElementById("app"));
connect();
