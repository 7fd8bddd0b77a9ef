// Keeps the page for a time without a network; while there is one, nothing old is shown.
const SHELF = 'aligngpt-live'

addEventListener('install', () => skipWaiting())
addEventListener('activate', e => e.waitUntil(clients.claim()))
addEventListener('fetch', e => { if (e.request.method === 'GET') e.respondWith(answer(e.request)) })

async function answer(request) {
  const shelf = await caches.open(SHELF)
  try {
    const got = await fetch(request)
    if (got.ok) await shelf.put(request, got.clone())
    return got
  } catch { return await shelf.match(request, {ignoreSearch: true}) ?? Response.error() }
}
