/** Tells screen readers of streamed text a sentence at a time: token by token would flood them. */

import { element } from "./dom";

const SENTENCE = /^([\s\S]*?[.!?…。！？\n])(?=\s|$)/;
const LONGEST = 200;

export class Announcer {
  private waiting = "";

  /** @param place A visually hidden element with aria-live="polite". */
  constructor(private readonly place: HTMLElement) {}

  /** Says a whole sentence of the page itself. */
  say(text: string): void {
    this.place.append(element("p", { text }));
    while (this.place.childElementCount > 30) this.place.firstElementChild?.remove();
  }

  /** Adds streamed text; whole sentences are announced. */
  push(piece: string): void {
    this.waiting += piece;
    for (;;) {
      // The last sentence waits for what follows it: a full stop may be within a number.
      const match = SENTENCE.exec(this.waiting);
      const end = match?.[1] ? match[1].length : this.waiting.length > LONGEST ? LONGEST : 0;
      if (end === 0 || end === this.waiting.length) return;
      this.flush(end);
    }
  }

  finish(): void {
    this.flush(this.waiting.length);
  }

  private flush(end: number): void {
    const text = this.waiting.slice(0, end).trim();
    this.waiting = this.waiting.slice(end);
    if (text) this.say(text);
  }
}
