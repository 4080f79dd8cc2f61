/** How far a measurement is, and how much time is left. */

import type { ModelEntry } from "./site";

/** What the page shows of it. */
export interface Shown {
  text: string;
  /** 0 to 1; null while the length is not known. */
  share: number | null;
}

export class Progress {
  private steps = 0;
  private total = 1;
  private rounds = 0;
  private label = "";
  private started = 0;

  constructor(private readonly show: (shown: Shown) => void) {}

  /** The rounds begin: before them files are fetched, which takes another time each. */
  begin(rounds: number, total: number): void {
    this.rounds = rounds;
    this.total = total;
    this.started = performance.now();
  }

  say(text: string): void {
    this.show({ text, share: null });
  }

  fetching(entry: ModelEntry, share: number): void {
    this.show({ text: `Fetching ${entry.name}`, share });
  }

  /**
   * @param round Number of the round that starts, from 0; a repeated one starts again.
   * @param before Steps of the rounds before it.
   */
  startRound(round: number, before: number): void {
    this.steps = before;
    this.label = `Round ${round + 1} of ${this.rounds}`;
    this.tell();
  }

  step(): void {
    this.steps++;
    this.tell();
  }

  private tell(): void {
    const share = Math.min(1, this.steps / this.total);
    const seconds = (performance.now() - this.started) / 1000;
    const left = share > 0 && seconds > 2 ? `, ${timeLeft((seconds * (1 - share)) / share)}` : "";
    this.show({ text: this.label + left, share });
  }
}

export function timeLeft(seconds: number): string {
  if (seconds < 50) return `about ${Math.max(10, Math.ceil(seconds / 10) * 10)} seconds left`;
  const minutes = Math.max(1, Math.round(seconds / 60));
  return `about ${minutes} minute${minutes === 1 ? "" : "s"} left`;
}
