// Numbers of a plan, put into words.

export function dollars(cost) {
  if (cost === 0) return "$0";
  if (cost >= 1) return `$${cost.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  return `$${cost.toLocaleString("en-US", { maximumSignificantDigits: 3 })}`;
}

export function plural(count, noun) {
  return `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;
}

export function compute({ vision_flops: vision, language_flops: language }) {
  return `${tera(vision)} + ${tera(language)} TFLOP`;
}

function tera(operations) {
  const value = operations / 1e12;
  return value.toLocaleString(undefined, value < 1 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: 1 });
}

const NAMES = { "": "This server", openai: "OpenAI", anthropic: "Anthropic", google: "Google", gemini: "Google", mistral: "Mistral", elsewhere: "Open models" };

export function providerName(provider) {
  return NAMES[provider] ?? provider;
}
