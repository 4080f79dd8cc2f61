/** Texts of a known number of tokens, for measuring. */

import { ContextFull } from "./errors";

/** A text and the number of its tokens, the one that starts every text included. */
export interface CountedText {
  text: string;
  tokens: number;
}

const WORDS = "the old house stood by a small river and every morning its windows caught the light of the sun".split(" ");

const FILLERS = [".", " a", ",", "s", "1", "x"];

/**
 * Makes a text of this many tokens, or of one fewer where no text has exactly as many.
 *
 * @param count The tokens.
 * @param countTokens Counts those of a text.
 */
export async function textOfTokens(count: number, countTokens: (text: string) => Promise<number>): Promise<CountedText> {
  let made: CountedText = { text: "", tokens: 0 };
  let words = 0;
  let step = Math.max(1, Math.floor(count / 2));
  while (made.tokens < count) {
    const text = made.text + sentence(words, step);
    const tokens = await countTokens(text).catch((error: unknown) => {
      if (error instanceof ContextFull) return Infinity;
      throw error;
    });
    if (tokens <= count) {
      made = { text, tokens };
      words += step;
      step = Math.max(1, Math.floor(((count - tokens) * words) / Math.max(tokens, 1)));
    } else if (step > 1) {
      step = Math.floor(step / 2);
    } else {
      return filledUp(made, count, countTokens);
    }
  }
  return made;
}

/** Adds single tokens to a text to which another word would add too many. */
async function filledUp(made: CountedText, count: number, countTokens: (text: string) => Promise<number>): Promise<CountedText> {
  for (let tries = 0; made.tokens < count && tries < 2; tries++) {
    for (const piece of FILLERS) {
      const text = made.text + piece;
      const tokens = await countTokens(text);
      if (tokens > made.tokens && tokens <= count) {
        made = { text, tokens };
        tries = 0;
        break;
      }
    }
  }
  return made;
}

/** Words of a text that goes on and on, from one position of it to another. */
function sentence(from: number, count: number): string {
  return Array.from({ length: count }, (_, index) => ` ${WORDS[(from + index) % WORDS.length]}`).join("");
}
