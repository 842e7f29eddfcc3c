/** What the server answers when something cannot be done: the same problem and hint as in the terminal. */
export interface ProposedAction {
  action: string;
  values: Record<string, string>;
  text: string;
}

export class Problem extends Error {
  constructor(
    readonly problem: string,
    readonly hint = "",
    readonly actions: ProposedAction[] = [],
    readonly field: string | null = null,
    readonly status = 0,
  ) {
    super(problem);
    this.name = "Problem";
  }
}

/** Any error as a problem that a person can read; nothing is swallowed. */
export function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error;
  if (error instanceof TypeError && /fetch|network|load failed/i.test(error.message)) {
    return new Problem(
      "the studio does not answer",
      "runs go on without it; start it again with: loraloom studio",
    );
  }
  return new Problem(error instanceof Error ? error.message : String(error), "this is a fault of the page; reload it");
}

/** The body of a failed answer as a Problem, whatever it holds. */
export function problemFrom(body: unknown, status: number): Problem {
  const found = (body ?? {}) as Partial<Problem> & { detail?: unknown };
  if (typeof found.problem === "string") {
    return new Problem(found.problem, found.hint ?? "", found.actions ?? [], found.field ?? null, status);
  }
  return new Problem(`the studio answered ${status}`, "look at its terminal for the reason", [], null, status);
}
