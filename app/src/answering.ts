/** Lets one model after the other answer the last prompt. */

import type { Announcer } from "./announcer";
import type { Conversation, SavedAnswer } from "./conversation";
import { explain, isAbort } from "./errors";
import { ROLE_NAMES } from "./model_cards";
import type { ModelSlot } from "./model_slot";
import { samplingOf, type Settings } from "./settings";
import type { Role } from "./site";
import type { TurnView } from "./transcript";

export interface Answering {
  conversation: Conversation;
  slots: ReadonlyMap<Role, ModelSlot>;
  settings: Settings;
  announcer: Announcer;
  /** Called whenever the page has grown. */
  onGrowth: () => void;
}

/**
 * Answers the last turn with these models, in their order.
 *
 * @returns The failure that ended it, or null.
 */
export async function answerTurn(task: Answering, view: TurnView, roles: readonly Role[], signal: AbortSignal): Promise<unknown> {
  for (const role of roles) view.answers.get(role)?.wait("Waiting");
  for (const role of roles) {
    const answerView = view.answers.get(role);
    const slot = task.slots.get(role);
    if (!answerView || !slot) continue;
    try {
      signal.throwIfAborted();
      answerView.wait("Loading the model…");
      const others = [...task.slots.values()].filter((other) => other !== slot);
      const otherBytes = others.reduce((total, other) => total + other.usedBytes(task.settings), 0);
      const engine = await slot.load(task.settings, otherBytes);
      signal.throwIfAborted();
      answerView.start();
      if (roles.length > 1) task.announcer.say(`${ROLE_NAMES[role]} answers:`);
      const onText = (piece: string): void => {
        answerView.add(piece);
        task.announcer.push(piece);
        task.onGrowth();
      };
      const sampling = samplingOf(slot.entry, task.settings);
      const answer = slot.entry.chat_template
        ? await engine.chat(task.conversation.messages(role, task.settings.system), sampling, onText, signal, (read, all) => answerView.read(read, all))
        : await engine.complete(view.turn.prompt, sampling, onText, signal);
      task.announcer.finish();
      const { promptTokens, newTokens, firstTokenSeconds, decodeTokensPerSecond, ended, text } = answer;
      const saved: SavedAnswer = { model: slot.entry.name, text, promptTokens, newTokens, firstTokenSeconds, decodeTokensPerSecond, ended };
      view.turn.answers[role] = saved;
      task.conversation.save();
      answerView.finish(saved);
    } catch (error) {
      for (const later of roles.slice(roles.indexOf(role))) {
        if (!view.turn.answers[later]) view.answers.get(later)?.wait("Not asked");
      }
      if (isAbort(error)) return null;
      answerView.fail(explain(error));
      return error;
    }
    task.onGrowth();
  }
  return null;
}
