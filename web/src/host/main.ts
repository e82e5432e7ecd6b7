/**
 * The host worker: Pyodide with pywebml in it. Calls come from the page, go to `pywebml.worker`, and come back.
 */

import { createBridge } from "../bridge/index.ts";
import { toErrorData } from "../errors.ts";
import type { HostEvent, HostMessage, HostStart } from "../host-protocol.ts";
import { decode } from "./values.ts";

interface PyodideModule {
  loadPyodide(options: Record<string, unknown>): Promise<Pyodide>;
}

interface Pyodide {
  /** Not a public name of Pyodide's; its own console page sets the hook too. */
  _api: { on_fatal?: (error: unknown) => void };
  registerJsModule(name: string, module: object): void;
  pyimport(name: string): { serve(channel: object, configuration: string): Receive };
}

const STEPS = 3;

/** Takes a call's number, method and parameters; without a method the page no longer wants the answer. */
type Receive = (id: number, method: string | undefined, params: object | undefined) => void;

let receive: Receive | undefined;
const early: HostMessage[] = [];

self.onmessage = (event: MessageEvent<HostStart | HostMessage>) => {
  const message = event.data;
  if ("start" in message) {
    start(message.start).catch((error: unknown) => post({ failed: toErrorData(error) }));
  } else if (receive === undefined) {
    early.push(message);
  } else {
    pass(receive, message);
  }
};

function pass(receive: Receive, message: HostMessage): void {
  if ("abort" in message) {
    receive(message.id, undefined, undefined);
  } else {
    receive(message.id, message.method, message.params);
  }
}

async function start(options: HostStart["start"]): Promise<void> {
  step(0, "Loading Python");
  const indexURL = new URL("pyodide/", options.assetsBase).href;
  const pyodideUrl = `${indexURL}pyodide.mjs`;
  const { loadPyodide } = (await import(pyodideUrl)) as PyodideModule;
  const pyodide = await loadPyodide({ indexURL, packages: ["numpy", "pywebml", ...options.packages] });
  // After such an error no call is ever answered, so all of them must end here.
  pyodide._api.on_fatal = (error) => post({ failed: toErrorData(error) });
  step(1, "Starting Python");

  const bridge = createBridge({
    sessionWorkerUrl: new URL("session.mjs", options.assetsBase).href,
    baseUrl: options.baseUrl,
  });
  pyodide.registerJsModule("pywebml_bridge", bridge);
  const channel = {
    post: (id: number, kind: string, text: string, packed: Uint8Array<ArrayBuffer>, handed: unknown[]) => {
      const transfer: Transferable[] = [];
      post({ id, kind, value: decode(text, { packed, handed }, transfer) } as HostEvent, transfer);
    },
  };
  receive = pyodide.pyimport("pywebml.worker").serve(channel, JSON.stringify(options.configuration));
  step(STEPS, "Python is ready");

  post({ ready: true });
  for (const message of early.splice(0)) {
    pass(receive, message);
  }
}

function step(done: number, text: string): void {
  post({ starting: { progress: (100 * done) / STEPS, text } });
}

function post(event: HostEvent, transfer: Transferable[] = []): void {
  self.postMessage(event, transfer);
}
