// All parts of the page.

import { renderAddress } from "./address.js";
import { buildAttention } from "./attention.js";
import { buildClasses, renderClasses } from "./classes.js";
import { renderCommands } from "./commands.js";
import { buildGallery, renderGallery } from "./gallery.js";
import { buildLayers } from "./layers.js";
import { renderMessages } from "./messages.js";
import { renderTabs } from "./tabs.js";
import { renderViewer } from "./viewer.js";

export function buildPage() {
  buildGallery();
  buildClasses();
  buildAttention();
  buildLayers();
}

export function renderPage(state) {
  renderMessages(state);
  if (!state.image) return;
  renderViewer(state);
  renderClasses(state);
  renderTabs(state);
  renderCommands(state);
  renderGallery(state);
  renderAddress(state);
}
