/** The section that measures a cost profile for `ishrink search`. */

import { byId } from "./dom";
import type { MeasureSettings } from "./measure_settings";
import { measureProfile } from "./profiling";
import type { Progress } from "./progress";
import type { Undisturbed } from "./undisturbed";

type Run = (settings: MeasureSettings, progress: Progress, undisturbed: Undisturbed, signal: AbortSignal) => Promise<object>;

export class ProfilePanel {
  /**
   * @param path Of the plan of the probes.
   * @param onRun Runs the measurement as the page runs its own.
   */
  constructor(
    private readonly path: string,
    private readonly onRun: (run: Run) => Promise<void>,
  ) {
    byId("profile").hidden = false;
    byId("profile-what").textContent =
      "Times small files of random weights in many shapes and types, from which a search knows what each part of a model costs on this device. They are made here and take nothing of the network.";
    byId("measure-profile").addEventListener("click", () => this.start());
    this.show(null);
  }

  start(): void {
    const rounds = Number(new URLSearchParams(location.search).get("profile-rounds")) || null;
    void this.onRun((settings, progress, undisturbed, signal) =>
      measureProfile(this.path, { threads: settings.threads, gpu: settings.gpu, rounds }, progress, undisturbed, signal),
    );
  }

  setBusy(busy: boolean): void {
    byId("measure-profile", HTMLButtonElement).disabled = busy;
  }

  show(profile: object | null): void {
    byId("profile-state").textContent = profile
      ? "The report above holds the profile: save it, then run ishrink search --profile device_report.json."
      : "It takes some minutes, and goes into device_report.json.";
  }
}
