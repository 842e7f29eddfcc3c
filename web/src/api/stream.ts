/**
 * Server-sent events that outlast a reload of the network, a laptop that slept and a server that was started again.
 *
 * The browser itself comes back after a short break and says how far it was. What it does not do is done here: it gives
 * up where the server answers with an error, it does not notice that a connection died while the machine slept, and it
 * keeps at most six connections for all windows together, so a window that nobody sees gives its own back.
 */
import { answer, api } from "./client";
import { problemOf, type Problem } from "./problem";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 15000;
const LOOK_MS = 5000;
const SLEPT_MS = 20000;
const HIDDEN_MS = 30000;

export interface Reader {
  /** What is done with each kind of message; ``place`` is the id of the last message that had one. */
  on: Record<string, (data: unknown, place: string) => void>;
  /** A connection was opened, the first or another one. */
  opened?: () => void;
  /** The connection was lost, and why where that is known. It is tried again until ``close``. */
  lost?: (problem: Problem | null) => void;
}

export class Stream {
  #source: EventSource | null = null;
  #place = "";
  #wait = FIRST_WAIT_MS;
  #again: ReturnType<typeof setTimeout> | undefined;
  #hide: ReturnType<typeof setTimeout> | undefined;
  #clock: ReturnType<typeof setInterval>;
  #seen = Date.now();
  #closed = false;
  #stop = new AbortController();

  /** ``address`` gives the address to ask for everything behind a place ("" before the first message). */
  constructor(
    private readonly address: (place: string) => string,
    private readonly reader: Reader,
  ) {
    const { signal } = this.#stop;
    document.addEventListener("visibilitychange", () => this.#visibility(), { signal });
    addEventListener("online", () => this.#reconnect(), { signal });
    addEventListener("pageshow", (event) => event.persisted && this.#reconnect(), { signal });
    this.#clock = setInterval(() => this.#look(), LOOK_MS);
    this.#connect();
  }

  close(): void {
    this.#closed = true;
    this.#stop.abort();
    clearInterval(this.#clock);
    clearTimeout(this.#hide);
    this.#drop();
  }

  #connect(): void {
    if (this.#closed || this.#source) return;
    const source = new EventSource(this.address(this.#place));
    this.#source = source;
    source.onopen = () => {
      this.#wait = FIRST_WAIT_MS;
      this.reader.opened?.();
    };
    source.onerror = () => {
      if (this.#source !== source) return;
      if (source.readyState !== EventSource.CLOSED) {
        this.reader.lost?.(null); // the browser tries again by itself
        return;
      }
      this.#drop();
      void this.#why();
      this.#again = setTimeout(() => this.#connect(), this.#wait);
      this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT_MS);
    };
    for (const [kind, take] of Object.entries(this.reader.on)) {
      source.addEventListener(kind, (message: MessageEvent<string>) => {
        if (this.#source !== source) return;
        if (message.lastEventId) this.#place = message.lastEventId;
        take(JSON.parse(message.data), message.lastEventId);
      });
    }
  }

  /** An EventSource does not say why it was refused; a plain request does. */
  async #why(): Promise<void> {
    try {
      await answer(api.GET("/api/session"));
      this.reader.lost?.(null);
    } catch (error) {
      this.reader.lost?.(problemOf(error));
    }
  }

  #drop(): void {
    clearTimeout(this.#again);
    this.#source?.close();
    this.#source = null;
  }

  #reconnect(): void {
    this.#drop();
    this.#connect();
  }

  #visibility(): void {
    clearTimeout(this.#hide);
    if (document.hidden) {
      this.#hide = setTimeout(() => this.#drop(), HIDDEN_MS);
    } else {
      this.#connect();
    }
  }

  /** A clock that stood still means that the machine slept: its connections may be dead without anybody saying so. */
  #look(): void {
    const now = Date.now();
    if (now - this.#seen > SLEPT_MS && !document.hidden) this.#reconnect();
    this.#seen = now;
  }
}
