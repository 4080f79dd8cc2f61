/** Bytes of tokens as text: letters come whole, and the text ends before what stops it. */

export class TextStream {
  text = "";
  /** True once the text has ended at one of the stops. */
  stopped = false;
  private held = "";
  private readonly decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(
    private readonly stops: readonly string[],
    private readonly onText: (piece: string) => void,
    /** Leaves out the space before the text. */
    private readonly trimmed = false,
  ) {}

  add(bytes: Uint8Array): void {
    if (this.stopped) return;
    const found = this.held + this.decoder.decode(bytes, { stream: true });
    const places = this.stops.map((stop) => found.indexOf(stop)).filter((place) => place >= 0);
    this.stopped = places.length > 0;
    const end = this.stopped ? Math.min(...places) : found.length - this.mayStop(found);
    this.held = found.slice(end);
    this.pass(found.slice(0, end));
  }

  /** The text has ended: what looked like the beginning of a stop was none. */
  end(): void {
    if (!this.stopped) this.pass(this.held);
    this.held = "";
  }

  /** Letters at the end that may be the beginning of a stop. */
  private mayStop(found: string): number {
    const longest = Math.max(0, ...this.stops.map((stop) => stop.length - 1));
    for (let count = Math.min(longest, found.length); count > 0; count--) {
      if (this.stops.some((stop) => stop.startsWith(found.slice(-count)))) return count;
    }
    return 0;
  }

  private pass(found: string): void {
    const piece = this.trimmed && !this.text ? found.trimStart() : found;
    if (!piece) return;
    this.text += piece;
    this.onText(piece);
  }
}
