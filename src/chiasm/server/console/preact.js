// The libraries, under one name: only this file knows where they lie.

import { h } from "./vendor/preact/preact.js";
import htm from "./vendor/htm/htm.js";

export const html = htm.bind(h);
export { render, Fragment } from "./vendor/preact/preact.js";
export {
  useCallback,
  useEffect,
  useId,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "./vendor/preact/hooks.js";
export { batch, computed, effect, signal, useSignal } from "./vendor/signals/signals.js";
