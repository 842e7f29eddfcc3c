/** The pages of the studio: a page is one line here and one file in pages/. */
import Activity from "@lucide/svelte/icons/activity";
import HeartPulse from "@lucide/svelte/icons/heart-pulse";
import House from "@lucide/svelte/icons/house";
import type { Component } from "svelte";

export interface Page {
  path: "/" | "/runs" | "/health";
  title: string;
  key: string;
  icon: Component<{ size?: number }>;
}

/** In the order of the navigation; ``key`` behind "g" goes there. */
export const PAGES: Page[] = [
  { path: "/", title: "Home", key: "h", icon: House },
  { path: "/runs", title: "Runs", key: "r", icon: Activity },
  { path: "/health", title: "Health", key: "e", icon: HeartPulse },
];
