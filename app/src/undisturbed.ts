/** Keeps a measurement undisturbed: the screen stays on, and it is known when the page was hidden. */

export class Undisturbed {
  private lock: { release(): Promise<void> } | null = null;
  private wasHidden = document.hidden;

  /** @param onChange Told when the page is hidden, and when it is back. */
  constructor(private readonly onChange: (hidden: boolean) => void) {
    document.addEventListener("visibilitychange", this.changed);
    void this.holdScreen();
  }

  /** True if the page was hidden since this was last asked. Browsers slow down what is hidden. */
  takeHidden(): boolean {
    const hidden = this.wasHidden || document.hidden;
    this.wasHidden = document.hidden;
    return hidden;
  }

  /** Waits until the page is visible. */
  async visible(signal: AbortSignal): Promise<void> {
    while (document.hidden && !signal.aborted) {
      await new Promise<void>((resolve) => {
        const go = (): void => resolve();
        document.addEventListener("visibilitychange", go, { once: true });
        signal.addEventListener("abort", go, { once: true });
      });
    }
    this.wasHidden = document.hidden;
  }

  end(): void {
    document.removeEventListener("visibilitychange", this.changed);
    void this.lock?.release().catch(() => undefined);
    this.lock = null;
  }

  private readonly changed = (): void => {
    if (document.hidden) this.wasHidden = true;
    else void this.holdScreen();
    this.onChange(document.hidden);
  };

  /** Browsers let the lock go when the page is hidden; some have none, or refuse it when the battery is low. */
  private async holdScreen(): Promise<void> {
    try {
      this.lock = await navigator.wakeLock.request("screen");
    } catch {
      this.lock = null;
    }
  }
}
