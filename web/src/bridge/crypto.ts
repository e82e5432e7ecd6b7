/** Signatures by Web Cryptography. */

import { NamedError } from "../errors.ts";

type Algorithm =
  | { name: "ECDSA"; namedCurve: "P-256" | "P-384"; hash: string }
  | { name: "RSASSA-PKCS1-v1_5"; hash: string };

/** In the words of `Platform.verify_signature`. */
const ALGORITHMS = new Map<string, Algorithm>([
  ["ecdsa-p256-sha256", { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" }],
  ["ecdsa-p256-sha384", { name: "ECDSA", namedCurve: "P-256", hash: "SHA-384" }],
  ["ecdsa-p384-sha256", { name: "ECDSA", namedCurve: "P-384", hash: "SHA-256" }],
  ["ecdsa-p384-sha384", { name: "ECDSA", namedCurve: "P-384", hash: "SHA-384" }],
  ["rsassa-pkcs1-v1_5-sha256", { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" }],
  ["rsassa-pkcs1-v1_5-sha384", { name: "RSASSA-PKCS1-v1_5", hash: "SHA-384" }],
  ["rsassa-pkcs1-v1_5-sha512", { name: "RSASSA-PKCS1-v1_5", hash: "SHA-512" }],
]);

/**
 * Whether `signature` is that of `data` by this key.
 *
 * @param spki The key: SubjectPublicKeyInfo, DER. A key that cannot be used has signed nothing.
 * @param signature ECDSA: r and s one after the other.
 */
export async function verifySignature(
  algorithm: string,
  spki: Uint8Array<ArrayBuffer>,
  signature: Uint8Array<ArrayBuffer>,
  data: Uint8Array<ArrayBuffer>,
): Promise<boolean> {
  const parameters = ALGORITHMS.get(algorithm);
  if (parameters === undefined) {
    const reason = `signatures of the kind '${algorithm}' are not supported`;
    throw new NamedError("SignatureError", `S${reason.slice(1)}.`, { reason });
  }
  // The types promise it, but browsers leave it out on pages over plain http.
  const subtle = globalThis.crypto?.subtle as SubtleCrypto | undefined;
  if (subtle === undefined) {
    const reason = "this page is no secure context, and browsers check signatures in secure contexts only";
    throw new NamedError(
      "SignatureError",
      `Signatures cannot be checked: ${reason}. Serve the page over https, or from localhost.`,
      { reason, secureContext: globalThis.isSecureContext === true },
    );
  }
  try {
    const key = await subtle.importKey("spki", spki, parameters, false, ["verify"]);
    return await subtle.verify(parameters, key, signature, data);
  } catch (error) {
    if (error instanceof DOMException) {
      return false;
    }
    throw error;
  }
}
