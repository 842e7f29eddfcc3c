/** A run's loss as points for a screen: each stands for a stretch of steps that ends with its own. */
import type { Curves } from "$/api/client";

const MOST = 3000;

export interface Curve {
  steps: number[];
  losses: number[];
  lowest: number[];
  highest: number[];
  validation: [number, number][];
}

export const EMPTY: Curve = { steps: [], losses: [], lowest: [], highest: [], validation: [] };

export function curveOf(answer: Curves): Curve {
  const { steps, losses, lowest, highest } = answer;
  return { steps, losses, lowest, highest, validation: answer.validation.map(([step, loss]) => [step!, loss!]) };
}

/** Steps that one point stands for. */
export function spanAt(curve: Curve, at: number): number {
  const step = curve.steps[at] ?? 0;
  return at > 0 ? Math.max(1, step - curve.steps[at - 1]!) : 1;
}

/** Put a step's loss at the end. A step that is known already is left as it is. */
export function addStep(curve: Curve, step: number, loss: number): void {
  if (step <= (curve.steps.at(-1) ?? -1)) return;
  curve.steps.push(step);
  curve.losses.push(loss);
  curve.lowest.push(loss);
  curve.highest.push(loss);
  if (curve.steps.length > MOST) halve(curve);
}

export function addValidation(curve: Curve, step: number, loss: number): void {
  curve.validation = [...curve.validation.filter(([known]) => known !== step), [step, loss]];
}

/** Forget what was recorded of later steps than this one: a run that goes on from an earlier state takes them again. */
export function backTo(curve: Curve, step: number): void {
  while ((curve.steps.at(-1) ?? -1) > step) {
    for (const values of [curve.steps, curve.losses, curve.lowest, curve.highest]) values.pop();
  }
  curve.validation = curve.validation.filter(([known]) => known <= step);
}

/** Two points become one, so that a run of any length stays as quick to draw. */
function halve(curve: Curve): void {
  const found: Curve = { ...EMPTY, steps: [], losses: [], lowest: [], highest: [] };
  for (let at = 0; at < curve.steps.length; at += 2) {
    const other = Math.min(at + 1, curve.steps.length - 1);
    const one = spanAt(curve, at);
    const two = other === at ? 0 : spanAt(curve, other);
    found.steps.push(curve.steps[other]!);
    found.losses.push((one * curve.losses[at]! + two * curve.losses[other]!) / (one + two));
    found.lowest.push(Math.min(curve.lowest[at]!, curve.lowest[other]!));
    found.highest.push(Math.max(curve.highest[at]!, curve.highest[other]!));
  }
  curve.steps = found.steps;
  curve.losses = found.losses;
  curve.lowest = found.lowest;
  curve.highest = found.highest;
}

/** The mean of the ``window`` steps up to each point. */
export function smoothed(curve: Curve, window: number): number[] {
  const found: number[] = [];
  let from = 0;
  let sum = 0;
  let weight = 0;
  for (let at = 0; at < curve.steps.length; at++) {
    sum += spanAt(curve, at) * curve.losses[at]!;
    weight += spanAt(curve, at);
    while (from < at && curve.steps[at]! - curve.steps[from]! >= window) {
      sum -= spanAt(curve, from) * curve.losses[from]!;
      weight -= spanAt(curve, from);
      from += 1;
    }
    found.push(sum / weight);
  }
  return found;
}
