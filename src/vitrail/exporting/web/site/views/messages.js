// The status of the model, errors, and announcements for screen readers.

import { byId } from "../dom.js";

export function renderMessages(state) {
  for (const name of ["status", "error", "announcement"]) {
    if (byId(name).textContent !== state[name]) byId(name).textContent = state[name];
  }
}
