// The pictures that answer the question in the address, a page at a time.

import { api } from "./api.js";
import { toFilter } from "./filters.js";
import { useEffect, useRef, useState } from "./preact.js";
import { recall } from "./query-image.js";

const PAGE = 48;

const NOTHING = { key: null, hits: [], status: "loading", ranked: false, more: null, timing: null, error: null };

// `question` is { collection, text, image, like, where }; `version` changes when the collection's
// contents have. Returns { hits: [{ id, score, item }], status, ranked, timing, error, more,
// loadMore, retry }. While a new answer is on its way the old one stays, as status "loading".
export function useResults(question, version) {
  const [results, setResults] = useState(NOTHING);
  const [attempt, setAttempt] = useState(0);
  const controller = useRef(null);
  const key = JSON.stringify([question, version, attempt]);
  const status = results.key === key ? results.status : "loading";

  const failed = (error, { signal }) => {
    if (!signal.aborted) setResults({ ...NOTHING, key, status: "error", error });
  };

  useEffect(() => {
    const mine = (controller.current = new AbortController());
    load(question, null, mine.signal).then(
      (page) => setResults({ ...page, key, status: "ready", error: null }),
      (error) => failed(error, mine),
    );
    return () => mine.abort();
  }, [key]);

  const loadMore = () => {
    if (status !== "ready" || results.more === null) return;
    const mine = controller.current;
    setResults({ ...results, status: "more" });
    load(question, results.more, mine.signal).then(
      (page) => {
        const hits = [...results.hits, ...unseen(page.hits, results.hits)];
        setResults({ ...results, hits, more: page.more, status: "ready" });
      },
      (error) => failed(error, mine),
    );
  };

  return { ...results, status, loadMore, retry: () => setAttempt(attempt + 1) };
}

// Something added between two pages moves the rest along; nothing is shown twice.
function unseen(hits, shown) {
  const ids = new Set(shown.map((hit) => hit.id));
  return hits.filter((hit) => !ids.has(hit.id));
}

async function load(question, position, signal) {
  const filter = toFilter(question.where);
  if (!question.text && !question.image && !question.like) {
    // Newest first: who has just added pictures sees them.
    const wanted = { limit: PAGE, after: position, filter, order: "desc" };
    const page = await api.items(question.collection, wanted, { signal });
    return {
      hits: page.data.map((item) => ({ id: item.id, score: null, item })),
      ranked: false,
      more: page.has_more ? page.next : null,
      timing: null,
    };
  }
  const offset = position ?? 0;
  const query = { limit: PAGE, offset };
  if (question.text) query.text = question.text;
  if (question.image) query.image = pictureUrl(question.image);
  if (question.like) query.item = question.like;
  if (filter) query.filter = filter;
  const started = performance.now();
  const { data, timing } = await api.search(question.collection, query, { signal });
  return {
    hits: data,
    ranked: true,
    more: data.length === PAGE ? offset + PAGE : null,
    timing: { ...timing, total_seconds: (performance.now() - started) / 1000 },
  };
}

export class LostPicture extends Error {}

function pictureUrl(key) {
  const picture = recall(key);
  if (!picture) {
    throw new LostPicture("The picture of this search is not in this tab any more. Drop it here again.");
  }
  return picture.url;
}
