/** All runs of the home, kept up to date by one stream for every page of this window. */
import type { Run } from "$/api/client";
import type { Problem } from "$/api/problem";
import { Stream } from "$/api/stream";
import { ACTIVE } from "$/words";

const LOST_MS = 2500;

class Runs {
  #byName = $state.raw<ReadonlyMap<string, Run>>(new Map());
  /** Whether the server has told of the runs yet. */
  isLoaded = $state(false);
  /** Whether the server has been silent for longer than a short break. */
  isLost = $state(false);
  /** Why the server refuses to tell, where it does. */
  problem = $state.raw<Problem | null>(null);
  #isFirst = true;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** By name. */
  list = $derived([...this.#byName.values()].sort((one, other) => one.name.localeCompare(other.name)));
  /** The last that changed first. */
  latest = $derived([...this.list].sort((one, other) => (other.changed ?? 0) - (one.changed ?? 0)));
  active = $derived(this.list.filter((run) => ACTIVE.includes(run.state)));

  named(name: string): Run | undefined {
    return this.#byName.get(name);
  }

  /** Listen until the returned function is called. */
  follow(): () => void {
    const stream = new Stream(() => "/api/news/events", {
      on: { runs: (data) => this.#take(data as Run[]), gone: (data) => this.#forget(data as string[]) },
      opened: () => {
        clearTimeout(this.#timer);
        this.#timer = undefined;
        this.isLost = false;
        this.problem = null;
        this.#isFirst = true;
      },
      lost: (problem) => {
        if (problem?.status) this.problem = problem;
        this.#timer ??= setTimeout(() => (this.isLost = true), LOST_MS);
      },
    });
    return () => stream.close();
  }

  /** The first message of a connection has every run there is. */
  #take(runs: Run[]): void {
    const known = this.#isFirst ? [] : this.#byName;
    this.#isFirst = false;
    this.isLoaded = true;
    this.#byName = new Map([...known, ...runs.map((run) => [run.name, run] as const)]);
  }

  #forget(names: string[]): void {
    this.#byName = new Map([...this.#byName].filter(([name]) => !names.includes(name)));
  }
}

export const runs = new Runs();
