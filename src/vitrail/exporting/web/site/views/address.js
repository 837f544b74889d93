// The page's address, which follows the view.

import { formatAddress } from "../selectors.js";

const DELAY_MS = 150; // browsers limit how often the address changes

let timer = 0;

export function renderAddress(state) {
  clearTimeout(timer);
  timer = setTimeout(() => history.replaceState(null, "", formatAddress(state)), DELAY_MS);
}
