/** The room that stored models take. */

import { byId, find } from "./dom.ts";
import { bytes } from "./format.ts";
import type { StorageUsage } from "./runtime.ts";

export function showUsage({ used, unfinished, allowed, limit }: StorageUsage): void {
  byId("fact-storage").textContent = bytes(used);
  const isLimited = limit !== null && (allowed === 0 || limit < allowed);
  const most = isLimited ? limit : allowed;
  byId("storage-usage").textContent =
    most === 0
      ? `${bytes(used)} used, runtime included`
      : `${bytes(used)} used, runtime included, of ${bytes(most)} that ${isLimited ? "this page" : "the browser"} allows`;
  // The browsers' own meter cannot be made to look the same in all of them.
  const meter = byId("storage-meter");
  meter.hidden = most === 0;
  const percent = most === 0 ? 0 : Math.min(100, (100 * used) / most);
  meter.setAttribute("aria-valuenow", percent.toFixed(1));
  meter.setAttribute("aria-valuetext", `${bytes(used)} of ${bytes(most)}`);
  find(meter, "span").style.width = `${percent}%`;
  byId("unfinished").hidden = unfinished === 0;
  byId("unfinished-size").textContent =
    `${bytes(unfinished)} of unfinished downloads: they go on where they stopped.`;
}
