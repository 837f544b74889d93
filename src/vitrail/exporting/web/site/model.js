// The worker as functions that return promises. It handles one request at a time. Waiting requests are sorted by
// priority, and a new request replaces a waiting one of the same kind, so that a slider causes no backlog. An error
// outside of a request stops the worker: all its requests, also later ones, are rejected with that error.

export class SupersededError extends Error {}

export function startModel(shape, payload, source) {
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(address);
  const waiting = [];
  let running = null;
  let failure = null;
  let count = 0;

  function startNext() {
    if (running || !waiting.length) return;
    waiting.sort((a, b) => a.priority - b.priority || a.id - b.id);
    running = waiting.shift();
    worker.postMessage({ id: running.id, name: running.name, inputs: running.inputs });
  }

  function request(name, inputs, { priority = 0, kind = null } = {}) {
    if (failure) return Promise.reject(failure);
    return new Promise((resolve, reject) => {
      for (let i = waiting.length - 1; kind !== null && i >= 0; i--) {
        if (waiting[i].kind === kind) waiting.splice(i, 1)[0].reject(new SupersededError(kind));
      }
      waiting.push({ id: ++count, name, inputs, priority, kind, resolve, reject });
      startNext();
    });
  }

  worker.onmessage = ({ data }) => {
    if (!running) return; // a late answer after a failure
    const { resolve, reject } = running;
    running = null;
    startNext();
    if (data.error) reject(new Error(data.error));
    else resolve(data.outputs);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    failure = new Error(event.message || "the worker stopped");
    for (const each of [running, ...waiting.splice(0)]) each?.reject(failure);
    running = null;
  };

  const ready = request("load", payload);
  const revoke = () => URL.revokeObjectURL(address); // the worker has its script by now
  ready.then(revoke, revoke);
  return {
    ready,
    inspect: (pixels) => request("inspect", { planes: pixels.planes, shape }, { kind: "inspect" }),
    map: (pixels, target) => request("map", { planes: pixels.planes, shape, target }, { kind: "map" }),
    subset: (pixels, sets, options) =>
      request("subset", { planes: pixels.planes, shape, patches: sets.flat(), sets: sets.length }, options),
  };
}
