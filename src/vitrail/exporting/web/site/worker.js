// The model on a thread of its own: unpacks the runtime, the weights and the graphs, then runs one request at a time.

const sessions = {}; // by the graph's name, each created when it is first needed
let ort = null;
let graphs = null;
let weights = null;

async function decompress(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load(payload) {
  const script = new Blob([await decompress(payload.runtime)], { type: "text/javascript" });
  const address = URL.createObjectURL(script);
  ort = await import(address);
  URL.revokeObjectURL(address);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = (await decompress(payload.wasm)).buffer; // otherwise the runtime would fetch it
  ort.env.wasm.numThreads = 1;
  weights = await decompress(payload.weights);
  graphs = payload.graphs;
  await openSession("inspect");
  return {};
}

async function openSession(name) {
  if (!sessions[name]) {
    sessions[name] = await ort.InferenceSession.create(await decompress(graphs[name]), {
      executionProviders: ["wasm"],
      externalData: [{ path: "weights", data: weights }],
    });
  }
  return sessions[name];
}

const pixelTensor = ({ planes, shape }) => new ort.Tensor("uint8", planes, [1, ...shape]);

const makeInputs = {
  inspect: (inputs) => ({ pixels: pixelTensor(inputs) }),
  map: (inputs) => ({
    pixels: pixelTensor(inputs),
    target: new ort.Tensor("float32", inputs.target, [1, inputs.target.length]),
  }),
  subset: (inputs) => {
    const { patches, sets } = inputs;
    const keep = new ort.Tensor("int64", BigInt64Array.from(patches, BigInt), [sets, patches.length / sets]);
    return { pixels: pixelTensor(inputs), keep };
  },
};

async function run(name, inputs) {
  const session = await openSession(name);
  const start = performance.now();
  const tensors = await session.run(makeInputs[name](inputs));
  const outputs = { milliseconds: performance.now() - start };
  for (const [output, tensor] of Object.entries(tensors)) outputs[output] = tensor.data;
  return outputs;
}

self.onmessage = async ({ data: { id, name, inputs } }) => {
  try {
    const outputs = name === "load" ? await load(inputs) : await run(name, inputs);
    self.postMessage({ id, outputs });
  } catch (error) {
    self.postMessage({ id, error: String((error && error.message) || error) });
  }
};
