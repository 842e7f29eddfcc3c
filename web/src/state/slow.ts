/** Something that is asked for often and done at most once in a while, the last time never left out. */
export class Slow {
  #timer: ReturnType<typeof setTimeout> | undefined;
  #last = -Infinity;
  #isClosed = false;

  constructor(
    private readonly everyMs: number,
    private readonly work: () => Promise<void>,
  ) {}

  wanted(): void {
    if (this.#timer !== undefined || this.#isClosed) return;
    const wait = Math.max(0, this.#last + this.everyMs - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#last = performance.now();
      void this.work();
    }, wait);
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }
}
