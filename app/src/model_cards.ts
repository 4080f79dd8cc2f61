/** The strip of models at the top of a page: what they are, and how far they are loaded. */

import { button, element } from "./dom";
import { formatBytes, formatCount, formatParameters, formatSeconds } from "./format";
import type { ModelSlot } from "./model_slot";
import type { ModelEntry, Role } from "./site";

export const ROLE_NAMES: Record<Role, string> = { shrunk: "Shrunk", base: "Base" };

/** One line about a model: q4_0 · 135M parameters · 91.7 MB. */
export function describe(entry: ModelEntry): string {
  const parameters = entry.parameters ? [`${formatParameters(entry.parameters)} parameters`] : [];
  return [entry.quantization, ...parameters, formatBytes(entry.bytes)].join(" · ");
}

export function badge(role: Role): HTMLElement {
  return element("span", { class: `badge ${role}`, text: ROLE_NAMES[role] });
}

export class ModelCard {
  readonly root: HTMLElement;
  private readonly status = element("p", { class: "figures" });
  private readonly progress = element("progress", { max: 1, value: 0, hidden: true });
  private readonly again: HTMLButtonElement;

  constructor(
    readonly slot: ModelSlot,
    single: boolean,
    onLoad: (slot: ModelSlot) => void,
  ) {
    const { entry } = slot;
    this.again = button("Try again", () => onLoad(slot));
    this.progress.setAttribute("aria-label", `Loading ${entry.name}`);
    const title = element("h2", { class: "model-name" }, single ? [entry.name] : [badge(entry.role), " ", entry.name]);
    this.root = element("article", { class: "model-card" }, [
      element("div", { class: "model-title" }, [title, element("p", { class: "figures", text: describe(entry) })]),
      this.progress,
      this.status,
      this.again,
    ]);
    this.update();
  }

  update(): void {
    const { state } = this.slot;
    this.again.hidden = state.kind !== "failed";
    this.root.dataset["state"] = state.kind;
    this.progress.hidden = state.kind !== "fetching" && state.kind !== "starting";
    if (state.kind === "fetching" || state.kind === "starting") this.progress.value = state.share;
    this.status.classList.toggle("failure-text", state.kind === "failed");
    this.status.textContent = this.sentence();
  }

  private sentence(): string {
    const { state, entry } = this.slot;
    switch (state.kind) {
      case "idle":
        return "Not loaded";
      case "fetching": {
        if (state.fromCache) return "Reading from this device…";
        return `Fetching ${formatBytes(state.share * entry.bytes)} of ${formatBytes(entry.bytes)}`;
      }
      case "starting":
        return state.share > 0 ? `Loading, ${Math.round(state.share * 100)} %` : "Loading…";
      case "ready":
        return `Ready, loaded in ${formatSeconds(state.loadSeconds)} · ${formatCount(state.threads, "thread")}`;
      case "failed":
        return state.message;
    }
  }
}
