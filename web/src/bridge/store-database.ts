/** The connection to the database: opened when needed, given up when another tab wants to upgrade, opened again. */

import { openDB } from "idb";
import { NamedError } from "../errors.ts";
import { errorName, storeError } from "./store-errors.ts";
import {
  type Database,
  SCHEMA_VERSION,
  type Schema,
  type StoreName,
  type Transaction,
  upgrade,
} from "./store-schema.ts";

export class StoreDatabase {
  readonly name: string;
  #database: Promise<Database> | undefined;
  #closed = false;

  constructor(name: string) {
    this.name = name;
  }

  /** Throws `StoreUnavailableError`. */
  async connect(): Promise<Database> {
    if (this.#closed) {
      throw new NamedError(
        "StoreUnavailableError",
        `The store '${this.name}' was closed. Open it again before you use it.`,
      );
    }
    if (this.#database === undefined) {
      const opening = this.#open();
      this.#database = opening;
      opening.catch(() => {
        if (this.#database === opening) {
          this.#database = undefined;
        }
      });
    }
    return this.#database;
  }

  /** Gives the connection back. Every later call fails. */
  async close(): Promise<void> {
    this.#closed = true;
    const database = this.#database;
    this.#database = undefined;
    await database?.then(
      (open) => open.close(),
      () => undefined,
    );
  }

  /**
   * One transaction: `work` may await requests of the transaction and nothing else. `what` is for messages.
   * Errors of the database come out under our names.
   */
  async transact<Mode extends "readonly" | "readwrite", Result>(
    stores: StoreName[],
    mode: Mode,
    what: string,
    work: (tx: Transaction<Mode>) => Promise<Result>,
    options?: IDBTransactionOptions,
  ): Promise<Result> {
    const tx = await this.#begin(stores, mode, what, options);
    const done = tx.done.then(
      () => undefined,
      (error: unknown) => ({ error }),
    );
    let result: Result;
    try {
      result = await work(tx);
    } catch (error) {
      abortQuietly(tx);
      // A request of an aborted transaction only says AbortError; the transaction knows why (no room, for example).
      const failure = errorName(error) === "AbortError" ? ((await done)?.error ?? error) : error;
      throw await storeError(failure, what);
    }
    const failure = await done;
    if (failure !== undefined) {
      throw await storeError(failure.error, what);
    }
    return result;
  }

  async #begin<Mode extends "readonly" | "readwrite">(
    stores: StoreName[],
    mode: Mode,
    what: string,
    options?: IDBTransactionOptions,
  ): Promise<Transaction<Mode>> {
    try {
      return (await this.connect()).transaction(stores, mode, options);
    } catch (error) {
      if (errorName(error) !== "InvalidStateError") {
        throw await storeError(error, what);
      }
    }
    // The browser closed the connection after we looked. Nothing has been done with it: open another one.
    this.#database = undefined;
    try {
      return (await this.connect()).transaction(stores, mode, options);
    } catch (error) {
      throw await storeError(error, what);
    }
  }

  async #open(): Promise<Database> {
    if (globalThis.indexedDB === undefined) {
      throw new NamedError(
        "StoreUnavailableError",
        "There is no IndexedDB here. Open the page in a browser window that may store data (no sandboxed frame).",
      );
    }
    let isBlocked: (error: NamedError) => void = () => undefined;
    const blocked = new Promise<never>((_resolve, reject) => {
      isBlocked = reject;
    });
    let abandoned = false;
    const opened = openDB<Schema>(this.name, SCHEMA_VERSION, {
      upgrade,
      blocked: (current, wanted) =>
        isBlocked(
          new NamedError(
            "StoreUnavailableError",
            `Database '${this.name}' must go from version ${current} to ${wanted}, but another tab still uses it. ` +
              "Close the other tabs of this site, then try again.",
          ),
        ),
      // Somebody wants to upgrade or delete the database: make way, the next call opens it again.
      blocking: (_current, _wanted, event) => {
        this.#database = undefined;
        (event.target as IDBDatabase).close();
      },
      terminated: () => {
        this.#database = undefined;
      },
    });
    // After `blocked` the opening may still succeed when nobody waits any more.
    opened.then(
      (database) => {
        if (abandoned) {
          database.close();
        }
      },
      () => undefined,
    );
    try {
      return await Promise.race([opened, blocked]);
    } catch (error) {
      abandoned = true;
      throw await storeError(error, `database '${this.name}'`);
    }
  }
}

function abortQuietly(tx: { abort(): void }): void {
  try {
    tx.abort();
  } catch {
    // It has ended already.
  }
}
