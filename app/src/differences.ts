/** Which words of two answers differ. */

export interface Piece {
  text: string;
  /** True if the other answer does not have these words here. */
  only: boolean;
}

const WORD = /\s+|[\p{L}\p{M}\p{N}'’]+|[^\s\p{L}\p{M}\p{N}]/gu;

/** Longer answers are not compared: the table of the comparison grows with the product of both. */
const MOST_CELLS = 4_000_000;

/**
 * Compares two texts word by word, by their longest common subsequence.
 *
 * @returns The pieces of either text, in order; null if they are too long to compare.
 */
export function differences(left: string, right: string): [Piece[], Piece[]] | null {
  const leftWords = left.match(WORD) ?? [];
  const rightWords = right.match(WORD) ?? [];
  const a = wordsOnly(leftWords);
  const b = wordsOnly(rightWords);
  if (a.length * b.length > MOST_CELLS) return null;
  const [commonLeft, commonRight] = commonPositions(a.map((i) => leftWords[i] ?? ""), b.map((i) => rightWords[i] ?? ""));
  return [
    pieces(leftWords, new Set(commonLeft.map((i) => a[i]))),
    pieces(rightWords, new Set(commonRight.map((i) => b[i]))),
  ];
}

function isSpace(word: string): boolean {
  return /^\s/.test(word);
}

/** Positions of what is not white space. */
function wordsOnly(words: readonly string[]): number[] {
  return words.flatMap((word, index) => (isSpace(word) ? [] : [index]));
}

/** Positions in both lists of their longest common subsequence. */
function commonPositions(a: readonly string[], b: readonly string[]): [number[], number[]] {
  const width = b.length + 1;
  const lengths = new Uint32Array((a.length + 1) * width);
  const at = (i: number, j: number): number => lengths[i * width + j] ?? 0;
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i * width + j] = a[i] === b[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const left: number[] = [];
  const right: number[] = [];
  let i = 0;
  let j = 0;
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) {
      left.push(i++);
      right.push(j++);
    } else if (at(i + 1, j) >= at(i, j + 1)) i++;
    else j++;
  }
  return [left, right];
}

/** Joins words to pieces. White space between two differing words belongs to their piece. */
function pieces(words: readonly string[], common: ReadonlySet<number | undefined>): Piece[] {
  const result: Piece[] = [];
  for (const [index, word] of words.entries()) {
    const only = isSpace(word) ? differsAround(words, common, index) : !common.has(index);
    const last = result.at(-1);
    if (last?.only === only) last.text += word;
    else result.push({ text: word, only });
  }
  return result;
}

function differsAround(words: readonly string[], common: ReadonlySet<number | undefined>, index: number): boolean {
  const inside = index > 0 && index + 1 < words.length;
  return inside && !common.has(index - 1) && !common.has(index + 1);
}
