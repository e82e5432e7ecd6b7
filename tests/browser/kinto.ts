/** A real Kinto server for one test. */

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

export interface Kinto {
  /** What it said when it started: JSON. */
  line: string;
  stop(): void;
}

export async function startKinto(): Promise<Kinto> {
  const child = spawn(".venv/bin/python", ["-m", "tests.kinto.server"], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const line: string = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout })
      .once("line", resolve)
      .once("close", () => reject(new Error("Kinto did not start.")));
  });
  return { line, stop: () => child.kill() };
}
