/** The measuring page. */

import { keepReport, lastReport, makeReport, type DeviceReport } from "./device_report";
import { byId, download } from "./dom";
import { hasGpu } from "./environment";
import { explain, isAbort, logFailure } from "./errors";
import { formatBytes } from "./format";
import {
  defaultMeasureSettings,
  fillForm,
  readForm,
  refusal,
  served,
  settingsFromAddress,
  type MeasureSettings,
} from "./measure_settings";
import { Measuring } from "./measuring";
import { ProfilePanel } from "./profile_panel";
import { Progress, type Shown } from "./progress";
import { showReport } from "./report_view";
import { startPage } from "./shell";
import type { ModelEntry, Site } from "./site";
import { Undisturbed } from "./undisturbed";

class MeasurePage {
  private readonly models: readonly ModelEntry[];
  private report: DeviceReport | null;
  private running: AbortController | null = null;
  private readonly profile: ProfilePanel | null;

  constructor(site: Site) {
    // The base first, as Python does: the first round begins with it.
    this.models = [...site.models].sort((a, b) => a.role.localeCompare(b.role));
    this.report = lastReport(this.models);
    const query = new URLSearchParams(location.search);
    fillForm(settingsFromAddress(defaultMeasureSettings(), query));
    void offerGpu();
    byId("what").textContent = whatIsMeasured(this.models);
    byId("measure-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.measure();
    });
    byId("measure-form").addEventListener("input", () => this.tellDownload());
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("save").addEventListener("click", () => this.save());
    this.profile = site.probes === null ? null : new ProfilePanel(site.probes, (run) => this.measureProfile(run));
    this.tellDownload();
    this.showReport();
    byId("measure", HTMLButtonElement).disabled = false; // until the page has started nothing hears a click
    if (query.get("run") === "1") void this.measure();
    if (query.get("profile") === "1") this.profile?.start();
  }

  private async measure(): Promise<void> {
    const settings = readForm();
    const wrong = refusal(settings, this.models);
    this.tell(wrong);
    if (wrong || this.running) return;
    await this.run(async (progress, undisturbed, signal) => {
      const measured = await new Measuring(this.models, settings, progress, undisturbed, signal).run();
      const profile = this.report?.profile ?? null;
      this.keep({ ...makeReport(this.models, settings, measured), profile });
    });
  }

  /** The profile goes into the report of the last measurement, or into one without figures. */
  private async measureProfile(run: (settings: MeasureSettings, progress: Progress, undisturbed: Undisturbed, signal: AbortSignal) => Promise<object>): Promise<void> {
    if (this.running) return;
    const settings = readForm();
    await this.run(async (progress, undisturbed, signal) => {
      const profile = await run(settings, progress, undisturbed, signal);
      const empty = { samples: [], threads: settings.threads, rounds: 0, notes: [] };
      this.keep({ ...(this.report ?? makeReport(this.models, settings, empty)), profile });
    });
  }

  private async run(work: (progress: Progress, undisturbed: Undisturbed, signal: AbortSignal) => Promise<void>): Promise<void> {
    const controller = new AbortController();
    const undisturbed = new Undisturbed((hidden) => showHidden(hidden));
    this.running = controller;
    document.documentElement.dataset["measured"] = "running";
    this.showRunning(true);
    byId("measure-form").scrollIntoView({ block: "nearest" });
    let state = "done";
    try {
      await work(new Progress(showProgress), undisturbed, controller.signal);
    } catch (error) {
      state = isAbort(error) ? "stopped" : "failed";
      if (!isAbort(error)) {
        logFailure(error);
        this.tell(explain(error));
      }
    } finally {
      undisturbed.end();
      this.running = null;
      this.showRunning(false);
      document.documentElement.dataset["measured"] = state;
    }
  }

  private keep(report: DeviceReport): void {
    this.report = report;
    if (!keepReport(report)) {
      report.notes.push("this browser does not store the report, so it is gone when the page is closed");
    }
    this.showReport();
  }

  private save(): void {
    if (this.report) download("device_report.json", `${JSON.stringify(this.report, null, 1)}\n`, "application/json");
  }

  private showReport(): void {
    byId("result").hidden = this.report === null;
    if (!this.report) return;
    byId("report").replaceChildren(...showReport(this.report));
    this.profile?.show(this.report.profile);
  }

  private showRunning(running: boolean): void {
    byId("running").hidden = !running;
    byId("stop").hidden = !running;
    byId("measure", HTMLButtonElement).disabled = running;
    byId("fields", HTMLFieldSetElement).disabled = running;
    this.profile?.setBusy(running);
    showHidden(document.hidden);
  }

  private tell(text: string | null): void {
    byId("measure-failure").hidden = text === null;
    byId("measure-failure").textContent = text;
  }

  private tellDownload(): void {
    const settings = readForm();
    const bytes = this.models.reduce((sum, model) => sum + model.bytes, 0) * (1 + settings.coldRounds);
    byId("estimate").textContent =
      served === "here" || !Number.isFinite(bytes) ? "" : `Fetches about ${formatBytes(bytes)} from the server.`;
  }
}

/** The choice is there only where the browser has a GPU to give. */
async function offerGpu(): Promise<void> {
  if (!hasGpu) return;
  const { gpu } = navigator as unknown as { gpu: { requestAdapter(): Promise<object | null> } };
  byId("gpu-field").hidden = (await gpu.requestAdapter().catch(() => null)) === null;
}

function whatIsMeasured(models: readonly ModelEntry[]): string {
  const figures = "loading, the time to the first token, decoding, the whole response, and memory";
  const names = models.map((model) => model.name);
  return models.length === 2
    ? `Times ${figures} on this device: ${names.join(" and ")} in turn, round by round, with a verdict on each figure.`
    : `Times ${figures} of ${names.join()} on this device.`;
}

function showProgress({ text, share }: Shown): void {
  const bar = byId("progress", HTMLProgressElement);
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
  byId("progress-text").textContent = text;
}

function showHidden(hidden: boolean): void {
  const notice = byId("hidden-notice");
  if (hidden) notice.dataset["hidden"] = "";
  else delete notice.dataset["hidden"];
}

async function start(): Promise<void> {
  const site = await startPage();
  if (site) new MeasurePage(site);
}

void start();
