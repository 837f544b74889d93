// The model, on a thread of its own: unpacks the runtime, the weights and the graphs, then answers one question at a time.

const sessions = {};
let ort = null;

async function unpacked(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function wake({ runtime, wasm, weights, graphs }) {
  const script = new Blob([await unpacked(runtime)], { type: "text/javascript" });
  ort = await import(URL.createObjectURL(script));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = (await unpacked(wasm)).buffer; // given, so that nothing is fetched
  ort.env.wasm.numThreads = 1;
  const data = await unpacked(weights);
  for (const [name, graph] of Object.entries(graphs)) {
    sessions[name] = await ort.InferenceSession.create(await unpacked(graph), {
      executionProviders: ["wasm"],
      externalData: [{ path: "weights", data }],
    });
  }
  return {};
}

const image = (planes, shape) => new ort.Tensor("uint8", planes, [1, ...shape]);

const questions = {
  look: ({ pixels, shape }) => sessions.look.run({ pixels: image(pixels, shape) }),
  map: ({ pixels, shape, target }) =>
    sessions.map.run({ pixels: image(pixels, shape), target: new ort.Tensor("float32", target, [1, target.length]) }),
  keep: ({ pixels, shape, keep, sets }) => {
    const numbers = BigInt64Array.from(keep, BigInt);
    return sessions.keep.run({
      pixels: image(pixels, shape),
      keep: new ort.Tensor("int64", numbers, [sets, keep.length / sets]),
    });
  },
};

self.onmessage = async ({ data: { id, ask, given } }) => {
  try {
    if (ask === "wake") return self.postMessage({ id, found: await wake(given) });
    const start = performance.now();
    const outputs = await questions[ask](given);
    const found = { milliseconds: performance.now() - start };
    for (const [name, tensor] of Object.entries(outputs)) found[name] = tensor.data;
    self.postMessage({ id, found });
  } catch (error) {
    self.postMessage({ id, error: String((error && error.message) || error) });
  }
};
