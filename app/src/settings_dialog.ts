/** The dialog of settings. */

import { byId, element } from "./dom";
import { cores, defaultThreads, hasGpu, isolated, mostThreads } from "./environment";
import { formatBytes } from "./format";
import { neededBytes } from "./memory";
import { describeRuntime } from "./runtime_choice";
import { contextOf, ownTemperature, type Settings } from "./settings";
import type { ModelEntry } from "./site";

const CONTEXTS = [512, 1024, 2048, 4096, 8192, 16384, 32768];

export class SettingsDialog {
  private readonly dialog = byId("settings", HTMLDialogElement);
  private readonly system = byId("system", HTMLTextAreaElement);
  private readonly temperature = byId("temperature", HTMLInputElement);
  private readonly maxNewTokens = byId("max-new-tokens", HTMLInputElement);
  private readonly seed = byId("seed", HTMLInputElement);
  private readonly context = byId("context", HTMLSelectElement);
  private readonly threads = byId("threads", HTMLSelectElement);
  private readonly gpu = byId("gpu", HTMLInputElement);

  constructor(
    private readonly entries: readonly ModelEntry[],
    private settings: Settings,
    private readonly onSave: (settings: Settings) => void,
  ) {
    this.dialog.addEventListener("close", () => {
      if (this.dialog.returnValue === "save") this.onSave(this.read());
    });
    this.context.addEventListener("change", () => this.tellMemory());
    this.gpu.addEventListener("change", () => this.tellRuntime());
  }

  open(settings: Settings): void {
    this.settings = settings;
    this.system.value = settings.system;
    this.temperature.value = settings.temperature === null ? "" : String(settings.temperature);
    this.tellTemperature();
    this.maxNewTokens.value = String(settings.maxNewTokens);
    this.seed.value = settings.seed === null ? "" : String(settings.seed);
    this.gpu.checked = settings.gpu;
    this.fillContexts();
    this.fillThreads();
    this.tellMemory();
    this.tellRuntime();
    void this.offerGpu();
    this.dialog.returnValue = "";
    this.dialog.showModal();
  }

  private read(): Settings {
    const number = (input: HTMLInputElement): number | null => (input.value === "" ? null : input.valueAsNumber);
    return {
      ...this.settings,
      system: this.system.value,
      temperature: number(this.temperature),
      maxNewTokens: number(this.maxNewTokens) ?? this.settings.maxNewTokens,
      seed: number(this.seed),
      contextTokens: Number(this.context.value),
      threads: this.threads.value === "" ? null : Number(this.threads.value),
      gpu: this.gpu.checked,
    };
  }

  private tellTemperature(): void {
    const own = this.entries.map((entry) => ({ name: entry.name, ...ownTemperature(entry) }));
    const [first] = own;
    if (!first) return;
    this.temperature.placeholder = String(first.value);
    const same = own.every(({ value, source }) => value === first.value && source === first.source);
    const texts = same ? [`${first.value} (${first.source})`] : own.map(({ name, value, source }) => `${value} for ${name} (${source})`);
    byId("temperature-hint").textContent = `If empty, ${texts.join(" and ")}. 0 takes the most probable token.`;
  }

  private fillContexts(): void {
    const longest = Math.max(...this.entries.map((entry) => entry.context));
    const offered = CONTEXTS.filter((tokens) => tokens < longest);
    if (longest <= (CONTEXTS.at(-1) ?? 0)) offered.push(longest);
    const chosen = Math.min(this.settings.contextTokens, longest);
    const all = offered.includes(chosen) ? offered : [...offered, chosen].sort((a, b) => a - b);
    this.context.replaceChildren(...all.map((tokens) => option(tokens, `${tokens} tokens`, tokens === chosen)));
  }

  private fillThreads(): void {
    const automatic = option("", `${defaultThreads()}, as suits the device`, this.settings.threads === null);
    const counts = Array.from({ length: mostThreads }, (_, index) => index + 1);
    this.threads.replaceChildren(automatic, ...counts.map((count) => option(count, String(count), count === this.settings.threads)));
    this.threads.disabled = !isolated || cores === 1;
  }

  private tellMemory(): void {
    const settings = { ...this.settings, contextTokens: Number(this.context.value) };
    const parts = this.entries.map((entry) => `${formatBytes(neededBytes(entry, contextOf(entry, settings)))} for ${entry.name}`);
    byId("memory-hint").textContent = `Memory at this context: about ${parts.join(", ")}.`;
  }

  private tellRuntime(): void {
    byId("runtime-hint").textContent = describeRuntime(this.gpu.checked);
  }

  /** The choice is there only where the browser has a GPU to give. */
  private async offerGpu(): Promise<void> {
    if (!hasGpu) return;
    const { gpu } = navigator as unknown as { gpu: { requestAdapter(): Promise<object | null> } };
    const adapter = await gpu.requestAdapter().catch(() => null);
    byId("gpu-row").hidden = adapter === null;
  }
}

function option(value: string | number, text: string, selected: boolean): HTMLOptionElement {
  return element("option", { value, text, selected });
}
