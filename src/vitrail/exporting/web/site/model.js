// The worker as functions that promise an answer. One question is with it at a time; of those that wait, the urgent go
// first, and a newer one takes the place of an older one in its lane: a slider never has to catch up with itself.

export class Overtaken extends Error {}

export function openModel(shape, payload, source) {
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const waiting = [];
  let busy = null;
  let count = 0;

  function next() {
    if (busy || !waiting.length) return;
    waiting.sort((a, b) => a.rank - b.rank || a.id - b.id);
    busy = waiting.shift();
    worker.postMessage({ id: busy.id, ask: busy.ask, given: busy.given });
  }

  function ask(name, given, { rank = 0, lane = null } = {}) {
    return new Promise((resolve, reject) => {
      if (lane !== null) {
        for (let i = waiting.length - 1; i >= 0; i--) {
          if (waiting[i].lane === lane) waiting.splice(i, 1)[0].reject(new Overtaken(lane));
        }
      }
      waiting.push({ id: ++count, ask: name, given, rank, lane, resolve, reject });
      next();
    });
  }

  worker.onmessage = ({ data }) => {
    const { resolve, reject } = busy;
    busy = null;
    next();
    if (data.error) reject(new Error(data.error));
    else resolve(data.found);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    for (const each of [busy, ...waiting.splice(0)]) if (each) each.reject(new Error(event.message || "the worker stopped"));
    busy = null;
  };

  return {
    ready: ask("wake", payload),
    look: (image) => ask("look", { pixels: image.planes, shape }, { lane: "look" }),
    map: (image, target) => ask("map", { pixels: image.planes, shape, target }, { lane: "map" }),
    keep: (image, sets, options) =>
      ask("keep", { pixels: image.planes, shape, keep: sets.flat(), sets: sets.length }, options),
  };
}
