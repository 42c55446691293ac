// What a request has spent, put into words: vision compute, language compute, context tokens.

export function flops(operations) {
  const giga = (operations / 1e9).toLocaleString(undefined, { maximumSignificantDigits: 3 });
  return `${giga} GFLOP`;
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${seconds.toLocaleString(undefined, { maximumSignificantDigits: 3 })} s`;
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "under 0.1%";
  return share.toLocaleString(undefined, { style: "percent", maximumSignificantDigits: share < 0.1 ? 2 : 3 });
}

// Of the answer, after its first token; null where there are fewer than two.
export function tokensPerSecond({ completion_tokens: count, seconds }) {
  if (count < 2 || !seconds.decode) return null;
  return (count - 1) / seconds.decode;
}

export function speed(usage) {
  const words = [];
  if (usage.seconds.first_token !== undefined) words.push(`First token after ${duration(usage.seconds.first_token)}`);
  const rate = tokensPerSecond(usage);
  if (rate !== null) words.push(`${rate.toLocaleString(undefined, { maximumSignificantDigits: 3 })} tokens/s`);
  return words.join(" · ");
}

// Where the places of the context went, in the order in which they are drawn.
export function contextParts({ prompt_tokens_details: prompt, completion_tokens: answer }) {
  return [
    { name: "image", count: prompt.image_tokens },
    { name: "text", count: prompt.text_tokens },
    { name: "answer", count: answer },
  ];
}

const STAGES = {
  queue: "waiting for its turn",
  prepare: "preparing the prompt",
  encode: "looking at pictures",
  prefill: "reading the prompt",
  decode: "writing the answer",
};

export function stages({ seconds }) {
  return Object.entries(STAGES)
    .filter(([name]) => seconds[name] >= 0.0005)
    .map(([name, words]) => `${duration(seconds[name])} ${words}`)
    .join(", ");
}
