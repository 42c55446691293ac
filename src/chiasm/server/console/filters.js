// `price < 10` as a person types it ↔ `{"price": {"lt": 10}}` as the API reads it.

const COMPARISON = /^(.+?)\s*(!=|<=|>=|=|<|>)\s*(.*)$/s;
const WORD = /^(\S+)\s+(in|exists)(?:\s+(.+))?$/s;
const NAMES = { "=": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte" };

export class FilterError extends Error {}

export function parseCondition(text) {
  const typed = text.trim();
  if (typed.startsWith("{")) return parseObject(typed);
  const word = typed.match(WORD);
  if (word?.[2] === "exists") return { [word[1]]: { exists: word[3] !== "false" } };
  if (word?.[3]) return { [word[1]]: { in: word[3].split(",").map((part) => value(part)) } };
  const [, key, operator, right] = typed.match(COMPARISON) ?? [];
  if (!key || !right) {
    throw new FilterError("Write a filter as key = value, or with !=, <, <=, >, >=, in or exists.");
  }
  return { [key]: operator === "=" ? value(right) : { [NAMES[operator]]: value(right) } };
}

// All conditions must hold. Null when there are none.
export function toFilter(conditions) {
  const parsed = conditions.map(parseCondition);
  if (parsed.length < 2) return parsed[0] ?? null;
  return { $and: parsed };
}

// The condition that holds for exactly this value; quoted where it would read as a number.
export function equals(key, wanted) {
  const plain = typeof wanted === "string" && value(wanted) === wanted;
  return `${key} = ${plain ? wanted : JSON.stringify(wanted)}`;
}

// `12` is a number, `true` is true, `"12"` and everything else is text.
export function value(text) {
  const typed = text.trim();
  if (/^(".*"|-?\d.*|true|false|null)$/s.test(typed)) {
    try {
      return JSON.parse(typed);
    } catch {
      // 12px, say: text after all
    }
  }
  return typed;
}

function parseObject(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new FilterError("This filter starts like JSON but is not valid JSON.");
  }
}
