/** The hash of a file that follows its download: most of it is done when the last bytes come. */

import { type BlobHasher, startHasher } from "./hashing.ts";

export class HashFollower {
  /** How many bytes it has taken, from the beginning of the file. */
  position = 0;
  readonly #hasher: Promise<BlobHasher>;
  readonly #piece: (offset: number) => Promise<Blob | undefined>;
  #running: Promise<void> | undefined;
  #failed: Promise<void> | undefined;
  #again = false;

  /** `piece` gives the stored bytes from an offset on, or undefined when they are not there yet. */
  constructor(workerUrl: string | undefined, piece: (offset: number) => Promise<Blob | undefined>) {
    this.#hasher = startHasher(workerUrl);
    this.#hasher.catch(() => undefined);
    this.#piece = piece;
  }

  /** Goes on to where bytes are missing. Once it has failed, it always does. */
  follow(): Promise<void> {
    if (this.#failed !== undefined) {
      return this.#failed;
    }
    this.#again = true;
    if (this.#running === undefined) {
      const running = this.#run();
      this.#running = running;
      running.then(
        () => {
          this.#running = undefined;
        },
        () => {
          this.#failed = running;
        },
      );
    }
    return this.#running;
  }

  async digest(): Promise<string> {
    return (await this.#hasher).digest();
  }

  stop(): void {
    this.#hasher.then(
      (hasher) => hasher.stop(),
      () => undefined,
    );
  }

  async #run(): Promise<void> {
    const hasher = await this.#hasher;
    let last: Promise<void> = Promise.resolve();
    while (this.#again) {
      this.#again = false;
      let blob = await this.#piece(this.position);
      while (blob !== undefined) {
        this.position += blob.size;
        const before = last;
        last = hasher.update(blob);
        last.catch(() => undefined);
        blob = await this.#piece(this.position);
        // One is hashed and one is on its way.
        await before;
      }
    }
    await last;
  }
}
