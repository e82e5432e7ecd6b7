/** Messages between the page and the host worker. */

import type { ErrorData } from "./protocol.ts";

/** First message to the host worker. All addresses are absolute. */
export interface HostStart {
  start: {
    assetsBase: string;
    baseUrl: string;
    /** Further packages of the Pyodide lock file to load. */
    packages: string[];
    /** Fields of Python's `Configuration`. */
    configuration: Record<string, unknown>;
  };
}

export type HostMessage =
  | { id: number; method: string; params: Record<string, unknown> }
  | { id: number; abort: string };

export type HostEvent =
  | { starting: { progress: number; text: string } }
  | { ready: true }
  | { failed: ErrorData }
  | { id: number; kind: "result"; value: unknown }
  | { id: number; kind: "error"; value: ErrorData }
  | { id: number; kind: "progress"; value: Record<string, unknown> }
  | { id: number; kind: "chunk"; value: unknown };
