/** The chat page. */

import { Announcer } from "./announcer";
import { answerTurn } from "./answering";
import { Conversation } from "./conversation";
import { asJson, asMarkdown, asText } from "./conversation_files";
import { button, byId, download } from "./dom";
import { ContextFull } from "./errors";
import { formatBytes } from "./format";
import { ModelCard } from "./model_cards";
import { isCached } from "./model_files";
import { ModelSlot } from "./model_slot";
import { readSettings, saveSettings, type Settings, type Shown } from "./settings";
import { SettingsDialog } from "./settings_dialog";
import { startPage } from "./shell";
import { byRole, type Role, type Site } from "./site";
import { TurnView } from "./transcript";

const EXAMPLES = ["Why is the sky blue?", "Write a short poem about the sea.", "Explain what a language model is to a child."];

class ChatPage {
  private settings: Settings = readSettings();
  private readonly conversation = Conversation.read();
  private readonly slots: Map<Role, ModelSlot>;
  private readonly cards: ModelCard[];
  private readonly names: Map<Role, string>;
  private readonly announcer = new Announcer(byId("announcer"));
  private readonly prompt = byId("prompt", HTMLTextAreaElement);
  private readonly transcript = byId("transcript");
  private turns: TurnView[] = [];
  private running: AbortController | null = null;

  constructor(private readonly site: Site) {
    this.slots = new Map([...byRole(site)].map(([role, entry]) => [role, new ModelSlot(entry, () => this.showModels())]));
    this.names = new Map(site.models.map((entry) => [entry.role, entry.name]));
    const single = this.slots.size === 1;
    this.cards = [...this.slots.values()].map((slot) => new ModelCard(slot, single, (failed) => void this.load([failed.entry.role])));
    byId("models").append(...this.cards.map((card) => card.root));
    byId("models").classList.toggle("two", !single);
    const dialog = new SettingsDialog(site.models, this.settings, (settings) => this.change(settings));
    byId("open-settings").addEventListener("click", () => dialog.open(this.settings));
    this.listen();
    this.tellTemplates();
    this.showTurns();
    this.showModels();
    void this.loadCached();
  }

  /** The models that answer, as chosen. */
  private get shown(): Role[] {
    const roles: Role[] = [...this.slots.keys()];
    return this.slots.size === 1 || this.settings.shown === "both" ? roles : roles.filter((role) => role === this.settings.shown);
  }

  private listen(): void {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.send(this.prompt.value);
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      void this.send(this.prompt.value);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !byId("settings", HTMLDialogElement).open) this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("load").addEventListener("click", () => void this.load(this.shown));
    byId("examples").append(...EXAMPLES.map((text) => button(text, () => void this.send(text))));
    const shown = byId("shown");
    shown.hidden = this.slots.size === 1;
    for (const input of shown.querySelectorAll("input")) {
      input.checked = input.value === this.settings.shown;
      input.addEventListener("change", () => this.change({ ...this.settings, shown: input.value as Shown }));
    }
    byId("marks").hidden = this.slots.size === 1;
    byId("marks").addEventListener("click", () => this.change({ ...this.settings, marks: !this.settings.marks }));
    this.listenToMenu();
  }

  private listenToMenu(): void {
    const menu = byId("menu", HTMLDetailsElement);
    const does = (id: string, run: () => void): void =>
      byId(id).addEventListener("click", () => {
        menu.open = false;
        run();
      });
    does("copy-text", () => void this.copy(asText(this.conversation)));
    does("copy-markdown", () => void this.copy(asMarkdown(this.conversation)));
    does("export", () => download("conversation.json", asJson(this.conversation, this.site, this.settings), "application/json"));
    does("clear", () => this.clear());
    menu.hidden = false;
    document.addEventListener("click", (event) => {
      if (menu.open && event.target instanceof Node && !menu.contains(event.target)) menu.open = false;
    });
  }

  private change(settings: Settings): void {
    this.settings = settings;
    saveSettings(settings);
    byId("marks").setAttribute("aria-pressed", String(settings.marks));
    for (const turn of this.turns) {
      turn.show(this.shown);
      turn.mark(settings.marks && this.shown.length === 2);
    }
    this.showModels();
  }

  private async send(text: string): Promise<void> {
    const prompt = text.trim();
    if (!prompt || this.running) return;
    this.prompt.value = "";
    this.conversation.add(prompt);
    this.showTurns();
    await this.answer();
  }

  /** Answers the last turn: the models in turn, the first one another at every prompt. */
  private async answer(): Promise<unknown> {
    const view = this.turns.at(-1);
    if (!view || this.running) return null;
    this.running = new AbortController();
    this.notify(null);
    this.showRunning();
    view.act([]);
    view.show(this.shown);
    for (const role of this.shown) delete view.turn.answers[role];
    view.root.scrollIntoView({ block: "start" });
    const roles = [...this.shown].sort((a) => (a === view.turn.first ? -1 : 1));
    const { conversation, slots, settings, announcer } = this;
    const task = { conversation, slots, settings, announcer, onGrowth: () => this.follow() };
    const failure = await answerTurn(task, view, roles, this.running.signal);
    this.running = null;
    this.showRunning();
    view.mark(this.settings.marks && this.shown.length === 2);
    this.offerActions();
    if (failure instanceof ContextFull) this.offerRoom(failure);
    this.conversation.save();
    return failure;
  }

  /** Leaves out older turns until the rest fits. */
  private async makeRoom(): Promise<void> {
    while (this.conversation.dropOldest()) {
      this.showTurns();
      if (!((await this.answer()) instanceof ContextFull)) return;
    }
  }

  private regenerate(): void {
    const turn = this.conversation.turns.at(-1);
    if (!turn || this.running) return;
    if (this.slots.size === 2) turn.first = turn.first === "shrunk" ? "base" : "shrunk";
    void this.answer();
  }

  private stop(): void {
    if (!this.running) return;
    this.running.abort();
    for (const view of this.turns.at(-1)?.answers.values() ?? []) view.stop();
  }

  private clear(): void {
    this.stop();
    this.conversation.clear();
    this.notify(null);
    this.showTurns();
    this.prompt.focus();
  }

  private async copy(text: string): Promise<void> {
    try {
      await navigator.clipboard.writeText(text);
      this.notify("Copied.");
      setTimeout(() => byId("chat-notice-text").textContent === "Copied." && this.notify(null), 2500);
    } catch {
      this.notify("This browser does not let the page copy. Select the text and copy it by hand, or export the conversation.");
    }
  }

  private offerRoom(failure: ContextFull): void {
    const drop: [string, () => void][] = [];
    if (this.conversation.turns.length - this.conversation.sentFrom > 1) drop.push(["Leave out the oldest turns", () => void this.makeRoom()]);
    const help = drop.length ? "Leave out the oldest turns, clear the conversation, or choose a longer context in the settings." : "Shorten the prompt, or choose a longer context in the settings.";
    this.notify(`${failure.message} ${help}`, [...drop, ["Clear the conversation", () => this.clear()]]);
  }

  private notify(text: string | null, actions: readonly [string, () => void][] = []): void {
    byId("chat-notice").hidden = text === null;
    byId("chat-notice-text").textContent = text;
    byId("chat-notice-actions").replaceChildren(...actions.map(([label, run]) => button(label, run)));
    byId("chat-notice-actions").hidden = actions.length === 0;
  }

  private showTurns(): void {
    const { turns, sentFrom } = this.conversation;
    this.turns = turns.map((turn) => new TurnView(turn, this.names, this.shown));
    this.turns.forEach((view, index) => {
      view.setDropped(index < sentFrom);
      view.mark(this.settings.marks && this.shown.length === 2);
    });
    this.transcript.replaceChildren(...this.turns.map((view) => view.root));
    byId("welcome").hidden = turns.length > 0;
    byId("marks").setAttribute("aria-pressed", String(this.settings.marks));
    this.offerActions();
    this.showRunning();
  }

  private offerActions(): void {
    this.turns.forEach((view, index) => {
      const last = index === this.turns.length - 1 && !this.running;
      view.act(last ? [["Regenerate", () => this.regenerate()]] : []);
    });
  }

  private showRunning(): void {
    const running = this.running !== null;
    byId("send", HTMLButtonElement).disabled = false; // until the page has started nothing hears a click
    byId("send").hidden = running;
    byId("stop").hidden = !running;
    for (const input of byId("shown").querySelectorAll("input")) input.disabled = running;
    byId("open-settings", HTMLButtonElement).disabled = running;
  }

  private showModels(): void {
    for (const card of this.cards) card.update();
    const idle = this.shown.flatMap((role) => {
      const slot = this.slots.get(role);
      return slot?.state.kind === "idle" ? [slot] : [];
    });
    const loading = [...this.slots.values()].some(({ state }) => state.kind === "fetching" || state.kind === "starting");
    byId("load-row").hidden = idle.length === 0 || loading;
    const bytes = idle.reduce((total, slot) => total + slot.entry.bytes, 0);
    byId("load").textContent = `Load ${idle.length === 2 ? "both models" : "the model"}, ${formatBytes(bytes)}`;
    byId("load-hint").textContent = "From this site, once: it stays on this device.";
    const target = this.shown.length === 2 ? "both models" : this.names.get(this.shown[0] ?? "shrunk");
    byId("welcome-title").textContent = `Ask ${target}`;
    this.prompt.placeholder = `Message ${target}`;
  }

  private async load(roles: readonly Role[]): Promise<void> {
    for (const role of roles) {
      const others = [...this.slots.values()].filter((slot) => slot.entry.role !== role);
      const otherBytes = others.reduce((total, slot) => total + slot.usedBytes(this.settings), 0);
      // The model's card says what failed.
      await this.slots.get(role)?.load(this.settings, otherBytes).catch(() => undefined);
    }
  }

  /** Models that are on the device already are loaded without asking. */
  private async loadCached(): Promise<void> {
    const cached = await Promise.all(this.shown.map(async (role) => {
      const slot = this.slots.get(role);
      return slot && (await isCached(slot.entry)) ? role : null;
    }));
    await this.load(cached.filter((role) => role !== null));
  }

  private tellTemplates(): void {
    const { models } = this.site;
    const bare = models.filter((model) => !model.chat_template).map((model) => model.name);
    const [first, second] = models;
    const texts: string[] = [];
    if (bare.length) texts.push(`${bare.join(" and ")} ${bare.length === 1 ? "has" : "have"} no chat template, and ${bare.length === 1 ? "continues" : "continue"} each text instead of answering it.`);
    else if (first && second && first.template_sha256 !== second.template_sha256) texts.push("The two models have different chat templates. Each is asked by its own.");
    byId("model-notice").textContent = texts.join(" ");
    byId("model-notice").hidden = texts.length === 0;
  }

  /** Stays at the end of the page while it grows, unless the user has scrolled up. */
  private follow(): void {
    const { scrollHeight, clientHeight, scrollTop } = document.documentElement;
    if (scrollHeight - clientHeight - scrollTop < 120) window.scrollTo({ top: scrollHeight });
  }
}

async function start(): Promise<void> {
  const site = await startPage();
  if (site) new ChatPage(site);
}

void start();
