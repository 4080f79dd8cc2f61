/** The conversation on the page. Answers are text nodes: nothing in them is ever parsed. */

import type { SavedAnswer, Turn } from "./conversation";
import { figuresOf } from "./conversation_files";
import { differences, type Piece } from "./differences";
import { button, element } from "./dom";
import { badge } from "./model_cards";
import type { Role } from "./site";

export class AnswerView {
  readonly root: HTMLElement;
  private readonly body = element("div", { class: "answer-text" });
  private readonly figures = element("p", { class: "figures" });
  private readonly stream = document.createTextNode("");

  constructor(
    readonly role: Role,
    name: string,
    single: boolean,
  ) {
    const title = element("h3", { class: "answer-title" }, single ? [name] : [badge(role), " ", element("span", { class: "muted", text: name })]);
    this.root = element("section", { class: `answer ${role}` }, [title, this.body, this.figures]);
    this.root.dataset["role"] = role;
  }

  wait(text: string): void {
    this.root.dataset["state"] = "waiting";
    this.body.replaceChildren();
    this.figures.textContent = text;
  }

  start(): void {
    this.root.dataset["state"] = "streaming";
    this.stream.data = "";
    this.body.replaceChildren(this.stream);
    this.figures.textContent = "Reading the prompt…";
  }

  /** Tells how far the prompt has been read; a short one is read at once. */
  read(tokens: number, all: number): void {
    if (tokens < all) this.figures.textContent = `Reading the prompt, ${tokens} of ${all} tokens…`;
  }

  /** Tells that the user stopped: the model still finishes what it is computing. */
  stop(): void {
    if (this.root.dataset["state"] === "streaming") this.figures.textContent = "Stopping…";
  }

  add(piece: string): void {
    if (this.stream.length === 0) this.figures.textContent = "Answering…";
    this.stream.appendData(piece);
  }

  finish(answer: SavedAnswer): void {
    this.root.dataset["state"] = "done";
    this.body.textContent = answer.text;
    this.figures.textContent = unbroken(figuresOf(answer));
    if (answer.text === "") this.body.replaceChildren(element("span", { class: "muted", text: "The model answered with nothing." }));
  }

  fail(message: string): void {
    this.root.dataset["state"] = "failed";
    this.figures.textContent = message;
  }

  /** Shows the answer in pieces, with those marked that only this one has. */
  mark(pieces: readonly Piece[]): void {
    this.body.replaceChildren(...pieces.map(({ text, only }) => (only ? element("mark", { text }) : document.createTextNode(text))));
  }
}

export class TurnView {
  readonly root: HTMLElement;
  readonly answers = new Map<Role, AnswerView>();
  private readonly columns: HTMLElement;
  private readonly foot = element("div", { class: "turn-actions" });

  constructor(
    readonly turn: Turn,
    private readonly names: ReadonlyMap<Role, string>,
    shown: readonly Role[],
  ) {
    const prompt = element("div", { class: "prompt" }, [element("h2", { class: "visually-hidden", text: "You" }), element("p", { text: turn.prompt })]);
    this.columns = element("div", { class: "columns" });
    this.root = element("article", { class: "turn" }, [prompt, this.columns, this.foot]);
    this.show(shown);
  }

  /** Shows the answers of these models, as far as there are any. */
  show(roles: readonly Role[]): void {
    for (const role of roles) {
      if (this.answers.has(role)) continue;
      const answer = this.turn.answers[role];
      const view = new AnswerView(role, answer?.model ?? this.names.get(role) ?? role, this.names.size === 1);
      if (answer) view.finish(answer);
      else view.wait("Not asked");
      this.answers.set(role, view);
    }
    const views = roles.flatMap((role) => this.answers.get(role) ?? []);
    this.columns.classList.toggle("two", views.length === 2);
    this.columns.replaceChildren(...views.map((view) => view.root));
  }

  /** Marks the words that only one of two answers has, or takes the marks away. */
  mark(marked: boolean): void {
    const { shrunk, base } = this.turn.answers;
    const pieces = marked && shrunk && base ? differences(shrunk.text, base.text) : null;
    for (const [index, role] of (["shrunk", "base"] as const).entries()) {
      const answer = this.turn.answers[role];
      const view = this.answers.get(role);
      if (!answer || !view) continue;
      const own = pieces?.[index];
      if (own) view.mark(own);
      else view.finish(answer);
    }
  }

  /** Puts buttons below the answers; none removes them. */
  act(actions: readonly [string, () => void][]): void {
    this.foot.replaceChildren(...actions.map(([text, run]) => button(text, run, "plain small")));
  }

  /** A line that says that what is above is no longer sent. */
  setDropped(dropped: boolean): void {
    this.root.classList.toggle("dropped", dropped);
  }
}

/** Breaks lines only between figures. */
function unbroken(figures: string): string {
  return figures
    .split(" · ")
    .map((figure) => figure.replaceAll(" ", "\u00a0"))
    .join(" · ");
}
