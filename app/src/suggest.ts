/** The page that suggests the next words while one types. */

import { byId, element } from "./dom";
import { explain, isAbort } from "./errors";
import { formatBytes } from "./format";
import { showLatency, type SuggestionTiming } from "./latency";
import { ModelCard, ROLE_NAMES } from "./model_cards";
import { isCached } from "./model_files";
import { ModelSlot } from "./model_slot";
import { MOST_WORDS, nextWords, type Word } from "./next_words";
import { readSettings } from "./settings";
import { startPage } from "./shell";
import { byRole, type Role, type Site } from "./site";

const DEBOUNCE_MS = 150;

class SuggestPage {
  private readonly settings = readSettings();
  private readonly slots: Map<Role, ModelSlot>;
  private readonly cards: Map<Role, ModelCard>;
  private readonly text = byId("text", HTMLTextAreaElement);
  private readonly place = byId("suggestions");
  private readonly timings = new Map<Role, SuggestionTiming[]>();
  private role: Role;
  private words: Word[] = [];
  private timer = 0;
  private controller = new AbortController();
  private running: Promise<void> = Promise.resolve();

  constructor(site: Site) {
    this.slots = new Map([...byRole(site)].map(([role, entry]) => [role, new ModelSlot(entry, () => this.showModel())]));
    this.role = site.models[0]?.role ?? "shrunk";
    this.cards = new Map([...this.slots].map(([role, slot]) => [role, new ModelCard(slot, this.slots.size === 1, () => void this.load())]));
    this.offerChoice();
    byId("load").addEventListener("click", () => void this.load());
    this.text.addEventListener("input", () => this.later());
    this.text.addEventListener("keydown", (event) => this.onKey(event));
    this.showWords([]);
    this.showModel();
    void this.loadCached();
  }

  private get slot(): ModelSlot {
    const slot = this.slots.get(this.role);
    if (!slot) throw new Error(`there is no ${this.role} model`);
    return slot;
  }

  private offerChoice(): void {
    const choice = byId("choice");
    choice.hidden = this.slots.size === 1;
    for (const role of this.slots.keys()) {
      const input = element("input", { type: "radio", name: "choice", value: role, checked: role === this.role });
      input.addEventListener("change", () => void this.choose(role));
      choice.append(element("label", {}, [input, ROLE_NAMES[role]]));
    }
  }

  /** Another model suggests: the first one leaves the memory. */
  private async choose(role: Role): Promise<void> {
    this.cancel();
    const before = this.slot;
    this.role = role;
    this.showModel();
    showLatency(this.timings.get(role) ?? []);
    await this.running;
    await before.unload();
    await this.loadCached();
  }

  private async load(): Promise<void> {
    await this.slot.load(this.settings, 0).catch(() => undefined); // the card says what failed
    this.later();
  }

  private async loadCached(): Promise<void> {
    if (await isCached(this.slot.entry)) await this.load();
  }

  private showModel(): void {
    const card = this.cards.get(this.role);
    if (!card) return;
    card.update();
    if (card.root.parentElement === null) byId("models").replaceChildren(card.root);
    byId("load-row").hidden = this.slot.state.kind !== "idle";
    byId("load").textContent = `Load the model, ${formatBytes(this.slot.entry.bytes)}`;
  }

  private onKey(event: KeyboardEvent): void {
    const [first] = this.words;
    if (event.key === "Tab" && !event.shiftKey && first) {
      event.preventDefault();
      this.accept(first);
    } else if (event.key === "Escape") {
      this.cancel();
    }
  }

  private cancel(): void {
    clearTimeout(this.timer);
    this.controller.abort();
    this.showWords([]);
  }

  private later(): void {
    this.cancel();
    this.timer = window.setTimeout(() => {
      this.controller = new AbortController();
      const { signal } = this.controller;
      // One request after another: the model has one conversation at a time.
      this.running = this.running.then(() => this.suggest(signal));
    }, DEBOUNCE_MS);
  }

  private async suggest(signal: AbortSignal): Promise<void> {
    const text = this.text.value.slice(0, this.text.selectionEnd);
    if (signal.aborted || this.slot.state.kind !== "ready" || !text.trim()) return;
    const { role } = this;
    try {
      const engine = await this.slot.load(this.settings, 0);
      const found: { word: Word; ms: number }[] = [];
      const started = performance.now();
      const onWord = (word: Word): void => {
        found.push({ word, ms: performance.now() - started });
        this.showWords(found);
      };
      await nextWords(engine, text, onWord, signal);
      const [first, last] = [found[0], found.at(-1)];
      byId("suggest-failure").hidden = true;
      if (!first || !last) return;
      const timings = this.timings.get(role) ?? [];
      timings.push({ firstMs: first.ms, allMs: last.ms, passes: 1 + first.word.passes });
      this.timings.set(role, timings);
      showLatency(timings);
      byId("announcer").textContent = `Suggestions: ${found.map(({ word }) => word.word).join(", ")}`;
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      byId("suggest-failure").textContent = explain(error);
      byId("suggest-failure").hidden = false;
    }
  }

  private showWords(found: readonly { word: Word; ms: number }[]): void {
    this.words = found.map(({ word }) => word);
    const buttons = Array.from({ length: MOST_WORDS }, (_, index) => {
      const entry = found[index];
      const made = element("button", { type: "button", disabled: !entry }, [
        element("span", { class: "word", text: entry?.word.word ?? "\u00a0" }),
        element("span", { class: "figures", text: entry ? `${Math.round(entry.ms)} ms` : "" }),
      ]);
      if (entry) made.addEventListener("click", () => this.accept(entry.word));
      else made.setAttribute("aria-label", "No suggestion yet");
      return made;
    });
    this.place.replaceChildren(...buttons);
  }

  /** Puts a word at the cursor, and a space after it. */
  private accept(word: Word): void {
    const end = this.text.selectionEnd;
    const before = this.text.value.slice(0, end);
    const after = this.text.value.slice(end);
    const written = `${before + word.addition} `;
    this.text.value = written + after.trimStart();
    this.text.setSelectionRange(written.length, written.length);
    this.text.focus();
    this.later();
  }
}

async function start(): Promise<void> {
  const site = await startPage();
  if (site) new SuggestPage(site);
}

void start();
