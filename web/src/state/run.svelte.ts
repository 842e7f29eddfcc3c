/** One run, folded from its events: what the server knew when the page opened, and everything that happens after it. */
import { answer, api, type Notice, type Preview, type Run } from "$/api/client";
import { problemFrom, problemOf, type Problem } from "$/api/problem";
import { Stream } from "$/api/stream";
import { addStep, addValidation, backTo, curveOf, EMPTY, type Curve } from "./curve";

const POINTS = 1000;

interface Happened {
  event: string;
  back_to: number | null;
  step?: number;
  loss?: number;
  learning_rates?: Record<string, number>;
  text?: string;
  level?: string;
  path?: string;
  prompt?: string;
  epoch?: number;
  index?: number;
  weight?: number;
}

export class RunState {
  status = $state.raw<Run | null>(null);
  notices = $state.raw<Notice[]>([]);
  previews = $state.raw<Preview[]>([]);
  /** A new object whenever it has changed. */
  curve = $state.raw<Curve>(EMPTY);
  rates = $state.raw<Record<string, number>>({});
  /** Why nothing can be shown. */
  problem = $state.raw<Problem | null>(null);
  /** Grows when the run has written a file, and when its process has said something. */
  written = $state(0);

  #known = { curve: 0, run: 0 };
  #stream: Stream | null = null;
  #closed = false;
  #drawing = 0;

  constructor(readonly name: string) {
    void this.load();
  }

  close(): void {
    this.#closed = true;
    this.#stream?.close();
    cancelAnimationFrame(this.#drawing);
  }

  /** Take everything anew, then follow. */
  async load(): Promise<void> {
    this.#stream?.close();
    this.problem = null;
    const params = { path: { run: this.name } };
    try {
      const [one, previews, curves] = await Promise.all([
        answer(api.GET("/api/runs/{run}", { params })),
        answer(api.GET("/api/runs/{run}/previews", { params })),
        answer(api.GET("/api/runs/{run}/curves", { params: { ...params, query: { points: POINTS } } })),
      ]);
      if (this.#closed) return;
      this.status = one.run;
      this.notices = one.notices;
      this.previews = previews.previews;
      this.curve = curveOf(curves);
      this.rates = Object.fromEntries(Object.entries(curves.rates).map(([part, values]) => [part, values.at(-1) ?? 0]));
      this.#known = { curve: curves.offset, run: one.offset };
      this.written += 1;
      this.#follow();
    } catch (error) {
      if (!this.#closed) this.problem = problemOf(error);
    }
  }

  #follow(): void {
    const first = String(Math.min(this.#known.curve, this.#known.run));
    const address = `/api/runs/${encodeURIComponent(this.name)}/events?after=`;
    this.#stream = new Stream((place) => address + encodeURIComponent(place || first), {
      on: {
        happened: (data, place) => this.#happened(data as Happened, parseInt(place)),
        status: (data) => {
          this.status = data as Run;
          this.written += 1;
        },
        replaced: () => void this.load(),
        failed: (data) => {
          this.#stream?.close();
          this.problem = problemFrom(data, 0);
        },
      },
      lost: (problem) => {
        // A run whose folder is gone is refused for good; that the server is silent is said on every page.
        if (problem?.status === 404) this.problem = problem;
      },
    });
  }

  #happened(event: Happened, end: number): void {
    if (event.back_to !== null) this.#goBack(event.back_to, end);
    if (end > this.#known.curve) this.#draw(event);
    if (end > this.#known.run && event.event === "Notice") {
      this.notices = [...this.notices, { text: event.text ?? "", level: event.level ?? "info", actions: [] }];
    }
    if (event.event === "PreviewSaved") this.#painted(event);
  }

  #goBack(step: number, end: number): void {
    if (end > this.#known.curve) {
      backTo(this.curve, step);
      this.#changed();
    }
    this.previews = this.previews.filter((preview) => preview.step <= step);
  }

  #draw(event: Happened): void {
    if (event.step === undefined || event.loss === undefined || !Number.isFinite(event.loss)) return;
    if (event.event === "StepFinished") {
      addStep(this.curve, event.step, event.loss);
      this.rates = event.learning_rates ?? this.rates;
    } else if (event.event === "ValidationMeasured") {
      addValidation(this.curve, event.step, event.loss);
    }
    this.#changed();
  }

  /** Many steps a second are one new picture of the curve. */
  #changed(): void {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.curve = { ...this.curve };
    });
  }

  #painted(event: Happened): void {
    const { prompt = "", step = 0, epoch = 0, index = 0, weight = 1 } = event;
    const name = event.path?.split(/[\\/]/).at(-1);
    const preview: Preview = { path: name ? `previews/${name}` : null, prompt, step, epoch, index, weight };
    const isSame = (known: Preview) => known.step === step && known.index === index && known.weight === weight;
    this.previews = [...this.previews.filter((known) => !isSame(known)), preview];
  }
}
