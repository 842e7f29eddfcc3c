/** Short messages in the corner. One that tells of a problem stays until it is closed: an error is never hidden. */
import { problemOf, type Problem } from "$/api/problem";

export interface Toast {
  id: number;
  text: string;
  problem: Problem | null;
}

class Toasts {
  shown = $state<Toast[]>([]);
  #next = 1;

  say(text: string): void {
    const id = this.#add({ text, problem: null });
    setTimeout(() => this.close(id), 5000);
  }

  fail(error: unknown): void {
    const problem = problemOf(error);
    const same = this.shown.find((toast) => toast.problem?.problem === problem.problem);
    if (!same) this.#add({ text: problem.problem, problem });
  }

  close(id: number): void {
    this.shown = this.shown.filter((toast) => toast.id !== id);
  }

  #add(toast: Omit<Toast, "id">): number {
    const id = this.#next++;
    this.shown = [...this.shown, { id, ...toast }];
    return id;
  }
}

export const toasts = new Toasts();

/** Do something that may fail; what fails is shown. Returns undefined then. */
export async function attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work();
  } catch (error) {
    toasts.fail(error);
    return undefined;
  }
}
