/** What the page makes a button of, of everything that an error or a notice may propose. */
import { answer, api } from "$/api/client";
import type { ProposedAction } from "$/api/problem";
import { navigate, runAddress } from "$/router";
import { attempt } from "./toasts.svelte";

export interface Deed {
  title: string;
  run: () => void;
}

const runOf = (values: Record<string, string>) => values.run?.split(/[\\/]/).filter(Boolean).at(-1);

const DEEDS: Record<string, (values: Record<string, string>) => Deed | null> = {
  list_runs: () => ({ title: "Show the runs", run: () => navigate("/runs") }),
  resume_run: (values) => {
    const run = runOf(values);
    if (!run) return null;
    const work = async () => {
      await answer(api.POST("/api/runs/{run}/resume", { params: { path: { run } } }));
      navigate(runAddress(run) as "/runs");
    };
    return { title: `Resume ${run}`, run: () => void attempt(work) };
  },
  stop_run: (values) => {
    const run = runOf(values);
    return run ? { title: `Open ${run}`, run: () => navigate(runAddress(run) as "/runs") } : null;
  },
};

/** The buttons for what was proposed; what the page has no place for stays in the sentence. */
export function deedsOf(actions: readonly ProposedAction[]): Deed[] {
  return actions.flatMap((proposed) => DEEDS[proposed.action]?.(proposed.values ?? {}) ?? []);
}
