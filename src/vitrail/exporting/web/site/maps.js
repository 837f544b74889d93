// The maps of attention and of the logit lens, from the outputs of the model.

import { info, patchCount, tokenCount } from "./info.js";
import { mean, sum } from "./math.js";
import { blankPadding } from "./padding.js";

// The attention of one head: a patch's row ("to") or column ("from"). Without a patch: the rows of the pooled tokens,
// weighted by `readout`, the weight of each token in the pooled vector.
function headAttention({ attention, readout }, layer, head, patch, direction) {
  const start = (layer * info.heads + head) * tokenCount * tokenCount;
  const row = new Float32Array(tokenCount);
  if (patch === null) {
    readout.forEach((weight, query) => {
      if (!weight) return;
      for (let key = 0; key < tokenCount; key++) row[key] += weight * attention[start + query * tokenCount + key];
    });
    return row;
  }
  const token = info.prefix + patch;
  for (let i = 0; i < tokenCount; i++) {
    row[i] = attention[start + (direction === "to" ? token * tokenCount + i : i * tokenCount + token)];
  }
  return row;
}

// The attention of an image over the patches, and the sum over the tokens before them. Head -1 is the mean of all.
export function attentionMap(image, { layer, head, patch, direction }) {
  const heads = head === -1 ? Array.from({ length: info.heads }, (_, i) => i) : [head];
  const rows = heads.map((each) => headAttention(image, layer, each, patch, direction));
  const row = rows[0].map((_, i) => mean(rows.map((values) => values[i])));
  const map = blankPadding(row.subarray(info.prefix), image.pixels);
  return { map, prefixSum: sum(row.subarray(0, info.prefix)) };
}

// The logit that the head gives for each patch's token after a layer, less the mean over the classes, or less the logit
// of another class, as in explanation/logit_lens.py.
export function lensMap({ lens, pixels }, layer, label, against) {
  const classes = info.classes.length;
  const map = Float32Array.from({ length: patchCount }, (_, patch) => {
    const start = (layer * patchCount + patch) * classes;
    const logits = lens.subarray(start, start + classes);
    return logits[label] - (against === null ? mean(logits) : logits[against]);
  });
  return blankPadding(map, pixels);
}
