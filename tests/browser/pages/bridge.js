// The bridge alone, and what the tests of the store need beside it.
import { createBridge } from "/bridge.mjs";

globalThis.newBridge = (sessionWorkerUrl = "/session.mjs") => createBridge({ sessionWorkerUrl });
globalThis.bridge = globalThis.newBridge();

/** Bytes in which each place tells where it is; `bytes-server.ts` sends the same. */
globalThis.pattern = (begin, end) => {
  const bytes = new Uint8Array(end - begin);
  for (let index = 0; index < bytes.length; index++) {
    bytes[index] = Math.imul(begin + index, 0x9e3779b1) >>> 24;
  }
  return bytes;
};

/** Whether `bytes` are those of the pattern from `begin` on. */
globalThis.isPattern = (bytes, begin = 0) => {
  for (let index = 0; index < bytes.length; index++) {
    if (bytes[index] !== Math.imul(begin + index, 0x9e3779b1) >>> 24) {
      return false;
    }
  }
  return true;
};

/** The error of a promise, as plain data; undefined when there is none. */
globalThis.errorOf = (promise) =>
  promise.then(
    () => undefined,
    ({ name, message, details }) => ({ name, message, details }),
  );

const request = (source) =>
  new Promise((resolve, reject) => {
    source.onsuccess = () => resolve(source.result);
    source.onerror = () => reject(source.error);
  });

globalThis.openDatabase = (version, upgrade) => {
  const opening = indexedDB.open("pywebml", version);
  opening.onupgradeneeded = () => upgrade?.(opening.result);
  return request(opening);
};

/** One transaction over all that the store has; `work` gets its object stores and a way to await requests. */
globalThis.inDatabase = async (work) => {
  const database = await globalThis.openDatabase();
  try {
    const names = [...database.objectStoreNames];
    const tx = database.transaction(names, "readwrite");
    const done = new Promise((resolve, reject) => {
      tx.oncomplete = resolve;
      tx.onabort = () => reject(tx.error);
    });
    const stores = Object.fromEntries(names.map((name) => [name, tx.objectStore(name)]));
    const result = await work(stores, request);
    await done;
    return result;
  } finally {
    database.close();
  }
};
