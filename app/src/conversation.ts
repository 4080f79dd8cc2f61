/** The conversation, and where it is kept: on this device alone. */

import type { Answer, ChatMessage } from "./engine";
import { readStored, writeStored } from "./settings";
import type { Role } from "./site";

export interface SavedAnswer {
  model: string;
  text: string;
  promptTokens: number;
  newTokens: number;
  firstTokenSeconds: number;
  decodeTokensPerSecond: number | null;
  ended: Answer["ended"];
}

export interface Turn {
  prompt: string;
  /** The model that answers first; the other one does at the next prompt. */
  first: Role;
  answers: Partial<Record<Role, SavedAnswer>>;
}

interface Saved {
  schema: 1;
  turns: Turn[];
  sentFrom: number;
}

const KEY = "ishrink conversation";

export class Conversation {
  turns: Turn[] = [];
  /** Turns before this one are shown, but no longer sent to the models. */
  sentFrom = 0;

  static read(): Conversation {
    const conversation = new Conversation();
    const saved = readStored(KEY) as Saved | null;
    if (saved?.schema === 1 && Array.isArray(saved.turns)) {
      conversation.turns = saved.turns;
      conversation.sentFrom = saved.sentFrom;
    }
    return conversation;
  }

  save(): void {
    writeStored(KEY, this.turns.length ? ({ schema: 1, turns: this.turns, sentFrom: this.sentFrom } satisfies Saved) : null);
  }

  clear(): void {
    this.turns = [];
    this.sentFrom = 0;
    this.save();
  }

  add(prompt: string): Turn {
    const last = this.turns.at(-1);
    const turn: Turn = { prompt, first: last?.first === "shrunk" ? "base" : "shrunk", answers: {} };
    this.turns.push(turn);
    return turn;
  }

  /** Leaves out the older half of the turns that are sent; false if only the last one is left. */
  dropOldest(): boolean {
    const before = this.sentFrom;
    this.sentFrom += Math.ceil((this.turns.length - 1 - this.sentFrom) / 2);
    this.save();
    return this.sentFrom > before;
  }

  /** What a model is sent for the last turn: its own answers, and only the turns that it answered. */
  messages(role: Role, system: string): ChatMessage[] {
    const messages: ChatMessage[] = system.trim() ? [{ role: "system", content: system }] : [];
    const last = this.turns.length - 1;
    for (const [index, turn] of this.turns.entries()) {
      if (index < this.sentFrom) continue;
      const answer = turn.answers[role];
      if (index < last && !answer) continue;
      messages.push({ role: "user", content: turn.prompt });
      if (index < last && answer) messages.push({ role: "assistant", content: answer.text });
    }
    return messages;
  }
}
