/** The server's routes, typed from its own description: `npm run types` makes schema.d.ts of it. */
import createClient from "openapi-fetch";
import { problemFrom } from "./problem";
import type { components, paths } from "./schema";

type Schemas = components["schemas"];
export type Run = Schemas["RunAnswer"];
export type Notice = Schemas["NoticeAnswer"];
export type Preview = Schemas["PreviewAnswer"];
/** The client gives tuples as plain lists. */
export type Curves = Omit<Schemas["CurvesAnswer"], "validation"> & { validation: number[][] };
export type RunFile = Schemas["FileAnswer"];
export type RunSettings = Schemas["RunSettingsAnswer"];
export type Difference = Schemas["Difference"];
export type Health = Schemas["HealthAnswer"];

export const api = createClient<paths>({ cache: "no-store" });

/** What the server answered. Throws a Problem where it refused, whatever the reason. */
export async function answer<T>(reply: Promise<{ data?: T; error?: unknown; response: Response }>): Promise<T> {
  const { data, error, response } = await reply;
  if (!response.ok) throw problemFrom(error, response.status);
  return data as T;
}

/** The address of a file in a run's folder: to show, and to download. */
export function fileAddress(run: string, path: string): string {
  return `/api/runs/${encodeURIComponent(run)}/files/${path.split("/").map(encodeURIComponent).join("/")}`;
}

/** The address of the preview whose file lies at ``path`` on the server's disk. */
export function previewAddress(run: string, path: string | null): string | null {
  const name = path?.split(/[\\/]/).at(-1);
  return name ? fileAddress(run, `previews/${name}`) : null;
}
