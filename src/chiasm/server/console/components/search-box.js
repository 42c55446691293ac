// The question: words, a picture, or both.

import { api } from "../api.js";
import { chooseFiles } from "../choose-files.js";
import { html, useEffect, useRef, useState } from "../preact.js";
import { recall, remember } from "../query-image.js";
import { go, route } from "../route.js";
import { Icon } from "./icons.js";

const TYPING_MILLISECONDS = 200;

// Nothing can be dropped with a finger.
const PLACEHOLDER = matchMedia("(pointer: coarse)").matches
  ? "Describe a picture"
  : "Describe a picture, or drop one here";

export async function searchWith(file) {
  const image = await remember(file);
  go({ image, like: "", item: "" });
}

export function SearchBox() {
  const { text, image, like, collection } = route.value;
  const [typed, setTyped] = useState(text);
  const input = useRef(null);
  const timer = useRef(0);
  // The first letter of a new question is a new entry in the history; the rest replaces it.
  const settled = useRef(true);

  // What this field last put into the address. Only a change from elsewhere (the back button, a
  // link) may change the field: answers are slower than fingers.
  const submitted = useRef(text);

  useEffect(() => {
    if (text === submitted.current) return;
    submitted.current = text;
    clearTimeout(timer.current);
    setTyped(text);
  }, [text]);

  useEffect(() => {
    const onKeyDown = (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest("input, textarea, select, dialog[open]")) return;
      event.preventDefault();
      input.current.focus();
      input.current.select();
    };
    const onPaste = (event) => {
      const picture = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
      if (!picture || event.target.closest("dialog[open]")) return;
      event.preventDefault();
      searchWith(picture);
    };
    document.addEventListener("keydown", onKeyDown);
    document.addEventListener("paste", onPaste);
    return () => {
      document.removeEventListener("keydown", onKeyDown);
      document.removeEventListener("paste", onPaste);
    };
  }, []);

  const submit = (value) => {
    clearTimeout(timer.current);
    submitted.current = value.trim();
    go({ text: submitted.current }, { replace: !settled.current });
    settled.current = false;
  };
  const onInput = (event) => {
    const { value } = event.target;
    setTyped(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => submit(value), TYPING_MILLISECONDS);
  };
  const settle = () => {
    if (typed.trim() !== text) submit(typed);
    settled.current = true;
  };
  const onKeyDown = (event) => {
    if (event.key === "Escape" && typed) {
      event.preventDefault();
      setTyped("");
      submit("");
    } else if (event.key === "Backspace" && !typed && (image || like)) {
      go({ image: "", like: "" });
    } else if (event.key === "ArrowDown") {
      document.querySelector(".gallery a[tabindex='0']")?.focus();
      event.preventDefault();
    }
  };

  return html`<search>
    <form class="search-box" onSubmit=${(event) => (event.preventDefault(), settle())}>
      <span class="search-icon"><${Icon} name="search" /></span>
      ${image && html`<${PictureChip} key=${image} ...${pictureOf(image)} onRemove=${() => go({ image: "" })} />`}
      ${like &&
      html`<${PictureChip}
        key=${like}
        url=${api.thumbnailUrl(collection, like)}
        name="More like this"
        onRemove=${() => go({ like: "" })}
      />`}
      <input
        ref=${input}
        type="search"
        name="q"
        aria-label="Describe the picture you are looking for"
        placeholder=${image || like ? "and words, if you like" : PLACEHOLDER}
        autocomplete="off"
        enterkeyhint="search"
        value=${typed}
        onInput=${onInput}
        onBlur=${settle}
        onKeyDown=${onKeyDown}
      />
      <kbd aria-hidden="true">/</kbd>
      <button
        type="button"
        class="button quiet round"
        aria-label="Search with a picture"
        title="Search with a picture"
        onClick=${() => chooseFiles({ multiple: false, onChoose: ([file]) => searchWith(file) })}
      >
        <${Icon} name="picture" />
      </button>
    </form>
  </search>`;
}

function pictureOf(key) {
  return recall(key) ?? { name: "a picture that is not here any more", url: "" };
}

function PictureChip({ url, name, onRemove }) {
  const [broken, setBroken] = useState(!url);
  return html`<span class="picture-chip" title=${name}>
    ${broken
      ? html`<span class="picture-chip-blank"><${Icon} name="picture" /></span>`
      : html`<img src=${url} alt=${name} onError=${() => setBroken(true)} />`}
    <button type="button" aria-label="Remove the picture from the search" onClick=${onRemove}>
      <${Icon} name="close" />
    </button>
  </span>`;
}
