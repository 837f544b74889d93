// The model, on a thread of its own: unpacks the runtime, the weights and the graphs, then answers one question at a time.

const sessions = {}; // by the graph's name, each opened when it is first asked
let ort = null;
let packed = null;
let weights = null;

async function unpacked(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function wake(given) {
  const script = new Blob([await unpacked(given.runtime)], { type: "text/javascript" });
  ort = await import(URL.createObjectURL(script));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = (await unpacked(given.wasm)).buffer; // given, so that nothing is fetched
  ort.env.wasm.numThreads = 1;
  weights = await unpacked(given.weights);
  packed = given.graphs;
  await session("look");
  return {};
}

async function session(name) {
  if (!sessions[name]) {
    sessions[name] = await ort.InferenceSession.create(await unpacked(packed[name]), {
      executionProviders: ["wasm"],
      externalData: [{ path: "weights", data: weights }],
    });
  }
  return sessions[name];
}

const image = (planes, shape) => new ort.Tensor("uint8", planes, [1, ...shape]);

const inputs = {
  look: ({ pixels, shape }) => ({ pixels: image(pixels, shape) }),
  map: ({ pixels, shape, target }) => ({
    pixels: image(pixels, shape), target: new ort.Tensor("float32", target, [1, target.length]),
  }),
  keep: ({ pixels, shape, keep, sets }) => ({
    pixels: image(pixels, shape), keep: new ort.Tensor("int64", BigInt64Array.from(keep, BigInt), [sets, keep.length / sets]),
  }),
};

self.onmessage = async ({ data: { id, ask, given } }) => {
  try {
    if (ask === "wake") return self.postMessage({ id, found: await wake(given) });
    const opened = await session(ask);
    const start = performance.now();
    const outputs = await opened.run(inputs[ask](given));
    const found = { milliseconds: performance.now() - start };
    for (const [name, tensor] of Object.entries(outputs)) found[name] = tensor.data;
    self.postMessage({ id, found });
  } catch (error) {
    self.postMessage({ id, error: String((error && error.message) || error) });
  }
};
