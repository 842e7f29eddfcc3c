/** Numbers, times and states as a person reads them. */

/** "45 s", "12 min", "3 h 20 min". */
export function duration(seconds: number): string {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 10 && minutes % 60 ? `${hours} h ${minutes % 60} min` : `${Math.round(minutes / 60)} h`;
}

/** "just now", "12 min ago", or the day. */
export function ago(time: number, now: number): string {
  const seconds = now - time;
  if (seconds < 60) return "just now";
  if (seconds < 86400) return `${duration(seconds)} ago`;
  return new Date(1000 * time).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

export function lossText(loss: number | null | undefined): string {
  if (loss === null || loss === undefined) return "–";
  return loss !== 0 && Math.abs(loss) < 0.001 ? short(loss) : loss.toFixed(4);
}

/** A number with three digits that count: "2e-3", "0.25". */
export function short(value: number): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 0.01 && size < 1e5) return String(Number(value.toPrecision(3)));
  return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
}

export function size(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  const names = ["kB", "MB", "GB", "TB"];
  let value = bytes / 1000;
  let at = 0;
  while (value >= 999.5 && at < names.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${names[at]}`;
}

export function speed(secondsPerStep: number): string {
  return secondsPerStep < 1 ? `${short(1 / secondsPerStep)} steps/s` : `${short(secondsPerStep)} s a step`;
}

/** A setting's value in one line. */
export function valueText(value: unknown): string {
  if (value === null || value === undefined) return "none";
  if (value === true) return "yes";
  if (value === false) return "no";
  if (typeof value === "number") return short(value) === String(value) || !Number.isInteger(value) ? short(value) : String(value);
  if (typeof value === "string") return value === "" ? "empty" : value;
  if (Array.isArray(value)) return value.length ? value.map(valueText).join(", ") : "none";
  return JSON.stringify(value);
}

export const ACTIVE = ["preparing", "running", "paused"];

const STATES: Record<string, { word: string; tone: string }> = {
  queued: { word: "queued", tone: "" },
  preparing: { word: "preparing", tone: "live" },
  running: { word: "training", tone: "live" },
  paused: { word: "paused", tone: "warn" },
  stopped: { word: "stopped", tone: "" },
  finished: { word: "finished", tone: "good" },
  failed: { word: "failed", tone: "bad" },
  interrupted: { word: "interrupted", tone: "warn" },
};

/** How a run's state is called, and the colour of its mark. */
export function stateWords(state: string): { word: string; tone: string } {
  return STATES[state] ?? { word: state, tone: "" };
}
