/** Starting module workers. */

/**
 * Starts a module worker.
 *
 * A worker's script must be of the page's own origin. For one that lies elsewhere (a CDN), a tiny worker of our own
 * imports it; a page whose CSP forbids that must host the files itself.
 */
export function startModuleWorker(url: string, name: string): Worker {
  const absolute = new URL(url, location.href);
  if (absolute.origin === location.origin || absolute.protocol === "blob:") {
    return new Worker(absolute, { type: "module", name });
  }
  const shim = new Blob([`import ${JSON.stringify(absolute.href)};`], { type: "text/javascript" });
  const shimUrl = URL.createObjectURL(shim);
  try {
    return new Worker(shimUrl, { type: "module", name });
  } finally {
    // The worker has taken its script by reference already.
    setTimeout(() => URL.revokeObjectURL(shimUrl), 60_000);
  }
}
