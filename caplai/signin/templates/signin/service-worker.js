{% load static %}"use strict";
// When a page cannot be fetched it shows one that says so, from which one can still text for a password. Whatever else is
// asked goes to the network and is kept nowhere: pages are somebody's.
const NAME = "offline-{{ version }}";
const PAGE = "{% url 'offline' %}";
const FILES = [PAGE, "{% static 'caplai.css' %}", "{% static 'caplai.js' %}", "{% static 'caplai.svg' %}"];

addEventListener("install", (event) => event.waitUntil((async () => {
  const kept = await caches.open(NAME);
  await kept.addAll(FILES.map((file) => new Request(file, { credentials: "omit" })));
  await skipWaiting();
})()));

addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name !== NAME) await caches.delete(name);
  await clients.claim();
})()));

addEventListener("fetch", (event) => {
  const { request } = event;
  // What a form sent is the browser's alone: it asks before it sends that again (on Back, as a POST that only its own
  // cache may answer, which fetch() refuses).
  if (request.method !== "GET" || request.cache === "only-if-cached") return;
  if (request.mode === "navigate") {
    event.respondWith(fetch(request).catch(() => caches.match(PAGE)));
  } else if (FILES.includes(request.url.slice(location.origin.length))) {
    event.respondWith(fetch(request).catch(() => caches.match(request)));
  }
});
