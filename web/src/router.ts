import { createRouter } from "sv-router";
import Home from "$/pages/Home.svelte";

export const { p, navigate, isActive, route } = createRouter({
  "/": Home,
  "/runs": () => import("$/pages/Runs.svelte"),
  "/runs/:name": () => import("$/pages/Run.svelte"),
  "/health": () => import("$/pages/Health.svelte"),
  "*": () => import("$/pages/NotFound.svelte"),
});

/** The address of a run's page. */
export function runAddress(name: string): string {
  return `/runs/${encodeURIComponent(name)}`;
}
