/** The conversation as text, Markdown and JSON, to copy or to save. */

import type { Conversation, SavedAnswer, Turn } from "./conversation";
import { formatRate, formatSeconds } from "./format";
import { ROLE_NAMES } from "./model_cards";
import type { Settings } from "./settings";
import type { Role, Site } from "./site";
import { versions } from "./versions";

/** First token, speed and length of an answer, and why it ended if not by itself. */
export function figuresOf(answer: SavedAnswer): string {
  const figures = [`first token ${formatSeconds(answer.firstTokenSeconds)}`];
  if (answer.decodeTokensPerSecond !== null) figures.push(formatRate(answer.decodeTokensPerSecond));
  figures.push(answer.newTokens === 1 ? "1 token" : `${answer.newTokens} tokens`);
  if (answer.ended === "length") figures.push("ended at the limit");
  if (answer.ended === "context") figures.push("ended where the context is full");
  if (answer.ended === "user") figures.push("stopped");
  return figures.join(" · ");
}

export function asText(conversation: Conversation): string {
  return written(conversation, (turn, answers) =>
    [`You:\n${turn.prompt}`, ...answers.map(([role, answer]) => `${label(role, answer)}:\n${answer.text}`)].join("\n\n"),
  );
}

export function asMarkdown(conversation: Conversation): string {
  return written(conversation, (turn, answers) => {
    const parts = answers.map(([role, answer]) => `### ${label(role, answer)}\n\n${answer.text}\n\n*${figuresOf(answer)}*`);
    return [`## You\n\n${turn.prompt}`, ...parts].join("\n\n");
  });
}

export function asJson(conversation: Conversation, site: Site, settings: Settings): string {
  const models = site.models.map(({ role, name, file, sha256, quantization }) => ({ role, name, file, sha256, quantization }));
  const { system, temperature, maxNewTokens, seed, threads, contextTokens } = settings;
  const content = {
    schema: 1,
    kind: "ishrink-conversation",
    created: new Date().toISOString(),
    page: versions,
    models,
    settings: { system, temperature, maxNewTokens, seed, threads, contextTokens },
    turns: conversation.turns,
  };
  return `${JSON.stringify(content, null, 1)}\n`;
}

function written(conversation: Conversation, write: (turn: Turn, answers: [Role, SavedAnswer][]) => string): string {
  const roles: Role[] = ["shrunk", "base"];
  const turns = conversation.turns.map((turn) => {
    const answers = roles.flatMap((role): [Role, SavedAnswer][] => {
      const answer = turn.answers[role];
      return answer ? [[role, answer]] : [];
    });
    return write(turn, answers);
  });
  return `${turns.join("\n\n")}\n`;
}

function label(role: Role, answer: SavedAnswer): string {
  return `${ROLE_NAMES[role]} (${answer.model})`;
}
