/**
 * Keeps the page's own files, so that it works without a network after the first visit.
 *
 * `BUILD` stands above this line in the built file: a digest of all files, and their names. A new digest is a new
 * service worker, which fetches everything anew. Models are kept by the page itself, under their digests.
 */

/* global BUILD */

const CACHE = `plantmodels-page-${BUILD.digest}`;

self.addEventListener("install", (event) => event.waitUntil(keepAll()));
self.addEventListener("activate", (event) => event.waitUntil(replaceOlder()));
self.addEventListener("fetch", (event) => {
  const name = nameOf(event.request);
  if (name !== null) event.respondWith(answer(name, event.request));
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  await cache.addAll(BUILD.files.map((name) => new Request(name, { cache: "reload" })));
  await self.skipWaiting();
}

async function replaceOlder() {
  const names = await caches.keys();
  const older = names.filter((name) => name.startsWith("plantmodels-page-") && name !== CACHE);
  await Promise.all(older.map((name) => caches.delete(name)));
  await self.clients.claim();
}

/** Return which of the page's files a request asks for; null for all others, such as a bundle's. */
function nameOf(request) {
  const scope = self.registration.scope;
  if (request.method !== "GET" || !request.url.startsWith(scope)) return null;
  const name = request.url.slice(scope.length).split(/[?#]/)[0] || "index.html";
  return BUILD.files.includes(name) ? name : null;
}

async function answer(name, request) {
  const kept = await (await caches.open(CACHE)).match(new URL(name, self.registration.scope).href);
  return kept ?? fetch(request);
}
