import { untrack } from "svelte";

/** What the command palette offers besides the pages: a page adds its own while it is open. */
export interface Offered {
  title: string;
  run: () => void;
}

class Commands {
  #byOwner = $state.raw<Record<string, Offered[]>>({});
  offered = $derived(Object.values(this.#byOwner).flat());

  /** Offer something until the returned function is called. */
  offer(owner: string, commands: Offered[]): () => void {
    // Called in effects, which must not run again because of what they put here.
    this.#byOwner = { ...untrack(() => this.#byOwner), [owner]: commands };
    return () => {
      const { [owner]: _, ...rest } = untrack(() => this.#byOwner);
      this.#byOwner = rest;
    };
  }
}

export const commands = new Commands();
